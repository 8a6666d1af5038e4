"""Charts as SVG, in colours that the reader's browser turns dark; told apart by strokes and marks, too."""

import importlib.util
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lorec.data import Floats
from lorec.errors import MissingExtra
from lorec.reports.page import text

INK, SOFT = "#1f2329", "#57606b"
"""Stand for the page's colours; nothing else in a drawing has them."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7a5195", "#767676")
"""Of Okabe and Ito, for all kinds of eyes, the yellow darker and two more."""
STROKES = ("-", "--", "-.", ":")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


def can_draw() -> bool:
    """Whether the library for charts is installed (extra `report`)."""
    return importlib.util.find_spec("matplotlib") is not None


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str, *, log_x: bool = False,
    band: tuple[float, float] | None = None,
) -> str:  # fmt: skip
    """Each series' y over x; with a band, y keeps to it."""

    def draw(axes: Any) -> None:
        for place, (name, (along, up)) in enumerate(series.items()):
            axes.plot(
                along, up, label=_shown(name), color=COLOURS[place % len(COLOURS)],
                linestyle=STROKES[place // 2 % len(STROKES)], markersize=4,
                marker=MARKS[place % len(MARKS)] if len(along) < 20 else "",
            )  # fmt: skip
        axes.set(xlabel=x, ylabel=y, **({"xscale": "log"} if log_x else {}), **({"ylim": band} if band else {}))
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))

    return _drawn(draw, (7.2, 3.2))


def histogram(groups: Mapping[str, Floats], x: str, y: str) -> str:
    """How many of each group lie where between 0 and 1; a logarithmic count, so that the few are seen."""

    def draw(axes: Any) -> None:
        edges = np.linspace(0, 1, 21)
        for place, (name, values) in enumerate(groups.items()):
            counts = np.histogram(values, edges)[0]
            axes.stairs(
                counts, edges, label=_shown(name), color=COLOURS[place % len(COLOURS)], fill=place == 0,
                alpha=0.45 if place == 0 else 1, linewidth=1.8, linestyle=STROKES[place % len(STROKES)], baseline=0.5,
            )  # fmt: skip
        axes.set(xlabel=x, ylabel=y, yscale="log", ylim=(0.5, None), xlim=(0, 1))
        if len(groups) > 1:
            axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))

    return _drawn(draw, (7.2, 3.0))


def intervals(rows: Sequence[str], arms: Mapping[str, Sequence[tuple[float, float, float] | None]], x: str) -> str:
    """A mark and its interval for each row and arm; the rows stand below each other."""

    def draw(axes: Any) -> None:
        step = 0.8 / max(len(arms), 1)
        for place, (arm, values) in enumerate(arms.items()):
            there = [(row, value) for row, value in enumerate(values) if value is not None]
            middle = np.array([value[0] for _, value in there])
            ends = np.nan_to_num(
                np.abs(np.array([[value[1], value[2]] for _, value in there]).reshape(-1, 2).T - middle)
            )
            axes.errorbar(
                middle, [row - 0.4 + step * (place + 0.5) for row, _ in there], xerr=ends, label=_shown(arm),
                color=COLOURS[place % len(COLOURS)], marker=MARKS[place % len(MARKS)], markersize=5, linestyle="",
                capsize=2, linewidth=1.2,
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), [_shown(row) for row in rows])
        axes.invert_yaxis()
        axes.set(xlabel=x)
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, -2), min(high, 3))  # an interval of two seeds may reach anywhere
        axes.axvline(0, color=SOFT, linewidth=0.8)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))

    return _drawn(draw, (7.2, 1.2 + 0.16 * len(rows) * max(len(arms), 2)))


def _shown(name: str) -> str:
    """A stranger's name in a legend; one that begins with an underscore would be left out of it."""
    name = text(name)
    name = name if len(name) <= 30 else name[:29] + "…"
    return " " + name if name.startswith("_") else name


def _drawn(draw: Callable[[Any], None], size: tuple[float, float]) -> str:
    """Raises MissingExtra where the library for charts is not installed."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, NullFormatter
    except ImportError:
        raise MissingExtra("reports draw charts with matplotlib; pip install 'lorec[report]'") from None
    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "lorec", "text.parse_math": False, "font.family": "sans-serif",
        "font.size": 10, "axes.edgecolor": SOFT, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
        "text.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none",
        "figure.facecolor": "none",
    }  # fmt: skip
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that its own fonts lack: the reader's browser draws them
        figure = Figure(figsize=size, layout="constrained")
        axes: Any = figure.add_subplot()
        draw(axes)
        for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
            if scale == "log":  # powers would be set as formulas, which strangers' names must not be
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
                axis.set_minor_formatter(NullFormatter())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return _of_the_page(file.getvalue())


def _of_the_page(svg: str) -> str:
    """With the page's colours, light or dark as the reader has it."""
    style = (
        f"<style>:root{{--ink:{INK};--soft:{SOFT}}}"
        "@media (prefers-color-scheme: dark){:root{--ink:#e6edf3;--soft:#9da7b3}}</style>"
    )
    svg = svg.replace(INK, "var(--ink)").replace(SOFT, "var(--soft)")
    return re.sub(r"(<svg[^>]*>)", lambda found: found[1] + style, svg, count=1)
