"""The points of a chart, prepared for a page: numbers that JSON can hold, short and clean names, a limited number of points.

Every kind of chart uses these functions, so that all charts treat unusual data in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from trueup.report import words


def is_number(x: Any) -> bool:
    """True for Python's and numpy's numbers, False for truth values."""
    return isinstance(x, int | float | np.integer | np.floating) and not isinstance(x, bool)


def finite(x: Any) -> float | None:
    """`x` as a float; None for a missing value, and for NaN and the infinities, which JSON cannot hold."""
    return float(x) if x is not None and math.isfinite(x) else None


def name(x: Any) -> str:
    """A value on an axis of names as text: a number without needless digits, text cleaned and cut."""
    return f"{x:g}" if is_number(x) else words.clean(x, 80)


def distinct(names: Iterable[str]) -> list[str]:
    """`names` with a count behind those that occur again, as cut names can. On an axis, equal names would share one place."""
    counts: dict[str, int] = {}
    distinct_names = []
    for n in names:
        counts[n] = counts.get(n, 0) + 1
        distinct_names.append(n if counts[n] == 1 else f"{n} ({counts[n]})")
    return distinct_names


def thin(n: int, most: int) -> Sequence[int]:
    """Indices of at most `most` of `n` points: evenly spread, with both ends."""
    return range(n) if n <= most else [round(i * (n - 1) / (most - 1)) for i in range(most)]
