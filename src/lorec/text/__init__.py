"""What a language model knows about items and users, as vectors that are never made twice.

An Encoder is a spec with one verb, `encode(texts)`, which gives vectors part by part; TextVectors asks it through the
store.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from lorec.data import Catalog, Sequences
from lorec.errors import ConfigError, DataError
from lorec.text.decoders import Answers, Decoder, SmolLM2
from lorec.text.encoders import Hash, MiniLM, Random, Sentence
from lorec.text.prompts import Prompts, item_texts, user_prompts
from lorec.text.server import Server
from lorec.text.store import Store

__all__ = [
    "ENCODERS",
    "Decoder",
    "Encoder",
    "Hash",
    "MiniLM",
    "Prompts",
    "Random",
    "Sentence",
    "Server",
    "SmolLM2",
    "TextVectors",
    "View",
]

ENCODERS: dict[str, type] = {
    "decoder": Decoder, "hash": Hash, "minilm": MiniLM, "random": Random, "sentence": Sentence, "server": Server,
    "smollm2": SmolLM2,
}  # fmt: skip

Vectors = NDArray[np.float32]
View = Literal["prompt", "pooled"]
"""Of a user: the paper's question over all titles, or the mean of the items' vectors."""


class Encoder(Protocol):
    """The spec of something that turns texts into vectors."""

    @property
    def budget(self) -> int:
        """How many words of a text it reads, about; prompts are cut to it."""
        ...

    def identity(self) -> dict[str, Any]:
        """Everything that a vector depends on besides the text: the store's address."""
        ...

    def count(self, texts: list[str]) -> list[int] | None:
        """How many tokens it reads of each text; None where that is not known here."""
        ...

    def encode(self, texts: list[str]) -> Iterator[Vectors]:
        """float32 [some, dim], part by part in the texts' order; what was given away is kept whatever happens next."""
        ...


@dataclass(frozen=True)
class TextVectors:
    """Vectors of a catalogue's items and of users' histories, centred and scaled.

    Raw vectors of language models are nearly parallel, so items lose their mean and are scaled to unit variance.
    Titles are written by strangers: they reach an encoder as data only.
    """

    catalog: Catalog
    encoder: Encoder
    cache: str | Path | None = None
    """Where vectors are kept on disk by content; None: in this object only."""
    scenario: str = "a shop"
    """What is recommended, for prompts: "video games", "groceries", "news"."""
    prompts: Prompts = field(default_factory=Prompts)
    """Templates of what the encoder reads."""
    on_progress: Callable[[int, int], None] | None = None
    """Hears (texts done, texts to do) while it encodes."""
    _kept: dict[bytes, Vectors] = field(default_factory=dict, init=False, repr=False, compare=False)

    def identity(self) -> dict[str, Any]:
        """Everything that vectors depend on besides the catalogue and the histories."""
        return self.encoder.identity() | {"scenario": self.scenario, "prompts": asdict(self.prompts)}

    def check(self) -> None:
        """Raise now what encoding would raise: DataError where no item has a text, DiskError where vectors can't be
        kept, and what the encoder does.

        Where all titles are encoded already the encoder is not asked: it need not even be there.
        """
        if self.missing(self.texts()):
            self._store().check()
            next(iter(self.encoder.encode(["a text"])))

    def items(self) -> Vectors:
        """[V + 1, dim], row 0 zero; so are the rows of items without text. Raises DataError where none has any."""
        titles = self._titles()
        told = np.array([bool(title.strip()) for title in titles])
        raw = self._encode([title for title in titles if title.strip()])
        vectors = np.zeros((len(titles) + 1, raw.shape[1]), dtype=np.float32)
        vectors[1:][told] = _centred(raw)
        return vectors

    def users(self, log: Sequences, view: View = "prompt") -> Vectors:
        """[users, dim]. Raises ConfigError for another view."""
        if view not in get_args(View):
            raise ConfigError(f"view is {view!r}; it is one of {', '.join(get_args(View))}")
        if view == "prompt":
            # There are as many as users: what is on disk is not kept in memory besides.
            store = Store(self.cache, self.encoder, None if self.cache else self._kept)
            return _centred(store.vectors(self._prompts(log), self.on_progress))
        items = self.items()
        share = np.repeat(1 / np.maximum(log.lengths, 1), log.lengths).astype(np.float32)
        return _centred(sparse.csr_array((share, log.items, log.starts), shape=(len(log), len(items))) @ items)

    def answers(self, log: Sequences, question: str, words: tuple[str, ...]) -> Vectors:
        """[users, words]: logits of the encoder's model for answering a question about each user's titles so.

        Raises ConfigError as `writer` does.
        """
        model = self.writer()
        prompts = replace(self.prompts, question=question)
        asked = user_prompts(log, self.catalog.titles(), self.scenario, self.encoder.budget, prompts)
        return Store(self.cache, Answers(model, words)).vectors(asked, self.on_progress)

    def writer(self) -> Decoder:
        """The encoder, which can be asked. Raises ConfigError where it is no model that writes."""
        if not isinstance(self.encoder, Decoder):
            raise ConfigError(
                "to ask questions takes a model that writes: set the encoder to smollm2 or decoder; "
                f"{type(self.encoder).__name__} makes vectors"
            )
        return self.encoder

    def texts(self, log: Sequences | None = None) -> list[str]:
        """What it takes for `items`, and with a log for its `users`: the distinct titles and prompts."""
        titles = [title for title in self._titles() if title.strip()]
        return list(dict.fromkeys(titles + ([] if log is None else self._prompts(log))))

    def missing(self, texts: list[str]) -> list[str]:
        """Those texts that are not encoded yet."""
        return self._store().missing(texts)

    def prepare(self, texts: list[str]) -> None:
        """Encode what is missing of some texts, so that nothing waits for them later. Raises what the encoder does."""
        self._store().fill(texts, self.on_progress)

    def _prompts(self, log: Sequences) -> list[str]:
        return user_prompts(log, self.catalog.titles(), self.scenario, self.encoder.budget, self.prompts)

    def _titles(self) -> list[str]:
        titles = item_texts(self.catalog, self.prompts)
        if not any(title.strip() for title in titles):
            raise DataError("no item has a text; give a catalogue with titles (items=...), or do without text vectors")
        return titles

    def _encode(self, texts: list[str]) -> Vectors:
        return self._store().vectors(texts, self.on_progress)

    def _store(self) -> Store:
        return Store(self.cache, self.encoder, self._kept)


def _centred(vectors: Vectors) -> Vectors:
    """The same array, whose numbers are nobody else's."""
    vectors -= vectors.mean(axis=0)
    vectors /= max(float(vectors.std()), 1e-12)
    return vectors
