"""Detectors as defenses: what they accuse counts nothing. LoRec and LLM4Dec are such."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorec import detectors
from lorec.data import Batch, Bools, Floats
from lorec.defenses.guard import Guard
from lorec.detectors import Detector, Suspicion, check, fits
from lorec.errors import ConfigError, DataError
from lorec.models import Recommender
from lorec.sight import Sight


class _FilterGuard(Guard):
    """Asks its detector when the first batch asks, so that a resumed fit takes the answer from the checkpoint."""

    def __init__(self, detector: Detector, sight: Sight) -> None:
        super().__init__()
        check(detector, sight)
        fits(detector, sight)
        self.detector, self.sight = detector, sight
        self.found: Suspicion | None = None

    @property
    def suspicion(self) -> Floats | None:
        return None if self.found is None else self.found.users

    @property
    def flagged(self) -> Bools | None:
        return None if self.found is None else self.found.flagged

    @property
    def interactions(self) -> Floats | None:
        return None if self.found is None else self.found.interactions

    @property
    def items(self) -> Floats | None:
        return None if self.found is None else self.found.items

    @property
    def notes(self) -> tuple[str, ...]:
        return () if self.found is None else self.found.notes

    def loss(self, recommender: Recommender, batch: Batch) -> Tensor:
        self.decide()
        return super().loss(recommender, batch)

    def end_epoch(self, recommender: Recommender, epoch: int) -> dict[str, float]:
        turned_down = self.weights.of_events(self.sight.log) < 1
        return {"interactions turned down": float(turned_down.mean())}

    def decide(self) -> None:
        """Ask the detector and set the weights, unless that is done."""
        if self.found is None:
            self._set(self.detector.detect(self.sight))

    def _set(self, found: Suspicion) -> None:
        self.found = found
        if self.detector.decides:
            self.weights = found.weights()
            if len(self.sight.log.items) and self.weights.turned_down(self.sight.log).all():
                raise DataError(
                    f"{type(self.detector).__name__} turns every interaction down, so nothing is left to train on; "
                    "take another detector, or one that accuses fewer"
                )

    def state(self) -> dict[str, Any]:
        if self.found is None:
            return {}
        said = {name: torch.from_numpy(one) for name, one in vars(self.found).items() if isinstance(one, np.ndarray)}
        return said | {"notes": list(self.found.notes)}

    def restore(self, state: dict[str, Any]) -> None:
        if state:
            arrays = {name: one.cpu().numpy() for name, one in state.items() if name != "notes"}
            self._set(Suspicion(**arrays, notes=tuple(state["notes"])))


class _Filters:
    """A detector's own `start`."""

    def start(self: Detector, recommender: Recommender, sight: Sight) -> _FilterGuard:
        """Raises ConfigError without text where it reads, and DataError without known fakes where it learns."""
        return _FilterGuard(self, sight)


@dataclass(frozen=True, kw_only=True)
class LoRec(detectors.LoRec, _Filters):
    """Evidence from the log and from texts, calibrated on known fakes, turns down interactions that look bought."""


@dataclass(frozen=True, kw_only=True)
class LLM4Dec(detectors.LLM4Dec, _Filters):
    """Whom a language model's view of users accuses counts nothing (Zhang et al. 2024)."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Any detector as a defense: whom it accuses, or which interactions, counts nothing."""

    detector: Detector
    """By its name, or a table with one."""

    def __post_init__(self) -> None:
        if not hasattr(self.detector, "detect") or isinstance(self.detector, type):
            raise ConfigError(f"a filter's detector is {self.detector!r}; give one, as lorec.Degree()")
        if not self.detector.decides:
            raise ConfigError(
                f"{type(self.detector).__name__} accuses nobody by itself, so it is no filter; take another detector"
            )

    @property
    def needs_text(self) -> bool:
        """As its detector."""
        return self.detector.needs_text

    def fits(self, sight: Sight) -> None:
        """Run the detector's own check of the log."""
        fits(self.detector, sight)

    def start(self, recommender: Recommender, sight: Sight) -> _FilterGuard:
        """Raises ConfigError without text where it reads, and DataError without known fakes where it learns."""
        return _FilterGuard(self.detector, sight)
