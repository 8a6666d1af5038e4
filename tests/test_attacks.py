import contextlib
import dataclasses
import json
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from conftest import shop
from hypothesis import given, settings
from hypothesis import strategies as st

from lorec.attacks import (
    ATTACKS,
    DP,
    KINDS,
    LLM,
    Adaptive,
    Bandwagon,
    CoVisit,
    Gradient,
    NoAttack,
    Random,
    Replace,
    Rev,
    Segment,
    Stored,
    View,
    choose_targets,
    forge,
    known_fakes,
    open_poison,
    save_poison,
)
from lorec.attacks.adaptive import MEASURED
from lorec.attacks.factors import RIDGE, UNSEEN, Factors, Normal, Taken
from lorec.attacks.sequential import learned
from lorec.data import Catalog, Dataset, Poison, Sequences, inject, leave_two_out
from lorec.errors import ConfigError, DataError, RunError
from lorec.evidence import Examiner, shapes
from lorec.files import save_state
from lorec.models import Recommender, SASRec
from lorec.registry import name_of
from lorec.text import Hash, TextVectors

COPIED = {"adaptive", "covisit", "replace"}
"""Kinds that put targets into copied histories, or may; each is tested by itself."""
CHEAP = {
    "adaptive": {"tries": 2}, "dp": {"rounds": 2, "watched": 30, "width": 4},
    "gradient": {"epochs": 1, "steps": 1, "width": 4}, "rev": {"epochs": 3, "watched": 30, "width": 4},
}  # fmt: skip
FILLED = sorted(set(ATTACKS) - COPIED - {"stored", "none"})
"""The kinds that choose fillers."""


def spec(kind, **fields):
    return ATTACKS[kind](**CHEAP.get(kind, {}), **fields)


def made(attack, split, *more):
    """A poison, with titles to read for those that do."""
    return forge(attack, split, *more, text=TextVectors(split.catalog, Hash(dim=16)))


@pytest.mark.parametrize("kind", FILLED)
class TestContract:
    @settings(max_examples=25)
    @given(
        share=st.floats(0.02, 0.5), count=st.integers(1, 5), length=st.one_of(st.none(), st.integers(5, 30)),
        seed=st.integers(0, 1000),
    )  # fmt: skip
    def test_keeps_the_budget_and_holds_the_targets(self, kind, split, share, count, length, seed):
        poison = made(spec(kind, share=share, length=length, targets_each=None), split, count, seed)
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
        one, same, other = (made(spec(kind, share=0.1), split, 3, seed) for seed in (1, 1, 2))
        assert one.profiles.digest() == same.profiles.digest()
        assert one.profiles.digest() != other.profiles.digest()

    def test_targets_may_be_dealt_out(self, kind, split):
        poison = made(spec(kind, share=0.1, targets_each=1), split, 4, 0)
        held = [
            len(set(poison.profiles[row].tolist()) & set(poison.targets.tolist()))
            for row in range(len(poison.profiles))
        ]
        assert set(held) == {1}
        assert set(poison.targets.tolist()) <= set(poison.profiles.items.tolist())

    def test_targets_take_every_place(self, kind, split):
        if kind in ("gradient", "llm"):
            pytest.skip("it chooses the places")
        poison = made(spec(kind, share=0.5, length=6), split, 1, 0)
        places = [poison.profiles[row].tolist().index(poison.targets[0]) for row in range(len(poison.profiles))]
        assert set(places) == set(range(6))

    def test_times_are_the_logs_own_and_in_order(self, kind, split):
        profiles = made(spec(kind, share=0.1), split, 2, 0).profiles
        assert set(profiles.times.tolist()) <= set(split.train.times.tolist())
        assert all((np.diff(profiles.times[a:b]) >= 0).all() for a, b in pairwise(profiles.starts))

    def test_provenance_repeats_the_poison(self, kind, split):
        poison = made(spec(kind, share=0.1), split, 3, 5)
        assert poison.provenance["attack"] == kind
        assert poison.provenance["log"] == split.train.digest()
        assert poison.provenance["versions"].keys() == {"lorec", "torch", "numpy"}
        again = made(spec(kind, share=0.1), split, poison.provenance["targets"], 5)
        assert again.targets.tolist() == poison.targets.tolist()

    def test_refuses_impossible_budgets(self, kind, split):
        for share in (0.0, -1.0, 0.6):
            with pytest.raises(ConfigError, match="share"):
                made(spec(kind, share=share), split, 1)
        with pytest.raises(ConfigError, match="length is 2"):
            made(spec(kind, length=2, share=0.1, targets_each=None), split, 3)
        with pytest.raises(ConfigError, match="targets_each is 9"):
            made(spec(kind, targets_each=9, share=0.1), split, 3)
        with pytest.raises(ConfigError, match="can't hold"):
            made(spec(kind, targets_each=1, share=0.01), split, 3)


