import dataclasses
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from conftest import world
from hypothesis import given, settings
from hypothesis import strategies as st

from lorec.data import (
    Catalog,
    Dataset,
    Feed,
    Poison,
    Protocol,
    Sequences,
    Weights,
    _alike,
    append,
    cut_by_tokens,
    histories,
    inject,
    leave_two_out,
    left_padded,
    stream,
    whole_histories,
    windows,
)
from lorec.errors import ConfigError, DataError, RunError

lists = st.lists(st.lists(st.integers(1, 9), max_size=12), min_size=1, max_size=8)


def frame(rows: list[tuple[str, str, int]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"user": pl.String, "item": pl.String, "time": pl.Int64}, orient="row")


def dataset(rows: list[tuple[str, str, int]]) -> Dataset:
    items = sorted({item for _, item, _ in rows})
    return Dataset("hand", frame(rows), pl.DataFrame({"item": items, "title": [f"the {one}" for one in items]}))


def by_user(split):
    names = split.catalog.items["item"].to_list()
    return {user: [names[n - 1] for n in split.train[row]] for row, user in enumerate(split.users)}


class TestSequences:
    @given(lists)
    def test_packs_and_unpacks(self, given_lists):
        packed = Sequences.of(given_lists)
        assert [packed[row].tolist() for row in range(len(packed))] == given_lists

    @given(lists, st.data())
    def test_take_is_fancy_indexing(self, given_lists, data):
        rows = data.draw(st.lists(st.integers(0, len(given_lists) - 1), max_size=10))
        taken = Sequences.of(given_lists).take(np.array(rows, dtype=np.int64))
        assert [taken[n].tolist() for n in range(len(taken))] == [given_lists[row] for row in rows]

    @given(lists, lists)
    def test_extended_keeps_both(self, first, second):
        both = Sequences.of(first).extended(Sequences.of(second))
        assert [both[row].tolist() for row in range(len(both))] == first + second

    @given(lists, st.data())
    def test_append_puts_one_item_after_each(self, given_lists, data):
        more = data.draw(st.lists(st.integers(0, 9), min_size=len(given_lists), max_size=len(given_lists)))
        longer = append(Sequences.of(given_lists), np.array(more, dtype=np.int32))
        wanted = [one + ([item] if item else []) for one, item in zip(given_lists, more, strict=True)]
        assert [longer[row].tolist() for row in range(len(longer))] == wanted

    def test_a_property_is_asked_for_as_somebody_types_it(self):
        items = pl.DataFrame(
            {
                "item": ["a", "b", "c"], "title": ["A", "B", "C"],
                "kinds": [["tea", "cup"], ["tea"], None], "volume": [3.0, 3.5, None], "brand": ["3", None, "x"],
            }
        )  # fmt: skip
        catalog = Catalog(items)
        for column, value, found in (
            ("kinds", "tea", "ab"), ("kinds", "te", ""), ("volume", "3", "a"), ("volume", "x", ""), ("brand", "3", "a"),
        ):  # fmt: skip
            assert "".join(items["item"].filter(catalog.where({column: value}))) == found, (column, value)

    def test_the_digest_of_a_split_is_of_all_that_may_be_read(self, split):
        items, record = split.catalog.items, split.record
        kept = record | {"protocol": record["protocol"] | {"repeats": "keep"}}
        brands = items.with_columns(brand=pl.Series([[f"b{n % 3}"] for n in range(len(items))]))
        others = [
            dataclasses.replace(split, catalog=Catalog(brands)),
            dataclasses.replace(split, catalog=Catalog(brands.with_columns(brand=pl.lit("b")))),
            dataclasses.replace(split, record=kept),
            dataclasses.replace(split, train=dataclasses.replace(split.train, times=split.train.times + 1)),
        ]
        assert len({split.digest(), *(other.digest() for other in others)}) == 5
        assert dataclasses.replace(split).digest() == split.digest()

    def test_digest_tells_content_apart(self):
        assert Sequences.of([[1, 2], [3]]).digest() != Sequences.of([[1], [2, 3]]).digest()
        assert Sequences.of([[1, 2], [3]]).digest() == Sequences.of([[1, 2], [3]]).digest()


