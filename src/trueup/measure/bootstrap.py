"""Intervals by resampling examples: for one number, and for the difference of two on the same examples.

A statistic is any function of columns (arrays with one row for each example) to a number. One that has a parameter
named `weight`, as all of this room have, is called on the columns as they are, with ``weight=`` how often each row
was drawn: exact, and nothing is copied. Any other is called on the rows drawn. Bind what else it needs with a lambda
or ``functools.partial``; a lambda keeps the fast way by taking `weight` too::

    interval_many(
        {
            "error_auc": lambda c, e, p, y, weight=None: error_auc(c, e, weight=weight),
            "brier": lambda c, e, p, y, weight=None: brier(p, y, weight=weight),
        },
        confidence, error, probability, label, seed=0,
    )

Sort the rows by descending confidence beforehand, and the ranking measures need not sort again at each resample.
The same seed, rows and number of resamples draw the same resamples, whatever the statistics are.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trueup.errors import BadInput

Statistic = Callable[..., float]
Seed = int | np.random.SeedSequence


@dataclass(frozen=True)
class Estimate:
    """A number with its bootstrap percentile interval, in the unit and polarity of its statistic."""

    value: float
    low: float
    high: float
    level: float


@dataclass(frozen=True)
class PairedEstimate:
    """After minus before on the same examples, its percentile interval, and a two-sided p-value of no difference."""

    value: float
    low: float
    high: float
    p: float
    level: float


def interval(
    statistic: Statistic,
    *arrays: ArrayLike,
    seed: Seed,
    resamples: int = 1000,
    level: float = 0.95,
    cluster: ArrayLike | None = None,
) -> Estimate:
    """Percentile bootstrap interval over rows (Efron and Tibshirani 1993, section 13.3).

    Args:
        statistic: function of the columns to a number.
        arrays: columns of n rows each, any further axes.
        seed: an integer, or a SeedSequence (which is read, not spawned from).
        resamples: how often to draw n rows with replacement.
        level: probability that the interval aims to cover.

    Returns: the statistic on all rows, and the quantiles (1 -+ level) / 2 over resamples. Resamples where it is nan
    (say, no error was drawn) are dropped; if they are more than half, the interval is nan to nan.
    Raises: BadInput on no columns, columns of unequal length, resamples < 1, or level outside 0 to 1.
    """
    return interval_many({"": statistic}, *arrays, seed=seed, resamples=resamples, level=level, cluster=cluster)[""]


def interval_many(
    statistics: Mapping[str, Statistic],
    *arrays: ArrayLike,
    seed: Seed,
    resamples: int = 1000,
    level: float = 0.95,
    biased: Collection[str] = (),
    cluster: ArrayLike | None = None,
) -> dict[str, Estimate]:
    """:func:`interval` for several statistics of the same columns, all on the same resamples.

    Args:
        biased: names of statistics that rows drawn twice push to one side, as they do a calibration error. Their draws are
            moved so that their mean is the value (a statistic that is never negative stays so).
    """
    (columns,), n = _columns(arrays)
    drawn = _drawn(statistics, [columns], n, seed, resamples, level, cluster)
    found = {}
    for i, (name, statistic) in enumerate(statistics.items()):
        value, draws = float(statistic(*columns)), drawn[:, 0, i]
        if name in biased:
            draws = np.maximum(_moved(draws, value), min(0.0, float(np.nanmin(draws, initial=np.inf))))
        low, high = _percentiles(draws, level)
        found[name] = Estimate(value, low, high, level)
    return found


def paired(
    statistic: Statistic,
    before_arrays: Sequence[ArrayLike],
    after_arrays: Sequence[ArrayLike],
    seed: Seed,
    resamples: int = 1000,
    level: float = 0.95,
    cluster: ArrayLike | None = None,
) -> PairedEstimate:
    """Bootstrap interval and p-value for a statistic after minus before, on the same examples.

    Each resample draws the same rows in both, so what an example adds to both cancels. p = 2 min(P(d <= 0), P(d >=
    0)) over resampled differences d, at most 1, with one added to each count and to the number of resamples (Davison
    and Hinkley 1997, section 4.2), so p is never 0.

    Args:
        statistic: function of the columns to a number.
        before_arrays, after_arrays: the columns before and after, n rows each, row i the same example in both.
        seed, resamples, level: as in :func:`interval`.

    Returns: as :func:`interval`, in the unit of the statistic, positive where it rose; resamples in which either side
    is nan are dropped, and if they are more than half, interval and p are nan.
    Raises: BadInput as :func:`interval`.
    """
    return paired_many({"": statistic}, before_arrays, after_arrays, seed, resamples, level, cluster=cluster)[""]


def paired_many(
    statistics: Mapping[str, Statistic],
    before_arrays: Sequence[ArrayLike],
    after_arrays: Sequence[ArrayLike],
    seed: Seed,
    resamples: int = 1000,
    level: float = 0.95,
    biased: Collection[str] = (),
    cluster: ArrayLike | None = None,
) -> dict[str, PairedEstimate]:
    """:func:`paired` for several statistics of the same columns, all on the same resamples.

    `biased` as in :func:`interval_many`.
    """
    (before, after), n = _columns(before_arrays, after_arrays)
    drawn = _drawn(statistics, [before, after], n, seed, resamples, level, cluster)
    found = {}
    for i, (name, statistic) in enumerate(statistics.items()):
        with np.errstate(invalid="ignore"):
            difference = drawn[:, 1, i] - drawn[:, 0, i]
            value = float(np.subtract(statistic(*after), statistic(*before)))
        if name in biased:
            difference = _moved(difference, value)
        low, high = _percentiles(difference, level)
        kept = difference[~np.isnan(difference)]
        p = math.nan
        if not math.isnan(low):
            tail = min((kept <= 0).sum(), (kept >= 0).sum())
            p = min(1.0, 2 * (1 + float(tail)) / (1 + kept.size))
        found[name] = PairedEstimate(value, low, high, p, level)
    return found


def _columns(*sides: Sequence[ArrayLike]) -> tuple[list[list[NDArray]], int]:
    arrays = [[np.asarray(a) for a in side] for side in sides]
    rows = {a.shape[0] if a.ndim else 0 for side in arrays for a in side}
    if len(rows) != 1 or 0 in rows or not all(arrays):
        raise BadInput(
            f"The columns to resample have {sorted(rows)} rows; give one or more columns of the same examples."
        )
    return arrays, rows.pop()


def _drawn(
    statistics: Mapping[str, Statistic],
    sides: Sequence[Sequence[NDArray]],
    n: int,
    seed: Seed,
    resamples: int,
    level: float,
    cluster: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Every statistic on every side of every resample: (resamples, sides, statistics)."""
    if resamples < 1:
        raise BadInput(f"resamples is {resamples}; give at least 1, such as 1000.")
    if not 0 < level < 1:
        raise BadInput(f"level is {level}; give a probability between 0 and 1, such as 0.95.")
    takes_weight = [_takes_weight(s) for s in statistics.values()]
    drawn = np.empty((resamples, len(sides), len(statistics)))
    for r, rows in enumerate(_resamples(n, seed, resamples, cluster)):
        weight = np.bincount(rows, minlength=n).astype(np.float64) if any(takes_weight) else None
        for s, columns in enumerate(sides):
            taken = [] if all(takes_weight) else [c[rows] for c in columns]
            for i, statistic in enumerate(statistics.values()):
                drawn[r, s, i] = statistic(*columns, weight=weight) if takes_weight[i] else statistic(*taken)
    return drawn