def test_bandwagon_keeps_popular_company(split):
    counts = split.train.counts(len(split.catalog))
    bandwagon, uniform = (forge(kind(share=0.5, length=12), split, 2, 0).profiles for kind in (Bandwagon, Random))
    assert counts[bandwagon.items].mean() > counts[uniform.items].mean() * 1.1
    targets = forge(Bandwagon(share=0.5, length=12), split, 2, 0).targets
    ranked = [n for n in np.argsort(-counts[1:], kind="stable") + 1 if n not in targets]
    popular = set(ranked[: round(0.1 * len(split.catalog))])
    profile = bandwagon[0].tolist()
    assert len(popular & set(profile)) >= 5  # half of ten fillers, or all six that there are


def test_random_fillers_are_uniform(split):
    poison = forge(Random(share=0.5, length=40), split, 2, 0)
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
    poison = forge(Segment(share=0.5, length=16, segment=40, stray=0.4), split, 1, 0)
    assert set(poison.profiles.lengths) == {16}
    assert len(set(poison.profiles[0].tolist())) == 16


class TestReplace:
    @settings(max_examples=25)
    @given(share=st.floats(0.05, 0.5), late=st.floats(0.1, 1.0), seed=st.integers(0, 1000))
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
            (Replace(share=0.1, length=1), "length is 1"),
            (Replace(share=0.1, length=50), "no history of 50 items or more"),
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


def test_a_target_is_something_that_not_everybody_has():
    log = pl.DataFrame({"user": ["a", "a", "a", "a", "b", "b", "b", "b"], "item": list("xyzwxzyw")})
    small = leave_two_out(Dataset("small", log, pl.DataFrame({"item": list("xyzw"), "title": list("xyzw")})), k_core=1)
    with pytest.raises(ConfigError, match="everybody has 'x' already"):
        forge(Random(share=0.5), small, ["x"])


def test_a_target_must_be_in_the_catalogue(split):
    with pytest.raises(DataError, match="no item 'nothing'"):
        forge(Random(share=0.1), split, ["i001", "nothing"])


@pytest.mark.parametrize("kind", FILLED)
@pytest.mark.parametrize("count", [5, 30, 59])
def test_many_targets_for_a_small_catalogue(kind, count, split):
    profiles = made(spec(kind, share=0.2, targets_each=None), split, count, 0, "random").profiles
    assert int(profiles.lengths.max()) < 60


def test_where_nobody_attacks_the_log_is_as_it_was(split, tmp_path):
    poison = forge(NoAttack(), split, 3, 0)
    same = forge(Random(), split, 3, 0)
    np.testing.assert_array_equal(poison.targets, same.targets)
    assert (len(poison.profiles), poison.provenance["fraudsters"], poison.provenance["share"]) == (0, 0, 0.0)
    save_poison(poison, split.catalog, tmp_path / "poison")
    again = open_poison(tmp_path / "poison", split)
    assert len(again.profiles) == 0
    bad = inject(split, again, 5)
    assert not bad.fraudsters.any()
    histories = [sorted(tuple(one.train[row]) for row in range(len(one))) for one in (bad, split)]
    assert histories[0] == histories[1]


def test_a_view_holds_no_held_out_item(split):
    assert set(View.__dataclass_fields__) == {"log", "n_items", "watch", "draft", "text", "victim", "detector", "note"}
    assert View(split.train, len(split.catalog)).log is split.train


@pytest.mark.parametrize("kind", sorted(set(ATTACKS) - {"stored", "none"}))
def test_gets_what_it_declares_and_no_more(kind, split, monkeypatch):
    """A victim and texts are at hand; an attack sees only those that its spec speaks of."""
    seen = []
    attack = spec(kind, share=0.1)
    monkeypatch.setattr(type(attack), "forge", lambda self, view, *_: seen.append(view) or Sequences.of([[1]]))
    victim = Recommender(SASRec(width=8), "ids", len(split.catalog))
    text = TextVectors(split.catalog, Hash(dim=16))
    forge(attack, split, 2, 0, text=text, victim=victim, detector=lambda profiles: 0.0)
    (view,) = seen
    assert (view.detector is not None) == (attack.knowledge == "white")
    assert (view.text is not None) == attack.needs_text
    assert (view.victim is not None) == (attack.knowledge == "white")
    assert view.log is split.train


