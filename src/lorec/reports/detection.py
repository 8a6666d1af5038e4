"""What the folder of `lorec detect` tells: how right detectors are, whom they suspect and why, and whom they harm."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lorec.figures import form_of, title_of
from lorec.reports.charts import lines
from lorec.reports.page import Block, Chart, Page, Section, Table
from lorec.reports.reading import harm, json_of, of_users, roc_and_precision, table_of

WORST = 30
"""Users and items of each detector in its tables, at most."""


def of_detection(folder: Path) -> Page:
    """Raises what reading raises for a folder that `lorec detect` did not leave whole."""
    found = json_of(folder, "judged.json")
    figures: dict[str, dict[str, float]] = found["detectors"]
    users, items = (table_of(folder, f"{name}.parquet").collect() for name in ("users", "items"))
    pushed = items.filter("pushed")
    sections = [
        Section("How right they are", _figures(figures)),
        Section("Curves", _curves(users, figures)),
        Section("Where the targets stand", _places(items, pushed, [one for one in figures if one in items.columns])),
        *(Section(f"The worst of {name}", _worst(users, items, name)) for name in figures),
    ]
    if (folder / "harm.parquet").exists():
        sections.append(Section("Who is harmed", [harm("detector", table_of(folder, "harm.parquet").collect().rows())]))
    sections.append(Section("What to keep in mind", [list(map(str, found["notes"]))]))
    able = {name: one["ROC-AUC"] for name, one in figures.items() if "ROC-AUC" in one}
    best = max(able, key=lambda name: able[name], default=None)
    verdict = (
        f"Of {len(figures)} detectors {best} tells {int(users['injected'].sum()):,} injected users best from "
        f"{int((~users['injected']).sum()):,} genuine ones: ROC-AUC {able[best]:.3f}. One seed."
        if best is not None
        else "Nobody attacks: the figures are false alarms."
    )
    return Page(
        "Detectors", verdict, False, sections, "Written by lorec. All users and items are in the Parquet files."
    )


def _figures(figures: dict[str, dict[str, float]]) -> list[Block]:
    names = list(dict.fromkeys(name for one in figures.values() for name in one))
    head = {"detector": "", **{title_of(name): form_of(name) for name in names}}
    rows = [(detector, *(one.get(name) for name in names)) for detector, one in figures.items()]
    return [Table("By the experiment's labels", head, rows)]


def _curves(users: pl.DataFrame, figures: dict[str, dict[str, float]]) -> list[Block]:
    """ROC, precision and recall; calibration of those whose scores of users are likelihoods."""
    bad = users["injected"].to_numpy()
    if not bad.any() or bad.all():
        return ["Nobody was injected, so there is nothing to tell apart."]
    both = {name: roc_and_precision(users[name].to_numpy().astype(np.float64), bad) for name in figures}
    areas = {key: ", ".join(f"{name} {one[key]:.3f}" for name, one in figures.items()) for key in ("ROC-AUC", "PR-AUC")}
    roc = lines(
        {name: one for name, (one, _) in both.items()}, "genuine users accused", "fraudsters found", band=(0, 1.02)
    )
    precise = lines({name: one for name, (_, one) in both.items()}, "recall", "precision", band=(0, 1.02))
    told: list[Block] = [
        Chart("ROC", roc, f"Area: {areas['ROC-AUC']}."),
        Chart("Precision and recall", precise, f"Area: {areas['PR-AUC']}."),
    ]
    scores = {name: users[name].to_numpy().astype(np.float64) for name in figures}
    likely = {name: (one, bad) for name, one in scores.items() if one.min() >= 0 and one.max() <= 1}
    if likely:
        told.append(of_users("Calibration", likely))
    return told


def _places(items: pl.DataFrame, pushed: pl.DataFrame, names: list[str]) -> list[Block]:
    """Of each target its place among all items, behind those of the same score."""
    if not names or not pushed.height:
        return ["No detector has an opinion on items, or nothing is pushed."]
    head = {"item": "", "title": "", **dict.fromkeys(names, ",")}
    scores = {name: items[name].to_numpy() for name in names}
    rows: list[tuple[Any, ...]] = [
        (one["item"], one.get("title") or "", *(int((scores[name] >= one[name]).sum()) for name in names))
        for one in pushed.iter_rows(named=True)
    ]
    return [Table(f"Places of the targets among {items.height:,} items, 1 the most suspicious", head, rows)]


def _worst(users: pl.DataFrame, items: pl.DataFrame, name: str) -> list[Block]:
    worst = users.sort(name, "user", descending=[True, False]).head(WORST)
    accuses = worst[f"{name} accuses"].to_list() if f"{name} accuses" in worst.columns else [None] * worst.height
    head = {"user": "", "injected": "", "accused": "", "suspicion": ".4g", "reasons": ""}
    rows = [
        (user, "yes" if injected else "", "yes" if accused else "", score, reasons)
        for user, injected, accused, score, reasons in zip(
            worst["user"], worst["injected"], accuses, worst[name], worst[f"{name} reasons"], strict=True
        )
    ]
    blocks: list[Block] = [Table(f"Users, by {name}", head, rows, f"{worst['injected'].sum()} of these were injected.")]
    if name in items.columns:
        most = items.sort(name, "item", descending=[True, False]).head(WORST)
        titles = most["title"].fill_null("") if "title" in most.columns else [""] * most.height
        goods = zip(most["item"], titles, most["pushed"], most[name], most[f"{name} reasons"], strict=True)
        rows = [(item, title, "yes" if one else "", score, reasons) for item, title, one, score, reasons in goods]
        head = {"item": "", "title": "", "pushed": "", "suspicion": ".4g", "reasons": ""}
        blocks.append(Table(f"Items, by {name}", head, rows))
    return blocks
