"""Intervals by resampling clusters of examples: for one number, and for the difference of two on the same examples.

A statistic is any function of columns (arrays with one row for each example) to a number. One that has a parameter
named `weight`, as all of this room have, is called on the columns as they are, with ``weight=`` how often each row
was drawn: exact, and nothing is copied. One that is a function of columns' means is `Means`, and fastest: all resamples
are one matrix product. The share of rows that have something is `Share`. Any other is called on the rows drawn. Bind what else it
needs with a lambda or ``functools.partial``; a lambda keeps the fast way by taking `weight` too::

    interval_many(
        {
            "error_auc": lambda c, e, p, y, weight=None: error_auc(c, e, weight=weight),
            "confidence": Means(np.asarray, 0),
            "accuracy": Share(lambda c, e, p, y: ~e),
        },
        confidence, error, probability, label, seed=0, cluster=corpus.cluster,
    )

Rows of one cluster are drawn together (Davison and Hinkley 1997, section 3.8); without clusters each row stands by itself.
The same seed, clusters and number of resamples draw the same resamples, whatever the statistics and the rows' order are.
Sort the rows by descending confidence beforehand, and the ranking measures need not sort again at each resample.

The interval is BCa (Efron 1987), with its level widened to that of Student's t for few clusters (Hesterberg 2015,
arXiv 1411.5279). Measured coverage of 95% intervals, plain percentiles against these (1 to 8 rows a cluster; a mean, a ratio of
paired losses, an error ROC-AUC): 30 clusters 88 to 94% against 93 to 97%, 60 clusters 93 to 96% against 94 to 97%, 200 clusters
93 to 96% against 95 to 96%. Clusters of unequal size count as so many of equal size as they are worth (`independent_rows`; Carter,
Schnepel and Steigerwald 2017, Review of Economics and Statistics 99, 698). Below `FEWEST` of these no interval is to be trusted:
the caller says *undecided* (`too_few`).

A bootstrap cannot draw what no cluster has: where all of 30 examples are right, so are all resamples, and its interval is 1 to 1.
So the interval of a `Share` that fewer than `FEWEST` clusters have, or lack, is Wilson's (`accuracy.wilson`), and that of one
which changes in fewer clusters is Bonett and Price's (`accuracy.share_difference`). Both count a cluster as one example.
Measured coverage where 0.2 to 20% of 30 to 1,000 clusters of 1 to 8 rows have it, or change: the bootstrap alone holds the truth in
4 to 99% for single shares and 6 to 100% for differences, these in 87 to 99% and 92 to 100%; of 1,000 clusters of which 0.2% have it
or change, in 75 to 94%, and these in 95 to 100%.

A loss of which a few errors are the most is such a share as well, times what the errors lose. With `rare` (which rows these are)
the interval of whatever hangs on them has two parts (`_Apart`): how many there are, and which. Measured coverage of shares of
losses saved, by BCa and by these: 79 to 93% and 89 to 97% at 4 to 10 errors of 200 examples, 92 to 93% and 94 to 95% at 20 to 40 of
1,000. With two errors among 200 neither holds what it says (73 to 85%).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, t

from trueup.errors import BadInput
from trueup.measure.accuracy import independent_rows, moved_share, p_of_ends, share_difference, wilson

Statistic = Callable[..., float]
Seed = int | np.random.SeedSequence

FEWEST = 30
"""Clusters below which an interval decides nothing."""
POWER = 0.8
"""Of checks with as many clusters as are said to be needed, how many decide if the true value is the estimate."""
FAR = 0.95
"""Level above which an end of an interval lies among the few outermost draws. The quantile of B draws that numpy takes by default
leaves some p + 1 / B beyond it, in the mean: at 1,000 draws a third more than p = .0028, and three times p = .0005."""
EQUAL = 1e-9
"""Of the range of the draws: what differs by less is equal but for rounding."""
ROUNDING = 1e-12
"""Of their size, and of 1: two values of a statistic that differ by less are equal but for rounding, and so is one with 0."""
RARE = 100
"""Clusters below which what they alone have is drawn apart from the rest, if it is named."""
BATCH = 64
"""Resamples that are held at once."""
AT_ONCE = 1 << 16
"""Rows of resamples that a statistic of `Many` is given at once: what it computes on the way stays in the processor's cache."""
GROUPS = 100
"""At most so many groups of clusters are left out in turn, to learn how skewed a statistic is."""


