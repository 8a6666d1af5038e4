"""What a recommender is trained to do: a loss for each position of a batch."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lorec.data import Batch
from lorec.models import Recommender


@dataclass(frozen=True)
class Tensors:
    """A batch on a device."""

    history: Tensor
    """[B, T]"""
    positives: Tensor
    """[B, T]"""
    negatives: Tensor
    """[B, T, k]"""

    @staticmethod
    def of(batch: Batch, device: torch.device) -> "Tensors":
        """Move what the loss needs."""
        return Tensors(
            *(torch.from_numpy(part).to(device) for part in (batch.history, batch.positives, batch.negatives))
        )


def binary_cross_entropy(recommender: Recommender, batch: Batch) -> Tensor:
    """[B, T]: -log s(<h_t, v+>) - sum over the k negatives of log s(-<h_t, v->); 0 at padding (METHOD: setting).

    All rows that the batch needs are looked up at once, so that the backward pass scatters into the table once.
    """
    on = Tensors.of(batch, recommender.device)
    asked = torch.cat([on.history[..., None], on.positives[..., None], on.negatives], dim=2)
    vectors = F.embedding(asked, recommender.table(), padding_idx=0)
    states = recommender.encode(vectors[:, :, 0], on.history == 0)
    logits = (vectors[:, :, 1:] * states[:, :, None]).sum(-1)
    losses = F.softplus(-logits[..., 0]) + F.softplus(logits[..., 1:]).sum(-1)
    return losses * (on.positives > 0)


def mean_loss(losses: Tensor, batch: Batch, weights: Tensor | None = None) -> Tensor:
    """The mean over real positions of the weighted losses [B, T]; weights do not change the divisor."""
    total = losses.sum() if weights is None else (losses * weights).sum()
    return total / int((batch.positives > 0).sum())
