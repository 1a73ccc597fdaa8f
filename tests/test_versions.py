"""The note on untested versions; the ranges, the lock and the CI legs that tell of the same packages."""

from __future__ import annotations

import runpy
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from trueup import versions

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
TOOL = runpy.run_path(str(ROOT / "tools" / "versions.py"))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installed versions by name, under the ranges of a small project."""

    def install(**installed: str) -> None:
        lines = ["transformers>=5.5,<5.25", "peft<0.22,>=0.21", "gguf>=0.17,<0.20; extra == 'demo'"]
        there = {"trueup": "0.1.0", **installed}
        monkeypatch.setattr(versions, "requires", lambda name: lines)
        monkeypatch.setattr(versions, "version", lambda name: there[name])

    return install


@pytest.mark.parametrize("transformers", ["5.5.0", "5.24.9", "5.24.0+cpu"])
def test_no_note_within_the_range(fake, transformers):
    fake(transformers=transformers, peft="0.21.2", gguf="9")
    assert versions.untested() is None


@pytest.mark.parametrize("transformers", ["5.4.9", "5.25.0", "5.30.0", "5.25.0.dev0"])
def test_a_note_outside_the_range(fake, transformers):
    fake(transformers=transformers, peft="0.21.2", gguf="9")
    assert versions.untested() == (
        f"trueup 0.1.0 was not tested with transformers {transformers} (but with >=5.5,<5.25). If a figure looks wrong: "
        "Install the versions of the libraries that trueup was tested with (its constraints.txt names them)."
    )


def test_one_note_names_every_package(fake):
    fake(transformers="5.30.0", peft="1.0")
    note = versions.untested()
    assert note is not None
    assert "with transformers 5.30.0 (but with >=5.5,<5.25), peft 1.0 (but with >=0.21,<0.22). If" in note


def _lines(*extras: str) -> list[str]:
    return [*PROJECT["dependencies"], *(line for e in extras for line in PROJECT["optional-dependencies"][e])]


def test_every_range_of_what_trueup_runs_on_has_two_ends():
    for line in _lines():
        assert [s.operator for s in sorted(Requirement(line).specifier, key=str)] == ["<", ">="], line


def test_the_lock_pins_every_requirement_within_its_range():
    """Also of every extra; whoever adds one runs tools/lock."""
    pins = TOOL["pins"](LOCK)
    for wanted in map(Requirement, _lines(*PROJECT["optional-dependencies"])):
        if wanted.name != "pip":  # the installer
            assert wanted.specifier.contains(pins[wanted.name]), f"{wanted}: run tools/lock"


def test_the_lock_holds_one_version_of_each_and_no_address():
    lines = [Requirement(line) for line in LOCK if not line.startswith("#")]
    assert len({r.name for r in lines}) == len(lines)
    assert all(r.url is None and [s.operator for s in r.specifier] == ["=="] for r in lines)
    assert not [r.name for r in lines if r.name.startswith(("nvidia-", "cuda-", "triton"))]


@pytest.mark.parametrize(
    ("leg", "expected"),
    [
        ("lowest", ["torch==2.13.0", "peft==0.21", "gguf==0.17", "pip>=23", "pytest>=8,<10"]),
        ("newest", ["torch==2.13.0", "peft>=0.21,<0.22", "gguf>=0.17,<0.20", "pip>=23", "pytest>=8,<10"]),
        ("unbounded", ["torch>=2.10", "peft>=0.21", "gguf>=0.17", "pip>=23", "pytest>=8"]),
    ],
)
def test_what_a_leg_installs(leg, expected):
    project = {
        "dependencies": ["torch>=2.10,<2.15", "peft>=0.21,<0.22"],
        "optional-dependencies": {"demo": ["gguf>=0.17,<0.20", "pip>=23"], "test": ["pytest>=8,<10"]},
    }
    assert TOOL["wanted"](leg, project, {"torch": "2.13.0"}) == expected


def test_what_moved_is_named_and_what_did_not_is_not():
    project = {
        "dependencies": ["peft>=0.21,<0.22", "torch>=2.10,<2.15"],
        "optional-dependencies": {"demo": [], "test": []},
    }
    lock = ["# a note", "click==8.5.1", "huggingface-hub==2.4.0 ; os_name != 'x'", "peft==0.21.2", "torch==2.13.0"]
    freeze = ["click==8.5.1", "huggingface_hub==2.5.0", "peft==0.22.0", "torch==2.13.0+cpu", "new==1.0", "-e /a/b"]
    assert TOOL["moved"](TOOL["pins"](freeze), TOOL["pins"](lock), project) == [
        "  peft 0.21.2 -> 0.22.0   (pyproject.toml: peft>=0.21,<0.22)",
        "  huggingface-hub 2.4.0 -> 2.5.0",
    ]
