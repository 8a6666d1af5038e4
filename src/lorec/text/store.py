"""Vectors on disk by content: the encoder's identity and the text are the address, so nothing is encoded twice.

One folder for each encoder; inside, files of safetensors that are only ever added or laid together:

    keys      uint8 [n, 16]       of the texts
    sums      uint32 [n]          of key and vector, so that a damaged row is found and encoded again
    vectors   float32 [n, dim]

A file is named by its content and renamed into place, and is written every few seconds, so a killed process keeps what
it had finished. Of several processes one encodes at a time, and the next finds it done.
"""

import contextlib
import hashlib
import json
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from lorec.errors import DataError, DiskError
from lorec.files import replacing, writable

if TYPE_CHECKING:
    from lorec.text import Encoder

FORMAT = 2
"""Of the files; another one has another folder."""
EVERY = 1.0
"""Seconds between writes while it encodes: what a killed process can lose."""
SMALL, LARGE = 8_192, 65_536
"""Rows: files below the first are laid together, up to the second, when there are too many of them."""

Matrix = NDArray[np.float32]


class Store:
    """The vectors of one encoder."""

    def __init__(self, root: str | Path | None, encoder: "Encoder", memory: dict[bytes, Matrix] | None = None) -> None:
        """Keep vectors on disk under `root`, where it is given, and in `memory`."""
        self.encoder, self.memory = encoder, {} if memory is None else memory
        identity = json.dumps(encoder.identity() | {"format": FORMAT}, sort_keys=True)
        name = f"{encoder.identity()['encoder']}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        self.folder = Path(root) / name if root else None

    def vectors(self, texts: list[str], on_progress: Callable[[int, int], None] | None = None) -> Matrix:
        """float32 [n, dim] in the texts' order; each distinct text that is not kept yet is encoded once.

        `on_progress` hears (texts done, texts to do). Raises DataError for vectors that are no numbers or of another
        length than those before, and what the encoder does; what was encoded until then is kept.
        """
        keys = [_key(text) for text in texts]
        self._read(keys)
        if not self.memory.keys() >= set(keys):
            with self._alone():
                self._read(keys)  # another process may have been at it
                missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self.memory}
                self._encode(missing, on_progress, in_memory=True)
        return np.stack([self.memory[key] for key in keys]) if keys else np.zeros((0, self._width()), np.float32)

    def fill(self, texts: list[str], on_progress: Callable[[int, int], None] | None = None) -> None:
        """Encode what is missing and keep it on disk alone, whatever its amount. Raises what `vectors` does."""
        with self._alone():
            missing = {_key(text): text for text in self.missing(texts)}
            self._encode(missing, on_progress, in_memory=self.folder is None)

    def check(self) -> None:
        """Raise DiskError now where vectors could not be kept; nothing is made."""
        if self.folder is not None and not writable(self.folder):
            raise self._refused("it is not a folder to write to")

    def missing(self, texts: list[str]) -> list[str]:
        """The distinct texts that are not kept; a damaged row shows only when it is used."""
        by_key = {_key(text): text for text in texts if _key(text) not in self.memory}
        for path in self._files():
            for key in _keys(path):
                by_key.pop(key, None)
        return list(by_key.values())

    def _files(self) -> list[Path]:
        return [] if self.folder is None else sorted(self.folder.glob("*.safetensors"))

    def _alone(self) -> contextlib.AbstractContextManager[object]:
        if self.folder is None:
            return contextlib.nullcontext()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return FileLock(self.folder / ".lock").acquire()
        except OSError as error:
            raise self._refused(error.strerror or str(error)) from None

    def _refused(self, why: str) -> DiskError:
        return DiskError(
            f"can't keep vectors in {self.folder}: {why}; mend that, or name another place by the variable "
            "XDG_CACHE_HOME (in Python by cache=)"
        )

    def _encode(
        self, missing: dict[bytes, str], on_progress: Callable[[int, int], None] | None, in_memory: bool
    ) -> None:
        todo = list(missing.items())
        todo = [todo[place] for place in by_length(self.encoder, list(missing.values()))]
        keys, done, kept, width = [key for key, _ in todo], 0, 0, self._width()
        rows: list[Matrix] = []
        written = time.monotonic()
        try:
            for part in self.encoder.encode([text for _, text in todo]) if todo else ():
                if part.ndim != 2 or not len(part) or done + len(part) > len(todo):
                    raise DataError(f"the encoder gave {part.shape} for {len(todo) - done} texts; it gives [some, dim]")
                width = width or part.shape[1]
                if part.shape[1] != width:
                    raise DataError(
                        f"the encoder gave vectors of length {part.shape[1]}, those before have {width}: another model "
                        f"answers now; give it another name, or delete {self.folder}"
                    )
                bad = ~np.isfinite(part).all(axis=1)
                if bad.any():
                    good = int(np.flatnonzero(bad)[0])
                    rows.append(part[:good])
                    done += good
                    text = todo[done][1]
                    raise DataError(f"the encoder gave no numbers for the text {text[:60]!r}; take another one")
                rows.append(part)
                done += len(part)
                if on_progress is not None:
                    on_progress(done, len(todo))
                if time.monotonic() - written > EVERY:
                    self._keep(keys[kept:done], rows, in_memory)
                    kept, rows, written = done, [], time.monotonic()
            if done < len(todo):
                raise DataError(f"the encoder gave {done} vectors for {len(todo)} texts; it gives one for each")
        finally:
            self._keep(keys[kept:done], rows, in_memory)
        with contextlib.suppress(DiskError, OSError):  # everything is there, if in many files
            self._lay_together()

    def _width(self) -> int:
        """The length of the vectors that are there; 0 where none are."""
        for vector in self.memory.values():
            return len(vector)
        return next((width for path in self._files() if (width := _shape(path)[1])), 0)

    def _keep(self, keys: list[bytes], rows: list[Matrix], in_memory: bool) -> None:
        if not keys:
            return
        vectors = np.ascontiguousarray(np.concatenate(rows), dtype=np.float32)
        self._write(keys, vectors)
        if in_memory:
            self.memory.update(zip(keys, vectors, strict=True))

    def _read(self, keys: list[bytes]) -> None:
        """Take up from disk what is wanted and not in memory yet."""
        wanted = set(keys) - self.memory.keys()
        for path in self._files() if wanted else ():
            if not wanted.isdisjoint(_keys(path)):
                # Copies, as a row alone would hold its whole file in memory.
                self.memory.update((key, vector.copy()) for key, vector in _rows(path) if key in wanted)

    def _write(self, keys: list[bytes], vectors: Matrix) -> Path | None:
        if self.folder is None:
            return None
        packed = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), 16)
        sums = np.array([_sum(key, vector) for key, vector in zip(keys, vectors, strict=True)], dtype=np.uint32)
        name = hashlib.sha256(packed.tobytes() + sums.tobytes()).hexdigest()[:32]
        with replacing(self.folder / f"{name}.safetensors") as temporary:
            save_file({"keys": packed, "sums": sums, "vectors": vectors}, temporary)
        return self.folder / f"{name}.safetensors"

    def _lay_together(self) -> None:
        """Make few files of many small ones, without their damaged rows; only where nobody else writes."""
        small = [(path, _shape(path)[0]) for path in self._files()]
        small = [(path, n) for path, n in small if n < SMALL]
        while len(small) > 8:
            group: list[Path] = []
            rows = 0
            while small and rows + small[0][1] <= LARGE:
                path, n = small.pop(0)
                group, rows = [*group, path], rows + n
            found = {key: vector for path in group for key, vector in _rows(path, strict=True)}
            made = self._write(list(found), np.stack(list(found.values()))) if found else None
            for path in group:
                if path != made:
                    path.unlink(missing_ok=True)


