"""What reports read of folders, and tell of all kinds alike."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lorec.data import Bools, Floats
from lorec.errors import RunError
from lorec.files import inside, read_json
from lorec.reports.charts import lines
from lorec.reports.page import Chart, Event, Person, Table

MOST_ROWS = 200_000_000
"""Of a table: a few bytes may say that they are more than fit in memory."""
MOST_JSON = 50_000_000
"""Bytes."""
MOST_EVENTS = 60
"""Of a person's history, the newest."""


def table_of(folder: Path, name: str) -> pl.LazyFrame:
    """A Parquet file of the folder. Raises RunError for one that is too large to be one of ours."""
    frame = pl.scan_parquet(inside(folder, name), glob=False)
    if (rows := frame.select(pl.len()).collect().item()) > MOST_ROWS:
        raise RunError(f"{folder / name} says that it has {rows:,} rows; no folder of lorec's has so many")
    return frame


def json_of(folder: Path, name: str) -> Any:
    """A JSON file of the folder. Raises RunError for one that is damaged or too large."""
    path = inside(folder, name)
    if (size := path.stat().st_size) > MOST_JSON:
        raise RunError(f"{path} has {size:,} bytes; no folder of lorec's has so many")
    return read_json(path)


def people(
    users: Sequence[tuple[str, str, Sequence[str]]], events: pl.LazyFrame, titles: pl.LazyFrame, doubtful: float
) -> list[Person]:
    """Users by (name, about, reasons), with their histories out of `events` (user, item, weight, suspicion)."""
    names = [name for name, _, _ in users]
    theirs = events.filter(pl.col("user").is_in(names)).select("user", "item", "weight", "suspicion").collect()
    named = dict(
        titles.filter(pl.col("item").is_in(theirs["item"].unique().implode()))
        .select("item", "title")
        .collect()
        .iter_rows()
    )
    histories = {str(key[0]): part for key, part in theirs.group_by("user", maintain_order=True)}
    return [_person(*one, histories.get(one[0], theirs.clear()), named, doubtful) for one in users]


def _person(
    name: str, about: str, reasons: Sequence[str], history: pl.DataFrame, titles: Mapping[str, str], doubtful: float
) -> Person:
    events = []
    for _, item, weight, suspicion in history.tail(MOST_EVENTS).iter_rows():
        marked = weight < 1 or suspicion >= doubtful
        note = f"{suspicion:.2f}" + (", counts nothing" if weight == 0 else "") if marked else ""
        events.append(Event(titles.get(item) or f"item {item}", note, marked))
    return Person(name, about, reasons, events, max(0, history.height - MOST_EVENTS))


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """A nested configuration as names with dots and values."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{before}{name}.")
        elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
            for place, one in enumerate(value):
                found |= flat(one, f"{before}{name}[{place}].") if isinstance(one, Mapping) else {}
        else:
            found[before + name] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return found


def roc_and_precision(suspicion: Floats, bad: Bools) -> tuple[Any, Any]:
    """(false, true) and (recall, precision) at every threshold, ties together, thinned to what a chart can show."""
    values, place = np.unique(-suspicion, return_inverse=True)
    found, seen = (np.cumsum(np.bincount(place, one, len(values))) for one in (bad, np.ones(len(bad))))
    m, n = found[-1], seen[-1]
    along = (seen - found) / (n - m) + found / m  # from 0 to 2, so that no part of the curve is coarse
    some = np.unique(np.searchsorted(along, np.linspace(0, 2, 400)).clip(0, len(found) - 1))
    some = np.arange(len(found)) if len(found) < 400 else some
    false = np.concatenate([[0.0], (seen - found)[some] / (n - m), [1.0]])
    true = np.concatenate([[0.0], found[some] / m, [1.0]])
    return (false, true), (found[some] / m, (found / seen)[some])


def calibration(likely: Floats, true: Bools) -> tuple[list[float], list[float]]:
    """Mean likelihood and share of what is true, in twentieths of the likelihood that hold anything."""
    place = np.minimum((likely * 20).astype(int), 19)
    n = np.bincount(place, minlength=20)
    some = n > 0
    said, are = (np.bincount(place, values, 20)[some] / n[some] for values in (likely, true))
    return said.tolist(), are.tolist()


def of_users(title: str, told: Mapping[str, tuple[Floats, Bools]]) -> Chart:
    """Whether likelihoods that users are fraudsters mean what they say; by name, what is said and who is one."""
    named = {
        f"{name} (Brier {float(((said - bad) ** 2).mean()):.4f})": (said, bad) for name, (said, bad) in told.items()
    }
    curves = {name: calibration(said, bad) for name, (said, bad) in named.items()}
    chart = lines(curves, "likelihood that a user is a fraudster", "share that are", band=(0, 1.02))
    return Chart(title, chart, f"Users in twentieths of what is said of them: {', '.join(named)}.")


def harm(who: str, rows: Sequence[tuple[Any, ...]]) -> Table:
    """The table of `detectors.harmed`, with whose decisions they are before each row."""
    head = {
        who: "", "users by": "", "quarter": "", "users": ",", "on average": ".2f", "accused": ".2%",
        "of their interactions turned down": ".2%",
    }  # fmt: skip
    title = "Genuine users, in quarters, by the length of their history and the mean log count of their items"
    return Table(title, head, rows)
