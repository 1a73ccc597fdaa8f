"""The exceptions of trueup: one base class and few subclasses. Every message ends with the next step.

The command line turns any :class:`TrueupError` into one printed sentence and exit code 2.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sized
from pathlib import Path

TESTED = "Install the versions of the libraries that trueup was tested with (its constraints.txt names them)."
"""The next step in a message, where a library does not behave as trueup expects."""

OFFLINE = "TRUEUP_OFFLINE"
"""The environment variable that forbids all use of a network; ``--offline`` sets it."""


LONGEST = 2400
"""The most characters of an error's text."""


class TrueupError(Exception):
    """The base class of all errors that trueup raises on purpose. The message says what is wrong and what to do next.

    A message of more than 2,400 characters is shortened in its middle.
    """

    def __init__(self, said: str = "") -> None:
        super().__init__(said if len(said) <= LONGEST else f"{said[: LONGEST * 2 // 3]} … {said[-LONGEST // 3 :]}")


class BadInput(TrueupError):
    """A file, column, label, option or folder from the user cannot be used as it is."""


class Unsupported(TrueupError):
    """The input is valid, but trueup does not support its kind (architecture, kind of adapter, task)."""


class Unavailable(TrueupError):
    """An outside resource (a package, a model, memory, disk space) is not available."""


class OutOfMemory(Unavailable):
    """Memory ran out in work that could not be split into smaller pieces."""

    def __init__(self, said: str = "Memory ran out. Lower --max-length or --limit, or take a smaller model.") -> None:
        super().__init__(said)


def out_of_memory(e: BaseException) -> bool:
    """True for all exceptions by which Python, torch and trueup report that memory ran out."""
    if isinstance(e, TrueupError):
        return isinstance(e, OutOfMemory)
    # torch's own class is recognised by its name, so that torch need not be imported.
    if isinstance(e, MemoryError) or any(c.__name__ == "OutOfMemoryError" for c in type(e).__mro__):
        return True
    text = str(e).lower()
    return "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text


_BIDI = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C], "\ufffd")


def visible(text: object) -> str:
    """`text` without control characters, bidi overrides and lone surrogates. Line breaks and tabs stay.

    A terminal obeys such characters, and messages hold names from untrusted data.
    """
    shown = str(text).translate(_BIDI)
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") else "\ufffd" for c in shown)


def shortened(text: object, most: int) -> str:
    """`text` in at most `most` characters. A text that is cut ends in an ellipsis."""
    full_text = str(text)
    return full_text if len(full_text) <= most else full_text[: most - 1].rstrip() + "…"


def check_within(folder: Path, otherwise: str) -> str:
    """The next step in a message, where `folder` is not the output of a check.

    The folder of a demo, or of a cell of a sweep, holds a check as ``report``; the folder of a sweep holds one for each cell.
    """
    if cells := sorted(p.parent for p in folder.glob("cells/*/report/findings.json")):
        return f"It is the folder of a sweep. Give the report of one of its cells, such as '{cells[0]}'."
    report_folder = folder / "report"
    return (
        f"Give '{report_folder}', which holds the check." if (report_folder / "findings.json").is_file() else otherwise
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the closest of `known`, or an empty string. Starts with a space, to be appended."""
    candidates = [str(k) for k in known]
    close = [k for k in candidates if k and k.casefold() == str(name).casefold()]  # difflib finds POS and pos unlike
    close = close or difflib.get_close_matches(str(name), candidates, n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def two_digits(n: int) -> int:
    """An estimated count for a sentence, rounded up to two digits."""
    step = 10 ** max(0, len(str(n)) - 2)
    return -(-n // step) * step


def it_or_them(things: Sized) -> str:
    """The pronoun for things in a message: ``it`` for one, ``them`` for more."""
    return "it" if len(things) == 1 else "them"


def listing(names: Iterable[object], most: int = 12) -> str:
    """Names for a message: ``'a', 'b' and 3 more``; ``none`` when there are none."""
    shown = [f"'{n}'" for n in names]
    if not shown:
        return "none"
    if len(shown) > most:
        return ", ".join(shown[:most]) + f" and {len(shown) - most} more"
    return ", ".join(shown)
