"""Judging: exact ranks by counting, recommendation quality, exposure of targets, detection (as Zhang et al. 2024 do).

Every figure is over genuine users. A rank is 1 + the number of other candidates that score as high or higher, so that
ties count against the hit; nothing is sorted and no users x items matrix is ever held.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorec.data import Bools, Floats, Ints, Sequences, Split
from lorec.errors import ConfigError, DataError
from lorec.models import Scorer, first_places, hide

HIT_CUTS = (10,)
TARGET_CUTS = (50,)


@dataclass(frozen=True)
class Scorecard:
    """What a model is worth."""

    metrics: dict[str, float]
    users: pl.DataFrame
    """A row for each user who was judged: `user`; `rank` of the held-out item; with targets `target ranks`, null for a
    target that the user has; with `top` the numbers of the items in the first places, 0 where none was left."""


def evaluate(
    scorer: Scorer,
    split: Split,
    *,
    on: Literal["valid", "test"] = "test",
    targets: Ints | None = None,
    hits: tuple[int, ...] = HIT_CUTS,
    exposures: tuple[int, ...] = TARGET_CUTS,
    rows: Ints | None = None,
    top: int = 0,
) -> Scorecard:
    """HR@k, NDCG@k and MRR of the held-out items of genuine users; with targets also T-HR@k, T-NDCG@k and mean rank.

    `rows` are the users that count, such as a sample or those with short histories; all genuine ones if omitted.
    `top` items of each user's list are kept, too. Where users may take an item again, seen items compete; otherwise
    only unseen ones do. Raises DataError for no user, and for a fraudster among them, who has nothing held out, and
    ConfigError for a model of another catalogue.
    """
    has = getattr(scorer, "n_items", len(split.catalog))
    if has != len(split.catalog):
        raise ConfigError(f"the model has {has} items, the split's catalogue {len(split.catalog)}; judge it on its own")
    rows = split.genuine() if rows is None else np.asarray(rows)
    if rows.dtype == bool:
        rows = np.flatnonzero(rows)
    if targets is not None and len(targets) and not 1 <= min(targets) <= max(targets) <= len(split.catalog):
        raise DataError(f"a target lies outside of the catalogue's numbers, 1 to {len(split.catalog)}")
    if not len(rows) or split.fraudsters[rows].any():
        raise DataError("users to judge are at least one, and genuine; choose among split.genuine()")
    log = split.histories(rows, on)
    held = (split.test if on == "test" else split.valid)[rows]
    if not held.all():
        raise DataError("some of these users have nothing held out; judge on a split, as leave_two_out makes it")
    goals = held[:, None] if targets is None else np.column_stack([held, np.tile(targets, (len(rows), 1))])
    older = split.older.take(rows)
    ranks, best = _ranked(scorer, log, goals, split.repeats, older, min(top, len(split.catalog)))
    metrics = quality(ranks[:, 0], hits)
    users = pl.DataFrame({"user": split.users.gather(rows), "rank": ranks[:, 0]})
    if targets is not None:
        absent = _absent(log, targets) & _absent(older, targets)
        metrics |= exposure(ranks[:, 1:], absent, exposures)
        told = pl.Series("target ranks", np.where(absent, ranks[:, 1:], 0).astype(np.int32))
        users = users.with_columns(told.arr.eval(pl.when(pl.element() > 0).then(pl.element())))
    return Scorecard(metrics, users.with_columns(pl.Series("top", best)) if top else users)


def by_popularity(users: pl.DataFrame, split: Split, parts: int = 10) -> pl.DataFrame:
    """Who is shown and who is hit, by popularity: what a defense costs honest niche items shows here.

    `users` are those of a scorecard with `top` places. The catalogue in `parts` of equal numbers of items, 1 the least
    popular in training: `slots`, the share of the places that go to the part; `shown`, its distinct items in them;
    `held out`, test items of the part; `hits`, how many of those stand in the places. Raises DataError without `top`.
    """
    if "top" not in users:
        raise DataError("the scorecard has no first places; evaluate with top=10")
    n_items, best = len(split.catalog), users["top"].to_numpy()
    counts = split.train.counts(n_items)[1:]
    part = np.zeros(n_items + 1, dtype=np.int64)
    part[1 + np.argsort(counts, kind="stable")] = np.arange(n_items) * parts // n_items
    shown = np.bincount(best.ravel(), minlength=n_items + 1)
    shown[0] = 0
    rows = pl.DataFrame({"user": split.users, "row": np.arange(len(split.users))})
    held = split.test[users.join(rows, on="user", how="left", maintain_order="left")["row"].to_numpy()]
    hit = users["rank"].to_numpy() <= best.shape[1]  # as HR@k has it, where scores are equal
    return pl.DataFrame(
        {
            "part": np.arange(1, parts + 1),
            "slots": np.bincount(part[1:], shown[1:], minlength=parts) / max(int(shown.sum()), 1),
            "shown": np.bincount(part[1:], shown[1:] > 0, minlength=parts).astype(np.int64),
            "held out": np.bincount(part[held], minlength=parts),
            "hits": np.bincount(part[held], hit, minlength=parts).astype(np.int64),
        }
    )


def overlap(users: pl.DataFrame, others: pl.DataFrame) -> float:
    """How stable lists are: the share of first places with the same items, whatever their order, mean over users.

    Both are users of scorecards with as many `top` places, in any order. Raises DataError for other users.
    """
    both = users.select("user", "top").join(others.select("user", other="top"), on="user", how="left")
    if both["other"].null_count() or len(users) != len(others):
        raise DataError("the two scorecards judge different users; compare models on the same log")
    one, other = both["top"].to_numpy(), both["other"].to_numpy()
    same = (one[:, :, None] == other[:, None, :]) & (one > 0)[:, :, None]
    return float(same.any(axis=2).sum() / max(int((one > 0).sum()), 1))


def ranks_of(
    scorer: Scorer, log: Sequences, goals: Ints, *, seen: bool = False, older: Sequences | None = None
) -> NDArray[np.int64]:
    """[users, goals]: the exact rank of each goal item among all items, or among those that the user has not seen.

    `older` are items that the user saw before the history begins.

    A goal that the history holds competes all the same: it is ranked among the unseen. Raises DataError for a score
    that is not a number.
    """
    return _ranked(scorer, log, goals, seen, older, 0)[0]


def _ranked(
    scorer: Scorer, log: Sequences, goals: Ints, seen: bool, older: Sequences | None, top: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The ranks of `ranks_of`, and [users, top]: the items in the first places, best first."""
    ranks = np.zeros(goals.shape, dtype=np.int64)
    best = np.zeros((len(log), top), dtype=np.int32)
    for rows, scores in scorer.score(log):
        wanted = torch.from_numpy(goals[rows].astype(np.int64)).to(scores.device)
        own = scores.gather(1, wanted)
        _leave_candidates(scores, rows, log, seen, older)
        # Counting passes over the scores once a goal and never writes; NaN would fail every comparison unseen.
        if bool(torch.isnan(scores.sum())) and bool(torch.isnan(scores).any()):
            raise DataError("a score is not a number; the model has diverged: lower the learning rate and train again")
        above = torch.stack([_at_least(scores, one) for one in own.unbind(1)], dim=1)
        itself = scores.gather(1, wanted) > -torch.inf  # a hidden goal was not counted as its own equal
        ranks[rows] = (above + 1 - itself.long()).cpu().numpy()
        if top:
            values, numbers = first_places(scores, top)
            best[rows] = numbers.masked_fill(torch.isinf(values), 0).cpu().numpy()
    return ranks, best


