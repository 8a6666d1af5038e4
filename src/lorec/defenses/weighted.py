"""Given weights: an oracle's, an analyst's, a scan's. Also the absence of any defense."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import polars as pl

from lorec.data import Bools, Poison, Sequences, Weights
from lorec.defenses.guard import Guard
from lorec.errors import ConfigError, DataError
from lorec.models import Recommender
from lorec.text import TextVectors


@dataclass(frozen=True, kw_only=True)
class Undefended:
    """Plain training, every user counts as 1."""

    needs_text: ClassVar[bool] = False

    def start(
        self,
        recommender: Recommender,
        log: Sequences,
        *,
        text: TextVectors | None,
        known: Sequence[Poison] | None,
        rng: np.random.Generator,
    ) -> Guard:
        """Do nothing."""
        return Guard()


@dataclass(frozen=True)
class Weighted:
    """Apply given weights per user or per interaction: the one way to do so."""

    weights: Weights = field(default_factory=Weights)

    needs_text: ClassVar[bool] = False

    def start(
        self,
        recommender: Recommender,
        log: Sequences,
        *,
        text: TextVectors | None,
        known: Sequence[Poison] | None,
        rng: np.random.Generator,
    ) -> Guard:
        """Check that the weights fit the log. Raises DataError where they don't."""
        for what, values, wanted in (
            ("users", self.weights.users, len(log)),
            ("events", self.weights.events, len(log.items)),
        ):
            if values is not None and len(values) != wanted:
                raise DataError(f"{len(values)} weights of {what} for a log with {wanted}; give one for each row")
        return Guard(self.weights)


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """Knows the fraudsters and gives them weight 0: the ceiling of any defense by user weights."""

    needs_text: ClassVar[bool] = False

    def reveal(self, fraudsters: Bools) -> Weighted:
        """The defense that only an experiment can make, because only it has the labels [users]."""
        return Weighted(Weights(users=(~fraudsters).astype(np.float32)))

    def start(
        self,
        recommender: Recommender,
        log: Sequences,
        *,
        text: TextVectors | None,
        known: Sequence[Poison] | None,
        rng: np.random.Generator,
    ) -> Guard:
        """Raise ConfigError: no defense is given labels."""
        raise ConfigError(
            "the oracle needs labels, which no defense is given; call reveal(fraudsters) in an experiment"
        )


@dataclass(frozen=True, kw_only=True)
class Given:
    """Weights from a file, by users' ids: an analyst's, another tool's, or those that a run has left."""

    path: str
    """CSV or Parquet: user and weight, where several rows of a user count the last; with a column `position` as well,
    the place in the user's training history from 0 on, of single interactions. Whoever is not named counts 1."""

    needs_text: ClassVar[bool] = False

    def of(self, users: pl.Series, log: Sequences) -> Weighted:
        """The weights of a training log whose rows are these users.

        Raises DataError as `read` does, and for a file that names nobody of the log, or places outside of histories.
        """
        found = self.read()
        rows = pl.DataFrame({"user": users.cast(pl.String), "row": np.arange(len(users))})
        known = found.join(rows, on="user", maintain_order="left")
        if not len(known):
            raise DataError(f"{self.path} names no user of the log; are its ids those of the log?")
        values, at = known["weight"].to_numpy().astype(np.float32), known["row"].to_numpy()
        if "position" not in found.columns:
            of_users = np.ones(len(log), dtype=np.float32)
            of_users[at] = values
            return Weighted(Weights(users=of_users))
        place = known["position"].cast(pl.Int64, strict=False).fill_null(-1).to_numpy()
        if wrong := int(((place < 0) | (place >= log.lengths[at])).sum()):
            raise DataError(f"{self.path}: {wrong} positions lie outside of their users' histories; count from 0")
        of_events = np.ones(len(log.items), dtype=np.float32)
        of_events[log.starts[at] + place] = values
        return Weighted(Weights(events=of_events))

    def read(self) -> pl.DataFrame:
        """The file. Raises DataError where it can't be read, lacks a column or holds what is no weight."""
        try:
            ids = {"user": pl.String}  # 007 is not 7
            csv = self.path.endswith(".csv")
            found = pl.read_csv(self.path, schema_overrides=ids) if csv else pl.read_parquet(self.path)
        except (OSError, pl.exceptions.PolarsError) as error:
            first = (str(error).splitlines() or [""])[0][:200]
            raise DataError(f"{self.path} can't be read as weights ({first}); give CSV or Parquet") from None
        if lacking := {"user", "weight"} - set(found.columns):
            raise DataError(f"{self.path} has no column {', '.join(sorted(lacking))}; name them user and weight")
        if not found["weight"].dtype.is_numeric() or found["weight"].has_nulls():
            raise DataError(f"{self.path}: a weight is missing or no number; weights are finite and 0 or more")
        Weights(users=found["weight"].to_numpy().astype(np.float32))  # raises for what is none
        return found.with_columns(pl.col("user").cast(pl.String))

    def start(
        self,
        recommender: Recommender,
        log: Sequences,
        *,
        text: TextVectors | None,
        known: Sequence[Poison] | None,
        rng: np.random.Generator,
    ) -> Guard:
        """Raise ConfigError: a defense is not told who is who in its log."""
        raise ConfigError("weights of a file go by users' ids, which no defense is given; call of(users, log) before")
