"""One writer of a folder at a time: a file that says who writes, and is renewed while they do."""

from __future__ import annotations

import json
import os
import platform
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trueup.errors import BadInput
from trueup.store import atomic

BEAT, GONE = 30.0, 300.0
"""Seconds between renewals, and after how many without one a writer on another machine counts as gone."""


@contextmanager
def writing(out: Path, part: str = "") -> Iterator[None]:
    """Hold `out` inside the block: the whole of it, or with `part` (``i/n``) that part of a sweep beside the other parts.

    Raises:
        BadInput: another sweep that is alive writes there; it says which, and where it runs.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise BadInput(atomic.cannot_write(out, e)) from e
    own = out / f".writing{'-' + part.replace('/', '-of-') if part else ''}"
    claim = {"host": platform.node(), "pid": os.getpid(), "part": part}
    if not _claim(own, claim):
        _refuse(own, out)
    for other in sorted(out.glob(".writing*")):
        if other == own or not re.fullmatch(r"\.writing(-\d+-of-\d+)?", other.name):
            continue
        beside = bool(part) and other.name.partition("-of-")[2] == own.name.partition("-of-")[2]
        if not beside and _alive(other):
            own.unlink(missing_ok=True)
            _refuse(other, out)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            with suppress(OSError):
                os.utime(own)

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        own.unlink(missing_ok=True)


def alone(out: Path) -> bool:
    """Whether no other sweep is writing a part of `out`."""
    return not any(_alive(f) for f in out.glob(".writing*") if json_of(f).get("pid") != os.getpid())


def json_of(file: Path) -> dict[str, object]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _claim(own: Path, claim: dict[str, object]) -> bool:
    for _ in range(2):
        try:
            with open(own, "x") as f:
                json.dump(claim, f)
            return True
        except FileExistsError:
            if _alive(own):
                return False
            own.unlink(missing_ok=True)
        except OSError as e:
            raise BadInput(atomic.cannot_write(own.parent, e)) from e
    return False


def _alive(file: Path) -> bool:
    """Whether who wrote the file still runs: here its process is asked for, elsewhere the file must be fresh."""
    try:
        age = time.time() - file.stat().st_mtime
    except OSError:
        return False
    claim = json_of(file)
    # Windows has no signal that only asks.
    if os.name == "posix" and claim.get("host") == platform.node() and isinstance(claim.get("pid"), int):
        try:
            os.kill(int(str(claim["pid"])), 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # of another user, and alive
            pass
    return age < GONE


def _refuse(file: Path, out: Path) -> None:
    claim = json_of(file)
    part = f" (its part {claim['part']})" if claim.get("part") else ""
    raise BadInput(
        f"Another sweep is writing '{out}'{part}: process {claim.get('pid', '?')} on {claim.get('host', '?')}. Wait until it is "
        "done, stop it, or give another folder."
    )
