"""Simulated worlds for `trueup bench verdicts`: logits of classifiers whose lean on a group is known."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trueup.corpus import mix
from trueup.corpus.corpus import Corpus
from trueup.faults.confounding import search, several
from trueup.faults.confounding.mixes import (
    FEWEST,
    along_own,
    columns,
    in_cells,
    judged,
    judges,
    measured,
    mixes,
    nominal,
    statistics,
)
from trueup.measure import lean, shift
from trueup.measure.worlds import Judged, World


@dataclass(frozen=True)
class Classifier:
    """A classifier whose logits are the sum of a signal, noise, a prior, and a head start for each group.

    Attributes:
        classes, groups: the numbers of classes and groups.
        prevalence, share: P(y = last) and P(z = last); the other classes and groups are equally likely.
        coupling: how many times as frequent each class is in its own group in the data drawn, with even margins.
        signal: the lead of the right class' logit, in margin standard deviations, for each group (repeated as needed).
        start: the difference between the groups' head starts, in margin standard deviations; below 0 it is against the coupling.
        skew: 0 for normal noise; above 0 the noise is skewed, as evidence from rare words is.
    """

    classes: int = 2
    groups: int = 2
    prevalence: float = 0.5
    share: float = 0.5
    coupling: float = 1.0
    signal: tuple[float, ...] = (0.75, 0.75)
    start: float = 0.0
    skew: float = 0.0

    @property
    def direction(self) -> NDArray[np.float64]:
        """(C, G): which class goes with which group."""
        return lean.along(np.eye(self.classes)[:, np.arange(self.groups) % self.classes], np.e**2)

    def draw(self, rng: np.random.Generator, n: int) -> tuple[NDArray, NDArray, NDArray]:
        """Logits (n, C), labels and groups (n,)."""
        y, z = (
            np.array([(1 - last) / (k - 1)] * (k - 1) + [last])
            for last, k in ((self.prevalence, self.classes), (self.share, self.groups))
        )
        table = shift.coupled_as(np.outer(y, z), np.exp(self.direction * np.log(self.coupling) / 2))
        label, group = np.divmod(rng.choice(table.size, n, p=table.ravel() / table.sum()), self.groups)
        noise = rng.normal(size=(n, self.classes))
        if self.skew:
            noise = rng.gamma(1 / self.skew**2, self.skew, size=noise.shape) - 1 / self.skew
        logits = noise / np.sqrt(2) + np.log(y)
        logits[np.arange(n), label] += 2 * np.resize(self.signal, self.groups)[group]
        return logits + self.start * self.direction[:, group].T / 2, label, group


Drawn = tuple[NDArray, NDArray, NDArray, NDArray]
"""Logits (n, C), labels, groups and clusters (n,)."""
RESAMPLES, THRESHOLD, LARGE = 300, 0.05, 200_000
PRINTED = ("lean", "floor", "use", "true_positive_gap", "false_positive_gap")


def _draw(world: Classifier, times: int, rng: np.random.Generator, n: int) -> Drawn:
    rows = np.repeat(np.arange(n), times)
    logits, label, group = world.draw(rng, n)
    return logits[rows], label[rows], group[rows], rows


def judge(shape: tuple[int, int], drawn: Drawn, seed: int) -> Judged:
    """The audit's verdict on these logits; undecided where the audit refuses, because a label has too few examples in a group."""
    logits, label, group, cluster = drawn
    cells = np.bincount(label * shape[1] + group, minlength=shape[0] * shape[1]).reshape(shape).astype(float)
    if not cells.all() or in_cells(label, group, cluster).min() < FEWEST:
        return Judged("undecided")
    samples = columns(logits, label, group) | {"cluster": cluster, "judges": judges(cluster, seed)}
    direction, strength, _ = nominal(cells, None, 0.0)
    if shape != (2, 2):
        direction = lean.head_starts(samples["score"], label, group, shape)
    m = mixes(cells, direction, strength)
    statistics_of = statistics(samples, m)
    estimates = measured(
        {k: statistics_of[k] for k in PRINTED if k in statistics_of}, samples, shape, seed=seed, resamples=RESAMPLES
    )
    found = judged(estimates["lean"], cluster, threshold=THRESHOLD, sentence="")
    intervals = {k: (e.low, e.high) for k, e in estimates.items()} | {"severity": (found.low, found.high)}
    return Judged(found.verdict, intervals, along_own(samples, m))


def _truth(world: Classifier, said: Judged) -> Mapping[str, float]:
    """The lean and floor of a large draw, at the coupling that was examined; also gaps of 0 where groups differ only in size."""
    if said.learnt is None:
        return {}
    logits, label, group = _large(world)
    drop, floor = lean.drop_and_floor(lean.centred(logits), label, group, said.learnt)
    alike = not world.start and len(set(world.signal)) == 1
    found = {"severity": abs(drop - floor), "lean": drop - floor, "floor": floor}
    return found | (dict.fromkeys(PRINTED[2:], 0.0) if alike else {})


