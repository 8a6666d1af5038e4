from itertools import pairwise

import numpy as np
import pytest
from conftest import shop
from hypothesis import given, settings
from hypothesis import strategies as st

from lorec.attacks import ATTACKS, Bandwagon, Random, Replace, Segment, View, choose_targets, forge, known_fakes
from lorec.data import leave_two_out
from lorec.errors import ConfigError, DataError

FILLED = sorted(set(ATTACKS) - {"replace"})
"""The kinds that choose fillers; a copied history has none, and is tested by itself."""


@pytest.mark.parametrize("kind", FILLED)
class TestContract:
    @settings(deadline=None, max_examples=25)
    @given(
        share=st.floats(0.02, 0.5), count=st.integers(1, 5), length=st.one_of(st.none(), st.integers(5, 30)),
        seed=st.integers(0, 1000),
    )  # fmt: skip
    def test_keeps_the_budget_and_holds_the_targets(self, kind, split, share, count, length, seed):
        poison = forge(ATTACKS[kind](share=share, length=length, targets_each=None), split, count, seed)
        assert len(poison.profiles) == int(np.ceil(round(share * len(split), 9)))
        assert len(poison.targets) == count
        for row in range(len(poison.profiles)):
            profile = poison.profiles[row].tolist()
            assert len(set(profile)) == len(profile)
            assert set(poison.targets.tolist()) <= set(profile)
            assert min(profile) >= 1
            assert max(profile) <= len(split.catalog)
            assert length is None or len(profile) == length
            assert count <= len(profile) / 2 or length is not None

    def test_the_same_seed_makes_the_same_poison(self, kind, split):
        one, same, other = (forge(ATTACKS[kind](share=0.1), split, 3, seed) for seed in (1, 1, 2))
        assert one.profiles.digest() == same.profiles.digest()
        assert one.profiles.digest() != other.profiles.digest()

    def test_targets_may_be_dealt_out(self, kind, split):
        poison = forge(ATTACKS[kind](share=0.1, targets_each=1), split, 4, 0)
        held = [
            len(set(poison.profiles[row].tolist()) & set(poison.targets.tolist()))
            for row in range(len(poison.profiles))
        ]
        assert set(held) == {1}
        assert set(poison.targets.tolist()) <= set(poison.profiles.items.tolist())

    def test_targets_take_every_place(self, kind, split):
        poison = forge(ATTACKS[kind](share=1.0, length=6), split, 1, 0)
        places = {poison.profiles[row].tolist().index(poison.targets[0]) for row in range(len(poison.profiles))}
        assert places == set(range(6))

    def test_times_are_the_logs_own_and_in_order(self, kind, split):
        profiles = forge(ATTACKS[kind](share=0.1), split, 2, 0).profiles
        assert set(profiles.times.tolist()) <= set(split.train.times.tolist())
        assert all((np.diff(profiles.times[a:b]) >= 0).all() for a, b in pairwise(profiles.starts))

    def test_provenance_repeats_the_poison(self, kind, split):
        poison = forge(ATTACKS[kind](share=0.1), split, 3, 5)
        assert poison.provenance["attack"] == kind
        assert poison.provenance["log"] == split.train.digest()
        again = forge(ATTACKS[kind](share=0.1), split, poison.provenance["targets"], 5)
        assert again.targets.tolist() == poison.targets.tolist()

    def test_refuses_impossible_budgets(self, kind, split):
        for share in (0.0, -1.0, 1.5):
            with pytest.raises(ConfigError, match="share"):
                forge(ATTACKS[kind](share=share), split, 1)
        with pytest.raises(ConfigError, match="length is 2"):
            forge(ATTACKS[kind](length=2, share=0.1, targets_each=None), split, 3)
        with pytest.raises(ConfigError, match="targets_each is 9"):
            forge(ATTACKS[kind](targets_each=9, share=0.1), split, 3)
        with pytest.raises(ConfigError, match="can't hold"):
            forge(ATTACKS[kind](targets_each=1, share=0.01), split, 3)


def test_bandwagon_keeps_popular_company(split):
    counts = split.train.counts(len(split.catalog))
    bandwagon, uniform = (forge(kind(share=1.0, length=12), split, 2, 0).profiles for kind in (Bandwagon, Random))
    assert counts[bandwagon.items].mean() > counts[uniform.items].mean() * 1.1
    targets = forge(Bandwagon(share=1.0, length=12), split, 2, 0).targets
    ranked = [n for n in np.argsort(-counts[1:], kind="stable") + 1 if n not in targets]
    popular = set(ranked[: round(0.1 * len(split.catalog))])
    profile = bandwagon[0].tolist()
    assert len(popular & set(profile)) >= 5  # half of ten fillers, or all six that there are


def test_random_fillers_are_uniform(split):
    poison = forge(Random(share=1.0, length=20), split, 2, 0)
    counts = np.bincount(poison.profiles.items, minlength=61)[1:]
    fillers = np.delete(counts, poison.targets - 1)
    assert fillers.min() > 0.4 * fillers.mean()


def test_a_segment_is_what_the_targets_holders_hold(split):
    attack = Segment(share=0.5, segment=5, stray=0.0)
    poison = forge(attack, split, 3, 0, "random")
    for row in range(len(poison.profiles)):
        profile = set(poison.profiles[row].tolist())
        (target,) = profile & set(poison.targets.tolist())
        together = np.zeros(len(split.catalog) + 1, dtype=int)
        for user in range(len(split)):
            history = split.train[user].tolist()
            if target in history:
                together[history] += 1
        together[poison.targets] = 0
        nearest = set(np.argsort(-together, kind="stable")[:5].tolist())
        worst = together[list(nearest)].min()
        held = sum(together[item] >= worst for item in profile - {target})
        assert held >= min(5, len(profile) - 1)


