"""Many runs from one file, side by side, resumed after a kill, and told in one table.

A grid file is a run file with one table more: [grid] gives keys of the run file lists of values, and a cell is one
combination of them: a run, with an arm for every defense. `grid` leaves a folder:

    grid.json          what was asked: axes and cells
    runs/<cell>/       a run folder each
    shared/            poisons and clean models that cells have in common
    logs/<cell>.log    what a cell's process said on its error stream, tracebacks too
    ends/<cell>.json   how a cell ended: seconds, peak memory, error
    cells.*            a row for every arm of every cell: axes, figures, memory, errors
    curves.*           a row for every epoch of every arm of every cell
    table.*            means over seeds, intervals, tests; .md and .tex for readers, .csv and .parquet for programs
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import os
import queue
import re
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

from lorec.attacks import Stored
from lorec.comparison import FORMATS, bootstrap, exposed, summary, write_table
from lorec.data import Split
from lorec.defenses import Oracle, WeightFile
from lorec.errors import ConfigError, DiskError, LorecError, RunError
from lorec.experiment import CLEAN, run
from lorec.files import check_writable, read_json, write_json
from lorec.records import Event, Run, again, begun, open_run, peak_memory
from lorec.runfile import RunFile, arms_of, plain, put, read_document, resolve, settled
from lorec.sources import prepared
from lorec.stages import check, known_of
from lorec.text import TextVectors
from lorec.training import fit

_logger = logging.getLogger(__name__)

__all__ = ["NOT_YET", "Cell", "Done", "Estimate", "Grid", "Job", "do", "estimate", "grid", "read_grid_file", "room"]


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
    "detectors": "no run asks them; lorec detect does",
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
        if isinstance(values, dict):
            inner = next(iter(values), "...")
            raise ConfigError(
                f'[grid] {key}.{inner} = ... is a table in TOML; put the key in quotes: "{key}.{inner}" = ...'
            )
        if not isinstance(values, list) or not values:
            raise ConfigError(f"[grid] {key} is {values!r}; it is a list of values, as in {key} = [...]")
    for key in settings or {}:
        if key in axes:
            raise ConfigError(f"{key} is an axis of this grid; --set {key}=... would change nothing")
    cells: dict[str, Cell] = {}
    twins: set[str] = set()
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        told = ", ".join(f"{key} = {_label(value)}" for key, value in chosen.items())
        made = json.loads(json.dumps(document))
        try:
            for key, value in chosen.items():
                put(made, key, value)
            config = settled(made)
            arms_of(config)
        except ConfigError as error:
            raise type(error)(f"[grid] {told}: {error}") from None
        if config.training.threads is not None:
            raise ConfigError(f"{path}: [training] threads is for lorec run; a grid's cells take --threads")
        identity = json.dumps(plain(config), sort_keys=True)
        if identity in twins:
            raise ConfigError(f"[grid] the cell {told} stands twice; take one of the equal values out")
        twins.add(identity)
        name = _slug(chosen)
        if name in cells:  # other values that read alike
            name += f"-{_short_hash(identity)}"
        cells[name] = Cell(name, config, _labels(config, chosen))
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


def _slug(chosen: Mapping[str, Any]) -> str:
    """A folder's name out of every value, so that a cell keeps its name when an axis gets more of them."""
    parts = []
    for key, value in chosen.items():
        label = _label(value)
        text = re.sub(r"[^A-Za-z0-9.+=-]+", "-", label).strip("-.")
        if not label.isascii() or not text:  # what has no letters left here has a name all the same
            text = f"{text}-{_short_hash(label)}".lstrip("-")
        parts.append(f"{key.rpartition('.')[2]}{text}" if text[:1].isdigit() else text)
    name = "_".join(parts)
    return name if len(name) <= 100 else f"{name[:80]}_{_short_hash(name)}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


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
    read = [values[key] for key in ("encoder", "scenario", "prompts")] if config.items != "ids" else None
    followed = [config.follow, values["targets"], values["attack"].get("path")] if config.follow else None
    return json.dumps({key: values[key] for key in ("data", "split", *CLEAN)} | {"text": read, "followed": followed})


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
"""How jobs are done: the built-in `map` does them here, one by one."""


