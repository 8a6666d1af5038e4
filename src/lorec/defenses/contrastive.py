"""Contrastive training: two views of one history are to look alike, and how well they do says what to believe.

They need no known fakes and no texts.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lorec.data import Batch
from lorec.defenses.guard import Guard
from lorec.errors import ConfigError
from lorec.models import Recommender
from lorec.models.losses import mean_loss
from lorec.sight import Sight

Items = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class _Contrastive:
    weight: float = 0.1
    """lambda, of the contrast beside the loss."""
    temperature: float = 1.0
    """Of the contrast's softmax."""

    needs_text: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf or not 0 < self.temperature < math.inf:
            raise ConfigError("contrastive training: weight is 0 or more, and temperature above 0, both finite")

    def start(self: Any, recommender: Recommender, sight: Sight) -> Guard:
        """Nothing is learned beforehand. Raises ConfigError where it must open a recommender and can't."""
        if self.inside:
            recommender.check_open()
        return _ContrastiveGuard(self, sight.rng)


class _ContrastiveGuard(Guard):
    def __init__(self, spec: "StDenoise | CL4SRec", rng: np.random.Generator) -> None:
        super().__init__()
        self.spec, self.rng = spec, rng

    def loss(self, recommender: Recommender, batch: Batch) -> Tensor:
        return self.spec.of(recommender, batch, self.rng)

    def state(self) -> dict[str, Any]:
        return {"rng": self.rng.bit_generator.state}

    def restore(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]


MOST = 512
"""Histories that are contrasted with one another; a batch of short ones holds thousands, and pairs are squares."""


def nt_xent(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Mean over the 2 B views of -log softmax of its partner among all others, by inner products [B, H] each.

    More than `MOST` histories are contrasted in blocks of so many, which also keeps the contrast as hard in any batch.
    """
    if len(one) > MOST:
        parts = [
            nt_xent(*both, temperature) * len(both[0])
            for both in zip(torch.split(one, MOST), torch.split(other, MOST), strict=True)
        ]
        total: Tensor = torch.stack(parts).sum() / len(one)
        return total
    views = torch.cat([one, other])
    scores = views @ views.T / temperature
    scores.fill_diagonal_(-torch.inf)
    partner = torch.arange(len(views), device=views.device).roll(len(one))
    return F.cross_entropy(scores, partner)


@dataclass(frozen=True, kw_only=True)
class CL4SRec(_Contrastive):
    """Contrastive learning for sequential recommendation (Xie et al., ICDE 2022).

    Every history is changed by two different ones of crop, mask and reorder, and the last states of both are contrasted
    with the batch's others. A masked item is left out, where theirs becomes a token of its own. Where a backbone learns
    by prefixes, two prefixes of one user count as others, too.
    """

    inside: ClassVar[bool] = False
    crop: float = 0.6
    """The share of a history that a crop keeps, in one piece."""
    mask: float = 0.3
    """The share of items that are masked."""
    reorder: float = 0.6
    """The share that is shuffled, in one piece."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 < share <= 1 for share in (self.crop, self.mask, self.reorder)):
            raise ConfigError("cl4srec: crop, mask and reorder are shares in (0, 1]")

    def of(self, recommender: Recommender, batch: Batch, rng: np.random.Generator) -> Tensor:
        """The loss of a batch."""
        loss = mean_loss(recommender.losses(batch), batch)
        if not self.weight:
            return loss
        views = self.views(batch.history, rng)
        table = recommender.table()
        one, other = (recommender(torch.from_numpy(view).to(table.device), table)[:, -1] for view in views)
        return loss + self.weight * nt_xent(one, other, self.temperature)

    def views(self, history: Items, rng: np.random.Generator) -> tuple[Items, Items]:
        """Two changed copies of left-padded histories [B, T]; no operator twice for one history."""
        made = np.zeros((2, *history.shape), dtype=np.int32)
        operators = (self._cropped, self._masked, self._reordered)
        for row, items in enumerate(history):
            real = items[items > 0]
            for view, number in enumerate(rng.permutation(3)[:2]):
                changed = operators[number](real, rng)
                if len(changed):
                    made[view, row, -len(changed) :] = changed
        return made[0], made[1]

    def _cropped(self, items: Items, rng: np.random.Generator) -> Items:
        n = max(1, int(self.crop * len(items)))
        start = int(rng.integers(len(items) - n + 1))
        return items[start : start + n]

    def _masked(self, items: Items, rng: np.random.Generator) -> Items:
        return np.delete(items, rng.permutation(len(items))[: min(int(self.mask * len(items)), len(items) - 1)])

    def _reordered(self, items: Items, rng: np.random.Generator) -> Items:
        n = int(self.reorder * len(items))
        start = int(rng.integers(len(items) - n + 1))
        mixed = items.copy()
        mixed[start : start + n] = rng.permutation(items[start : start + n])
        return mixed


@dataclass(frozen=True, kw_only=True)
class StDenoise(_Contrastive):
    """Self-supervised denoising (Ye et al. 2023), in sequential form: a step that fits its history counts more.

    A position's weight is sigmoid(cos(h_t, v of the next item)), without gradient (the authors of LoRec leave it in),
    and states are contrasted with those under a small perturbation of what was read.
    """

    inside: ClassVar[bool] = True
    noise: float = 0.1
    """The perturbation's length, as a share of each vector's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.noise < math.inf:
            raise ConfigError("stdenoise: noise is above 0 and finite")

    def of(self, recommender: Recommender, batch: Batch, rng: np.random.Generator) -> Tensor:
        """The loss of a batch."""
        history, positives = (
            torch.from_numpy(part).to(recommender.device) for part in (batch.history, batch.positives)
        )
        with recommender.keeping_states() as kept:
            losses = recommender.losses(batch)
        (states,) = kept
        with torch.no_grad():
            table = recommender.table()
            weights = self.believed(states, F.embedding(positives, table))
        loss = mean_loss(losses, batch, weights)
        if not self.weight:
            return loss
        with torch.no_grad():
            read = F.embedding(history, table)
            drawn = torch.from_numpy(rng.standard_normal(read.shape, dtype=np.float32)).to(read.device)
            shift = self.noise * read.norm(dim=2, keepdim=True) * F.normalize(drawn, dim=2)
        with recommender.shifted(vectors=shift), recommender.keeping_states() as kept:
            recommender(history, recommender.table())
        alike = nt_xent(states[:, -1], kept[0][:, -1], self.temperature)
        return loss + self.weight * alike

    def believed(self, states: Tensor, following: Tensor) -> Tensor:
        """The weights [B, T] of steps from states to the vectors of what followed, both [B, T, H]; in (.26, .74)."""
        return torch.sigmoid(F.cosine_similarity(states, following, dim=2))
