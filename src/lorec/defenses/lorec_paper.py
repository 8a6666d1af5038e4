"""LoRec as published (Zhang et al., SIGIR 2024): a calibrator beside the recommender turns down suspicious users.

The calibrator (LCT) reads what the recommender sees of a user, [e_t ; h_t] at every step, learns from known fakes what
fraud looks like, and is drawn by an alignment term towards what a language model says of the same user. Every few
epochs the users above the mean likelihood lose a point of their state and the others share it out (iterative
compensation); a squashed state is the user's weight in the recommender's loss.

Deviations from the published code, each stated where it happens: padding is masked in attention; positions count from
the newest item; batches hold users of like length, so known fakes fall where their length puts them; an update that is
due twice in an epoch happens once.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lorec.data import Floats, Sequences, Weights
from lorec.defenses.guard import Guard
from lorec.detectors.language import Head, calibration_loss
from lorec.errors import ConfigError
from lorec.models import Recommender
from lorec.models.layers import seeded
from lorec.sight import Sight
from lorec.text import View


@dataclass(frozen=True, kw_only=True)
class LoRecPaper:
    """LoRec as published: a calibrator beside the recommender turns down suspicious users (Zhang et al. 2024).

    The paper's losses, states and schedule. It learns where histories are long and needs thirty epochs before it acts;
    `LoRec` is what we make of it where they are short.
    """

    entropy: float = 0.5
    """lambda 1: lets the calibrator become sure about unlabelled users."""
    alignment: float = 1.0
    """lambda 2: draws its view of a user to the language model's; 0: no language model."""
    view: View = "prompt"
    """The language model's of a user: as of LLM4Dec."""
    passes: int = 2
    """Passes of the calibrator over all users after each epoch."""
    learning_rate: float = 1e-2
    """Of the calibrator's AdamW."""
    weight_decay: float = 5e-4
    """Of the calibrator's AdamW."""
    update_every: int = 5
    """Epochs between updates of the states, until the weights enter; twice as many from then on."""
    enter: int = 30
    """The epoch from which on the weights scale the loss."""
    reweighting: Literal["compensation", "threshold"] = "compensation"
    """The paper's iterative compensation, or, to see what that is worth, weight 0 while p_u is .5 or more."""
    tokens: int = 4096
    """Positions in a calibrator's batch; the authors take 512 users, whatever their lengths."""

    def __post_init__(self) -> None:
        if self.reweighting not in ("compensation", "threshold"):
            raise ConfigError(f"reweighting is {self.reweighting!r}; it is compensation or threshold")
        if min(self.entropy, self.alignment) < 0 or self.passes < 1 or self.update_every < 1 or self.enter < 1:
            raise ConfigError("entropy and alignment are 0 or more; passes, update_every and enter are 1 or more")
        figures = (self.entropy, self.alignment, self.learning_rate, self.weight_decay)
        if not all(map(math.isfinite, figures)) or self.learning_rate <= 0 or self.weight_decay < 0 or self.tokens < 1:
            raise ConfigError("learning_rate and tokens are above 0, weight_decay is 0 or more, and all are finite")

    @property
    def needs_text(self) -> bool:
        """Whether it asks a language model."""
        return self.alignment > 0

    def start(self, recommender: Recommender, sight: Sight) -> Guard:
        """It learns from the first round of known fakes: one file of profiles, as the authors have it.

        Raises ConfigError without text (where it aligns) and DataError without known fakes.
        """
        everyone = sight.log.extended(sight.fakes())
        if self.alignment and sight.text is None:
            raise ConfigError("LoRec aligns with a language model's view; give text vectors, or set alignment = 0")
        views = sight.texts(self).users(everyone, view=self.view) if self.alignment else None
        return _PaperGuard(self, recommender, everyone, len(sight.log), views, sight.rng)


