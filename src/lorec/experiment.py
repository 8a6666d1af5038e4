"""The main job: a real log in; a poisoned copy; a recommender trained clean, undefended and defended; all judged.

`run` leaves a folder that is the record:

    run.json           resolved configuration, versions, seed, digests of data and files, what to keep in mind
    scorecard.json     every arm's metrics, the popularity floor
    catalog.parquet    the items by number
    poison/            profiles.parquet, poison.json
    <arm>/             model.safetensors, history.jsonl, ranks.parquet, scorecard.json; weights.parquet of users and
                       interactions.parquet where a defense has an opinion

An arm that is finished is not trained again; one that was interrupted goes on from its checkpoint. What many runs have
in common they may share through a folder of their own:

    poisons/<key>/     a poison as it stands in the run folders
    clean/<key>/       model.safetensors, history.jsonl, fit.json; both with made.json, the digests
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from filelock import FileLock, Timeout
from polars.io.plugins import register_io_source

from lorec.attacks import Stored, aimed, check_known, forge, known_fakes, open_poison, save_poison
from lorec.attacks.folders import FORMS
from lorec.data import Catalog, Ints, Poison, Sequences, Split, inject
from lorec.defenses import Defense, Guard, Oracle, WeightFile, suits
from lorec.detectors import DETECTORS, Suspicion, fits, harmed, judged
from lorec.detectors import detect as ask
from lorec.errors import ConfigError, DiskError, RunError, UnknownName
from lorec.evaluation import evaluate, overlap, success_removed
from lorec.files import inside, read_json, replacing, sha256, write_json, write_parquet
from lorec.models import Popularity, Recommender, load_recommender
from lorec.registry import name_of, unknown
from lorec.runfile import RunFile, arms_of, named, plain, resolve
from lorec.sources import prepared
from lorec.text import Server, TextVectors
from lorec.text.store import by_length
from lorec.training import Fit, Follow, Progress, choose_device, fit

_logger = logging.getLogger(__name__)

__all__ = [
    "CLEAN",
    "Detection",
    "Encoding",
    "Event",
    "Run",
    "again",
    "attack",
    "begun",
    "check",
    "detect",
    "detected",
    "known_of",
    "open_run",
    "reevaluate",
    "run",
    "save_recommendations",
]


CLEAN = ("backbone", "items", "loss", "training", "seed")
"""Keys of a run file that a clean model hangs on, besides the log and its texts."""


# ------------------------------------------------------------------------------------------------------- the job


@dataclass(frozen=True)
class Event:
    """Where a run is, for whoever shows it."""

    stage: str
    done: int
    total: int
    note: str = ""
    finished: bool = False
    epoch: int | None = None
    """The epoch that `figures` are of; None for those of the test items."""
    figures: dict[str, float] = field(default_factory=dict)
    """For curves and trackers."""
    again: bool = False
    """Whether it may have been told before, of what was finished earlier."""
    of: Literal["stage", "arm", "cell"] = "stage"
    """What `stage` names: a step of the work, an arm of a run, or a whole cell of a grid."""
    resumed: bool = False
    """Whether it was finished by an earlier run, and is only taken up."""


Watch = Callable[[Event], None]


@dataclass(frozen=True)
class Run:
    """A run folder."""

    folder: Path
    config: RunFile
    record: dict[str, Any]
    scorecard: dict[str, Any]
    plugins: bool = False
    """Whether members of installed packages are loaded where the folder names them."""

    @property
    def arms(self) -> dict[str, dict[str, float]]:
        """Metrics of each arm: clean, poisoned, then one for each defense."""
        arms: dict[str, dict[str, float]] = self.scorecard["arms"]
        return arms

    def file(self, name: str) -> Path:
        """A file of the folder, checked against the record. Raises RunError where it is another or missing."""
        return _checked(self.folder, name, self.record)

    def recommender(self, arm: str) -> Recommender:
        """The trained model of an arm, its file checked against the record."""
        if arm not in self.arms:
            raise unknown("arm", arm, self.arms)
        model = load_recommender(self.file(f"{arm}/model.safetensors"), self.plugins)
        return model.to(choose_device(self.config.training.device))

    def catalog(self) -> Catalog:
        """The items by number."""
        return Catalog.load(self.file("catalog.parquet"))


@dataclass(frozen=True)
class _Job:
    """What every arm of a run shares."""

    config: RunFile
    folder: Path
    clean: Split
    bad: Split
    poison: Poison
    known: tuple[Poison, ...]
    text: TextVectors
    shared: Path | None
    watch: Watch


def run(
    config: RunFile,
    folder: str | Path,
    *,
    cache: str | Path | None = None,
    shared: str | Path | None = None,
    keep_going: bool = False,
    watch: Watch | None = None,
) -> Run:
    """Do the whole job and leave its record in `folder`; a folder of the same run is continued.

    Through the folder `shared`, runs side by side make each poison and train each clean model once. With `keep_going`
    a defense that fails does not stop the others: the scorecard says under `failed` what it said, and the run stays
    unfinished, so that the same call tries again.

    Raises ConfigError, DataError or RunError before hours are spent wherever that can be known.
    """
    folder, shared, watch = Path(folder), Path(shared) if shared else None, watch or (lambda _: None)
    arms_of(config)
    choose_device(config.training.device)
    record = begun(config, folder)
    watch(Event("read the log", 0, 1))
    clean = prepared(config.data, config.split)
    watch(Event("read the log", 1, 1, clean.size(), finished=True))
    if record.get("data", {"digest": clean.digest()})["digest"] != clean.digest():
        raise RunError(f"the log has changed since {folder} was begun; choose another --out, or delete the folder")
    if record["finished"]:
        _same_inputs(record, _inputs(config, clean), folder)
        opened = open_run(folder, plugins=True)  # the caller has named them
        for event in again(opened):
            watch(event)
        return opened
    text = _text(config, clean, cache, watch)
    check(config, clean, text)
    inputs = _inputs(config, clean) | {"text": text.identity() if _reads(config) else None}
    with _alone(folder):
        record = begun(config, folder)  # as it stands now that nobody else is at work on it
        _same_inputs(record, inputs, folder)
        return _run(config, folder, clean, text, record, inputs, shared, keep_going, watch)


def _run(
    config: RunFile,
    folder: Path,
    clean: Split,
    text: TextVectors,
    record: dict[str, Any],
    inputs: Mapping[str, Any],
    shared: Path | None,
    keep_going: bool,
    watch: Watch,
) -> Run:
    job = _prepared(config, folder, clean, text, shared, watch)
    _seal(record, folder, [])  # before any other file: whatever a killed run leaves is known to be a run's
    record["inputs"] = json.loads(json.dumps(inputs))
    data = {"digest": clean.digest(), "poison": job.poison.profiles.digest(), **clean.record}
    record["data"] = json.loads(json.dumps(data))
    clean.catalog.save(folder / "catalog.parquet")
    save_poison(job.poison, clean.catalog, folder / "poison")
    _without_draft(folder / "poison")
    _seal(record, folder, ["catalog.parquet", "poison/profiles.parquet", "poison/poison.json"])

    done, failed = _arms(job, arms_of(config), record, keep_going)
    arms = _compared(folder, done, len(clean.catalog))
    works = success_removed(arms["clean"], arms["poisoned"], arms["poisoned"], 50, len(clean.catalog)) is not None
    kinds = job.known[0].provenance["kinds"]
    floor = Popularity(clean.train.counts(len(clean.catalog)))
    scorecard = {
        "arms": arms,
        "failed": failed,
        "popularity": evaluate(floor, clean, targets=job.poison.targets).metrics,
        "chance T-HR@50": min(1.0, 50 / len(clean.catalog)),
        "attack works": works,
        "known kinds": kinds,
        "judged kind is known": _is_known(job.poison.provenance, kinds),
        "notes": _notes(job, arms, works),
    }
    if record["files"].pop("scorecard.json", None):  # of a try where an arm failed
        _seal(record, folder, [])
    write_json(folder / "scorecard.json", scorecard)
    record["finished"] = not failed
    watch(dataclasses.replace(_judged(arms), finished=True, again=False))
    _seal(record, folder, ["scorecard.json"])
    return Run(folder, config, record, scorecard, plugins=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """A run folder to oneself. Raises RunError where another process is at work on it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"can't make {folder} ({error.strerror}); choose another --out") from None
    try:
        with FileLock(folder / LOCK, timeout=PATIENCE):
            try:
                yield
            finally:
                (folder / LOCK).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    folder.rmdir()  # where nothing came of it
    except Timeout:
        raise RunError(f"another process is at work on {folder}; wait for it, or stop it") from None


