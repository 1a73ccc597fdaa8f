"""When to answer: thresholds of the confidence at which the share of errors among the answered is certified. Arrays in and out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import binom

from trueup.measure.selective import certified_threshold

CERTIFIED = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Risks for which an abstention threshold is sought."""


def certificates(
    seen: np.ndarray,
    seen_error: np.ndarray,
    scores: np.ndarray,
    error: np.ndarray,
    cluster: np.ndarray,
    delta: float,
    seed: int,
) -> list[dict[str, Any]]:
    """Abstention thresholds for `CERTIFIED` risks, tested on `scores` and `error`, which chose nothing.

    The binomial test needs independent examples: one is drawn of each cluster. All rows hold together with probability 1 -
    `delta` (each is tested at its part of it), since a reader picks among them.

    Where the walk starts is learnt from the examples that did choose (`seen`, out of fold): at the threshold that is
    surest to pass there, as in the split fixed-sequence test of Learn-then-Test (arXiv 2110.01052, section 4). Starting
    at the very top would let one unlucky error among a handful of texts end it.
    """
    one = one_each(cluster, seed)
    rows = []
    candidates = np.unique(np.quantile(seen, np.linspace(0, 0.98, 50)))[::-1]
    accepted = (seen >= candidates[:, None]).sum(axis=1)
    wrong = ((seen >= candidates[:, None]) & seen_error).sum(axis=1)
    for risk in CERTIFIED:
        start = int(np.argmin(binom.cdf(wrong, accepted, risk)))
        c = certified_threshold(scores[one], error[one], candidates[start:], risk, delta / len(CERTIFIED))
        rows.append(
            {"risk": risk, "threshold": c.threshold, "coverage": c.coverage, "accepted": c.accepted, "of": len(one)}
        )
    return rows


def one_each(cluster: np.ndarray, seed: int) -> np.ndarray:
    """One row of each cluster, at random."""
    order = np.random.default_rng(np.random.SeedSequence([seed, 8])).permutation(len(cluster))
    return order[np.unique(cluster[order], return_index=True)[1]]


def upwards(threshold: float) -> str:
    """A threshold for printing, rounded up only: rounding down would let in texts that nothing was certified for.

    As many digits as leave it within a thousandth of the way to 1.
    """
    digits = 4
    while digits < 12 and math.ceil(threshold * 10**digits) / 10**digits - threshold > 0.001 * (1 - threshold):
        digits += 1
    return f"{math.ceil(threshold * 10**digits) / 10**digits:.{digits}f}"


def promise(abstention: list[dict[str, Any]], delta: float) -> str:
    held = [r for r in abstention if r["threshold"] is not None]
    if not held:
        return f"No abstention threshold could be certified at {max(CERTIFIED):.0%} errors or fewer."
    r = held[0]
    return (
        f"With {1 - delta:.0%} certainty at most {r['risk']:.0%} errors when it answers only at a confidence of "
        f"{upwards(r['threshold'])} or more: {r['coverage']:.0%} of the texts."
    )