def _resamples(n: int, seed: Seed, resamples: int, cluster: ArrayLike | None) -> Iterator[NDArray[np.int64]]:
    sequence = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    generator = np.random.default_rng(sequence)
    ids = np.arange(n) if cluster is None else np.unique(np.asarray(cluster), return_inverse=True)[1]
    order = np.argsort(ids, kind="stable")
    begins = np.searchsorted(ids[order], np.arange(ids.max() + 2))
    for _ in range(resamples):
        some = generator.integers(0, len(begins) - 1, size=len(begins) - 1)
        yield (
            some
            if len(begins) == n + 1 and cluster is None
            else np.concatenate([order[begins[c] : begins[c + 1]] for c in some])
        )


def _takes_weight(statistic: Statistic) -> bool:
    try:
        return "weight" in inspect.signature(statistic).parameters
    except (TypeError, ValueError):
        return False


def _moved(draws: NDArray[np.float64], value: float) -> NDArray[np.float64]:
    kept = draws[~np.isnan(draws)]
    return draws + (value - kept.mean() if kept.size else 0.0)


def _percentiles(draws: NDArray[np.float64], level: float) -> tuple[float, float]:
    kept = draws[~np.isnan(draws)]
    if 2 * kept.size < draws.size:
        return math.nan, math.nan
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