def _inputs(config: RunFile, clean: Split) -> dict[str, Any]:
    """Digests of what a run reads besides its log: files of weights, a stored poison."""
    weights = {one.path: sha256(Path(one.path)) for one in config.defenses if isinstance(one, WeightFile)}
    stored = open_poison(config.attack.path, clean) if isinstance(config.attack, Stored) else None
    told = None if stored is None else [stored.profiles.digest(), clean.catalog.ids(stored.targets)]
    return {"file of weights": weights, "stored poison": told}


def _same_inputs(record: Mapping[str, Any], inputs: Mapping[str, Any], folder: Path) -> None:
    """Raise RunError where a run reads something else now than when it was begun."""
    before = record.get("inputs", {})
    for name, value in json.loads(json.dumps(inputs)).items():
        if before.get(name, value) != value:
            what = "what encodes texts" if name == "text" else f"a {name}"
            raise RunError(f"{what} has changed since {folder} was begun; choose another --out, or delete the folder")


def _reads(config: RunFile) -> bool:
    """Whether a run needs texts."""
    return config.items != "ids" or any(one.needs_text for one in (config.attack, *config.defenses))


def check(config: RunFile, split: Split, text: TextVectors) -> None:
    """Raise now what a run on a log would raise after hours."""
    choose_device(config.training.device)
    if _reads(config):
        text.check()
    for defense in config.defenses:
        suits(defense, config.backbone)
        fits(defense, split.train, len(split.catalog), text)
        if isinstance(defense, WeightFile):
            defense.read()  # whom it names, a run knows: there may be injected ones among them
    check_known(config.known.kinds or ())
    if isinstance(config.attack, Stored):
        open_poison(config.attack.path, split)
    else:
        asked = config.targets
        aimed(config.attack, split, list(asked.items) or asked.count, config.seed, asked.rule, asked.where)
    if getattr(config.attack, "box", "grey") == "white":
        raise ConfigError("[attack] box is white, and a run gives an attack no victim; take grey, or lorec.forge")


