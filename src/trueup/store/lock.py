"""Locks a folder for one writer at a time, with a file that names the writer. The writer holds it locked and renews its time.

The file lock works between the processes of one machine, and is released when its process ends in any way. Machines that share
a folder need not share locks: between them the age of the file decides.
"""

from __future__ import annotations

import _thread
import json
import os
import platform
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NoReturn

from trueup.errors import BadInput
from trueup.store import atomic

BEAT, GONE = 30.0, 300.0
"""Seconds between renewals; seconds without a renewal after which a writer on another machine counts as ended."""
FIRST, EMPTY, PATIENCE = 1.0, 5.0, 1.0
"""Seconds until the first renewal; seconds after which an empty file counts as left by a failed start; seconds for which a start
waits while another process only reads the file (with an empty file it waits `EMPTY` seconds longer)."""


@contextmanager
def held(
    own: Path, out: Path, what: str, *, part: str = "", beside: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Hold the lock file `own` of the folder `out` inside the block.

    Args:
        what: a word for the writer, such as ``sweep``. part: the part of a whole that several processes write. beside: called
            once the lock is held; it may still raise an error.

    Raises:
        BadInput: another live process writes there (the message says which, and where it runs); or another process has taken
            `out` over, because this one was stopped or cut off for `GONE` seconds. Unavailable: the disk is full.
    """
    try:
        own.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise atomic.cannot_write(out, e) from e
    claim = {"host": platform.node(), "pid": os.getpid(), "part": part, "token": secrets.token_hex(8)}
    file = _claim(own, out, claim)
    if file is None:
        refuse(own, out, what)
    done, taken_over = threading.Event(), threading.Event()

    def beat() -> None:
        for pause in chain((FIRST,), repeat(BEAT)):
            if done.wait(pause):
                return
            if (contents := json_of(own)) and contents.get("token") != claim["token"]:
                taken_over.set()
                _interrupt()
                return
            with suppress(OSError):
                os.utime(own)

    def interrupted(number: int, frame: Any) -> None:
        if taken_over.is_set():
            raise KeyboardInterrupt

    # Under nohup, or with & in a script, SIGINT is ignored. The loss of the folder, which `beat` signals so, must still be noticed.
    sigint_ignored = (
        threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    )
    if sigint_ignored:
        signal.signal(signal.SIGINT, interrupted)
    try:
        beside()
        threading.Thread(target=beat, daemon=True).start()
        yield
    except KeyboardInterrupt:
        if not taken_over.is_set():
            raise
        raise BadInput(
            f"This {what} was stopped or cut off for {GONE / 60:g} minutes, and another has gone on in '{out}': {_who(own)}. "
            "This one leaves it to that; what it had finished is kept."
        ) from None
    finally:
        done.set()
        if sigint_ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if json_of(own).get("token") == claim["token"]:
            own.unlink(missing_ok=True)
        os.close(file)


def json_of(file: Path) -> dict[str, object]:
    try:
        contents = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return contents if isinstance(contents, dict) else {}


def _claim(own: Path, out: Path, claim: dict[str, Any]) -> int | None:
    """The descriptor of the lock file, locked and with the claim written; None where another process holds it."""
    start, created = time.monotonic(), None
    while True:
        f, unlocked = None, False
        try:
            try:
                f = os.open(
                    own, os.O_RDWR | os.O_CREAT | os.O_EXCL
                )  # one machine alone, also where locks are not shared
                created = os.fstat(f)
            except FileExistsError:
                with suppress(FileNotFoundError):  # its writer has ended in this moment
                    f = os.open(own, os.O_RDWR)
        except OSError as e:
            raise atomic.cannot_write(out, e) from e
        if f is not None:
            other_claim, unlocked = {}, atomic.free(f, alone=True)
            if unlocked is not False and _is(os.fstat(f), own):
                other_claim = json_of(own)
                created_here = created is not None and not other_claim and _is(created, own)
                if created_here or not _lives(other_claim, own, unlocked):
                    _say(f, claim, out)
                    return f
            os.close(f)
            if other_claim:
                return None
        # A process that was killed before it wrote its claim has left an empty file without a lock.
        if time.monotonic() - start > PATIENCE + (0 if unlocked is False else EMPTY):
            return None
        time.sleep(0.05)


def _say(f: int, claim: dict[str, Any], out: Path) -> None:
    try:
        os.ftruncate(f, 0)
        os.write(f, json.dumps(claim).encode())
    except OSError as e:
        os.close(f)
        raise atomic.cannot_write(out, e) from e


def _is(stat: os.stat_result, file: Path) -> bool:
    """Whether an open file is still the one with that name: its writer may have ended and removed it before it was locked."""
    try:
        return os.path.samestat(stat, file.stat())
    except OSError:
        return False


def alive(file: Path) -> bool:
    """Whether the process that wrote the file still runs. A stopped process counts as running.

    An empty file is read again, for up to `EMPTY` seconds.
    """
    while True:
        try:
            with open(file) as f:
                unlocked = atomic.free(f.fileno())
        except FileNotFoundError:
            return False
        except OSError:
            unlocked = None
        claim = json_of(file)
        if unlocked is False or not _lives(claim, file, unlocked):
            return unlocked is False
        if claim:
            return True
        time.sleep(0.05)


def _lives(claim: dict[str, object], file: Path, free: bool | None) -> bool:
    """Whether the writer of the claim still runs. `free`: True if no process of this machine has the lock, None if unknown."""
    try:
        age = time.time() - file.stat().st_mtime
    except OSError:
        return False
    if claim.get("host") == platform.node():
        if free:
            return False
        if os.name == "posix" and isinstance(claim.get("pid"), int):  # Windows has no signal that only tests a process
            try:
                os.kill(int(str(claim["pid"])), 0)
            except ProcessLookupError:
                return False
            except PermissionError:  # a live process of another user
                pass
            return True
    return age < GONE if claim else abs(age) < EMPTY  # abs, because the clock may have been set back


def _interrupt() -> None:
    """Interrupt the main thread as Ctrl-C does, also where it waits for a worker."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]
    else:
        _thread.interrupt_main()


def _who(file: Path) -> str:
    claim = json_of(file)
    return f"process {claim.get('pid', '?')} on {claim.get('host', '?')}"


def refuse(file: Path, out: Path, what: str) -> NoReturn:
    claim = json_of(file)
    part = f" (its part {claim['part']})" if claim.get("part") else ""
    advice = "" if claim.get("host") == platform.node() else f" If that one has died, wait {GONE / 60:g} minutes."
    raise BadInput(
        f"Another {what} is writing '{out}'{part}: {_who(file)}. Wait until it is done, stop it, or give another folder.{advice}"
    )
