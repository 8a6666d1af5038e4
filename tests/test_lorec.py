"""LoRec by evidence: the calibration against a written-out reference, and where its effect is visible."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from conftest import shop
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from lorec.attacks import ATTACKS, Adaptive, Bandwagon, Random, Replace, Segment, forge, known_fakes
from lorec.data import Catalog, Dataset, Feed, Poison, Sequences, inject, leave_two_out
from lorec.defenses import LoRec, LoRecPaper, Undefended
from lorec.detectors import detect
from lorec.detectors.logistic import calibrate, fit_logistic, sigmoid, squared
from lorec.detectors.lorec import VIEWS, _doubted, _over_holders, _Scene, _within
from lorec.errors import ConfigError, DataError
from lorec.evaluation import detection, evaluate
from lorec.evidence import Examiner
from lorec.files import load_state, save_state
from lorec.models import Recommender, SASRec
from lorec.sight import Sight
from lorec.text import Hash, TextVectors
from lorec.training import Training, fit

SMALL = SASRec(width=16, max_length=20, blocks=1)


TITLES = pl.DataFrame({"item": [str(item) for item in range(320)], "title": [f"thing {item}" for item in range(320)]})


def poisoned(town, attack, seed=5):
    poison = forge(attack, town, 5, seed=seed)
    bad = inject(town, poison, seed=seed)
    kind = next(name for name, spec in ATTACKS.items() if isinstance(attack, spec))
    return poison, bad, known_fakes(bad, without=kind, share=0.02, seed=seed)


def start(bad, known, spec=None, seed=0, rows=None):
    recommender = Recommender(SMALL, "ids", len(bad.catalog), seed=1)
    log = bad.train if rows is None else bad.train.take(rows)
    text = TextVectors(bad.catalog, Hash(dim=64))
    sight = Sight(log, recommender.n_items, text, known, np.random.default_rng(seed))
    return recommender, (spec or LoRec()).start(recommender, sight)


def decided(bad, known, spec=None, seed=0):
    recommender, guard = start(bad, known, spec, seed)
    guard.loss(recommender, next(Feed(bad.train, len(bad.catalog), 20).epoch(np.random.default_rng(0))))
    return guard


class TestCalibration:
    @settings(max_examples=25)
    @given(st.integers(0, 10_000))
    def test_against_a_library(self, seed):
        rng = np.random.default_rng(seed)
        seen = rng.standard_normal(200) * 3 + 5
        n = rng.integers(1, 40, 200)
        lies = rng.binomial(n, 1 / (1 + np.exp(-(seen - 7))))
        made = calibrate(seen, lies, n - lies)
        rows, labels = np.concatenate([seen, seen]), np.repeat([1, 0], 200)
        theirs = LogisticRegression(C=1e9, tol=1e-10, max_iter=1000)
        theirs.fit(rows[:, None], labels, sample_weight=np.concatenate([lies, n - lies]))
        np.testing.assert_allclose(made(seen), theirs.predict_proba(seen[:, None])[:, 1], atol=1e-4)
        assert (made(seen) * n).sum() == pytest.approx(lies.sum(), rel=1e-4)  # calibrated in the large

    def test_a_few_items_far_out_among_a_million_interactions(self):
        """As the grocery log has it: a whole Newton step goes beyond the valley, and another one never comes back."""
        rng = np.random.default_rng(0)
        seen = np.concatenate([rng.exponential(0.5, 6000), rng.uniform(0, 12, 60), [14.0] * 5])
        lies = np.concatenate([np.zeros(6000), rng.integers(1, 20, 60), np.zeros(5)])
        honest = np.concatenate([np.full(6000, 250), np.full(60, 5), np.full(5, 320)])
        made = calibrate(seen, lies, honest)
        theirs = LogisticRegression(C=1e9, tol=1e-10, max_iter=5000)
        rows, labels = np.concatenate([seen, seen]), np.repeat([1, 0], len(seen))
        theirs.fit(rows[:, None], labels, sample_weight=np.concatenate([lies, honest]))
        np.testing.assert_allclose(made(seen), theirs.predict_proba(seen[:, None])[:, 1], atol=1e-3)
        assert made.slope > 0.3

    def test_a_view_that_points_the_wrong_way_says_nothing(self):
        seen, n = np.linspace(0, 5, 50), np.full(50, 10)
        lies = np.where(seen < 1, 9, 0)
        p = calibrate(seen, lies, n - lies)(seen)
        np.testing.assert_allclose(p, lies.sum() / n.sum(), rtol=0.1)

    def test_without_any_lie_nothing_is_likely(self):
        p = calibrate(np.linspace(0, 5, 50), np.zeros(50, dtype=np.int64), np.full(50, 10))(np.array([100.0]))
        assert p[0] < 0.5

    @pytest.mark.parametrize("real", [0.0, 0.3])
    def test_real_lies_among_the_logs_own_items_are_doubted(self, real):
        """Known fakes beside a log, some of whose items are lies, too; each number once more by a library."""
        rng = np.random.default_rng(0)
        own, fakes = 400, 40
        is_lie = np.arange(own) < real * fakes
        seen = np.concatenate([np.where(is_lie, 5.0, 0) + rng.standard_normal(own), 4 + rng.standard_normal(fakes)])
        lies = np.concatenate([np.zeros(own), np.full(fakes, 8.0)])
        honest = np.concatenate([np.full(own, 50.0), np.full(fakes, 1.0)])
        p, rows, labels = np.zeros(own), np.concatenate([seen, seen]), np.repeat([1, 0], len(seen))
        doubted, trusted = lies.copy(), honest.copy()
        for _ in range(8):
            theirs = LogisticRegression(C=1e9, tol=1e-10, max_iter=5000)
            theirs.fit(rows[:, None], labels, sample_weight=np.concatenate([doubted, trusted]))
            p = theirs.predict_proba(seen[:own, None])[:, 1]
            for item in range(own):
                doubted[item] = 50 * p[item] if p[item] > 0.1 else 0
                trusted[item] = 50 * (1 - p[item])
        found = _doubted(seen, lies, honest, own)
        np.testing.assert_allclose(found, p, atol=1e-3)
        once = calibrate(seen, lies, honest)(seen[:own])
        if real:
            assert found[is_lie].mean() > 0.9
            assert once[is_lie].mean() < 0.4  # counted as honest, they pull it down
        assert found[~is_lie].mean() < 0.01

    @given(
        st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.booleans(), st.integers(0, 20)), min_size=1),
        st.floats(0, 200),
    )
    def test_the_likeliest_go_first_and_room_is_never_exceeded(self, items, room):
        p, able, costs = (np.array(column) for column in zip(*items, strict=True))
        chosen = _within(p, able, costs, room)
        assert costs[chosen].sum() <= room
        assert not (chosen & ~able).any()
        left = able & ~chosen
        if chosen.any() and left.any():
            assert p[chosen].min() > p[left].max()
        if left.any():  # the next likelihood would not have fitted
            assert costs[chosen].sum() + costs[left & (p == p[left].max())].sum() > room


class TestProfile:
    @pytest.mark.parametrize("seed", range(5))
    def test_a_classifier_with_a_penalty_against_a_library(self, seed):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(80, 3))
        x = np.column_stack([x, np.ones(80)])
        labels = (x @ [1.0, -2.0, 0.5, 0.3] + rng.normal(size=80) > 0).astype(float)
        theirs = LogisticRegression(C=1 / 0.7, fit_intercept=False, tol=1e-10, max_iter=5000).fit(x, labels)
        mine = sigmoid(x @ fit_logistic(x, labels, np.ones(80), ridge=0.7))
        np.testing.assert_allclose(mine, theirs.predict_proba(x)[:, 1], atol=1e-5)

    def test_squares_are_all_products_of_two(self):
        x = np.random.default_rng(0).normal(size=(40, 3)) + 5
        made = squared(x)
        assert made.shape == (40, 3 + 6 + 1)
        np.testing.assert_allclose(made[:, :-1].mean(0), 0, atol=1e-12)
        np.testing.assert_allclose(made[:, :-1].std(0), 1)
        assert (made[:, -1] == 1).all()
        x = (x - x.mean(0)) / x.std(0)
        for one in range(3):
            for other in range(3):
                wanted = x[:, one] * x[:, other]
                assert max(np.corrcoef(wanted, column)[0, 1] for column in made[:, 3:-1].T) == pytest.approx(1)

    @settings(max_examples=100)
    @given(
        st.lists(st.lists(st.integers(1, 5), max_size=5), min_size=1, max_size=8),
        st.integers(0, 100),
    )
    def test_every_holder_counts_once(self, histories, seed):
        values = np.random.default_rng(seed).random(len(histories))
        total, n = _over_holders(Sequences.of(histories), values, 6)
        for item in range(1, 7):
            holding = [value for value, history in zip(values, histories, strict=True) if item in history]
            assert total[item] == pytest.approx(sum(holding))
            assert n[item] == len(holding)

    @pytest.mark.parametrize("attack", [Random(share=0.02), Bandwagon(share=0.02)])
    def test_finds_made_histories_alone(self, attack, monkeypatch):
        """It never speaks too loudly, and not at all where it would turn down too much, or without the log.

        Here every user keeps to items of like popularity, as tastes are; only a made history mixes them.
        """
        rng = np.random.default_rng(0)
        tastes = rng.integers(0, 8, 400)
        rows = [(user, item) for user, taste in enumerate(tastes) for item in 40 * taste + rng.choice(40, 25, False)
                if rng.random() < 0.3 + taste / 12]  # fmt: skip
        bands = Dataset("bands", pl.DataFrame(rows, ["user", "item"], orient="row").cast(pl.String), TITLES)
        poison, bad, known = poisoned(leave_two_out(bands, k_core=1), attack)
        users = bad.train.users()
        lies = bad.fraudsters[users] & np.isin(bad.train.items, poison.targets)
        loud = ("collusion", "surprise", "incoherence", "copying", "association", "contradiction", "nameless")
        off = dict.fromkeys(loud, 0.0)
        counted = decided(bad, known, LoRec(**off, silence=1.0)).weights.events
        assert counted[lies].mean() < 0.5
        assert (counted[~bad.fraudsters[users]] < 1).mean() < 0.05
        quiet = decided(bad, known, LoRec(**off, silence=(counted < 1).mean() - 1e-6))
        assert quiet.weights.events.min() == 1
        (said,) = quiet.notes
        assert said.startswith("the view profile says nothing: honest histories")
        loud = decided(bad, known, LoRec(**off, silence=1.0)).found.items
        monkeypatch.setattr("lorec.detectors.lorec.LOUDEST", 1e9)
        assert loud.max() < 0.9 * decided(bad, known, LoRec(**off, silence=1.0)).found.items.max()
        assert decided(bad, known, LoRec(**off, sources=("text",))).weights.events.min() == 1


class TestAssociation:
    @settings(max_examples=100)
    @given(
        st.lists(st.lists(st.integers(1, 5), max_size=5), min_size=1, max_size=8),
        st.integers(0, 8),
        st.sets(st.integers(1, 5), min_size=1),
        st.integers(0, 100),
    )
    def test_against_its_definition(self, histories, cut, asked, seed):
        """An item's holders are as suspicious as the likeliest of their other items, beside the log or in it."""
        rng = np.random.default_rng(seed)
        items, likely = np.array(sorted(asked)), rng.choice([0.01, 0.2, 0.9], 6)
        p = rng.choice([0.02, 0.5, 0.8], len(items))
        layers = (Sequences.of(histories[:cut]), Sequences.of(histories[cut:]))
        found = _Scene(layers, items, None, None, None).associated(likely, p, 0.25)
        now = {**dict(enumerate(likely)), **dict(zip(items.tolist(), p, strict=True))}
        for place, item in enumerate(items.tolist()):
            holders = [[now[other] for other in history if other != item] for history in histories if item in history]
            suspicion = [max(others, default=0) for others in holders]
            mean = (sum(suspicion) + 0.2) / (len(holders) + 1)
            assert found[place] == pytest.approx(np.log(mean / (1 - mean)))

    def test_the_rest_of_a_campaign_follows_what_was_found_of_it(self, town):
        poison, bad, known = poisoned(town, Random(share=0.02))
        users = bad.train.users()
        lies = bad.fraudsters[users] & np.isin(bad.train.items, poison.targets)
        caught = {}
        for association in (0.0, 15.0):
            spec = LoRec(
                incoherence=0, surprise=0, copying=0, profile=0, contradiction=0, nameless=0, collusion=30,
                association=association,
            )  # fmt: skip
            caught[association] = 1 - decided(bad, known, spec).weights.events
        assert 0 < caught[0.0][lies].mean() < 1
        assert caught[15.0][lies].mean() == 1
        assert caught[15.0][~bad.fraudsters[users]].mean() < 0.02