def _arms(
    job: _Job, wanted: Mapping[str, Defense], record: dict[str, Any], keep_going: bool
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Train and judge every arm; each arm's metrics, and what those said that failed."""
    done: dict[str, dict[str, float]] = {}
    failed: dict[str, str] = {}
    for name in sorted(wanted, key=lambda name: name == "clean" and _is_made_elsewhere(job)):
        try:
            done[name] = _arm(job, name, wanted[name])
        except Exception as error:
            if not keep_going or name in ("clean", "poisoned") or isinstance(error, DiskError):
                raise
            _logger.exception("%s failed", name)
            failed[name] = f"{type(error).__name__}: {error}"
            job.watch(Event(name, 1, 1, f"failed: {failed[name]}", finished=True, of="arm"))
            continue
        _seal(record, job.folder, [f"{name}/{file}" for file in ARM_FILES if (job.folder / name / file).exists()])
    return {name: done[name] for name in wanted if name in done}, failed


def _compared(folder: Path, arms: Mapping[str, dict[str, float]], n_items: int) -> dict[str, dict[str, float]]:
    """Each arm's metrics with what it takes other arms to say: attack success removed, overlap with the clean lists."""
    lists = {name: pl.read_parquet(folder / name / "ranks.parquet", columns=["user", "top"]) for name in arms}
    found = {}
    for name, metrics in arms.items():
        more: dict[str, float] = {} if name == "clean" else {"overlap@10": overlap(lists[name], lists["clean"])}
        removed = success_removed(arms["clean"], arms["poisoned"], metrics, 50, n_items)
        if name not in ("clean", "poisoned") and removed is not None:
            more["success removed"] = removed
        found[name] = metrics | more
    return found


def _is_known(provenance: Mapping[str, Any], kinds: list[str]) -> bool | None:
    """Whether the defense learned from the judged kind, or from one that it is mixed of; None where nobody knows."""
    judged = {provenance["attack"], *provenance.get("kinds", ())}
    return None if judged == {"stored"} else not judged.isdisjoint(kinds)


ARM_FILES = (
    "model.safetensors", "history.jsonl", "ranks.parquet", "weights.parquet", "interactions.parquet", "scorecard.json"
)  # fmt: skip


def _seal(record: dict[str, Any], folder: Path, names: list[str]) -> None:
    """Put down the digests of finished files and of the record itself, so that a later change is noticed."""
    record["files"] |= {name: sha256(inside(folder, name)) for name in names}
    write_json(folder / "run.json", record | {"digest": _own_digest(record)})


def _own_digest(record: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in record.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read_record(folder: Path) -> dict[str, Any]:
    """run.json as a run wrote it. Raises RunError for anything else."""
    record = read_json(folder / "run.json")
    if not isinstance(record, dict) or record.get("digest") != _own_digest(record):
        raise RunError(
            f"{folder / 'run.json'} is not what the run wrote: edited or damaged; restore it, or run anew elsewhere"
        )
    return record


def begun(config: RunFile, folder: Path) -> dict[str, Any]:
    """The record of a folder that is new, or that the same configuration began; nothing is written.

    Raises RunError for a folder of something else, of another version, or edited.
    """
    record: dict[str, Any] = {
        "lorec": version("lorec"),
        "config": plain(config),
        "versions": {name: version(name) for name in ("torch", "numpy", "polars")}
        | {"python": platform.python_version()},
        "machine": {"system": platform.system(), "processors": os.cpu_count(), "threads": torch.get_num_threads()},
        "seed": config.seed,
        "files": {},
        "finished": False,
    }
    try:
        taken = folder.exists() and not (folder.is_dir() and all(_is_nothing_yet(one) for one in folder.iterdir()))
    except OSError as error:
        raise RunError(f"{folder} can't be used ({error.strerror}); choose another --out") from None
    if not taken:
        return record
    if not (folder / "run.json").is_file():
        raise RunError(f"{folder} holds something else; choose another --out")
    old = _read_record(folder)
    for key, value in record["config"].items():
        if old["config"].get(key) != value:
            raise RunError(
                f"{folder} holds a run of other settings ({_apart(key, old['config'].get(key), value)}); "
                "choose another --out, or delete the folder"
            )
    then, now = ({"lorec": one["lorec"], **one["versions"]} for one in (old, record))
    if apart := [f"{name} {then.get(name)}, now {now.get(name)}" for name in now if then.get(name) != now[name]]:
        raise RunError(f"{folder} was begun with {'; '.join(apart)}; choose another --out, or that version")
    for name in old["files"]:
        _checked(folder, name, old)
    return old


def _prepared(
    config: RunFile, folder: Path, clean: Split, text: TextVectors, shared: Path | None, watch: Watch
) -> _Job:
    poison = _poison(config, folder / "poison", clean, text, shared, watch)
    bad = inject(clean, poison, config.seed)
    for defense in config.defenses:
        _told(defense, bad)  # a file of weights that does not fit is said now
    known = known_of(config, bad, poison.provenance["attack"])
    return _Job(config, folder, clean, bad, poison, known, text, shared, watch)


def known_of(config: RunFile, log: Split, judged: str) -> tuple[Poison, ...]:
    """What the defender learns from: known fakes without the judged kind, but where they are asked for by name."""
    known = config.known
    return known_fakes(log, without=judged, kinds=known.kinds, share=known.share, rounds=known.rounds, seed=config.seed)


def _poison(config: RunFile, made: Path, clean: Split, text: TextVectors, shared: Path | None, watch: Watch) -> Poison:
    """The run's poison: what an interrupted run has made already is checked, and is taken as it is."""
    if (made / "poison.json").exists():
        return open_poison(made, clean)
    if shared is None or isinstance(config.attack, Stored):
        return _forged(config, clean, text, made, watch)
    read = text.identity() if config.attack.needs_text else None
    values = {key: plain(config)[key] for key in ("attack", "targets", "seed")}
    kept = shared / "poisons" / _key(values | {"log": clean.digest(), "text": read})

    def make() -> list[str]:
        save_poison(_forged(config, clean, text, kept, watch), clean.catalog, kept)
        _without_draft(kept)
        return ["profiles.parquet", "poison.json"]

    _once(kept, make)
    return open_poison(kept, clean)


def _key(values: Mapping[str, Any]) -> str:
    """A folder's name for what these values and this version make."""
    versions = {name: version(name) for name in ("lorec", "torch", "numpy")}
    return hashlib.sha256(json.dumps({**versions, **values}, sort_keys=True).encode()).hexdigest()[:16]


def _once(folder: Path, make: Callable[[], list[str]]) -> None:
    """Make what a folder is to hold, unless that is done; of several processes one does it, and the others wait.

    `make` gives back the files that it left. Raises RunError where these are no longer what was left. A process that
    dies lets go of the lock.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "made.json").exists():
            write_json(folder / "made.json", {"files": {name: sha256(folder / name) for name in make()}})
    made = read_json(folder / "made.json")
    for name in made["files"]:
        _checked(folder, name, made)


def _text(config: RunFile, clean: Split, cache: str | Path | None, watch: Watch) -> TextVectors:
    def encoding(done: int, total: int) -> None:
        now = time.perf_counter()
        if done < first.get("done", done + 1):  # a new bunch of texts
            first.update(done=done, at=now)
        rate = (done - first["done"]) / max(now - first["at"], 1e-9)
        note = f"{done:,} of {total:,} texts" + (f", {rate:,.0f} texts/s" if rate else "")
        watch(Event("encode texts", done, total, note, finished=done == total))

    first: dict[str, float] = {}
    return TextVectors(clean.catalog, config.encoder, cache, config.scenario, config.prompts, encoding)


@dataclass(frozen=True)
class Encoding:
    """What encoding a run's texts takes."""

    texts: int
    """Distinct ones."""
    missing: int
    """Of these, not encoded before."""
    tokens: int | None
    """That the encoder would read of the missing ones; None where that is not known, or nobody asked before."""
    seconds: float
    """For the missing ones: measured, or estimated from a sample."""
    memory: int
    """Peak of this process, in bytes; where it is an estimate, with the vectors to come."""


def encode(
    config: RunFile,
    *,
    users: bool = False,
    dry: bool = False,
    cache: str | Path | None = None,
    watch: Watch | None = None,
) -> Encoding:
    """Encode a run's titles, with `users` also a prompt for each user, so that runs find it done.

    `dry` only says what that would take, from a sample of the missing texts; nothing is kept. Raises DataError where
    no item has a text, and what the encoder does.
    """
    watch = watch or (lambda _: None)
    split = prepared(config.data, config.split)
    text = _text(config, split, cache, watch)
    every = text.texts(split.train if users else None)
    missing = text.missing(every)
    started = time.perf_counter()
    width = 0
    if dry:
        seconds, width = _sampled(text, missing)
    else:
        text.prepare(missing)
        seconds = time.perf_counter() - started
    tokens = [] if not missing else config.encoder.count(missing) if dry else None
    read = None if tokens is None else sum(tokens)
    return Encoding(len(every), len(missing), read, seconds, peak_memory() + 4 * width * len(missing))


def peak_memory() -> int:
    """The most bytes that this process has held at once."""
    with contextlib.suppress(OSError):  # what getrusage says is at least what a process's parent held, on Linux
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _sampled(text: TextVectors, missing: list[str], group: int = 64, groups: int = 4) -> tuple[float, int]:
    """Seconds that the missing texts would take, and the length of a vector."""
    if not missing:
        return 0.0, 0
    ordered = [missing[place] for place in by_length(text.encoder, missing)]  # as they would be
    middles = (np.arange(groups) + 0.5) / groups * len(missing)
    starts = np.unique(np.clip(middles - group / 2, 0, max(len(missing) - group, 0)).astype(int))
    some = list(dict.fromkeys(one for start in starts for one in ordered[start : start + group]))

    def timed(texts: list[str]) -> tuple[float, int]:
        started = time.perf_counter()
        width = max(part.shape[1] for part in text.encoder.encode(texts))
        return time.perf_counter() - started, width

    seconds, width = timed(some)
    if isinstance(text.encoder, Server):  # which loads nothing, and answers several requests at once
        return seconds * math.ceil(len(missing) / len(some)), width
    loading = min(timed(some[:1])[0], seconds)
    return loading + (seconds - loading) / len(some) * len(missing), width


@dataclass(frozen=True)
class Detection:
    """What detectors say of a poisoned log, by name, and how right they are."""

    split: Split
    """The poisoned log, whose rows are shuffled."""
    poison: Poison
    said: dict[str, Suspicion]
    figures: dict[str, dict[str, float]]
    """As `judged` has them, and seconds."""
    notes: list[str]

    @staticmethod
    def check(folder: Path) -> None:
        """Raise RunError for a folder that holds something else than what `save` writes."""
        names = ("users.parquet", "items.parquet", "harm.parquet", "judged.json")
        if folder.exists() and not (folder.is_dir() and all(one.name in names for one in folder.iterdir())):
            raise RunError(f"{folder} holds something else; choose another --out")

    def save(self, folder: Path) -> None:
        """users.parquet and items.parquet, a column for each detector; harm.parquet, as `harmed` has it; judged.json.

        Raises RunError for a folder that holds something else.
        """
        Detection.check(folder)
        columns: dict[str, Any] = {"user": self.split.users, "injected": self.split.fraudsters}
        items = self.split.catalog.items
        goals = np.isin(np.arange(1, len(items) + 1), self.poison.targets)
        about: dict[str, Any] = {"pushed": goals}
        for name, found in self.said.items():
            columns[name] = found.users
            if found.flagged is not None:
                columns[f"{name} accuses"] = found.flagged
            if found.items is not None:
                about[name] = found.items[1:]
        told = items.select(pl.col("item"), *(pl.col(one) for one in ("title",) if one in items.columns))
        frames = {"users.parquet": pl.DataFrame(columns), "items.parquet": told.with_columns(**about)}
        harm = [harmed(found, self.split).select(pl.lit(name).alias("detector"), pl.all())
                for name, found in self.said.items() if found.flagged is not None]  # fmt: skip
        if harm:
            frames["harm.parquet"] = pl.concat(harm)
        for file, frame in frames.items():
            write_parquet(folder / file, frame)
        write_json(folder / "judged.json", {"detectors": self.figures, "notes": self.notes})


def detect(config: RunFile, *, cache: str | Path | None = None, watch: Watch | None = None) -> Detection:
    """Poison a run's log and ask its detectors; no recommender is trained. Raises what `run` does."""
    watch = watch or (lambda _: None)
    asked = named("detectors", [name_of("detectors", DETECTORS, one) for one in config.detectors], config.detectors)
    if not asked:
        raise ConfigError("detectors is empty; name at least one, as in detectors = ['lorec']")
    clean = prepared(config.data, config.split)
    text = _text(config, clean, cache, watch)
    if any(one.needs_text for one in (config.attack, *asked.values())):
        text.check()
    for one in asked.values():
        fits(one, clean.train, len(clean.catalog), text)
    poison = _forged(config, clean, text, None, watch)
    bad = inject(clean, poison, config.seed)
    known = known_of(config, bad, poison.provenance["attack"])
    said, figures = {}, {}
    for place, (name, one) in enumerate(asked.items()):
        watch(Event("detect", place, len(asked), name))
        started = time.perf_counter()
        said[name] = ask(one, bad, text=text, known=known, seed=config.seed)
        figures[name] = judged(said[name], bad, poison.targets)
        figures[name]["seconds"] = time.perf_counter() - started
        watch(Event(name, 1, 1, f"{figures[name]['seconds']:.1f} s", finished=True))
    return Detection(bad, poison, said, figures, _said_of(poison, known))


def attack(
    config: RunFile, path: Path, form: str = "folder", *, cache: str | Path | None = None, watch: Watch | None = None
) -> Poison:
    """Make the poison of a run alone and save it in one of `FORMS`; nothing is trained.

    Raises ConfigError for a form that does not exist and RunError for a folder that holds something else.
    """
    if form not in FORMS:
        raise unknown("form of a poison", form, FORMS)
    if form == "folder" and path.exists() and not (path / "poison.json").is_file() and not _only_a_draft(path):
        raise RunError(f"{path} holds something else; choose another --out")
    watch = watch or (lambda _: None)
    split = prepared(config.data, config.split)
    text = _text(config, split, cache, watch)
    poison = _forged(config, split, text, path if form == "folder" else None, watch)
    save_poison(poison, split.catalog, path, form)
    if form == "folder":
        _without_draft(path)
    return poison


PATIENCE = 5.0
"""Seconds that another process is waited for: what a killed grid had at work takes a moment to end."""
LOCK = ".lock"
"""In a run's folder, while a process is at work on it."""
DRAFT = "draft.safetensors"
"""In a poison's folder, what a slow attack has done while it goes on."""


def _of_a_draft(path: Path) -> bool:
    """Whether this is the draft, or the half of one that a killed process was writing."""
    return path.name == DRAFT or (path.name.startswith(f".{DRAFT}.") and path.name.endswith(".tmp"))


def _only_a_draft(folder: Path) -> bool:
    """Whether a folder holds nothing but what an interrupted attack left."""
    return folder.is_dir() and all(_of_a_draft(one) for one in folder.iterdir())


def _is_nothing_yet(path: Path) -> bool:
    """Whether this is all that a run may leave before its record: what a killed process was writing, and a draft."""
    return path.name == LOCK or path.name.endswith(".tmp") or (path.name == "poison" and _only_a_draft(path))


def _without_draft(folder: Path) -> None:
    for one in filter(_of_a_draft, list(folder.iterdir())):
        one.unlink(missing_ok=True)


def _forged(config: RunFile, clean: Split, text: TextVectors, folder: Path | None, watch: Watch) -> Poison:
    """Make the poison, in a folder so that it may be interrupted."""

    def told(done: int, total: int) -> None:
        watch(Event("attack", done, total, f"{done:,} of {total:,}", finished=done == total))

    targets = list(config.targets.items) or config.targets.count
    rule, where = config.targets.rule, config.targets.where
    draft = folder and folder / DRAFT
    return forge(config.attack, clean, targets, config.seed, rule, where, watch=told, draft=draft, text=text)


def _arm(job: _Job, name: str, defense: Defense) -> dict[str, float]:
    """Train and judge one arm, unless that is done; its folder is complete once scorecard.json is there."""
    folder = job.folder / name
    if (folder / "scorecard.json").exists():
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)
        for event in _again(name, folder / "history.jsonl"):
            job.watch(event)
        job.watch(Event(name, 1, 1, "done before", finished=True, of="arm", resumed=True))
        kept: dict[str, float] = read_json(folder / "scorecard.json")
        return kept
    split = job.clean if name == "clean" else job.bad
    started = time.perf_counter()
    shared = _clean_folder(job) if name == "clean" else None
    trained = _fitted(job, name, defense, folder) if shared is None else _shared(job, name, defense, shared)
    card = evaluate(trained.recommender, split, targets=job.poison.targets, top=10)
    metrics = card.metrics | (detected(trained.guard, split, job.poison.targets) if name != "clean" else {})
    metrics |= {"best epoch": trained.best_epoch, "epochs": len(trained.history)}
    if not trained.guard.ready:
        metrics["never in force"] = 1.0
    metrics["seconds an epoch"] = float(np.median([row["seconds"] for row in trained.history]))
    trained.recommender.save(folder / "model.safetensors")
    _save_history(folder / "history.jsonl", trained.history)
    write_parquet(folder / "ranks.parquet", card.users)
    if trained.guard.suspicion is not None:
        _save_weights(folder / "weights.parquet", split, trained)
    if trained.guard.interactions is not None:
        _save_interactions(folder / "interactions.parquet", split, trained)
    write_json(folder / "scorecard.json", metrics)
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    summary = f"HR@10 {metrics['HR@10']:.4f} in {time.perf_counter() - started:.0f} s"
    job.watch(Event(name, 1, 1, summary, finished=True, of="arm"))
    return metrics


def _fitted(job: _Job, name: str, defense: Defense, folder: Path) -> Fit:
    """Train an arm, with its checkpoint in a folder."""
    split, config = job.clean if name == "clean" else job.bad, job.config
    return fit(
        split,
        config.backbone,
        items=config.items,
        text=job.text,
        loss=config.loss,
        defense=_told(defense, split),
        known=None if name == "clean" else job.known,
        training=config.training,
        seed=config.seed,
        checkpoint=folder / "checkpoint.safetensors",
        watch=lambda progress: job.watch(_event(name, progress)),
        follow=_follow(job, split),
    )


def _follow(job: _Job, split: Split) -> Follow | None:
    """Looks at the targets' exposure every few epochs, where that is asked for."""
    if not job.config.follow:
        return None

    def look(recommender: Recommender, epoch: int) -> dict[str, float]:
        if epoch % job.config.follow:
            return {}
        found = evaluate(recommender, split, targets=job.poison.targets).metrics
        return {name: found[name] for name in ("T-HR@50", "HR@10")}

    return look


def _told(defense: Defense, split: Split) -> Defense:
    """With what only the experiment knows: who the fraudsters are, and who is who."""
    if isinstance(defense, Oracle):
        return defense.reveal(split.fraudsters)
    return (
        defense.of(split.users, split.train, split.catalog.ids(np.arange(1, len(split.catalog) + 1)))
        if isinstance(defense, WeightFile)
        else defense
    )


def _clean_folder(job: _Job) -> Path | None:
    """Where runs share the clean model of this log, recommender, training and seed, which no attack touches."""
    if job.shared is None:
        return None
    config = plain(job.config)
    values = {key: config[key] for key in CLEAN}
    read = job.text.identity() if job.config.items != "ids" else None
    followed = [job.config.follow, job.poison.targets.tolist()] if job.config.follow else None
    return job.shared / "clean" / _key(values | {"log": job.clean.digest(), "text": read, "followed": followed})


def _is_made_elsewhere(job: _Job) -> bool:
    """Whether another process trains the clean model right now, so that the other arms are better done first."""
    folder = _clean_folder(job)
    if folder is None or (folder / "made.json").exists():
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{folder}.lock", blocking=False):
            return False
    except Timeout:
        return True


def _shared(job: _Job, name: str, defense: Defense, folder: Path) -> Fit:
    """A fit that the first of many runs makes and the others take up. It has no opinion of its own on anybody."""
    mine = []

    def make() -> list[str]:
        mine.append(name)
        trained = _fitted(job, name, defense, folder)
        trained.recommender.save(folder / "model.safetensors")
        _save_history(folder / "history.jsonl", trained.history)
        write_json(folder / "fit.json", {"best epoch": trained.best_epoch})
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)
        return ["model.safetensors", "history.jsonl", "fit.json"]

    _once(folder, make)
    lines = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    for event in () if mine else _again(name, folder / "history.jsonl"):
        job.watch(event)
    model = load_recommender(folder / "model.safetensors", plugins=True).to(choose_device(job.config.training.device))
    return Fit(model, Guard(), [json.loads(line) for line in lines], read_json(folder / "fit.json")["best epoch"])


