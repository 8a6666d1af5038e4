"""A million users and 200,000 items on one machine: time and peak memory of each step, from a compiled log on.

python benchmarks/scale.py [users] [items]            10 interactions a user; ranks are judged on 20,000 users
python benchmarks/scale.py [users] [items] --scan     a scan instead, titles by a hash, trials on 50,000 users
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import torch
from side_by_side import machine, trained

import lorec
from lorec.data import Dataset
from lorec.models.losses import mean_loss
from lorec.records import peak_memory
from lorec.sources import open_split, save_split


@contextmanager
def told(step: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    peak = peak_memory() / 1024**3
    print(f"{step:<44}{time.perf_counter() - started:8.1f} s   peak so far {peak:.2f} GB", flush=True)


def synthetic(users: int, items: int, each: int = 10, tastes: int = 100) -> Dataset:
    """People who walk through their own taste of some; products by a power law, none twice in a history."""
    rng = np.random.default_rng(0)
    taste, size = np.repeat(rng.integers(0, tastes, users), each), items // tastes
    if each > size // 2:
        raise SystemExit(f"{each} interactions of {size} items a taste are nearly all of them; give more items")
    item = (size * rng.random(users * each) ** 2).astype(np.int64)
    for _ in range(60):
        order = np.lexsort((item, np.repeat(np.arange(users), each)))
        again = order[1:][(item[order][1:] == item[order][:-1]) & (order[1:] // each == order[:-1] // each)]
        item[again] = (size * rng.random(len(again)) ** 2).astype(np.int64)
    item += taste * size
    time_of = np.tile(np.arange(each, dtype=np.int64), users)
    frame = pl.DataFrame({"user": np.repeat(np.arange(users), each), "item": item, "time": time_of})
    titles = pl.DataFrame({"item": [str(n) for n in range(items)], "title": [f"thing {n}" for n in range(items)]})
    return Dataset("synthetic", frame, titles)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("users", type=int, nargs="?", default=1_000_000)
    asked.add_argument("items", type=int, nargs="?", default=200_000)
    asked.add_argument("--scan", action="store_true")
    options = asked.parse_args()
    print(machine())
    torch.set_flush_denormal(True)
    if options.scan:
        scan(options.users, options.items)
    else:
        train(options.users, options.items)


def scan(users: int, items: int) -> None:
    """A scan, told stage by stage."""
    with told("make the log"):
        dataset = synthetic(users, items)
    started, before = time.perf_counter(), ""

    def watch(stage: str, done: int, total: int) -> None:
        nonlocal before
        if stage != before:
            peak = peak_memory() / 1024**3
            print(f"{stage:<44}{time.perf_counter() - started:8.1f} s   peak so far {peak:.2f} GB", flush=True)
            before = stage

    with told("a scan"):
        found = lorec.scan(dataset, encoder=lorec.Hash(), watch=watch)
    print(found.verdict(), found.figures)


def train(users: int, items: int) -> None:
    """Training and ranks."""
    with tempfile.TemporaryDirectory() as folder:
        with told("make, split and compile the log"):
            save_split(lorec.leave_two_out(synthetic(users, items)), Path(folder) / "log")
        with told("open it"):
            split = open_split(Path(folder) / "log")
        print(f"{len(split):,} users, {len(split.catalog):,} items, {len(split.train.items):,} training interactions")
        recommender = lorec.Recommender(lorec.SASRec(width=64), "ids", len(split.catalog))
        optimizer = torch.optim.AdamW(recommender.parameters(), lr=1e-3, fused=True)
        with told("batches ready"):
            feed = recommender.feed(split.train, 16384)
        with told("an epoch"):
            trained(
                feed.epoch(np.random.default_rng(0)),
                lambda batch: mean_loss(recommender.losses(batch), batch),
                optimizer,
            )
        some = np.random.default_rng(0).choice(len(split), 20_000, replace=False)
        with told("exact ranks of 20,000 users"):
            found = lorec.evaluate(recommender, split, rows=some).metrics
        print({name: round(value, 4) for name, value in found.items()})
        with told("LoRec's evidence, from the log alone"):
            known = lorec.known_fakes(split)
            spec = lorec.LoRec(sources=("log",))
            guard = spec.start(recommender, lorec.Sight(split.train, recommender.n_items, known=known))
            guard.decide()


if __name__ == "__main__":
    main()
