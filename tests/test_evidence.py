"""Evidence about items: the counts against written-out references, and what they see in a small poisoned world."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorec.attacks import Bandwagon, Random, Replace, Segment, forge
from lorec.data import Sequences, inject
from lorec.evidence import _company, _normal_scores, _without_holders, _World, gather
from lorec.text import Hash, TextVectors

HISTORIES = st.lists(st.lists(st.integers(1, 8), min_size=1, max_size=7, unique=True), min_size=2, max_size=12)


def pairs_of(histories, rng=None):
    log = Sequences.of(histories)
    return _World.of(log, 8, 50, rng or np.random.default_rng(0))


class TestCounts:
    @settings(max_examples=100, deadline=None)
    @given(HISTORIES)
    def test_pairs_are_those_of_every_history(self, histories):
        made = pairs_of(histories)
        wanted = {}
        for history in histories:
            for one, other in itertools.permutations(history, 2):
                wanted[one * 9 + other] = wanted.get(one * 9 + other, 0) + 1
        assert dict(zip(made.known.tolist(), made.counts.tolist(), strict=True)) == wanted

    @settings(max_examples=100, deadline=None)
    @given(HISTORIES)
    def test_company_leaves_the_asking_user_out(self, histories):
        """`strangers`: the mean over holders of the share of their other items that nobody else has beside it."""
        found = _company(pairs_of(histories))["strangers"]
        for item in range(1, 9):
            shares = []
            for user, history in enumerate(histories):
                if item in history:
                    others = [other for other in history if other != item]
                    unknown = [
                        not any(item in h and other in h for u, h in enumerate(histories) if u != user)
                        for other in others
                    ]
                    shares.append(np.mean(unknown) if others else 0.0)
            assert found[item] == pytest.approx(np.mean(shares) if shares else 0.0)

    @settings(max_examples=100, deadline=None)
    @given(HISTORIES, st.integers(1, 8), st.integers(1, 8), st.integers(1, 8))
    def test_holders_of_an_item_do_not_vouch_for_a_pair(self, histories, item, left, right):
        made = pairs_of(histories)
        asked = (np.array([left * 9 + right]), np.array([item]))
        found = _without_holders(made, *asked, np.random.default_rng(0))[0]
        wanted = sum(left != right and {left, right} <= set(h) and item not in h for h in histories)
        assert found == pytest.approx(wanted)

    def test_a_long_history_is_sampled_within_itself(self):
        log = Sequences.of([range(1, 9), [1, 2]])
        made = _World.of(log, 8, 3, np.random.default_rng(0))
        assert np.bincount(made.asking).tolist() == [3] * 8 + [1, 1]
        assert (made.pair // 9 != made.pair % 9).all()
        assert (
            made.counts[np.isin(made.known, [1 * 9 + 2, 2 * 9 + 1], invert=True)] <= 1
        ).all()  # nobody is drawn twice

    def test_a_user_who_takes_an_item_again_does_not_vouch_for_it(self):
        again, once = ([[1, 2, 1, 2], [3, 1, 4]], [[1, 2], [3, 1, 4]])
        for name, values in _company(pairs_of(again)).items():
            np.testing.assert_array_equal(values, _company(pairs_of(once))[name])


class TestScores:
    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-5, 5))
    def test_neither_scale_nor_shift_of_a_measure_matters(self, seed, scale, shift):
        rng = np.random.default_rng(seed)
        values, holders = rng.standard_normal(300), rng.integers(3, 100, 300)
        told = np.ones(300, dtype=bool)
        one, other = (_normal_scores(v, holders, told) for v in (values, values * scale + shift))
        np.testing.assert_allclose(one, other, atol=1e-3)

    def test_honest_items_are_about_standard_normal_at_every_popularity(self):
        rng = np.random.default_rng(0)
        holders = rng.integers(3, 500, 4000)
        values = holders**0.5 + rng.gumbel(size=4000) * holders**0.25  # skewed, and wider where popular
        scores = _normal_scores(values, holders, np.ones(4000, dtype=bool))
        for some in (holders < 100, (holders > 100) & (holders < 300), holders > 300):
            assert abs(scores[some].mean()) < 0.15
            assert 0.85 < scores[some].std() < 1.15

    @given(st.integers(0, 100))
    def test_tied_values_share_the_middle_of_their_ranks(self, seed):
        rng = np.random.default_rng(seed)
        values = np.where(rng.random(600) < 0.6, 0.0, rng.exponential(size=600))
        scores = _normal_scores(values, np.full(600, 9), np.ones(600, dtype=bool))
        assert np.ptp(scores[values == 0]) == 0
        assert scores[values == 0][0] == pytest.approx(-0.52, abs=0.35)  # the middle of the lower 60 %
        assert scores[0] == _normal_scores(values[::-1], np.full(600, 9), np.ones(600, dtype=bool))[-1]
        assert (_normal_scores(np.ones(600), np.full(600, 9), np.ones(600, dtype=bool)) == 0).all()

    def test_items_of_one_popularity_are_judged_together_whatever_their_numbers(self):
        values = np.linspace(0, 1, 2000)
        scores = _normal_scores(values, np.full(2000, 3), np.ones(2000, dtype=bool))
        assert abs(scores.mean()) < 0.02
        assert scores[0] < -2 < 2 < scores[-1]

    def test_an_outlier_goes_beyond_the_ends_of_the_crowd(self):
        values = np.append(np.random.default_rng(0).standard_normal(500), 8.0)
        scores = _normal_scores(values, np.full(501, 20), np.ones(501, dtype=bool))
        assert scores[-1] > 5
        assert scores[:-1].max() < 4.5


def told(split, vectors=True):
    text = TextVectors(split.catalog, Hash(dim=64)).items() if vectors else None
    return gather(split.train, len(split.catalog), text, np.random.default_rng(0))


class TestWhatItSees:
    @pytest.mark.parametrize(
        ("attack", "view"),
        [
            (Random(share=0.02), "collusion"),
            (Bandwagon(share=0.02), "collusion"),
            (Segment(share=0.02), "collusion"),
            (Replace(share=0.02), "incoherence"),
        ],
    )
    @pytest.mark.parametrize("vectors", [True, False])
    def test_targets_stand_out_in_one_view(self, town, attack, view, vectors):
        poison = forge(attack, town, 5, seed=5)
        scores = getattr(told(inject(town, poison, seed=5), vectors), view)
        honest = np.delete(scores[1:], poison.targets - 1)
        above = [(honest > scores[target]).mean() for target in poison.targets]
        assert np.mean(above) < 0.1

    def test_the_order_of_users_does_not_matter(self, town):
        """What is counted is the same; only the draws of pairs of holders differ."""
        text, n = TextVectors(town.catalog, Hash(dim=64)).items(), len(town.catalog)
        moved = town.train.take(np.random.default_rng(1).permutation(len(town)))
        one, other = (gather(log, n, text, np.random.default_rng(0), partners=50) for log in (town.train, moved))
        for name in ("fit", "strangers", "concentration", "text fit"):
            np.testing.assert_allclose(one.measures[name], other.measures[name], atol=1e-4)

    def test_an_item_without_text_is_not_judged_by_it(self, town):
        text = TextVectors(town.catalog, Hash(dim=64)).items()
        text[[5, 6, 7]] = 0
        found = gather(town.train, len(town.catalog), text, np.random.default_rng(0))
        assert (found.measures["text fit"][[5, 6, 7]] == 0).all()

    def test_items_with_few_holders_and_padding_are_not_spoken_of(self):
        log = Sequences.of([[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 4]])
        found = gather(log, 4, None, np.random.default_rng(0))
        assert found.surprise[[0, 4]].tolist() == [0, 0]
        assert all(np.isfinite(values).all() for values in found.measures.values())

    def test_the_smallest_logs_do_not_break(self):
        for histories in ([[1]], [[1], [1], [1]], [[1, 2]] * 3, [[1, 1, 1]] * 3):
            found = gather(Sequences.of(histories), 3, np.ones((4, 2)), np.random.default_rng(0))
            assert np.isfinite(found.collusion).all()
            assert np.isfinite(found.surprise).all()
