"""What a terminal shows: tables, verdicts, bars of progress; strangers' texts as it can bear them.

Nothing heavy is imported before something is shown, so that --help answers at once.
"""

import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lorec.figures import GROUPS, title_of, written

if TYPE_CHECKING:
    from rich.console import Console

    from lorec.records import Event, Run
    from lorec.scans import Findings


def literal(text: str, longest: int = 120) -> str:
    """A stranger's text as a terminal can bear it: what is not a visible character is shown as its code.

    Titles may hold escapes that would recolour, retitle or overwrite, and marks that turn the reading order around.
    """
    shown = "".join(
        letter if letter == "\u200d" or unicodedata.category(letter) not in _UNSEEN else _code(letter)
        for letter in text[: longest + 1]
    )
    return shown if len(text) <= longest else shown[: longest - 1] + "…"


_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _code(letter: str) -> str:
    return f"\\x{ord(letter):02x}" if ord(letter) < 256 else f"\\u{ord(letter):04x}"


def readable(value: Any) -> str:
    """A number with four figures, or with its thousands apart; anything else as it is."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def show_rows(head: list[str], rows: Iterable[list[Any]], longest: int = 120) -> None:
    """A table of strangers' texts and figures; whole lines where a file or a pipe reads it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Text, never str: rich would read markup in a stranger's title.
    told = [[Text(literal("" if one is None else str(one), longest)) for one in row] for row in rows]
    about = max((len(row[0]) for row in told), default=0)
    table = Table(box=box.SIMPLE_HEAD)
    for nth, name in enumerate(head):  # what a row is about stays whole where the edge is near
        table.add_column(name, overflow="fold", min_width=None if nth else min(about, 30))
    for row in told:
        table.add_row(*row)
    _console().print(table)


def _console() -> "Console":
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 10_000  # a file or a pipe has no edge to break names at
    return console


DETECTED = (
    "ROC-AUC", "recall@1%", "recall", "F1", "genuine turned down", "interactions ROC-AUC", "seconds",
)  # fmt: skip
"""The figures of detectors that a terminal has room for."""


def show_arms(arms: Mapping[str, Mapping[str, float]]) -> None:
    """Figures of arms, a column each: as many side by side as there is room for, the others below."""
    from rich import box
    from rich.table import Table

    console = _console()
    present = [[name for name in group if any(name in one for one in arms.values())] for group in GROUPS.values()]
    named = max((len(title_of(name)) for names in present for name in names), default=0)
    for block in _blocks({arm: 2 + max(8, len(arm) + 2) for arm in arms}, console.width - named - 4):
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("")
        for arm in block:
            table.add_column(_arm_title(arm), justify="right", no_wrap=True)
        for names in present:
            for place, name in enumerate(names):
                cells = [written(name, arms[arm].get(name)) for arm in block]
                table.add_row(title_of(name), *cells, end_section=place == len(names) - 1)
        console.print(table)


def _blocks(widths: Mapping[str, int], room: int) -> Iterator[list[str]]:
    """Columns in order, in runs that are no wider than the room, one at the least."""
    block: list[str] = []
    for name, width in widths.items():
        if block and sum(widths[one] for one in block) + width > room:
            yield block
            block = []
        block.append(name)
    if block:
        yield block


def _arm_title(arm: str) -> str:
    return arm if arm in ("clean", "poisoned", "popularity") else f"poisoned\n+ {arm}"


def show_run(done: "Run") -> None:
    """The table at the end of a run, what to keep in mind, and where the files are."""
    print(f"\n{literal(done.config.name)}: what the arms are worth on genuine users' test items")
    show_arms({"popularity": done.scorecard["popularity"]} | done.arms)
    for note in done.scorecard["notes"]:
        print(f"- {literal(note, 500)}")
    print(f"\nThe record is in {done.folder}: run.json, scorecard.json, poison/, and a folder for each arm.")


