"""What the fault confounding estimates, on arrays: the mixes at which a classifier is examined, and the statistics there.

A mix is a joint table of label and group. Its coupling says how many times as frequent a class is in its own group. The lean is
the AUPRC that is lost to head starts (a class's higher score in a group at a given label) when the coupling is reversed. The
floor is what is lost because a group is harder. Nothing here reads a model, so that `trueup bench verdicts` judges its simulated
worlds with the same code as an audit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trueup.faults.fault import Difference, Finding, as_differences
from trueup.measure import bootstrap, gaps, lean, shift
from trueup.measure.accuracy import same_predictions
from trueup.measure.calibration import softmax, surprises
from trueup.measure.folds import folds

FEWEST = 10
"""The fewest clusters in a (label, group) cell (the protocol's rule, `corpus.mix.FEWEST`)."""
POINTS = 9
REACH = 5.0
"""The curve has `POINTS` points from coupling 1/5 to 5, or further where the nominal coupling is above 5."""
CLEAR, MOST = 2.0, 5.0
"""A training coupling above `CLEAR` becomes the nominal coupling, but at most `MOST`: beyond it the rarest cells decide alone."""
COLUMNS = ("probability", "predicted", "label", "group", "score")


@dataclass(frozen=True, eq=False)
class Mixes:
    """The joint tables of label and group, (C, G) shares with the same margins, at which a classifier is examined.

    Attributes:
        coupling: (C, G) interaction terms of the log cells at the nominal coupling, which rows and columns do not explain
            (`lean.along`). With two classes and two groups, its direction is that of the training or the examined examples. With
            more, it follows the classifier's head starts.
        strength: the nominal coupling: how many times as frequent each class is in its own group, with even margins.
        x, tables: the curve: log10 of each coupling, below 0 where it is reversed, and the table at it.
        balanced: the table without coupling. towards, against: the tables at the nominal coupling and at its reverse.
    """

    coupling: NDArray
    strength: float
    x: NDArray
    tables: tuple[NDArray, ...]
    balanced: NDArray
    towards: NDArray
    against: NDArray


def nominal(cells: NDArray, trained: NDArray | None, wanted: float) -> tuple[NDArray, float, str]:
    """The nominal coupling: its direction, its strength, and the examples that the direction comes from.

    Args:
        cells: (C, G) counts of the examined examples. trained: counts of the training examples, where they are known.
        wanted: the strength to use; 0 for that of the training examples where it is above `CLEAR`, else `lean.NOMINAL`.

    Returns: the direction (C, G), the strength, and ``training`` or ``examined``.
    """
    # The default where neither table is coupled. Any direction serves then: the lean is reported with its sign.
    whose, logs = "examined", lean.interaction(np.eye(*cells.shape))
    for name, table in (("examined", cells), ("training", trained)):
        if table is not None and np.abs(interactions := lean.interaction(np.log(_filled(table)))).max() > 1e-9:
            whose, logs = name, interactions
    coupling = math.exp(2 * float(np.abs(logs).max()))
    strength = wanted or (min(coupling, MOST) if whose == "training" and coupling > CLEAR else lean.NOMINAL)
    return logs, strength, whose


def _filled(trained: NDArray) -> NDArray:
    """The counts; where a cell is empty, half an example per cell is added, spread over the cells as without coupling."""
    t = np.asarray(trained, np.float64)
    if t.all():
        return t
    rows, columns = t.sum(axis=1, keepdims=True) + 1, t.sum(axis=0, keepdims=True) + 1
    return t + t.size / 2 * rows * columns / (rows.sum() * columns.sum())


def mixes(cells: NDArray, direction: NDArray, strength: float) -> Mixes:
    """The tables for a direction and a strength of the coupling, with the margins of `cells` (C, G)."""
    share = cells / cells.sum()
    balanced = share.sum(axis=1, keepdims=True) * share.sum(axis=0, keepdims=True)
    coupling = lean.along(direction, strength)
    x = np.linspace(-1, 1, POINTS) * math.log10(max(REACH, strength))

    def at(log10: float) -> NDArray:
        return shift.coupled_as(balanced, np.exp(coupling * (log10 / math.log10(strength))))

    nominal = math.log10(strength)
    return Mixes(coupling, strength, x, tuple(map(at, x.tolist())), balanced, at(nominal), at(-nominal))


def in_cells(label: NDArray, group: NDArray, cluster: NDArray) -> NDArray[np.int64]:
    """(C, G) the number of clusters in each (label, group) cell, up to the last label and group that occur.

    Rows that repeat the cell of their cluster are not counted again, because they are not independent.
    """
    y, z = np.unique(np.stack([label, group, cluster]), axis=1)[:2]
    found = np.zeros((int(label.max()) + 1, int(group.max()) + 1), np.int64)
    np.add.at(found, (y, z), 1)
    return found


def judges(cluster: NDArray, seed: int) -> NDArray[np.bool_]:
    """(n,) whether a row judges: two thirds of the rows, split by clusters. Choices are made on the other rows."""
    return folds(np.zeros(len(cluster)), 3, seed=np.random.SeedSequence([seed, 11]), cluster=cluster) > 0


def statistics(samples: Mapping[str, NDArray], m: Mixes, *, own: bool = True) -> dict[str, Callable[..., float]]:
    """key -> statistic, a function of the columns `COLUMNS` and weight. ``curve0`` and so on are AUPRC at the mixes of the curve.

    Some choices are made on the `samples` that do not judge, and are then fixed: which groups have the widest gap and, beyond two
    classes and two groups, the direction of the coupling. Where `own` is False, that direction is the one of `m`, which other
    examples chose.
    """
    shape = m.coupling.shape
    probability, predicted, label, group = (samples[k] for k in COLUMNS[:4])
    rows = np.ones(len(label), bool)
    coupling = m.coupling
    if own and shape != (2, 2):
        rows, coupling = samples["judges"], along_own(samples, m)

    def parts(probability, predicted, label, group, score, weight) -> NDArray:
        return lean.drop_and_floor(score[rows], label[rows], group[rows], coupling, weight=weight[:, rows])

    def curve(probability, predicted, label, group, score, weight) -> NDArray:
        return lean.auprcs_at(score, label, group, (*m.tables, m.balanced, m.towards, m.against), weight=weight)

    turned, ranked, size = _kept(parts), _kept(curve), len(m.tables)

    def of(found: Callable[..., NDArray], what: Callable[[NDArray], NDArray]) -> bootstrap.Many:
        return bootstrap.Many(lambda *columns, weight: what(found(*columns, weight=weight)))

    def right(probability, predicted, label, group, score) -> NDArray:
        return predicted == label

    def surprise(probability, predicted, label, group, score, weight) -> NDArray:
        return weight @ surprises(probability, label) / weight.sum(axis=1)

    def chosen(table, choose, judge) -> Callable[..., float]:
        held = gaps.judged(table, choose, judge, samples["judges"])
        return lambda *columns, weight=None: held(weight)

    def of_rates(of) -> gaps.Table:
        return lambda w: of(gaps.confusion(predicted, label, group, shape, w))

    table = gaps.confusion(predicted, label, group, shape, (~samples["judges"]).astype(np.float64))
    g, c = gaps.lowest(gaps.true_positive_rates(table))
    worst = samples["judges"] & (group == g) & (label == c)
    found = {
        "severity": of(turned, lambda p: np.abs(p[0] - p[1])), "lean": of(turned, lambda p: p[0] - p[1]),
        "floor": of(turned, lambda p: p[1]), "drop": of(turned, lambda p: p[0]), "auprc": of(ranked, lambda a: a[-1]),
        "auprc_balanced": of(ranked, lambda a: a[size]), "auprc_towards": of(ranked, lambda a: a[size + 1]),
        "auprc_against": of(ranked, lambda a: a[size + 2]), "level": of(ranked, lambda a: a[:size].mean(axis=0)),
        "use": chosen(
            lambda w: gaps.mean_predictions(probability, label, group, shape[1], w), gaps.farthest, gaps.moved
        ),
        "accuracy": bootstrap.Share(right),
        "worst_group_accuracy": bootstrap.Share(right, lambda *columns: worst),
        "true_positive_gap": chosen(of_rates(gaps.true_positive_rates), gaps.widest, gaps.gap),
        "false_positive_gap": chosen(of_rates(gaps.false_positive_rates), gaps.widest, gaps.gap),
        "nll": bootstrap.Many(surprise),
    }  # fmt: skip
    found |= {f"curve{i}": of(ranked, lambda a, i=i: a[i]) for i in range(size)}
    if shape[0] == 2:
        # With two classes, a false positive of one is a miss of the other, so both gaps are the same number.
        del found["false_positive_gap"]
    return found


def _kept(of: Callable[..., NDArray]) -> Callable[..., NDArray]:
    """`of`, with its last result remembered for as long as `weight` is the same object.

    Several statistics need the same numbers of each resample.
    """
    last: tuple[object, NDArray] | None = None

    def kept(*columns, weight) -> NDArray:
        nonlocal last
        if last is None or last[0] is not weight:
            last = weight, of(*columns, weight=weight)
        return last[1]

    return kept


def rates(samples: Mapping[str, NDArray], shape: tuple[int, int], level: float = 0.95) -> dict[str, bootstrap.Estimate]:
    """The gaps between rates among `statistics`, with intervals that are valid near 0 and 1 (`gaps.share`, `gaps.between`)."""
    predicted, cluster = samples["predicted"], samples["cluster"]
    return {
        key: gaps.between(*(gaps.share(predicted == c, rows, cluster, level=level) for rows in groups))
        for key, (c, *groups) in _widest(samples, shape).items()
    }


def _widest(samples: Mapping[str, NDArray], shape: tuple[int, int]) -> dict[str, tuple[int, NDArray, NDArray]]:
    """For each gap, its class and the judging rows (n,) of the two groups compared, the group with the higher rate first."""
    predicted, label, group, rows = (samples[k] for k in ("predicted", "label", "group", "judges"))
    table = gaps.confusion(predicted, label, group, shape, (~rows).astype(np.float64))
    found = {}
    for key, of, of_others in (
        ("true_positive_gap", gaps.true_positive_rates, False), ("false_positive_gap", gaps.false_positive_rates, True),
    ):  # fmt: skip
        c, high, low = gaps.widest(of(table))
        found[key] = (c, *(rows & (group == g) & ((label == c) != of_others) for g in (high, low)))
    return found


def _moved_gaps(
    before: Mapping[str, NDArray], after: Mapping[str, NDArray], shape: tuple[int, int], keys: Sequence[str], *, seed: int,
    resamples: int,
) -> dict[str, bootstrap.PairedEstimate]:  # fmt: skip
    """The changes of the gaps among `keys`, from the two groups' rates. Gaps that compare other groups afterwards are left out."""
    found, then = {}, _widest(after, shape)
    for key, (c, *groups) in _widest(before, shape).items():
        if (
            key not in keys
            or then[key][0] != c
            or not all(np.array_equal(a, b) for a, b in zip(groups, then[key][1:], strict=True))
        ):
            continue
        gap_differences = {
            i: bootstrap.Share(lambda p, c=c: p == c, lambda p, rows=rows: rows)
            for i, rows in zip(("high", "low"), groups, strict=True)
        }
        sides = ([s["predicted"]] for s in (before, after))
        estimates = bootstrap.paired_many(
            gap_differences, *sides, seed=seed, resamples=resamples, cluster=before["cluster"]
        )  # type: ignore[misc]
        found[key] = gaps.change(estimates["high"], estimates["low"])
    return found


def measured(
    statistics: Mapping[str, Callable[..., float]], samples: Mapping[str, NDArray], shape: tuple[int, int], *more: str,
    seed: int, resamples: int, level: float = 0.95,
) -> dict[str, bootstrap.Estimate]:  # fmt: skip
    """Each of `statistics` on the samples with its interval: by a bootstrap over clusters, or by `rates` for gaps between rates.

    Args:
        more: keys of further statistics that rank weighted examples, besides `WEIGHTED`. level: the level of the intervals.
    """
    shares = {k: e for k, e in rates(samples, shape, level).items() if k in statistics}
    estimates = bootstrap.interval_many(
        {k: s for k, s in statistics.items() if k not in shares}, *(samples[k] for k in COLUMNS), seed=seed,
        resamples=resamples, level=level, plain=weighted(samples, *more), cluster=samples["cluster"],
    )  # fmt: skip
    return estimates | shares


def along_own(samples: Mapping[str, NDArray], m: Mixes) -> NDArray:
    """The coupling (C, G) at which the lean is measured.

    For two classes and two groups it is that of `m`. Otherwise it follows the head starts of the rows that do not judge, or is
    that of `m` where these rows lack a (label, group) cell.
    """
    if m.coupling.shape == (2, 2):
        return m.coupling
    rows = ~samples["judges"]
    starts = lean.head_starts(samples["score"][rows], samples["label"][rows], samples["group"][rows], m.coupling.shape)
    return m.coupling if np.isnan(starts).any() else lean.along(starts, m.strength)


TITLES: dict[str, tuple[str, str, str]] = {
    "lean": ("lean on the attribute", "AUPRC lost, above 0 with the coupling, below 0 against it", "zero"),
    "floor": ("floor: lost because a group is harder", "AUPRC lost, signed", "zero"),
    "drop": ("drop when the coupling is reversed: lean and floor", "AUPRC lost, signed", "zero"),
    "auprc": ("AUPRC on the examples as they are", "average precision", "higher"),
    "auprc_balanced": ("AUPRC without coupling of label and attribute", "average precision", "higher"),
    "auprc_towards": ("AUPRC at the nominal coupling", "average precision", "higher"),
    "auprc_against": ("AUPRC at the nominal coupling reversed", "average precision", "higher"),
    "level": ("AUPRC, mean over all couplings", "average precision", "higher"),
    "use": ("use of the attribute", "probability moved by the group at a given label, 0 by chance", "lower"),
    "accuracy": ("accuracy", "share of examples", "higher"),
    "worst_group_accuracy": ("accuracy of the worst (label, group) cell", "share of the cell", "higher"),
    "false_positive_gap": ("gap in false positive rate", "probability, 0 by chance", "lower"),
    "true_positive_gap": ("gap in true positive rate", "probability, 0 by chance", "lower"),
    "nll": ("NLL of the classes", "nats", "lower"),
}
"""key -> title, unit, which direction is better."""


def folded(e: bootstrap.Estimate) -> tuple[float, float]:
    """The interval of |lean|, which begins at 0 where the interval of the lean contains 0.

    So the verdicts `found` and `clear` depend on both ends of the signed interval.
    """
    low, high = sorted((abs(e.low), abs(e.high)))
    return (0.0 if e.low <= 0 <= e.high else low), high


def judged(measured: bootstrap.Estimate, cluster: NDArray, *, threshold: float, **rest: Any) -> Finding:
    """The finding of a lean: its absolute value, the interval of that (`folded`), and a doubt where clusters are few."""
    low, high = folded(measured)
    value = abs(measured.value)
    return Finding(
        fault="confounding", unit="AUPRC lost to leaning on the attribute", severity=value, low=low, high=high,
        threshold=threshold, doubt=bootstrap.too_few(cluster),
        needed=bootstrap.clusters_needed(value, low, high, threshold, cluster), **rest,
    )  # fmt: skip


def columns(logits: NDArray, label: NDArray, group: NDArray) -> dict[str, NDArray]:
    """The columns that `statistics` needs, from the logits (n, C) of the classes that occur."""
    score = lean.centred(logits)
    return {
        "probability": softmax(score), "predicted": score.argmax(axis=1), "label": label, "group": group,
        "score": score,
    }  # fmt: skip


def differences(
    before: Mapping[str, NDArray], after: Mapping[str, NDArray], m: Mixes, n: Mixes | None, keys: Sequence[str], *,
    resamples: int, seed: int,
) -> dict[str, Difference]:  # fmt: skip
    """Paired differences, after minus before, between two sets of samples of the same examples.

    Each side has its own mixes (`m` before, `n` after) and makes its own choices. Where `n` is None, both are examined along the
    coupling of `m`. Keys that are not statistics of these classes and groups are left out.
    """
    own_mixes = n is not None
    sides = [statistics(s, of, own=own_mixes) for s, of in ((before, m), (after, n if own_mixes else m))]

    # Where all predictions are the same, the difference is certainly 0 and not an estimate.
    certain = same_predictions(before["score"], after["score"])

    def either(key: str) -> Callable[..., float]:
        # The last column says which side this is.
        if isinstance(sides[0][key], bootstrap.Many):
            return bootstrap.Many(lambda *c, weight: sides[int(c[-1][0])][key].of(*c[:-1], weight=weight))  # type: ignore[attr-defined]
        if isinstance(sides[0][key], bootstrap.Share) and not certain:
            rows = [s[key].rows([x[k] for k in COLUMNS]) for s, x in zip(sides, (before, after), strict=True)]  # type: ignore[attr-defined]
            return bootstrap.Share(lambda *c: rows[int(c[-1][0])][0], lambda *c: rows[int(c[-1][0])][2])
        return lambda *c, weight=None: sides[int(c[-1][0])][key](*c[:-1], weight=weight)

    size = len(before["label"])
    present_keys = [k for k in keys if k in sides[0]]
    moved = (
        {} if certain else _moved_gaps(before, after, m.coupling.shape, present_keys, seed=seed, resamples=resamples)
    )  # type: ignore[arg-type]
    estimates = bootstrap.paired_many(
        {k: either(k) for k in present_keys if k not in moved},
        [*(before[k] for k in COLUMNS), np.zeros(size)],
        [*(after[k] for k in COLUMNS), np.ones(size)],
        seed,
        resamples=resamples,
        plain=weighted(before),
        cluster=before["cluster"],
    )
    return as_differences({k: (estimates | moved)[k] for k in present_keys})


WEIGHTED = ("severity", "lean", "floor", "drop", "auprc_balanced", "auprc_towards", "auprc_against", "level")
"""Statistics that rank weighted examples. Their intervals are plain percentiles (`plain` in `bootstrap.interval_many`)."""


def weighted(samples: Mapping[str, NDArray], *more: str) -> dict[str, int]:
    """Each of `WEIGHTED`, and `more`, with the number of clusters in the (label, group) cell that has the fewest."""
    counted = in_cells(samples["label"], samples["group"], samples["cluster"])
    return dict.fromkeys((*WEIGHTED, *more), int(counted[counted > 0].min()))
