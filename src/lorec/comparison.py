"""What many runs say together: means with intervals, paired tests, what is not distinguishable from the best; tables.

Two sources of chance are kept apart. Over *seeds* (new targets, new weights, new ties) figures get intervals of
Student's t and differences are tested in pairs, seed by seed. Where there is one seed only, *users* are drawn again
(a paired bootstrap: the same users for both arms); that says nothing about other targets, and tables say so.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from lorec.data import Floats
from lorec.errors import ConfigError
from lorec.figures import title_of, written
from lorec.files import replacing

__all__ = [
    "FORMATS",
    "bootstrap",
    "exposed",
    "holm",
    "interval",
    "label",
    "laid_out",
    "paired",
    "summary",
    "target_ranks",
    "varying_axes",
    "write_table",
]

LEVEL = 0.95
"""Of every interval; tests reject below 1 - LEVEL."""


# ------------------------------------------------------------------------------------------------------ statistics


def interval(values: Sequence[float] | Floats, level: float = LEVEL) -> tuple[float, float, float]:
    """Mean and Student's t interval of independent values; without width (not a number) for fewer than two."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return mean, mean - half, mean + half


def paired(one: Sequence[float] | Floats, other: Sequence[float] | Floats) -> float:
    """Two-sided p of a paired t-test; 1 where all pairs are equal. Raises ConfigError below two pairs."""
    apart = np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    if len(apart) < 2:
        raise ConfigError(f"{len(apart)} pairs can't be tested; give two seeds or more")
    if np.allclose(apart, apart[0], rtol=0, atol=1e-12):
        return 1.0 if abs(apart[0]) < 1e-12 else 0.0
    return float(stats.ttest_1samp(apart, 0.0).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """p values of a family of tests, adjusted so that any wrong rejection is as rare as a single test's (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    steps = np.array(p, dtype=np.float64)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return [float(one) for one in adjusted]


@dataclass(frozen=True)
class Resampled:
    """What a bootstrap says of a statistic."""

    low: float
    high: float
    p: float
    """Two-sided, of the statistic being 0."""


def bootstrap(
    users: Floats, statistic: Callable[[Floats], Floats], seed: int = 0, times: int = 2_000, level: float = LEVEL
) -> Resampled:
    """Draw users again and again: `users` [users, columns] are their figures, `statistic` maps means [times, columns].

    Figures of one user stay together, so arms are compared on the same users. Percentile interval. Equal rows are
    drawn by their count (multinomial), which is the same and takes no time.
    """
    rows, counts = np.unique(users, axis=0, return_counts=True)
    rng, block = np.random.default_rng(seed), max(1, 10_000_000 // len(rows))
    sizes = [min(block, times - start) for start in range(0, times, block)]
    drawn = (rng.multinomial(len(users), counts / len(users), size=size) @ rows for size in sizes)
    values = statistic(np.concatenate(list(drawn)) / len(users))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    p = 2 * min(float((values <= 0).mean()), float((values >= 0).mean()))
    return Resampled(float(low), float(high), min(1.0, max(p, 1 / times)))


def target_ranks(users: pl.DataFrame) -> Floats:
    """[users, targets]: of a scorecard's users; not a number where a user has the target."""
    ranks = users["target ranks"].to_list()
    return np.array([[np.nan if one is None else one for one in row] for row in ranks], dtype=np.float64)


def exposed(users: pl.DataFrame, k: int = 50) -> Floats:
    """[users]: of a scorecard's users, each one's part in T-HR@k, whose mean it is."""
    table = target_ranks(users)
    absent = ~np.isnan(table)
    share = absent.mean(axis=0)
    parts: Floats = ((table <= k) / np.where(share > 0, share, 1)).mean(axis=1)
    return parts


# ---------------------------------------------------------------------------------------------------------- tables


MAIN = "success removed"
BETWEEN = ("success removed", "HR@10 change, %")
"""Differences between arms: an interval that holds 0 resolves nothing."""
SHOWN = (
    MAIN, "T-HR@50", "HR@10", "NDCG@10", "HR@10 change, %", "overlap@10", "ROC-AUC", "recall@1%",
    "interactions ROC-AUC", "interactions recall", "genuine interactions turned down",
)  # fmt: skip
"""The figures of a table, the main one first."""
IN_SHORT = ("success removed", "T-HR@50", "HR@10", "HR@10 change, %", "ROC-AUC", "genuine interactions turned down")
"""Those that a terminal has room for."""
REFERENCES = ("clean", "poisoned", "oracle")
"""Arms that no defense of the field competes with."""


def summary(cells: pl.DataFrame, axes: Sequence[str], apart: Callable[[str, str, str], float]) -> pl.DataFrame:
    """One row for each combination of `axes` and each arm: means over seeds and what can be said about them.

    `cells` has a row for each arm of each run: the axes, `seed`, `run`, `arm`, `error`, `judged kind is known`, and
    figures; a figure may bring bounds of its own over users (`HR@10 low`), which stand in where one run has it.
    `apart(run, arm, other)` is the p of two arms of a run exposing targets equally, for the same case. Columns for each
    figure: its name, `... low`, `... high`, and `... runs`, how many have it; `best`, the highest mean of attack
    success removed among defenses, `tied`, those not distinguishable from it, and `tested`, over what.
    """
    rows: list[dict[str, Any]] = []
    for values, group in cells.group_by(list(axes), maintain_order=True):
        together = [_arm(group.filter(pl.col("arm") == arm)) for arm in group["arm"].unique(maintain_order=True)]
        _mark(together, group, apart)
        rows += [dict(zip(axes, values, strict=True)) | one for one in together]
    told = pl.DataFrame(rows, infer_schema_length=None)
    return told.cast({"error": pl.String, "tested": pl.String, "judged kind is known": pl.Boolean})


def _arm(rows: pl.DataFrame) -> dict[str, Any]:
    """The figures of one arm over its seeds."""
    good = rows.filter(pl.col("error").is_null())
    bad = rows.filter(pl.col("error").is_not_null())
    errors = [f"seed {seed}: {said}" for seed, said in bad.select("seed", "error").iter_rows()]
    known = rows["judged kind is known"].drop_nulls()
    told: dict[str, Any] = {
        "arm": rows["arm"][0],
        "seeds": good.height,
        "judged kind is known": bool(known.any()) if len(known) or not good.height else None,
        "error": "; ".join(errors) or None,
        "best": False,
        "tied": False,
        "tested": None,
    }
    for name in SHOWN:
        having = good.filter(pl.col(name).is_not_null()) if name in good else good.clear()
        mean, low, high = interval(having[name].to_numpy()) if having.height else (None, None, None)
        if having.height == 1 and f"{name} low" in having:
            low, high = having[f"{name} low"][0], having[f"{name} high"][0]
        for key, value in ((name, mean), (f"{name} low", low), (f"{name} high", high)):
            told[key] = None if value is None or np.isnan(value) else value
        told[f"{name} runs"] = having.height
    return told


def _mark(arms: list[dict[str, Any]], group: pl.DataFrame, apart: Callable[[str, str, str], float]) -> None:
    """Find the best defense, and those that can't be told from it, among those that have every run that any has."""
    if MAIN not in group:
        return
    of = {one["arm"]: group.filter(pl.col("arm") == one["arm"]).drop_nulls(MAIN).sort("run") for one in arms}
    runs = {name: set(frame["run"]) for name, frame in of.items() if name not in REFERENCES}
    every = set().union(*runs.values())
    able = [one for one in arms if every and runs.get(one["arm"]) == every]
    if not able:
        return
    best = max(able, key=lambda one: one[MAIN])
    others = [one for one in able if one is not best]
    mine = of[best["arm"]]
    if len(every) > 1:
        p = [paired(mine[MAIN].to_numpy(), of[one["arm"]][MAIN].to_numpy()) for one in others]
    else:
        p = [apart(mine["run"][0], best["arm"], one["arm"]) for one in others]
    best["best"] = True
    for one, value in zip(others, holm(p), strict=True):
        one["tied"] = value >= 1 - LEVEL
    for one in able:
        one["tested"] = "seeds" if len(every) > 1 else "users"


FORMATS = ("md", "tex", "csv", "parquet")


def write_table(table: pl.DataFrame, path: Path, axes: Sequence[str], notes: Sequence[str] = ()) -> None:
    """Write a summary in the format that the path's suffix names: Markdown and LaTeX for readers, else for programs.

    Text is escaped for each. Raises ConfigError for another suffix.
    """
    kind = path.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise ConfigError(f"{path.name} ends in none of .{', .'.join(FORMATS)}; choose one of these")
    with replacing(path) as temporary:
        if kind == "parquet":
            table.write_parquet(temporary)
        elif kind == "csv":
            _for_spreadsheets(table).write_csv(temporary)
        else:
            head, body, lines = _laid_out(table, axes, SHOWN)
            write = _markdown if kind == "md" else _latex
            temporary.write_text(write(head, body, [*lines, *notes]), encoding="utf-8")


def _for_spreadsheets(table: pl.DataFrame) -> pl.DataFrame:
    """Texts that a spreadsheet would take for a formula begin with an apostrophe, which makes them text."""
    formula = pl.col(pl.String).str.contains(r"^[=+\-@\t\r]")
    return table.with_columns(pl.when(formula).then("'" + pl.col(pl.String)).otherwise(pl.col(pl.String)).name.keep())


@dataclass(frozen=True)
class _Text:
    """A cell of a table for readers."""

    text: str
    bold: bool = False
    mark: str = ""
    mean: str = ""
    """Of a figure, which no stranger wrote: the text without its bounds."""

    def in_short(self) -> str:
        """A figure without its bounds, but not without its doubts."""
        doubt = "?" if self.mean and self.text.endswith("?") else ""
        return (self.mean or self.text) + doubt + self._stars()

    def marked(self) -> str:
        """The whole text, and whether it is the best."""
        return self.text + (" " if self._stars() else "") + self._stars()

    def _stars(self) -> str:
        return "*" if self.bold else self.mark


def laid_out(
    table: pl.DataFrame, axes: Sequence[str], short: bool = True
) -> tuple[list[str], list[list[str]], list[str]]:
    """Head, rows and notes of a summary, the best with a star: in short, a few figures without bounds; else all."""
    head, body, notes = _laid_out(table, axes, IN_SHORT if short else SHOWN)
    rows = [[one.in_short() if short else one.marked() for one in row] for row in body]
    notes = [note.replace("Bold:", "*:") for note in notes]
    return head, rows, [note for note in notes if not short or not note.startswith("Means")]


def _laid_out(
    table: pl.DataFrame, axes: Sequence[str], figures: Iterable[str]
) -> tuple[list[str], list[list[_Text]], list[str]]:
    """Head, cells and notes of a table for readers; what never varies is said once, in the notes."""
    varying = varying_axes(table, axes)
    shown = [name for name in figures if name in table and table[name].null_count() < table.height]
    body = []
    for row in table.iter_rows(named=True):
        known = {True: " (known)", False: "", None: " (kind not known)"}[row["judged kind is known"]]
        cells = [_Text(label(row[axis]) + (known if axis == "attack" else "")) for axis in varying]
        arm = row["arm"] + (known if "attack" not in varying else "")
        cells += [_Text(arm), _Text(str(row["seeds"]))]
        for name in shown:
            best, tied = (row[mark] and name == MAIN for mark in ("best", "tied"))
            mean = written(name, row[name])
            cells.append(_Text(mean + _bounds(row, name), best, "=" if tied else "", mean))
        body.append([*cells, _Text(row["error"] or "")])
    head = [*varying, "arm", "seeds", *map(title_of, shown), "failed"]
    if not any(row[-1].text for row in body):
        head, body = head[:-1], [row[:-1] for row in body]
    notes = [f"{axis}: {label(table[axis][0])}" for axis in axes if axis not in varying]
    cells_text = " ".join(cell.text for row in body for cell in row)
    if "±" in cells_text:
        notes.append("Means over seeds ± half a 95 % interval of Student's t; (n): over n runs, the others lack it.")
    if "[" in cells_text:
        notes.append("[ ]: 95 % over users, drawn again: one run, so nothing is said about other targets.")
    tested = table["tested"].drop_nulls().unique()
    if table["tied"].any() or table["best"].any():
        tests = {"seeds": "paired t-tests over seeds", "users": "a paired bootstrap over users of T-HR@50"}
        test = " or, where one run has it, ".join(tests[one] for one in sorted(tested))
        notes.append(f"Bold: the best defense by {MAIN}; =: not distinguishable from it ({test}, Holm, 5 %).")
    if "?" in cells_text:
        notes.append("?: not resolved, the interval holds 0, or there is none.")
    if table["judged kind is known"].any():
        notes.append(
            "(known): the judged kind, or one that it is mixed of, was among the known fakes: easier than in life."
        )
    return head, body, notes


def varying_axes(table: pl.DataFrame, axes: Sequence[str]) -> list[str]:
    """The axes that tell rows apart, or else the first."""
    return [axis for axis in axes if table[axis].n_unique() > 1] or list(axes[:1])


def label(value: Any) -> str:
    """An axis' value for readers."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _bounds(row: Mapping[str, Any], name: str) -> str:
    """A figure's interval; a question mark where it resolves nothing."""
    mean, low, high = row[name], row[f"{name} low"], row[f"{name} high"]
    runs = row[f"{name} runs"]
    if mean is None:
        return ""
    few = f" ({runs})" if runs < row["seeds"] else ""
    unsure = "?" if name in BETWEEN and (low is None or low <= 0 <= high) else ""
    if low is None:
        return few + unsure
    around = f" ± {written(name, high - mean)}" if runs > 1 else f" [{written(name, low)}, {written(name, high)}]"
    return around + few + unsure


def _markdown(head: list[str], body: list[list[_Text]], notes: Sequence[str]) -> str:
    def escaped(text: str) -> str:
        # A stranger's name must neither end its cell nor become a tag, a link or an emphasis.
        return re.sub(r"([\\`*_{}\[\]<>#|~!$&])", r"\\\1", " ".join(text.split()))

    def cell(one: _Text) -> str:
        text = one.text if one.mean else escaped(one.text)
        return (f"**{text}**" if one.bold else text) + (f" {one.mark}" if one.mark else "")

    texts = [not all(re.match(r"-?[\d.]|$", row[place].text) for row in body) for place in range(len(head))]
    lines = ["| " + " | ".join(escaped(name) for name in head) + " |"]
    lines.append("| " + " | ".join("---" if text else "---:" for text in texts) + " |")
    lines += ["| " + " | ".join(map(cell, row)) + " |" for row in body]
    return "\n".join([*lines, "", *(f"- {escaped(note)}" for note in notes)]) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "±": r"$\pm$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def _latex(head: list[str], body: list[list[_Text]], notes: Sequence[str]) -> str:
    def escaped(text: str) -> str:
        return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))

    def cell(one: _Text) -> str:
        text = escaped(one.text)
        text = text and "{" + text + "}" if text.startswith("[") else text  # after \\ a bracket would be a length
        return (rf"\textbf{{{text}}}" if one.bold else text) + (rf"\,${one.mark}$" if one.mark else "")

    texts = [not all(re.match(r"-?[\d.]|$", row[place].text) for row in body) for place in range(len(head))]
    lines = [
        "% needs \\usepackage{booktabs}",
        rf"\begin{{tabular}}{{{''.join('l' if text else 'r' for text in texts)}}}",
        r"\toprule",
        " & ".join(escaped(name) for name in head) + r" \\",
        r"\midrule",
        *(" & ".join(map(cell, row)) + r" \\" for row in body),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join([*lines, *("% " + " ".join(note.split()) for note in notes)]) + "\n"
