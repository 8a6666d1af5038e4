"""Files from their owners: gone on with where they were cut, checked, and under their name only when whole."""

import gzip
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from lorec.errors import DataError
from lorec.files import replacing
from lorec.sources.public import Public, here, home

Watch = Callable[[str, int, int], None]
"""Told the file, bytes that are there, and of how many."""
BLOCK = 1 << 20


def fetch(source: Public, watch: Watch = lambda name, done, total: None) -> list[Path]:
    """Bring a public log's files into its folder, those that are missing; what came, in order.

    An archive is checked against the sum that its owner publishes beside it (MovieLens), and a packed file by the sums
    in it. Raises DataError for a log whose licence has to be accepted first, for what can't be brought and for what is
    damaged.
    """
    lacking = [name for name, address in source.files().items() if not address]
    if here(source):
        return []
    if lacking:
        raise DataError(f"{lacking[0]} can't be brought: {source.licence}; put it into {source.root} yourself")
    folder, came = home(source), list[Path]()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} can't be made ({error.strerror}); set root to a folder") from None
    for name, address in source.files().items():
        if (folder / name).is_file():
            continue
        if address.endswith(".zip"):
            archive = folder / address.rpartition("/")[2]
            _brought(address, archive, watch)
            _published_sum(address, archive)
            _unpacked(archive, folder, list(source.files()))
        else:
            _brought(address, folder / name, watch)
        came.append(folder / name)
    return came


def _brought(address: str, path: Path, watch: Watch) -> None:
    """Bring one file; one that was begun goes on where it was, if its owner's server can do that."""
    if path.is_file():
        return
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    asked = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            if have and answer.status != 206:
                have = 0
            total = have + int(answer.headers.get("Content-Length") or 0)
            with part.open("ab" if have else "wb") as file:
                while block := answer.read(BLOCK):
                    file.write(block)
                    have += len(block)
                    watch(path.name, have, max(total, have))
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to be sent: what is there is the whole, or another file's
            total = have
        else:
            raise DataError(f"{address} answers {error.code} {error.reason}; look for it at its owner's site") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DataError(f"{address} can't be brought ({error}); try again, and it goes on where it was") from None
    if not have or have < total:
        raise DataError(f"{address} broke off after {have:,} of {total:,} bytes; try again, and it goes on there")
    try:
        _checked(part, path.name)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        part.unlink()
        raise DataError(f"{address} came damaged ({error}) and was thrown away; try again") from None
    os.replace(part, path)


def _checked(path: Path, name: str) -> None:
    """Read packed files to their end, where their sums are."""
    if name.endswith(".gz"):
        with gzip.open(path) as file:
            while file.read(BLOCK):
                pass
    elif name.endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            if bad := archive.testzip():
                raise zipfile.BadZipFile(f"{bad} in it")


def _published_sum(address: str, path: Path) -> None:
    """Compare with the MD5 that GroupLens publishes beside each archive."""
    try:
        with urllib.request.urlopen(address + ".md5", timeout=60) as answer:
            said = re.search(r"\b[0-9a-f]{32}\b", answer.read(1000).decode("ascii", "replace"))
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{address}.md5 can't be brought ({error}), so {path} can't be checked; try again") from None
    with path.open("rb") as file:
        mine = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if said is None or said[0] != mine:
        path.unlink()
        raise DataError(f"{path} isn't what its owner says (MD5 {mine}) and was thrown away; try again")


def _unpacked(archive: Path, folder: Path, names: list[str]) -> None:
    """The files of these names out of an archive, wherever they lie in it; nothing else, and nowhere else."""
    with zipfile.ZipFile(archive) as packed:
        for member in packed.namelist():
            name = member.rpartition("/")[2]
            if name in names:
                with replacing(folder / name) as temporary, packed.open(member) as file, temporary.open("wb") as to:
                    while block := file.read(BLOCK):
                        to.write(block)
    if lacking := [name for name in names if not (folder / name).is_file()]:
        raise DataError(f"{archive} holds no {lacking[0]}; is it another edition?")
