"""What a scan found, with reasons that a person can check."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from lorec.data import Bools, Floats, Ints, Sequences, Split, Weights, runs
from lorec.detectors.reasons import many, percent, quoted, share_below
from lorec.errors import RunError
from lorec.evidence import TWINS, bursts, doubles
from lorec.files import check_writable, write_json, write_parquet
from lorec.scans.learning import SUSPECT, Looked, Model
from lorec.sources import moment

LIKELY = 0.7
"""The alarm from which on an attack is called likely."""
TOLD = 500
"""Items that are put into groups at most."""
LOUD = 10
"""How many users of a group, and times as many as by chance, are told of whatever the alarm."""
SHARED = 0.5
"""The share of holders in common from which on two items of like texts may be one product."""
FILES = (
    "users.parquet",
    "items.parquet",
    "groups.parquet",
    "weights.parquet",
    "findings.json",
    "report.html",
    "trials",
)


@dataclass(frozen=True)
class Findings:
    """What a scan found. Users and items are in the order of the log's and of the catalogue."""

    log: Split
    """The whole log."""
    alarm: float
    """The likelihood that the log is under attack, if every second one is (`scans.learning.alarm`); 1 where an analyst
    confirmed users who push the same items."""
    users: pl.DataFrame
    """user_id, suspicion, weight, events, group, reasons; then for each evidence the share of users that show less."""
    items: pl.DataFrame
    """item_id, title, suspicion, weight, holders, group, reasons; then for each evidence the share of items below."""
    groups: pl.DataFrame
    """Items that look pushed or count nothing, and share holders, the worst group first: group, suspicion, items,
    users, together (those who took two of them or more), expected (how many would by chance), first, last (when they
    did), titles."""
    weights: Weights
    """Of the log's interactions, to train with."""
    judged: Ints
    """[users]: an analyst's verdict, 1 fraud, 0 genuine, -1 none."""
    models: tuple[Model, Model]
    """Of items and of users."""
    notes: list[str]
    """What to keep in mind."""
    asked: dict[str, Any]
    """Of the scan: evidence, kinds, encoder, scenario, seed, an earlier scan, the number of verdicts."""
    figures: dict[str, float]
    """Counts and seconds."""
    can_tell: bool = True
    """Whether the evidence could be weighed: in a log that is too small or too regular nothing is told."""

    def verdict(self) -> str:
        """What was found, in one sentence."""
        if not self.can_tell:
            return (
                "This log can't be judged: it is too small or too regular for the evidence, so nothing is told of it."
            )
        suspect = self.groups.filter(pl.col("suspicion") >= SUSPECT)
        odd = (
            f"{many(self.figures['items that look pushed'], 'item')} with a suspicion of {SUSPECT} or more, in "
            f"{many(suspect.height, 'group')}, and {many(self.figures['users that look hired'], 'such user')}"
        )
        if not suspect.height and self.alarm >= 0.5:
            return f"There may be an attack ({self.alarm:.2f}), but no single item stands out."
        if not suspect.height:
            return f"Nothing found (likelihood of an attack {self.alarm:.2f}): no item looks pushed."
        loud = suspect.join(self.loud(), on="group", how="semi")
        if self.alarm < 0.5 and loud.height:
            return (
                f"No larger campaign than honest logs have (likelihood of an attack {self.alarm:.2f}), and something "
                f"to look at: {_together(loud.row(0, named=True))[0]}. In all, {odd}."
            )
        if self.alarm < 0.5:
            return f"Nothing out of the ordinary (likelihood of an attack {self.alarm:.2f}): {odd}, as in honest logs."
        of = "" if self.alarm == 1 else f", as by a campaign for {many(self.figures['items of a campaign'], 'item')}"
        return (
            f"{'An attack is likely' if self.alarm >= LIKELY else 'There may be an attack'} ({self.alarm:.2f}{of}): "
            f"{odd}."
        )

    def loud(self) -> pl.DataFrame:
        """The groups that are worth a look whatever the alarm: ten users and more, ten times as many as by chance.

        Those that don't look pushed are told and change no verdict: fans of a small genre make one, too.
        """
        many_times = pl.col("together") >= LOUD * pl.col("expected")
        return self.groups.filter(many_times & (pl.col("together") >= LOUD))

    def would_do(self) -> str:
        """What training with the weights would mean, in one sentence."""
        touched = int((self.weights.of_users(self.log.train) < 1).sum())
        return (
            "Training with the weights, as if there were an attack, would leave "
            f"{self.figures['interactions turned down']:.1%} of the interactions (of {touched:,} users) out of what is "
            "to be predicted; everything stays in the histories."
        )

    def sorted(self) -> "Findings":
        """With users in the order of the ids that are told, so that rows say nothing of others."""
        order = self.log.users.cast(pl.String).arg_sort().to_numpy()
        events = self.weights.of_events(self.log.train)
        lengths = self.log.train.lengths[order]
        weights = Weights(events=events[runs(self.log.train.starts[:-1][order], lengths)])
        return dataclasses.replace(
            self, log=self.log.take(order), users=self.users[order], weights=weights, judged=self.judged[order]
        )

    def interactions(self) -> pl.DataFrame:
        """user_id, item_id, weight and suspicion of every interaction, user by user, the oldest first.

        An interaction is as suspicious as its item; of a user whom an analyst confirmed 1, of a cleared one 0.
        """
        log, of_items = self.log.train, np.append(0.0, self.items["suspicion"].to_numpy())
        spoken = self.judged[log.users()]
        return pl.DataFrame({
            "user_id": self.log.users.cast(pl.String).gather(log.users()),
            "item_id": self.items["item_id"].gather(log.items - 1),
            "weight": self.weights.of_events(log), "suspicion": np.where(spoken < 0, of_items[log.items], spoken),
        })  # fmt: skip

    def save(self, folder: str | Path) -> None:
        """Write users, items, groups and weights as Parquet, and findings.json last.

        Raises RunError for a folder that holds something else.
        """
        folder = Path(folder)
        only_a_scan(folder)
        for old in ("findings.json", "report.html"):  # a killed process must not leave new tables under an old verdict
            (folder / old).unlink(missing_ok=True)
        for half in folder.glob(".*.tmp"):
            half.unlink(missing_ok=True)
        frames = {"users": self.users, "items": self.items, "groups": self.groups, "weights": self.interactions()}
        for name, frame in frames.items():
            write_parquet(folder / f"{name}.parquet", frame)
        found = {
            "lorec": version("lorec"), "verdict": self.verdict(), "alarm": self.alarm, "can tell": self.can_tell,
            "would do": self.would_do(),
            "asked": self.asked, "figures": self.figures,
            "notes": self.notes, "models": [dataclasses.asdict(one) for one in self.models],
            "log": self.log.record | {"digest": self.log.train.digest()},
        }  # fmt: skip
        write_json(folder / "findings.json", found)


