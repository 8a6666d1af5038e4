"""What the clicks of a user alone tell, without texts: detectors from before language models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lorec.data import Floats, Poison, Sequences
from lorec.detectors.logistic import fit_logistic, sigmoid, squared
from lorec.detectors.suspicion import Suspicion
from lorec.errors import ConfigError
from lorec.evidence import shapes
from lorec.text import TextVectors


@dataclass(frozen=True, kw_only=True)
class Degree:
    """A classifier on the popularities of a user's items (after DegreeSAD, Li et al. 2016): the best cheap baseline.

    It learns from all rounds of known fakes beside the log, whose users count as genuine, each side with half of the
    weight, and accuses from a likelihood of .5. Theirs is an ensemble of trees on ratings; ours is logistic, quadratic
    in `evidence.shapes`: the log's own fraudsters count as genuine, and a richer model learns that by heart.
    """

    ridge: float = 1.0
    """Half of it times the squared coefficients is added to the loss."""

    needs_text: ClassVar[bool] = False
    needs_known: ClassVar[bool] = True
    decides: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.ridge < np.inf:
            raise ConfigError(f"degree: ridge is {self.ridge}; it is above 0 and finite")

    def detect(
        self,
        log: Sequences,
        n_items: int,
        *,
        text: TextVectors | None,
        known: Sequence[Poison],
        rng: np.random.Generator,
    ) -> Suspicion:
        """Likelihoods of users [users]."""
        users = made(log, n_items, known, ridge=self.ridge, balanced=True)[0]
        return Suspicion(users=users, flagged=users >= 0.5)


def made(
    log: Sequences, n_items: int, known: Sequence[Poison], *, ridge: float, balanced: bool = False
) -> list[Floats]:
    """How made each history looks, by the mix of popularities in it: likelihoods for the log, then for every round.

    A classifier tells the known fakes from the log; `balanced`: both count alike, however few there are.
    """
    counts = log.counts(n_items)
    told = [shapes(some, counts) for some in (log, *(one.profiles for one in known))]
    x = squared(np.concatenate(told))
    fake = (np.arange(len(x)) >= len(told[0])).astype(np.float64)
    share = fake.mean()
    n = np.where(fake == 1, 0.5 / share, 0.5 / (1 - share)) if balanced else np.ones(len(x))
    likely = sigmoid(x @ fit_logistic(x, fake * n, n, ridge=ridge))
    return np.split(likely, np.cumsum([len(one) for one in told])[:-1])
