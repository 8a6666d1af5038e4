"""FMLP-Rec: learned filters over a history, in the frequency domain (Zhou et al., WWW 2022)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorec.errors import ConfigError
from lorec.models.layers import Activation, FeedForward, dropout
from lorec.registry import one_of


@dataclass(frozen=True, kw_only=True)
class FMLP:
    """Learned filters in the frequency domain instead of attention (FMLP-Rec, Zhou et al. 2022).

    The paper's filter is circular: it mixes the newest item into the oldest, so only the last state of a history of
    fixed length may be trained on, one prefix at a time. By default ours is the same filter as a causal kernel (a
    transform of twice the length, padded with zeros): histories of any length, a loss at every position.
    """

    width: int = 64
    """H, of items and states."""
    max_length: int = 50
    """The longest history it sees; with a circular filter every history is padded to it."""
    blocks: int = 2
    """Layers of filter and feed-forward."""
    feed_forward: int | None = None
    """Inner width of the feed-forward; 4 x width if omitted."""
    activation: Activation = "gelu"
    """Of the feed-forward."""
    dropout: float = 0.5
    """Of item vectors, filter and feed-forward."""
    circular: bool = False
    """The filter of the paper: a loss on the last position of prefixes alone, several times the work."""

    def __post_init__(self) -> None:
        if min(self.width, self.max_length, self.blocks, self.feed_forward or 1) < 1:
            raise ConfigError("width, max_length, blocks and feed_forward must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; it is a share in [0, 1)")
        one_of("activation", self.activation, Activation)

    @property
    def causal(self) -> bool:
        """Whether no state sees what comes later."""
        return not self.circular

    @property
    def fixed_length(self) -> bool:
        """Whether every history is padded to max_length."""
        return self.circular

    def build(self) -> nn.Module:
        """Fresh weights."""
        return _Encoder(self)


class _Encoder(nn.Module):
    def __init__(self, spec: FMLP) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(spec.max_length, spec.width) * 0.02)
        self.norm, self.dropout = nn.LayerNorm(spec.width), spec.dropout
        self.blocks = nn.ModuleList(_Block(spec) for _ in range(spec.blocks))
        self.scale, self.circular = spec.width**0.5, spec.circular

    def forward(self, vectors: Tensor, padding: Tensor) -> Tensor:
        places = self.positions[: vectors.shape[1]].flip(0)  # row 0 is the newest item's
        hidden = dropout(self.norm(vectors * self.scale + places), self.dropout, self.training)
        # A causal filter must not read what stands at padding; the paper's pads with a position's vector and reads it.
        real = None if self.circular or not bool(padding.any()) else ~padding[:, :, None]
        for block in self.blocks:
            hidden = block(hidden if real is None else hidden * real)
        return hidden


class _Block(nn.Module):
    def __init__(self, spec: FMLP) -> None:
        super().__init__()
        frequencies = spec.max_length // 2 + 1
        self.filter = nn.Parameter(torch.randn(frequencies, spec.width, 2) * 0.02)
        self.feed = FeedForward(spec.width, spec.feed_forward or 4 * spec.width, spec.activation)
        self.norm_filter, self.norm_feed = nn.LayerNorm(spec.width), nn.LayerNorm(spec.width)
        self.length, self.circular, self.dropout = spec.max_length, spec.circular, spec.dropout

    def forward(self, hidden: Tensor) -> Tensor:
        filtered = dropout(self._filtered(hidden), self.dropout, self.training)
        hidden = self.norm_filter(hidden + filtered)
        normed: Tensor = self.norm_feed(hidden + dropout(self.feed(hidden), self.dropout, self.training))
        return normed

    def _filtered(self, hidden: Tensor) -> Tensor:
        """[B, T, H]: circular over max_length, or the same filter's kernel laid over what came before."""
        response = torch.view_as_complex(self.filter)
        if self.circular:
            spectrum = torch.fft.rfft(hidden, dim=1, norm="ortho") * response
            circled: Tensor = torch.fft.irfft(spectrum, n=self.length, dim=1, norm="ortho")
            return circled
        t = hidden.shape[1]
        kernel = torch.fft.irfft(response, n=self.length, dim=0)[:t]  # how much an item counts so many steps later
        spectrum = torch.fft.rfft(hidden, n=2 * t, dim=1) * torch.fft.rfft(kernel, n=2 * t, dim=0)
        filtered: Tensor = torch.fft.irfft(spectrum, n=2 * t, dim=1)[:, :t]
        return filtered
