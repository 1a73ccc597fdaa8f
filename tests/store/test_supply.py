"""What is fetched at run time is pinned, or is what the user named: each package by its sha256, and no other code reaches out."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import trueup
from trueup.store import packages

ROOT = Path(trueup.__file__).parent
REACHES = {
    "urllib", "http", "requests", "httpx", "ftplib", "smtplib", "aiohttp", "socket", "subprocess", "huggingface_hub", "datasets",
}  # fmt: skip
"""Modules by which a program reaches out, or starts another that does."""
MAY = {
    ("store/packages.py", "subprocess"): "pip, for packages pinned by sha256",
    ("subject/patterns.py", "subprocess"): "a pattern that is tried under a limit of time",
    ("experiments/speed.py", "subprocess"): "trueup itself, whose time is taken",
    ("experiments/cost.py", "subprocess"): "trueup itself, whose memory is taken",
    ("run/engine.py", "socket"): "a Ray cluster that the user named",
    ("subject/checkpoint.py", "huggingface_hub"): "a model or an adapter that the user named",
    (
        "store/network.py",
        "huggingface_hub",
    ): "whether the hub answers, where a model, an adapter or data on it were named",
    ("subject/outputs.py", "huggingface_hub"): "the hub's cache, for the config of a model that the user named",
    ("subject/hub.py", "huggingface_hub"): "--push-to-hub",
    ("corpus/hub.py", "datasets"): "a data set that the user named",
}
"""Where they are used, and for what."""
NAMES = ("urlopen", "urlretrieve", "_get_hub", "torch.hub")


def reaching(source: str) -> Iterator[str]:
    """The modules in `REACHES` that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        named = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            named = [node.module]
        yield from (top for n in named if (top := n.partition(".")[0]) in REACHES)


def kept_packages() -> list[packages.Package]:
    found: list[packages.Package] = []
    for value in vars(packages).values():
        some = value if isinstance(value, tuple) else [value]
        found += [p for p in some if isinstance(p, packages.Package)]
    return found


def test_each_package_is_pinned_by_its_version_and_its_bytes() -> None:
    found = kept_packages()
    assert len(found) >= 5
    for p in found:
        assert re.fullmatch(r"[0-9a-f]{64}", p.sha256), p.name
        assert re.fullmatch(r"\d+(\.\d+)+(\.?(post|rc|a|b)\d+)?", p.version), p.name
        assert p.licence


def test_no_other_code_reaches_out() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), top)
        for path in ROOT.rglob("*.py")
        for top in reaching(path.read_text(encoding="utf-8"))
    }
    assert found == set(MAY), "say what it is for in MAY, and pin what it fetches"
    whole = "".join(p.read_text(encoding="utf-8") for p in ROOT.rglob("*.py"))
    assert not [n for n in NAMES if n in whole]


@pytest.mark.parametrize(
    "line", ["import requests", "def f():\n    from urllib.request import urlopen", "import http.client as h"]
)
def test_a_new_way_out_is_seen(line: str) -> None:
    """The control."""
    assert list(reaching(line))


def test_a_release_holds_its_bill_of_materials_and_checks_licences() -> None:
    file = Path(__file__).parents[2] / ".github" / "workflows" / "release.yml"
    if not file.is_file():
        pytest.skip("not a clone of the repository")
    jobs = yaml.safe_load(file.read_text())["jobs"]
    steps = {name: "\n".join(str(s) for s in job["steps"]) for name, job in jobs.items()}
    assert "tools/sbom" in steps["build"]
    assert "tests/test_licences.py" in steps["build"]
    assert "-c constraints.txt" in steps["build"]
    assert "gh release create" in steps["release"]
    assert jobs["release"]["needs"] == "publish"