class TestTargets:
    def test_a_category_holds_them(self, split):
        frame = split.catalog.items.with_columns(kind=pl.Series(["tea", "pots"] * 30))
        other = dataclasses.replace(split, catalog=dataclasses.replace(split.catalog, items=frame))
        poison = forge(Random(share=0.1), other, 5, 0, where={"kind": "tea"})
        assert set(frame["kind"].gather(poison.targets - 1)) == {"tea"}
        assert poison.provenance["target where"] == {"kind": "tea"}
        with pytest.raises(ConfigError, match="unpopular, where kind is tea, items"):
            choose_targets(other, 29, where={"kind": "tea"})
        with pytest.raises(DataError, match="no column 'colour'"):
            choose_targets(other, 1, where={"colour": "red"})


def test_a_burst_is_short(split):
    whole = int(np.ptp(split.train.times))
    for share in (0.01, 0.2):
        times = forge(Random(share=0.3, burst=share), split, 2, 0).profiles.times
        assert np.ptp(times) <= share * whole + 1
        assert split.train.times.min() <= times.min()
        assert times.max() <= split.train.times.max()


def test_a_segment_by_text_is_what_reads_alike(split):
    text = TextVectors(split.catalog, Hash(dim=64))
    poison = forge(Segment(share=0.5, segment=5, stray=0.0, by="text"), split, 2, 0, text=text)
    vectors = text.items()[1:]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for row in range(len(poison.profiles)):
        profile = set(poison.profiles[row].tolist())
        (target,) = profile & set(poison.targets.tolist())
        alike = unit @ unit[target - 1]
        alike[poison.targets - 1] = -2
        nearest = set((np.argsort(-alike, kind="stable")[:5] + 1).tolist())
        assert len(nearest & profile) >= min(5, len(profile) - 1)
    with pytest.raises(ConfigError, match="segment reads titles"):
        forge(Segment(share=0.5, by="text"), split, 2)


class TestLLM:
    def test_fillers_go_together_better_than_random_ones(self, town):
        text = TextVectors(town.catalog, Hash(dim=64))
        vectors = text.items()
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)

        def coherence(profiles):
            pairs = [pair for row in range(len(profiles)) for pair in pairwise(profiles[row].tolist())]
            return float(np.mean([unit[one] @ unit[other] for one, other in pairs]))

        mine, plain = (
            forge(kind(share=0.02, length=8, targets_each=1), town, 5, 0, text=text).profiles for kind in (LLM, Random)
        )
        assert coherence(mine) > coherence(plain) + 0.2
        counts = town.train.counts(len(town.catalog))
        assert counts[mine.items].mean() > counts[plain.items].mean()

    def test_needs_titles(self, split):
        with pytest.raises(ConfigError, match="llm reads titles"):
            forge(LLM(share=0.1), split, 2)


class TestGradient:
    def test_the_model_expects_the_target_less_after_its_fillers(self, town):
        """Less than after random ones: what the profile has to teach is more."""
        attack = Gradient(share=0.02, width=16, epochs=20, length=6, targets_each=2)
        model = learned(town.train, len(town.catalog), np.random.default_rng(1), attack.width, attack.epochs).eval()
        white = Gradient(box="white", share=0.02, length=6, targets_each=2)
        surprise = []
        for kind in (white, Random(share=0.02, length=6, targets_each=2)):
            poison = forge(kind, town, 4, 0, victim=model)
            told = []
            for row in range(len(poison.profiles)):
                history = poison.profiles[row].astype(np.int64)
                for place in np.flatnonzero(np.isin(history[1:], poison.targets)) + 1:
                    table = model.table()
                    state = model(torch.from_numpy(history[None, :place]), table)[0, -1]
                    told.append(float(-torch.log_softmax((table @ state)[1:], 0)[history[place] - 1].detach()))
            surprise.append(np.mean(told))
        assert surprise[0] > surprise[1] + 0.2

    def test_fillers_and_targets_take_turns(self, split):
        poison = forge(Gradient(share=0.1, epochs=1, width=4, length=9, targets_each=3), split, 3, 0)
        for row in range(len(poison.profiles)):
            there = np.isin(poison.profiles[row], poison.targets)
            assert there.tolist() == [False, True, False, True, False, True, False, False, False]

    def test_a_white_box_needs_a_victim(self, split):
        with pytest.raises(ConfigError, match="gradient sees its victim"):
            forge(Gradient(share=0.1, box="white"), split, 2)


