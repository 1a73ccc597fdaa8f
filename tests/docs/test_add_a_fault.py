"""The fifth fault of `docs/add-a-fault.md`: built from the page as it stands, found by each_fault, held to every law."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator

import pytest
from pages import DOCS, blocks

import trueup.faults
from laws.laws import LAWS
from trueup.faults.fault import Fault, each_fault

PAGE = DOCS / "add-a-fault.md"
NAME = "lengthiness"


@pytest.fixture(scope="module")
def fault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fault]:
    """The page's fault, in a folder that stands beside the four as long as these tests run."""
    folder = tmp_path_factory.mktemp("faults")
    written = [b for b in blocks(PAGE) if b.title.startswith(f"{NAME}/")]
    assert [b.title.partition("/")[2] for b in written] == ["__init__.py", "audit.py", "repair.py", "planted.py"]
    (folder / NAME).mkdir()
    for block in written:
        (folder / block.title).write_text(block.code, encoding="utf-8")
    trueup.faults.__path__.append(str(folder))
    importlib.invalidate_caches()
    try:
        yield {f.name: f for f in each_fault()}[NAME]()
    finally:
        trueup.faults.__path__.remove(str(folder))
        for module in [m for m in sys.modules if m.startswith(f"trueup.faults.{NAME}")]:
            del sys.modules[module]
        vars(trueup.faults).pop(NAME, None)


@pytest.mark.parametrize("law", LAWS, ids=lambda f: f.__name__)
def test_law_holds(fault: Fault, law) -> None:
    law(fault)


def test_the_lines_at_the_end_of_the_page_run(fault: Fault, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [b for b in blocks(PAGE) if b.language == "python" and not b.title]
    exec(compile(block.code, block.at, "exec"), {"__name__": "__main__"})
    said = capsys.readouterr().out
    assert "of the short texts" in said
    assert "fitted again" in said


def test_the_command_line_finds_it_and_its_knobs(fault: Fault) -> None:
    import trueup as api

    (found,) = api.faults_of([NAME], {NAME: {"words": 30}})
    assert found.words == 30  # type: ignore[attr-defined]
    assert type(found) is type(fault)