@functools.lru_cache(maxsize=2)
def _large(world: Classifier) -> tuple[NDArray, NDArray, NDArray]:
    return world.draw(np.random.default_rng(0), LARGE)


def _world(name: str, kind: Any, world: Classifier, times: int = 1) -> World:
    return World(
        name, "confounding", kind, functools.partial(_draw, world, times),
        functools.partial(judge, (world.classes, world.groups)), functools.partial(_truth, world),
    )  # fmt: skip


HARD, EASY = (1.25, 0.5), (0.5, 1.25)
NULL: dict[str, Classifier] = {
    "alike groups, attribute by dice": Classifier(),
    "a harder group, coupled 3": Classifier(signal=HARD, coupling=3),
    "a harder group, coupled 1/5": Classifier(signal=EASY, coupling=0.2),
    "prevalence 20%, group 30%": Classifier(prevalence=0.2, share=0.3, signal=HARD),
    "prevalence 10%, coupled 2": Classifier(prevalence=0.1, share=0.3, signal=EASY, coupling=2),
    "prevalence 5%, group 20%": Classifier(prevalence=0.05, share=0.2, signal=HARD),
    "group 10%, coupled 0.2": Classifier(prevalence=0.5, share=0.1, signal=EASY, coupling=0.2),
    "3 classes, 2 groups": Classifier(classes=3, prevalence=1 / 3, signal=HARD),
    "4 classes, 3 groups, coupled": Classifier(4, 3, 0.25, 1 / 3, 2.0, (0.75, 0.4, 0.6)),
    "2 classes, 6 groups": Classifier(2, 6, 0.4, 1 / 6, 1.0, (0.75, 0.5, 1.0)),
    "6 classes, 2 groups": Classifier(6, 2, 1 / 6, 0.5, 2.0, (1.0, 0.6)),
    "skewed evidence, a harder group": Classifier(signal=HARD, coupling=3, skew=1.0),
}
FAULT: dict[str, Classifier] = {
    "head start 1 sd": Classifier(start=1, coupling=2),
    "against, -1 sd": Classifier(start=-1, coupling=2),
    "1 sd, balanced data": Classifier(start=1),
    "1 sd, reversed data": Classifier(start=1, coupling=1 / 3),
    "1 sd and a harder group": Classifier(start=1, coupling=2, signal=HARD),
    "1 sd, prevalence 20%, group 30%": Classifier(start=1, coupling=2, prevalence=0.2, share=0.3),
    "1.5 sd, 4 classes, 3 groups": Classifier(4, 3, 0.25, 1 / 3, 2.0, (0.75,), start=1.5),
}


# ---- several columns at once: whether their intervals hold together


@dataclass(frozen=True)
class Leaning:
    """Two classes, and columns of two groups each. Each column adds a head start of `starts` margin standard deviations.

    `tied`: the share of the variance of the columns' scores that they have in common.
    """

    starts: tuple[float, ...] = (1.0, 0.6, 0.0)
    tied: float = 0.3

    def draw(self, rng: np.random.Generator, n: int) -> Corpus:
        """A corpus with the score of class "b" as text in its `others`, and with each column as an attribute."""
        label, common = rng.integers(0, 2, n), rng.normal(size=n)
        score = rng.normal(size=n) + 1.5 * label
        groups = {}
        for i, start in enumerate(self.starts):
            x = np.sqrt(self.tied) * common + np.sqrt(1 - self.tied) * rng.normal(size=n)
            score += start * (x > 0)
            groups[f"column {i}"] = np.where(x > 0, "high", "low")
        return Corpus(
            [str(i) for i in range(n)], label, ("a", "b"), np.full(n, "test"), attributes=groups,
            others={"score": score.astype(str)}, cluster=np.arange(n),
        )  # fmt: skip


def _scores(corpus: Corpus) -> NDArray:
    x = corpus.others["score"].astype(float)
    return np.stack([-x, x], axis=1) / 2