class TestAdaptive:
    def test_looks_more_innocent_than_any_of_its_kinds(self, town):
        text = TextVectors(town.catalog, Hash(dim=32))
        attack = Adaptive(share=0.02, tries=30)
        poison = forge(attack, town, 3, 0, text=text)
        examiner = Examiner(town.train, len(town.catalog), text.items(), np.random.default_rng(9))
        honest = {name: np.sort(getattr(examiner.evidence, name)[1:]) for name in MEASURED}

        def blame(one):
            return attack._blame(examiner.beside(one.profiles, one.targets.astype(np.int64)), honest)

        others = [blame(forge(kind(share=0.02, targets_each=1), town, 3, 0)) for kind in (Random, Segment, Replace)]
        assert blame(poison) < min(others)
        assert len(poison.profiles) == 60
        assert set(poison.targets) <= set(poison.profiles.items)

    @pytest.mark.parametrize("kind", ["random", "covisit"])
    def test_an_attack_and_a_detector_of_ones_own(self, kind, town):
        """DegreeSAD's measures, say: the crowd comes to look more like genuine users, at equal budget."""
        counts = town.train.counts(len(town.catalog))
        genuine = shapes(town.train, counts)
        middle, inverse = genuine.mean(0), np.linalg.inv(np.cov(genuine.T) + 1e-6 * np.eye(6))

        def detector(profiles):
            away = shapes(profiles, counts) - middle
            return np.einsum("ij,jk,ik->i", away, inverse, away)

        plain = forge(ATTACKS[kind](share=0.02, targets_each=1, length=6), town, 3, 0)
        attack = Adaptive(share=0.02, kinds=(kind,), variants=6, tries=60, length=6)
        poison = forge(attack, town, 3, 0, detector=detector)
        assert detector(poison.profiles).mean() < 0.9 * detector(plain.profiles).mean()
        assert len(poison.profiles) == len(plain.profiles)
        assert len(poison.profiles.items) == len(plain.profiles.items)
        assert set(poison.targets) <= set(poison.profiles.items)
        assert poison.provenance["detector"] == "given"
        assert poison.provenance["kinds"] == [kind]

    def test_says_what_is_impossible(self, split):
        with pytest.raises(ConfigError, match="length is 1; a copy with 1 targets"):
            Adaptive(share=0.1, length=1).check(len(split.catalog), np.array([1, 2]), 10)

    def test_a_detector_that_knows_no_number(self, split):
        with pytest.raises(ConfigError, match="not a number"):
            forge(Adaptive(share=0.1), split, 2, detector=lambda profiles: np.full(len(profiles), np.nan))


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (Random, {"burst": 0.0}, "burst is 0.0"), (Bandwagon, {"popular": 5.0}, "popular is 5.0"),
        (Segment, {"stray": 1.5}, "stray 1.5"), (Segment, {"segment": 0}, "segment is 0"),
        (Replace, {"late": 0.0}, "late is 0.0"), (CoVisit, {"neighbours": 0}, "neighbours is 0"),
        (LLM, {"candidates": 0}, "llm: candidates"), (DP, {"rounds": 0}, "dp: together"),
        (DP, {"decay": 1.5}, "decay is a share"), (Rev, {"epochs": 0}, "rev: epochs"),
        (Rev, {"momentum": 1.0}, "momentum is a share"), (Gradient, {"reach": 0.0}, "reach is above 0"),
        (Adaptive, {"tries": -1}, "adaptive: tries"), (Adaptive, {"some": 0.0}, "some is a share"),
        (Adaptive, {"variants": 0}, "nothing to choose from"), (Adaptive, {"kinds": ("random",)}, "two kinds or more"),
        (Adaptive, {"kinds": ("random", "nothing")}, "adaptive mixes"), (Adaptive, {"burst": 2.0}, "burst is 2.0"),
    ],
)  # fmt: skip
def test_a_spec_that_makes_no_sense_is_refused_before_any_work(spec, options, message):
    with pytest.raises(ConfigError, match=message):
        spec(**options)


