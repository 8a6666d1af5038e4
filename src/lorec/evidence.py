"""What a log and its texts say about every item: does it keep the company that its popularity leads one to expect?

A pushed item was put into its holders' histories by one hand, and that shows in one of three ways. Its holders share
more than the rest of the world's view of their choices explains (`collusion`: profiles made to one pattern). Or they
are a random crowd with nothing in common (`incoherence`: profiles that are innocent but for one step). Or the item lies
far from the crowd in some other way (`surprise`). All are measured against items of like popularity and without a
label, and none moves when a recommender's weights do.

The measures are counts of the log and cosines of text vectors. Whatever asks how two items go together leaves out the
interaction that asks (`leave one out`), and what asks how two holders of an item go together leaves out everybody who
holds that item, so that fraudsters can't vouch for one another.

Time is not looked at: in a synthetic attack it is made up, and a detector of made-up times would only flatter itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lorec.data import Bools, Floats, Ints, Sequences, offsets

__all__ = ["Evidence", "gather"]

FEWEST = 3
"""Holders below which nothing is said of an item."""
COLLUSION = {"concentration": 1, "excess": 1, "same": 1, "kinship": -1, "text kinship": -1}
"""What is high (-1: low) where profiles were made to one pattern."""
INCOHERENCE = {
    "kinship": -1, "kinship share": -1, "text kinship": -1, "text fit": -1, "fit": -1, "strangers": 1,
}  # fmt: skip
"""What is high (-1: low) where an item's holders are a random crowd."""


@dataclass(frozen=True)
class Evidence:
    """What is known of each item; row 0 is padding, and an item with fewer than three holders has zeros."""

    measures: dict[str, Floats]
    """[V + 1] each: normal scores among items of like popularity, about N(0, 1) for honest items."""
    collusion: Floats
    """[V + 1]: a mean of normal scores."""
    incoherence: Floats
    """[V + 1]: a mean of normal scores."""
    surprise: Floats
    """[V + 1]: the Mahalanobis distance from the crowd in all measures together."""


def gather(
    log: Sequences,
    n_items: int,
    vectors: Floats | None,
    rng: np.random.Generator,
    *,
    counted: bool = True,
    partners: int = 20,
    pairs: int = 192,
) -> Evidence:
    """Measure every item of a log; `vectors` [V + 1, dim] of its text, or None to go without; `counted`: by the log.

    `partners` other items of the same user are looked at for each interaction (drawn where there are more), `pairs`
    pairs of holders for each item. Time and memory grow with interactions x partners + items x pairs.
    """
    world = _World.of(log, n_items, partners, rng)
    told = (world.holders >= FEWEST) & (world.mass > 0)
    told[0] = False
    unit = None if vectors is None else _unit(vectors)
    raw = _kinship(world, pairs, unit, told, counted, rng)
    if counted:
        raw |= _company(world)
        raw["excess"] = _excess(raw, world.holders, told)
    worded = told
    if unit is not None:
        raw["text fit"] = _text_fit(world, unit)
        worded = told & (unit != 0).any(axis=1)  # of an item without text its own text can't be judged
    scores = {
        name: _normal_scores(values, world.holders, worded if name == "text fit" else told)
        for name, values in raw.items()
    }
    distances = _distances(np.column_stack(list(scores.values())), world.holders, told)
    return Evidence(scores, _mean_of(scores, COLLUSION), _mean_of(scores, INCOHERENCE), distances)


def _mean_of(scores: dict[str, Floats], signs: dict[str, int]) -> Floats:
    """The mean of those measures that there are, none of them more than 5 either way."""
    mean: NDArray[np.float64] = np.mean(
        [sign * np.clip(scores[name], -5, 5) for name, sign in signs.items() if name in scores], axis=0
    )
    return mean


# ------------------------------------------------------------------------------------------------- the log as pairs


