"""Worlds of the bench of verdicts: answers to queries with demonstrations, given by a rule that copies or does not."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trueup.corpus.prompt import Draws, draw, fixed
from trueup.faults.copying import maths
from trueup.measure.worlds import Judged, World

Rule = Literal["guess", "constant", "shown", "skilled"]


class Answered(NamedTuple):
    """Demonstrations, the right answers (n,), and the answers given: under the demonstrations, once all answers are named, and
    under other demonstrations the same two, where the demonstrations are fixed; else None."""

    draws: Draws
    gold: NDArray
    given: NDArray
    named: NDArray
    other: NDArray | None = None
    other_named: NDArray | None = None

    def take(self, rows: NDArray) -> Answered:
        """Some of the queries, in that order."""
        return Answered(self.draws.take(rows), *(None if a is None else a[rows] for a in self[1:]))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Answerer:
    """How queries are answered.

    Attributes:
        answers, shots: how many there are. skew: 0 for answers that are alike frequent; above it the first ones are more so.
        rule: ``guess`` evenly; ``constant`` the first answer; ``shown`` right where the right one is shown, else a shown one
            while the answers are not named, and a guess once they are; ``skilled`` right in 6 of 10, else as frequent as the
            answers are.
        copies: share of the queries answered by a demonstration's answer, whatever is known or named.
        same: the demonstrations are the same for every query: the first answers, one of each.
    """

    answers: int
    shots: int
    rule: Rule
    copies: float = 0.0
    skew: float = 0.0
    same: bool = False

    def draw(self, rng: np.random.Generator, n: int) -> Answered:
        """n queries, each by itself."""
        share = np.exp(-self.skew * np.arange(self.answers))
        share /= share.sum()
        pool = rng.choice(self.answers, 200, p=share)
        gold = rng.choice(self.answers, n, p=share)
        query, texts = [f"q{i}" for i in range(n)], [f"p{i}" for i in range(len(pool))]
        seed = int(rng.integers(2**31))
        if self.same:
            pool[: self.shots] = np.arange(self.shots)
            draws = fixed(texts, pool, query, gold, self.answers, number=self.shots, kept=self.shots, seed=seed)
        else:
            draws = draw(texts, pool, query, gold, self.answers, number=self.shots, seed=seed)
        asked = [self._asked(rng, gold, d, pool, share) for d in (draws, draws.others) if d is not None]
        copied = rng.random(n) < self.copies  # under whatever demonstrations
        return Answered(draws, gold, *(np.where(copied, one, uncopied) for one, *both in asked for uncopied in both))

    def _asked(
        self, rng: np.random.Generator, gold: NDArray, draws: Draws, pool: NDArray, share: NDArray
    ) -> tuple[NDArray, NDArray, NDArray]:
        """An answer that these demonstrations show each query, and the answers by the rule, not named and named."""
        one = pool[draws.index[np.arange(len(gold)), rng.integers(self.shots, size=len(gold))]]
        given, named = (self._given(rng, gold, draws, one, share, known) for known in (False, True))
        return one, given, named

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


Drawn = tuple[Answered, NDArray]
"""What was asked and answered, and clusters."""
RESAMPLES, THRESHOLD, LARGE = 300, 0.03, 40_000


def _draw(world: Answerer, times: int, rng: np.random.Generator, n: int) -> Drawn:
    rows = np.repeat(np.arange(n), times)
    return world.draw(rng, n).take(rows), rows


def blame(asked: Answered) -> NDArray[np.float64]:
    """(n,) copies above chance that no ignorance excuses."""
    draws, gold = asked.draws, asked.gold

    def excess(given: NDArray, other: NDArray | None) -> NDArray[np.float64]:
        if other is None or draws.others is None:
            expected = maths.expected(given, gold, draws.chance)
        else:
            others = draws.others
            expected = maths.expected_under(given, other, gold, draws.shown, others.shown, others.possible)
        return maths.copies(given, gold, draws.shown) - expected

    shown = draws.shown[np.arange(len(gold)), gold]
    return maths.blamed(excess(asked.given, asked.other), shown, excess(asked.named, asked.other_named))


def judge(drawn: Drawn, seed: int) -> Judged:
    """The audit's verdict on these answers."""
    asked, cluster = drawn
    draws, gold = asked.draws, asked.gold
    e = maths.severity(blame(asked), np.ones(len(gold)), cluster, seed=seed, resamples=RESAMPLES)
    found = maths.judged(e, cluster, maths.visible(draws.shown, gold, draws.chance), threshold=THRESHOLD)
    return Judged(found.verdict, {"severity": (e.low, e.high)})


@functools.lru_cache(maxsize=32)
def _truth(world: Answerer) -> float:
    if not world.copies:
        return 0.0
    # Fixed demonstrations are drawn with two others a query, which takes most of the time.
    return float(blame(world.draw(np.random.default_rng(0), LARGE // 3 if world.same else LARGE)).mean())


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
    **{
        f"fixed demonstrations: {rule}, {answers} answers, 4 shots": Answerer(answers, 4, rule, same=True)  # type: ignore[arg-type]
        for rule, answers in (("guess", 10), ("constant", 10), ("skilled", 26), ("shown", 26))
    },
}
FAULT: dict[str, Answerer] = {
    "copies 10%, 10 answers, 4 shots, skilled": Answerer(10, 4, "skilled", copies=0.1),
    "copies 10%, 26 answers, 4 shots, skilled": Answerer(26, 4, "skilled", copies=0.1),
    "copies 10%, 26 answers, 8 shots, guessing": Answerer(26, 8, "guess", copies=0.1),
    "copies 10%, 26 answers, 4 shots, right when shown": Answerer(26, 4, "shown", copies=0.1),
    "fixed demonstrations: copies 10%, 26 answers, 4 shots, skilled": Answerer(26, 4, "skilled", copies=0.1, same=True),
}
WORLDS = (
    *(_world(name, "null", w) for name, w in NULL.items()),
    _world("every query four times, guessing", "null", Answerer(10, 4, "guess"), 4),
    *(_world(name, "fault", w) for name, w in FAULT.items()),
)
