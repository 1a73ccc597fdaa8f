"""The points of a chart made fit for a page: numbers that JSON can hold, names that are short and clean, not too many.

Every kind of chart is drawn from these, so that all treat odd data alike.
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
    """`x` as a float, None for what JSON cannot hold: no value, NaN and the infinities."""
    return float(x) if x is not None and math.isfinite(x) else None


def name(x: Any) -> str:
    """A place on an axis of names: a number without needless digits, text cleaned and cut."""
    return f"{x:g}" if is_number(x) else words.clean(x, 80)


def distinct(names: Iterable[str]) -> list[str]:
    """`names` with a count behind those that occur again (cut names can), since places of one name fall together."""
    seen: dict[str, int] = {}
    out = []
    for n in names:
        seen[n] = seen.get(n, 0) + 1
        out.append(n if seen[n] == 1 else f"{n} ({seen[n]})")
    return out


def thin(n: int, most: int) -> Sequence[int]:
    """Which of `n` points are kept so that at most `most` are: evenly spread, both ends among them."""
    return range(n) if n <= most else [round(i * (n - 1) / (most - 1)) for i in range(most)]
