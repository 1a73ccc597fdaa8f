"""Where the attribute can be read inside a model, layer by layer: a linear probe, and the distance between the groups' states.

An attribute that is present need not be used: a model may hold it without basing its answer on it. HyPA claims that after its
repair the confounder is less used, or suppressed. These numbers test the claim by paired differences before and after.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from trueup.faults.fault import Chart, Difference, Series
from trueup.measure import gaps, lean
from trueup.measure.accuracy import independent_rows, one_more_each_way
from trueup.measure.bootstrap import FEWEST, Estimate
from trueup.measure.divergence import REFITTED, probed, projected, sliced_wasserstein

PARTS = 20
"""The number of parts that the clusters are divided into. Each is left out once, which gives the standard errors (`jackknife`)."""


@dataclass(frozen=True, eq=False)
class Inside:
    """What the states of L layers (0: the embeddings) show of the groups, on n examples.

    Attributes:
        hit: (n, L) whether a probe of the layer predicted the row's group correctly; nan for rows outside the balanced set.
        distance: (1 + PARTS, L) sliced Wasserstein distance of the groups' states at a given label, in standard deviations. It is
            measured on held-out rows, so that it is 0 by chance. Row 0 is of all clusters; each other row leaves one part out.
    """

    hit: NDArray
    distance: NDArray


def inside(states: NDArray, label: NDArray, group: NDArray, cluster: NDArray, judges: NDArray, seed: int) -> Inside:
    """Probe and distance of every layer of `states` (n, L, d). `judges` (n,): the rows on which the distance is measured."""
    n, layers = states.shape[:2]
    hit, distance = np.full((n, layers), np.nan), np.empty((1 + PARTS, layers))
    for k in range(layers):
        rows, hits = probed(states[:, k], group, label, seed=seed, cluster=cluster)
        hit[rows, k] = hits
        distance[:, k] = apart(states[:, k], label, group, cluster, judges, seed)
    return Inside(hit, distance)


def apart(x: NDArray, label: NDArray, group: NDArray, cluster: NDArray, judges: NDArray, seed: int) -> NDArray:
    """(1 + PARTS,) the distance of one layer's states (n, d), the mean over labels and pairs of groups.

    The first value is of all clusters; each other value leaves one of `PARTS` parts out. The separating function is learnt on a
    third of the rows, so the distance can be too small, but in the same way before and after a repair.
    """
    at = projected((x - x.mean(axis=0)) / (x.std(axis=0).mean() + 1e-9), seed=seed)
    part = _parts(cluster, seed)

    def far(kept: NDArray) -> float:
        found = []
        for y in np.unique(label):
            for z, other in itertools.combinations(np.unique(group).tolist(), 2):
                rows = np.flatnonzero(kept & (label == y) & ((group == z) | (group == other)))
                found.append(sliced_wasserstein(at[rows], group[rows] == z, judges[rows]))
        return float(np.nanmean(found)) if np.isfinite(found).any() else math.nan

    return np.array([far(part != k) for k in range(-1, PARTS)])


def jackknife(values: NDArray) -> list[Difference]:
    """Each column of `values` (1 + PARTS, L) with its 95% interval, by the delete-a-group jackknife (Kott 2001).

    Row 0 is a statistic on all clusters; each other row leaves one part of them out. The interval covers the variance of what is
    learnt as well as of the rows that it is tested on. In 150 simulated worlds in which nothing changed, paired intervals of the
    distance contained 0 in 98 to 100% of cases, at 200 and 800 examples.
    """
    every, without = values[0], values[1:]
    error = np.sqrt((PARTS - 1) / PARTS * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    return [_interval(v, s, PARTS - 1) for v, s in zip(every, error, strict=True)]


def told(hit: NDArray, cluster: NDArray) -> list[Estimate]:
    """The balanced accuracy of the probe for each layer, from its hits (n, L) (`Inside.hit`)."""
    return [gaps.share(np.nan_to_num(h) > 0, np.isfinite(h), cluster, variance=REFITTED) for h in hit.T]


def moved_probe(before: NDArray, after: NDArray, cluster: NDArray, same: NDArray) -> list[Difference]:
    """The paired difference of the probe's balanced accuracy for each layer, after minus before, from its hits (n, L).

    Where few clusters change, these rows are a poor estimate of how many others would. The standard error is then at least that of
    one more cluster changing in each direction (`accuracy.share_difference`).

    Args:
        same: (L,) whether the layer's states are equal before and after, so that the difference is certainly 0.
    """
    rows = np.isfinite(before).all(axis=1) & np.isfinite(after).all(axis=1)
    d = after[rows] - before[rows]
    mean = d.mean(axis=0)
    errors = spread((d - mean) / len(d), cluster[rows])
    ids = np.unique(cluster[rows], return_inverse=True)[1]
    n = independent_rows(np.bincount(ids))
    for k, moved in enumerate(d.T):
        if not same[k] and (np.bincount(ids, moved != 0) > 0).sum() < FEWEST:
            errors[k] = max(errors[k], one_more_each_way(float(mean[k]), float((moved**2).mean()), n)[1])
    errors *= math.sqrt(REFITTED)
    return [_interval(m, s, math.inf) for m, s in zip(mean, errors, strict=True)]


def _interval(value: float, error: float, freedom: float) -> Difference:
    """The 95% interval and p-value by Student's t with `freedom` degrees of freedom; infinite ones give the normal."""
    errors = float(t.ppf(0.975, freedom))
    p = float(2 * t.sf(abs(value) / error, freedom)) if error > 0 else float(value == 0)
    return Difference(float(value), float(value - errors * error), float(value + errors * error), p)


