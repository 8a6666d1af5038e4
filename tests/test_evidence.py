"""Evidence about items: the counts against written-out references, and what they see in a small poisoned world."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

from lorec.attacks import LLM, Bandwagon, CoVisit, Random, Replace, Segment, forge
from lorec.data import Sequences, inject
from lorec.evidence import (
    COLLUSION,
    MEASURES,
    Examiner,
    _Company,
    _doubles,
    _kinship,
    _Quantiles,
    _Scale,
    _texts,
    _Usual,
    _World,
    by_rank,
    coherence,
    shapes,
)  # fmt: skip
from lorec.text import Hash, TextVectors

HISTORIES = st.lists(st.lists(st.integers(1, 8), min_size=1, max_size=7, unique=True), min_size=2, max_size=12)
EVERYTHING = np.arange(9)


def world(histories, partners=50):
    return _World.of(Sequences.of(histories), 8, partners, np.random.default_rng(0))


def both(histories, cut):
    """One log in two layers: some of its histories beside the others."""
    return world(histories[:cut]).extended(Sequences.of(histories[cut:]), 50, np.random.default_rng(0))


def holders_of(histories, item):
    """Each holder's other items."""
    return [[other for other in history if other != item] for history in histories if item in history]


@settings(max_examples=100)
@given(st.lists(st.lists(st.integers(1, 8), max_size=9), min_size=1, max_size=8), st.integers(0, 99))
def test_shapes_are_those_of_the_popularities(histories, seed):
    counts = np.random.default_rng(seed).integers(0, 50, 9)
    found = shapes(Sequences.of(histories), counts)
    for row, history in zip(found, histories, strict=True):
        n = np.log1p(counts[history]) if history else np.zeros(1)
        wanted = [n.mean(), np.ptp(n), *np.quantile(n, [0.25, 0.5, 0.75]), n.std()]
        np.testing.assert_allclose(row, wanted, atol=1e-12)


