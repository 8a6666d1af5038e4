"""The attack that thinks in sequences: fillers by the gradient of a next-item model (Yue et al., RecSys 2021)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch.nn import functional as F

from lorec.attacks.heuristics import Profiles
from lorec.data import Bools, Ints, Sequences
from lorec.errors import ConfigError
from lorec.models import Recommender, SASRec
from lorec.models.layers import seeded

if TYPE_CHECKING:
    from lorec.attacks import View


@dataclass(frozen=True, kw_only=True)
class Gradient(Profiles):
    """Before each target, the filler after which a next-item model expects it least, found by the model's gradient.

    A profile alternates fillers and targets. A filler begins as a random item; its vector is moved by the sign of the
    gradient of the target's cross-entropy, and the item nearest to where it comes out stands there. So what training
    on the profile has to teach the model is as much as can be. The model is a surrogate that the attacker trains
    on the log (grey box; but for some users' last items, by which it is judged), or the victim itself (white box).
    """

    box: Literal["grey", "white"] = "grey"
    """Whose gradient: a surrogate's, or the victim's, to be given to `forge`."""
    epochs: int = 10
    """Of the surrogate's training."""
    width: int = 32
    """Of the surrogate."""
    steps: int = 2
    """Of moving each filler."""
    reach: float = 1.0
    """How far a step moves an entry of a vector, in standard deviations of the items' vectors."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.epochs, self.width, self.steps) < 1 or not self.reach > 0:
            raise ConfigError("gradient: epochs, width and steps are at least 1, reach is above 0")

    @property
    def knowledge(self) -> Literal["grey", "white"]:  # type: ignore[override]
        """As the box says."""
        return self.box

    def forge(self, view: "View", targets: Ints, fraudsters: int, rng: np.random.Generator) -> Sequences:
        """Profiles without repeats; the fillers that are left when all targets stand follow them.

        Raises ConfigError as every heuristic does, and in a white box without a victim.
        """
        dealt, lengths = self._dealt(view, targets, fraudsters, rng)
        if self.box == "white":
            model = view.victim_of(self)
        else:
            model = view.judged(lambda log: learned(log, view.n_items, rng, self.width, self.epochs), rng)
        model.eval()
        each, fillers = dealt.shape[1], lengths - dealt.shape[1]
        rows = np.zeros((fraudsters, int(lengths.max())), dtype=np.int64)
        banned = np.zeros((fraudsters, view.n_items + 1), dtype=bool)
        banned[:, [0, *targets]] = True
        for turn in range(int(fillers.max())):
            n = turn + min(turn, each)  # what stands in the rows that still grow
            growing = np.flatnonzero(fillers > turn)
            for who in np.split(growing, np.arange(256, len(growing), 256)):
                goals = dealt[who, turn % each]
                rows[who, n] = self._filler(model, rows[who, :n], goals, banned[who], rng)
                banned[who, rows[who, n]] = True
                if turn < each:
                    rows[who, n + 1] = goals
            view.watch(turn + 1, int(fillers.max()))
        profiles = []
        for row, mine in zip(rows, dealt, strict=True):
            standing = row[row > 0]
            profiles.append(np.concatenate([standing, mine[~np.isin(mine, standing)]]))
        return self._timed(view, profiles, rng)

    def _filler(self, model: Recommender, history: Ints, goals: Ints, banned: Bools, rng: np.random.Generator) -> Ints:
        """[B]: the item to follow each history [B, n], so that the model expects the goal [B] least after it."""
        table, free = model.table().detach(), torch.from_numpy(~banned)
        unit, spread = F.normalize(table, dim=1), table[1:].std()
        before = torch.from_numpy(history)[:, max(0, history.shape[1] + 1 - model.spec.max_length) :]
        chosen = torch.from_numpy((rng.random(banned.shape) * ~banned).argmax(1))
        for _ in range(self.steps):
            last = table[chosen].requires_grad_()
            vectors = torch.cat([table[before], last[:, None]], dim=1)
            states = model.encode(vectors, torch.zeros(vectors.shape[:2], dtype=torch.bool))[:, -1]
            wanted = torch.from_numpy(goals.astype(np.int64)) - 1  # padding is left out
            loss = F.cross_entropy((states @ table.T)[:, 1:], wanted, reduction="sum")
            (slope,) = torch.autograd.grad(loss, last)
            near = F.normalize(last.detach() + self.reach * spread * slope.sign(), dim=1) @ unit.T
            chosen = near.masked_fill(~free, -torch.inf).argmax(1)
        found: Ints = chosen.numpy()
        return found


def learned(log: Sequences, n_items: int, rng: np.random.Generator, width: int, epochs: int) -> Recommender:
    """A small SASRec, trained on a log."""
    seed = int(rng.integers(2**31))
    with seeded(seed):
        model = Recommender(SASRec(width=width, dropout=0.1), "ids", n_items, seed=seed).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
        for _ in range(epochs):
            for batch in model.feed(log, 1024).epoch(rng):
                losses = model.losses(batch)
                optimizer.zero_grad()
                (losses.sum() / max(int((batch.positives > 0).sum()), 1)).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return model