def by_length(encoder: "Encoder", texts: list[str]) -> list[int]:
    """The texts' places, of like length together, longest first: less padding, and time left is not underestimated.

    Letters tell tokens badly: sorted by letters, half of what is read of a shop's titles is padding. For few texts
    a tokenizer takes longer to load than it saves.
    """
    sizes = encoder.count(texts) if len(texts) > 256 else None
    sizes = [len(text) for text in texts] if sizes is None else sizes
    return sorted(range(len(texts)), key=lambda place: -sizes[place])


def _rows(path: Path, strict: bool = False) -> Iterator[tuple[bytes, Matrix]]:
    """The sound rows of a file; none where it is damaged or was laid together with others meanwhile.

    `strict` raises OSError: what a disk does not give now is not damaged.
    """
    try:
        held = load_file(path)
        keys, sums, vectors = held["keys"], held["sums"], held["vectors"]
    except OSError:
        if strict:
            raise
        return
    except (SafetensorError, KeyError):
        return
    for row, key in enumerate(keys):
        name = key.tobytes()
        if _sum(name, vectors[row]) == sums[row]:
            yield name, vectors[row]


def _keys(path: Path) -> list[bytes]:
    """The keys of a file, without its vectors; none where it is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            return [key.tobytes() for key in file.get_tensor("keys")]
    except (SafetensorError, OSError):
        return []


def _shape(path: Path) -> tuple[int, int]:
    """Rows of a file and their length, without reading them; 0 where it is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            rows, width = file.get_slice("vectors").get_shape()
            return int(rows), int(width)
    except (SafetensorError, OSError):
        return 0, 0


def _sum(key: bytes, vector: Matrix) -> int:
    return zlib.crc32(np.ascontiguousarray(vector).tobytes(), zlib.crc32(key))


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]
