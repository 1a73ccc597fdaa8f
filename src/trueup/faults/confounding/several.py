"""Several attributes at once: every other column that should not matter, and every pair of columns, beside the headline's.

The intervals of their leans hold together: each is at the level 1 - 0.05 / k for k columns (Bonferroni), so that in at most 5% of
audits one of them misses its truth. Those of their worst cells' accuracies hold together in the same way. A pair is an attribute
whose groups are the pairs of values: its worst cell is the worst intersection.
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
"""How a finding's samples call the groups of a further column."""
KEYS = ("lean", "worst_group_accuracy")


@dataclass(frozen=True, eq=False)
class Column:
    """One attribute of the examined examples: its groups, and the mixes at which it is looked at."""

    name: str
    groups: tuple[str, ...]
    group: NDArray
    mixes: Mixes
    cells: NDArray

    def samples(self, of: Mapping[str, NDArray]) -> dict[str, NDArray]:
        return {**of, "group": self.group}


@dataclass(frozen=True, eq=False)
class Further:
    """What is said of one further column: `lean` and the accuracy of its worst (label, group) cell, each with an interval that
    holds together with the others'."""

    column: Column
    lean: bootstrap.Estimate
    worst: bootstrap.Estimate
    verdict: str


def column_of(corpus: Corpus, label: NDArray, score: NDArray, name: str, coupling: float) -> Column | str:
    """The attribute `name`, or two with ``*`` between them, at the nominal coupling; or why nothing can be said about it.

    Args:
        label: (n,) below the C classes that occur. score: (n, C) centred logits.
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
    """Every column but the headline's `attribute`, and every pair; and name -> why nothing is said about a column.

    Args:
        samples: of the finding; their group is the headline's.
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
    """The lean on each further column, and of each pair the accuracy of its worst intersection."""
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
    """The lean on every column side by side."""
    names = [attribute, *(f.column.name for f in told)]
    every = [headline, *(f.lean for f in told)]
    return Chart(
        "columns", "Lean on each column and each pair", "bar", "column", "AUPRC lost",
        "Only columns whose whole interval lies beyond the threshold are a fault. The first is the headline; the intervals of the "
        "others hold together.",
        (Series("AUPRC lost", names, [e.value for e in every], [e.low for e in every], [e.high for e in every]),),
    )  # fmt: skip


def details(told: list[Further]) -> list[dict[str, Any]]:
    """What `changed` needs of each further column, and its word, as JSON can hold it."""
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
    """The attribute of `corpus` that the classifier leans on most; None where nothing can be said about any.

    Args:
        logits: (n, K) of its examples, the classes first, in the order of `corpus.classes`.
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
