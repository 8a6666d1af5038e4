"""SASRec (width 64, 2 blocks): an epoch in batches of like length against padding all of them to 50.

LOREC_DATA=... python benchmarks/batching.py [amazon-games]
LOREC_DATA=... python benchmarks/batching.py amazon-beauty --length 10 --quality 300    what it does to HR, for an hour

As many steps an epoch either way: 4,096 positions a batch of like lengths, or as many histories as it takes, padded.
"""

import argparse
import dataclasses
import itertools
import time

import numpy as np
import torch
from side_by_side import compare, machine, trained

import lorec
from lorec.data import Feed, Split, windows
from lorec.defenses import Guard
from lorec.models import Recommender

WAYS = ("bucketed", "mixed", "padded")
"""Of like length; a step on several small batches of like lengths, drawn; of all lengths."""
PARTS = 4
"""Small batches in a step."""


def feed(split: Split, length: int, way: str) -> Feed:
    """Batches in one of the ways."""
    bucketed = Feed(split.train, len(split.catalog), length)
    if way != "padded":
        return dataclasses.replace(bucketed, tokens=bucketed.tokens // (PARTS if way == "mixed" else 1))
    histories = -(-len(windows(split.train, length)[0]) // bucketed.steps())
    return Feed(split.train, len(split.catalog), length, histories * length, pad_to=length)


class Trainee:
    """A model that is trained in one of the ways."""

    def __init__(self, split: Split, length: int, way: str, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.recommender = Recommender(lorec.SASRec(max_length=length), "ids", len(split.catalog), seed=seed)
        self.optimizer = torch.optim.AdamW(self.recommender.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
        self.feed = feed(split, length, way)
        self.rng, self.guard, self.way = np.random.default_rng(seed), Guard(), way

    def epoch(self) -> None:
        """All windows once."""
        self.recommender.train()
        batches = self.feed.epoch(self.rng)
        if self.way != "mixed":
            trained(batches, lambda batch: self.guard.loss(self.recommender, batch), self.optimizer)
            return
        while parts := list(itertools.islice(batches, PARTS)):
            self.optimizer.zero_grad()
            sizes = [int((part.positives > 0).sum()) for part in parts]
            for part, size in zip(parts, sizes, strict=True):
                (self.guard.loss(self.recommender, part) * (size / sum(sizes))).backward()
            self.optimizer.step()


def quality(split: Split, length: int, ways: list[str], epochs: int, patience: int, seeds: list[int]) -> None:
    """Test metrics of the epoch that validation chose, from the same first weights."""
    for seed in seeds:
        for way in ways:
            trainee, best, found, started = Trainee(split, length, way, seed), -1.0, {}, time.perf_counter()
            for epoch in range(1, epochs + 1):
                trainee.epoch()
                judged = lorec.evaluate(trainee.recommender, split, on="valid").metrics["NDCG@10"]
                if judged > best:
                    best, found = judged, lorec.evaluate(trainee.recommender, split).metrics | {"epoch": epoch}
                elif epoch - found["epoch"] >= patience:
                    break
            told = ", ".join(f"{name} {found[name]:.4f}" for name in ("HR@10", "NDCG@10"))
            spent = f"epoch {found['epoch']} of {epoch}, {time.perf_counter() - started:.0f} s"
            print(f"seed {seed}, {way}, {trainee.feed.steps()} batches an epoch: {told}, {spent}", flush=True)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("name", nargs="?", default="amazon-games")
    asked.add_argument("--length", type=int, default=50, help="of the longest histories; others are padded to it")
    asked.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    asked.add_argument("--quality", type=int, metavar="EPOCHS")
    asked.add_argument("--patience", type=int, default=10, help="epochs without a better one that end a training")
    asked.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = asked.parse_args()
    split = lorec.leave_two_out(lorec.load(options.name), last=options.length)
    torch.set_flush_denormal(True)
    print(machine())
    print(f"{options.name}: {len(split):,} users, {len(split.train.items):,} tokens")
    if options.quality:
        quality(split, options.length, options.ways, options.quality, options.patience, options.seeds)
        return
    jobs = {way: Trainee(split, options.length, way).epoch for way in options.ways}
    jobs[options.ways[0]]()  # warm-up
    found = compare(3, **jobs)
    for way in options.ways[1:]:
        print(f"{way} takes {found[way] / found[options.ways[0]]:.2f}x as long as {options.ways[0]}")


if __name__ == "__main__":
    main()