def test_a_view_by_which_nothing_stands_out_turns_nothing_down_and_is_named(town, tmp_path):
    """With one title texts know nothing, however little it would take to count nothing."""
    title = pl.when(pl.int_range(pl.len()) == int(np.argmin(town.train.counts(900)[1:]))).then(pl.lit("thing"))
    mute = replace(town, catalog=replace(town.catalog, items=town.catalog.items.with_columns(title=title)))
    _, bad, known = poisoned(mute, Random(share=0.02))
    off = dict.fromkeys(("collusion", "surprise", "copying", "profile", "association", "contradiction"), 0.0)
    guard = decided(bad, known, LoRec(**off, incoherence=1, sources=("text",), budget=1.0))
    assert guard.weights.events.min() == 1
    assert guard.notes == ("the view incoherence says nothing: known fakes do not stand out by it",)
    save_state(tmp_path / "guard.safetensors", guard.state())
    _, other = start(bad, known)
    other.restore(load_state(tmp_path / "guard.safetensors"))
    assert other.notes == guard.notes
    assert decided(bad, known, LoRec(sources=("log",), profile=0)).notes == ()


class TestGuard:
    @pytest.mark.parametrize(
        "attack", [Random(share=0.02), Bandwagon(share=0.02), Segment(share=0.02), Replace(share=0.02)]
    )
    def test_finds_a_kind_that_it_never_knew(self, town, attack):
        poison, bad, known = poisoned(town, attack)
        guard = decided(bad, known)
        users = bad.train.users()
        fake = bad.fraudsters[users]
        lies = fake & np.isin(bad.train.items, poison.targets)
        judged = lies | ~fake
        found = detection(guard.interactions[judged], guard.weights.events[judged] < 1, lies[judged])
        assert found["ROC-AUC"] > 0.9
        assert detection(guard.suspicion, guard.flagged, bad.fraudsters)["ROC-AUC"] > 0.8

    def test_a_likelihood_means_what_it_says(self, town):
        """Over kinds that were not known: of what it calls likely as many are lies as it says, or more; few escape."""
        said, found, n, lies_of_all = 0.0, 0, 0, 0
        for attack in (Random(share=0.02), Bandwagon(share=0.02), Segment(share=0.02)):
            poison, bad, known = poisoned(town, attack)
            p, fake = decided(bad, known).interactions, bad.fraudsters[bad.train.users()]
            lies = fake & np.isin(bad.train.items, poison.targets)
            bold = (p > 0.1) & (lies | ~fake)
            said, found, n = said + p[bold].sum(), found + lies[bold].sum(), n + bold.sum()
            lies_of_all += lies.sum()
            assert p[~fake].mean() < 0.02
        assert found / n > said / n - 0.1
        assert said / n > 0.2
        assert found > 0.8 * lies_of_all

    def test_a_user_is_as_suspect_as_that_one_of_what_was_turned_down_is_bought(self, town):
        """Or else as the likeliest of what they took."""
        _, bad, known = poisoned(town, Segment(share=0.02))
        found, several = detect(LoRec(), bad, text=TextVectors(bad.catalog, Hash(dim=64)), known=known), 0
        for user in range(len(bad.train)):
            events = range(bad.train.starts[user], bad.train.starts[user + 1])
            honest, turned = 1.0, [event for event in events if found.lies[event]]
            for event in turned:
                honest *= 1 - min(float(found.interactions[event]), 0.999999)
            likeliest = max(float(found.interactions[event]) for event in events)
            assert found.users[user] == pytest.approx(max(likeliest, 1 - honest), abs=1e-9)
            several += len(turned) > 1 and 1 - honest > likeliest + 1e-6
            assert found.flagged[user] == (bool(turned) and found.users[user] >= LoRec().threshold)
        assert several
        assert 0 < found.flagged.sum() < (np.bincount(bad.train.users(), found.lies) > 0).sum()
        assert (found.interactions == found.items[bad.train.items]).all()

    @pytest.mark.parametrize("share", [0.02, 0.06, 0.15])
    def test_a_large_crowd_is_accused_as_a_small_one_is(self, town, share):
        _, bad, known = poisoned(town, Random(share=share))
        found = detect(LoRec(sources=("log",)), bad, known=known)
        assert found.flagged[bad.fraudsters].mean() > 0.9
        assert found.flagged[~bad.fraudsters].mean() < 0.05

    def test_who_takes_an_item_again_is_no_more_suspect(self, town):
        poison, bad, known = poisoned(town, Random(share=0.02))
        log, spec = bad.train, LoRec(sources=("log",))
        log = Sequences(
            log.items[np.lexsort((log.items, log.users()))], log.starts
        )  # as histories with repeats are read
        rows = np.flatnonzero(np.isin(log.items, poison.targets))
        again = np.sort(np.concatenate([np.arange(len(log.items)), np.repeat(rows, 5)]))
        longer = log.lengths + 5 * np.bincount(log.users()[rows], minlength=len(log))
        repeated = replace(bad, train=Sequences(log.items[again], np.concatenate([[0], np.cumsum(longer)])))
        one, other = (detect(spec, some, known=known) for some in (replace(bad, train=log), repeated))
        np.testing.assert_array_equal(one.users, other.users)
        np.testing.assert_array_equal(one.items, other.items)
        np.testing.assert_array_equal(one.lies[again], other.lies)

    def test_incoherence_turns_down_no_more_than_its_budget(self, town):
        _, bad, known = poisoned(town, Replace(share=0.02))
        off = dict.fromkeys((view for view in VIEWS if view != "incoherence"), 0.0)
        for budget, intruders in ((0.005, 0.0), (0.05, 0.0), (1e-9, 0.01), (0.02, 0.01)):
            alone = LoRec(**off, incoherence=1, budget=budget, intruders=intruders)
            assert 0 < (decided(bad, known, alone).weights.events < 1).mean() <= budget + intruders

    @pytest.mark.parametrize("world", [0, 1])
    def test_a_crowd_among_titles_that_look_alike_is_seen_on_request(self, world):
        """What reads alike here is taken together by nobody else, as the titles have nothing to do with tastes."""
        town = leave_two_out(shop(seed=world))
        items = town.catalog.items.with_columns(pl.col("title").sample(fraction=1, shuffle=True, seed=0))
        town = replace(town, catalog=replace(town.catalog, items=items))
        crowd = Segment(by="text", segment=60, stray=0.0, share=0.02)
        poison = forge(crowd, town, 5, seed=6, text=TextVectors(town.catalog, Hash(dim=64)))
        bad = inject(town, poison, seed=6)
        known, users = known_fakes(bad, without="segment", share=0.02, seed=6), bad.train.users()
        lies, honest = bad.fraudsters[users] & np.isin(bad.train.items, poison.targets), ~bad.fraudsters[users]
        by_default = 1 - decided(bad, known).weights.events
        asked = 1 - decided(bad, known, LoRec(camouflage=5, disguises=0.05)).weights.events
        assert by_default[lies].mean() <= 0.2
        assert asked[lies].mean() == 1
        assert asked[honest].mean() - by_default[honest].mean() < 0.01
        off = dict.fromkeys((view for view in VIEWS if view != "camouflage"), 0.0)
        for share in (0.003, 0.006):
            alone = decided(bad, known, LoRec(**off, camouflage=1, disguises=share)).weights.events
            assert 0.5 * share < (alone < 1).mean() <= share
        (said,) = decided(bad, known, LoRec(**off, camouflage=5, sources=("log",))).notes
        assert said == "the view camouflage says nothing: known fakes do not stand out by it"

    def test_a_part_of_its_budget_is_for_items_whose_holders_are_each_of_one_piece(self, town):
        """Of items that fail incoherence alike, those come first."""
        _, bad, known = poisoned(town, Replace(share=0.02))
        off = dict.fromkeys((view for view in VIEWS if view != "incoherence"), 0.0)
        guard = decided(bad, known, LoRec(**off, incoherence=1, budget=1e-9, intruders=0.01))
        text = TextVectors(bad.catalog, Hash(dim=64)).items()
        intrusion = Examiner(bad.train, len(bad.catalog), text, np.random.default_rng(0)).evidence.intrusion
        able = guard.found.views["incoherence"] > 1
        gone = np.isin(np.arange(len(able)), bad.train.items[guard.found.lies])
        assert (able[gone]).all()
        assert 0 < gone.sum() < able.sum()
        next_one = intrusion[able & ~gone].max()
        assert intrusion[gone].min() > next_one
        assert guard.found.views["incoherence"][gone].min() < guard.found.views["incoherence"][able & ~gone].max()

    @pytest.mark.parametrize("alike", ["all of them", "two of three words"])
    def test_who_names_what_is_pushed_does_not_hide_it(self, town, alike):
        """Five products of one maker, or one product listed five times: to a reader a crowd's taste."""
        poison, bad, known = poisoned(town, Random(share=0.02))
        numbers, title = pl.int_range(1, len(bad.catalog) + 1), "a spray of glue"
        named = pl.lit(title) if alike == "all of them" else pl.format(f"{title} {{}}", "item")
        theirs = pl.when(numbers.is_in(poison.targets.tolist())).then(named).otherwise("title")
        renamed = replace(bad, catalog=Catalog(bad.catalog.items.with_columns(title=theirs)))
        guard, trusting = (decided(renamed, known, LoRec(nameless=factor)) for factor in (15.0, 0.0))
        lies = bad.fraudsters[bad.train.users()] & np.isin(bad.train.items, poison.targets)
        assert not guard.weights.events[lies].any()
        assert trusting.weights.events[lies].mean() > 0.3
        assert guard.weights.events[~bad.fraudsters[bad.train.users()]].mean() > 0.98
        assert (guard.found.views["nameless"][poison.targets] > 15).all()

    def test_without_titles_there_is_nothing_to_set_aside(self, town):
        _, bad, known = poisoned(town, Random(share=0.02))
        for source in ("log", "text"):
            one, other = (decided(bad, known, LoRec(sources=(source,), nameless=factor)) for factor in (1.0, 0.0))
            assert (one.weights.events == other.weights.events).all()
            assert one.notes == other.notes
            assert "nameless" not in one.found.views

    def test_who_hides_from_each_view_is_seen_by_two_together(self, town, monkeypatch):
        """A crowd that adapts to every view but this one."""
        monkeypatch.setattr("lorec.attacks.adaptive.MEASURED", ("collusion", "incoherence", "copying", "surprise"))
        text, above, lies = TextVectors(town.catalog, Hash(dim=64)), {}, {0.0: [], 15.0: []}
        for seed in range(1, 5):
            poison = forge(Adaptive(share=0.05), town, 5, seed=seed, text=text)
            bad = inject(town, poison, seed=seed)
            found = Examiner(bad.train, len(town.catalog), text.items(), np.random.default_rng(0)).evidence
            for view in ("collusion", "incoherence", "contradiction"):
                scores = getattr(found, view)
                honest = np.delete(scores[1:], poison.targets - 1)
                above.setdefault(view, []).extend((honest > scores[target]).mean() for target in poison.targets)
            known, users = known_fakes(bad, share=0.02, seed=seed), bad.train.users()
            bought = bad.fraudsters[users] & np.isin(bad.train.items, poison.targets)
            for factor, kept in lies.items():
                kept.append(decided(bad, known, LoRec(contradiction=factor)).weights.events[bought].mean())
        told = {view: np.mean(shares) for view, shares in above.items()}
        assert told["contradiction"] < min(told["collusion"], told["incoherence"]), told
        assert np.mean(lies[15.0]) < np.mean(lies[0.0]) - 0.05, lies

    @pytest.mark.parametrize(("world", "seed"), [(0, 0), (0, 5), (1, 0), (2, 5)])
    def test_a_clean_log_is_hardly_touched(self, world, seed):
        clean = leave_two_out(shop(seed=world))
        guard = decided(clean, known_fakes(clean, share=0.02, seed=seed))
        assert 1 - guard.weights.events.mean() < 0.02
        assert guard.flagged.mean() < 0.05

    @pytest.mark.parametrize("share", [0.04, 0.08])
    def test_a_large_attack_does_not_drown_its_own_evidence(self, town, share):
        """Real lies stand among the honest when it calibrates; many of them must not make lies look common."""
        poison, bad, known = poisoned(town, Random(share=share))
        users = bad.train.users()
        lies = bad.fraudsters[users] & np.isin(bad.train.items, poison.targets)
        assert decided(bad, known).weights.events[lies].mean() < 0.25  # four targets of five at least

    def test_weights_do_not_move_when_the_recommender_learns(self, town):
        _, bad, known = poisoned(town, Random(share=0.02))
        recommender, guard = start(bad, known)
        batches = list(Feed(bad.train, len(bad.catalog), 20, tokens=1024).epoch(np.random.default_rng(0)))
        guard.loss(recommender, batches[0])
        before = guard.weights.events.copy()
        with torch.no_grad():
            for value in recommender.parameters():
                value.normal_()
        guard.loss(recommender, batches[1])
        guard.end_epoch(recommender, 1)
        assert (guard.weights.events == before).all()

    def test_a_lie_is_not_learned_from(self, town):
        """The loss of a batch is that of its other interactions."""
        _, bad, known = poisoned(town, Random(share=0.02))
        recommender, guard = start(bad, known)
        recommender.eval()
        plain = Undefended().start(recommender, Sight(bad.train, recommender.n_items))
        for batch in Feed(bad.train, len(bad.catalog), 20, tokens=1024).epoch(np.random.default_rng(0)):
            weighted, whole = guard.loss(recommender, batch), plain.loss(recommender, batch)
            off = (guard.weights.events[batch.events] == 0) & (batch.positives > 0)
            assert (float(weighted.detach()) < float(whole.detach())) == bool(off.any())

    def test_state_and_restore_go_on_to_the_same_bits(self, town, tmp_path):
        _, bad, known = poisoned(town, Random(share=0.02))
        one = decided(bad, known)
        save_state(tmp_path / "guard.safetensors", one.state())
        _, other = start(bad, known, seed=9)
        other.restore(load_state(tmp_path / "guard.safetensors"))
        assert (other.weights.events == one.weights.events).all()
        assert (other.suspicion == one.suspicion).all()
        assert (other.flagged == one.flagged).all()

    def test_nothing_is_gained_from_the_order_of_rows(self, town):
        _, bad, known = poisoned(town, Random(share=0.02))
        order = np.random.default_rng(0).permutation(len(bad))
        order = order[np.argsort(bad.fraudsters[order], kind="stable")]  # all fraudsters last
        for rows in (np.arange(len(bad)), order):
            guard = start(bad, known, rows=rows)[1]
            guard.decide()
            found = detection(guard.suspicion, guard.flagged, bad.fraudsters[rows])
            assert found["ROC-AUC"] > 0.98
            assert found["recall"] == 1

    def test_says_what_it_lacks(self, town):
        known = known_fakes(town, share=0.05, rounds=1)
        recommender = Recommender(SMALL, "ids", len(town.catalog))
        sight = Sight(town.train, recommender.n_items, known=known)
        with pytest.raises(DataError, match="known fakes"):
            LoRec().start(recommender, replace(sight, known=()))
        with pytest.raises(ConfigError, match="sources = \\['log'\\]"):
            LoRec().start(recommender, sight)
        assert LoRec(sources=("log",)).start(recommender, sight).weights.events is None
        with pytest.raises(DataError, match="no known fake takes a target"):
            start(town, [Poison(known[0].profiles, np.zeros(0, dtype=np.int32), {})])[1].decide()
        for wrong in (
            {"budget": 0.0},
            {"intruders": -0.1},
            {"silence": 1.5},
            {"disguises": 0.0},
            {"threshold": -0.1},
            {"surprise": 0.5},
            {"sources": ("text",), "without": ("text fit", "text kinship", "twins")},
            {**dict.fromkeys(VIEWS, 0.0), "association": 15.0},
        ):
            with pytest.raises(ConfigError, match="LoRec"):
                LoRec(**wrong)
        with pytest.raises(ConfigError, match="no measure to go without called 'text  fit'; did you mean 'text fit'"):
            LoRec(without=("text  fit",))

    def test_goes_without_a_measure(self, town):
        """Copied histories show in their doubles: without these the view has nothing to say, and says so."""
        poison, bad, known = poisoned(town, Replace(share=0.02))
        whole, without = (decided(bad, known, LoRec(without=some)) for some in ((), ("doubles",)))
        lies = bad.fraudsters[bad.train.users()] & np.isin(bad.train.items, poison.targets)
        assert whole.weights.events[lies].mean() < without.weights.events[lies].mean() - 0.2
        assert "the view copying says nothing: known fakes do not stand out by it" in without.notes


