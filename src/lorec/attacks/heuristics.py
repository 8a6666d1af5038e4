"""Attacks that need no model: fillers by a rule, targets among them (Lam and Riedl 2004; Mobasher et al. 2007)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from lorec.data import Ints, Sequences, offsets
from lorec.errors import ConfigError

if TYPE_CHECKING:
    from lorec.attacks import View


@dataclass(frozen=True, kw_only=True)
class _Heuristic:
    """What heuristic attacks share: how many fraudsters, how long, how many targets, where."""

    share: float = 0.01
    """Fraudsters as a share of genuine users, rounded up."""
    length: int | None = None
    """Items in a profile, targets included; drawn from genuine users where not given."""
    targets_each: int | None = None
    """Targets in a profile, dealt in turn; all of them where not given."""

    knowledge: ClassVar[Literal["black"]] = "black"

    def forge(self, view: "View", targets: Ints, fraudsters: int, rng: np.random.Generator) -> Sequences:
        """Profiles without repeats, targets at random places; at most half of a drawn length is targets.

        Raises ConfigError where a profile can't hold its targets, or the fraudsters together not all of them.
        """
        each = self._each(view, targets, fraudsters)
        room = view.n_items - len(targets) + each
        lengths = self._lengths(view, each, room, fraudsters, rng)
        popular, everything = self._pools(view, targets)
        dealt = rng.permutation(targets)
        profiles = np.zeros(int(lengths.sum()), dtype=np.int32)
        starts = offsets(lengths)
        for row in range(fraudsters):
            mine = dealt[(row * each + np.arange(each)) % len(targets)]
            fillers = _fillers(popular, everything, int(lengths[row]) - each, rng)
            profiles[starts[row] : starts[row + 1]] = rng.permutation(np.concatenate([mine, fillers]))
        return Sequences(profiles, starts, _times(view.log, lengths, rng))

    def _each(self, view: "View", targets: Ints, fraudsters: int) -> int:
        each = len(targets) if self.targets_each is None else self.targets_each
        if not 0 < each <= len(targets):
            raise ConfigError(f"targets_each is {each} of {len(targets)} targets; choose between 1 and {len(targets)}")
        if each >= view.n_items:
            raise ConfigError(f"{each} targets are the whole catalogue; a profile needs something else besides")
        if each * fraudsters < len(targets):
            raise ConfigError(
                f"{fraudsters} fraudsters with {each} targets each can't hold {len(targets)}; raise one of the two"
            )
        return each

    def _lengths(self, view: "View", each: int, room: int, fraudsters: int, rng: np.random.Generator) -> Ints:
        if self.length is not None and not each <= self.length <= room:
            raise ConfigError(f"length is {self.length}; a profile with {each} targets has {each} to {room} items")
        if self.length is not None:
            return np.full(fraudsters, self.length, dtype=np.int64)
        drawn = rng.choice(view.log.lengths, fraudsters)
        fitting: Ints = np.minimum(np.maximum(drawn, 2 * each), max(each, min(room, view.n_items - 1)))
        return fitting

    def _pools(self, view: "View", targets: Ints) -> tuple[Ints, Ints]:
        """The popular items and all items, without the targets; half of the fillers come from the first, if any."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Random(_Heuristic):
    """Targets among items drawn uniformly from the catalogue."""

    def _pools(self, view: "View", targets: Ints) -> tuple[Ints, Ints]:
        return np.zeros(0, dtype=np.int64), np.setdiff1d(np.arange(1, view.n_items + 1), targets)


@dataclass(frozen=True, kw_only=True)
class Bandwagon(_Heuristic):
    """Targets in popular company: half of the fillers from the most popular tenth, the others uniform."""

    popular: float = 0.1
    """The share of the catalogue that counts as popular."""

    def _pools(self, view: "View", targets: Ints) -> tuple[Ints, Ints]:
        if not 0 < self.popular < 1:
            raise ConfigError(f"popular is {self.popular}; it is a share of the catalogue in (0, 1)")
        ranked = np.argsort(-view.log.counts(view.n_items)[1:], kind="stable") + 1
        ranked = ranked[~np.isin(ranked, targets)]
        return ranked[: max(1, round(self.popular * view.n_items))], np.sort(ranked)