def detected(guard: Guard, split: Split, targets: Ints) -> dict[str, float]:
    """How well a guard tells fraudsters and their lies from the rest, and whom it turns down; {} without an opinion.

    As `judged` has it.
    """
    if guard.suspicion is None or guard.flagged is None:
        return {}
    found = Suspicion(users=guard.suspicion, flagged=guard.flagged, interactions=guard.interactions, items=guard.items)
    return judged(found, split, targets, guard.weights)


def _notes(job: _Job, arms: Mapping[str, Mapping[str, float]], attack_works: bool) -> list[str]:
    """What a reader of the figures must know."""
    notes = [
        "Epochs were selected on genuine users' validation items; knowing who is genuine is a concession.",
        f"One seed ({job.config.seed}): differences between arms may be chance.",
        *_said_of(job.poison, job.known),
    ]
    untold = job.clean.record["items without text"]
    if untold:
        notes.append(f"{untold} of {len(job.clean.catalog)} items have no text; their text vectors are zero.")
    if not len(job.poison.profiles):
        notes.append("Nobody attacks: arms show what defenses cost a clean log; clean and poisoned differ by chance.")
    elif not attack_works:
        notes.append(
            f"The attack did not work on the undefended model (T-HR@50 {arms['poisoned']['T-HR@50']:.4f}; it should be "
            "at least five times the clean model's and above chance): attack success removed has no meaning here."
        )
    notes += [told for one in job.config.defenses if isinstance(one, WeightFile) for told in one.remarks(job.bad.users)]
    for name, metrics in arms.items():
        if "never in force" in metrics:
            notes.append(f"{name} begins after the last epoch of this training: its arm is undefended.")
        untouched = metrics.get("genuine interactions turned down") == 0 and metrics.get("lies' weight", 0) >= 1
        if name not in ("clean", "poisoned") and untouched:
            notes.append(f"{name} never turned anybody down: every weight stayed 1.")
        elif metrics.get("ROC-AUC", 1.0) < 0.6:
            notes.append(
                f"{name} does not tell fraudsters from genuine users (ROC-AUC {metrics['ROC-AUC']:.2f}); whatever its "
                "arm does differently has another cause, such as longer training."
            )
    return notes


