"""Stamps of the files that a job reads, to find out whether their contents have changed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from trueup.errors import BadInput, did_you_mean, shortened
from trueup.store.atomic import sha256_of

LARGE = 1 << 30
"""Files of this many bytes or more are compared only by size and time: reading them would take too long."""

Stamps = dict[str, dict[str, list[Any]]]
"""Path as given -> file below it ('' for a file itself) -> size in bytes, time of its last change in ns, sha256 or None."""


def path_of(name: str | Path) -> Path:
    """The path that a user gave, with ``~`` as the home folder. It need not exist.

    Raises:
        BadInput: the system cannot follow the path: it is too long, leads through a folder without permission, has a character
            that no name can have, or names the home of an unknown user.
    """
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as e:
        no_home = "there is no home folder of such a user"
        why = getattr(e, "strerror", None) or (
            "no file's name has such a character" if isinstance(e, ValueError) else no_home
        )
        raise BadInput(f"The path '{shortened(name, 81)}' cannot be followed ({why}). Correct it.") from e
    return path


def near(name: str | Path, *holding: str) -> str:
    """`did_you_mean` for a path that does not exist: similar names in its folder that match one of the patterns `holding`.

    holding: patterns of files, such as ``*.yaml``; ``*/config.json`` matches folders that hold such a file.
    """
    path = Path(name)
    names = {p.relative_to(path.parent).parts[0] for pattern in holding for p in path.parent.glob(pattern)}
    return did_you_mean(path.name, sorted(names))


def stamps(paths: Mapping[str, Any] | list[str]) -> Stamps:
    """The stamps of those `paths` that are files or folders on this machine. Other names have none."""
    stamps_of_path: Stamps = {}
    for path in paths:
        with suppress(OSError, RuntimeError):  # a path that cannot be followed is reported where it is read
            root = Path(path).expanduser()
            if root.is_file():
                stamps_of_path[str(path)] = {"": _stamp(root)}
            elif root.is_dir():
                files = sorted(
                    p for p in root.rglob("*") if p.is_file() and not p.relative_to(root).as_posix().startswith(".")
                )
                stamps_of_path[str(path)] = {p.relative_to(root).as_posix(): _stamp(p) for p in files}
    return stamps_of_path


def same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two stamps are of files with the same contents: by sha256, and for large files by size and time."""

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
    """Computed once for each state of a file: the cells of a sweep share their data and their base."""
    return sha256_of(file)
