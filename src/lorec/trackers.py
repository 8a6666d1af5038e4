"""Training curves and judgements in TensorBoard or MLflow, through their own libraries.

A tracker is one more `watch`: of `fit`, of `run`, and, told the cell too, of `grid`. It hears what they say anyway, so
nothing is measured for it, and a server that stops answering costs its curves, not the training.
"""

import json
import logging
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lorec.errors import ConfigError, MissingExtra, RunError, first_line
from lorec.files import read_json, write_json
from lorec.records import Event
from lorec.training import Progress

_logger = logging.getLogger(__name__)

__all__ = ["TRACKERS", "MLflow", "TensorBoard", "Tracker", "check", "tracker"]


class Tracker:
    """Tells figures of a training to another program; `TensorBoard` and `MLflow` say where."""

    def __init__(self, about: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """`about`: the configuration as plain values, of each cell by name; that of a run by ""."""
        self.about, self.broken = about or {}, False
        self.had: dict[str, bool] = {}

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._try(self.close, kind is None)

    def __call__(self, told: Event | Progress, cell: str = "") -> None:
        """Hear an event. The first failure is logged, and ends the tracking alone."""
        for arm, epoch, figures in _figures(told):
            series = "/".join(filter(None, (cell, arm))) or "fit"
            if series not in self.had:
                self.had[series] = isinstance(told, Event) and told.again and bool(self._try(self.has, series))
            if isinstance(told, Event) and told.again and self.had[series]:
                continue  # it was told when it happened
            finite = {_name(name): value for name, value in figures.items() if math.isfinite(value)}
            self._try(self.tell, series, cell, epoch, finite)

    def _try(self, do: Callable[..., Any], *given: object) -> Any:
        if self.broken:
            return None
        try:
            return do(*given)
        except Exception as error:
            self.broken = True
            first = _told(error)
            _logger.warning("%s is told no more: %s: %s", type(self).__name__, type(error).__name__, first)
            return None
        except BaseException:  # an interruption, perhaps because nobody answers: don't ask once more
            self.broken = True
            raise

    def has(self, series: str) -> bool:
        """Whether a series was told of in an earlier session."""
        raise NotImplementedError

    def tell(self, series: str, cell: str, epoch: int | None, figures: dict[str, float]) -> None:
        """Put down figures of an arm after an epoch, or (None) those of the test items."""
        raise NotImplementedError

    def close(self, finished: bool) -> None:
        """Write what is left."""
        raise NotImplementedError


class TensorBoard(Tracker):
    """Event files under a folder, a run for each arm: `tensorboard --logdir FOLDER`."""

    def __init__(self, folder: str | Path, about: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Raises MissingExtra without the library `tensorboard`."""
        super().__init__(about)
        self.folder = Path(folder)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtra("TensorBoard needs its library: pip install 'lorec[track]'") from None
        self.make = SummaryWriter
        self.writers: dict[str, Any] = {}

    def has(self, series: str) -> bool:
        """Whether there are event files of it."""
        return any((self.folder / series).glob("events.*"))

    def tell(self, series: str, cell: str, epoch: int | None, figures: dict[str, float]) -> None:
        """Scalars `epoch/...` over epochs and `test/...` at the end, under the series' own folder."""
        if series not in self.writers:
            self.writers[series] = self.make(str(self.folder / series), flush_secs=10)
            if cell in self.about:
                text = json.dumps(self.about[cell], indent=2, ensure_ascii=False)
                self.writers[series].add_text("configuration", f"```\n{text}\n```")
        group = "test" if epoch is None else "epoch"
        for name, value in figures.items():
            self.writers[series].add_scalar(f"{group}/{name}", value, epoch or 0)

    def close(self, finished: bool) -> None:
        """Close the event files."""
        for writer in self.writers.values():
            writer.close()


class MLflow(Tracker):
    """A run for each arm in an experiment, on the server or in the folder that MLFLOW_TRACKING_URI names."""

    def __init__(
        self, experiment: str, folder: str | Path = "", about: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """`folder`: of the run or grid, which keeps in mlflow.json by what its runs are found when it goes on.

        Raises MissingExtra without the library, RunError where the server does not answer.
        """
        super().__init__(about)
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        try:
            import mlflow
        except ImportError:
            raise MissingExtra("MLflow needs its library: pip install 'lorec[track]'") from None
        self.entities, self.kept = mlflow.entities, Path(folder) / "mlflow.json" if folder else None
        try:
            self.client = mlflow.MlflowClient()
            found = self.client.get_experiment_by_name(experiment)
            self.experiment = found.experiment_id if found else self.client.create_experiment(experiment)
        except Exception as error:
            first = _told(error)
            raise RunError(
                f"MLflow can't be told anything ({first}); see that what MLFLOW_TRACKING_URI names is there"
            ) from None
        self.id = ""
        self.runs: dict[str, str] = {}
        self.earlier: dict[str, str] | None = None

    def has(self, series: str) -> bool:
        """Whether this folder has a run of it on the server."""
        return self._found(series) is not None

    def tell(self, series: str, cell: str, epoch: int | None, figures: dict[str, float]) -> None:
        """Metrics `epoch/...` over epochs and `test/...` at the end, of the series' own run."""
        if series not in self.runs:
            found = self._found(series)
            if found is not None:
                self.client.update_run(found, status="RUNNING")
            self.runs[series] = found or self._made(series, cell)
        now, group = int(time.time() * 1000), "test" if epoch is None else "epoch"
        metrics = [self.entities.Metric(f"{group}/{name}", value, now, epoch or 0) for name, value in figures.items()]
        self.client.log_batch(self.runs[series], metrics=metrics)

    def _tags(self, series: str) -> dict[str, str]:
        """What tells this folder's runs from all others: not its name, which says where somebody's home is."""
        if not self.id and self.kept is not None and self.kept.exists():
            self.id = uuid.UUID(str(read_json(self.kept)["id"])).hex  # whoever wrote the file: no query
        if not self.id:
            self.id = uuid.uuid4().hex
            if self.kept is not None:
                write_json(self.kept, {"id": self.id})
        return {"lorec.id": self.id, "lorec.series": series}

    def _found(self, series: str) -> str | None:
        """The run of a series from before, where this folder goes on."""
        if self.earlier is None:
            asked = f"tags.`lorec.id` = '{self._tags(series)['lorec.id']}'"
            found = self.client.search_runs([self.experiment], asked, max_results=50_000)
            self.earlier = {one.data.tags["lorec.series"]: str(one.info.run_id) for one in found}
        return self.earlier.get(series)

    def _made(self, series: str, cell: str) -> str:
        made = self.client.create_run(self.experiment, tags=self._tags(series), run_name=series)
        params = [self.entities.Param(key, value[:6000]) for key, value in _flat(self.about.get(cell, {}))]
        for start in range(0, len(params), 100):  # as many as a server takes at once
            self.client.log_batch(made.info.run_id, params=params[start : start + 100])
        return str(made.info.run_id)

    def close(self, finished: bool) -> None:
        """Say how the runs ended."""
        for run in self.runs.values():
            self.client.set_terminated(run, "FINISHED" if finished else "KILLED")


PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_DISABLE_TELEMETRY": "true",
}  # fmt: skip
"""Unless the environment says otherwise: a training does not wait for minutes, nobody's makers are told of it."""
TRACKERS = ("tensorboard", "mlflow")
"""By name, as `lorec run --track` takes them."""


def check(name: str) -> None:
    """Raise ConfigError for a name that no tracker has."""
    if name not in TRACKERS:
        raise ConfigError(f"no tracker {name!r}; take one of {', '.join(TRACKERS)}")


def tracker(name: str, experiment: str, folder: Path, about: Mapping[str, Mapping[str, Any]]) -> Tracker:
    """A tracker of a run's or grid's folder by its name. Raises ConfigError, and what it raises."""
    check(name)
    return TensorBoard(folder / "tensorboard", about) if name == "tensorboard" else MLflow(experiment, folder, about)


def _figures(told: Event | Progress) -> Iterator[tuple[str, int | None, dict[str, float]]]:
    """Arm, epoch (None at the end) and figures of what an event says."""
    if not told.figures:
        return
    if isinstance(told, Progress):
        yield "", told.epoch, told.figures
    elif told.epoch is not None:
        yield told.stage, told.epoch, told.figures
    else:
        arms: dict[str, dict[str, float]] = {}
        for name, value in told.figures.items():
            arm, _, figure = name.partition("/")
            arms.setdefault(arm, {})[figure] = value
        for arm, figures in arms.items():
            yield arm, None, figures


SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def _told(error: Exception) -> str:
    """What a library says of its failure, in a line, without what it must not say: addresses may hold passwords."""
    first = re.sub(r"(\w+://)[^\s/@]+@", r"\1", first_line(error))
    for secret in filter(None, map(os.environ.get, SECRETS)):
        first = first.replace(secret, "...")
    return first[:300]


def _name(figure: str) -> str:
    """HR@10 as both libraries take it: HR_at_10."""
    return re.sub(r"[^\w.-]+", "_", figure.replace("@", "_at_").replace("%", "percent")).strip("_")


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield before + key, json.dumps(value, ensure_ascii=False)
