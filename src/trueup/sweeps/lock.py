"""One writer of a folder at a time: a file that says who writes, which they hold locked, and renew while they do.

The lock tells writers of one machine apart, and lets go when its process ends, however it ends. Machines that share a folder
need not share locks: there the age of the file tells.
"""

from __future__ import annotations

import _thread
import json
import os
import platform
import re
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NoReturn

from trueup.errors import BadInput
from trueup.store import atomic

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

BEAT, GONE = 30.0, 300.0
"""Seconds between renewals, and after how many without one a writer on another machine counts as gone."""
FIRST, EMPTY, PATIENCE = 1.0, 5.0, 1.0
"""Seconds until the first renewal; after which a file that says nothing is of a start that came to nothing; and for which a start
waits for another that only looks who writes."""


@contextmanager
def writing(out: Path, part: str = "") -> Iterator[None]:
    """Hold `out` inside the block: the whole of it, or with `part` (``i/n``) that part of a sweep beside the other parts.

    Raises:
        BadInput: another sweep that is alive writes there, and which, and where it runs; or one has taken `out` over, because this
            one was stopped or cut off for `GONE` seconds.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise BadInput(atomic.cannot_write(out, e)) from e
    own = out / f".writing{'-' + part.replace('/', '-of-') if part else ''}"
    claim = {"host": platform.node(), "pid": os.getpid(), "part": part, "token": secrets.token_hex(8)}
    held = _claim(own, claim)
    if held is None:
        _refuse(own, out)
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
        for other in sorted(out.glob(".writing*")):
            if other == own or not re.fullmatch(r"\.writing(-\d+-of-\d+)?", other.name):
                continue
            beside = bool(part) and other.name.partition("-of-")[2] == own.name.partition("-of-")[2]
            if not beside and _alive(other):
                _refuse(other, out)
        threading.Thread(target=beat, daemon=True).start()
        yield
    except KeyboardInterrupt:
        if not lost.is_set():
            raise
        raise BadInput(
            f"This sweep was stopped or cut off for {GONE / 60:g} minutes, and another has gone on in '{out}': {_who(own)}. "
            "This one leaves it to that; what it had finished is kept."
        ) from None
    finally:
        ended.set()
        if deaf:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if json_of(own).get("token") == claim["token"]:
            own.unlink(missing_ok=True)
        os.close(held)


def alone(out: Path) -> bool:
    """Whether no other sweep is writing a part of `out`, beside this process."""
    me = (platform.node(), os.getpid())
    others = [f for f in out.glob(".writing*") if (json_of(f).get("host"), json_of(f).get("pid")) != me]
    return not any(map(_alive, others))


def json_of(file: Path) -> dict[str, object]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _claim(own: Path, claim: dict[str, Any]) -> int | None:
    """The file, locked and with the claim in it, as a descriptor; None where another holds it."""
    until, made = time.monotonic() + PATIENCE, None
    while True:
        f = None
        try:
            try:
                f = os.open(
                    own, os.O_RDWR | os.O_CREAT | os.O_EXCL
                )  # one machine alone, also where locks are not shared
                made = os.fstat(f)
            except FileExistsError:
                with suppress(FileNotFoundError):  # its writer has just ended
                    f = os.open(own, os.O_RDWR)
        except OSError as e:
            raise BadInput(atomic.cannot_write(own.parent, e)) from e
        if f is not None:
            known, free = {}, _free(f, alone=True)
            if free is not False and _is(os.fstat(f), own):
                known = json_of(own)
                mine = made is not None and not known and _is(made, own)
                if mine or not _lives(known, own, free):
                    os.ftruncate(f, 0)
                    os.write(f, json.dumps(claim).encode())
                    return f
            os.close(f)
            if known:
                return None
        if time.monotonic() > until:
            return None
        time.sleep(0.05)


def _is(stat: os.stat_result, file: Path) -> bool:
    """Whether an open file is still the one of that name: its writer may have ended, and taken it away, before it was locked."""
    try:
        return os.path.samestat(stat, file.stat())
    except OSError:
        return False


def _free(f: int, *, alone: bool = False) -> bool | None:
    """Whether no process holds the lock of an open file, which this one then holds; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(f, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def _alive(file: Path) -> bool:
    """Whether who wrote the file still runs, though it may be stopped."""
    try:
        with open(file) as f:
            free = _free(f.fileno())
        return free is False or _lives(json_of(file), file, free)
    except FileNotFoundError:
        return False
    except OSError:
        return _lives(json_of(file), file, None)


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
    return age < (GONE if claim else EMPTY)


def _interrupt() -> None:
    """As Ctrl-C does, also where the main thread waits for a worker."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]
    else:
        _thread.interrupt_main()


def _who(file: Path) -> str:
    claim = json_of(file)
    return f"process {claim.get('pid', '?')} on {claim.get('host', '?')}"


def _refuse(file: Path, out: Path) -> NoReturn:
    part = f" (its part {claim})" if (claim := json_of(file).get("part")) else ""
    raise BadInput(
        f"Another sweep is writing '{out}'{part}: {_who(file)}. Wait until it is done, stop it, or give another folder."
    )
