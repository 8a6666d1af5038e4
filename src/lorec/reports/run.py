"""What a run's folder tells."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lorec.comparison import MAIN, REFERENCES, target_ranks
from lorec.data import Floats
from lorec.detectors import places
from lorec.figures import form_of, title_of
from lorec.records import Run, open_run
from lorec.reports.charts import histogram, lines
from lorec.reports.page import Block, Chart, Code, Page, Pairs, Section, Table
from lorec.reports.reading import calibration, flat, harm, json_of, of_users, people, roc_and_precision, table_of

USERS, ITEMS = 20, 30
"""The most suspicious users and items of each defense."""
CUTS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
"""Of T-HR@k."""
COSTS = ("epochs", "best epoch", "seconds an epoch", "training seconds", "peak MB")


def of_run(folder: Path, plugins: bool = False) -> Page:
    """Raises RunError, and what reading raises, for a folder that no run left whole."""
    run = open_run(folder, partial=True, plugins=plugins)
    titles = {item: title for item, title in _read(run, "catalog.parquet").select("item", "title").iter_rows()}
    opinions = [arm for arm in run.arms if f"{arm}/weights.parquet" in run.record["files"] and arm not in REFERENCES]
    sections = [
        Section("What the arms are worth", _arms(run)),
        Section("Exposure of the targets", _exposure(run, titles)),
        Section("Training", _training(run)),
    ]
    if opinions:
        sections.append(Section("Who is suspected", _suspected(run, opinions)))
        sections.append(Section("Who is harmed", _harmed(run, opinions)))
    for arm in opinions:
        if f"{arm}/interactions.parquet" in run.record["files"]:
            sections.append(Section(f"The worst of {arm}", _worst(run, arm, titles)))
    sections += [
        Section("What to keep in mind", [list(map(str, run.scorecard["notes"]))]),
        Section("What was asked, and how to repeat it", _asked(run)),
    ]
    return Page(
        f"Run {run.config.name}", *_verdict(run), sections,
        f"Written by lorec from a folder of lorec {run.record['lorec']}, whose files are those that the run wrote.",
    )  # fmt: skip


def _read(run: Run, name: str) -> pl.DataFrame:
    run.file(name)
    return table_of(run.folder, name).collect()


def _verdict(run: Run) -> tuple[str, bool]:
    """In one sentence; grave where the attack works and every defense leaves more than half of its success."""
    arms = run.arms
    exposed = f"T-HR@50 {arms['clean']['T-HR@50']:.4f} clean, {arms['poisoned']['T-HR@50']:.4f} poisoned"
    if not len(_read(run, "poison/profiles.parquet")):
        return "Nobody attacks: the arms show what defenses cost a clean log. One seed.", False
    if not run.scorecard["attack works"]:
        return f"The attack did not work on this recommender ({exposed}).", False
    removed = {arm: one[MAIN] for arm, one in arms.items() if MAIN in one and arm not in REFERENCES}
    if not removed:
        return f"The attack works ({exposed}), and no defense was tried.", True
    best = max(removed, key=lambda arm: removed[arm])
    hits = arms[best]["HR@10"] / max(arms["poisoned"]["HR@10"], 1e-12) - 1
    return (
        f"The attack works ({exposed}); {best} removes {removed[best]:.0%} of its success, with {hits:+.1%} of hits "
        "(HR@10) against the undefended model. One seed.",
        removed[best] < 0.5,
    )


def _arms(run: Run) -> list[Block]:
    """Every figure of every arm, an arm a row."""
    arms = {"popularity": run.scorecard["popularity"], **run.arms}
    figures = list(dict.fromkeys(name for one in arms.values() for name in one))
    head = {"arm": "", **{title_of(name): form_of(name) for name in figures}}
    rows = [(arm, *(one.get(name) for name in figures)) for arm, one in arms.items()]
    failed = [f"{arm} failed: {said}" for arm, said in run.scorecard["failed"].items()]
    return [
        Table(
            "On genuine users' test items", head, rows,
            f"T-HR@50 by chance: {run.scorecard['chance T-HR@50']:.4f}. Differences between arms may be chance.",
        ),
        *([failed] if failed else []),
    ]  # fmt: skip


def _exposure(run: Run, titles: Mapping[str, str]) -> list[Block]:
    targets, ranks = _targets(run), {arm: target_ranks(_read(run, f"{arm}/ranks.parquet")) for arm in run.arms}
    curves = {
        arm: (CUTS, [float(np.nanmean(np.where(np.isnan(table), np.nan, table <= k), axis=0).mean()) for k in CUTS])
        for arm, table in ranks.items()
    }
    head = {"item": "", "title": "", **{f"{arm}: among the first 50": ".4f" for arm in ranks}}
    rows = [
        (item, titles.get(item, ""), *(float(np.nanmean(table[:, place] <= 50)) for table in ranks.values()))
        for place, item in enumerate(targets)
    ]
    said = ", ".join(f"{arm} {up[CUTS.index(50)]:.4f}" for arm, (_, up) in curves.items())
    return [
        Chart(
            "How often the targets are among a user's first k",
            lines(curves, "k", "T-HR@k", log_x=True), f"At k = 50: {said}. Mean over targets, of genuine users.",
        ),
        Table("The targets", head, rows),
    ]  # fmt: skip


def _targets(run: Run) -> list[str]:
    run.file("poison/poison.json")
    return [str(one) for one in json_of(run.folder, "poison/poison.json")["targets"]]


def _training(run: Run) -> list[Block]:
    histories = {}
    for arm in run.arms:
        path = run.file(f"{arm}/history.jsonl")
        histories[arm] = pl.read_ndjson(path, infer_schema_length=None)
    blocks: list[Block] = []
    for name, words in (
        ("valid HR@10", "HR@10 on genuine users' validation items"),
        ("T-HR@50", "targets among the first 50, on test items, which select nothing,"),
        ("loss", "mean loss of an epoch"),
        ("turned down", "share of what is turned down"), ("calibrator", "the calibrator's loss"),
    ):  # fmt: skip
        series = {
            arm: (points["epoch"].to_list(), points[name].to_list())
            for arm, told in histories.items()
            if name in told.columns and (points := told.select("epoch", name).drop_nulls()).height
        }
        if series:
            last = ", ".join(f"{arm} {up[-1]:.4f}" for arm, (_, up) in series.items())
            blocks.append(Chart(name, lines(series, "epoch", name), f"{words} over epochs; at the end: {last}."))
    return blocks


def _suspected(run: Run, arms: list[str]) -> list[Block]:
    """Distributions of suspicion, and ROC and PR curves."""
    blocks: list[Block] = []
    roc, pr, means, told_of = {}, {}, {}, {}
    for arm in arms:
        if (said := _means_what_it_says(run, arm)) is not None:
            means[arm] = said
        told = _read(run, f"{arm}/weights.parquet").drop_nulls("suspicion")
        bad, suspicion = told["injected"].to_numpy(), told["suspicion"].to_numpy()
        likely = told["likelihood" if "likelihood" in told.columns else "suspicion"].to_numpy()
        if not len(bad) or bad.all():
            continue
        is_share = likely.min() >= 0 and likely.max() <= 1
        if not is_share:  # by ranks
            likely = places(suspicion) / max(len(bad) - 1, 1)
        blocks.append(
            Chart(
                f"Suspicion of {arm}",
                histogram(
                    {"genuine": likely[~bad]} | ({"injected": likely[bad]} if bad.any() else {}),
                    "fraud likelihood" if is_share else "suspicion, by rank", "users",
                ),
                f"{_middle(likely[bad])} injected and {_middle(likely[~bad])} genuine users. The count is logarithmic.",
            )
        )  # fmt: skip
        if bad.any():
            roc[arm], pr[arm] = roc_and_precision(suspicion, bad)
            if is_share:
                told_of[arm] = likely, bad
    if roc:
        auc = ", ".join(f"{arm} {run.arms[arm]['ROC-AUC']:.3f}" for arm in roc)
        ap = ", ".join(f"{arm} {run.arms[arm]['PR-AUC']:.3f}" for arm in roc)
        blocks.append(
            Chart("ROC", lines(roc, "genuine users accused", "fraudsters found", band=(0, 1.02)), f"Area: {auc}.")
        )
        blocks.append(Chart("Precision and recall", lines(pr, "recall", "precision", band=(0, 1.02)), f"Area: {ap}."))
    if told_of:
        blocks.append(of_users("Calibration of users", told_of))
    if means:
        errors = ", ".join(f"{arm} {run.arms[arm]['Brier']:.4f}" for arm in means)
        words = (
            f"Interactions in twentieths of what is said of them; on the diagonal a likelihood is one. Brier: {errors}."
        )
        curves = lines(means, "likelihood that an interaction is a lie", "share that are", band=(0, 1.02))
        blocks.append(Chart("Calibration", curves, words))
    return blocks or ["No defense has an opinion on users."]


def _means_what_it_says(run: Run, arm: str) -> tuple[list[float], list[float]] | None:
    """Mean likelihood and share of lies where a defense says of interactions how likely they are lies, bin by bin.

    A fraudster's other interactions are on neither side. None where it says no likelihoods.
    """
    if f"{arm}/interactions.parquet" not in run.record["files"] or "Brier" not in run.arms[arm]:
        return None
    injected = _read(run, f"{arm}/weights.parquet").select("user", "injected")
    told = _read(run, f"{arm}/interactions.parquet").join(injected, on="user")
    lies = pl.col("injected") & pl.col("item").is_in(list(_targets(run)))
    told = told.select("suspicion", "injected", lie=lies).filter(pl.col("lie") | ~pl.col("injected"))
    return calibration(told["suspicion"].to_numpy(), told["lie"].to_numpy())


def _middle(likely: Floats) -> str:
    return f"{len(likely):,} (median {np.median(likely):.3f})" if len(likely) else "0"


def _harmed(run: Run, arms: list[str]) -> list[Block]:
    """What genuine users lose by the length of their history and by the popularity of what they took."""
    rows: list[tuple[Any, ...]] = []
    for arm in arms:
        if f"{arm}/harm.parquet" in run.record["files"]:
            told = _read(run, f"{arm}/harm.parquet")
            rows += [(arm, *row) for row in told.iter_rows()]
    if not rows:
        return ["No defense turns anybody down, so nobody's harm can be counted."]
    return [harm("arm", rows)]


def _worst(run: Run, arm: str, titles: Mapping[str, str]) -> list[Block]:
    """Items and users that the defense suspects most; whether they were injected is what only the experiment knows."""
    run.file(f"{arm}/interactions.parquet")
    events = table_of(run.folder, f"{arm}/interactions.parquet")
    users = _read(run, f"{arm}/weights.parquet").head(USERS)
    items = (
        events.group_by("item")
        .agg(suspicion=pl.col("suspicion").max(), weight=pl.col("weight").mean(), interactions=pl.len())
        .sort("suspicion", "item", descending=[True, False])
        .head(ITEMS)
        .collect()
    )
    targets = _targets(run)
    rows = [
        (item, titles.get(item, ""), "yes" if item in targets else "", suspicion, weight, n)
        for item, suspicion, weight, n in items.iter_rows()
    ]
    head = {"item": "", "title": "", "a target": "", "suspicion": ".3f", "weight": ".2f", "interactions": ","}
    told: list[tuple[str, str, list[str]]] = [
        (user, f"suspicion {suspicion:.3f}, weight {weight:.2f}, " + ("injected" if injected else "genuine"), [])
        for user, weight, suspicion, injected in users.select("user", "weight", "suspicion", "injected").iter_rows()
    ]
    return [
        Table("Items", head, rows),
        "Users, worst first; what counts less in training is marked, with its suspicion:",
        people(told, events, table_of(run.folder, "catalog.parquet"), 0.5),
    ]


def _asked(run: Run) -> list[Block]:
    record = run.record
    head = {"arm": "", **{title_of(name): form_of(name) for name in COSTS}}
    costs = [(arm, *(one.get(name) for name in COSTS)) for arm, one in run.arms.items()]
    made_on = {
        "versions": ", ".join(f"{name} {value}" for name, value in record["versions"].items()),
        "machine": ", ".join(f"{name} {value}" for name, value in record["machine"].items()),
        "digest of the log": record["data"]["digest"], "digest of the poison": record["data"]["poison"],
    }  # fmt: skip
    return [
        Table("Cost", head, costs),
        Pairs(made_on),
        Pairs(flat(record["config"]), "The whole configuration"),
        Code(["lorec run " + shlex.quote(f"{run.config.name}.toml")]),
    ]
