"""SASRec (width 64, 2 blocks, length 50): an epoch in batches of like length against padding to 50.

LOREC_DATA=... python benchmarks/batching.py [amazon-games]
"""

import sys

import numpy as np
import torch
from side_by_side import compare, machine, trained

import lorec
from lorec.data import Feed, Split
from lorec.defenses import Guard
from lorec.models import Recommender


def epoch(split: Split, tokens: int, pad_to: int) -> None:
    recommender = Recommender(lorec.SASRec(), "ids", len(split.catalog)).train()
    optimizer = torch.optim.AdamW(recommender.parameters(), lr=1e-3)
    guard, feed = Guard(), Feed(split.train, len(split.catalog), 50, tokens, pad_to=pad_to)
    trained(feed.epoch(np.random.default_rng(0)), lambda batch: guard.loss(recommender, batch), optimizer)


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "amazon-games"
    split = lorec.leave_two_out(lorec.load(name))
    print(machine())
    print(f"{name}: {len(split):,} users, {len(split.train.items):,} tokens, mean {split.train.lengths.mean():.1f}")
    epoch(split, 4096, 0)  # warm-up
    # 512 padded sequences a batch, as the usual trainer has: about as many optimizer steps as the bucketed epoch.
    found = compare(3, bucketed=lambda: epoch(split, 4096, 0), padded=lambda: epoch(split, 512 * 50, 50))
    print(f"padding to 50 takes {found['padded'] / found['bucketed']:.1f}x as long")


if __name__ == "__main__":
    main()
