"""`trueup sweep` as its users meet it: what it lists, what it prints, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_cases import trueup

SWEEP = """
steps: audit
defaults:
  model: {world}/bert
  data: {world}/data.csv
  limit: 400
  max_length: 32
  knobs: {{overconfidence: {{resamples: 20, folds: 2}}}}
include:
  - {{name: sharp, adapter: {world}/adapter}}
"""


def file(here: Path, world: Path, more: str = "") -> Path:
    path = here / "night.yaml"
    path.write_text(SWEEP.format(world=world) + more.format(world=world), encoding="utf-8")
    return path


def test_it_lists_runs_and_says_what_was_found(world, here):
    path = file(here, world)
    said = trueup("sweep", path, "-o", "out", "--list")
    assert said.code == 0, said.err
    assert said.out.splitlines()[0].split()[:2] == ["to", "do"]
    assert said.out.splitlines()[0].endswith("sharp")
    assert said.out.splitlines()[-1].startswith("1 cell: some ")
    assert not (here / "out").exists()

    said = trueup("sweep", path, "-o", "out")
    assert said.code == 1, "a fault was found"
    assert "1/1  sharp: overconfidence found " in said.out
    assert "Page: out/index.html" in said.out
    assert (here / "out" / "results.parquet").is_file()
    again = trueup("sweep", path, "-o", "out", "-q")
    assert (again.code, again.out) == (1, ""), "done before, and still found"
    assert trueup("sweep", path, "-o", "out", "--list").out.startswith("done")


def test_a_cell_that_fails_gives_exit_code_2_and_its_sentence(world, here):
    path = file(here, world, "  - {{name: other, adapter: {world}/adapter, label: lable}}\n")
    said = trueup("sweep", path, "-o", "out")
    assert said.code == 2
    assert "trueup: the cell 'other' failed: " in said.err
    assert "Did you mean 'label'?" in said.err
    assert "2/2  other: failed: " in said.out or "1/2  other: failed: " in said.out
    only = trueup("sweep", path, "-o", "out", "--only", "failed")
    assert only.code == 2
    assert "sharp" not in only.out
    listed = trueup("sweep", path, "-o", "out", "--list").out
    assert [line.split()[0] for line in listed.splitlines()[:2]] == ["done", "failed"]


def test_a_list_counts_what_can_be_run(world, here):
    path = file(here, world, "  - {{name: slip, adapter: {world}/adaptor}}\n")
    said = trueup("sweep", path, "-o", "out", "--list")
    assert said.code == 0, "it ran nothing, and another machine may have what this one lacks"
    *cells, last = said.out.splitlines()
    assert [line.split()[0] for line in cells] == ["to", "unusable"]
    assert last.startswith("2 cells: some ")
    assert last.endswith(", 1 that cannot be run here.")
    assert "trueup: The cell 'slip' cannot be run here: " in said.err
    assert "Did you mean 'adapter'?" in said.err
    assert not (here / "out").exists()


def test_parts_are_joined(world, here):
    path = file(here, world, "  - {{name: other, adapter: {world}/adapter, seed: 1}}\n")
    for part in ("1/2", "2/2"):
        said = trueup("sweep", path, "-o", f"part{part[0]}", "--shard", part)
        assert said.code == 1, said.err
        assert "Page" not in said.out
    said = trueup("sweep", path, "-o", "all", "--collect", "part1", "--collect", "part2")
    assert said.code == 1, said.err
    assert len(json.loads((here / "all" / "sweep.json").read_text())["cells"]) == 2
    page = (here / "all" / "index.html").read_text()
    assert "cells/sharp/report/report.html" in page
    assert (here / "all" / "cells" / "other" / "report" / "report.html").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--only", "done"), "--only takes the word 'failed'"),
        (("--shard", "3/2"), "--shard '3/2' is no part of a sweep"),
        (("--shard", ""), "--shard '' is no part of a sweep"),
        (("--shard", "１/２"), "is no part of a sweep"),
        (("--address", "x:1"), "go with --engine ray"),
        (("--gpus-per-cell", "0.5"), "go with --engine ray"),
        (("--engine", "ray", "--workers", "2"), "--workers goes with this machine's processes"),
        (("--engine", "slurm"), "'slurm' is not one of"),
        (("--workers", "0"), "--workers"),
        (("--collect", ".", "--workers", "2"), "--collect runs nothing"),
        (("--collect", ".", "--shard", "1/2"), "--collect runs nothing"),
        (("--collect", "nowhere"), "'nowhere' is no folder of a sweep"),
        (("--baseline", "nowhere"), "'nowhere' is no folder of a sweep"),
    ],
)
def test_what_cannot_be_used_is_a_sentence(world, here, words, said):
    got = trueup("sweep", file(here, world), "-o", "out", *words)
    assert got.code == 2
    assert said in got.err, got.err
    assert not (here / "out").exists()
    assert "Traceback" not in got.err


def test_a_reader_that_has_gone_stops_no_cell(world, here):
    more = "  - {{name: other, adapter: {world}/adapter, seed: 1}}\n"
    words = [sys.executable, "-m", "trueup", "sweep", str(file(here, world, more)), "-o", "out"]
    for stream in ("stdout", "stderr"):
        for more in ([], ["--list"]):
            done = subprocess.Popen([*words, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            getattr(done, stream).close()
            rest = (done.stderr if stream == "stdout" else done.stdout).read()
            assert done.wait() == (0 if more else 1), rest
            told = [line for line in rest.splitlines() if not line.startswith(b"[0:")]  # but for the stages
            assert stream == "stderr" or told == []
        assert (here / "out" / "results.parquet").exists()
        assert len(list((here / "out").glob("cells/*/report"))) == 2
        # What is told on standard error: the second round has something to tell there.
        shutil.rmtree(here / "out" / "cells")
        (here / "out" / "results.parquet").unlink()
        (here / "out" / "cells" / "none").mkdir(parents=True)


def children(pid: int) -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            number, _, rest = stat.read_text().partition(" ")
            if int(rest.rpartition(")")[2].split()[1]) == pid:
                found.add(int(number))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Processes are told apart by /proc.")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_scheduler_ends_it_and_the_same_command_goes_on(world, here, workers):
    more = "".join(f"  - {{{{name: s{i}, adapter: {{world}}/adapter, seed: {i}}}}}\n" for i in range(3))
    words = ["sweep", str(file(here, world, more)), "-o", "out", "--workers", str(workers)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "trueup", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        for _ in range(3000):
            if len(list((here / "out").glob("cells/*/cell.json"))) >= workers:
                break
            time.sleep(0.03)
        own = children(process.pid)
        process.send_signal(signal.SIGTERM)
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 143, err
    assert err == "trueup: stopped by SIGTERM. The same command goes on where it stopped.\n"
    assert not list((here / "out").glob(".writing*"))
    states = [json.loads(f.read_text())["state"] for f in (here / "out").glob("cells/*/cell.json")]
    assert "begun" in states, "the control: it was in the middle of a cell"
    assert "failed" not in states
    assert len(own) >= (workers if workers > 1 else 0)
    for _ in range(100):
        if not (own & {int(p.name) for p in Path("/proc").glob("[0-9]*")}):
            break
        time.sleep(0.1)
    assert not own & {int(p.name) for p in Path("/proc").glob("[0-9]*")}, "a worker is left"
    again = trueup(*words[:4])
    assert again.code == 1, again.err
    assert {s for s in trueup(*words[:4], "--list").out.split() if s in ("done", "begun", "failed")} == {"done"}


def test_a_mistake_in_the_file_is_told_with_its_line(here):
    (here / "night.yaml").write_text("defaults:\n  modle: x\n")
    got = trueup("sweep", "night.yaml", "-o", "out")
    assert (got.code, got.err) == (
        2, "trueup: night.yaml, line 2: there is no 'modle' here. Did you mean 'model'? There are " + got.err.split("There are ")[1]
    )  # fmt: skip
