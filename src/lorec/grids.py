"""Many runs from one file, side by side, resumed after a kill, and told in one table.

A grid file is a run file with one table more: [grid] gives keys of the run file lists of values, and a cell is one
combination of them: a run, with an arm for every defense. `grid` leaves a folder:

    grid.json          what was asked: axes and cells
    runs/<cell>/       a run folder each
    shared/            poisons and clean models that cells have in common
    logs/<cell>.log    what a cell's process said on its error stream
    failed.json        what failed, by cell
    cells.*            a row for every arm of every cell: axes, figures, seconds, memory, errors
    table.*            means over seeds, intervals, tests; .md and .tex for readers, .csv and .parquet for programs
"""

import dataclasses
import itertools
import json
import os
import queue
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from filelock import FileLock, Timeout

from lorec.attacks import Stored, budget, choose_targets, known_fakes, open_poison
from lorec.comparison import FORMATS, bootstrap, exposed, summary, write_table
from lorec.data import Split
from lorec.errors import ConfigError, DiskError, LorecError, RunError
from lorec.experiment import Event, Run, begun, open_run, run
from lorec.files import read_json, write_json
from lorec.runfile import RunFile, arms_of, plain, put, read_document, resolve
from lorec.sources import prepared
from lorec.text import TextVectors
from lorec.training import fit

__all__ = ["Cell", "Done", "Estimate", "Grid", "Job", "do", "estimate", "grid", "local", "read_grid_file"]


# ------------------------------------------------------------------------------------------------------- grid files


@dataclass(frozen=True)
class Cell:
    """One combination: a run."""

    name: str
    """Its folder: what sets it apart from the other cells."""
    config: RunFile
    labels: dict[str, str | float]
    """The value on each axis, as tables show it."""


@dataclass(frozen=True)
class Grid:
    """What is to be run."""

    name: str
    axes: tuple[str, ...]
    """What varies, and what every table says: data, backbone, items, attack, share; the seed is no axis of a table."""
    cells: tuple[Cell, ...]

    @property
    def arms(self) -> int:
        """Recommenders to be trained: every arm of every cell, clean models that are shared counted once."""
        clean = len({_clean_identity(cell.config) for cell in self.cells})
        return clean + sum(len(arms_of(cell.config)) - 1 for cell in self.cells)


ALWAYS = ("data", "backbone", "items", "attack", "share")
NO_AXIS = {
    "name": "cells are named by what sets them apart",
    "defenses": "every cell has an arm for each of the file's defenses",
    "grid": "a grid holds no grids",
}


def read_grid_file(path: str | Path, settings: Mapping[str, str] | None = None) -> Grid:
    """Read a grid from TOML; `settings` overrule keys of what its cells share. Raises ConfigError, naming the cell."""
    document = read_document(path, settings)
    axes = document.pop("grid", None)
    if not isinstance(axes, dict) or not axes:
        raise ConfigError(f"{path} has no [grid] of lists, as in seed = [1, 2, 3]; without one it is for lorec run")
    for key, values in axes.items():
        if key.partition(".")[0] in NO_AXIS:
            raise ConfigError(f"[grid] {key} is no axis: {NO_AXIS[key.partition('.')[0]]}")
        if not isinstance(values, list) or not values:
            raise ConfigError(f"[grid] {key} is {values!r}; it is a list of values, as in {key} = [...]")
    cells: dict[str, Cell] = {}
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        told = ", ".join(f"{key} = {_label(value)}" for key, value in chosen.items())
        made = json.loads(json.dumps(document))
        try:
            for key, value in chosen.items():
                put(made, key, value)
            config = resolve(made)
            arms_of(config)
        except ConfigError as error:
            raise type(error)(f"[grid] {told}: {error}") from None
        cell = Cell(_slug(chosen, axes), config, _labels(config, chosen))
        twin = next((other for other in cells.values() if plain(other.config) == plain(config)), None)
        if twin is not None or cell.name in cells:
            raise ConfigError(f"[grid] the cell {told} stands twice; take one of the equal values out")
        cells[cell.name] = cell
    more = tuple(key for key in axes if key not in (*ALWAYS, "attack.share", "seed"))
    return Grid(next(iter(cells.values())).config.name, (*ALWAYS, *more), tuple(cells.values()))


