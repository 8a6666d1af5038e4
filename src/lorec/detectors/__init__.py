"""Detectors: how suspicious users, interactions and items of a log are.

A Detector is a spec with one verb, `detect(sight) -> Suspicion`; a Sight (`lorec.sight`) is all that it may look at. A
defense may take a detector's word for what counts nothing.
"""

from collections.abc import Sequence
from typing import ClassVar, Protocol

from lorec.data import Poison, Split, stream
from lorec.detectors.audit import Audit
from lorec.detectors.clicks import FAP, PCA, Bursts, Copies, Degree, Groups
from lorec.detectors.company import Coherence, Context
from lorec.detectors.hardness import Loss
from lorec.detectors.language import LLM4Dec, ZeroShot
from lorec.detectors.lorec import LoRec
from lorec.detectors.reasons import Names
from lorec.detectors.suspicion import Suspicion, harmed, judged, places
from lorec.errors import ConfigError, DataError
from lorec.sight import Sight
from lorec.text import TextVectors

__all__ = [
    "DETECTORS", "FAP", "PCA", "Audit", "Bursts", "Coherence", "Context", "Copies", "Degree", "Detector", "Groups",
    "LLM4Dec", "LoRec", "Loss", "Names", "Suspicion", "ZeroShot", "check", "detect", "fits", "harmed", "judged",
    "places",
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

    def detect(self, sight: Sight) -> Suspicion:
        """Look at a log."""
        ...


def check(detector: Detector, sight: Sight) -> None:
    """Raise ConfigError where it reads and there is no text, DataError where it learns and there are no known fakes.

    DataError, too, for a log in which nobody has taken anything.
    """
    if not hasattr(detector, "detect") or isinstance(detector, type):
        raise ConfigError(f"detector is {detector!r}; give one, as lorec.Degree()")
    if not len(sight.log.items):
        raise DataError("the log holds no interaction, so there is nobody to suspect; give one that does")
    if detector.needs_known:
        sight.rounds()
    if detector.needs_text:
        sight.texts(detector)


def fits(spec: object, sight: Sight) -> None:
    """Raise now what a detector, or a defense made of one, would say after hours of other work.

    ConfigError or DataError of its own method `fits`, where it has one: for a log without times, too few users for the
    components asked for, an encoder that does not write.
    """
    told = getattr(spec, "fits", None)
    if told is not None:
        told(sight)


def detect(
    detector: Detector,
    split: Split,
    *,
    text: TextVectors | None = None,
    known: Sequence[Poison] | None = None,
    seed: int = 0,
) -> Suspicion:
    """Ask one detector about a training log, as a defense made of it would with the same seed. Raises as `check`."""
    sight = Sight(split.train, len(split.catalog), text, known or (), stream(seed, "guard"))
    check(detector, sight)
    return detector.detect(sight)
