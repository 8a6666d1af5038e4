"""The nouns that every room shares: logs, catalogues, sequences, splits, poisons, weights, batches.

Items are numbered from 1 in the order of their sorted ids; 0 is padding and never an item. Users are the rows of a
Sequences; their raw ids stay in the Split, out of sight of defenses.
"""

import dataclasses
import difflib
import hashlib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lorec.errors import ConfigError, DataError, RunError
from lorec.files import write_parquet

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


def stream(seed: int, purpose: str) -> np.random.Generator:
    """A generator of its own for each purpose, so that a draw more in one place moves nothing elsewhere.

    Raises ConfigError for a seed that is negative or has more than 63 bits.
    """
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed is {seed}; it is a whole number from 0 to 2^63 - 1")
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


# ---------------------------------------------------------------------------------------------------------- logs


@dataclass(frozen=True)
class Dataset:
    """A log as it was read: raw ids, nothing filtered yet."""

    name: str
    interactions: pl.DataFrame
    """user, item (strings or integers, no nulls) and, where time is known, time (integers; any one unit)."""
    items: pl.DataFrame
    """item, title (null where unknown) and whatever else the catalogue says. May lack items of the log."""
    record: dict[str, Any] = field(default_factory=dict)
    """How it was read and changed on the way, for the run's record."""


