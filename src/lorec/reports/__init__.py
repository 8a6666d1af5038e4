"""A run, grid, scan or detection folder -> one HTML file that opens offline; only what the folder holds is told.

A folder may come from anybody: its files are read as data, links and ways out of it are refused, and whatever is
written in them is text on the page.
"""

from collections.abc import Callable
from pathlib import Path

import polars as pl

from lorec.errors import RunError, first_line
from lorec.files import replacing
from lorec.reports.charts import can_draw
from lorec.reports.detection import of_detection
from lorec.reports.grid import of_grid
from lorec.reports.page import Page, rendered
from lorec.reports.run import of_run
from lorec.reports.scan import of_scan

__all__ = ["can_draw", "report"]

KINDS: dict[str, Callable[[Path], Page]] = {
    "findings.json": of_scan, "grid.json": of_grid, "judged.json": of_detection, "run.json": of_run,
}  # fmt: skip
"""What tells of a folder, by the file that says what it is."""
MOST = 3_000_000
"""Bytes of a page."""


def report(folder: str | Path, out: str | Path | None = None, plugins: bool = False) -> Path:
    """Write a folder's report, `report.html` in it where no name is given, and say where it is.

    With `plugins`, members that installed packages declare are loaded where a run names them.

    Raises RunError for a folder that is none of a run, a grid, a scan and a detection, half of one, of another version,
    or damaged; MissingExtra where the library for charts is not installed; DiskError where it can't be written.
    """
    folder = Path(folder)
    kind = next((name for name in KINDS if (folder / name).is_file()), None)
    if not folder.exists():
        raise RunError(f"there is no folder {folder}; give what lorec run, grid, scan or detect left")
    if kind is None:
        raise RunError(
            f"{folder} holds no {', '.join(KINDS)}; give what lorec run, grid, scan or detect left, once it is done"
        )
    path = folder / "report.html" if out is None else Path(out)
    if path.resolve().parent == folder.resolve() and path.name != "report.html":
        raise RunError(f"{path} is the folder's own; a report inside it is called report.html")
    if path.is_file():
        with path.open("rb") as there:
            if b"<!doctype html" not in there.read(999).lower():
                raise RunError(f"{path} is there and is no page; choose another --out")
    try:
        page = of_run(folder, plugins) if kind == "run.json" else KINDS[kind](folder)
        html = rendered(page).encode("utf-8")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise RunError(
            f"{folder} is not what this version of lorec leaves ({type(error).__name__}: {str(error)[:200]}): of "
            "another version, or edited; make it anew"
        ) from error
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        first = first_line(error)
        raise RunError(f"a table of {folder} can't be read ({first}); restore it, or make it anew") from error
    if len(html) > MOST:
        raise RunError(
            f"the page of {folder} would have {len(html):,} bytes, as no folder of lorec's makes; was it edited?"
        )
    with replacing(path) as temporary:
        temporary.write_bytes(html)
    return path
