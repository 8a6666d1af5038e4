"""An attack that knows the defense: its profiles are chosen so that what a detector says of them falls."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from lorec.attacks.heuristics import Bandwagon, CoVisit, Profiles, Random, Replace, Segment
from lorec.data import Floats, Ints, Sequences
from lorec.errors import ConfigError
from lorec.evidence import Evidence, Examiner

if TYPE_CHECKING:
    from lorec.attacks import View

Kind = Literal["random", "bandwagon", "segment", "covisit", "replace"]
KINDS: dict[Kind, type] = {
    "random": Random, "bandwagon": Bandwagon, "segment": Segment, "covisit": CoVisit, "replace": Replace
}  # fmt: skip
MEASURED = ("collusion", "incoherence", "contradiction", "nameless", "copying", "surprise")
"""The views of LoRec's default that nothing is learned for; `profile` and `association` are learned, and not counted.
"""


@dataclass(frozen=True, kw_only=True)
class Adaptive(Profiles):
    """A crowd mixed from other attacks' profiles until a detector finds it most innocent, with as many fraudsters.

    Every fraudster has profiles of each of these kinds ready. The crowd begins as all of one kind, that which looks
    most innocent; then some fraudsters at a time take up another profile, and keep it where the detector's score falls.
    A profile has its own length (unless `length` is given) and its own of the targets, so these are chosen, too.

    The detector is one's own, given to `forge`, which sees profiles without times and whose mean over them counts; or
    else LoRec's evidence, measured beside the log as LoRec measures it: of every view in `MEASURED` the share of honest
    items that look as bad; the worst view counts.
    """

    targets_each: int | None = 1
    """Targets in a profile, dealt in turn."""
    kinds: tuple[Kind, ...] = tuple(KINDS)
    """The attacks whose profiles it mixes; with one alone, that attack, its fillers chosen against the detector."""
    variants: int = 1
    """Profiles of each kind that a fraudster has ready."""
    tries: int = 60
    """How often some fraudsters change."""
    some: float = 0.2
    """The share of fraudsters that change at once."""

    knowledge: ClassVar[Literal["black", "grey", "white"]] = "white"
    needs_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tries < 0 or not 0 < self.some <= 1:
            raise ConfigError("adaptive: tries is 0 or more, some is a share of fraudsters in (0, 1]")
        if not set(self.kinds) <= KINDS.keys():
            raise ConfigError(f"adaptive mixes {', '.join(KINDS)}; kinds is {self.kinds!r}")
        if self.variants < 1 or len(self.kinds) * self.variants < 2:
            raise ConfigError("adaptive has nothing to choose from: give two kinds or more, or variants = 2 or more")

    def check(self, n_items: int, targets: Ints, fraudsters: int) -> None:
        """Raise ConfigError now where one of its kinds can't be made as it is asked for."""
        for base in self._bases():
            base.check(n_items, targets, fraudsters)

    def _bases(self) -> list[Profiles]:
        mine = {"share": self.share, "length": self.length, "targets_each": self.targets_each}
        return [KINDS[kind](**mine) for kind in self.kinds]

    def forge(self, view: "View", targets: Ints, fraudsters: int, rng: np.random.Generator) -> Sequences:
        """Profiles without repeats. Raises ConfigError as every heuristic does."""
        bases = [base for base in self._bases() for _ in range(self.variants)]
        ready = [base.forge(view, targets, fraudsters, rng) for base in bases]
        suspicion = self._evidence(view, targets, rng) if view.detector is None else view.detector
        if view.note is not None:
            view.note("detector", "lorec's evidence" if view.detector is None else "given")

        def mixed(chosen: Ints) -> list[Ints]:
            return [ready[number][row] for row, number in enumerate(chosen)]

        def blame(chosen: Ints) -> float:
            profiles = mixed(chosen)
            if not np.isin(targets, np.concatenate(profiles)).all():
                return np.inf
            found = float(np.mean(suspicion(Sequences.of(profiles))))
            if np.isnan(found):
                raise ConfigError("the detector's score of a profile is not a number; give one for every profile")
            return found

        pure = [np.full(fraudsters, number) for number in range(len(bases))]
        chosen = min(pure, key=blame)
        least = blame(chosen)
        for number in range(self.tries):
            changed = chosen.copy()
            changed[rng.random(fraudsters) < self.some] = rng.integers(len(bases))
            now = blame(changed)
            if now < least:
                chosen, least = changed, now
            view.watch(number + 1, self.tries)
        return self._timed(view, mixed(chosen), rng)

    def _evidence(self, view: "View", targets: Ints, rng: np.random.Generator) -> Callable[[Sequences], float]:
        """LoRec's, against the targets of a crowd."""
        examiner = Examiner(view.log, view.n_items, view.text_of(self), rng)
        honest = {name: np.sort(getattr(examiner.evidence, name)[1:]) for name in MEASURED}
        goals = np.sort(targets).astype(np.int64)
        return lambda profiles: self._blame(examiner.beside(profiles, goals), honest)

    def _blame(self, found: Evidence, honest: dict[str, Floats]) -> float:
        """How rare such bad looks are among honest items, in powers of ten: the mean over targets of the worst view."""
        rare = []
        for name, scores in honest.items():
            above = len(scores) - np.searchsorted(scores, getattr(found, name))
            rare.append(-np.log10((above + 1) / (len(scores) + 1)))
        return float(np.max(rare, axis=0).mean())