def judge_columns(world: Leaning, corpus: Corpus, seed: int) -> Judged:
    """Whether the interval of every further column contains its true value, as one interval that then contains 0.

    The verdict is `found` where a column of independent noise is found.
    """
    scores, first = _scores(corpus), next(iter(corpus.attributes))
    group = mix.group_index(corpus, first, mix.groups_of(corpus, first))
    samples = columns(scores, corpus.label, group) | {"cluster": corpus.cluster, "judges": judges(corpus.cluster, seed)}
    further, _ = several.others(
        corpus, samples, first, coupling=0.0, threshold=THRESHOLD, resamples=RESAMPLES, seed=seed
    )
    if not further:  # too few examples of some label in some group
        return Judged("undecided")
    many = _many(world)
    far = lean.centred(_scores(many))
    below, above = [], []
    for f in further:
        groups_of_many = mix.group_index(many, f.column.name, f.column.groups)
        drop, floor = lean.drop_and_floor(
            far, many.label, groups_of_many, along_own(f.column.samples(samples), f.column.mixes)
        )
        below.append(f.lean.low - float(drop - floor))
        above.append(f.lean.high - float(drop - floor))
    low, high = max(below), min(above)
    dice = {f"column {i}" for i, s in enumerate(world.starts) if not s and not world.tied}
    wrong = any(f.verdict == "found" for f in further if f.column.name in dice)
    return Judged("found" if wrong else "undecided", {"all together": (low, high) if low < high else (1.0, 2.0)})


@functools.lru_cache(maxsize=2)
def _many(world: Leaning) -> Corpus:
    return world.draw(np.random.default_rng(0), LARGE // 4)


def _together(name: str, world: Leaning) -> World:
    return World(
        name, "confounding, several columns", "null", world.draw, functools.partial(judge_columns, world),
        lambda judged: {"all together": 0.0},
    )  # fmt: skip


# ---- the scout: how often it names a column


@dataclass(frozen=True)
class Columns:
    """A weak classifier, and random columns, the first of which gives a head start.

    Attributes:
        start: the head start, in margin standard deviations. shared: the share of the columns' variance that they have in common.
        many: the number of columns. hidden: how many of them (the last) nobody can check by reading, as with clusters of hidden
            states. Each of these is a copy of one of the first columns with a tenth of its rows inverted.
    """

    start: float = 0.0
    shared: float = 0.0
    many: int = 60
    hidden: int = 0

    def draw(self, rng: np.random.Generator, n: int) -> tuple[list[NDArray], NDArray, NDArray]:
        """Columns, logits and labels of 2n examples: the first n search, and the others judge."""
        label, common = rng.integers(0, 2, 2 * n), rng.normal(size=2 * n)
        found = []
        for k in range(self.many - self.hidden):
            x = np.sqrt(self.shared) * common + np.sqrt(1 - self.shared) * rng.normal(size=2 * n)
            found.append(np.where(x > np.quantile(x, 1 - (rng.uniform(0.2, 0.5) if k else 0.4)), "there", "not there"))
        for k in range(self.hidden):
            turned = rng.random(2 * n) < 0.1
            found.append(np.where((found[k] == "there") ^ turned, "there", "not there"))
        logits = rng.normal(size=(2 * n, 2)) / np.sqrt(2)
        logits[np.arange(2 * n), label] += 0.5
        logits[:, 1] += self.start * (found[0] == "there")
        return found, logits, label


def judge_scout(
    threshold: float, only: int | None, hidden: int, drawn: tuple[list[NDArray], NDArray, NDArray], seed: int
) -> Judged:
    """The verdict `found` where a column is named; with `only`, where this column is named. `hidden`: as in `Columns`."""
    found, logits, label = drawn
    half = np.arange(len(label)) < len(label) // 2
    first, second = (search.Side(lean.centred(logits[r]), label[r], np.arange(len(label))[r]) for r in (half, ~half))
    leads, _ = search.put_forward([c[half] for c in found], first, range(len(found) - hidden, len(found)))
    named = [
        j.lead.column
        for j in search.judge(leads, [found[x.column][~half] for x in leads], second, threshold=threshold, seed=seed)[0]
        if j.named
    ]
    return Judged("found" if (named if only is None else only in named) else "undecided")


def _scout(name: str, kind: Any, world: Columns, threshold: float = THRESHOLD, only: int | None = None) -> World:
    return World(
        name, "confounding, a scout", kind, world.draw, functools.partial(judge_scout, threshold, only, world.hidden)
    )


WORLDS = (
    *(_world(name, "null", w) for name, w in NULL.items()),
    _world("every text four times, a harder group", "null", Classifier(signal=HARD, coupling=3), 4),
    *(_world(name, "fault", w) for name, w in FAULT.items()),
    _world("every text four times, 1 sd", "fault", Classifier(start=1, coupling=2), 4),
    _together("leans of 1 sd, 0.6 sd and none, tied columns", Leaning()),
    _together("no lean, columns of dice", Leaning((0.0, 0.0, 0.0), 0.0)),
    _scout("60 columns of dice", "null", Columns()),
    _scout("60 tied columns of dice", "null", Columns(shared=0.5)),
    _scout("60 columns of dice, 20 of them clusters like others", "null", Columns(hidden=20)),
    _scout("one of 60 columns leans 1 sd", "fault", Columns(start=1.0), only=0),
    _scout("one of 60 columns leans 1 sd, with a cluster like it", "fault", Columns(start=1.0, hidden=20), only=0),
)
