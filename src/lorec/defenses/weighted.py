"""Given weights: an oracle's, an analyst's, a scan's. Also the absence of any defense."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

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
