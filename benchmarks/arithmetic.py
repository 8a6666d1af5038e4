"""What would make an epoch of SASRec (width 64, 2 blocks, length 50) faster or slower: one change at a time, in turns.

LOREC_DATA=... python benchmarks/arithmetic.py [amazon-games] [--limit]

With `--limit` only this: an epoch as it is over the time that the products of its matrices alone would take, over real
positions, at the rate of a large product.
`torch.compile` needs a C++ compiler; where there is none that line is left out, and it says so. What a row-wise
optimizer could save at most is what the optimizer takes.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import torch
from side_by_side import compare, machine, trained
from torch.nn import functional as F

import lorec
from lorec.data import Feed, Split
from lorec.models import gru4rec, layers, losses, sasrec

ROUNDS = 3


class Epochs:
    """Epochs of one model, each under one change of the arithmetic."""

    def __init__(self, split: Split, *, tokens: int = 4096, fused: bool = True, compiled: bool = False) -> None:
        torch.manual_seed(0)
        self.recommender = lorec.Recommender(lorec.SASRec(), "ids", len(split.catalog), seed=0).train()
        self.optimizer = torch.optim.AdamW(self.recommender.parameters(), lr=1e-3, fused=fused)
        self.feed: Feed = self.recommender.feed(split.train, tokens)
        self.stepping = 0.0
        if compiled:
            self.recommender.backbone = torch.compile(self.recommender.backbone, dynamic=True)

    def __call__(self, around: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext) -> None:
        """One of them, inside a change."""

        def loss(batch: lorec.data.Batch) -> torch.Tensor:
            with around():
                return losses.mean_loss(self.recommender.losses(batch), batch)

        trained(self.feed.epoch(np.random.default_rng(0)), loss, self.optimizer)

    def step_seconds(self) -> float:
        """Of an epoch, in the optimizer alone."""
        spent, step = 0.0, self.optimizer.step

        def timed() -> None:
            nonlocal spent
            started = time.perf_counter()
            step()
            spent += time.perf_counter() - started

        with mock.patch.object(self.optimizer, "step", timed):
            self()
        return spent


@contextlib.contextmanager
def patched(**changes: object) -> Iterator[None]:
    """Functions of the layers, exchanged in every module that took them by name."""
    with contextlib.ExitStack() as stack:
        for name, value in changes.items():
            for module in (layers, sasrec, gru4rec):
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, value))
        yield


def fused_attention(self: layers.Attention, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """As on a GPU: one call, with its own dropout."""
    b, t, h = hidden.shape
    q, k, v = self.query_key_value(hidden).view(b, t, 3, self.heads, h // self.heads).permute(2, 0, 3, 1, 4)
    p = self.dropout if self.training else 0.0
    mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=p, is_causal=mask is None)
    return self.out(mixed.transpose(1, 2).reshape(b, t, h))


def limit(split: Split, usual: Epochs) -> None:
    """An epoch over its products: 24 H^2 a position and block, 4 H a pair of positions, 4 H a target; thrice."""
    width, blocks, lengths = 64, 2, split.train.lengths.astype(float)
    pairs, targets = (lengths**2).sum(), np.maximum(lengths - 1, 0).sum()
    products = 3 * (blocks * (24 * width**2 * lengths.sum() + 4 * width * pairs) + 4 * width * targets)
    one, other = torch.randn(2, 2048, 2048)
    usual()  # warm-up
    found = compare(10, product=lambda: one @ other) | compare(ROUNDS, epoch=usual)
    rate = 2 * 2048**3 / found["product"]
    least = products / rate
    print(f"{products / 1e9:.0f} GFLOP at {rate / 1e9:.0f} a second: {least:.2f} s; {found['epoch'] / least:.2f}x")


def main() -> None:
    names = [one for one in sys.argv[1:] if one != "--limit"]
    name = names[0] if names else "amazon-games"
    split = lorec.leave_two_out(lorec.load(name))
    torch.set_flush_denormal(True)
    print(machine())
    print(
        f"{name}: {len(split):,} users, {len(split.catalog):,} items, {len(split.train.items):,} training interactions"
    )
    if "--limit" in sys.argv:
        limit(split, Epochs(split))
        return
    usual, unfused, fast = Epochs(split), Epochs(split, fused=False), Epochs(split, tokens=16384)
    jobs: dict[str, Callable[[], object]] = {
        "as it is": usual,
        "precision = bfloat16": lambda: usual(lambda: mock.patch.object(usual.recommender, "precision", "bfloat16")),
        "bfloat16 wherever torch would": lambda: usual(lambda: torch.autocast("cpu", torch.bfloat16)),
        "torch's own dropout": lambda: usual(lambda: patched(dropout=F.dropout)),
        "fused attention": lambda: usual(lambda: mock.patch.object(layers.Attention, "forward", fused_attention)),
        "AdamW not fused": unfused,
        "batches of 16,384": fast,
    }
    compiled = Epochs(split, compiled=True)
    try:
        started = time.perf_counter()
        compiled()
        print(f"compiling, with the first epoch: {time.perf_counter() - started:.1f} s")
        jobs["torch.compile"] = compiled
    except RuntimeError as error:
        print(f"torch.compile is left out: {str(error).splitlines()[0]}")
    usual()  # warm-up
    found = compare(ROUNDS, **jobs)
    print(", ".join(f"{job} {found[job] / found['as it is']:.2f}x" for job in found))
    spent = usual.step_seconds()
    print(f"the optimizer: {spent:.2f} s of an epoch, {spent / found['as it is']:.0%}")


if __name__ == "__main__":
    main()