@dataclass(frozen=True, init=False)
class Means:
    """The statistic `of` the means of some of the columns, named by their places. `of` takes numbers, or arrays of them."""

    of: Callable[..., Any]
    places: tuple[int, ...]

    def __init__(self, of: Callable[..., Any], *places: int) -> None:
        object.__setattr__(self, "of", of)
        object.__setattr__(self, "places", places)

    def __call__(self, *columns: NDArray, weight: NDArray | None = None) -> float:
        return float(self.of(*(np.average(columns[i], weights=weight) for i in self.places)))


@dataclass(frozen=True)
class Many:
    """A statistic that takes many resamples at once: `of` the columns and `weight` (B, n) gives (B,)."""

    of: Callable[..., NDArray[np.float64]]

    def __call__(self, *columns: NDArray, weight: NDArray | None = None) -> float:
        return float(self.of(*columns, weight=np.ones((1, len(columns[0]))) if weight is None else weight[None])[0])


@dataclass(frozen=True)
class Share:
    """The statistic of how many rows have something: the mean of `of` the columns, (n,) each 0 or 1, less that of `less`, (n,).

    Attributes:
        among: of the columns, (n,) the rows that are counted; None for all. nan where none is.
        less: what of it is to be expected, such as the chance of a copy; None for nothing.
    """

    of: Callable[..., NDArray]
    among: Callable[..., NDArray] | None = None
    less: Callable[..., NDArray] | None = None

    def __call__(self, *columns: NDArray, weight: NDArray | None = None) -> float:
        hit, less, counted = self.rows(columns)
        w = counted if weight is None else counted * weight
        return float((w @ hit - w @ less) / w.sum()) if w.any() else math.nan

    def certain(self) -> Statistic:
        """The same, of examples that cannot change: what no example shows is not there, so its difference may be exactly 0."""
        return lambda *columns, weight=None: self(*columns, weight=weight)

    def rows(self, columns: Sequence[NDArray]) -> tuple[NDArray, NDArray, NDArray]:
        """(n,) each: whether a row has it, what was to be expected, and whether it is counted; the first two 0 where it is not."""
        counted = (
            np.ones(len(columns[0])) if self.among is None else np.asarray(self.among(*columns)).astype(np.float64)
        )
        hit, less = (
            np.where(counted > 0, np.zeros(len(counted)) if f is None else np.asarray(f(*columns)), 0.0)
            for f in (self.of, self.less)
        )
        return hit, less, counted


@dataclass(frozen=True)
class Estimate:
    """A number with its bootstrap interval, in the unit and polarity of its statistic."""

    value: float
    low: float
    high: float
    level: float


@dataclass(frozen=True)
class PairedEstimate:
    """After minus before on the same examples, its interval, and a two-sided p-value of no difference."""

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
    """Bootstrap interval over clusters.

    Args:
        statistic: function of the columns to a number.
        arrays: columns of n rows each, any further axes.
        seed: an integer, or a SeedSequence (which is read, not spawned from).
        resamples: how often to draw as many clusters as there are, with replacement.
        level: probability that the interval aims to cover.
        cluster: (n,) rows of equal number are drawn together; None where each row stands by itself.

    Returns: the statistic on all rows, and the ends of its interval. Resamples where it is nan (say, no error was drawn) are
    dropped; if they are more than half, or the statistic itself is nan, the interval is nan to nan.
    Raises: BadInput on no columns, columns of unequal length, resamples < 1, or level outside 0 to 1.
    """
    return interval_many({"": statistic}, *arrays, seed=seed, resamples=resamples, level=level, cluster=cluster)[""]


