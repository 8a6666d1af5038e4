"""Poisons on disk: a folder of our own, and the JSON files of other work.

    profiles.parquet   fraudster, position, item, and time where there is one
    poison.json        attack, parameters, knowledge, seed, targets, how they were chosen, and the log's digest

Other work writes one JSON file: {"user_data": {user: [items]}, "target_item": [items]} (the authors of LoRec call it
inject_user_KIND.json), or {"fake_users": [[items]], "target_items": [items]}.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl

from lorec.attacks.heuristics import timed
from lorec.data import Catalog, Poison, Sequences, Split, offsets, stream
from lorec.errors import ConfigError, DataError
from lorec.files import load_state, read_json, save_state, write_json, write_parquet

FORMS = ("folder", "inject_user", "fake_users")
"""How a poison may be written."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A poison that was made before: a folder that `lorec attack` wrote, or a JSON file of other work."""

    needs_text: ClassVar[bool] = False
    path: str = ""
    """Where it is; its own targets hold, whatever [targets] says."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("a stored attack needs a path: the folder that lorec attack wrote, or a JSON file")


@dataclass(frozen=True)
class Draft:
    """What a slow attack has done so far, on disk, so that it goes on after an interruption to the same profiles."""

    path: Path | None = None
    """A file; nothing is kept where there is none."""
    identity: str = ""
    """Of what is being made: the draft of something else is none of ours, and is written over."""

    @staticmethod
    def of(path: Path | None, record: Mapping[str, Any]) -> "Draft":
        """The draft of what a record of plain values describes."""
        return Draft(path, hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest())

    def load(self, rng: np.random.Generator) -> dict[str, Any]:
        """What was saved last, nothing where nothing was; `rng` goes on where it stood then.

        Raises RunError for a damaged file.
        """
        if self.path is None or not self.path.exists():
            return {}
        saved = load_state(self.path)
        if saved.get("identity") != self.identity:
            return {}
        rng.bit_generator.state = saved["rng"]
        state: dict[str, Any] = saved["state"]
        return state

    def save(self, rng: np.random.Generator, state: Mapping[str, Any]) -> None:
        """Keep tensors and plain values. Raises RunError for what the disk refuses."""
        if self.path is not None:
            save_state(self.path, {"identity": self.identity, "rng": rng.bit_generator.state, "state": dict(state)})


def save_poison(poison: Poison, catalog: Catalog, path: str | Path, form: str = "folder") -> None:
    """Write a poison in one of `FORMS`: as a folder, or as the one JSON file of other work."""
    path, profiles, targets = Path(path), poison.profiles, catalog.ids(poison.targets)
    if form != "folder":
        histories = [catalog.ids(profiles[row]) for row in range(len(profiles))]
        if form == "inject_user":
            users = {str(row): one for row, one in enumerate(histories)}
            write_json(path, {"user_data": users, "target_item": targets})
        else:
            write_json(path, {"fake_users": histories, "target_items": targets})
        return
    frame = pl.DataFrame(
        {"fraudster": profiles.users(), "position": profiles.positions(), "item": catalog.ids(profiles.items)}
    )
    if profiles.times is not None:
        frame = frame.with_columns(time=pl.Series(profiles.times))
    write_parquet(path / "profiles.parquet", frame)
    write_json(path / "poison.json", poison.provenance)


def open_poison(path: str | Path, split: Split) -> Poison:
    """Read a poison back, as numbers of a split's catalogue.

    Raises DataError where it is none, was made from another log, or knows items that the catalogue does not have.
    """
    path = Path(path)
    if path.is_dir():
        return _of_folder(path, split)
    if not path.is_file():
        raise DataError(f"no poison at {path}; lorec attack makes one")
    return _of_json(path, split)


def _of_folder(path: Path, split: Split) -> Poison:
    provenance = read_json(path / "poison.json")
    if not isinstance(provenance, dict) or not {"log", "targets"} <= provenance.keys():
        raise DataError(f"{path / 'poison.json'} is not a poison's record; make the poison again with lorec attack")
    if provenance["log"] != split.train.digest():
        raise DataError(
            f"{path} was made from another log, or another split of it; make it again with lorec attack and this data"
        )
    try:
        frame = pl.read_parquet(path / "profiles.parquet").sort("fraudster", "position")
        items, users = frame["item"].cast(pl.String), frame["fraudster"].to_numpy()
        times = frame["time"].cast(pl.Int64).to_numpy() if "time" in frame.columns else None
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path / 'profiles.parquet'} can't be read ({error}); make the poison again") from None
    lengths = np.bincount(users) if len(users) else np.zeros(0, dtype=np.int64)
    profiles = Sequences(split.catalog.numbers(items), offsets(lengths), times)
    return _checked(Poison(profiles, split.catalog.numbers(provenance["targets"]), provenance), path)


def _of_json(path: Path, split: Split) -> Poison:
    try:
        told: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not JSON ({error}); give the file as its authors wrote it") from None
    shapes: dict[str, tuple[str, Callable[[Any], list[Any]]]] = {
        "user_data": ("target_item", lambda users: list(users.values())), "fake_users": ("target_items", list)
    }  # fmt: skip
    for name, (goals, histories) in shapes.items():
        if isinstance(told, dict) and {name, goals} <= told.keys():
            rows = [[str(item) for item in one] for one in histories(told[name])]
            numbers = split.catalog.numbers(item for row in rows for item in row)
            profiles = np.split(numbers, np.cumsum([len(row) for row in rows])[:-1]) if rows else []
            targets = np.unique(split.catalog.numbers(str(item) for item in told[goals]))
            # These files know no times: they are drawn from the log's own, the same for everybody who reads the file.
            made = timed(split.train, profiles, stream(0, "times"))
            about = {"targets": split.catalog.ids(targets), "log": split.train.digest()}
            return _checked(Poison(made, targets, {"attack": "stored", "file": path.name, **about}), path)
    raise DataError(f"{path} has neither user_data and target_item nor fake_users and target_items; see its own docs")


def _checked(poison: Poison, path: Path) -> Poison:
    if poison.provenance["attack"] == "none" and not len(poison.profiles):
        return poison
    if not len(poison.profiles) or not len(poison.targets):
        raise DataError(f"{path} has {len(poison.profiles)} profiles and {len(poison.targets)} targets; it needs some")
    empty = np.flatnonzero(poison.profiles.lengths == 0)
    if len(empty):
        raise DataError(f"profile {int(empty[0])} of {path} is empty; every fraudster takes something")
    missing = ~np.isin(poison.targets, poison.profiles.items)
    if missing.any():
        raise DataError(f"{int(missing.sum())} targets of {path} are in no profile; a target is what its profiles push")
    return poison
