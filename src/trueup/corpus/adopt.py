"""From objects that a user already holds to a Table: frames, data sets, records, texts with labels.

The type of an object is found by the library it comes from, so that no library is imported that is not loaded already. Messages
name a row by its pandas index, or by its part and position in a DatasetDict, else by its position, counted from 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from trueup.corpus.hub import of_parts
from trueup.corpus.table import Table
from trueup.errors import BadInput, listing

ACCEPTED = (
    "a file name or a hub id, a pandas or polars DataFrame, a datasets.Dataset or DatasetDict, a list of dicts, a dict of "
    "columns, or a pair (texts, labels)"
)


def table_of(source: Any, wanted: Sequence[str], *, text: str, label: str) -> tuple[Table, str | None, str]:
    """The columns of `source`, the column of its splits if it has them, and the name of its kind.

    Args:
        wanted: the columns that will be read. text, label: names for the two columns of a pair.

    Raises:
        BadInput: the object is of no known kind, has columns of unequal length or with the same name, or has no rows.
    """
    split_column: str | None = None
    match _library(source), type(source).__name__:
        case "pandas", _ if hasattr(source, "columns"):
            name, table = "pandas DataFrame", _pandas(source)
        case "polars", "LazyFrame":
            raise BadInput("A polars LazyFrame holds no rows yet; give what its collect() returns.")
        case "polars", _ if hasattr(source, "columns"):
            name, table = (
                "polars DataFrame",
                _columns({c: source.get_column(c) for c in source.columns}, "polars DataFrame"),
            )
        case "datasets", kind if kind.startswith("Iterable"):
            raise BadInput(
                f"An {kind} is read as it streams; load it without streaming=True, or give a list of its rows."
            )
        case "datasets", kind if hasattr(source, "column_names"):
            is_dataset = not isinstance(source, Mapping)
            # The format that the user has set for training is removed, so that values are Python objects.
            parts = {k: v.with_format(None) for k, v in ({"": source} if is_dataset else source).items()}
            name, (table, split_column) = kind, of_parts(parts, f"The {kind}", wanted, label, "give one of its parts")
            if is_dataset:
                table = replace(table, at=range(len(table)))
        case _:
            name, table = _plain(source, text, label)
    if not len(table):
        raise BadInput(f"{table.source} has no rows. Give one with rows.")
    return table, split_column, name


def _library(source: Any) -> str:
    """``pandas``, ``polars`` or ``datasets`` for an object of these libraries, or of a subclass; else an empty string."""
    return next((k for k in ("pandas", "polars", "datasets") if _from(source, k)), "")


def _from(source: Any, library: str) -> bool:
    return any(c.__module__.partition(".")[0] == library for c in type(source).__mro__)


def _plain(source: Any, text: str, label: str) -> tuple[str, Table]:
    if isinstance(source, tuple) and len(source) == 2 and not any(isinstance(part, str) for part in source):
        return "texts and labels", _columns(dict(zip((text, label), source, strict=True)), "pair of texts and labels")
    if isinstance(source, Mapping) and source:
        return "dict of columns", _columns(source, "dict of columns")
    if isinstance(source, list) and all(isinstance(row, Mapping) for row in source):
        rows = [{str(name): value for name, value in row.items()} for row in source]
        names = list(dict.fromkeys(name for row in rows for name in row))
        columns = {name: [_scalar(row.get(name)) for row in rows] for name in names}
        return "list of records", Table(columns, range(len(source)), "row", "The list of records", {})
    if isinstance(source, list | tuple) and source and all(isinstance(row, str) for row in source):
        raise BadInput("A list of texts has no labels, and an examination needs them; give the pair (texts, labels).")
    kind = type(source).__name__
    if _from(source, "pyarrow") and hasattr(source, "to_pandas"):
        raise BadInput(f"This pyarrow {kind} cannot be read as labelled texts. Give what its to_pandas() returns.")
    raise BadInput(f"This {kind} cannot be read as labelled texts. Give {ACCEPTED}.")


def _columns(source: Mapping[Any, Any], kind: str) -> Table:
    """A table of columns that are lists, arrays, tensors or series."""
    columns = {str(name): _values(values, str(name), kind) for name, values in source.items()}
    order = {str(name): stated for name, values in source.items() if (stated := _order(values))}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"'{k}' {v}" for k, v in lengths.items())
        raise BadInput(f"The {kind} has columns of different lengths ({shown}). Make them equal.")
    return Table(columns, range(next(iter(lengths.values()), 0)), "row", f"The {kind}", {}, order=order)


def _values(values: Any, name: str, kind: str) -> list[Any]:
    if _library(values) == "pandas":
        return _without_gaps(values)
    for method in ("tolist", "to_list", "to_pylist"):
        if hasattr(values, method):
            values = getattr(values, method)()
            break
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise BadInput(
            f"The {kind}, column '{name}': '{type(values).__name__}' where a list of values belongs, one for each text."
        )
    return [_scalar(v) for v in values]


def _scalar(value: Any) -> Any:
    """The number in a tensor or array of no dimensions; any other value as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and not isinstance(value, np.generic) else value


def _pandas(frame: Any) -> Table:
    names = [str(c) for c in frame.columns]
    if repeated_names := sorted({n for n in names if names.count(n) > 1}):
        raise BadInput(
            f"The pandas DataFrame names {listing(repeated_names)} more than once. Rename one of the columns."
        )
    columns = {name: _without_gaps(frame.iloc[:, i]) for i, name in enumerate(names)}
    order = {name: stated for i, name in enumerate(names) if (stated := _order(frame.iloc[:, i]))}
    return Table(columns, [str(i) for i in frame.index], "row", "The pandas DataFrame", {}, order=order)


def _order(values: Any) -> list[Any]:
    """The values in the order of an ordered pandas Categorical or of a polars Enum; else an empty list.

    Categories that are not declared as ordered are not used: their order is that of appearance or of sorting.
    """
    kind = getattr(values, "dtype", None)
    if _library(values) == "pandas" and getattr(kind, "ordered", False):
        return list(kind.categories)  # type: ignore[union-attr]
    if _library(values) == "polars" and type(kind).__name__ == "Enum":
        return kind.categories.to_list()  # type: ignore[union-attr]
    return []


def _without_gaps(series: Any) -> list[Any]:
    """The values of a pandas series, with None for each of pandas' marks for a missing value."""
    return [
        None if is_missing else value for value, is_missing in zip(series.tolist(), series.isna().tolist(), strict=True)
    ]
