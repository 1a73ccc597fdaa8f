"""What every experiment of the bench shares: parts that a killed run leaves behind, and a result that is written whole."""

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
        folder: where they lie. code: names the code that makes them (`code_of`): a part is read again by this code alone.
    """

    folder: Path
    code: str

    def file(self, *what: Any, suffix: str = ".json") -> Path:
        """The file of the part that is told from the others by `what`: the same in every process."""
        return self.folder / f"{hashlib.blake2b(repr((self.code, *what)).encode(), digest_size=8).hexdigest()}{suffix}"


def keep(file: Path, data: bytes | Any) -> None:
    """Keep bytes, or what JSON can hold, at `file`, sealed under its name: a part that a disk has changed is made again."""
    sealed.write(file, file.name, data if isinstance(data, bytes) else atomic.json_bytes(data))


def kept(file: Path, say: Callable[[str], None] = lambda s: None) -> bytes | None:
    """What `keep` left at `file`; None where nothing is there, or where it is not as it was left, which `say` is told."""
    try:
        return sealed.read(file, file.name)
    except FileNotFoundError:
        return None
    except (sealed.Spoilt, OSError):
        say(f"The part '{file.name}' that an earlier run kept is damaged, so it is made again.")
        return None


def kept_json(file: Path, say: Callable[[str], None] = lambda s: None) -> Any:
    """As `kept`, of a part that was kept as JSON."""
    data = kept(file, say)
    return None if data is None else json.loads(data)


def once(file: Path, make: Callable[[], Any], say: Callable[[str], None] = lambda s: None) -> Any:
    """The part at `file`; where it is not there yet, or damaged, what `make` returns, kept there and read as a later run would."""
    if (result := kept_json(file, say)) is None:
        keep(file, make())
        result = kept_json(file)
    return result


def code_of(*modules: ModuleType) -> str:
    """The name of the code in `modules` (of a package: all of its files) and of the numeric libraries' versions."""
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

    `make` keeps its finished parts where `Parts.file` says, in a hidden folder beside `out`, so that a killed run goes on
    where it stopped. Parts that other code made are not read.

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
