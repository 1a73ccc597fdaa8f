"""Printing: text without control characters, and tables. Printing to a closed pipe is not an error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from trueup.errors import visible


def say(text: str, *, file: Any = None, flush: bool = False) -> None:
    """Print text that may hold names from data, with control and escape characters made visible."""
    print(visible(text), file=file, flush=flush)


def say_unless(quiet: bool) -> Callable[[str], None]:
    """`say` with each line flushed; a function that prints nothing if `quiet`."""
    return (lambda text: None) if quiet else (lambda text: say(text, flush=True))


def show(table: Any) -> None:
    """Print a table of `trueup.report.table`, in 80 columns if it is not on a terminal. Longer commands in it are not cut."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 80, soft_wrap=False).print(table, crop=False)


class _Heard:
    """A stream whose reader may close it (`| head`). Later output is then dropped, and the work continues.

    Without this, Python and its libraries would exit with 1, which here means that a fault was found.
    """

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
    wrapped: Any = [_Heard(s) for s in streams]
    sys.stdout, sys.stderr = wrapped
    try:
        yield
    finally:
        for stream in wrapped:
            stream.flush()
        sys.stdout, sys.stderr = streams