def _said_of(poison: Poison, known: Sequence[Poison]) -> list[str]:
    """Whether the judged kind was among the known fakes, where that is to be minded."""
    kind, kinds = poison.provenance["attack"], known[0].provenance["kinds"]
    is_known = _is_known(poison.provenance, kinds)
    if is_known:
        which = kind if kind in kinds else f"or kinds that {kind} is mixed of"
        return [f"The judged kind, {which}, was among the known fakes: detection is easier than in life."]
    if is_known is None:
        return ["Nobody knows the kind of the stored poison; it may be among the known fakes."]
    return []


def _event(name: str, progress: Progress) -> Event:
    note = f"epoch {progress.epoch}/{progress.epochs} loss {progress.loss:.4f}"
    if "valid NDCG@10" in progress.figures:
        note += f" valid NDCG@10 {progress.figures['valid NDCG@10']:.4f}"
    done = (progress.epoch - 1) * progress.steps + progress.step
    return Event(
        name, done, progress.epochs * progress.steps, note, epoch=progress.epoch, figures=progress.figures, of="arm"
    )


def _apart(key: str, was: Any, now: Any) -> str:
    """What differs between two settings, key by key."""
    if isinstance(was, dict) and isinstance(now, dict):
        names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
        return ", ".join(_apart(f"{key}.{name}", was.get(name), now.get(name)) for name in names)
    return f"{key} was {_short(was)}, now {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