def _label(value: Any) -> str:
    """A value of an axis in one word: a table's name with its settings, a list's parts."""
    if isinstance(value, Mapping):
        own = str(value.get("path", value.get("name", "")) if "path" in value else value.get("name", ""))
        rest = [f"{key}={_label(one)}" for key, one in value.items() if key not in ("name", "path")]
        return ",".join([own, *rest] if own else rest)
    if isinstance(value, list):
        return "+".join(map(_label, value)) or "none"
    return str(value)


def _slug(chosen: Mapping[str, Any], axes: Mapping[str, list[Any]]) -> str:
    """A folder's name out of what varies."""
    parts = []
    for key, value in chosen.items():
        if len(axes[key]) > 1:
            text = re.sub(r"[^A-Za-z0-9.+=-]+", "-", _label(value)).strip("-.")
            parts.append(f"{key.rpartition('.')[2]}{text}" if text[:1].isdigit() else text)
    return "_".join(parts) or "cell"


def _labels(config: RunFile, chosen: Mapping[str, Any]) -> dict[str, str | float]:
    """What the axes say of a cell; those of every table even where the file does not vary them."""
    values = plain(config)
    of_data = {key: one for key, one in values["data"].items() if key in ("name", "path")}
    share = values["attack"].get("share", float("nan"))
    always: dict[str, str | float] = {
        "data": _label(chosen.get("data", of_data)),
        "backbone": _label(chosen.get("backbone", values["backbone"]["name"])),
        "items": config.items,
        "attack": _label(chosen.get("attack", values["attack"]["name"])),
        "share": float(share),
    }
    more = {key: _label(value) for key, value in chosen.items() if key not in (*always, "attack.share", "seed")}
    return always | more


def _clean_identity(config: RunFile) -> str:
    """Cells that agree on this train the same clean model."""
    values = plain(config)
    keys = ("data", "split", "backbone", "items", "loss", "training", "seed")
    return json.dumps({key: values[key] for key in keys} | {"text": values["encoder"] if config.items != "ids" else 0})


# -------------------------------------------------------------------------------------------------------- the cells


@dataclass(frozen=True)
class Job:
    """A cell as any process can do it, here or elsewhere: plain values and paths."""

    cell: str
    config: dict[str, Any]
    folder: str
    """Of the grid."""
    cache: str | None = None
    """Of text vectors."""


@dataclass(frozen=True)
class Done:
    """How a job ended."""

    cell: str
    seconds: float
    memory: int
    """Peak of the process, in bytes."""
    error: str | None = None
    fatal: bool = False
    """Whether the other cells would end the same way, as on a full disk."""


Watch = Callable[[str, Event], None]
"""Hears of a cell by its name."""
Map = Callable[[Callable[[Job], Done], Sequence[Job]], Iterable[Done]]
"""How jobs are done: the built-in `map` does them here, one by one; `local(...)` in processes side by side."""


def do(job: Job, watch: Callable[[Event], None] | None = None) -> Done:
    """Do one job. What goes wrong is told, not raised, so that the other cells go on."""
    started, folder = time.perf_counter(), Path(job.folder)
    error, fatal = None, False
    try:
        (folder / "shared").mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "shared" / f"{job.cell}.lock", timeout=30):
            run(
                resolve(job.config),
                folder / "runs" / job.cell,
                cache=Path(job.cache) if job.cache else None,
                shared=folder / "shared",
                keep_going=True,
                watch=watch,
            )
    except Timeout:
        error = "another process is at work on this cell; wait for it, or stop it"
    except Exception as failure:
        fatal = isinstance(failure, DiskError)
        error = str(failure) if isinstance(failure, LorecError) else f"{type(failure).__name__}: {failure}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Done(job.cell, time.perf_counter() - started, peak, error, fatal)


