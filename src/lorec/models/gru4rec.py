"""GRU4Rec: a recurrent network reads the history (Hidasi et al., ICLR 2016; Tan et al., DLRS 2016)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lorec.errors import ConfigError
from lorec.models.layers import dropout


@dataclass(frozen=True, kw_only=True)
class GRU4Rec:
    """A gated recurrent network reads the history (Hidasi et al. 2016).

    Whole histories at once, as Tan et al. (2016) train it, instead of the first paper's session-parallel steps.
    """

    width: int = 64
    """H, of items and states."""
    max_length: int = 50
    """The longest history it sees."""
    hidden: int | None = None
    """Width of the recurrent state, projected to H at the end; 2 x width if omitted."""
    layers: int = 1
    """Recurrent layers, one on top of the other."""
    dropout: float = 0.2
    """Of item vectors, and between layers."""

    causal: ClassVar[bool] = True
    fixed_length: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if min(self.width, self.max_length, self.layers, self.hidden or 1) < 1:
            raise ConfigError("width, max_length, hidden and layers must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; it is a share in [0, 1)")

    def build(self) -> nn.Module:
        """Fresh weights."""
        return _Encoder(self)


class _Encoder(nn.Module):
    def __init__(self, spec: GRU4Rec) -> None:
        super().__init__()
        hidden = spec.hidden or 2 * spec.width
        inner = spec.dropout if spec.layers > 1 else 0.0
        self.recurrent = nn.GRU(spec.width, hidden, spec.layers, batch_first=True, dropout=inner)
        self.out = nn.Linear(hidden, spec.width)
        # Item vectors are about .02 at birth: without a scale the gates would hardly see them.
        self.scale, self.dropout = spec.width**0.5, spec.dropout

    def forward(self, vectors: Tensor, padding: Tensor) -> Tensor:
        hidden = dropout(vectors * self.scale, self.dropout, self.training)
        shift = padding.sum(1) if bool(padding.any()) else None
        # A recurrent network would start in the padding: so histories begin at the left while it reads.
        read, _ = self.recurrent(hidden if shift is None else _rolled(hidden, shift))
        states: Tensor = self.out(read if shift is None else _rolled(read, -shift))
        return states


def _rolled(hidden: Tensor, shift: Tensor) -> Tensor:
    """Each row [T, H] moved to the left by its shift, around the end."""
    t = hidden.shape[1]
    place = (torch.arange(t, device=hidden.device)[None, :] + shift[:, None]) % t
    return hidden.gather(1, place[:, :, None].expand_as(hidden))
