from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorec.attacks import ATTACKS, Bandwagon, Random, View, choose_targets, forge, known_fakes
from lorec.errors import ConfigError, DataError


@pytest.mark.parametrize("kind", sorted(ATTACKS))
class TestContract:
    @settings(deadline=None, max_examples=25)
    @given(
        share=st.floats(0.02, 0.5), count=st.integers(1, 5), length=st.one_of(st.none(), st.integers(5, 30)),
        seed=st.integers(0, 1000),
    )  # fmt: skip
    def test_keeps_the_budget_and_holds_the_targets(self, kind, split, share, count, length, seed):
        poison = forge(ATTACKS[kind](share=share, length=length), split, count, seed)
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
            forge(ATTACKS[kind](length=2, share=0.1), split, 3)
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


@pytest.mark.parametrize("kind", sorted(ATTACKS))
@pytest.mark.parametrize("count", [5, 30, 59])
def test_many_targets_for_a_small_catalogue(kind, count, split):
    profiles = forge(ATTACKS[kind](share=0.2), split, count, 0, "random").profiles
    assert int(profiles.lengths.max()) < 60


def test_a_view_holds_no_held_out_item(split):
    assert set(View.__dataclass_fields__) == {"log", "n_items"}
    assert View(split.train, len(split.catalog)).log is split.train


class TestKnownFakes:
    def test_leaves_the_judged_kind_out(self, split):
        only_random = known_fakes(split, without="bandwagon", share=0.2, seed=1)
        assert only_random.digest() == known_fakes(split, kinds=["random"], share=0.2, seed=1).digest()
        assert only_random.digest() != known_fakes(split, kinds=["bandwagon"], share=0.2, seed=1).digest()

    def test_a_mixture_shares_the_budget(self, split):
        assert len(known_fakes(split, share=0.2)) == 16

    def test_has_targets_of_its_own_and_genuine_lengths(self, split):
        fakes = known_fakes(split, share=1.0, seed=3)
        assert set(fakes.lengths) <= set(split.train.lengths) | {2}

    def test_refuses_to_know_nothing(self, split):
        with pytest.raises(ConfigError, match="no kind is left"):
            known_fakes(split, kinds=[])
        with pytest.raises(ConfigError, match="did you mean 'random'"):
            known_fakes(split, kinds=["randm"])
