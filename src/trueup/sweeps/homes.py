"""Where the cells of a file lie in a folder, though their names have changed: an axis that gets a second value gives all cells new
names, and what is done stays done. A cell is known by what it was asked."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from trueup.errors import BadInput
from trueup.store import atomic
from trueup.sweeps import cell as cells
from trueup.sweeps.plan import Cell

MOVED = ".moved"
"""Ends the hidden name of a folder that has made way and is not yet where it belongs."""


@dataclass(frozen=True)
class Homes:
    """What lies in a folder of cells.

    Attributes:
        of: name of a cell -> name of the folder that is its own, of those that have one. leftover: folders of no cell.
    """

    of: Mapping[str, str]
    leftover: Sequence[Path]


def homes(asked: Sequence[Cell], out: Path) -> Homes:
    """Where each of the file's cells lies in `out`: under its name, or under another if it was asked the same there."""
    folder = out / cells.CELLS
    try:
        found = sorted(p.name for p in folder.iterdir() if p.is_dir() and (p.name[0] != "." or p.name.endswith(MOVED)))
    except OSError:
        return Homes({}, [])
    wanted = {_word(c.asked): c.name for c in asked}
    known = {name: record for name in found if (record := cells.read(out, name)) is not None}
    belongs = {name: wanted.get(_word(record.asked)) for name, record in known.items()}
    own = {name: name for name, cell in belongs.items() if cell == name}
    # Of several that were asked the same the one that is done, and the newest of these.
    best = sorted(known, key=lambda n: (known[n].state == "done", _time(folder / n / cells.RECORD)))
    for name in reversed(best):
        if (cell := belongs[name]) is not None:
            own.setdefault(cell, name)
    taken, names = set(own.values()), {c.name for c in asked}
    own |= {name: name for name in found if name in names and name not in own and name not in taken}
    return Homes(own, [folder / name for name in found if name not in names and name not in taken])


def settle(mine: Sequence[Cell], asked: Sequence[Cell], out: Path) -> None:
    """Rename the folders of `mine`, and what they were before, to what the cells are called now.

    What lies there makes way: for a cell of the file under a hidden name, which a later look finds, and otherwise to ``previous``.
    """
    own = dict(homes(asked, out).of)
    for cell in mine:
        if (source := own.get(cell.name, cell.name)) == cell.name:
            continue
        if (out / cells.CELLS / cell.name).exists():
            other = next((name for name, at in own.items() if at == cell.name), None)
            if other is None:
                cells.aside(out, cell.name)
            else:
                own[other] = f".{cell.name}{MOVED}"
                _rename(out, cell.name, own[other])
        if (record := cells.read(out, source)) is None or record.asked != cell.asked:
            continue  # another part of the sweep, which settles at this moment, has moved it
        own[cell.name] = cell.name
        _rename(out, source, cell.name)


def _rename(out: Path, source: str, target: str) -> None:
    for within in (cells.CELLS, cells.PREVIOUS):
        old, new = (out / within / name for name in (source, target))
        try:
            if not new.exists():
                os.rename(old, new)
        except FileNotFoundError:  # it has nothing there, or another part was quicker
            continue
        except OSError as e:
            raise atomic.cannot_write(new, e) from e
        _name(out, target, within)


def _name(out: Path, name: str, within: str) -> None:
    """Write its name into a record, for those who read the file. Its time stays: it was not done anew."""
    file = out / within / name / cells.RECORD
    with suppress(OSError, BadInput):
        then = file.stat()
        if (record := cells.read(out, name, within)) is not None:
            atomic.write_json(file, asdict(record))
            os.utime(file, ns=(then.st_atime_ns, then.st_mtime_ns))


def _time(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


def _word(asked: Mapping[str, object]) -> str:
    return json.dumps(asked, sort_keys=True)
