"""What backbones share: dropout with cheap masks, causal attention, the feed-forward; and draws from a seed."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["gelu", "relu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Dropout whose masks cost little on a CPU: a random byte an entry, so that p is rounded to 256ths there.

    `F.dropout` draws a float for each entry, which was a third of an epoch's time (docs/log.md). On a GPU it is that.
    """
    if not training or p == 0 or x.is_cuda:
        return F.dropout(x, p, training)
    dropped = min(round(p * 256), 255)
    n = x.numel()
    words = torch.randint(-(2**63), 2**63 - 1, ((n + 7) // 8,), dtype=torch.int64, device=x.device)
    kept = words.view(torch.uint8)[:n].view(x.shape) >= dropped
    return x * kept.to(x.dtype).mul_(256 / (256 - dropped))


class Attention(nn.Module):
    """Causal self-attention of several heads, with one product for queries, keys and values."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, hidden: Tensor, mask: Tensor | None, newest: bool = False) -> Tensor:
        """[B, T, H] from [B, T, H]; `mask` [B, 1, T, T] as `causal_mask` makes it, None where nothing is padding.

        `newest`: of the last place alone [B, 1, H], for ranking: without dropout.
        """
        b, t, h = hidden.shape
        q, k, v = self.query_key_value(hidden).view(b, t, 3, self.heads, h // self.heads).permute(2, 0, 3, 1, 4)
        if newest:
            last = None if mask is None else mask[:, :, -1:]
            mixed = F.scaled_dot_product_attention(q[:, :, -1:], k, v, last)
        elif self.training and self.dropout and not hidden.is_cuda:  # the fused one would draw a costly mask
            seen = torch.ones(t, t, dtype=torch.bool).tril() if mask is None else mask
            scores = (q * (h // self.heads) ** -0.5) @ k.transpose(2, 3)
            looks = dropout(scores.masked_fill_(~seen, -torch.inf).softmax(3), self.dropout, True)
            mixed = looks @ v
        else:
            p = self.dropout if self.training else 0.0
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=p, is_causal=mask is None)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """Two layers with an activation between them."""

    def __init__(self, width: int, inner: int, activation: Activation) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H] from [..., H]."""
        fed: Tensor = self.down(self.activation(self.up(hidden)))
        return fed


def causal_mask(padding: Tensor) -> Tensor:
    """[B, 1, T, T]: who may look at whom; padding looks at itself alone, or its softmax would be of nothing."""
    t = padding.shape[1]
    causal = torch.ones(t, t, dtype=torch.bool, device=padding.device).tril()
    itself = torch.eye(t, dtype=torch.bool, device=padding.device)
    return ((causal & ~padding[:, None, :]) | itself)[:, None]


@contextlib.contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Torch's draws come from this seed for a while, on the processor and on `device`; nobody else's draws move.

    (`torch.manual_seed` reseeds every GPU there is, also those that nothing was forked for.)
    """
    gpus = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