def do(job: Job, watch: Callable[[Event], None] | None = None) -> Done:
    """Do one job. What goes wrong is told, not raised, so that the other cells go on; a bug's traceback is logged."""
    started, folder = time.perf_counter(), Path(job.folder)
    error, fatal, peak = None, False, 0.0
    try:
        (folder / "shared").mkdir(parents=True, exist_ok=True)
        made = run(
            resolve(job.config),
            folder / "runs" / job.cell,
            cache=Path(job.cache) if job.cache else folder / "shared" / "texts",
            shared=folder / "shared",
            keep_going=True,
            watch=watch,
        )
        error = "; ".join(f"{arm}: {said}" for arm, said in made.scorecard["failed"].items()) or None
        peak = 1e6 * max((one.get("peak MB", 0.0) for one in made.arms.values()), default=0.0)
    except LorecError as failure:
        error, fatal = str(failure), isinstance(failure, DiskError)
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
        _logger.exception("%s failed", job.cell)
    return Done(job.cell, time.perf_counter() - started, max(peak_memory(), round(peak)), error, fatal)


def grid(
    asked: Grid,
    folder: str | Path,
    *,
    workers: int | None = None,
    threads: int | None = None,
    memory: float | None = None,
    map: Map | None = None,
    shard: tuple[int, int] = (1, 1),
    cache: str | Path | None = None,
    watch: Watch | None = None,
) -> pl.DataFrame:
    """Do every cell that is not done, and write and return the table; the same call goes on after an interruption.

    Cells run in processes of their own on this machine, `workers` at a time with `threads` each, within `memory` bytes
    together; by default one for each processor, with one thread, as small models gain little from a second. A process
    that is killed costs its own cell only. Another `map` may do the jobs elsewhere: a pool's, or one of Ray's.

    `shard` (2, 4) takes the second of four parts, for four machines with one folder between them, or four to be laid
    together; cells with the same clean model stand together as far as parts of equal size allow. A failing cell is told
    in the table. Text vectors are kept in `cache`, or with the grid.

    Raises, before anything is trained, ConfigError or DataError for a cell that can't be done and RunError for a folder
    of something else, of another version or edited by hand; later DiskError where the disk is full.
    """
    folder, watch = Path(folder), watch or (lambda cell, event: None)
    _taken(asked, folder)
    jobs = _open_jobs(asked, folder, shard, cache, watch)
    write_json(folder / "grid.json", {"name": asked.name, "axes": asked.axes, "cells": _plain_cells(asked)})
    side_by_side = map or functools.partial(_local, *room(workers, threads, memory), watch)
    for done in side_by_side(do, jobs):
        # A file for each cell, so that machines with one folder between them don't write over each other's.
        write_json(folder / "ends" / f"{done.cell}.json", dataclasses.asdict(done))
        watch(done.cell, Event("cell", 1, 1, done.error or f"{done.seconds:.0f} s", finished=True, of="cell"))
        if done.fatal:
            raise DiskError(f"{done.cell}: {done.error}")
    return export(asked, folder)


def _taken(asked: Grid, folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; choose another --out")
    check_writable(folder)
    if not folder.exists() or not any(folder.iterdir()):
        return
    old = read_json(folder / "grid.json") if (folder / "grid.json").is_file() else None
    if not isinstance(old, dict) or not isinstance(old.get("cells"), dict):
        raise RunError(f"{folder} holds something else; choose another --out")
    for name, config in _plain_cells(asked).items():
        if old["cells"].get(name, config) != config:
            raise RunError(f"{folder} holds another cell {name}; choose another --out, or delete the folder")


def _plain_cells(asked: Grid) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps({cell.name: plain(cell.config) for cell in asked.cells}))
    return values


