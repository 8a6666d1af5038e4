import dataclasses
import json

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from torch.nn import functional as F

from lorec.data import Batch, Catalog, Feed, Sequences
from lorec.errors import ConfigError, DataError, RunError
from lorec.models import (
    BACKBONES,
    BCE,
    FMLP,
    GBCE,
    LOSSES,
    GRU4Rec,
    Recommender,
    SampledSoftmax,
    SASRec,
    Softmax,
    first_places,
    hide,
    load_recommender,
)  # fmt: skip
from lorec.models.layers import Attention, causal_mask, dropout, seeded
from lorec.models.losses import mean_loss

ITEMS = 30
VECTORS = np.vstack([np.zeros((1, 8)), np.random.default_rng(0).standard_normal((ITEMS, 8))]).astype(np.float32)
KINDS = ("ids", "text", "both")
SPECS = [
    SASRec(width=16, max_length=12),
    SASRec(width=16, max_length=12, norm="post", activation="relu", feed_forward=16, blocks=1),
    GRU4Rec(width=16, max_length=12),
    GRU4Rec(width=16, max_length=12, hidden=8, layers=2),
    FMLP(width=16, max_length=12),
    FMLP(width=16, max_length=13, blocks=1, activation="relu", feed_forward=8),
]


def test_seeded_draws_move_nobody_elses(monkeypatch):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(1)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("reseeds every GPU"))
    before = torch.get_rng_state()
    with seeded(7):
        assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.get_rng_state(), before)


def model(kind="ids", spec=SPECS[0], seed=0, loss=None):
    made = Recommender(spec, kind, ITEMS, None if kind == "ids" else VECTORS, seed, loss).eval()
    with torch.no_grad():  # larger than at birth, so that differences show
        for value in made.parameters():
            value.mul_(3)
    return made


