"""A log prepared once into a folder and memory-mapped: no ids are hashed and nothing is sorted again.

split.json         name, record, digests of the other files, format
catalog.parquet    the items by number        users.parquet    raw user ids by row
*.npy              train, older, valid, test as plain arrays, mapped: each is checked, none is kept in memory
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lorec.data import Catalog, Dataset, Protocol, Sequences, Split
from lorec.errors import ConfigError, RunError
from lorec.files import inside, read_json, replacing, sha256, write_json, write_parquet

FORMAT = 1
ARRAYS = {
    "train.items": np.int32, "train.starts": np.int64, "train.times": np.int64,
    "older.items": np.int32, "older.starts": np.int64, "older.times": np.int64,
    "valid": np.int32, "test": np.int32,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A log that `lorec data compile` prepared: opened at once, whatever its size. It brings its own [split]."""

    path: str
    """The folder."""

    def load(self) -> Dataset:
        """Raise ConfigError: raw interactions are no longer there."""
        raise ConfigError(f"{self.path} is a compiled log, split already; give the log itself to look at it")

    def protocol(self, asked: Mapping[str, Any]) -> Protocol:
        """How it was split. Raises ConfigError where that is not what is asked for, key by key, and as `open_split`."""
        made = Protocol(**_told(Path(self.path))["record"]["protocol"])
        for name, value in asked.items():
            if (was := getattr(made, name, value)) != value:
                raise ConfigError(
                    f"[split] {name} is {value!r}, and {self.path} was compiled with {was!r}; leave [split] out, or "
                    "compile the log anew"
                )
        return made

    def split(self, protocol: Protocol) -> Split:
        """The split. Raises ConfigError where a protocol other than the default one asks for something else."""
        default = dataclasses.asdict(Protocol())
        asked = {name: value for name, value in dataclasses.asdict(protocol).items() if value != default[name]}
        # The seed is a run's own where nobody gave one; whoever compiled the log has chosen.
        self.protocol({name: value for name, value in asked.items() if name != "seed"})
        return open_split(Path(self.path))


def save_split(split: Split, folder: Path) -> None:
    """Write a clean split as a folder; split.json comes last, so that a folder without it is not finished.

    Raises ConfigError for a poisoned split, whose labels no folder should hold, and where a folder holds other things.
    """
    if split.fraudsters.any():
        raise ConfigError("a poisoned split is not compiled; compile the log, and poison it afterwards")
    if folder.exists() and (not folder.is_dir() or any(one.name not in _names() for one in folder.iterdir())):
        raise ConfigError(f"{folder} is there and holds other things; give a new folder")
    (folder / "split.json").unlink(missing_ok=True)
    arrays: dict[str, NDArray[np.generic] | None] = {"valid": split.valid, "test": split.test}
    for name, log in (("train", split.train), ("older", split.older)):
        arrays |= {f"{name}.items": log.items, f"{name}.starts": log.starts, f"{name}.times": log.times}
    written = []
    for name, values in arrays.items():
        if values is not None:
            with replacing(folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
                np.save(file, values.astype(ARRAYS[name]), allow_pickle=False)
            written.append(f"{name}.npy")
    split.catalog.save(folder / "catalog.parquet")
    write_parquet(folder / "users.parquet", split.users.cast(pl.String).rename("user").to_frame())
    written += ["catalog.parquet", "users.parquet"]
    files = {name: sha256(folder / name) for name in written}
    write_json(folder / "split.json", {"format": FORMAT, "name": split.name, "record": split.record, "files": files})


def open_split(folder: Path) -> Split:
    """Open a compiled log; its arrays stay on the disk until they are needed.

    Raises RunError for what is missing, damaged or edited, or of another format.
    """
    told = _told(folder)
    name, record, files = str(told["name"]), dict(told["record"]), dict(told["files"])
    for one, digest in files.items():
        if sha256(inside(folder, one)) != digest:
            raise RunError(f"{folder / one} was edited or is damaged; compile the log anew")
    arrays = {
        one.removesuffix(".npy"): np.load(folder / one, mmap_mode="r", allow_pickle=False)
        for one in files
        if one.endswith(".npy")
    }
    train, older = (
        Sequences(arrays[f"{one}.items"], arrays[f"{one}.starts"], arrays.get(f"{one}.times"))
        for one in ("train", "older")
    )
    users = pl.read_parquet(folder / "users.parquet")["user"]
    catalog = Catalog.load(folder / "catalog.parquet")
    honest = np.zeros(len(train), dtype=bool)
    return Split(name, catalog, users, train, arrays["valid"], arrays["test"], honest, older, record)


def _told(folder: Path) -> dict[str, Any]:
    """What a compiled log says of itself."""
    if not folder.is_dir():
        raise RunError(f"no compiled log {folder}; lorec data compile makes one")
    told = read_json(inside(folder, "split.json"))
    try:
        Protocol(**dict(told["record"])["protocol"])
        known = bool(told["name"]) and told["format"] == FORMAT and set(dict(told["files"])) <= _names()
    except (KeyError, TypeError, ValueError):
        known = False
    if not known:
        raise RunError(f"{folder} is no compiled log of this version; compile the log anew")
    found: dict[str, Any] = told
    return found


def _names() -> set[str]:
    return {"split.json", "catalog.parquet", "users.parquet", *(f"{name}.npy" for name in ARRAYS)}
