"""The one training loop: seeded, early-stopped on validation, resumable to the same bits.

A checkpoint is one safetensors file, written whole after each epoch: weights, optimizer, guard, best weights so far,
and in its header every generator's state. A run that was killed loses at most one epoch.
"""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorec.data import Ints, Poison, Split, Weights, stream
from lorec.defenses import Defense, Guard, Undefended
from lorec.errors import ConfigError, DataError, RunError
from lorec.evaluation import evaluate
from lorec.files import load_state, save_state
from lorec.models import Backbone, ItemKind, Loss, Precision, Recommender
from lorec.models.layers import seeded
from lorec.registry import one_of
from lorec.sight import Sight
from lorec.text import TextVectors

__all__ = ["Fit", "Progress", "Training", "choose_device", "fit"]


FORMAT = 3
"""Of checkpoints: one more whenever what they hold, or what follows from it, changes."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long, how fast, on what."""

    epochs: int = 200
    """At most."""
    patience: int = 10
    """Epochs without a better validation NDCG@10 before it stops; counted only while the defense is in force."""
    valid_users: int | None = None
    """Genuine users whose validation items judge an epoch, a seeded sample; all of them if omitted."""
    learning_rate: float = 1e-3
    """Of AdamW."""
    weight_decay: float = 0.0
    """Of AdamW."""
    tokens: int = 4096
    """Positions in a batch."""
    precision: Precision = "float32"
    """How large matrices are multiplied in training. bfloat16 is faster where the processor has it and slower where
    not; weights, gradients, losses and every ranking are float32 either way."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ...; chosen once."""
    threads: int | None = None
    """CPU threads; as torch chooses if omitted."""

    def __post_init__(self) -> None:
        counts = {"epochs": self.epochs, "patience": self.patience, "tokens": self.tokens}
        for name, value in counts.items():
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"[training] {name} is {value}; it is a whole number, at least 1")
        if not 0 < self.learning_rate < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ConfigError("[training] learning_rate is above 0 and weight_decay 0 or more, both finite")
        if not isinstance(self.device, str):
            raise ConfigError(f"[training] device is {self.device!r}; it is a name, as 'auto', 'cpu' or 'cuda'")
        if self.valid_users is not None and self.valid_users < 1:
            raise ConfigError(
                f"[training] valid_users is {self.valid_users}; it must be at least 1; leave it out for all"
            )
        one_of("[training] precision", self.precision, Precision)
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"[training] threads is {self.threads}; it must be at least 1")


@dataclass(frozen=True)
class Progress:
    """Where a fit is: after a step, or after an epoch where `figures` is filled."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Fit:
    """A trained recommender and how it came about."""

    recommender: Recommender
    """With the weights of its best epoch."""
    guard: Guard
    """As the last epoch left it, not the best: the weights that training ended with are those to hand on. They are of
    the log's rows."""
    history: list[dict[str, float]]
    """One row an epoch: epoch, loss, seconds, validation, the guard's figures; the first also tells how long its
    defense took to start."""
    best_epoch: int

    @property
    def seconds(self) -> float:
        """What training took, validation left aside and what its defense did before the first epoch counted in."""
        return sum(row["seconds"] + row.get("seconds before", 0.0) for row in self.history)

    @property
    def weights(self) -> Weights:
        """The weights that the defense ended with."""
        return self.guard.weights


Follow = Callable[[Recommender, int], dict[str, float]]
"""Looks at a recommender after each epoch; what it says is put down."""


