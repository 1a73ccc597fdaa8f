"""The split of each example: as its source says, or at random by a seed, stratified, with each cluster in one split."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from trueup.corpus.corpus import SPLITS
from trueup.corpus.table import Table
from trueup.corpus.values import absent, plain
from trueup.errors import BadInput, listing

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("calibration", "calib", "cal", "validation", "valid", "val", "dev", "development"), "calibration"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Names in a split column or of a hub split, in lower case -> the split."""
TEST_NAMES = frozenset(k for k, v in SPLIT_NAMES.items() if v == "test")


FRACTIONS = (0.6, 0.2, 0.2)
"""Usual shares of train, calibration and test."""
POOL_FRACTIONS = (0.4, 0.3, 0.3)
"""The shares where `train` is the pool of demonstrations; queries come from the other two splits."""


def split_rows(
    keys: Sequence[Any], label: np.ndarray, *, seed: int, fractions: Sequence[float] = FRACTIONS,
    names: Sequence[str] = SPLITS,
) -> np.ndarray:  # fmt: skip
    """(n,) of `names`, which are some of `SPLITS`: stratified by `label`, and random by `seed`. Rows with equal keys share a split.

    Keys must be sortable. The draw depends only on them, and not on the order of the rows or the names of the classes.

    Where no key repeats, each split has its fraction of each class to within one row. A class with at least as many keys as there
    are splits is in all of them; a smaller one is in train first and in test next.
    """
    return _assign(keys, label, names, fractions, seed)


def stratified_subset(stratum: np.ndarray, size: int, seed: int, key: Sequence[Any] | None = None) -> np.ndarray:
    """Sorted indices of `size` random rows, in which each stratum has its share to within one row.

    With a `key` for each row, the draw depends only on the keys, and not on the order of the rows or the names of the strata.
    """
    place = np.unique(stratum, return_inverse=True)[1]
    order = np.arange(len(place)) if key is None else np.array(sorted(range(len(place)), key=key.__getitem__))
    order = order[np.random.default_rng(np.random.SeedSequence([seed, 1])).permutation(len(order))]
    # Strata are in the order of their first row drawn, which decides which of two equally large ones gets an odd row.
    members = [order[place[order] == s] for s in dict.fromkeys(place[order].tolist())]
    quota = _apportion(min(size, len(order)), np.array([len(m) for m in members]))
    return np.sort(np.concatenate([m[:q] for m, q in zip(members, quota, strict=True)]))


def named_split(table: Table, column: str) -> np.ndarray:
    """(n,) of `SPLITS`, from a column that holds names of `SPLIT_NAMES`.

    Raises:
        BadInput: a name is not one of them, or no row is held out.
    """
    values = ["" if absent(v) else plain(v).strip() for v in table.columns[column]]
    unknown = [i for i, v in enumerate(values) if v.lower() not in SPLIT_NAMES]
    if unknown:
        unknown_names = sorted({values[i] or "(empty)" for i in unknown})
        raise BadInput(
            f"{table.source}, column '{column}': no split is called {listing(unknown_names, 5)} ({table.where(unknown, 3)}). "
            "Use train, calibration (or validation, dev) and test, or leave the split column out to have the rows "
            "split here."
        )
    parts = np.array([SPLIT_NAMES[v.lower()] for v in values], dtype="U11")
    if set(parts) == {"train"}:
        raise BadInput(
            f"{table.source}, column '{column}': every row says '{values[0]}', and a test needs rows that are held out. Name "
            "some test, or leave the split column out to have the rows split here."
        )
    return parts


def complete(
    parts: np.ndarray, keys: Sequence[Any], label: np.ndarray, seed: int, fractions: Sequence[float]
) -> np.ndarray:
    """Named splits. If only one of the two held-out splits is named, its rows are divided into calibration and test."""
    held_out = [s for s in ("calibration", "test") if (parts == s).any()]
    if len(held_out) != 1:
        return parts
    rows = np.flatnonzero(parts == held_out[0]).tolist()
    parts = parts.copy()
    parts[rows] = _assign([keys[i] for i in rows], label[rows], ("calibration", "test"), fractions[1:], seed)
    return parts


def check_split(
    parts: np.ndarray, label: np.ndarray | None, cluster: np.ndarray, table: Table, names: Sequence[str] = SPLITS
) -> None:
    """Raises BadInput unless at least two classes are in all splits of `names`; without labels, unless all splits have rows."""
    number = {2: "two", 3: "three"}[len(names)]
    if label is None:
        if len(set(parts)) < len(names):
            n = len(np.unique(cluster))
            raise BadInput(
                f"{table.source} has {n} different text{'s' * (n != 1)}, too few for {number} splits; {len(names)} is the least. "
                "Give more rows, or a larger limit."
            )
        return
    classes_in_all = [c for c in np.unique(label) if len(set(parts[label == c])) == len(names)]
    if len(classes_in_all) < 2:
        counts = [0, *sorted(len(np.unique(cluster[label == c])) for c in np.unique(label))]
        if counts[-2] >= len(names):  # clusters that hold several classes, each of which goes to one split whole
            raise BadInput(
                f"{table.source} has too few clusters for {number} splits: its {len(label)} rows are {len(np.unique(cluster))} "
                "(rows of equal text, or of an equal cluster column, are one), and no two classes are in every split. "
                "Give rows of more clusters, or name a cluster column of more values."
            )
        raise BadInput(
            f"{table.source} has too few rows for {number} splits ({len(label)} rows, and {counts[-2]} different texts or "
            f"clusters in the second largest class; {len(names)} is the least). Give more rows, or a larger limit."
        )


def _assign(
    keys: Sequence[Any], label: np.ndarray, names: Sequence[str], fractions: Sequence[float], seed: int
) -> np.ndarray:
    rows: dict[Any, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        rows[key].append(i)
    # A group of equal texts counts for its most frequent class; in a tie, for the class with more rows overall.
    total = Counter(label.tolist())
    by_class: dict[int, list[list[int]]] = defaultdict(list)
    sorted_keys = sorted(rows)
    for place in np.random.default_rng(np.random.SeedSequence([seed, 0])).permutation(len(sorted_keys)):
        group = rows[sorted_keys[place]]
        labels_in_group = Counter(int(label[i]) for i in group)
        by_class[min(labels_in_group, key=lambda c: (-labels_in_group[c], -total[c], c))].append(group)
    part = np.empty(len(keys), dtype="U11")
    for groups in by_class.values():
        groups.sort(key=len, reverse=True)  # stable; large groups first, so that small ones can balance them
        sizes = [len(g) for g in groups]
        rows_left = _apportion(sum(sizes), np.asarray(fractions))
        empty = set(range(len(names))) if len(groups) >= len(names) else set()
        for n, group in enumerate(groups):
            allowed = sorted(empty) if len(groups) - n <= len(empty) else range(len(names))
            chosen = max(allowed, key=lambda j: (rows_left[j], j in empty, -j))
            rows_left[chosen] -= len(group)
            empty.discard(chosen)
            part[group] = names[chosen]
    return part


def _apportion(total: int, weights: np.ndarray) -> np.ndarray:
    """Whole shares of `total` in proportion to `weights`, by largest remainder."""
    exact = total * weights / weights.sum()
    share = np.floor(exact + 1e-9).astype(int)
    for i in np.argsort(share - exact, kind="stable")[: total - share.sum()]:
        share[i] += 1
    return share
