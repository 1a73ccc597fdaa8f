"""From the values of a Table's columns to texts, class indices and groups; what cannot be used is named with its place."""

from __future__ import annotations

import ast
import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from trueup.corpus.table import Table
from trueup.errors import BadInput, did_you_mean, it_or_them, listing

MISSING = "(missing)"
"""The group of a row without a value."""

MARKS = frozenset(
    ("", "nan", "NaN", "NAN", "-nan", "-NaN", "NaT", "<NA>", "#N/A", "#N/A N/A", "#NA", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN")
)  # fmt: skip
"""What libraries write for a missing value, and nobody for a name."""
WORDS = frozenset(("None", "null", "NULL", "NA", "N/A", "n/a"))
"""What they write for it as well, and what may be a name. With `MARKS` it is what ``pandas.read_csv`` takes for missing (and
NAN and NaT).

As a group such a word is missing too, and joins the empty cells: it stays a group of its rows, under another name. As a label it
is a class: a column of labels is complete or refused, and a head that does not know the class says so by name.
"""
_CODE = re.compile(r"[A-Z]{2,5}")

_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", re.ASCII)
_WHOLE = re.compile(r"-?\d+", re.ASCII)
_WHOLE_FLOAT = re.compile(r"(-?\d+)\.0+", re.ASCII)


def absent(value: Any) -> bool:
    """Whether a cell has no value: None, a float NaN, or one of pandas' own marks."""
    if isinstance(value, (float, np.floating)):
        return math.isnan(value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def missing(value: Any) -> bool:
    """Whether a cell that is to name a group names none: `absent`, or one of `MARKS` and `WORDS`."""
    return absent(value) or (isinstance(value, str) and value.strip() in MARKS | WORDS)


def plain(value: Any) -> str:
    """A label or attribute as text; a whole number loses its point (1.0 is 1)."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)


def group_column(table: Table, column: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """(n,) of strings, the group of each row, and notes on words that were read as no name.

    "NA" among codes of two to five capital letters (EU, US, EMEA) is one of them: North America, or Namibia.
    """
    values = table.columns[column]
    _whole_characters(table, column, values)
    none = [missing(v) for v in values]
    others = {plain(v).strip() for v, gone in zip(values, none, strict=True) if not gone}
    code = [isinstance(v, str) and v.strip() == "NA" for v in values]
    kept = any(code) and bool(others) and all(_CODE.fullmatch(s) for s in others)
    if kept:
        none = [gone and not na for gone, na in zip(none, code, strict=True)]
    values_as_text = np.array([MISSING if gone else plain(v) for v, gone in zip(values, none, strict=True)])
    words = [v.strip() for v, gone in zip(values, none, strict=True) if gone and isinstance(v, str) and v.strip()]
    notes = []
    if words:
        notes.append(
            f"{_told(column, words, values)} was read as no value, so the group is '{MISSING}'. Where it is a group's name, write "
            "it otherwise."
        )
    if kept:
        notes.append(
            f"{_told(column, ['NA'] * sum(code), values)} was read as a code like the other values "
            f"({', '.join(sorted(others)[:3])}). Where no value is meant, leave the cells empty."
        )
    return values_as_text, tuple(notes)


FEW, OTHER = 8, "(other)"
"""Of a column that nobody named: how many of its values stay groups of their own, and what the others are called."""


def other_column(table: Table, column: str) -> np.ndarray | None:
    """(n,) of strings, the group of each row in a column that nobody named; None where it can name none.

    Numbers of more than `FEW` values are cut into thirds; of other values the `FEW` - 1 most frequent stay, and the rest are one
    group. A column of one value, of lists, or of values that mostly occur once (ids, names, texts) is none.
    """
    values = table.columns[column]
    none = np.array([missing(v) for v in values], bool)
    if any(not isinstance(v, str | int | float | np.generic) for v, gone in zip(values, none, strict=True) if not gone):
        return None
    values_as_text = np.array(
        [MISSING if gone else plain(v).strip() for v, gone in zip(values, none, strict=True)], dtype=object
    )
    kinds, count = np.unique(values_as_text, return_counts=True)
    if len(kinds) > FEW and all(_NUMBER.fullmatch(v) for v in values_as_text[~none]):
        number = values_as_text[~none].astype(np.float64)
        if len(np.unique(number)) == len(number) and np.all(np.abs(np.diff(number)) == 1):  # the number of the row
            return None
        low, high = np.quantile(number, [1 / 3, 2 / 3])
        if low == number.max():  # two thirds of the rows have the largest number
            values_as_text[~none] = np.where(number < low, f"below {low:.4g}", f"{low:.4g}")
        else:
            values_as_text[~none] = np.where(
                number <= low,
                f"up to {low:.4g}",
                np.where(number <= high, f"{low:.4g} to {high:.4g}", f"above {high:.4g}"),
            )
    elif len(kinds) > len(values_as_text) / 2:
        return None
    elif len(kinds) > FEW:
        kept = kinds[np.lexsort((kinds, -count))[: FEW - 1]]
        values_as_text[~np.isin(values_as_text, kept)] = OTHER
    return values_as_text.astype(str) if len(np.unique(values_as_text.astype(str))) > 1 else None


def _told(column: str, words: Sequence[str], values: Sequence[Any]) -> str:
    return f"Column '{column}': {listing(dict.fromkeys(words))} ({len(words)} of {len(values)} rows)"


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
            f"the columns are {listing(table.every)}."
        )
    empty = [i for i, v in enumerate(values) if absent(v) or not v.strip()]
    if empty:
        raise BadInput(f"{here}: no text in {table.where(empty)}. Fill in or delete {it_or_them(empty)}.")
    if all(_NUMBER.fullmatch(v) for v in values):
        raise BadInput(
            f"{here}: numbers where text belongs (such as '{values[0]}' in {table.where([0])}). Name the column that "
            f"holds the text; the columns are {listing(table.every)}."
        )
    _whole_characters(table, column, values)
    return values


def _whole_characters(table: Table, column: str, values: Sequence[Any]) -> None:
    """Raises BadInput where a text holds half a character, which JSON can write and no file or tokenizer takes."""
    for i, v in enumerate(values):
        try:
            str(v).encode("utf-8")
        except UnicodeEncodeError as e:
            raise BadInput(
                f"{table.source}, column '{column}': {table.where([i])} holds half a character (a surrogate, "
                f"U+{ord(str(v)[e.start]):04X}), which nothing can read. Write the file again as proper UTF-8, or delete that row."
            ) from e


def label_column(
    table: Table, column: str, classes: Sequence[str] | None, *, answers: bool = False
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """(n,) int64 class indices, the names of the classes (`classes`, else the source's, else those found, in natural order), and
    notes on names that may stand for a missing label. With `answers` any number of different ones will do.

    Raises:
        BadInput: a missing, nested or unknown label, a name given twice, or a column that holds no classes.
    """
    values = table.columns[column]
    here = f"{table.source}, column '{column}'"
    nested = [i for i, v in enumerate(values) if isinstance(v, (list, tuple, dict, set, np.ndarray))]
    if nested:
        raise BadInput(
            f"{here}: {'an object' if isinstance(values[nested[0]], dict) else 'a list'} in {table.where(nested)}, but each text "
            "needs one class. Name a column with one class for each row."
        )
    _whole_characters(table, column, values)
    names = table.names.get(column)
    if names is not None and not all(absent(v) or isinstance(v, (int, np.integer)) for v in values):
        names = None  # the values are the names already
    marks = MARKS - set(map(str, classes or ()))
    lacking = [
        i for i, v in enumerate(values) if absent(v) or str(v).strip() in marks or (names is not None and v == -1)
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
        spelt = [names[int(v)] for v in values]
    else:
        stated = [v for v in table.order.get(column, ()) if not (absent(v) or str(v).strip() in marks)]
        spelt = [plain(v).strip() for v in (*values, *stated)]
        if all(_WHOLE.fullmatch(s) or _WHOLE_FLOAT.fullmatch(s) for s in spelt):
            spelt = [_WHOLE_FLOAT.sub(r"\1", s) for s in spelt]
        spelt, names = spelt[: len(values)], spelt[len(values) :] or None
    found, placed = set(spelt), ()
    if classes is None:
        order = tuple(names) if names is not None else tuple(sorted(found, key=natural_order))
        if names is not None and len(set(names)) < len(names):
            raise BadInput(f"{here}: two classes have the same name among {listing(names)}. Rename one.")
    else:
        order = tuple(str(c) for c in classes)
        if len(set(order)) < len(order):
            raise BadInput(f"The classes {listing(order)} name one class twice; name each once.")
        at = None if answers or found & set(order) else places(found, len(order))
        if at is not None and max(at.values()) < len(order):
            pairs = ", ".join(f"{s} is '{order[at[s]]}'" for s in sorted(found, key=at.__getitem__))
            placed = (
                f"Labels that are {numbers_in(found)} were read as places among the classes that you gave: {pairs}.",
            )
            spelt = [order[at[s]] for s in spelt]
        unknown = [i for i, s in enumerate(spelt) if s not in order]
        if unknown and not answers and not found & set(order):
            # Without the others the rest would be places, so it is the others that are wrong.
            fit = {s for s in found if (one := places([s], len(order))) is not None and one[s] < len(order)}
            unknown = [i for i, s in enumerate(spelt) if s not in fit] or unknown
        if unknown:
            first = spelt[unknown[0]]
            raise BadInput(
                f"{here}: '{first}' in {table.where(unknown, 3)} is none of the classes {listing(order)}."
                f"{did_you_mean(first, order)} "
                + ("Numbers are read as places among the classes, counted from 0. " if _NUMBER.fullmatch(first) else "")
                + (HIDDEN if first == "-1" else "")
                + "Correct the label, or the names of the classes (--classes, in Python classes=)."
            )
    stated_by_none = classes is None and names is None
    scores = stated_by_none and all(_NUMBER.fullmatch(s) for s in found) and not all(map(_WHOLE.fullmatch, found))
    if stated_by_none and not answers and len(found) > (2 if scores else 100) and len(found) > len(spelt) / 2:
        raise BadInput(
            f"{here}: {len(found)} different labels in {len(spelt)} rows{f', such as {spelt[0]}' if scores else ''}, so it does "
            f"not hold classes. {'trueup does not examine regression. ' if scores else ''}Name the label column; the columns are "
            f"{listing(table.every)}."
        )
    notes: tuple[str, ...] = placed
    if not answers and (alike := _alike(found)):
        notes += (
            f"Column '{column}': {listing(alike)} differ only in upper and lower case or in spaces, and were read as different "
            "classes. If they are one, write them alike.",
        )
    if scores and not answers:
        notes += (
            f"Column '{column}' holds numbers with fractions, such as {next(s for s in spelt if not _WHOLE.fullmatch(s))}, and "
            "each was read as the name of a class. If they are scores, the figures mean nothing: trueup does not examine "
            "regression.",
        )
    if stated_by_none and (words := [s for s in spelt if s in WORDS]):
        notes += (
            f"{_told(column, words, values)} was read as {'an answer' if answers else 'a class'} of that name. Where a missing "
            "one is meant, drop those rows.",
        )
    place = {c: i for i, c in enumerate(order)}
    return np.array([place[s] for s in spelt], dtype=np.int64), order, notes


HIDDEN = "A label of -1 is what benchmarks write where they keep the labels of test rows hidden: drop these rows. "

_BOOLEANS = {"false": 0, "true": 1}


def places(labels: Iterable[str], classes: int) -> dict[str, int] | None:
    """By label, its place among the logits, where all are numbers, or, of two classes, true and false; None where they are names.

    It is how transformers' trainer reads such labels.
    """
    found = list(labels)
    if all(s.isascii() and s.isdigit() for s in found):
        return {s: int(s) if len(s) < 19 else sys.maxsize for s in found}  # Python reads no number of 4,301 digits
    if classes == 2 and all(s.casefold() in _BOOLEANS for s in found):
        return {s: _BOOLEANS[s.casefold()] for s in found}
    return None


def numbers_in(labels: Iterable[str]) -> str:
    """What a sentence calls labels that are `places`."""
    return "numbers" if all(s.isdigit() for s in labels) else "true and false"


def _alike(labels: Iterable[str]) -> list[str]:
    """Labels that differ from another only in upper and lower case or in white space."""
    same: dict[str, list[str]] = {}
    for s in sorted(labels, key=natural_order):
        same.setdefault(" ".join(s.casefold().split()), []).append(s)
    return [s for group in same.values() if len(group) > 1 for s in group]


_NESTED = (list, tuple, set, frozenset, np.ndarray)
_PARTED = re.compile(r"[;|]")
MARK = re.compile(r"(\d+) of (\d+)")
"""What a place in a yes/no vector is called as a label, where nothing names it: ``0 of 6``."""


def label_lists(
    table: Table, column: str, classes: Sequence[str] | None, *, parted: bool
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]] | None:
    """(n, C) bool, which labels each text has, the names of the labels, and notes; None where a cell holds one class.

    A cell that holds any number of them is a list of names or of class ids, a vector of yes/no marks (0 and 1, one for each label),
    or either written as text, as in a csv file. With `parted` it may also be names with ``;`` or ``|`` between them, or nothing.

    Raises:
        BadInput: cells of both kinds, an item that is no label, an unknown label, or vectors of unequal length.
    """
    cells, here = _lists(table, column, parted), f"{table.source}, column '{column}'"
    if cells is None:
        return None
    odd = [
        i for i, cell in enumerate(cells) if any(absent(v) or isinstance(v, (dict, *_NESTED)) or v == "" for v in cell)
    ]
    if odd:
        raise BadInput(
            f"{here}: a list with an item that is no label in {table.where(odd)} ({str(cells[odd[0]])[:60]}). Give the names of "
            "the labels, and an empty list where a text has none."
        )
    names = table.names.get(column)
    if _yes_no(cells):
        size = len(cells[0])
        if uneven := [i for i, cell in enumerate(cells) if len(cell) != size]:
            raise BadInput(
                f"{here}: a vector of {len(cells[uneven[0]])} yes/no marks in {table.where(uneven)}, and of {size} in "
                f"{table.where([0])}. Give each text one mark for each label."
            )
        own = tuple(map(str, classes or names or ())) or tuple(f"{i} of {size}" for i in range(size))
        if len(own) != size:
            raise BadInput(
                f"{here}: each text has {size} yes/no marks, and the labels are {len(own)}: {listing(own)}. Give one mark for each "
                "label, in the order of the logits."
            )
        return (
            np.array(cells, np.float64) > 0,
            own,
            (f"Column '{column}': {size} yes/no marks a text, one for each label.",),
        )
    if names is not None and not all(isinstance(v, (int, np.integer)) for cell in cells for v in cell):
        names = None  # the items are the names already
    if names is not None:
        names = [str(n) for n in names]
        beyond = [i for i, cell in enumerate(cells) if any(not 0 <= int(v) < len(names) for v in cell)]
        if beyond:
            raise BadInput(
                f"{here}: a label in {table.where(beyond)} has no name ({cells[beyond[0]]}); it has {len(names)}. Correct it."
            )
        spelt = [{names[int(v)] for v in cell} for cell in cells]
    else:
        spelt = [{plain(v).strip() for v in cell} for cell in cells]
    found, notes = set().union(*spelt), ()
    order = tuple(map(str, classes or names or sorted(found, key=natural_order)))
    if len(set(order)) < len(order):
        raise BadInput(f"The classes {listing(order)} name one class twice; name each once.")
    if found and not found & set(order) and all(s.isascii() and s.isdigit() and int(s) < len(order) for s in found):
        pairs = ", ".join(f"{s} is '{order[int(s)]}'" for s in sorted(found, key=int))
        notes = (f"Labels that are numbers were read as places among the classes that you gave: {pairs}.",)
        spelt = [{order[int(s)] for s in cell} for cell in spelt]
    unknown = [i for i, cell in enumerate(spelt) if not cell <= set(order)]
    if unknown:
        first = min(spelt[unknown[0]] - set(order))
        raise BadInput(
            f"{here}: '{first}' in {table.where(unknown, 3)} is none of the labels {listing(order)}.{did_you_mean(first, order)} "
            "Correct the label, or the names of the classes (--classes, in Python classes=)."
        )
    return np.array([[c in cell for c in order] for cell in spelt], bool).reshape(len(spelt), len(order)), order, notes


def _lists(table: Table, column: str, parted: bool) -> list[list[Any]] | None:
    """The items of each cell; None where the column holds one class a text."""
    values = table.columns[column]
    nested = [isinstance(v, _NESTED) for v in values]
    if any(nested):
        if not all(nested):
            without = table.where(np.flatnonzero(~np.array(nested)).tolist())
            raise BadInput(
                f"{table.source}, column '{column}': no list of labels in {without}, and one in other cells "
                f"({table.where([nested.index(True)])}). Give each text a list, empty where it has none, or each text one class."
            )
        return [v.tolist() if isinstance(v, np.ndarray) else list(v) for v in values]
    words = [None if absent(v) else v.strip() if isinstance(v, str) else v for v in values]
    if any(isinstance(w, str) and w.startswith("[") for w in words):
        cells = [_written(w) for w in words]
        if all(cell is not None for cell in cells):
            return cells  # type: ignore[return-value]
    if not parted or not any(w is None or w == "" or (isinstance(w, str) and _PARTED.search(w)) for w in words):
        return None
    parts = [[] if w is None else _PARTED.split(w) if isinstance(w, str) else [w] for w in words]
    return [[p for part in cell if (p := part.strip() if isinstance(part, str) else part) != ""] for cell in parts]


def _written(word: Any) -> list[Any] | None:
    """The list that a text is, as JSON writes it or as Python does; None where it is none."""
    if not isinstance(word, str) or not (word.startswith("[") and word.endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            return list(read(word))
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None


def _yes_no(cells: Sequence[Sequence[Any]]) -> bool:
    """Whether the lists are yes/no vectors: 0 and 1 alone, of two places or more.

    In a list of class ids none stands twice. Where none does, each cell is [0, 1] or [1, 0], and ids would stand in one order.
    """
    if any(
        not isinstance(v, (bool, int, float, np.number, np.bool_)) or v not in (0, 1) for cell in cells for v in cell
    ):
        return False
    return min(map(len, cells)) > 1 and (
        any(len(set(cell)) < len(cell) for cell in cells) or len({tuple(cell) for cell in cells}) > 1
    )


def natural_order(name: str) -> tuple[Any, ...]:
    """A sorting key: whole numbers by value, before names; digits inside names by value too."""
    # As decimals: of an int Python reads 4,300 digits at most.
    if _WHOLE.fullmatch(name):
        return (0, Decimal(name), name)
    bits = re.split(r"([0-9]+)", name)
    return (1, [(0, Decimal(b), "") if i % 2 else (1, 0, b.casefold()) for i, b in enumerate(bits)], name)
