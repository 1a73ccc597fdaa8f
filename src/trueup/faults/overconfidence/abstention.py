"""When to answer: thresholds of the confidence at which the share of errors among the answered is certified. Functions of
arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import binom

from trueup.measure.selective import certified_threshold

CERTIFIED = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Risks (shares of errors among the answered) for which an abstention threshold is sought."""


def certificates(
    seen: np.ndarray,
    seen_error: np.ndarray,
    scores: np.ndarray,
    error: np.ndarray,
    cluster: np.ndarray,
    delta: float,
    seed: int,
) -> list[dict[str, Any]]:
    """Abstention thresholds for the risks in `CERTIFIED`, one row for each.

    They are tested on `scores` and `error` (m,), examples that were not used to choose the score. The binomial test needs
    independent examples, so one row of each `cluster` (m,) is drawn. A reader picks among the rows, so all hold together with
    probability 1 - `delta`: each is tested at an equal part of `delta`.

    The first threshold to be tested is learnt from the examples that chose the score: `seen` (n,), their out-of-fold scores,
    and `seen_error` (n,). It is the threshold that is most likely to pass there, as in the split fixed-sequence test of
    Learn-then-Test (arXiv 2110.01052, section 4). If the tests started at the highest threshold, one unlucky error among a few
    texts could end them.
    """
    one_per_cluster = one_each(cluster, seed)
    rows = []
    candidates = np.unique(np.quantile(seen, np.linspace(0, 0.98, 50)))[::-1]
    accepted = (seen >= candidates[:, None]).sum(axis=1)
    wrong = ((seen >= candidates[:, None]) & seen_error).sum(axis=1)
    for risk in CERTIFIED:
        start = int(np.argmin(binom.cdf(wrong, accepted, risk)))
        c = certified_threshold(
            scores[one_per_cluster], error[one_per_cluster], candidates[start:], risk, delta / len(CERTIFIED)
        )
        rows.append(
            {
                "risk": risk,
                "threshold": c.threshold,
                "coverage": c.coverage,
                "accepted": c.accepted,
                "of": len(one_per_cluster),
            }
        )
    return rows


def one_each(cluster: np.ndarray, seed: int) -> np.ndarray:
    """The index of one row of each cluster, chosen at random."""
    order = np.random.default_rng(np.random.SeedSequence([seed, 8])).permutation(len(cluster))
    return order[np.unique(cluster[order], return_index=True)[1]]


def upwards(threshold: float) -> str:
    """A threshold for printing, always rounded up: rounding down would accept texts for which nothing was certified.

    It has enough digits that rounding adds at most a thousandth of the distance to 1.
    """
    digits = 4
    while digits < 12 and math.ceil(threshold * 10**digits) / 10**digits - threshold > 0.001 * (1 - threshold):
        digits += 1
    return f"{math.ceil(threshold * 10**digits) / 10**digits:.{digits}f}"


def promise(abstention: list[dict[str, Any]], delta: float) -> str:
    certified = [r for r in abstention if r["threshold"] is not None]
    if not certified:
        return f"No abstention threshold could be certified at {max(CERTIFIED):.0%} errors or fewer."
    r = certified[0]
    return (
        f"With {1 - delta:.0%} certainty at most {r['risk']:.0%} errors when it answers only at a confidence of "
        f"{upwards(r['threshold'])} or more: {r['coverage']:.0%} of the texts."
    )