class _PaperGuard(Guard):
    def __init__(
        self,
        spec: LoRecPaper,
        recommender: Recommender,
        everyone: Sequences,
        n_users: int,
        views: Floats | None,
        rng: np.random.Generator,
    ) -> None:
        super().__init__(Weights(users=np.ones(n_users, dtype=np.float32)))
        self.spec, self.rng, self.n_users = spec, rng, n_users
        self.everyone = everyone
        self.views = None if views is None else torch.from_numpy(np.asarray(views, dtype=np.float32))
        self.states: Floats = np.full(n_users, START)
        self.likely = np.zeros(n_users, dtype=np.float32)
        self.epoch, self.retry = 0, False
        self.opened, self.updates = 0, 0
        with seeded(int(rng.integers(2**31))):
            dim = 0 if views is None else views.shape[1]
            self.calibrator = Calibrator(2 * recommender.spec.width, dim).to(recommender.device)
        self.optimizer = torch.optim.AdamW(
            self.calibrator.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay
        )

    @property
    def ready(self) -> bool:
        """Weights enter the loss of epoch `enter`, so they are in force once that epoch is over."""
        return self.epoch >= self.spec.enter

    @property
    def suspicion(self) -> Floats:
        """The states, turned over: finer than the weights, which round up."""
        return -self.states if self.spec.reweighting == "compensation" else self.likely.astype(np.float64)

    @property
    def likelihood(self) -> NDArray[np.float32] | None:
        """p_u at the last update; None before the first."""
        return self.likely if self.likely.any() else None

    @property
    def notes(self) -> tuple[str, ...]:
        """How often the gate was shut: a third of all users or more were suspects, and nothing followed."""
        shut = self.updates - self.opened
        return (f"its gate was shut at {shut} of {self.updates} updates, so nothing followed from them",) * bool(shut)

    def end_epoch(self, recommender: Recommender, epoch: int) -> dict[str, float]:
        figures = {"calibrator": sum(self._learn(recommender) for _ in range(self.spec.passes)) / self.spec.passes}
        self.epoch = epoch
        every = self.spec.update_every * (2 if epoch > self.spec.enter else 1)
        if self.retry or epoch % every == 0:
            self.likely = self.likelihoods(recommender)
            if self.spec.reweighting == "compensation":
                self.states, opened = compensate(self.states, self.likely)
                self.retry = not opened
                self.opened, self.updates = self.opened + opened, self.updates + 1
                figures["gate"] = float(opened)
        if epoch + 1 >= self.spec.enter:
            self.weights = Weights(users=self._weights())
        figures["turned down"] = float((self._weights() < 1).mean())
        return figures

    def _weights(self) -> NDArray[np.float32]:
        if self.spec.reweighting == "threshold":
            return (self.likely < 0.5).astype(np.float32)
        return weights_of(self.states)

    def likelihoods(self, recommender: Recommender) -> NDArray[np.float32]:
        """p_u [users]: how likely a fraudster each user is; the language model's view is not asked."""
        self.calibrator.eval()
        likely = np.empty(self.n_users, dtype=np.float32)
        table = self._table(recommender)
        with torch.no_grad():
            for rows, history in recommender.histories(self.everyone, self.spec.tokens, np.arange(self.n_users)):
                logits, _ = self.calibrator(*self._sees(recommender, table, history), None)
                likely[rows] = logits.sigmoid().cpu().numpy()
        return likely

    def _learn(self, recommender: Recommender) -> float:
        """One pass over all users and known fakes; the mean loss. Its dropout takes no draw from the recommender."""
        with seeded(int(self.rng.integers(2**31)), recommender.device):
            return self._passed(recommender)

    def _passed(self, recommender: Recommender) -> float:
        self.calibrator.train()
        table = self._table(recommender)
        order = self.rng.permutation(len(self.everyone))
        batches = list(recommender.histories(self.everyone, self.spec.tokens, order))
        total = 0.0
        for place in self.rng.permutation(len(batches)):
            rows, history = batches[place]
            views = None if self.views is None else self.views[torch.from_numpy(rows)].to(recommender.device)
            logits, alignment = self.calibrator(*self._sees(recommender, table, history), views)
            fake = torch.from_numpy(rows >= self.n_users).to(logits.device)
            loss = calibration_loss(logits, fake, alignment, self.spec.entropy, self.spec.alignment)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += float(loss.detach())
        return total / len(batches)

    @torch.no_grad()
    def _table(self, recommender: Recommender) -> Tensor:
        recommender.eval()
        return recommender.table()

    @torch.no_grad()
    def _sees(self, recommender: Recommender, table: Tensor, history: NDArray[np.int32]) -> tuple[Tensor, Tensor]:
        """x_t = [e_t ; h_t] [B, T, 2H] without gradient, and where it is padding."""
        asked = torch.from_numpy(history).to(table.device)
        return torch.cat([F.embedding(asked, table), recommender(asked, table)], dim=2), asked == 0

    def state(self) -> dict[str, Any]:
        return {
            "calibrator": self.calibrator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "states": torch.from_numpy(self.states),
            "likely": torch.from_numpy(self.likely),
            "epoch": self.epoch,
            "retry": self.retry,
            "opened": self.opened,
            "updates": self.updates,
            "rng": self.rng.bit_generator.state,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.calibrator.load_state_dict(state["calibrator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.states, self.likely = state["states"].cpu().numpy(), state["likely"].cpu().numpy()
        self.epoch, self.retry = state["epoch"], state["retry"]
        self.opened, self.updates = state["opened"], state["updates"]
        self.rng.bit_generator.state = state["rng"]
        if self.epoch + 1 >= self.spec.enter:
            self.weights = Weights(users=self._weights())


# --------------------------------------------------------------------------------------------- the user's weight

START = 3.0
"""Every user's state in the beginning."""


def compensate(states: Floats, likelihoods: Floats) -> tuple[Floats, bool]:
    """One update of the users' states, and whether the gate was open (Zhang et al. 2024, Proposition 1).

    F = {u : p_u > mean p} loses 1 each and the others share what F lost, so that the sum is kept. Where F is a third
    of all users or more nothing happens: the scores say nothing yet.
    """
    suspects = likelihoods > likelihoods.mean(dtype=np.float64)
    n = int(suspects.sum())
    if n == 0 or n >= len(states) / 3:
        return states, False
    return np.where(suspects, states - 1, states + n / (len(states) - n)), True


def weights_of(states: Floats) -> NDArray[np.float32]:
    """w_u = sigmoid(s_u) / sigmoid(3), where what lies between .5 and 1 counts as 1."""
    weights = (1 + math.exp(-START)) / (1 + np.exp(-states))
    return np.where((weights > 0.5) & (weights < 1), 1, weights).astype(np.float32)


# ------------------------------------------------------------------------------------------------ the calibrator


class Calibrator(nn.Module):
    """LCT: a learned token reads the user's steps through two Transformer blocks; p_u is made from its output z_u."""

    def __init__(self, width: int, dim: int, *, heads: int = 2, inner: int = 128, dropout: float = 0.1) -> None:
        """`width` = 2H of x_t = [e_t ; h_t]; `dim` of the language model's vectors, 0 for none."""
        super().__init__()
        self.token = nn.Parameter(torch.empty(1, width))
        nn.init.xavier_normal_(self.token)
        self.first, self.last = (_Block(width, heads, inner, dropout) for _ in range(2))
        self.view = nn.Linear(dim, width) if dim else None  # g_u = GELU(W o_u + b)
        self.head = Head(width, dropout)
        for layer in (self.view, self.head.hidden, self.head.out):
            if layer is not None:
                nn.init.xavier_normal_(layer.weight)

    def forward(self, steps: Tensor, padding: Tensor, views: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Logits of p_u [B], and cos(z_u, g_u) [B] where views [B, dim] are given; steps [B, T, 2H]."""
        z = self.summary(steps, padding)
        logits: Tensor = self.head(z)
        if views is None or self.view is None:
            return logits, None
        return logits, F.cosine_similarity(z, F.gelu(self.view(views)), dim=1)

    def summary(self, steps: Tensor, padding: Tensor) -> Tensor:
        """z_u [B, 2H]: the output at the token. The last block computes nothing else."""
        b, t, width = steps.shape
        steps = steps + _sinusoids(t, width, steps.device)
        sequence = torch.cat([self.token.expand(b, 1, width), steps], dim=1)
        # Ours: padding is masked in attention, where the published code zeroes it and then attends to it.
        seen = F.pad(~padding, (1, 0), value=True)[:, None, None] if bool(padding.any()) else None
        read = self.first(sequence, sequence, seen)
        z: Tensor = self.last(read[:, :1], read, seen)[:, 0]
        return z


class _Block(nn.Module):
    """A pre-norm Transformer block whose queries may be fewer than what they look at."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, queries: Tensor, context: Tensor, seen: Tensor | None) -> Tensor:
        """[B, Q, W] from queries [B, Q, W] that look at context [B, T, W]."""
        p = self.dropout if self.training else 0.0
        looked_at = self.norm_attention(context)
        asked = looked_at if queries is context else self.norm_attention(queries)
        key, value = self.key_value(looked_at).chunk(2, dim=2)
        mixed = F.scaled_dot_product_attention(
            self._by_head(self.query(asked)), self._by_head(key), self._by_head(value), seen, dropout_p=p
        )
        hidden = queries + F.dropout(self.out(mixed.transpose(1, 2).flatten(2)), p)
        fed = self.down(F.dropout(F.gelu(self.up(self.norm_feed(hidden))), p))
        return hidden + F.dropout(fed, p)

    def _by_head(self, hidden: Tensor) -> Tensor:
        b, t, width = hidden.shape
        return hidden.view(b, t, self.heads, width // self.heads).transpose(1, 2)


def _sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """[length, width]: fixed positions, counted from the newest item, so that a batch's width changes nothing."""
    place = torch.arange(length - 1, -1, -1, device=device)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10000.0) / width))
    positions = torch.empty(length, width, device=device)
    positions[:, 0::2], positions[:, 1::2] = torch.sin(place * rate), torch.cos(place * rate)
    return positions
