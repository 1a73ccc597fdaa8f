"""One writer of a folder at a time: a file that says who writes, which they hold locked, and renew while they do.

The lock tells writers of one machine apart, and lets go when its process ends, however it ends. Machines that share a folder
need not share locks: there the age of the file tells.
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
"""Seconds between renewals, and after how many without one a writer on another machine counts as gone."""
FIRST, EMPTY, PATIENCE = 1.0, 5.0, 1.0
"""Seconds until the first renewal; after which a file that says nothing is of a start that came to nothing; and for which a start
waits for another that only looks who writes, or for longer than `EMPTY` where the file says nothing."""


@contextmanager
def held(
    own: Path, out: Path, what: str, *, part: str = "", beside: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Hold the lock file `own` of the folder `out` inside the block.

    Args:
        what: who writes, in a word. part: of a whole that several write. beside: called once it is held, to refuse all the same.

    Raises:
        BadInput: another that is alive writes there, and which, and where it runs; or one has taken `out` over, because this
            one was stopped or cut off for `GONE` seconds. Unavailable: the disk is full.
    """
    try:
        own.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise atomic.cannot_write(out, e) from e
    claim = {"host": platform.node(), "pid": os.getpid(), "part": part, "token": secrets.token_hex(8)}
    file = _claim(own, out, claim)
    if file is None:
        refuse(own, out, what)
    ended, lost = threading.Event(), threading.Event()

    def beat() -> None:
        for pause in chain((FIRST,), repeat(BEAT)):
            if ended.wait(pause):
                return
            if (found := json_of(own)) and found.get("token") != claim["token"]:
                lost.set()
                _interrupt()
                return
            with suppress(OSError):
                os.utime(own)

    def interrupted(number: int, frame: Any) -> None:
        if lost.is_set():
            raise KeyboardInterrupt

    # Under nohup, or behind a script's &, Ctrl-C is ignored; that the folder is lost must be heard all the same.
    deaf = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if deaf:
        signal.signal(signal.SIGINT, interrupted)
    try:
        beside()
        threading.Thread(target=beat, daemon=True).start()
        yield
    except KeyboardInterrupt:
        if not lost.is_set():
            raise
        raise BadInput(
            f"This {what} was stopped or cut off for {GONE / 60:g} minutes, and another has gone on in '{out}': {_who(own)}. "
            "This one leaves it to that; what it had finished is kept."
        ) from None
    finally:
        ended.set()
        if deaf:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if json_of(own).get("token") == claim["token"]:
            own.unlink(missing_ok=True)
        os.close(file)


def json_of(file: Path) -> dict[str, object]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _claim(own: Path, out: Path, claim: dict[str, Any]) -> int | None:
    """The file, locked and with the claim in it, as a descriptor; None where another holds it."""
    began, created = time.monotonic(), None
    while True:
        f, free = None, False
        try:
            try:
                f = os.open(
                    own, os.O_RDWR | os.O_CREAT | os.O_EXCL
                )  # one machine alone, also where locks are not shared
                created = os.fstat(f)
            except FileExistsError:
                with suppress(FileNotFoundError):  # its writer has just ended
                    f = os.open(own, os.O_RDWR)
        except OSError as e:
            raise atomic.cannot_write(out, e) from e
        if f is not None:
            known, free = {}, atomic.free(f, alone=True)
            if free is not False and _is(os.fstat(f), own):
                known = json_of(own)
                mine = created is not None and not known and _is(created, own)
                if mine or not _lives(known, own, free):
                    _say(f, claim, out)
                    return f
            os.close(f)
            if known:
                return None
        # One that was killed before it said who it is has left an empty file that nobody holds.
        if time.monotonic() - began > PATIENCE + (0 if free is False else EMPTY):
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
    """Whether an open file is still the one of that name: its writer may have ended, and taken it away, before it was locked."""
    try:
        return os.path.samestat(stat, file.stat())
    except OSError:
        return False


def alive(file: Path) -> bool:
    """Whether who wrote the file still runs, though it may be stopped.

    A file that says nothing yet is waited for, up to `EMPTY` seconds.
    """
    while True:
        try:
            with open(file) as f:
                free = atomic.free(f.fileno())
        except FileNotFoundError:
            return False
        except OSError:
            free = None
        claim = json_of(file)
        if free is False or not _lives(claim, file, free):
            return free is False
        if claim:
            return True
        time.sleep(0.05)


def _lives(claim: dict[str, object], file: Path, free: bool | None) -> bool:
    """Whether who wrote the claim still runs, of a lock that no process of this machine holds (True) or that cannot tell (None)."""
    try:
        age = time.time() - file.stat().st_mtime
    except OSError:
        return False
    if claim.get("host") == platform.node():
        if free:
            return False
        if os.name == "posix" and isinstance(claim.get("pid"), int):  # Windows has no signal that only asks
            try:
                os.kill(int(str(claim["pid"])), 0)
            except ProcessLookupError:
                return False
            except PermissionError:  # of another user, and alive
                pass
            return True
    return age < GONE if claim else abs(age) < EMPTY  # the clock may have been set back since


def _interrupt() -> None:
    """As Ctrl-C does, also where the main thread waits for a worker."""
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
    gone = "" if claim.get("host") == platform.node() else f" If that one has died, wait {GONE / 60:g} minutes."
    raise BadInput(
        f"Another {what} is writing '{out}'{part}: {_who(file)}. Wait until it is done, stop it, or give another folder.{gone}"
    )
