"""A sweep of real cells: done once, gone on with, told apart, joined, and the same whoever does them."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sweep_cases import AUDITS, NAMES, data, sweep_file, table

import trueup
from trueup.errors import BadInput
from trueup.run.engine import Here, Lost, Processes
from trueup.store import lock as claims
from trueup.store.inputs import same
from trueup.sweeps import cell as cells
from trueup.sweeps import lock, results
from trueup.sweeps.plan import Cell
from trueup.sweeps.run import left, sweep


@pytest.fixture(scope="module")
def swept(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a world in which the four audits were done to ``out``."""
    folder = tmp_path_factory.mktemp("swept") / "world"
    shutil.copytree(made, folder)
    here = os.getcwd()
    os.chdir(folder)
    try:
        sweep(sweep_file(folder, AUDITS), "out")
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def done(swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `swept` as the current folder."""
    shutil.copytree(swept, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def times(out: Path) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in (out / "cells").glob("*/cell.json")}


def test_every_cell_has_its_report_its_rows_and_its_line(swept):
    out = swept / "out"
    assert sorted(p.name for p in (out / "cells").iterdir()) == NAMES
    got = table(out).to_pylist()
    heads = [r for r in got if r["kind"] == "severity"]
    assert [r["cell"] for r in heads] == NAMES
    for r in heads:
        said = json.loads((out / "cells" / r["cell"] / "report" / "findings.json").read_text())["comparisons"][0][
            "before"
        ]
        assert (r["value"], r["low"], r["high"], r["verdict"]) == (
            said["severity"],
            said["low"],
            said["high"],
            said["verdict"],
        )
        assert (r["state"], r["fault"], r["change"]) == ("done", "overconfidence", None)
    page = (out / "index.html").read_text()
    for name in NAMES:
        assert f'href="cells/{name}/report/report.html"' in page
    record = cells.read(out, NAMES[0])
    assert record is not None
    assert record.cpu_seconds > 0
    assert record.peak_bytes > 50_000_000
    assert not (out / ".bases").exists()
    assert not list(out.glob(".writing*"))


def test_what_is_done_is_not_done_again(done):
    before = times(done / "out")
    sweep("sweep.yaml", "out")
    assert times(done / "out") == before
    assert [state for _, state in left("sweep.yaml", "out")] == ["done"] * 4


ONE = AUDITS.replace("seed: [0, 1]", "seed: [0]")
TWO = AUDITS.replace("runs/*/best", "[runs/a/best]")


def test_what_is_done_stays_done_when_a_second_value_changes_the_names(done):
    for name in ("a", "b"):  # as if they had been done with one seed
        os.rename(f"out/cells/{name}_seed=0", f"out/cells/{name}")
        shutil.rmtree(f"out/cells/{name}_seed=1")
    shutil.copytree("out/cells/a", "out/previous/a")
    assert [s for _, s in left(sweep_file(done, ONE), "out")] == ["done", "done"], "the control: names with one seed"
    before, told, notes = times(done / "out"), [], []
    file = sweep_file(done, AUDITS)
    assert [s for _, s in left(file, "out")] == ["done", "to do", "done", "to do"]
    assert times(done / "out") == before, "a list writes nothing"
    sweep(file, "out", told=lambda record, *_: told.append(record.name), note=notes.append)
    assert told == ["a_seed=1", "b_seed=1"]
    assert notes == []
    after = times(done / "out")
    assert {n: after[f"{n}_seed=0"] for n in ("a", "b")} == before
    assert sorted(p.name for p in (done / "out/cells").iterdir()) == NAMES
    assert sorted(p.name for p in (done / "out/previous").iterdir()) == ["a_seed=0"]
    assert json.loads((done / "out/cells/a_seed=0/cell.json").read_text())["name"] == "a_seed=0"
    assert [r.name for r in sweep(file, "out").records.values()] == NAMES
    # And back again: those of the other seed are told, and lost to nobody.
    file = sweep_file(done, ONE)
    assert [s for _, s in left(file, "out", note=notes.append)] == ["done", "done"]
    assert "'out' holds 2 cells that are none of the file's: 'out/cells/a_seed=1', 'out/cells/b_seed=1'." in notes[0]
    sweep(file, "out", note=notes.append)
    assert notes[1] == notes[0]
    assert sorted(times(done / "out")) == ["a", "a_seed=1", "b", "b_seed=1"]


def test_names_that_trade_places_keep_what_is_theirs(done):
    names = ["a_seed=0", "b_seed=0", "a_seed=1"]
    for new, old in zip(names, [*names[1:], names[0]], strict=True):
        os.rename(f"out/cells/{old}", f"out/cells/{new}-then")
    for name in names:
        os.rename(f"out/cells/{name}-then", f"out/cells/{name}")
    file = sweep_file(done, AUDITS)
    assert [s for _, s in left(file, "out")] == ["done"] * 4
    told: list[str] = []
    got = sweep(file, "out", part="1/2", told=lambda record, *_: told.append(record.name))
    got = sweep(file, "out", told=lambda record, *_: told.append(record.name))
    assert told == []
    assert [r.asked["settings"]["adapter"][5] + str(r.asked["settings"]["seed"]) for r in got.records.values()] == [
        "a0", "a1", "b0", "b1",
    ]  # fmt: skip
    assert sorted(p.name for p in (done / "out/cells").iterdir()) == NAMES


def test_what_lies_under_a_name_that_another_cell_gets_goes_to_previous(done):
    shutil.copytree("out/cells/b_seed=1", "out/cells/then")
    file = done / "out/cells/then/cell.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"asked": {"steps": ["audit"], "settings": {"seed": 7}}}))
    text = AUDITS.replace(
        "matrix: {adapter: runs/*/best, seed: [0, 1]}", "include: [{name: then, adapter: runs/a/best, seed: 0}]"
    )
    assert [s for _, s in left(sweep_file(done, text), "out")] == ["done"]
    got = sweep("sweep.yaml", "out")
    assert got.records["then"].asked["settings"]["adapter"] == "runs/a/best"
    assert (done / "out/previous/then/report/findings.json").is_file()


def test_parts_with_earlier_names_are_joined_and_baselines_are_compared(done):
    for name in ("a", "b"):
        os.rename(f"out/cells/{name}_seed=0", f"out/cells/{name}")
        shutil.rmtree(f"out/cells/{name}_seed=1")
    notes: list[str] = []
    joined = sweep(sweep_file(done, AUDITS), "all", collect=["out"], note=notes.append)
    assert sorted(joined.records) == ["a_seed=0", "b_seed=0"]
    assert notes == []
    again = sweep("sweep.yaml", "new", baseline="out", part="1/2")
    assert sorted(again.records) == ["a_seed=0", "a_seed=1"]
    assert json.loads((done / "new/cells/a_seed=0/change.json").read_text())["faults"]["overconfidence"]["value"] == 0
    assert not (done / "new/cells/a_seed=1/change.json").exists()
    joined = sweep(sweep_file(done, TWO), "some", collect=["out"], note=notes.append)
    assert sorted(joined.records) == ["seed=0"]
    assert notes[0].startswith(
        "'out' holds a cell that is none of the file's: 'out/cells/b'. The page and the table leave it"
    )


def test_a_changed_file_makes_its_cells_anew_and_tells_what_changed(done):
    before = times(done / "out")
    shutil.copytree("runs/a/best", "kept")
    shutil.rmtree("runs/b/best")
    shutil.copytree("runs/a/best", "runs/b/best")  # b was trained again, and is now what a is
    assert [state for _, state in left("sweep.yaml", "out")] == ["done", "done", "changed", "changed"]
    sweep("sweep.yaml", "out")
    after = times(done / "out")
    assert [after[n] == before[n] for n in NAMES] == [True, True, False, False]
    rows = {r["cell"]: r for r in table(done / "out").to_pylist() if r["kind"] == "severity"}
    assert rows[NAMES[0]]["change"] is None
    for seed in (0, 1):
        a, b = rows[f"a_seed={seed}"], rows[f"b_seed={seed}"]
        assert a["value"] == b["value"]
        then = trueup.report.bundle.read(done / "out" / "previous" / f"b_seed={seed}" / "report").comparisons[0].before  # type: ignore[attr-defined]
        assert b["change"] == pytest.approx(b["value"] - then.severity)
        assert b["change_paired"]
        assert b["change_low"] <= b["change"] <= b["change_high"]
    assert "Since the earlier run" in (done / "out" / "index.html").read_text()


def test_a_changed_device_map_or_file_of_test_rows_makes_cells_anew(world):
    for key, file, one, other in (
        ("device_map", "map.json", '{"": "cpu"}', '{"": "disk"}'), ("test", "more.csv", data(50), data(50, seed=9)),
    ):  # fmt: skip
        made = Cell("a", ("audit",), {"model": "m", "data": "data.csv", key: file})
        Path(file).write_text(one)
        then = cells.stamps_of(made)
        assert same(then, cells.stamps_of(made))
        Path(file).write_text(other)
        assert not same(then, cells.stamps_of(made))
        Path(file).unlink()
        with pytest.raises(BadInput, match=rf"has no {key} '{file}'"):
            cells._there(made)


def test_other_texts_are_compared_without_pairs(done):
    Path("data.csv").write_text(data(400, seed=5))
    sweep("sweep.yaml", "new", baseline="out")
    for r in (r for r in table(done / "new").to_pylist() if r["kind"] == "severity"):
        then = trueup.report.bundle.read(done / "out" / "cells" / r["cell"] / "report").comparisons[0].before  # type: ignore[attr-defined]
        assert r["change_paired"] is False
        assert r["change"] == pytest.approx(r["value"] - then.severity)
        own, other = r["value"] - r["low"], then.high - then.severity
        assert r["value"] - then.severity - r["change_low"] == pytest.approx((own**2 + other**2) ** 0.5)


def test_an_unchanged_model_has_not_changed(done):
    sweep("sweep.yaml", "again", baseline="out")
    for r in (r for r in table(done / "again").to_pylist() if r["kind"] == "severity"):
        assert (r["change"], r["change_low"], r["change_high"], r["change_paired"]) == (0, 0, 0, True)


@pytest.mark.parametrize("engine", [Processes(2)], ids=str)
def test_every_engine_finds_the_same(done, engine):
    sweep("sweep.yaml", "other", engine=engine)
    assert table(done / "other").equals(table(done / "out"))


def test_parts_joined_are_the_whole(done):
    for part, out in (("1/3", "one"), ("2/3", "one"), ("3/3", "two")):
        got = sweep("sweep.yaml", out, part=part)
        assert not (Path(out) / "results.parquet").exists()
        assert len(got.records) == len(got.cells)
    joined = sweep("sweep.yaml", "all", collect=["one", "two"])
    assert len(joined.records) == 4
    assert table(done / "all").equals(table(done / "out"))
    partly = sweep("sweep.yaml", "half", collect=["two"])
    assert len(partly.records) == 2
    assert "2 more were not run yet" in (done / "half" / "index.html").read_text()


def test_a_part_that_failed_gives_way_to_one_that_did_it(done):
    shutil.copytree("out", "bad")
    file = done / "bad" / "cells" / NAMES[0] / "cell.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"state": "failed", "error": "It did not."}))
    assert len(sweep("sweep.yaml", "bad", collect=["out"]).failed) == 0
    assert table(done / "bad").equals(table(done / "out"))


def test_what_a_part_has_done_anew_takes_the_place_of_what_was_joined_before(done):
    sweep("sweep.yaml", "part")
    sweep("sweep.yaml", "all", collect=["part"])
    then = {r["cell"]: r["value"] for r in table(done / "all").to_pylist() if r["kind"] == "severity"}
    shutil.rmtree("runs/b/best")
    shutil.copytree("runs/a/best", "runs/b/best")
    sweep("sweep.yaml", "part")
    sweep("sweep.yaml", "all", collect=["part"])
    for r in (r for r in table(done / "all").to_pylist() if r["kind"] == "severity"):
        assert r["value"] == then[r["cell"].replace("b_", "a_")]
        assert r["change"] == (None if r["cell"].startswith("a") else pytest.approx(r["value"] - then[r["cell"]]))
    # What is there of other settings makes way for parts that have the new ones, and is no change.
    sweep_file(done, AUDITS.replace("max_length: 32", "max_length: 31"))
    sweep("sweep.yaml", "part")
    joined = sweep("sweep.yaml", "all", collect=["part"])
    assert len(joined.records) == 4
    assert all(r["change"] is None for r in table(done / "all").to_pylist())


@pytest.mark.parametrize("spoilt", ["report", "report/findings.json", "report/report.html"])
def test_a_report_that_is_gone_or_damaged_is_made_again(done, spoilt):
    at = done / "out" / "cells" / NAMES[0] / spoilt
    shutil.rmtree(at) if at.is_dir() else at.unlink()
    assert [s for _, s in left("sweep.yaml", "out")] == ["damaged", "done", "done", "done"]
    before = table(done / "out")
    assert sweep("sweep.yaml", "out").failed == []
    assert table(done / "out").equals(before)
    assert at.exists()


def test_a_record_that_cannot_be_read_costs_no_report(done):
    file = done / "out" / "cells" / NAMES[0] / "cell.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"from a later version": 1}))
    assert left("sweep.yaml", "out")[0][1] == "done"
    for wrong in ("{", json.dumps(data | {"inputs": None}), json.dumps(data | {"inputs": {"bert": {"x": [1]}}}), "3"):
        file.write_text(wrong)
        assert left("sweep.yaml", "out")[0][1] == "to do"
    sweep("sweep.yaml", "out")
    assert (done / "out" / "previous" / NAMES[0] / "report" / "findings.json").is_file()


def test_a_fault_that_crashes_is_told_and_tried_again(world, monkeypatch):
    from trueup.faults.overconfidence import Overconfidence

    text = AUDITS.replace("faults: [overconfidence]", "faults: [overconfidence, confounding], confounder: site")
    with monkeypatch.context() as patch:
        patch.setattr(Overconfidence, "audit", lambda *_, **__: 1 / 0)
        got = sweep(sweep_file(world, text), "out", part="1/4")
    [(name, why)] = got.unexamined.items()
    assert "ZeroDivisionError" in why["overconfidence"]
    assert got.records[name].crash
    assert left("sweep.yaml", "out")[0][1] == "failed"
    again = sweep("sweep.yaml", "out", part="1/4", only_failed=True)
    assert again.unexamined == {}
    assert not again.records[name].crash


def test_a_fault_that_was_asked_for_and_not_examined_is_told(world):
    text = AUDITS.replace("faults: [overconfidence]", "faults: [overconfidence, confounding]")
    file = sweep_file(world, text.replace("seed: [0, 1]", "seed: [0]"))
    got = sweep(file, "out")
    assert {n: list(f) for n, f in got.unexamined.items()} == {"a": ["confounding"], "b": ["confounding"]}
    page = (world / "out" / "index.html").read_text()
    assert page.count(">not examined</span>") == 2
    assert got.unexamined["a"]["confounding"].split(".")[0] in page
    assert sweep(file, "none", only_failed=True).waiting == ["a", "b"]


def test_folders_that_are_no_place_for_a_sweep(done):
    (done / "other").mkdir()
    (done / "other" / "thing.txt").write_text("mine")
    for out, said in (
        ("other", "holds something that is no sweep"),
        ("data.csv", "is a file"),
        ("data.csv/x", "is a file"),
    ):
        with pytest.raises(BadInput, match=said):
            sweep("sweep.yaml", out)
    with pytest.raises(BadInput, match="cannot be its own baseline"):
        sweep("sweep.yaml", "out", baseline="out")


FAILING = """
defaults: {model: bert, data: data.csv, faults: [overconfidence], max_length: 32}
steps: audit
include:
  - {name: absent, adapter: runs/c/best}
  - {name: column, adapter: runs/a/best, label: lable}
  - {name: fine, adapter: runs/a/best}
  - {name: nowhere, adapter: runs/a/best, data: gone.csv}
  - {name: crashed, adapter: runs/b/best}
"""


def test_a_list_says_which_cells_cannot_be_run(world):
    """Before anything is done, and for each cell in the words in which it would fail."""
    file, notes = sweep_file(world, FAILING), []
    got = {c.name: state for c, state in left(file, "out", note=notes.append)}
    assert got == {
        "absent": "unusable",
        "column": "unusable",
        "fine": "to do",
        "nowhere": "unusable",
        "crashed": "to do",
    }
    assert [n.split("'")[1] for n in notes] == ["absent", "column", "nowhere"]
    assert "Did you mean 'label'?" in notes[1]
    done = {r.name: r.error for r in sweep(file, "out").failed}
    assert [n.split(" cannot be run here: ")[1] for n in notes] == [done["absent"], done["column"], done["nowhere"]]


def test_no_training_is_spent_on_a_check_that_cannot_be_made(world, monkeypatch):
    from trueup import tuning

    asked = """
defaults: {model: bert, data: data.csv, kind: lora, epochs: 1, max_length: 32, faults: [confounding]}
steps: [tune, check]
include:
  - {name: slip, confounder: [siet]}
  - {name: fine, confounder: [site]}
"""
    begun = []

    def stop(job, out, **more):
        begun.append(Path(out).parent.name)
        raise BadInput("far enough")

    monkeypatch.setattr(tuning, "tune", stop)
    said = {r.name: r.error for r in sweep(sweep_file(world, asked), "out").failed}
    assert begun == ["fine"], "the control"
    assert "Did you mean 'site'?" in said["slip"]


def test_a_cell_that_fails_is_written_down_and_the_rest_goes_on(world, monkeypatch):
    file = sweep_file(world, FAILING)
    from trueup import story

    real = story.run_job

    def crash(job, out, **more):
        if "runs/b" in job.adapter:
            raise ZeroDivisionError("float division by zero")
        return real(job, out, **more)

    monkeypatch.setattr(story, "run_job", crash)
    got = sweep(file, "out")
    said = {r.name: r.error for r in got.failed}
    assert sorted(said) == ["absent", "column", "crashed", "nowhere"]
    assert (
        "There is no adapter folder 'runs/c/best'" in said["absent"] or "has no adapter 'runs/c/best'" in said["absent"]
    )
    assert "Did you mean 'label'?" in said["column"]
    assert "has no data 'gone.csv'" in said["nowhere"]
    assert "crashed (ZeroDivisionError: float division by zero)" in said["crashed"]
    assert "ZeroDivisionError" in (world / "out/cells/crashed/crash.txt").read_text()
    assert [r["error"] for r in table(world / "out").to_pylist() if r["cell"] == "column"] == [said["column"]]
    assert said["nowhere"].split("(")[0].strip() in (world / "out" / "index.html").read_text().replace("&#39;", "'")

    # Only what failed is tried again, and what was put right is right.
    monkeypatch.setattr(story, "run_job", real)
    (world / "gone.csv").write_text(data(400, seed=3))
    fine = times(world / "out")["fine"]
    told: list[str] = []
    again = sweep(file, "out", only_failed=True, told=lambda record, *_: told.append(record.name))
    assert sorted(told) == ["absent", "column", "crashed", "nowhere"]
    assert sorted(r.name for r in again.failed) == ["absent", "column"]
    assert times(world / "out")["fine"] == fine
    assert not (world / "out/cells/crashed/crash.txt").exists()


def test_only_failed_does_nothing_that_was_never_begun(world):
    assert sweep(sweep_file(world, AUDITS), "out", only_failed=True).records == {}


def test_a_cell_that_is_too_large_for_its_worker_says_so(world, monkeypatch):
    from trueup.sweeps import cost

    monkeypatch.setattr(cost, "free", lambda: 1000)
    got = sweep(sweep_file(world, AUDITS), "out", part="1/4")
    assert "GB for its weights alone" in got.failed[0].error
    assert "Run fewer workers" in got.failed[0].error


def test_a_worker_that_was_lost_is_told(world):
    class Losing(Here):
        def each(self, work, pieces, alike, around):
            for i in range(len(pieces)):
                yield i, Lost("its worker was ended by SIGKILL")

    got = sweep(sweep_file(world, AUDITS), "out", engine=Losing(), part="1/4")
    assert got.failed[0].error == "The cell was begun and not finished: its worker was ended by SIGKILL."
    assert sweep("sweep.yaml", "out", part="1/4").failed == [], "the same command goes on"


def test_a_sweep_that_is_killed_goes_on_where_it_stopped(world):
    file = sweep_file(
        world,
        """
        steps: [tune, audit]
        defaults: {model: bert, data: data.csv, kind: lora, rank: 2, epochs: 1, faults: [overconfidence], max_length: 32}
        matrix: {seed: [0, 1, 2]}
        """,
    )
    code = f"from trueup.sweeps.run import sweep; sweep({str(file)!r}, 'out')"
    process = subprocess.Popen([sys.executable, "-c", code])
    for _ in range(6000):
        if (world / "out/cells/seed=0/cell.json").exists() and (world / "out/cells/seed=1/adapter").exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first, adapter = times(world / "out")["seed=0"], (world / "out/cells/seed=1/adapter").stat().st_mtime_ns
    states = [s for _, s in left(file, "out")]
    assert states[0] == "done"
    assert states[1:] != ["done", "done"], "the control: it was killed in the middle"
    done = sweep(file, "out")
    assert [r.state for r in done.records.values()] == ["done"] * 3
    assert times(world / "out")["seed=0"] == first
    assert (world / "out/cells/seed=1/adapter").stat().st_mtime_ns == adapter
    sweep(file, "whole")
    assert table(world / "out").equals(table(world / "whole"))


def test_one_writer_at_a_time(tmp_path):
    out = tmp_path / "out"
    with lock.writing(out):
        with (
            pytest.raises(BadInput, match=rf"Another sweep is writing '{out}': process {os.getpid()} on "),
            lock.writing(out),
        ):
            pass
        with pytest.raises(BadInput, match="Another sweep"), lock.writing(out, "1/2"):
            pass
    with lock.writing(out, "1/2"), lock.writing(out, "2/2"):  # parts stand beside each other
        with pytest.raises(BadInput, match=r"\(its part 1/2\)"), lock.writing(out, "1/2"):
            pass
        with pytest.raises(BadInput, match="Another sweep"), lock.writing(out, "1/3"):
            pass
        with pytest.raises(BadInput, match="Another sweep"), lock.writing(out):
            pass
    (out / ".writing").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    with pytest.raises(BadInput, match="process 1 on elsewhere"), lock.writing(out):
        pass
    old = time.time() - claims.GONE - 1
    os.utime(out / ".writing", (old, old))
    with lock.writing(out):  # whoever that was is gone
        pass
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (out / ".writing").write_text(json.dumps({"host": platform.node(), "pid": gone.pid}))
    with lock.writing(out):
        pass
    assert not list(out.glob(".writing*"))


HOLD = """
import sys, time
from pathlib import Path
from trueup.sweeps import lock
with lock.writing(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def held_by(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"


def test_a_stopped_writer_keeps_the_folder_and_a_dead_one_lets_go_at_once(tmp_path):
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True) as holder:
        held_by(holder)
        holder.send_signal(signal.SIGSTOP)
        old = time.time() - claims.GONE - 1
        os.utime(out / ".writing", (old, old))
        with pytest.raises(BadInput, match=f"process {holder.pid} on "), lock.writing(out):
            pass
        with pytest.raises(BadInput, match=f"process {holder.pid} on "), lock.writing(out, "1/2"):
            pass
        assert not lock.alone(out)
        holder.send_signal(signal.SIGKILL)
    assert (out / ".writing").exists()
    with lock.writing(out):
        pass
    # A process that has the number of a dead one is not taken for it.
    (out / ".writing").write_text(json.dumps({"host": platform.node(), "pid": os.getppid()}))
    with lock.writing(out):
        pass


def test_of_two_starts_at_one_moment_one_writes(tmp_path, monkeypatch):
    own = tmp_path / ".writing"
    own.write_text(json.dumps({"host": platform.node(), "pid": 1}))
    real, others = claims.json_of, []

    def between(file):  # one has read who wrote before, and the other comes
        known = real(file)
        if not others:
            others.append(None)
            others.append(claims._claim(own, own, {"pid": 2}))
        return known

    monkeypatch.setattr(claims, "json_of", between)
    assert claims._claim(own, own, {"pid": 3}) is not None
    assert others == [None, None]
    assert real(own) == {"pid": 3}


@pytest.mark.parametrize("left", [".writing", ".writing-2-of-3"])
def test_a_start_that_came_to_nothing_holds_up_no_other(tmp_path, monkeypatch, left):
    """One that was killed between making its file and saying who it is."""
    monkeypatch.setattr(claims, "EMPTY", 1.5)
    (tmp_path / left).touch()
    began = time.monotonic()
    with lock.writing(tmp_path):  # the same command again, at once
        assert time.monotonic() - began > 1, "the control: it might have been about to say who it is"
        assert lock.alone(tmp_path)


@pytest.mark.parametrize("left", [".writing", ".writing-2-of-3"])
def test_a_start_that_says_later_who_it_is_keeps_the_folder(tmp_path, monkeypatch, left):
    (tmp_path / left).touch()
    other = json.dumps({"host": platform.node(), "pid": os.getppid()})
    with open(tmp_path / left, "r+") as holder:
        threading.Timer(0.3, lambda: (fcntl.flock(holder, fcntl.LOCK_EX), holder.write(other), holder.flush())).start()
        with pytest.raises(BadInput, match=f"process {os.getppid()} on "), lock.writing(tmp_path):
            pass


@pytest.fixture(params=["Ctrl-C is heard", "Ctrl-C is ignored, as under nohup"])
def hearing(request):
    then = signal.signal(
        signal.SIGINT, signal.default_int_handler if request.param == "Ctrl-C is heard" else signal.SIG_IGN
    )
    yield signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, then)


def test_a_writer_that_was_cut_off_leaves_the_folder_to_the_next(tmp_path, monkeypatch, hearing):
    monkeypatch.setattr(claims, "FIRST", 0.01)
    monkeypatch.setattr(claims, "BEAT", 0.01)  # a first look may find the other's file half written

    def goes_on() -> None:
        with lock.writing(tmp_path):
            (tmp_path / ".writing").write_text(json.dumps({"host": "elsewhere", "pid": 7, "token": "another"}))
            time.sleep(30)

    with pytest.raises(BadInput, match=r"was stopped or cut off for 5 minutes.*process 7 on elsewhere"):
        goes_on()
    assert claims.json_of(tmp_path / ".writing")["pid"] == 7, "the lock is the other's"
    with pytest.raises(KeyboardInterrupt), lock.writing(tmp_path / "b"):
        raise KeyboardInterrupt  # the control: another interrupt stays one
    assert signal.getsignal(signal.SIGINT) is hearing


def test_cells_of_another_version_are_not_joined_and_are_done_anew(done, monkeypatch):
    monkeypatch.setattr(trueup, "__version__", "9.9.9")
    with pytest.raises(BadInput, match=rf"4 cells were made by trueup {trueup_version()}, and this is 9.9.9"):
        sweep("sweep.yaml", "all", collect=["out"])
    assert [s for _, s in left("sweep.yaml", "out")] == ["changed"] * 4


def trueup_version() -> str:
    from importlib.metadata import version

    return version("trueup")


def test_cells_of_other_settings_are_not_joined(done):
    sweep_file(done, AUDITS.replace("max_length: 32", "max_length: 31"))
    with pytest.raises(BadInput, match="was made for other settings than the file has now"):
        sweep("sweep.yaml", "all", collect=["out"])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda out: out.write_text("x"), "'out' is a file"),
        (lambda out: out.symlink_to("nowhere"), "'out' is a link to '.*nowhere', and there is no such folder"),
        (lambda out: (out / "src").mkdir(parents=True), "holds something that is no sweep"),
        (lambda out: (out.mkdir(), (out / "cells").touch()), "holds something that is no sweep"),
        (lambda out: None, ""),
        (lambda out: out.mkdir(), ""),
        (lambda out: (out / "cells" / NAMES[0] / "cell.json").mkdir(parents=True), ""),
        (lambda out: out.parent.joinpath("x").write_text("") and None, ""),
    ],
)
def test_a_list_of_whatever_is_there_writes_nothing(world, make, said):
    file = sweep_file(world, AUDITS)
    make(world / "out")
    before = sorted(world.rglob("*"))
    if said:
        with pytest.raises(BadInput, match=said):
            left(file, "out")
    else:
        assert [s for _, s in left(file, "out")] == ["to do"] * 4
    assert sorted(world.rglob("*")) == before


