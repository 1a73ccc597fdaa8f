"""Whether confidence separates right from wrong: error ROC-AUC, risk-coverage curves, and a certified threshold to abstain.

Throughout, `confidence` (n,) is higher where the model is surer. It has any scale; infinities are allowed, nan is not. `error`
(n,) is true where the prediction was wrong. Only the order of confidences matters. Equal confidences form one group that is
accepted or refused as a whole, so no measure depends on the order of rows. `weight` (n,) says how often each row counts: the
result is that of repeating the row. Rows given in descending confidence are not sorted again.

All functions raise BadInput on empty columns, columns of unequal length, nan confidences, or errors other than true and false.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import bdtr
from scipy.stats import norm

from trueup.errors import BadInput
from trueup.measure._rows import Floats, levels, score, truth


@dataclass(frozen=True)
class RiskCoverage:
    """What is accepted, and how much of it is wrong, one point for each distinct confidence, surest first; all (g,).

    Attributes:
        threshold: the confidence. An example is accepted when its confidence is at least this.
        coverage: share of all examples accepted, rising to 1.
        risk: share of the accepted that are wrong, R(k) = errors among the k surest / k.
        generalised_risk: share of all that are accepted and wrong, GR(k) = errors among the k surest / n.
    """

    threshold: Floats
    coverage: Floats
    risk: Floats
    generalised_risk: Floats


@dataclass(frozen=True)
class Certificate:
    """A threshold with a guarantee, or None where none could be certified.

    Attributes:
        threshold: accept where confidence >= threshold; None when nothing may be accepted.
        coverage, empirical_risk: at that threshold on the calibration data (0 and nan when None).
        risk, delta: what is guaranteed: P(true risk at threshold > risk) <= delta.
        n, accepted: calibration examples, and how many of them are accepted.
    """

    threshold: float | None
    coverage: float
    empirical_risk: float
    risk: float
    delta: float
    n: int
    accepted: int


def error_auc(confidence: ArrayLike, error: ArrayLike, *, weight: ArrayLike | None = None) -> float:
    """ROC-AUC of ranking errors below right ones: P(conf of a right one > conf of an error), ties counting half.

    Mann-Whitney U over the number of pairs. nan when there are no errors, or only errors.

    Unit: probability, 0 to 1; 0.5 for a random ranking. Higher is better.
    """
    _, mass, errors = _levels(confidence, error, weight)
    right = mass - errors
    pairs = right.sum() * errors.sum()
    if not pairs:
        return math.nan
    above = np.cumsum(right) - right / 2
    return float(errors @ above / pairs)


def error_auc_interval(auc: float, errors: float, right: float, level: float = 0.95) -> tuple[float, float]:
    """The interval of an :func:`error_auc` where errors, or right predictions, are few (Newcombe 2006, Statistics in Medicine 25,
    559, method 5). It holds all values that lie within z standard errors of the observed one, with the standard error at that
    value by the formula of Hanley and McNeil (1982).

    A bootstrap of five errors that all rank low contains no errors that rank high. Measured coverage with 2 to 20 errors among 200
    and 1,000 examples: BCa 55 to 98%, this 95 to 98%.

    Args:
        auc: 0 to 1. errors, right: the numbers of independent errors and right predictions, above 0.
    """
    z, extra = float(norm.ppf((1 + level) / 2)), (errors + right) / 2 - 1

    def too_far(x: float) -> float:
        variance = x * (1 - x) * (1 + extra * ((1 - x) / (2 - x) + x / (1 + x))) / (errors * right)
        return abs(x - auc) - z * math.sqrt(max(variance, 0.0))

    # At 0 and 1 the standard error is 0, so these values are too far unless observed. Values next to the observed one are not.
    low = float(brentq(too_far, 0.0, auc - 1e-12)) if auc > 0 else 0.0  # type: ignore[arg-type]
    high = float(brentq(too_far, auc + 1e-12, 1.0)) if auc < 1 else 1.0  # type: ignore[arg-type]
    return low, high


def error_aucs(confidence: NDArray, error: NDArray[np.bool_], rows: NDArray[np.bool_]) -> Floats:
    """(R, S) `error_auc` of each of R rankings `confidence` (R, n) within each of S sets of examples, `rows` (S, n) bool.

    Each ranking is sorted once for all sets. Unit: as `error_auc`; nan where a set has no errors, or only errors.
    """
    if np.isnan(confidence).any():
        raise BadInput("confidence has nan, which cannot be ranked; drop these examples or give them a finite score.")
    runs, n = confidence.shape
    order = np.argsort(-confidence, axis=1)
    ranked = np.take_along_axis(confidence, order, axis=1)
    # For each error, where its group of ties begins and ends, as an index into all rankings one after the other.
    new = np.concatenate([np.ones((runs, 1), bool), ranked[:, 1:] != ranked[:, :-1]], axis=1)
    errors = np.flatnonzero(error[order]).reshape(runs, -1)
    first, tied = np.append(np.flatnonzero(new), runs * n), np.cumsum(new)[errors]
    begin, end = first[tied - 1], first[tied]
    found = np.full((runs, len(rows)), math.nan)
    for s, members in enumerate(rows):
        if not (members & error).any() or not (members & ~error).any():
            continue
        right = np.concatenate([[0], np.cumsum((members & ~error)[order])])
        above = right[begin] + right[end] - 2 * right[np.arange(0, runs * n, n), None]
        pairs = 2 * (members & error).sum() * (members & ~error).sum()
        found[:, s] = (above * members[order.ravel()[errors]]).sum(axis=1) / pairs
    return found


def risk_coverage(confidence: ArrayLike, error: ArrayLike, *, weight: ArrayLike | None = None) -> RiskCoverage:
    """The risk-coverage curve with ties collapsed (El-Yaniv and Wiener 2010; GR: Traub et al., arXiv 2407.01032)."""
    threshold, mass, errors = _levels(confidence, error, weight)
    accepted, wrong = np.cumsum(mass), np.cumsum(errors)
    return RiskCoverage(threshold, accepted / accepted[-1], wrong / accepted, wrong / accepted[-1])


def aurc(confidence: ArrayLike, error: ArrayLike, *, weight: ArrayLike | None = None) -> float:
    """Area under selective risk against coverage (Geifman et al. 2019, arXiv 1805.08206).

    Convention: ties are collapsed, and trapezoids join the points of :func:`risk_coverage`. Left of the first point (the
    surest group, at coverage c_1) the risk is that of the group, which adds c_1 R_1: AURC = c_1 R_1 + sum_g (c_g -
    c_(g-1)) (R_g + R_(g-1)) / 2. A random order within the surest group has this constant risk on average. Between later
    points the curve of a random order is bent, and the trapezoid is its chord. So scores of very few distinct values should be
    compared with each other, not with fine-grained ones. Use :func:`augrc` for that: its trapezoid is exact.

    Unit: risk (share of examples), 0 to 1. Lower is better.
    """
    return _aurc(risk_coverage(confidence, error, weight=weight))


def aurc_optimal(err: float) -> float:
    """AURC of the perfect ranking at error rate `err`, n to infinity: err + (1 - err) ln(1 - err) (arXiv 1805.08206).

    Unit: risk. Raises: BadInput when err is outside 0 to 1.
    """
    if not 0 <= err <= 1:
        raise BadInput(f"err is {err}; give a share between 0 and 1.")
    return err + (1 - err) * math.log1p(-err) if err < 1 else 1.0


def eaurc(confidence: ArrayLike, error: ArrayLike, *, weight: ArrayLike | None = None) -> float:
    """Excess AURC, AURC - AURC* (arXiv 1805.08206): the loss due to the ranking alone, apart from accuracy.

    AURC* is the limit for many examples, so a perfect ranking of few, or of few distinct values, can fall slightly
    below 0.

    Unit: risk. Lower is better, 0 is perfect.
    """
    curve = risk_coverage(confidence, error, weight=weight)
    return _aurc(curve) - aurc_optimal(float(curve.risk[-1]))


def naurc(confidence: ArrayLike, error: ArrayLike, *, weight: ArrayLike | None = None) -> float:
    """Normalised AURC, (AURC - AURC*) / (err - AURC*) (Cattelan and Silva 2023, arXiv 2305.15508).

    nan when there are no errors, or only errors: all rankings are then equally good.

    Unit: ratio, about 0 for a perfect ranking, 1 for a random one, above 1 for worse. Lower is better.
    """
    curve = risk_coverage(confidence, error, weight=weight)
    err = float(curve.risk[-1])
    best = aurc_optimal(err)
    return (_aurc(curve) - best) / (err - best) if 0 < err < 1 else math.nan


def augrc(confidence: ArrayLike, error: ArrayLike, *, weight: ArrayLike | None = None) -> float:
    """Area under generalised risk against coverage (Traub et al. 2024, arXiv 2407.01032), trapezoids from (0, 0).

    Equals (1 - AUROC) acc (1 - acc) + (1 - acc)^2 / 2 exactly, ties included: within a group in random order GR rises
    along the chord.

    Unit: share of examples (mean risk of an undetected error), 0 to 0.5. Lower is better.
    """
    curve = risk_coverage(confidence, error, weight=weight)
    x, y = np.append(0.0, curve.coverage), np.append(0.0, curve.generalised_risk)
    return float(np.trapezoid(y, x))


def coverage_at_risk(confidence: ArrayLike, error: ArrayLike, risk: float, *, weight: ArrayLike | None = None) -> float:
    """The largest coverage whose empirical selective risk is at most `risk`; 0 when there is none.

    Only ends of tied groups count. A larger coverage is accepted even if the risk is above `risk` at a smaller one. This
    describes the given data; for a threshold with a guarantee on new data use :func:`certified_threshold`.

    Unit: share of examples, 0 to 1. Higher is better.
    """
    curve = risk_coverage(confidence, error, weight=weight)
    good = np.flatnonzero(curve.risk <= risk)
    return float(curve.coverage[good[-1]]) if good.size else 0.0


def certified_threshold(
    confidence: ArrayLike, error: ArrayLike, candidates: ArrayLike, risk: float, delta: float = 0.05
) -> Certificate:
    """The lowest threshold that keeps the selective risk within `risk`, with probability at least 1 - `delta`.

    Learn-then-Test by fixed-sequence testing (Angelopoulos et al. 2021, arXiv 2110.01052) with the binomial tail of
    Geifman and El-Yaniv (2017, arXiv 1705.08500). The candidates are tested from the highest downwards. With k accepted
    (confidence >= threshold) and e wrong among them, p = P(Bin(k, risk) <= e) tests "the true risk here is above `risk`".
    The tests stop at the first p > delta, and the last candidate before it is returned. No correction for the number of
    candidates is needed.

    The candidates must be fixed without these labels: a grid, or quantiles of the confidences of other, or unlabelled, data. The
    first candidate decides the power. One that accepts just enough to be tested (29 for risk 0.1 and delta 0.05) fails by
    a single error, and nothing after it is tested. Let the first accept several times as many, about 10 / risk, unless the
    surest are nearly never wrong.

    The first candidates may accept so few that even without any error the test would not reject, (1 - risk)^k > delta. They
    are skipped and do not stop the tests. What is skipped depends on the confidences alone, never on the errors. So
    conditional on the confidences the sequence of tests is fixed, and the guarantee holds for the mean error probability of
    the accepted examples. Their errors are independent with unequal probabilities, and below the mean the binomial tail bounds
    that of such a sum (Hoeffding 1956, theorem 4; for delta <= 1/4 and risk <= 1/2 every rejection lies below the mean). For
    the risk on new data, P(error | confidence >= threshold), e is exactly binomial given k. So the first threshold of too high
    a risk passes with probability <= delta if it was not skipped. If it was skipped, the same bound requires that
    the error probability does not fall with falling confidence between the skipped candidates.

    Args:
        confidence, error: (n,) of calibration examples, independent draws from the distribution of later examples.
        candidates: (m,) thresholds, any order, repeats ignored.
        risk: the highest risk allowed, in 0 to 1, ends excluded.
        delta: the probability that the guarantee fails, in 0 to 1, ends excluded.

    Raises: BadInput as all in this module, and on a risk or delta outside 0 to 1 or candidates that are nan or none.
    """
    for name, value in (("risk", risk), ("delta", delta)):
        if not 0 < value < 1:
            raise BadInput(f"{name} is {value}; give a probability between 0 and 1, such as 0.05.")
    thresholds = np.unique(score(candidates, "candidates"))[::-1]
    level, mass, errors = _levels(confidence, error, None)
    n = int(mass.sum())
    groups = np.searchsorted(-level, -thresholds, side="right")
    accepted = np.append(0, np.cumsum(mass))[groups]
    wrong = np.append(0, np.cumsum(errors))[groups]
    best: int | None = None
    for j in np.flatnonzero((1 - risk) ** accepted <= delta):
        if bdtr(int(wrong[j]), int(accepted[j]), risk) > delta:
            break
        best = int(j)
    if best is None:
        return Certificate(None, 0.0, math.nan, risk, delta, n, 0)
    k = int(accepted[best])
    return Certificate(float(thresholds[best]), k / n, float(wrong[best]) / k, risk, delta, n, k)


def _levels(confidence: ArrayLike, error: ArrayLike, weight: ArrayLike | None) -> tuple[Floats, Floats, Floats]:
    confidence = score(confidence, "confidence")
    return levels(confidence, truth(error, "error", confidence.size), weight)


def _aurc(curve: RiskCoverage) -> float:
    return float(curve.coverage[0] * curve.risk[0] + np.trapezoid(curve.risk, curve.coverage))
