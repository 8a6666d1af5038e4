"""Attacks that choose fillers by what a surrogate learns from them: DP (Huang et al. 2021) and Rev (Tang et al. 2020).

Both know the public log alone and train a surrogate of their own on it, matrix factorisation (`lorec.attacks.factors`);
whom they attack is another model, which they never see.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lorec.attacks.factors import RIDGE, UNSEEN, Factors, Normal, Taken
from lorec.attacks.heuristics import Profiles
from lorec.data import Floats, Ints, Sequences
from lorec.errors import ConfigError

if TYPE_CHECKING:
    from lorec.attacks import View


@dataclass(frozen=True, kw_only=True)
class Optimised(Profiles):
    """What these attacks share besides: their surrogate, and whom they try to reach."""

    targets_each: int | None = 1
    """Targets in a profile, dealt in turn."""
    width: int = 32
    """Of the surrogate's vectors."""
    watched: int = 2000
    """Genuine users, drawn once, whose lists the attack tries to enter; all of them where there are fewer."""

    knowledge: ClassVar[Literal["black", "grey", "white"]] = "grey"

    def _judged(self, view: "View", rng: np.random.Generator) -> None:
        """Say how good such a surrogate is, by one more, whose draws change nothing else."""
        (own,) = rng.spawn(1)
        if view.note is not None:
            view.judged(lambda log: Factors.of(Taken.of(log, view.n_items), own, self.width), own)

    def _reached(self, view: "View", rng: np.random.Generator) -> Ints:
        n = len(view.log)
        return np.sort(rng.choice(n, min(self.watched, n), replace=False))


