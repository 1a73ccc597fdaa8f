"""Worlds in which the truth is known, and how often a verdict is right there: numbers only, no model.

A fault's verdict takes arrays, so it can be asked a thousand times about data that were drawn to have the fault, or not to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

WORDS = ("found", "clear", "undecided")


@dataclass(frozen=True)
class Judged:
    """What a verdict function says of one draw.

    Attributes:
        verdict: one of `WORDS`.
        intervals: every number that would be printed: key -> low, high.
        learnt: what `World.truth` needs to say what these should hold.
    """

    verdict: str
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    learnt: Any = None


@dataclass(frozen=True)
class World:
    """A way in which data come about, and the verdict that is put to the test on them.

    Attributes:
        name: what a reader calls it. fault: whose verdict.
        kind: ``null`` where there is nothing to be found, ``fault`` where there is.
        draw: (generator, n) -> the arrays of one data set of n independent clusters, as `judge` takes them.
        judge: (arrays, seed) -> what the verdict function says of them.
        truth: what was judged -> the true value of each number by key, given what was learnt; keys without one are left out.
    """

    name: str
    fault: str
    kind: Literal["null", "fault"]
    draw: Callable[[np.random.Generator, int], Any]
    judge: Callable[[Any, int], Judged]
    truth: Callable[[Judged], Mapping[str, float]] = lambda judged: {}


@dataclass(frozen=True)
class Rates:
    """How often each word was said in `runs` draws, and of how many intervals how many held the truth, by key.

    Two of them add up. `held` has three numbers a key: below the truth, holding it, above it. An interval of no width, and one
    that is nan, is not counted.
    """

    runs: int = 0
    words: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(WORDS, 0))
    held: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)

    def __add__(self, other: Rates) -> Rates:
        words = {w: self.words[w] + other.words[w] for w in WORDS}
        none = (0, 0, 0)
        held = {}
        for k in dict.fromkeys([*self.held, *other.held]):
            a, b = self.held.get(k, none), other.held.get(k, none)
            held[k] = (a[0] + b[0], a[1] + b[1], a[2] + b[2])
        return Rates(self.runs + other.runs, words, held)

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
        truth, held = world.truth(judged), {}
        for key, (low, high) in judged.intervals.items():
            if key in truth and high > low:
                held[key] = (int(high < truth[key]), int(low <= truth[key] <= high), int(low > truth[key]))
        total += Rates(1, {w: int(w == judged.verdict) for w in WORDS}, held)
    return total