def interval_many(
    statistics: Mapping[str, Statistic],
    *arrays: ArrayLike,
    seed: Seed,
    resamples: int = 1000,
    level: float = 0.95,
    squares: Collection[str] = (),
    plain: Mapping[str, int] = MappingProxyType({}),
    rare: ArrayLike | None = None,
    cluster: ArrayLike | None = None,
) -> dict[str, Estimate]:
    """:func:`interval` for several statistics of the same columns, all on the same resamples.

    Args:
        squares: names of statistics that are a mean square of noisy gaps, as a squared calibration error is: chance alone
            pushes them up. By how much, the bootstrap says (Efron and Tibshirani 1993, section 10.2); it is taken off, and
            given is the root of what is left, 0 where that is below 0.
        plain: statistics that are read by percentiles as they are, and how many independent examples their rarest part has,
            which widens them in place of the number of clusters. For rankings under strong weights: there what BCa learns of
            bias and skew is mostly noise (of 300 null worlds at 200 examples BCa held the truth in 85 to 92%, these in 92 to
            95%).
        rare: (n,) which rows have what the statistics may hang on, such as errors. Where fewer than `RARE` clusters, and no more
            than half, have it, or what the other rows have, those that take weights and are neither `squares` nor `plain` have
            intervals of two parts.
    """
    drawn = _drawn(statistics, _columns(arrays), cluster, seed, resamples, level, {*squares, *plain}, rare)
    found = {}
    for i, name in enumerate(statistics):
        value, draws = float(drawn.value[0, i]), drawn.draws[:, 0, i]
        if name in squares:
            value, draws = _rooted(value, draws)
            low, high = _between(value, draws, [(1 - level) / 2, (1 + level) / 2])
        else:
            low, high = drawn.few_have(i, level) or drawn.in_parts(i, value, lambda x: x[:, 0], level) or _between(
                value, draws, _bent(name, plain, value, draws, drawn.without[:, 0, i], drawn.clusters).levels(level),
                far=level > FAR,
            )  # fmt: skip
        found[name] = Estimate(value, low, high, level)
    return found


def standard_error(
    statistic: Statistic, *arrays: ArrayLike, seed: Seed, resamples: int = 200, cluster: ArrayLike | None = None
) -> tuple[float, float]:
    """The statistic of all rows, and the standard deviation of its resamples over clusters; arguments as in :func:`interval`.

    For tests whose level is too far out for the quantiles of a few hundred resamples. nan where more than half of them are nan.
    """
    drawn = _drawn({"": statistic}, _columns(arrays), cluster, seed, resamples, 0.95, {""})
    defined_draws = drawn.draws[~np.isnan(drawn.draws)]
    enough = 2 * defined_draws.size > drawn.draws.size
    return float(drawn.value[0, 0]), float(defined_draws.std(ddof=1)) if enough else math.nan


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

    Each resample draws the same clusters in both, so what an example adds to both cancels. p is the least 1 - level at which
    the interval excludes 0; one is added to the draws on either side (Davison and Hinkley 1997, section 4.2), so it is never 0.

    Args:
        statistic: function of the columns to a number.
        before_arrays, after_arrays: the columns before and after, n rows each, row i the same example in both.
        seed, resamples, level, cluster: as in :func:`interval`.

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
    squares: Collection[str] = (),
    plain: Mapping[str, int] = MappingProxyType({}),
    rare: ArrayLike | None = None,
    cluster: ArrayLike | None = None,
) -> dict[str, PairedEstimate]:
    """:func:`paired` for several statistics of the same columns, all on the same resamples.

    `squares`, `plain` and `rare` as in :func:`interval_many`; the difference of squares is that of the roots.
    """
    columns = _columns(before_arrays, after_arrays)
    drawn = _drawn(statistics, columns, cluster, seed, resamples, level, {*squares, *plain}, rare)
    found = {}
    for i, name in enumerate(statistics):
        if name in squares:
            (a, before), (b, after) = (_rooted(drawn.value[s, i], drawn.draws[:, s, i]) for s in (0, 1))
            value, draws = float(_less(b, a)), _less(after, before)
            bent = _Bent(0.0, 0.0, math.inf)
        else:
            value = float(_less(drawn.value[1, i], drawn.value[0, i]))
            draws = _less(drawn.draws[:, 1, i], drawn.draws[:, 0, i])
            without = _less(drawn.without[:, 1, i], drawn.without[:, 0, i])
            bent = _bent(name, plain, float(value), draws, without, drawn.clusters)
        if (few_changed := drawn.few_change(i, level)) is not None:
            low, high, p = few_changed
        elif (ends := drawn.in_parts(i, value, lambda x: _less(x[:, 1], x[:, 0]), level)) is not None:
            low, high = ends
            p = 1.0 if value == low == high else p_of_ends(value, low, high, level)
        else:
            low, high = _between(float(value), draws, bent.levels(level))
            p = math.nan if math.isnan(low) else bent.p(draws)
        found[name] = PairedEstimate(value, low, high, p, level)
    return found


