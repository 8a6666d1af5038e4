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
    told = world.holders >= FEWEST
    told[0] = False
    raw = _kinship(world, pairs, vectors, told, counted, rng)
    if counted:
        raw |= _company(world)
        raw["excess"] = _excess(raw, world.holders, told)
    if vectors is not None:
        raw["text fit"] = _text_fit(world, vectors)
    scores = {name: _normal_scores(values, world.holders, told) for name, values in raw.items()}
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

    @staticmethod
    def of(log: Sequences, n_items: int, partners: int, rng: np.random.Generator) -> "_World":
        items, users, size = log.items.astype(np.int64), log.users(), n_items + 1
        lengths = log.lengths[users]
        each = np.minimum(np.maximum(lengths - 1, 0), partners)
        asking = np.repeat(np.arange(len(items)), each)
        step = np.arange(len(asking)) - np.repeat(offsets(each)[:-1], each) + 1
        many = lengths[asking] - 1 > partners
        step[many] = 1 + (rng.random(int(many.sum())) * (lengths[asking[many]] - 1)).astype(np.int64)
        begin = log.starts[users[asking]]
        other = begin + (asking - begin + step) % lengths[asking]
        different = items[asking] != items[other]
        asking, other = asking[different], other[different]
        pair = items[asking] * size + items[other]
        order = np.argsort(pair, kind="stable")
        known, first, counts = np.unique(pair[order], return_index=True, return_counts=True)
        mass = np.bincount(items[asking], minlength=size).astype(np.float64)
        holders = np.bincount(items, minlength=size)
        return _World(log, items, users, size, holders, asking, pair, known, first, counts, users[asking][order], mass)

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
    world: _World, pairs: int, vectors: Floats | None, told: Bools, counted: bool, rng: np.random.Generator
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
        unit = _unit(vectors)
        cosines = np.concatenate(  # in parts, as a million pairs of vectors would fill the memory
            [np.einsum("ij,ij->i", unit[left[s : s + 65536]], unit[right[s : s + 65536]]) for s in _starts(left)]
        )
        found["text kinship"] = world.over_items(cosines, asked)
    return found


def _starts(values: Ints, size: int = 65536) -> range:
    return range(0, max(len(values), 1), size)


def _without_holders(world: _World, pair: Ints, item: Ints, rng: np.random.Generator, most: int = 30) -> Floats:
    """How often each pair occurs among users who do not hold the item; of many, `most` are looked at."""
    place, is_known = world.places(pair)
    counts = np.where(is_known, world.counts[place] if len(world.counts) else 0, 0)
    looked = np.minimum(counts, most)
    row = np.repeat(np.arange(len(pair)), looked)
    nth = np.arange(len(row)) - np.repeat(offsets(looked)[:-1], looked)
    shift = (rng.random(len(pair)) * (counts - looked + 1)).astype(np.int64)
    who = world.by_pair[world.first[place[row]] + shift[row] + nth]
    taken = np.unique(world.users * world.size + world.items)
    wanted = who * world.size + item[row]
    holds = taken[np.minimum(np.searchsorted(taken, wanted), len(taken) - 1)] == wanted
    held = np.bincount(row, holds, minlength=len(pair)) / np.maximum(looked, 1)
    outside: Floats = counts * (1 - held)
    return outside


def _text_fit(world: _World, vectors: Floats) -> Floats:
    """The mean cosine between an item's text and the other items of its holders."""
    unit = _unit(vectors)
    sums = np.zeros((len(world.log), unit.shape[1]), dtype=np.float32)
    np.add.at(sums, world.users, unit[world.items])
    fit = np.concatenate(
        [
            np.einsum("ij,ij->i", sums[world.users[s : s + 65536]] - unit[some], unit[some])
            for s in _starts(world.items)
            for some in [world.items[s : s + 65536]]
        ]
    )
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

    Quantiles are taken in windows of three parts of about `part` items and interpolated over log popularity, so that
    one popular item is compared with the next ones and not with the many rare.
    """
    scores = np.zeros(len(values))
    ranked = np.flatnonzero(told)
    if len(ranked) < 2:
        return scores
    ranked = ranked[np.argsort(holders[ranked], kind="stable")]
    parts = np.array_split(ranked, max(1, len(ranked) // part))
    where = np.array([np.log(holders[one]).mean() for one in parts])
    near = [np.concatenate(parts[max(0, i - 1) : i + 2]) for i in range(len(parts))]
    tables = np.array([np.quantile(values[some], CUTS) for some in near])
    n = np.log(holders[ranked])
    table = np.stack([np.interp(n, where, column) for column in tables.T], axis=1)
    table += np.arange(len(CUTS)) * 1e-9  # strictly rising, also where values are tied
    mine = values[ranked]
    above = np.clip((mine[:, None] >= table).sum(1), 1, len(CUTS) - 1)
    row = np.arange(len(ranked))
    low, high = table[row, above - 1], table[row, above]
    inside = NORMAL_CUTS[above - 1] + (mine - low) / (high - low) * (NORMAL_CUTS[above] - NORMAL_CUTS[above - 1])
    # Beyond the ends the slope of the outer quarter goes on: the last two quantiles alone would be noise.
    left = NORMAL_CUTS[0] + (mine - table[:, 0]) * _slope(table, 0, 6)
    right = NORMAL_CUTS[-1] + (mine - table[:, -1]) * _slope(table, -7, -1)
    found = np.where(mine < table[:, 0], left, np.where(mine > table[:, -1], right, inside))
    scores[ranked] = np.clip(found, -10, 10)
    return scores


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