class TestKnownFakes:
    def digests(self, known):
        return [one.profiles.digest() for one in known]

    def test_leaves_the_judged_kind_out(self, split):
        others = known_fakes(split, without="bandwagon", share=0.2, seed=1)
        kinds = sorted(set(KINDS) - {"bandwagon"})
        assert self.digests(others) == self.digests(known_fakes(split, kinds=kinds, share=0.2, seed=1))
        assert self.digests(others) != self.digests(known_fakes(split, share=0.2, seed=1))
        assert all(one.provenance["kinds"] == kinds for one in others)

    def test_a_mixture_shares_the_budget_of_its_round_and_rounds_are_of_all_sizes(self, split):
        sizes = [len(one.profiles) for one in known_fakes(split, share=0.2, rounds=5)]
        assert sizes == [20, 35, 65, 10, 20]  # of 80 users, each kind rounded up
        assert len(known_fakes(split, share=0.8, rounds=3)[2].profiles) == 80  # no more than there are users

    def test_rounds_differ_and_more_of_them_change_none(self, split):
        few, more = known_fakes(split, share=0.2, rounds=2), known_fakes(split, share=0.2, rounds=4)
        assert self.digests(few) == self.digests(more)[:2]
        assert len(set(self.digests(more))) == 4

    def test_every_target_is_pushed_by_some_profile(self, split):
        for one in known_fakes(split, share=0.4, seed=3):
            assert set(one.targets) <= set(one.profiles.items)

    def test_campaigns_share_their_targets_in_profiles_as_long_as_genuine_ones(self, town):
        """One, two or all of five in a profile; all three occur among the rounds."""
        shared, lengths = set(), []
        for one in known_fakes(town, kinds=["random"], share=0.02, rounds=24, seed=1):
            assert len(one.targets) == 5
            each = [int(np.isin(profile, one.targets).sum()) for profile in one.profiles]
            assert max(each) > 1 or set(each) == {1}
            shared.add(max(set(each), key=each.count))
            lengths += one.profiles.lengths.tolist() if max(each) == 1 else []  # more need room
        assert {1, 2, 5} <= shared
        genuine = town.train.lengths
        for share in (0.1, 0.5, 0.9):
            assert abs(np.quantile(lengths, share) - np.quantile(genuine, share)) <= 1

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


class TestCoVisit:
    @settings(max_examples=25)
    @given(
        share=st.floats(0.05, 0.5), length=st.one_of(st.none(), st.integers(4, 8)), each=st.integers(1, 2),
        seed=st.integers(0, 1000),
    )  # fmt: skip
    def test_targets_stand_in_genuine_histories(self, split, share, length, each, seed):
        poison = forge(CoVisit(share=share, length=length, targets_each=each), split, 3, seed, "random")
        assert len(poison.profiles) == int(np.ceil(round(share * len(split), 9)))
        assert set(poison.profiles.items.tolist()) >= set(poison.targets.tolist())
        genuine = [split.train[user].tolist() for user in range(len(split))]
        for row in range(len(poison.profiles)):
            profile = poison.profiles[row]
            mine = np.isin(profile, poison.targets)
            assert mine.sum() == each
            assert not mine[0]  # it follows its anchor
            assert length is None or len(profile) == length
            kept = profile[~mine].tolist()
            assert any(kept == one[n : n + len(kept)] for one in genuine for n in range(len(one) - len(kept) + 1))

    def test_takes_the_worthiest_anchors_as_often_as_they_need(self, split):
        poison = forge(CoVisit(share=0.5, neighbours=3), split, 1, 4)
        (target,), log = poison.targets.tolist(), split.train
        together = np.zeros((61, 61), dtype=int)
        for user in range(len(log)):
            for one, other in pairwise(log[user].tolist()):
                together[one, other] += 1
                together[other, one] += 1
        last = -np.sort(-together, axis=1)[:, 2]
        needed = np.maximum(last - together[:, target], 0) + 1
        value = log.counts(60) / needed
        found = [p[p.index(target) - 1] for p in (poison.profiles[row].tolist() for row in range(len(poison.profiles)))]
        chosen, times = np.unique(found, return_counts=True)
        left = len(found)
        for anchor in sorted(chosen, key=lambda one: -value[one]):
            times_here = int(times[chosen == anchor][0])
            assert times_here == min(needed[anchor], left)
            left -= times_here
        innocent = np.unique(np.concatenate([log[u] for u in range(len(log)) if target not in log[u]]))
        unused = np.setdiff1d(innocent, chosen)
        assert value[unused].max() <= value[chosen].min()

    def test_histories_of_one_item_have_neighbours_too(self):
        view = View(Sequences.of([[1], [2], [3], [2]]), 4)
        made = CoVisit(share=0.5).forge(view, np.array([4]), 2, np.random.default_rng(0))
        assert [made[row].tolist() for row in range(2)] == [[2, 4], [1, 4]]  # the most popular one, then the next

    def test_says_what_is_impossible(self, split):
        for attack, message in (
            (CoVisit(share=0.1, length=1), "length is 1"),
            (CoVisit(share=0.1, length=50), "no history of 49 items or more"),
        ):
            with pytest.raises(ConfigError, match=message):
                forge(attack, split, 3)


