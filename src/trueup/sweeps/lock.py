"""Locks a folder for one sweep at a time, or for several parts of one sweep."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trueup.store import lock


@contextmanager
def writing(out: Path, part: str = "") -> Iterator[None]:
    """Lock `out` inside the block: the whole folder, or with `part` (``i/n``) only against the same part and whole sweeps.

    Raises: as `trueup.store.lock.held`.
    """
    lock_file = out / f".writing{'-' + part.replace('/', '-of-') if part else ''}"

    def beside() -> None:
        for other_file in sorted(out.glob(".writing*")):
            if other_file == lock_file or not re.fullmatch(r"\.writing(-\d+-of-\d+)?", other_file.name):
                continue
            compatible = bool(part) and other_file.name.partition("-of-")[2] == lock_file.name.partition("-of-")[2]
            if not compatible and lock.alive(other_file):
                lock.refuse(other_file, out, "sweep")

    with lock.held(lock_file, out, "sweep", part=part, beside=beside):
        yield


def alone(out: Path) -> bool:
    """Whether no other process is writing a part of a sweep to `out`."""
    me = (platform.node(), os.getpid())
    other_files = [
        f for f in out.glob(".writing*") if ((contents := lock.json_of(f)).get("host"), contents.get("pid")) != me
    ]
    return not any(map(lock.alive, other_files))
