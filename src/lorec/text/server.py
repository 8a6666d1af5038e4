"""Encoders behind a server that speaks the OpenAI embeddings API: vLLM, llama.cpp, Ollama, TEI, or a company's own.

Texts leave this machine for the server that is named, and for nobody else: no proxy of the environment is asked, and a
key goes only where its variable is named.
"""

import itertools
import json
import os
import random
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from lorec.errors import ConfigError, MissingExtra, ServerError
from lorec.text.encoders import cut, shortened

if TYPE_CHECKING:
    import httpx2

Vectors = NDArray[np.float32]
AGAIN = (408, 425, 429)
"""Answers after which it is worth asking again, besides all from 500 on."""
TOO_MUCH = (400, 413, 422)
"""Answers that fewer or shorter texts may mend."""
LONGEST_WAIT = 30.0
"""Seconds between two requests, unless the server asks for more."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that speaks the OpenAI embeddings API (vLLM, llama.cpp, Ollama, TEI); texts leave for it alone."""

    url: str
    """Where it is, as http://localhost:8000/v1; /embeddings is put behind it."""
    model: str
    """What the server calls the model."""
    key_variable: str = ""
    """The environment variable that holds the key, where the server wants one; the key itself is kept nowhere."""
    batch: int = 64
    """Texts in a request; half as many from then on where the server finds it too much."""
    concurrency: int = 4
    """Requests at once."""
    timeout: float = 60.0
    """Seconds to wait for an answer."""
    retries: int = 6
    """How often a request is sent again that the server was too busy for, or did not answer."""
    wait: float = 0.5
    """Seconds before the first of these, doubled each time, at most 30; longer where the server asks for it."""
    max_tokens: int = 512
    """Tokens that the model reads."""

    def __post_init__(self) -> None:
        # What is refused may hold a secret, so none of it is repeated.
        try:
            place = urlsplit(self.url)
            whole = place.scheme in ("http", "https") and bool(place.hostname) and place.port != 0
        except ValueError:
            whole = False
        if not whole:
            raise ConfigError(
                "[encoder] url is no address; it begins with http:// or https://, as http://localhost:8000/v1"
            )
        if place.username or place.password or place.query or place.fragment:
            raise ConfigError(
                "[encoder] url has a password, a query or a #; a key belongs into the variable of key_variable"
            )
        if self.key_variable and not self.key_variable.isidentifier():
            raise ConfigError(
                "[encoder] key_variable is no variable's name; it names the one that holds the key, as MY_KEY"
            )
        if min(self.batch, self.concurrency) < 1 or self.retries < 0 or self.max_tokens < 8:
            raise ConfigError("[encoder] batch and concurrency are 1 or more, retries 0 or more, max_tokens 8 or more")
        if not 0 < self.timeout < float("inf") or not 0 <= self.wait < float("inf"):
            raise ConfigError("[encoder] timeout is above 0 and wait 0 or more, both in seconds")

    @property
    def budget(self) -> int:
        """Words in a prompt."""
        return self.max_tokens // 2

    def count(self, texts: list[str]) -> None:
        """Its model's tokens are not known here."""

    def identity(self) -> dict[str, Any]:
        """Server and model: what it serves under that name can't be known from here."""
        return {"encoder": "server", "url": self.url.rstrip("/"), "model": self.model, "max_tokens": self.max_tokens}

    def encode(self, texts: list[str]) -> Iterator[Vectors]:
        """[n, dim] in parts, in order, `concurrency` requests at once.

        Raises ServerError for a server that is down, refuses, or answers with something else than vectors, and
        MissingExtra without httpx2. The request that failed for good ends it; the parts before it are kept.
        """
        try:
            import httpx2
        except ImportError:
            raise MissingExtra("encoder server needs httpx2: pip install 'lorec[text]'") from None
        key = self._key()
        head = {"Authorization": f"Bearer {key}"} if key else {}
        # No text can be empty for most servers, and what is longer than any model reads is cut here already.
        asked = [cut(text, 6 * self.max_tokens, 400).strip() or "(no text)" for text in texts]
        with httpx2.Client(headers=head, timeout=self.timeout, follow_redirects=False, trust_env=False) as client:
            yield from _Asking(self, client, key).all(asked)

    def _key(self) -> str:
        key = os.environ.get(self.key_variable, "").strip() if self.key_variable else ""
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(f"the variable {self.key_variable} holds no key: it has letters that no key has")
        return key


@dataclass(frozen=True)
class _Answer:
    status_code: int
    headers: Mapping[str, str]
    text: str