def only_a_scan(folder: Path) -> None:
    """Raise RunError for a folder that holds something else than what a scan leaves, or can't be written to."""
    if folder.exists() and not (folder.is_dir() and all(map(_of_a_scan, folder.iterdir()))):
        raise RunError(f"{folder} holds something else than a scan; choose another folder")
    check_writable(folder)


def _of_a_scan(path: Path) -> bool:
    """Whether a scan leaves this, or the half of it that a killed process was writing."""
    return path.name in FILES or (path.name.endswith(".tmp") and path.name[1:].startswith(FILES))


# ----------------------------------------------------------------------------------------------------------- groups


def grouped(items: Floats, nothing: Bools, log: Split) -> tuple[pl.DataFrame, NDArray[np.int64], NDArray[np.int64]]:
    """Items that share holders, of those that are suspect or count `nothing` [V + 1]; the group of each item [V + 1]
    and user [users], 0 for none.

    Two items belong together where three users and a fifth of the fewer holders have both. An item that goes with no
    other one is a group by itself where it is suspect. A user belongs to the worst group of which they hold two items,
    or else the one item of a group of one.
    """
    histories = log.train.distinct()
    suspects, holding, both = _held(items, (items >= SUSPECT) | nothing, histories)
    holders = both.diagonal()
    linked = both >= np.maximum(3, 0.2 * np.minimum(holders[:, None], holders))
    kept = np.flatnonzero((linked.sum(axis=1) > 1) | (items[suspects] >= SUSPECT))  # each is linked to itself
    suspects, holding, holders, linked = suspects[kept], holding[:, kept], holders[kept], linked[np.ix_(kept, kept)]
    n, label = connected_components(csr_array(linked)) if len(suspects) else (0, np.zeros(0, dtype=np.int64))
    number = np.empty(n, dtype=np.int64)
    number[np.argsort(-np.bincount(label, items[suspects] * holders, n), kind="stable")] = np.arange(1, n + 1)
    of_items, of_users = np.zeros(len(items), dtype=np.int64), np.zeros(len(log), dtype=np.int64)
    of_items[suspects] = number[label]
    titles, rows = log.catalog.titles(), []
    for group in range(n, 0, -1):  # the worst last, so that it has the last word on a user
        inside = np.flatnonzero(number[label] == group)
        held = holding[:, inside].sum(axis=1)
        together = np.flatnonzero(held >= min(2, len(inside)))
        of_users[together] = group
        expected = by_chance(histories, holders[inside]) if len(inside) > 1 else None
        first, last = _span(log, together, suspects[inside])
        rows.append((
            group, items[suspects[inside]].max(), len(inside), int((held > 0).sum()), len(together), expected, first,
            last, [titles[one - 1] for one in suspects[inside][:10]],
        ))  # fmt: skip
    schema = pl.Schema({
        "group": pl.Int64(), "suspicion": pl.Float64(), "items": pl.Int64(), "users": pl.Int64(),
        "together": pl.Int64(), "expected": pl.Float64(), "first": pl.String(), "last": pl.String(),
        "titles": pl.List(pl.String()),
    })  # fmt: skip
    return pl.DataFrame(rows[::-1], schema, orient="row"), of_items, of_users