# -------------------------------------------------------------------------------------------------------- folders


def _save_history(path: Path, history: list[dict[str, float]]) -> None:
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in history), encoding="utf-8")


def _save_weights(path: Path, split: Split, trained: Fit) -> None:
    """Every user's weight, worst first; `injected` is what only the experiment knows."""
    weights, suspicion = trained.weights.of_users(split.train), trained.guard.suspicion
    columns = {"user": split.users, "weight": weights, "suspicion": suspicion, "injected": split.fraudsters}
    if trained.guard.likelihood is not None:
        columns["likelihood"] = trained.guard.likelihood
    write_parquet(path, pl.DataFrame(columns).sort("suspicion", "user", descending=[True, False]))


def _save_interactions(path: Path, split: Split, trained: Fit) -> None:
    """Every training interaction's weight and likelihood, in order of users and positions."""
    frame = pl.DataFrame(
        {
            "user": split.users.gather(split.train.users()),
            "position": split.train.positions(),
            "item": split.catalog.ids(split.train.items),
            "weight": trained.weights.of_events(split.train),
            "suspicion": trained.guard.interactions,
        }
    )
    write_parquet(path, frame)


def open_run(folder: str | Path, partial: bool = False, plugins: bool = False) -> Run:
    """Open a finished run folder; with `partial` also one where a defense failed, which others survived.

    Runs no code that it names, but for members that installed packages declare, with `plugins`. Raises RunError where
    it is damaged or was edited, UnknownName for what nobody declares.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"no run folder {folder}; lorec run makes one")
    record = _read_record(folder)
    if not record["finished"] and not (partial and "scorecard.json" in record["files"]):
        raise RunError(f"{folder} is not a finished run; continue it with lorec run, or choose another folder")
    path = _checked(folder, "scorecard.json", record)
    try:
        config = resolve(record["config"], strangers=plugins)
    except UnknownName as error:
        if plugins:
            raise
        raise UnknownName(f"{error}; what an installed package declares is loaded with --plugins alone") from None
    return Run(folder, config, record, read_json(path), plugins)


def again(opened: Run) -> Iterator[Event]:
    """What a finished run has told whoever watched, figure by figure; for those who did not."""
    for arm in opened.arms:
        yield from _again(arm, opened.file(f"{arm}/history.jsonl"))
    yield _judged(opened.arms)


def _again(arm: str, history: Path) -> Iterator[Event]:
    for line in history.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        epoch = int(row.pop("epoch"))
        yield Event(arm, epoch, epoch, epoch=epoch, figures=row, again=True, of="arm")


def _judged(arms: Mapping[str, Mapping[str, float]]) -> Event:
    told = {f"{arm}/{name}": value for arm, one in arms.items() for name, value in one.items()}
    return Event("judge", 1, 1, f"{len(arms)} arms", figures=told, again=True)


def _checked(folder: Path, name: str, record: Mapping[str, Any]) -> Path:
    path = inside(folder, name)
    if sha256(path) != record["files"].get(name):
        raise RunError(
            f"{path} is not what the run wrote: edited or damaged; restore it, or delete the folder and run again"
        )
    return path


def save_recommendations(
    path: Path,
    recommender: Recommender,
    log: Sequences,
    catalog: Catalog,
    k: int = 10,
    *,
    users: pl.Series,
    seen: bool = False,
    without: Ints | None = None,
    block: int = 20_000,
) -> int:
    """Write the top k of every history as Parquet, `block` users at a time, so that memory stays flat; its rows.

    The columns are those of `Recommender.recommend`. Raises what that does, and ConfigError for a name that says that
    the file is something else.
    """
    if path.suffix.lower() not in ("", ".parquet", ".pq"):
        raise ConfigError(f"{path} would hold Parquet, whatever its name says; call it {path.with_suffix('.parquet')}")
    schema = recommender.recommend(log.take(np.arange(0)), catalog, k, users=users[:0]).schema
    rows = 0

    def blocks(*_: object) -> Iterator[pl.DataFrame]:
        nonlocal rows
        for start in range(0, len(log), block):
            some = np.arange(start, min(start + block, len(log)))
            found = recommender.recommend(
                log.take(some), catalog, k, users=users[start : start + block], seen=seen, without=without
            )
            rows += found.height
            yield found

    with replacing(path) as temporary:
        register_io_source(blocks, schema=schema).sink_parquet(temporary)
    return rows


def reevaluate(opened: Run, arms: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Judge saved models again on the log as the configuration reads it. Raises RunError where the log has changed."""
    split = prepared(opened.config.data, opened.config.split)
    if split.digest() != opened.record["data"]["digest"]:
        raise RunError(f"the log is not the one that {opened.folder} was trained on; put it back, or run again")
    provenance = read_json(_checked(opened.folder, "poison/poison.json", opened.record))
    targets = split.catalog.numbers(provenance["targets"])
    return {
        arm: evaluate(opened.recommender(arm), split, targets=targets).metrics for arm in (arms or list(opened.arms))
    }
