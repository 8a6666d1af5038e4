"""What every defense keeps, whatever it does."""

import dataclasses
import inspect

import numpy as np
import polars as pl
import pytest
import torch

from lorec.attacks import Random, forge, known_fakes
from lorec.data import Feed, Weights, inject
from lorec.defenses import DEFENSES, Guard, Oracle, Undefended, Weighted, WeightFile
from lorec.detectors import DETECTORS, Degree, detect
from lorec.errors import ConfigError, DataError
from lorec.models import BACKBONES, Recommender, SASRec
from lorec.sight import Sight
from lorec.text import Hash, TextVectors
from lorec.training import Training, fit

SMALL = SASRec(width=16, max_length=20, blocks=1)


def start(spec, split, backbone=SMALL, items="ids"):
    text, known = TextVectors(split.catalog, Hash(dim=32)), known_fakes(split, share=0.2, seed=1)
    recommender = Recommender(backbone, items, len(split.catalog), text.items() if items != "ids" else None)
    return recommender, spec.start(recommender, Sight(split.train, recommender.n_items, text, known))


def made(name):
    """A defense that a character hash is enough for."""
    fields = {"lorec-paper": {"view": "pooled"}, "llm4dec": {"view": "pooled"}, "filter": {"detector": Degree()}}
    return DEFENSES[name](**fields.get(name, {}))


LEARNED = sorted(set(DEFENSES) - {"oracle", "weighted"})


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
@pytest.mark.parametrize("items", ["ids", "text", "both"])
@pytest.mark.parametrize("name", LEARNED)
def test_every_defense_trains_with_finite_weights(name, backbone, items, split):
    recommender, guard = start(made(name), split, BACKBONES[backbone](width=16, max_length=20), items)
    batch = next(Feed(split.train, len(split.catalog), 20).epoch(np.random.default_rng(0)))
    loss = guard.loss(recommender, batch)
    loss.backward()
    guard.end_epoch(recommender, 1)
    assert torch.isfinite(loss)
    for values, wanted in ((guard.weights.users, len(split)), (guard.weights.events, len(split.train.items))):
        assert values is None or (np.isfinite(values).all() and (values >= 0).all() and len(values) == wanted)


@pytest.fixture(scope="module")
def planted(split):
    """A poisoned log twice: the same histories, and everything that a defense must not know put elsewhere."""
    bad = inject(split, forge(Random(share=0.2), split, 2, seed=4), seed=4)
    labels, n = np.roll(bad.fraudsters, 7), len(bad)
    named = [f"planted-{row if fake else n + row}" for row, fake in enumerate(labels)]
    held = [np.where(one == 0, 1, one)[np.random.default_rng(5).permutation(n)] for one in (bad.valid, bad.test)]
    other = dataclasses.replace(bad, users=pl.Series(named), fraudsters=labels, valid=held[0], test=held[1])
    assert other.train is bad.train
    return bad, other


def known_of(bad):
    return known_fakes(bad, share=0.2, seed=1)


