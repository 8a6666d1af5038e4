"""A recommender = items x backbone x scores: an item table, an encoder of histories, and their inner product.

    table()   [V + 1, H]   one vector an item: learned by id, projected from text, or the sum of both; row 0 is padding
    states()  [B, T, H]    the backbone over a left-padded history
    scores()  [B, V + 1]   <state, table>

A Backbone is a spec with one verb, `build() -> nn.Module`, whose module maps ([B, T, H], padding [B, T]) to [B, T, H].
It says whether it is `causal` and of `fixed_length`, and batches obey. A Loss is a spec of what training makes small.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from lorec.data import Batch, Catalog, Feed, Floats, Ints, Sequences
from lorec.data import histories as padded_histories
from lorec.errors import ConfigError, DataError, RunError, first_line
from lorec.files import replacing
from lorec.models.fmlp import FMLP
from lorec.models.gru4rec import GRU4Rec
from lorec.models.layers import seeded
from lorec.models.losses import BCE, GBCE, LOSSES, Loss, SampledSoftmax, Softmax
from lorec.models.sasrec import SASRec
from lorec.registry import build, find, name_of, one_of

__all__ = [
    "BACKBONES", "BCE", "FMLP", "GBCE", "LOSSES", "Backbone", "Foreign", "GRU4Rec", "ItemKind", "Loss", "Popularity",
    "Precision", "Recommender", "SASRec", "SampledSoftmax", "Scorer", "Softmax", "first_places", "load_recommender",
]  # fmt: skip

ItemKind = Literal["ids", "text", "both"]
Precision = Literal["float32", "bfloat16"]
BACKBONES: dict[str, type] = {"fmlp": FMLP, "gru4rec": GRU4Rec, "sasrec": SASRec}


class Backbone(Protocol):
    """The spec of an encoder of histories."""

    @property
    def width(self) -> int:
        """H, of items and states."""
        ...

    @property
    def max_length(self) -> int:
        """The longest history it sees; older items are cut."""
        ...

    @property
    def causal(self) -> bool:
        """Whether no state sees what comes later; if one does, only the last state of a prefix is trained on."""
        ...

    @property
    def fixed_length(self) -> bool:
        """Whether every history must be padded to max_length."""
        ...

    def build(self) -> nn.Module:
        """A module ([B, T, H], padding [B, T]) -> [B, T, H] with fresh weights."""
        ...


class Scorer(Protocol):
    """What can be ranked: it scores every item for some histories."""

    def score(self, log: Sequences, tokens: int = 16384) -> Iterator[tuple[Ints, Tensor]]:
        """Yield (rows [B], scores [B, V + 1]) until every row of the log was scored once; chunks stay small."""
        ...


@dataclass(frozen=True)
class _Shift:
    """What is added to a recommender's vectors and states for a while."""

    table: Tensor | None = None
    vectors: Tensor | None = None
    states: Tensor | None = None


