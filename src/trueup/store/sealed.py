"""Sealed files: trueup's own files, which are checked for changes each time before they are read.

Each file ends with a sha256 of the name that it was stored under and of all its contents. Disks can flip bits, copies can be cut
short, and folders can be assembled by hand. So a file that is not what was stored under its name is refused before it is parsed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from trueup.store import atomic, schema

SEAL = hashlib.sha256().digest_size
PIECE = 1 << 20


class Spoilt(Exception):
    """A file is not what was stored under its name."""


class _Sealing:
    """A writer that puts data into the file and into its sha256."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file, self.sum = file, _begun(name)

    def write(self, data: Any) -> int:
        self.sum.update(data)
        return self.file.write(data)


@contextmanager
def new_file(path: str | os.PathLike[str], name: str) -> Iterator[Any]:
    """Yield a writer; at a clean exit the file at `path` holds what was written, sealed under `name`.

    Raises:
        BadInput: as `atomic.new_file`. Unavailable: the disk is full.
    """
    with atomic.new_file(path) as file:
        sealing = _Sealing(file, name)
        yield sealing
        file.write(sealing.sum.digest())


@contextmanager
def open_file(path: str | os.PathLike[str], name: str) -> Iterator[BinaryIO]:
    """Yield the file at `path`, at its beginning, after a check that it was stored under `name`. Its last bytes are the seal.

    Raises:
        FileNotFoundError: there is no such file. Spoilt: it is another file, or not as it was written.
    """
    try:
        opened = schema.open_plain(path)
    except ValueError as e:
        raise Spoilt(f"'{path}' is no plain file.") from e
    with opened as file:
        remaining = os.fstat(file.fileno()).st_size - SEAL
        digest = _begun(name)
        while remaining > 0 and (piece := file.read(min(PIECE, remaining))):
            digest.update(piece)
            remaining -= len(piece)
        if remaining or file.read() != digest.digest():
            raise Spoilt(f"'{path}' is not what was kept under its name.")
        file.seek(0)
        yield file


def write(path: str | os.PathLike[str], name: str, data: bytes) -> None:
    """Store `data` at `path` under `name`. Raises as `new_file`."""
    with new_file(path, name) as file:
        file.write(data)


def read(path: str | os.PathLike[str], name: str) -> bytes:
    """The data that `write` stored. Raises as `open_file`."""
    with open_file(Path(path), name) as file:
        return file.read()[:-SEAL]


def _begun(name: str) -> Any:
    # The length separates the name from the contents.
    return hashlib.sha256(f"{len(name.encode())} {name}".encode())
