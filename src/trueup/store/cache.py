"""The user's cache folder, and a memory of arrays in it."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trueup.errors import BadInput
from trueup.store import atomic


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


@dataclass(frozen=True)
class Memo:
    """Arrays kept under a key in `folder`, one file each. Losing a file only costs the time to compute it again."""

    folder: Path

    def _file(self, key: str) -> Path:
        return Path(self.folder) / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.npz"

    def get(self, key: str) -> dict[str, np.ndarray] | None:
        """What `put` kept under `key`, or None. A file that cannot be read is removed and counts as absent."""
        file = self._file(key)
        try:
            with np.load(file, allow_pickle=False) as kept:
                return {name: kept[name] for name in kept.files}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error):
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
            with atomic.new_file(self._file(key)) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as z:
                for name, array in arrays.items():
                    with z.open(f"{name}.npy", "w", force_zip64=True) as f:
                        np.lib.format.write_array(f, np.asanyarray(array), allow_pickle=False)
        except (OSError, BadInput):
            return False
        return True