class TestFactors:
    def objective(self, x, users, items):
        """The loss as its definition has it, over all of users x items."""
        weight = UNSEEN + (1 - UNSEEN) * x
        return (weight * (x - users @ items.T) ** 2).sum() + RIDGE * ((users**2).sum() + (items**2).sum())

    def dense(self, log, n_items):
        x = torch.zeros(len(log), n_items + 1, dtype=torch.float64)
        for user in range(len(log)):
            x[user, log[user].tolist()] = 1
        return x

    def test_a_side_is_solved_exactly(self, split, rng):
        """At the solution the written-out loss has no slope."""
        taken = Taken.of(split.train, len(split.catalog))
        items = torch.from_numpy(rng.normal(size=(len(split.catalog) + 1, 5)))
        items[0] = 0
        users = Normal.of_pairs(taken.by_user, items).solved().requires_grad_()
        (slope,) = torch.autograd.grad(self.objective(self.dense(split.train, 60), users, items), users)
        assert float(slope.abs().max()) < 1e-8
        items = Normal.of_pairs(taken.by_item, users.detach()).solved().requires_grad_()
        (slope,) = torch.autograd.grad(self.objective(self.dense(split.train, 60), users.detach(), items), items)
        assert float(slope.abs().max()) < 1e-8

    def test_weights_count_as_pairs_do(self, split, rng):
        """Some users as pairs and the others as weights of 0 and 1 are the whole log."""
        log, n = split.train, len(split.catalog)
        users = torch.from_numpy(rng.normal(size=(len(log), 4)))
        some, others = log.take(np.arange(50)), self.dense(log, n)[50:]
        both = Normal.of_pairs(Taken.of(some, n).by_item, users[:50]) + Normal.of_weights(others.T, users[50:])
        torch.testing.assert_close(both.solved(), Normal.of_pairs(Taken.of(log, n).by_item, users).solved())

    def test_predicts_what_is_to_come(self, town):
        taken = Taken.of(town.train, len(town.catalog))
        model = Factors.of(taken, np.random.default_rng(0), width=16)
        scores = model.unseen(taken.by_user)
        own = scores.gather(1, torch.from_numpy(town.test.astype(np.int64))[:, None])
        assert float(((scores >= own).sum(1) <= 10).float().mean()) > 5 * 10 / len(town.catalog)
        assert bool(torch.isinf(scores[:, 0]).all())


