"""A fault at every call by which the writer touches the disk: what is there afterwards is whole, old or new, and a rerun is as if
nothing had been.

The calls are not listed by hand: an operation is run once to count them, and then once for each with that one failing.
"""

from __future__ import annotations

import builtins
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trueup.errors import BadInput, Unavailable
from trueup.store import atomic, sealed
from trueup.store.cache import Memo

CALLS = ("open", "fsync", "replace", "rename", "rmdir", "mkdir", "chmod", "unlink")
"""The functions of ``os`` that the writer uses, itself or through pathlib; every ``write`` to a file it has opened counts too."""


class Faults:
    """Counts the calls, and at number `at` does `act` in its place."""

    def __init__(self, at: int, act: Callable[[object], Any]) -> None:
        self.at, self.act, self.seen = at, act, []

    def call(self, name: str, on: object = None) -> None:
        self.seen.append(name)
        if len(self.seen) - 1 == self.at:
            self.act(on)


class Written:
    """A file of which each write is counted."""

    def __init__(self, file: Any, faults: Faults) -> None:
        self.file, self.faults = file, faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: Any) -> int:
        self.faults.call("write")
        return self.file.write(data)

    def __enter__(self) -> Written:
        return self

    def __exit__(self, *said: object) -> None:
        self.file.close()


