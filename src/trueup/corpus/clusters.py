"""The clusters of a whole corpus: an order that does not depend on how rows were shuffled, and which rows leak or repeat.

`trueup.corpus.row_clusters` decides which rows belong to one cluster.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trueup.corpus.corpus import Corpus
from trueup.corpus.row_clusters import Ids, same_key


def in_order(corpus: Corpus) -> tuple[Corpus, NDArray[np.intp]]:
    """The rows in an order that depends only on their contents, and the position of each row of `corpus` in it.

    So code that picks rows by position, or adds them up in order, gives the same result for every shuffling of the rows. Rows
    with equal contents may change places, which makes no difference.
    """
    columns = [_ranks(corpus.text), *([] if corpus.second is None else [_ranks(corpus.second)]), corpus.label]
    columns += [np.unique(corpus.attributes[k], return_inverse=True)[1] for k in sorted(corpus.attributes)]
    columns += [] if corpus.labels is None else list(corpus.labels.T)
    order = np.lexsort([*reversed(columns), corpus.cluster])
    return corpus.take(order), np.argsort(order)


def _ranks(texts: Sequence[str]) -> Ids:
    """(n,) the rank of each text among the distinct ones. An array of texts would use the memory of the longest for each."""
    place = {t: i for i, t in enumerate(sorted(set(texts)))}
    return np.array([place[t] for t in texts])


def leaked(corpus: Corpus) -> NDArray[np.bool_]:
    """(n,) bool: test examples whose cluster also occurs in train or calibration (only given splits can have any)."""
    test = corpus.split == "test"
    return test & np.isin(corpus.cluster, corpus.cluster[~test])


def repeated(corpus: Corpus) -> str | None:
    """A sentence for a note on how many rows are not independent; None where every row is its own cluster."""
    n, independent = len(corpus), len(np.unique(corpus.cluster))
    if n == independent:
        return None
    texts = len(set(same_key(corpus.text, corpus.second)))
    repeats_sentence = f"{n - texts:,} repeat the text of another" if texts < n else ""
    shared_sentence = f"{texts - independent:,} more share a cluster with another" if independent < texts else ""
    return (
        f"The {n:,} rows of '{corpus.name}' are {independent:,} independent clusters: "
        f"{' and '.join(s for s in (repeats_sentence, shared_sentence) if s)}. Splits and intervals go by clusters."
    )
