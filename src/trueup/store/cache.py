"""The user's cache folder, and a memory of arrays in it."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trueup.errors import BadInput, TrueupError
from trueup.store import atomic, sealed


def cache_folder() -> Path:
    """Where trueup keeps what it can make or fetch again: ``$TRUEUP_CACHE``, else the platform's usual place.

    The folder is not created here. Deleting it costs time and nothing else.
    """
    if own := os.environ.get("TRUEUP_CACHE"):
        return Path(own).expanduser().absolute()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME", "")
        base = base if os.path.isabs(base) else Path.home() / ".cache"
    return Path(base) / "trueup"


_WHOLE: dict[Path, tuple[tuple[str, int, int], ...]] = {}
"""Folders whose contents this process has compared with their manifests, and the sizes and times of their files then."""


def kept_folder(folder: Path, make: Callable[[Path], Any], what: str) -> Path:
    """`folder` in the cache, with what `make` writes into the folder that it is given: made at the first call.

    It is compared with its manifest, sha256 and all, once in a process and after a change: a bit that a disk has turned is another
    model. What is not as it was written is made again, and said on standard error. Two processes may call it at once: both
    get the same whole folder.

    Args:
        what: the thing, in words.

    Raises:
        TrueupError: as `make`, or the cache cannot be written.
    """
    if whole(folder):
        return folder
    spoilt = folder.exists()
    if spoilt:
        _say(f"trueup: the kept copy of {what} in '{folder}' is not as it was written, so it has to be made again.")
    try:
        with atomic.new_folder(folder, force=spoilt, own=True) as new:
            make(new)
            if spoilt and whole(folder):
                raise _Quicker
    except (BadInput, _Quicker):
        # Another process was quicker: its folder stands in the way, and is as good as ours.
        if not whole(folder):
            raise
    return folder


class _Quicker(Exception):
    """Another process has made the folder meanwhile."""


def whole(folder: Path) -> bool:
    """Whether a folder of the cache is what its manifest says."""
    try:
        files = [(p, p.stat()) for p in sorted(folder.rglob("*")) if p.is_file()]
        now = tuple((str(p), s.st_size, s.st_mtime_ns) for p, s in files)
        if _WHOLE.get(folder) != now:
            atomic.verify(folder)
            _WHOLE[folder] = now
    except (BadInput, OSError):  # a disk that cannot read a file any more has not kept it
        return False
    return True


def _say(sentence: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text(sentence))


@dataclass(frozen=True)
class Memo:
    """Arrays kept under a key in `folder`, one sealed file each. Losing a file only costs the time to compute it again."""

    folder: Path

    def _file(self, key: str) -> Path:
        return Path(self.folder) / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.kept"

    def get(self, key: str) -> dict[str, np.ndarray] | None:
        """What `put` kept under `key`, or None. A file that is not what was kept is removed and counts as absent."""
        file = self._file(key)
        try:
            with sealed.open_file(file, key) as f:
                names = json.loads(f.readline())
                return {name: np.lib.format.read_array(f, allow_pickle=False) for name in names}
        except FileNotFoundError:
            return None
        except (sealed.Spoilt, OSError, ValueError):  # or of a numpy that writes otherwise
            with suppress(OSError):  # a cache that can only be read: absent all the same
                file.unlink(missing_ok=True)
            return None

    def put(self, key: str, arrays: Mapping[str, np.ndarray]) -> bool:
        """Keep `arrays` under `key`, whole or not at all. False when the folder cannot be written.

        Raises:
            TypeError: an array holds Python objects, which would need a pickle.
        """
        for name, array in arrays.items():
            if np.asanyarray(array).dtype.hasobject:
                raise TypeError(f"Array '{name}' holds Python objects; convert it to numbers or fixed-width text.")
        try:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            # Straight to the file: what is kept may be as large as memory bears.
            with sealed.new_file(self._file(key), key) as f:
                f.write(json.dumps(list(arrays)).encode() + b"\n")
                for array in arrays.values():
                    np.lib.format.write_array(f, np.asanyarray(array), allow_pickle=False)
        except (OSError, TrueupError):
            return False
        return True
