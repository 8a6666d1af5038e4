"""Run folders: how one is begun, sealed, opened and checked, and what whoever watches is told.

    run.json           resolved configuration, versions, seed, digests of data and files, what to keep in mind
    scorecard.json     every arm's metrics, the popularity floor
    catalog.parquet    the items by number
    poison/            profiles.parquet, poison.json
    <arm>/             model.safetensors, history.jsonl, ranks.parquet, scorecard.json; weights.parquet of users and
                       interactions.parquet, harm.parquet where a defense has an opinion

What many runs have in common they may share through a folder of their own:

    poisons/<key>/     a poison as it stands in the run folders
    clean/<key>/       model.safetensors, history.jsonl, fit.json; both with made.json, the digests
"""

import contextlib
import hashlib
import json
import os
import platform
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout

from lorec.data import Catalog
from lorec.errors import DiskError, RunError, UnknownName
from lorec.files import check_writable, inside, read_json, sha256, write_json
from lorec.models import Recommender, load_recommender
from lorec.registry import unknown
from lorec.runfile import RunFile, plain, resolve
from lorec.training import choose_device

PATIENCE = 5.0
"""Seconds that another process is waited for: what a killed grid had at work takes a moment to end."""
LOCK = ".lock"
"""In a run's folder, while a process is at work on it."""
DRAFT = "draft.safetensors"
"""In a poison's folder, what a slow attack has done while it goes on."""


# --------------------------------------------------------------------------------------------------------------- events


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


def arm_again(arm: str, history: Path) -> Iterator[Event]:
    """What an arm that is done told, epoch by epoch, from its history.jsonl."""
    for line in history.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        epoch = int(row.pop("epoch"))
        yield Event(arm, epoch, epoch, epoch=epoch, figures=row, again=True, of="arm")


def all_judged(arms: Mapping[str, Mapping[str, float]]) -> Event:
    """That every arm is judged, with all their figures."""
    told = {f"{arm}/{name}": value for arm, one in arms.items() for name, value in one.items()}
    return Event("judge", 1, 1, f"{len(arms)} arms", figures=told, again=True)


# ------------------------------------------------------------------------------------------------------- a finished run


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
        return checked(self.folder, name, self.record)

    def recommender(self, arm: str) -> Recommender:
        """The trained model of an arm, its file checked against the record."""
        if arm not in self.arms:
            raise unknown("arm", arm, self.arms)
        model = load_recommender(self.file(f"{arm}/model.safetensors"), self.plugins)
        return model.to(choose_device(self.config.training.device))

    def catalog(self) -> Catalog:
        """The items by number."""
        return Catalog.load(self.file("catalog.parquet"))


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
    path = checked(folder, "scorecard.json", record)
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
        yield from arm_again(arm, opened.file(f"{arm}/history.jsonl"))
    yield all_judged(opened.arms)


def checked(folder: Path, name: str, record: Mapping[str, Any]) -> Path:
    """A file of a folder. Raises RunError where it is not what the record has a digest of."""
    path = inside(folder, name)
    if sha256(path) != record["files"].get(name):
        raise RunError(
            f"{path} is not what the run wrote: edited or damaged; restore it, or delete the folder and run again"
        )
    return path


# -------------------------------------------------------------------------------------------------------- a run at work


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
        check_writable(folder)
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
        checked(folder, name, old)
    return old


def _is_nothing_yet(path: Path) -> bool:
    """Whether this is all that a run may leave before its record: what a killed process was writing, and a draft."""
    return path.name == LOCK or path.name.endswith(".tmp") or (path.name == "poison" and only_a_draft(path))


def seal(record: dict[str, Any], folder: Path, names: list[str]) -> None:
    """Put down the digests of finished files and of the record itself, so that a later change is noticed."""
    record["files"] |= {name: sha256(inside(folder, name)) for name in names}
    write_json(folder / "run.json", record | {"digest": _own_digest(record)})


def _read_record(folder: Path) -> dict[str, Any]:
    """run.json as a run wrote it. Raises RunError for anything else."""
    record = read_json(folder / "run.json")
    if not isinstance(record, dict) or record.get("digest") != _own_digest(record):
        raise RunError(
            f"{folder / 'run.json'} is not what the run wrote: edited or damaged; restore it, or run anew elsewhere"
        )
    return record


def _own_digest(record: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in record.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _apart(key: str, was: Any, now: Any) -> str:
    """What differs between two settings, key by key."""
    if isinstance(was, dict) and isinstance(now, dict):
        names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
        return ", ".join(_apart(f"{key}.{name}", was.get(name), now.get(name)) for name in names)
    return f"{key} was {_short(was)}, now {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
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


def forget_peak() -> bool:
    """From now on `peak_memory` tells of what comes; False where the system can't (only Linux can)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


def peak_memory() -> int:
    """The most bytes that this process has held at once, since `forget_peak` where that was asked."""
    with contextlib.suppress(OSError):  # what getrusage says is at least what a process's parent held, on Linux
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


# ------------------------------------------------------------------------------------------------------ what runs share


def key_of(values: Mapping[str, Any]) -> str:
    """A folder's name for what these values and this version make."""
    versions = {name: version(name) for name in ("lorec", "torch", "numpy")}
    return hashlib.sha256(json.dumps({**versions, **values}, sort_keys=True).encode()).hexdigest()[:16]


def once(folder: Path, make: Callable[[], list[str]]) -> None:
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
        checked(folder, name, made)


# ---------------------------------------------------------------------------------------------------- drafts of attacks


def _of_a_draft(path: Path) -> bool:
    """Whether this is the draft, or the half of one that a killed process was writing."""
    return path.name == DRAFT or (path.name.startswith(f".{DRAFT}.") and path.name.endswith(".tmp"))


def only_a_draft(folder: Path) -> bool:
    """Whether a folder holds nothing but what an interrupted attack left."""
    return folder.is_dir() and all(_of_a_draft(one) for one in folder.iterdir())


def without_draft(folder: Path) -> None:
    """Take away what a slow attack kept while it went on."""
    for one in filter(_of_a_draft, list(folder.iterdir())):
        one.unlink(missing_ok=True)
