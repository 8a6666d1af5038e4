"""A surrogate that an attacker trains on the public log: weighted matrix factorisation (Hu, Koren and Volinsky 2008).

    loss = sum over users u and items i of  c_ui (x_ui - p_u q_i)^2  +  ridge (|p_u|^2 + |q_i|^2)

with x = 1 and c = 1 where the user took the item, x = 0 and c = `UNSEEN` elsewhere. All the elsewhere costs no more
than one Gram matrix of `width` x `width`, so nothing of users x items is ever made; alternating least squares solves
each side exactly.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lorec.data import Ints, Sequences, offsets
from lorec.models import hide

UNSEEN = 0.1
"""c of what a user did not take."""
RIDGE = 1.0


@dataclass(frozen=True)
class Taken:
    """Who took what, from both sides."""

    by_user: Sequences
    """[U]: each user's distinct items."""
    by_item: Sequences
    """[V + 1]: each item's users."""

    @staticmethod
    def of(log: Sequences, n_items: int) -> "Taken":
        """The pairs of a log."""
        log = log.distinct()
        order = np.argsort(log.items, kind="stable")
        return Taken(log, Sequences(log.users()[order].astype(np.int32), offsets(log.counts(n_items))))


@dataclass(frozen=True)
class Factors:
    """Users' and items' vectors, whose inner product is the score."""

    users: Tensor
    """[U, d]"""
    items: Tensor
    """[V + 1, d]: row 0, padding, is zero."""

    @staticmethod
    def of(taken: Taken, rng: np.random.Generator, width: int = 32, sweeps: int = 8) -> "Factors":
        """Fit from random vectors."""
        items = rng.normal(scale=0.1, size=(len(taken.by_item), width)).astype(np.float32)
        items[0] = 0
        return Factors(torch.zeros(len(taken.by_user), width), torch.from_numpy(items)).swept(taken, sweeps)

    def swept(self, taken: Taken, sweeps: int) -> "Factors":
        """So many sweeps of alternating least squares on, users first."""
        users, items = self.users, self.items
        for _ in range(sweeps):
            users = Normal.of_pairs(taken.by_user, items).solved()
            items = Normal.of_pairs(taken.by_item, users).solved()  # nobody took padding: its vector is zero
        return Factors(users, items)

    def score(self, log: Sequences, tokens: int = 16384) -> Iterator[tuple[Ints, Tensor]]:
        """Yield (rows [B], scores [B, V + 1]) of users of these histories, whose vectors are solved for."""
        users = Normal.of_pairs(log.distinct(), self.items).solved()
        for rows in np.array_split(np.arange(len(log)), 1 + len(log) * len(self.items) // 10_000_000):
            yield rows, users[rows] @ self.items.T

    def unseen(self, theirs: Sequences) -> Tensor:
        """[U, V + 1]: scores, with what the users took, and padding, at minus infinity."""
        scores = self.users @ self.items.T
        hide(scores, theirs)
        scores[:, 0] = -torch.inf
        return scores


@dataclass(frozen=True)
class Normal:
    """The normal equations of one side's n vectors, given the other side's; sums of them take more of these in."""

    gram: Tensor
    """[d, d]: of all that was not taken."""
    bend: Tensor
    """[n, d, d]: of what was taken, less what `gram` has of it."""
    pull: Tensor
    """[n, d]"""

    @staticmethod
    def of_pairs(taken: Sequences, others: Tensor) -> "Normal":
        """Of `taken` [n], who took or was taken by which of the others [m, d]."""
        d = others.shape[1]
        bend = (1 - UNSEEN) * _sums(taken, _outer(others)).view(-1, d, d)
        return Normal(UNSEEN * others.T @ others, bend, _sums(taken, others))

    @staticmethod
    def of_weights(x: Tensor, others: Tensor) -> "Normal":
        """Of x [n, m] in [0, 1], how much each took of each; gradients flow through both."""
        d = others.shape[1]
        bend = (1 - UNSEEN) * (x @ _outer(others)).view(-1, d, d)
        return Normal(UNSEEN * others.T @ others, bend, x @ others)

    def __add__(self, more: "Normal") -> "Normal":
        return Normal(self.gram + more.gram, self.bend + more.bend, self.pull + more.pull)

    def solved(self) -> Tensor:
        """[n, d]"""
        whole = self.gram + RIDGE * torch.eye(len(self.gram)) + self.bend
        solved: Tensor = torch.linalg.solve(whole, self.pull.unsqueeze(2)).squeeze(2)
        return solved


def _outer(vectors: Tensor) -> Tensor:
    return (vectors[:, :, None] * vectors[:, None, :]).flatten(1)


def _sums(which: Sequences, rows: Tensor) -> Tensor:
    """[n, ...]: the sum of each one's rows."""
    starts = torch.from_numpy(which.starts[:-1].astype(np.int64))
    return F.embedding_bag(torch.from_numpy(which.items.astype(np.int64)), rows, starts, mode="sum")
