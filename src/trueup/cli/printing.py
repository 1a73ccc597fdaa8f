"""What is printed: text as text, tables, and nothing to a reader who has gone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from trueup.errors import visible


def say(text: str, *, file: Any = None, flush: bool = False) -> None:
    """Print what may hold names that strangers wrote: as text, whatever a terminal would take it for."""
    print(visible(text), file=file, flush=flush)


def say_unless(quiet: bool) -> Callable[[str], None]:
    """`say`, each line at once; nothing where `quiet`."""
    return (lambda text: None) if quiet else (lambda text: say(text, flush=True))


def show(table: Any) -> None:
    """Print a table of `trueup.report.table`: in 80 columns where nobody looks. A command in it is longer, and is not cut."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 80, soft_wrap=False).print(table, crop=False)


class _Heard:
    """A stream whose reader may go (`| head`): what is said after that is said to nobody, and costs no work and no verdict.

    The libraries below would exit with 1, which here says that a fault was found."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._gone()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._gone()

    def _gone(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def readers_may_go() -> Iterator[None]:
    streams: Any = sys.stdout, sys.stderr
    heard: Any = [_Heard(s) for s in streams]
    sys.stdout, sys.stderr = heard
    try:
        yield
    finally:
        for stream in heard:
            stream.flush()
        sys.stdout, sys.stderr = streams
