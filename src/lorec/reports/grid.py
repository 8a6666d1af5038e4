"""What a grid's folder tells."""

import shlex
from pathlib import Path
from typing import Any

import polars as pl

from lorec.comparison import MAIN, REFERENCES, label, laid_out, varying_axes
from lorec.figures import form_of, title_of
from lorec.reports.charts import intervals, lines
from lorec.reports.page import Block, Chart, Code, Page, Pairs, Section, Table, text
from lorec.reports.reading import json_of, table_of

CELLS = 2_000
"""Recommenders that are told one by one, at most."""


def of_grid(folder: Path) -> Page:
    """Raises RunError, and what reading raises, for a folder that no grid left whole."""
    asked = json_of(folder, "grid.json")
    table, cells = (table_of(folder, f"{name}.parquet").collect() for name in ("table", "cells"))
    axes = [str(one) for one in asked["axes"]]
    sections = [
        Section("In short", _main(table, axes)),
        Section("All figures", _figures(table, axes)),
        Section("By budget", _budgets(table, axes)),
        Section("Cells", _cells(cells)),
        Section("What was asked, and how to repeat it", _asked(asked, table, cells)),
    ]
    return Page(
        f"Grid {asked['name']}", *_verdict(table, cells), [one for one in sections if one.blocks],
        "Written by lorec. Every cell's own record is in runs/; tables are here as CSV, Parquet, Markdown, LaTeX.",
    )  # fmt: skip


def _defenses(table: pl.DataFrame) -> pl.DataFrame:
    return table.filter(~pl.col("arm").is_in(REFERENCES) & pl.col(MAIN).is_not_null())


def _verdict(table: pl.DataFrame, cells: pl.DataFrame) -> tuple[str, bool]:
    """In one sentence; grave where anything failed."""
    failed = cells.filter(pl.col("error").is_not_null()).height
    done = f"{cells['run'].n_unique():,} cells, {cells.height:,} recommenders" + (
        f", {failed:,} failed" if failed else ""
    )
    mean = (
        _defenses(table)
        .group_by("arm", maintain_order=True)
        .agg(pl.col(MAIN).mean(), worst=pl.col(MAIN).min(), rows=pl.len())
        .sort(MAIN, "arm", descending=[True, False])
    )
    if not mean.height:
        return f"{done}; no defense could be judged.", bool(failed)
    arm, removed, worst, rows = mean.row(0)
    return (
        f"{done}. On average over {rows:,} rows of the table, {arm} removes {removed:.0%} of the attacks' success, at "
        f"worst {worst:.0%}.",
        bool(failed),
    )


def _label(row: dict[str, Any], varying: list[str]) -> str:
    return " ".join(label(row[axis]) for axis in varying)


def _main(table: pl.DataFrame, axes: list[str]) -> list[Block]:
    """A row for each combination, a mark for each arm; in several drawings where there are many rows."""
    told, figure, title = _defenses(table), MAIN, "Attack success removed"
    if not told.height:  # no attack worked: then what the targets are shown is all there is
        told, figure, title = table.drop_nulls("T-HR@50"), "T-HR@50", "T-HR@50"
    varying = varying_axes(table, axes)
    arms = told["arm"].unique(maintain_order=True).to_list()
    rows: dict[str, dict[str, tuple[float, float, float]]] = {}
    for row in told.iter_rows(named=True):
        value = row[figure]
        low, high = (value if row[f"{figure} {end}"] is None else row[f"{figure} {end}"] for end in ("low", "high"))
        rows.setdefault(_label(row, varying), {})[row["arm"]] = (value, low, high)
    names, blocks = list(rows), list[Block]()
    for start in range(0, len(names), 12):
        part = names[start : start + 12]
        drawn = intervals(part, {arm: [rows[name].get(arm) for name in part] for arm in arms}, figure)
        values = {arm: [rows[name][arm][0] for name in part if arm in rows[name]] for arm in arms}
        said = [f"{arm} {min(found):.3f} to {max(found):.3f}" for arm, found in values.items() if found]
        words = f"{title} of {len(part)} rows: {', '.join(said)}. The table below has every figure."
        blocks.append(Chart(f"{title}, with 95 % intervals, by {', '.join(varying)}", drawn, words))
    return blocks


def _figures(table: pl.DataFrame, axes: list[str]) -> list[Block]:
    head, rows, notes = laid_out(table, axes, short=False)
    texts = {*axes, "arm", "failed"}
    shown = {name: "" if name in texts else "n" for name in head}
    return [Table("Means over seeds", shown, [list(row) for row in rows]), notes] if rows else []


def _budgets(table: pl.DataFrame, axes: list[str]) -> list[Block]:
    """T-HR@50 by the share of fraudsters, where that varies."""
    if "share" not in axes or table["share"].n_unique() < 2:
        return []
    others = [axis for axis in axes if axis != "share" and table[axis].n_unique() > 1]
    blocks: list[Block] = []
    for _, part in table.group_by(others, maintain_order=True) if others else [((), table)]:
        series = {
            str(arm[0]): (one["share"].to_list(), one["T-HR@50"].to_list())
            for arm, one in part.drop_nulls("T-HR@50").sort("share").group_by("arm", maintain_order=True)
        }
        about = _label(part.row(0, named=True), others) or "all"
        most = "; ".join(f"{arm} {up[-1]:.4f}" for arm, (_, up) in series.items())
        blocks.append(
            Chart(
                f"T-HR@50 by budget, {about}", lines(series, "share of fraudsters", "T-HR@50"),
                f"At the largest budget: {most}.",
            )
        )  # fmt: skip
    return blocks


def _cells(cells: pl.DataFrame) -> list[Block]:
    """Every recommender: what it is worth, what it cost, why it failed."""
    figures = (
        "HR@10", "T-HR@50", MAIN, "ROC-AUC", "best epoch", "seconds an epoch", "training seconds", "peak MB",
    )  # fmt: skip
    columns = {"run": "", "arm": "", "seed": "d", **{name: form_of(name) for name in figures}, "error": ""}
    having = [name for name in columns if name in cells and cells[name].null_count() < cells.height]
    head = {title_of(name): columns[name] for name in having}
    more = f"{cells.height - CELLS:,} more are in cells.csv." if cells.height > CELLS else ""
    return [Table("Every recommender of every cell", head, cells.select(having).head(CELLS).rows(), more)]


def _asked(asked: dict[str, Any], table: pl.DataFrame, cells: pl.DataFrame) -> list[Block]:
    seconds = cells.group_by("run").agg(pl.col("cell seconds").first())["cell seconds"].sum()
    told = {
        "axes": ", ".join(map(str, asked["axes"])),
        "seeds": ", ".join(map(str, sorted(cells["seed"].unique().to_list()))),
        "arms": ", ".join(table["arm"].unique(maintain_order=True).to_list()),
        "sum of the cells' seconds": f"{seconds:,.0f}",
    }
    return [Pairs(told), Code(["lorec grid " + shlex.quote(text(asked["name"]) + ".toml")])]