@dataclass(frozen=True, kw_only=True)
class Segment(_Heuristic):
    """Each target among the items that its own buyers take, so that the profile looks coherent (Burke et al. 2005).

    Most of a profile's fillers come from the items most co-consumed with its target, the others are uniform.
    """

    targets_each: int | None = 1
    """Targets in a profile, dealt in turn; each brings its own segment."""
    segment: int = 20
    """How many items belong to a target's segment: the most co-consumed, then the most popular."""
    stray: float = 0.2
    """The share of fillers that is uniform."""

    def forge(self, view: "View", targets: Ints, fraudsters: int, rng: np.random.Generator) -> Sequences:
        """Profiles without repeats, targets at random places. Raises ConfigError as every heuristic does."""
        if self.segment < 1 or not 0 <= self.stray <= 1:
            raise ConfigError(
                f"segment is {self.segment} and stray {self.stray}; at least 1 item, and a share in [0, 1]"
            )
        each = self._each(view, targets, fraudsters)
        lengths = self._lengths(view, each, view.n_items - len(targets) + each, fraudsters, rng)
        others = np.setdiff1d(np.arange(1, view.n_items + 1), targets)
        segments = {int(target): self._segment(view, target, others) for target in targets}
        dealt = rng.permutation(targets)
        profiles = []
        for row, length in enumerate(lengths):
            mine = dealt[(row * each + np.arange(each)) % len(targets)]
            near = np.unique(np.concatenate([segments[int(target)] for target in mine]))
            wanted = round((int(length) - each) * (1 - self.stray))
            chosen = rng.choice(near, min(wanted, len(near)), replace=False)
            left = int(length) - each - len(chosen)
            strays = rng.choice(others, left + len(chosen), replace=False)
            strays = strays[~np.isin(strays, chosen)][:left]
            profiles.append(rng.permutation(np.concatenate([mine, chosen, strays])))
        made = Sequences.of(profiles)
        return Sequences(made.items, made.starts, _times(view.log, lengths, rng))

    def _segment(self, view: "View", target: int, others: Ints) -> Ints:
        """The items that holders of the target hold most often; popularity decides ties and fills up."""
        users = view.log.users()
        holders = np.zeros(len(view.log), dtype=bool)
        holders[users[view.log.items == target]] = True
        together = np.bincount(view.log.items[holders[users]], minlength=view.n_items + 1)
        counts = view.log.counts(view.n_items)
        return others[np.lexsort((-counts[others], -together[others]))][: self.segment]


@dataclass(frozen=True, kw_only=True)
class Replace(_Heuristic):
    """A genuine user's history with one late item replaced by a target: nothing else about it is false."""

    targets_each: int | None = 1
    """Targets in a profile, dealt in turn; they take the places of late items."""
    late: float = 0.5
    """Targets stand in this last share of the profile."""

    def forge(self, view: "View", targets: Ints, fraudsters: int, rng: np.random.Generator) -> Sequences:
        """Copies of histories, `length` newest items where given. Raises ConfigError where none is long enough."""
        if not 0 < self.late <= 1:
            raise ConfigError(f"late is {self.late}; it is a share of the profile in (0, 1]")
        each = self._each(view, targets, fraudsters)
        needed = 2 * each if self.length is None else self.length
        if needed < 2 * each:
            raise ConfigError(f"length is {self.length}; a copy with {each} targets keeps as many genuine items")
        innocent = np.ones(len(view.log), dtype=bool)
        innocent[view.log.users()[np.isin(view.log.items, targets)]] = False
        able = np.flatnonzero(innocent & (view.log.lengths >= needed))
        if not len(able):
            raise ConfigError(f"no history of {needed} items or more lacks the targets; give a smaller length")
        dealt = rng.permutation(targets)
        profiles = []
        for row, user in enumerate(rng.choice(able, fraudsters, replace=fraudsters > len(able))):
            profile = view.log[user][-(self.length or 0) :].copy()
            room = max(each, round(len(profile) * self.late))
            places = len(profile) - 1 - rng.choice(room, each, replace=False)
            profile[places] = dealt[(row * each + np.arange(each)) % len(targets)]
            profiles.append(profile)
        made = Sequences.of(profiles)
        return Sequences(made.items, made.starts, _times(view.log, made.lengths, rng))


def _fillers(popular: Ints, everything: Ints, n: int, rng: np.random.Generator) -> Ints:
    """n distinct items, half of them popular where there is a popular pool."""
    first = rng.choice(popular, min(n // 2, len(popular)), replace=False)
    if n * 4 > len(everything):
        return np.concatenate([first, rng.choice(np.setdiff1d(everything, first), n - len(first), replace=False)])
    chosen = {int(item): None for item in first}  # few out of many: drawing again beats shuffling the pool
    while len(chosen) < n:
        chosen.update((int(item), None) for item in rng.choice(everything, n - len(chosen)))
    return np.array(list(chosen), dtype=np.int64)


def _times(log: Sequences, lengths: Ints, rng: np.random.Generator) -> NDArray[np.int64] | None:
    """Each fraudster acts at times of the log's own events, in order; None where the log has none."""
    if log.times is None:
        return None
    drawn = rng.choice(log.times, int(lengths.sum()))
    users = np.repeat(np.arange(len(lengths)), lengths)
    sorted_times: NDArray[np.int64] = drawn[np.lexsort((drawn, users))]
    return sorted_times
