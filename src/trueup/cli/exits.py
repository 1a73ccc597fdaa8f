"""How a command ends: what was raised on purpose is one sentence and an exit code, and so is a signal."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from trueup.cli.printing import say
from trueup.errors import BadInput, OutOfMemory, TrueupError, out_of_memory

CODES = (
    "Exit code 0: no fault was found. 1: a fault was found (--fail-on changes that). 2: the input cannot be used, or a fault "
    "asked for by name could not be examined. 3: an error of trueup itself; the findings of the other faults are in the output "
    "folder. 130: interrupted; 143: ended by a scheduler."
)


@contextmanager
def sentences(again: str = "The same command goes on where it stopped.", *, silent: bool = False) -> Iterator[None]:
    """What trueup raises on purpose becomes one sentence on standard error and exit code 2; `again` follows an interrupt. `silent`:
    another process says both, and ends the run: its launcher then stops this one by a signal."""
    try:
        with _ended_by_signals():
            yield
    except _Ended as e:
        if not silent:
            say(f"trueup: stopped by {signal.Signals(e.number).name}. {again}", file=sys.stderr)
        raise typer.Exit(128 + e.number) from None
    except TrueupError as e:
        if silent:
            return
        say(f"trueup: {e}", file=sys.stderr)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        if not silent:
            say(f"trueup: stopped. {again}", file=sys.stderr)
        raise typer.Exit(130) from None
    except OSError as e:
        if e.errno == errno.ENAMETOOLONG:
            name = str(e.filename)
            shown = name if len(name) <= 80 else f"{name[:80]}…"
            say(
                f"trueup: '{shown}' is too long for the name of a file. Check it, and give a shorter one.",
                file=sys.stderr,
            )
            raise typer.Exit(2) from None
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        where = f"'{e.filename}'" if e.filename else "A file"
        say(
            f"trueup: {where} cannot be read or written ({e.strerror}). Make room or give rights there, then run the same "
            "command again: it goes on where it stopped.",
            file=sys.stderr,
        )
        raise typer.Exit(2) from None
    except (RuntimeError, MemoryError) as e:
        if not out_of_memory(e):
            raise
        say(f"trueup: {OutOfMemory()}", file=sys.stderr)
        raise typer.Exit(2) from None


class _Ended(SystemExit):
    """A signal asks the process to end. What may not hold up an exit does not hold up this either."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Raise `_Ended` where a scheduler or a closed terminal ends the process: it ends its workers and lets go of its folder."""

    def end(number: int, frame: Any) -> None:
        for n in ours:  # once: a second one would cut the leaving short
            signal.signal(n, signal.SIG_IGN)
        raise _Ended(number)

    asked = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ours = [n for n in asked if signal.getsignal(n) is signal.SIG_DFL]  # one that is ignored, as nohup has it, stays so
    if threading.current_thread() is not threading.main_thread():
        ours = []
    for n in ours:
        signal.signal(n, end)
    try:
        yield
    finally:
        for n in ours:
            signal.signal(n, signal.SIG_DFL)


def is_first() -> bool:
    """Whether this process prints and judges: of several processes of one run, only one does."""
    return int(os.environ.get("RANK", 0)) == 0


def refuse_several(what: str, cure: str) -> None:
    """Raises BadInput under ``accelerate launch``, where each process would write the same folder."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise BadInput(f"{what} is one process, and `accelerate launch` started several. {cure}")
