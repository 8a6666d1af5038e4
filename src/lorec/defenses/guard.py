"""The Guard: a defense at work. This one, without more, is undefended training."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorec.data import TURNED_DOWN, Batch, Weights
from lorec.models import Recommender
from lorec.models.losses import mean_loss


class Guard:
    """Undefended training, and what every defense starts from."""

    def __init__(self, weights: Weights | None = None) -> None:
        self.weights = weights or Weights()

    @property
    def ready(self) -> bool:
        """Whether the defense is in force, so that early stopping may begin to count."""
        return True

    @property
    def suspicion(self) -> NDArray[np.floating[Any]] | None:
        """[users]: higher is worse, as fine as the defense knows it; None where it has no opinion on users."""
        return None if self.weights.users is None else 1 - self.weights.users

    @property
    def likelihood(self) -> NDArray[np.floating[Any]] | None:
        """[users]: a fraud likelihood that suspicion follows from; None where suspicion is all there is."""
        return None

    @property
    def flagged(self) -> NDArray[np.bool_] | None:
        """[users]: the defense's own decision, who is turned down."""
        return None if self.weights.users is None else self.weights.users <= TURNED_DOWN

    @property
    def interactions(self) -> NDArray[np.floating[Any]] | None:
        """[events]: how suspicious each interaction is; None where the defense has no opinion on single ones."""
        return None

    @property
    def items(self) -> NDArray[np.floating[Any]] | None:
        """[V + 1]: how likely each item is pushed; None where the defense has no opinion on items."""
        return None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of its figures must know."""
        return ()

    def loss(self, recommender: Recommender, batch: Batch) -> Tensor:
        """The loss to descend."""
        losses = recommender.losses(batch)
        if self.weights.users is None and self.weights.events is None:
            return mean_loss(losses, batch)
        return mean_loss(losses, batch, torch.from_numpy(self.weights.of(batch)).to(losses.device))

    def end_epoch(self, recommender: Recommender, epoch: int) -> dict[str, float]:
        """What the defense does after an epoch (counted from 1); figures for the training history."""
        return {}

    def state(self) -> dict[str, Any]:
        """Everything that changes: nested dicts of tensors and of what JSON can hold."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state where it was left."""