class _Asking:
    """A server at work on some texts."""

    def __init__(self, spec: Server, client: "httpx2.Client", key: str) -> None:
        self.spec, self.client, self.key = spec, client, key
        self.most = spec.batch
        self.stop = threading.Event()

    def all(self, texts: list[str]) -> Iterator[Vectors]:
        parts = iter([texts[start : start + self.spec.batch] for start in range(0, len(texts), self.spec.batch)])
        waiting: deque[Future[Vectors]] = deque()
        pool = ThreadPoolExecutor(self.spec.concurrency)
        try:
            while True:
                for part in itertools.islice(parts, 2 * self.spec.concurrency - len(waiting)):
                    waiting.append(pool.submit(self.embed, part))
                if not waiting:
                    return
                yield _patiently(waiting.popleft())
        finally:
            self.stop.set()
            pool.shutdown(cancel_futures=True)

    def embed(self, texts: list[str]) -> Vectors:
        """[n, dim] of some texts, in as few requests as the server takes."""
        if len(texts) > self.most:
            half = len(texts) // 2
            return np.concatenate([self.embed(texts[:half]), self.embed(texts[half:])])
        answer = self.asked(texts)
        if answer.status_code in TOO_MUCH and len(texts) > 1:
            self.most = max(1, min(self.most, len(texts) // 2))
            return self.embed(texts)
        if answer.status_code in TOO_MUCH and len(texts[0]) > 200:  # longer than the model reads, in its language
            half = len(texts[0]) // 2
            return self.embed([cut(shortened(texts[0], list, half), half, half // 4)])
        if answer.status_code in (401, 403):
            name = self.spec.key_variable or "that key_variable names"
            raise self.error(f"refuses ({answer.status_code}); put its key into the variable {name}")
        if answer.status_code != 200:
            raise self.error(
                f"answers {answer.status_code}: {self.said(answer)}; is {self.spec.model!r} what it serves?"
            )
        try:
            rows = sorted(json.loads(answer.text)["data"], key=lambda row: row["index"])
            found = np.array([row["embedding"] for row in rows], dtype=np.float32)
            if [row["index"] for row in rows] != list(range(len(rows))):
                raise ValueError("an index stands twice")
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self.error("answers with something else than embeddings; is it an OpenAI embeddings API?") from None
        if found.ndim != 2 or len(found) != len(texts) or not found.shape[1]:
            raise self.error(f"gave vectors of the shape {found.shape} for {len(texts)} texts")
        return found

    def posted(self, asked: dict[str, Any]) -> "_Answer":
        """One request's answer, whole within the time: a server that drips would be waited for without end."""
        import httpx2

        until, parts = time.monotonic() + self.spec.timeout, []
        with self.client.stream("POST", f"{self.spec.url.rstrip('/')}/embeddings", json=asked) as answer:
            for part in answer.iter_bytes():
                parts.append(part)
                if time.monotonic() > until or self.stop.is_set():
                    raise httpx2.ReadTimeout("it goes on")
            return _Answer(answer.status_code, answer.headers, b"".join(parts).decode("utf-8", "replace"))

    def asked(self, texts: list[str]) -> "_Answer":
        """The answer to a request, which is sent again while that may help."""
        import httpx2

        wait = self.spec.wait
        for left in range(self.spec.retries, -1, -1):
            at_least = 0.0
            if self.stop.is_set():
                raise self.error("is not asked any more")
            try:
                answer = self.posted({"model": self.spec.model, "input": texts, "encoding_format": "float"})
                if answer.status_code not in AGAIN and answer.status_code < 500:
                    return answer
                told = f"answers {answer.status_code}: {self.said(answer)}"
                at_least = _seconds(answer.headers.get("Retry-After"))
            except httpx2.TimeoutException:
                told = f"did not answer within {self.spec.timeout:g} s"
            except httpx2.HTTPError as error:  # its words may hold what was sent
                told = f"can't be reached ({type(error).__name__})"
            if not left:
                raise self.error(f"{told}; asked {self.spec.retries + 1} times. Start it, or give it more time")
            # Not all at once again: the wait is drawn, which no result depends on.
            self.stop.wait(max(at_least, min(wait, LONGEST_WAIT) * random.uniform(0.5, 1.0)))
            wait *= 2
        raise AssertionError("unreachable")

    def said(self, answer: "_Answer") -> str:
        """The first words of an answer, which may repeat what was sent."""
        text = answer.text[:10_000]
        return " ".join((text.replace(self.key, "...") if self.key else text).split())[:300]

    def error(self, what: str) -> ServerError:
        return ServerError(f"the encoder server {self.spec.url} {what}")


def _patiently(part: "Future[Vectors]") -> Vectors:
    """What a request gives; a signal is heard at once meanwhile, which a wait without end may keep waiting."""
    while True:
        try:
            return part.result(timeout=0.5)
        except TimeoutError:
            if part.done():
                raise


def _seconds(text: str | None) -> float:
    """Retry-After in seconds, at most five minutes; a date counts as nothing."""
    try:
        return max(0.0, min(float(text or 0), 300.0))
    except ValueError:
        return 0.0
