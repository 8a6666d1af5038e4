"""What a scan's folder tells."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from lorec.reports.charts import histogram
from lorec.reports.page import Block, Chart, Code, Page, Pairs, Section, Table, text
from lorec.reports.reading import flat, json_of, people, table_of
from lorec.scans.findings import LIKELY
from lorec.scans.learning import SUSPECT

ITEMS, USERS, OPENED = 100, 200, 40
"""Items and users in the tables, and users whose histories are told, at most."""
REASONS, NOTES = 20, 50
"""Of a user and of a scan; ours have fewer."""


def of_scan(folder: Path) -> Page:
    """Raises RunError, and what reading raises, for a folder that no scan left whole."""
    found = json_of(folder, "findings.json")
    users, items, groups = (table_of(folder, f"{name}.parquet") for name in ("users", "items", "groups"))
    worst_users = (
        users.filter(pl.col("suspicion") >= SUSPECT)
        .sort("suspicion", "user_id", descending=[True, False])
        .head(USERS)
        .collect()
    )
    worst_items = (
        items.filter(pl.col("suspicion") >= SUSPECT)
        .sort("suspicion", "item_id", descending=[True, False])
        .head(ITEMS)
        .collect()
    )
    left_out = items.filter(pl.col("weight") < 1).sort("holders", "item_id", descending=[True, False]).collect()
    titles = items.select(pl.col("item_id").alias("item"), "title")
    sections = [
        Section("Items that look pushed", _items(worst_items, found["figures"])),
        Section("How they hang together", _groups(groups.head(50).collect())),
        Section(
            "Users who look hired",
            _users(
                worst_users,
                found["figures"],
                table_of(folder, "weights.parquet").rename({"user_id": "user", "item_id": "item"}),
                titles,
            ),
        ),
        Section("What the weights leave out", _left_out(left_out, found["figures"])),
        Section("How suspicion is spread", _spread(users, items)),
        Section("What the evidence is worth here", _worth(found["models"])),
        Section("What to keep in mind", [list(map(str, found["notes"]))[:NOTES]]),
        Section("What was asked, and how to repeat it", _asked(found, folder)),
    ]
    name = found["log"]["dataset"].get("source") or "a log"
    return Page(
        f"Scan of {name}", str(found["verdict"]), float(found["alarm"]) >= LIKELY, sections,
        f"Written by lorec {found['lorec']}. All users, items and interactions are in the Parquet files beside it.",
        lead=[str(found["would do"])],
    )  # fmt: skip


def _items(worst: pl.DataFrame, figures: Mapping[str, float]) -> list[Block]:
    if not worst.height:
        return ["No item looks pushed."]
    head = {
        "item_id": "", "title": "", "suspicion": ".2f", "holders": ",", "group": "", "weight": ".2f", "reasons": "",
    }  # fmt: skip
    rows = worst.with_columns(group=pl.when(pl.col("group") > 0).then(pl.col("group").cast(pl.String)))
    return [
        Table(
            f"The {worst.height:,} worst of {int(figures['items that look pushed']):,} items that look pushed, of "
            f"{int(figures['items']):,}", head, rows.select(list(head)).rows(),
            "suspicion: how likely the item is pushed. weight: what its interactions count in training, on average, "
            "those of users whom an analyst judged aside.",
        )
    ]  # fmt: skip


def _groups(groups: pl.DataFrame) -> list[Block]:
    if not groups.height:
        return ["There is no group."]
    head = {
        "group": "d", "suspicion": ".2f", "items": ",", "users": ",", "together": ",", "expected": ",.1f", "first": "",
        "last": "", "titles": "",
    }  # fmt: skip
    rows = groups.with_columns(titles=pl.col("titles").list.eval(pl.element().str.slice(0, 60)).list.join(" · "))
    return [
        Table(
            "Items that look pushed or count nothing, and share holders", head, rows.select(list(head)).rows(),
            "together: users with two or more of the items (of one item, its holders); expected: how many that would "
            "be by chance.",
        )
    ]  # fmt: skip


def _users(
    worst: pl.DataFrame, figures: Mapping[str, float], events: pl.LazyFrame, titles: pl.LazyFrame
) -> list[Block]:
    if not worst.height:
        return ["No user looks hired."]
    head = {"user_id": "", "suspicion": ".2f", "events": ",", "weight": ".2f", "group": "", "reasons": ""}
    in_short = pl.col("reasons").str.split("; ").list.head(2).list.join("; ")
    rows = worst.with_columns(in_short, group=pl.when(pl.col("group") > 0).then(pl.col("group").cast(pl.String)))
    opened = [
        (name, f"suspicion {suspicion:.2f}, {n:,} interactions", [one for one in reasons.split("; ") if one][:REASONS])
        for name, suspicion, n, reasons in worst.head(OPENED)
        .select("user_id", "suspicion", "events", "reasons")
        .iter_rows()
    ]
    return [
        Table(
            f"The {worst.height:,} worst of {int(figures['users that look hired']):,} users who look hired, of "
            f"{int(figures['users']):,}", head, rows.select(list(head)).rows(),
        ),
        f"What the worst {len(opened)} did, oldest first; what looks pushed or counts nothing is marked:",
        people(opened, events, titles, SUSPECT),
    ]  # fmt: skip


def _left_out(items: pl.DataFrame, figures: Mapping[str, float]) -> list[Block]:
    """What training with the weights would not learn, whether it looks pushed or not."""
    if not items.height:
        return ["Nothing: every interaction counts in full."]
    head = {"item_id": "", "title": "", "holders": ",", "weight": ".2f", "suspicion": ".2f", "reasons": ""}
    innocent = items.filter(pl.col("suspicion") < SUSPECT).height
    return [
        f"{float(figures['interactions turned down']):.1%} of the interactions, with {items.height:,} of "
        f"{int(figures['items']):,} items. {innocent:,} of these don't look pushed, and are left out in case there is "
        "an attack: look here for what you would rather keep.",
        Table(
            f"The {min(items.height, ITEMS):,} of them with the most holders", head,
            items.head(ITEMS).select(list(head)).rows(),
        ),
    ]  # fmt: skip


def _spread(users: pl.LazyFrame, items: pl.LazyFrame) -> list[Block]:
    return [
        Chart(
            f"Suspicion of {what}",
            histogram({what: said}, "suspicion", f"{what}, in twentieths"),
            f"{int((said >= SUSPECT).sum()):,} of {len(said):,} {what} have {SUSPECT} or more, "
            f"{int((said >= 0.5).sum()):,} one half or more. The count is logarithmic.",
        )
        for what, frame in (("users", users), ("items", items))
        if len(said := frame.select("suspicion").collect()["suspicion"].to_numpy())
    ]


def _worth(models: list[dict[str, Any]]) -> list[Block]:
    rows = [
        (what, name, float(slope))
        for what, model in zip(("items", "users"), models, strict=True)
        for name, slope in model["slopes"].items()
    ]
    return [
        "Learned on attacks that were synthesised into this very log. The log-odds of a user or item rise by the slope "
        "for each unit of its evidence; 0 is evidence that told nothing of the attacks.",
        Table("Slopes of the two models", {"of": "", "evidence": "", "slope": ".2f"}, rows),
    ]


def _asked(found: Mapping[str, Any], folder: Path) -> list[Block]:
    log, figures = found["log"]["dataset"] | {"digest": found["log"]["digest"]}, found["figures"]
    said = {
        "log": log.get("source"), "catalogue": log.get("items"),
        "columns": ", ".join(f"{role} = {name}" for role, name in log.get("columns", {}).items()),
        **{name: f"{int(figures[name]):,}" for name in ("users", "items", "interactions")},
        **flat(found["asked"]), "trials": f"{int(figures['trials'])}",
        "digest of the log": log["digest"], "took": f"{figures['seconds']:.0f} s",
    }  # fmt: skip
    path = json.dumps(f"{text(folder.resolve().name)}/weights.parquet", ensure_ascii=False)  # TOML quotes like JSON
    return [
        Pairs({name: value for name, value in said.items() if value not in ("", "None", None)}),
        "The same command on the same log gives the same findings. Training with the weights, in a run file:",
        Code(["[[defenses]]", 'name = "weighted"', f"path = {path}"]),
    ]