class Recommender(nn.Module):
    """A trainable next-item model."""

    precision: Precision = "float32"
    """How large matrices are multiplied in training; weights, losses and every ranking are float32 either way."""
    popularity: Floats | None = None
    """[V + 1]: how much each item counted in training, which `fit` puts down: for histories that say nothing."""

    def __init__(
        self,
        backbone: Backbone,
        items: ItemKind,
        n_items: int,
        text: Floats | Tensor | None = None,
        seed: int = 0,
        loss: Loss | None = None,
    ) -> None:
        """Fresh weights from a seed. `text` [V + 1, dim]: vectors of the items, row 0 zero, for kinds text and both."""
        super().__init__()
        if items != "ids" and text is None:
            raise ConfigError(f"items = {items!r} needs text vectors; choose an [encoder], or items = 'ids'")
        self.spec, self.kind, self.n_items = backbone, one_of("items", items, ItemKind), n_items
        self.loss: Loss = loss or BCE()
        self.popularity: Floats | None = None
        self._shift = _Shift()
        with seeded(seed):
            self.backbone = backbone.build()
            if items != "text":
                self.embedding = nn.Parameter(torch.randn(n_items + 1, backbone.width) * 0.02)
            if items != "ids":
                vectors = torch.as_tensor(text, dtype=torch.float32)
                if not bool(torch.isfinite(vectors).all()):
                    wrong = int((~torch.isfinite(vectors)).any(dim=1).nonzero()[0])
                    raise DataError(f"the text vector of item {wrong} holds what is no finite number; encode it again")
                if vectors.shape[:-1] != (n_items + 1,):
                    raise ConfigError(
                        f"text vectors are {list(vectors.shape)}; they are [{n_items + 1}, dim], row 0 for padding"
                    )
                # They never change: checkpoints and copies of the best weights go without.
                self.register_buffer("text", vectors, persistent=False)
                self.projection = nn.Linear(vectors.shape[1], backbone.width)
                # Centred vectors of unit variance would give entries near 1, fifty times an embedding's.
                nn.init.normal_(self.projection.weight, std=0.02)
                nn.init.zeros_(self.projection.bias)

    def table(self) -> Tensor:
        """[V + 1, H]: every item's vector. Project once per batch, never once per position."""
        table: Tensor
        if self.kind == "ids":
            table = self.embedding
        else:
            table = F.gelu(self.projection(self.text))
            table = table if self.kind == "text" else table + self.embedding
        return table if self._shift.table is None else table + self._shift.table

    @contextlib.contextmanager
    def shifted(
        self, *, table: Tensor | None = None, vectors: Tensor | None = None, states: Tensor | None = None
    ) -> Iterator[None]:
        """Add something to the items' vectors [V + 1, H], to those read in a batch, or to its states [B, T, H].

        What an adversary would do, and where a gradient can be taken.
        """
        self._shift = _Shift(table, vectors, states)
        try:
            yield
        finally:
            self._shift = _Shift()

    def forward(self, history: Tensor, table: Tensor) -> Tensor:
        """States [B, T, H] of a left-padded history [B, T]; what stands at padding is without meaning."""
        return self.encode(F.embedding(history, table, padding_idx=0), history == 0)

    def newest(self, history: Tensor, table: Tensor) -> Tensor:
        """The last states alone [B, H], without the others where the backbone's module has a `newest` of its own."""
        vectors, padding = F.embedding(history, table, padding_idx=0), history == 0
        alone = getattr(self.backbone, "newest", None)
        if alone is None or self.training or self._shift.vectors is not None or self._shift.states is not None:
            return self.encode(vectors, padding)[:, -1]
        states: Tensor = alone(vectors, padding)
        return states

    def encode(self, vectors: Tensor, padding: Tensor) -> Tensor:
        """States [B, T, H] of item vectors [B, T, H] looked up before."""
        shift = self._shift
        with self.products():
            states: Tensor = self.backbone(vectors if shift.vectors is None else vectors + shift.vectors, padding)
        states = states.to(vectors.dtype)
        return states if shift.states is None else states + shift.states

    def products(self) -> contextlib.AbstractContextManager[None]:
        """Where large matrices are multiplied: there, and in training alone, `precision` counts."""
        if self.training and self.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def keeping_states(self) -> Iterator[list[Tensor]]:
        """A list that takes the states [B, T, H] of every batch that is encoded meanwhile, with their gradients."""
        kept: list[Tensor] = []

        def keep(module: nn.Module, given: Any, states: Tensor) -> None:
            kept.append(states.float())  # as what is made of them is, whatever products were made in

        hook = self.backbone.register_forward_hook(keep)
        try:
            yield kept
        finally:
            hook.remove()

    def losses(self, batch: Batch) -> Tensor:
        """[B, T]: what training makes small at each position; 0 where there is no positive."""
        return self.loss.losses(self, batch)

    def parts(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[B, T] twice: the losses, and what of each is its positive's own; all of it where a loss tells no parts."""
        parts = getattr(self.loss, "parts", None)
        if parts is not None:
            found: tuple[Tensor, Tensor] = parts(self, batch)
            return found
        losses = self.losses(batch)
        return losses, losses

    def feed(self, log: Sequences, tokens: int = 4096) -> Feed:
        """A log in batches as this backbone and this loss want them."""
        return Feed(
            log, self.n_items, self.spec.max_length, tokens, self.loss.negatives,
            popular=self.loss.sampling == "popularity", prefixes=not self.spec.causal, pad_to=self._pad_to,
        )  # fmt: skip

    def histories(
        self, log: Sequences, tokens: int, rows: Ints | None = None
    ) -> Iterator[tuple[Ints, NDArray[np.int32]]]:
        """Every user's newest items once, (rows [B], left-padded items [B, T]), as this backbone wants them."""
        return padded_histories(log, self.spec.max_length, tokens, rows, self._pad_to)

    @property
    def _pad_to(self) -> int:
        return self.spec.max_length if self.spec.fixed_length else 0

    def check_open(self) -> None:
        """Raise ConfigError where nothing can be pushed inside; ours can be."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @torch.no_grad()
    def score(self, log: Sequences, tokens: int = 16384) -> Iterator[tuple[Ints, Tensor]]:
        """Yield (rows [B], scores [B, V + 1]) of the newest state; chunks of about a million scores stay in cache.

        Every chunk is written into the same memory: use it before asking for the next.
        """
        with _evaluating(self):
            table = self.table()
            across = table.T.contiguous()  # a quarter faster to multiply with than a view
            chunk = max(32, 1_000_000 // (self.n_items + 1))  # of a few rows the product is slow
            scores = torch.empty(chunk, self.n_items + 1, device=self.device, dtype=table.dtype)
            for rows, history in self.histories(log, tokens):
                last = self.newest(torch.from_numpy(history).to(self.device), table)
                for start in range(0, len(rows), chunk):
                    some = rows[start : start + chunk]
                    yield some, torch.mm(last[start : start + chunk], across, out=scores[: len(some)])

    def recommend(
        self,
        log: Sequences,
        catalog: Catalog,
        k: int = 10,
        *,
        users: pl.Series | Sequence[str] | None = None,
        seen: bool = False,
        without: Ints | Sequence[int] | None = None,
    ) -> pl.DataFrame:
        """The top k of each history: user, rank, item, title, score, by. Of equal scores the lower number comes first.

        `users`: whose histories they are, in their order; `seen`: also what the history holds; `without`: item numbers
        that nobody is to get (`catalog.numbers(ids)`). An empty history has no
        state: it gets what was most popular in training (`by` says so), by the weights that a defense gave, so that
        what it turned down is not recommended here; the score is how often each was taken. Raises DataError where
        `popularity` is not known, for numbers that the model does not have, a catalogue of another size and as many
        users as there are not histories, and ConfigError for a k below 1.
        """
        if k < 1:
            raise ConfigError(f"k is {k}; a list has 1 item or more")
        if len(catalog) != self.n_items:
            raise DataError(f"the catalogue has {len(catalog)} items, the model {self.n_items}; give its own catalogue")
        blocked = np.asarray(() if without is None else without)
        if len(blocked) and blocked.dtype.kind not in "iu":
            raise DataError(
                f"without holds {blocked.tolist()[0]!r}; it holds numbers of items, as catalog.numbers(ids) gives them"
            )
        blocked = blocked.astype(np.int64)
        for what, given in (("a history", log.items), ("without", blocked)):
            if len(given) and not 1 <= int(given.min()) <= int(given.max()) <= self.n_items:
                raise DataError(
                    f"{what} has an item below 1 or above {self.n_items}, which the model lacks; number them so"
                )
        names = pl.Series(
            [str(row) for row in range(len(log))] if users is None else users, dtype=None if len(log) else pl.String
        )
        if len(names) != len(log):
            raise DataError(
                f"{len(names)} users for {len(log)} histories; give whose each is, as split.users.gather(rows)"
            )
        hidden = torch.as_tensor(blocked, device=self.device)
        empty = log.lengths == 0
        parts = [_NOTHING]
        for by, which in (("model", ~empty), ("popularity", empty)):
            chosen = np.flatnonzero(which)
            if not len(chosen):
                continue
            some = log.take(chosen)
            scorer: Scorer = self if by == "model" else self._popular()
            for rows, scores in scorer.score(some):
                if bool(torch.isnan(scores).any()):
                    raise DataError("a score is not a number; the model has diverged: train it again")
                scores[:, 0] = -torch.inf
                scores[:, hidden] = -torch.inf
                if not seen:
                    hide(scores, some.take(rows))
                values, numbers = first_places(scores, min(k, self.n_items))
                n = values.shape[1]
                columns = {"row": np.repeat(chosen[rows], n), "rank": np.tile(np.arange(1, n + 1), len(rows))}
                columns |= {"number": numbers.flatten().cpu().numpy(), "score": values.flatten().cpu().numpy()}
                parts.append(pl.DataFrame(columns).with_columns(by=pl.lit(by)))
        found = pl.concat(parts).filter(pl.col("score").is_finite()).sort("row", "rank")
        titles = pl.Series(catalog.titles(), dtype=pl.String)
        return found.select(
            names.gather(found["row"]).alias("user"),
            "rank",
            pl.Series("item", catalog.ids(found["number"].to_numpy()), dtype=pl.String),
            titles.gather(found["number"] - 1).alias("title"),
            "score",
            "by",
        )

    def _popular(self) -> "Popularity":
        if self.popularity is None:
            raise DataError("a history is empty, and the model does not know what is popular; give at least one item")
        return Popularity(self.popularity)

    def save(self, path: str | Path) -> None:
        """Write weights and spec as one safetensors file; it holds no histories."""
        spec = {"backbone": name_of("backbones", BACKBONES, self.spec), **dataclasses.asdict(self.spec)}  # type: ignore[call-overload]
        loss = {"loss": name_of("losses", LOSSES, self.loss), **dataclasses.asdict(self.loss)}  # type: ignore[call-overload]
        told = {"spec": spec, "items": self.kind, "n_items": self.n_items, "loss": loss}
        header = {"lorec": json.dumps(told, sort_keys=True)}  # of several keys the file's order would be by chance
        kept = self.state_dict() | ({} if self.kind == "ids" else {"text": self.get_buffer("text")})
        if self.popularity is not None:
            kept["popularity"] = torch.from_numpy(self.popularity.astype(np.float64))
        with replacing(path) as temporary:
            save_file({name: value.contiguous() for name, value in kept.items()}, temporary, header)


@dataclass(frozen=True)
class _Opened:
    """What there is to say of a model that is not ours."""

    width: int
    max_length: int
    fixed_length: bool
    causal: bool = True

    def build(self) -> nn.Module:
        """Raise ConfigError: nobody here knows how."""
        raise ConfigError("a foreign model is built by its own library")


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """A model that learns nothing meanwhile, neither by its norms nor by its draws."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)


class Foreign(Recommender):
    """A model that is not ours, as defenses and `evaluate` see it: a module, and functions that open it.

    `items()` gives every item's vector [V + 1, H], row 0 for padding; `states(history)` those [B, T, H] of histories
    [B, T] of item numbers, oldest first, padded with 0 on the left; `losses(batch)`, where a defense wants one, what is
    to be made small at each position [B, T], 0 where nothing follows. Numbers are those of the split's catalogue.

    `lorec-paper`, `graphrfi`, `cl4srec`, the robust losses and every detector work on it. Those that push vectors
    inside the model (`apr`, `vat`, `pamacf`, `adv`, `stdenoise`) don't.
    """

    def __init__(
        self,
        model: nn.Module,
        items: Callable[[], Tensor],
        states: Callable[[Tensor], Tensor],
        losses: Callable[[Batch], Tensor] | None = None,
        *,
        max_length: int = 50,
        fixed_length: bool = False,
        negatives: int = 1,
    ) -> None:
        """Histories hold `max_length` items at most, exactly as many with `fixed_length`; batches `negatives` each.

        Raises ConfigError where the functions give other shapes.
        """
        nn.Module.__init__(self)
        self.model, self.kind, self._shift = model, "ids", _Shift()
        self._items, self._states, self._losses = items, states, losses
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _evaluating(model):
            table = items()
            if table.dim() != 2 or len(table) < 2:
                raise ConfigError(f"items() gives {list(table.shape)}; it is [V + 1, H], row 0 for padding")
            self.n_items, width = len(table) - 1, table.shape[1]
            asked = torch.zeros(2, max_length if fixed_length else min(2, max_length), dtype=torch.int32)
            asked[:, -1:], asked[0, -2:] = 1, 1
            asked = asked.to(table.device)
            found = states(asked)
        if found.shape != (*asked.shape, width):
            raise ConfigError(
                f"states() gives {list(found.shape)} for histories {list(asked.shape)}; it is {[*asked.shape, width]}"
            )
        self.spec = _Opened(width, max_length, fixed_length)
        self.loss: Loss = BCE(negatives=negatives)

    def table(self) -> Tensor:
        """[V + 1, H]: every item's vector."""
        return self._items()

    def forward(self, history: Tensor, table: Tensor) -> Tensor:
        """States [B, T, H] of a left-padded history [B, T]."""
        return self._states(history)

    def newest(self, history: Tensor, table: Tensor) -> Tensor:
        """The last states alone [B, H]."""
        return self._states(history)[:, -1]

    def losses(self, batch: Batch) -> Tensor:
        """[B, T]. Raises ConfigError where none was given."""
        if self._losses is None:
            raise ConfigError("this defense looks at losses; give Foreign(losses=...) a function of a batch")
        return self._losses(batch)

    def parts(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[B, T] twice, the same: what of a loss is the positive's own is not known here."""
        losses = self.losses(batch)
        return losses, losses

    def feed(self, log: Sequences, tokens: int = 4096) -> Feed:
        """A log in batches. Raises ConfigError for a log of items that the model does not have."""
        self._check(log)
        return super().feed(log, tokens)

    def histories(
        self, log: Sequences, tokens: int, rows: Ints | None = None
    ) -> Iterator[tuple[Ints, NDArray[np.int32]]]:
        """Every user's newest items. Raises ConfigError as `feed` does."""
        self._check(log)
        return super().histories(log, tokens, rows)

    def _check(self, log: Sequences) -> None:
        if len(log.items) and (most := int(log.items.max())) > self.n_items:
            raise ConfigError(
                f"the log has an item {most} and the model {self.n_items} items; number them as the split's catalogue"
            )

    def check_open(self) -> None:
        """Raise ConfigError: only histories can be given to it."""
        raise ConfigError("this defense pushes vectors inside the recommender, and a foreign one does not open them")

    def encode(self, vectors: Tensor, padding: Tensor) -> Tensor:
        """Raises ConfigError as `check_open` does."""
        self.check_open()
        return vectors

    @contextlib.contextmanager
    def shifted(
        self, *, table: Tensor | None = None, vectors: Tensor | None = None, states: Tensor | None = None
    ) -> Iterator[None]:
        """Raises ConfigError as `check_open` does."""
        self.check_open()
        yield

    @contextlib.contextmanager
    def keeping_states(self) -> Iterator[list[Tensor]]:
        """Raises ConfigError as `check_open` does."""
        self.check_open()
        yield []

    def save(self, path: str | Path) -> None:
        """Raises ConfigError: it is saved as its own library does."""
        raise ConfigError("a foreign model is saved by its own library; lorec can't load it again")


def load_recommender(path: str | Path, plugins: bool = False) -> Recommender:
    """Read a saved model; with `plugins` also one of a backbone that an installed package declares.

    Raises RunError where it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {})["lorec"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        spec, loss_spec, kind, n_items = told["spec"], told["loss"], told["items"], told["n_items"]
        backbone = build(find("backbones", BACKBONES, spec.pop("backbone"), strangers=plugins), spec, Path(path).name)
        loss = build(find("losses", LOSSES, loss_spec.pop("loss"), strangers=plugins), loss_spec, Path(path).name)
        popularity = tensors.pop("popularity", None)
        model = Recommender(backbone, kind, n_items, tensors.pop("text", None), loss=loss)
        model.popularity = None if popularity is None else popularity.numpy()
        model.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError, ConfigError) as error:
        first = first_line(error)
        raise RunError(f"{path} is not a saved model or is damaged ({first}); restore it, or train again") from None
    return model.eval()


def hide(scores: Tensor, log: Sequences) -> None:
    """Set the scores of what each row's history holds to -inf."""
    rows = torch.from_numpy(log.users()).to(scores.device)
    items = torch.from_numpy(log.items.astype(np.int64)).to(scores.device)
    scores[rows, items] = -torch.inf


_NOTHING = pl.DataFrame(
    schema={"row": pl.Int64, "rank": pl.Int64, "number": pl.Int64, "score": pl.Float32, "by": pl.String}
)


def first_places(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """[B, k] each: the highest scores, best first, and whose they are; of equal ones the lower number comes first.

    So a list is the beginning of any longer one, and the same on every machine.
    """
    values, numbers = scores.topk(k, dim=1)
    tied = (values[:, 1:] == values[:, :-1]).any(1) | ((scores >= values[:, -1:]).sum(1) > k)
    rows = (tied & torch.isfinite(values[:, 0])).nonzero()[:, 0]
    if len(rows):
        ordered = scores[rows].sort(dim=1, descending=True, stable=True)
        values[rows], numbers[rows] = ordered.values[:, :k], ordered.indices[:, :k]
    return values, numbers


class Popularity:
    """The floor: every user gets the most popular items that they have not seen."""

    def __init__(self, counts: NDArray[np.int64] | Floats) -> None:
        """`counts` [V + 1]: how often each item occurs in the training log, or how much it counts there."""
        self.counts = torch.from_numpy(counts.astype(np.float32))

    def score(self, log: Sequences, tokens: int = 16384) -> Iterator[tuple[Ints, Tensor]]:
        """Yield (rows [B], scores [B, V + 1])."""
        chunk = max(1, 1_000_000 // len(self.counts))
        for start in range(0, len(log), chunk):
            rows = np.arange(start, min(start + chunk, len(log)))
            yield rows, self.counts.repeat(len(rows), 1)
