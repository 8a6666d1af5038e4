"""Exact ranks of all users' test items by counting against a full sort of all scores: same ranks, time, memory.

LOREC_DATA=... python benchmarks/ranking.py [amazon-games]
"""

import sys

import numpy as np
import torch
from side_by_side import compare, machine

import lorec
from lorec.data import Sequences
from lorec.evaluation import ranks_of
from lorec.models import Recommender, hide
from lorec.records import peak_memory


def by_sorting(recommender: Recommender, log: Sequences, goals: np.ndarray) -> np.ndarray:
    """What is usually done: sort every user's scores, and look the goal up in the order."""
    ranks = np.zeros(len(log), dtype=np.int64)
    for rows, scores in recommender.score(log):
        scores[:, 0] = -torch.inf
        hide(scores, log.take(rows))
        own = scores.gather(1, torch.from_numpy(goals[rows].astype(np.int64))[:, None])
        ordered = scores.sort(dim=1, descending=True).values
        ranks[rows] = (ordered >= own).sum(1).numpy()  # the last place among equals
    return ranks


def peak() -> float:
    return peak_memory() / 1024**2


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "amazon-games"
    split = lorec.leave_two_out(lorec.load(name))
    print(machine())
    print(f"{name}: {len(split):,} users, {len(split.catalog):,} items")
    recommender = Recommender(lorec.SASRec(), "ids", len(split.catalog)).eval()
    with torch.no_grad():
        recommender.embedding.mul_(50)  # far from ties, as a trained model is
    rows = split.genuine()
    for share in (0.25, 0.5, 1.0):
        some = rows[: int(len(rows) * share)]
        ranks_of(recommender, split.histories(some), split.test[some][:, None])
        print(f"peak memory after ranking {len(some):,} users: {peak():.0f} MB")
    log, goals = split.histories(rows), split.test[rows]
    six = np.column_stack([goals, np.tile(np.arange(1, 6), (len(rows), 1))])
    counted = ranks_of(recommender, log, goals[:, None])[:, 0]
    found = compare(
        3,
        **{
            "count one goal": lambda: ranks_of(recommender, log, goals[:, None]),
            "count six goals": lambda: ranks_of(recommender, log, six),
        },
    )
    kept: list[np.ndarray] = []
    sort = compare(1, **{"sort everything": lambda: kept.append(by_sorting(recommender, log, goals))})[
        "sort everything"
    ]
    print(f"sorting takes {sort / found['count one goal']:.1f}x as long as counting one goal, "
          f"{sort / found['count six goals']:.1f}x as long as counting six")  # fmt: skip
    print(f"ranks that differ: {int((counted != kept[0]).sum())} of {len(counted):,}")


if __name__ == "__main__":
    main()
