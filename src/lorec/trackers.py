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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lorec.errors import ConfigError, MissingExtra, RunError
from lorec.experiment import Event
from lorec.training import Progress

_logger = logging.getLogger(__name__)

__all__ = ["TRACKERS", "MLflow", "TensorBoard", "Tracker", "tracker"]


class Tracker:
    """Tells figures of a training to another program; `TensorBoard` and `MLflow` say where."""

    def __init__(self, about: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """`about`: the configuration as plain values, of each cell by name; that of a run by ""."""
        self.about, self.broken = about or {}, False

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._try(self.close, kind is None)

    def __call__(self, told: Event | Progress, cell: str = "") -> None:
        """Hear an event. The first failure is logged, and ends the tracking alone."""
        for arm, epoch, figures in _figures(told):
            series = "/".join(filter(None, (cell, arm))) or "fit"
            finite = {_name(name): value for name, value in figures.items() if math.isfinite(value)}
            self._try(self.tell, series, cell, epoch, finite)

    def _try(self, do: Callable[..., None], *given: object) -> None:
        if self.broken:
            return
        try:
            do(*given)
        except Exception as error:
            self.broken = True
            _logger.warning("%s is told no more: %s: %s", type(self).__name__, type(error).__name__, error)

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
        """`folder`: of the run or grid; one that goes on finds the runs of before by it.

        Raises MissingExtra without the library, RunError where the server does not answer.
        """
        super().__init__(about)
        # The library would tell its makers what it is used for; whoever wants that sets the variable.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        try:
            import mlflow
        except ImportError:
            raise MissingExtra("MLflow needs its library: pip install 'lorec[track]'") from None
        self.entities, self.folder = mlflow.entities, str(Path(folder).absolute()) if folder else ""
        try:
            self.client = mlflow.MlflowClient()
            found = self.client.get_experiment_by_name(experiment)
            self.experiment = found.experiment_id if found else self.client.create_experiment(experiment)
        except Exception as error:
            first = (str(error).splitlines() or [""])[0][:300]
            raise RunError(
                f"MLflow can't be told anything ({first}); see that what MLFLOW_TRACKING_URI names is there"
            ) from None
        self.runs: dict[str, str] = {}

    def tell(self, series: str, cell: str, epoch: int | None, figures: dict[str, float]) -> None:
        """Metrics `epoch/...` over epochs and `test/...` at the end, of the series' own run."""
        if series not in self.runs:
            self.runs[series] = self._run(series, cell)
        now, group = int(time.time() * 1000), "test" if epoch is None else "epoch"
        metrics = [self.entities.Metric(f"{group}/{name}", value, now, epoch or 0) for name, value in figures.items()]
        self.client.log_batch(self.runs[series], metrics=metrics)

    def _run(self, series: str, cell: str) -> str:
        """The run of a series: that of before, where this folder goes on."""
        tags = {"lorec.folder": self.folder, "lorec.series": series}
        if self.folder:
            asked = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items() if "'" not in value)
            for one in self.client.search_runs([self.experiment], asked):
                if all(one.data.tags.get(key) == value for key, value in tags.items()):
                    self.client.update_run(one.info.run_id, status="RUNNING")
                    return str(one.info.run_id)
        made = self.client.create_run(self.experiment, tags=tags, run_name=series)
        params = [self.entities.Param(key, value[:6000]) for key, value in _flat(self.about.get(cell, {}))]
        for start in range(0, len(params), 100):  # as many as a server takes at once
            self.client.log_batch(made.info.run_id, params=params[start : start + 100])
        return str(made.info.run_id)

    def close(self, finished: bool) -> None:
        """Say how the runs ended."""
        for run in self.runs.values():
            self.client.set_terminated(run, "FINISHED" if finished else "KILLED")


TRACKERS = ("tensorboard", "mlflow")
"""By name, as `lorec run --track` takes them."""


def tracker(name: str, experiment: str, folder: Path, about: Mapping[str, Mapping[str, Any]]) -> Tracker:
    """A tracker of a run's or grid's folder by its name. Raises ConfigError, and what it raises."""
    if name not in TRACKERS:
        raise ConfigError(f"no tracker {name!r}; take one of {', '.join(TRACKERS)}")
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


def _name(figure: str) -> str:
    """HR@10 as both libraries take it: HR_at_10."""
    return re.sub(r"[^\w.-]+", "_", figure.replace("@", "_at_").replace("%", "percent")).strip("_")


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield before + key, json.dumps(value, ensure_ascii=False)
