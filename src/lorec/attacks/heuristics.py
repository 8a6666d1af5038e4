"""Attacks that need no model: fillers by a rule, targets among them (Lam and Riedl 2004; Mobasher et al. 2007).

`Profiles` is what every attack shares, those of other modules too: how many, how long, who pushes what, and when.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from lorec.data import Ints, Sequences
from lorec.errors import ConfigError

if TYPE_CHECKING:
    from lorec.attacks import View


@dataclass(frozen=True)
class NoAttack:
    """Nobody attacks: for what defenses cost a log that is clean. Targets are drawn, so that their exposure shows."""

    share: ClassVar[float] = 0.0
    knowledge: ClassVar[Literal["black", "grey", "white"]] = "black"
    needs_text: ClassVar[bool] = False

    def forge(self, view: "View", targets: Ints, fraudsters: int, rng: np.random.Generator) -> Sequences:
        """No history."""
        return view.log.take(np.zeros(0, np.int64))


@dataclass(frozen=True, kw_only=True)
class Profiles:
    """What attacks share: how many fraudsters, how long their profiles, how many targets in each."""

    share: float = 0.01
    """Fraudsters as a share of genuine users, rounded up."""
    length: int | None = None
    """Items in a profile, targets included; drawn from genuine users if omitted."""
    targets_each: int | None = None
    """Targets in a profile, dealt in turn; all of them if omitted."""
    burst: float | None = None
    """The share of the log's time in which all of them act, as .01; spread as the log's own events if omitted."""

    knowledge: ClassVar[Literal["black", "grey", "white"]] = "black"
    needs_text: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.burst is not None and not 0 < self.burst <= 1:
            raise ConfigError(f"burst is {self.burst}; it is a share of the log's time in (0, 1]")

    def check(self, n_items: int, targets: Ints, fraudsters: int) -> None:
        """Raise ConfigError now where profiles can't be as they are asked for, as `forge` would."""
        each = self._each(n_items, targets, fraudsters)
        self._fits(each, n_items - len(targets) + each)

    def forge(self, view: "View", targets: Ints, fraudsters: int, rng: np.random.Generator) -> Sequences:
        """The fraudsters' histories. Raises ConfigError as `check` does."""
        raise NotImplementedError

    def _dealt(self, view: "View", targets: Ints, fraudsters: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Each fraudster's targets [m, each] and length [m]; at most half of a drawn length is targets."""
        each = self._each(view.n_items, targets, fraudsters)
        lengths = self._lengths(view, each, view.n_items - len(targets) + each, fraudsters, rng)
        return _in_turn(targets, each, fraudsters, rng), lengths

    def _timed(self, view: "View", profiles: Sequence[Ints], rng: np.random.Generator) -> Sequences:
        return timed(view.log, profiles, rng, self.burst)

    def _fits(self, each: int, room: int) -> None:
        if self.length is not None and not each <= self.length <= room:
            raise ConfigError(f"length is {self.length}; a profile with {each} targets has {each} to {room} items")

    def _each(self, n_items: int, targets: Ints, fraudsters: int) -> int:
        each = len(targets) if self.targets_each is None else self.targets_each
        if not 0 < each <= len(targets):
            raise ConfigError(f"targets_each is {each} of {len(targets)} targets; choose between 1 and {len(targets)}")
        if each >= n_items:
            raise ConfigError(f"{each} targets are the whole catalogue; a profile needs something else besides")
        if each * fraudsters < len(targets):
            raise ConfigError(
                f"{fraudsters} fraudsters with {each} targets each can't hold {len(targets)}; raise one of the two"
            )
        return each

    def _lengths(self, view: "View", each: int, room: int, fraudsters: int, rng: np.random.Generator) -> Ints:
        self._fits(each, room)
        if self.length is not None:
            return np.full(fraudsters, self.length, dtype=np.int64)
        drawn = rng.choice(view.log.lengths, fraudsters)
        fitting: Ints = np.minimum(np.maximum(drawn, 2 * each), max(each, min(room, view.n_items - 1)))
        return fitting


@dataclass(frozen=True, kw_only=True)
class _Filled(Profiles):
    """Fillers from one pool or two."""

    def forge(self, view: "View", targets: Ints, fraudsters: int, rng: np.random.Generator) -> Sequences:
        """Profiles without repeats, targets at random places; at most half of a drawn length is targets.

        Raises ConfigError where a profile can't hold its targets, or the fraudsters together not all of them.
        """
        dealt, lengths = self._dealt(view, targets, fraudsters, rng)
        popular, everything = self._pools(view, targets)
        profiles = []
        for mine, length in zip(dealt, lengths, strict=True):
            fillers = _fillers(popular, everything, int(length) - len(mine), rng)
            profiles.append(rng.permutation(np.concatenate([mine, fillers])))
        return self._timed(view, profiles, rng)

    def _pools(self, view: "View", targets: Ints) -> tuple[Ints, Ints]:
        """The popular items and all items, without the targets; half of the fillers come from the first, if any."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Random(_Filled):
    """Targets among items drawn uniformly from the catalogue."""

    def _pools(self, view: "View", targets: Ints) -> tuple[Ints, Ints]:
        return np.zeros(0, dtype=np.int64), np.setdiff1d(np.arange(1, view.n_items + 1), targets)


@dataclass(frozen=True, kw_only=True)
class Bandwagon(_Filled):
    """Targets in popular company: half of the fillers from the most popular tenth, the others uniform."""

    popular: float = 0.1
    """The share of the catalogue that counts as popular."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.popular < 1:
            raise ConfigError(f"popular is {self.popular}; it is a share of the catalogue in (0, 1)")

    def _pools(self, view: "View", targets: Ints) -> tuple[Ints, Ints]:
        ranked = np.argsort(-view.log.counts(view.n_items)[1:], kind="stable") + 1
        ranked = ranked[~np.isin(ranked, targets)]
        return ranked[: max(1, round(self.popular * view.n_items))], np.sort(ranked)


@dataclass(frozen=True, kw_only=True)
class Segment(Profiles):
    """Each target among the items that its own buyers take, so that the profile looks coherent (Burke et al. 2005).

    Most of a profile's fillers come from the items most co-consumed with its target, the others are uniform.
    """

    targets_each: int | None = 1
    """Targets in a profile, dealt in turn; each brings its own segment."""
    segment: int = 20
    """How many items belong to a target's segment: the most co-consumed, then the most popular."""
    stray: float = 0.2
    """The share of fillers that is uniform."""
    by: Literal["log", "text"] = "log"
    """What makes a segment: who takes the target takes them, or their titles mean the like."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.segment < 1 or not 0 <= self.stray <= 1:
            raise ConfigError(
                f"segment is {self.segment} and stray {self.stray}; at least 1 item, and a share in [0, 1]"
            )

    @property
    def needs_text(self) -> bool:  # type: ignore[override]
        """Whether titles make the segment."""
        return self.by == "text"

    def forge(self, view: "View", targets: Ints, fraudsters: int, rng: np.random.Generator) -> Sequences:
        """Profiles without repeats, targets at random places. Raises ConfigError as every heuristic does."""
        dealt, lengths = self._dealt(view, targets, fraudsters, rng)
        others = np.setdiff1d(np.arange(1, view.n_items + 1), targets)
        segments = {int(target): self._segment(view, target, others) for target in targets}
        profiles = []
        for mine, length in zip(dealt, lengths, strict=True):
            near = np.unique(np.concatenate([segments[int(target)] for target in mine]))
            wanted = round((int(length) - len(mine)) * (1 - self.stray))
            chosen = rng.choice(near, min(wanted, len(near)), replace=False)
            left = int(length) - len(mine) - len(chosen)
            strays = rng.choice(others, left + len(chosen), replace=False)
            strays = strays[~np.isin(strays, chosen)][:left]
            profiles.append(rng.permutation(np.concatenate([mine, chosen, strays])))
        return self._timed(view, profiles, rng)

    def _segment(self, view: "View", target: int, others: Ints) -> Ints:
        """The items that holders of the target hold most often; popularity decides ties and fills up.

        Or those whose titles are nearest to its own.
        """
        if self.by == "text":
            vectors = view.text_of(self)
            lengths = np.maximum(np.linalg.norm(vectors[others], axis=1), 1e-9)
            return others[np.argsort(-(vectors[others] @ vectors[target]) / lengths, kind="stable")][: self.segment]
        users = view.log.users()
        holders = np.zeros(len(view.log), dtype=bool)
        holders[users[view.log.items == target]] = True
        together = np.bincount(view.log.items[holders[users]], minlength=view.n_items + 1)
        counts = view.log.counts(view.n_items)
        return others[np.lexsort((-counts[others], -together[others]))][: self.segment]


@dataclass(frozen=True, kw_only=True)
class _Copied(Profiles):
    """Genuine histories with targets in them, at most half of one."""

    targets_each: int | None = 1
    """Targets in a profile, dealt in turn."""

    def _fits(self, each: int, room: int) -> None:
        if self.length is not None and self.length < 2 * each:
            raise ConfigError(f"length is {self.length}; a copy with {each} targets keeps as many genuine items")


@dataclass(frozen=True, kw_only=True)
class Replace(_Copied):
    """A genuine user's history with one late item replaced by a target: nothing else about it is false."""

    late: float = 0.5
    """Targets stand in this last share of the profile."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.late <= 1:
            raise ConfigError(f"late is {self.late}; it is a share of the profile in (0, 1]")

    def forge(self, view: "View", targets: Ints, fraudsters: int, rng: np.random.Generator) -> Sequences:
        """Copies of histories, `length` newest items where given. Raises ConfigError where none is long enough."""
        each = self._each(view.n_items, targets, fraudsters)
        self._fits(each, view.n_items)
        able = _without(view.log, targets, self.length or 2 * each)
        dealt = _in_turn(targets, each, fraudsters, rng)
        profiles = []
        for mine, user in zip(dealt, rng.choice(able, fraudsters, replace=fraudsters > len(able)), strict=True):
            profile = view.log[user][-(self.length or 0) :].copy()
            room = max(each, round(len(profile) * self.late))
            places = len(profile) - 1 - rng.choice(room, each, replace=False)
            profile[places] = mine
            profiles.append(profile)
        return self._timed(view, profiles, rng)


@dataclass(frozen=True, kw_only=True)
class CoVisit(_Copied):
    """A target right after items whose lists it enters at least cost, in copied histories (Yang et al., NDSS 2017).

    Two items are visited together where a history has them side by side. An anchor shows its `neighbours` most visited
    together; to be among them, a target needs some fake visits more than the last of these has. Anchors are taken by
    how often they are seen for each visit that they need, as many as the fraudsters can afford.
    """

    neighbours: int = 10
    """How many related items an anchor shows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours < 1:
            raise ConfigError(f"neighbours is {self.neighbours}; an anchor shows 1 or more")

    def forge(self, view: "View", targets: Ints, fraudsters: int, rng: np.random.Generator) -> Sequences:
        """Genuine histories, `length` items of them around the first anchor where given, and the targets in them.

        Raises ConfigError where none is long enough.
        """
        each = self._each(view.n_items, targets, fraudsters)
        self._fits(each, view.n_items)
        kept = each if self.length is None else self.length - each
        natural = view.log.take(_without(view.log, targets, kept))
        worth = self._worth(view, targets)
        dealt = _in_turn(targets, each, fraudsters, rng)
        anchors = {int(target): self._anchors(natural, *worth[int(target)], fraudsters) for target in targets}
        used = dict.fromkeys(anchors, 0)
        order = np.argsort(natural.items, kind="stable")  # events by item, to find an anchor's holders
        begins = np.searchsorted(natural.items[order], np.arange(view.n_items + 2))
        users, positions = natural.users(), natural.positions()
        profiles = []
        for mine in dealt.tolist():
            anchor = anchors[mine[0]][used[mine[0]]]
            used[mine[0]] += 1
            event = order[rng.integers(begins[anchor], begins[anchor + 1])]
            history, place = natural[int(users[event])], int(positions[event])
            if self.length is not None:  # a window that holds the anchor
                first = int(rng.integers(max(0, place - kept + 1), min(place, len(history) - kept) + 1))
                history, place = history[first : first + kept], place - first
            after = {place: mine[0]}
            for target in mine[1:]:
                value = worth[target][0][history].copy()
                value[list(after)] = -1
                after[int(value.argmax())] = target
            profile = [[item, after[at]] if at in after else [item] for at, item in enumerate(history.tolist())]
            profiles.append(np.array([item for some in profile for item in some]))
        return self._timed(view, profiles, rng)

    def _worth(self, view: "View", targets: Ints) -> dict[int, tuple[Ints, Ints]]:
        """By target, [V + 1] each: what an anchor is worth for each fake visit, and how many it needs."""
        size, log = view.n_items + 1, view.log
        same = np.diff(log.users()) == 0
        one, other = log.items[:-1][same].astype(np.int64), log.items[1:][same].astype(np.int64)
        pairs, counts = np.unique(np.concatenate([one * size + other, other * size + one]), return_counts=True)
        last = np.zeros(size, dtype=np.int64)  # how often the last one shown; 0 where fewer are
        if len(pairs):
            ranked = np.lexsort((-counts, pairs // size))
            nth = np.searchsorted(pairs // size, np.arange(size)) + self.neighbours - 1
            nth = ranked[np.minimum(nth, len(ranked) - 1)]
            last = np.where(pairs[nth] // size == np.arange(size), counts[nth], 0)
        worth = {}
        for target in targets.tolist():
            mine = pairs % size == target
            already = np.zeros(size, dtype=np.int64)
            already[pairs[mine] // size] = counts[mine]
            needed = np.maximum(last - already, 0) + 1
            worth[target] = (log.counts(view.n_items) / needed, needed)
        return worth

    def _anchors(self, natural: Sequences, value: Ints, needed: Ints, fraudsters: int) -> Ints:
        """So many anchors, the worthiest first, each as often as it needs; from the start again where they run out."""
        there = np.unique(natural.items)
        ranked = there[np.argsort(-value[there], kind="stable")].astype(np.int64)
        return np.resize(np.repeat(ranked, needed[ranked])[:fraudsters], fraudsters)


def _in_turn(targets: Ints, each: int, fraudsters: int, rng: np.random.Generator) -> Ints:
    """[fraudsters, each]: targets dealt in turn, in a random order."""
    dealt: Ints = rng.permutation(targets)[(np.arange(fraudsters)[:, None] * each + np.arange(each)) % len(targets)]
    return dealt


def _without(log: Sequences, targets: Ints, needed: int) -> Ints:
    """The users of so many items or more who lack all targets. Raises ConfigError where there are none."""
    lacking = np.ones(len(log), dtype=bool)
    lacking[log.users()[np.isin(log.items, targets)]] = False
    able = np.flatnonzero(lacking & (log.lengths >= needed))
    if not len(able):
        raise ConfigError(f"no history of {needed} items or more lacks the targets; give a smaller length")
    return able


def _fillers(popular: Ints, everything: Ints, n: int, rng: np.random.Generator) -> Ints:
    """n distinct items, half of them popular where there is a popular pool."""
    first = rng.choice(popular, min(n // 2, len(popular)), replace=False)
    if n * 4 > len(everything):
        return np.concatenate([first, rng.choice(np.setdiff1d(everything, first), n - len(first), replace=False)])
    chosen = {int(item): None for item in first}  # few out of many: drawing again beats shuffling the pool
    while len(chosen) < n:
        chosen.update((int(item), None) for item in rng.choice(everything, n - len(chosen)))
    return np.array(list(chosen), dtype=np.int64)


def timed(log: Sequences, profiles: Sequence[Ints], rng: np.random.Generator, burst: float | None = None) -> Sequences:
    """Profiles at times of the log's own events, or within a short while, in order; without where the log has none."""
    made = Sequences.of(profiles)
    if log.times is None:
        return made
    if burst is None:
        drawn = rng.choice(log.times, len(made.items))
    else:
        first, last = int(log.times.min()), int(log.times.max())
        while_ = round((last - first) * burst)
        drawn = rng.integers(first, last - while_ + 1) + rng.integers(0, while_ + 1, len(made.items))
    return Sequences(made.items, made.starts, drawn[np.lexsort((drawn, made.users()))])
