"""Files and folders appear whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueup.errors import BadInput, Unavailable
from trueup.store import atomic


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_text_is_written_exactly(tmp_path):
    text = 'a\r\nb\n"ü"\u2028\0\U0001f600'
    atomic.write_text(tmp_path / "t.txt", text)
    assert (tmp_path / "t.txt").read_bytes() == text.encode()
    assert names(tmp_path) == ["t.txt"]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch):
    file = tmp_path / "t.txt"
    file.write_text("old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(Unavailable, match=r"no room to write '.*t.txt' \(No space left on device\)\. Make room"):
        atomic.write_text(file, "new")
    assert file.read_text() == "old"
    assert names(tmp_path) == ["t.txt"]


def test_a_missing_folder_is_a_sentence(tmp_path):
    with pytest.raises(BadInput, match=r"cannot be written \(No such file"):
        atomic.write_text(tmp_path / "none" / "t.txt", "x")


@dataclass(frozen=True)
class Point:
    x: np.float32
    y: tuple


def test_json_holds_numpy_and_dataclasses_and_no_nan(tmp_path):
    thing = {
        "b": np.float64("nan"),
        "a": [np.int64(3), np.bool_(True), float("inf"), None],
        "c": np.array([[1.5, np.nan]]),
        "p": Point(np.float32(0.5), (Path("x"), "é")),
        2: {"z", "a"},
    }
    atomic.write_json(tmp_path / "x.json", thing)
    raw = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert "NaN" not in raw
    assert "é" in raw
    assert json.loads(raw) == {
        "a": [3, True, None, None],
        "b": None,
        "c": [[1.5, None]],
        "p": {"x": 0.5, "y": ["x", "é"]},
        "2": ["a", "z"],
    }


def test_json_is_stable_whatever_the_order_of_keys():
    assert atomic.json_bytes({"a": 1, "b": {"d": 1, "c": 2}}) == atomic.json_bytes({"b": {"c": 2, "d": 1}, "a": 1})


def test_json_refuses_what_it_cannot_hold_and_writes_nothing(tmp_path):
    with pytest.raises(TypeError, match="object has no plain form"):
        atomic.write_json(tmp_path / "x.json", {"a": object()})
    with pytest.raises(TypeError, match="Two keys"):
        atomic.write_json(tmp_path / "x.json", {1: "a", "1": "b"})
    assert names(tmp_path) == []


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_json_round_trip(thing):
    assert json.loads(atomic.json_bytes(thing)) == thing


def test_json_escapes_a_lone_surrogate():
    assert json.loads(atomic.json_bytes(["\ud800"])) == ["\ud800"]


def test_a_new_folder_has_a_manifest_that_verifies(tmp_path):
    target = tmp_path / "deep" / "out"
    with atomic.new_folder(target) as folder:
        assert folder.parent == target.parent  # a rename within one disk
        assert not target.exists()
        (folder / "sub").mkdir()
        (folder / "sub" / "a.bin").write_bytes(b"abc")
        (folder / "b.txt").write_text("")
    files = json.loads((target / "manifest.json").read_text())["files"]
    assert sorted(files) == ["b.txt", "sub/a.bin"]
    assert files["sub/a.bin"]["size"] == 3
    assert files["sub/a.bin"]["sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    atomic.verify(target)
    assert names(target.parent) == ["out"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_in_the_middle_leaves_nothing(tmp_path, error):
    def work():
        with atomic.new_folder(tmp_path / "out") as folder:
            (folder / "a").write_text("x")
            raise error

    with pytest.raises(error):
        work()
    assert names(tmp_path) == []


def test_an_exception_with_force_keeps_the_old_folder(tmp_path):
    target = tmp_path / "out"
    with atomic.new_folder(target) as folder:
        (folder / "old").write_text("x")

    def work():
        with atomic.new_folder(target, force=True) as folder:
            (folder / "new").write_text("y")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert names(tmp_path) == ["out"]
    assert names(target) == ["manifest.json", "old"]


def test_a_failing_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    target = tmp_path / "out"
    with atomic.new_folder(target) as folder:
        (folder / "old").write_text("x")
    real = os.rename

    def rename(a, b):
        if Path(b) == target and (Path(a) / "new").exists():
            raise OSError(13, "Permission denied", str(b))
        real(a, b)

    monkeypatch.setattr(atomic.os, "rename", rename)
    with pytest.raises(BadInput, match="Permission denied"), atomic.new_folder(target, force=True) as folder:
        (folder / "new").write_text("y")
    assert names(tmp_path) == ["out"]
    assert names(target) == ["manifest.json", "old"]


def test_force_replaces_and_leaves_no_trace_of_the_old(tmp_path):
    target = tmp_path / "out"
    for name in ("old", "new"):
        with atomic.new_folder(target, force=True) as folder:
            (folder / name).write_text("x")
    assert names(target) == ["manifest.json", "new"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("linked", [True, False])
def test_force_keeps_what_somebody_else_laid_into_the_folder(tmp_path, monkeypatch, linked):
    if not linked:  # a disk without second names

        def refuse(*a, **k):
            raise OSError("no links here")

        monkeypatch.setattr(atomic.os, "link", refuse)
    target = tmp_path / "out"
    for content in ("old", "new"):
        with atomic.new_folder(target, force=True) as folder:
            (folder / "result.txt").write_text(content)
            (folder / f"{content}.txt").write_text(content)
            if content == "new":
                (folder / "taken.txt").write_text("trueup's")
        if content == "old":
            (target / "notes.txt").write_text("mine")
            (target / "more" / "deep").mkdir(parents=True)
            (target / "more" / "deep" / "plot.png").write_bytes(b"png")
            (target / "link").symlink_to("notes.txt")
            (target / "taken.txt").write_text("mine, and the new folder has one of its own")
    assert (target / "notes.txt").read_text() == "mine"
    assert (target / "more" / "deep" / "plot.png").read_bytes() == b"png"
    assert (target / "link").is_symlink()
    assert (target / "result.txt").read_text() == "new"
    assert (target / "taken.txt").read_text() == "trueup's"
    assert not (target / "old.txt").exists(), "what trueup wrote is replaced"
    assert set(json.loads((target / atomic.MANIFEST).read_text())["files"]) == {"result.txt", "new.txt", "taken.txt"}
    atomic.verify(target)
    with pytest.raises(RuntimeError), atomic.new_folder(target, force=True):
        raise RuntimeError
    assert (target / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("manifest", [None, "[]", '{"files": ["old"]}', '{"name": "app", "icons": []}'])
def test_force_replaces_no_folder_that_somebody_else_wrote(tmp_path, manifest):
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine").write_text("x")
    if manifest is not None:
        (target / "manifest.json").write_text(manifest)
    before = names(target)
    said = pytest.raises(BadInput, match=r"was not written by trueup.*delete this one yourself")
    with said, atomic.new_folder(target, force=True):
        pytest.fail("began to write")
    assert names(target) == before
    assert (target / "mine").read_text() == "x"
    with atomic.new_folder(target, force=True, own=True) as folder:  # where trueup alone writes
        (folder / "new").write_text("x")
    assert names(target) == ["manifest.json", "new"]


@pytest.mark.parametrize("kind", ["to a folder", "to an empty folder"])
def test_a_link_is_followed_and_stays(tmp_path, kind):
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to(real)
    if kind == "to an empty folder":
        real.mkdir()
    if kind == "to a folder":
        with atomic.new_folder(real) as folder:
            (folder / "old").write_text("x")
    with atomic.new_folder(link, force=kind == "to a folder") as folder:
        (folder / "new").write_text("x")
    assert link.is_symlink()
    assert names(real) == ["manifest.json", "new"]
    assert names(tmp_path) == ["link", "real"]


@pytest.mark.parametrize("to", ["link", "nothing"])
def test_a_link_to_no_folder_is_refused(tmp_path, to):
    """What it leads to may be on a disk that is not mounted."""
    (tmp_path / "link").symlink_to(tmp_path / to)
    with (
        pytest.raises(BadInput, match=r"link' is a link to '.*there is no such folder"),
        atomic.new_folder(tmp_path / "link", force=True),
    ):
        pytest.fail("began to write")
    assert names(tmp_path) == ["link"]


def test_a_link_to_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(BadInput, match="link' is a file"), atomic.new_folder(tmp_path / "link", force=True):
        pytest.fail("began to write")


def test_what_is_read_is_never_written_over(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "data.csv").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "base")
    for out in ("base", "link", "."):
        with pytest.raises(BadInput, match="holds the data itself"):
            atomic.refuse_read(tmp_path / out, {"base": None, "data": tmp_path / "base" / "data.csv"})
    for name in (
        "org/model",
        "embedded:minilm",
        "x\0y",
        "~nobody.here/x",
        "n" * 5000,
        str(tmp_path / "base" / "data.csv"),
    ):
        atomic.refuse_read(tmp_path / "out", {"base": name})
        atomic.refuse_read(tmp_path / "base" / "out", {"base": name})


def test_a_taken_folder_is_refused_before_any_work(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine").write_text("x")
    ran = False
    with pytest.raises(BadInput, match=r"out' exists and is not empty.*--force"), atomic.new_folder(target):
        ran = True
    assert not ran
    assert names(target) == ["mine"]


def test_an_empty_folder_may_be_taken(tmp_path):
    (tmp_path / "out").mkdir()
    with atomic.new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("x")
    assert names(tmp_path / "out") == ["a", "manifest.json"]


def test_a_folder_that_was_filled_meanwhile_is_kept(tmp_path):
    target = tmp_path / "out"

    def work():
        with atomic.new_folder(target) as folder:
            (folder / "a").write_text("x")
            target.mkdir()
            (target / "theirs").write_text("y")

    with pytest.raises(BadInput, match="exists and is not empty"):
        work()
    assert names(target) == ["theirs"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("force", [False, True])
def test_a_file_in_the_way_is_refused(tmp_path, force):
    (tmp_path / "out").write_text("x")
    with pytest.raises(BadInput, match="is a file"), atomic.new_folder(tmp_path / "out", force=force):
        pass
    assert (tmp_path / "out").read_text() == "x"


def test_a_parent_that_is_a_file_is_a_sentence(tmp_path):
    (tmp_path / "f").write_text("x")
    with pytest.raises(BadInput, match="cannot be written"), atomic.new_folder(tmp_path / "f" / "out"):
        pass


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_parent_is_a_sentence(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(BadInput, match="Permission denied"), atomic.new_folder(tmp_path / "out"):
            pass
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_process_leaves_no_target_and_the_next_one_succeeds(tmp_path):
    target = tmp_path / "out"
    code = """
        import os, signal, sys
        from trueup.store import atomic
        with atomic.new_folder(sys.argv[1]) as folder:
            (folder / "a").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.")
    with atomic.new_folder(target) as folder:
        (folder / "a").write_text("whole")
    assert names(tmp_path) == ["out"]


