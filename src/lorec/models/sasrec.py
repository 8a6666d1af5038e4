"""SASRec: causal self-attention over a history (Kang and McAuley, ICDM 2018)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lorec.errors import ConfigError
from lorec.models.layers import Activation, Attention, FeedForward, causal_mask, dropout
from lorec.registry import one_of


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
    """Inner width of the feed-forward; 4 x width if omitted."""
    norm: Literal["pre", "post"] = "pre"
    """Where a block normalises: its input, or the sum at its end."""
    activation: Activation = "gelu"
    """Of the feed-forward."""
    dropout: float = 0.2
    """Of item vectors, attention and feed-forward."""

    causal: ClassVar[bool] = True
    fixed_length: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise ConfigError(f"width {self.width} does not divide into {self.heads} heads; choose a multiple")
        one_of("norm", self.norm, Literal["pre", "post"])
        one_of("activation", self.activation, Activation)
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
        return self._states(vectors, padding, newest=False)

    def newest(self, vectors: Tensor, padding: Tensor) -> Tensor:
        """[B, H]: the last states alone; nothing but them goes through most of the last block."""
        return self._states(vectors, padding, newest=True)[:, -1]

    def _states(self, vectors: Tensor, padding: Tensor, newest: bool) -> Tensor:
        width = vectors.shape[1]
        places = self.positions[:width].flip(0)  # row 0 is the newest item's
        hidden = dropout(vectors * self.scale + places, self.dropout, self.training)
        mask = causal_mask(padding) if bool(padding.any()) else None
        for place, block in enumerate(self.blocks, 1):
            hidden = block(hidden, mask, newest and place == len(self.blocks))
        states: Tensor = self.norm(hidden)
        return states


class _Block(nn.Module):
    def __init__(self, spec: SASRec) -> None:
        super().__init__()
        self.dropout, self.pre = spec.dropout, spec.norm == "pre"
        self.attention = Attention(spec.width, spec.heads, spec.dropout)
        self.feed = FeedForward(spec.width, spec.feed_forward or 4 * spec.width, spec.activation)
        self.norm_attention, self.norm_feed = nn.LayerNorm(spec.width), nn.LayerNorm(spec.width)

    def forward(self, hidden: Tensor, mask: Tensor | None, newest: bool) -> Tensor:
        attended = self._dropped(self.attention(self.norm_attention(hidden) if self.pre else hidden, mask, newest))
        hidden = attended + (hidden[:, -1:] if newest else hidden)
        if self.pre:
            return hidden + self._dropped(self.feed(self.norm_feed(hidden)))
        hidden = self.norm_attention(hidden)
        normed: Tensor = self.norm_feed(hidden + self._dropped(self.feed(hidden)))
        return normed

    def _dropped(self, hidden: Tensor) -> Tensor:
        return dropout(hidden, self.dropout, self.training)
