"""Look at a log before training on it: what it holds, and what may surprise."""

import unicodedata
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

from lorec.data import Dataset, Protocol, leave_two_out
from lorec.errors import DataError

MISSING = ("null", "nan", "none", "n/a", "na", "")
"""Ids that programs write where there was none."""
EARLIEST = 631_152_000
"""Seconds since 1970; no log of clicks is older than 1990."""
FEW_ITEMS = 500
"""Of a log: with fewer, a tenth of all items or more are in a list of 50."""


def statistics(dataset: Dataset) -> dict[str, Any]:
    """Counts, lengths, ties, repeats, missing texts and the span of time of a log as it is read.

    Raises DataError for an empty log.
    """
    log = dataset.interactions
    if log.is_empty():
        raise DataError(f"{dataset.name}: the log is empty; nothing to look at")
    lengths = log.group_by("user").len()["len"]
    popularity = log.group_by("item").len()["len"]
    titles = _titles_of_the_log(dataset)
    found: dict[str, Any] = {
        "interactions": log.height,
        "users": len(lengths),
        "items": len(popularity),
        "density": log.height / (len(lengths) * len(popularity)),
        "events a user: mean": float(lengths.mean()),  # type: ignore[arg-type]
        "events a user: least, median, most": _spread(lengths),
        "events an item: least, median, most": _spread(popularity),
        "users shorter than 3": int((lengths < 3).sum()),
        "repeated user-item pairs": log.height - log.select("user", "item").n_unique(),
        "items without text": int(titles["title"].is_null().sum()),
        "texts that several items share": int(titles["title"].drop_nulls().is_duplicated().sum()),
    }
    if "time" in log.columns:
        ordered = log.sort("user", "time")
        neighbours = (ordered["user"] == ordered["user"].shift()).fill_null(False)
        tied = neighbours & (ordered["time"] == ordered["time"].shift()).fill_null(False)
        found["share of neighbouring events at one time"] = float(tied.sum() / max(int(neighbours.sum()), 1))
        times, unit = log["time"], _unit(log["time"])
        found["time: first, last"] = ", ".join(moment(int(one), unit) for one in (times.min(), times.max()))  # type: ignore[arg-type]
    return found | {name: str(dataset.record[name]) for name in ("licence", "citation") if name in dataset.record}


def warnings_of(dataset: Dataset) -> list[str]:
    """What may surprise in training, each as one sentence. Raises DataError where no user would be left."""
    found = statistics(dataset)
    leave_two_out(dataset, Protocol())
    remarks = []
    if "time" not in dataset.interactions.columns:
        remarks.append("There is no time: the order of the file is taken for the order of events.")
    tied = found.get("share of neighbouring events at one time", 0.0)
    if tied > 0.05:
        remarks.append(
            f"{tied:.0%} of neighbouring events of a user share a time; a seeded key orders them (split.ties)."
        )
    if short := found["users shorter than 3"]:
        remarks.append(f"{short:,} users have fewer than 3 events and are dropped: leaving two out needs 3.")
    if repeats := found["repeated user-item pairs"]:
        remarks.append(f"{repeats:,} events repeat an item of the same user; the first is kept (split.repeats).")
    if found["items without text"] == found["items"] and dataset.items.height:
        remarks.append(why_untold(dataset))
    elif untold := found["items without text"]:
        remarks.append(f"{untold:,} of {found['items']:,} items have no text; an encoder gives them zero vectors.")
    if shared := found["texts that several items share"]:
        remarks.append(f"{shared:,} items share their text with another; an encoder can't tell them apart.")
    if found["items"] < FEW_ITEMS:
        remarks.append(
            f"{found['items']:,} items are few: {min(1, 50 / found['items']):.0%} of them are in any list of 50, so "
            "T-HR@50 says little."
        )
    remarks += oddities(dataset)
    if odd := _unprintable(_titles_of_the_log(dataset)["title"]):
        remarks.append(f"{odd:,} titles hold control or formatting characters, which are shown as codes.")
    return remarks


