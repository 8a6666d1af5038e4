"""Adversarial training: the loss is also made small where somebody has pushed the model's vectors against it.

They need no known fakes and no texts. All begin after a warm start, as an unfitted model has nothing to defend.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lorec.data import Batch
from lorec.defenses.guard import Guard
from lorec.errors import ConfigError
from lorec.models import Recommender
from lorec.models.losses import mean_loss
from lorec.sight import Sight

CHUNK = 4_000_000
"""Products of gradients and items in memory at once."""


@dataclass(frozen=True, kw_only=True)
class _Adversarial:
    radius: float = 0.1
    """epsilon: how far a vector is pushed, an absolute length; an id's is .02 sqrt(width) in the beginning."""
    weight: float = 1.0
    """lambda, of the loss under attack beside the plain one."""
    enter: int = 5
    """The epoch from which on it is there."""

    needs_text: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.radius < math.inf or not 0 <= self.weight < math.inf or self.enter < 1:
            raise ConfigError("adversarial training: radius is above 0, weight 0 or more, enter epoch 1 or later")

    def start(self: Any, recommender: Recommender, sight: Sight) -> Guard:
        """Nothing is learned beforehand. Raises ConfigError for a recommender that can't be opened."""
        recommender.check_open()
        return _AdversarialGuard(self, sight.rng)


class _AdversarialGuard(Guard):
    def __init__(self, spec: "APR | VAT | PamaCF | ADV", rng: np.random.Generator) -> None:
        super().__init__()
        self.spec, self.rng, self.epoch = spec, rng, 0

    @property
    def ready(self) -> bool:
        return self.epoch >= self.spec.enter

    def loss(self, recommender: Recommender, batch: Batch) -> Tensor:
        if self.epoch + 1 < self.spec.enter or not self.spec.weight:
            return super().loss(recommender, batch)
        plain, attacked = self.spec.both(recommender, batch, self.rng)
        return mean_loss(plain, batch) + self.spec.weight * mean_loss(attacked, batch)

    def end_epoch(self, recommender: Recommender, epoch: int) -> dict[str, float]:
        self.epoch = epoch
        return {}

    def state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "rng": self.rng.bit_generator.state}

    def restore(self, state: dict[str, Any]) -> None:
        self.epoch, self.rng.bit_generator.state = state["epoch"], state["rng"]


def _unit(gradient: Tensor) -> Tensor:
    """Directions, over the last axis; 0 where there is no gradient."""
    unit: Tensor = gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return unit


@dataclass(frozen=True, kw_only=True)
class APR(_Adversarial):
    """Adversarial personalised ranking (He et al., SIGIR 2018): every item's vector is pushed against the loss.

    delta = radius * gradient / |gradient|, an item at a time; the loss is the recommender's own instead of BPR.
    """

    def both(self, recommender: Recommender, batch: Batch, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Losses [B, T] without and with the attack."""
        shift = torch.zeros(recommender.n_items + 1, recommender.spec.width, device=recommender.device)
        with recommender.shifted(table=shift.requires_grad_()):
            plain = recommender.losses(batch)
        (gradient,) = torch.autograd.grad(mean_loss(plain, batch), shift, retain_graph=True)
        with recommender.shifted(table=self.radius * _unit(gradient)):
            return plain, recommender.losses(batch)


@dataclass(frozen=True, kw_only=True)
class _ByUser(_Adversarial):
    radius: float = 0.5
    """epsilon: how far a state is pushed, at most twice over; an absolute length. A user's is that of a row of a batch:
    of a window of a long history, or of a prefix where a backbone learns by prefixes."""

    def both(self, recommender: Recommender, batch: Batch, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Losses [B, T] without and with the attack."""
        shift = torch.zeros(*batch.history.shape, recommender.spec.width, device=recommender.device)
        with recommender.shifted(states=shift.requires_grad_()), recommender.keeping_states() as kept:
            plain = recommender.losses(batch)
        (gradient,) = torch.autograd.grad(mean_loss(plain, batch), shift, retain_graph=True)
        scored = torch.from_numpy(batch.positives > 0).to(plain.device)
        radii = self.radius * self.radii(plain.detach(), kept[0].detach(), scored)
        with recommender.shifted(states=radii[:, None, None] * _unit(gradient)):
            return plain, recommender.losses(batch)

    def radii(self, losses: Tensor, states: Tensor, scored: Tensor) -> Tensor:
        """[B]: in (0, 2)."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class VAT(_ByUser):
    """Vulnerability-aware adversarial training (RecSys 2024): who is fitted well is attacked harder.

    A user's radius is 2 sigmoid(mean loss / own loss - 1) times epsilon; what is pushed is the state, a sequential
    model's vector of a user.
    """

    def radii(self, losses: Tensor, states: Tensor, scored: Tensor) -> Tensor:
        """[B]: in (0, 2), above 1 for losses below the mean of the batch."""
        own = losses.sum(1) / scored.sum(1).clamp(min=1)
        return 2 * torch.sigmoid(own.mean() / own.clamp(min=1e-12) - 1)


@dataclass(frozen=True, kw_only=True)
class PamaCF(_ByUser):
    """Personalised magnitudes (NeurIPS 2024): whose vector is longer is attacked harder.

    A user's radius is 2 sigmoid(|h|^2 / mean |h|^2 - 1) times epsilon, over a user's states. Where a backbone ends in a
    layer norm all states are about as long, and the radii about 1.
    """

    def radii(self, losses: Tensor, states: Tensor, scored: Tensor) -> Tensor:
        """[B]: in (0, 2), above 1 for states longer than the mean of the batch."""
        own = (states.square().sum(2) * scored).sum(1) / scored.sum(1).clamp(min=1)
        return 2 * torch.sigmoid(own / own.mean().clamp(min=1e-12) - 1)


@dataclass(frozen=True, kw_only=True)
class ADV(_Adversarial):
    """Adversarial substitution (Yue et al. 2022): some items of a history become, by a share, those that hurt most.

    On the simplex of items, a step of `radius` from the item to the one along which the loss rises most, to first
    order (a Frank-Wolfe step). Made against polluted histories of genuine users; works on any kind of items.
    """

    radius: float = 0.3
    """How far from the item to the other one, 1 replaces it."""
    share: float = 0.2
    """Of a batch's positions, drawn anew every time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1 or self.radius > 1:
            raise ConfigError("adv: share lies in (0, 1], and radius in (0, 1]")

    def both(self, recommender: Recommender, batch: Batch, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Losses [B, T] without and with the attack."""
        shift = torch.zeros(*batch.history.shape, recommender.spec.width, device=recommender.device)
        with recommender.shifted(vectors=shift.requires_grad_()):
            plain = recommender.losses(batch)
        (gradient,) = torch.autograd.grad(mean_loss(plain, batch), shift, retain_graph=True)
        chosen = torch.from_numpy((rng.random(batch.history.shape) < self.share) & (batch.history > 0))
        with torch.no_grad():
            table = recommender.table()
            read = torch.from_numpy(batch.history).to(table.device)[chosen]
            rows = torch.split(gradient[chosen], max(1, CHUNK // len(table)))
            worst = torch.cat([(some @ table[1:].T).argmax(1) for some in rows]) + 1
            steps = torch.zeros_like(shift)
            steps[chosen] = self.radius * (F.embedding(worst, table) - F.embedding(read, table))
        with recommender.shifted(vectors=steps):
            return plain, recommender.losses(batch)
