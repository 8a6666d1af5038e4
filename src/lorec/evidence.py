"""What a log and its texts say about every item: does it keep the company that its popularity leads one to expect?

A pushed item was put into its holders' histories by one hand, and that shows in one of six ways. Its holders share more
than the rest of the world's view of their choices explains (`collusion`: profiles made to one pattern). Or they are a
random crowd with nothing in common (`incoherence`: profiles that are innocent but for one step). Or a little of both,
in histories that don't hang together either (`contradiction`: people of one taste share much and go well together, a
crowd does neither, so the sum is steady; once more by the log alone, `nameless`, as whoever pushes items may have named
them). Or they are doubles of people who lack the item (`copying`: whose histories
were those). Or they hold what reads alike and nobody else takes together (`camouflage`). Or the item lies far from the
crowd in some other way (`surprise`). All are measured against items of like popularity and without a label, and none
moves when a recommender's weights do.

The measures are counts of the log and cosines of text vectors. Whatever asks how two items go together leaves out the
interaction that asks (`leave one out`), and what asks how two holders of an item go together leaves out everybody who
holds that item, so that fraudsters can't vouch for one another. Two listings of one product are held by the same people
for a reason that a language model knows, so such twins do not count for one another.

Of users only the mix of popularities in their histories is measured (`shapes`).

A log is counted once. What a few items would look like if some more histories stood in it (`Examiner.beside`) follows
from those counts and the newcomers' own, on the scale of the log as it is.

Time is not among the measures: in a synthetic attack it is made up, and a detector of made-up times would only flatter
itself. Who looks at a real log may ask for `bursts` besides, and for `doubles` of whole histories.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lorec.data import Bools, Floats, Ints, Sequences, firsts, offsets, runs
from lorec.errors import DataError

__all__ = ["MEASURES", "Evidence", "Examiner", "bursts", "by_rank", "coherence", "doubles", "shapes"]

FEWEST = 3
"""Holders below which nothing is said of an item."""
TWINS = 0.6
"""The cosine of two texts from which on being held together is no news."""
COLLUSION = {"concentration": 1, "excess": 1, "same": 1, "kinship": -1, "text kinship": -1}
"""What is high (-1: low) where profiles were made to one pattern."""
INCOHERENCE = {
    "kinship": -1, "kinship share": -1, "text kinship": -1, "text fit": -1, "fit": -1, "strangers": 1,
}  # fmt: skip
"""What is high (-1: low) where an item's holders are a random crowd."""
INNOCENT = {
    "concentration": -1, "same": -1, "excess": -1, "kinship": 1, "kinship share": 1, "text kinship": 1, "text fit": 1,
}  # fmt: skip
"""What is high (-1: low) where nothing is odd: of these measures only the other way is a surprise.

The other two, `fit` and `strangers`, tell lies on either side: too well at home in a strange crowd, or not at all.
"""

CAMOUFLAGE = {"text kinship": 1, "kinship share": -1, "excess": 1}
"""What is high (-1: low) where a crowd hides among titles that look alike: nobody else takes them together, and yet the
item fits them."""

COPYING = "doubles"
"""A view by itself: whoever copies histories takes care that all else looks as it should."""
SCATTER = "scatter"
"""How little the texts of a holder's other items have to do with one another: for `contradiction` and `intrusion`."""
EVENNESS = "evenness"
"""How much of an item's company is middling: its sixth to twentieth most frequent companions. For `collusion`."""
ASIDE = {COPYING, SCATTER, EVENNESS}
"""Measures that `surprise` leaves out."""
MEASURES: dict[str, str] = {
    "fit": "log", "strangers": "log", "concentration": "log", "same": "log", EVENNESS: "log", "kinship": "log",
    "kinship share": "log", "excess": "log", COPYING: "log", "text fit": "text", "text kinship": "text",
    SCATTER: "text",
}  # fmt: skip
"""All of them, and what each is made of."""
USUAL = 2.0
"""A score of doubles that says nothing: lies of other kinds have none, and a calibration must not take that for honest.
"""


@dataclass(frozen=True)
class Evidence:
    """What is known of each of n items; of one with fewer than three holders or more than half of all users, zeros."""

    measures: dict[str, Floats]
    """[n] each: normal scores among items of like popularity, about N(0, 1) for honest items."""
    collusion: Floats
    """[n]: a mean of normal scores, and half of the score of `evenness` where that is above 0: honest items that are
    close-knit hang on one or two companions, and a list that was handed out spreads over many (twenty in our
    `Segment`). Fillers drawn from the whole catalogue spread so far that it is low: that speaks for nobody."""
    incoherence: Floats
    """[n]: a mean of normal scores."""
    intrusion: Floats
    """[n]: incoherence, less .3 of the score of `scatter`. Of items whose holders have little in common those are the
    likeliest pushed whose holders are each of one piece: innocent profiles with one lie. As a view of its own it is
    calibrated badly, since known fakes are of all kinds; it is an order in which incoherence's budget is spent."""
    contradiction: Floats
    """[n]: the mean of `collusion`'s scores, incoherence, and half of the score of `scatter`."""
    nameless: Floats
    """[n]: the mean of `collusion`'s scores and incoherence by the log's measures alone; 0 where there is nothing else.
    Whoever pushes items may have named them, and a crowd that takes five titles of one kind reads as if it had a taste:
    so titles may accuse, and don't acquit."""
    copying: Floats
    """[n]: how nearly its holders are doubles of people who lack it: what a normal score has above `USUAL`."""
    camouflage: Floats
    """[n]: the sum of its scores, where that is above 0; 0 where one of them isn't measured."""
    surprise: Floats
    """[n]: the Mahalanobis distance from the crowd in all measures together, what speaks for an item left aside."""


