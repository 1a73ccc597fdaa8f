"""From the values of a Table's columns to texts, class indices and groups; what cannot be used is named with its place."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from trueup.corpus.table import Table
from trueup.errors import BadInput, did_you_mean, it_or_them, listing

MISSING = "(missing)"
"""The group of a row without a value."""

_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", re.ASCII)
_WHOLE = re.compile(r"-?\d+", re.ASCII)
_WHOLE_FLOAT = re.compile(r"(-?\d+)\.0+", re.ASCII)


def absent(value: Any) -> bool:
    """Whether a cell has no value: None, or a float NaN."""
    return value is None or (isinstance(value, (float, np.floating)) and math.isnan(value))


def plain(value: Any) -> str:
    """A label or attribute as text; a whole number loses its point (1.0 is 1)."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)


def group_column(table: Table, column: str) -> np.ndarray:
    """(n,) of strings: the group of each row."""
    said = ["" if absent(v) else plain(v) for v in table.columns[column]]
    return np.array([s if s.strip() else MISSING for s in said])


def text_column(table: Table, column: str) -> list[str]:
    """n strings, none blank.

    Raises:
        BadInput: something else than text, a blank text, numbers throughout, or half a character.
    """
    values = table.columns[column]
    here = f"{table.source}, column '{column}'"
    odd = [i for i, v in enumerate(values) if not isinstance(v, str) and not absent(v)]
    if odd:
        kinds = {type(values[i]) for i in odd}
        number = all(issubclass(k, (int, float, np.number)) for k in kinds)
        raise BadInput(
            f"{here}: {'numbers' if number else listing(sorted(k.__name__ for k in kinds))} where text belongs "
            f"({table.where(odd, 3)}, such as {str(values[odd[0]])[:40]!r}). Name the column that holds the text; "
            f"the columns are {listing(table.columns)}."
        )
    empty = [i for i, v in enumerate(values) if absent(v) or not v.strip()]
    if empty:
        raise BadInput(f"{here}: no text in {table.where(empty)}. Fill in or delete {it_or_them(empty)}.")
    if all(_NUMBER.fullmatch(v) for v in values):
        raise BadInput(
            f"{here}: numbers where text belongs (such as '{values[0]}' in {table.where([0])}). Name the column that "
            f"holds the text; the columns are {listing(table.columns)}."
        )
    for i, v in enumerate(values):
        try:
            v.encode("utf-8")
        except UnicodeEncodeError as e:
            raise BadInput(
                f"{here}: {table.where([i])} holds half a character (a surrogate, U+{ord(v[e.start]):04X}), "
                "which no tokenizer can read. Write the file again as proper UTF-8, or delete that row."
            ) from e
    return values


def label_column(table: Table, column: str, classes: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """(n,) int64 class indices and the names of the classes: `classes`, else the source's, else those found, in natural order.

    Raises:
        BadInput: a missing, nested or unknown label, a name given twice, or a column that holds no classes.
    """
    values = table.columns[column]
    here = f"{table.source}, column '{column}'"
    nested = [i for i, v in enumerate(values) if isinstance(v, (list, tuple, dict, set, np.ndarray))]
    if nested:
        raise BadInput(
            f"{here}: {table.where(nested)} holds a list, but each text needs one class. Name a column with one class "
            "for each row."
        )
    names = table.names.get(column)
    if names is not None and not all(absent(v) or isinstance(v, (int, np.integer)) for v in values):
        names = None  # the values are the names already
    lacking = [
        i
        for i, v in enumerate(values)
        if absent(v) or str(v).strip().lower() in ("", "nan") or (names is not None and v == -1)
    ]
    if lacking:
        raise BadInput(
            f"{here}: no label in {table.where(lacking)}. Fill in or delete {it_or_them(lacking)}"
            f"{', or choose another part with hub_split' if names is not None else ''}."
        )
    if names is not None:
        names = [str(n) for n in names]
        beyond = [i for i, v in enumerate(values) if not 0 <= int(v) < len(names)]
        if beyond:
            raise BadInput(
                f"{here}: the label {values[beyond[0]]} in {table.where(beyond)} has no name; there are {len(names)} "
                "class names. Correct the label."
            )
        said = [names[int(v)] for v in values]
    else:
        said = [plain(v).strip() for v in values]
        if all(_WHOLE.fullmatch(s) or _WHOLE_FLOAT.fullmatch(s) for s in said):
            said = [_WHOLE_FLOAT.sub(r"\1", s) for s in said]
    found = set(said)
    if classes is None:
        order = tuple(names) if names is not None else tuple(sorted(found, key=natural_order))
        if names is not None and len(set(names)) < len(names):
            raise BadInput(f"{here}: two classes have the same name among {listing(names)}. Rename one.")
    else:
        order = tuple(str(c) for c in classes)
        if len(set(order)) < len(order):
            raise BadInput(f"The classes {listing(order)} name one class twice; name each once.")
        unknown = [i for i, s in enumerate(said) if s not in order]
        if unknown:
            first = said[unknown[0]]
            raise BadInput(
                f"{here}: '{first}' in {table.where(unknown, 3)} is none of the classes {listing(order)}."
                f"{did_you_mean(first, order)} Correct the label, or name it as a class."
            )
    if classes is None and names is None and len(found) > 100 and len(found) > len(said) / 2:
        raise BadInput(
            f"{here}: {len(found)} different labels in {len(said)} rows, so it does not hold classes. Name the label "
            f"column; the columns are {listing(table.columns)}."
        )
    place = {c: i for i, c in enumerate(order)}
    return np.array([place[s] for s in said], dtype=np.int64), order


def natural_order(name: str) -> tuple[Any, ...]:
    """A sorting key: whole numbers by value, before names; digits inside names by value too."""
    if _WHOLE.fullmatch(name):
        return (0, int(name), name)
    bits = re.split(r"([0-9]+)", name)
    return (1, [(0, int(b), "") if i % 2 else (1, 0, b.casefold()) for i, b in enumerate(bits)], name)
