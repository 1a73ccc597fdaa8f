"""Worlds of the bench of verdicts: classifiers of which the lean on a group is known, as numbers alone."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    """A classifier's logits where label and group are coupled: a signal, noise, a prior, and a head start for each group.

    Attributes:
        classes, groups: how many there are.
        prevalence, share: P(y = last), P(z = last); the others are alike.
        coupling: of label and group in the data drawn: with even margins each class is so many times as frequent in its group.
        signal: what the own class' logit is ahead by, in margin standard deviations, group by group (in turn).
        start: how far apart the groups' head starts are, in margin standard deviations; below 0 against the coupling.
        skew: 0 for normal noise; above it noise is skewed, as evidence of rare words is.
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
    """The audit's verdict on these logits; undecided where it refuses, for want of examples of a label in a group."""
    logits, label, group, cluster = drawn
    cells = np.bincount(label * shape[1] + group, minlength=shape[0] * shape[1]).reshape(shape).astype(float)
    if not cells.all() or in_cells(label, group, cluster).min() < FEWEST:
        return Judged("undecided")
    samples = columns(logits, label, group) | {"cluster": cluster, "judges": judges(cluster, seed)}
    direction, strength, _ = nominal(cells, None, 0.0)
    if shape != (2, 2):
        direction = lean.head_starts(samples["score"], label, group, shape)
    m = mixes(cells, direction, strength)
    wanted = statistics(samples, m)
    got = measured({k: wanted[k] for k in PRINTED if k in wanted}, samples, shape, seed=seed, resamples=RESAMPLES)
    found = judged(got["lean"], cluster, threshold=THRESHOLD, sentence="")
    intervals = {k: (e.low, e.high) for k, e in got.items()} | {"severity": (found.low, found.high)}
    return Judged(found.verdict, intervals, along_own(samples, m))


def _truth(world: Classifier, said: Judged) -> Mapping[str, float]:
    """The lean and floor of a large draw, at the coupling that was looked at; gaps where groups are alike but in number."""
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
WORLDS = (
    *(_world(name, "null", w) for name, w in NULL.items()),
    _world("every text four times, a harder group", "null", Classifier(signal=HARD, coupling=3), 4),
    *(_world(name, "fault", w) for name, w in FAULT.items()),
    _world("every text four times, 1 sd", "fault", Classifier(start=1, coupling=2), 4),
)