def grid(
    asked: Grid,
    folder: str | Path,
    *,
    map: Map | None = None,
    shard: tuple[int, int] = (1, 1),
    cache: Path | None = None,
    watch: Watch | None = None,
) -> pl.DataFrame:
    """Do every cell that is not done, and write and return the table; the same call goes on after an interruption.

    `map` does the jobs: `local(...)` by default, or for instance one of Ray's. `shard` (2, 4) takes the second of four
    parts, for four machines with one folder between them or four to be laid together; cells with the same clean model
    stay together. A failing cell is told in the table. Raises, before anything is trained, ConfigError or DataError
    for a cell that can't be done and RunError for a folder of something else, of another version or edited by hand;
    later RunError where the disk is full.
    """
    folder, watch = Path(folder), watch or (lambda cell, event: None)
    _taken(asked, folder)
    jobs = _open_jobs(asked, folder, shard, cache, watch)
    write_json(folder / "grid.json", {"name": asked.name, "axes": asked.axes, "cells": _plain_cells(asked)})
    failed = {cell: said for cell, said in _failures(folder).items() if cell in {one.name for one in asked.cells}}
    costs = read_json(folder / "costs.json") if (folder / "costs.json").exists() else {}
    for done in (map or local(watch=watch))(do, jobs):
        failed.pop(done.cell, None)
        if done.error is not None:
            failed[done.cell] = done.error
        costs[done.cell] = {"seconds": done.seconds, "memory": done.memory}
        write_json(folder / "failed.json", failed)
        write_json(folder / "costs.json", costs)
        watch(done.cell, Event("cell", 1, 1, done.error or f"{done.seconds:.0f} s", finished=True))
        if done.fatal:
            raise DiskError(f"{done.cell}: {done.error}")
    return export(asked, folder)


def _taken(asked: Grid, folder: Path) -> None:
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / "grid.json").is_file():
        raise RunError(f"{folder} holds something else; choose another --out")
    old = read_json(folder / "grid.json")["cells"]
    for name, config in _plain_cells(asked).items():
        if name in old and old[name] != config:
            raise RunError(f"{folder} holds another cell {name}; choose another --out, or delete the folder")


def _plain_cells(asked: Grid) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps({cell.name: plain(cell.config) for cell in asked.cells}))
    return values


def _failures(folder: Path) -> dict[str, str]:
    found: dict[str, str] = read_json(folder / "failed.json") if (folder / "failed.json").exists() else {}
    return found


def _open_jobs(asked: Grid, folder: Path, shard: tuple[int, int], cache: Path | None, watch: Watch) -> list[Job]:
    """The cells of a shard that are still to be done, each checked on its log before any of them starts."""
    number, of = shard
    if not 1 <= number <= of:
        raise ConfigError(f"shard {number}/{of} makes no sense; give 1/4 to 4/4 for four machines")
    groups = list(dict.fromkeys(_clean_identity(cell.config) for cell in asked.cells))
    mine = [cell for cell in asked.cells if groups.index(_clean_identity(cell.config)) % of == number - 1]
    left, needed, logs = [], 0, {}
    for cell in mine:
        try:
            key = json.dumps([plain(cell.config)["data"], plain(cell.config)["split"]])
            if key not in logs:
                logs = {key: prepared(cell.config.data, cell.config.split)}  # cells of one log stand together
            record = begun(cell.config, folder / "runs" / cell.name)
            split = logs[key]
            if record.get("data", {"digest": split.digest()})["digest"] != split.digest():
                raise RunError("the log has changed since; choose another --out, or delete the folder")
            if record["finished"]:
                watch(cell.name, Event("cell", 1, 1, "done before", finished=True))
                continue
            _possible(cell.config, split)
        except LorecError as error:
            raise type(error)(f"cell {cell.name}: {error}") from None
        needed += _bytes(cell.config, split)
        left.append(Job(cell.name, plain(cell.config), str(folder), str(cache) if cache else None))
    at = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if (free := shutil.disk_usage(at).free) < needed:
        raise DiskError(
            f"{folder} needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; make room, or move it"
        )
    return left


def _possible(config: RunFile, split: Split) -> None:
    """Raise now what a cell would raise after hours."""
    if isinstance(config.attack, Stored):
        open_poison(config.attack.path, split)
    else:
        budget(config.attack, len(split))
        asked = config.targets
        if asked.items:
            split.catalog.numbers(asked.items)
        else:
            choose_targets(split, asked.count, asked.rule, config.seed, asked.where)
    if config.items != "ids" or any(one.needs_text for one in (config.attack, *config.defenses)):
        TextVectors(split.catalog, config.encoder, None, config.scenario).check()