def test_what_a_writer_that_lives_has_begun_is_left_alone(tmp_path):
    """However old it is: its clock may be wrong, or its work long. One on another machine counts by its age."""
    target, day = tmp_path / "out", time.time() - atomic.STALE_SECONDS - 60

    def write_another():
        with atomic.new_folder(target, force=True) as other:
            (other / "a").write_text("theirs")

    with atomic.new_folder(target, force=True) as folder:
        os.utime(folder, (day, day))
        write_another()
        (folder / "a").write_text("mine")
    assert (target / "a").read_text() == "mine"
    elsewhere = tmp_path / ".out.00000000-1-abcd.partial"
    elsewhere.mkdir()
    write_another()
    assert elsewhere.exists()
    os.utime(elsewhere, (day, day))
    write_another()
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "said", [OSError(28, "No space left on device"), RuntimeError("I/O error: (os error 28)")], ids=repr
)
def test_a_disk_that_is_full_is_told_as_that(tmp_path, said):
    """By Python, or by a library of another language in its text alone."""

    def work(error):
        with atomic.new_folder(tmp_path / "out"):
            raise error

    with pytest.raises(Unavailable, match=r"no room to write '.*out' \(No space left on device\)\. Make room"):
        work(said)
    with pytest.raises(OSError, match="Input/output"):  # the control
        work(OSError(5, "Input/output error"))
    assert names(tmp_path) == []


