"""AUPRC that a classifier loses because it leans on a group: the drop under a reversed coupling, less its floor.

A group can be hard to read, or have a head start. Both make AUPRC fall when the coupling of label and group is turned
round, and only the second is leaning. With s the scores, T the table of a coupling and T' the reversed one (equal margins):

    drop(s) = AUPRC(s; T) - AUPRC(s; T')          macro over classes, by weights (`shift.auprc_at`)
    floor   = drop(s - m_z)                       m_z the mean score of group z, labels counted equally
    lean    = drop - floor

lean is 0 for a classifier whose scores have the same mean in each group at a given label, however hard the groups are; its
sign is that of the coupling it goes with. Renaming or swapping classes or groups, and a common constant on all scores of an
example, change nothing but the sign that goes with swapped names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trueup.errors import BadInput
from trueup.measure._rows import Floats

NOMINAL = 3.0
"""The coupling at which a lean is told: with even margins each class is so many times as frequent in its group."""
ROUNDS = 500
"""Of proportional fitting, at most; couplings of `NOMINAL` take some ten."""


def centred(logits: ArrayLike) -> Floats:
    """(n, C) logits less their row's mean: what is left when a common constant is taken out."""
    z = np.asarray(logits, np.float64)
    return z - z.mean(axis=1, keepdims=True)


def margins(score: Floats) -> Floats:
    """(n, C): the log odds of each class against the rest, which rank as its probability does and never saturate."""
    if score.shape[1] == 2:
        return np.stack([score[:, 0] - score[:, 1], score[:, 1] - score[:, 0]], axis=1)
    # Beside the largest score the others add up as they are; the largest's own rest is told from the second.
    rows, top = np.arange(len(score)), score.argmax(axis=1)
    largest = score[rows, top]
    share = np.exp(score - largest[:, None])
    others = score.copy()
    others[rows, top] = -np.inf
    second = others.max(axis=1)
    with np.errstate(divide="ignore"):
        log_others = largest[:, None] + np.log(share.sum(axis=1, keepdims=True) - share)
    log_others[rows, top] = second + np.log(np.exp(others - second[:, None]).sum(axis=1))
    return score - log_others


def along(direction: ArrayLike, strength: float = NOMINAL) -> Floats:
    """(C, G) the logs of a coupling along `direction` (C, G): what it holds beyond rows and columns, its largest log(strength) / 2.

    So no odds ratio is beyond strength ** 2, which is that of a 2 x 2 table of even margins in which each class is
    `strength` times as frequent in its group as in the other.

    Raises: BadInput on a strength of 1 or less, or a direction that says nothing.
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

    Labels that a group lacks are left out for all groups; nan where none is left.
    """
    classes, groups = shape
    cell = label * groups + group
    mass = np.bincount(cell, minlength=classes * groups).reshape(shape)
    sums = np.stack([np.bincount(cell, s, classes * groups).reshape(shape) for s in score.T])
    whole = (mass > 0).all(axis=1)
    return (sums[:, whole] / mass[whole]).mean(axis=1) if whole.any() else np.full(shape, math.nan)


def interaction(logs: ArrayLike) -> Floats:
    """What a table of logs (C, G) holds beyond its rows and columns."""
    d = np.asarray(logs, np.float64)
    return d - d.mean(axis=0) - d.mean(axis=1, keepdims=True) + d.mean()