def _bytes(config: RunFile, split: Split) -> int:
    """About what a cell leaves on the disk, and its largest checkpoint."""
    width = int(getattr(config.backbone, "width", 64))
    arms, model = len(arms_of(config)), 4 * width * (len(split.catalog) + 1)
    return (arms + 5) * model + arms * (70 * len(split) + 16 * len(split.train.items))


# ---------------------------------------------------------------------------------------------------- side by side


def local(
    workers: int | None = None, threads: int | None = None, memory: float | None = None, watch: Watch | None = None
) -> Map:
    """Jobs in processes of their own on this machine, `workers` at a time with `threads` each, within `memory` bytes.

    By default one for each processor, with one thread: small models gain little from a second. A process that is
    killed, as when memory runs out, costs its own cell only, and the rest goes on. What a cell needs is known from
    the cells before it on the same log; until then an equal part of the memory is set aside for it.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = workers or max(1, processors // (threads or 1))
    threads = threads or max(1, processors // workers)
    limit = memory if memory is not None else 0.9 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def done(work: Callable[[Job], Done], jobs: Sequence[Job]) -> Iterator[Done]:
        with _Pool(threads, watch or (lambda cell, event: None)) as pool:
            waiting = list(jobs)
            needs: dict[str, int] = {}
            while waiting or pool.running:
                for job in list(waiting):
                    need = needs.get(_log_of(job), limit / workers)
                    held = sum(needs.get(_log_of(one), limit / workers) for one in pool.running.values())
                    if len(pool.running) < workers and (not pool.running or held + need <= limit):
                        waiting.remove(job)
                        pool.start(job)
                if (ended := pool.next()) is not None:
                    job, result = ended
                    needs[_log_of(job)] = max(needs.get(_log_of(job), 0), result.memory)
                    yield result

    return done


def _log_of(job: Job) -> str:
    return json.dumps(job.config["data"])


class _Pool:
    """Processes at work; each gets a job as JSON and says what happens, a JSON line an event."""

    def __init__(self, threads: int, watch: Watch) -> None:
        self.threads, self.watch = threads, watch
        self.running: dict[str, Job] = {}
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.said: queue.Queue[tuple[str, dict[str, Any] | None]] = queue.Queue()

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait()

    def start(self, job: Job) -> None:
        """Start a process; its errors go to a file."""
        log = Path(job.folder) / "logs" / f"{job.cell}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        # Before the libraries are loaded, or they would make a thread for every processor.
        counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"), str(self.threads))
        with log.open("w", encoding="utf-8") as errors:
            process = subprocess.Popen(
                [sys.executable, "-c", "from lorec.grids import _work; _work()"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8",
                env=os.environ | counts, start_new_session=True,
            )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(json.dumps(dataclasses.asdict(job)))
        process.stdin.close()
        self.running[job.cell], self.processes[job.cell] = job, process
        threading.Thread(target=self._listen, args=(job.cell, process), daemon=True).start()

    def _listen(self, cell: str, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.said.put((cell, json.loads(line)))
        self.said.put((cell, None))

    def next(self) -> tuple[Job, Done] | None:
        """Wait for something to happen; a job with its end, where that was it."""
        cell, said = self.said.get()
        if said is not None and "stage" in said:
            self.watch(cell, Event(**said))
            return None
        code = self.processes[cell].wait()
        if said is not None:
            done = Done(**said)
            self.said.get()  # the end of its output
        else:
            log = Path(self.running[cell].folder) / "logs" / f"{cell}.log"
            last = ["", *log.read_text(encoding="utf-8", errors="replace").strip().splitlines()][-1]
            how = f"was killed by signal {-code}, perhaps for lack of memory" if code < 0 else f"ended with code {code}"
            done = Done(cell, 0.0, 0, f"its process {how}{f': {last}' if last else ''}")
        del self.processes[cell]
        return self.running.pop(cell), done


def _work() -> None:
    """The other side of the pool: a job from standard input; events, and in the end the result, to standard output."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else prints must not disturb the conversation
    told: dict[str, float] = {}

    def say(value: object) -> None:
        try:
            out.write(json.dumps(dataclasses.asdict(value)) + "\n")  # type: ignore[call-overload]
            out.flush()
        except BrokenPipeError:  # nobody listens any more: whoever started this was killed
            os._exit(1)

    def watch(event: Event) -> None:
        now = time.monotonic()
        if event.finished or now - told.get(event.stage, 0) > 0.5:  # every step would be too much to hear
            told[event.stage] = now
            say(event)

    say(do(Job(**json.loads(sys.stdin.read())), watch))


