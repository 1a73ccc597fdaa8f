"""The end of a command: turns trueup's own errors, and signals, into one sentence and an exit code."""

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
    """Turn trueup's own errors into one sentence on standard error and exit code 2. `again` follows the sentence of an interrupt.

    `silent`: print nothing. Another process of the run reports the error and ends; its launcher then stops this one by a signal.
    """
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
    """A signal asks the process to end. As a SystemExit it is not caught by handlers of Exception."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Raise `_Ended` where a scheduler or a closed terminal ends the process, so that workers end and the folder is unlocked."""

    def end(number: int, frame: Any) -> None:
        for n in default_signals:  # later signals are ignored: they would interrupt the clean-up
            signal.signal(n, signal.SIG_IGN)
        raise _Ended(number)

    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    default_signals = [
        n for n in signals if signal.getsignal(n) is signal.SIG_DFL
    ]  # a signal that nohup ignores stays ignored
    if threading.current_thread() is not threading.main_thread():
        default_signals = []
    for n in default_signals:
        signal.signal(n, end)
    try:
        yield
    finally:
        for n in default_signals:
            signal.signal(n, signal.SIG_DFL)


def is_first() -> bool:
    """Whether this process prints and sets the exit code: only the first of several processes of a run does."""
    return int(os.environ.get("RANK", 0)) == 0


def refuse_several(what: str, cure: str) -> None:
    """Raises BadInput under ``accelerate launch``, where each process would write the same folder."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise BadInput(f"{what} is one process, and `accelerate launch` started several. {cure}")
