"""One sweep at a time in a folder, or several parts of one."""

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
    """Hold `out` inside the block: the whole of it, or with `part` (``i/n``) that part of a sweep beside the other parts.

    Raises: as `trueup.store.lock.held`.
    """
    own = out / f".writing{'-' + part.replace('/', '-of-') if part else ''}"

    def beside() -> None:
        for other in sorted(out.glob(".writing*")):
            if other == own or not re.fullmatch(r"\.writing(-\d+-of-\d+)?", other.name):
                continue
            may = bool(part) and other.name.partition("-of-")[2] == own.name.partition("-of-")[2]
            if not may and lock.alive(other):
                lock.refuse(other, out, "sweep")

    with lock.held(own, out, "sweep", part=part, beside=beside):
        yield


def alone(out: Path) -> bool:
    """Whether no other sweep is writing a part of `out`, beside this process."""
    me = (platform.node(), os.getpid())
    others = [f for f in out.glob(".writing*") if ((said := lock.json_of(f)).get("host"), said.get("pid")) != me]
    return not any(map(lock.alive, others))
