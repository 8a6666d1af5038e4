import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lorec.data import Batch, Catalog, Feed, Sequences
from lorec.errors import ConfigError, DataError, RunError
from lorec.models import BACKBONES, Recommender, SASRec, load_recommender
from lorec.models.losses import binary_cross_entropy, mean_loss

ITEMS = 30
VECTORS = np.vstack([np.zeros((1, 8)), np.random.default_rng(0).standard_normal((ITEMS, 8))]).astype(np.float32)
KINDS = ("ids", "text", "both")
SPECS = [
    SASRec(width=16, max_length=12),
    SASRec(width=16, max_length=12, norm="post", activation="relu", feed_forward=16, blocks=1),
]


def model(kind="ids", spec=SPECS[0], seed=0):
    made = Recommender(spec, kind, ITEMS, None if kind == "ids" else VECTORS, seed).eval()
    with torch.no_grad():  # larger than at birth, so that differences show
        for value in made.parameters():
            value.mul_(3)
    return made


def states(made, history):
    return made(torch.tensor(history), made.table())


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", KINDS)
class TestLaws:
    @settings(deadline=None, max_examples=10)
    @given(data=st.data())
    def test_a_state_does_not_see_what_comes_later(self, kind, spec, data):
        made = model(kind, spec)
        history = data.draw(st.lists(st.integers(1, ITEMS), min_size=2, max_size=12))
        cut = data.draw(st.integers(1, len(history) - 1))
        other = history[:cut] + [item % ITEMS + 1 for item in history[cut:]]
        torch.testing.assert_close(states(made, [history])[:, :cut], states(made, [other])[:, :cut])

    @settings(deadline=None, max_examples=10)
    @given(data=st.data())
    def test_padding_and_batch_width_change_nothing(self, kind, spec, data):
        made = model(kind, spec)
        history = data.draw(st.lists(st.integers(1, ITEMS), min_size=1, max_size=8))
        alone = states(made, [history])
        among = states(made, [[0] * (12 - len(history)) + history, [1] * 12])
        torch.testing.assert_close(alone[0], among[0, 12 - len(history) :], atol=2e-5, rtol=1e-4)

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

    def test_fresh_weights_come_from_the_seed(self, kind, spec):
        first, same, other = (Recommender(spec, kind, ITEMS, VECTORS, seed) for seed in (1, 1, 2))
        assert torch.equal(first.table(), same.table())
        assert not torch.equal(first.table(), other.table())
        assert torch.equal(first.fresh(2).table(), other.table())


def test_sasrec_against_a_written_out_reference():
    """One block, one head, pre-norm, spelled out for one history."""
    made = model(spec=SASRec(width=8, max_length=5, blocks=1, heads=1))
    block, history = made.backbone.blocks[0], [3, 1, 7]
    x = made.embedding[torch.tensor(history)] * 8**0.5
    x = x + torch.stack([made.backbone.positions[2], made.backbone.positions[1], made.backbone.positions[0]])
    normed = F.layer_norm(x, (8,), block.norm_attention.weight, block.norm_attention.bias)
    q, k, v = (normed @ block.query_key_value.weight.T + block.query_key_value.bias).split(8, dim=1)
    attended = []
    for t in range(3):
        shares = torch.softmax(torch.stack([(q[t] * k[s]).sum() / 8**0.5 for s in range(t + 1)]), 0)
        attended.append(sum(share * v[s] for s, share in enumerate(shares)))
    x = x + torch.stack(attended) @ block.out.weight.T + block.out.bias
    normed = F.layer_norm(x, (8,), block.norm_feed.weight, block.norm_feed.bias)
    x = x + F.gelu(normed @ block.up.weight.T + block.up.bias) @ block.down.weight.T + block.down.bias
    wanted = F.layer_norm(x, (8,), made.backbone.norm.weight, made.backbone.norm.bias)
    torch.testing.assert_close(states(made, [history])[0], wanted, atol=1e-5, rtol=1e-5)


def test_binary_cross_entropy_against_a_written_out_reference():
    made = model()
    log = Sequences.of([[1, 2, 3], [4, 5]])
    batch = next(Feed(log, ITEMS, 12, 100, negatives=3).epoch(np.random.default_rng(0)))
    losses = binary_cross_entropy(made, batch)
    table = made.table()
    for row in range(2):
        for t in range(2):
            if batch.positives[row, t] == 0:
                assert losses[row, t] == 0
                continue
            h = states(made, [[x for x in batch.history[row] if x]])[0][t - batch.history.shape[1]]
            wanted = -torch.log(torch.sigmoid(h @ table[batch.positives[row, t]]))
            for negative in batch.negatives[row, t]:
                wanted = wanted - torch.log(1 - torch.sigmoid(h @ table[negative]))
            torch.testing.assert_close(losses[row, t], wanted, atol=1e-5, rtol=1e-4)


def test_weights_scale_the_loss_and_its_gradient():
    batch = next(Feed(Sequences.of([[1, 2, 3], [4, 5, 6]]), ITEMS, 12, 100).epoch(np.random.default_rng(0)))
    made = model()
    weights = torch.tensor([[0.0], [1.0]]).expand(2, 2)
    loss = mean_loss(binary_cross_entropy(made, batch), batch, weights)
    kept = Batch(*(part[1:] for part in (batch.users, batch.history, batch.positives, batch.negatives, batch.events)))
    alone = mean_loss(binary_cross_entropy(made, kept), kept)
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

    def test_refuses_an_empty_history(self, catalog):
        with pytest.raises(DataError, match="history is empty"):
            model().recommend(Sequences.of([[1], []]), catalog)


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
        header = {"spec": json.dumps(spec), "items": "ids", "n_items": "3"}
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

    def test_every_backbone_is_in_the_table(self):
        assert BACKBONES["sasrec"] is SASRec