def _open_jobs(asked: Grid, folder: Path, shard: tuple[int, int], cache: str | Path | None, watch: Watch) -> list[Job]:
    """The cells of a shard that are still to be done, each checked on its log before any of them starts."""
    left, needed = [], 0
    mine = _part(asked, shard)
    by_log: dict[str, list[Cell]] = {}
    for cell in mine:
        by_log.setdefault(json.dumps([plain(cell.config)[key] for key in ("data", "split")]), []).append(cell)
    for cells in by_log.values():
        try:
            split = prepared(cells[0].config.data, cells[0].config.split)
            digest = split.digest()
        except LorecError as error:
            raise type(error)(f"cell {cells[0].name}: {error}") from None
        for cell in cells:
            try:
                record = begun(cell.config, folder / "runs" / cell.name)
                if record.get("data", {"digest": digest})["digest"] != digest:
                    raise RunError("the log has changed since; choose another --out, or delete the folder")
                if record["finished"]:
                    for event in again(open_run(folder / "runs" / cell.name, plugins=True)):
                        watch(cell.name, event)
                    watch(cell.name, Event("cell", 1, 1, "done before", finished=True, of="cell", resumed=True))
                    continue
                config, texts = cell.config, cache or folder / "shared" / "texts"
                check(config, split, TextVectors(split.catalog, config.encoder, texts, config.scenario, config.prompts))
            except LorecError as error:
                raise type(error)(f"cell {cell.name}: {error}") from None
            needed += _bytes(cell.config, split)
            left.append(cell)
    at = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if (free := shutil.disk_usage(at).free) < needed:
        raise DiskError(f"{folder} will take about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; make room")
    left.sort(key=mine.index)
    return [Job(cell.name, plain(cell.config), str(folder), str(cache) if cache else None) for cell in left]