class TestOptimised:
    def test_revs_slope_is_that_of_its_loss(self, split, rng):
        """Against finite differences, through all steps of the surrogate's learning."""
        attack, n = Rev(share=0.1, width=3), len(split.catalog)
        taken = Taken.of(split.train, n)
        clean = Factors.of(taken, rng, 3)
        clean = Factors(clean.users.double(), clean.items.double())
        theirs = taken.by_user.take(np.arange(20))
        x = torch.from_numpy(rng.uniform(0.2, 0.8, (4, n + 1)))

        def loss(x):
            model = attack._learned(clean, taken, x, theirs)
            last = model.unseen(theirs).topk(5, dim=1).values[:, -1:]
            return attack._loss(model, torch.tensor([7, 9]), last)

        assert torch.autograd.gradcheck(loss, (x.requires_grad_(),), eps=1e-6, atol=1e-6)

    @pytest.mark.parametrize("attack", [DP(share=0.02, together=20), Rev(share=0.02)])
    def test_enters_more_lists_of_a_surrogate_than_random_profiles(self, town, attack):
        """At equal budget; the surrogate that judges begins elsewhere than the attack's own."""
        n, rows = len(town.catalog), np.arange(0, len(town), 3)

        def entered(poison):
            taken = Taken.of(town.train.extended(poison.profiles), n)
            model = Factors.of(taken, np.random.default_rng(99))
            theirs = taken.by_user.take(rows)
            best = Factors(model.users[rows], model.items).unseen(theirs).topk(10, dim=1).indices
            return float(torch.isin(best, torch.from_numpy(poison.targets.astype(np.int64))).sum()) / len(rows)

        seeds = (2, 3)
        mine, plain = (
            np.mean([entered(forge(kind, town, 5, seed)) for seed in seeds])
            for kind in (attack, Random(share=0.02, targets_each=1))
        )
        assert mine > 1.5 * plain

    @pytest.mark.parametrize("kind", ["dp", "rev"])
    def test_tells_how_far_it_is(self, kind, split):
        told = []
        forge(spec(kind, share=0.3), split, 2, 0, watch=lambda done, total: told.append((done, total)))
        assert told[-1][0] == told[-1][1]
        assert [done for done, _ in told] == sorted({done for done, _ in told})

    @pytest.mark.parametrize("kind", ["dp", "rev"])
    def test_goes_on_after_an_interruption_to_the_same_poison(self, kind, split, tmp_path):
        draft, attack = tmp_path / "d", spec(kind, share=0.5)
        whole = forge(attack, split, 2, 0)

        def forged(last, seed=0):
            """What it told until it was interrupted after step `last`, and the poison where it was not."""
            told = []

            def watch(done, total):
                told.append(done)
                if len(told) == last:
                    raise KeyboardInterrupt

            with contextlib.suppress(KeyboardInterrupt):
                return told, forge(attack, split, 2, seed, draft=draft, watch=watch)
            return told, None

        first, _ = forged(1)
        second, _ = forged(1)
        third, poison = forged(None)
        assert first + second + third == sorted({*first, *second, *third})
        assert poison.profiles.digest() == whole.profiles.digest()
        assert poison.provenance == whole.provenance
        forged(1)
        _, other = forged(None, seed=1)  # the draft is of seed 0, and of no use
        assert other.profiles.digest() == forge(attack, split, 2, 1).profiles.digest()

    def test_a_damaged_draft_is_named_and_a_foreign_one_is_of_no_use(self, split, tmp_path):
        (tmp_path / "d").write_bytes(b"nothing")
        with pytest.raises(RunError, match="damaged checkpoint"):
            forge(spec("rev", share=0.1), split, 2, 0, draft=tmp_path / "d")
        save_state(tmp_path / "e", {"recommender": torch.ones(3)})
        made = forge(spec("rev", share=0.1), split, 2, 0, draft=str(tmp_path / "e"))
        assert made.profiles.digest() == forge(spec("rev", share=0.1), split, 2, 0).profiles.digest()

    def test_numpy_numbers_are_numbers(self, split, tmp_path):
        attack = spec("rev", share=np.float32(0.125), length=np.int64(6))
        poison = forge(attack, split, 2, np.int64(3), draft=tmp_path / "d")
        save_poison(poison, split.catalog, tmp_path / "poison")
        assert open_poison(tmp_path / "poison", split).provenance == poison.provenance

    @pytest.mark.parametrize("kind", ["dp", "rev", "gradient"])
    def test_says_how_good_its_surrogate_is(self, kind, town):
        found = forge(spec(kind, share=0.05), town, 1, 0).provenance["surrogate HR@10"]
        assert 0 < found <= 1

    def test_a_surrogate_is_judged_by_items_that_it_never_saw(self, town, rng):
        seen, told = [], {}

        def learn(log):
            seen.append(log)
            return Factors.of(Taken.of(log, len(town.catalog)), rng, 8)

        View(town.train, len(town.catalog), note=told.__setitem__).judged(learn, rng)
        held = np.flatnonzero(seen[0].lengths < town.train.lengths)
        assert len(held) == np.ceil((town.train.lengths > 1).sum() / 10)
        assert all(seen[0][user].tolist() == town.train[user][:-1].tolist() for user in held)
        rest = np.setdiff1d(np.arange(len(town.train)), held)
        assert seen[0].take(rest).digest() == town.train.take(rest).digest()
        assert told["surrogate HR@10"] > 1.5 * 10 / len(town.catalog)

    def test_a_log_that_has_nothing_to_hold_out(self, rng):
        told, log = {}, Sequences.of([[1], [2], [2]])
        View(log, 2, note=told.__setitem__).judged(lambda log: Factors.of(Taken.of(log, 2), rng, 2), rng)
        assert told == {}


def test_a_property_that_no_target_has_is_named(split):
    items = split.catalog.items.with_columns(brand=pl.lit("b"))
    branded = dataclasses.replace(split, catalog=Catalog(items))
    assert len(choose_targets(branded, 3, where={"brand": "b"})) == 3
    with pytest.raises(ConfigError, match=r"\[targets\] where brand is 'c': no unpopular item says so"):
        choose_targets(branded, 3, where={"brand": "c"})


@pytest.mark.parametrize("kind", ["none", "stored", "llm", "adaptive"])
def test_what_can_not_be_a_known_kind_is_said(split, kind):
    with pytest.raises(ConfigError, match=f"{kind} can't be among the known kinds"):
        known_fakes(split, kinds=("random", kind), rounds=1)


