"""The lean: AUPRC that a classifier loses because it relies on a group. It is the drop under a reversed coupling, less a floor.

The examples of a group can be hard to classify. A group can also have a head start: its scores are shifted as a whole, at every
label. Both make AUPRC fall when the coupling of label and group is reversed, and only the head start is reliance on the group.
With s the scores, T the table of a coupling and T' the reversed one (equal margins):

    drop(s) = AUPRC(s; T) - AUPRC(s; T')          macro over classes, by weights (`shift.auprc_at`)
    floor   = drop(s - m_z)                       m_z the mean score of group z, labels counted equally
    lean    = drop - floor

The lean is 0 for a classifier whose scores at a given label have the same mean in each group, however hard the groups are. Its
sign is that of the coupling that the classifier follows. Renaming or swapping classes or groups, or adding one constant to all
scores of an example, changes nothing except the sign that goes with swapped names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trueup.errors import BadInput
from trueup.measure._rows import Floats

NOMINAL = 3.0
"""The coupling at which a lean is reported: with even margins each class is this many times as frequent in its group."""
ROUNDS = 500
"""The most rounds of proportional fitting. Couplings of `NOMINAL` take about ten."""


def centred(logits: ArrayLike) -> Floats:
    """(n, C) logits less the mean of their row, so that a constant common to a row has no effect."""
    z = np.asarray(logits, np.float64)
    return z - z.mean(axis=1, keepdims=True)


def margins(score: Floats) -> Floats:
    """(n, C): the log odds of each class against the rest. They rank as its probability does and never saturate."""
    if score.shape[1] == 2:
        return np.stack([score[:, 0] - score[:, 1], score[:, 1] - score[:, 0]], axis=1)
    # The exponentials are scaled by the largest score. The rest of the largest itself is scaled by the second largest.
    rows, top = np.arange(len(score)), score.argmax(axis=1)
    largest = score[rows, top]
    share = np.exp(score - largest[:, None])
    without_top = score.copy()
    without_top[rows, top] = -np.inf
    second = without_top.max(axis=1)
    with np.errstate(divide="ignore"):
        log_rest = largest[:, None] + np.log(share.sum(axis=1, keepdims=True) - share)
    log_rest[rows, top] = second + np.log(np.exp(without_top - second[:, None]).sum(axis=1))
    return score - log_rest


def along(direction: ArrayLike, strength: float = NOMINAL) -> Floats:
    """(C, G) the logs of a coupling along `direction` (C, G): its interaction, scaled to a largest size of log(strength) / 2.

    So no odds ratio is beyond strength ** 2, which is that of a 2 x 2 table of even margins in which each class is
    `strength` times as frequent in its group as in the other. The interaction is what is left when the means of rows and
    columns are subtracted (:func:`interaction`).

    Raises: BadInput on a strength of 1 or less, or a direction without interaction.
    """
    if not 1 < strength < math.inf:
        raise BadInput(f"strength is {strength}; give a ratio above 1, such as {NOMINAL:g}.")
    d = interaction(direction)
    if not (largest := np.abs(d).max()):
        raise BadInput(
            "The direction holds nothing beyond its rows and columns; give one in which labels and groups go together."
        )
    return d / largest * math.log(strength) / 2


def head_starts(score: Floats, label: NDArray, group: NDArray, shape: tuple[int, int]) -> Floats:
    """m_z, (C, G): the mean score of each class in each group, averaged over labels with equal weight.

    A label that some group lacks is left out for all groups; nan where no label is left.
    """
    classes, groups = shape
    cell = label * groups + group
    mass = np.bincount(cell, minlength=classes * groups).reshape(shape)
    sums = np.stack([np.bincount(cell, s, classes * groups).reshape(shape) for s in score.T])
    whole = (mass > 0).all(axis=1)
    return (sums[:, whole] / mass[whole]).mean(axis=1) if whole.any() else np.full(shape, math.nan)


def interaction(logs: ArrayLike) -> Floats:
    """The interaction in a table of logs (C, G): what is left when the means of rows and columns are subtracted."""
    d = np.asarray(logs, np.float64)
    return d - d.mean(axis=0) - d.mean(axis=1, keepdims=True) + d.mean()


def drop_and_floor(
    score: Floats, label: NDArray, group: NDArray, coupling: Floats, *, weight: NDArray | None = None
) -> Floats:
    """Drop and floor (equations above) of centred scores (n, C) when a coupling is reversed; the lean is their difference.

    The margins of the tables are those of the weighted rows, so that they vary between resamples as everything else does.

    Args:
        label, group: (n,) numbers below C and below G.
        coupling: (C, G) the logs of the cells, less the means of rows and columns (:func:`along`).
        weight: (n,) how often each row counts, or (B, n) for B resamples, which are computed at once.

    Returns: (2,), or (2, B); nan where a (label, group) cell is empty.
    Unit: average precision, -1 to 1. Nearer to 0 is better.
    """
    classes, groups = coupling.shape
    w = np.ones((1, len(label))) if weight is None else np.atleast_2d(np.asarray(weight, np.float64))
    if classes == 2:
        # A head start shifts a whole group. If each group is sorted beforehand, the sort of a resample is only a merge.
        order = np.lexsort((score[:, 0] - score[:, 1], group))
        score, label, group, w = score[order], label[order], group[order], w[:, order]
    cell = label * groups + group
    onto = np.eye(classes * groups)[cell]
    mass = w @ onto
    sums = np.stack([w @ (onto * s[:, None]) for s in score.T], axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        start = (sums / mass[:, :, None]).reshape(len(w), classes, groups, classes).mean(axis=1)
        ratios = [x.reshape(mass.shape) / mass for x in _turned(mass.reshape(-1, classes, groups), coupling)]
    whole: NDArray[np.bool_] = np.all(mass > 0, axis=1)
    ratios = [np.where(whole[:, None], r, 1.0) for r in ratios]
    start = np.where(whole[:, None, None], start, 0.0)
    found = np.zeros((2, len(w)))
    if classes == 2:  # scores are linear, and one class has the reversed ranking of the other
        score_gap, start_gap = score[:, 1] - score[:, 0], (start[:, :, 1] - start[:, :, 0])[:, group]
        ranks = [[score_gap], [score_gap - start_gap]]
    else:
        moved = margins((score - start[:, group]).reshape(-1, classes)).reshape(len(w), -1, classes)
        ranks = [list(margins(score).T), list(np.moveaxis(moved, 2, 0))]
    for k, columns in enumerate(ranks):
        for c, rank in enumerate(columns):
            hit = label == (1 if classes == 2 else c)
            for at_coupling, at_reversed in _average_precisions(rank, hit, cell, w, ratios, reversed_too=classes == 2):
                found[k] += (at_coupling - at_reversed) / classes
    found[:, ~whole] = math.nan
    return found if weight is not None and weight.ndim == 2 else found[:, 0]


def auprcs_at(score: Floats, label: NDArray, group: NDArray, tables: Sequence[Floats], *, weight: NDArray) -> Floats:
    """(T + 1, B) AUPRC of centred scores (n, C) for B resamples with weights `weight` (B, n).

    Row i is `shift.auprc_at` at the coupling of label and group in the i-th of T `tables` (C, G). The last row is `shift.auprc`
    at the coupling that the resample has. All come from one sort. nan where fewer than two classes occur.

    Unit: average precision, 0 to 1. Higher is better.
    """
    classes, groups = tables[0].shape
    w = np.asarray(weight, np.float64)
    cell = label * groups + group
    mass = w @ np.eye(classes * groups)[cell]
    ratios = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for t in tables:
            target_mass = np.where(mass > 0, t.ravel(), 0.0)
            ratios.append(np.where(mass > 0, target_mass / target_mass.sum(axis=1, keepdims=True) / mass, 0.0))
    ratios.append(np.ones(mass.shape))
    if classes == 2:  # one class has the reversed ranking of the other
        each = _average_precisions(score[:, 1] - score[:, 0], label == 1, cell, w, ratios, reversed_too=True)
    else:
        ranks = margins(score).T
        each = [
            _average_precisions(rank, label == c, cell, w, ratios, reversed_too=False)[0]
            for c, rank in enumerate(ranks)
        ]
    found = np.array(each)
    defined = np.isfinite(found)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(defined, found, 0.0).sum(axis=0) / defined.sum(axis=0)
    return np.where(defined.sum(axis=0) > 1, mean, np.nan)


def _turned(mass: Floats, coupling: Floats) -> tuple[Floats, Floats]:
    """(B, C, G) twice: tables with the margins of `mass`, at `coupling` and at the reversed one, by proportional fitting."""
    found = []
    for logs in (coupling, -coupling):
        fit = np.broadcast_to(np.exp(logs), mass.shape)
        row, column = mass.sum(axis=2, keepdims=True), mass.sum(axis=1, keepdims=True)
        for _ in range(ROUNDS):
            fit = fit * (row / fit.sum(axis=2, keepdims=True))
            off = column / fit.sum(axis=1, keepdims=True)
            fit = fit * off
            if np.abs(off - 1).max(initial=0, where=np.isfinite(off)) < 1e-10:
                break
        found.append(fit)
    return found[0], found[1]


def _average_precisions(
    rank: Floats, hit: NDArray, cell: NDArray, w: Floats, ratios: Sequence[Floats], *, reversed_too: bool
) -> list[list[Floats]]:
    """Average precisions (B,) for each of `ratios`, under weights w * ratio[cell]. `rank` is one ranking (n,), or one for each
    resample (B, n). With `reversed_too`, a second list holds those of the misses by the reversed ranking, from the same sort.

    Ties count as one step. `hit` says which cells are hits. The mass above each row is summed once for each cell. Under each
    ratio the mass above a row is a weighted sum of these.
    """
    n, cells = w.shape[1], ratios[0].shape[1]
    order = np.argsort(-rank, axis=-1, kind="stable")
    ranked, cell_of = np.take_along_axis(rank, order, -1), cell[order]
    drawn = w[:, order] if rank.ndim == 1 else np.take_along_axis(w, order, 1)
    each = drawn[:, None] * (cell_of[..., None, :] == np.arange(cells)[:, None])
    above = np.zeros((len(w), cells, n + 1))
    np.cumsum(each, axis=2, out=above[:, :, 1:])
    first = last = np.arange(n)
    tied = ranked[..., 1:] == ranked[..., :-1]
    if tied.any():
        edge = np.zeros((*tied.shape[:-1], 1), bool)
        first = np.maximum.accumulate(np.where(np.concatenate([edge, tied], axis=-1), 0, first), axis=-1)
        last = np.where(np.concatenate([tied, edge], axis=-1), n, last)
        last = np.minimum.accumulate(last[..., ::-1], axis=-1)[..., ::-1]
    hits = np.zeros(cells, bool)
    hits[cell[hit]] = True
    weights = np.stack(ratios, axis=1)

    def precisions(wanted: NDArray[np.bool_], until: NDArray, less: Floats | None) -> list[Floats]:
        of_rows = each
        if rank.ndim == 1:  # the rows of the wanted cells are the same in every resample
            rows = np.flatnonzero(wanted[cell_of])
            of_rows, until = each[:, :, rows], until[rows]
        up_to = above[:, :, until] if until.ndim == 1 else np.take_along_axis(above, until[:, None], 2)
        up_to = up_to if less is None else less - up_to
        good = weights * wanted
        with np.errstate(invalid="ignore", divide="ignore"):
            # Where no mass lies above, the precision is 0 / 1e-300 = 0.
            precision = (good @ up_to) / np.maximum(weights @ up_to, 1e-300)
            gained = ((precision @ of_rows.transpose(0, 2, 1)) * good).sum(axis=2)
            return list((gained / (good @ of_rows.sum(axis=2)[:, :, None])[:, :, 0]).T)

    found = [precisions(hits, last + 1, None)]
    if reversed_too:
        found.append(precisions(~hits, first, above[:, :, -1:]))
    return found
