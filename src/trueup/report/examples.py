"""The example table: its cells as text, and the filters that its columns allow.

The code here does not depend on the fault. All faults use the same names of columns: ``label`` is the truth, ``predicted`` or
``answered`` is the model's answer, ``right`` whether it was right, and ``confidence`` how sure it was. ``X after`` is ``X`` of the
repaired subject. Any other column of truth values is a property by which rows can be filtered.
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
    """The table for the template: columns, rows with at most `cell` characters in a cell, and the filters with their counts.

    Rows that the repair fixed come first, then rows that it broke, then the others in their order. `attribute` is the column that
    should not matter: it is highlighted, as are the words of a text that occur in another cell of the row. `sliders` are those of
    the fault (see `slide.slider`): one that refuses examples by a column of this table is a filter too.
    """
    # Cells are shown and filtered by Python's types, so numpy's numbers and truth values are converted.
    table = [{k: v.item() if isinstance(v, np.generic) else v for k, v in row.items()} for row in table]
    columns = list(dict.fromkeys(k for row in table for k in row))[:MOST_COLUMNS]
    if not columns:
        return None
    effects = [_moved(row, columns) for row in table]
    order = sorted(range(len(table)), key=lambda i: ("fixed", "broken", "").index(effects[i]))
    table, effects = [table[i] for i in order], [effects[i] for i in order]
    cells = [
        [_cell(row.get(k), cell) | {"mark": k == attribute, "parts": _highlighted(row, k, cell)} for k in columns]
        for row in table
    ]
    heads = [
        {"text": words.clean(k, 60), "number": all(row[i]["number"] for row in cells)} for i, k in enumerate(columns)
    ]
    filters: list[dict[str, Any]] = []
    filters_of_row: list[list[int]] = [[] for _ in table]
    for text, chosen, order in _filters(columns, table):
        members = [i for i, row in enumerate(table) if chosen(row)]
        if not members:
            continue
        for i in members:
            filters_of_row[i].append(len(filters))
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
        for line, i, m in zip(cells, filters_of_row, effects, strict=True)
    ]
    return {"columns": heads, "rows": rows, "filters": filters, "refusing": refusing}


def _moved(row: Row, columns: Sequence[str]) -> Literal["fixed", "broken", ""]:
    """``fixed`` where the repair turned a wrong answer into the right one, ``broken`` where it did the opposite, else empty."""
    answer_column = next((k for k in _SAID if k in columns and k + AFTER in columns), None)
    if answer_column is None or "label" not in columns:
        return ""
    right_before, right_after = (row.get(k) == row.get("label") for k in (answer_column, answer_column + AFTER))
    return "" if right_before == right_after else "fixed" if right_after else "broken"


FEWEST_LETTERS = 3
"""A word of a cell is highlighted in the text only if it has this many letters: shorter words occur in most texts."""


def _highlighted(row: Row, column: str, limit: int) -> list[tuple[str, bool]]:
    """The text of a row in parts, each with whether it is a word in another cell of the row; empty for other columns."""
    if column != "text":
        return []
    words_of = {str(v).strip() for k, v in row.items() if k != column and isinstance(v, str)}
    marked_words = sorted((w for w in words_of if len(w) >= FEWEST_LETTERS), key=len, reverse=True)
    text = words.clean(row.get(column) or "", limit)
    if not marked_words:
        return []
    split_text = re.split(rf"(?<!\w)({'|'.join(map(re.escape, marked_words))})(?!\w)", text, flags=re.IGNORECASE)
    return [(part, i % 2 == 1) for i, part in enumerate(split_text) if part] if len(split_text) > 1 else []


def _cell(value: Any, limit: int) -> dict[str, Any]:
    """A cell as text. For a number, `exact` is the value by which rows are sorted and refused."""
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
    """The filters: name, condition on a row, and the column of numbers by which the rows are sorted, largest first."""
    answer_column = next((k for k in _SAID if k in columns), None)
    confidence_column = "confidence" if all(_number(r.get("confidence")) for r in table) else None
    filters: list[tuple[str, Callable[[Row], bool], str | None]] = []

    def wrong(row: Row, after: str = "") -> bool:
        return row.get("label") != row.get(f"{answer_column}{after}")

    has_answers = answer_column is not None and "label" in columns
    errors = "errors, most confident first" if confidence_column else "errors"
    if "right" in columns:
        filters.append((errors, lambda r: r.get("right") is False, confidence_column))
    elif has_answers:
        filters.append((errors, wrong, confidence_column))
    for name in columns:
        if name != "right" and all(isinstance(r.get(name), bool) for r in table):
            filters.append((words.clean(name, 60), lambda r, name=name: r.get(name) is True, None))
    compared_columns = [
        k for k in columns
        if k + AFTER in columns and not any(_number(r.get(k)) for r in table)
    ]  # fmt: skip
    if compared_columns:
        filters.append(
            ("changed by the repair", lambda r: any(r.get(k) != r.get(k + AFTER) for k in compared_columns), None)
        )
    if has_answers and answer_column in compared_columns:
        filters.append(("fixed by the repair", lambda r: wrong(r) and not wrong(r, AFTER), None))
        filters.append(("broken by the repair", lambda r: not wrong(r) and wrong(r, AFTER), None))
    return filters


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
