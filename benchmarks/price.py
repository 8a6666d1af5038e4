"""Whose hits a defense costs: a run's hits on items that it turned down and on all others, and who held those items.

LOREC_DATA=... python benchmarks/price.py RUN_FOLDER [RUN_FOLDER ...] [--arm lorec] [--against oracle] [--titles]

A run folder as `lorec run` leaves it, or `runs/<cell>` of a grid. An item counts as turned down where most of its
genuine interactions weigh half or less; a user as one of a ring where four items or more of theirs do (the two that are
held out count, too). Hits are genuine users' test items among the first ten.
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl

from lorec.data import Sequences, Split, append
from lorec.defenses.guard import TURNED_DOWN
from lorec.records import Run, open_run
from lorec.sources import prepared

RING = 4
"""Items of a user that are turned down, from which on it is no chance."""


def hits(run: Run, arm: str, split: Split) -> np.ndarray:
    """[users]: whose test item is among an arm's first ten."""
    ranks = pl.read_parquet(run.file(f"{arm}/ranks.parquet"))
    rows = pl.DataFrame({"user": split.users})
    return (rows.join(ranks, on="user", how="left", maintain_order="left")["rank"] <= 10).to_numpy()


def turned_down(run: Run, arm: str, split: Split) -> np.ndarray:
    """[V + 1]: the items most of whose genuine interactions an arm turned down."""
    told = pl.read_parquet(run.file(f"{arm}/interactions.parquet")).join(
        pl.DataFrame({"user": split.users}), on="user", how="semi"
    )
    down = told.group_by("item").agg(share=(pl.col("weight") <= TURNED_DOWN).mean()).filter(pl.col("share") > 0.5)
    found = np.zeros(len(split.catalog) + 1, dtype=bool)
    found[split.catalog.numbers(down["item"])] = True
    return found


def told(name: str, run: Run, split: Split, arm: str, against: str, titles: bool) -> None:
    """The price of one run, in lines."""
    down, mine, theirs = turned_down(run, arm, split), hits(run, arm, split), hits(run, against, split)
    counts, whole = split.train.counts(len(split.catalog)), everything(split)
    ring = np.bincount(whole.users(), down[whole.items], len(split)) >= RING
    on = down[split.test]
    print(f"{name}: {arm} turns down {int(down.sum())} items, {counts[down].sum() / counts.sum():.2%} of the training "
          f"interactions; HR@10 {mine.mean():.4f}, {against} {theirs.mean():.4f}")  # fmt: skip
    print(f"  test items among them: {int(on.sum())}; hits {int(mine[on].sum())}, {against} {int(theirs[on].sum())}; "
          f"hits on all others {int(mine[~on].sum())}, {against} {int(theirs[~on].sum())}")  # fmt: skip
    print(f"  users with {RING} or more of them: {int(ring.sum())}; hits {int(mine[ring].sum())}, {against} "
          f"{int(theirs[ring].sum())}; HR@10 of all other users {mine[~ring].mean():.4f}, {against} "
          f"{theirs[~ring].mean():.4f}, {mine[~ring].mean() / theirs[~ring].mean() - 1:+.1%}")  # fmt: skip
    if titles:
        lost = np.bincount(split.test, theirs.astype(float) - mine, len(down)) * down
        for item in np.argsort(-lost)[:10]:
            holders = np.unique(whole.users()[whole.items == item])
            print(f"    {lost[item]:4.0f} hits lost, {len(holders)} holders, {int(ring[holders].sum())} of them in the "
                  f"ring: {split.catalog.titles()[item - 1][:60]}")  # fmt: skip


def everything(split: Split) -> Sequences:
    """Whole histories."""
    return append(append(split.train, split.valid), split.test)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("folders", type=Path, nargs="+")
    asked.add_argument("--arm", default="lorec")
    asked.add_argument("--against", default="oracle")
    asked.add_argument("--titles", action="store_true")
    options = asked.parse_args()
    for folder in options.folders:
        run = open_run(folder, partial=True)
        split = prepared(run.config.data, run.config.split)
        told(folder.name, run, split, options.arm, options.against, options.titles)


if __name__ == "__main__":
    main()
