"""Which rows are independent of which: the one place that says so. Splits, folds, halves and bootstraps go by clusters.

Rows of equal text (of an equal pair), but for white space and case, are one cluster, and so are rows that share a value of a
column that the user names (patient, author, document). Numbers follow the texts and not the rows, so what is drawn by cluster
does not change when rows are shuffled.
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
    """What makes two examples the same: the text, or the pair, but for white space and case."""
    first = [" ".join(t.casefold().split()) for t in texts]
    return first if seconds is None else list(zip(first, same_key(seconds, None), strict=True))


def clusters(texts: Sequence[str], seconds: Sequence[str] | None = None, value: Sequence[str] | None = None) -> Ids:
    """(n,) the number of each row's cluster, 0 upwards in the order of the clusters' first texts.

    Args:
        texts, seconds: n texts, and the second texts of a pair task.
        value: n values of a column; rows of equal value belong together, and those of an empty one only by their text.

    Rows are joined through each other: where A and B share a text and B and C a value, all three are one cluster.
    """
    keys = same_key(texts, seconds)
    place = {k: i for i, k in enumerate(sorted(set(keys)))}
    of_text = np.fromiter((place[k] for k in keys), dtype=np.int64, count=len(keys))
    if value is None:
        return of_text
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = [i for i, v in enumerate(value) if v]
    seen: dict[str, int] = {}
    of_value = [len(place) + seen.setdefault(value[i], len(seen)) for i in rows]
    size = len(place) + len(seen)
    graph = coo_array((np.ones(len(rows), bool), (of_text[rows], of_value)), shape=(size, size))
    joined = connected_components(graph, directed=False)[1][: len(place)]
    # Texts are in order, so that the first of each component is its least.
    _, first, member = np.unique(joined, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[member][of_text].astype(np.int64)


def cluster_column(
    table: Table, column: str, texts: Sequence[str], seconds: Sequence[str] | None, taken: Sequence[str | None]
) -> Ids:
    """(n,) clusters by text and by the values of `column`.

    Args:
        taken: the columns of the texts and the label.

    Raises:
        BadInput: the column is one of `taken`, has one value, or leaves one cluster in all.
    """
    here = f"{table.source}, column '{column}'"
    if column in taken:
        raise BadInput(
            f"{here}: it holds the texts or the labels. Equal texts count as one in any case; leave the cluster column out, or "
            "name the one that says which rows belong together (patient, author, document)."
        )
    value = ["" if missing(v) else plain(v).strip() for v in table.columns[column]]
    if len(set(value)) == 1:
        raise BadInput(
            f"{here}: every row says '{value[0]}', so no row is independent of another. Leave the cluster column out, or name "
            "one that says which rows belong together (patient, author, document)."
        )
    found = clusters(texts, seconds, value)
    if not found.any():
        raise BadInput(
            f"{here}: its values and the texts that they share join all {len(found)} rows into one cluster. Drop the texts that "
            "stand under several values, or name another column."
        )
    return found


def check_leak(cluster: Ids, split: NDArray[np.str_], source: str) -> None:
    """Raises BadInput where a cluster lies in two splits, with how many do."""
    pairs = np.unique(np.stack([cluster, np.unique(split, return_inverse=True)[1]]), axis=1)
    ids, splits = np.unique(pairs[0], return_counts=True)
    shared = ids[splits > 1]
    if not len(shared):
        return
    rows = np.isin(cluster, shared)
    said = listing([s for s in ("train", "calibration", "test") if (rows & (split == s)).any()])
    raise BadInput(
        f"{source}: {len(shared)} of {len(ids)} clusters (rows of equal text, or of an equal cluster column) lie in more than one "
        f"of the given splits {said}, {int(rows.sum())} rows in all, so what is held out was seen before. Drop them from all "
        "splits but one, leave the split column out to have the rows split here, or allow it with `--allow-leak` "
        "(`allow_leak=True` in Python)."
    )