def test_strays_are_the_share_that_was_asked(split):
    poison = forge(Segment(share=1.0, length=16, segment=40, stray=0.4), split, 1, 0)
    assert set(poison.profiles.lengths) == {16}
    assert len(set(poison.profiles[0].tolist())) == 16
    with pytest.raises(ConfigError, match=r"stray 1\.5"):
        forge(Segment(share=0.1, stray=1.5), split, 1)


class TestReplace:
    @settings(deadline=None, max_examples=25)
    @given(share=st.floats(0.05, 1.0), late=st.floats(0.1, 1.0), seed=st.integers(0, 1000))
    def test_only_late_targets_are_false(self, split, share, late, seed):
        poison = forge(Replace(share=share, late=late), split, 3, seed, "random")
        assert len(poison.profiles) == int(np.ceil(round(share * len(split), 9)))
        assert set(poison.profiles.items.tolist()) >= set(poison.targets.tolist())
        genuine = [split.train[user] for user in range(len(split))]
        for row in range(len(poison.profiles)):
            profile = poison.profiles[row]
            (place,) = np.flatnonzero(np.isin(profile, poison.targets))
            assert place >= len(profile) - max(1, round(len(profile) * late))
            rest = np.delete(profile, place)
            assert any(len(one) == len(profile) and (np.delete(one, place) == rest).all() for one in genuine)

    def test_takes_the_newest_items(self, split):
        poison = forge(Replace(share=0.3, length=5), split, 2, 0, "random")
        assert set(poison.profiles.lengths) == {5}
        ends = {tuple(split.train[user][-5:-3]) for user in range(len(split))}
        assert {tuple(poison.profiles[row][:2]) for row in range(len(poison.profiles))} <= ends

    def test_repeats_itself(self, split):
        one, same, other = (forge(Replace(share=0.2), split, 3, seed).profiles.digest() for seed in (1, 1, 2))
        assert one == same != other

    @pytest.mark.parametrize(
        ("attack", "message"),
        [
            (Replace(share=0.1, late=0.0), "late is 0.0"),
            (Replace(share=0.1, length=1), "length is 1"),
            (Replace(share=0.1, length=500), "no history of 500 items or more"),
            (Replace(share=0.01), "can't hold"),
        ],
    )
    def test_says_what_is_impossible(self, split, attack, message):
        with pytest.raises(ConfigError, match=message):
            forge(attack, split, 3)


def test_targets_follow_the_rule(split):
    counts = split.train.counts(len(split.catalog))
    median = np.median(counts[1:])
    assert (counts[choose_targets(split, 5, "unpopular", 1)] <= median).all()
    assert (counts[choose_targets(split, 3, "popular", 1)] >= median).all()
    assert len(set(choose_targets(split, 20, "random", 1).tolist())) == 20
    with pytest.raises(ConfigError, match="31 targets wanted from 30"):
        choose_targets(split, 31, "unpopular")


def test_a_target_must_be_in_the_catalogue(split):
    with pytest.raises(DataError, match="no item 'nothing'"):
        forge(Random(share=0.1), split, ["i001", "nothing"])


@pytest.mark.parametrize("kind", FILLED)
@pytest.mark.parametrize("count", [5, 30, 59])
def test_many_targets_for_a_small_catalogue(kind, count, split):
    profiles = forge(ATTACKS[kind](share=0.2, targets_each=None), split, count, 0, "random").profiles
    assert int(profiles.lengths.max()) < 60


def test_a_view_holds_no_held_out_item(split):
    assert set(View.__dataclass_fields__) == {"log", "n_items"}
    assert View(split.train, len(split.catalog)).log is split.train


class TestKnownFakes:
    def digests(self, known):
        return [one.profiles.digest() for one in known]

    def test_leaves_the_judged_kind_out(self, split):
        others = known_fakes(split, without="bandwagon", share=0.2, seed=1)
        kinds = sorted(set(ATTACKS) - {"bandwagon"})
        assert self.digests(others) == self.digests(known_fakes(split, kinds=kinds, share=0.2, seed=1))
        assert self.digests(others) != self.digests(known_fakes(split, share=0.2, seed=1))
        assert all(one.provenance["kinds"] == kinds for one in others)

    def test_a_mixture_shares_the_budget_of_its_round_and_rounds_are_of_all_sizes(self, split):
        sizes = [len(one.profiles) for one in known_fakes(split, share=0.2, rounds=5)]
        assert sizes == [16, 32, 64, 8, 16]  # of 80 users
        assert len(known_fakes(split, share=0.8, rounds=3)[2].profiles) == 80  # no more than there are users

    def test_rounds_differ_and_more_of_them_change_none(self, split):
        few, more = known_fakes(split, share=0.2, rounds=2), known_fakes(split, share=0.2, rounds=4)
        assert self.digests(few) == self.digests(more)[:2]
        assert len(set(self.digests(more))) == 4

    def test_every_target_is_pushed_by_some_profile(self, split):
        for one in known_fakes(split, share=0.4, seed=3):
            assert set(one.targets) <= set(one.profiles.items)

    def test_short_histories_get_profiles_with_fewer_targets(self):
        short = leave_two_out(shop(users=200, items=100), last=4)
        assert all(len(one.profiles) for one in known_fakes(short, without="bandwagon", share=0.1))

    def test_refuses_to_know_nothing(self, split):
        with pytest.raises(ConfigError, match="no kind is left"):
            known_fakes(split, kinds=[])
        with pytest.raises(ConfigError, match="1 or more"):
            known_fakes(split, rounds=0)
        with pytest.raises(ConfigError, match="did you mean 'random'"):
            known_fakes(split, kinds=["randm"])
