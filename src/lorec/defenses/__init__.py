"""Defenses: what the loss of a batch is, and what happens after an epoch.

A Defense is a spec with one verb, `start(recommender, sight) -> Guard`; a Guard is that defense at work on one
recommender, a Sight (`lorec.sight`) all that it may look at.
"""

from typing import Protocol

from lorec.defenses.adversarial import ADV, APR, VAT, PamaCF
from lorec.defenses.contrastive import CL4SRec, StDenoise
from lorec.defenses.filters import Filter, LLM4Dec, LoRec
from lorec.defenses.graphrfi import GraphRfi
from lorec.defenses.guard import Guard
from lorec.defenses.lorec_paper import LoRecPaper
from lorec.defenses.robust import PLD, RCE, TCE, Trimmed
from lorec.defenses.weighted import Oracle, Undefended, Weighted, WeightFile
from lorec.models import Backbone, Recommender
from lorec.sight import Sight

__all__ = [
    "ADV", "APR", "DEFENSES", "PLD", "RCE", "TCE", "VAT", "CL4SRec", "Defense", "Filter", "GraphRfi", "Guard",
    "LLM4Dec", "LoRec", "LoRecPaper", "Oracle", "PamaCF", "StDenoise", "Trimmed", "Undefended", "WeightFile",
    "Weighted", "suits",
]  # fmt: skip

DEFENSES: dict[str, type] = {
    "adv": ADV, "apr": APR, "cl4srec": CL4SRec, "filter": Filter, "graphrfi": GraphRfi, "llm4dec": LLM4Dec,
    "lorec": LoRec, "lorec-paper": LoRecPaper, "none": Undefended, "oracle": Oracle, "pamacf": PamaCF, "pld": PLD,
    "rce": RCE, "stdenoise": StDenoise, "tce": TCE, "trimmed": Trimmed, "vat": VAT, "weighted": WeightFile,
}  # fmt: skip


def suits(spec: object, backbone: Backbone) -> None:
    """Raise ConfigError now, by the method `suits` of a defense that has one, where it can't work on a backbone."""
    told = getattr(spec, "suits", None)
    if told is not None:
        told(backbone)


class Defense(Protocol):
    """The spec of a defense."""

    @property
    def needs_text(self) -> bool:
        """Whether `start` asks for text vectors."""
        ...

    def start(self, recommender: Recommender, sight: Sight) -> Guard:
        """Put it to work on a recommender that is about to train on a log."""
        ...