def spread(parts: NDArray, cluster: NDArray) -> NDArray:
    """(L,) standard error of the sum over the rows of `parts` (n, L). Rows of one cluster are drawn together."""
    ids = np.unique(cluster, return_inverse=True)[1]
    sums = np.stack([np.bincount(ids, column) for column in parts.T], axis=1)
    return np.sqrt((sums**2).sum(axis=0))


def _series(name: str, found: Sequence[Difference] | Sequence[Estimate]) -> Series:
    """A series with one point for each layer."""
    depth = list(range(len(found)))
    return Series(name, depth, [d.value for d in found], [d.low for d in found], [d.high for d in found])


def charts(attribute: str, found: Inside, chance: float, cluster: NDArray) -> tuple[Chart, ...]:
    """Charts of probe and distance by layer, with intervals. `chance`: a probe's balanced accuracy for randomly assigned groups."""
    shares = told(found.hit, cluster)
    return (
        Chart(
            "presence", f"Where '{attribute}' can be read inside", "line", "layer (0: embeddings)", "balanced accuracy",
            "A linear probe on examples balanced over label and group. Present is not used: see the use of the attribute.",
            (_series("probe", shares),
             Series("chance (permuted)", list(range(len(shares))), [chance] * len(shares))),
        ),
        Chart(
            "distance", f"How far apart the groups of '{attribute}' lie inside", "line", "layer (0: embeddings)",
            "standard deviations, 0 by chance",
            "Sliced Wasserstein distance of the groups' states at a given label, on examples that it was not learnt on.",
            (_series("distance", jackknife(found.distance)),),
        ),
    )  # fmt: skip


def charts_of_change(probe: Sequence[Difference], distance: Sequence[Difference]) -> tuple[Chart, ...]:
    """Charts of what a repair changed in each layer."""

    def chart(key: str, title: str, unit: str, found: Sequence[Difference]) -> Chart:
        return Chart(
            key, title, "line", "layer (0: embeddings)", unit,
            "After minus before, in pairs, with its 95% interval. It is less present where the whole interval lies below 0.",
            (_series("change", found),),
        )  # fmt: skip

    return (
        chart("presence_change", "What the repair changed inside: the probe", "balanced accuracy", probe),
        chart("distance_change", "What the repair changed inside: the distance", "standard deviations", distance),
    )


@dataclass(frozen=True, eq=False)
class Rows:
    """Values `of` (n, ...) for n examples, with the examples' label, group and cluster (n,)."""

    of: NDArray
    label: NDArray
    group: NDArray
    cluster: NDArray


def used(gradients: Rows, states: Rows, seed: int) -> NDArray:
    """(1 + PARTS, L), in logits: how far each layer carries the attribute into the answer, on all clusters and without each part.

    It is a derivative of the answer, averaged over examples with equal weight for each label. The direction is the one that
    separates the groups at the example's label: each group's mean state minus the mean of these. For two groups and two classes,
    and a state that is read linearly, the value is the head start of one group.

    Args:
        gradients: (n, G, L, d): for each group, the gradient of what counts as leaning in it (`toward`).
        states: (m, L, d) of other examples.
    """
    parted = _parts(np.concatenate([gradients.cluster, states.cluster]), seed)
    of_gradients, of_states = parted[: len(gradients.label)], parted[len(gradients.label) :]

    def carried(k: int) -> NDArray:
        other_gradients, other_states = of_gradients != k, of_states != k
        found = []
        for y in np.unique(gradients.label):
            mean = gradients.of[other_gradients & (gradients.label == y)].mean(axis=0)
            means = np.stack(
                [
                    states.of[other_states & (states.label == y) & (states.group == z)].mean(axis=0)
                    for z in range(len(mean))
                ]
            )
            found.append(np.einsum("gld,gld->l", mean, means - means.mean(axis=0)))
        return np.mean(found, axis=0)

    return np.stack([carried(k) for k in range(-1, PARTS)])


def _parts(cluster: NDArray, seed: int) -> NDArray:
    """(n,) the part of the clusters that each row is in, 0 to `PARTS` - 1."""
    ids = np.unique(cluster, return_inverse=True)[1]
    rng = np.random.default_rng(np.random.SeedSequence([seed, 9]))
    return (rng.permutation(int(ids.max()) + 1) % PARTS)[ids]


def toward(starts: NDArray) -> NDArray:
    """(G, C) weights of the class logits that define leaning in each group: the pattern of the head starts (C, G).

    The mean absolute entry is 1. For two classes and two groups this is the lead of the favoured class over the other, so that
    `used` is in logits of that lead.
    """
    pattern = lean.interaction(starts)
    return (pattern / max(np.abs(pattern).mean(), 1e-300)).T


def chart_of_use(before: Sequence[Difference], after: Sequence[Difference]) -> Chart:
    """Chart of the use of the attribute by layer, before and after the repair."""
    return Chart(
        "use_by_layer", "From which layers the attribute reaches the answer", "line", "layer (0: embeddings)", "logits",
        "How far the favoured class gains when a layer's states move by what tells the groups apart at a given label: a derivative "
        "(as in TCAV), on calibration examples. At 0 the answer does not follow the attribute.",
        (_series("as it was", before), _series("repaired", after)),
    )  # fmt: skip
