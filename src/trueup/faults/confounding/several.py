"""Several attributes at once: every further column that should not matter, and every pair of columns, besides the headline's.

The intervals of their leans are simultaneous: each has the level 1 - 0.05 / k for k columns (Bonferroni), so in at most 5% of
audits any of them misses its true value. The intervals of the accuracies of their worst cells are simultaneous in the same way.
A pair is an attribute whose groups are the pairs of values, so its worst cell is the worst intersection.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trueup.corpus import mix
from trueup.corpus.corpus import Corpus
from trueup.corpus.mix import CROSSED, FEWEST
from trueup.errors import BadInput
from trueup.faults.confounding.mixes import (
    Mixes,
    columns,
    differences,
    folded,
    in_cells,
    measured,
    mixes,
    nominal,
    statistics,
)
from trueup.faults.fault import Chart, Difference, Measure, Series
from trueup.measure import bootstrap, lean

GROUP = "group of "
"""The prefix of the key under which a finding's samples hold the groups of a further column."""
KEYS = ("lean", "worst_group_accuracy")


@dataclass(frozen=True, eq=False)
class Column:
    """One attribute of the examined examples: its groups, and the mixes at which it is examined."""

    name: str
    groups: tuple[str, ...]
    group: NDArray
    mixes: Mixes
    cells: NDArray

    def samples(self, of: Mapping[str, NDArray]) -> dict[str, NDArray]:
        return {**of, "group": self.group}


@dataclass(frozen=True, eq=False)
class Further:
    """The results for one further column: `lean`, and `worst`, the accuracy of its worst (label, group) cell.

    Their intervals are simultaneous with those of the other further columns.
    """

    column: Column
    lean: bootstrap.Estimate
    worst: bootstrap.Estimate
    verdict: str


def column_of(corpus: Corpus, label: NDArray, score: NDArray, name: str, coupling: float) -> Column | str:
    """The attribute `name`, or a pair with ``*`` between the names, at the nominal coupling; or why it cannot be examined.

    Args:
        label: (n,) indices of the C classes that occur. score: (n, C) centred logits.
    """
    try:
        groups = mix.groups_of(corpus, name)
    except BadInput as why:
        return str(why)
    group = mix.group_index(corpus, name, groups)
    shape = (score.shape[1], len(groups))
    counted = in_cells(label, group, corpus.cluster)
    if counted.shape != shape or counted.min() < FEWEST:
        least = 0 if counted.shape != shape else int(counted.min())
        return f"a combination of label and group has {least} independent examples, and {FEWEST} are needed"
    cells = np.bincount(label * shape[1] + group, minlength=shape[0] * shape[1]).reshape(shape)
    direction, strength, _ = nominal(cells, None, coupling)
    starts = lean.head_starts(score, label, group, shape)
    return Column(name, groups, group, mixes(cells, direction if shape == (2, 2) else starts, strength), cells)


def pairs(names: list[str]) -> list[str]:
    """The names of all pairs of columns."""
    return [f"{a}{CROSSED}{b}" for a, b in itertools.combinations(names, 2)]


def others(
    corpus: Corpus,
    samples: Mapping[str, NDArray],
    attribute: str,
    *,
    coupling: float,
    threshold: float,
    resamples: int,
    seed: int,
) -> tuple[list[Further], dict[str, str]]:
    """The results for every pair and every column except the headline's `attribute`; and name -> why one was not examined.

    Args:
        samples: the finding's samples; their group is the headline's.
    """
    names = list(corpus.attributes)
    other_names = [n for n in (*names, *pairs(names)) if n != attribute] if len(names) > 1 else []
    found, refused = [], {}
    for name in other_names:
        one = column_of(corpus, samples["label"], samples["score"], name, coupling)
        if isinstance(one, str):
            refused[name] = one
        else:
            found.append(one)
    further = []
    too_few = bootstrap.too_few(samples["cluster"])
    level = 1 - 0.05 / max(len(found), 1)
    for one in found:
        own_samples = one.samples(samples)
        of = statistics(own_samples, one.mixes)
        estimates = measured(
            {k: of[k] for k in KEYS},
            own_samples,
            one.mixes.coupling.shape,
            seed=seed,
            resamples=max(resamples, math.ceil(4 / (1 - level))),  # two draws beyond each end
            level=level,
        )
        low, high = folded(estimates["lean"])
        word = "undecided" if too_few else "found" if low > threshold else "clear" if high < threshold else "undecided"
        further.append(Further(one, estimates["lean"], estimates["worst_group_accuracy"], word))
    return further, refused