def test_a_folder_that_cannot_be_read_is_a_sentence(world, monkeypatch):
    (world / "out").mkdir()

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(BadInput, match=r"'out' cannot be (read|written) \(Permission denied\)"):
        left(sweep_file(world, AUDITS), "out")


def test_a_model_whose_size_cannot_be_told_is_asked_for_once(world, monkeypatch):
    from trueup.errors import Unavailable
    from trueup.subject import size
    from trueup.sweeps import cost
    from trueup.sweeps.plan import cells_of

    asked = []

    def unreachable(model, revision=None):
        asked.append(model)
        raise Unavailable("The hub is out of reach.")

    monkeypatch.setattr(size, "size_of", unreachable)
    cost._size.cache_clear()
    for cell in cells_of(sweep_file(world, AUDITS)):
        assert cost.seconds(cell) is None
        cost.fits(cell)
    cost._size.cache_clear()
    assert asked == ["bert"]


@pytest.mark.parametrize("how", [{"collect": ["data.csv"]}, {"baseline": "runs"}])
def test_a_folder_that_is_no_sweep(world, how):
    with pytest.raises(BadInput, match="is no folder of a sweep"):
        sweep(sweep_file(world, AUDITS), "out", **how)
    assert not (world / "out").exists()


def test_rows_are_of_their_columns(swept):
    import pyarrow.parquet as pq

    got = pq.read_table(swept / "out" / "results.parquet")
    assert got.column_names == list(results.COLUMNS)
    assert [str(t).replace("double", "float64") for t in got.schema.types] == list(results.COLUMNS.values())


