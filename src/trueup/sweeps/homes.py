"""Finds the folders of a file's cells, also when the names of the cells have changed.

When an axis of the matrix gets a second value, all cells get new names, and finished cells must stay finished. So a cell is
recognised by its steps and settings.
"""

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
"""Suffix of the hidden name of a folder that was moved out of the way and does not yet have its final name."""


@dataclass(frozen=True)
class Homes:
    """The folders of the cells of a sweep.

    Attributes:
        of: name of a cell -> name of its folder, for the cells that have one. leftover: folders that belong to no cell.
    """

    of: Mapping[str, str]
    leftover: Sequence[Path]


def homes(asked: Sequence[Cell], out: Path) -> Homes:
    """The folder of each of the file's cells in `out`: under its name, or under another name with the same steps and settings."""
    folder = out / cells.CELLS
    try:
        found = sorted(p.name for p in folder.iterdir() if p.is_dir() and (p.name[0] != "." or p.name.endswith(MOVED)))
    except OSError:
        return Homes({}, [])
    name_by_work = {_word(c.asked): c.name for c in asked}
    records = {name: record for name in found if (record := cells.read(out, name)) is not None}
    cell_of_folder = {name: name_by_work.get(_word(record.asked)) for name, record in records.items()}
    folder_of_cell = {name: name for name, cell in cell_of_folder.items() if cell == name}
    # Of several folders with the same steps and settings, a finished one is taken, and the newest of these.
    by_preference = sorted(records, key=lambda n: (records[n].state == "done", _time(folder / n / cells.RECORD)))
    for name in reversed(by_preference):
        if (cell := cell_of_folder[name]) is not None:
            folder_of_cell.setdefault(cell, name)
    used_folders, names = set(folder_of_cell.values()), {c.name for c in asked}
    folder_of_cell |= {
        name: name for name in found if name in names and name not in folder_of_cell and name not in used_folders
    }
    return Homes(folder_of_cell, [folder / name for name in found if name not in names and name not in used_folders])


def settle(mine: Sequence[Cell], asked: Sequence[Cell], out: Path) -> None:
    """Rename the folders of the cells `mine`, and their folders in ``previous``, to the present names of the cells.

    A folder that has the new name already is moved: to a hidden name if it belongs to a cell of the file, where `homes` finds it
    later, and otherwise to ``previous``.
    """
    folder_of_cell = dict(homes(asked, out).of)
    for cell in mine:
        if (source := folder_of_cell.get(cell.name, cell.name)) == cell.name:
            continue
        if (out / cells.CELLS / cell.name).exists():
            occupant = next((name for name, at in folder_of_cell.items() if at == cell.name), None)
            if occupant is None:
                cells.aside(out, cell.name)
            else:
                folder_of_cell[occupant] = f".{cell.name}{MOVED}"
                _rename(out, cell.name, folder_of_cell[occupant])
        if (record := cells.read(out, source)) is None or record.asked != cell.asked:
            continue  # another part of the sweep, which is renaming folders at the same time, has moved it
        folder_of_cell[cell.name] = cell.name
        _rename(out, source, cell.name)


def _rename(out: Path, source: str, target: str) -> None:
    for within in (cells.CELLS, cells.PREVIOUS):
        source_folder, target_folder = (out / within / name for name in (source, target))
        try:
            if not target_folder.exists():
                os.rename(source_folder, target_folder)
        except FileNotFoundError:  # there is no such folder, or another part has renamed it
            continue
        except OSError as e:
            raise atomic.cannot_write(target_folder, e) from e
        _name(out, target, within)


def _name(out: Path, name: str, within: str) -> None:
    """Write the cell's name into its record. The file keeps its modification time, because the cell was not run again."""
    file = out / within / name / cells.RECORD
    with suppress(OSError, BadInput):
        stat = file.stat()
        if (record := cells.read(out, name, within)) is not None:
            atomic.write_json(file, asdict(record))
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _time(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


def _word(asked: Mapping[str, object]) -> str:
    return json.dumps(asked, sort_keys=True)
