"""`rerun`, `schema`, `--junit`, `--markdown`, `--fail-on`, help and completion: what a CI system and a newcomer meet."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import jsonschema
import pytest
from cli_cases import Said, audit_words, check_words, files_of, trueup

from trueup.cli.options import FAULTS, PANELS


def test_rerun_makes_the_same_folder_again(checked: tuple[Path, Said], here: Path) -> None:
    said = trueup("rerun", checked[0], "-o", "again", "--junit", "reports/trueup.xml")
    assert (said.code, said.err) == (checked[1].code, "")
    assert files_of(here / "again") == files_of(checked[0])
    assert ET.parse(here / "reports" / "trueup.xml").getroot().get("failures") == "1"
    assert trueup("rerun", "again").err.count("exists and is not empty") == 1
    assert trueup("rerun", "again", "--force").code == checked[1].code


@pytest.mark.parametrize(
    ("job", "says"),
    [
        ({}, "made in Python on live objects"),
        ({"model": "m", "data": "d", "sede": 1}, "Did you mean 'seed'?"),
        ({"model": "m", "data": "d", "seed": "1"}, "setting 'seed' is '1' (str), which is not a whole number or null"),
        ({"model": "m", "data": ["d"]}, "setting 'data' is ['d'] (list), which is not a word"),
        ({"model": "m", "data": "d", "depth": "deep"}, "which is not one of 'audit', 'check', 'methods'"),
        ({"model": "m", "data": "d", "knobs": {"rigidity": 1}}, "not a table of settings for each fault"),
        ({"model": "m", "data": "d", "held_out": 1}, "not true or false"),
    ],
)
def test_a_job_that_cannot_be_done_again(here: Path, job: dict[str, object], says: str) -> None:
    (here / "old").mkdir()
    (here / "old" / "job.json").write_text(json.dumps(job))
    said = trueup("rerun", "old", "-o", "new")
    assert said.code == 2
    assert says in said.err
    assert not (here / "new").exists()


def test_rerun_of_what_is_no_output(here: Path) -> None:
    assert "'nowhere' is no folder" in trueup("rerun", "nowhere", "-o", "new").err
    assert "holds no job.json" in trueup("rerun", here, "-o", "new").err


def test_the_schema_fits_a_real_output(checked: tuple[Path, Said]) -> None:
    schema = json.loads(trueup("schema").out)
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    data = json.loads((checked[0] / "findings.json").read_text())
    assert [e.message for e in validator.iter_errors(data)] == []
    run = json.loads((checked[0] / "run.json").read_text())
    assert run["seconds"] > 0
    assert run["began"] <= run["ended"]
    assert data["comparisons"][0]["state"] in trueup("report", checked[0]).out


def test_a_finished_check_as_junit_and_markdown(checked: tuple[Path, Said], here: Path) -> None:
    said = trueup("report", checked[0], "--markdown", "--junit", "trueup.xml", "--fail-on", "reduced")
    state = json.loads((checked[0] / "findings.json").read_text())["comparisons"][0]["state"]
    assert said.code == int(state != "repaired")
    assert said.out.startswith("### trueup: ")
    assert f" {state} |" in said.out
    assert ET.parse(here / "trueup.xml").getroot().get("failures") == str(said.code)
    assert "Give one of them" in trueup("report", checked[0], "--markdown", "--json").err


def test_a_place_for_junit_that_cannot_be_written_is_told_first(world: Path, here: Path) -> None:
    (here / "file").touch()
    for place, says in ((here, "is a folder"), (here / "file" / "x.xml", "is no folder that may be written to")):
        said = trueup(*audit_words(world), "-o", "out", "--junit", place)
        assert (said.code, said.stages) == (2, ())
        assert says in said.err
    assert not (here / "out").exists()


def test_a_line_for_each_stage_where_nobody_watches(world: Path, here: Path) -> None:
    said = trueup(*check_words(world), "-o", "loud")
    names = [re.sub(r"^\[\d+:\d\d\] (.+): .*\n", r"\1", line) for line in said.stages]
    assert len(names) >= 2
    assert len(names) == len(set(names)), "one line a stage"
    assert trueup(*check_words(world), "-o", "quiet", "-q").stages == ()


@pytest.mark.parametrize("command", ["check", "audit", "repair", "tune"])
def test_the_help_has_panels_an_example_and_the_faults(command: str) -> None:
    import typer.main

    from trueup.cli.entry import app

    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    out = trueup(command, "--help").out
    for panel in ("Model", "Data", "Output"):
        assert f"─ {panel} ─" in out
    if command != "tune":
        assert all(f.split("\n")[0] in out for f in FAULTS.split(", "))
        placed = {name for names in PANELS.values() for name in names}
        assert {p.name for p in known[command].params if p.param_type_name == "option"} - {"help"} <= placed
    told = " ".join(re.sub(r"[│╭╮╰╯─]", " ", out).split())
    example = re.search(r"Example: (trueup .*? -o \w+)", told)
    assert example is not None
    words = shlex.split(example[1])
    known[command].make_context(command, words[2:])


def test_the_shell_completes() -> None:
    def completed(words: str, at: int) -> str:
        env = os.environ | {"_TRUEUP_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        code = "from trueup.cli import main; main()"
        return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout

    assert "check" in completed("trueup ch", 1).split()
    assert completed("trueup audit conf", 2).split() == ["confounding"]
    assert "--held-out" in completed("trueup check --held", 2).split()