def test_all_files_of_a_folder_have_the_users_mode(tmp_path):
    old = os.umask(0o027)
    try:
        with atomic.new_folder(tmp_path / "out") as folder:
            for name, mode in (("weights", 0o600), ("script", 0o755), ("plain", 0o644)):
                (folder / name).write_text("x")
                (folder / name).chmod(mode)
    finally:
        os.umask(old)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "out").iterdir()} == {0o640}


@pytest.fixture
def written(tmp_path):
    with atomic.new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("abc")
        (folder / "b").write_text("def")
    return tmp_path / "out"


def test_verify_names_what_is_missing_and_changed(written):
    (written / "a").unlink()
    (written / "b").write_text("deg")
    with pytest.raises(BadInput, match=r"missing 'a'; changed 'b'\. Make"):
        atomic.verify(written)
    (written / "a").write_text("abc")
    atomic.verify(written, contents=False)  # sizes alone do not see it


def test_verify_does_not_mind_more_files(written):
    (written / "notes.txt").write_text("mine")
    atomic.verify(written)


@pytest.mark.parametrize("content", ["", "[]", '{"files": []}', '{"files": {"a": 3}}', "\0"])
def test_verify_refuses_a_spoilt_manifest(written, content):
    (written / "manifest.json").write_text(content)
    with pytest.raises(BadInput, match="cannot be read"):
        atomic.verify(written)


def test_verify_refuses_no_manifest_and_paths_outside(written):
    (written / "manifest.json").write_text('{"files": {"../x": {"size": 1, "sha256": ""}}}')
    with pytest.raises(BadInput, match="outside"):
        atomic.verify(written)
    (written / "manifest.json").unlink()
    with pytest.raises(BadInput, match="never finished"):
        atomic.verify(written)


def test_a_manifest_of_ones_own_is_refused(tmp_path):
    with pytest.raises(ValueError, match="another name"), atomic.new_folder(tmp_path / "out") as folder:
        (folder / "manifest.json").write_text("{}")
    assert names(tmp_path) == []