def drop_and_floor(
    score: Floats, label: NDArray, group: NDArray, coupling: Floats, *, weight: NDArray | None = None
) -> Floats:
    """drop and floor of centred scores (n, C) when a coupling is turned round; the lean is their difference.

    The margins of the tables are those of the (weighted) rows, so that in a resample they vary as all else does.

    Args:
        label, group: (n,) numbers below C and below G.
        coupling: (C, G) the logs of the cells beyond their rows and columns (:func:`along`).
        weight: (n,) how often each row counts, or (B, n) of as many resamples, which are computed at once.

    Returns: (2,), or (2, B); nan where a (label, group) cell is empty.
    Unit: average precision, -1 to 1. Nearer to 0 is better.
    """
    classes, groups = coupling.shape
    w = np.ones((1, len(label))) if weight is None else np.atleast_2d(np.asarray(weight, np.float64))
    if classes == 2:
        # Head starts move groups as they are: of groups that are sorted already, a sort of each resample is a merge.
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
    if classes == 2:  # linear, and a class is ranked as the other reversed
        margin, ahead = score[:, 1] - score[:, 0], (start[:, :, 1] - start[:, :, 0])[:, group]
        ranks = [[margin], [margin - ahead]]
    else:
        moved = margins((score - start[:, group]).reshape(-1, classes)).reshape(len(w), -1, classes)
        ranks = [list(margins(score).T), list(np.moveaxis(moved, 2, 0))]
    for k, columns in enumerate(ranks):
        for c, rank in enumerate(columns):
            hit = label == (1 if classes == 2 else c)
            for precision_towards, precision_against in _average_precisions(
                rank, hit, cell, w, ratios, reversed_too=classes == 2
            ):
                found[k] += (precision_towards - precision_against) / classes
    found[:, ~whole] = math.nan
    return found if weight is not None and weight.ndim == 2 else found[:, 0]


def auprcs_at(score: Floats, label: NDArray, group: NDArray, tables: Sequence[Floats], *, weight: NDArray) -> Floats:
    """AUPRC of centred scores (n, C) where label and group are coupled as in each of `tables` (C, G), and last as they are, under
    `weight` (B, n) of as many resamples: (T + 1, B). It is `shift.auprc_at` of each and `shift.auprc`, from one sort; nan where
    fewer than two classes are left."""
    classes, groups = tables[0].shape
    w = np.asarray(weight, np.float64)
    cell = label * groups + group
    mass = w @ np.eye(classes * groups)[cell]
    ratios = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for t in tables:
            share_wanted = np.where(mass > 0, t.ravel(), 0.0)
            ratios.append(np.where(mass > 0, share_wanted / share_wanted.sum(axis=1, keepdims=True) / mass, 0.0))
    ratios.append(np.ones(mass.shape))
    if classes == 2:  # a class is ranked as the other reversed
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
    """(B, C, G) twice: tables with the margins of `mass`, coupled so and the other way round, by proportional fitting."""
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
    """Average precisions (B,) by each of `ratios`, of one ranking (n,) or one for each resample (B, n), under weights
    w * ratio[cell]; with `reversed_too` also those of the misses by the reversed ranking, from the same sort.

    Ties count as one step. `hit` says which cells are hits. What is ranked above a row is summed cell by cell, once for all ratios:
    under each it is a weighted sum of those.
    """
    n, cells = w.shape[1], ratios[0].shape[1]
    order = np.argsort(-rank, axis=-1, kind="stable")
    ranked, of = np.take_along_axis(rank, order, -1), cell[order]
    drawn = w[:, order] if rank.ndim == 1 else np.take_along_axis(w, order, 1)
    each = drawn[:, None] * (of[..., None, :] == np.arange(cells)[:, None])
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
        if rank.ndim == 1:  # the same rows are wanted in every resample
            rows = np.flatnonzero(wanted[of])
            of_rows, until = each[:, :, rows], until[rows]
        up_to = above[:, :, until] if until.ndim == 1 else np.take_along_axis(above, until[:, None], 2)
        up_to = up_to if less is None else less - up_to
        good = weights * wanted
        with np.errstate(invalid="ignore", divide="ignore"):
            # Nothing above is no hit above.
            precision = (good @ up_to) / np.maximum(weights @ up_to, 1e-300)
            gained = ((precision @ of_rows.transpose(0, 2, 1)) * good).sum(axis=2)
            return list((gained / (good @ of_rows.sum(axis=2)[:, :, None])[:, :, 0]).T)

    found = [precisions(hits, last + 1, None)]
    if reversed_too:
        found.append(precisions(~hits, first, above[:, :, -1:]))
    return found
