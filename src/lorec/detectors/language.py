"""What a language model says of users: LLM4Dec (Zhang et al., SIGIR 2024), and a judgement without any example."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lorec.data import Floats
from lorec.detectors.reasons import Names, than
from lorec.detectors.suspicion import Suspicion
from lorec.errors import ConfigError, DataError
from lorec.models.layers import seeded
from lorec.sight import Sight
from lorec.text import View


@dataclass(frozen=True, kw_only=True)
class LLM4Dec:
    """A detector on a language model's view of users alone (Zhang et al. 2024).

    g_u = GELU(W o_u + b), then LoRec's own head; known fakes are 1, all users of the log 0, with LoRec's entropy term.
    It accuses from a p_u of .5 on. It learns once, before any recommender, and stops by itself: a
    `held` share of known fakes and of users, still 0, is kept back, and the epoch with the least cross-entropy there is
    taken. The published trainer can't run; sizes, stop and schedule are ours.
    """

    entropy: float = 0.5
    """lambda 1: lets it become sure about unlabelled users."""
    view: View = "prompt"
    """Of users: the paper's question over all titles, or the mean of their items' vectors."""
    width: int = 128
    """Of g_u."""
    learning_rate: float = 1e-2
    """Of AdamW."""
    weight_decay: float = 5e-4
    """Of AdamW."""
    batch: int = 512
    """Users in a batch."""
    epochs: int = 100
    """At most."""
    patience: int = 10
    """Epochs without a better one before it stops."""
    held: float = 0.2
    """The share kept back."""

    needs_text: ClassVar[bool] = True
    needs_known: ClassVar[bool] = True
    decides: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if (
            not 0 <= self.entropy < math.inf
            or min(self.width, self.batch, self.epochs, self.patience) < 1
            or not 0 < self.held < 1
        ):
            raise ConfigError(
                "llm4dec: entropy is 0 or more and finite, width, batch, epochs, patience 1 or more, held in (0, 1)"
            )
        if not 0 < self.learning_rate < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ConfigError("llm4dec: learning_rate is above 0 and weight_decay 0 or more, both finite")

    def detect(self, sight: Sight) -> Suspicion:
        """p_u [users] by the best epoch; learned from the first round of known fakes, as LoRec as published does.

        Raises ConfigError without text and DataError where there are fewer than two known fakes.
        """
        log, fakes, text = sight.log, sight.fakes(), sight.texts(self)
        if len(fakes) < 2:
            raise DataError("llm4dec keeps some known fakes back to know when to stop; give two or more")
        views = torch.from_numpy(text.users(log.extended(fakes), view=self.view))
        likely = self._learned(views, torch.arange(len(views)) >= len(log), sight.rng)[: len(log)]
        users = likely.astype(np.float64)

        def why(user: int, names: Names) -> str:
            return (
                f"its titles look like known fakes' to a language model: likelihood {users[user]:.2f}, where "
                f"{np.median(users):.2f} is usual ({than(users, user, 'users')})"
            )

        return Suspicion(users=users, flagged=likely >= 0.5, why=why)

    def _learned(self, views: Tensor, fake: Tensor, rng: np.random.Generator) -> NDArray[np.float32]:
        """p_u of all [users and known fakes]."""
        n_users = int((~fake).sum())
        held = torch.zeros(len(fake), dtype=torch.bool)
        for these in (np.arange(n_users), np.arange(n_users, len(fake))):
            n = min(max(1, round(self.held * len(these))), len(these) - 1)
            held[torch.from_numpy(rng.choice(these, n, replace=False))] = True
        with seeded(int(rng.integers(2**31))):
            judge = nn.Sequential(nn.Linear(views.shape[1], self.width), nn.GELU(), Head(self.width, 0.1))
            optimizer = torch.optim.AdamW(judge.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
            learned, best, best_epoch, likely = np.flatnonzero(~held.numpy()), math.inf, 0, np.empty(0, np.float32)
            for epoch in range(self.epochs):
                judge.train()
                for rows in np.array_split(rng.permutation(learned), math.ceil(len(learned) / self.batch)):
                    some = torch.from_numpy(rows)
                    logits = judge(views[some])
                    loss = calibration_loss(logits, fake[some], None, self.entropy, 0.0)
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                judge.eval()
                with torch.no_grad():
                    logits = torch.cat([judge(part).cpu() for part in torch.split(views, 65_536)])
                value = float(F.binary_cross_entropy_with_logits(logits[held], fake[held].float()))
                if value < best:
                    best, best_epoch, likely = value, epoch, logits.sigmoid().numpy()
                elif epoch - best_epoch >= self.patience:
                    break
        if not len(likely):
            raise DataError("llm4dec has learned no numbers; lower its learning_rate")
        return likely


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """A model that writes is asked about every user and learns nothing: how likely its answer is yes rather than no.

    The model is the run's encoder, which has to be one that writes (`decoder`, `smollm2`). Its answer is read off the
    likelihoods of two fixed words, never from prose. The titles that it reads are strangers' words, and what they say
    may move it: so it accuses nobody by itself, and what it says is an order to look in.
    """

    question: str = "Was this account made to push some of these items? Answer with one word, Yes or No."
    """After a user's titles."""
    yes: str = "Yes"
    """The answer that means fraud."""
    no: str = "No"
    """The one that does not."""

    needs_text: ClassVar[bool] = True
    needs_known: ClassVar[bool] = False
    decides: ClassVar[bool] = False

    def detect(self, sight: Sight) -> Suspicion:
        """Likelihoods of a yes among yes and no [users]. Raises ConfigError where the encoder is none that writes."""
        said = sight.texts(self).answers(sight.log, self.question, (self.yes, self.no)).astype(np.float64)
        users: Floats = 1 / (1 + np.exp(said[:, 1] - said[:, 0]))

        def why(user: int, names: Names) -> str:
            return (
                f"asked about its titles, a language model says {self.yes} with likelihood {users[user]:.2f}, where "
                f"{np.median(users):.2f} is usual ({than(users, user, 'users')})"
            )

        return Suspicion(users=users, why=why)

    def fits(self, sight: Sight) -> None:
        """Raise ConfigError where the encoder is none that writes."""
        if sight.text is not None:
            sight.text.writer()


