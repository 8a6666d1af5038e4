"""SASRec: causal self-attention over a history (Kang and McAuley, ICDM 2018)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorec.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SASRec:
    """Causal self-attention over the history (Kang, McAuley 2018).

    Positions count from the newest item, so the width of a batch never changes a state. The authors use a post-norm
    block with ReLU and a feed-forward as wide as the model; ours is pre-norm, GELU and four times as wide by default.
    """

    width: int = 64
    """H, of items and states."""
    max_length: int = 50
    """The longest history it sees."""
    blocks: int = 2
    """Layers of attention and feed-forward."""
    heads: int = 2
    """Attention heads; they divide the width."""
    feed_forward: int | None = None
    """Inner width of the feed-forward; 4 x width where not given."""
    norm: Literal["pre", "post"] = "pre"
    """Where a block normalises: its input, or the sum at its end."""
    activation: Literal["gelu", "relu"] = "gelu"
    """Of the feed-forward."""
    dropout: float = 0.2
    """Of item vectors, attention and feed-forward."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise ConfigError(f"width {self.width} does not divide into {self.heads} heads; choose a multiple")
        if self.max_length < 1 or self.blocks < 1 or (self.feed_forward or 1) < 1:
            raise ConfigError("max_length, blocks and feed_forward must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; it is a share in [0, 1)")

    def build(self) -> nn.Module:
        """Fresh weights."""
        return _Encoder(self)


class _Encoder(nn.Module):
    def __init__(self, spec: SASRec) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(spec.max_length, spec.width) * 0.02)
        self.blocks = nn.ModuleList(_Block(spec) for _ in range(spec.blocks))
        self.norm = nn.LayerNorm(spec.width) if spec.norm == "pre" else nn.Identity()
        self.scale, self.dropout = spec.width**0.5, spec.dropout

    def forward(self, vectors: Tensor, padding: Tensor) -> Tensor:
        width = vectors.shape[1]
        places = self.positions[:width].flip(0)  # row 0 is the newest item's
        hidden = F.dropout(vectors * self.scale + places, self.dropout, self.training)
        mask = causal_mask(padding) if bool(padding.any()) else None
        for block in self.blocks:
            hidden = block(hidden, mask)
        states: Tensor = self.norm(hidden)
        return states


class _Block(nn.Module):
    def __init__(self, spec: SASRec) -> None:
        super().__init__()
        inner = spec.feed_forward or 4 * spec.width
        self.heads, self.dropout, self.pre = spec.heads, spec.dropout, spec.norm == "pre"
        self.activation: Callable[[Tensor], Tensor] = F.gelu if spec.activation == "gelu" else F.relu
        self.query_key_value = nn.Linear(spec.width, 3 * spec.width)
        self.out = nn.Linear(spec.width, spec.width)
        self.up, self.down = nn.Linear(spec.width, inner), nn.Linear(inner, spec.width)
        self.norm_attention, self.norm_feed = nn.LayerNorm(spec.width), nn.LayerNorm(spec.width)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        if self.pre:
            hidden = hidden + self._attend(self.norm_attention(hidden), mask)
            return hidden + self._feed(self.norm_feed(hidden))
        hidden = self.norm_attention(hidden + self._attend(hidden, mask))
        normed: Tensor = self.norm_feed(hidden + self._feed(hidden))
        return normed

    def _attend(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        b, t, h = hidden.shape
        q, k, v = self.query_key_value(hidden).view(b, t, 3, self.heads, h // self.heads).permute(2, 0, 3, 1, 4)
        p = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=p, is_causal=mask is None)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(b, t, h))
        return F.dropout(out, self.dropout, self.training)

    def _feed(self, hidden: Tensor) -> Tensor:
        return F.dropout(self.down(self.activation(self.up(hidden))), self.dropout, self.training)


def causal_mask(padding: Tensor) -> Tensor:
    """[B, 1, T, T]: who may look at whom; padding looks at itself alone, or its softmax would be of nothing."""
    t = padding.shape[1]
    causal = torch.ones(t, t, dtype=torch.bool, device=padding.device).tril()
    itself = torch.eye(t, dtype=torch.bool, device=padding.device)
    return ((causal & ~padding[:, None, :]) | itself)[:, None]
