"""examples/ci: the commands are accepted, and the action's script keeps exit codes and quoted options."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer.main
import yaml
from pages import ROOT

from trueup.cli.entry import app

CI = ROOT / "examples" / "ci"
ACTION = yaml.safe_load((CI / "github-action" / "action.yml").read_text(encoding="utf-8"))
STUB = """#!/bin/bash
printf '%s\\n' "$@" >> called
[ "$1" = report ] && { echo "a summary"; exit 1; }
[ "$CODE" = 2 ] || { mkdir -p trueup-out; touch trueup-out/findings.json; }
exit "$CODE"
"""
"""In place of trueup: writes down what it is given; `check` ends with CODE, and leaves no findings where that is 2."""

bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")


def script() -> str:
    (found,) = [s["run"] for s in ACTION["runs"]["steps"] if "trueup check" in s.get("run", "")]
    return found


def act(folder: Path, options: str, code: int = 0, run: str | None = None) -> tuple[int, list[str], str]:
    """The exit code of the action's script as GitHub runs it, what trueup was given, and the summary."""
    stub = folder / "bin" / "trueup"
    stub.parent.mkdir()
    stub.write_text(STUB, encoding="utf-8")
    stub.chmod(0o755)
    given = {
        "MODEL": "my model",
        "DATA": "d.csv",
        "ADAPTER": "",
        "FAIL_ON": "found",
        "OPTIONS": options,
        "CODE": f"{code}",
    }
    path = f"{stub.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", run or script()],
        cwd=folder,
        env={**os.environ, **given, "PATH": path, "GITHUB_STEP_SUMMARY": "summary"},
        check=False,
        capture_output=True,
    )
    texts = [(folder / name).read_text() if (folder / name).is_file() else "" for name in ("called", "summary")]
    return done.returncode, texts[0].splitlines(), texts[1]


def parsed(words: list[str]) -> dict:
    """What the command line makes of the words after `trueup`."""
    name, *rest = words
    return typer.main.get_command(app).commands[name].make_context(name, rest).params  # type: ignore[attr-defined]


@bash
@pytest.mark.parametrize("code", [0, 1, 2, 3, 143])
def test_the_action_ends_with_the_code_of_the_check(tmp_path: Path, code: int) -> None:
    got, called, summary = act(tmp_path, "", code)
    assert got == code
    assert called[0] == "check"
    assert summary == ("" if code == 2 else "a summary\n")


@bash
def test_the_actions_options_keep_their_quotes_and_run_nothing(tmp_path: Path) -> None:
    options = "--template 'Review: {text}\\n' --verbaliser \" neg, pos\"\n--text *$(touch${IFS}hacked)"
    _, called, _ = act(tmp_path, options)
    words = called[: called.index("report")]
    assert words[words.index("--template") + 1] == "Review: {text}\\n"
    assert words[words.index("--verbaliser") + 1] == " neg, pos"
    assert words[words.index("--text") + 1] == "*$(touch${IFS}hacked)"
    assert not (tmp_path / "hacked").exists()
    assert parsed(words)["template"] == "Review: {text}\\n"


@bash
def test_options_that_were_split_at_every_space_would_be_noticed(tmp_path: Path) -> None:
    plain = script().replace('"${options[@]}"', "$OPTIONS")
    _, called, _ = act(tmp_path, "--template 'Review: {text}'", run=plain)
    assert "'Review:" in called


@bash
def test_an_open_quote_in_the_actions_options_ends_the_job(tmp_path: Path) -> None:
    assert act(tmp_path, "--text 'review") == (2, [], "")


def test_the_commands_of_the_other_examples_are_accepted() -> None:
    gitlab = yaml.safe_load((CI / "gitlab-ci.yml").read_text(encoding="utf-8"))
    hooks = yaml.safe_load((CI / "pre-commit-config.yaml").read_text(encoding="utf-8"))
    (job,) = gitlab.values()
    lines = [*job["script"], *(h["entry"] for r in hooks["repos"] for h in r["hooks"])]
    given = [parsed(words[1:]) for line in lines if (words := shlex.split(line))[0] == "trueup"]
    assert len(given) == 2
    assert str(given[0]["junit"]) == job["artifacts"]["reports"]["junit"]
    assert [str(given[0]["out"])] == job["artifacts"]["paths"]
