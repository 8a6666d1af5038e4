"""How seconds and memory grow with users, items, length of histories and width: exponents, fitted.

python benchmarks/growth.py [users items length width ...]    from 50,000 users, 10,000 items, length 10, width 64

One of the four is doubled three times while the others stay; every point is measured in a process of its own. People
have one of twenty tastes, so that the longest history leaves most of its taste's items out. An
exponent of 1 is twice the time for twice as much. What grows from near nothing (memory, beside what Python and torch
take) is told above that: an empty process is measured first.
"""

import itertools
import json
import subprocess
import sys
import time

import numpy as np
import torch
from scale import synthetic
from side_by_side import machine, trained

import lorec
from lorec.data import Batch
from lorec.models.losses import mean_loss
from lorec.records import peak_memory

BASE = {"users": 50_000, "items": 10_000, "length": 10, "width": 64}
STEPS = 4


def measured(users: int, items: int, length: int, width: int) -> dict[str, float]:
    """Seconds of each step and the peak memory in MB, in this process."""
    torch.set_flush_denormal(True)
    split = lorec.leave_two_out(synthetic(users, items, length + 2, tastes=20), lorec.Protocol(last=0))
    recommender = lorec.Recommender(lorec.SASRec(width=width, max_length=length), "ids", len(split.catalog))
    optimizer = torch.optim.AdamW(recommender.parameters(), lr=1e-3, fused=True)
    feed = recommender.feed(split.train)

    def loss(batch: Batch) -> torch.Tensor:
        return mean_loss(recommender.losses(batch), batch)

    found = {}
    trained(itertools.islice(feed.epoch(np.random.default_rng(0)), 20), loss, optimizer)  # warm-up
    started = time.perf_counter()
    trained(feed.epoch(np.random.default_rng(0)), loss, optimizer)
    found["an epoch"] = time.perf_counter() - started
    started = time.perf_counter()
    lorec.evaluate(recommender, split)
    found["ranks of all users"] = time.perf_counter() - started
    found["peak of both, MB"] = peak_memory() / 1024**2
    started = time.perf_counter()
    sight = lorec.Sight(split.train, recommender.n_items, known=lorec.known_fakes(split))
    guard = lorec.LoRec(sources=("log",)).start(recommender, sight)
    guard.decide()
    found["LoRec's evidence"] = time.perf_counter() - started
    found["peak with it, MB"] = peak_memory() / 1024**2
    return found


def apart(**sizes: int) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--one", json.dumps(sizes)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measured(**json.loads(sys.argv[2]))))
        return
    print(machine())
    empty = apart(users=2_000, items=500, length=10, width=8)
    print("hardly anything:", {name: round(value, 2) for name, value in empty.items()})
    for factor in sys.argv[1:] or BASE:
        sizes = [BASE[factor] * 2**step for step in range(STEPS)]
        points = []
        for size in sizes:
            points.append(apart(**BASE | {factor: size}))
            print(factor, size, {name: round(value, 2) for name, value in points[-1].items()}, flush=True)
        for name in empty:
            values = np.array([point[name] for point in points]) - (empty[name] if "peak" in name else 0)
            exponent = np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-3)), 1)[0]
            print(f"  {name:<24} grows with {factor} to the power of {exponent:.2f}", flush=True)


if __name__ == "__main__":
    main()
