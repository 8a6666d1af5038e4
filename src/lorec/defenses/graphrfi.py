"""GraphRfi (Zhang et al., SIGIR 2020), in sequential form: a neural random forest beside the recommender."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lorec.data import Floats, Sequences, Weights
from lorec.defenses.guard import Guard
from lorec.errors import ConfigError
from lorec.models import Recommender
from lorec.models.layers import seeded
from lorec.sight import Sight


@dataclass(frozen=True, kw_only=True)
class GraphRfi:
    """A forest judges each user by state and prediction error; the likelihood of being genuine weighs their loss.

    Known fakes of the first round are fraud, the log's users genuine. The recommender is any backbone instead of a
    graph network, the error is the mean training loss of a user's history, taken the same way (in evaluation mode) of
    known fakes and users, and the two learn in turns, an epoch each, instead of together.
    """

    trees: int = 5
    """In the forest."""
    depth: int = 3
    """Of each: 2^depth leaves."""
    passes: int = 5
    """Of the forest over all users after each epoch."""
    learning_rate: float = 1e-2
    """Of the forest's AdamW."""
    batch: int = 1024
    """Users in a batch of the forest's."""

    needs_text: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if min(self.trees, self.depth, self.passes, self.batch) < 1 or not 0 < self.learning_rate < math.inf:
            raise ConfigError("graphrfi: trees, depth, passes and batch are 1 or more, learning_rate is above 0")

    def start(self, recommender: Recommender, sight: Sight) -> Guard:
        """Raises DataError without known fakes."""
        return _ForestGuard(self, recommender, sight.log.extended(sight.fakes()), len(sight.log), sight.rng)


class _ForestGuard(Guard):
    def __init__(
        self, spec: GraphRfi, recommender: Recommender, everyone: Sequences, n_users: int, rng: np.random.Generator
    ) -> None:
        super().__init__()
        self.spec, self.everyone, self.n_users, self.rng = spec, everyone, n_users, rng
        self.likely: NDArray[np.float32] | None = None
        """[users]: of fraud."""
        self.weighed = False
        """Whether weights stood in the losses of the last epoch."""
        with seeded(int(rng.integers(2**31))):
            self.forest = Forest(recommender.spec.width + 1, spec.trees, spec.depth).to(recommender.device)
        self.optimizer = torch.optim.AdamW(self.forest.parameters(), lr=spec.learning_rate)

    @property
    def ready(self) -> bool:
        return self.weighed

    @property
    def suspicion(self) -> Floats | None:
        return None if self.likely is None else self.likely.astype(np.float64)

    @property
    def flagged(self) -> NDArray[np.bool_] | None:
        return None if self.likely is None else self.likely >= 0.5

    def end_epoch(self, recommender: Recommender, epoch: int) -> dict[str, float]:
        seen = self._features(recommender)
        fake = torch.arange(len(seen), device=seen.device) >= self.n_users
        total = 0.0
        for _ in range(self.spec.passes):
            parts = np.array_split(self.rng.permutation(len(seen)), math.ceil(len(seen) / self.spec.batch))
            for rows in parts:
                some = torch.from_numpy(rows).to(seen.device)
                loss = F.nll_loss(self.forest(seen[some]), fake[some].long())
                self.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                total += float(loss.detach()) / len(parts) / self.spec.passes
        self.weighed = self.likely is not None
        with torch.no_grad():
            self._set(self.forest(seen[: self.n_users])[:, 1].exp().clamp(max=1).cpu().numpy())
        return {"forest": total}

    @torch.no_grad()
    def _features(self, recommender: Recommender) -> Tensor:
        """[users and known fakes, H + 1]: the newest state and the mean loss, standardised."""
        recommender.eval()
        n, device = len(self.everyone), recommender.device
        states, sums, counts = torch.zeros(n, recommender.spec.width, device=device), np.zeros(n), np.zeros(n)
        table = recommender.table()
        for rows, history in recommender.histories(self.everyone, 16_384):
            states[torch.from_numpy(rows).to(device)] = recommender.newest(torch.from_numpy(history).to(device), table)
        for batch in recommender.feed(self.everyone, 16_384).epoch(self.rng):
            np.add.at(sums, batch.users, recommender.losses(batch).sum(1).cpu().numpy())
            np.add.at(counts, batch.users, (batch.positives > 0).sum(1))
        known = counts > 0  # a history of one item has no loss: it is as usual
        mean = sums[known].sum() / max(counts.sum(), 1)
        errors = torch.from_numpy(np.where(known, sums / np.maximum(counts, 1), mean)).float().to(device)
        seen = torch.cat([states, errors[:, None]], dim=1)
        return (seen - seen.mean(0)) / seen.std(0).clamp(min=1e-6)

    def _set(self, likely: NDArray[np.float32]) -> None:
        self.likely = likely
        self.weights = Weights(users=1 - likely)

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "weighed": self.weighed,
            "forest": self.forest.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.bit_generator.state,
        }
        return found if self.likely is None else found | {"likely": torch.from_numpy(self.likely)}

    def restore(self, state: dict[str, Any]) -> None:
        self.forest.load_state_dict(state["forest"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.bit_generator.state, self.weighed = state["rng"], state["weighed"]
        if "likely" in state:
            self._set(state["likely"].cpu().numpy())


class Forest(nn.Module):
    """Trees whose nodes send a part of each row left, whose leaves hold two likelihoods (Kontschieder et al. 2015)."""

    def __init__(self, width: int, trees: int, depth: int) -> None:
        super().__init__()
        self.trees, self.depth = trees, depth
        self.nodes = nn.Linear(width, trees * (2**depth - 1))
        self.leaves = nn.Parameter(torch.randn(trees, 2**depth, 2) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Log-likelihoods [B, 2] of genuine and fraud: the mean over trees."""
        left = torch.sigmoid(self.nodes(x)).view(len(x), self.trees, -1)
        reached = left.new_ones(len(x), self.trees, 1)
        for level in range(self.depth):  # nodes in order of levels, each level from left to right
            here = left[:, :, 2**level - 1 : 2 ** (level + 1) - 1]
            reached = torch.stack([reached * here, reached * (1 - here)], dim=3).flatten(2)
        said: Tensor = torch.einsum("btl,tlc->bc", reached, self.leaves.softmax(2)) / self.trees
        return said.clamp(min=1e-7).log()