class Head(nn.Module):
    """What turns a user's summary [B, W] into logits of p_u [B], for LoRec and LLM4Dec alike."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(width, 128), nn.Linear(128, 1)
        self.norm_hidden, self.norm_out = nn.BatchNorm1d(128), nn.BatchNorm1d(1)
        self.dropout = dropout

    def forward(self, summary: Tensor) -> Tensor:
        """Logits [B]."""
        hidden = F.dropout(_batch_norm(self.norm_hidden, self.hidden(summary)), self.dropout, self.training)
        return _batch_norm(self.norm_out, self.out(F.gelu(hidden)))[:, 0]


def calibration_loss(
    logits: Tensor, fake: Tensor, alignment: Tensor | None, entropy_weight: float, alignment_weight: float
) -> Tensor:
    """L_LCT = mean BCE(p, y) + lambda1 (1/N) sum over y = 0 of H(p) - lambda2 mean cos(z, g) (Zhang et al. 2024).

    `logits` [N] of p; `fake` [N] bool, the known fakes; `alignment` [N] cosines, or None without a language model.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, fake.float())
    likely = logits.sigmoid()
    entropy = likely * F.softplus(-logits) + (1 - likely) * F.softplus(logits)
    loss = cross_entropy + entropy_weight * (entropy * ~fake).mean()
    return loss if alignment is None else loss - alignment_weight * alignment.mean()


def _batch_norm(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """A batch of one has no variance, so it is normalised by what the batches before had."""
    if len(x) > 1 or not norm.training:
        normed: Tensor = norm(x)
        return normed
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
