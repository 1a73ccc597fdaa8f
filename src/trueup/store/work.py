"""The folder in which a job keeps finished work until its output is complete, for one run at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trueup.errors import BadInput, Unsupported
from trueup.store import atomic, lock


@contextmanager
def work_folder(out: Path, *, mine: bool = True) -> Iterator[Path]:
    """A hidden folder next to `out` for finished work. No other run writes `out` inside the block. `mine` False: do not clear it.

    Enter this context before the output folder is made, so that it is removed last and a kill in between loses nothing. After
    input that cannot be used it is removed as well, unless it is from an earlier run that was killed.

    Raises:
        BadInput: another live run writes there, or the folder cannot be written. Unavailable: the disk is full.
    """
    out = atomic.placed(out)
    work = out.parent / f".{out.name}.work"
    if not mine:
        yield work
        return
    missing_parents = [p for p in out.parents if not p.exists()]
    try:
        with lock.held(out.parent / f".{out.name}.writing", out, "run"):
            existed = work.exists()
            try:
                yield work
            except (BadInput, Unsupported):
                if not existed:
                    shutil.rmtree(work, ignore_errors=True)
                raise
            shutil.rmtree(work, ignore_errors=True)
    except (BadInput, Unsupported):
        for folder in missing_parents:
            with suppress(OSError):
                folder.rmdir()
        raise