def _held(items: Floats, which: Bools, histories: Sequences) -> tuple[Ints, csr_array, Floats]:
    """The worst of these items, who holds them [users, n], and how many hold two of them [n, n]."""
    some = np.flatnonzero(which)
    some = some[np.argsort(-items[some], kind="stable")][:TOLD]
    place = np.full(len(items), -1)
    place[some] = np.arange(len(some))
    who, what = histories.users(), place[histories.items]
    inside = what >= 0
    holding = csr_array((np.ones(inside.sum()), (who[inside], what[inside])), (len(histories), len(some)))
    return some, holding, (holding.T @ holding).toarray()


def twins(items: Floats, log: Sequences, vectors: Floats) -> Ints:
    """Pairs of suspect items that may be one product [pairs, 4]: both items, holders of both and of either.

    Half of those who have either have both, and their texts' vectors [V + 1, dim] are alike; the most held come first.
    Whoever pushes several items of a kind looks the same, so this is said and nobody is cleared by it.
    """
    suspects, _, both = _held(items, items >= SUSPECT, log.distinct())
    either = both.diagonal()[:, None] + both.diagonal() - both
    unit = vectors[suspects].astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-9)
    one, other = np.nonzero(np.triu((both >= np.maximum(3, SHARED * either)) & (unit @ unit.T >= TWINS), 1))
    pairs = np.column_stack([suspects[one], suspects[other], both[one, other], either[one, other]]).astype(np.int64)
    return pairs[np.argsort(-pairs[:, 2], kind="stable")]


def by_chance(log: Sequences, holders: Floats) -> float:
    """How many users would hold two or more of some items with so many holders each, were nothing but chance at work.

    Whoever has more of everything has more of these, too: a user with L items misses one that is a share s of all
    interactions with a chance of (1 - s)^L.
    """
    lengths, users = np.unique(log.lengths, return_counts=True)
    missed = lengths[:, None] * np.log1p(-np.minimum(holders / max(len(log.items), 1), 0.999))
    none = missed.sum(axis=1)
    one = np.exp(np.clip(none[:, None] - missed, -700, 0)) * -np.expm1(missed)  # that item, and no other
    return float((users * np.maximum(-np.expm1(none) - one.sum(axis=1), 0)).sum())


def _span(log: Split, users: Ints, items: Ints) -> tuple[str | None, str | None]:
    """When these users took these items, first and last."""
    theirs = log.train.take(users)
    if theirs.times is None:
        return None, None
    when = theirs.times[np.isin(theirs.items, items)]
    return moment(int(when.min())), moment(int(when.max()))


# ---------------------------------------------------------------------------------------------------------- reasons

