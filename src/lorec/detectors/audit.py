"""Two stages: a cheap filter, then a language model reads the few (SemanticShield, 2025)."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from lorec.data import Floats
from lorec.detectors.clicks import PCA
from lorec.detectors.language import ZeroShot
from lorec.detectors.reasons import Names, than
from lorec.detectors.suspicion import Suspicion, places, worst
from lorec.errors import ConfigError
from lorec.sight import Sight


@dataclass(frozen=True, kw_only=True)
class Audit:
    """A cheap filter by clicks names suspects, and a generative model is asked about these alone.

    After SemanticShield (2025): PCA similarity and the share of unpopular items, then an audit by a language model. The
    audit only clears: who is accused was suspect by what they took, and the model's answer is more likely yes than for
    as many users drawn by chance, who are asked, too, as small models say yes to nearly anybody. Deviation: the paper's
    audit is trained by reinforcement; here the run's encoder is asked as it is. Of the filter no more than its two
    quantities was known; suspect is who stands out by either.
    """

    suspects: float = 0.05
    """Of users, that the filter passes on."""
    components: int = 3
    """Of the PCA."""
    unpopular: float = 0.5
    """The share of the items that count as unpopular."""
    question: str = ZeroShot.question
    """Of the audit, after a user's titles."""

    needs_text: ClassVar[bool] = True
    needs_known: ClassVar[bool] = False
    decides: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.suspects < 1 or not 0 < self.unpopular < 1:
            raise ConfigError("audit: suspects and unpopular are shares in (0, 1)")
        if self.components < 1:
            raise ConfigError(f"audit: components is {self.components}; it is 1 or more")

    def detect(self, sight: Sight) -> Suspicion:
        """Ranks by the filter in [0, 1), and from 1 on the audit's likelihoods of the suspects.

        Raises ConfigError as `fits` does.
        """
        self.fits(sight)
        log, first = sight.log, self._filter(sight)
        suspects = np.flatnonzero(worst(first, self.suspects))
        others = np.setdiff1d(np.arange(len(log)), suspects)
        some = np.sort(sight.rng.choice(others, min(len(suspects), len(others)), replace=False))
        asked = np.concatenate([suspects, some])
        said = ZeroShot(question=self.question).detect(replace(sight, log=log.take(asked))).users
        likely, usual = said[: len(suspects)], said[len(suspects) :]
        users = places(first) / len(log)
        users[suspects] = 1 + likely
        flagged = np.zeros(len(log), dtype=bool)
        bar = float(np.median(usual)) if len(usual) else 0.5
        flagged[suspects] = likely > bar

        def why(user: int, names: Names) -> str:
            if users[user] < 1:
                return ""
            return (
                f"stands out by its clicks ({than(first, user, 'users')}); asked about its titles, a language "
                f"model says yes with likelihood {users[user] - 1:.2f}, where {bar:.2f} is the middle of others"
            )

        return Suspicion(users=users, flagged=flagged, why=why)

    def fits(self, sight: Sight) -> None:
        """Raise ConfigError where the encoder is none that writes, and as PCA does."""
        PCA(components=self.components).fits(sight)
        ZeroShot().fits(sight)

    def _filter(self, sight: Sight) -> Floats:
        """[users]: the higher of two ranks, of how unusual the loading is and how unpopular the taste."""
        log, loading = sight.log, PCA(components=self.components).detect(sight).users
        # To either side: where histories are short a campaign is itself the largest of the common factors.
        alien = np.abs(places(loading) - (len(log) - 1) / 2)
        counts = log.counts(sight.n_items)
        rare = counts <= np.quantile(counts[1:], self.unpopular)
        taste = np.bincount(log.users(), rare[log.items], len(log)) / np.maximum(log.lengths, 1)
        found: Floats = np.maximum(places(alien), places(taste)) / len(log)
        return found
