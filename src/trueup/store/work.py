"""Where a job keeps finished work until its folder is whole, and who may: one run at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trueup.errors import BadInput, Unsupported
from trueup.store import atomic, lock


@contextmanager
def work_folder(out: Path, *, mine: bool = True) -> Iterator[Path]:
    """A hidden folder beside `out` for finished work; no other run writes `out` meanwhile. Only its owner clears it.

    Enter it before the folder is made, so that it goes last: a kill in between costs nothing. After input that cannot
    be used it goes as well, unless an earlier run that was killed had left it.

    Raises:
        BadInput: another run that is alive writes there, or the folder cannot be written. Unavailable: the disk is full.
    """
    out = atomic.placed(out)
    work = out.parent / f".{out.name}.work"
    if not mine:
        yield work
        return
    absent = [p for p in out.parents if not p.exists()]
    try:
        with lock.held(out.parent / f".{out.name}.writing", out, "run"):
            earlier = work.exists()
            try:
                yield work
            except (BadInput, Unsupported):
                if not earlier:
                    shutil.rmtree(work, ignore_errors=True)
                raise
            shutil.rmtree(work, ignore_errors=True)
    except (BadInput, Unsupported):
        for folder in absent:
            with suppress(OSError):
                folder.rmdir()
        raise
