"""An attack that knows the defense: its profiles are chosen so that the defense's own evidence against them falls."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from lorec.attacks.heuristics import Bandwagon, CoVisit, Profiles, Random, Replace, Segment
from lorec.data import Floats, Ints, Sequences
from lorec.errors import ConfigError
from lorec.evidence import Evidence, Examiner

if TYPE_CHECKING:
    from lorec.attacks import View

VIEWS = ("collusion", "incoherence", "copying", "surprise")


@dataclass(frozen=True, kw_only=True)
class Adaptive(Profiles):
    """A crowd mixed from other attacks' profiles until LoRec's evidence looks most innocent, at equal budget.

    Every fraudster has a profile of each of five kinds ready. The crowd begins as all of one kind, that which looks
    most innocent; then some fraudsters at a time take up another kind, and keep it where the evidence against the
    targets falls. The evidence is that of `lorec.evidence` itself, measured beside the log as LoRec measures it: of
    every view the share of honest items that look as bad; the worst view counts.
    """

    targets_each: int | None = 1
    """Targets in a profile, dealt in turn."""
    tries: int = 60
    """How often some fraudsters change."""
    some: float = 0.2
    """The share of fraudsters that change at once."""

    knowledge: ClassVar[Literal["black", "grey", "white"]] = "white"
    needs_text: ClassVar[bool] = True

    def forge(self, view: "View", targets: Ints, fraudsters: int, rng: np.random.Generator) -> Sequences:
        """Profiles without repeats. Raises ConfigError as every heuristic does."""
        if self.tries < 0 or not 0 < self.some <= 1:
            raise ConfigError("adaptive: tries is 0 or more, some is a share of fraudsters in (0, 1]")
        kinds = [kind(share=self.share, length=self.length, targets_each=self.targets_each)
                 for kind in (Random, Bandwagon, Segment, CoVisit, Replace)]  # fmt: skip
        ready = [one.forge(view, targets, fraudsters, rng) for one in kinds]
        examiner = Examiner(view.log, view.n_items, view.text_of(self), rng)
        honest = {name: np.sort(getattr(examiner.evidence, name)[1:]) for name in VIEWS}
        goals = np.sort(targets).astype(np.int64)

        def mixed(chosen: Ints) -> list[Ints]:
            return [ready[kind][row] for row, kind in enumerate(chosen)]

        def blame(chosen: Ints) -> float:
            profiles = mixed(chosen)
            if not np.isin(goals, np.concatenate(profiles)).all():
                return np.inf
            return self._blame(examiner.beside(Sequences.of(profiles), goals), honest)

        pure = [np.full(fraudsters, kind) for kind in range(len(kinds))]
        chosen = min(pure, key=blame)
        least = blame(chosen)
        for number in range(self.tries):
            changed = chosen.copy()
            changed[rng.random(fraudsters) < self.some] = rng.integers(len(kinds))
            now = blame(changed)
            if now < least:
                chosen, least = changed, now
            view.watch(number + 1, self.tries)
        return self._timed(view, mixed(chosen), rng)

    def _blame(self, found: Evidence, honest: dict[str, Floats]) -> float:
        """How rare such bad looks are among honest items, in powers of ten: the mean over targets of the worst view."""
        rare = []
        for name, scores in honest.items():
            above = len(scores) - np.searchsorted(scores, getattr(found, name))
            rare.append(-np.log10((above + 1) / (len(scores) + 1)))
        return float(np.max(rare, axis=0).mean())