def test_a_kind_that_is_derived_from_another_is_not_that(monkeypatch):
    """Or its poison would be told as the other's, and a grid would run the other."""

    class Gentle(Random):
        pass

    point = SimpleNamespace(name="gentle", value=f"{Gentle.__module__}:{Gentle.__qualname__}")
    monkeypatch.setattr("lorec.registry.entry_points", lambda group: [point] if group == "lorec.attacks" else [])
    assert name_of("attacks", ATTACKS, Gentle()) == "gentle"
    assert name_of("attacks", ATTACKS, Random()) == "random"


class TestFolders:
    @pytest.mark.parametrize("form", ["folder", "inject_user", "fake_users"])
    @pytest.mark.parametrize("kind", ["random", "replace"])
    def test_what_was_written_is_read_back(self, form, kind, split, tmp_path):
        poison = forge(spec(kind, share=0.2), split, 3, 1)
        path = tmp_path / "poison"
        save_poison(poison, split.catalog, path, form)
        back = open_poison(path, split)
        assert (back.profiles.items == poison.profiles.items).all()
        assert (back.profiles.starts == poison.profiles.starts).all()
        assert (back.targets == poison.targets).all()
        assert len(back.profiles.times) == len(back.profiles.items)
        if form == "folder":
            assert (back.profiles.times == poison.profiles.times).all()
            assert back.provenance == poison.provenance
        again = forge(Stored(path=str(path)), split, 5, 9)
        assert again.profiles.digest() == back.profiles.digest()

    def test_the_authors_own_file(self, split, tmp_path):
        path = tmp_path / "inject_user_random_1.json"
        path.write_text(json.dumps({"user_data": {"17": ["i001", "i002"], "4": ["i002"]}, "target_item": ["i002"]}))
        poison = open_poison(path, split)
        assert [split.catalog.ids(poison.profiles[row]) for row in range(2)] == [["i001", "i002"], ["i002"]]
        assert split.catalog.ids(poison.targets) == ["i002"]

    def test_refuses_what_was_made_for_another_log(self, split, tmp_path):
        save_poison(forge(Random(share=0.1), split, 2, 1), split.catalog, tmp_path / "poison")
        other = leave_two_out(shop(users=100, items=100))
        with pytest.raises(DataError, match="made from another log"):
            open_poison(tmp_path / "poison", other)

    def test_says_what_is_wrong_with_a_file(self, split, tmp_path):
        good = {"fake_users": [["i001", "i002"]], "target_items": ["i001"]}
        for changed, message in (
            ("[", "is not JSON"),
            ({"users": []}, "neither user_data"),
            (good | {"fake_users": [["i001", "nothing"]]}, "no item 'nothing'"),
            (good | {"target_items": ["i003"]}, "1 targets of"),
            (good | {"target_items": []}, "0 targets"),
            (good | {"fake_users": []}, "0 profiles"),
            (good | {"fake_users": [["i001"], []]}, "profile 1 of"),
        ):
            path = tmp_path / "fakes.json"
            path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
            with pytest.raises(DataError, match=message):
                open_poison(path, split)
        with pytest.raises(DataError, match="no poison at"):
            open_poison(tmp_path / "nowhere", split)
        with pytest.raises(ConfigError, match="needs a path"):
            Stored()

    def test_says_what_is_wrong_with_a_folder(self, split, tmp_path):
        poison = forge(Random(share=0.1), split, 2, 1)
        save_poison(poison, split.catalog, tmp_path)
        (tmp_path / "profiles.parquet").write_bytes(b"PAR1 nothing")
        with pytest.raises(DataError, match="can't be read"):
            open_poison(tmp_path, split)
        pl.DataFrame({"fraudster": [0], "position": [0], "item": ["i001"]}).write_parquet(tmp_path / "profiles.parquet")
        with pytest.raises(DataError, match="in no profile"):
            open_poison(tmp_path, split)
        (tmp_path / "poison.json").write_text("{}")
        with pytest.raises(DataError, match="not a poison's record"):
            open_poison(tmp_path, split)

    def test_a_log_without_times_gets_profiles_without(self, split, tmp_path):
        plain = dataclasses.replace(split, train=Sequences(split.train.items, split.train.starts))
        for form in ("folder", "fake_users"):
            save_poison(forge(Random(share=0.1), plain, 2, 1), plain.catalog, tmp_path / form, form)
            assert isinstance(open_poison(tmp_path / form, plain), Poison)
            assert open_poison(tmp_path / form, plain).profiles.times is None