VIEWS = {
    "collusion": "its {holders} have more in common than its company explains",
    "surprise": "it keeps other company than items as popular do",
    "incoherence": "its {holders} have hardly anything in common but this item",
    "copying": "its {holders} are doubles of people who lack it",
    "profile": "the histories of its {holders} look made",
    "association": "its {holders} are suspects by what else they hold",
    "contradiction": "how much its {holders} share, and how little of what they have fits, are rare together",
    "nameless": "whatever titles say, what its {holders} share and how little of that fits are rare together",
    "camouflage": "its {holders} have what reads alike and nobody else takes together",
}
"""What LoRec's views say of an item."""
TRAITS = {
    "degree": "the mix of popular and rare items looks made",
    "coherence": "the titles have little to do with one another",
    "bursts": "took items when half of their holders did",
    "groups": "took rare items together that others took together",
}
"""What the other evidence says of a user."""
ODD = 0.95
"""The share of users that must show less of a trait for it to be a reason."""


def told_items(
    log: Split, base: Looked, items: Floats, weights: Weights, group: Ints, groups: pl.DataFrame, judged: Ints
) -> pl.DataFrame:
    """`Findings.items`; `judged` as in `told_users`."""
    n = len(log.catalog)
    holders, counts = log.train.distinct().counts(n), log.train.counts(n)
    mean = _weight_of_items(log, weights, judged)
    when = bursts(base.log, n) if "bursts" in base.said else None
    reasons = [""] * n
    below = {view: np.append(0.0, share_below(odds[1:], 0)) for view, odds in base.said["lorec"].views.items()}
    spoken = [log.train.take(np.flatnonzero(judged == one)).distinct().counts(n) for one in (1, 0)]
    for item in np.flatnonzero((items >= SUSPECT) | (mean < 1) & (counts > 0)):
        about = groups.row(int(group[item]) - 1, named=True) if group[item] else None
        told = _why_item(int(item), base, below, int(holders[item]), about, when)
        for some, words in zip(spoken, ("confirmed", "cleared"), strict=True):
            if some[item]:
                told.append(f"of its {many(holders[item], 'holder')} an analyst {words} {some[item]:,}")
        reasons[item - 1] = "; ".join(told)
    shares = {name: share_below(said.items[1:]) for name, said in base.said.items() if said.items is not None}
    frame = log.catalog.items.select(pl.col("item").cast(pl.String).alias("item_id"), pl.col("title").cast(pl.String))
    return frame.with_columns(
        suspicion=items[1:], weight=mean[1:].astype(np.float32), holders=holders[1:], group=group[1:],
        reasons=pl.Series(reasons, dtype=pl.String), **shares,
    )  # fmt: skip


def _weight_of_items(log: Split, weights: Weights, judged: Ints) -> Floats:
    """[V + 1]: the mean weight of what users took whom no analyst judged; of all, where every holder was judged.

    Else every item that one confirmed user has would look as if it were turned down.
    """
    n, events = len(log.catalog), weights.of_events(log.train)
    unspoken = (judged < 0)[log.train.users()]
    some = np.bincount(log.train.items, unspoken, n + 1)
    theirs = np.bincount(log.train.items, events * unspoken, n + 1)
    everything = np.bincount(log.train.items, events, n + 1) / np.maximum(log.train.counts(n), 1)
    return np.where(some > 0, theirs / np.maximum(some, 1), everything)


def _why_item(
    item: int,
    base: Looked,
    below: Mapping[str, Floats],
    holders: int,
    group: Mapping[str, Any] | None,
    when: tuple[Floats, Ints] | None,
) -> list[str]:
    """Reasons to suspect an item."""
    views = base.said["lorec"].views
    worst = sorted(views, key=lambda view: -views[view][item])[:2]
    told = [
        f"{VIEWS[view].format(holders=many(holders, 'holder'))} (the odds of being pushed {views[view][item]:,.0f} "
        f"times what they are without this; more than {percent(below[view][item], 2)} of items)"
        for view in worst
        if views[view][item] > 2
    ]
    told += _together(group)
    if when is not None and (said := base.said["bursts"].items) is not None and said[item] > 2:
        first, last = (moment(int(one)) for one in when[1][item])
        told.append(
            f"half of its {holders:,} holders came between {first} and {last}, a time with {when[0][item]:.2%} of all "
            "interactions"
        )
    return told