# --------------------------------------------------------------------------------------------------------- estimates


@dataclass(frozen=True)
class Estimate:
    """What a grid would take."""

    cells: int
    left: int
    """Cells still to be done."""
    arms: int
    """Recommenders to be trained in them."""
    seconds: float
    """At most, side by side, if no arm stops early; without forging poisons."""
    rates: pl.DataFrame
    """data, backbone, items, arm; seconds before the first epoch, and of one with validation: measured here and now."""


def estimate(
    asked: Grid, folder: str | Path, workers: int, *, cache: Path | None = None, watch: Watch | None = None
) -> Estimate:
    """Say what is left to do and how long it takes, by training two epochs of everything that differs; leaves nothing.

    An epoch is measured with as many threads as this process has. Raises what `grid` raises before it trains.
    """
    folder, watch = Path(folder), watch or (lambda cell, event: None)
    _taken(asked, folder)
    jobs = _open_jobs(asked, folder, (1, 1), cache, watch)
    known: dict[str, dict[str, tuple[float, float]]] = {}
    rows, total, arms, clean = [], 0.0, 0, set()
    for job in jobs:
        config = resolve(job.config)
        labels = next(cell.labels for cell in asked.cells if cell.name == job.cell)
        kind = json.dumps([labels["data"], plain(config)["backbone"], config.items, plain(config)["defenses"]])
        if kind not in known:
            known[kind] = _rates(config, cache, lambda event, cell=job.cell: watch(cell, event))  # type: ignore[misc]
            of = {"data": labels["data"], "backbone": labels["backbone"], "items": config.items}
            rows += [
                of | {"arm": arm, "seconds before": start, "seconds an epoch": epoch}
                for arm, (start, epoch) in known[kind].items()
            ]
        wanted = set(arms_of(config))
        if _clean_identity(config) in clean:
            wanted.remove("clean")
        clean.add(_clean_identity(config))
        arms += len(wanted)
        total += sum(known[kind][arm][0] + config.training.epochs * known[kind][arm][1] for arm in wanted)
    return Estimate(len(asked.cells), len(jobs), arms, total / max(1, min(workers, len(jobs))), pl.DataFrame(rows))


def _rates(config: RunFile, cache: Path | None, watch: Callable[[Event], None]) -> dict[str, tuple[float, float]]:
    """Seconds before the first epoch and of one, of each arm, on the clean log: an attack changes little of it."""
    split = prepared(config.data, config.split)
    text = TextVectors(split.catalog, config.encoder, cache, config.scenario)
    # Two epochs: a defense may do in the first what it does only once.
    twice = dataclasses.replace(config.training, epochs=2, patience=2)
    known = known_fakes(split, share=config.known.share, rounds=config.known.rounds, seed=config.seed)
    found: dict[str, tuple[float, float]] = {}
    for place, (name, defense) in enumerate(arms_of(config).items()):
        watch(Event("measure an epoch", place, len(arms_of(config)), name))
        if name == "oracle":
            found[name] = found["poisoned"]
            continue
        started = time.perf_counter()
        trained = fit(
            split, config.backbone, items=config.items, text=text, loss=config.loss, defense=defense, known=known,
            training=twice, seed=config.seed,
        )  # fmt: skip
        epoch = trained.history[1]["seconds with validation"]
        found[name] = time.perf_counter() - started - 2 * epoch, epoch
    return found


# ----------------------------------------------------------------------------------------------------------- tables