def states(made, history):
    return made(torch.tensor(history), made.table())


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", KINDS)
class TestLaws:
    @settings(max_examples=10)
    @given(data=st.data())
    def test_a_state_does_not_see_what_comes_later(self, kind, spec, data):
        made = model(kind, spec)
        history = data.draw(st.lists(st.integers(1, ITEMS), min_size=2, max_size=12))
        cut = data.draw(st.integers(1, len(history) - 1))
        other = history[:cut] + [item % ITEMS + 1 for item in history[cut:]]
        torch.testing.assert_close(states(made, [history])[:, :cut], states(made, [other])[:, :cut])

    @settings(max_examples=10)
    @given(data=st.data())
    def test_padding_and_batch_width_change_nothing(self, kind, spec, data):
        made = model(kind, spec)
        history = data.draw(st.lists(st.integers(1, ITEMS), min_size=1, max_size=8))
        alone = states(made, [history])
        among = states(made, [[0] * (12 - len(history)) + history, [1] * 12])
        # A norm of nearly equal numbers magnifies the last bits; a real leak would be as large as the states.
        torch.testing.assert_close(alone[0], among[0, 12 - len(history) :], atol=5e-4, rtol=1e-3)

    @pytest.mark.parametrize("histories", [[[1, 2, 3], [4, 5, 6]], [[0, 0, 7], [0, 8, 9]], [[3], [4]]])
    def test_the_newest_states_alone_are_the_last_of_all(self, kind, spec, histories):
        made, history = model(kind, spec), torch.tensor(histories)
        with torch.no_grad():
            alone = made.newest(history, made.table())
        torch.testing.assert_close(alone, states(made, histories)[:, -1], atol=1e-5, rtol=1e-4)

    def test_what_is_added_to_states_reaches_the_newest(self, kind, spec):
        made, history = model(kind, spec), torch.tensor([[1, 2, 3]])
        shift = torch.arange(3 * spec.width, dtype=torch.float32).view(1, 3, spec.width)
        with torch.no_grad():
            before = made.newest(history, made.table())
            with made.shifted(states=shift):
                after = made.newest(history, made.table())
        torch.testing.assert_close(after - before, shift[:, -1], atol=1e-4, rtol=1e-4)

    def test_a_state_depends_on_order(self, kind, spec):
        made = model(kind, spec)
        assert not torch.allclose(states(made, [[1, 2, 3]])[:, -1], states(made, [[2, 1, 3]])[:, -1], atol=1e-3)

    def test_saves_and_loads_to_the_same_scores(self, kind, spec, tmp_path):
        made = model(kind, spec)
        made.save(tmp_path / "m.safetensors")
        again = load_recommender(tmp_path / "m.safetensors")
        log = Sequences.of([[1, 2, 3], [4]])
        for (rows, one), (rows_again, other) in zip(made.score(log), again.score(log), strict=True):
            assert (rows == rows_again).all()
            assert torch.equal(one, other)
        made.save(tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()

    def test_fresh_weights_come_from_the_seed(self, kind, spec):
        first, same, other = (Recommender(spec, kind, ITEMS, VECTORS, seed) for seed in (1, 1, 2))
        assert torch.equal(first.table(), same.table())
        assert not torch.equal(first.table(), other.table())


def test_sasrec_against_a_written_out_reference():
    """One block, one head, pre-norm, spelled out for one history."""
    made = model(spec=SASRec(width=8, max_length=5, blocks=1, heads=1))
    block, history = made.backbone.blocks[0], [3, 1, 7]
    x = made.embedding[torch.tensor(history)] * 8**0.5
    x = x + torch.stack([made.backbone.positions[2], made.backbone.positions[1], made.backbone.positions[0]])
    normed = F.layer_norm(x, (8,), block.norm_attention.weight, block.norm_attention.bias)
    attention, feed = block.attention, block.feed
    q, k, v = (normed @ attention.query_key_value.weight.T + attention.query_key_value.bias).split(8, dim=1)
    attended = []
    for t in range(3):
        shares = torch.softmax(torch.stack([(q[t] * k[s]).sum() / 8**0.5 for s in range(t + 1)]), 0)
        attended.append(sum(share * v[s] for s, share in enumerate(shares)))
    x = x + torch.stack(attended) @ attention.out.weight.T + attention.out.bias
    normed = F.layer_norm(x, (8,), block.norm_feed.weight, block.norm_feed.bias)
    x = x + F.gelu(normed @ feed.up.weight.T + feed.up.bias) @ feed.down.weight.T + feed.down.bias
    wanted = F.layer_norm(x, (8,), made.backbone.norm.weight, made.backbone.norm.bias)
    torch.testing.assert_close(states(made, [history])[0], wanted, atol=1e-5, rtol=1e-5)


def test_gru4rec_against_a_written_out_reference():
    made = model(spec=GRU4Rec(width=8, max_length=5, hidden=6))
    weights, history = dict(made.backbone.recurrent.named_parameters()), [3, 1, 7]
    h, wanted = torch.zeros(6), []
    for x in made.embedding[torch.tensor(history)] * 8**0.5:
        read = (weights["weight_ih_l0"] @ x + weights["bias_ih_l0"]).split(6)
        kept = (weights["weight_hh_l0"] @ h + weights["bias_hh_l0"]).split(6)
        reset, update = (torch.sigmoid(read[i] + kept[i]) for i in range(2))
        h = (1 - update) * torch.tanh(read[2] + reset * kept[2]) + update * h
        wanted.append(made.backbone.out.weight @ h + made.backbone.out.bias)
    torch.testing.assert_close(states(made, [[0, *history]])[0, 1:], torch.stack(wanted), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("circular", [False, True])
def test_fmlp_against_a_written_out_reference(circular):
    """The filter as the sum that a product of spectra stands for: over what came before, or around the end."""
    made = model(spec=FMLP(width=4, max_length=5, blocks=1, circular=circular))
    block, history = made.backbone.blocks[0], [0, 0, 3, 1, 7]
    with torch.no_grad():
        block.filter.mul_(20)
    x = F.embedding(torch.tensor(history), made.embedding, padding_idx=0) * 2 + made.backbone.positions.flip(0)
    x = F.layer_norm(x, (4,), made.backbone.norm.weight, made.backbone.norm.bias)
    x = x if circular else x * (torch.tensor(history) > 0)[:, None]
    kernel = torch.fft.irfft(torch.view_as_complex(block.filter), n=5, dim=0)
    filtered = [
        sum(kernel[(t - s) % 5] * x[s] for s in range(5) if circular or s <= t) for t in range(5)
    ]  # fmt: skip
    x = F.layer_norm(x + torch.stack(filtered), (4,), block.norm_filter.weight, block.norm_filter.bias)
    wanted = F.layer_norm(x + block.feed(x), (4,), block.norm_feed.weight, block.norm_feed.bias)
    torch.testing.assert_close(states(made, [history])[0, 2:], wanted[2:], atol=1e-5, rtol=1e-4)


class TestCircular:
    """The filter that sees all of a history at once gets what it needs: prefixes, all of one length."""

    SPEC = FMLP(width=16, max_length=4, circular=True)

    def test_every_event_but_the_first_is_predicted_once_from_what_came_before(self):
        log, made = Sequences.of([[1, 2, 3, 4, 5, 6], [7, 8], [9]]), model(spec=self.SPEC)
        found = set()
        for batch in made.feed(log, 12).epoch(np.random.default_rng(0)):
            assert batch.history.shape[1] == 4
            assert not batch.positives[:, :-1].any()
            assert not batch.negatives[:, :-1].any()
            assert (log.items[batch.events[:, -1]] == batch.positives[:, -1]).all()
            found |= {
                (tuple(history.tolist()), int(item))
                for history, item in zip(batch.history, batch.positives[:, -1], strict=True)
            }
        wanted = {(0, 0, 0, 1): 2, (0, 0, 1, 2): 3, (0, 1, 2, 3): 4, (1, 2, 3, 4): 5, (2, 3, 4, 5): 6, (0, 0, 0, 7): 8}
        assert found == set(wanted.items())

    def test_is_scored_at_its_length(self):
        made = model(spec=self.SPEC)
        (_, alone), (_, among) = (
            next(made.score(Sequences.of(histories))) for histories in ([[1, 2]], [[1, 2], [3, 4, 5, 6, 7]])
        )
        torch.testing.assert_close(alone[0], among[0])

    def test_learns(self):
        log = Sequences.of([[(3 * user + step) % ITEMS + 1 for step in range(6)] for user in range(60)])
        made = Recommender(FMLP(width=16, max_length=4, circular=True, dropout=0.1), "ids", ITEMS)
        assert trained(made, log) < 0.5


def trained(made, log, steps=60):
    """The loss after some epochs, as a share of the first one's."""
    optimizer = torch.optim.AdamW(made.parameters(), 1e-2)
    totals = []
    for _ in range(steps):
        totals.append(0.0)
        for batch in made.feed(log, 64).epoch(np.random.default_rng(len(totals))):
            loss = mean_loss(made.losses(batch), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            totals[-1] += float(loss.detach())
    return totals[-1] / totals[0]


@pytest.mark.parametrize("name", sorted(BACKBONES))
@pytest.mark.parametrize("loss", [BCE(negatives=3), GBCE(negatives=8), SampledSoftmax(negatives=8), Softmax()])
def test_learns_who_follows_whom_with_any_loss(name, loss):
    log = Sequences.of([[(user + step) % ITEMS + 1 for step in range(3)] for user in range(60)])
    made = Recommender(BACKBONES[name](width=32, max_length=12, dropout=0.0), "ids", ITEMS, loss=loss)
    trained(made, log, 150)
    made.eval()
    ends = Sequences.of([[4, 5], [20, 21]])
    _, scores = next(made.score(ends))
    scores[:, 0] = -torch.inf
    hide(scores, ends)
    assert scores.argmax(1).tolist() == [6, 22]


def one_by_one(made, batch, wanted):
    """A loss against what is wanted of a state, its positive's score and its negatives'."""
    losses, table = made.losses(batch), made.table()
    for row, t in np.ndindex(batch.positives.shape):
        if batch.positives[row, t] == 0:
            assert losses[row, t] == 0
            continue
        h = states(made, [[x for x in batch.history[row] if x]])[0][t - batch.history.shape[1]]
        positive, negatives = int(batch.positives[row, t]), batch.negatives[row, t].tolist()
        expected = wanted(table[1:] @ h, positive - 1, [one - 1 for one in negatives])
        torch.testing.assert_close(losses[row, t], expected, atol=1e-4, rtol=1e-4)


def batch_for(made, log=None):
    return next(made.feed(log or Sequences.of([[1, 2, 3], [4, 5]]), 100).epoch(np.random.default_rng(0)))


class TestLosses:
    def test_binary_cross_entropy(self):
        made = model(loss=BCE(negatives=3))

        def wanted(scores, positive, negatives):
            s = torch.sigmoid(scores)
            return -torch.log(s[positive]) - sum(torch.log(1 - s[one]) for one in negatives)

        one_by_one(made, batch_for(made), wanted)

    def test_generalised_binary_cross_entropy(self):
        made = model(loss=GBCE(negatives=3, calibration=0.6))
        a = 3 / (ITEMS - 1)
        beta = a * (0.6 * (1 - 1 / a) + 1 / a)

        def wanted(scores, positive, negatives):
            s = torch.sigmoid(scores)
            return -torch.log(s[positive] ** beta) - sum(torch.log(1 - s[one]) for one in negatives)

        one_by_one(made, batch_for(made), wanted)

    def test_without_calibration_it_is_plain(self):
        plain, general = model(loss=BCE(negatives=3)), model(loss=GBCE(negatives=3, calibration=0))
        batch = batch_for(plain)
        torch.testing.assert_close(plain.losses(batch), general.losses(batch))

    @pytest.mark.parametrize("sampling", ["uniform", "popularity"])
    def test_sampled_softmax(self, sampling):
        made, log = model(loss=SampledSoftmax(negatives=4, sampling=sampling)), Sequences.of([[1, 2, 3], [4, 2]])
        counts = log.counts(ITEMS)[1:] + 1.0
        chance = counts / counts.sum() if sampling == "popularity" else np.full(ITEMS, 1 / (ITEMS - 1))

        def wanted(scores, positive, negatives):
            others = sum(torch.exp(scores[one]) / (4 * chance[one]) for one in negatives)
            return -torch.log(torch.exp(scores[positive]) / (torch.exp(scores[positive]) + others))

        one_by_one(made, batch_for(made, log), wanted)

    def test_sampled_softmax_is_the_softmax_on_average(self):
        """Of a user who took one item besides the positive, over many draws, whichever way negatives are drawn."""
        log = Sequences.of([[1, 2], *([item, 1 + item % ITEMS] for item in range(3, 12) for _ in range(item))])
        for sampling in ("uniform", "popularity"):
            made = model(loss=SampledSoftmax(negatives=4000, sampling=sampling))
            with torch.no_grad():
                for value in made.parameters():
                    value.mul_(2)
            feed = made.feed(log, 40)
            found = next(b for b in feed.epoch(np.random.default_rng(0)) if 0 in b.users)
            row = int(np.flatnonzero(found.users == 0)[0])
            h = states(made, [[1]])[0, -1].detach()
            scores = made.table().detach()[2:] @ h  # all but the padding and the item that was taken
            wanted = torch.logsumexp(scores, 0) - scores[0]
            # Draws skip what the user took, so chances are a little larger than said: by its share of all draws.
            assert float(made.losses(found)[row, -1].detach()) == pytest.approx(float(wanted), abs=0.12)

    @pytest.mark.parametrize("chunk", [1, 70, 10_000])
    def test_softmax_and_its_gradient_whatever_the_chunk(self, chunk):
        made = model(loss=Softmax(chunk=chunk))
        batch = batch_for(made)
        one_by_one(made, batch, lambda scores, positive, _: torch.logsumexp(scores, 0) - scores[positive])
        gradient = torch.autograd.grad(made.losses(batch).sum(), made.embedding)[0]
        whole = model(loss=Softmax())
        torch.testing.assert_close(
            gradient, torch.autograd.grad(whole.losses(batch).sum(), whole.embedding)[0], atol=1e-5, rtol=1e-4
        )

    def test_popular_negatives_come_as_often_as_items_occur(self):
        log = Sequences.of([[1, 2]] * 60 + [[3, 4]] * 20)
        made = model(loss=BCE(negatives=50, sampling="popularity"))
        batches = list(made.feed(log, 400).epoch(np.random.default_rng(0)))
        drawn = np.concatenate([one.negatives[one.users < 60].flatten() for one in batches])
        counts = np.bincount(drawn, minlength=ITEMS + 1)[3:] / len(drawn)
        wanted = np.array([21, 21, *[1] * (ITEMS - 4)]) / (42 + ITEMS - 4)
        np.testing.assert_allclose(counts, wanted, atol=0.02)
        batch = batch_for(made, log)
        assert batch.chances.shape == batch.negatives.shape
        assert np.exp(batch.chances[batch.negatives == 3]).mean() == pytest.approx(21 / (160 + ITEMS))

    def test_refuses_what_makes_no_sense(self):
        for wrong in (lambda: BCE(negatives=0), lambda: GBCE(calibration=2.0), lambda: Softmax(chunk=0)):
            with pytest.raises(ConfigError):
                wrong()
        assert set(LOSSES) == {"bce", "gbce", "sampled-softmax", "softmax"}


class TestDropout:
    @settings(max_examples=20)
    @given(st.floats(0.01, 0.95), st.integers(0, 100))
    def test_drops_its_share_and_keeps_the_mean(self, p, seed):
        torch.manual_seed(seed)
        x = torch.ones(301, 333, requires_grad=True)
        found = dropout(x, p, True)
        assert float((found == 0).float().mean()) == pytest.approx(p, abs=0.01)
        assert float(found.detach().mean()) == pytest.approx(1, abs=0.1)
        (gradient,) = torch.autograd.grad(found.sum(), x)
        torch.testing.assert_close(gradient, found.detach())

    def test_is_off_when_judged_and_drawn_from_the_seed(self):
        x = torch.ones(50, 50)
        assert dropout(x, 0.5, False) is x or torch.equal(dropout(x, 0.5, False), x)
        torch.manual_seed(3)
        one = dropout(x, 0.5, True)
        torch.manual_seed(3)
        assert torch.equal(one, dropout(x, 0.5, True))
        assert not torch.equal(one, dropout(x, 0.5, True))

    def test_neighbours_are_dropped_independently(self):
        torch.manual_seed(0)
        kept = (dropout(torch.ones(1 << 18), 0.5, True) > 0).float()
        for step in range(1, 9):  # eight bytes come of one draw
            assert abs(float(torch.corrcoef(torch.stack([kept[step:], kept[:-step]]))[0, 1])) < 0.01


@pytest.mark.parametrize("padded", [False, True])
def test_attention_with_a_mask_of_its_own_is_the_fused_one(padded):
    torch.manual_seed(0)
    made, hidden = Attention(8, 2, 1e-9), torch.randn(3, 5, 8)  # dropout so small that nothing is dropped
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[0, :2] = padded
    mask = causal_mask(padding) if padded else None
    torch.testing.assert_close(made.train()(hidden, mask), made.eval()(hidden, mask), atol=1e-6, rtol=1e-5)


class TestPrecision:
    """bfloat16 multiplies large matrices in training, and nothing else."""

    def batch(self):
        log = Sequences.of([list(range(1 + n, 9 + n)) for n in range(20)])
        return next(Feed(log, ITEMS, 12).epoch(np.random.default_rng(0)))

    def gradient(self, made):
        made.zero_grad()
        loss = mean_loss(made.losses(self.batch()), self.batch())
        loss.backward()
        return loss.item(), torch.cat([value.grad.flatten() for value in made.parameters()])

    @pytest.mark.parametrize("spec", SPECS)
    @pytest.mark.parametrize("loss", [BCE(), Softmax()])
    def test_losses_and_gradients_are_nearly_those_of_float32(self, spec, loss):
        made = Recommender(dataclasses.replace(spec, dropout=0.0), "both", ITEMS, VECTORS, 0, loss).train()
        exact, wanted = self.gradient(made)
        made.precision = "bfloat16"
        rounded, found = self.gradient(made)
        assert exact != rounded  # it does something
        assert rounded == pytest.approx(exact, rel=0.01)
        assert found.dtype == torch.float32
        assert F.cosine_similarity(wanted, found, dim=0) > 0.99
        assert 0.97 < found.norm() / wanted.norm() < 1.03

    def test_ranking_stays_exact_and_new_weights_inherit_it(self):
        made = model()
        _, exact = next(made.score(Sequences.of([[1, 2, 3]])))
        exact = exact.clone()
        made.precision = "bfloat16"
        assert torch.equal(exact, next(made.train().score(Sequences.of([[1, 2, 3]])))[1])


def test_weights_scale_the_loss_and_its_gradient():
    batch = next(Feed(Sequences.of([[1, 2, 3], [4, 5, 6]]), ITEMS, 12, 100).epoch(np.random.default_rng(0)))
    made = model()
    weights = torch.tensor([[0.0], [1.0]]).expand(2, 2)
    loss = mean_loss(made.losses(batch), batch, weights)
    kept = Batch(*(part[1:] for part in (batch.users, batch.history, batch.positives, batch.negatives, batch.events)))
    alone = mean_loss(made.losses(kept), kept)
    torch.testing.assert_close(loss, alone / 2)
    gradient = torch.autograd.grad(loss, made.embedding)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(alone / 2, made.embedding)[0], atol=1e-6, rtol=1e-4)
    assert not gradient[0].any()  # padding is never trained


class TestRecommend:
    @pytest.fixture
    def catalog(self, split) -> Catalog:
        return Catalog(split.catalog.items.head(ITEMS))

    def test_ranks_the_unseen_by_score(self, catalog):
        made, log = model(), Sequences.of([[1, 2], [3]])
        found = made.recommend(log, catalog, k=ITEMS)
        _, scores = next(made.score(log.take(np.array([0]))))
        order = [int(n) for n in scores[0].argsort(descending=True) if int(n) not in (0, 1, 2)]
        assert catalog.numbers(found.filter(user="0")["item"]).tolist() == order
        assert found.filter(user="0")["rank"].to_list() == list(range(1, ITEMS - 1))
        assert found.filter(user="1").height == ITEMS - 1

    def test_seen_items_on_request(self, catalog):
        assert model().recommend(Sequences.of([[1, 2]]), catalog, k=ITEMS, seen=True).height == ITEMS

    def test_an_empty_history_gets_popular_items_and_says_so(self, catalog):
        with pytest.raises(DataError, match="history is empty"):
            model().recommend(Sequences.of([[1], []]), catalog)
        made = model()
        made.popularity = np.array([0.0] + [(7 * n) % 31 for n in range(ITEMS)])
        # A catalogue may have such a column of its own: it says nothing of the log.
        theirs = Catalog(catalog.items.with_columns(count=pl.lit("6-pack")))
        found = made.recommend(Sequences.of([[], [1], []]), theirs, k=3, without=np.array([31 - 9]))
        ordered = np.argsort(-made.popularity, kind="stable")
        order = pl.Series(catalog.ids(ordered[ordered != 31 - 9][:3]))
        assert found["by"].to_list() == ["popularity"] * 3 + ["model"] * 3 + ["popularity"] * 3
        assert found.filter(user="0")["item"].to_list() == found.filter(user="2")["item"].to_list() == order.to_list()
        assert found.filter(user="0")["score"].to_list() == sorted(found.filter(user="0")["score"], reverse=True)

    def test_of_equal_scores_the_lower_number_comes_first_however_long_the_list(self, catalog):
        made = model()
        made.popularity = np.ones(ITEMS + 1)
        lists = [made.recommend(Sequences.of([[]]), catalog, k=k)["item"].to_list() for k in (1, 2, 5, 10, ITEMS)]
        assert all(lists[-1][: len(one)] == one for one in lists)
        assert lists[-1] == catalog.ids(np.arange(1, ITEMS + 1))

    @settings(max_examples=50)
    @given(scores=st.lists(st.sampled_from([-np.inf, 0.0, 1.0, 2.0]), min_size=3, max_size=9), k=st.integers(1, 3))
    def test_first_places_against_a_stable_sort(self, scores, k):
        values, numbers = first_places(torch.tensor([scores, scores[::-1]]), k)
        for row, mine in enumerate((scores, scores[::-1])):
            best = sorted(range(len(mine)), key=lambda n: (-mine[n], n))[:k]
            real = [n for n in best if mine[n] > -np.inf]
            assert numbers[row][: len(real)].tolist() == real
            assert values[row].tolist() == [mine[n] for n in best]

    @pytest.mark.parametrize(
        ("history", "options", "message"),
        [
            ([ITEMS + 1], {}, "a history has an item below 1 or above 30"),
            ([1], {"without": np.array([0])}, "without has an item below 1"),
            ([1], {"without": ["3"]}, "without holds '3'"),
            ([1], {"without": [0.5]}, "without holds .*0.5"),
            ([1], {"users": ["a", "b"]}, "2 users for 1 histories"),
            ([1], {"users": pl.Series([], dtype=pl.String)}, "0 users for 1 histories"),
            ([1], {"k": -1}, "k is -1"),
        ],
    )
    def test_numbers_that_the_model_does_not_have(self, catalog, history, options, message):
        with pytest.raises((ConfigError, DataError), match=message):
            model().recommend(Sequences.of([history]), catalog, **options)
        for wrong in (catalog.items.head(ITEMS - 1), pl.concat([catalog.items, catalog.items.head(1)])):
            with pytest.raises(DataError, match="give its own catalogue"):
                model().recommend(Sequences.of([[1]]), Catalog(wrong))

    def test_asking_leaves_training_on(self):
        made = model().train()
        asked = made.score(Sequences.of([[1], [2, 3]]))
        next(asked)
        asked.close()  # before the end
        assert made.training

    def test_nobody_gets_what_is_blocked(self, catalog):
        every = model().recommend(Sequences.of([[1, 2]]), catalog, k=ITEMS)
        some = model().recommend(Sequences.of([[1, 2]]), catalog, k=ITEMS, without=np.array([3, 9, 9]))
        blocked = catalog.ids([3, 9])
        assert some["item"].to_list() == [item for item in every["item"] if item not in blocked]
        assert_frame_equal(model().recommend(Sequences.of([[1, 2]]), catalog, k=ITEMS, without=[3, 9]), some)

    def test_lists_carry_the_names_of_their_histories(self, catalog):
        for users in (["b", "a"], pl.Series(["b", "a"]), np.array(["b", "a"])):
            assert model().recommend(Sequences.of([[1], [2]]), catalog, k=1, users=users)["user"].to_list() == [
                "b",
                "a",
            ]

    def test_nobody_asks(self, catalog):
        found = model().recommend(Sequences.of([]), catalog)
        assert found.height == 0
        assert found.schema == model().recommend(Sequences.of([[1]]), catalog).schema


@pytest.mark.parametrize(
    "spec", [SASRec(width=8, max_length=1), GRU4Rec(width=8, max_length=1), FMLP(width=8, max_length=1)]
)
def test_a_history_of_one_item_is_enough(spec):
    made = Recommender(spec, "ids", ITEMS)
    assert trained(made, Sequences.of([[1, 2, 3], [4, 5, 6]]), 30) < 0.7
    assert (
        made.eval()
        .recommend(
            Sequences.of([[1, 2]]),
            Catalog(pl.DataFrame({"item": [str(n) for n in range(ITEMS)], "title": [""] * ITEMS})),
            1,
        )
        .height
        == 1
    )


def test_a_catalogue_of_one_item_leaves_no_negative():
    made = Recommender(SPECS[0], "ids", 1)
    with pytest.raises(DataError, match="no negative"):
        made.feed(Sequences.of([[1, 1, 1]]))
    assert Recommender(SPECS[0], "ids", 1, loss=Softmax()).feed(Sequences.of([[1, 1, 1]])).steps() == 1


class TestNumbers:
    def test_vectors_that_are_none(self):
        vectors = VECTORS.copy()
        vectors[7, 3] = np.nan
        with pytest.raises(DataError, match="item 7"):
            Recommender(SPECS[0], "text", ITEMS, vectors)

    def test_scores_that_are_none(self, split):
        made = model()
        with torch.no_grad():
            made.embedding[3] = torch.nan
        with pytest.raises(DataError, match="diverged"):
            made.recommend(Sequences.of([[1, 2]]), Catalog(split.catalog.items.head(ITEMS)))

    @pytest.mark.parametrize("kind", [np.float64, np.float16])
    def test_vectors_of_any_precision(self, kind):
        made = Recommender(SPECS[0], "text", ITEMS, VECTORS.astype(kind))
        assert made.table().dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SASRec(norm="Pre"), "norm is 'Pre'; it is one of pre, post"),
        (lambda: SASRec(activation="silu"), "activation is 'silu'"),
        (lambda: FMLP(activation="silu"), "activation is 'silu'"),
        (lambda: SampledSoftmax(sampling="popular"), "sampling is 'popular'; it is one of uniform, popularity"),
        (lambda: Recommender(SPECS[0], "Text", ITEMS, VECTORS), "items is 'Text'; it is one of ids, text, both"),
        (lambda: Recommender(SPECS[0], "text", ITEMS, VECTORS[1:]), r"text vectors are \[30, 8\]"),
        (lambda: Recommender(SPECS[0], "text", ITEMS, VECTORS[0]), r"text vectors are \[8\]"),
    ],
)
def test_a_misspelt_choice_is_not_another(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_saved_model_keeps_its_loss_its_texts_and_what_is_popular(tmp_path):
    made = model("text", loss=SampledSoftmax(negatives=3, sampling="popularity"))
    made.popularity = np.arange(ITEMS + 1) / 2
    made.save(tmp_path / "m.safetensors")
    again = load_recommender(tmp_path / "m.safetensors")
    assert again.loss == made.loss
    assert (again.popularity == made.popularity).all()
    history = Sequences.of([[1, 2, 3]])
    assert torch.equal(next(made.score(history))[1], next(again.score(history))[1])
    assert "text" not in made.state_dict()  # it never changes: no checkpoint carries it


class TestDamage:
    def test_a_truncated_model(self, tmp_path):
        path = tmp_path / "m.safetensors"
        model().save(path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(RunError, match="damaged"):
            load_recommender(path)

    def test_a_model_that_names_code(self, tmp_path):
        from safetensors.torch import save_file

        spec = {"backbone": "os:system", "width": 8}
        header = {"lorec": json.dumps({"spec": spec, "items": "ids", "n_items": 3, "loss": {"loss": "bce"}})}
        save_file({"embedding": torch.zeros(4, 8)}, tmp_path / "m.safetensors", header)
        with pytest.raises(RunError, match="no backbone called 'os:system'"):
            load_recommender(tmp_path / "m.safetensors")


class TestSpecs:
    def test_refuses_what_makes_no_sense(self):
        with pytest.raises(ConfigError, match="does not divide"):
            SASRec(width=65)
        with pytest.raises(ConfigError, match="share"):
            SASRec(dropout=1.0)
        with pytest.raises(ConfigError, match="at least 1"):
            SASRec(blocks=0)
        with pytest.raises(ConfigError, match="needs text vectors"):
            Recommender(SPECS[0], "text", ITEMS)
        for spec in (GRU4Rec, FMLP):
            with pytest.raises(ConfigError, match="at least 1"):
                spec(width=0)
            with pytest.raises(ConfigError, match="share"):
                spec(dropout=-0.1)

    def test_every_backbone_is_in_the_table(self):
        assert {"sasrec": SASRec, "gru4rec": GRU4Rec, "fmlp": FMLP} == BACKBONES
