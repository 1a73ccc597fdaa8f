"""Files that tell whether they are as they were written: what trueup keeps for itself, and reads again a second or a year later.

At the end of each stands a sha256 over the name that it was kept under and all of its contents. Disks turn bits, copies are cut
short, and folders are put together by hand: a file that is not what was kept under its name is told before anything in it is read.
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
    """A file is not what was kept under its name."""


class _Sealing:
    """What is written goes to the file, and into its seal."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file, self.sum = file, _begun(name)

    def write(self, data: Any) -> int:
        self.sum.update(data)
        return self.file.write(data)


@contextmanager
def new_file(path: str | os.PathLike[str], name: str) -> Iterator[Any]:
    """Yield something to write to; at a clean exit the file at `path` is what was written, sealed under `name`.

    Raises:
        BadInput: as `atomic.new_file`. Unavailable: the disk is full.
    """
    with atomic.new_file(path) as file:
        sealing = _Sealing(file, name)
        yield sealing
        file.write(sealing.sum.digest())


@contextmanager
def open_file(path: str | os.PathLike[str], name: str) -> Iterator[BinaryIO]:
    """Yield the file at `path`, at its beginning, once it is known to be what was kept under `name`. Its seal is still its end.

    Raises:
        FileNotFoundError: there is none. Spoilt: it is another, or not as it was written.
    """
    try:
        opened = schema.open_plain(path)
    except ValueError as e:
        raise Spoilt(f"'{path}' is no plain file.") from e
    with opened as file:
        left = os.fstat(file.fileno()).st_size - SEAL
        sum_ = _begun(name)
        while left > 0 and (piece := file.read(min(PIECE, left))):
            sum_.update(piece)
            left -= len(piece)
        if left or file.read() != sum_.digest():
            raise Spoilt(f"'{path}' is not what was kept under its name.")
        file.seek(0)
        yield file


def write(path: str | os.PathLike[str], name: str, data: bytes) -> None:
    """Keep `data` at `path` under `name`. Raises as `new_file`."""
    with new_file(path, name) as file:
        file.write(data)


def read(path: str | os.PathLike[str], name: str) -> bytes:
    """What `write` kept. Raises as `open_file`."""
    with open_file(Path(path), name) as file:
        return file.read()[:-SEAL]


def _begun(name: str) -> Any:
    # The length keeps a name and what follows apart.
    return hashlib.sha256(f"{len(name.encode())} {name}".encode())
