"""What a recommender is trained to do: a loss for each position of a batch.

A Loss is a spec with one verb, `losses(recommender, batch) -> [B, T]`, and says which negatives it wants drawn. Weights
per user or interaction scale what it gives (`mean_loss`), so every loss takes them.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lorec.data import Batch
from lorec.errors import ConfigError
from lorec.registry import one_of

if TYPE_CHECKING:
    from lorec.models import Recommender

Sampling = Literal["uniform", "popularity"]


class Loss(Protocol):
    """The spec of a loss."""

    @property
    def negatives(self) -> int:
        """How many negatives each positive gets."""
        ...

    @property
    def sampling(self) -> Sampling:
        """Negatives uniform over items, or as often as items occur in the log (each once more than that)."""
        ...

    def losses(self, recommender: "Recommender", batch: Batch) -> Tensor:
        """[B, T]: what is to be made small at each position; 0 where there is no positive."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Sampled:
    negatives: int = 1
    """Negatives for each positive, drawn anew every time; never what the user's training history holds."""
    sampling: Sampling = "uniform"
    """Uniform over items, or as often as an item occurs in the log (and once more)."""

    def __post_init__(self) -> None:
        if self.negatives < 1:
            raise ConfigError(f"negatives is {self.negatives}; this loss needs at least 1")
        one_of("sampling", self.sampling, Sampling)

    def losses(self, recommender: "Recommender", batch: Batch) -> Tensor:
        """[B, T]: what is to be made small at each position; 0 where there is no positive."""
        return self.parts(recommender, batch)[0]

    def parts(self, recommender: "Recommender", batch: Batch) -> tuple[Tensor, Tensor]:
        """[B, T] twice: the losses, and what of each is its positive's own."""
        logits, scored = candidate_logits(recommender, batch)
        both = logits.new_zeros((2, *scored.shape))
        both[:, scored] = torch.stack(self._of(logits, recommender.n_items, batch, scored))
        return both[0], both[1]

    def _of(self, logits: Tensor, n_items: int, batch: Batch, scored: Tensor) -> tuple[Tensor, Tensor]:
        """[N] twice of logits [N, 1 + k], the positive's first; where all compete, all is the positive's."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class BCE(_Sampled):
    """Binary cross-entropy of the next item and of sampled ones, -log s(+) - sum of log s(-), as SASRec and LoRec."""

    def _of(self, logits: Tensor, n_items: int, batch: Batch, scored: Tensor) -> tuple[Tensor, Tensor]:
        own = F.softplus(-logits[:, 0])
        return own + F.softplus(logits[:, 1:]).sum(1), own


@dataclass(frozen=True, kw_only=True)
class GBCE(_Sampled):
    """Binary cross-entropy that does not grow overconfident on few negatives (gSASRec, Petrov, Macdonald 2023).

    The positive's likelihood is raised to beta = a (t (1 - 1 / a) + 1 / a), a = k / (V - 1).
    """

    negatives: int = 64
    """Negatives for each positive, drawn anew every time; never what the user's training history holds."""
    calibration: float = 0.75
    """t: 0 is plain binary cross-entropy, 1 corrects wholly for how few negatives were drawn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.calibration <= 1:
            raise ConfigError(f"calibration is {self.calibration}; it lies in [0, 1]")

    def _of(self, logits: Tensor, n_items: int, batch: Batch, scored: Tensor) -> tuple[Tensor, Tensor]:
        drawn = min(self.negatives / max(n_items - 1, 1), 1.0)
        beta = drawn * (self.calibration * (1 - 1 / drawn) + 1 / drawn)
        own = beta * F.softplus(-logits[:, 0])
        return own + F.softplus(logits[:, 1:]).sum(1), own


@dataclass(frozen=True, kw_only=True)
class SampledSoftmax(_Sampled):
    """Softmax over the next item and sampled ones, each counted for the items that it stands for.

    A negative's score gets -log(k q), q its chance of being drawn, so that the sum is right on average (Bengio,
    Senecal 2008). The positive is always there and gets nothing. What the user took before is never drawn, so it
    does not compete; q is not raised by the chance that such draws had (.2 % of draws on Amazon Games, 4 % on
    MovieLens-1M by popularity), which would shift all of a user's negatives alike.
    """

    negatives: int = 64
    """Negatives for each positive, drawn anew every time; never what the user's training history holds."""

    def _of(self, logits: Tensor, n_items: int, batch: Batch, scored: Tensor) -> tuple[Tensor, Tensor]:
        chances = torch.full_like(logits[:, 1:], -math.log(max(n_items - 1, 1)))
        if batch.chances is not None:
            chances = torch.from_numpy(batch.chances).to(logits.device)[scored]
        corrected = torch.cat([logits[:, :1], logits[:, 1:] - chances - math.log(self.negatives)], dim=1)
        losses: Tensor = torch.logsumexp(corrected, 1) - logits[:, 0]
        return losses, losses