class TestCounts:
    @settings(max_examples=100)
    @given(HISTORIES)
    def test_pairs_are_those_of_every_history(self, histories):
        (made,) = world(histories).layers
        wanted = {}
        for history in histories:
            for one, other in itertools.permutations(history, 2):
                wanted[one * 9 + other] = wanted.get(one * 9 + other, 0) + 1
        assert dict(zip(made.known.tolist(), np.diff(made.first).tolist(), strict=True)) == wanted

    @settings(max_examples=100)
    @given(HISTORIES, st.integers(1, 11), st.sets(st.integers(1, 8), min_size=1))
    def test_company_against_its_definition_and_in_layers(self, histories, cut, asked):
        """Whatever part of the log stands beside the rest, and whichever items are asked for."""
        together = {
            pair: sum(set(pair) <= set(history) for history in histories)
            for pair in itertools.permutations(range(1, 9), 2)
        }
        mass = {item: sum(n for (one, _), n in together.items() if one == item) for item in range(1, 9)}
        total = sum(mass.values())

        def lift(one, other):
            return np.log((together[one, other] - 0.5) / (mass[one] * mass[other] / max(total, 1) + 0.5))

        items = np.array(sorted(asked))
        found = _Company.of(both(histories, cut), items).measures()
        for place, item in enumerate(items.tolist()):
            companies = holders_of(histories, item)
            social = [company for company in companies if company]
            fits = [np.mean([lift(item, other) for other in company]) for company in social]
            alone = [np.mean([together[item, other] == 1 for other in company]) for company in social]
            n = max(len(companies), 1)
            assert found["fit"][place] == pytest.approx(sum(fits) / n)
            assert found["strangers"][place] == pytest.approx(sum(alone) / n)
            drawn = [other for company in companies for other in company]
            pairs = [one == other for one, other in itertools.permutations(drawn, 2)]
            assert found["concentration"][place] == pytest.approx(np.mean(pairs) if pairs else 0)
            ranked = sorted((drawn.count(other) for other in set(drawn)), reverse=True)
            assert found["evenness"][place] == pytest.approx(sum(ranked[5:20]) / max(len(drawn), 1))
            shared = [np.mean([[a == b for b in two] for a in one]) for one, two in itertools.permutations(social, 2)]
            assert found["same"][place] == pytest.approx(np.mean(shared) if shared else 0)

    def test_a_twin_says_nothing(self):
        """Two listings of one product are held together: each is judged by its holders' other items."""
        histories = [[1, 2, 3], [1, 2, 4], [1, 2, 5], [1, 6], [3, 7], [4, 8]]
        vectors = np.eye(9, dtype=np.float32)
        vectors[2] = vectors[1]
        without = [[one for one in history if one != 2] for history in histories]
        asked = np.array([1])
        found, plain = (_Company.of(world(h), asked, vectors).measures() for h in (histories, without))
        known = _Company.of(world(histories), asked).measures()
        assert found["strangers"] == pytest.approx(plain["strangers"])
        assert found["concentration"] == pytest.approx(plain["concentration"])
        assert found["same"] < known["same"]
        assert found["concentration"] < known["concentration"]

    def test_at_most_two_twins_are_explained(self):
        """Who pushes five listings of one product is still seen."""
        histories = [[1, 2, 3, 4, 5]] * 4
        alike = _Company.of(world(histories), np.array([1]), np.ones((9, 2), dtype=np.float32))
        assert alike.kept.sum() == 2
        assert _Company.of(world(histories[:2]), np.array([1]), np.ones((9, 2), dtype=np.float32)).kept.all()  # too few

    @settings(max_examples=100)
    @given(HISTORIES, st.integers(1, 11), st.integers(0, 100), st.integers(1, 8))
    def test_texts_against_their_definition_and_in_layers(self, histories, cut, seed, item):
        vectors = np.random.default_rng(seed).standard_normal((9, 3)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors[8] = 0  # an item without text
        company = _Company.of(both(histories, cut), np.array([item]))
        usual = _Usual(np.full(21, 0.25), np.full(21, 0.5))
        found, same = _texts(company, vectors, usual), company.same()
        companies = holders_of(histories, item)
        social = [company for company in companies if company]
        fits = [np.mean(vectors[company] @ vectors[item]) for company in social]
        assert found["text fit"][0] == pytest.approx(sum(fits) / max(len(companies), 1), abs=1e-5)
        pairs = list(itertools.permutations(social, 2))
        # Averaged over pairs of holders: cosines of their items that differ, weighed by how often such a pair is drawn.
        differ = [np.mean([[(a != b) * (vectors[a] @ vectors[b]) for b in two] for a in one]) for one, two in pairs]
        wanted = np.mean(differ) / (1 - same[0]) if pairs and same[0] < 1 - 1e-6 else 0
        assert found["text kinship"][0] == pytest.approx(wanted, abs=1e-4)
        texts = [[other for other in company if other != 8] for company in social]
        alike = [
            np.mean([vectors[a] @ vectors[b] for a, b in itertools.permutations(one, 2)])
            for one in texts
            if len(one) > 1
        ]
        assert found["scatter"][0] == pytest.approx(-np.mean((np.array(alike) - 0.25) / 0.5) if alike else 0, abs=1e-4)

    def test_how_coherent_a_history_is_is_told_among_those_of_as_many_texts(self):
        rng = np.random.default_rng(0)
        vectors = rng.standard_normal((300, 4)) + 0.5
        vectors[0] = 0
        log = Sequences.of(
            [rng.choice(np.arange(1, 300), size, False) for size in [1] * 5 + [2] * 200 + [9] * 300 + [40] * 3]
        )
        alike, n = coherence(log, vectors)
        usual = _Usual.of(log, vectors)
        scores = usual.scores(alike, n)
        assert (scores[:5] == 0).all()  # a text alone
        for some in (n == 2, n == 9):
            assert (scores[some].mean(), scores[some].std()) == (pytest.approx(0, abs=1e-9), pytest.approx(1))
        few = n == 40  # too few for a scale of their own
        told = n > 1
        np.testing.assert_allclose(scores[few], (alike[few] - alike[told].mean()) / alike[told].std())
        assert _Usual.of(Sequences.of([[1], [2]]), vectors).scores(np.array([0.3]), np.array([2])) == 0.3

    @settings(max_examples=100)
    @given(HISTORIES, st.integers(1, 11), st.integers(1, 8), st.integers(1, 8), st.integers(1, 8))
    def test_holders_of_an_item_do_not_vouch_for_a_pair(self, histories, cut, item, left, right):
        asked = (np.array([left * 9 + right]), np.array([item]))
        layers = both(histories, cut).layers
        found = sum(layer.without_holders(*asked, np.random.default_rng(0))[0] for layer in layers)
        wanted = sum(left != right and {left, right} <= set(h) and item not in h for h in histories)
        assert found == pytest.approx(wanted)

    @settings(max_examples=25)
    @given(HISTORIES, st.integers(1, 8))
    def test_kinship_is_a_mean_over_holders_and_their_items(self, histories, item):
        """Many draws come near what all pairs of holders say."""
        made = both(histories, 1)
        pairs = sum(len(history) * (len(history) - 1) for history in histories)
        mass = {one: sum(len(h) - 1 for h in histories if one in h) for one in range(1, 9)}
        shares, lifts, weights = [], [], []
        for one, two in itertools.permutations(holders_of(histories, item), 2):
            for a, b in itertools.product(one, two):
                if a != b:
                    together = sum({a, b} <= set(h) and item not in h for h in histories)
                    shares.append(together > 0)
                    lifts.append(np.log((together + 0.5) / (mass[a] * mass[b] / pairs + 0.5)))
                    weights.append(1 / len(one) / len(two))
        found = _kinship(made, np.array([item]), 4000, np.random.default_rng(0))
        for name, wanted in (("kinship share", shares), ("kinship", lifts)):
            assert found[name][0] == pytest.approx(np.average(wanted, weights=weights) if wanted else 0, abs=0.06)

    @settings(max_examples=100)
    @given(HISTORIES, st.integers(0, 4))
    def test_doubles_against_their_definition(self, histories, layer):
        """Of a holder's pairs of items the share that somebody has who lacks the item; the most of them, the mean."""
        made = both(histories, layer)
        sets = [set(history) for history in histories]
        found = _doubles(made, EVERYTHING, most=100, nearest=100)
        for item in range(1, 9):
            best = []
            for mine in (one for one in sets if item in one):
                pairs = set(itertools.combinations(sorted(mine), 2))
                lacking = [one for one in sets if item not in one]
                common = [len(pairs & set(itertools.combinations(sorted(one), 2))) for one in lacking]
                best.append(max(common, default=0) / max(len(pairs), 1))
            assert found[item] == pytest.approx(np.mean(best) if best else 0)

    def test_the_nearest_double_may_be_a_fellow_so_the_next_are_asked_too(self):
        """Two fraudsters copied one history: each is the other's nearest double, and has the item as well."""
        whole = list(range(2, 9))
        histories = [whole, [1, *whole[1:]], [1, *whole[1:]]]
        likeness = 15 / 21  # of a copy's pairs, those without the item
        assert _doubles(world(histories), EVERYTHING)[1] == pytest.approx(likeness)
        assert _doubles(world(histories), EVERYTHING, nearest=1)[1] == 0

    def test_doubles_of_long_histories_are_found_by_their_sketches(self):
        rng = np.random.default_rng(0)
        genuine = [rng.choice(np.arange(2, 400), 60, replace=False).tolist() for _ in range(40)]
        copies = [[*genuine[user][:30], 1, *genuine[user][31:]] for user in range(10)]
        others = [rng.choice(np.arange(1, 400), 60, replace=False).tolist() for _ in range(10)]
        copied, honest = (
            _doubles(_World.of(Sequences.of(genuine + more), 400, 20, rng), np.arange(401))[1]
            for more in (copies, [[1, *other[1:]] for other in others])
        )
        assert copied > 0.6
        assert honest < 0.2

    def test_a_long_history_is_sampled_within_itself(self):
        log = Sequences.of([range(1, 9), [1, 2]])
        made = _World.of(log, 8, 3, np.random.default_rng(0)).layers[0]
        assert np.bincount(made.pair // 9).tolist() == [0, 4, 4, 3, 3, 3, 3, 3, 3]
        assert (made.pair // 9 != made.pair % 9).all()
        assert (np.diff(made.first)[np.isin(made.known, [1 * 9 + 2, 2 * 9 + 1], invert=True)] <= 1).all()

    def test_a_user_who_takes_an_item_again_does_not_vouch_for_it(self):
        again, once = ([[1, 2, 1, 2], [3, 1, 4]], [[1, 2], [3, 1, 4]])
        repeated, plain = (_Company.of(world(histories), EVERYTHING).measures() for histories in (again, once))
        for name, values in repeated.items():
            np.testing.assert_array_equal(values, plain[name])


def scored(values, holders):
    return _Quantiles.of(values, holders).scores(values, holders)


class TestScores:
    @settings(max_examples=50)
    @given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-5, 5))
    def test_neither_scale_nor_shift_of_a_measure_matters(self, seed, scale, shift):
        rng = np.random.default_rng(seed)
        values, holders = rng.standard_normal(300), rng.integers(3, 100, 300)
        one, other = (scored(v, holders) for v in (values, values * scale + shift))
        np.testing.assert_allclose(one, other, atol=1e-3)

    def test_honest_items_are_about_standard_normal_at_every_popularity(self):
        rng = np.random.default_rng(0)
        holders = rng.integers(3, 500, 4000)
        values = holders**0.5 + rng.gumbel(size=4000) * holders**0.25  # skewed, and wider where popular
        scores = scored(values, holders)
        for some in (holders < 100, (holders > 100) & (holders < 300), holders > 300):
            assert abs(scores[some].mean()) < 0.15
            assert 0.85 < scores[some].std() < 1.15

    @given(st.integers(0, 100))
    def test_tied_values_share_the_middle_of_their_ranks(self, seed):
        rng = np.random.default_rng(seed)
        values = np.where(rng.random(600) < 0.6, 0.0, rng.exponential(size=600))
        scores = scored(values, np.full(600, 9))
        assert np.ptp(scores[values == 0]) == 0
        assert scores[values == 0][0] == pytest.approx(-0.52, abs=0.35)  # the middle of the lower 60 %
        assert scores[0] == scored(values[::-1], np.full(600, 9))[-1]
        assert (scored(np.ones(600), np.full(600, 9)) == 0).all()

    def test_items_of_one_popularity_are_judged_together_whatever_their_numbers(self):
        values = np.linspace(0, 1, 2000)
        scores = scored(values, np.full(2000, 3))
        assert abs(scores.mean()) < 0.02
        assert scores[0] < -2 < 2 < scores[-1]

    @settings(max_examples=25)
    @given(st.integers(0, 1000))
    def test_excess_is_what_kinship_and_popularity_leave_of_fit_unexplained(self, seed):
        """Against a library's weighted least squares."""
        rng = np.random.default_rng(seed)
        holders = rng.integers(1, 200, 600)
        told = holders >= 3
        raw = {"kinship": rng.normal(size=600), "kinship share": rng.random(600)}
        n = np.log(holders)
        raw["fit"] = 2 * raw["kinship"] + 0.5 * n * raw["kinship"] + raw["kinship share"] + rng.normal(size=600)
        x = np.column_stack([raw["kinship"], n, raw["kinship"] * n, raw["kinship share"]])
        weights = np.minimum(np.sqrt(holders), 7) ** 2
        theirs = LinearRegression().fit(x[told], raw["fit"][told], sample_weight=weights[told])
        wanted = raw["fit"] - theirs.predict(x)
        scale = _Scale.of(raw, holders, told, told)
        found = scale.judge(raw, holders, told, told).measures["excess"]
        np.testing.assert_allclose(found[told], by_rank(wanted[told], holders[told]), atol=1e-6)
        assert np.corrcoef(found[told], raw["fit"][told])[0, 1] < 0.9

    def test_an_outlier_goes_beyond_the_ends_of_the_crowd(self):
        values = np.append(np.random.default_rng(0).standard_normal(500), 8.0)
        scores = scored(values, np.full(501, 20))
        assert scores[-1] > 5
        assert scores[:-1].max() < 4.5


def examiner(split, vectors=True):
    text = TextVectors(split.catalog, Hash(dim=64)).items() if vectors else None
    return Examiner(split.train, len(split.catalog), text, np.random.default_rng(0))


class TestWhatItSees:
    @pytest.mark.parametrize(
        ("attack", "view"),
        [
            (Random(share=0.02), "collusion"),
            (Bandwagon(share=0.02), "collusion"),
            (Segment(share=0.02), "collusion"),
            (Replace(share=0.02), "incoherence"),
            (Replace(share=0.02), "copying"),
            (CoVisit(share=0.02), "copying"),
            (Random(share=0.02), "contradiction"),
            (Bandwagon(share=0.02), "contradiction"),
        ],
    )
    @pytest.mark.parametrize("vectors", [True, False])
    def test_targets_stand_out_in_one_view(self, town, attack, view, vectors):
        poison = forge(attack, town, 5, seed=5)
        scores = getattr(examiner(inject(town, poison, seed=5), vectors).evidence, view)
        honest = np.delete(scores[1:], poison.targets - 1)
        above = [(honest > scores[target]).mean() for target in poison.targets]
        assert np.mean(above) < 0.1

    @pytest.mark.parametrize("vectors", [True, False])
    def test_views_against_their_definition(self, town, vectors):
        """Item by item, from the scores of the measures."""
        bad = inject(town, forge(Random(share=0.02), town, 5, seed=5), seed=5)
        found, holders = examiner(bad, vectors).evidence, bad.train.counts(len(bad.catalog))
        made = {"concentration": 1, "excess": 1, "same": 1, "kinship": -1, "text kinship": -1}
        crowd = {"kinship": -1, "kinship share": -1, "text kinship": -1, "text fit": -1, "fit": -1, "strangers": 1}
        odd = {"concentration": 1, "same": 1, "excess": 1, "kinship": -1, "kinship share": -1} | {
            "text kinship": -1, "text fit": -1, "fit": 0, "strangers": 0,
        }  # fmt: skip

        def mean(item, signs):
            scores = {name: values[item] for name, values in found.measures.items()}
            return np.mean([max(-5, min(5, scores[name])) * sign for name, sign in signs.items() if name in scores])

        told = [item for item in range(1, len(holders)) if holders[item] >= 3 and 2 * holders[item] <= len(bad.train)]
        for item in told:
            scatter = np.clip(found.measures["scatter"][item], -5, 5) if vectors else 0
            evenness = np.clip(found.measures["evenness"][item], -5, 5)
            collusion, incoherence = mean(item, made), mean(item, crowd)
            assert found.collusion[item] == pytest.approx(collusion + max(evenness, 0) / 2)
            assert found.incoherence[item] == pytest.approx(incoherence)
            assert found.intrusion[item] == pytest.approx(incoherence - 0.3 * scatter)
            assert found.contradiction[item] == pytest.approx(collusion + incoherence + scatter / 2)
            log = [
                mean(item, {name: sign for name, sign in one.items() if "text" not in name}) for one in (made, crowd)
            ]
            assert found.nameless[item] == pytest.approx(sum(log) if vectors else 0)
            assert found.copying[item] == pytest.approx(max(found.measures["doubles"][item] - 2, 0))
            hidden = 3 * mean(item, {"text kinship": 1, "kinship share": -1, "excess": 1}) if vectors else 0
            assert found.camouflage[item] == pytest.approx(max(hidden, 0))
        assert (found.camouflage > 0).any() == vectors
        # Only the odd side of most measures counts, both sides of fit and strangers; the crowd is cut at 4, no item is.
        names = [name for name in odd if name in found.measures]
        sides = {name: found.measures[name][told] for name in names}
        rows = np.array([np.where(one * odd[name] < 0, 0, one) for name, one in sides.items()]).T
        cut = np.clip(rows, -4, 4)
        assert (cut != rows).any()
        spread = np.cov(cut.T, ddof=0, aweights=holders[told]) + 0.05 * np.eye(len(names))
        away = rows - np.average(cut, axis=0, weights=holders[told])
        np.testing.assert_allclose(found.surprise[told] ** 2, [row @ np.linalg.solve(spread, row) for row in away])

    @pytest.mark.parametrize(
        ("attack", "better", "without"),
        [
            (LLM(share=0.02), lambda e: e.intrusion, lambda e: e.incoherence),
            (
                Segment(share=0.02),
                lambda e: e.collusion,
                lambda e: e.collusion - np.maximum(e.measures["evenness"], 0) / 2,
            ),
        ],
    )
    def test_two_measures_tell_targets_from_honest_items_that_look_alike(self, town, attack, better, without):
        """Innocent profiles that are each of one piece, and lists that are handed out."""
        text, above = TextVectors(town.catalog, Hash(dim=64)), {better: [], without: []}
        for seed in range(1, 5):
            poison = forge(attack, town, 5, seed=seed, text=text)
            found = examiner(inject(town, poison, seed=seed), True).evidence
            for score, shares in above.items():
                honest = np.delete(score(found)[1:], poison.targets - 1)
                shares += [(honest > target).mean() for target in score(found)[poison.targets]]
        assert np.mean(above[better]) < 0.8 * np.mean(above[without])
        assert np.mean(above[better]) < 0.02

    @pytest.mark.parametrize("attack", [Random(share=0.02), Segment(share=0.02), Replace(share=0.02)])
    def test_beside_a_log_is_as_in_it(self, town, attack):
        """Targets look alike whether their campaign stands in the log, or beside it."""
        poison = forge(attack, town, 5, seed=5)
        text, n = TextVectors(town.catalog, Hash(dim=64)).items(), len(town.catalog)
        whole, apart = (
            Examiner(log, n, text, np.random.default_rng(0), partners=50, pairs=2000)
            for log in (town.train.extended(poison.profiles), town.train)
        )
        found = apart.beside(poison.profiles, poison.targets)
        for view in ("collusion", "incoherence", "contradiction", "nameless", "surprise"):
            # Its fillers belong to the crowd, or they don't: ranks among honest items are near, not equal.
            honest = [np.delete(getattr(one.evidence, view)[1:], poison.targets - 1) for one in (whole, apart)]
            theirs = [getattr(whole.evidence, view)[poison.targets], getattr(found, view)]
            above = [[(h > score).mean() for score in some] for h, some in zip(honest, theirs, strict=True)]
            # Of fewer measures an ordinary look is less steady; all that is odd is as odd.
            steady = np.minimum(*above) < 0.1 if view == "nameless" else np.full(len(poison.targets), True)
            np.testing.assert_allclose(*(np.array(some)[steady] for some in above), atol=0.15, err_msg=view)

    def test_the_order_of_users_does_not_matter(self, town):
        """What is counted is the same; only the draws of pairs of holders differ."""
        text, n = TextVectors(town.catalog, Hash(dim=64)).items(), len(town.catalog)
        moved = town.train.take(np.random.default_rng(1).permutation(len(town)))
        one, other = (
            Examiner(log, n, text, np.random.default_rng(0), partners=50).evidence for log in (town.train, moved)
        )
        for name in ("fit", "strangers", "concentration", "same", "text fit"):
            np.testing.assert_allclose(one.measures[name], other.measures[name], atol=1e-4)

    def test_an_item_without_text_is_not_judged_by_it(self, town):
        text = TextVectors(town.catalog, Hash(dim=64)).items()
        text[[5, 6, 7]] = 0
        found = Examiner(town.train, len(town.catalog), text, np.random.default_rng(0)).evidence
        assert (found.measures["text fit"][[5, 6, 7]] == 0).all()

    def test_items_with_few_holders_and_padding_are_not_spoken_of(self):
        log = Sequences.of([[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 4]])
        found = Examiner(log, 4, None, np.random.default_rng(0)).evidence
        assert found.surprise[[0, 4]].tolist() == [0, 0]
        assert all(np.isfinite(values).all() for values in found.measures.values())

    @pytest.mark.parametrize(("share", "judged"), [(0.45, True), (0.55, False), (0.95, False), (1.0, False)])
    def test_what_most_people_have_is_not_spoken_of(self, town, share, judged):
        """Hardly anybody is left to compare its company with, so it would look the odder the more have it."""
        item, rng = int(np.argmax(town.train.counts(len(town.catalog)))), np.random.default_rng(0)
        histories = [town.train[user] for user in range(len(town))]
        lack = [user for user, history in enumerate(histories) if item not in history]
        more = int(share * len(town)) - (len(town) - len(lack))
        for user in rng.choice(lack, more, replace=False):
            histories[user] = np.append(histories[user], item)
        found = Examiner(Sequences.of(histories), len(town.catalog), None, np.random.default_rng(0)).evidence
        assert bool(found.surprise[item]) == judged

    def test_the_smallest_logs_do_not_break(self):
        for histories in ([[1]], [[1], [1], [1]], [[1, 2]] * 3, [[1, 1, 1]] * 3):
            made = Examiner(Sequences.of(histories), 3, np.ones((4, 2)), np.random.default_rng(0))
            beside = made.beside(Sequences.of([[1, 2], [1, 3]]), np.array([1, 3]))
            for found in (made.evidence, beside):
                assert np.isfinite(found.collusion).all()
                assert np.isfinite(found.intrusion).all()
                assert np.isfinite(found.surprise).all()

    @pytest.mark.parametrize("name", MEASURES)
    def test_a_measure_that_is_not_asked_changes_what_it_is_for_and_nothing_else(self, town, name):
        poison = forge(Segment(share=0.02), town, 5, seed=5)
        text, n, items = TextVectors(town.catalog, Hash(dim=64)).items(), len(town.catalog), np.arange(1, 900)
        whole, without = (
            Examiner(town.train, n, text, np.random.default_rng(0), without=some) for some in ((), (name,))
        )
        for one, other in (
            (whole.evidence, without.evidence),
            (whole.beside(poison.profiles, items), without.beside(poison.profiles, items)),
        ):
            assert other.measures.keys() == one.measures.keys() - {name}
            assert all((other.measures[kept] == one.measures[kept]).all() for kept in other.measures)
            changed = {
                view
                for view in (
                    "collusion", "incoherence", "contradiction", "nameless", "copying", "camouflage", "surprise",
                )
                if not np.allclose(getattr(one, view), getattr(other, view))
            }  # fmt: skip
            assert changed == ROLES[name]
            if "collusion" in changed and name != "evenness":
                signs = {kept: sign for kept, sign in COLLUSION.items() if kept != name}
                mean = sum(sign * np.clip(one.measures[kept], -5, 5) for kept, sign in signs.items()) / len(signs)
                spread = np.maximum(np.clip(one.measures["evenness"], -5, 5), 0) / 2
                np.testing.assert_allclose(other.collusion, mean + spread, atol=1e-9)

    def test_twins_count_where_they_are_to(self):
        """Two listings of one product have the same holders, whose other items are of all sorts."""
        rng = np.random.default_rng(0)
        histories = [[*rng.choice(np.arange(3, 60), 4, replace=False)] for _ in range(400)]
        for history in histories[:60]:
            history += [1, 2]
        text = np.eye(61, dtype=np.float32)
        text[2] = text[1]
        aside, counted = (
            Examiner(Sequences.of(histories), 60, text, np.random.default_rng(0), without=some)
            for some in ((), ("twins",))
        )
        named = "concentration"
        assert counted.evidence.measures[named][1] > aside.evidence.measures[named][1] + 1
        assert counted.evidence.measures["kinship"][1] == aside.evidence.measures["kinship"][1]


ROLES = {
    "fit": {"incoherence", "contradiction", "nameless", "surprise"},
    "strangers": {"incoherence", "contradiction", "nameless", "surprise"},
    "concentration": {"collusion", "contradiction", "nameless", "surprise"},
    "same": {"collusion", "contradiction", "nameless", "surprise"},
    "evenness": {"collusion"},
    "kinship": {"collusion", "incoherence", "contradiction", "nameless", "surprise"},
    "kinship share": {"incoherence", "contradiction", "nameless", "camouflage", "surprise"},
    "excess": {"collusion", "contradiction", "nameless", "camouflage", "surprise"},
    "doubles": {"copying"},
    "text fit": {"incoherence", "contradiction", "surprise"},
    "text kinship": {"collusion", "incoherence", "contradiction", "camouflage", "surprise"},
    "scatter": {"contradiction"},
}
"""The views that each measure is for. (And scatter for `intrusion`.)"""


def test_what_is_looked_at_in_parts_is_what_is_looked_at_at_once(town, monkeypatch):
    vectors = np.random.default_rng(1).normal(size=(len(town.catalog) + 1, 8)).astype(np.float32)

    def measured():
        return Examiner(town.train, len(town.catalog), vectors, np.random.default_rng(0)).evidence.measures

    whole = measured()
    monkeypatch.setattr("lorec.evidence.MOST_AT_ONCE", 70)
    parts = measured()
    for name, values in whole.items():
        np.testing.assert_allclose(parts[name], values, atol=1e-3, err_msg=name)
    monkeypatch.setattr("lorec.evidence.MOST_DRAWN", 192 * 100)
    drawn = measured()
    for name in ("kinship", "kinship share"):  # other pairs are drawn, of the same holders
        told = whole[name] != 0
        assert np.corrcoef(drawn[name][told], whole[name][told])[0, 1] > 0.75
