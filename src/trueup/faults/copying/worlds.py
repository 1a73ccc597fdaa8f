"""Worlds of the bench of verdicts: answers to queries with demonstrations, given by a rule that copies or does not."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trueup.corpus.prompt import Draws, draw
from trueup.faults.copying import maths
from trueup.measure.worlds import Judged, World

Rule = Literal["guess", "constant", "shown", "skilled"]


@dataclass(frozen=True)
class Answerer:
    """How queries are answered.

    Attributes:
        answers, shots: how many there are. skew: 0 for answers that are alike frequent; above it the first ones are more so.
        rule: ``guess`` evenly; ``constant`` the first answer; ``shown`` right where the right one is shown, else a shown one
            while the answers are not named, and a guess once they are; ``skilled`` right in 6 of 10, else as frequent as the
            answers are.
        copies: share of the queries answered by a demonstration's answer, whatever is known or named.
    """

    answers: int
    shots: int
    rule: Rule
    copies: float = 0.0
    skew: float = 0.0

    def draw(self, rng: np.random.Generator, n: int) -> tuple[Draws, NDArray, NDArray, NDArray]:
        """Demonstrations of n queries, the right answers (n,), the answers given (n,), and those given once all are named."""
        share = np.exp(-self.skew * np.arange(self.answers))
        share /= share.sum()
        pool = rng.choice(self.answers, 200, p=share)
        gold = rng.choice(self.answers, n, p=share)
        query = [f"q{i}" for i in range(n)]
        draws = draw(
            [f"p{i}" for i in range(200)],
            pool,
            query,
            gold,
            self.answers,
            number=self.shots,
            seed=int(rng.integers(2**31)),
        )
        one = pool[draws.index[np.arange(n), rng.integers(self.shots, size=n)]]
        given, named = (self._given(rng, gold, draws, one, share, known) for known in (False, True))
        copied = rng.random(n) < self.copies
        return draws, gold, np.where(copied, one, given), np.where(copied, one, named)

    def _given(self, rng, gold: NDArray, draws: Draws, one: NDArray, share: NDArray, known: bool) -> NDArray:
        n = len(gold)
        if self.rule == "constant":
            return np.zeros(n, np.int64)
        guess = rng.integers(self.answers, size=n)
        if self.rule == "guess":
            return guess
        if self.rule == "skilled":
            return np.where(rng.random(n) < 0.6, gold, rng.choice(self.answers, n, p=share))
        return np.where(draws.shown[np.arange(n), gold], gold, guess if known else one)


Drawn = tuple[Draws, NDArray, NDArray, NDArray, NDArray]
"""Demonstrations, right answers, answers given, answers given once all are named, and clusters."""
RESAMPLES, THRESHOLD, LARGE = 300, 0.03, 40_000


def _draw(world: Answerer, times: int, rng: np.random.Generator, n: int) -> Drawn:
    rows = np.repeat(np.arange(n), times)
    draws, gold, given, named = world.draw(rng, n)
    return draws.take(rows), gold[rows], given[rows], named[rows], rows


def blame(draws: Draws, gold: NDArray, given: NDArray, named: NDArray) -> NDArray[np.float64]:
    """(n,) copies above chance that no ignorance excuses."""
    excess, once_named = (
        maths.copies(a, gold, draws.shown) - maths.expected(a, gold, draws.chance) for a in (given, named)
    )
    return maths.blamed(excess, draws.shown[np.arange(len(gold)), gold], once_named)


def judge(drawn: Drawn, seed: int) -> Judged:
    """The audit's verdict on these answers."""
    draws, gold, given, named, cluster = drawn
    e = maths.severity(blame(draws, gold, given, named), np.ones(len(gold)), cluster, seed=seed, resamples=RESAMPLES)
    found = maths.judged(e, cluster, maths.visible(draws.shown, gold, draws.chance), threshold=THRESHOLD)
    return Judged(found.verdict, {"severity": (e.low, e.high)})


@functools.lru_cache(maxsize=32)
def _truth(world: Answerer) -> float:
    return float(blame(*world.draw(np.random.default_rng(0), LARGE)).mean()) if world.copies else 0.0


def _world(name: str, kind: Any, world: Answerer, times: int = 1) -> World:
    return World(
        name, "copying", kind, functools.partial(_draw, world, times), judge, lambda _: {"severity": _truth(world)}
    )


NULL: dict[str, Answerer] = {
    **{
        f"{rule}, {answers} answers, {shots} shots": Answerer(answers, shots, rule)  # type: ignore[arg-type]
        for rule in ("guess", "constant", "shown")
        for answers, shots in ((2, 1), (4, 4), (10, 8), (26, 4))
    },
    "skilled, 4 answers of unequal frequency, 4 shots": Answerer(4, 4, "skilled", skew=0.5),
    "constant, 6 answers of unequal frequency, 4 shots": Answerer(6, 4, "constant", skew=0.5),
}
FAULT: dict[str, Answerer] = {
    "copies 10%, 10 answers, 4 shots, skilled": Answerer(10, 4, "skilled", copies=0.1),
    "copies 10%, 26 answers, 4 shots, skilled": Answerer(26, 4, "skilled", copies=0.1),
    "copies 10%, 26 answers, 8 shots, guessing": Answerer(26, 8, "guess", copies=0.1),
    "copies 10%, 26 answers, 4 shots, right when shown": Answerer(26, 4, "shown", copies=0.1),
}
WORLDS = (
    *(_world(name, "null", w) for name, w in NULL.items()),
    _world("every query four times, guessing", "null", Answerer(10, 4, "guess"), 4),
    *(_world(name, "fault", w) for name, w in FAULT.items()),
)
