"""All that a detector or a defense may look at: what is not in here, it can't reach by mistake."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lorec.data import Poison, Sequences
from lorec.errors import ConfigError, DataError
from lorec.text import TextVectors


@dataclass(frozen=True, eq=False)
class Sight:
    """A training log, and what a defender has beside it: no labels, no targets, no held-out items, no users' ids."""

    log: Sequences
    """The training log, its rows shuffled."""
    n_items: int
    """V; items are numbers from 1 to V, and an array [V + 1] has 0 for padding."""
    text: TextVectors | None = None
    """What a language model makes of items and users."""
    known: Sequence[Poison] = ()
    """Rounds of fakes that were synthesised for the defender, each with the items that it pushes."""
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    """Of every draw; seeded with 0 if omitted."""

    def rounds(self) -> Sequence[Poison]:
        """The rounds of known fakes to learn from. Raises DataError where there are none."""
        if not any(len(one.profiles) for one in self.known):
            raise DataError("this learns from known fakes and got none; give known=known_fakes(...)")
        return self.known

    def fakes(self) -> Sequences:
        """The first round's profiles, for those that learn from one file of them. Raises as `rounds` does."""
        return next(one.profiles for one in self.rounds() if len(one.profiles))

    def texts(self, reader: object) -> TextVectors:
        """The texts, for a spec that reads them. Raises ConfigError where there are none."""
        if self.text is None:
            without = ", or set sources = ['log']" if hasattr(reader, "sources") else ""
            raise ConfigError(f"{type(reader).__name__} reads the items' texts; give text vectors{without}")
        return self.text