MOST_PAIRS = 25_000_000
"""Pairs of a log that are looked at, about: a larger log looks at fewer partners of each interaction, so that memory
stays within a few gigabytes."""
MOST_DRAWN = 10_000_000
"""Pairs of holders that are drawn at a time."""
MOST_AT_ONCE = 100_000
"""Users who are compared with others at a time: of a million users there are a hundred million candidates."""


class Examiner:
    """Measures items: all of a log, or some beside further histories.

    Time and memory grow with interactions x `partners` + items x `pairs`; `beside` costs what its items' holders do.
    """

    def __init__(
        self,
        log: Sequences,
        n_items: int,
        vectors: Floats | None,
        rng: np.random.Generator,
        *,
        counted: bool = True,
        without: Collection[str] = (),
        partners: int = 20,
        pairs: int = 192,
    ) -> None:
        """`vectors` [V + 1, dim] of the items' texts, or None to go without; `counted`: whether to go by the log.

        `without` names measures that no view asks, and `twins` where what reads the same is to count as any other.

        `partners` other items of the same user are looked at for each interaction (drawn where there are more), `pairs`
        pairs of holders for each item.
        """
        partners = min(partners, max(2, MOST_PAIRS // max(len(log.items), 1)))
        self._counted, self._partners, self._pairs, self._rng = counted, partners, pairs, rng
        self._unit = None if vectors is None else _unit(vectors)
        self._twin_texts = None if "twins" in without else self._unit
        self._world = _World.of(log, n_items, partners, rng)
        everything = np.arange(n_items + 1)
        self._usual = None if self._unit is None else _Usual.of(self._world.log, self._unit)
        raw = self._measure(self._world, everything)
        told, worded = self._told(self._world, everything), self._worded(everything)
        self._scale = _Scale.of(raw, self._world.holders, told, worded, without)
        self.evidence = self._judge(raw, self._world, everything)
        """Of every item; row 0 is padding."""

    def beside(self, profiles: Sequences, items: Ints) -> Evidence:
        """What these items, sorted and distinct, would look like if the profiles stood in the log, too."""
        world = self._world.extended(profiles, self._partners, self._rng)
        return self._judge(self._measure(world, items), world, items)

    def _told(self, world: "_World", items: Ints) -> Bools:
        """Which items something can be said of: what most have can't be pushed, and leaves nobody to compare with."""
        holders = world.holders[items]
        told: Bools = (holders >= FEWEST) & (2 * holders <= len(world.log)) & (world.mass[items] > 0) & (items > 0)
        return told

    def _worded(self, items: Ints) -> Bools:
        return np.ones(len(items), dtype=bool) if self._unit is None else (self._unit[items] != 0).any(axis=1)

    def _measure(self, world: "_World", items: Ints) -> dict[str, Floats]:
        company = _Company.of(world, items, self._twin_texts)
        raw: dict[str, Floats] = {}
        if self._counted:
            raw |= company.measures() | _kinship(world, items, self._pairs, self._rng)
            raw[COPYING] = _doubles(world, items)
        if self._unit is not None and self._usual is not None:
            raw |= _texts(company, self._unit, self._usual)
        return raw

    def _judge(self, raw: dict[str, Floats], world: "_World", items: Ints) -> Evidence:
        return self._scale.judge(raw, world.holders[items], self._told(world, items), self._worded(items))


# ------------------------------------------------------------------------------------------------- the log as pairs


@dataclass(frozen=True)
class _Pairs:
    """Which items stand together in histories: directed pairs (asking item, other item of that user), sorted."""

    size: int
    """V + 1"""
    pair: NDArray[np.int64]
    """[P]: asking item x size + the other item."""
    users: NDArray[np.int64]
    """[P]: whose history it is."""
    weights: Floats
    """[P]: one over the partners of that event, so that every holder of the asking item counts alike."""
    known: NDArray[np.int64]
    """Distinct pairs, sorted."""
    first: NDArray[np.int64]
    """Where each distinct pair begins, and the end of the last."""
    taken: NDArray[np.int64]
    """Sorted: user x size + item of every event."""

    @staticmethod
    def of(log: Sequences, size: int, partners: int, rng: np.random.Generator) -> "_Pairs":
        """Of a log in which nobody takes an item again."""
        items, users = log.items.astype(np.int64), log.users()
        lengths = log.lengths[users]
        each = np.minimum(np.maximum(lengths - 1, 0), partners)
        asking = np.repeat(np.arange(len(items)), each)
        nth, others = runs(0 * each, each), lengths[asking] - 1
        # One partner from each of as many strata as there is room for: all of them where they are few, never one twice.
        low, high = nth * others // each[asking], (nth + 1) * others // each[asking]
        step = 1 + low + (rng.random(len(asking)) * (high - low)).astype(np.int64)
        begin = log.starts[users[asking]]
        pair = items[asking] * size + items[begin + (asking - begin + step) % lengths[asking]]
        order = np.argsort(pair, kind="stable")
        pair, asking = pair[order], asking[order]
        first = firsts(pair)
        return _Pairs(
            size, pair, users[asking], 1 / each[asking], pair[first[:-1]], first, np.sort(users * size + items)
        )

    def rows(self, items: Ints) -> NDArray[np.int64]:
        """The rows in which these items (sorted, distinct) ask."""
        if len(items) == self.size:
            return np.arange(len(self.pair))
        begins, ends = np.searchsorted(self.pair, [items * self.size, (items + 1) * self.size])
        return runs(begins, ends - begins)

    def without_holders(self, pair: Ints, item: Ints, rng: np.random.Generator, most: int = 30) -> Floats:
        """How often each pair occurs among users who do not hold the item; of many, `most` are looked at."""
        outside = np.zeros(len(pair))
        if not len(self.known):
            return outside
        place = np.minimum(np.searchsorted(self.known, pair), len(self.known) - 1)
        found = np.flatnonzero(self.known[place] == pair)
        first, counts = self.first[place[found]], self.first[place[found] + 1] - self.first[place[found]]
        start = (rng.random(len(found)) * counts).astype(np.int64)
        for part in _parts(found):  # up to `most` rows a pair: not all at once
            looked = np.minimum(counts[part], most)
            row = np.repeat(np.arange(len(looked)), looked)
            nth = runs(0 * looked, looked)
            at = first[part][row] + (start[part][row] + nth) % counts[part][row]  # around, so that all are alike
            wanted = self.users[at] * self.size + item[found[part]][row]
            holds = self.taken[np.minimum(np.searchsorted(self.taken, wanted), len(self.taken) - 1)] == wanted
            outside[found[part]] = counts[part] * (1 - np.bincount(row, holds, minlength=len(looked)) / looked)
        return outside


@dataclass(frozen=True)
class _Sketches:
    """A few pairs of items from every history, the same few wherever the same items stand.

    Of a user's items those with the lowest hash are kept (a bottom-k sketch), and all pairs of them: so two histories
    of any length that are nearly alike have most of these pairs in common.
    """

    pair: NDArray[np.int64]
    """[P], sorted."""
    users: NDArray[np.int64]
    """[P]: whose."""
    each: NDArray[np.int64]
    """[users]: how many pairs each has."""

    @staticmethod
    def of(log: Sequences, size: int, kept: int = 12) -> "_Sketches":
        hashed = _hashed(log.items)
        order = np.lexsort((hashed, log.users()))
        nth = np.arange(len(order)) - log.starts[:-1][log.users()]
        events = np.sort(order[nth < kept])
        sketch = Sequences(log.items[events], offsets(np.minimum(log.lengths, kept)))
        users, left = sketch.users(), sketch.lengths[sketch.users()] - 1 - sketch.positions()
        one = np.repeat(np.arange(len(users)), left)
        items, other = sketch.items.astype(np.int64), one + 1 + runs(0 * left, left)
        pair = np.minimum(items[one], items[other]) * size + np.maximum(items[one], items[other])
        order = np.argsort(pair, kind="stable")
        return _Sketches(pair[order], users[one][order], np.bincount(users[one], minlength=len(log)))


def _hashed(items: Ints) -> NDArray[np.uint64]:
    """A fixed hash of item numbers."""
    with np.errstate(over="ignore"):
        mixed = (items.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return mixed ^ (mixed >> np.uint64(27))


@dataclass(frozen=True)
class _World:
    """A log with its pairs, in layers: those of the log itself, and those of further histories."""

    log: Sequences
    """Every user's items once."""
    layers: tuple[_Pairs, ...]
    sketches: tuple[_Sketches, ...]
    """Of each layer."""
    holders: NDArray[np.int64]
    """[V + 1]: users of each item."""
    mass: Floats
    """[V + 1]: pairs in which an item asks."""

    @staticmethod
    def of(log: Sequences, n_items: int, partners: int, rng: np.random.Generator) -> "_World":
        log, size = log.distinct(), n_items + 1  # nobody vouches for themselves by taking an item again
        layer = _Pairs.of(log, size, partners, rng)
        mass = np.bincount(layer.pair // size, minlength=size).astype(np.float64)
        return _World(log, (layer,), (_Sketches.of(log, size),), log.counts(n_items), mass)

    def extended(self, profiles: Sequences, partners: int, rng: np.random.Generator) -> "_World":
        """With further histories; the log's own pairs are not counted again."""
        more = _World.of(profiles, len(self.holders) - 1, partners, rng)
        log, layers, sketches = self.log.extended(more.log), self.layers + more.layers, self.sketches + more.sketches
        return _World(log, layers, sketches, self.holders + more.holders, self.mass + more.mass)

    def hold(self, users: Ints, items: Ints) -> Bools:
        """Whether each user has the item; -1 is nobody and has nothing."""
        first, found = 0, np.zeros(len(users), dtype=bool)
        for layer, sketches in zip(self.layers, self.sketches, strict=True):
            mine = (users >= first) & (users < first + len(sketches.each))
            wanted = (users[mine] - first) * layer.size + items[mine]
            found[mine] = layer.taken[np.minimum(np.searchsorted(layer.taken, wanted), len(layer.taken) - 1)] == wanted
            first += len(sketches.each)
        return found

    def lift(self, counts: Floats, pair: Ints) -> Floats:
        """log of (times together) over (times expected by chance), both softened by half a count."""
        size = len(self.holders)
        expected = self.mass[pair // size] * self.mass[pair % size] / max(float(self.mass.sum()), 1.0)
        lifted: Floats = np.log((counts + 0.5) / (expected + 0.5))
        return lifted

    def events(self, items: Ints) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The events of these items (sorted, distinct), item by item, and where each item's begin."""
        mine = np.zeros(len(self.holders), dtype=bool)
        mine[items] = True
        events = np.flatnonzero(mine[self.log.items])
        return events[np.argsort(self.log.items[events], kind="stable")], offsets(self.holders[items])


def _parts(values: Ints, size: int = 65536) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, len(values), size))


# ---------------------------------------------------------------------------------------------------- the measures


@dataclass(frozen=True)
class _Company:
    """Every distinct pair of an asking item, of those that were asked for, and another one that its holders have."""

    world: _World
    items: Ints
    """[n], sorted and distinct: which were asked for."""
    pairs: NDArray[np.int64]
    """[P]: asking item x size + the other one."""
    counts: Floats
    """[P]: holders of both."""
    shares: Floats
    """[P]: the same, each holder's weight divided among their other items."""
    squares: Floats
    """[P]: of the squares of those weights."""
    kept: Bools
    """[P]: which say something: not an item beside its twin."""

    @staticmethod
    def of(world: _World, items: Ints, vectors: NDArray[np.float32] | None = None) -> "_Company":
        rows = [layer.rows(items) for layer in world.layers]
        pair, weights = (
            np.concatenate([getattr(layer, name)[row] for layer, row in zip(world.layers, rows, strict=True)])
            for name in ("pair", "weights")
        )
        if len(rows) > 1:
            order = np.argsort(pair, kind="stable")
            pair, weights = pair[order], weights[order]
        first = firsts(pair)
        shares, squares = (np.add.reduceat(w, first[:-1]) if len(pair) else w for w in (weights, weights**2))
        pairs, counts = pair[first[:-1]], np.diff(first).astype(np.float64)
        kept = np.ones(len(pairs), dtype=bool)
        if vectors is not None:
            kept[_twins(pairs, counts, len(world.holders), vectors)] = False
        return _Company(world, items, pairs, counts, shares, squares, kept)

    def over(self, values: Floats) -> Floats:
        """[n]: the sum by asking item."""
        size = len(self.world.holders)
        return np.bincount(self.pairs // size, values, minlength=size).astype(np.float64)[self.items]

    def same(self, counted: Bools | float = 1.0) -> Floats:
        """[n]: the chance that other items of two holders, one of each, are the same item; `counted` [P]: and these."""
        n = self.over(self.shares)  # holders that have another item at all
        chance: Floats = self.over((self.shares**2 - self.squares) * counted) / np.maximum(n * (n - 1), 1)
        return chance

    def measures(self) -> dict[str, Floats]:
        """[n] each: how items go with their holders' other items, according to all other users. Twins aside."""
        others = self.counts - 1  # leave one out: the asking user does not vouch for itself
        kept, holders = self.kept * self.shares, self.world.holders[self.items]
        social = self.over(self.shares) / np.maximum(holders, 1)  # the share of holders that have another item at all

        def mean(values: Floats) -> Floats:
            return self.over(kept * values) / np.maximum(self.over(kept), 1e-9) * social

        counts = self.kept * self.counts
        mass = self.over(counts)
        return {
            "fit": mean(self.world.lift(others, self.pairs)),
            "strangers": mean((others == 0).astype(np.float64)),
            # the chance that two companions drawn from an item's histories are the same item
            "concentration": (self.over(counts**2) - mass) / np.maximum(mass * (mass - 1), 1),
            "same": self.same(self.kept),
            EVENNESS: self.over(counts * self._middling(counts)) / np.maximum(mass, 1),
        }

    def _middling(self, counts: Floats, first: int = 5, last: int = 20) -> Bools:
        """[P]: whether a companion is the sixth to the twentieth most frequent of the item that asks."""
        asking = self.pairs // len(self.world.holders)  # sorted
        order = np.lexsort((-counts, asking))
        middling = np.zeros(len(asking), dtype=bool)
        nth = np.arange(len(asking)) - np.searchsorted(asking, asking)
        middling[order] = (nth >= first) & (nth < last)
        return middling


def _twins(pairs: Ints, counts: Floats, size: int, vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """The pairs of an item and another one of nearly the same text that its holders have, for each item two at most.

    Two listings of one product, the next volume, shampoo and its conditioner: that they are held together is explained.
    """
    often = np.flatnonzero(counts >= FEWEST)
    item, other = pairs[often] // size, pairs[often] % size
    alike = _dots(vectors, item, vectors, other) >= TWINS
    often, item = often[alike], item[alike]
    order = np.lexsort((-counts[often], item))
    often, item = often[order], item[order]
    nth = np.arange(len(item)) - np.searchsorted(item, item)
    return often[nth < 2]


def _kinship(world: _World, items: Ints, pairs: int, rng: np.random.Generator) -> dict[str, Floats]:
    """How two holders' other items go together, according to the users who do not hold the item."""
    block = max(1, MOST_DRAWN // pairs)
    parts = [_kin(world, items[low : low + block], pairs, rng) for low in range(0, max(len(items), 1), block)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _kin(world: _World, items: Ints, pairs: int, rng: np.random.Generator) -> dict[str, Floats]:
    events, starts = world.events(items)
    able = np.flatnonzero(np.diff(starts) > 1)
    asked = np.repeat(able, pairs)
    users, log = world.log.users(), world.log

    def draw() -> tuple[Ints, Ints]:
        event = events[starts[asked] + (rng.random(len(asked)) * np.diff(starts)[asked]).astype(np.int64)]
        user = users[event]
        length, begin = log.lengths[user], log.starts[user]
        step = 1 + (rng.random(len(asked)) * np.maximum(length - 1, 0)).astype(np.int64)
        return user, log.items[begin + (event - begin + step) % length].astype(np.int64)

    (one, left), (two, right) = draw(), draw()
    usable = (one != two) & (left != items[asked]) & (right != items[asked]) & (left != right)
    asked, pair = asked[usable], left[usable] * len(world.holders) + right[usable]
    order = np.argsort(pair)  # neighbouring pairs are found in neighbouring places
    asked, pair = asked[order], pair[order]
    together = sum((layer.without_holders(pair, items[asked], rng) for layer in world.layers), np.zeros(len(pair)))
    n = np.maximum(np.bincount(asked, minlength=len(items)), 1)
    return {
        "kinship": np.bincount(asked, world.lift(together, pair), minlength=len(items)) / n,
        "kinship share": np.bincount(asked, together > 0, minlength=len(items)) / n,
    }


def _doubles(world: _World, items: Ints, most: int = 8, nearest: int = 3) -> Floats:
    """[n]: how nearly an item's holders are doubles of somebody who lacks it; the mean over holders.

    In a copied history one step is false, and whoever it was copied from did not take it. A double is found by the
    pairs of the sketches, those that `most` users or fewer have; likeness is the share of a user's pairs that a double
    has. The `nearest` few of each holder are asked whether they lack the item.
    """
    events, starts = world.events(items)
    holders = world.log.users()[events]
    asking, place = np.unique(holders, return_inverse=True)
    mine = _Sketches.of(world.log.take(asking), len(world.holders))
    found = [(np.searchsorted(one.pair, mine.pair), np.searchsorted(one.pair, mine.pair, "right"))
             for one in world.sketches]  # fmt: skip
    having = np.sum([end - begin for begin, end in found], axis=0)
    usable = (having > 1) & (having <= most)
    double, likeness = np.full((nearest, len(asking)), -1), np.zeros((nearest, len(asking)))
    for low in range(0, len(asking), MOST_AT_ONCE):
        few = np.flatnonzero(usable & (mine.users >= low) & (mine.users < low + MOST_AT_ONCE))
        who, whom, first = [], [], 0
        for one, (begin, end) in zip(world.sketches, found, strict=True):
            n = (end - begin)[few]
            who.append(np.repeat(mine.users[few], n))
            whom.append(first + one.users[runs(begin[few], n)])
            first += len(one.each)
        left, right = np.concatenate(who), np.concatenate(whom)
        other = asking[left] != right
        both, votes = np.unique(left[other] * len(world.log) + right[other], return_counts=True)
        left, right = both // len(world.log), both % len(world.log)
        like = votes / np.maximum(mine.each[left], 1)
        order = np.lexsort((-like, left))
        left, right, like = left[order], right[order], like[order]
        nth = np.arange(len(left)) - np.searchsorted(left, left)
        near = nth < nearest
        double[nth[near], left[near]], likeness[nth[near], left[near]] = right[near], like[near]
    best, asked = np.zeros(len(holders)), np.repeat(items, np.diff(starts))
    for whose, alike in zip(double, likeness, strict=True):
        lacks = ~world.hold(whose[place], asked)
        best = np.maximum(best, alike[place] * lacks)
    total = np.bincount(np.repeat(np.arange(len(items)), np.diff(starts)), best, minlength=len(items))
    mean: Floats = total / np.maximum(np.diff(starts), 1)
    return mean


def _texts(company: _Company, vectors: NDArray[np.float32], usual: "_Usual") -> dict[str, Floats]:
    """The mean cosine between an item's text and its holders' other items, and between two holders' other items.

    And how far the other items of each holder are from one another, beside what is usual for so many.
    """
    world, items = company.world, company.items
    events, starts = world.events(items)
    users, nth = world.log.users()[events], np.repeat(np.arange(len(items)), np.diff(starts))
    social = world.log.lengths[users] > 1
    users, nth = users[social], nth[social]
    asking, place = np.unique(users, return_inverse=True)
    theirs = world.log.take(asking)
    per, own = 1 / (theirs.lengths[place] - 1), (vectors[items] ** 2).sum(1)[nth]
    has_text = (vectors != 0).any(axis=1)
    texts = np.bincount(theirs.users(), has_text[theirs.items], len(theirs))[place] - (own > 0)
    sizes, dots, total = np.zeros(len(nth)), np.zeros(len(nth)), np.zeros((len(items), vectors.shape[1]))
    for low in range(0, len(asking), MOST_AT_ONCE):
        part = np.flatnonzero((place >= low) & (place < low + MOST_AT_ONCE))
        histories = theirs.take(np.arange(low, min(low + MOST_AT_ONCE, len(asking))))
        mine, item = place[part] - low, nth[part]
        sums = _sums(vectors, histories.items, histories.starts)  # [holders, dim]: all that each of them has
        sizes[part] = np.einsum("ij,ij->i", sums, sums)[mine]
        dots[part] = _dots(sums, mine, vectors, items[item])
        total += _sums(sums, mine, offsets(np.bincount(item, minlength=len(items))), per[part])
    # What a holder has besides the item is on average m = (sum - own) / (length - 1): sums of m and of |m|^2 by item.
    n, weights = np.bincount(nth, minlength=len(items)), np.bincount(nth, per, minlength=len(items))
    total -= vectors[items] * weights[:, None]
    rest = sizes - 2 * dots + own  # the square of the sum of all that a holder has besides
    squares = np.bincount(nth, rest * per**2, minlength=len(items))
    apart = -usual.scores((rest - texts) / np.maximum(texts * (texts - 1), 1), texts)
    kinship, differ = ((total**2).sum(1) - squares) / np.maximum(n * (n - 1), 1), 1 - company.same()
    worded = has_text[company.pairs % len(world.holders)]
    return {
        "text fit": np.bincount(nth, (dots - own) * per, minlength=len(items)) / np.maximum(world.holders[items], 1),
        # What is the same is counted elsewhere; an item without text is 0 to every other one, and to itself.
        "text kinship": (kinship - company.same(worded)) / np.where(differ > 1e-6, differ, np.inf),
        SCATTER: np.bincount(nth, apart, len(items)) / np.maximum(np.bincount(nth, texts > 1, len(items)), 1),
    }


@dataclass(frozen=True)
class _Usual:
    """How coherent histories are, by how many texts they have: more are averaged better."""

    mean: Floats
    """[sizes]"""
    spread: Floats
    """[sizes]"""

    @staticmethod
    def of(log: Sequences, vectors: Floats, fewest: int = 20) -> "_Usual":
        """Of a log in which nobody takes an item again; a size of fewer histories is judged as all are."""
        alike, n = coherence(log, vectors)
        alike, size = alike[n > 1], _size(n[n > 1])
        count = np.bincount(size, minlength=_SIZES)
        mean = np.bincount(size, alike, _SIZES) / np.maximum(count, 1)
        spread = np.sqrt(np.bincount(size, (alike - mean[size]) ** 2, _SIZES) / np.maximum(count, 1))
        few = (count < fewest) | (spread < 1e-6)
        mean[few], spread[few] = (alike.mean(), max(float(alike.std()), 1e-6)) if len(alike) else (0.0, 1.0)
        return _Usual(mean, spread)

    def scores(self, alike: Floats, n: Ints) -> Floats:
        """In standard deviations above the mean of that many; 0 for a text alone."""
        size = _size(np.maximum(n, 2))
        found: Floats = np.where(n > 1, (alike - self.mean[size]) / self.spread[size], 0)
        return found


_SIZES = 21


def _size(n: Floats | Ints) -> NDArray[np.int64]:
    """Of a history of two texts or more: a step for every half of a doubling, up to about a thousand."""
    size: NDArray[np.int64] = np.minimum(np.rint(2 * np.log2(n)), _SIZES - 1).astype(np.int64)
    return size


def coherence(log: Sequences, vectors: Floats) -> tuple[Floats, Floats]:
    """[users] each: the mean cosine of two of a history's texts, 0 where there are none, and how many have a text."""
    unit, squares = _unit(vectors), np.zeros(len(log))
    for start in range(0, len(log), MOST_AT_ONCE):
        part = log.take(np.arange(start, min(start + MOST_AT_ONCE, len(log))))
        sums = _sums(unit, part.items, part.starts)
        squares[start : start + MOST_AT_ONCE] = np.einsum("ij,ij->i", sums, sums)
    n: Floats = np.bincount(log.users(), (unit != 0).any(axis=1)[log.items], len(log)).astype(np.float64)
    mean: Floats = (squares - n) / np.maximum(n * (n - 1), 1)
    return np.where(n > 1, mean, 0.0), n


def _dots(left: NDArray[np.float32], one: Ints, right: NDArray[np.float32], other: Ints) -> Floats:
    """[n]: the products of some rows of two tables, not all gathered at once."""
    found = np.zeros(len(one))
    for part in _parts(one, 32768):
        found[part] = np.einsum("ij,ij->i", left[one[part]], right[other[part]])
    return found


def _sums(rows: NDArray[np.float32], which: Ints, starts: Ints, weights: Floats | None = None) -> NDArray[np.float32]:
    """[n, dim]: the sum, weighted or not, of each of n runs of rows."""
    weighed = None if weights is None else torch.from_numpy(weights.astype(np.float32))
    made: NDArray[np.float32] = torch.nn.functional.embedding_bag(
        torch.from_numpy(which.astype(np.int64)), torch.from_numpy(rows), torch.from_numpy(starts[:-1]), mode="sum",
        per_sample_weights=weighed,
    ).numpy()  # fmt: skip
    return made


def _unit(vectors: Floats) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (vectors / np.maximum(norms, 1e-9)).astype(np.float32)
    return unit


def shapes(log: Sequences, counts: Ints) -> Floats:
    """[users, 6]: mean, range, quartiles and standard deviation of the log popularity of each history's items.

    `counts` [V + 1] is how often each item was taken. These are what DegreeSAD (Li et al. 2016) looks at, on clicks;
    zeros for a history of nothing.
    """
    rows, n = log.users(), np.log1p(counts[log.items])
    n = np.append(n[np.lexsort((n, rows))], 0.0)  # in order within each history; a place beyond the end, for the empty
    first, last = log.starts[:-1], np.maximum(log.starts[1:] - 1, log.starts[:-1])
    length = np.maximum(log.lengths, 1)
    mean = np.bincount(rows, n[:-1], len(log)) / length
    spread = np.sqrt(np.bincount(rows, (n[:-1] - mean[rows]) ** 2, len(log)) / length)

    def quantile(share: float) -> Floats:
        place = first + share * (last - first)
        low = place.astype(np.int64)
        between: Floats = n[low] + (place - low) * (n[np.minimum(low + 1, last)] - n[low])
        return between

    cuts = [quantile(share) for share in (0.25, 0.5, 0.75)]
    found = np.column_stack([mean, n[last] - n[first], *cuts, spread])
    found[log.lengths == 0] = 0
    return found


def doubles(log: Sequences, size: int, near: int = 3) -> tuple[NDArray[np.int64], Floats]:
    """[users] each: whose history is most like a user's, -1 for nobody's, and the share of their items that it holds.

    Candidates share a pair of the sketches; of many that share one, the `near` next ones in a circle are looked at, so
    that a ring of any size costs no more than its histories.
    """
    log, n = log.distinct(), len(log)
    sketch = _Sketches.of(log, size)
    first = firsts(sketch.pair)
    lengths = np.diff(first)
    length, begin = np.repeat(lengths, lengths), np.repeat(first[:-1], lengths)
    place = np.arange(len(sketch.pair)) - begin
    steps = [np.flatnonzero(length > step) for step in range(1, near + 1)]
    one = np.concatenate([sketch.users[some] for some in steps]).astype(np.int32)
    other = np.concatenate([
        sketch.users[begin[some] + (place[some] + step) % length[some]] for step, some in enumerate(steps, start=1)
    ]).astype(np.int32)  # fmt: skip
    nearest = np.full(n, -1)
    for low in range(0, n, MOST_AT_ONCE):
        mine, theirs = ((some >= low) & (some < low + MOST_AT_ONCE) for some in (one, other))
        asking = np.concatenate([one[mine], other[theirs]]).astype(np.int64)
        both, votes = np.unique(asking * n + np.concatenate([other[mine], one[theirs]]), return_counts=True)
        best = both[np.lexsort((-votes, both // n))]
        users, found = np.unique(best // n, return_index=True)
        nearest[users] = best[found] % n
    users, items = log.users(), log.items.astype(np.int64)
    taken = np.sort(users * size + items)
    wanted = nearest[users] * size + items  # negative where there is nobody: never found
    held = taken[np.minimum(np.searchsorted(taken, wanted), len(taken) - 1)] == wanted if len(taken) else wanted > 0
    return nearest, np.bincount(users, held, len(log)) / np.maximum(log.lengths, 1)


def bursts(log: Sequences, n_items: int) -> tuple[Floats, NDArray[np.int64]]:
    """How short the time is in which half of an item's holders came, and when it was.

    [V + 1]: the share of all the log's events that fall in that time, 1 for an item with fewer than three; and
    [V + 1, 2]: its first and last moment. Raises DataError for a log without times.
    """
    if log.times is None:
        raise DataError("the log has no times, so there are no bursts; leave this evidence out")
    everything = np.sort(log.times)
    order = np.lexsort((log.times, log.items))
    users = log.users()[order]
    if log.distinct() is not log:  # who takes an item again came once
        again = users * (n_items + 1) + log.items[order]
        first = np.sort(np.unique(again, return_index=True)[1])  # in order of item, then time
        order, users = order[first], users[first]
    items, times = log.items[order], log.times[order]
    n = np.bincount(items, minlength=n_items + 1)
    half = np.maximum((n + 1) // 2, 2)[items]
    ends = np.cumsum(n)[items]
    at = np.flatnonzero(np.arange(len(items)) + half <= ends)
    last = at + half[at] - 1
    inside = np.searchsorted(everything, times[last], "right") - np.searchsorted(everything, times[at], "left")
    best = np.lexsort((inside, items[at]))
    some, found = np.unique(items[at][best], return_index=True)
    shares, when = np.ones(n_items + 1), np.zeros((n_items + 1, 2), dtype=np.int64)
    shares[some] = inside[best[found]] / max(len(everything), 1)
    when[some] = np.column_stack([times[at], times[last]])[best[found]]
    shares[n < FEWEST] = 1
    return shares, when


# ---------------------------------------------------------------------------------------- against what is expected

CUTS = np.concatenate([[0.01, 0.02], np.arange(0.05, 0.96, 0.05), [0.98, 0.99]])
NORMAL_CUTS: NDArray[np.float64] = torch.special.ndtri(torch.from_numpy(CUTS)).numpy()


@dataclass(frozen=True)
class _Scale:
    """What is usual in a log, item by item of like popularity."""

    explains: Floats
    """What the fit of an item follows from: see `_explaining`."""
    quantiles: dict[str, "_Quantiles"]
    """Of every measure that is asked."""
    centre: Floats
    """[measures]: the crowd's mean scores."""
    inverse: Floats
    """[measures, measures]: of the crowd's covariance."""

    @staticmethod
    def of(
        raw: dict[str, Floats], holders: Ints, told: Bools, worded: Bools, without: Collection[str] = ()
    ) -> "_Scale":
        explains: Floats = np.zeros(5)
        if "fit" in raw:
            weight = np.minimum(np.sqrt(holders), 7)[told]  # popular items are measured better, but are not everything
            explaining = _explaining(raw, holders)[told]
            explains = np.linalg.lstsq(explaining * weight[:, None], raw["fit"][told] * weight, rcond=None)[0]
        raw = {name: one for name, one in _with_excess(raw, holders, explains).items() if name not in without}
        judged = {name: told & worded if name == "text fit" else told for name in raw}
        quantiles = {name: _Quantiles.of(raw[name][some], holders[some]) for name, some in judged.items()}
        n = len(raw.keys() - ASIDE)
        scale = _Scale(explains, quantiles, np.zeros(n), np.zeros((n, n)))
        if told.sum() < 2:
            return scale
        # Scores are cut at 4 when the crowd is measured, so that outliers don't.
        crowd = np.clip(_suspect(scale.scores(raw, holders, told, worded))[told], -4, 4)
        weight = holders[told] / holders[told].sum()
        centre = weight @ crowd
        spread = (crowd - centre).T @ ((crowd - centre) * weight[:, None]) + 0.05 * np.eye(n)
        return _Scale(explains, quantiles, centre, np.linalg.inv(spread))

    def scores(self, raw: dict[str, Floats], holders: Ints, told: Bools, worded: Bools) -> dict[str, Floats]:
        """Normal scores; zeros of items that can't be judged. Of an item without text its own text can't be."""
        found: dict[str, Floats] = {}
        for name, quantiles in self.quantiles.items():
            some = told & worded if name == "text fit" else told
            found[name] = np.zeros(len(holders))
            found[name][some] = quantiles.scores(raw[name][some], holders[some])
        return found

    def judge(self, raw: dict[str, Floats], holders: Ints, told: Bools, worded: Bools) -> Evidence:
        """Scores, and what follows from them."""
        scores = self.scores(_with_excess(raw, holders, self.explains), holders, told, worded)
        away = _suspect(scores) - self.centre
        distances = np.where(told, np.sqrt(np.einsum("ij,ij->i", away @ self.inverse, away)), 0)
        copying = np.maximum(scores.get(COPYING, np.zeros(len(holders))) - USUAL, 0)
        camouflage: Floats = np.zeros(len(holders))
        if CAMOUFLAGE.keys() <= scores.keys():
            camouflage = np.maximum(len(CAMOUFLAGE) * _mean_of(scores, CAMOUFLAGE), 0)
        collusion, incoherence = _mean_of(scores, COLLUSION), _mean_of(scores, INCOHERENCE)
        scatter, evenness = (_mean_of(scores, {name: 1}) for name in (SCATTER, EVENNESS))
        nameless: Floats = np.zeros(len(holders))
        counted = {name: one for name, one in scores.items() if MEASURES[name] == "log"}
        if 0 < len(counted) < len(scores):
            nameless = _mean_of(counted, COLLUSION) + _mean_of(counted, INCOHERENCE)
        return Evidence(
            scores, collusion + np.maximum(evenness, 0) / 2, incoherence, incoherence - 0.3 * scatter,
            collusion + incoherence + scatter / 2, nameless, copying, camouflage, distances,
        )  # fmt: skip


def _suspect(scores: dict[str, Floats]) -> Floats:
    """[n, measures]: the scores without what speaks for an item: to be explained better than most is no surprise."""
    sides = {name: -INNOCENT[name] for name in scores if name in INNOCENT}
    kept = {
        name: sides[name] * np.maximum(sides[name] * one, 0) if name in sides else one for name, one in scores.items()
    }
    return np.column_stack([scores for name, scores in kept.items() if name not in ASIDE])


def _explaining(raw: dict[str, Floats], holders: Ints) -> Floats:
    n, kinship = np.log(np.maximum(holders, 1)), raw["kinship"]
    return np.column_stack([np.ones(len(n)), kinship, n, kinship * n, raw["kinship share"]])


def _with_excess(raw: dict[str, Floats], holders: Ints, explains: Floats) -> dict[str, Floats]:
    """And how much better an item fits its company than the rest of the world's view of that company explains."""
    if "fit" not in raw:
        return raw
    return raw | {"excess": raw["fit"] - _explaining(raw, holders) @ explains}


def _mean_of(scores: dict[str, Floats], signs: dict[str, int]) -> Floats:
    """[n]: the mean of those measures that there are, none of them more than 5 either way; 0 without any."""
    found = [sign * np.clip(scores[name], -5, 5) for name, sign in signs.items() if name in scores]
    mean: Floats = np.mean(found or [0 * one for one in scores.values()], axis=0)
    return mean


def by_rank(values: Floats, sizes: Ints | Floats) -> Floats:
    """[n]: normal scores of values among those of like size, as items' are among items of like popularity."""
    return _Quantiles.of(values, sizes).scores(values, sizes)


@dataclass(frozen=True)
class _Quantiles:
    """A measure's quantiles by popularity: what a value's rank among like items is worth on a normal scale.

    Quantiles are taken in windows of three parts and interpolated over log popularity, so that one popular item is
    compared with the next ones and not with the many rare. A part has `part` items or more: items of one popularity are
    never parted. Beyond the ends a score goes straight on; tied values share the middle of their ranks.
    """

    where: Floats
    """[parts]: log popularity."""
    table: Floats
    """[parts, cuts]"""

    @staticmethod
    def of(values: Floats, holders: Ints | Floats, part: int = 150) -> "_Quantiles":
        order = np.argsort(holders, kind="stable")
        values, popularity = values[order], holders[order]
        cuts: list[int] = []
        for rise in np.flatnonzero(np.diff(popularity)) + 1:  # where a new popularity begins
            if rise - (cuts[-1] if cuts else 0) >= part and len(values) - rise >= part:
                cuts.append(int(rise))
        parts = np.split(values, cuts)
        where = [np.log(some).mean() if len(some) else 0.0 for some in np.split(popularity, cuts)]
        near = [np.concatenate(parts[max(0, i - 1) : i + 2]) for i in range(len(parts))]
        table = [np.quantile(some, CUTS) if len(some) > 1 else np.zeros(len(CUTS)) for some in near]
        return _Quantiles(np.array(where), np.array(table))

    def scores(self, values: Floats, holders: Ints | Floats) -> Floats:
        """[n]: cut at 10 either way."""
        table = np.stack([np.interp(np.log(holders), self.where, column) for column in self.table.T], axis=1)
        below, up_to = ((compare(values[:, None], table)).sum(1) for compare in (np.greater, np.greater_equal))
        first, last = _placed(values, table, below), _placed(values, table, up_to)
        middle = torch.special.ndtri(torch.special.ndtr(torch.from_numpy(np.stack([first, last]))).mean(0)).numpy()
        scores: Floats = np.clip(np.where(first == last, first, middle), -10, 10)
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