def too_few(cluster: ArrayLike) -> str:
    """Why the clusters (n,) of these rows decide nothing, as a sentence; empty where they are enough.

    What one large cluster says is most of what there is to see, however many small ones stand beside it: clusters count as
    `accuracy.independent_rows`. Where they were worth 2.7 to 23 of 40 or 200, and their rows were alike in part, 95% intervals of a
    mean held the truth in 73 to 93%.
    """
    size = np.unique(np.asarray(cluster), return_counts=True)[1]
    if independent_rows(size) >= FEWEST:
        return ""
    if len(size) < FEWEST:
        return (
            f"There are only {len(size)} independent clusters of examples, and fewer than {FEWEST} decide nothing: their intervals "
            "are not to be trusted."
        )
    return (
        f"The {size.sum():,} examples are {len(size):,} independent clusters of unequal size: the largest holds "
        f"{size.max() / size.sum():.0%} of the examples. They tell as much as {int(independent_rows(size))} clusters of equal "
        f"size, and fewer than {FEWEST} decide nothing. Take examples out of the largest clusters, or add others."
    )


def clusters_needed(value: float, low: float, high: float, threshold: float, cluster: ArrayLike) -> int | None:
    """How many clusters would part a 95% interval from `threshold` in `POWER` of cases, if the true value is the estimate: its
    width falls with their root. At least so many that they are not `too_few`, if their sizes are spread as those of `cluster` (n,)
    are.

    Estimates that leave a check undecided lie nearer to the threshold than the truth does, in the mean. So of checks with so many
    clusters, 57% decided where the truth lay half a standard error of the first check away from the threshold, 78% at one standard
    error, and 89 to 100% at more (200,000 normal draws each).

    None where nothing says so: an end is nan, or the estimate lies on the threshold.
    """
    half = value - low if value > threshold else high - value
    if not math.isfinite(half) or value == threshold:
        return None
    size = np.unique(np.asarray(cluster), return_counts=True)[1]
    enough = len(size) * FEWEST / independent_rows(size)
    short = half / abs(value - threshold)
    times = (short * (1 + norm.ppf(POWER) / norm.ppf(0.975))) ** 2 if short > 1 else 1.0
    return max(math.ceil(enough), math.ceil(len(size) * times))


# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Drawn:
    """Every statistic on every side: of all rows (sides, statistics), of each resample (resamples, sides, statistics), and
    without each group of clusters (groups, sides, statistics), nan for statistics that are not bent by it.

    `clusters`: how many clusters of equal size these are worth. `ids`: (n,) the cluster of each row. `shares`: of each `Share`, by
    its place among the statistics, its rows on every side. `apart`: of statistics that hang on what few clusters have.
    """

    value: NDArray[np.float64]
    draws: NDArray[np.float64]
    without: NDArray[np.float64]
    clusters: float
    ids: NDArray[np.intp]
    shares: Mapping[int, Sequence[tuple[NDArray, NDArray, NDArray]]]
    apart: _Apart | None

    def in_parts(
        self, i: int, value: float, of: Callable[[NDArray], NDArray], level: float
    ) -> tuple[float, float] | None:
        """The ends of a statistic that has two parts, `of` its sides; else None, as for any other."""
        if self.apart is None or i not in self.apart.places:
            return None
        return self.apart.ends(value, of(self.apart.more_or_fewer[:, :, i]), of(self.apart.within[:, :, i]), level)

    def few_have(self, i: int, level: float, side: int = 0) -> tuple[float, float] | None:
        """The ends of a `Share` that fewer than `FEWEST` clusters have, or lack; else None, as for any other statistic."""
        if i not in self.shares:
            return None
        hit, less, counted = self.shares[i][side]
        size, had = (np.bincount(self.ids, w) for w in (counted, counted * hit))
        if not size.any() or min((had > 0).sum(), (had < size).sum()) >= FEWEST:
            return None
        n, share = independent_rows(size), float(had.sum() / size.sum())
        expected = float(counted @ less / counted.sum())
        low, high = (float(e) for e in wilson(n * share, n, level))
        if not less.any():
            return low, high
        # Zou and Donner (2008): the distances of both parts, less what they share.
        hits, chances = (np.bincount(self.ids, counted * (x - m)) for x, m in ((hit, share), (less, expected)))
        spread = float(hits @ hits * (chances @ chances))
        shared = float(hits @ chances) / math.sqrt(spread) if spread > 0 else 0.0
        error = norm.ppf((1 + level) / 2) * math.sqrt(chances @ chances) / counted.sum()
        down, up = (math.sqrt(max(e**2 + error**2 - 2 * shared * e * error, 0.0)) for e in (share - low, high - share))
        return share - expected - down, share - expected + up

    def few_change(self, i: int, level: float) -> tuple[float, float, float] | None:
        """The ends and p of the difference of a `Share` that changes in fewer than `FEWEST` clusters, or where the sides count
        other rows, that few have on either side; else None, as for any other statistic."""
        if i not in self.shares:
            return None
        (before, less, counted), (after, less_then, same) = self.shares[i]
        if not np.array_equal(counted, same):
            was, now = (self.few_have(i, level, side) for side in (0, 1))
            if was is None or now is None:
                return None
            return moved_share((float(self.value[0, i]), *was), (float(self.value[1, i]), *now), level)
        size, changed = (np.bincount(self.ids, counted * w) for w in (np.ones(len(counted)), before != after))
        if not size.any() or (changed > 0).sum() >= FEWEST:
            return None
        moved = (after - less_then) - (before - less)
        mean, square = (float(counted @ x / counted.sum()) for x in (moved, moved**2))
        return share_difference(mean, square, independent_rows(size), level)