def why_untold(dataset: Dataset) -> str:
    """Why a catalogue that is there has no title for any item of the log, as a sentence."""
    mine, theirs = (frame["item"].cast(pl.String) for frame in (dataset.interactions, dataset.items))
    if not mine.unique().is_in(theirs.implode()).any():
        return (
            f"None of the catalogue's {len(theirs):,} ids is in the log: it has ids like {theirs[0]!r}, the log like "
            f"{mine[0]!r}; are user and item swapped, or is the catalogue another one's?"
        )
    columns = ", ".join(one for one in dataset.items.columns if one not in ("item", "title"))
    return (
        "The catalogue has the log's items and no title for any of them"
        f"{f' (it also has: {columns}); name the column of titles, as in --column title=NAME' if columns else ''}."
    )


def oddities(dataset: Dataset) -> list[str]:
    """What looks like a fault of the export, each as one sentence: rows twice, ids alike, late dates."""
    log, remarks = dataset.interactions, []
    if twice := log.height - log.n_unique():
        when = ", to the moment" if "time" in log.columns else "; without times a second purchase looks the same"
        remarks.append(f"{twice:,} rows stand there twice or more{when}; an export may have doubled them.")
    for role in ("user", "item"):
        ids = log[role].unique().cast(pl.String)
        if missing := ids.filter(ids.str.strip_chars().str.to_lowercase().is_in(MISSING)).sort().to_list():
            held = int(log[role].cast(pl.String).is_in(missing).sum())
            remarks.append(
                f"{held:,} rows have the {role} id {missing[0]!r}, which may stand for one that is missing; it counts "
                "as an id."
            )
        if alike := len(ids) - ids.str.strip_chars().str.to_lowercase().n_unique():
            remarks.append(
                f"{alike:,} {role} ids are another one's but for blanks or capitals; they count as different. Where "
                "they are one's, mend them first: histories that are torn apart look honest."
            )
    return remarks + _odd_times(log)


def _odd_times(log: pl.DataFrame) -> list[str]:
    """Times that no clock shows, by the unit that most of the log's are in."""
    if "time" not in log.columns or not (unit := _unit(log["time"])):
        return []
    times, now, remarks = log["time"], datetime.now(UTC).timestamp(), []
    if early := int((times < EARLIEST * unit).sum()):
        remarks.append(
            f"{early:,} interactions lie before 1990, the first at {moment(int(times.min()), unit)}, as "  # type: ignore[arg-type]
            "missing times do that were written as 0; they count as the oldest."
        )
    if late := int((times > now * unit).sum()):
        last = moment(int(times.max()), unit)  # type: ignore[arg-type]
        remarks.append(
            f"{late:,} interactions lie in the future, the last at {last}; is the clock right, and all times in one "
            "unit?"
        )
    return remarks


def _unit(times: pl.Series) -> int:
    """That of most of a log, as `_per_second` has it: a single time may be anything."""
    return _per_second(int(times.median() or 0))  # type: ignore[arg-type]


def _titles_of_the_log(dataset: Dataset) -> pl.DataFrame:
    ids = dataset.interactions.select(pl.col("item").unique().cast(pl.String))
    known = dataset.items.select(pl.col("item").cast(pl.String), pl.col("title").replace("", None))
    return ids.join(known, on="item", how="left")


def _spread(values: pl.Series) -> str:
    least, median, most = np.quantile(values.to_numpy(), [0, 0.5, 1])
    return f"{least:.0f}, {median:.0f}, {most:.0f}"


def moment(time: int, unit: int | None = None) -> str:
    """A date where the number can be one, in seconds to nanoseconds since 1970 or of a known unit; else the number.

    Midnight goes unsaid: most logs that have it know days only.
    """
    per_second = _per_second(time) if unit is None else unit
    try:
        date = datetime.fromtimestamp(time // per_second, UTC)
    except (ZeroDivisionError, ValueError, OverflowError, OSError):  # none, or beyond the calendar
        return str(time)
    return date.isoformat(sep=" ", timespec="seconds")[:19].removesuffix(" 00:00:00")


def _per_second(time: int) -> int:
    """The unit of a time since 1970, as a part of a second; 0 where it can be none."""
    return next((one for one in (1, 10**3, 10**6, 10**9) if 3e8 < time / one < 5e9), 0)


def _unprintable(titles: pl.Series) -> int:
    return sum(any(unicodedata.category(letter) in ("Cc", "Cf") for letter in title) for title in titles.drop_nulls())