class TestSplit:
    def test_leaves_the_newest_two_out(self):
        rows = [("a", item, time) for time, item in enumerate("pqrst")] + [
            ("b", item, time) for time, item in enumerate("tsq")
        ]
        split = leave_two_out(dataset(rows))
        names = split.catalog.items["item"].to_list()
        assert by_user(split) == {"a": ["p", "q", "r"], "b": ["t"]}
        assert [names[n - 1] for n in split.valid] == ["s", "s"]
        assert [names[n - 1] for n in split.test] == ["t", "q"]

    def test_the_order_of_the_file_does_not_matter(self, tiny):
        shuffled = dataclasses.replace(tiny, interactions=tiny.interactions.sample(fraction=1, shuffle=True, seed=3))
        one, other = leave_two_out(tiny, seed=5), leave_two_out(shuffled, seed=5)
        assert one.train.digest() == other.train.digest()
        assert (one.test == other.test).all()

    def test_ties_are_seeded_and_do_not_follow_item_ids(self):
        rows = [(f"u{user:03d}", f"i{item}", 0) for user in range(200) for item in range(6)]
        last = [leave_two_out(dataset(rows), seed=seed).test for seed in (1, 1, 2)]
        assert (last[0] == last[1]).all()
        assert (last[0] != last[2]).any()
        counts = np.bincount(last[0], minlength=7)[1:]
        assert counts.min() > 10  # each of six items is the newest for about 33 of 200 users
        stored = leave_two_out(dataset(rows), ties="stored")
        assert (stored.test == 6).all()

    def test_ties_only_move_within_a_time(self, tiny):
        split = leave_two_out(tiny, repeats="keep", last=0, seed=9)
        assert all((np.diff(split.train.times[a:b]) >= 0).all() for a, b in pairwise(split.train.starts))

    def test_first_occurrences_or_all(self):
        rows = [("a", item, time) for time, item in enumerate("pqpprst")]
        assert by_user(leave_two_out(dataset(rows))) == {"a": ["p", "q", "r"]}
        kept = leave_two_out(dataset(rows), repeats="keep")
        assert by_user(kept) == {"a": ["p", "q", "p", "p", "r"]}
        assert kept.repeats

    @settings(max_examples=60)
    @given(st.lists(st.tuples(st.text("aé-0 ", min_size=1, max_size=3), st.text("xyzß", max_size=2)), min_size=1))
    def test_against_plain_python(self, pairs):
        """Whatever the ids are: everybody's first occurrences in time, users and items in the order of their ids."""
        wanted = {user: list(dict.fromkeys(i for u, i in pairs if u == user)) for user in sorted({u for u, _ in pairs})}
        wanted = {user: items for user, items in wanted.items() if len(items) > 2}
        rows = [(user, item, time) for time, (user, item) in enumerate(pairs)]
        np.random.default_rng(len(rows)).shuffle(rows)
        if not wanted:
            with pytest.raises(DataError, match="no user is left"):
                leave_two_out(dataset(rows))
            return
        split = leave_two_out(dataset(rows))
        assert split.users.to_list() == list(wanted)
        assert by_user(split) == {user: items[:-2] for user, items in wanted.items()}
        assert split.catalog.items["item"].to_list() == sorted({item for items in wanted.values() for item in items})

    def test_ids_of_one_hash_are_not_taken_for_one(self):
        keys, others = np.array([[7, 3, 7, 3], [1, 2, 1, 2]], dtype=np.uint64)
        order, first, sizes = _alike(keys, others)
        assert (sorted(order[:2]), sorted(order[2:]), list(first), list(sizes)) == ([1, 3], [0, 2], [0, 2], [2, 2])
        assert _alike(keys, np.array([1, 2, 5, 2], dtype=np.uint64)) is None

    def test_core_goes_on_until_nothing_changes(self):
        rows = [(u, i, t) for u in "abcd" for t, i in enumerate("pqrs")]
        rows += [
            ("e", "p", 0),
            ("e", "q", 1),
            ("e", "z", 2),
            ("e", "y", 3),
            ("f", "z", 0),
            ("f", "y", 1),
            ("f", "x", 2),
        ]
        split = leave_two_out(dataset(rows), k_core=3)
        assert sorted(split.users) == list("abcd")
        assert split.catalog.items["item"].to_list() == list("pqrs")

    @settings(max_examples=30)
    @given(st.integers(2, 4), st.integers(0, 100))
    def test_core_against_brute_force(self, k, seed):
        rng = np.random.default_rng(seed)
        pairs = {(f"u{rng.integers(12)}", f"i{rng.integers(10)}") for _ in range(60)}
        rows = [(user, item, time) for time, (user, item) in enumerate(sorted(pairs))]
        kept = set(pairs)
        while True:
            users = [user for user, _ in kept]
            items = [item for _, item in kept]
            narrower = {(u, i) for u, i in kept if users.count(u) >= k and items.count(i) >= k}
            if narrower == kept:
                break
            kept = narrower
        long_enough = {u for u, _ in kept if sum(user == u for user, _ in kept) >= 3}
        if not long_enough:
            with pytest.raises(DataError, match="no user is left"):
                leave_two_out(dataset(rows), k_core=k)
        else:
            split = leave_two_out(dataset(rows), k_core=k)
            assert set(split.users) == long_enough
            assert split.train.starts[-1] + 2 * len(split) == sum(u in long_enough for u, _ in kept)

    def test_keeps_the_newest_training_items(self):
        rows = [("a", f"i{n:02d}", n) for n in range(10)]
        split = leave_two_out(dataset(rows), last=3)
        assert by_user(split) == {"a": ["i05", "i06", "i07"]}

    def test_integers_and_text_give_the_same_histories(self):
        rng = np.random.default_rng(0)
        log = pl.DataFrame(
            {"user": np.repeat(np.arange(10, 30), 5), "item": rng.integers(10, 90, 100), "time": np.arange(100)}
        )
        items = pl.DataFrame({"item": range(10, 90), "title": [str(n) for n in range(10, 90)]})
        whole = leave_two_out(Dataset("n", log, items))
        text = leave_two_out(Dataset("t", log.with_columns(pl.col("user", "item").cast(pl.String)), items))
        assert by_user(whole) == by_user(text)

    def test_times_that_need_many_bits_take_the_slow_road_to_the_same_place(self):
        rows = [(f"u{u}", f"i{(u * 7 + n) % 11}", n * 3 + u) for u in range(20) for n in range(6)]
        wide = [(u, i, t * (2**56) // 7) for u, i, t in rows]
        assert leave_two_out(dataset(rows)).train.items.tolist() == leave_two_out(dataset(wide)).train.items.tolist()

    def test_the_record_says_what_each_step_left(self, split):
        assert [step["step"] for step in split.record["steps"]] == ["read", "first occurrences", "users of 3 or more"]
        assert split.record["protocol"]["ties"] == "seeded"
        assert 0 < split.record["share of neighbouring events at one time"] < 1

    def test_without_time_the_file_is_the_order(self):
        rows = frame([("a", item, 0) for item in "zyxwv"]).drop("time")
        split = leave_two_out(Dataset("h", rows, pl.DataFrame({"item": list("vwxyz"), "title": list("vwxyz")})))
        assert by_user(split) == {"a": ["z", "y", "x"]}
        assert split.train.times is None

    def test_refuses_what_leaves_nothing(self, tiny):
        with pytest.raises(DataError, match="the log is empty"):
            leave_two_out(dataclasses.replace(tiny, interactions=tiny.interactions.clear()))
        with pytest.raises(DataError, match=r"no user is left to train on \(read: 80 users"):
            leave_two_out(tiny, k_core=1000)
        with pytest.raises(ConfigError, match="3 or more"):
            Protocol(min_length=2)


class TestCatalog:
    def test_numbers_and_ids_are_inverse(self, split):
        numbers = split.catalog.numbers(["i003", "i001"])
        assert split.catalog.ids(numbers) == ["i003", "i001"]

    def test_suggests_the_nearest_id(self, split):
        with pytest.raises(DataError, match="no item 'i0035' in the catalogue of 60 items; did you mean 'i03"):
            split.catalog.numbers(["i0035"])

    def test_saves_and_refuses_damage(self, split, tmp_path):
        split.catalog.save(tmp_path / "c.parquet")
        assert Catalog.load(tmp_path / "c.parquet").items.equals(split.catalog.items)
        (tmp_path / "c.parquet").write_bytes(b"nothing")
        with pytest.raises(RunError, match="not a saved catalogue"):
            Catalog.load(tmp_path / "c.parquet")


class TestInject:
    def test_fraudsters_train_whole_and_are_never_held_out(self, split):
        poison = Poison(Sequences.of([[1, 2, 3, 4], [5, 6]]), np.array([1], dtype=np.int32), {})
        bad = inject(split, poison, seed=1)
        rows = np.flatnonzero(bad.fraudsters)
        assert sorted(bad.train[row].tolist() for row in rows) == [[1, 2, 3, 4], [5, 6]]
        assert not bad.valid[rows].any()
        assert not bad.test[rows].any()
        assert set(bad.genuine()) | set(rows) == set(range(len(bad)))

    @settings(max_examples=20)
    @given(st.integers(0, 1000))
    def test_clean_rows_are_untouched_wherever_they_land(self, seed):
        split = leave_two_out(world(users=12))
        bad = inject(split, Poison(Sequences.of([[1, 2, 3]] * 3), np.array([1], dtype=np.int32), {}), seed)
        before = {
            user: (split.train[row].tolist(), split.valid[row], split.test[row]) for row, user in enumerate(split.users)
        }
        after = {bad.users[int(row)]: (bad.train[row].tolist(), bad.valid[row], bad.test[row]) for row in bad.genuine()}
        assert before == after

    def test_rows_are_shuffled(self, split):
        poison = Poison(Sequences.of([[1, 2]] * 40), np.array([1], dtype=np.int32), {})
        places = np.flatnonzero(inject(split, poison, seed=2).fraudsters)
        assert places.min() < 20
        assert places.max() > len(split)
        assert abs(places.mean() - (len(split) + 40) / 2) < 15


class TestFeed:
    @settings(max_examples=40)
    @given(lists, st.integers(1, 5), st.integers(1, 60), st.integers(0, 99))
    def test_every_event_but_the_first_is_a_positive_once(self, given_lists, max_length, tokens, seed):
        log = Sequences.of(given_lists)
        feed = Feed(log, 20, max_length, tokens)
        seen = []
        for batch in feed.epoch(np.random.default_rng(seed)):
            real = batch.positives > 0
            assert (batch.positives[real] == log.items[batch.events[real]]).all()
            assert (batch.history[real] == log.items[batch.events[real] - 1]).all()
            assert ((batch.negatives > 0).all(axis=2) == real).all()
            for row, user in enumerate(batch.users):
                assert not set(batch.negatives[row].flatten()) & set(log[user].tolist())
            seen.extend(batch.events[real].tolist())
        first = set(log.starts[:-1][log.lengths > 0].tolist())
        assert sorted(seen) == [event for event in range(len(log.items)) if event not in first]

    def test_padding_is_on_the_left_and_batches_are_of_like_length(self, log):
        feed = Feed(log, 60, 50, 64)
        waste = [float((batch.positives == 0).mean()) for batch in feed.epoch(np.random.default_rng(0))]
        assert np.mean(waste) < 0.1
        for batch in feed.epoch(np.random.default_rng(0)):
            assert (np.diff((batch.history > 0).astype(int), axis=1) >= 0).all()

    def test_refuses_a_user_who_took_everything(self):
        with pytest.raises(DataError, match="every item"):
            Feed(Sequences.of([[1, 2, 3], [1, 2]]), 3, 5)

    @pytest.mark.parametrize("popular", [False, True])
    def test_who_has_nearly_everything_costs_no_more_than_others(self, popular):
        """A crawler's account: two of two thousand items are left to it, by popularity the rarest."""
        log = Sequences.of([list(range(1, 1999)), *([[1, 2, 3]] * 200), *([[1999, 4]] * 5)])
        feed = Feed(log, 2000, 50, negatives=3, popular=popular)
        drawn = np.concatenate([
            batch.negatives[batch.users == 0].flatten() for batch in feed.epoch(np.random.default_rng(0))
        ])  # fmt: skip
        counts = np.bincount(drawn, minlength=2001)[[1999, 2000]]
        assert counts.sum() == (drawn > 0).sum() == 3 * 1997
        wanted = 6 / 7 if popular else 1 / 2
        assert abs(counts[0] / counts.sum() - wanted) < 0.03

    def test_negatives_are_uniform_over_the_unseen(self):
        feed = Feed(Sequences.of([[1, 2]] * 50), 6, 5, negatives=40)
        drawn = np.concatenate([b.negatives.flatten() for b in feed.epoch(np.random.default_rng(0))])
        counts = np.bincount(drawn, minlength=7)
        assert counts[:3].sum() == 0
        assert counts[3:].min() > 0.8 * counts[3:].mean()

    @given(st.lists(st.integers(1, 50), min_size=2, max_size=60), st.integers(1, 300))
    def test_batches_keep_the_budget_and_no_row_is_alone(self, widths, tokens):
        widths = np.sort(np.array(widths))
        parts = list(cut_by_tokens(np.arange(len(widths)), widths, tokens))
        assert np.concatenate(parts).tolist() == list(range(len(widths)))
        assert all(len(part) >= 2 for part in parts)
        assert all(len(part) <= 3 or (len(part) - 1) * widths[part[-2]] <= tokens for part in parts)

    def test_windows_cut_from_the_newest_end(self):
        users, begins, widths = windows(Sequences.of([[1, 2, 3, 4, 5, 6], [7], []]), 3)
        assert (users.tolist(), begins.tolist(), widths.tolist()) == ([0, 0], [2, 0], [3, 2])

    def test_histories_come_once_each_with_the_newest_kept(self):
        log = Sequences.of([[1, 2, 3, 4], [5], [], [6, 7]])
        got = {
            int(row): [x for x in line if x]
            for rows, h in histories(log, 3, 6)
            for row, line in zip(rows, h.tolist(), strict=True)
        }
        assert got == {0: [2, 3, 4], 1: [5], 2: [], 3: [6, 7]}

    def test_left_padded(self):
        padded, real = left_padded(np.array([4, 5, 6], dtype=np.int32), np.array([0, 1]), np.array([1, 2]), 3)
        assert padded.tolist() == [[0, 0, 4], [0, 5, 6]]
        assert (real == (padded > 0)).all()


class TestWeights:
    def test_users_and_events_multiply(self, log):
        users = np.linspace(0, 1, len(log), dtype=np.float32)
        events = np.linspace(1, 2, len(log.items), dtype=np.float32)
        batch = next(Feed(log, 60, 50, 64).epoch(np.random.default_rng(0)))
        wanted = users[batch.users][:, None] * events[batch.events]
        np.testing.assert_allclose(Weights(users, events).of(batch), wanted)
        assert (Weights().of(batch) == 1).all()

    @pytest.mark.parametrize("bad", [-0.1, np.nan, np.inf])
    def test_refuses_what_is_no_weight(self, bad):
        with pytest.raises(DataError, match="finite"):
            Weights(users=np.array([1, bad], dtype=np.float32))


def test_distinct_items_of_each_user():
    log = Sequences.of([[2, 1, 2], [], [3, 3], [1]])
    assert [row.tolist() for row in map(log.distinct().__getitem__, range(4))] == [[1, 2], [], [3], [1]]
    once = Sequences.of([[2, 1], []])
    assert once.distinct() is once


def test_streams_differ_by_purpose_and_repeat_by_seed():
    assert stream(1, "a").integers(10**9) == stream(1, "a").integers(10**9)
    assert stream(1, "a").integers(10**9) != stream(1, "b").integers(10**9)


def test_whole_histories_are_in_order_of_time_and_strangers_are_named(split):
    log = frame(
        [("x", "i003", 5), ("x", "new", 3), ("x", "i001", 2), ("y", "i002", 1), ("z", "other", 1), ("z", "new", 2)]
    )
    users, found, strangers = whole_histories(Dataset("h", log, pl.DataFrame()), split.catalog)
    assert users.to_list() == ["x", "y", "z"]
    assert [split.catalog.ids(found[row]) for row in range(3)] == [["i001", "i003"], ["i002"], []]
    assert strangers == ["new", "other"]


def test_whole_histories_repeat_as_the_training_log_does(split):
    log = frame([("x", f"i00{item}", time) for time, item in enumerate([1, 2, 1, 3, 1, 1])])
    kept, first = (
        whole_histories(Dataset("h", log, pl.DataFrame()), split.catalog, repeats)[1] for repeats in ("keep", "first")
    )
    assert split.catalog.ids(kept[0]) == [f"i00{item}" for item in (1, 2, 1, 3, 1, 1)]
    assert split.catalog.ids(first[0]) == ["i001", "i002", "i003"]


class TestHidden:
    ITEMS = pl.DataFrame({"item": ["a", "b", "c"], "title": ["A", None, "A"], "kind": [1, 2, None]})

    def test_what_is_blocked_or_lacks_a_value(self):
        catalog = Catalog(self.ITEMS)
        assert catalog.hidden([], {}).tolist() == []
        assert catalog.hidden(["b"], {}).tolist() == [2]
        assert catalog.hidden([], {"title": "A"}).tolist() == [2]
        assert catalog.hidden(["a"], {"title": "A"}).tolist() == [1, 2]
        assert catalog.hidden([], {"kind": "2"}).tolist() == [1, 3]

    def test_says_what_is_not_there(self):
        catalog = Catalog(self.ITEMS)
        for wrong, said in (
            ((["x"], {}), "no item 'x'"),
            (([], {"colour": "red"}), "no column 'colour'"),
            ((["b"], {"kind": "2"}), "none is left"),
        ):
            with pytest.raises(DataError, match=said):
                catalog.hidden(*wrong)
