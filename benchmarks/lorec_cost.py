"""What LoRec costs over undefended training: as published by the epoch and part, ours once before the first epoch.

Ours with all that only it needs: known fakes, evidence, and, the first time, the titles' vectors. (The published one's
views of users are vectors of pooled texts here.)

LOREC_DATA=... python benchmarks/lorec_cost.py [amazon-games]
"""

import sys
import tempfile
import time

import numpy as np
import torch
from side_by_side import compare, machine, trained

import lorec
from lorec.data import Feed


def main() -> None:
    torch.set_flush_denormal(True)  # as fit does
    name = sys.argv[1] if len(sys.argv) > 1 else "amazon-games"
    split = lorec.leave_two_out(lorec.load(name))
    bad = lorec.inject(split, lorec.forge(lorec.Bandwagon(), split, 5, seed=1), seed=1)
    print(machine())
    started = time.perf_counter()
    known = lorec.known_fakes(bad, without="bandwagon", seed=1)
    made = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as empty:
        text = lorec.TextVectors(split.catalog, lorec.MiniLM(), empty)
        started = time.perf_counter()
        text.items()
        read = time.perf_counter() - started
    fakes = f"{len(known)} rounds of {len(known[0].profiles):,} known fakes"
    print(f"{name}: {len(bad):,} users, {fakes}, width 64, language-model vectors of 384")

    recommender = lorec.Recommender(lorec.SASRec(), "ids", len(split.catalog))
    optimizer = torch.optim.AdamW(recommender.parameters(), lr=1e-3)
    rng = np.random.default_rng(0)
    sight = lorec.Sight(bad.train, recommender.n_items, text, known, rng)
    guard = lorec.LoRecPaper(view="pooled").start(recommender, sight)
    feed = Feed(bad.train, len(split.catalog), 50)

    def train() -> None:
        recommender.train()
        trained(feed.epoch(rng), lambda batch: guard.loss(recommender, batch), optimizer)

    def look() -> None:
        table = guard._table(recommender)
        for _, history in recommender.histories(guard.everyone, guard.spec.tokens):
            guard._sees(recommender, table, history)

    train()
    found = compare(
        3,
        **{
            "an epoch, undefended": train,
            "a calibrator's pass": lambda: guard._learn(recommender),
            "of that, the states": look,
            "scoring all users": lambda: guard.likelihoods(recommender),
        },
    )
    epoch, one, states, score = found.values()
    whole = epoch + 2 * one + score / 5
    print(f"LoRecPaper (2 passes, scoring every 5th epoch): {whole:.2f} s an epoch, {whole / epoch:.1f}x undefended")
    parts = {
        "recommender": epoch,
        "its states, for LoRec": 2 * states,
        "calibrator": 2 * (one - states),
        "scoring": score / 5,
    }
    print(", ".join(f"{part} {seconds / whole:.0%}" for part, seconds in parts.items()))

    started = time.perf_counter()
    lorec.LoRec().start(recommender, sight).decide()
    once = time.perf_counter() - started
    print(f"LoRec, once: known fakes {made:.1f} s, evidence {once:.1f} s; the first time titles {read:.1f} s")
    for what, seconds in (("titles read before", made + once), ("all of it", made + once + read)):
        print(f"over 30 epochs undefended, {what}: {1 + seconds / (30 * epoch):.2f}x")


if __name__ == "__main__":
    main()
