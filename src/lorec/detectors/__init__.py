"""Detectors: how suspicious users, interactions and items of a log are.

A Detector is a spec with one verb, `detect(...) -> Suspicion`. It gets the training log alone, its rows shuffled: no
labels, no targets, no held-out items. `known` are rounds of fakes that were synthesised for the defender, `text` what a
language model makes of items and users. A defense may take a detector's word for what counts nothing.
"""

from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np

from lorec.data import Poison, Sequences, Split, stream
from lorec.detectors.audit import Audit
from lorec.detectors.clicks import FAP, PCA, Bursts, Copies, Degree, Groups
from lorec.detectors.company import Coherence, Context
from lorec.detectors.hardness import Loss
from lorec.detectors.language import LLM4Dec, ZeroShot
from lorec.detectors.lorec import LoRec
from lorec.detectors.suspicion import Suspicion, first_of, harmed, judged, places, rounds_of
from lorec.errors import ConfigError
from lorec.text import TextVectors

__all__ = [
    "DETECTORS", "FAP", "PCA", "Audit", "Bursts", "Coherence", "Context", "Copies", "Degree", "Detector", "Groups",
    "LLM4Dec", "LoRec", "Loss", "Suspicion", "ZeroShot", "check", "detect", "first_of", "fits", "harmed", "judged",
    "places", "rounds_of",
]  # fmt: skip

DETECTORS: dict[str, type] = {
    "audit": Audit, "bursts": Bursts, "coherence": Coherence, "context": Context, "copies": Copies, "degree": Degree,
    "fap": FAP, "groups": Groups, "llm4dec": LLM4Dec, "lorec": LoRec, "loss": Loss, "pca": PCA, "zeroshot": ZeroShot,
}  # fmt: skip


class Detector(Protocol):
    """The spec of a detector."""

    needs_known: ClassVar[bool]
    """Whether it learns from known fakes."""
    decides: ClassVar[bool]
    """Whether it says who is to count nothing, and not only in which order to look."""

    @property
    def needs_text(self) -> bool:
        """Whether it needs the items' texts."""
        ...

    def detect(
        self,
        log: Sequences,
        n_items: int,
        *,
        text: TextVectors | None,
        known: Sequence[Poison],
        rng: np.random.Generator,
    ) -> Suspicion:
        """Look at a log of items 1 to `n_items`."""
        ...


def check(detector: Detector, text: TextVectors | None, known: Sequence[Poison] | None) -> Sequence[Poison]:
    """The rounds of known fakes that a detector learns from; () where it does not.

    Raises ConfigError where it reads and there is no text, DataError where it learns and there are no fakes.
    """
    if not hasattr(detector, "detect") or isinstance(detector, type):
        raise ConfigError(f"detector is {detector!r}; give one, as lorec.Degree()")
    rounds = rounds_of(known) if detector.needs_known else ()
    if detector.needs_text and text is None:
        without = ", or set sources = ['log']" if hasattr(detector, "sources") else ""
        raise ConfigError(f"{type(detector).__name__} reads the items' texts; give text vectors{without}")
    return rounds


def fits(spec: object, log: Sequences, n_items: int, text: TextVectors | None) -> None:
    """Raise now what a detector, or a defense made of one, would say after hours of other work.

    ConfigError or DataError of its own method `fits`, where it has one: for a log without times, too few users for the
    components asked for, an encoder that does not write.
    """
    told = getattr(spec, "fits", None)
    if told is not None:
        told(log, n_items, text)


def detect(
    detector: Detector,
    split: Split,
    *,
    text: TextVectors | None = None,
    known: Sequence[Poison] | None = None,
    seed: int = 0,
) -> Suspicion:
    """Ask one detector about a training log, as a defense made of it would with the same seed. Raises as `check`."""
    known = check(detector, text, known)
    return detector.detect(split.train, len(split.catalog), text=text, known=known, rng=stream(seed, "guard"))