def trained(bad, known, poison, epochs, *defenses):
    """A recommender by each defense: its figures with exposure at 10, and its guard."""
    text = TextVectors(bad.catalog, Hash(dim=64))
    training = Training(epochs=epochs, patience=epochs, tokens=1024, learning_rate=3e-3)
    for defense in defenses:
        fitted = fit(bad, SASRec(width=32), defense=defense, known=known, text=text, training=training, seed=3)
        yield evaluate(fitted.recommender, bad, targets=poison.targets, exposures=(10,)).metrics, fitted.guard


@pytest.mark.parametrize(
    ("world", "attack", "able"),
    [(0, Random(share=0.02), 0.95), (1, Segment(share=0.02), 0.9), (0, Replace(share=0.02), 0.95)],
)
def test_works_on_short_histories(world, attack, able):
    poison, bad, known = poisoned(leave_two_out(shop(seed=world)), attack)
    (none, _), (safe, guard) = trained(bad, known, poison, 24, Undefended(), LoRec())
    assert detection(guard.suspicion, guard.flagged, bad.fraudsters)["ROC-AUC"] > able
    assert safe["T-HR@10"] < 0.2 * none["T-HR@10"]
    assert safe["HR@10"] > 0.9 * none["HR@10"]


def test_works_where_the_paper_fails(town):
    """Of the loudest kind: profiles at random."""
    poison, bad, known = poisoned(town, Random(share=0.02))
    (none, _), (paper, guard) = trained(bad, known, poison, 12, Undefended(), LoRecPaper(view="pooled", enter=6))
    assert guard.updates > 1
    assert detection(guard.suspicion, guard.flagged, bad.fraudsters)["ROC-AUC"] < 0.7
    assert paper["T-HR@10"] > 0.8 * none["T-HR@10"] > 0.01