def choose_device(name: str) -> torch.device:
    """The device by its name; auto takes a GPU where there is one. Raises ConfigError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ConfigError(f"no device {name!r} on this machine; choose auto, cpu, or one that torch sees") from None
    return device


def fit(
    split: Split,
    backbone: Backbone,
    *,
    items: ItemKind = "ids",
    text: TextVectors | None = None,
    loss: Loss | None = None,
    defense: Defense | None = None,
    known: Sequence[Poison] | None = None,
    training: Training | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    watch: Callable[[Progress], None] | None = None,
    follow: Follow | None = None,
) -> Fit:
    """Train a recommender on a split's training log under a defense.

    The best epoch is chosen by NDCG@10 of genuine users' validation items, of all or of `training.valid_users` (which
    rows are genuine is known to the experiment alone: a concession). What `follow` says after an epoch goes into the
    history, and nothing is selected by it. Given `checkpoint`, an interrupted fit goes on from there to the bit-same
    result on the same machine and thread count. Raises RunError for a damaged or foreign checkpoint.
    """
    training = training or Training()
    defense = Undefended() if defense is None else defense
    if not hasattr(defense, "start") or isinstance(defense, type):
        raise ConfigError(
            f"defense is {defense!r}; give one of lorec.defenses, as lorec.LoRec(), or Filter(detector=...)"
        )
    device = choose_device(training.device)
    if training.threads:
        torch.set_num_threads(training.threads)
    vectors = text.items() if items != "ids" and text is not None else None
    with seeded(seed, device), _without_denormals():
        recommender = Recommender(backbone, items, len(split.catalog), vectors, seed, loss).to(device)
        recommender.precision = training.precision
        sight = Sight(split.train, len(split.catalog), text, known or (), stream(seed, "guard"))
        started = time.perf_counter()
        guard = defense.start(recommender, sight)
        loop = _Loop(split, recommender, guard, training, seed, watch, follow, time.perf_counter() - started)
        described = {
            "backbone": repr(backbone),
            "loss": repr(recommender.loss),
            "items": items,
            "text": None if vectors is None else _digest(vectors),
            "encoder": text.identity() if text is not None and defense.needs_text else None,
            "defense": repr(defense),
            "weights": [None if one is None else _digest(one) for one in (guard.weights.users, guard.weights.events)],
            "known": [[one.profiles.digest(), _digest(one.targets)] for one in known or ()],
        }
        return loop.run(None if checkpoint is None else Path(checkpoint), described)


@contextlib.contextmanager
def _without_denormals() -> Iterator[None]:
    """Numbers too small for full precision count as 0: a CPU is slow on them, and dying gradients are full of them."""
    before = bool((torch.full((1,), 1e-40) * 1 == 0).all())
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _digest(values: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def _judges(split: Split, size: int | None, seed: int) -> Ints:
    """Rows of the genuine users who validate: as many by chance, the same in a clean log and in a poisoned one."""
    genuine = split.genuine()
    if size is None or size >= len(genuine):
        return genuine
    by_name = genuine[split.users.gather(genuine).cast(pl.String).arg_sort().to_numpy()]  # poisoned logs are shuffled
    return np.sort(by_name[stream(seed, "validation").choice(len(genuine), size, replace=False)])


class _Loop:
    def __init__(
        self,
        split: Split,
        recommender: Recommender,
        guard: Guard,
        training: Training,
        seed: int,
        watch: Callable[[Progress], None] | None,
        follow: Follow | None,
        before: float,
    ) -> None:
        self.before = before
        self.split, self.recommender, self.guard, self.training = split, recommender, guard, training
        self.watch, self.follow = watch or (lambda _: None), follow or (lambda recommender, epoch: {})
        self.seed, self.rng = seed, stream(seed, "batches")
        self.optimizer = torch.optim.AdamW(
            recommender.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
        )
        self.feed = recommender.feed(split.train, training.tokens)
        self.judges = _judges(split, training.valid_users, seed)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_epoch, self.best_value, self.in_force = 0, -math.inf, False

    def run(self, checkpoint: Path | None, described: dict[str, Any]) -> Fit:
        identity = self._identity(described)
        if checkpoint is not None and checkpoint.exists():
            self._restore(load_state(checkpoint), checkpoint, identity)
            if len(self.history) > self.training.epochs:
                raise RunError(
                    f"{checkpoint} has {len(self.history)} epochs and {self.training.epochs} are wanted; ask for more, "
                    "or delete it to start anew"
                )
        steps = self.feed.steps()
        if not steps:
            raise DataError("nobody has two items to train on, so there is nothing to predict; give longer histories")
        for epoch in range(len(self.history) + 1, self.training.epochs + 1):
            if self._is_over():
                break
            self._epoch(epoch, steps)
            if checkpoint is not None:
                save_state(checkpoint, self._state() | {"identity": identity})
        self.recommender.load_state_dict(self.best)
        log = self.split.train
        counts = np.bincount(log.items, self.guard.weights.of_events(log), self.recommender.n_items + 1)
        self.recommender.popularity = counts.astype(np.float64)
        return Fit(self.recommender.eval(), self.guard, self.history, self.best_epoch)

    def _epoch(self, epoch: int, steps: int) -> None:
        started = time.perf_counter()
        self.recommender.train()
        total, done = 0.0, 0
        for done, batch in enumerate(self.feed.epoch(self.rng), start=1):
            loss = self.guard.loss(self.recommender, batch)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += float(loss.detach())
            self.watch(Progress(epoch, self.training.epochs, done, steps, total / done))
        figures = {"loss": total / max(done, 1)} | self.guard.end_epoch(self.recommender, epoch)
        trained = time.perf_counter() - started
        figures |= self._validate(epoch)
        figures |= {"seconds": trained, "seconds with validation": time.perf_counter() - started}
        if epoch == 1:
            figures["seconds before"] = self.before
        figures |= self.follow(self.recommender, epoch)
        self.history.append({"epoch": float(epoch)} | figures)
        self.watch(Progress(epoch, self.training.epochs, done, steps, figures["loss"], figures))

    def _validate(self, epoch: int) -> dict[str, float]:
        """Judge the epoch. One under a defense in force is better than any before; where none is, the best is taken."""
        metrics = evaluate(self.recommender, self.split, on="valid", rows=self.judges).metrics
        ready = bool(self.guard.ready)
        if (ready, metrics["NDCG@10"]) > (self.in_force, self.best_value):
            self.best_epoch, self.best_value, self.in_force = epoch, metrics["NDCG@10"], ready
            self.best = {name: value.detach().clone() for name, value in self.recommender.state_dict().items()}
        return {f"valid {name}": value for name, value in metrics.items()}

    def _is_over(self) -> bool:
        return self.in_force and len(self.history) - self.best_epoch >= self.training.patience

    def _identity(self, described: dict[str, Any]) -> str:
        """What must be the same for a checkpoint to be ours."""
        same = described | asdict(self.training) | {"seed": self.seed, "log": self.split.digest(), "format": FORMAT}
        del same["epochs"], same["device"], same["threads"]
        return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()

    def _state(self) -> dict[str, Any]:
        generators = {"cpu": torch.get_rng_state()}
        if self.recommender.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.recommender.device)
        return {
            "recommender": self.recommender.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "guard": self.guard.state(),
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_value": self.best_value,
            "in_force": self.in_force,
            "history": self.history,
            "rng": self.rng.bit_generator.state,
            "torch": generators,
        }

    def _restore(self, state: dict[str, Any], path: Path, identity: str) -> None:
        if state.get("identity") != identity:
            raise RunError(
                f"{path} is of another training (other data, model, defense or options); delete it to start anew"
            )
        self.recommender.load_state_dict(state["recommender"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.guard.restore(state["guard"])
        self.best, self.best_epoch, self.best_value = state["best"], state["best_epoch"], state["best_value"]
        self.in_force = state["in_force"]
        self.history = state["history"]
        self.rng.bit_generator.state = state["rng"]
        torch.set_rng_state(state["torch"]["cpu"].cpu())
        if "cuda" in state["torch"]:
            torch.cuda.set_rng_state(state["torch"]["cuda"].cpu(), self.recommender.device)
