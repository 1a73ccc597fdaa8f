"""The user's cache folder, and storage of arrays in it."""

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
    """The folder for data that trueup can make or fetch again: ``$TRUEUP_CACHE``, else the platform's usual place.

    The folder is not created here. If it is deleted, only time is lost.
    """
    if folder_of_user := os.environ.get("TRUEUP_CACHE"):
        return Path(folder_of_user).expanduser().absolute()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME", "")
        base = base if os.path.isabs(base) else Path.home() / ".cache"
    return Path(base) / "trueup"


_WHOLE: dict[Path, tuple[tuple[str, int, int], ...]] = {}
"""Folders whose contents this process has compared with their manifests -> the sizes and times of their files at that moment."""


def kept_folder(folder: Path, make: Callable[[Path], Any], what: str) -> Path:
    """`folder` in the cache, which `make` fills at the first call. `make` gets the path of a new folder to write into.

    The folder is compared with its manifest, including sha256, once in a process and after a change, because a single wrong bit
    is another model. A damaged folder is made again, and this is reported on standard error. Two processes may call this at the
    same time: both get the same complete folder.

    Args:
        what: words for the contents, for messages.

    Raises:
        TrueupError: as `make`, or the cache cannot be written.
    """
    if whole(folder):
        return folder
    damaged = folder.exists()
    if damaged:
        _say(f"trueup: the kept copy of {what} in '{folder}' is not as it was written, so it has to be made again.")
    try:
        with atomic.new_folder(folder, force=damaged, own=True) as new:
            make(new)
            if damaged and whole(folder):
                raise _Quicker
    except (BadInput, _Quicker):
        # Another process was quicker, and its folder has the same contents.
        if not whole(folder):
            raise
    return folder


class _Quicker(Exception):
    """Another process has made the folder in the meantime."""


def whole(folder: Path) -> bool:
    """Whether a folder of the cache is as its manifest says."""
    try:
        files = [(p, p.stat()) for p in sorted(folder.rglob("*")) if p.is_file()]
        file_states = tuple((str(p), s.st_size, s.st_mtime_ns) for p, s in files)
        if _WHOLE.get(folder) != file_states:
            atomic.verify(folder)
            _WHOLE[folder] = file_states
    except (BadInput, OSError):  # a file that the disk can no longer read counts as missing
        return False
    return True


def _say(sentence: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text(sentence))


@dataclass(frozen=True)
class Memo:
    """Arrays kept in `folder`, one sealed file for each key. If a file is lost, only the time to compute it again is lost."""

    folder: Path

    def _file(self, key: str) -> Path:
        return Path(self.folder) / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.kept"

    def get(self, key: str) -> dict[str, np.ndarray] | None:
        """The arrays that `put` stored under `key`, or None. A damaged file is removed and counts as absent."""
        file = self._file(key)
        try:
            with sealed.open_file(file, key) as f:
                names = json.loads(f.readline())
                return {name: np.lib.format.read_array(f, allow_pickle=False) for name in names}
        except FileNotFoundError:
            return None
        except (sealed.Spoilt, OSError, ValueError):  # damaged, or of a numpy with another file format
            with suppress(OSError):  # in a read-only cache the file stays, and counts as absent
                file.unlink(missing_ok=True)
            return None

    def put(self, key: str, arrays: Mapping[str, np.ndarray]) -> bool:
        """Store `arrays` under `key`, completely or not at all. False when the folder cannot be written.

        Raises:
            TypeError: an array holds Python objects, which would need a pickle.
        """
        for name, array in arrays.items():
            if np.asanyarray(array).dtype.hasobject:
                raise TypeError(f"Array '{name}' holds Python objects; convert it to numbers or fixed-width text.")
        try:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            # Written directly to the file, because the arrays may fill most of the memory.
            with sealed.new_file(self._file(key), key) as f:
                f.write(json.dumps(list(arrays)).encode() + b"\n")
                for array in arrays.values():
                    np.lib.format.write_array(f, np.asanyarray(array), allow_pickle=False)
        except (OSError, TrueupError):
            return False
        return True
