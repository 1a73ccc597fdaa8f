"""What a package index shows: the README's links, addresses, and files that wheels must hold."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import trueup

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "hatch_build.py").is_file(), reason="not a clone of the repository")


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """hatch_build.py, with a stand-in for hatchling, which only a build needs."""
    stand_in = ModuleType("interface")
    stand_in.MetadataHookInterface = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hatchling.metadata.plugin.interface", stand_in)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", text)


def test_links_of_the_readme_survive_the_package_page(hook: ModuleType) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    before, after = links(text), links(hook.absolute(text, "https://example.org/o/r", "v1"))
    assert len(before) == len(after) > 5
    for old, new in zip(before, after, strict=True):
        if old.startswith("https://"):
            assert new == old
        else:
            kind = "raw" if old.endswith(".png") else "blob"
            assert new == f"https://example.org/o/r/{kind}/v1/{old}"
            path, _, heading = old.partition("#")
            assert (ROOT / path).is_file()
            headings = re.findall(r"(?m)^#+ (.+)$", (ROOT / path).read_text(encoding="utf-8")) if heading else []
            assert not heading or heading in [h.lower().replace(" ", "-") for h in headings]
    assert hook.absolute("[a](https://x.y) [b](#c)", "h", "r") == "[a](https://x.y) [b](#c)"


def test_only_a_workflow_names_a_home(hook: ModuleType) -> None:
    assert hook.home_of({}) is None
    home = hook.home_of({"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "o/r"})
    assert set(hook.urls(home)) >= {"Homepage", "Documentation", "Issues", "Changelog"}


def test_every_file_that_is_no_module_lies_inside_the_package() -> None:
    """hatchling takes what lies in the package; what git ignores it leaves out."""
    package = Path(trueup.__file__).parent
    wanted = [
        "py.typed",
        "report/findings.schema.json",
        "report/page.html.jinja",
        "experiments/presets/copying-small.yaml",
    ]
    assert all((package / w).is_file() for w in wanted)
    ignored = (ROOT / ".gitignore").read_text().split()
    assert not any("/" + p.strip("/*") + "/" in f"/{w}" for w in wanted for p in ignored)


def test_the_version_stands_once_and_in_the_citation() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert f"\nversion: {trueup.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {trueup.__version__}" in (ROOT / "CHANGELOG.md").read_text()
