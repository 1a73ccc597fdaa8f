"""Worlds: distributions of synthetic data in which the truth is known, and how often a verdict is right there. No model is used.

The verdict of a fault is a function of arrays. So it can be run a thousand times on data drawn with the fault, or without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

WORDS = ("found", "clear", "undecided")


@dataclass(frozen=True)
class Judged:
    """What a verdict function returns for one draw.

    Attributes:
        verdict: one of `WORDS`.
        intervals: of every number that would be printed: key -> low, high.
        learnt: what `World.truth` needs to compute the true values of these numbers.
    """

    verdict: str
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    learnt: Any = None


@dataclass(frozen=True)
class World:
    """A distribution of data, and the verdict that is tested on draws from it.

    Attributes:
        name: the name in tables. fault: the fault whose verdict is tested.
        kind: ``null`` for data without the fault, ``fault`` for data with it.
        draw: (generator, n) -> the arrays of one data set of n independent clusters, as `judge` takes them.
        judge: (arrays, seed) -> what the verdict function returns for them.
        truth: what `judge` returned -> the true value of each number by key, given `Judged.learnt`. Keys without a true value are
            left out.
    """

    name: str
    fault: str
    kind: Literal["null", "fault"]
    draw: Callable[[np.random.Generator, int], Any]
    judge: Callable[[Any, int], Judged]
    truth: Callable[[Judged], Mapping[str, float]] = lambda judged: {}


@dataclass(frozen=True)
class Rates:
    """How often each verdict was given in `runs` draws, and, by key, how many intervals held the truth.

    Two `Rates` can be added. `held` has three counts for each key: intervals below the truth, intervals that hold it, and
    intervals above it. An interval of no width or with an end of nan is not counted.
    """

    runs: int = 0
    words: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(WORDS, 0))
    held: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)

    def __add__(self, other: Rates) -> Rates:
        words = {w: self.words[w] + other.words[w] for w in WORDS}
        none = (0, 0, 0)
        interval_counts = {}
        for k in dict.fromkeys([*self.held, *other.held]):
            a, b = self.held.get(k, none), other.held.get(k, none)
            interval_counts[k] = (a[0] + b[0], a[1] + b[1], a[2] + b[2])
        return Rates(self.runs + other.runs, words, interval_counts)

    def rate(self, word: str) -> float:
        return self.words[word] / self.runs if self.runs else float("nan")

    def coverage(self, key: str) -> float:
        """The share of intervals that held the truth; nan where there were none."""
        below, inside, above = self.held.get(key, (0, 0, 0))
        return inside / (below + inside + above) if below + inside + above else float("nan")


def rates(world: World, n: int, runs: int, seed: int, *, first: int = 0) -> Rates:
    """Draw `runs` data sets of `n` clusters, judge each, and count. Run i depends on `seed`, `n` and `first` + i alone."""
    total = Rates()
    for i in range(first, first + runs):
        stream = np.random.SeedSequence([seed, n, i])
        judged = world.judge(world.draw(np.random.default_rng(stream), n), int(stream.generate_state(1)[0]))
        truth, interval_counts = world.truth(judged), {}
        for key, (low, high) in judged.intervals.items():
            if key in truth and high > low:
                interval_counts[key] = (int(high < truth[key]), int(low <= truth[key] <= high), int(low > truth[key]))
        total += Rates(1, {w: int(w == judged.verdict) for w in WORDS}, interval_counts)
    return total
