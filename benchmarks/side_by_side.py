"""Time things in turns in one process, so that a ratio means something; nothing else should run meanwhile."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable

import numpy
import polars
import torch

from lorec.data import Batch


def machine() -> str:
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, numpy {numpy.__version__}"
    threads = f"{os.cpu_count()} processors, {torch.get_num_threads()} threads"
    return f"{threads}; {versions}, polars {polars.__version__}"


def trained(batches: Iterable[Batch], loss: Callable[[Batch], torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
    """A step on every batch, as `fit` takes them, and nothing besides."""
    for batch in batches:
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()


def compare(rounds: int, **jobs: Callable[[], object]) -> dict[str, float]:
    """Run the jobs in turns; print every round and give each one's median seconds."""
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            taken[name].append(time.perf_counter() - started)
    for name, seconds in taken.items():
        print(f"{name:<28}{statistics.median(seconds):9.3f} s   rounds {' '.join(f'{one:.3f}' for one in seconds)}")
    return {name: statistics.median(seconds) for name, seconds in taken.items()}