@dataclass(frozen=True, kw_only=True)
class DP(Optimised):
    """Fillers that a surrogate, bent towards the targets, expects of the fraudsters (Huang et al., NDSS 2021).

    A few fraudsters at a time join the log with their targets alone. The surrogate is trained on for some rounds so
    that the targets pass every user's K-th best item and the newcomers' other scores stay small; their fillers are then
    the items that it scores highest for them, each item the less often the more it was chosen. Ours differs from the
    paper in its surrogate (matrix factorisation instead of a neural one) and in that several join at once.
    """

    together: int = 10
    """Fraudsters that join at once."""
    rounds: int = 5
    """Of bending the surrogate, for each of these groups."""
    k: int = 10
    """Length of the lists to be entered."""
    margin: float = 1.0
    """kappa: how far past the K-th best a target is pushed."""
    decay: float = 0.9
    """delta: what choosing an item once does to its chance of being chosen again."""
    rate: float = 0.1
    """Of the bending steps (Adam)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.together, self.rounds, self.k, self.width, self.watched) < 1 or not 0 < self.decay <= 1:
            raise ConfigError("dp: together, rounds, k, width and watched are at least 1, decay is a share in (0, 1]")

    def forge(self, view: "View", targets: Ints, fraudsters: int, rng: np.random.Generator) -> Sequences:
        """Profiles without repeats, targets at random places. Raises ConfigError as every heuristic does."""
        dealt, lengths = self._dealt(view, targets, fraudsters, rng)
        reached = self._reached(view, rng)
        self._judged(view, rng)
        log = view.log.distinct()
        if done := view.draft.load(rng):
            model, chances = Factors(done["users"], done["items"]), done["chances"].numpy()
            profiles = [np.array(one) for one in done["profiles"]]
        else:
            model, profiles = Factors.of(Taken.of(log, view.n_items), rng, self.width), []
            chances = np.ones(view.n_items + 1)
            chances[[0, *targets]] = 0
        for first in range(len(profiles), fraudsters, self.together):
            mine = dealt[first : first + self.together]
            joined = Taken.of(log.extended(Sequences.of(profiles)).extended(Sequences.of(mine)), view.n_items)
            for own, length, wished in zip(
                mine, lengths[first:], self._bent(model, joined, len(mine), targets, reached), strict=False
            ):
                wish = (wished - wished.min() + 1e-6) * chances  # above 0, so that a smaller chance means less
                fillers = np.argsort(-wish, kind="stable")[: int(length) - len(own)]
                chances[fillers] *= self.decay
                if chances.max() < 1:
                    chances[chances > 0] = 1
                profiles.append(rng.permutation(np.concatenate([own, fillers])))
            now = Taken.of(log.extended(Sequences.of(profiles)), view.n_items)
            model = model.swept(now, 1)
            saved = [one.tolist() for one in profiles]
            view.draft.save(rng, vars(model) | {"chances": torch.from_numpy(chances), "profiles": saved})
            view.watch(min(first + self.together, fraudsters), fraudsters)
        return self._timed(view, profiles, rng)

    def _bent(self, model: Factors, taken: Taken, newcomers: int, targets: Ints, reached: Ints) -> Floats:
        """[newcomers, V + 1]: what the last users, who hold their targets alone, score once the surrogate is bent."""
        users = Normal.of_pairs(taken.by_user, model.items).solved().requires_grad_()
        items = model.items.clone().requires_grad_()
        optimizer = torch.optim.Adam([users, items], lr=self.rate)
        goals, there = torch.from_numpy(targets.astype(np.int64)), torch.from_numpy(reached)
        who, what = (torch.from_numpy(one.astype(np.int64)) for one in (taken.by_user.users(), taken.by_user.items))
        theirs, own = taken.by_user.take(reached), taken.by_user.take(np.arange(len(users) - newcomers, len(users)))
        for _ in range(self.rounds):
            seen = (users[who] * items[what]).sum(1)
            fit = UNSEEN * (((users.T @ users) * (items.T @ items)).sum() - (seen**2).sum())
            fit = fit + ((1 - seen) ** 2).sum() + RIDGE * ((users**2).sum() + (items**2).sum())
            lists = Factors(users[there], items).unseen(theirs)
            last = lists.topk(min(self.k, lists.shape[1] - 1), dim=1).values[:, -1:].clamp(min=0)
            push = F.relu(last + self.margin * last.detach().mean() - users[there] @ items[goals].T).sum()
            others = Factors(users[-newcomers:], items).unseen(own)
            small = torch.where(torch.isinf(others), 0.0, others).square().sum()
            optimizer.zero_grad()
            (fit + push * len(model.users) / len(reached) + small).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            scores: Floats = (users[-newcomers:] @ items.T).double().numpy()
        return scores


@dataclass(frozen=True, kw_only=True)
class Rev(Optimised):
    """Profiles by gradient, through the training of a surrogate (Tang, Wen and Wang, RecSys 2020).

    The fraudsters' rows begin as copies of genuine profiles. In every epoch the surrogate learns from them, and how the
    targets' place in genuine users' lists changes with each entry is followed back through that learning; entries move
    along the gradient, and each row keeps its highest. The rows that entered most lists are kept.

    Ours differs from the paper in what the surrogate does to learn, a few sweeps of alternating least squares, each
    step of them exact, instead of the last steps of a descent; and in the loss. The paper's, the cross-entropy of a
    target in a softmax of scores, is as steep for a user far from the target as for a near one: rows end alike and
    enter no more lists than random ones do (docs/log.md). Ours is a smooth hit rate,
    sigmoid((score - K-th best) / temperature).
    """

    epochs: int = 30
    """Of moving the rows."""
    sweeps: int = 2
    """Of the surrogate's learning, in each of them."""
    rate: float = 0.05
    """How far the entry of a row with the largest gradient moves in a step, before momentum."""
    momentum: float = 0.5
    """Of these steps."""
    temperature: float = 0.05
    """Of the loss: the lower, the fewer users count, those whose lists are nearest to being entered."""
    k: int = 10
    """Length of the lists to be entered."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.epochs, self.sweeps, self.k, self.width, self.watched) < 1 or not 0 <= self.momentum < 1:
            raise ConfigError("rev: epochs, sweeps, k, width and watched are at least 1, momentum is a share in [0, 1)")

    def forge(self, view: "View", targets: Ints, fraudsters: int, rng: np.random.Generator) -> Sequences:
        """Profiles without repeats, targets at random places. Raises ConfigError as every heuristic does."""
        dealt, lengths = self._dealt(view, targets, fraudsters, rng)
        taken = Taken.of(view.log, view.n_items)
        self._judged(view, rng)
        clean = Factors.of(taken, rng, self.width)
        theirs = taken.by_user.take(self._reached(view, rng))
        goals = torch.from_numpy(targets.astype(np.int64))
        must = torch.zeros(fraudsters, view.n_items + 1)
        must[torch.arange(fraudsters)[:, None], torch.from_numpy(dealt.astype(np.int64))] = 1
        if done := view.draft.load(rng):
            rows, speed, best, kept = (done[name] for name in ("rows", "speed", "best", "kept"))
        else:
            rows, speed = self._begun(view, goals, fraudsters, rng), torch.zeros_like(must)
            best, kept = -1.0, must
        for epoch in range(done.get("epochs", 0), self.epochs):
            profiles = (must + _highest(rows, torch.from_numpy(lengths - dealt.shape[1]))).requires_grad_()
            model = self._learned(clean, taken, profiles, theirs)
            lists = model.unseen(theirs)
            top = lists.topk(min(self.k, lists.shape[1] - 1), dim=1)
            entered = float(torch.isin(top.indices, goals).sum())
            if entered > best:
                best, kept = entered, profiles.detach()
            loss = self._loss(model, goals, top.values[:, -1:])
            (slope,) = torch.autograd.grad(loss, profiles)
            slope[:, goals] = slope[:, 0] = 0  # a row holds the targets that it was dealt, no others
            speed = self.momentum * speed - self.rate * slope / slope.abs().amax(1, keepdim=True).clamp(min=1e-12)
            rows = (rows + speed).clamp(0, 1)
            rows[:, goals] = rows[:, 0] = -1
            view.draft.save(rng, {"rows": rows, "speed": speed, "best": best, "kept": kept, "epochs": epoch + 1})
            view.watch(epoch + 1, self.epochs)
        return self._timed(view, [rng.permutation(np.flatnonzero(row)) for row in kept.numpy()], rng)

    def _begun(self, view: "View", goals: Tensor, fraudsters: int, rng: np.random.Generator) -> Tensor:
        """[m, V + 1]: copies of genuine histories, and a little noise that fills short ones up."""
        copies = view.log.take(rng.integers(len(view.log), size=fraudsters))
        rows = torch.from_numpy(rng.uniform(0, 0.01, (fraudsters, view.n_items + 1)).astype(np.float32))
        rows[torch.from_numpy(copies.users()), torch.from_numpy(copies.items.astype(np.int64))] += 0.99
        rows[:, goals] = rows[:, 0] = -1
        return rows

    def _learned(self, clean: Factors, taken: Taken, profiles: Tensor, theirs: Sequences) -> Factors:
        """The surrogate some sweeps later: the fraudsters' vectors and all items', then those of the reached users."""
        items = clean.items
        genuine = Normal.of_pairs(taken.by_item, clean.users)
        for _ in range(self.sweeps):
            fakes = Normal.of_weights(profiles, items).solved()
            items = (genuine + Normal.of_weights(profiles.T, fakes)).solved()
        return Factors(Normal.of_pairs(theirs, items).solved(), items)

    def _loss(self, model: Factors, goals: Tensor, last: Tensor) -> Tensor:
        """The share of lists that targets enter, smoothed and turned around; `last` [users, 1] are K-th best scores."""
        return -torch.sigmoid((model.users @ model.items[goals].T - last) / self.temperature).mean()


def _highest(rows: Tensor, room: Tensor) -> Tensor:
    """0/1: each row's highest entries, as many as it has room for."""
    order = torch.sort(rows, dim=1, descending=True, stable=True).indices
    within = (torch.arange(rows.shape[1])[None, :] < room[:, None]).float()
    return torch.zeros_like(rows).scatter(1, order, within)
