"""Demonstrations for in-context learning: which pairs of a pool stand before each query, and what chance alone would show.

No tokens here: what is drawn are rows of a pool. A query never stands among its own demonstrations.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trueup.corpus.row_clusters import same_key
from trueup.errors import BadInput

Mode = Literal["free", "never", "always"]
"""How demonstrations are drawn: ``free`` whatever their answers, ``never`` without the query's right answer (the proxy of
arXiv 2410.01288), ``always`` with it."""
MODES: tuple[Mode, ...] = ("free", "never", "always")


@dataclass(frozen=True, eq=False)
class Draws:
    """Demonstrations of n queries, k each.

    Attributes:
        index: (n, k) rows of the pool, in the order in which they are shown; -1 throughout where there is no such draw.
        shown: (n, C) bool: answer c stands in the query's demonstrations.
        chance: (n, C) probability that demonstrations drawn anew for the query in the same way would show answer c, given
            that they show the right one or not, as these do: a model that knows an answer once it sees it is right more
            often where it is shown, and that is no copying. It is exact (hypergeometric), so it has none of the noise of
            scoring against other prompts' demonstrations, which it is the expectation of. Of demonstrations that are the same
            for every query it is what `others` show (see there).
        others: for demonstrations that are the same for every query, other ones drawn for each; None for drawn ones.
    """

    mode: Mode
    index: np.ndarray
    shown: np.ndarray
    chance: np.ndarray
    others: Draws | None = None

    @property
    def possible(self) -> np.ndarray:
        """(n,) bool: the query has demonstrations of this kind. One whose answer no other pair has cannot be shown it."""
        return np.asarray((self.index >= 0).all(axis=1))

    def take(self, rows: np.ndarray) -> Draws:
        """The draws of some of the queries, in that order."""
        others = None if self.others is None else self.others.take(rows)
        return Draws(self.mode, self.index[rows], self.shown[rows], self.chance[rows], others)


def draw(
    pool: Sequence[str], answer: np.ndarray, query: Sequence[str], gold: np.ndarray, classes: int, *,
    number: int, mode: Mode = "free", seed: int = 0,
) -> Draws:  # fmt: skip
    """`number` demonstrations for every query, without replacement, each query by itself (by `seed` and its own text).

    Args:
        pool, answer: texts of the pool and their answers, (p,) int. query, gold: the same of the n queries.
        classes: C, how many answers there are.

    Raises:
        BadInput: the pool has fewer pairs than a query needs.
    """
    at: dict[str, list[int]] = defaultdict(list)  # a pool may hold a text more than once
    for i, k in enumerate(same_key(pool, None)):
        at[k].append(i)
    own = [at.get(k, []) for k in same_key(query, None)]
    need = number + max(map(len, own), default=0)
    if number and len(pool) < need:
        raise BadInput(
            f"{number} demonstrations need {need} pairs to draw from, and there are {len(pool)}. Give more pairs, or lower "
            "--shots."
        )
    count = np.bincount(answer, minlength=classes)
    by_answer = [np.flatnonzero(answer == c) for c in range(classes)]
    everyone = np.arange(len(pool))
    index = np.full((len(query), number), -1)
    shown = np.zeros((len(query), classes), bool)
    chance = np.zeros((len(query), classes))
    for i, (text, right) in enumerate(zip(query, gold, strict=True)):
        rng = np.random.default_rng(_seeds(text, seed, mode))
        free, left = everyone, count.copy()
        if own[i]:
            free = free[~np.isin(free, own[i])]
            np.subtract.at(left, answer[own[i]], 1)
        first: list[int] = []
        if mode == "never":
            free = free[answer[free] != right]
            left[right] = 0
        elif mode == "always" and number:
            holders = by_answer[right][~np.isin(by_answer[right], own[i])]
            if not len(holders):
                continue
            first = [int(rng.choice(holders))]
            free = free[free != first[0]]
            left[right] -= 1
        rest = number - len(first)
        if len(free) < rest:
            continue
        taken = rng.permutation(np.array([*first, *rng.choice(free, rest, replace=False)], dtype=np.int64))
        index[i] = taken
        shown[i, answer[taken]] = True
        chance[i] = shown_by_chance(left, rest, right if mode == "free" else None, bool(shown[i, right]))
        if first:
            chance[i, right] = 1.0
    return Draws(mode, index, shown, chance)


def fixed(
    pool: Sequence[str], answer: np.ndarray, query: Sequence[str], gold: np.ndarray, classes: int, *,
    number: int, kept: int, mode: Mode = "free", seed: int = 0,
) -> Draws:  # fmt: skip
    """The first `number` pairs of the pool before every query, and beside them others drawn from behind the first `kept`.

    ``never`` and ``always`` are the queries whose right answer these demonstrations do not show, or show. A query that is one of
    them has none.

    The null. Demonstrations that never change leave no chance by which they might show another answer, and a model that always
    says one of theirs, whatever it is shown, would pass for copying. So each query gets other demonstrations as well, as many,
    drawn from the rest of the pool given that they show its right answer or not, as the fixed ones do: the condition of `draw`,
    by one draw in place of its expectation. What the model answers under these says which wrong answers it gives anyway
    (`faults.copying.maths.expected_under`).

    Args:
        As `draw`. kept: how many pairs at the beginning of the pool are no part of what others are drawn from.

    Raises:
        BadInput: there are fewer fixed pairs than `number`, or too few others.
    """
    if number > kept:
        raise BadInput(f"There are {kept} fixed demonstrations, and {number} are asked for; lower --shots.")
    own = set(same_key(pool[:number], None))
    index = np.tile(np.arange(number), (len(query), 1))
    shown = np.zeros((len(query), classes), bool)
    shown[:, answer[:number]] = True
    there = shown[np.arange(len(query)), gold]
    missing = there if mode == "never" else ~there if mode == "always" else np.zeros_like(there)
    out = missing | np.array([k in own for k in same_key(query, None)], bool)
    index[out] = -1
    shown[out] = False
    drawn = [
        draw(pool[kept:], answer[kept:], query, gold, classes, number=number, mode=m, seed=seed) for m in ("never", "always")
    ]  # fmt: skip
    which = there.reshape(-1, 1)
    other = np.where(which, drawn[1].index, drawn[0].index)
    seen = np.where(which, drawn[1].shown, drawn[0].shown)
    other = np.where(other >= 0, other + kept, -1)
    able = np.asarray((other >= 0).all(axis=1))
    others = Draws(mode, other, seen, seen.astype(float))
    return Draws(mode, index, shown, np.where(able[:, None], seen, True).astype(float), others)


def shown_by_chance(left: np.ndarray, number: int, right: int | None = None, there: bool = False) -> np.ndarray:
    """(C,) the chance that `number` draws without replacement hold one of the `left[c]` pairs of answer c, out of all.

    Without `right`: 1 - C(N - m_c, number) / C(N, number). With it, given that the answer `right` is among the draws (`there`)
    or is not.
    """
    n = int(left.sum())

    def none(gone: np.ndarray) -> np.ndarray:
        """(C,): no draw is among the `gone[c]` pairs."""
        steps = np.arange(number)[:, None]
        return np.prod(np.maximum(n - gone - steps, 0) / np.maximum(n - steps, 1), axis=0)

    absent = none(left)
    if right is None:
        return 1.0 - absent
    both, missing = none(left + left[right]), float(absent[right])
    if there:
        chance = 1.0 - (absent - both) / max(1.0 - missing, 1e-300)
    else:
        chance = 1.0 - both / max(missing, 1e-300)
    chance[right] = float(there)
    return np.clip(chance, 0.0, 1.0)


def _seeds(text: str, seed: int, mode: Mode) -> list[int]:
    raw = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return [seed, MODES.index(mode), int.from_bytes(raw[:8], "little")]
