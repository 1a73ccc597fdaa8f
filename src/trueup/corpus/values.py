"""Turns the values of a Table's columns into texts, class indices and groups. Errors name the place of a wrong value."""

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
"""Words that libraries write for a missing value, and that are never names."""
WORDS = frozenset(("None", "null", "NULL", "NA", "N/A", "n/a"))
"""Words that libraries write for a missing value, but that may also be names. `MARKS` and `WORDS` together are the words that
``pandas.read_csv`` reads as missing (and NAN and NaT).

In a column of groups such a word counts as missing: its rows form one group with the rows of empty cells. In a column of labels it
is a class: a column of labels is complete or refused, and a head that does not know the class names it in its error.
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
    """Whether a cell of a column of groups has no group: `absent`, or one of `MARKS` and `WORDS`."""
    return absent(value) or (isinstance(value, str) and value.strip() in MARKS | WORDS)


def plain(value: Any) -> str:
    """A label or attribute as text; a whole number loses its point (1.0 is 1)."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)


def group_column(table: Table, column: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """(n,) of strings, the group of each row, and notes on words that were read as missing.

    Where all other values are codes of two to five capital letters (EU, US, EMEA), "NA" is read as a code too (North America,
    or Namibia).
    """
    values = table.columns[column]
    _whole_characters(table, column, values)
    is_missing = [missing(v) for v in values]
    other_values = {plain(v).strip() for v, missing_here in zip(values, is_missing, strict=True) if not missing_here}
    is_na = [isinstance(v, str) and v.strip() == "NA" for v in values]
    na_is_code = any(is_na) and bool(other_values) and all(_CODE.fullmatch(s) for s in other_values)
    if na_is_code:
        is_missing = [missing_here and not na for missing_here, na in zip(is_missing, is_na, strict=True)]
    values_as_text = np.array(
        [MISSING if missing_here else plain(v) for v, missing_here in zip(values, is_missing, strict=True)]
    )
    blanks = [
        v.strip()
        for v, missing_here in zip(values, is_missing, strict=True)
        if missing_here and isinstance(v, str) and v.strip()
    ]
    notes = []
    if blanks:
        notes.append(
            f"{_told(column, blanks, values)} was read as no value, so the group is '{MISSING}'. Where it is a group's name, write "
            "it otherwise."
        )
    if na_is_code:
        notes.append(
            f"{_told(column, ['NA'] * sum(is_na), values)} was read as a code like the other values "
            f"({', '.join(sorted(other_values)[:3])}). Where no value is meant, leave the cells empty."
        )
    return values_as_text, tuple(notes)


FEW, OTHER = 8, "(other)"
"""For a column that the user did not name: the most groups, and the name of the group of all rarer values."""


def other_column(table: Table, column: str) -> np.ndarray | None:
    """(n,) of strings, the group of each row in a column that the user did not name; None where it gives no groups.

    Numbers of more than `FEW` values are cut into thirds. Of other values the `FEW` - 1 most frequent are kept, and the others are
    one group. A column with one value, with lists, or with values that mostly occur once (ids, names, texts) gives no groups.
    """
    values = table.columns[column]
    is_missing = np.array([missing(v) for v in values], bool)
    if any(
        not isinstance(v, str | int | float | np.generic)
        for v, missing_here in zip(values, is_missing, strict=True)
        if not missing_here
    ):
        return None
    values_as_text = np.array(
        [MISSING if missing_here else plain(v).strip() for v, missing_here in zip(values, is_missing, strict=True)],
        dtype=object,
    )
    distinct, count = np.unique(values_as_text, return_counts=True)
    if len(distinct) > FEW and all(_NUMBER.fullmatch(v) for v in values_as_text[~is_missing]):
        number = values_as_text[~is_missing].astype(np.float64)
        if len(np.unique(number)) == len(number) and np.all(np.abs(np.diff(number)) == 1):  # the number of the row
            return None
        low, high = np.quantile(number, [1 / 3, 2 / 3])
        if low == number.max():  # two thirds of the rows have the largest number
            values_as_text[~is_missing] = np.where(number < low, f"below {low:.4g}", f"{low:.4g}")
        else:
            values_as_text[~is_missing] = np.where(
                number <= low,
                f"up to {low:.4g}",
                np.where(number <= high, f"{low:.4g} to {high:.4g}", f"above {high:.4g}"),
            )
    elif len(distinct) > len(values_as_text) / 2:
        return None
    elif len(distinct) > FEW:
        frequent = distinct[np.lexsort((distinct, -count))[: FEW - 1]]
        values_as_text[~np.isin(values_as_text, frequent)] = OTHER
    return values_as_text.astype(str) if len(np.unique(values_as_text.astype(str))) > 1 else None


def _told(column: str, words: Sequence[str], values: Sequence[Any]) -> str:
    return f"Column '{column}': {listing(dict.fromkeys(words))} ({len(words)} of {len(values)} rows)"


def text_column(table: Table, column: str) -> list[str]:
    """n strings, none blank.

    Raises:
        BadInput: a value is not text, a text is blank or holds half a character, or all texts are numbers.
    """
    values = table.columns[column]
    where = f"{table.source}, column '{column}'"
    not_text = [i for i, v in enumerate(values) if not isinstance(v, str) and not absent(v)]
    if not_text:
        kinds = {type(values[i]) for i in not_text}
        number = all(issubclass(k, (int, float, np.number)) for k in kinds)
        raise BadInput(
            f"{where}: {'numbers' if number else listing(sorted(k.__name__ for k in kinds))} where text belongs "
            f"({table.where(not_text, 3)}, such as {str(values[not_text[0]])[:40]!r}). Name the column that holds the text; "
            f"the columns are {listing(table.every)}."
        )
    empty = [i for i, v in enumerate(values) if absent(v) or not v.strip()]
    if empty:
        raise BadInput(f"{where}: no text in {table.where(empty)}. Fill in or delete {it_or_them(empty)}.")
    if all(_NUMBER.fullmatch(v) for v in values):
        raise BadInput(
            f"{where}: numbers where text belongs (such as '{values[0]}' in {table.where([0])}). Name the column that "
            f"holds the text; the columns are {listing(table.every)}."
        )
    _whole_characters(table, column, values)
    return values


def _whole_characters(table: Table, column: str, values: Sequence[Any]) -> None:
    """Raises BadInput where a text holds half a character (a lone surrogate), which JSON can hold but UTF-8 cannot."""
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
    notes on names that may mean a missing label. With `answers` any number of different labels is allowed.

    Raises:
        BadInput: a missing, nested or unknown label, a name given twice, or a column that holds no classes.
    """
    values = table.columns[column]
    where = f"{table.source}, column '{column}'"
    nested = [i for i, v in enumerate(values) if isinstance(v, (list, tuple, dict, set, np.ndarray))]
    if nested:
        raise BadInput(
            f"{where}: {'an object' if isinstance(values[nested[0]], dict) else 'a list'} in {table.where(nested)}, but each text "
            "needs one class. Name a column with one class for each row."
        )
    _whole_characters(table, column, values)
    names = table.names.get(column)
    if names is not None and not all(absent(v) or isinstance(v, (int, np.integer)) for v in values):
        names = None  # the values are the names already
    missing_marks = MARKS - set(map(str, classes or ()))
    unlabelled = [
        i
        for i, v in enumerate(values)
        if absent(v) or str(v).strip() in missing_marks or (names is not None and v == -1)
    ]
    if unlabelled:
        raise BadInput(
            f"{where}: no label in {table.where(unlabelled)}. Fill in or delete {it_or_them(unlabelled)}"
            f"{', or choose another part with hub_split' if names is not None else ''}."
        )
    if names is not None:
        names = [str(n) for n in names]
        out_of_range = [i for i, v in enumerate(values) if not 0 <= int(v) < len(names)]
        if out_of_range:
            raise BadInput(
                f"{where}: the label {values[out_of_range[0]]} in {table.where(out_of_range)} has no name; there are {len(names)} "
                "class names. Correct the label."
            )
        label = [names[int(v)] for v in values]
    else:
        stated_order = [v for v in table.order.get(column, ()) if not (absent(v) or str(v).strip() in missing_marks)]
        label = [plain(v).strip() for v in (*values, *stated_order)]
        if all(_WHOLE.fullmatch(s) or _WHOLE_FLOAT.fullmatch(s) for s in label):
            label = [_WHOLE_FLOAT.sub(r"\1", s) for s in label]
        label, names = label[: len(values)], label[len(values) :] or None
    kinds, place_notes = set(label), ()
    if classes is None:
        order = tuple(names) if names is not None else tuple(sorted(kinds, key=natural_order))
        if names is not None and len(set(names)) < len(names):
            raise BadInput(f"{where}: two classes have the same name among {listing(names)}. Rename one.")
    else:
        order = tuple(str(c) for c in classes)
        if len(set(order)) < len(order):
            raise BadInput(f"The classes {listing(order)} name one class twice; name each once.")
        place_of_label = None if answers or kinds & set(order) else places(kinds, len(order))
        if place_of_label is not None and max(place_of_label.values()) < len(order):
            pairs = ", ".join(
                f"{s} is '{order[place_of_label[s]]}'" for s in sorted(kinds, key=place_of_label.__getitem__)
            )
            place_notes = (
                f"Labels that are {numbers_in(kinds)} were read as places among the classes that you gave: {pairs}.",
            )
            label = [order[place_of_label[s]] for s in label]
        unknown = [i for i, s in enumerate(label) if s not in order]
        if unknown and not answers and not kinds & set(order):
            # Without the unknown labels the others are places among the classes, so it is the unknown ones that are wrong.
            fit = {s for s in kinds if (one := places([s], len(order))) is not None and one[s] < len(order)}
            unknown = [i for i, s in enumerate(label) if s not in fit] or unknown
        if unknown:
            first_unknown = label[unknown[0]]
            raise BadInput(
                f"{where}: '{first_unknown}' in {table.where(unknown, 3)} is none of the classes {listing(order)}."
                f"{did_you_mean(first_unknown, order)} "
                + (
                    "Numbers are read as places among the classes, counted from 0. "
                    if _NUMBER.fullmatch(first_unknown)
                    else ""
                )
                + (HIDDEN if first_unknown == "-1" else "")
                + "Correct the label, or the names of the classes (--classes, in Python classes=)."
            )
    order_unknown = classes is None and names is None
    scores = order_unknown and all(_NUMBER.fullmatch(s) for s in kinds) and not all(map(_WHOLE.fullmatch, kinds))
    if order_unknown and not answers and len(kinds) > (2 if scores else 100) and len(kinds) > len(label) / 2:
        raise BadInput(
            f"{where}: {len(kinds)} different labels in {len(label)} rows{f', such as {label[0]}' if scores else ''}, so it does "
            f"not hold classes. {'trueup does not examine regression. ' if scores else ''}Name the label column; the columns are "
            f"{listing(table.every)}."
        )
    notes: tuple[str, ...] = place_notes
    if not answers and (similar := _alike(kinds)):
        notes += (
            f"Column '{column}': {listing(similar)} differ only in upper and lower case or in spaces, and were read as different "
            "classes. If they are one, write them alike.",
        )
    if scores and not answers:
        notes += (
            f"Column '{column}' holds numbers with fractions, such as {next(s for s in label if not _WHOLE.fullmatch(s))}, and "
            "each was read as the name of a class. If they are scores, the figures mean nothing: trueup does not examine "
            "regression.",
        )
    if order_unknown and (blanks := [s for s in label if s in WORDS]):
        notes += (
            f"{_told(column, blanks, values)} was read as {'an answer' if answers else 'a class'} of that name. Where a missing "
            "one is meant, drop those rows.",
        )
    place = {c: i for i, c in enumerate(order)}
    return np.array([place[s] for s in label], dtype=np.int64), order, notes


HIDDEN = "A label of -1 is what benchmarks write where they keep the labels of test rows hidden: drop these rows. "

_BOOLEANS = {"false": 0, "true": 1}


def places(labels: Iterable[str], classes: int) -> dict[str, int] | None:
    """Label -> its index among the logits, where all labels are numbers, or true and false of two classes; None for names.

    The trainer of transformers reads such labels in the same way.
    """
    label_list = list(labels)
    if all(s.isascii() and s.isdigit() for s in label_list):
        return {s: int(s) if len(s) < 19 else sys.maxsize for s in label_list}  # Python reads no number of 4,301 digits
    if classes == 2 and all(s.casefold() in _BOOLEANS for s in label_list):
        return {s: _BOOLEANS[s.casefold()] for s in label_list}
    return None


def numbers_in(labels: Iterable[str]) -> str:
    """The word for labels that are `places`, for a sentence."""
    return "numbers" if all(s.isdigit() for s in labels) else "true and false"


def _alike(labels: Iterable[str]) -> list[str]:
    """Labels that differ from another only in upper and lower case or in white space."""
    spellings: dict[str, list[str]] = {}
    for s in sorted(labels, key=natural_order):
        spellings.setdefault(" ".join(s.casefold().split()), []).append(s)
    return [s for group in spellings.values() if len(group) > 1 for s in group]


_NESTED = (list, tuple, set, frozenset, np.ndarray)
_PARTED = re.compile(r"[;|]")
MARK = re.compile(r"(\d+) of (\d+)")
"""The name of a label that is a position in a yes/no vector without names: ``0 of 6``."""


def label_lists(
    table: Table, column: str, classes: Sequence[str] | None, *, parted: bool
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]] | None:
    """(n, C) bool, the labels of each text, the names of the labels, and notes; None where each cell holds one class.

    A cell with any number of labels is a list of names or of class ids, a vector of yes/no marks (0 and 1, one for each label),
    or one of these written as text, as in a csv file. With `parted` it may also be names separated by ``;`` or ``|``, or empty.

    Raises:
        BadInput: cells of both kinds, an item that is not a label, an unknown label, or vectors of unequal length.
    """
    cells, spot = _lists(table, column, parted), f"{table.source}, column '{column}'"
    if cells is None:
        return None
    bad = [
        i for i, cell in enumerate(cells) if any(absent(v) or isinstance(v, (dict, *_NESTED)) or v == "" for v in cell)
    ]
    if bad:
        raise BadInput(
            f"{spot}: a list with an item that is no label in {table.where(bad)} ({str(cells[bad[0]])[:60]}). Give the names of "
            "the labels, and an empty list where a text has none."
        )
    names = table.names.get(column)
    if _yes_no(cells):
        size = len(cells[0])
        if wrong_length := [i for i, cell in enumerate(cells) if len(cell) != size]:
            raise BadInput(
                f"{spot}: a vector of {len(cells[wrong_length[0]])} yes/no marks in {table.where(wrong_length)}, and of {size} in "
                f"{table.where([0])}. Give each text one mark for each label."
            )
        own = tuple(map(str, classes or names or ())) or tuple(f"{i} of {size}" for i in range(size))
        if len(own) != size:
            raise BadInput(
                f"{spot}: each text has {size} yes/no marks, and the labels are {len(own)}: {listing(own)}. Give one mark for each "
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
        outside = [i for i, cell in enumerate(cells) if any(not 0 <= int(v) < len(names) for v in cell)]
        if outside:
            raise BadInput(
                f"{spot}: a label in {table.where(outside)} has no name ({cells[outside[0]]}); it has {len(names)}. Correct it."
            )
        label_sets = [{names[int(v)] for v in cell} for cell in cells]
    else:
        label_sets = [{plain(v).strip() for v in cell} for cell in cells]
    distinct, notes = set().union(*label_sets), ()
    order = tuple(map(str, classes or names or sorted(distinct, key=natural_order)))
    if len(set(order)) < len(order):
        raise BadInput(f"The classes {listing(order)} name one class twice; name each once.")
    if (
        distinct
        and not distinct & set(order)
        and all(s.isascii() and s.isdigit() and int(s) < len(order) for s in distinct)
    ):
        pairs = ", ".join(f"{s} is '{order[int(s)]}'" for s in sorted(distinct, key=int))
        notes = (f"Labels that are numbers were read as places among the classes that you gave: {pairs}.",)
        label_sets = [{order[int(s)] for s in cell} for cell in label_sets]
    unknown = [i for i, cell in enumerate(label_sets) if not cell <= set(order)]
    if unknown:
        label = min(label_sets[unknown[0]] - set(order))
        raise BadInput(
            f"{spot}: '{label}' in {table.where(unknown, 3)} is none of the labels {listing(order)}.{did_you_mean(label, order)} "
            "Correct the label, or the names of the classes (--classes, in Python classes=)."
        )
    return (
        np.array([[c in cell for c in order] for cell in label_sets], bool).reshape(len(label_sets), len(order)),
        order,
        notes,
    )


def _lists(table: Table, column: str, parted: bool) -> list[list[Any]] | None:
    """The items of each cell; None where the column holds one class for each text."""
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
    """The list that a text holds in the notation of JSON or of Python; None where the text is not a list."""
    if not isinstance(word, str) or not (word.startswith("[") and word.endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            return list(read(word))
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None


def _yes_no(cells: Sequence[Sequence[Any]]) -> bool:
    """Whether the lists are yes/no vectors: only 0 and 1, and at least two items in each.

    A list of class ids never repeats an item. Where no list repeats one, each is [0, 1] or [1, 0], and ids would have one order.
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
    # Decimals, because Python reads an int of at most 4,300 digits.
    if _WHOLE.fullmatch(name):
        return (0, Decimal(name), name)
    pieces = re.split(r"([0-9]+)", name)
    return (1, [(0, Decimal(b), "") if i % 2 else (1, 0, b.casefold()) for i, b in enumerate(pieces)], name)
