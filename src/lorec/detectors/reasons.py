"""How reasons are worded, so that a person can check them: no number without what it is compared with."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from lorec.data import Floats, Ints, Sequences

__all__ = ["Names", "Why", "by_items", "company", "many", "percent", "quoted", "share_below", "than"]


@dataclass(frozen=True)
class Names:
    """What reasons call users and items."""

    users: Sequence[str]
    """[users]"""
    titles: Sequence[str]
    """[V]: by item number, from 1 on."""

    def user(self, row: int) -> str:
        """A user, whole, as somebody will look them up."""
        return quoted(self.users[row], whole=True)

    def item(self, item: int) -> str:
        """An item's title."""
        return quoted(self.titles[item - 1])


Why = Callable[[int, Names], str]
"""What speaks against a user (by row) or an item (by number)."""


def quoted(name: str, whole: bool = False) -> str:
    """A title or an id within reasons, which semicolons part: whoever names an item writes no reason."""
    return repr((name if whole else name[:60]).replace(";", ","))


def many(n: float, what: str) -> str:
    """A count and what is counted."""
    return f"{n:,.0f} {what}{'' if n == 1 else 's'}"


def percent(share: float, digits: int = 1) -> str:
    """A share that nobody can call too high: rounded down, and never all."""
    whole = 10**digits
    return f"{min(math.floor(share * 100 * whole + 1e-9), 100 * whole - 1) / whole:.{digits}f}%"


def share_below(values: Floats, ties: float = 0.5) -> Floats:
    """[n]: the share of all that has less; of those that have as much, so much of each."""
    ordered = np.sort(values)
    below, up_to = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    shares: Floats = (below + ties * (up_to - below)) / len(values)
    return shares


def than(values: Floats, place: int, what: str) -> str:
    """In words how many of these values are lower than one of them."""
    return f"more than {percent(float((values < values[place]).mean()))} of {what}"


def by_items(log: Sequences, items: Floats, why: Why, most: int = 2, least: float = 0.0) -> Why:
    """What speaks against a user by the worst of their items [V + 1]: `most` at the most, each above `least`."""

    def told(user: int, names: Names) -> str:
        history = np.unique(log[user])
        worst = history[np.argsort(-items[history], kind="stable")][:most]
        return "; ".join(filter(None, (why(int(item), names) for item in worst if items[item] > least)))

    return told


def company(log: Sequences, n_items: int) -> Why:
    """Which other item an item's holders have beyond chance, by the likelihood ratio, and how many of them do.

    The log is counted once, when first asked.
    """

    @cache
    def counted() -> tuple[Ints, Ints]:
        return log.users(), log.distinct().counts(n_items)

    def told(item: int, names: Names) -> str:
        users, everybody = counted()
        holders = np.unique(users[log.items == item])
        together = log.take(holders).distinct().counts(n_items)
        together[item] = 0
        expected = everybody * len(holders) / max(len(log), 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(together > expected, together * np.log(together / expected) - (together - expected), 0)
        most = int(ratio.argmax())
        if not ratio[most]:
            return f"of {many(len(holders), 'holder')} no two have another item more often than by chance"
        return (
            f"of {many(len(holders), 'holder')} {together[most]:,} also have {names.item(most)}, where "
            f"{expected[most]:.2g} would by chance"
        )

    return told
