"""Worlds of the bench of verdicts: weights and prompts from several seeds, of known accuracy."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from trueup.faults.rigidity import maths
from trueup.measure.seeds import contrast
from trueup.measure.worlds import Judged, World

THRESHOLD = 0.03
Drawn = tuple[NDArray, NDArray, NDArray]
"""Whether weights, and a prompt, are right: (S, n) each; and clusters (n,)."""


@dataclass(frozen=True)
class Contest:
    """Weights against a prompt.

    Attributes:
        weights, prompt: mean accuracy over seeds. spread: its standard deviation between seeds. seeds: how many.
        own: the share of an answer's luck that is the seed's own; the rest is the example's, which all of them share.
    """

    weights: float = 0.8
    prompt: float = 0.8
    spread: float = 0.01
    seeds: int = 3
    own: float = 0.3

    def draw(self, rng: np.random.Generator, n: int) -> tuple[NDArray, NDArray]:
        """Whether each seed's weights and prompt are right on each of n examples."""
        luck = rng.normal(size=n)

        def side(accuracy: float) -> NDArray:
            each = np.clip(accuracy + self.spread * rng.normal(size=(self.seeds, 1)), 0.01, 0.99)
            z = np.sqrt(1 - self.own) * luck + np.sqrt(self.own) * rng.normal(size=(self.seeds, n))
            return (z < norm.ppf(each)).astype(float)

        return side(self.weights), side(self.prompt)


def _draw(world: Contest, times: int, rng: np.random.Generator, n: int) -> Drawn:
    rows = np.repeat(np.arange(n), times)
    weights, prompt = world.draw(rng, n)
    return weights[:, rows], prompt[:, rows], rows


def judge(drawn: Drawn, seed: int) -> Judged:
    """The audit's verdict on these answers. (Nothing is drawn: `seed` is not used.)"""
    weights, prompt, cluster = drawn
    head = contrast([(1.0, weights), (-1.0, prompt)], cluster=cluster)
    found = maths.judged(head, cluster, len(cluster), threshold=THRESHOLD, sentence="")
    return Judged(found.verdict, {"severity": (found.low, found.high)})


def _world(name: str, kind: Any, world: Contest, times: int = 1) -> World:
    return World(
        name, "rigidity", kind, functools.partial(_draw, world, times), judge,
        lambda _: {"severity": world.weights - world.prompt},
    )  # fmt: skip


WORLDS = (
    _world("equal, no seed noise", "null", Contest(spread=0.0)),
    _world("equal, 1 point between seeds", "null", Contest()),
    _world("equal, 3 points between seeds", "null", Contest(spread=0.03)),
    _world("equal, 3 points between five seeds", "null", Contest(spread=0.03, seeds=5)),
    _world("equal, seeds that err apart", "null", Contest(own=0.9)),
    _world("weights worse by 5 points, 3 between seeds", "null", Contest(0.75, 0.8, 0.03)),
    _world("every text four times, equal", "null", Contest(), 4),
    _world("weights better by 10 points, 1 between seeds", "fault", Contest(0.88, 0.78)),
    _world("weights better by 15 points, 3 between seeds", "fault", Contest(0.9, 0.75, 0.03)),
    _world("every text four times, better by 10 points", "fault", Contest(0.88, 0.78), 4),
)
