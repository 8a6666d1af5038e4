"""SASRec (width 64, 2 blocks, length 50): an epoch in batches of like length against padding to 50.

LOREC_DATA=... python benchmarks/batching.py [amazon-games]
LOREC_DATA=... python benchmarks/batching.py amazon-beauty --quality 25 [--seeds 3]    what it does to HR@10, for hours

About as many steps an epoch either way: 4,096 positions a batch, or 512 padded sequences, as the usual trainer has.
"""

import argparse
import time

import numpy as np
import torch
from side_by_side import compare, machine, trained

import lorec
from lorec.data import Feed, Split
from lorec.defenses import Guard
from lorec.models import Recommender

WAYS = {"bucketed": (4096, 0), "padded": (512 * 50, 50)}
"""Positions in a batch, and what it is padded to."""


class Trainee:
    """A model that is trained in one of the ways."""

    def __init__(self, split: Split, way: str, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.recommender = Recommender(lorec.SASRec(), "ids", len(split.catalog), seed=seed)
        self.optimizer = torch.optim.AdamW(self.recommender.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
        tokens, pad_to = WAYS[way]
        self.feed = Feed(split.train, len(split.catalog), 50, tokens, pad_to=pad_to)
        self.rng, self.guard = np.random.default_rng(seed), Guard()

    def epoch(self) -> None:
        """All windows once."""
        self.recommender.train()
        trained(self.feed.epoch(self.rng), lambda batch: self.guard.loss(self.recommender, batch), self.optimizer)


def quality(split: Split, epochs: int, seeds: int) -> None:
    """Test metrics of the epoch that validation chose; both ways have as many epochs and the same first weights."""
    for seed in range(seeds):
        for way in WAYS:
            trainee, best, found, started = Trainee(split, way, seed), -1.0, {}, time.perf_counter()
            for epoch in range(1, epochs + 1):
                trainee.epoch()
                judged = lorec.evaluate(trainee.recommender, split, on="valid").metrics["NDCG@10"]
                if judged > best:
                    best, found = judged, lorec.evaluate(trainee.recommender, split).metrics | {"epoch": epoch}
            told = ", ".join(f"{name} {found[name]:.4f}" for name in ("HR@10", "NDCG@10"))
            print(
                f"seed {seed}, {way}: {told}, epoch {found['epoch']}, {time.perf_counter() - started:.0f} s", flush=True
            )


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("name", nargs="?", default="amazon-games")
    asked.add_argument("--quality", type=int, metavar="EPOCHS")
    asked.add_argument("--seeds", type=int, default=3)
    options = asked.parse_args()
    split = lorec.leave_two_out(lorec.load(options.name))
    torch.set_flush_denormal(True)
    print(machine())
    print(f"{options.name}: {len(split):,} users, {len(split.train.items):,} tokens")
    if options.quality:
        quality(split, options.quality, options.seeds)
        return
    jobs = {way: Trainee(split, way).epoch for way in WAYS}
    jobs["bucketed"]()  # warm-up
    found = compare(3, **jobs)
    print(f"padding to 50 takes {found['padded'] / found['bucketed']:.1f}x as long")


if __name__ == "__main__":
    main()
