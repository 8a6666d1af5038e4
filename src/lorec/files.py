"""Files that others can trust: written whole or not at all, fingerprinted, never looked for outside their folder."""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorec.errors import RunError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write to; rename it to `path` when all went well, remove it when not.

    Raises RunError for what the disk refuses (full, read-only, a name that is a folder).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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
        raise RunError(f"can't write {path}: {refusal}; nothing was half-written. Mend that, then run again") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole, readable by a person."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


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
