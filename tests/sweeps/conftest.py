"""A tiny base, data and an adapter tuned on them, for cells that take a second or two."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from sweep_cases import data, tiny_adapter


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``bert``, ``data.csv`` and the adapters ``runs/a/best`` and ``runs/b/best``."""
    from trueup.subject.tiny import make_base

    folder = tmp_path_factory.mktemp("sweep-world")
    make_base("bert", folder / "bert")
    (folder / "data.csv").write_text(data(400), encoding="utf-8")
    for name, seed in (("a", 0), ("b", 1)):
        tiny_adapter(folder, folder / "runs" / name / "best", seed)
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: links to what `made` has, each test's own to write in."""
    import shutil

    folder = tmp_path / "world"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TRUEUP_CACHE", str(tmp_path / "cache"))
    return folder
