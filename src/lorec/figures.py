"""What each figure is called where people read it, how it is written, what it means and which way is better.

Whoever computes a figure (`evaluation`, `detectors`, `experiment`) names it by a key of these groups, and files have
the key; terminal, tables, pages and the glossary show its title. A figure that stands in no group is shown by its key.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Figure:
    """How one figure is shown."""

    means: str
    """For the glossary."""
    better: str = ""
    """↑ or ↓, for the recommender's owner, not for the attacker; empty where neither is."""
    title: str = ""
    """What readers see, where it is not the key."""
    form: str = ".4f"
    """As Python's `format` wants it."""


GROUPS: Mapping[str, Mapping[str, Figure]] = MappingProxyType({
    "quality, over genuine users and their test items": {
        "HR@10": Figure("share of users whose test item is among their first ten", "↑"),
        "NDCG@10": Figure("the same, counting a first place 1 and later places less, down to .29 for the tenth", "↑"),
        "MRR": Figure("mean of 1 / rank of the test item", "↑"),
        "HR@10 change, %": Figure(
            "of HR@10, by bootstrap over users where there is an interval", "↑", "HR@10 against clean, %", ".1f"
        ),
        "overlap@10": Figure("share of a user's first ten items that the clean arm shows, too", "↑", form=".3f"),
    },
    "exposure of targets": {
        "T-HR@50": Figure(
            "for each target, the share of genuine users without it who get it among their first fifty; the mean over "
            "targets", "↓",
        ),
        "T-NDCG@50": Figure("the same, counting higher places more", "↓"),
        "target rank": Figure("mean rank of the targets", "↑", form=",.0f"),
        "chance T-HR@50": Figure("50 / items: what a random ranking would show"),
        "success removed": Figure(
            "of the attack's: 1: as if there had been no attack; 0: no defense at all; below 0: the defense helps the "
            "attacker. [Formula](concepts.md#the-judgement); empty where the attack did not work", "↑", form=".3f",
        ),
    },
    "detection of users": {
        "ROC-AUC": Figure(
            "the chance that a fraudster is ranked above a genuine user; .5 is chance", "↑", "AUC users", ".3f"
        ),
        "PR-AUC": Figure(
            "mean precision over all recalls; chance is the share of fraudsters", "↑", "PR-AUC users", ".3f"
        ),
        "recall@1%": Figure(
            "share of the fraudsters among the worst hundredth of all users", "↑", "recall, worst 1 %", ".3f"
        ),
        "recall@m": Figure(
            "share of the fraudsters among as many of the worst users as there are fraudsters (m); the precision there "
            "is the same figure", "↑", "recall, worst m", ".3f",
        ),
        "precision": Figure(
            "share of fraudsters among those whom the defense or detector itself accuses", "↑", form=".3f"
        ),
        "recall": Figure("share of the fraudsters whom it accuses", "↑", form=".3f"),
        "F1": Figure("the harmonic mean of both", "↑", form=".3f"),
        "genuine turned down": Figure(
            "share of genuine users whom the defense or detector accuses: the harm", "↓", "genuine accused"
        ),
    },
    "detection of interactions, lies against genuine ones": {
        "interactions ROC-AUC": Figure(
            "the chance that a lie is ranked above a genuine interaction", "↑", "AUC interactions", ".3f"
        ),
        "interactions PR-AUC": Figure("mean precision over all recalls", "↑", "PR-AUC interactions", ".3f"),
        "interactions recall": Figure("share of the lies that are turned down", "↑", "lies turned down", ".3f"),
        "genuine interactions turned down": Figure(
            "share of genuine interactions that count half or less in training: the harm", "↓", "genuine turned down"
        ),
        "Brier": Figure("mean squared error of the likelihoods of interactions", "↓"),
        "Brier of the share": Figure("the same, of always saying how common lies are"),
    },
    "detection of items": {
        "targets among the worst 10": Figure(
            "share of the targets among the ten most suspicious items", "↑", form=".3f"
        ),
        "place of a target": Figure(
            "the median place of the targets among all items, the most suspicious first, behind those of the same "
            "score", "↓", form=",.0f",
        ),
    },
    "weights in training": {
        "weight genuine": Figure("mean weight of genuine users", "↑", form=".3f"),
        "weight fraudsters": Figure("mean weight of fraudsters", "↓", form=".3f"),
        "lies' weight": Figure("mean weight of the lies", "↓", form=".3f"),
    },
    "cost": {
        "best epoch": Figure("the epoch that validation chose", form=".0f"),
        "epochs": Figure("how many were trained", form=".0f"),
        "seconds": Figure("of a detector, all in all", "↓", form=".1f"),
        "seconds an epoch": Figure("of training, without validation, in the mean", "↓", form=".2f"),
        "training seconds": Figure(
            "of training in all, with what a defense did before the first epoch, without validation", "↓", form=",.0f"
        ),
        "peak MB": Figure(
            "the most memory that the process held while this arm was trained (on Linux)", "↓", form=",.0f"
        ),
    },
})  # fmt: skip
"""Key and figure, in the order in which they are shown."""
FIGURES: Mapping[str, Figure] = MappingProxyType({key: one for group in GROUPS.values() for key, one in group.items()})


def title_of(key: str) -> str:
    """What readers see of a figure."""
    return (FIGURES[key].title if key in FIGURES else "") or key


def form_of(key: str) -> str:
    """How a figure is written."""
    return FIGURES[key].form if key in FIGURES else ".4f"


def written(key: str, value: float | None) -> str:
    """A value of a figure, for readers; nothing where there is none."""
    return "" if value is None else format(value, form_of(key))