def show_findings(found: "Findings", rows: int = 10) -> None:
    """What a scan found: the verdict, the worst items and users with their first reasons, and what to keep in mind."""
    import polars as pl

    from lorec.scans.learning import SUSPECT

    print(f"\n{literal(found.verdict(), 500)}\n{literal(found.would_do(), 500)}")
    for what, frame, columns in (
        ("Items that look pushed", found.items, ["item_id", "title", "suspicion", "holders", "group", "reasons"]),
        ("Users who look hired", found.users, ["user_id", "suspicion", "events", "group", "reasons"]),
    ):
        suspects = frame.filter(frame["suspicion"] >= SUSPECT).sort("suspicion", descending=True).head(rows)
        if frame is found.items and not suspects.height:  # who checks a log by hand begins here
            what = "The oddest items, the oddest first; none looks pushed, and they count nothing in training"
            odd = frame.filter((pl.col("weight") < 1) & (pl.col("reasons") != ""))
            suspects = odd.sort("suspicion", descending=True).head(rows // 2)
            columns = [name for name in columns if name != "suspicion"]  # next to nothing, all of them
        if suspects.height:
            print(f"\n{what}")
            show_rows(columns, (_short(row) for row in suspects.select(columns).iter_rows()), 200)
    if (groups := found.loud().head(rows // 2)).height:
        print("\nGroups of items that far more users took together than would by chance")
        columns = ["group", "items", "users", "together", "expected", "first", "last"]
        told = groups.select(*columns, pl.col("titles").list.head(3).list.join("; "))
        show_rows([*columns, "titles"], (_short(row) for row in told.iter_rows()), 200)
    for note in found.notes:
        print(f"- {literal(note, 500)}")


def _short(row: tuple[Any, ...]) -> list[Any]:
    """Reasons, the last, are the first two."""
    return [f"{one:.2f}" if isinstance(one, float) else one for one in row[:-1]] + ["; ".join(row[-1].split("; ")[:2])]


@contextmanager
def shown_progress() -> Iterator[Callable[["Event"], None]]:
    """A bar for each stage of a run on the terminal's error stream; plain lines where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    bars: dict[str, Any] = {}
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("at most"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def watch(event: "Event") -> None:
            if not console.is_terminal:
                if event.finished:
                    print(f"{event.stage}: {literal(event.note)}", file=sys.stderr, flush=True)
                return
            if event.stage not in bars:
                bars[event.stage] = progress.add_task(f"{event.stage:<14}", total=event.total, note="")
            note = event.note or progress.tasks[bars[event.stage]].fields["note"]
            progress.update(bars[event.stage], completed=event.done, total=event.total, note=literal(note))

        yield watch


@contextmanager
def shown_grid(arms: Mapping[str, int], parts: int) -> Iterator[Callable[[str, "Event"], None]]:
    """A bar for each cell at work and one for all, with the time left; plain lines where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    bars: dict[str, Any] = {}
    started, here = time.monotonic(), 0
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("{task.fields[note]}", markup=False),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        overall = progress.add_task("all recommenders", total=-(-sum(arms.values()) // parts), note="")

        def watch(cell: str, event: "Event") -> None:
            nonlocal here
            ended = event.finished and event.of == "arm"
            here += ended and not event.resumed
            progress.update(overall, advance=arms[cell] if event.resumed and event.of == "cell" else int(ended))
            left = progress.tasks[0].remaining or 0
            note = f"about {duration((time.monotonic() - started) / here * left)} left" if here else ""
            progress.update(overall, note=note)
            if not console.is_terminal:
                if event.finished:
                    told = f"{literal(cell)}, {event.stage}: {literal(event.note)}"
                    print(told + (f" ({note})" if ended and note else ""), file=sys.stderr, flush=True)
                return
            if event.of == "cell":
                if cell in bars:
                    progress.remove_task(bars.pop(cell))
                return
            if cell not in bars:
                bars[cell] = progress.add_task(literal(cell, 40), total=event.total, note="")
            progress.update(
                bars[cell], completed=event.done, total=event.total, note=literal(f"{event.stage} {event.note}")
            )

        yield watch


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
