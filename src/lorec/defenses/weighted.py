"""Given weights: an oracle's, an analyst's, a scan's. Also the absence of any defense."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lorec.data import Bools, Floats, Ints, Sequences, Weights
from lorec.defenses.guard import Guard
from lorec.errors import ConfigError, DataError, first_line
from lorec.models import Recommender
from lorec.sight import Sight


@dataclass(frozen=True, kw_only=True)
class Undefended:
    """Plain training, every user counts as 1."""

    needs_text: ClassVar[bool] = False

    def start(self, recommender: Recommender, sight: Sight) -> Guard:
        """Do nothing."""
        return Guard()


@dataclass(frozen=True)
class Weighted:
    """Apply given weights per user or per interaction: the one way to do so."""

    weights: Weights = field(default_factory=Weights)

    needs_text: ClassVar[bool] = False

    def start(self, recommender: Recommender, sight: Sight) -> Guard:
        """Check that the weights fit the log. Raises DataError where they don't."""
        for what, values, wanted in (
            ("users", self.weights.users, len(sight.log)),
            ("events", self.weights.events, len(sight.log.items)),
        ):
            if values is not None and len(values) != wanted:
                raise DataError(f"{len(values)} weights of {what} for a log with {wanted}; give one for each row")
        return _WeightedGuard(self.weights, sight.log)


