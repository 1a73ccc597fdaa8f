"""Demonstrations for in-context learning: the pairs of a pool that precede each query, and what chance alone would show.

This module draws rows of a pool and knows no tokens. A query is never one of its own demonstrations.
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
"""How demonstrations are drawn: ``free`` with any answers, ``never`` without the query's right answer (the proxy of
arXiv 2410.01288), ``always`` with it."""
MODES: tuple[Mode, ...] = ("free", "never", "always")


@dataclass(frozen=True, eq=False)
class Draws:
    """Demonstrations of n queries, k each.

    Attributes:
        index: (n, k) rows of the pool, in the order in which they are shown; all -1 for a query without such a draw.
        shown: (n, C) bool: answer c is in the query's demonstrations.
        chance: (n, C) probability that demonstrations drawn again for the query in the same way would show answer c. It is
            conditional on whether the right answer is shown, as it is in these: a model that knows an answer once it sees it
            is right more often where it is shown, and that is not copying. It is exact (hypergeometric). It is the expectation
            of scoring against other prompts' demonstrations, without their noise. For demonstrations that are the same
            for every query it is what `others` show (`fixed`).
        others: for demonstrations that are the same for every query, other ones drawn for each query; None for drawn ones.
    """

    mode: Mode
    index: np.ndarray
    shown: np.ndarray
    chance: np.ndarray
    others: Draws | None = None

    @property
    def possible(self) -> np.ndarray:
        """(n,) bool: the query has demonstrations of this kind. ``always`` is impossible where no other pair has the answer."""
        return np.asarray((self.index >= 0).all(axis=1))

    def take(self, rows: np.ndarray) -> Draws:
        """The draws of some of the queries, in that order."""
        others = None if self.others is None else self.others.take(rows)
        return Draws(self.mode, self.index[rows], self.shown[rows], self.chance[rows], others)


def draw(
    pool: Sequence[str], answer: np.ndarray, query: Sequence[str], gold: np.ndarray, classes: int, *,
    number: int, mode: Mode = "free", seed: int = 0,
) -> Draws:  # fmt: skip
    """`number` demonstrations for every query, without replacement. The draw of a query depends only on `seed` and its own text.

    Args:
        pool, answer: texts of the pool and their answers, (p,) int. query, gold: the same for the n queries.
        classes: C, the number of different answers.

    Raises:
        BadInput: the pool has fewer pairs than a query needs.
    """
    at: dict[str, list[int]] = defaultdict(list)  # a pool may hold a text more than once
    for i, k in enumerate(same_key(pool, None)):
        at[k].append(i)
    own_pairs = [at.get(k, []) for k in same_key(query, None)]
    needed_pairs = number + max(map(len, own_pairs), default=0)
    if number and len(pool) < needed_pairs:
        raise BadInput(
            f"{number} demonstrations need {needed_pairs} pairs to draw from, and there are {len(pool)}. Give more pairs, or lower "
            "--shots."
        )
    count = np.bincount(answer, minlength=classes)
    by_answer = [np.flatnonzero(answer == c) for c in range(classes)]
    all_pairs = np.arange(len(pool))
    index = np.full((len(query), number), -1)
    shown = np.zeros((len(query), classes), bool)
    chance = np.zeros((len(query), classes))
    for i, (text, right) in enumerate(zip(query, gold, strict=True)):
        rng = np.random.default_rng(_seeds(text, seed, mode))
        candidates, counts_left = all_pairs, count.copy()
        if own_pairs[i]:
            candidates = candidates[~np.isin(candidates, own_pairs[i])]
            np.subtract.at(counts_left, answer[own_pairs[i]], 1)
        forced: list[int] = []
        if mode == "never":
            candidates = candidates[answer[candidates] != right]
            counts_left[right] = 0
        elif mode == "always" and number:
            holders = by_answer[right][~np.isin(by_answer[right], own_pairs[i])]
            if not len(holders):
                continue
            forced = [int(rng.choice(holders))]
            candidates = candidates[candidates != forced[0]]
            counts_left[right] -= 1
        number_free = number - len(forced)
        if len(candidates) < number_free:
            continue
        drawn = rng.permutation(
            np.array([*forced, *rng.choice(candidates, number_free, replace=False)], dtype=np.int64)
        )
        index[i] = drawn
        shown[i, answer[drawn]] = True
        chance[i] = shown_by_chance(counts_left, number_free, right if mode == "free" else None, bool(shown[i, right]))
        if forced:
            chance[i, right] = 1.0
    return Draws(mode, index, shown, chance)


def fixed(
    pool: Sequence[str], answer: np.ndarray, query: Sequence[str], gold: np.ndarray, classes: int, *,
    number: int, kept: int, mode: Mode = "free", seed: int = 0,
) -> Draws:  # fmt: skip
    """The first `number` pairs of the pool for every query, and `others`: pairs drawn from the pool without its first `kept`.

    With ``never``, only queries whose right answer these demonstrations do not show have any; with ``always``, only queries
    whose right answer they show. A query that is itself one of the demonstrations has none.

    The null hypothesis. Demonstrations that never change show every other answer with probability 0. So a model that always
    gives one of their answers, whatever it is shown, would be taken for copying. Therefore each query also gets as many other
    demonstrations, drawn from the rest of the pool, on the condition that they show its right answer exactly if the fixed ones
    do. This is the condition of `draw`, with one draw in place of the expectation. The model's answers with these demonstrations
    show which wrong answers it gives anyway (`faults.copying.maths.expected_under`).

    Args:
        As `draw`. kept: the number of pairs at the beginning of the pool from which `others` are not drawn.

    Raises:
        BadInput: there are fewer fixed pairs than `number`, or too few others.
    """
    if number > kept:
        raise BadInput(f"There are {kept} fixed demonstrations, and {number} are asked for; lower --shots.")
    fixed_keys = set(same_key(pool[:number], None))
    index = np.tile(np.arange(number), (len(query), 1))
    shown = np.zeros((len(query), classes), bool)
    shown[:, answer[:number]] = True
    shows_right = shown[np.arange(len(query)), gold]
    wrong_condition = (
        shows_right if mode == "never" else ~shows_right if mode == "always" else np.zeros_like(shows_right)
    )
    excluded = wrong_condition | np.array([k in fixed_keys for k in same_key(query, None)], bool)
    index[excluded] = -1
    shown[excluded] = False
    drawn = [
        draw(pool[kept:], answer[kept:], query, gold, classes, number=number, mode=m, seed=seed) for m in ("never", "always")
    ]  # fmt: skip
    shows_right_column = shows_right.reshape(-1, 1)
    other_index = np.where(shows_right_column, drawn[1].index, drawn[0].index)
    other_shown = np.where(shows_right_column, drawn[1].shown, drawn[0].shown)
    other_index = np.where(other_index >= 0, other_index + kept, -1)
    has_others = np.asarray((other_index >= 0).all(axis=1))
    others = Draws(mode, other_index, other_shown, other_shown.astype(float))
    return Draws(mode, index, shown, np.where(has_others[:, None], other_shown, True).astype(float), others)


def shown_by_chance(left: np.ndarray, number: int, right: int | None = None, there: bool = False) -> np.ndarray:
    """(C,) the probability that `number` draws without replacement hold one of the `left[c]` pairs of answer c, out of all.

    Without `right` it is 1 - C(N - m_c, number) / C(N, number). With `right` it is conditional: on that answer being among the
    draws (`there` is True), or not being among them.
    """
    n = int(left.sum())

    def none(gone: np.ndarray) -> np.ndarray:
        """(C,): no draw is among the `gone[c]` pairs."""
        steps = np.arange(number)[:, None]
        return np.prod(np.maximum(n - gone - steps, 0) / np.maximum(n - steps, 1), axis=0)

    absent = none(left)
    if right is None:
        return 1.0 - absent
    neither_shown, right_missing = none(left + left[right]), float(absent[right])
    if there:
        chance = 1.0 - (absent - neither_shown) / max(1.0 - right_missing, 1e-300)
    else:
        chance = 1.0 - neither_shown / max(right_missing, 1e-300)
    chance[right] = float(there)
    return np.clip(chance, 0.0, 1.0)


def _seeds(text: str, seed: int, mode: Mode) -> list[int]:
    raw = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return [seed, MODES.index(mode), int.from_bytes(raw[:8], "little")]