def export(asked: Grid, folder: str | Path) -> pl.DataFrame:
    """Write cells.* and table.* from the run folders as they are, and return the table."""
    folder = Path(folder)
    cells = collected(asked, folder)
    for suffix in ("csv", "parquet"):
        write_table(cells, folder / f"cells.{suffix}", asked.axes)

    def apart(cell: str, one: str, other: str) -> float:
        ranks = [exposed(_ranks(folder / "runs" / cell, arm)) for arm in (one, other)]
        return bootstrap(np.column_stack(ranks), lambda means: means[:, 0] - means[:, 1]).p

    table = summary(cells, asked.axes, apart)
    for suffix in FORMATS:
        write_table(table, folder / f"table.{suffix}", asked.axes, _made_with(asked, folder))
    return table


def _made_with(asked: Grid, folder: Path) -> list[str]:
    """Machine, versions and seeds: what a reader needs to weigh the figures."""
    records = [read_json(path) for path in sorted((folder / "runs").glob("*/run.json"))]
    if not records:
        return []
    seeds = sorted({cell.config.seed for cell in asked.cells})
    return [
        f"Seeds {', '.join(map(str, seeds))}, each with targets of its own.",
        "Epochs were selected on genuine users' validation items; knowing who is genuine is a concession.",
        *sorted({_of_record(one) for one in records}),
    ]


def _of_record(record: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in record["versions"].items())
    machine = record["machine"]
    return (
        f"lorec {record['lorec']}, {versions}; {machine['processors']} processors, {machine['threads']} threads a cell."
    )


def collected(asked: Grid, folder: Path) -> pl.DataFrame:
    """A row for every arm of every cell. Raises RunError for a run that was edited."""
    failed = _failures(folder)
    costs = read_json(folder / "costs.json") if (folder / "costs.json").exists() else {}
    rows: list[dict[str, Any]] = []
    for cell in asked.cells:
        of = {**cell.labels, "seed": cell.config.seed, "run": cell.name}
        of |= {f"cell {key}": value for key, value in costs.get(cell.name, {}).items()}
        opened = _opened(folder / "runs" / cell.name)
        for arm in arms_of(cell.config):
            row = of | {"arm": arm, "error": None, "judged kind is known": False}
            if opened is None or arm not in opened.arms:
                said = failed.get(cell.name, "not done yet") if opened is None else opened.scorecard["failed"][arm]
                rows.append(row | {"error": said})
                continue
            row["judged kind is known"] = opened.scorecard["judged kind is known"]
            rows.append(row | opened.arms[arm] | _over_users(opened, arm))
    return pl.DataFrame(rows, infer_schema_length=None)


def _opened(folder: Path) -> Run | None:
    """A run that has a scorecard, even where an arm of it failed."""
    return open_run(folder, partial=True) if (folder / "scorecard.json").exists() else None


def _ranks(folder: Path, arm: str) -> pl.DataFrame:
    return pl.read_parquet(folder / arm / "ranks.parquet").sort("user")


def _over_users(opened: Run, arm: str) -> dict[str, float]:
    """HR@10 against the clean model in percent, and bounds over users of what one seed can say."""
    mine, clean, poisoned = (_ranks(opened.folder, name) for name in (arm, "clean", "poisoned"))
    hits = np.column_stack([(one["rank"].to_numpy() <= 10) for one in (mine, clean)]).astype(np.float64)
    shown = np.column_stack([exposed(one) for one in (mine, clean, poisoned)])
    found: dict[str, Any] = {
        "HR@10": bootstrap(hits, lambda means: means[:, 0]),
        "T-HR@50": bootstrap(shown, lambda means: means[:, 0]),
    }
    told: dict[str, float] = {}
    if arm != "clean" and hits[:, 1].any():
        told["HR@10 change, %"] = 100 * float(hits[:, 0].mean() / hits[:, 1].mean() - 1)
        found["HR@10 change, %"] = bootstrap(
            hits, lambda means: 100 * (means[:, 0] / np.maximum(means[:, 1], 1e-12) - 1)
        )
    if "success removed" in opened.arms[arm]:
        found["success removed"] = bootstrap(
            shown, lambda means: (means[:, 2] - means[:, 0]) / np.maximum(means[:, 2] - means[:, 1], 1e-12)
        )
    for name, one in found.items():
        told |= {f"{name} low": one.low, f"{name} high": one.high}
    return told
