"""Shared by all experiments of the bench: finished parts are kept for a run that is killed, and results are written completely."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from trueup import __version__
from trueup.store import atomic, sealed
from trueup.store.inputs import path_of
from trueup.store.work import work_folder


@dataclass(frozen=True)
class Parts:
    """The finished parts of an experiment.

    Attributes:
        folder: their folder. code: hash of the code that makes them (`code_of`). Only the same code reads a part again.
    """

    folder: Path
    code: str

    def file(self, *what: Any, suffix: str = ".json") -> Path:
        """The file of the part that `what` identifies. It is the same in every process."""
        return self.folder / f"{hashlib.blake2b(repr((self.code, *what)).encode(), digest_size=8).hexdigest()}{suffix}"


def keep(file: Path, data: bytes | Any) -> None:
    """Store bytes, or a value that JSON can hold, at `file`, sealed under its name, so that damage is noticed."""
    sealed.write(file, file.name, data if isinstance(data, bytes) else atomic.json_bytes(data))


def kept(file: Path, say: Callable[[str], None] = lambda s: None) -> bytes | None:
    """The bytes that `keep` stored at `file`; None where there is no file, or a damaged one, for which `say` gets a line."""
    try:
        return sealed.read(file, file.name)
    except FileNotFoundError:
        return None
    except (sealed.Spoilt, OSError):
        say(f"The part '{file.name}' that an earlier run kept is damaged, so it is made again.")
        return None


def kept_json(file: Path, say: Callable[[str], None] = lambda s: None) -> Any:
    """As `kept`, for a part that was stored as JSON."""
    data = kept(file, say)
    return None if data is None else json.loads(data)


def once(file: Path, make: Callable[[], Any], say: Callable[[str], None] = lambda s: None) -> Any:
    """The part at `file`. If it is missing or damaged, `make` gives it; it is stored, and read again as a later run would."""
    if (result := kept_json(file, say)) is None:
        keep(file, make())
        result = kept_json(file)
    return result


def code_of(*modules: ModuleType) -> str:
    """A hash of the code in `modules` (for a package: of all its files) and of the versions of the numeric libraries."""
    files = [
        f for m in modules for root in (getattr(m, "__path__", None) or [str(m.__file__)]) for f in _sources(Path(root))
    ]
    stamp = hashlib.blake2b(digest_size=8)
    for part in [*(f.read_bytes() for f in files), *(version(p).encode() for p in ("numpy", "scipy", "torch"))]:
        stamp.update(hashlib.blake2b(part).digest())
    return stamp.hexdigest()


def _sources(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def run(
    out: str | Path, name: str, code: str, make: Callable[[Parts], Mapping[str, Any]], table: Callable[[Any], str],
    *, force: bool,
) -> dict[str, Any]:  # fmt: skip
    """Write what `make` returns to `out`/`name`.json and its `table` to `out`/`name`.md; returns it with `code` added, and with
    the version of trueup.

    `make` stores its finished parts in the files that `Parts.file` gives, in a hidden folder next to `out`, so that a killed run
    continues where it stopped. Parts that other code made are not read.

    Raises:
        BadInput: `out` is there already and `force` is not given.
    """
    out = path_of(out)
    with work_folder(out) as work, atomic.new_folder(out, force=force) as new:
        work.mkdir(parents=True, exist_ok=True)
        result = {**make(Parts(work, code)), "code": code, "trueup": __version__}
        atomic.write_json(new / f"{name}.json", result)
        atomic.write_text(new / f"{name}.md", table(result))
    return result
