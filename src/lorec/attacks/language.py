"""Profiles that read well: a language model continues a history, choosing among candidates by their titles."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lorec.attacks.heuristics import Profiles
from lorec.data import Floats, Ints, Sequences
from lorec.errors import ConfigError

if TYPE_CHECKING:
    from lorec.attacks import View


@dataclass(frozen=True, kw_only=True)
class LLM(Profiles):
    """A profile grows item by item, each the candidate whose title fits the last ones best, targets where they fit.

    Candidates are drawn as often as items are popular, so that titles and popularity are all it needs. Which language
    model reads is the run's encoder.
    """

    targets_each: int | None = 1
    """Targets in a profile, dealt in turn."""
    candidates: int = 20
    """From how many items the next one is chosen."""
    memory: int = 3
    """How many of the last items a candidate is held against."""

    needs_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.candidates, self.memory) < 1:
            raise ConfigError("llm: candidates and memory are at least 1")

    def forge(self, view: "View", targets: Ints, fraudsters: int, rng: np.random.Generator) -> Sequences:
        """Profiles without repeats. Raises ConfigError as every heuristic does."""
        vectors = view.text_of(self)
        dealt, lengths = self._dealt(view, targets, fraudsters, rng)
        chances = (view.log.counts(view.n_items) + 1.0) * ~np.isin(np.arange(view.n_items + 1), [0, *targets])
        ranks = np.cumsum(chances) / chances.sum()
        profiles = []
        for mine, length in zip(dealt, lengths, strict=True):
            profile = self._grown(vectors, ranks, int(length) - len(mine), rng)
            for target in mine.tolist():
                profile.insert(self._place(vectors, profile, target), target)
            profiles.append(np.array(profile))
        return self._timed(view, profiles, rng)

    def _grown(self, vectors: Floats, ranks: Floats, n: int, rng: np.random.Generator) -> list[int]:
        profile: list[int] = []
        while len(profile) < n:
            drawn = np.unique(np.searchsorted(ranks, rng.random(self.candidates if profile else 1), side="right"))
            new = drawn[~np.isin(drawn, profile)]
            if not len(new):  # all that is popular was taken: any item that is left
                left = np.setdiff1d(np.flatnonzero(np.diff(ranks, prepend=0) > 0), profile)
                new = rng.choice(left, min(self.candidates, len(left)), replace=False)
            fit = vectors[new] @ vectors[profile[-self.memory :]].sum(0) if profile else np.zeros(len(new))
            profile.append(int(new[fit.argmax()]))
        return profile

    def _place(self, vectors: Floats, profile: list[int], target: int) -> int:
        """After the item that the target's title fits best."""
        return int((vectors[profile] @ vectors[target]).argmax()) + 1 if profile else 0
