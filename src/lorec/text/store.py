"""Vectors on disk by content: the encoder's identity and the text are the address, so nothing is encoded twice.

One folder for each encoder; inside, shards of safetensors that are only ever added: `keys` uint8 [n, 16], `vectors`
float32 [n, dim]. A shard is named by its content and renamed into place, so a killed process keeps what it had
finished. Of several processes one encodes at a time, and the next finds it done.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lorec.files import replacing

if TYPE_CHECKING:
    from lorec.text import Encoder

SHARD = 2048
"""Texts in a shard, and so what an interruption can lose."""


class Store:
    """The vectors of one encoder."""

    def __init__(
        self, root: Path | None, encoder: "Encoder", memory: dict[bytes, NDArray[np.float32]] | None = None
    ) -> None:
        """Keep vectors on disk under `root`, where it is given, and in `memory`."""
        self.encoder, self.memory = encoder, {} if memory is None else memory
        identity = json.dumps(encoder.identity(), sort_keys=True)
        name = f"{encoder.identity()['encoder']}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        self.folder = None if root is None else root / name

    def vectors(self, texts: list[str], on_progress: Callable[[int, int], None] | None = None) -> NDArray[np.float32]:
        """float32 [n, dim] in the texts' order; each distinct text that is not kept yet is encoded once."""
        keys = [_key(text) for text in texts]
        known = self.memory
        known.update(self._read(set(keys) - set(known)))
        if not known.keys() >= set(keys):
            with self._alone():
                known.update(self._read(set(keys) - set(known)))  # another process may have been at it
                self._encode(
                    {key: text for key, text in zip(keys, texts, strict=True) if key not in known}, on_progress
                )
        return np.stack([known[key] for key in keys])

    def _alone(self) -> contextlib.AbstractContextManager[object]:
        if self.folder is None:
            return contextlib.nullcontext()
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".lock")

    def _encode(self, missing: dict[bytes, str], on_progress: Callable[[int, int], None] | None) -> None:
        # Of like length together, longest first: less padding, and the time left is not underestimated.
        todo = sorted(missing.items(), key=lambda pair: -len(pair[1]))
        for start in range(0, len(todo), SHARD):
            part = todo[start : start + SHARD]
            done = [start]

            def tell(more: int, done: list[int] = done) -> None:
                done[0] += more
                if on_progress:
                    on_progress(done[0], len(todo))

            vectors = self.encoder.encode([text for _, text in part], tell)
            self._write([key for key, _ in part], vectors)
            self.memory.update(zip((key for key, _ in part), vectors, strict=True))

    def _read(self, wanted: set[bytes]) -> dict[bytes, NDArray[np.float32]]:
        found: dict[bytes, NDArray[np.float32]] = {}
        if not wanted or self.folder is None or not self.folder.is_dir():
            return found
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                shard = load_file(path)
                keys, vectors = shard["keys"], shard["vectors"]
            except (SafetensorError, KeyError, OSError):
                continue  # a damaged shard is worth nothing, and its texts are simply encoded again
            for row, key in enumerate(keys):
                if (name := key.tobytes()) in wanted:
                    found[name] = vectors[row]
        return found

    def _write(self, keys: list[bytes], vectors: NDArray[np.float32]) -> None:
        if self.folder is None:
            return
        packed = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), 16)
        name = hashlib.sha256(packed.tobytes()).hexdigest()[:32]
        with replacing(self.folder / f"{name}.safetensors") as temporary:
            save_file({"keys": packed, "vectors": np.ascontiguousarray(vectors)}, temporary)


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]
