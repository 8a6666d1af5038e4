"""Encoders behind a server that speaks the OpenAI embeddings API: vLLM, llama.cpp, Ollama, TEI, or a company's own.

Texts leave this machine for the server that is named, and for nobody else.
"""

import concurrent.futures
import itertools
import os
import random
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from lorec.errors import ConfigError, MissingExtra, ServerError

if TYPE_CHECKING:
    import httpx2

Vectors = NDArray[np.float32]
AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""Answers after which it is worth asking again."""
TOO_MUCH = (400, 413, 422)
"""Answers that a smaller batch may mend."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that speaks the OpenAI embeddings API (vLLM, llama.cpp, Ollama, TEI); texts leave for it alone."""

    url: str
    """Where it is, as http://localhost:8000/v1; /embeddings is put behind it."""
    model: str
    """What the server calls the model."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key, where the server wants one; the key itself is kept nowhere."""
    batch: int = 64
    """Texts in a request; half as many where the server finds it too much."""
    concurrency: int = 4
    """Requests at once."""
    timeout: float = 60.0
    """Seconds to wait for an answer."""
    retries: int = 6
    """How often a request is sent again that the server was too busy for, or did not answer."""
    wait: float = 0.5
    """Seconds before the first of these, doubled each time, at most 30; what the server asks for counts."""
    max_tokens: int = 512
    """Tokens that the model reads."""

    def __post_init__(self) -> None:
        place = urlsplit(self.url)
        if place.scheme not in ("http", "https") or not place.hostname:
            raise ConfigError(f"[encoder] url is {_without_secrets(self.url)!r}; it begins with http:// or https://")
        if place.username or place.password or place.query:
            raise ConfigError(
                "[encoder] url has a password or a query; a key goes into the variable that key_variable names"
            )
        if min(self.batch, self.concurrency) < 1 or self.retries < 0 or self.max_tokens < 8:
            raise ConfigError("[encoder] batch and concurrency are 1 or more, retries 0 or more, max_tokens 8 or more")
        if not 0 < self.timeout < float("inf") or not 0 <= self.wait < float("inf"):
            raise ConfigError("[encoder] timeout is above 0 and wait 0 or more, both in seconds")

    @property
    def budget(self) -> int:
        """Words in a prompt."""
        return self.max_tokens // 2

    def identity(self) -> dict[str, Any]:
        """Server and model: what it serves under that name can't be known from here."""
        return {"encoder": "server", "url": self.url.rstrip("/"), "model": self.model, "max_tokens": self.max_tokens}

    def encode(self, texts: list[str]) -> Iterator[Vectors]:
        """[n, dim] in parts, in order, `concurrency` requests at once.

        Raises ServerError for a server that is down, refuses, or answers with something else than vectors of one
        length, and MissingExtra without httpx2. The request that failed for good ends it; the parts before it are kept.
        """
        try:
            import httpx2
        except ImportError:
            raise MissingExtra("encoder server needs httpx2: pip install 'lorec[text]'") from None
        key = os.environ.get(self.key_variable)
        head = {"Authorization": f"Bearer {key}"} if key else {}
        # No text can be empty for most servers, and what is longer than the model reads is cut here already.
        asked = [text[: 6 * self.max_tokens].strip() or "(no text)" for text in texts]
        parts = [asked[start : start + self.batch] for start in range(0, len(asked), self.batch)]
        dim = 0
        with (
            httpx2.Client(headers=head, timeout=self.timeout, follow_redirects=False) as client,
            concurrent.futures.ThreadPoolExecutor(self.concurrency) as pool,
        ):
            waiting: deque[concurrent.futures.Future[Vectors]] = deque()
            more = iter(parts)
            try:
                while True:
                    for part in itertools.islice(more, 2 * self.concurrency - len(waiting)):
                        waiting.append(pool.submit(self._embed, client, part))
                    if not waiting:
                        return
                    found = waiting.popleft().result()
                    dim = dim or found.shape[1]
                    if found.shape[1] != dim:
                        raise self._error(f"gave vectors of length {found.shape[1]} after {dim}; it serves two models")
                    yield found
            finally:
                for one in waiting:
                    one.cancel()

    def _embed(self, client: "httpx2.Client", texts: list[str]) -> Vectors:
        answer = self._asked(client, texts)
        if answer.status_code in TOO_MUCH and len(texts) > 1:
            half = len(texts) // 2
            return np.concatenate([self._embed(client, texts[:half]), self._embed(client, texts[half:])])
        if answer.status_code in (401, 403):
            raise self._error(f"refuses ({answer.status_code}); put its key into the variable {self.key_variable}")
        if answer.status_code != 200:
            said = " ".join(answer.text[:300].split())
            raise self._error(f"answers {answer.status_code}: {self._hidden(said)}; is {self.model!r} what it serves?")
        try:
            rows = sorted(answer.json()["data"], key=lambda row: row["index"])
            found = np.array([row["embedding"] for row in rows], dtype=np.float32)
        except (ValueError, KeyError, TypeError):
            raise self._error("answers with something else than embeddings; is it an OpenAI embeddings API?") from None
        if found.ndim != 2 or len(found) != len(texts) or not found.shape[1]:
            raise self._error(f"gave vectors of the shape {found.shape} for {len(texts)} texts")
        return found

    def _asked(self, client: "httpx2.Client", texts: list[str]) -> "httpx2.Response":
        """The answer to a request, which is sent again while that may help."""
        import httpx2

        wait = self.wait
        for left in range(self.retries, -1, -1):
            told = ""
            try:
                answer = client.post(
                    f"{self.url.rstrip('/')}/embeddings",
                    json={"model": self.model, "input": texts, "encoding_format": "float"},
                )
                if answer.status_code not in AGAIN:
                    return answer
                told = f"answers {answer.status_code}"
                wait = max(wait, _seconds(answer.headers.get("Retry-After")))
            except httpx2.TimeoutException:
                told = f"did not answer within {self.timeout:g} s"
            except httpx2.TransportError as error:
                told = f"can't be reached ({self._hidden(str(error)) or type(error).__name__})"
            if not left:
                raise self._error(f"{told}, after {self.retries + 1} requests; start it, or give it more time")
            # Not all at once again: the wait is drawn, which no result depends on.
            time.sleep(min(wait, 30.0) * random.uniform(0.5, 1.0))
            wait *= 2
        raise AssertionError("unreachable")

    def _error(self, what: str) -> ServerError:
        return ServerError(f"the encoder server {self.url} {what}")

    def _hidden(self, text: str) -> str:
        """A server may repeat what it was sent."""
        key = os.environ.get(self.key_variable)
        return text.replace(key, "...") if key else text


def _seconds(text: str | None) -> float:
    """Retry-After in seconds; a date counts as nothing."""
    try:
        return max(0.0, min(float(text or 0), 30.0))
    except ValueError:
        return 0.0


def _without_secrets(url: str) -> str:
    place = urlsplit(url)
    return url if "@" not in url else f"{place.scheme}://...{place.hostname or ''}{place.path}"
