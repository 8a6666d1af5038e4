"""Files that others can trust: written whole or not at all, fingerprinted, never looked for outside their folder.

Checkpoints are at the bottom.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lorec.errors import DiskError, RunError, first_line


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name to write to; rename it to `path` when all went well, remove it when not.

    Raises DiskError for what the disk refuses (full, read-only) and for a name that is something else than a file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise DiskError(f"can't write {path}: it is {'a folder' if path.is_dir() else 'no file'}; choose another name")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")  # machines may share a folder
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # as the user's umask has it, whatever a library made of it
        os.replace(temporary, path)
    except Exception as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        raise DiskError(
            f"can't write {path}: {refusal}; nothing was half-written. Mend that, then run again"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def writable(folder: Path) -> bool:
    """Whether files could be written into a folder, which need not exist yet; nothing is made."""
    place = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    return place.is_dir() and os.access(place, os.W_OK)


def check_writable(folder: Path) -> None:
    """Raise DiskError now where hours later nothing could be written."""
    if not writable(folder):
        raise DiskError(f"can't write to {folder}: it is not a folder to write to; choose another")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole, readable by a person."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def write_parquet(path: Path, frame: pl.DataFrame) -> None:
    """Write a Parquet file whole."""
    with replacing(path) as temporary:
        frame.write_parquet(temporary)


def read_json(path: Path) -> Any:
    """Read a JSON file of a run. Raises RunError where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"no {path.name} in {path.parent}; is this a run folder?") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise RunError(f"{path} is damaged ({error}); restore it, or delete the folder and run again") from None


def sha256(path: Path) -> str:
    """The fingerprint of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(folder: Path, name: str) -> Path:
    """A regular file of a folder by its name. Raises RunError for links, for ways out of the folder and for nothing."""
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise RunError(f"{name!r} leads out of {folder}; a run folder holds its own files only")
    if path.is_symlink() or any(parent.is_symlink() for parent in path.parents if folder in parent.parents):
        raise RunError(f"{path} is a link; a run folder holds its own files only")
    if not path.is_file():
        raise RunError(f"{path} is missing; restore it, or delete the folder and run again")
    return path


def _refusal(error: Exception) -> str | None:
    """The disk's own words, also where a library wrapped them; None for anything else."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else str(error)
    words = str(error)
    return next((os.strerror(code) for code in (errno.ENOSPC, errno.EROFS) if os.strerror(code) in words), None)


# ---------------------------------------------------------------------------------------------------- checkpoints


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write nested dicts and lists of tensors and JSON values as one safetensors file, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    plain = _without_tensors(state, "", tensors)
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"state": json.dumps(plain)})


def load_state(path: Path) -> dict[str, Any]:
    """Read what save_state wrote. Raises RunError where the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            plain = json.loads((file.metadata() or {})["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        state: dict[str, Any] = _with_tensors(plain, tensors)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise RunError(f"{path} is a damaged checkpoint ({first_line(error)}); delete it to start anew") from None
    return state


TENSOR = "\0tensor"
PAIRS = "\0pairs"


def _without_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach().clone().contiguous()  # clones, because safetensors refuses shared memory
        return {TENSOR: path}
    if isinstance(value, dict):
        pairs = [[key, _without_tensors(one, f"{path}/{key}", tensors)] for key, one in value.items()]
        return {PAIRS: pairs}  # pairs, because an optimizer's keys are integers and JSON's are not
    if isinstance(value, list | tuple):
        return [_without_tensors(one, f"{path}/{place}", tensors) for place, one in enumerate(value)]
    return value


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict) and TENSOR in value:
        return tensors[value[TENSOR]]
    if isinstance(value, dict):
        return {key: _with_tensors(one, tensors) for key, one in value[PAIRS]}
    if isinstance(value, list):
        return [_with_tensors(one, tensors) for one in value]
    return value
