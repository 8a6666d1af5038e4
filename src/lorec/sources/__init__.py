"""Where logs come from: files of one's own, prepared folders, and named public logs.

A Source is a spec with one verb, `load() -> Dataset`. `read` and `load` are the two that people type.
"""

from pathlib import Path
from typing import Any, Protocol

from lorec.data import Dataset, Split, leave_two_out
from lorec.data import Protocol as SplitProtocol
from lorec.errors import UnknownName
from lorec.registry import build, find
from lorec.sources.compiled import Compiled, open_split, save_split
from lorec.sources.complete_journey import CompleteJourney
from lorec.sources.download import fetch
from lorec.sources.inspection import moment, oddities, statistics, warnings_of, why_untold
from lorec.sources.public import Amazon, Mind, MovieLens, Public, Published, Steam
from lorec.sources.tables import File, Folder, read

__all__ = [
    "SOURCES",
    "Amazon",
    "Compiled",
    "CompleteJourney",
    "File",
    "Folder",
    "Mind",
    "MovieLens",
    "Public",
    "Published",
    "Source",
    "Steam",
    "fetch",
    "load",
    "located",
    "moment",
    "oddities",
    "open_split",
    "prepared",
    "read",
    "save_split",
    "statistics",
    "warnings_of",
    "why_untold",
]


class Source(Protocol):
    """A place that a log comes from."""

    def load(self) -> Dataset:
        """Read the log. Raises DataError, with file and row, where it can't be used."""
        ...


SOURCES: dict[str, type] = {
    "amazon": Amazon,
    "compiled": Compiled,
    "complete-journey": CompleteJourney,
    "file": File,
    "folder": Folder,
    "lorec": Published,
    "mind": Mind,
    "movielens": MovieLens,
    "steam": Steam,
}


PUBLIC = (Amazon, MovieLens, Mind, Steam, Published)
"""Logs whose raw files are read; a prepared folder of such a name under LOREC_DATA comes first."""


def prepared(source: Source, protocol: SplitProtocol) -> Split:
    """A source's log, split: read and split now, or opened where that was done before."""
    return source.split(protocol) if isinstance(source, Compiled) else leave_two_out(source.load(), protocol)


def load(name: str, root: str | Path | None = None, **options: Any) -> Dataset:
    """A named source, or else the folder of that name under `root` or the variable LOREC_DATA.

    `load("amazon-games", root="data")` reads data/amazon-games or data/amazon_games.
    """
    values = located(name, {**options, **({} if root is None else {"root": str(root)})})
    chosen = str(values.pop("name"))
    source: Source = build(find("sources", SOURCES, chosen), values, f"source {chosen}")
    return source.load()


def located(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The source that a name means, with its options: one of that name, or else a folder.

    A folder that was prepared under the name of a public log comes before its raw files. Raises UnknownName for a name
    that is neither, where no root says that it must be a folder.
    """
    folder = Folder(path=name, root=options.get("root"))
    is_prepared = name in SOURCES and SOURCES[name] in PUBLIC and options.keys() <= {"root"} and folder.exists()
    if name in SOURCES and not is_prepared:
        return {"name": name, **options}
    if folder.exists():
        return {"name": "folder", "path": name, **options}
    try:
        find("sources", SOURCES, name)
    except UnknownName as error:
        if options.keys() == {"root"}:
            return {"name": "folder", "path": name, **options}
        if Path(name).is_file():
            raise UnknownName(f"no source called {name!r}: it is a file; write [data] path = {name!r}") from None
        if (Path(name) / "split.json").is_file():
            raise UnknownName(
                f"no source called {name!r}: it is a compiled log; write [data] name = 'compiled', path = {name!r}"
            ) from None
        raise UnknownName(
            f"{error}; nor a folder in {folder.place()}: set LOREC_DATA or root= to where it is"
        ) from None
    return {"name": name, **options}