def measures(told: list[Further]) -> dict[str, Measure]:
    """The lean on each further column, and for each pair the accuracy of its worst intersection."""
    found = {}
    for f in told:
        name, e, w = f.column.name, f.lean, f.worst
        found[f"lean on {name}"] = Measure(
            e.value, e.low, e.high, "AUPRC lost, all further columns together at 95%", "zero", f"lean on '{name}'"
        )
        if CROSSED in name:
            found[f"worst of {name}"] = Measure(
                w.value, w.low, w.high, "share of the cell", "higher", f"accuracy of the worst cell of '{name}'"
            )
    return found


def chart(attribute: str, headline: bootstrap.Estimate, told: list[Further]) -> Chart:
    """A chart of the lean on every column."""
    names = [attribute, *(f.column.name for f in told)]
    every = [headline, *(f.lean for f in told)]
    return Chart(
        "columns", "Lean on each column and each pair", "bar", "column", "AUPRC lost",
        "Only columns whose whole interval lies beyond the threshold are a fault. The first is the headline; the intervals of the "
        "others hold together.",
        (Series("AUPRC lost", names, [e.value for e in every], [e.low for e in every], [e.high for e in every]),),
    )  # fmt: skip


def details(told: list[Further]) -> list[dict[str, Any]]:
    """The data of each further column that `changed` needs, and its verdict, as JSON values."""
    return [
        {
            "attribute": f.column.name, "groups": list(f.column.groups), "verdict": f.verdict, "cells": f.column.cells.tolist(),
            "coupling": f.column.mixes.coupling.tolist(), "strength": f.column.mixes.strength,
        }
        for f in told
    ]  # fmt: skip


def changed(
    before: Mapping[str, NDArray], after: Mapping[str, NDArray], was: list[dict[str, Any]], now: list[dict[str, Any]], *,
    resamples: int, seed: int,
) -> dict[str, Difference]:  # fmt: skip
    """Paired differences of the lean on each further column that both audits have, after minus before."""
    then = {d["attribute"]: d for d in was}
    found = {}
    for d in now:
        if (name := d["attribute"]) in then:
            one, other = ({**s, "group": s[GROUP + name]} for s in (before, after))
            m, n = (mixes(np.array(x["cells"]), np.array(x["coupling"]), x["strength"]) for x in (then[name], d))
            difference = differences(one, other, m, n, ("lean",), resamples=resamples, seed=seed)
            found[f"lean on {name}"] = difference["lean"]
    return found


def strongest(corpus: Corpus, logits: NDArray, coupling: float) -> str | None:
    """The attribute of `corpus` that the classifier leans on most; None where none can be examined.

    Args:
        logits: (n, K) of its examples. The columns of the classes come first, in the order of `corpus.classes`.
    """
    present_labels = np.unique(corpus.label)
    label = np.searchsorted(present_labels, corpus.label)
    own_columns = columns(logits[:, : len(corpus.classes)][:, present_labels], label, label)
    found = {}
    for name in corpus.attributes if len(present_labels) > 1 else ():
        one = column_of(corpus, label, own_columns["score"], name, coupling)
        if not isinstance(one, str):
            drop, floor = lean.drop_and_floor(own_columns["score"], label, one.group, one.mixes.coupling)
            found[name] = abs(float(drop - floor))
    return max(found, key=lambda name: found[name]) if found else None
