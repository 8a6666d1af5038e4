"""What company items keep, measured and not calibrated: LoRec's evidence as it is, and histories by their texts."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from lorec.detectors.reasons import Names, by_items, company, than
from lorec.detectors.suspicion import Suspicion, worst
from lorec.errors import ConfigError
from lorec.evidence import Examiner, by_rank, coherence
from lorec.sight import Sight


@dataclass(frozen=True, kw_only=True)
class Context:
    """How far an item's company is from what its popularity leads one to expect, either way (`evidence.surprise`).

    By the log's own co-occurrence and by texts, without any example of fraud: what LoRec starts from.
    """

    sources: tuple[Literal["log", "text"], ...] = ("log", "text")
    """What evidence is made of."""
    share: float = 0.02
    """Of interactions, and of users, that it accuses."""

    needs_known: ClassVar[bool] = False
    decides: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.sources or not {"log", "text"}.issuperset(self.sources) or not 0 < self.share < 1:
            raise ConfigError("context: sources names log, text or both, and share lies in (0, 1)")

    @property
    def needs_text(self) -> bool:
        """Whether it asks a language model."""
        return "text" in self.sources

    def detect(self, sight: Sight) -> Suspicion:
        """Distances from the crowd: of items, of their interactions, and of users the farthest."""
        log, vectors = sight.log, sight.texts(self).items() if self.needs_text else None
        evidence = Examiner(log, sight.n_items, vectors, sight.rng, counted="log" in self.sources).evidence
        items, beside = evidence.surprise, company(log, sight.n_items)
        single = items[log.items]
        users = np.zeros(len(log))
        np.maximum.at(users, log.users(), single)

        def why_item(item: int, names: Names) -> str:
            scores = {name: float(values[item]) for name, values in evidence.measures.items()}
            odd = sorted(scores, key=lambda name: -abs(scores[name]))[:2]
            return (
                f"{names.item(item)} keeps odd company ({than(items[1:], item - 1, 'items')}): "
                + ", ".join(f"{name} {scores[name]:+.1f}" for name in odd)
                + " standard deviations from items as popular; "
                + beside(item, names)
            )

        return Suspicion(
            users=users, flagged=worst(users, self.share), interactions=single, lies=worst(single, self.share),
            items=items, why=by_items(log, items, why_item), why_item=why_item,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Coherence:
    """How little the texts of a user's items have to do with one another, among histories as long.

    The mean cosine of two of them; a history of one text says nothing.
    """

    share: float = 0.01
    """Of users, that it accuses."""

    needs_text: ClassVar[bool] = True
    needs_known: ClassVar[bool] = False
    decides: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError("coherence: share lies in (0, 1)")

    def detect(self, sight: Sight) -> Suspicion:
        """Normal scores [users]. Raises ConfigError without text."""
        alike, n = coherence(sight.log.distinct(), sight.texts(self).items())  # alike, and of how many texts
        users = np.zeros(len(sight.log))
        told = n > 1
        users[told] = -by_rank(alike[told], n[told])

        def why(user: int, names: Names) -> str:
            usual = np.median(alike[n == n[user]])
            return (
                f"two of the {n[user]:.0f} titles have a cosine of {alike[user]:.2f} on average, where {usual:.2f} is "
                f"the middle of histories with as many ({than(users, user, 'users')}, for how many they have)"
            )

        return Suspicion(users=users, flagged=worst(users, self.share), why=why)