def test_methods_are_rows_and_their_table_is_that_of_the_bench(made, tmp_path, monkeypatch, capsys):
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    file = sweep_file(tmp_path / "copy", AUDITS.replace("[audit]", "[methods]").replace("seed: [0, 1]", "seed: [0]"))
    swept = sweep(file, "out")
    assert not swept.failed
    got = [r for r in table(tmp_path / "copy" / "out").to_pylist() if r["kind"] == "method"]
    assert {r["cell"] for r in got} == {"a", "b"}
    for name, report in swept.reports.items():
        (c,) = report.comparisons
        assert c.after is None
        assert {m.key for m in c.methods} == {r["method"] for r in got if r["cell"] == name}
        for m in c.methods:
            (r,) = [r for r in got if (r["cell"], r["method"], r["measure"]) == (name, m.key, "error_auc")]
            assert (r["after"], r["difference"], r["chosen"]) == (
                m.values["error_auc"],
                m.differences["error_auc"].value,
                m.chosen,
            )
            assert r["better"] == "higher"
            assert r["value"] == pytest.approx(c.before.measures["error_auc"].value)
    from trueup.experiments import tables

    tables.write(tmp_path / "copy" / "out", "overconfidence", print)
    said = capsys.readouterr().out
    assert "softmax response" in said
    assert "2 seeds" in said
    assert (tmp_path / "copy" / "out" / "overconfidence.md").is_file()


def test_a_base_in_fewer_bits_needs_less_memory(world, monkeypatch):
    from trueup.subject.size import Size
    from trueup.sweeps import cost
    from trueup.sweeps.plan import cells_of

    monkeypatch.setattr(cost, "_size", lambda model, revision: Size(10**9, 9 * 10**8))
    monkeypatch.setattr(cost, "free", lambda: 3 * 10**9)
    asked = {
        "": 4.0,
        "dtype: float32": 4.0,
        "dtype: bfloat16": 2.0,
        "dtype: auto": 2.0,
        "quantize: 8bit": 1.0,
        "quantize: 4bit": 0.5,
    }
    for line, size in asked.items():
        text = AUDITS.replace("{model: bert", f"{{{line}, model: bert") if line else AUDITS
        cell = cells_of(sweep_file(world, text))[0]
        if size > 3:
            with pytest.raises(BadInput, match=f"needs {size:.1f} GB for its weights alone"):
                cost.fits(cell)
        else:
            cost.fits(cell)
    cost.fits(cells_of(sweep_file(world, AUDITS.replace("{model: bert", "{device_map: auto, model: bert")))[0])
