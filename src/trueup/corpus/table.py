"""The columns of a source as they were found, and the place of each row. Every way of reading gives a Table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Table:
    """Columns as they were found, and the place of each row.

    Attributes:
        columns: name -> one value per row, None where a row has none.
        at: the number of each row for a message; unit: what it counts (``line``, ``record``, ``row``).
        names: class names of columns of integer labels, or of lists of them, where the source defines them.
        there: the names of all columns of the source, read or not, in its order; if empty, those of `columns`.
        order: the values of a column in the order that the source states for them, including those that do not occur.
        origin: for a data set of the hub its ``id``, ``config``, ``split`` and ``revision``, as far as they are known; else empty.
    """

    columns: Mapping[str, list[Any]]
    at: Sequence[int | str]
    unit: str
    source: str
    names: Mapping[str, Sequence[str]]
    there: Sequence[str] = ()
    order: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.at)

    @property
    def every(self) -> list[str]:
        """The names of all columns, read or not."""
        return list(self.there or self.columns)

    @property
    def unread(self) -> list[str]:
        """The names of the columns that the source has and that were not read."""
        return [c for c in self.every if c not in self.columns]

    def where(self, index: Sequence[int], most: int = 5) -> str:
        """``line 3``, or ``lines 3, 9 and 12``, or ``lines 3, 9, 12, 15, 20 and 31 more``."""
        shown = [str(self.at[i]) for i in index[:most]]
        if len(index) == 1:
            return f"{self.unit} {shown[0]}"
        if len(index) > most:
            return f"{self.unit}s {', '.join(shown)} and {len(index) - most} more"
        return f"{self.unit}s {', '.join(shown[:-1])} and {shown[-1]}"
