"""The clusters of a whole corpus: an order that does not depend on how rows were shuffled, and which rows leak or repeat.

`trueup.corpus.row_clusters` says which rows belong together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trueup.corpus.corpus import Corpus
from trueup.corpus.row_clusters import Ids, same_key


def in_order(corpus: Corpus) -> tuple[Corpus, NDArray[np.intp]]:
    """The rows in an order that their contents settle, and where in it each row of `corpus` stands.

    What picks rows by their place, or adds them up one after the other, does the same on every shuffling of them. Rows that
    are alike in all that is said of them change places unnoticed.
    """
    columns = [_ranks(corpus.text), *([] if corpus.second is None else [_ranks(corpus.second)]), corpus.label]
    columns += [np.unique(corpus.attributes[k], return_inverse=True)[1] for k in sorted(corpus.attributes)]
    columns += [] if corpus.labels is None else list(corpus.labels.T)
    order = np.lexsort([*reversed(columns), corpus.cluster])
    return corpus.take(order), np.argsort(order)


def _ranks(texts: Sequence[str]) -> Ids:
    """(n,) the place of each among the different ones. An array of them would give each the room of the longest."""
    place = {t: i for i, t in enumerate(sorted(set(texts)))}
    return np.array([place[t] for t in texts])


def leaked(corpus: Corpus) -> NDArray[np.bool_]:
    """(n,) bool: test examples whose cluster also occurs in train or calibration (only given splits can have any)."""
    test = corpus.split == "test"
    return test & np.isin(corpus.cluster, corpus.cluster[~test])


def repeated(corpus: Corpus) -> str | None:
    """How many rows say nothing of their own, as a sentence for a note; None where every row is a cluster."""
    n, independent = len(corpus), len(np.unique(corpus.cluster))
    if n == independent:
        return None
    texts = len(set(same_key(corpus.text, corpus.second)))
    same = f"{n - texts:,} repeat the text of another" if texts < n else ""
    rest = f"{texts - independent:,} more share a cluster with another" if independent < texts else ""
    return (
        f"The {n:,} rows of '{corpus.name}' are {independent:,} independent clusters: "
        f"{' and '.join(s for s in (same, rest) if s)}. Splits and intervals go by clusters."
    )