def _together(group: Mapping[str, Any] | None) -> list[str]:
    if group is None or group["expected"] is None or group["together"] < 2 * group["expected"]:
        return []
    return [
        f"{group['together']:,} users took at least two of the {group['items']} items of group {group['group']}, where "
        f"{group['expected']:,.1f} would by chance"
    ]


def told_users(
    log: Split, base: Looked, users: Floats, items: Floats, weights: Weights, group: Ints, groups: pl.DataFrame,
    judged: Ints,
) -> pl.DataFrame:  # fmt: skip
    """`Findings.users`; `judged` [users] is an analyst's verdict: 1 fraud, 0 genuine, -1 none."""
    shares = {name: share_below(said.users) for name, said in base.said.items() if name != "lorec"}
    shares["lorec"] = share_below(base.pushed(items))
    strength = {name: said.users for name, said in base.said.items()} | {"lorec": base.pushed(items)}
    more_than = {name: share_below(values, 0) for name, values in strength.items()}
    names, titles = log.users.cast(pl.String), log.catalog.titles()
    double = doubles(base.log, base.n_items + 1) if "copies" in base.said else None
    spoken = [{1: "confirmed by an analyst", 0: "cleared by an analyst"}.get(int(one), "") for one in judged]
    reasons = list(spoken)
    of_users, events = weights.of_users(log.train), weights.of_events(log.train)

    def left_out(user: int) -> list[str]:
        mine = slice(log.train.starts[user], log.train.starts[user + 1])
        nothing = np.unique(log.train.items[mine][events[mine] == 0])
        return _left_out(nothing, len(np.unique(log.train.items[mine])), titles)

    for user in np.flatnonzero((users >= SUSPECT) | (of_users < 1)):
        history = np.unique(base.log[int(user)])
        if users[user] < SUSPECT:  # what training leaves out has a reason, whoever took it
            told = [] if judged[user] == 0 else left_out(int(user))
            reasons[user] = "; ".join(filter(None, [spoken[user], *told]))
            continue
        told = _why_user(history, items, titles)
        told += _together(groups.row(int(group[user]) - 1, named=True) if group[user] else None)
        if double is not None and shares["copies"][user] > ODD:
            whose, share = names[int(double[0][user])], double[1][user]
            told.append(
                f"{share:.0%} of the {len(history)} items are also in the history of {quoted(whose, whole=True)} "
                f"(more than {percent(more_than['copies'][user])} of users have in common with their double, for how "
                "long their histories are)"
            )
        told += [
            f"{words} (more than {percent(more_than[name][user])} of users)"
            for name, words in TRAITS.items()
            if name in shares and shares[name][user] > ODD
        ]
        told = told or left_out(int(user))
        if not told:
            most = max(more_than, key=lambda name: more_than[name][user])
            told = [f"no evidence alone; the strongest is {most} (more than {percent(more_than[most][user])} of users)"]
        reasons[user] = "; ".join(filter(None, [spoken[user], *told]))
    return pl.DataFrame({
        "user_id": names, "suspicion": users, "weight": of_users, "events": log.train.lengths,
        "group": group, "reasons": pl.Series(reasons, dtype=pl.String), **shares,
    })  # fmt: skip


def _why_user(history: Ints, items: Floats, titles: Sequence[str]) -> list[str]:
    """What of a user's distinct items looks pushed."""
    pushed = history[items[history] >= SUSPECT]
    if not len(pushed):
        return []
    pushed = pushed[np.argsort(-items[pushed], kind="stable")]
    some = ", ".join(f"{quoted(titles[item - 1])} ({items[item]:.2f})" for item in pushed[:3])
    more = ", ..." if len(pushed) > 3 else ""
    return [f"{len(pushed)} of the {len(history)} items look pushed: {some}{more}"]


def _left_out(items: Ints, of: int, titles: Sequence[str]) -> list[str]:
    """Which of a user's distinct items count nothing in training."""
    some = ", ".join(quoted(titles[item - 1]) for item in items[:3]) + (", ..." if len(items) > 3 else "")
    return [f"{len(items)} of the {of} items count nothing, for reasons of their own: {some}"] if len(items) else []