@dataclass(frozen=True)
class _Apart:
    """Statistics when what `few` clusters have is drawn apart from the rest. How many have it is binomial, and Wilson's interval
    says how many that may be. Which ones have it, and which do not, the resamples of each part say. The distances of both from
    the estimate are independent, and their squares add up (Zou and Donner 2008).

    `places`: of the statistics. `more_or_fewer`: (2, sides, statistics) were there as few, and as many, as Wilson's ends.
    `within`: (resamples, sides, statistics) with as many as there are.
    """

    few: int
    places: Collection[int]
    more_or_fewer: NDArray[np.float64]
    within: NDArray[np.float64]

    @staticmethod
    def rare(ids: NDArray[np.intp], rare: ArrayLike | None) -> NDArray[np.bool_] | None:
        """(clusters,) which clusters have rows that are `rare` (n,), or else rows that are not: fewer than `RARE` and no more than
        half of them. None where neither are so few."""
        if rare is None:
            return None
        rows = np.asarray(rare, np.bool_)
        for which in (rows, ~rows):
            has = np.bincount(ids, which) > 0
            if 0 < has.sum() < RARE and 2 * has.sum() <= len(has):
                return has
        return None

    @staticmethod
    def counted(has: NDArray[np.bool_], level: float) -> NDArray[np.float64]:
        """(2, clusters): how often clusters count where those that have it are as few, and as many, as Wilson's ends."""
        share = has.mean()
        return np.stack([np.where(has, e / share, (1 - e) / (1 - share)) for e in wilson(has.sum(), has.size, level)])

    @staticmethod
    def drawn(has: NDArray[np.bool_], seed: Seed, resamples: int) -> NDArray[np.float64]:
        """(resamples, clusters): how often each is drawn, either part by itself."""
        generator = np.random.default_rng(seed)
        counts = np.empty((resamples, len(has)))
        for part in (np.flatnonzero(has), np.flatnonzero(~has)):
            counts[:, part] = generator.multinomial(len(part), np.full(len(part), 1 / len(part)), resamples)
        return counts

    def ends(self, value: float, moved: NDArray, draws: NDArray, level: float) -> tuple[float, float]:
        low, high = _between(value, draws, _Bent(0.0, 0.0, self.few).levels(level), far=level > FAR)
        least, most = min(value, *moved), max(value, *moved)
        return (
            value - math.hypot(value - least, max(value - low, 0.0)),
            value + math.hypot(most - value, max(high - value, 0.0)),
        )


@dataclass(frozen=True)
class _Bent:
    """Which quantiles of the draws are the interval: BCa's bias z0 and acceleration a, and Student's t for few clusters."""

    z0: float
    a: float
    clusters: float

    @staticmethod
    def of(value: float, draws: NDArray[np.float64], without: NDArray[np.float64], clusters: float) -> _Bent:
        defined_draws, defined_leave_outs = draws[~np.isnan(draws)], without[~np.isnan(without)]
        if not defined_draws.size or not defined_leave_outs.size:
            return _Bent(0.0, 0.0, clusters)
        # Draws that equal the estimate but for the last bits count as equal: which side they fall on is up to the processor.
        near = EQUAL * np.ptp(defined_draws)
        below = ((defined_draws < value - near).sum() + (np.abs(defined_draws - value) <= near).sum() / 2 + 0.5) / (
            defined_draws.size + 1
        )
        pull = defined_leave_outs.mean() - defined_leave_outs
        spread = (pull @ pull) ** 1.5
        return _Bent(float(norm.ppf(below)), float((pull**3).sum() / 6 / spread) if spread > 1e-200 else 0.0, clusters)

    def levels(self, level: float) -> list[float]:
        z = norm.ppf((1 + level) / 2)
        if math.isfinite(self.clusters):
            # One cluster has no spread at all.
            df = max(self.clusters - 1, 1)
            z = t.ppf((1 + level) / 2, df) * math.sqrt((df + 1) / df)
        return [float(norm.cdf(self.z0 + w / max(1 - self.a * w, 1e-9))) for w in (self.z0 - z, self.z0 + z)]

    def p(self, draws: NDArray[np.float64]) -> float:
        defined_draws = draws[~np.isnan(draws)]
        near = EQUAL * np.ptp(defined_draws)
        low, high = (
            float(1 + side.sum()) / (1 + defined_draws.size) for side in (defined_draws <= near, defined_draws >= -near)
        )
        if min(low, high) == 1.0:
            return 1.0
        ends = []
        for tail, sign in ((low, 1), (high, -1)):
            w = norm.ppf(min(tail, 1 - 1e-12)) * sign - self.z0
            z = sign * (w / max(1 + self.a * w, 1e-9) - self.z0)
            if math.isfinite(self.clusters):
                df = max(self.clusters - 1, 1)
                ends.append(float(t.cdf(z * math.sqrt(df / (df + 1)), df)))
            else:
                ends.append(float(norm.cdf(z)))
        return min(1.0, 2 * min(ends))