@pytest.mark.parametrize("name", LEARNED)
def test_planted_labels_names_and_held_out_items_change_no_defense(name, planted):
    said = []
    for bad in planted:
        text, training = TextVectors(bad.catalog, Hash(dim=32)), Training(epochs=2, patience=2, tokens=512)
        fitted = fit(bad, SMALL, defense=made(name), text=text, known=known_of(bad), training=training, seed=3)
        said.append(
            (fitted.guard.suspicion, fitted.weights.of_events(bad.train), [row["loss"] for row in fitted.history])
        )
    for one, other in zip(*said, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", sorted(set(DETECTORS) - {"audit", "zeroshot"}))
def test_planted_labels_names_and_held_out_items_change_no_detector(name, planted):
    spec = DETECTORS[name](**({"view": "pooled"} if name == "llm4dec" else {}))
    said = [
        detect(spec, bad, text=TextVectors(bad.catalog, Hash(dim=32)), known=known_of(bad), seed=2) for bad in planted
    ]
    for field in ("users", "flagged", "interactions", "lies", "items"):
        np.testing.assert_array_equal(*(getattr(one, field) for one in said))


def test_a_defense_is_handed_no_labels_targets_or_held_out_items():
    for spec in DEFENSES.values():
        assert list(inspect.signature(spec.start).parameters) == [
            "self",
            "recommender",
            "sight",
        ]  # `Sight`: test_detectors


def test_the_oracle_needs_what_only_an_experiment_has(split):
    with pytest.raises(ConfigError, match="labels"):
        start(Oracle(), split)
    weights = Oracle().reveal(np.array([True, False])).weights
    assert weights.users.tolist() == [0.0, 1.0]


class TestWeightFile:
    @pytest.fixture
    def path(self, tmp_path):
        def write(suffix="csv", **columns):
            frame = pl.DataFrame(columns)
            if suffix == "parquet":
                frame.write_parquet(tmp_path / "w.parquet")
            else:
                frame.write_csv(tmp_path / f"w.{suffix}", separator="\t" if suffix == "tsv" else ",")
            return str(tmp_path / f"w.{suffix}")

        return write

    @pytest.mark.parametrize("suffix", ["csv", "parquet"])
    def test_by_user(self, split, path, suffix):
        one, other = split.users[3], split.users[5]
        given = WeightFile(path=path(suffix, user=[one, "stranger", other, other], weight=[0.0, 0.2, 0.7, 0.5]))
        weights = given.of(split.users, split.train).weights.users
        wanted = np.ones(len(split))
        wanted[[3, 5]] = 0, 0.5
        np.testing.assert_allclose(weights, wanted)

    def test_by_interaction(self, split, path):
        given = WeightFile(path=path(user=[split.users[3]], position=[1], weight=[0.0]))
        events = given.of(split.users, split.train).weights.events
        assert np.flatnonzero(events == 0).tolist() == [split.train.starts[3] + 1]

    def test_ids_stay_as_they_are_written(self, split, tmp_path):
        (tmp_path / "w.csv").write_text("user,weight\n007,0\n7,0.5\n")
        weights = WeightFile(path=str(tmp_path / "w.csv")).of(
            pl.Series(["007", "x", "7"]), split.train.take(np.arange(3))
        )
        assert weights.weights.users.tolist() == [0.0, 1.0, 0.5]

    def test_remarks_on_strangers_and_injected_users(self, split, path):
        given = WeightFile(path=path("tsv", user=[split.users[0], "zzz", "injected-00001"], weight=[0, 0, 0]))
        strangers, injected = given.remarks(split.users)
        assert "2 of 3 users" in strangers
        assert "1 injected users by number" in injected
        assert WeightFile(path=path(user=[split.users[0]], weight=[0])).remarks(split.users) == []

    def test_ids_may_be_numbers(self, path, split):
        users = pl.Series([str(n) for n in range(len(split))])
        given = WeightFile(path=path(user=[4, 7], weight=[0, 1]))
        assert np.flatnonzero(given.of(users, split.train).weights.users == 0).tolist() == [4]

    def test_says_what_is_wrong(self, split, path, tmp_path):
        user = [split.users[0]]
        for wrong, said in (
            ({"user": user}, "no column weight"), ({"user": ["x"], "weight": [1.0]}, "names no user"),
            ({"user": user, "weight": [-1.0]}, "row 1: weight is -1.0"),
            ({"user": user, "weight": ["a"]}, "weight is 'a'"),
            ({"user": user, "weight": [None]}, "weight is None"),
            ({"user": user, "weight": [1e30]}, "row 1: weight is 1e"),
            ({"user": user, "weight": [1.0], "position": [99]}, "outside of their users' histories"),
            ({"user": user, "weight": [1.0], "position": [0.5]}, "position is 0.5"),
            ({"user": user, "weight": [0.0], "position": [0], "item": ["i999"]}, "1 positions the log holds another"),
            ({"user": split.users.to_list(), "weight": [0.0] * len(split)}, "nothing is left"),
            ({"user": [], "weight": []}, "no rows"),
        ):  # fmt: skip
            with pytest.raises(DataError, match=said):
                WeightFile(path=path(**wrong)).of(split.users, split.train, split.catalog.ids(np.arange(1, 61)))
        (tmp_path / "broken.parquet").write_text("user,weight")
        for file, said in (("none.csv", "does not exist"), ("broken.parquet", "can't be read as weights")):
            with pytest.raises(DataError, match=said):
                WeightFile(path=str(tmp_path / file)).of(split.users, split.train)
        with pytest.raises(ConfigError, match="which no defense is given"):
            start(WeightFile(path=path(user=user, weight=[1.0])), split)


def test_given_weights_must_fit(split):
    with pytest.raises(DataError, match=f"2 weights of users for a log with {len(split)}"):
        start(Oracle().reveal(np.array([True, False])), split)


def test_plain_guards_weigh_nothing(split):
    _, guard = start(Undefended(), split)
    assert guard.weights.users is None
    assert guard.suspicion is None
    assert guard.ready
    assert Weighted().start(None, Sight(split.train, len(split.catalog))).flagged is None


def test_half_a_weight_or_less_turns_down_whoever_gave_it(split):
    """One rule, that of `judged`: a user as a whole, or in one interaction."""
    users, events = np.ones(len(split), dtype=np.float32), np.ones(len(split.train.items), dtype=np.float32)
    users[:3] = 0.51, 0.5, 0.0
    events[split.train.starts[5]], events[split.train.starts[6]] = 0.2, 0.7
    weights = Weights(users=users, events=events)
    _, guard = start(Weighted(weights), split)
    assert np.flatnonzero(guard.flagged).tolist() == [1, 2, 5]
    assert np.flatnonzero(Guard(Weights(users=users)).flagged).tolist() == [1, 2]
    assert weights.turned_down(split.train).sum() == split.train.lengths[1:3].sum() + 1
