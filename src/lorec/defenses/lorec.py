"""LoRec where histories are short: evidence about items, calibrated on known fakes, turns down interactions.

The published calibrator (`lorec_paper`) asks whether a user's states look fraudulent. Fraudsters are part of the
training data, so the recommender fits them and their states look well; on short histories nothing is left to see. Ours
asks what does not move when the recommender learns: does an item keep the company that its popularity leads one to
expect, in the log and by what a language model makes of its text (`lorec.evidence`)? Three views answer, `collusion`,
`incoherence` and `surprise`; each is calibrated on rounds of known fakes, and a likelihood follows for every item,
interaction and user. The likeliest interactions, within a budget, count nothing.

Differences from the paper, and why: weights are per interaction, because in a copied history one step alone is the lie;
evidence is gathered on the log plus known fakes, so that known and real fakes stand in the same light; the calibrator
has few parameters, because richer ones learned the known kinds and missed the others (docs/diagnosis.md); weights are
there before the first step, so nothing feeds back and no gate can stay shut.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lorec.data import Floats, Poison, Sequences, Weights
from lorec.defenses.guard import Guard, rounds_of
from lorec.errors import ConfigError
from lorec.evidence import Evidence, gather
from lorec.models import Recommender
from lorec.text import TextVectors

Source = Literal["log", "text"]
View = Literal["collusion", "incoherence", "surprise"]


@dataclass(frozen=True, kw_only=True)
class LoRec:
    """Evidence from the log and from texts, calibrated on known fakes, turns down interactions that look bought."""

    sources: tuple[Source, ...] = ("log", "text")
    """What evidence is made of: the log's own co-occurrence, a language model's vectors of the items' texts."""
    views: tuple[View, ...] = ("collusion", "incoherence", "surprise")
    """Which ways to look odd count: holders alike beyond reason, a random crowd of holders, or anything else."""
    lift: float = 5.0
    """An interaction counts 0 only where a lie is this many times as likely as anywhere in the known fakes' logs."""
    budget: float = 0.02
    """The share of all interactions that it may turn down at most, the likeliest first."""

    def __post_init__(self) -> None:
        if not self.sources or not self.views:
            raise ConfigError(
                "LoRec needs at least one of its sources and one of its views; leave them out to have all"
            )
        if not 1 <= self.lift < math.inf:
            raise ConfigError(f"LoRec's lift is {self.lift}; it is a number of times, 1 or more")
        if not 0 < self.budget <= 1:
            raise ConfigError(f"LoRec's budget is {self.budget}; it is a share of interactions in (0, 1]")

    @property
    def needs_text(self) -> bool:
        """Whether it asks a language model."""
        return "text" in self.sources

    def start(
        self,
        recommender: Recommender,
        log: Sequences,
        *,
        text: TextVectors | None,
        known: Sequence[Poison] | None,
        rng: np.random.Generator,
    ) -> Guard:
        """Raises ConfigError without text (where it is a source) and DataError without known fakes."""
        rounds = rounds_of(known)
        if self.needs_text and text is None:
            raise ConfigError("LoRec reads the items' texts; give text vectors, or set sources = ['log']")
        vectors = text.items() if self.needs_text and text is not None else None
        return _EvidenceGuard(self, log, recommender.n_items, vectors, rounds, rng)


