"""Robust losses: what the model fits badly counts less, whoever did it.

They need no known fakes and no texts. A fraudster's step to a target is hard to fit only until it is fitted, and a
niche taste is hard to fit for ever: what these cost honest users is to be looked at.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lorec.data import Batch, Floats, Weights
from lorec.defenses.guard import Guard
from lorec.errors import ConfigError
from lorec.models import Backbone, Recommender
from lorec.models.losses import mean_loss
from lorec.sight import Sight

# ---------------------------------------------------------------------------------------- weights within a batch


class _Reweighted(Guard):
    """A guard that weighs each batch by its positives' own losses.

    A position keeps or loses its negatives with its positive, where the papers take negatives for examples by
    themselves: here they are drawn for that positive. Of a loss that tells no parts (`Recommender.parts`) all counts.
    """

    def __init__(self, spec: "TCE | RCE | PLD", rng: np.random.Generator) -> None:
        super().__init__()
        self.spec, self.rng, self.step = spec, rng, 0

    def loss(self, recommender: Recommender, batch: Batch) -> Tensor:
        losses, own = recommender.parts(batch)
        scored = torch.from_numpy(batch.positives > 0).to(losses.device)
        weights = self.spec.weigh(own.detach(), scored, self.step, self.rng)
        self.step += 1
        return mean_loss(losses, batch, weights)

    def state(self) -> dict[str, Any]:
        return {"step": self.step, "rng": self.rng.bit_generator.state}

    def restore(self, state: dict[str, Any]) -> None:
        self.step, self.rng.bit_generator.state = state["step"], state["rng"]


@dataclass(frozen=True, kw_only=True)
class _Losses:
    """What the three have in common: no text, no known fakes."""

    needs_text: ClassVar[bool] = False

    def start(self: Any, recommender: Recommender, sight: Sight) -> Guard:
        """Nothing is learned beforehand. Raises ConfigError as `suits` does."""
        self.suits(recommender.spec)
        return _Reweighted(self, sight.rng)

    def suits(self, backbone: Backbone) -> None:
        """Any backbone will do, unless a defense says otherwise."""


@dataclass(frozen=True, kw_only=True)
class TCE(_Losses):
    """Truncated cross-entropy: a batch's positives of the largest losses count nothing (Wang et al. 2021)."""

    most: float = 0.1
    """The share of positives that is dropped in the end."""
    rise: int = 1000
    """Optimizer steps until then; the share grows evenly."""

    def __post_init__(self) -> None:
        if not 0 <= self.most < 1 or self.rise < 1:
            raise ConfigError("tce: most is a share in [0, 1), and rise 1 step or more")

    def weigh(self, losses: Tensor, scored: Tensor, step: int, rng: np.random.Generator) -> Tensor:
        """[B, T]: 0 for the largest losses, and for the others as much more, so that the mean is over those kept."""
        n = int(scored.sum())
        dropped = int(n * min(self.most * step / self.rise, self.most))
        weights = scored.float()
        if dropped:
            weights.view(-1)[losses.masked_fill(~scored, -math.inf).view(-1).topk(dropped).indices] = 0
        return weights * (n / weights.sum().clamp(min=1))


@dataclass(frozen=True, kw_only=True)
class RCE(_Losses):
    """Reweighted cross-entropy: a position counts by how likely the model finds it (Wang et al. 2021).

    The weight is e^(-beta loss) of the positive, under BCE its likelihood to the power of beta. Without gradient.
    """

    beta: float = 0.1
    """0: all count alike."""

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:
            raise ConfigError("rce: beta is 0 or more and finite")

    def weigh(self, losses: Tensor, scored: Tensor, step: int, rng: np.random.Generator) -> Tensor:
        """[B, T]"""
        return (-self.beta * losses).exp()