@dataclass(frozen=True)
class Catalog:
    """The items of a model by number. Append-only: a number never changes its meaning."""

    items: pl.DataFrame
    """item (str), title (str or null), ...; the row of number n is n - 1."""

    def __len__(self) -> int:
        return self.items.height

    def known(self, ids: pl.Series) -> NDArray[np.int32]:
        """The numbers of raw ids; 0 for one that is not in the catalogue."""
        mine = self.items.select("item", number=pl.int_range(1, pl.len() + 1, dtype=pl.Int32))
        asked = ids.cast(pl.String).rename("item").to_frame()
        return asked.join(mine, on="item", how="left", maintain_order="left")["number"].fill_null(0).to_numpy()

    def numbers(self, ids: Iterable[str]) -> NDArray[np.int32]:
        """The numbers of raw ids. Raises DataError for an id that is not in the catalogue."""
        wanted = pl.Series([str(one) for one in ids], dtype=pl.String)
        numbers = self.known(wanted)
        if not numbers.all():
            one = wanted[int(np.argmin(numbers > 0))]
            near = difflib.get_close_matches(one, self.items["item"].to_list(), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; ids are compared exactly"
            raise DataError(f"no item {one!r} in the catalogue of {len(self)} items{hint}")
        return numbers

    def where(self, values: Mapping[str, str]) -> Bools:
        """[V]: which items have these values in their columns. Raises DataError for a column that is not there."""
        found = np.ones(len(self), dtype=bool)
        for column, value in values.items():
            if column not in self.items.columns:
                raise DataError(f"the catalogue has no column {column!r}; it has {', '.join(self.items.columns)}")
            found &= _says(self.items[column], value)
        return found

    def hidden(self, blocked: Iterable[str], where: Mapping[str, str]) -> NDArray[np.int32]:
        """The numbers of the items of a list, and of those that lack a value in a column.

        Raises DataError for an id or a column that is not there, and where nothing is left.
        """
        kept = np.ones(len(self), dtype=bool)
        kept[self.numbers(blocked) - 1] = False
        kept &= self.where(where)
        if not kept.any():
            raise DataError(f"of {len(self)} items none is left to recommend; block fewer, or ask for another value")
        return (np.flatnonzero(~kept) + 1).astype(np.int32)

    def ids(self, numbers: Ints) -> list[str]:
        """The raw ids of item numbers (all >= 1)."""
        return self.items["item"].gather(np.asarray(numbers, dtype=np.int64) - 1).to_list()

    def titles(self) -> list[str]:
        """Every item's text in order of its number, "" where it has none."""
        return self.items["title"].fill_null("").to_list()

    def save(self, path: str | Path) -> None:
        """Write the catalogue as Parquet."""
        write_parquet(Path(path), self.items)

    @staticmethod
    def load(path: Path) -> "Catalog":
        """Read a saved catalogue. Raises RunError where it is damaged."""
        try:
            frame = pl.read_parquet(path)
            frame.select(pl.col("item", "title").cast(pl.String))
        except (OSError, pl.exceptions.PolarsError) as error:
            raise RunError(f"{path} is not a saved catalogue ({error}); restore it, or train again") from None
        return Catalog(frame)


def _says(column: pl.Series, value: str) -> NDArray[np.bool_]:
    """Which entries are a value as somebody types it: numbers by their size, lists by what they hold."""
    if isinstance(column.dtype, pl.List | pl.Array):
        held = column.cast(pl.List(pl.String)).list.contains(value)
    elif column.dtype.is_numeric():
        try:
            held = column.cast(pl.Float64) == float(value)
        except ValueError:
            held = pl.repeat(False, len(column), eager=True)
    else:
        held = column.cast(pl.String) == value
    return held.fill_null(False).to_numpy()


@dataclass(frozen=True)
class Sequences:
    """Histories of item numbers, oldest first, packed end to end (CSR)."""

    items: NDArray[np.int32]
    """[events]"""
    starts: NDArray[np.int64]
    """[users + 1]: user u's events are items[starts[u]:starts[u + 1]]."""
    times: NDArray[np.int64] | None = None
    """[events], or None where time is unknown."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, user: int) -> NDArray[np.int32]:
        return self.items[self.starts[user] : self.starts[user + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[users]"""
        return np.diff(self.starts)

    def take(self, rows: Ints) -> "Sequences":
        """These users only, in this order."""
        return self.slices(self.starts[:-1][rows], self.lengths[rows])

    def slices(self, begins: Ints, lengths: Ints) -> "Sequences":
        """One history for each run of events from `begins` on, `lengths` long."""
        events = runs(begins, lengths)
        return Sequences(self.items[events], offsets(lengths), None if self.times is None else self.times[events])

    def extended(self, others: "Sequences") -> "Sequences":
        """Both, these users first. Times are kept only where both have them."""
        starts = np.concatenate([self.starts, others.starts[1:] + self.starts[-1]])
        known = self.times is not None and others.times is not None
        times = np.concatenate([self.times, others.times]) if known else None
        return Sequences(np.concatenate([self.items, others.items]), starts, times)

    def distinct(self) -> "Sequences":
        """Each user's items once; where anybody took one again, in order of item and without times."""
        size = int(self.items.max(initial=0)) + 1
        pairs = np.unique(self.users() * size + self.items)
        if len(pairs) == len(self.items):
            return self
        return Sequences((pairs % size).astype(np.int32), offsets(np.bincount(pairs // size, minlength=len(self))))

    def users(self) -> NDArray[np.int64]:
        """[events]: the user of each event."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def positions(self) -> NDArray[np.int64]:
        """[events]: the place of each event in its user's history, from 0."""
        return np.arange(len(self.items)) - self.starts[:-1][self.users()]

    def counts(self, n_items: int) -> NDArray[np.int64]:
        """[n_items + 1]: how often each item occurs; entry 0, the padding, is 0."""
        return np.bincount(self.items, minlength=n_items + 1)

    def digest(self) -> str:
        """A fingerprint of the histories' content."""
        parts = (np.ascontiguousarray(self.items).tobytes(), np.ascontiguousarray(self.starts).tobytes())
        return hashlib.sha256(b"".join(parts)).hexdigest()

    @staticmethod
    def of(histories: Iterable[Iterable[int]]) -> "Sequences":
        """Pack lists of item numbers."""
        lists = [np.asarray(list(history), dtype=np.int32) for history in histories]
        starts = offsets(np.array([len(one) for one in lists], dtype=np.int64))
        return Sequences(np.concatenate(lists) if lists else np.zeros(0, np.int32), starts)


def offsets(lengths: Ints) -> NDArray[np.int64]:
    """[n + 1]: where each of n runs of these lengths starts, and the end of the last."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def firsts(values: Ints | NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where each run of equal values begins, and the end of the last."""
    begins = np.flatnonzero(np.diff(values)) + 1
    return np.concatenate([[0] if len(values) else [], begins, [len(values)]]).astype(np.int64)


def runs(begins: Ints, lengths: Ints) -> NDArray[np.int64]:
    """The numbers of each run, begin, begin + 1, ..., one run after the other."""
    starts = offsets(lengths)
    return np.repeat(begins - starts[:-1], lengths) + np.arange(starts[-1])


# ------------------------------------------------------------------------------------------------------ the split


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a log becomes sequences: order, then repeats, then k-core, then length, all recorded."""

    k_core: int = 0
    """Keep users and items with at least this many interactions, repeated until nothing changes; 0: keep all."""
    repeats: Literal["first", "keep"] = "first"
    """first: keep the first time a user takes an item; keep: keep every time (and rank seen items too)."""
    ties: Literal["seeded", "stored"] = "seeded"
    """Events of one user at one time: in a seeded random order that ignores the file's, or as they are stored."""
    min_length: int = 3
    """Drop users with fewer interactions; leaving two out needs 3."""
    last: int = 50
    """Keep this many newest training items of a user (validation and test come on top); 0: all."""
    seed: int = 0
    """Of the order of ties."""

    def __post_init__(self) -> None:
        if self.min_length < 3:
            raise ConfigError(f"min_length is {self.min_length}; leaving two out needs 3 or more: one item to train on")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"[split] seed is {self.seed}; it is a whole number from 0 to 2^63 - 1")
        if self.k_core < 0 or self.last < 0:
            raise ConfigError("k_core and last count interactions and can't be negative")


@dataclass(frozen=True)
class Split:
    """Leave two out by time: the newest item tests, the one before it validates, the rest trains.

    Rows of fraudsters train whole and have neither: valid and test are 0 there, as everywhere in a `whole` log.
    """

    name: str
    catalog: Catalog
    users: pl.Series
    """[users]: raw ids."""
    train: Sequences
    valid: NDArray[np.int32]
    """[users]"""
    test: NDArray[np.int32]
    """[users]"""
    fraudsters: Bools
    """[users]: what only the experiment and the judge may see."""
    older: Sequences
    """What `last` cut off: not trained on, but seen by the user all the same."""
    record: dict[str, Any]
    """The protocol and what each of its steps left."""

    def digest(self) -> str:
        """A fingerprint of everything that a model is trained and judged on: ids, times, all that is said of items."""
        texts = (self.users, self.catalog.items["item"], self.catalog.items["title"].fill_null(""))
        parts = [self.train.digest(), self.older.digest(), self.valid.tobytes().hex(), self.test.tobytes().hex()]
        parts += ["\0".join(one.cast(pl.String).to_list()) for one in texts]
        more = self.catalog.items.select(sorted(set(self.catalog.items.columns) - {"item", "title"}))
        plain = more.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String))  # their codes are a process's own
        parts += [repr(plain.schema), plain.hash_rows(seed=0).to_numpy().tobytes().hex(), str(self.repeats)]
        parts += [] if self.train.times is None else [hashlib.sha256(self.train.times.tobytes()).hexdigest()]
        return hashlib.sha256("\1".join(parts).encode("utf-8", "surrogatepass")).hexdigest()

    def size(self) -> str:
        """In words: users, items, training interactions."""
        counts = f"{len(self):,} users, {len(self.catalog):,} items"
        return f"{counts}, {len(self.train.items):,} training interactions"

    @property
    def repeats(self) -> bool:
        """Whether a user may take an item again, so that seen items compete in rankings."""
        return bool(self.record["protocol"]["repeats"] == "keep")

    def genuine(self) -> NDArray[np.int64]:
        """The rows of genuine users."""
        return np.flatnonzero(~self.fraudsters)

    def take(self, rows: Ints) -> "Split":
        """These users only, in this order."""
        return dataclasses.replace(
            self, users=self.users.gather(rows), train=self.train.take(rows), valid=self.valid[rows],
            test=self.test[rows], fraudsters=self.fraudsters[rows], older=self.older.take(rows),
        )  # fmt: skip

    def histories(self, rows: Ints, on: Literal["valid", "test", "now"] = "test") -> Sequences:
        """What users did before a held-out item, valid or test; or until now, with both: what to recommend from."""
        found = self.train.take(rows)
        for held in {"valid": (), "test": (self.valid,), "now": (self.valid, self.test)}[on]:
            found = append(found, held[rows])
        return found

    def __len__(self) -> int:
        return len(self.train)


def append(sequences: Sequences, items: Ints) -> Sequences:
    """Put one item after each history; 0 appends nothing. Times are dropped."""
    held = items > 0
    starts = offsets(sequences.lengths + held)
    packed = np.empty(starts[-1], dtype=np.int32)
    last = np.zeros(starts[-1], dtype=bool)
    last[starts[1:][held] - 1] = True
    packed[last] = items[held]
    packed[~last] = sequences.items
    return Sequences(packed, starts)


def leave_two_out(dataset: Dataset, protocol: Protocol | None = None, **fields: Any) -> Split:
    """Turn a log into a Split under a Protocol (that of Zhang et al. 2024); keywords are its fields.

    Raises DataError where nothing is left, with what each step had left.
    """
    if protocol is not None and fields:
        raise ConfigError(f"give a Protocol or its fields ({', '.join(fields)}), not both")
    protocol = protocol or Protocol(**fields)
    frame = dataset.interactions
    if frame.is_empty():
        raise DataError(f"{dataset.name}: the log is empty; nothing to split")
    with ThreadPoolExecutor(2) as pool:  # hashing ids is most of the work, and polars lets two columns run at once
        (user_ids, users), (item_ids, items) = pool.map(_encode, (frame["user"], frame["item"]))
    times = frame["time"].to_numpy() if "time" in frame.columns else None
    steps = [_step("read", users, items)]

    users, items, times, tied = _ordered(users, items, times, protocol)
    if protocol.repeats == "first":
        keep = _first_occurrences(users, items, len(item_ids))
        users, items, times = users[keep], items[keep], None if times is None else times[keep]
        steps.append(_step("first occurrences", users, items))
    if protocol.k_core:
        keep = _core(users, items, protocol.k_core)
        users, items, times = users[keep], items[keep], None if times is None else times[keep]
        steps.append(_step(f"{protocol.k_core}-core", users, items))
    lengths = np.bincount(users, minlength=len(user_ids))
    keep = (lengths >= protocol.min_length)[users]
    users, items, times = users[keep], items[keep], None if times is None else times[keep]
    steps.append(_step(f"users of {protocol.min_length} or more", users, items))
    if not len(users):
        trail = "; ".join(f"{one['step']}: {one['users']} users, {one['interactions']} interactions" for one in steps)
        raise DataError(
            f"{dataset.name}: no user is left to train on ({trail}); bring longer histories or a lower k_core"
        )

    present = np.flatnonzero(np.bincount(items, minlength=len(item_ids)))
    number = np.zeros(len(item_ids), dtype=np.int32)
    number[present] = np.arange(1, len(present) + 1, dtype=np.int32)
    rows = np.flatnonzero(lengths >= protocol.min_length)
    starts = offsets(lengths[rows])
    sequences = Sequences(number[items], starts, None if times is None else times.astype(np.int64))
    begins, before = starts[:-1], sequences.lengths - 2
    kept = np.minimum(before, protocol.last) if protocol.last else before
    train, older = sequences.slices(begins + before - kept, kept), sequences.slices(begins, before - kept)
    record = {
        "dataset": dataset.record,
        "protocol": dataclasses.asdict(protocol),
        "steps": steps,
        "share of neighbouring events at one time": tied,
        "items without text": 0,
    }
    catalog = _catalog(dataset, item_ids.gather(present))
    record["items without text"] = sum(not title.strip() for title in catalog.titles())
    return Split(
        dataset.name,
        catalog,
        user_ids.gather(rows),
        train,
        valid=sequences.items[starts[1:] - 2],
        test=sequences.items[starts[1:] - 1],
        fraudsters=np.zeros(len(rows), dtype=bool),
        older=older,
        record=record,
    )


def whole(dataset: Dataset, seed: int = 0) -> Split:
    """A log as it is, to be looked at: everybody with whole histories, repeats too; nothing is held out.

    Items of the catalogue that nobody took are left out. Ties are settled as a Protocol with this seed does. Raises
    DataError for an empty log.
    """
    frame, protocol = dataset.interactions, Protocol(repeats="keep", last=0, seed=seed)
    if frame.is_empty():
        raise DataError(f"{dataset.name}: the log is empty; nothing to look at")
    (user_ids, users), (item_ids, items) = _encode(frame["user"]), _encode(frame["item"])
    times = frame["time"].to_numpy() if "time" in frame.columns else None
    users, items, times, tied = _ordered(users, items, times, protocol)
    n, nothing = len(user_ids), np.zeros(len(user_ids), dtype=np.int32)
    times = None if times is None else times.astype(np.int64)
    histories = Sequences((items + 1).astype(np.int32), offsets(np.bincount(users, minlength=n)), times)
    record = {
        "dataset": dataset.record,
        "protocol": dataclasses.asdict(protocol),
        "share of neighbouring events at one time": tied,
    }
    return Split(
        dataset.name, _catalog(dataset, item_ids), user_ids, histories, nothing, nothing, np.zeros(n, dtype=bool),
        Sequences.of([()] * n), record,
    )  # fmt: skip


def whole_histories(
    dataset: Dataset, catalog: Catalog, repeats: Literal["first", "keep"] = "keep"
) -> tuple[pl.Series, Sequences, list[str]]:
    """Every user's whole history in order of time, for serving: raw user ids, histories, and who is a stranger.

    `repeats` are treated as the model's training log treats them: with `first` an item counts where it came first.
    Items that the catalogue does not have can't be read by a model: they are left out of the histories and named, the
    most frequent first.
    """
    frame = dataset.interactions.with_columns(pl.col("user", "item").cast(pl.String))
    frame = frame.sort("user", *(["time"] if "time" in frame.columns else []), maintain_order=True)
    if repeats == "first":
        frame = frame.unique(["user", "item"], keep="first", maintain_order=True)
    frame = frame.with_columns(number=pl.Series(catalog.known(frame["item"])))
    runs = frame.group_by("user", maintain_order=True).agg(known=(pl.col("number") > 0).sum())
    strangers = frame.filter(pl.col("number") == 0)["item"].value_counts(sort=True)["item"].to_list()
    items = frame.filter(pl.col("number") > 0)["number"].to_numpy()
    return runs["user"], Sequences(items, offsets(runs["known"].to_numpy())), strangers


def _encode(ids: pl.Series) -> tuple[pl.Series, Ints]:
    """Sorted distinct ids as strings, and each row's place among them, whatever the order of the rows."""
    if ids.dtype.is_integer():
        values: NDArray[np.int64] = ids.cast(pl.Int64).to_numpy()
        low, high = int(values.min()), int(values.max())
        if high - low < max(4 * len(values), 1_000_000):  # a table look-up beats hashing
            seen = np.flatnonzero(np.bincount(values - low))
            place = np.zeros(high - low + 1, dtype=np.int64)
            place[seen] = np.arange(len(seen))
            return pl.Series(seen + low).cast(pl.String), place[values - low]
    texts, seed = ids.cast(pl.String), 0
    while (found := _alike(texts.hash(seed).to_numpy(), texts.hash(seed + 1).to_numpy())) is None:
        seed += 2  # two texts of one hash, which another one tells apart
    order, first, sizes = found
    names = texts.gather(order[first]).sort()  # several times faster than their order
    codes = np.empty(len(texts), dtype=np.int64)
    codes[order] = np.repeat(names.hash(seed).to_numpy().argsort(), sizes)
    return names, codes


def _alike(keys: NDArray[np.uint64], others: NDArray[np.uint64]) -> tuple[Ints, Ints, Ints] | None:
    """An order by keys, where each key begins in it, and how many rows have it; None where other keys differ there.

    Sorting integers beats hashing rows into a table, as a processor sorts several at once.
    """
    order = keys.argsort()
    bounds, others = firsts(keys[order]), others[order]
    first, sizes = bounds[:-1], np.diff(bounds)
    return None if (others != np.repeat(others[first], sizes)).any() else (order, first, sizes)


def _ordered(users: Ints, items: Ints, times: Ints | None, protocol: Protocol) -> tuple[Ints, Ints, Ints | None, float]:
    """Sort events by user and time and settle ties; also the share of neighbours of a user that share a time."""
    if times is None:  # the stored order is all the time there is
        order = np.argsort(users, kind="stable")
        return users[order], items[order], None, 0.0
    if protocol.ties == "stored":
        order = np.lexsort((times, users))
        users, items, times = users[order], items[order], times[order]
    else:
        users, items, times = _sorted_packed(users, items, times)
    neighbours = (users[1:] == users[:-1]).astype(np.int8)
    tied = neighbours & (times[1:] == times[:-1])
    if protocol.ties == "seeded" and tied.any():
        inside = np.flatnonzero(np.concatenate([[0], tied]) | np.concatenate([tied, [0]]))
        run = np.cumsum(np.concatenate([[1], 1 - tied]))[inside]
        key = _scramble(_content(users[inside], items[inside]), protocol.seed)
        items = items.copy()
        items[inside] = items[inside][np.lexsort((key, run))]
    return users, items, times, float(tied.sum() / max(neighbours.sum(), 1))


def _sorted_packed(users: Ints, items: Ints, times: Ints) -> tuple[Ints, Ints, NDArray[np.int64]]:
    """Sort by (user, time, item): as one integer where the three fit into 63 bits, which is several times faster."""
    low = int(times.min())
    since = times.astype(np.int64) - low
    step = int(np.gcd.reduce(since)) or 1  # whole days need few bits
    since //= step
    bits_item, bits_time = int(items.max()).bit_length(), int(since.max()).bit_length()
    if int(users.max()).bit_length() + bits_time + bits_item > 63:
        order = np.lexsort((items, times, users))
        return users[order], items[order], times[order].astype(np.int64)
    key = ((users.astype(np.int64) << bits_time | since) << bits_item) | items
    key.sort()
    items = key & ((1 << bits_item) - 1)
    key >>= bits_item
    return key >> bits_time, items, (key & ((1 << bits_time) - 1)) * step + low


def _content(users: Ints, items: Ints) -> NDArray[np.uint64]:
    return users.astype(np.uint64) << np.uint64(32) | items.astype(np.uint64)


def _scramble(values: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """A seeded hash of integers (splitmix64's finaliser), so that an order depends on content, never on file order."""
    with np.errstate(over="ignore"):
        mixed = values + np.uint64((seed * 2 + 1) * 0x9E3779B97F4A7C15 % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _first_occurrences(users: Ints, items: Ints, n_items: int) -> Bools:
    pairs, bits = users.astype(np.int64) * n_items + items, len(users).bit_length()
    if not len(pairs) or int(pairs.max()).bit_length() + bits > 63:
        return pl.Series(pairs).is_first_distinct().to_numpy()
    pairs = (pairs << bits) | np.arange(len(pairs))  # sorted as one integer, several times faster than a table of them
    pairs.sort()
    found = np.zeros(len(pairs), dtype=bool)
    found[pairs[firsts(pairs >> bits)[:-1]] & ((1 << bits) - 1)] = True
    return found


def _core(users: Ints, items: Ints, k: int) -> Bools:
    keep = np.ones(len(users), dtype=bool)
    while True:
        enough = np.bincount(users[keep], minlength=int(users.max()) + 1) >= k
        popular = np.bincount(items[keep], minlength=int(items.max()) + 1) >= k
        narrower = keep & enough[users] & popular[items]
        if narrower.sum() == keep.sum() or not narrower.any():
            return narrower
        keep = narrower


def _catalog(dataset: Dataset, ids: pl.Series) -> Catalog:
    known = dataset.items.with_columns(pl.col("item").cast(pl.String))
    return Catalog(ids.rename("item").to_frame().join(known, on="item", how="left", maintain_order="left"))


def _step(name: str, users: Ints, items: Ints) -> dict[str, Any]:
    n_users = int(np.count_nonzero(np.bincount(users))) if len(users) else 0
    n_items = int(np.count_nonzero(np.bincount(items))) if len(items) else 0
    return {"step": name, "users": n_users, "items": n_items, "interactions": len(users)}


# ------------------------------------------------------------------------------------------------------ poisoning


@dataclass(frozen=True)
class Poison:
    """The histories of fraudsters and what they were made for."""

    profiles: Sequences
    targets: NDArray[np.int32]
    """[targets]: the items to be pushed."""
    provenance: dict[str, Any]
    """attack, its parameters, seed, how the targets were chosen."""


def inject(split: Split, poison: Poison, seed: int = 0) -> Split:
    """Add the fraudsters to the training log, then shuffle all rows, so that no defense can tell by position.

    Fraudsters keep their whole profile for training and never enter validation or test: a concession that uses labels.
    """
    m = len(poison.profiles)
    order = stream(seed, "rows").permutation(len(split) + m)
    nothing = np.zeros(m, dtype=np.int32)
    names = pl.Series([f"injected-{number:05d}" for number in range(m)], dtype=pl.String)
    return dataclasses.replace(
        split,
        users=split.users.cast(pl.String).append(names).gather(order),
        train=split.train.extended(poison.profiles).take(order),
        valid=np.concatenate([split.valid, nothing])[order],
        test=np.concatenate([split.test, nothing])[order],
        fraudsters=np.concatenate([split.fraudsters, np.ones(m, dtype=bool)])[order],
        older=split.older.extended(Sequences.of([()] * m)).take(order),
    )


TURNED_DOWN = 0.5
"""The weight from which on downwards an interaction, or a user, is turned down."""


@dataclass(frozen=True)
class Weights:
    """How much the loss counts, per user and per interaction; None means 1 everywhere."""

    users: NDArray[np.float32] | None = None
    """[users], finite and >= 0."""
    events: NDArray[np.float32] | None = None
    """[events], finite and >= 0: scales the loss where that event is the positive."""

    def __post_init__(self) -> None:
        for what, values in (("user", self.users), ("event", self.events)):
            if values is not None and not (np.isfinite(values).all() and (values >= 0).all()):
                raise DataError(f"a {what} weight is negative or not a number; weights are finite and 0 or more")

    def of_events(self, log: Sequences) -> NDArray[np.float32]:
        """[events]: what each interaction of a log counts."""
        weights = np.ones(len(log.items), dtype=np.float32) if self.events is None else self.events
        return weights if self.users is None else weights * self.users[log.users()]

    def turned_down(self, log: Sequences) -> Bools:
        """[events]: which interactions of a log are turned down."""
        down: Bools = self.of_events(log) <= TURNED_DOWN
        return down

    def of_users(self, log: Sequences) -> NDArray[np.float32]:
        """[users]: the mean of what a user's interactions count; of a user without any, the user's own weight."""
        users = np.ones(len(log), dtype=np.float32) if self.users is None else self.users
        if self.events is None:
            return users
        mean = np.bincount(log.users(), self.events, minlength=len(log)) / np.maximum(log.lengths, 1)
        return (users * np.where(log.lengths > 0, mean, 1)).astype(np.float32)

    def of(self, batch: "Batch") -> NDArray[np.float32]:
        """[B, T]: the weight of each position's loss."""
        weights = np.ones(batch.positives.shape, dtype=np.float32)
        if self.users is not None:
            weights *= self.users[batch.users][:, None]
        if self.events is not None:
            weights *= self.events[batch.events]
        return weights


# -------------------------------------------------------------------------------------------------------- batches

TRIES = 20
"""Rounds in which negatives that a user has are drawn anew, before what is left to the user is looked up."""


@dataclass(frozen=True)
class Batch:
    """Users of like length, padded with 0 on the left."""

    users: NDArray[np.int64]
    """[B]"""
    history: NDArray[np.int32]
    """[B, T]"""
    positives: NDArray[np.int32]
    """[B, T]: the item that follows each position; 0 at padding, and before the last position of a prefix."""
    negatives: NDArray[np.int32]
    """[B, T, k]: items that the user's training history does not hold; 0 where there is no positive."""
    events: NDArray[np.int64]
    """[B, T]: the place in train.items of each positive; 0 where there is none."""
    chances: NDArray[np.float32] | None = None
    """[B, T, k]: the log of each negative's chance of being drawn; None where all are alike."""


@dataclass(frozen=True)
class Feed:
    """A training log ready for batches of like length under a token budget."""

    log: Sequences
    n_items: int
    max_length: int
    """Longer histories are cut into windows, so that every event but a user's first is a positive once."""
    tokens: int = 4096
    """Positions in a batch, padding included."""
    negatives: int = 1
    popular: bool = False
    """Draw negatives as often as items occur in the log (and once more, so that each can be), or uniformly."""
    prefixes: bool = False
    """A history for each positive, which follows its last position, for backbones that see all of a history at once."""
    pad_to: int = 0
    """Pad every batch to this width, and don't sort by length."""
    _windows: tuple[Ints, Ints, Ints] = field(init=False, repr=False, compare=False)
    _seen: NDArray[np.int64] = field(init=False, repr=False, compare=False)
    _popularity: Floats = field(init=False, repr=False, compare=False)
    """[V + 1]: the chance that a draw is this item or one of a lower number."""
    _chances: NDArray[np.float32] = field(init=False, repr=False, compare=False)
    """[V + 1]: the log of each item's chance of being drawn, 0 for padding."""

    def __post_init__(self) -> None:
        cut = prefixes if self.prefixes else windows
        object.__setattr__(self, "_windows", cut(self.log, self.max_length))
        counts = (self.log.counts(self.n_items) if self.popular else np.zeros(self.n_items + 1)) + 1.0
        counts[0] = 0
        object.__setattr__(self, "_popularity", np.cumsum(counts) / counts.sum())
        counts[0] = counts.sum()
        object.__setattr__(self, "_chances", np.log(counts / counts[0]).astype(np.float32))
        taken = self.log.users() * (self.n_items + 1) + self.log.items
        object.__setattr__(self, "_seen", np.unique(taken))
        if self.negatives and int(self.log.lengths.max(initial=0)) >= self.n_items:
            fullest = self.log.take(np.flatnonzero(self.log.lengths >= self.n_items))
            if any(len(np.unique(fullest[row])) >= self.n_items for row in range(len(fullest))):
                raise DataError("a user has taken every item of the catalogue and leaves no negative; drop that user")

    def steps(self) -> int:
        """How many batches an epoch has, about."""
        return sum(1 for _ in self._plan(np.random.default_rng(0)))

    def epoch(self, rng: np.random.Generator) -> Iterator[Batch]:
        """All windows once, in batches of random order."""
        users, begins, widths = self._windows
        plan = list(self._plan(rng))
        for chosen in (plan[place] for place in rng.permutation(len(plan))):
            width = self.pad_to or int(widths[chosen].max())
            history, real = left_padded(self.log.items, begins[chosen], widths[chosen], width)
            events = np.where(real, _places(begins[chosen], widths[chosen], width) + 1, 0)
            if self.prefixes:
                real[:, :-1] = False
                events[:, :-1] = 0
            positives = np.where(real, self.log.items[events], 0).astype(np.int32)
            negatives = self._negatives(users[chosen], real, rng)
            chances = self._chances[negatives] if self.popular else None
            yield Batch(users[chosen], history, positives, negatives, events, chances)

    def _plan(self, rng: np.random.Generator) -> Iterator[Ints]:
        """Cut the windows, shuffled and then sorted by width, where the budget is full; no batch has a single row."""
        widths = self._windows[2]
        order = rng.permutation(len(widths))
        if not self.pad_to:
            order = order[np.argsort(widths[order], kind="stable")]
        return cut_by_tokens(order, np.full(len(order), self.pad_to) if self.pad_to else widths[order], self.tokens)

    def _negatives(self, users: Ints, real: Bools, rng: np.random.Generator) -> NDArray[np.int32]:
        rows, columns = np.nonzero(real)
        base = (users[rows] * (self.n_items + 1))[:, None]
        drawn = self._draw((len(rows), self.negatives), rng)
        for _ in range(TRIES if self.negatives else 0):
            clash = self._taken(base + drawn)
            if not clash.any():
                break
            drawn[clash] = self._draw((int(clash.sum()),), rng)
        else:  # whoever has nearly everything: from what they lack, with the same chances
            for row in np.flatnonzero(self._taken(base + drawn).any(axis=1)) if self.negatives else ():
                lacks = np.flatnonzero(~self._taken(base[row] + np.arange(self.n_items + 1)))[1:]
                odds = np.exp(self._chances[lacks]) if self.popular else np.ones(len(lacks))
                drawn[row] = rng.choice(lacks, self.negatives, p=odds / odds.sum())
        negatives = np.zeros((*real.shape, self.negatives), dtype=np.int32)
        negatives[rows, columns] = drawn
        return negatives

    def _taken(self, pairs: Ints) -> Bools:
        """Whether the user of each pair (user x (V + 1) + item) has the item."""
        place = np.searchsorted(self._seen, pairs)
        found: Bools = self._seen[np.minimum(place, len(self._seen) - 1)] == pairs
        return found

    def _draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.int64]:
        if not self.popular:
            return rng.integers(1, self.n_items + 1, size=shape)
        return np.searchsorted(self._popularity, rng.random(shape), side="right")


def windows(log: Sequences, max_length: int) -> tuple[Ints, Ints, Ints]:
    """(user, first event, width) of every training window: width positions with width positives one step later."""
    targets = np.maximum(log.lengths - 1, 0)
    pieces = -(-targets // max_length)
    users = np.repeat(np.arange(len(log)), pieces)
    nth = runs(0 * pieces, pieces)
    ends = targets[users] - nth * max_length  # cut from the newest end, so that the newest window is full
    widths = np.minimum(ends, max_length)
    return users, log.starts[:-1][users] + ends - widths, widths


def prefixes(log: Sequences, max_length: int) -> tuple[Ints, Ints, Ints]:
    """(user, first event, width) of what came before each event but a user's first: its newest `max_length` events."""
    targets = np.maximum(log.lengths - 1, 0)
    users = np.repeat(np.arange(len(log)), targets)
    ends = 1 + runs(0 * targets, targets)
    widths = np.minimum(ends, max_length)
    return users, log.starts[:-1][users] + ends - widths, widths


def cut_by_tokens(order: Ints, widths: Ints, tokens: int) -> Iterator[Ints]:
    """Cut rows, ascending in width, into batches of at most `tokens` padded positions, but never one row alone."""
    start = 0
    while start < len(order):
        room = widths[start : start + tokens // max(int(widths[start]), 1)]
        fitting = np.count_nonzero(np.arange(1, len(room) + 1) * room <= tokens)  # the last row is the widest
        size = max(int(fitting), 2)
        if len(order) - start - size == 1:
            size += 1
        yield order[start : start + size]
        start += size


def left_padded(items: Ints, begins: Ints, widths: Ints, width: int) -> tuple[NDArray[np.int32], Bools]:
    """[B, width] items of each run, newest in the last column, 0 before the oldest; and where they are real."""
    places = _places(begins, widths, width)
    real = places >= begins[:, None]
    return np.where(real, items[np.maximum(places, 0)], 0).astype(np.int32), real


def _places(begins: Ints, widths: Ints, width: int) -> Ints:
    return (begins + widths)[:, None] - width + np.arange(width)[None, :]


def histories(
    log: Sequences, max_length: int, tokens: int, rows: Ints | None = None, pad_to: int = 0
) -> Iterator[tuple[Ints, NDArray[np.int32]]]:
    """Every user's newest `max_length` items once: (rows [B], left-padded items [B, T]), sorted by length.

    `rows` chooses users, and their order among those of one length; `pad_to`: every batch is as wide as this.
    """
    rows = np.arange(len(log)) if rows is None else rows
    widths = np.minimum(log.lengths, max_length)
    order = rows[np.argsort(widths[rows], kind="stable")]
    for some in cut_by_tokens(order, np.full(len(order), pad_to) if pad_to else widths[order], tokens):
        width = pad_to or max(int(widths[some].max()), 1)
        yield some, left_padded(log.items, log.starts[1:][some] - widths[some], widths[some], width)[0]