@dataclass(frozen=True, kw_only=True)
class Softmax:
    """Softmax over the whole catalogue, a chunk of positions at a time, so that memory stays flat."""

    chunk: int = 4_000_000
    """Scores in memory at once."""

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ConfigError(f"chunk is {self.chunk}; it must be at least 1")

    @property
    def negatives(self) -> int:
        """None are drawn."""
        return 0

    @property
    def sampling(self) -> Sampling:
        """None are drawn."""
        return "uniform"

    def losses(self, recommender: "Recommender", batch: Batch) -> Tensor:
        """[B, T]: -log of the positive's share; what a chunk needs for its gradient is computed again, not kept."""
        history = torch.from_numpy(batch.history).to(recommender.device)
        positives = torch.from_numpy(batch.positives).to(recommender.device).long()
        scored, table = positives > 0, recommender.table()
        states, wanted = recommender(history, table)[scored], positives[scored]
        size = max(1, self.chunk // len(table))
        with recommender.products():
            parts: list[Tensor] = [
                checkpoint(_cross_entropy, some, table, which, use_reentrant=False)
                for some, which in zip(torch.split(states, size), torch.split(wanted, size), strict=True)
            ]
        found: Tensor = states.new_zeros(scored.shape)
        found[scored] = torch.cat(parts)
        return found


def _cross_entropy(states: Tensor, table: Tensor, wanted: Tensor) -> Tensor:
    losses: Tensor = F.cross_entropy((states @ table[1:].T).float(), wanted - 1, reduction="none")
    return losses


LOSSES: dict[str, type] = {"bce": BCE, "gbce": GBCE, "sampled-softmax": SampledSoftmax, "softmax": Softmax}


def candidate_logits(recommender: "Recommender", batch: Batch) -> tuple[Tensor, Tensor]:
    """<h_t, v> of each positive and its negatives [N, 1 + k], and where they stand in the batch [B, T].

    All rows that the batch needs are looked up at once, so that the backward pass scatters into the table once.
    """
    history, positives, negatives = (
        torch.from_numpy(part).to(recommender.device) for part in (batch.history, batch.positives, batch.negatives)
    )
    scored = positives > 0
    candidates = torch.cat([positives[..., None], negatives], dim=2)[scored]
    asked = torch.cat([history.flatten(), candidates.flatten()])
    vectors = F.embedding(asked, recommender.table(), padding_idx=0)
    read, compared = vectors[: history.numel()], vectors[history.numel() :]
    states = recommender.encode(read.view(*history.shape, -1), history == 0)[scored]
    return (compared.view(*candidates.shape, -1) @ states[:, :, None])[:, :, 0], scored


def mean_loss(losses: Tensor, batch: Batch, weights: Tensor | None = None) -> Tensor:
    """The mean over real positions of the weighted losses [B, T]; weights do not change the divisor."""
    total = losses.sum() if weights is None else (losses * weights).sum()
    return total / int((batch.positives > 0).sum())
