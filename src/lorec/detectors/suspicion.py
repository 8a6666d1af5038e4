"""What a detector says, and how right it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from scipy.stats import rankdata

from lorec.data import Bools, Floats, Ints, Split, Weights
from lorec.detectors.reasons import Names, Why
from lorec.errors import ConfigError
from lorec.evaluation import detection, mean_weights


@dataclass(frozen=True, kw_only=True)
class Suspicion:
    """Scores of users, optionally of interactions and items; higher is more suspicious, on a detector's own scale."""

    users: Floats
    """[users]"""
    flagged: Bools | None = None
    """[users]: the detector's own decision, whom it accuses; None where it only says in which order to look."""
    interactions: Floats | None = None
    """[events]: of single interactions; None where it has no opinion on them."""
    lies: Bools | None = None
    """[events]: its own decision on them."""
    items: Floats | None = None
    """[V + 1]: how likely each item is pushed, row 0 padding; None where it has no opinion on them."""
    views: Mapping[str, Floats] = field(default_factory=dict)
    """[V + 1] each: what its opinion on items is made of, by name: how many times the odds of a lie are raised."""
    notes: tuple[str, ...] = ()
    """What a reader of all this must know, as what it has nothing to say by."""
    why: Why | None = None
    """What speaks against a user, in words that a person can check; worked out when asked."""
    why_item: Why | None = None
    """What speaks against an item; None where it has no opinion on them."""

    def reasons(self, names: Names) -> pl.Series:
        """[users]: what speaks against those whom it accuses, or without a decision against the worst 1 %; else ""."""
        some = worst(self.users, 0.01) if self.flagged is None else self.flagged
        return _said(self.why, np.flatnonzero(some), len(self.users), names)

    def item_reasons(self, names: Names) -> pl.Series:
        """[V]: what speaks against the worst 1 % of the items, ten at the least; "" for the rest."""
        if self.items is None:
            return _said(None, np.zeros(0, dtype=np.int64), len(names.titles), names)
        n = len(self.items) - 1
        some = np.argsort(-self.items[1:], kind="stable")[: max(10, n // 100)] + 1
        said = _said(self.why_item, some[self.items[some] > 0], n + 1, names)
        return said[1:]

    def weights(self) -> Weights:
        """What follows from its decisions: 0 for interactions that are lies, or else for accused users; 1 for the rest.

        Raises ConfigError where it decides nothing.
        """
        if self.lies is not None:
            return Weights(events=1 - self.lies.astype(np.float32))
        if self.flagged is not None:
            return Weights(users=1 - self.flagged.astype(np.float32))
        raise ConfigError("this detector accuses nobody, so nothing follows from it; take another one as a filter")


def _said(why: Why | None, places: Ints, n: int, names: Names) -> pl.Series:
    told = [""] * n
    if why is not None:
        for place in places:
            told[place] = why(int(place), names)
    return pl.Series(told, dtype=pl.String)


def places(values: Floats) -> Floats:
    """[n]: of each value in their order, 0 the smallest; ties share the mean of their places."""
    found: Floats = rankdata(values) - 1
    return found


def worst(suspicion: Floats, share: float) -> Bools:
    """[n]: the most suspicious share of all, those of one suspicion together as long as they fit."""
    n = int(share * len(suspicion))
    if n == 0:
        return np.zeros(len(suspicion), dtype=bool)
    border = np.partition(suspicion, len(suspicion) - n - 1)[len(suspicion) - n - 1]
    found: Bools = suspicion > border
    return found


def judged(found: Suspicion, split: Split, targets: Ints, weights: Weights | None = None) -> dict[str, float]:
    """How well it tells fraudsters and their lies from the rest, and whom it turns down, by an experiment's labels.

    An interaction is a lie where a fraudster takes a target; fraudsters' other interactions are on neither side. On a
    log without fraudsters only what is turned down is told, and where they hold no target nothing of interactions.
    `Brier` is of the likelihoods of interactions, where there are some (in [0, 1]), beside that of knowing nothing
    but how common lies are. `place of a target` is the median of the targets' places among all items, the most
    suspicious first, behind those of the same score. `weights` are the detector's own where not given; half or less
    turns an interaction down.
    """
    users, single = split.train.users(), found.interactions
    fake = split.fraudsters[users]
    lies = fake & np.isin(split.train.items, targets)
    told: dict[str, float] = {}
    turned_down = None
    if found.flagged is not None:
        given = found.weights() if weights is None else weights
        turned_down = given.turned_down(split.train)
        told = mean_weights(given.of_users(split.train), found.flagged, split.fraudsters)
        told["genuine interactions turned down"] = float(turned_down[~fake].mean())
    if split.fraudsters.any():
        told |= detection(found.users, found.flagged, split.fraudsters)
    if not lies.any():
        return told
    either = lies | ~fake
    of_events = (found.users[users] if single is None else single)[either]
    of_lies = detection(of_events, None if turned_down is None else turned_down[either], lies[either])
    told |= {f"interactions {name}": of_lies[name] for name in ("ROC-AUC", "PR-AUC", "recall") if name in of_lies}
    if found.flagged is not None:
        told["lies' weight"] = float(given.of_events(split.train)[lies].mean())
    if single is not None and single.min() >= 0 and single.max() <= 1:
        share = float(lies[either].mean())
        told |= {"Brier": float(((of_events - lies[either]) ** 2).mean()), "Brier of the share": share * (1 - share)}
    if found.items is not None:
        ordered = np.sort(found.items[1:])
        no_better = len(ordered) - np.searchsorted(ordered, found.items[targets])  # itself, and ties before it
        told["targets among the worst 10"] = float((no_better <= 10).mean())
        told["place of a target"] = float(np.median(no_better))
    return told


def harmed(weights: Weights, split: Split, flagged: Bools | None = None, parts: int = 4) -> pl.DataFrame:
    """Who is accused without reason: genuine users in parts of equal size, by length and by taste for the popular.

    A row for each part, 1 the shortest histories or the least popular items (their mean log count): users, the share
    of them accused (`flagged` [users], or else with an interaction that counts half or less), the share of their
    interactions turned down.
    """
    log, genuine = split.train, split.genuine()
    counts = np.log1p(log.counts(len(split.catalog)))
    taste = np.bincount(log.users(), counts[log.items], len(log)) / np.maximum(log.lengths, 1)
    turned_down = np.bincount(log.users(), weights.turned_down(log), len(log))
    accused = turned_down > 0 if flagged is None else flagged
    tables = []
    for by, values in (("length", log.lengths), ("popularity", taste)):
        order = genuine[np.argsort(values[genuine], kind="stable")]
        for part, rows in enumerate(np.array_split(order, min(parts, len(order))), start=1):
            share = turned_down[rows].sum() / max(log.lengths[rows].sum(), 1)
            tables.append((by, part, len(rows), float(values[rows].mean()), float(accused[rows].mean()), float(share)))
    columns = ["by", "part", "users", "mean", "accused", "interactions turned down"]
    return pl.DataFrame(tables, schema=columns, orient="row")