def _leave_candidates(scores: Tensor, rows: Ints, log: Sequences, seen: bool, older: Sequences | None) -> None:
    """Hide padding and, unless the seen compete too, what these rows' users have seen."""
    scores[:, 0] = -torch.inf
    if not seen:
        hide(scores, log.take(rows))
        if older is not None and len(older.items):
            hide(scores, older.take(rows))


def _at_least(scores: Tensor, own: Tensor) -> Tensor:
    """[B]: how many of a row's scores [B, V + 1] reach its own [B].

    Ones are written and added as floats, in half the time of truth values; up to 2^24 items they are added exactly.
    """
    return torch.ge(scores, own[:, None], out=torch.empty_like(scores, dtype=torch.float32)).sum(1).long()


def quality(ranks: NDArray[np.int64], cuts: tuple[int, ...] = HIT_CUTS) -> dict[str, float]:
    """HR@k, NDCG@k (one relevant item: 1 / log2(rank + 1)) and MRR of ranks [users]."""
    gains = 1 / np.log2(ranks + 1.0)
    metrics: dict[str, float] = {}
    for k in cuts:
        metrics[f"HR@{k}"] = float((ranks <= k).mean())
        metrics[f"NDCG@{k}"] = float((gains * (ranks <= k)).mean())
    return metrics | {"MRR": float((1 / ranks).mean())}