class _EvidenceGuard(Guard):
    """Gathers its evidence when the first batch asks, so that a resumed fit takes it from the checkpoint instead."""

    def __init__(
        self,
        spec: LoRec,
        log: Sequences,
        n_items: int,
        vectors: Floats | None,
        rounds: Sequence[Poison],
        rng: np.random.Generator,
    ) -> None:
        super().__init__()
        self.spec, self.log, self.n_items, self.vectors = spec, log, n_items, vectors
        self.rounds, self.rng = rounds, rng
        self.likely: NDArray[np.float32] | None = None
        """[V + 1]: how likely it is that an interaction with the item is a bought one."""
        self.cut = 1.0
        """Above it an interaction counts nothing."""

    @property
    def suspicion(self) -> Floats | None:
        """[users]: the likelihood of a user's worst interaction."""
        if self.likely is None:
            return None
        worst = np.zeros(len(self.log), dtype=np.float32)
        np.maximum.at(worst, self.log.users(), self.likely[self.log.items])
        return worst

    @property
    def flagged(self) -> NDArray[np.bool_] | None:
        """[users]: who has an interaction that counts nothing."""
        return None if self.suspicion is None else self.suspicion > self.cut

    @property
    def interactions(self) -> Floats | None:
        return None if self.likely is None else self.likely[self.log.items]

    def loss(self, recommender: Recommender, batch: Any) -> torch.Tensor:
        if self.likely is None:
            self._decide(*self.likelihoods())
        return super().loss(recommender, batch)

    def end_epoch(self, recommender: Recommender, epoch: int) -> dict[str, float]:
        events = self.weights.events
        return {} if events is None else {"interactions turned down": float((events == 0).mean())}

    def likelihoods(self) -> tuple[NDArray[np.float32], float]:
        """p [V + 1] = 1 - product over the views of (1 - p_view), and the share of lies in the known fakes' logs."""
        trials = [self._trial(one) for one in self.rounds]
        mine = self._gather(self.log)
        lies, honest = (np.concatenate([trial[place] for trial in trials]) for place in (1, 2))
        spared = np.ones(self.n_items + 1)
        for view in self.spec.views:
            seen = np.concatenate([getattr(trial[0], view) for trial in trials])
            spared *= 1 - calibrate(seen, lies, honest)(getattr(mine, view))
        spared[0] = 1
        likely: NDArray[np.float32] = (1 - spared).astype(np.float32)
        return likely, float(lies.sum() / max(lies.sum() + honest.sum(), 1))

    def _trial(self, known: Poison) -> tuple[Evidence, NDArray[np.int64], NDArray[np.int64]]:
        """Evidence on the log plus a round of known fakes, and how many interactions of each item are lies, or not."""
        pushed = np.isin(known.profiles.items, known.targets)
        lies = np.bincount(known.profiles.items[pushed], minlength=self.n_items + 1)
        return self._gather(self.log.extended(known.profiles)), lies, self.log.counts(self.n_items)

    def _gather(self, log: Sequences) -> Evidence:
        return gather(log, self.n_items, self.vectors, self.rng, counted="log" in self.spec.sources)

    def _decide(self, likely: NDArray[np.float32], base: float) -> None:
        self.likely, self.base = likely, base
        self.cut = max(self.spec.lift * base, _within(likely, self.log.counts(self.n_items), self.spec.budget))
        self.weights = Weights(events=(likely[self.log.items] <= self.cut).astype(np.float32))

    def state(self) -> dict[str, Any]:
        return {} if self.likely is None else {"likely": torch.from_numpy(self.likely), "base": self.base}

    def restore(self, state: dict[str, Any]) -> None:
        if state:
            self._decide(state["likely"].cpu().numpy(), state["base"])


def _within(likely: NDArray[np.float32], holders: NDArray[np.int64], budget: float) -> float:
    """The likelihood above which lie at most a budget's share of all interactions."""
    order = np.argsort(-likely, kind="stable")
    taken = np.cumsum(holders[order])
    first_over = int(np.searchsorted(taken, budget * holders.sum(), side="right"))
    return float(likely[order[first_over]]) if first_over < len(order) else 0.0


def calibrate(seen: Floats, lies: NDArray[np.int64], honest: NDArray[np.int64]) -> "Logistic":
    """Logistic regression by Newton's method: of `lies` + `honest` interactions of each item, how many are lies.

    `seen` [items] is a view's score. The slope is kept at 0 or above: more suspicion never makes an item more innocent.
    """
    n = (lies + honest).astype(np.float64)
    middle, spread = float(np.average(seen, weights=n)), max(float(seen.std()), 1e-9)
    x = np.column_stack([(seen - middle) / spread, np.ones(len(seen))])
    base = math.log((lies.sum() + 0.5) / (honest.sum() + 0.5))
    fitted = np.array([0.0, base])
    for _ in range(100):
        p = _sigmoid(x @ fitted)
        bend = (x * (n * p * (1 - p))[:, None]).T @ x + 1e-6 * np.eye(2)
        step = np.linalg.solve(bend, x.T @ (lies - n * p))
        fitted = fitted + step * min(1.0, 1.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-8:
            break
    if fitted[0] < 0:
        fitted = np.array([0.0, base])
    slope = fitted[0] / spread
    return Logistic(float(slope), float(fitted[1] - slope * middle))


@dataclass(frozen=True)
class Logistic:
    """p = sigmoid(slope * score + offset)."""

    slope: float
    offset: float

    def __call__(self, seen: Floats) -> Floats:
        """The likelihood of each score."""
        return _sigmoid(self.slope * seen + self.offset)


def _sigmoid(x: Floats) -> Floats:
    p: Floats = 1 / (1 + np.exp(-np.clip(x, -30, 30)))
    return p
