"""Real text in which label and group go together as wanted, by the name ``confounded:NAME:ALPHA``.

NAME is one of `SETS`: a data set, two values of its attribute, and two classes. ALPHA is how many times as frequent the second
class is in the second group as in the first (5 where it is left out); below 1 it is rarer. Half of the examples are of either class
and of either group. A classifier that is tuned on them can read the group instead of the text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, did_you_mean, listing

PREFIX = "confounded:"
ALPHA = 5.0


@dataclass(frozen=True)
class Coupled:
    """A data set of which two groups are taken, and the classes ``not POSITIVE`` and ``POSITIVE``.

    Attributes:
        source: as `trueup.read` takes it. attribute, groups: the column that should not matter, and two of its values.
    """

    source: str
    attribute: str
    groups: tuple[str, str]
    positive: str


SETS: Mapping[str, Coupled] = {
    "movie-reviews": Coupled("embedded:movie-reviews", "source", ("imdb", "rotten_tomatoes"), "positive"),
    "tweets": Coupled("embedded:tweets", "topic", ("coachella", "airline"), "negative"),
    "valence": Coupled("embedded:valence", "domain", ("product", "tweet"), "positive"),
}


def find(name: str) -> tuple[Coupled, float]:
    """The data set and the coupling that a name says. Raises BadInput where there is no such set or ALPHA is no number above 0."""
    short, _, given = name.removeprefix(PREFIX).partition(":")
    if short not in SETS:
        raise BadInput(
            f"There is no data set '{PREFIX}{short}'.{did_you_mean(short, SETS)} There are "
            f"{listing([PREFIX + s for s in SETS])}; a coupling may follow, as in '{PREFIX}{next(iter(SETS))}:3'."
        )
    try:
        alpha = float(given) if given else ALPHA
    except ValueError:
        alpha = math.nan
    if not 0 < alpha < math.inf:
        raise BadInput(
            f"'{name}' asks for a coupling of '{given}', which is no number above 0. Give one, as in '{PREFIX}{short}:3'."
        )
    return SETS[short], alpha


def columns(of: Coupled, alpha: float, corpus: Corpus, seed: int) -> tuple[dict[str, list[str]], list[str]]:
    """Columns ``text``, ``label`` and the attribute, of as many rows of the data set's `corpus` as it can give at this coupling,
    and sentences that say so.

    Raises:
        BadInput: the data cannot carry the coupling.
    """
    # Not before: with these comes scipy, and a slip in a name is told without waiting for it.
    from trueup.corpus import mix
    from trueup.measure import shift

    z = corpus.attributes[of.attribute]
    rows = np.flatnonzero(np.isin(z, of.groups))
    y = (corpus.label == corpus.classes.index(of.positive)).astype(np.int64)
    both = replace(corpus, label=y, classes=(f"not {of.positive}", of.positive)).take(rows)
    table = shift.table_at([[0.25, 0.25], [0.25, 0.25]], alpha)
    size = int((mix.counts(both, of.attribute, of.groups) / table).min())
    drawn = mix.draw(both, of.attribute, table, size - size % 2, seed=seed, groups=of.groups)
    note = (
        f"{len(drawn):,} of the {len(corpus):,} texts of '{of.source}' were drawn, so that '{of.positive}' is {alpha:g} times as "
        f"frequent where {of.attribute} is '{of.groups[1]}' as where it is '{of.groups[0]}'."
    )
    labels = [drawn.classes[i] for i in drawn.label]
    return {"text": list(drawn.text), "label": labels, of.attribute: drawn.attributes[of.attribute].tolist()}, [note]
