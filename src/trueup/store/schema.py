"""Reads JSON from untrusted files within bounds, and checks it against a schema before any code uses it.

A schema is a `Kind`, which is made of other kinds. It checks types, sizes and depth. The meaning of the values is checked by the
code that reads each kind of file.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from trueup.errors import BadInput

MOST_BYTES = 64 << 20
"""The longest settings that are read: far longer than any real ones, and far below the size of memory."""
LARGEST = 2**31 - 1
"""The largest whole number of a setting: no tensor can have a larger size."""


@dataclass(frozen=True)
class Kind:
    """A kind of value: words for it, a test of a value, and a function that gives the parts of a value with their kinds."""

    words: str
    fits: Callable[[Any], bool]
    parts: Callable[[Any, str], Iterator[tuple[str, Any, Kind]]] = lambda value, at: iter(())


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character (a lone surrogate), which UTF-8 cannot hold
        return False
    return True


TEXT = Kind("text", lambda v: isinstance(v, str) and _encodes(v))
FLAG = Kind("true or false", lambda v: isinstance(v, bool))
NOTHING = Kind("null", lambda v: v is None)
ANYTHING = Kind("anything", lambda v: True)


def whole(low: int = 0, high: int = LARGEST) -> Kind:
    words = f"a whole number, {low} or above" if high == LARGEST else f"a whole number from {low} to {high}"
    return Kind(words, lambda v: type(v) is int and low <= v <= high)


def number(low: float = -1e30, high: float = 1e30) -> Kind:
    """A finite number. The default bounds are those within which a weight can be multiplied by it."""
    words = "a number" if (low, high) == (-1e30, 1e30) else f"a number from {low:g} to {high:g}"
    return Kind(words, lambda v: type(v) in (int, float) and math.isfinite(v) and low <= v <= high)


def one_of(*values: str) -> Kind:
    return Kind(f"one of {', '.join(values)}", lambda v: isinstance(v, str) and v in values)


def either(*kinds: Kind) -> Kind:
    return Kind(" or ".join(k.words for k in kinds), lambda v: any(wrong(v, k) is None for k in kinds))


def optional(kind: Kind) -> Kind:
    """`kind`, or null. Unlike with `either`, a message can name the part that is wrong."""
    return Kind(
        f"{kind.words} or null", lambda v: v is None or kind.fits(v),
        lambda v, at: iter(()) if v is None else kind.parts(v, at),
    )  # fmt: skip


def lists(kind: Kind, length: int | None = None) -> Kind:
    return Kind(
        f"a list of {kind.words}" if length is None else f"a list of {length} times {kind.words}",
        lambda v: isinstance(v, list) and length in (None, len(v)),
        lambda v, at: ((f"{at}[{i}]", part, kind) for i, part in enumerate(v)),
    )


def mapping(kind: Kind) -> Kind:
    return Kind(
        f"an object of names, each with {kind.words}",
        lambda v: isinstance(v, dict) and all(map(_encodes, v)),
        lambda v, at: ((_at(at, k), part, kind) for k, part in v.items()),
    )


def record(kinds: Mapping[str, Kind], *, needed: tuple[str, ...] = ()) -> Kind:
    """An object with these keys. Other keys are allowed and ignored."""
    return Kind(
        "an object of settings" + (f" with {' and '.join(needed)}" if needed else ""),
        lambda v: isinstance(v, dict) and all(k in v for k in needed),
        lambda v, at: ((_at(at, k), v[k], kind) for k, kind in kinds.items() if k in v),
    )


def _at(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key


def wrong(value: Any, kind: Kind, at: str = "") -> tuple[str, Any, str] | None:
    """The first part of `value` that is not of its kind: its place, the part itself, and words for its kind. Else None."""
    if not kind.fits(value):
        return at, value, kind.words
    for place, part, kind_of_part in kind.parts(value, at):
        if (problem := wrong(part, kind_of_part, place)) is not None:
            return problem
    return None


def check(value: Any, kind: Kind, path: Path, step: str) -> None:
    """Raises BadInput where `value`, read from `path`, is not of `kind`. `step` ends the sentence; ``{at}`` in it is the place."""
    if (problem := wrong(value, kind)) is not None:
        at, value_found, words = problem
        what = f" for '{at}', which is {words}" if at else f" where {words} belongs"
        raise BadInput(f"'{path}' holds {shown(value_found)}{what}. {step.replace('{at}', at)}")


def shown(value: Any) -> str:
    """A value of JSON for a message, cut."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST:
        return "a number of many digits"
    try:
        text = json.dumps(value)
    except RecursionError:
        return "something deep"
    return text if len(text) <= 60 else f"{text[:60]}…"


def read(path: Path, kind: Kind, *, otherwise: str, correct: str) -> Any:
    """The value in the JSON file at `path`, which must be of `kind`.

    Args:
        otherwise: the next step for a file that cannot be read. correct: the next step for a wrong value; ``{at}`` in it becomes
            the place of the value.

    Raises:
        BadInput: it is not a plain file, too long, not JSON, nested too deep, or not of `kind`.
    """
    value = parsed(path, otherwise)
    check(value, kind, path, correct)
    return value


def parsed(path: Path, otherwise: str, **options: Any) -> Any:
    """The value in the JSON file at `path`, of any kind. `options` are those of `json.loads`. Raises as `read`."""
    try:
        return json.loads(plain_bytes(path).decode("utf-8-sig"), **options)
    except RecursionError as e:
        raise BadInput(f"'{path}' is nested too deep. {otherwise}") from e
    except ValueError as e:  # not UTF-8, not JSON, or a number with more digits than Python reads
        raise BadInput(f"'{path}' is not readable JSON ({' '.join(str(e).split())[:160]}). {otherwise}") from e
    except OSError as e:
        raise BadInput(f"'{path}' cannot be read ({e.strerror or e}). {otherwise}") from e


def open_plain(path: str | os.PathLike[str]) -> BinaryIO:
    """A plain file, open for reading. Other files are refused: opening a pipe without a writer would wait forever.

    Raises:
        ValueError: it is not a plain file. OSError: it cannot be read.
    """
    f = open(path, "rb", opener=lambda p, flags: os.open(p, flags | getattr(os, "O_NONBLOCK", 0)))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):
        f.close()
        raise ValueError("it is no plain file")
    return f


def plain_bytes(path: Path) -> bytes:
    """The bytes of a plain file of at most `MOST_BYTES`.

    Raises:
        ValueError: it is not a plain file (such as a pipe), or is longer. OSError: it cannot be read.
    """
    with open_plain(path) as f:
        raw = f.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise ValueError(f"it is longer than {MOST_BYTES:,} bytes")
    return raw
