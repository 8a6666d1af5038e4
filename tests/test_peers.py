"""The same weights in, the same states out, as in RecBole's SASRec and GRU4Rec; skipped where RecBole is not installed.

RecBole 1.2.1 asks for old versions of what it needs; `pip install --no-deps recbole==1.2.1 colorlog tabulate texttable
thop tensorboard pandas scikit-learn psutil` beside lorec is enough for its models.
"""

import pytest
import torch
from torch import nn

from lorec.models.gru4rec import GRU4Rec
from lorec.models.sasrec import SASRec

pytest.importorskip("recbole", reason="RecBole is not installed")
ITEMS, WIDTH, LENGTH = 40, 16, 7
CONFIG = {
    "USER_ID_FIELD": "user", "ITEM_ID_FIELD": "item", "LIST_SUFFIX": "_list", "ITEM_LIST_LENGTH_FIELD": "length",
    "NEG_PREFIX": "neg_", "MAX_ITEM_LIST_LENGTH": LENGTH, "device": "cpu", "loss_type": "BPR", "layer_norm_eps": 1e-5,
    "initializer_range": 0.1, "hidden_dropout_prob": 0.1, "attn_dropout_prob": 0.1, "hidden_act": "gelu",
    "n_layers": 2, "n_heads": 4, "hidden_size": WIDTH, "inner_size": 24, "embedding_size": WIDTH, "num_layers": 2,
    "dropout_prob": 0.1,
}  # fmt: skip


class Catalogue:
    """All that RecBole's models ask of a dataset."""

    def num(self, _: str) -> int:
        return ITEMS


def theirs(name: str, **changes: object) -> nn.Module:
    from recbole.utils import get_model

    torch.manual_seed(0)
    model = get_model(name)(CONFIG | changes, Catalogue()).eval()
    for parameter in model.parameters():  # biases and norms too, so that one in the wrong place would show
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def histories() -> tuple[torch.Tensor, torch.Tensor]:
    """[4, T] with the padding at the right, as RecBole has it, and lengths."""
    lengths = torch.tensor([7, 1, 4, 6])
    items = torch.randint(1, ITEMS, (4, LENGTH), generator=torch.Generator().manual_seed(1))
    return items * (torch.arange(LENGTH) < lengths[:, None]), lengths


def ours(encoder: nn.Module, vectors: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """[B, H]: our last states of vectors [B, T, H] padded at the right; ours are padded at the left."""
    rolled = torch.stack([row.roll(LENGTH - int(n), 0) for row, n in zip(vectors, lengths, strict=True)])
    padding = torch.arange(LENGTH) < (LENGTH - lengths)[:, None]
    states: torch.Tensor = encoder.eval()(rolled * ~padding[:, :, None], padding)[:, -1]
    return states


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@torch.no_grad()
def test_sasrec_has_recboles_states(histories, activation):
    """RecBole normalises the sum of item and position once more; so what comes after that is compared."""
    model, (items, lengths) = theirs("SASRec", hidden_act=activation), histories
    encoder = SASRec(
        width=WIDTH, max_length=LENGTH, heads=4, feed_forward=24, norm="post", activation=activation
    ).build()
    encoder.positions.zero_()
    for mine, block in zip(encoder.blocks, model.trm_encoder.layer, strict=True):
        attention, feed = block.multi_head_attention, block.feed_forward
        three = (attention.query, attention.key, attention.value)
        for name in ("weight", "bias"):
            getattr(mine.attention.query_key_value, name).copy_(torch.cat([getattr(one, name) for one in three]))
        for here, there in (
            (mine.attention.out, attention.dense), (mine.norm_attention, attention.LayerNorm),
            (mine.feed.up, feed.dense_1), (mine.feed.down, feed.dense_2), (mine.norm_feed, feed.LayerNorm),
        ):  # fmt: skip
            here.load_state_dict(there.state_dict())
    embedded = model.LayerNorm(model.item_embedding(items) + model.position_embedding(torch.arange(LENGTH)))
    found = ours(encoder, embedded / encoder.scale, lengths)
    torch.testing.assert_close(found, model(items, lengths), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_gru4rec_has_recboles_states(histories):
    """RecBole's recurrent layers have no biases."""
    model, (items, lengths) = theirs("GRU4Rec", hidden_size=24), histories
    encoder = GRU4Rec(width=WIDTH, max_length=LENGTH, hidden=24, layers=2).build()
    for name, parameter in encoder.recurrent.named_parameters():
        parameter.copy_(torch.zeros_like(parameter) if "bias" in name else getattr(model.gru_layers, name))
    encoder.out.load_state_dict(model.dense.state_dict())
    found = ours(encoder, model.item_embedding(items) / encoder.scale, lengths)
    torch.testing.assert_close(found, model(items, lengths), atol=1e-5, rtol=1e-4)