@dataclass(frozen=True)
class _World:
    """A log, and which items stand together in a history: directed pairs (asking event, other event of that user)."""

    log: Sequences
    items: NDArray[np.int64]
    users: NDArray[np.int64]
    size: int
    """V + 1"""
    holders: NDArray[np.int64]
    """[V + 1]: interactions of each item."""
    asking: NDArray[np.int64]
    """[P]: the event that asks."""
    pair: NDArray[np.int64]
    """[P]: asking item x size + the other item."""
    known: NDArray[np.int64]
    """Distinct pairs, sorted."""
    first: NDArray[np.int64]
    """Where each distinct pair begins in `by_pair`."""
    counts: NDArray[np.int64]
    """How often each distinct pair occurs."""
    by_pair: NDArray[np.int64]
    """[P]: users in the order of their pairs."""
    mass: Floats
    """[V + 1]: pairs in which an item asks."""
    taken: NDArray[np.int64]
    """Sorted: user x size + item of every event."""

    @staticmethod
    def of(log: Sequences, n_items: int, partners: int, rng: np.random.Generator) -> "_World":
        log, size = _distinct(log, n_items), n_items + 1
        items, users = log.items.astype(np.int64), log.users()
        lengths = log.lengths[users]
        each = np.minimum(np.maximum(lengths - 1, 0), partners)
        asking = np.repeat(np.arange(len(items)), each)
        nth, others = np.arange(len(asking)) - np.repeat(offsets(each)[:-1], each), lengths[asking] - 1
        # One partner from each of as many strata as there is room for: all of them where they are few, never one twice.
        low, high = nth * others // each[asking], (nth + 1) * others // each[asking]
        step = 1 + low + (rng.random(len(asking)) * (high - low)).astype(np.int64)
        begin = log.starts[users[asking]]
        other = begin + (asking - begin + step) % lengths[asking]
        pair = items[asking] * size + items[other]
        order = np.argsort(pair, kind="stable")
        known, first, counts = np.unique(pair[order], return_index=True, return_counts=True)
        mass = np.bincount(items[asking], minlength=size).astype(np.float64)
        holders = np.bincount(items, minlength=size)
        by_pair, taken = users[asking][order], np.sort(users * size + items)
        return _World(log, items, users, size, holders, asking, pair, known, first, counts, by_pair, mass, taken)

    def places(self, pair: Ints) -> tuple[Ints, Bools]:
        """Where each pair stands among the distinct ones, and whether it does."""
        place = np.minimum(np.searchsorted(self.known, pair), max(len(self.known) - 1, 0))
        return place, self.known[place] == pair if len(self.known) else np.zeros(len(pair), dtype=bool)

    def lift(self, counts: Floats, pair: Ints) -> Floats:
        """log of (times together) over (times expected by chance), both softened by half a count."""
        expected = self.mass[pair // self.size] * self.mass[pair % self.size] / max(float(self.mass.sum()), 1.0)
        lifted: Floats = np.log((counts + 0.5) / (expected + 0.5))
        return lifted

    def over_items(self, values: Floats, items: Ints) -> Floats:
        """[V + 1]: the mean of values by item, 0 where there are none."""
        n = np.bincount(items, minlength=self.size)
        return np.bincount(items, values, minlength=self.size) / np.maximum(n, 1)


def _distinct(log: Sequences, n_items: int) -> Sequences:
    """Each user's items once, so that nobody vouches for themselves by taking an item again."""
    pairs = np.unique(log.users() * (n_items + 1) + log.items)
    if len(pairs) == len(log.items):
        return log
    lengths = np.bincount(pairs // (n_items + 1), minlength=len(log))
    return Sequences((pairs % (n_items + 1)).astype(np.int32), offsets(lengths))


def _company(world: _World) -> dict[str, Floats]:
    """How an item goes with its holders' other items, according to all other users."""
    place, _ = world.places(world.pair)
    others = world.counts[place] - 1.0  # leave one out: the asking user does not vouch for itself
    n = np.bincount(world.asking, minlength=len(world.items))
    lift = np.bincount(world.asking, world.lift(others, world.pair), minlength=len(world.items)) / np.maximum(n, 1)
    alone = np.bincount(world.asking, others <= 0, minlength=len(world.items)) / np.maximum(n, 1)
    squares = np.bincount(world.known // world.size, world.counts.astype(np.float64) ** 2, minlength=world.size)
    return {
        "fit": world.over_items(lift, world.items),
        "strangers": world.over_items(alone, world.items),
        # the chance that two companions drawn from an item's histories are the same item
        "concentration": (squares - world.mass) / np.maximum(world.mass * np.maximum(world.mass - 1, 1), 1),
    }


def _kinship(
    world: _World, pairs: int, vectors: NDArray[np.float32] | None, told: Bools, counted: bool, rng: np.random.Generator
) -> dict[str, Floats]:
    """How two holders' other items go together, according to the users who do not hold the item."""
    by_item = np.argsort(world.items, kind="stable")
    starts = offsets(world.holders)
    asked = np.repeat(np.flatnonzero(told), pairs)

    def draw() -> tuple[Ints, Ints]:
        event = by_item[starts[asked] + (rng.random(len(asked)) * world.holders[asked]).astype(np.int64)]
        user = world.users[event]
        length, begin = world.log.lengths[user], world.log.starts[user]
        step = 1 + (rng.random(len(asked)) * np.maximum(length - 1, 0)).astype(np.int64)
        return user, world.items[begin + (event - begin + step) % length]

    (one, left), (two, right) = draw(), draw()
    usable = (one != two) & (left != asked) & (right != asked)
    asked, left, right = asked[usable], left[usable], right[usable]
    same = left == right
    found = {"same": world.over_items(same.astype(np.float64), asked)} if counted else {}
    asked, left, right = asked[~same], left[~same], right[~same]
    if counted:
        together = _without_holders(world, left * world.size + right, asked, rng)
        found["kinship"] = world.over_items(world.lift(together, left * world.size + right), asked)
        found["kinship share"] = world.over_items((together > 0).astype(np.float64), asked)
    if vectors is not None:
        cosines = np.zeros(len(left))
        for part in _parts(left):  # a million pairs of vectors would fill the memory
            cosines[part] = np.einsum("ij,ij->i", vectors[left[part]], vectors[right[part]])
        found["text kinship"] = world.over_items(cosines, asked)
    return found


def _parts(values: Ints, size: int = 65536) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, len(values), size))


def _without_holders(world: _World, pair: Ints, item: Ints, rng: np.random.Generator, most: int = 30) -> Floats:
    """How often each pair occurs among users who do not hold the item; of many, `most` are looked at."""
    place, is_known = world.places(pair)
    counts = np.where(is_known, world.counts[place] if len(world.counts) else 0, 0)
    start = (rng.random(len(pair)) * counts).astype(np.int64)
    outside = np.zeros(len(pair))
    for part in _parts(pair):  # up to `most` rows a pair: not all at once
        looked = np.minimum(counts[part], most)
        row = np.repeat(np.arange(len(looked)), looked)
        nth = np.arange(len(row)) - np.repeat(offsets(looked)[:-1], looked)
        at = (
            world.first[place[part][row]] + (start[part][row] + nth) % counts[part][row]
        )  # around, so that all are alike
        wanted = world.by_pair[at] * world.size + item[part][row]
        holds = world.taken[np.minimum(np.searchsorted(world.taken, wanted), len(world.taken) - 1)] == wanted
        outside[part] = counts[part] * (1 - np.bincount(row, holds, minlength=len(looked)) / np.maximum(looked, 1))
    return outside


def _text_fit(world: _World, vectors: NDArray[np.float32]) -> Floats:
    """The mean cosine between an item's text and the other items of its holders."""
    sums = np.zeros((len(world.log), vectors.shape[1]), dtype=np.float32)
    np.add.at(sums, world.users, vectors[world.items])
    fit = np.zeros(len(world.items))
    for part in _parts(world.items):
        own = vectors[world.items[part]]
        fit[part] = np.einsum("ij,ij->i", sums[world.users[part]] - own, own)
    return world.over_items(fit / np.maximum(world.log.lengths[world.users] - 1, 1), world.items)


def _unit(vectors: Floats) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (vectors / np.maximum(norms, 1e-9)).astype(np.float32)
    return unit


# ---------------------------------------------------------------------------------------- against what is expected


def _excess(raw: dict[str, Floats], holders: Ints, told: Bools) -> Floats:
    """How much better an item fits its company than the rest of the world's view of that company explains."""
    n, kinship = np.log(np.maximum(holders, 1)), raw["kinship"]
    explain = np.column_stack([np.ones(len(n)), kinship, n, kinship * n, raw["kinship share"]])
    weight = np.minimum(np.sqrt(holders), 7)[told]  # popular items are measured better, but are not everything
    fitted = np.linalg.lstsq(explain[told] * weight[:, None], raw["fit"][told] * weight, rcond=None)[0]
    excess: Floats = np.where(told, raw["fit"] - explain @ fitted, 0)
    return excess


CUTS = np.concatenate([[0.01, 0.02], np.arange(0.05, 0.96, 0.05), [0.98, 0.99]])
NORMAL_CUTS: NDArray[np.float64] = torch.special.ndtri(torch.from_numpy(CUTS)).numpy()


def _normal_scores(values: Floats, holders: Ints, told: Bools, part: int = 150) -> Floats:
    """What a value's rank among items of like popularity is worth on a normal scale, straight on beyond the ends.

    Quantiles are taken in windows of three parts and interpolated over log popularity, so that one popular item is
    compared with the next ones and not with the many rare. A part has `part` items or more: items of one popularity are
    never parted, and tied values share the middle of their ranks.
    """
    scores = np.zeros(len(values))
    ranked = np.flatnonzero(told)
    if len(ranked) < 2:
        return scores
    ranked = ranked[np.argsort(holders[ranked], kind="stable")]
    popularity = holders[ranked]
    rises = np.flatnonzero(np.diff(popularity)) + 1  # where a new popularity begins
    cuts: list[int] = []
    for rise in rises:
        if rise - (cuts[-1] if cuts else 0) >= part and len(ranked) - rise >= part:
            cuts.append(int(rise))
    parts = np.split(ranked, cuts)
    where = np.array([np.log(holders[one]).mean() for one in parts])
    near = [np.concatenate(parts[max(0, i - 1) : i + 2]) for i in range(len(parts))]
    tables = np.array([np.quantile(values[some], CUTS) for some in near])
    table = np.stack([np.interp(np.log(popularity), where, column) for column in tables.T], axis=1)
    mine = values[ranked]
    below, up_to = ((compare(mine[:, None], table)).sum(1) for compare in (np.greater, np.greater_equal))
    first, last = _placed(mine, table, below), _placed(mine, table, up_to)
    middle = torch.special.ndtri(torch.special.ndtr(torch.from_numpy(np.stack([first, last]))).mean(0)).numpy()
    scores[ranked] = np.clip(np.where(first == last, first, middle), -10, 10)
    return scores


def _placed(mine: Floats, table: Floats, above: Ints) -> Floats:
    """The normal score of values that lie above so many of their quantiles [rows, cuts]."""
    row, at = np.arange(len(mine)), np.clip(above, 1, len(CUTS) - 1)
    low, high = table[row, at - 1], table[row, at]
    share = np.where(high > low, (mine - low) / np.maximum(high - low, 1e-12), above >= at)
    inside = NORMAL_CUTS[at - 1] + np.clip(share, 0, 1) * (NORMAL_CUTS[at] - NORMAL_CUTS[at - 1])
    # Beyond the ends the slope of the outer quarter goes on: the last two quantiles alone would be noise.
    left = NORMAL_CUTS[0] + (mine - table[:, 0]) * _slope(table, 0, 6)
    right = NORMAL_CUTS[-1] + (mine - table[:, -1]) * _slope(table, -7, -1)
    placed: Floats = np.where(mine < table[:, 0], left, np.where(mine > table[:, -1], right, inside))
    return placed


def _slope(table: Floats, start: int, end: int) -> Floats:
    rise: Floats = (NORMAL_CUTS[end] - NORMAL_CUTS[start]) / np.maximum(table[:, end] - table[:, start], 1e-6)
    return rise


def _distances(scores: Floats, holders: Ints, told: Bools) -> Floats:
    """Mahalanobis distance from the crowd; scores are cut at 4 when the crowd is measured, so that outliers don't."""
    distances = np.zeros(len(scores))
    if told.sum() < 2:
        return distances
    crowd, weight = np.clip(scores[told], -4, 4), holders[told] / holders[told].sum()
    centre = weight @ crowd
    spread = (crowd - centre).T @ ((crowd - centre) * weight[:, None]) + 0.05 * np.eye(scores.shape[1])
    away = scores[told] - centre
    distances[told] = np.sqrt(np.einsum("ij,ij->i", away @ np.linalg.inv(spread), away))
    return distances
