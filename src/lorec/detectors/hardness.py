"""What a next-item model finds hard to learn, as robust losses take it for noise."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from lorec.attacks.sequential import learned
from lorec.data import Floats
from lorec.detectors.reasons import Names, than
from lorec.detectors.suspicion import Suspicion, worst
from lorec.errors import ConfigError
from lorec.sight import Sight


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Whose interactions a small SASRec still finds hard after a few epochs, by the rank of their training loss.

    What T-CE drops and `trimmed` leaves out (Wang et al., WSDM 2021), as an opinion. A push is hard only at first: what
    many accounts repeat is soon learned better than anything genuine, so more epochs turn the order around.
    """

    epochs: int = 2
    """Of the model's training."""
    width: int = 32
    """Of the model."""
    looks: int = 4
    """Times that losses are taken, each with negatives of its own, and averaged."""
    share: float = 0.01
    """Of users, that it accuses."""

    needs_text: ClassVar[bool] = False
    needs_known: ClassVar[bool] = False
    decides: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.epochs, self.width, self.looks) < 1 or not 0 < self.share < 1:
            raise ConfigError("loss: epochs, width and looks are 1 or more, share is in (0, 1)")

    def detect(self, sight: Sight) -> Suspicion:
        """Mean losses of users and of single interactions; one that is no positive counts as the mean does."""
        log, single = sight.log, self._losses(sight)
        known_ones = np.isfinite(single)
        usual = float(single[known_ones].mean()) if known_ones.any() else 0.0
        rows = log.users()[known_ones]
        sums = np.bincount(rows, single[known_ones], len(log))
        counts = np.bincount(rows, minlength=len(log))
        users = np.where(counts > 0, sums / np.maximum(counts, 1), usual)

        def why(user: int, names: Names) -> str:
            mine = np.arange(log.starts[user], log.starts[user + 1])
            hard = mine[known_ones[mine]]
            hard = hard[np.argsort(-single[hard], kind="stable")][:3]
            steps = ", ".join(f"{names.item(log.items[at])} ({single[at]:.1f})" for at in hard)
            return (
                f"a model's mean loss is {users[user]:.2f}, where {usual:.2f} is usual ({than(users, user, 'users')}); "
                f"hardest: {steps or 'nothing'}"
            )

        return Suspicion(
            users=users, flagged=worst(users, self.share), interactions=np.where(known_ones, single, usual), why=why
        )

    def _losses(self, sight: Sight) -> Floats:
        """[events]: NaN for the first of a history, which nothing goes before."""
        log, rng = sight.log, sight.rng
        model = learned(log, sight.n_items, rng, self.width, self.epochs).eval()
        total, seen = np.zeros(len(log.items)), np.zeros(len(log.items))
        with torch.no_grad():
            for _ in range(self.looks):
                for batch in model.feed(log, 16_384).epoch(rng):
                    real = batch.positives > 0
                    total[batch.events[real]] += model.losses(batch).numpy()[real]
                    seen[batch.events[real]] += 1
        return np.where(seen > 0, total / np.maximum(seen, 1), np.nan)
