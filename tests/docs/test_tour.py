"""The tour, as it is written and in its order: the fast blocks always, all of them with the embedded model when slow."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pages import DOCS, Block, blocks

import trueup
from trueup.corpus.corpus import Corpus
from trueup.run.predict import predict

TOUR = blocks(DOCS / "tour.md")
FAST = [b for b in TOUR if b.mark.startswith("run: fast")]
SLOW = [b for b in TOUR if b.mark.startswith("run: slow")]
SHELL = 'trueup() { "$PYTHON" -m trueup "$@"; }; python() { "$PYTHON" "$@"; }\nset -e\n'
"""The tour's commands, of the interpreter that runs the tests."""


def test_the_tour_has_both_kinds() -> None:
    assert len(FAST) >= 3
    assert len(SLOW) >= 5


@pytest.mark.parametrize("block", FAST, ids=lambda b: b.at)
def test_a_fast_block_runs(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert block.language == "python"
    monkeypatch.chdir(tmp_path)
    exec(compile(block.code, block.at, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
def test_the_slow_blocks_run_in_their_order(tmp_path: Path) -> None:
    said = {}
    for block in SLOW:
        done = run(block, tmp_path)
        allowed = (0, 1) if "exit 0 or 1" in block.mark else (0,)
        assert done.returncode in allowed, (
            f"{block.at}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        )
        said[block] = done.stdout
    assert (tmp_path / "out" / "report.html").is_file()
    (used,) = [b for b in SLOW if "without trueup" in b.mark]
    shown = [line.rpartition(": ")[2] for line in said[used].splitlines()[-2:]]
    (text,) = re.findall(r'^text = "(.*)"$', used.code, re.MULTILINE)
    cls, chance = asked(text, tmp_path)
    assert int(shown[0]) == cls
    assert float(shown[1]) == pytest.approx(chance, abs=1e-3)


def asked(text: str, folder: Path) -> tuple[int, float]:
    """The class and the confidence that trueup itself reads out of the tour's repair."""
    subject = trueup.load("embedded:minilm", adapter=str(folder / "adapter"))
    one = Corpus([text], np.array([0]), subject.classes, np.array(["test"]))
    with trueup.Overconfidence().read(folder / "out" / "overconfidence", subject).on(subject) as repaired:
        got = predict(repaired, one)
    return int(got.predicted[0]), float(got.confidence[0])


def run(block: Block, folder: Path) -> subprocess.CompletedProcess[str]:
    """One block in a process of its own, in the tour's folder."""
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if block.language == "bash":
        words = ["bash", "-c", SHELL + block.code]
    else:
        hidden = "import sys; sys.modules['trueup'] = None\n" if "without trueup" in block.mark else ""
        words = [sys.executable, "-c", hidden + block.code]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=900)