def _bent(
    name: str,
    plain: Mapping[str, int],
    value: float,
    draws: NDArray[np.float64],
    without: NDArray[np.float64],
    clusters: float,
) -> _Bent:
    return _Bent(0.0, 0.0, plain[name]) if name in plain else _Bent.of(value, draws, without, clusters)


def _columns(*sides: Sequence[ArrayLike]) -> list[list[NDArray]]:
    arrays = [[np.asarray(a) for a in side] for side in sides]
    rows = {a.shape[0] if a.ndim else 0 for side in arrays for a in side}
    if len(rows) != 1 or 0 in rows or not all(arrays):
        raise BadInput(
            f"The columns to resample have {sorted(rows)} rows; give one or more columns of the same examples."
        )
    return arrays


def _drawn(
    statistics: Mapping[str, Statistic],
    sides: Sequence[Sequence[NDArray]],
    cluster: ArrayLike | None,
    seed: Seed,
    resamples: int,
    level: float,
    straight: Collection[str],
    rare: ArrayLike | None = None,
) -> _Drawn:
    if resamples < 1:
        raise BadInput(f"resamples is {resamples}; give at least 1, such as 1000.")
    if not 0 < level < 1:
        raise BadInput(f"level is {level}; give a probability between 0 and 1, such as 0.95.")
    n = len(sides[0][0])
    ids = np.arange(n) if cluster is None else np.unique(np.asarray(cluster), return_inverse=True)[1]
    if ids.shape != (n,):
        raise BadInput(f"cluster has {ids.size} rows where {n} are expected; give all columns of the same examples.")
    clusters = int(ids.max()) + 1
    means = {i: s for i, s in enumerate(statistics.values()) if isinstance(s, Means)}
    shares = {i: [s.rows(c) for c in sides] for i, s in enumerate(statistics.values()) if isinstance(s, Share)}
    others = {i: (s, _takes_weight(s)) for i, s in enumerate(statistics.values()) if i not in means and i not in shares}
    size = np.bincount(ids, minlength=clusters).astype(np.float64)
    # Of each side, the sums over every cluster of the columns that are averaged.
    averaged = sorted({c for s in means.values() for c in s.places})
    sums = [{c: np.bincount(ids, columns[c], minlength=clusters) for c in averaged} for columns in sides]
    # Of each share and side, over every cluster: what its rows have beyond what was to be expected, and how many are counted.
    beyond = {
        i: [tuple(np.bincount(ids, w, minlength=clusters) for w in (c * (h - e), c)) for h, e, c in of_sides]
        for i, of_sides in shares.items()
    }

    def of(weights: NDArray[np.float64], others: Mapping[int, tuple[Statistic, bool]]) -> NDArray[np.float64]:
        """(times, sides, statistics) of means and `others`, each cluster counted `weights` (times, clusters); nan where no row
        is left."""
        out = np.full((len(weights), len(sides), len(statistics)), np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            rows = weights @ size
            for s, totals in enumerate(sums):
                mean = {c: weights @ total / rows for c, total in totals.items()}
                for i, statistic in means.items():
                    out[:, s, i] = statistic.of(*(mean[c] for c in statistic.places))
            for i, of_sides in beyond.items():
                for s, (top, counted) in enumerate(of_sides):
                    out[:, s, i] = weights @ top / (weights @ counted)
        many = {i: s for i, (s, _) in others.items() if isinstance(s, Many)}
        for at in range(0, len(weights) if many else 0, step := max(1, AT_ONCE // n)):
            counts = weights[at : at + step][:, ids]
            for s, columns in enumerate(sides):
                for i, statistic in many.items():
                    out[at : at + step, s, i] = np.where(
                        counts.any(axis=1), statistic.of(*columns, weight=counts), np.nan
                    )
        others = {i: s for i, s in others.items() if i not in many}
        for r, weight in enumerate(weights if others else ()):
            row = weight[ids]
            if not row.any():
                continue
            for s, columns in enumerate(sides):
                taken = None
                for i, (statistic, takes_weight) in others.items():
                    if takes_weight:
                        out[r, s, i] = statistic(*columns, weight=row)
                        continue
                    taken = taken or [np.repeat(c, row.astype(np.int64), axis=0) for c in columns]
                    out[r, s, i] = statistic(*taken)
        return out

    names = list(statistics)
    bent = {i: s for i, s in others.items() if names[i] not in straight}
    value = np.array([[statistic(*columns) for statistic in statistics.values()] for columns in sides], np.float64)
    drawn = _resamples(clusters, seed, resamples)
    batches = iter(lambda: list(islice(drawn, BATCH)), [])
    group = np.arange(clusters) % min(clusters, GROUPS)
    without = (group != np.arange(int(group.max()) + 1)[:, None]).astype(np.float64)
    has, apart = _Apart.rare(ids, rare), None
    if has is not None:
        # These are not drawn the usual way as well.
        drawn_apart = {i: others.pop(i) for i in bent if isinstance(others[i][0], Many) or others[i][1]}
        bent = {i: s for i, s in bent.items() if i not in drawn_apart}
        places = {*drawn_apart, *(i for i in means if names[i] not in straight)}
        within = _Apart.drawn(has, seed, resamples)
        within = np.concatenate([of(within[b : b + BATCH], drawn_apart) for b in range(0, resamples, BATCH)])
        apart = _Apart(int(has.sum()), places, of(_Apart.counted(has, level), drawn_apart), within)
    draws = np.concatenate([of(np.stack(w), others) for w in batches])
    left = _less(of(without, bent), 0.0)
    return _Drawn(_less(value, 0.0), _less(draws, 0.0), left, independent_rows(size), ids, shares, apart)


def _resamples(clusters: int, seed: Seed, resamples: int) -> Iterator[NDArray[np.float64]]:
    """How often each cluster is drawn."""
    sequence = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    generator = np.random.default_rng(sequence)
    for _ in range(resamples):
        yield np.bincount(generator.integers(0, clusters, size=clusters), minlength=clusters).astype(np.float64)


def _less(after: ArrayLike, before: ArrayLike) -> NDArray[np.float64]:
    """after - before, and 0 where that is no more than rounding: sums in another order would make a change of what did not change,
    and one that has the same sign in every resample."""
    a, b = np.asarray(after, np.float64), np.asarray(before, np.float64)
    with np.errstate(invalid="ignore"):
        difference = a - b
        alike = np.isfinite(difference) & (np.abs(difference) <= ROUNDING * np.maximum(1.0, np.abs(a)))
        return np.where(alike, 0.0, difference)


def _takes_weight(statistic: Statistic) -> bool:
    try:
        return "weight" in inspect.signature(statistic).parameters
    except (TypeError, ValueError):
        return False


def _rooted(value: float, draws: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """The root of a mean square and of its draws, each with what chance adds to it taken off: once, and twice for draws."""
    defined_draws = draws[~np.isnan(draws)]
    extra = float(defined_draws.mean()) - value if defined_draws.size else 0.0
    return math.sqrt(max(value - extra, 0.0)), np.sqrt(np.maximum(draws - 2 * extra, 0.0))


def _between(
    value: float, draws: NDArray[np.float64], levels: Sequence[float], *, far: bool = False
) -> tuple[float, float]:
    """The quantiles `levels` of the draws. `far`: those that leave exactly as much beyond them, in the mean (Weibull's)."""
    defined_draws = draws[~np.isnan(draws)]
    if 2 * defined_draws.size < draws.size or math.isnan(value):
        return math.nan, math.nan
    low, high = np.quantile(defined_draws, levels, method="weibull" if far else "linear")
    return float(low), float(high)
