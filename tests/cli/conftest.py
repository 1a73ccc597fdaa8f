"""Tiny bases, data and a tuned adapter, made once through the command line itself."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cli_cases import Said, check_words, reviews, trueup, write_csv

SHARPENED = 10.0


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny bases ``bert``, ``bert-wide``, ``gpt2`` and ``mamba``, ``data.csv``, and ``adapter`` tuned on it and overstating:
    its classifier's logits are `SHARPENED` times what training gave."""
    from safetensors.torch import load_file, save_file

    from trueup.subject.tiny import make_base

    folder = tmp_path_factory.mktemp("world")
    write_csv(folder / "data.csv", reviews(1200))
    for family in ("bert", "gpt2", "mamba"):
        make_base(family, folder / family)
    said = trueup(
        "tune", "lora", folder / "bert", "--data", folder / "data.csv", "-o", folder / "adapter", "--rank", 2,
        "--epochs", 2, "--lr", 0.01, "--max-length", 32,
    )  # fmt: skip
    assert said.code == 0, said.err
    file = folder / "adapter" / "adapter_model.safetensors"
    save_file({k: v * SHARPENED if "classifier" in k else v for k, v in load_file(file).items()}, file)
    return folder


@pytest.fixture(scope="session")
def checked(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """The output folder of one `check`, and what it said."""
    out = tmp_path_factory.mktemp("checked") / "out"
    return out, trueup(*check_words(world), "-o", out)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and a cache folder of its own."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TRUEUP_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def adapter(world: Path, tmp_path: Path) -> Path:
    """A copy of the tuned adapter, to be spoilt."""
    return Path(shutil.copytree(world / "adapter", tmp_path / "adapter"))