@dataclass(frozen=True, kw_only=True)
class PLD(_Losses):
    """Positives are drawn again from each user's own losses (Zhang et al., WWW 2025, personal loss distribution).

    For every positive of a history `candidates` of its positives are drawn, and one of them is kept with probability
    softmax(-loss / temperature). They draw once a user and step; a draw for each of a history's positives is the same
    on average, and every user keeps as much weight as they have positives. A history that is longer than the
    recommender's length is drawn from window by window, as it is trained on.
    """

    candidates: int = 5
    """k: 1 is plain training on average."""
    temperature: float = 0.1
    """The lower, the more surely the smallest loss is kept."""

    def __post_init__(self) -> None:
        if self.candidates < 1 or not 0 < self.temperature < math.inf:
            raise ConfigError("pld: candidates is 1 or more, and temperature above 0 and finite")

    def suits(self, backbone: Backbone) -> None:
        """Raise ConfigError for a backbone that is trained on one positive of a history at a time."""
        if not backbone.causal:
            raise ConfigError(
                "pld draws among a history's positives, and this backbone is trained on one at a time; take a causal "
                "one (fmlp: circular = false)"
            )

    def weigh(self, losses: Tensor, scored: Tensor, step: int, rng: np.random.Generator) -> Tensor:
        """[B, T]: how often each positive was kept."""
        values, real = losses.cpu().numpy().astype(np.float64), scored.cpu().numpy()
        rows, columns = np.nonzero(real)
        n = real.sum(1)
        first = np.cumsum(n) - n
        drawn = first[rows][:, None] + (rng.random((len(rows), self.candidates)) * n[rows][:, None]).astype(np.int64)
        # The largest of logits and Gumbel noise: a draw from their softmax.
        noisy = -values[rows, columns][drawn] / self.temperature + rng.gumbel(size=drawn.shape)
        kept = drawn[np.arange(len(rows)), noisy.argmax(1)]
        weights = np.zeros(real.shape, dtype=np.float32)
        np.add.at(weights, (rows[kept], columns[kept]), 1)
        return torch.from_numpy(weights).to(losses.device)


# ------------------------------------------------------------------------------------------ weights between epochs


@dataclass(frozen=True, kw_only=True)
class Trimmed:
    """The users whom the model fits worst count nothing in the next epoch (trimmed learning)."""

    share: float = 0.02
    """Of users, that is turned down."""
    enter: int = 3
    """The epoch after which it begins: before, everybody is fitted badly."""

    needs_text: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1 or self.enter < 1:
            raise ConfigError("trimmed: share lies in [0, 1), and enter is epoch 1 or later")

    def start(self, recommender: Recommender, sight: Sight) -> Guard:
        """Nothing is learned beforehand."""
        return _TrimmedGuard(self, len(sight.log))


class _TrimmedGuard(Guard):
    def __init__(self, spec: Trimmed, n_users: int) -> None:
        super().__init__(Weights(users=np.ones(n_users, dtype=np.float32)))
        self.spec, self.sums, self.counts = spec, np.zeros(n_users), np.zeros(n_users)
        self.mean: Floats | None = None
        """[users]: mean losses of the last epoch."""
        self.weighed = False
        """Whether weights stood in the losses of the last epoch."""

    @property
    def ready(self) -> bool:
        return self.weighed

    @property
    def suspicion(self) -> Floats | None:
        return self.mean

    def loss(self, recommender: Recommender, batch: Batch) -> Tensor:
        losses = recommender.losses(batch)
        np.add.at(self.sums, batch.users, losses.detach().sum(1).cpu().numpy())
        np.add.at(self.counts, batch.users, (batch.positives > 0).sum(1))
        return mean_loss(losses, batch, torch.from_numpy(self.weights.of(batch)).to(losses.device))

    def end_epoch(self, recommender: Recommender, epoch: int) -> dict[str, float]:
        mean = self.sums / np.maximum(self.counts, 1)
        self.sums, self.counts = 0 * self.sums, 0 * self.counts
        self.weighed = self.mean is not None
        if epoch >= self.spec.enter:
            self._set(mean)
        assert self.weights.users is not None
        return {"turned down": float((self.weights.users < 1).mean())}

    def _set(self, mean: Floats) -> None:
        self.mean = mean
        weights = np.ones(len(mean), dtype=np.float32)
        weights[np.argsort(-mean, kind="stable")[: int(self.spec.share * len(mean))]] = 0
        self.weights = Weights(users=weights)

    def state(self) -> dict[str, Any]:
        return {} if self.mean is None else {"mean": torch.from_numpy(self.mean), "weighed": self.weighed}

    def restore(self, state: dict[str, Any]) -> None:
        if state:
            self.weighed = state["weighed"]
            self._set(state["mean"].cpu().numpy())