class _WeightedGuard(Guard):
    """Given weights say who is suspected, too."""

    def __init__(self, weights: Weights, log: Sequences) -> None:
        super().__init__(weights)
        self.log = log

    @property
    def suspicion(self) -> Floats | None:
        if self.weights.users is None and self.weights.events is None:
            return None
        return 1 - self.weights.of_users(self.log).astype(np.float64)

    @property
    def flagged(self) -> Bools | None:
        """Who is turned down as a whole, or in one interaction."""
        if self.weights.users is None and self.weights.events is None:
            return None
        lies = np.bincount(self.log.users(), self.weights.turned_down(self.log), len(self.log)) > 0
        own = super().flagged
        return lies if own is None else lies | own

    @property
    def interactions(self) -> Floats | None:
        return None if self.weights.events is None else 1 - self.weights.of_events(self.log)


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """Knows the fraudsters and gives them weight 0: the ceiling of any defense by user weights."""

    needs_text: ClassVar[bool] = False

    def reveal(self, fraudsters: Bools) -> Weighted:
        """The defense that only an experiment can make, because only it has the labels [users]."""
        return Weighted(Weights(users=(~fraudsters).astype(np.float32)))

    def start(self, recommender: Recommender, sight: Sight) -> Guard:
        """Raise ConfigError: no defense is given labels."""
        raise ConfigError(
            "the oracle needs labels, which no defense is given; call reveal(fraudsters) in an experiment"
        )


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """Weights from a file, by users' ids: an analyst's, another tool's, or those that a run has left."""

    path: str
    """CSV or Parquet: user (or user_id) and weight, where several rows of a user count the last. Of single interactions
    with a column `item` (or `item_id`) as well, as a scan leaves them, or with `position`, the place in the user's
    training history from 0 on. What is not named counts 1."""

    needs_text: ClassVar[bool] = False

    def of(self, users: pl.Series, log: Sequences, items: Sequence[str] | None = None) -> Weighted:
        """The weights of a training log whose rows are these users; `items` are the ids of numbers 1 to V.

        Raises DataError as `read` does, for a file that names nobody of the log, for places outside of histories or,
        where a column `item` says so, of other items, and where nothing is left to train on.
        """
        found = self.read()
        rows = pl.DataFrame({"user": users.cast(pl.String), "row": np.arange(len(users))})
        known = found.join(rows, on="user", maintain_order="left")
        if not len(known):
            raise DataError(f"{self.path} names no user of the log; are its ids those of the log?")
        values, at = known["weight"].to_numpy().astype(np.float32), known["row"].to_numpy()
        if "position" not in found.columns and "item" in found.columns:
            if items is None:
                raise DataError(f"{self.path} is of single items; give the ids of the log's items, or positions")
            weights = Weights(events=self._of_pairs(known, log, items))
        elif "position" not in found.columns:
            weights = Weights(users=_placed(values, at, len(log)))
        else:
            place = known["position"].to_numpy().astype(np.int64)
            if wrong := int(((place < 0) | (place >= log.lengths[at])).sum()):
                raise DataError(f"{self.path}: {wrong} positions lie outside of their users' histories; count from 0")
            events = log.starts[at] + place
            if items is not None and "item" in found.columns:
                mine = pl.Series(items).gather(log.items[events] - 1)
                if other := int((mine != known["item"].cast(pl.String)).sum()):
                    raise DataError(
                        f"{self.path}: at {other} positions the log holds another item; it is of another log"
                    )
            weights = Weights(events=_placed(values, events, len(log.items)))
        if not weights.of_events(log).any():
            raise DataError(f"{self.path} turns everything down; nothing is left to train on")
        return Weighted(weights)

    def _of_pairs(self, known: pl.DataFrame, log: Sequences, items: Sequence[str]) -> NDArray[np.float32]:
        """[events]: the weight of each user's interactions with an item; what is not in training is passed over."""
        numbers = pl.DataFrame(
            {"item": items, "number": np.arange(1, len(items) + 1)}, schema_overrides={"item": pl.String}
        )
        given = (
            known.with_columns(pl.col("item").cast(pl.String))
            .join(numbers, on="item")
            .select("row", "number", "weight")
        )
        mine = pl.DataFrame({"row": log.users(), "number": log.items.astype(np.int64)})
        told = mine.join(
            given.unique(["row", "number"], keep="last"), on=["row", "number"], how="left", maintain_order="left"
        )
        if told["weight"].null_count() == len(told):
            raise DataError(f"{self.path} names no interaction of the log; are its items those of the log?")
        return told["weight"].fill_null(1.0).to_numpy().astype(np.float32)

    def remarks(self, users: pl.Series) -> list[str]:
        """What a reader of its figures must know."""
        named = self.read()["user"].unique()
        strangers, injected = int((~named.is_in(users)).sum()), int(named.str.starts_with("injected-").sum())
        told = [f"{strangers:,} of {len(named):,} users that {self.path} names are not in the training log."] * bool(
            strangers
        )
        if injected:
            told.append(
                f"{self.path} names {injected:,} injected users by number; they are the same ones only where the "
                "poison is the same."
            )
        return told

    def read(self) -> pl.DataFrame:
        """The file. Raises DataError where it can't be read, lacks a column or holds what is no weight."""
        kinds = {".csv": ",", ".tsv": "\t"}
        end = Path(self.path.removesuffix(".gz").removesuffix(".zst")).suffix
        if not Path(self.path).is_file():
            raise DataError(
                f"{self.path or 'a file of weights'} does not exist; give path = a CSV, TSV or Parquet file"
            )
        try:
            if end in kinds:
                ids = {"user": pl.String, "user_id": pl.String, "item": pl.String, "item_id": pl.String}  # 007 is not 7
                found = pl.read_csv(self.path, separator=kinds[end], schema_overrides=ids)
            else:
                found = pl.read_parquet(self.path)
        except (OSError, pl.exceptions.PolarsError) as error:
            first = first_line(error)
            raise DataError(f"{self.path} can't be read as weights ({first}); give CSV, TSV or Parquet") from None
        other = {name: name.removesuffix("_id") for name in ("user_id", "item_id")}
        found = found.rename({name: ours for name, ours in other.items() if name in found and ours not in found})
        if lacking := {"user", "weight"} - set(found.columns):
            raise DataError(f"{self.path} has no column {', '.join(sorted(lacking))}; name them user and weight")
        if not len(found):
            raise DataError(f"{self.path} has no rows; give users and their weights")
        for name, fits in (("weight", pl.col("weight").is_between(0, 1e6)), ("position", pl.col("position") % 1 == 0)):
            if name not in found.columns:
                continue
            values = found[name]
            bad = (
                pl.Series([True]) if not values.dtype.is_numeric() else ~found.select(fits.fill_null(False)).to_series()
            )
            if bad.any():
                row = int(bad.arg_true()[0])
                wanted = "a number from 0 to a million" if name == "weight" else "a whole number from 0 on"
                raise DataError(f"{self.path}, row {row + 1}: {name} is {values[row]!r}; it is {wanted}")
        return found.with_columns(pl.col("user").cast(pl.String))

    def start(self, recommender: Recommender, sight: Sight) -> Guard:
        """Raise ConfigError: a defense is not told who is who in its log."""
        raise ConfigError("weights of a file go by users' ids, which no defense is given; call of(users, log) before")


def _placed(values: Floats, at: Ints, n: int) -> NDArray[np.float32]:
    weights = np.ones(n, dtype=np.float32)
    weights[at] = values
    return weights