def _part(asked: Grid, shard: tuple[int, int]) -> list[Cell]:
    """One of equal parts of the cells, those with the same clean model together."""
    number, of = shard
    if not 1 <= number <= of:
        raise ConfigError(f"shard {number}/{of} makes no sense; give 1/4 to 4/4 for four machines")
    if of == 1:
        return list(asked.cells)
    groups = list(dict.fromkeys(_clean_identity(cell.config) for cell in asked.cells))
    together = sorted(asked.cells, key=lambda cell: groups.index(_clean_identity(cell.config)))
    return together[len(together) * (number - 1) // of : len(together) * number // of]


def _bytes(config: RunFile, split: Split) -> int:
    """About what a cell leaves on the disk, and its largest checkpoint."""
    width = int(getattr(config.backbone, "width", 64))
    arms, model = len(arms_of(config)), 4 * width * (len(split.catalog) + 1)
    return (arms + 5) * model + arms * (70 * len(split) + 16 * len(split.train.items))


# ---------------------------------------------------------------------------------------------------- side by side


def room(workers: int | None, threads: int | None, memory: float | None) -> tuple[int, int, float]:
    """Cells side by side, threads of each and bytes together; what is not given follows from this machine."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = workers or max(1, processors // (threads or 1))
    threads = threads or max(1, processors // workers)
    return workers, threads, memory or 0.9 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _local(
    workers: int, threads: int, memory: float, watch: Watch, work: Callable[[Job], Done], jobs: Sequence[Job]
) -> Iterator[Done]:
    """Do jobs in processes of their own.

    What a cell needs is known from the cells before it on the same log; until then an equal part of the memory is set
    aside for it, and for those of a log that killed one, all of it.
    """
    assert work is do, "a process of its own does what `do` does"
    waiting = list(jobs)
    needs: dict[str, float] = {}
    with _Pool(threads, watch) as pool:
        while waiting or pool.running:
            for job in list(waiting):
                held = [needs.get(_log_of(one), memory / workers) for one in (*pool.running.values(), job)]
                if len(pool.running) < workers and (not pool.running or sum(held) <= memory):
                    waiting.remove(job)
                    pool.start(job)
            if (ended := pool.next()) is not None:
                job, done = ended
                if done.error is None:
                    needs[_log_of(job)] = max(needs.get(_log_of(job), 0.0), done.memory)
                elif not done.memory:
                    needs[_log_of(job)] = memory
                yield done


def _log_of(job: Job) -> str:
    return json.dumps(job.config["data"])


class _Pool:
    """Processes at work; each gets a job as JSON and says what happens, a JSON line an event."""

    def __init__(self, threads: int, watch: Watch) -> None:
        self.threads, self.watch = threads, watch
        self.running: dict[str, Job] = {}
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.results: dict[str, Done] = {}
        self.said: queue.Queue[tuple[str, dict[str, Any] | None]] = queue.Queue()

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait()
            assert process.stdin is not None
            process.stdin.close()

    def start(self, job: Job) -> None:
        """Start a process; its errors go to a file."""
        log = Path(job.folder) / "logs" / f"{job.cell}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        # Before the libraries are loaded, or they would make a thread for every processor.
        counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"), str(self.threads))
        with log.open("w", encoding="utf-8") as errors:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", "from lorec.grids import _work; _work()"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8",
                env=os.environ | counts, start_new_session=True,
            )  # fmt: skip
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died already: its end tells
            process.stdin.write(json.dumps(dataclasses.asdict(job)) + "\n")
            process.stdin.flush()  # and left open: its end tells the other side that we are gone
        self.running[job.cell], self.processes[job.cell] = job, process
        threading.Thread(target=self._listen, args=(job.cell, process), daemon=True).start()

    def _listen(self, cell: str, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        try:
            with process.stdout:
                for line in process.stdout:
                    self.said.put((cell, json.loads(line)))
        except ValueError:
            pass  # killed in the middle of a line
        finally:
            self.said.put((cell, None))

    def next(self) -> tuple[Job, Done] | None:
        """Wait for something to happen; a job with its end, where that was it."""
        cell, said = self.said.get()
        if said is not None:
            if "stage" in said:
                self.watch(cell, Event(**said))
            else:
                self.results[cell] = Done(**said)
            return None
        process = self.processes.pop(cell)
        code = process.wait()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        job = self.running.pop(cell)
        return job, self.results.pop(cell, None) or Done(cell, 0.0, 0, _crash(job, code))


def _crash(job: Job, code: int) -> str:
    log = Path(job.folder) / "logs" / f"{job.cell}.log"
    last = ["", *log.read_text(encoding="utf-8", errors="replace").strip().splitlines()][-1]
    how = f"was killed by signal {-code}, perhaps for lack of memory" if code < 0 else f"ended with code {code}"
    return f"its process {how}{f': {last}' if last else ''}"


def _work() -> None:
    """The other side of the pool: a job from standard input; events, and in the end the result, to standard output."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else prints must not disturb the conversation
    job = Job(**json.loads(sys.stdin.readline()))
    told: dict[str, float] = {}

    def wait_for_the_end() -> None:
        sys.stdin.read()  # nothing comes but the end, when whoever started this is gone
        os._exit(1)

    threading.Thread(target=wait_for_the_end, daemon=True).start()

    def say(value: object) -> None:
        out.write(json.dumps(dataclasses.asdict(value)) + "\n")  # type: ignore[call-overload]
        out.flush()

    def watch(event: Event) -> None:
        now = time.monotonic()
        # Every step would be too much to hear.
        if event.finished or event.figures or now - told.get(event.stage, 0) > 0.5:
            told[event.stage] = now
            say(event)

    say(do(job, watch))
    out.close()
    os._exit(0)  # the thread still reads, and the interpreter would wait for it


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
    """Side by side, if no arm stops early; without forging poisons."""
    rates: pl.DataFrame
    """data, backbone, items, arm; seconds before the first epoch, and of one with validation: measured here and now."""


def estimate(
    asked: Grid,
    folder: str | Path,
    *,
    workers: int | None = None,
    threads: int | None = None,
    shard: tuple[int, int] = (1, 1),
    cache: str | Path | None = None,
    watch: Watch | None = None,
) -> Estimate:
    """Say what is left to do and how long it takes, by training two epochs of everything that differs; leaves nothing.

    Raises what `grid` raises before it trains.
    """
    folder, watch = Path(folder), watch or (lambda cell, event: None)
    _taken(asked, folder)
    workers, threads, _ = room(workers, threads, None)
    jobs = _open_jobs(asked, folder, shard, cache, watch)
    labels = {cell.name: cell.labels for cell in asked.cells}
    known: dict[str, dict[str, tuple[float, float]]] = {}
    rows, total, arms, clean = [], 0.0, 0, set()
    for job in jobs:
        config = resolve(job.config)
        kind = _of_one_speed(config)
        if kind not in known:
            known[kind] = _rates(config, threads, cache, functools.partial(watch, job.cell))
            of = {key: labels[job.cell][key] for key in ("data", "backbone", "items")}
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


def _of_one_speed(config: RunFile) -> str:
    """Cells that agree on this take as long an epoch."""
    values = plain(config)
    for key in ("attack", "targets", "seed", "name"):
        del values[key]
    del values["split"]["seed"], values["training"]["epochs"], values["training"]["patience"]
    return json.dumps(values, sort_keys=True)


def _rates(
    config: RunFile, threads: int, cache: str | Path | None, watch: Callable[[Event], None]
) -> dict[str, tuple[float, float]]:
    """Seconds before the first epoch and of one, of each arm, on the clean log: an attack changes little of it."""
    split = prepared(config.data, config.split)
    text = TextVectors(split.catalog, config.encoder, cache, config.scenario, config.prompts)
    # Two epochs: a defense may do in the first what it does only once.
    twice = dataclasses.replace(config.training, epochs=2, patience=2, threads=threads)
    known = known_of(config, split, plain(config)["attack"]["name"])
    found: dict[str, tuple[float, float]] = {}
    for place, (name, defense) in enumerate(arms_of(config).items()):
        watch(Event("measure an epoch", place, len(arms_of(config)), name))
        if isinstance(defense, Oracle | WeightFile):
            found[name] = found["poisoned"]
            continue
        started = time.perf_counter()
        trained = fit(
            split, config.backbone, items=config.items, text=text, loss=config.loss, defense=defense, known=known,
            training=twice, seed=config.seed,
        )  # fmt: skip
        epoch = trained.history[1]["seconds with validation"]
        found[name] = max(0.0, time.perf_counter() - started - 2 * epoch), epoch
    return found


# ----------------------------------------------------------------------------------------------------------- tables


def export(asked: Grid, folder: str | Path) -> pl.DataFrame:
    """Write cells.* and table.* from the run folders as they are, and return the table."""
    folder = Path(folder)
    cells = collected(asked, folder)
    curves = _curves(asked, folder)
    for suffix in ("csv", "parquet"):
        write_table(cells, folder / f"cells.{suffix}", asked.axes)
        write_table(curves, folder / f"curves.{suffix}", asked.axes)

    def apart(cell: str, one: str, other: str) -> float:
        ranks = [exposed(_ranks(folder / "runs" / cell, arm)) for arm in (one, other)]
        return bootstrap(np.column_stack(ranks), lambda means: means[:, 0] - means[:, 1]).p

    table = summary(cells, asked.axes, apart)
    for suffix in FORMATS:
        write_table(table, folder / f"table.{suffix}", asked.axes, _made_with(asked, folder))
    return table


def _made_with(asked: Grid, folder: Path) -> list[str]:
    """Machine, versions and seeds: what a reader needs to weigh the figures."""
    paths = [folder / "runs" / cell.name / "run.json" for cell in asked.cells]
    records = [read_json(path) for path in paths if path.exists()]
    if not records:
        return []
    seeds = sorted({cell.config.seed for cell in asked.cells})
    given = any(cell.config.targets.items or isinstance(cell.config.attack, Stored) for cell in asked.cells)
    return [
        f"Seeds {', '.join(map(str, seeds))}{'' if given else ', each with targets of its own'}.",
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
    rows: list[dict[str, Any]] = []
    for cell in asked.cells:
        end = folder / "ends" / f"{cell.name}.json"
        ended = read_json(end) if end.exists() else {"error": NOT_YET}
        of = {**cell.labels, "seed": cell.config.seed, "run": cell.name, "memory": ended.get("memory")}
        of["cell seconds"] = ended.get("seconds")  # of the process that finished it, what it waited for others, too
        opened = _opened(folder / "runs" / cell.name)
        for arm in arms_of(cell.config):
            row = of | {"arm": arm, "error": None, "judged kind is known": None}
            if opened is None or arm not in opened.arms:
                said = None if opened is None else opened.scorecard["failed"].get(arm)
                rows.append(row | {"error": said or ended["error"] or NOT_YET})
                continue
            row["judged kind is known"] = opened.scorecard["judged kind is known"]
            rows.append(row | opened.arms[arm] | _over_users(opened, arm) | _likelihoods(opened, arm))
    frame = pl.DataFrame(rows, infer_schema_length=None)
    return frame.cast({"error": pl.String, "judged kind is known": pl.Boolean})


def _likelihoods(opened: Run, arm: str) -> dict[str, float]:
    """Deciles that tell how p_u is spread among genuine users and fraudsters, where a defense says p_u."""
    if f"{arm}/weights.parquet" not in opened.record["files"]:
        return {}
    told = pl.read_parquet(opened.file(f"{arm}/weights.parquet"))
    if "likelihood" not in told.columns:
        return {}
    return {
        f"p {who}, {decile} %": float(value)
        for who, injected in (("genuine", False), ("fraudsters", True))
        for decile in (10, 50, 90)
        if (value := told.filter(injected=injected)["likelihood"].quantile(decile / 100)) is not None
    }


def _curves(asked: Grid, folder: Path) -> pl.DataFrame:
    """A row for every epoch of every arm of every cell that is done: axes, seed, run, arm, the history's figures."""
    rows: list[dict[str, Any]] = []
    for cell in asked.cells:
        opened = _opened(folder / "runs" / cell.name)
        if opened is None:
            continue
        for arm in opened.arms:
            of = {**cell.labels, "seed": cell.config.seed, "run": cell.name, "arm": arm}
            history = opened.file(f"{arm}/history.jsonl").read_text(encoding="utf-8")
            for line in history.splitlines():
                # An axis may be called as a figure is, as the loss.
                told = {f"epoch {key}" if key in of else key: one for key, one in json.loads(line).items()}
                rows.append(of | told)
    return pl.DataFrame(rows, infer_schema_length=None)


NOT_YET = "not done yet"
"""The error of a cell that nobody has done."""


def _opened(folder: Path) -> Run | None:
    """A run that has a sealed scorecard, even where an arm of it failed; None for one that is not there yet."""
    if not (folder / "run.json").exists() or "scorecard.json" not in read_json(folder / "run.json")["files"]:
        return None
    return open_run(folder, partial=True, plugins=True)  # the grid has named them


def _ranks(folder: Path, arm: str) -> pl.DataFrame:
    return pl.read_parquet(folder / arm / "ranks.parquet").sort("user")


def _over_users(opened: Run, arm: str) -> dict[str, float]:
    """HR@10 against the clean model in percent, and bounds over users of what one seed can say."""
    mine, clean, poisoned = (_ranks(opened.folder, name) for name in (arm, "clean", "poisoned"))
    hits = np.column_stack([(one["rank"].to_numpy() <= 10) for one in (mine, clean)]).astype(np.float64)
    shown = np.column_stack([exposed(one) for one in (mine, clean, poisoned)])
    found: dict[str, Any] = {
        "HR@10": bootstrap(hits[:, :1], lambda means: means[:, 0]),
        "T-HR@50": bootstrap(shown[:, :1], lambda means: means[:, 0]),
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