def exposure(ranks: NDArray[np.int64], absent: Bools, cuts: tuple[int, ...] = TARGET_CUTS) -> dict[str, float]:
    """T-HR@k, T-NDCG@k, mean target rank: ranks [users, targets], counted where a user lacks the target.

    Each is a mean over users for every target, then over targets.
    """
    n = np.maximum(absent.sum(axis=0), 1)

    def over_targets(values: Floats) -> float:
        return float(((values * absent).sum(axis=0) / n).mean())

    metrics: dict[str, float] = {}
    for k in cuts:
        metrics[f"T-HR@{k}"] = over_targets((ranks <= k).astype(np.float64))
        metrics[f"T-NDCG@{k}"] = over_targets((ranks <= k) / np.log2(ranks + 1.0))
    return metrics | {"target rank": over_targets(ranks.astype(np.float64))}


def _absent(log: Sequences, targets: Ints) -> Bools:
    """[users, targets]: whether the history lacks the target."""
    absent = np.ones((len(log), len(targets)), dtype=bool)
    users = log.users()
    for column, target in enumerate(targets):
        absent[users[log.items == target], column] = False
    return absent


def success_removed(
    clean: Mapping[str, float], undefended: Mapping[str, float], defended: Mapping[str, float], k: int, n_items: int
) -> float | None:
    """Attack success removed in T-HR@k: (undefended - defended) / (undefended - clean).

    None where the attack did not work: undefended below five times clean, or not above chance (k / items).
    """
    name = f"T-HR@{k}"
    if undefended[name] < 5 * clean[name] or undefended[name] <= min(1.0, k / n_items):
        return None
    return (undefended[name] - defended[name]) / (undefended[name] - clean[name])


def detection(suspicion: Floats, flagged: Bools | None, fraudsters: Bools) -> dict[str, float]:
    """How well suspicion [users] ranks fraudsters, and what the own decision `flagged` [users] is worth, if any.

    ROC-AUC, PR-AUC (average precision), recall in the worst 1 % and in the worst m (as many as there are fraudsters, so
    precision there is the same); precision, recall and F1 of the decision. Ties count half in ROC-AUC, and share their
    place everywhere else. Raises DataError where one of the two kinds is missing, and
    for a suspicion that is no number.
    """
    n, m = len(fraudsters), int(fraudsters.sum())
    if not 0 < m < n:
        raise DataError(f"{m} fraudsters among {n} users; detection can be judged only where there are both kinds")
    if wrong := int(np.isnan(suspicion).sum()):
        raise DataError(f"{wrong} of {n} suspicions are no numbers; whoever suspects has to say by how much")
    values, place = np.unique(suspicion, return_inverse=True)
    bad = np.bincount(place, weights=fraudsters, minlength=len(values))[::-1]  # worst first
    everyone = np.bincount(place, minlength=len(values))[::-1]
    good = everyone - bad
    found, seen = np.cumsum(bad), np.cumsum(everyone)
    told = {
        "ROC-AUC": float((good * (found - bad / 2)).sum() / (m * (n - m))),
        "PR-AUC": float((bad * found / seen).sum() / m),
        "recall@1%": float(_found_among(max(1, round(0.01 * n)), bad, everyone) / m),
        "recall@m": float(_found_among(m, bad, everyone) / m),
    }
    if flagged is not None:
        caught = int((flagged & fraudsters).sum())
        precision, recall = caught / max(int(flagged.sum()), 1), caught / m
        f1 = 2 * precision * recall / max(precision + recall, 1e-12)
        told |= {"precision": precision, "recall": recall, "F1": f1}
    return told


def _found_among(first: int, bad: NDArray[Any], everyone: Ints) -> float:
    """Expected fraudsters among the `first` worst, ties in random order."""
    before = np.concatenate([[0], np.cumsum(everyone)[:-1]])
    share = np.clip((first - before) / everyone, 0, 1)
    return float((share * bad).sum())


def mean_weights(weights: Floats, flagged: Bools, fraudsters: Bools) -> dict[str, float]:
    """Mean weight of genuine users and of fraudsters, if any, and the share of genuine users who are turned down."""
    bad = {"weight fraudsters": float(weights[fraudsters].mean())} if fraudsters.any() else {}
    good = {"weight genuine": float(weights[~fraudsters].mean())}
    return good | bad | {"genuine turned down": float(flagged[~fraudsters].mean())}


__all__ = [
    "Scorecard",
    "by_popularity",
    "detection",
    "evaluate",
    "exposure",
    "mean_weights",
    "overlap",
    "quality",
    "ranks_of",
    "success_removed",
]