def install(patch: pytest.MonkeyPatch, faults: Faults) -> None:
    for name in CALLS:
        real = getattr(os, name)

        def wrapped(*args: Any, _real: Any = real, _name: str = name, **options: Any) -> Any:
            faults.call(_name, args[0])
            return _real(*args, **options)

        patch.setattr(os, name, wrapped)

    def opened(file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
        got = builtins.open(file, mode, *more, **options)  # noqa: SIM115
        if "w" not in mode:
            return got
        faults.call("create")
        return Written(got, faults)

    patch.setattr(atomic, "open", opened, raising=False)


def files(folder: Path) -> dict[str, bytes]:
    """What stands under a name that somebody would look for."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    }


def a_file(folder: Path) -> None:
    atomic.write_bytes(folder / "f.txt", b"new")


def a_sealed_file(folder: Path) -> None:
    sealed.write(folder / "f.sealed", "f", b"new")


def a_folder(folder: Path) -> None:
    with atomic.new_folder(folder / "out") as new:
        (new / "in").mkdir()
        atomic.write_text(new / "a.txt", "new")
        atomic.write_json(new / "in" / "b.json", {"a": 1})


def a_folder_again(folder: Path) -> None:
    with atomic.new_folder(folder / "out", force=True) as new:
        atomic.write_text(new / "a.txt", "newer")


def a_memo(folder: Path) -> None:
    Memo(folder / "kept").put("key", {"a": np.arange(5), "b": np.ones((2, 3))})


WRITES = (a_file, a_sealed_file, a_folder, a_folder_again, a_memo)
OLD = {a_file: lambda f: (f / "f.txt").write_bytes(b"old"), a_folder_again: a_folder}
"""What stands there before."""

ERRORS = {
    "full": (errno.ENOSPC, None, Unavailable),
    "broken": (errno.EIO, None, BadInput),
    "interrupted": (None, KeyboardInterrupt, KeyboardInterrupt),
}


def whole(folder: Path, write: Callable[[Path], None], before: dict[str, bytes], after: dict[str, bytes]) -> None:
    """Asserts that `folder` is as it was or as it was to be, for whoever looks for it as trueup does."""
    out = atomic.there(folder / "out")
    now = files(folder)
    assert now in (before, after), now.keys()
    if out:
        atomic.verify(folder / "out")


def undisturbed(folder: Path, write: Callable[[Path], None]) -> tuple[dict[str, bytes], dict[str, bytes], list[str]]:
    """What is there before and after, and the calls."""
    folder.mkdir()
    OLD.get(write, lambda f: None)(folder)
    before = files(folder)
    faults = Faults(-1, print)
    with pytest.MonkeyPatch.context() as patch:
        install(patch, faults)
        write(folder)
    return before, files(folder), faults.seen


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("write", WRITES)
def test_an_error_at_any_call(tmp_path: Path, write: Callable[[Path], None], error: str) -> None:
    before, after, calls = undisturbed(tmp_path / "undisturbed", write)
    assert {"write", "fsync"} <= set(calls)
    assert set(calls) & {"replace", "rename"}
    number, raised, seen = ERRORS[error]
    stopped = 0
    for at in range(len(calls)):
        folder = tmp_path / f"{at}"
        folder.mkdir()
        OLD.get(write, lambda f: None)(folder)

        def act(on: object) -> None:
            raise raised if number is None else OSError(number, os.strerror(number), None if on is None else str(on))

        with pytest.MonkeyPatch.context() as patch:
            install(patch, Faults(at, act))
            try:
                write(folder)
            except (seen, BadInput):
                stopped += 1
        whole(folder, write, before, after)
        if write is not a_folder or not (folder / "out").exists():
            write(folder)
        assert files(folder) == after, (at, calls[at])
        assert not list(folder.rglob(".*.partial")), (at, calls[at])
    assert stopped or write is a_memo  # what cannot be kept there is computed again


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no process that dies in the middle of a call")
@pytest.mark.parametrize("write", WRITES)
def test_a_kill_at_any_call(tmp_path: Path, write: Callable[[Path], None]) -> None:
    before, after, calls = undisturbed(tmp_path / "undisturbed", write)
    for at in range(len(calls)):
        folder = tmp_path / f"{at}"
        folder.mkdir()
        OLD.get(write, lambda f: None)(folder)
        if (child := os.fork()) == 0:
            with pytest.MonkeyPatch.context() as patch:
                install(patch, Faults(at, lambda on: os._exit(9)))
                write(folder)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, calls[at]
        whole(folder, write, before, after)
        if write is not a_folder or not (folder / "out").exists():
            write(folder)
        assert files(folder) == after, (at, calls[at])
        assert not list(folder.rglob(".*.partial")), (at, calls[at])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no process that dies in the middle of a call")
@pytest.mark.parametrize("look", ["reader", "writer", "within"])
def test_a_folder_is_not_lost_between_the_two_renames(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], look: str
) -> None:
    a_folder(tmp_path)
    before = files(tmp_path)
    if (child := os.fork()) == 0:
        rename = os.rename

        def renamed(a: Any, b: Any) -> None:
            rename(a, b)
            os._exit(9)

        os.rename = renamed  # type: ignore[assignment]
        a_folder_again(tmp_path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not (tmp_path / "out").exists(), "the control: this is the moment"
    if look == "reader":
        assert atomic.there(tmp_path / "out")
    elif look == "within":
        assert atomic.there(tmp_path / "out" / "in")
    else:
        with pytest.raises(BadInput, match="not empty"):
            a_folder(tmp_path)
    assert files(tmp_path) == before
    atomic.verify(tmp_path / "out")
    assert (
        capsys.readouterr().err
        == f"trueup: '{tmp_path / 'out'}' was being replaced when a run was killed. Its old contents are put back.\n"
    )
    a_folder_again(tmp_path)
    assert files(tmp_path) != before
    assert not list(tmp_path.glob(".out.*"))


def test_a_folder_that_a_living_run_has_set_aside_is_left_to_it(tmp_path: Path) -> None:
    a_folder(tmp_path)
    aside = tmp_path / f".out.{atomic._HERE}-1-x.replaced"
    os.rename(tmp_path / "out", aside)
    with atomic._held(aside):
        assert not atomic.there(tmp_path / "out")
    assert atomic.there(tmp_path / "out"), "the control"


def test_a_clock_that_was_set_back_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leftovers are told by who lives, and not by their age."""
    a_folder(tmp_path)
    left = tmp_path / f".out.{atomic._HERE}-1-x.partial"
    left.mkdir()
    monkeypatch.setattr(atomic.time, "time", lambda: 0.0)
    a_folder_again(tmp_path)
    atomic.verify(tmp_path / "out")
    assert not left.exists()
    assert files(tmp_path)["out/a.txt"] == b"newer"
