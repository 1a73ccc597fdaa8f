"""The example table: its cells as text, and the filters that its columns allow.

No fault is known by name. What a column means is read from how every fault names it: ``label`` is the truth, ``predicted`` or
``answered`` what the model said, ``right`` whether it was right, ``confidence`` how sure it was; ``X after`` is ``X`` of the
repaired subject; and any other column of truth values is a property that rows can be chosen by.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from trueup.report import words

MOST_COLUMNS = 16
AFTER = " after"
_SAID = ("predicted", "answered")

Row = Mapping[str, Any]


def shown(
    table: Sequence[Row], cell: int, sliders: Iterable[Mapping[str, Any]] = (), attribute: str = ""
) -> dict[str, Any] | None:
    """The table for the template: columns, rows of at most `cell` characters a cell, and the filters with their counts.

    What the repair fixed comes first, then what it broke, then the rest in its order. `attribute` is the column that should not
    matter: it is highlighted, as are the words of a text that one of the row's other cells holds. `sliders` are the fault's (see
    `slide.slider`): one that refuses examples by a column of this table is a filter too.
    """
    # numpy's own numbers and truth values are none of Python's, by which cells are shown and filtered.
    table = [{k: v.item() if isinstance(v, np.generic) else v for k, v in row.items()} for row in table]
    columns = list(dict.fromkeys(k for row in table for k in row))[:MOST_COLUMNS]
    if not columns:
        return None
    moved = [_moved(row, columns) for row in table]
    order = sorted(range(len(table)), key=lambda i: ("fixed", "broken", "").index(moved[i]))
    table, moved = [table[i] for i in order], [moved[i] for i in order]
    cells = [
        [_cell(row.get(k), cell) | {"mark": k == attribute, "parts": _highlighted(row, k, cell)} for k in columns]
        for row in table
    ]
    heads = [
        {"text": words.clean(k, 60), "number": all(row[i]["number"] for row in cells)} for i, k in enumerate(columns)
    ]
    filters: list[dict[str, Any]] = []
    inside: list[list[int]] = [[] for _ in table]
    for text, chosen, order in _filters(columns, table):
        members = [i for i, row in enumerate(table) if chosen(row)]
        if not members:
            continue
        for i in members:
            inside[i].append(len(filters))
        filters.append(
            {"text": text, "count": len(members), "order": columns.index(order) if order in columns else None}
        )
    refusing = [
        {"id": f"{s['id']}-{when}", "slider": s["id"], "when": when, "column": columns.index(name)}
        for s in sliders
        for when, name in (("before", s["column"]), ("after", s["column"] + AFTER))
        if s["column"] and name in columns and any(line["when"] == when for line in s["lines"])
    ]
    rows = [
        {"cells": line, "inside": " ".join(map(str, i)), "moved": m}
        for line, i, m in zip(cells, inside, moved, strict=True)
    ]
    return {"columns": heads, "rows": rows, "filters": filters, "refusing": refusing}


def _moved(row: Row, columns: Sequence[str]) -> Literal["fixed", "broken", ""]:
    """Whether the repair turned a wrong answer into the right one, or the other way."""
    answer_column = next((k for k in _SAID if k in columns and k + AFTER in columns), None)
    if answer_column is None or "label" not in columns:
        return ""
    was, now = (row.get(k) == row.get("label") for k in (answer_column, answer_column + AFTER))
    return "" if was == now else "fixed" if now else "broken"


FEWEST_LETTERS = 3
"""A word of a cell is looked for in the text from so many letters on: shorter ones stand everywhere."""


def _highlighted(row: Row, column: str, limit: int) -> list[tuple[str, bool]]:
    """The text of a row in parts, each with whether another cell of the row holds it as a word; empty for other columns."""
    if column != "text":
        return []
    words_of = {str(v).strip() for k, v in row.items() if k != column and isinstance(v, str)}
    wanted = sorted((w for w in words_of if len(w) >= FEWEST_LETTERS), key=len, reverse=True)
    text = words.clean(row.get(column) or "", limit)
    if not wanted:
        return []
    found = re.split(rf"(?<!\w)({'|'.join(map(re.escape, wanted))})(?!\w)", text, flags=re.IGNORECASE)
    return [(part, i % 2 == 1) for i, part in enumerate(found) if part] if len(found) > 1 else []


def _cell(value: Any, limit: int) -> dict[str, Any]:
    """A cell as text; `exact` is what it is sorted and refused by, where it is a number."""
    if value is None:
        return {"text": "", "number": False, "exact": None}
    if isinstance(value, bool):
        return {"text": "yes" if value else "no", "number": False, "exact": None}
    if isinstance(value, int | float):
        return {
            "text": words.number(value),
            "number": True,
            "exact": repr(float(value)) if math.isfinite(value) else None,
        }
    return {"text": words.clean(value, limit), "number": False, "exact": None}


def _filters(columns: Sequence[str], table: Sequence[Row]) -> list[tuple[str, Callable[[Row], bool], str | None]]:
    """Name, which rows, and the number column that sorts them, largest first."""
    answer_column = next((k for k in _SAID if k in columns), None)
    sure = "confidence" if all(_number(r.get("confidence")) for r in table) else None
    filters: list[tuple[str, Callable[[Row], bool], str | None]] = []

    def wrong(row: Row, after: str = "") -> bool:
        return row.get("label") != row.get(f"{answer_column}{after}")

    judged = answer_column is not None and "label" in columns
    errors = "errors, most confident first" if sure else "errors"
    if "right" in columns:
        filters.append((errors, lambda r: r.get("right") is False, sure))
    elif judged:
        filters.append((errors, wrong, sure))
    for name in columns:
        if name != "right" and all(isinstance(r.get(name), bool) for r in table):
            filters.append((words.clean(name, 60), lambda r, name=name: r.get(name) is True, None))
    pairs = [
        k for k in columns
        if k + AFTER in columns and not any(_number(r.get(k)) for r in table)
    ]  # fmt: skip
    if pairs:
        filters.append(("changed by the repair", lambda r: any(r.get(k) != r.get(k + AFTER) for k in pairs), None))
    if judged and answer_column in pairs:
        filters.append(("fixed by the repair", lambda r: wrong(r) and not wrong(r, AFTER), None))
        filters.append(("broken by the repair", lambda r: not wrong(r) and wrong(r, AFTER), None))
    return filters


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
