"""What tells the files that a job reads from the same files written again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from trueup.errors import BadInput, did_you_mean, shortened
from trueup.store.atomic import sha256_of

LARGE = 1 << 30
"""Bytes from which on a file is told by its size and its time alone: reading it would take longer than what is asked."""

Stamps = dict[str, dict[str, list[Any]]]
"""Path as given -> file below it ('' for a file itself) -> size in bytes, time of its last change in ns, sha256 or None."""


def path_of(name: str | Path) -> Path:
    """The path that a user gave, with ``~`` as the home folder; whether anything is there is not asked.

    Raises:
        BadInput: the system cannot follow such a name: it is too long, leads through a folder that is closed, has a character that
            no name has, or names the home of a user whom nobody knows.
    """
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as e:
        nobody = "there is no home folder of such a user"
        why = getattr(e, "strerror", None) or (
            "no file's name has such a character" if isinstance(e, ValueError) else nobody
        )
        raise BadInput(f"The path '{shortened(name, 81)}' cannot be followed ({why}). Correct it.") from e
    return path


def near(name: str | Path, *holding: str) -> str:
    """`did_you_mean` of a path that is not there: another in its folder, of those that match one of the patterns `holding`.

    holding: of files, as ``*.yaml``; ``*/config.json`` is of the folders that hold such a file.
    """
    path = Path(name)
    found = {p.relative_to(path.parent).parts[0] for pattern in holding for p in path.parent.glob(pattern)}
    return did_you_mean(path.name, sorted(found))


def stamps(paths: Mapping[str, Any] | list[str]) -> Stamps:
    """The stamps of those of `paths` that are files or folders here; names of anything else have none."""
    found: Stamps = {}
    for path in paths:
        with suppress(OSError, RuntimeError):  # a name that is too long, no home of such a user: said where it is read
            root = Path(path).expanduser()
            if root.is_file():
                found[str(path)] = {"": _stamp(root)}
            elif root.is_dir():
                files = sorted(
                    p for p in root.rglob("*") if p.is_file() and not p.relative_to(root).as_posix().startswith(".")
                )
                found[str(path)] = {p.relative_to(root).as_posix(): _stamp(p) for p in files}
    return found


def same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two stamps are of files with the same contents: by sha256, and of large files by size and time."""

    def told(stamp: list[Any]) -> tuple[Any, ...]:
        size, time, sha256 = stamp
        return (size, sha256) if sha256 else (size, time)

    return {p: {f: told(s) for f, s in files.items()} for p, files in a.items()} == {
        p: {f: told(s) for f, s in files.items()} for p, files in b.items()
    }


def _stamp(file: Path) -> list[Any]:
    stat = file.stat()
    return [
        stat.st_size,
        stat.st_mtime_ns,
        _sha256(str(file), stat.st_size, stat.st_mtime_ns) if stat.st_size < LARGE else None,
    ]


@lru_cache(maxsize=10_000)
def _sha256(file: str, size: int, time: int) -> str:
    """Once for each state of a file: the cells of a sweep share their data and their base."""
    return sha256_of(file)
