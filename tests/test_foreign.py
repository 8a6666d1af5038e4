"""A model that is not ours, opened by functions: one of our own, opened so, is the same model to whoever looks."""

import numpy as np
import pytest
import torch
from polars.testing import assert_frame_equal

from lorec.attacks import known_fakes
from lorec.defenses import ADV, APR, TCE, VAT, CL4SRec, GraphRfi, LoRec, LoRecPaper, PamaCF, StDenoise
from lorec.errors import ConfigError
from lorec.evaluation import evaluate
from lorec.models import Foreign, Recommender, SASRec
from lorec.sight import Sight
from lorec.text import Hash, TextVectors
from lorec.training import Training, fit


@pytest.fixture
def ours(split):
    return fit(split, SASRec(width=16, blocks=1), training=Training(epochs=2, tokens=512)).recommender


def opened(ours: Recommender, **more) -> Foreign:
    def states(history):
        return ours(history, ours.table())

    return Foreign(ours, ours.table, states, more.pop("losses", ours.losses), **more)


def test_is_judged_and_recommends_alike(ours, split):
    foreign = opened(ours)
    assert evaluate(foreign, split).metrics == evaluate(ours, split).metrics
    histories = split.train.take(np.arange(5))
    theirs, mine = (one.recommend(histories, split.catalog, k=3) for one in (foreign, ours))
    assert_frame_equal(theirs, mine, rel_tol=1e-5)  # our own skips what the newest state does not need


def test_defenses_see_alike(ours, split):
    known = known_fakes(split, kinds=["random"], share=0.1, seed=1)
    text = TextVectors(split.catalog, Hash(dim=16))
    for spec in (LoRecPaper(view="pooled", update_every=1, enter=2), GraphRfi(), LoRec(), TCE(), CL4SRec()):
        said = []
        for model in (ours, opened(ours)):
            with torch.random.fork_rng():
                torch.manual_seed(5)
                rng = np.random.default_rng(3)
                guard = spec.start(model, Sight(split.train, model.n_items, text, known, rng))
                model.eval()
                batch = next(iter(model.feed(split.train, 512).epoch(np.random.default_rng(1))))
                loss = guard.loss(model, batch).item()
                guard.end_epoch(model, 1)
                model.eval()
                said.append((loss, guard.weights.of_users(split.train).tolist(), guard.suspicion))
        (loss, weights, suspicion), (again, weights_again, suspicion_again) = said
        assert loss == again, spec
        np.testing.assert_allclose(weights, weights_again, rtol=1e-4, err_msg=str(spec))
        if suspicion is not None:
            np.testing.assert_allclose(suspicion, suspicion_again, rtol=1e-4)


def test_its_own_weights_are_those_that_learn(ours, split):
    foreign = opened(ours)
    assert [id(one) for one in foreign.parameters()] == [id(one) for one in ours.parameters()]
    assert foreign.train().model.training
    assert not foreign.eval().model.training


def test_says_what_does_not_fit(ours, split):
    def last(history):
        return ours(history, ours.table())[:, -1]

    with pytest.raises(ConfigError, match=r"states\(\) gives \[2, 16\] for histories \[2, 2\]; it is \[2, 2, 16\]"):
        Foreign(ours, ours.table, last)
    with pytest.raises(ConfigError, match=r"items\(\) gives \[16\]"):
        Foreign(ours, lambda: ours.table()[1], last)
    closed = opened(ours, losses=None)
    batch = next(iter(closed.feed(split.train, 512).epoch(np.random.default_rng(1))))
    with pytest.raises(ConfigError, match="looks at losses"):
        TCE().start(closed, Sight(split.train, closed.n_items)).loss(closed, batch)
    for spec in (APR(), VAT(), PamaCF(), ADV(), StDenoise()):
        with pytest.raises(ConfigError, match="a foreign one does not open"):
            spec.start(closed, Sight(split.train, closed.n_items))
    for inside in (closed.shifted, closed.keeping_states):
        with pytest.raises(ConfigError, match="a foreign one does not open"), inside():
            pass
    with pytest.raises(ConfigError, match="a foreign one does not open"):
        closed.encode(torch.zeros(1, 2, 16), torch.zeros(1, 2, dtype=torch.bool))
    with pytest.raises(ConfigError, match="saved by its own library"):
        closed.save("model.safetensors")


@pytest.mark.parametrize("more", [-5, 5])
def test_another_catalogue_is_noticed(split, more):
    other = Recommender(SASRec(width=16, blocks=1), "ids", len(split.catalog) + more)
    foreign = opened(other)
    with pytest.raises(ConfigError, match="items, the split's catalogue"):
        evaluate(foreign, split)
    if more < 0:
        with pytest.raises(ConfigError, match="number them as the split's catalogue"):
            foreign.feed(split.train)
        with pytest.raises(ConfigError, match="number them as the split's catalogue"):
            foreign.histories(split.train, 512)


def test_looking_at_a_model_changes_nothing_of_it():
    model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()

    def states(history):
        return model[2](model[1](model[0](history)).transpose(1, 2)).transpose(1, 2)

    Foreign(model, lambda: model[0].weight, states)
    assert model.training
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
