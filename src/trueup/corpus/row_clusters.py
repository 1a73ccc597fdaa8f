"""Clusters of rows: rows in different clusters are independent. Splits, folds, halves and bootstraps are made by clusters.

Rows with equal text (or an equal pair of texts), except for white space and case, are one cluster. Rows that share a value of a
column that the user names (patient, author, document) are one cluster too. The numbers of clusters depend on the texts and not on
the order of the rows, so a draw of clusters does not change when rows are shuffled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trueup.corpus.table import Table
from trueup.corpus.values import missing, plain
from trueup.errors import BadInput, listing

Ids = NDArray[np.int64]


def same_key(texts: Sequence[str], seconds: Sequence[str] | None) -> list[Any]:
    """A key that is equal for equal examples: the text, or the pair of texts, without differences in white space and case."""
    first = [" ".join(t.casefold().split()) for t in texts]
    return first if seconds is None else list(zip(first, same_key(seconds, None), strict=True))


def clusters(texts: Sequence[str], seconds: Sequence[str] | None = None, value: Sequence[str] | None = None) -> Ids:
    """(n,) the number of each row's cluster, 0 upwards in the order of the clusters' first texts.

    Args:
        texts, seconds: n texts, and the second texts of a pair task.
        value: n values of a column. Rows with equal values are one cluster; rows with an empty value are joined only by text.

    Clusters are transitive: where A and B share a text, and B and C share a value, all three are one cluster.
    """
    keys = same_key(texts, seconds)
    place = {k: i for i, k in enumerate(sorted(set(keys)))}
    of_text = np.fromiter((place[k] for k in keys), dtype=np.int64, count=len(keys))
    if value is None:
        return of_text
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = [i for i, v in enumerate(value) if v]
    number_of_value: dict[str, int] = {}
    of_value = [len(place) + number_of_value.setdefault(value[i], len(number_of_value)) for i in rows]
    size = len(place) + len(number_of_value)
    graph = coo_array((np.ones(len(rows), bool), (of_text[rows], of_value)), shape=(size, size))
    component = connected_components(graph, directed=False)[1][: len(place)]
    # Texts are numbered in sorted order, so the first text of each component is its smallest.
    _, first_text, member = np.unique(component, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first_text))[member][of_text].astype(np.int64)


def cluster_column(
    table: Table, column: str, texts: Sequence[str], seconds: Sequence[str] | None, taken: Sequence[str | None]
) -> Ids:
    """(n,) clusters by text and by the values of `column`.

    Args:
        taken: the columns of the texts and the label.

    Raises:
        BadInput: the column is one of `taken`, has one value, or leaves one cluster in all.
    """
    where = f"{table.source}, column '{column}'"
    if column in taken:
        raise BadInput(
            f"{where}: it holds the texts or the labels. Equal texts count as one in any case; leave the cluster column out, or "
            "name the one that says which rows belong together (patient, author, document)."
        )
    value = ["" if missing(v) else plain(v).strip() for v in table.columns[column]]
    if len(set(value)) == 1:
        raise BadInput(
            f"{where}: every row says '{value[0]}', so no row is independent of another. Leave the cluster column out, or name "
            "one that says which rows belong together (patient, author, document)."
        )
    cluster = clusters(texts, seconds, value)
    if not cluster.any():
        raise BadInput(
            f"{where}: its values and the texts that they share join all {len(cluster)} rows into one cluster. Drop the texts that "
            "stand under several values, or name another column."
        )
    return cluster


def check_leak(cluster: Ids, split: NDArray[np.str_], source: str) -> None:
    """Raises BadInput where clusters are in more than one split; the message gives their number."""
    pairs = np.unique(np.stack([cluster, np.unique(split, return_inverse=True)[1]]), axis=1)
    ids, splits = np.unique(pairs[0], return_counts=True)
    shared = ids[splits > 1]
    if not len(shared):
        return
    rows = np.isin(cluster, shared)
    in_splits = listing([s for s in ("train", "calibration", "test") if (rows & (split == s)).any()])
    raise BadInput(
        f"{source}: {len(shared)} of {len(ids)} clusters (rows of equal text, or of an equal cluster column) lie in more than one "
        f"of the given splits {in_splits}, {int(rows.sum())} rows in all, so what is held out was seen before. Drop them from all "
        "splits but one, leave the split column out to have the rows split here, or allow it with `--allow-leak` "
        "(`allow_leak=True` in Python)."
    )
