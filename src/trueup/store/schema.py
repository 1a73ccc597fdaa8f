"""JSON that may be a stranger's: read within bounds, and held against a schema before anything looks into it.

A schema is a `Kind`, made of others. Who wrote the file is not trusted with types, sizes or depth; what the values mean is for
the reader of each file.
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
"""The longest settings that are read: far above any, and far below what memory holds."""
LARGEST = 2**31 - 1
"""The largest whole number of a setting: what is larger no tensor takes as a size."""


@dataclass(frozen=True)
class Kind:
    """A kind of value: what it is called, whether a value is one, and the parts of one with the kinds that these have to be."""

    words: str
    fits: Callable[[Any], bool]
    parts: Callable[[Any, str], Iterator[tuple[str, Any, Kind]]] = lambda value, at: iter(())


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character, which no file and no tokenizer takes
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
    """A finite number; what lies beyond the usual bounds no weight can be multiplied by."""
    words = "a number" if (low, high) == (-1e30, 1e30) else f"a number from {low:g} to {high:g}"
    return Kind(words, lambda v: type(v) in (int, float) and math.isfinite(v) and low <= v <= high)


def one_of(*values: str) -> Kind:
    return Kind(f"one of {', '.join(values)}", lambda v: isinstance(v, str) and v in values)


def either(*kinds: Kind) -> Kind:
    return Kind(" or ".join(k.words for k in kinds), lambda v: any(wrong(v, k) is None for k in kinds))


def optional(kind: Kind) -> Kind:
    """`kind`, or null; a message names the part of it that is wrong, which `either` cannot."""
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
    """An object with these keys; others may stand beside them, and nobody reads those."""
    return Kind(
        "an object of settings" + (f" with {' and '.join(needed)}" if needed else ""),
        lambda v: isinstance(v, dict) and all(k in v for k in needed),
        lambda v, at: ((_at(at, k), v[k], kind) for k, kind in kinds.items() if k in v),
    )


def _at(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key


def wrong(value: Any, kind: Kind, at: str = "") -> tuple[str, Any, str] | None:
    """Where `value`, or a part of it, is not as `kind` says: the place, what stands there, and what belongs there."""
    if not kind.fits(value):
        return at, value, kind.words
    for place, part, of in kind.parts(value, at):
        if (found := wrong(part, of, place)) is not None:
            return found
    return None


def check(value: Any, kind: Kind, path: Path, step: str) -> None:
    """Raises BadInput where `value`, read from `path`, is not of `kind`. `step` ends the sentence; ``{at}`` in it is the place."""
    if (found := wrong(value, kind)) is not None:
        at, there, words = found
        what = f" for '{at}', which is {words}" if at else f" where {words} belongs"
        raise BadInput(f"'{path}' holds {shown(there)}{what}. {step.replace('{at}', at)}")


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
    """What the JSON file at `path` holds, once it is of `kind`.

    Args:
        otherwise: what to do about a file that cannot be read. correct: and about a value, whose place ``{at}`` in it is.

    Raises:
        BadInput: it is no plain file, too long, no JSON, nested too deep, or holds something else.
    """
    value = parsed(path, otherwise)
    check(value, kind, path, correct)
    return value


def parsed(path: Path, otherwise: str, **options: Any) -> Any:
    """What the JSON file at `path` holds, of whatever kind. `options` are those of `json.loads`. Raises as `read`."""
    try:
        return json.loads(plain_bytes(path).decode("utf-8-sig"), **options)
    except RecursionError as e:
        raise BadInput(f"'{path}' is nested too deep. {otherwise}") from e
    except ValueError as e:  # no UTF-8, no JSON, or a number of more digits than Python reads
        raise BadInput(f"'{path}' is not readable JSON ({' '.join(str(e).split())[:160]}). {otherwise}") from e
    except OSError as e:
        raise BadInput(f"'{path}' cannot be read ({e.strerror or e}). {otherwise}") from e


def open_plain(path: str | os.PathLike[str]) -> BinaryIO:
    """A plain file, open for reading. A pipe that nobody writes to would be waited for.

    Raises:
        ValueError: it is something else. OSError: it cannot be read.
    """
    f = open(path, "rb", opener=lambda p, flags: os.open(p, flags | getattr(os, "O_NONBLOCK", 0)))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):
        f.close()
        raise ValueError("it is no plain file")
    return f


def plain_bytes(path: Path) -> bytes:
    """The bytes of a plain file of at most `MOST_BYTES`.

    Raises:
        ValueError: it is something else, such as a pipe that nobody writes to, or longer. OSError: it cannot be read.
    """
    with open_plain(path) as f:
        raw = f.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise ValueError(f"it is longer than {MOST_BYTES:,} bytes")
    return raw
