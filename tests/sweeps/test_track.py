"""What a tracker is told, read back from its own local store."""

from __future__ import annotations

import sys

import pytest
from sweep_cases import AUDITS, sweep_file

from trueup.errors import Unavailable
from trueup.report import bundle
from trueup.sweeps import cell as cells
from trueup.sweeps.plan import cells_of
from trueup.sweeps.run import sweep
from trueup.sweeps.track import available, metrics, track


@pytest.fixture
def one(world):
    file = sweep_file(world, AUDITS)
    done = sweep(file, "out", part="1/4")
    [cell] = done.cells
    record = cells.read(world / "out", cell.name)
    assert record is not None
    return cell, record, bundle.read(world / "out/cells" / cell.name / "report")


def test_numbers_and_words_are_those_of_the_findings(one):
    _, record, report = one
    got = dict(metrics(record, report))
    before = report.comparisons[0].before
    assert (got["overconfidence/severity"], got["overconfidence/low"]) == (before.severity, before.low)
    assert got["overconfidence/measures/accuracy"] == before.measures["accuracy"].value
    assert got["cpu_seconds"] == record.cpu_seconds
    assert all(v == v for v in got.values())


def test_trackio_keeps_them(one, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="trackio is not installed: pip install trackio")
    import json
    import sqlite3

    track("trackio", "night", *one)
    found = ""  # of every table: the shape of its store is trackio's own
    for file in (tmp_path / "trackio").glob("*.db"):
        with sqlite3.connect(file) as db:
            for (table,) in db.execute("select name from sqlite_master where type = 'table'").fetchall():
                found += json.dumps([[str(v) for v in row] for row in db.execute(f"select * from {table}").fetchall()])
    assert "overconfidence/severity" in found
    assert one[0].name in found
    assert str(one[2].comparisons[0].before.severity)[:8] in found


def test_mlflow_keeps_them(one, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install mlflow")
    pytest.importorskip("sqlalchemy")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'runs.db'}")
    monkeypatch.chdir(tmp_path)
    cell, record, report = one
    track("mlflow", "night", cell, record, report)
    [run] = mlflow.search_runs(experiment_names=["night"], output_format="list")
    assert run.info.run_name == cell.name
    assert run.data.metrics == pytest.approx(dict(metrics(record, report)))
    assert run.data.params["adapter"] == cell.settings["adapter"]
    assert run.data.tags["overconfidence.outcome"] == report.comparisons[0].outcome


def test_a_tracker_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(
        Unavailable, match="--track mlflow needs its package, which is not installed: pip install mlflow"
    ):
        available("mlflow")


def test_a_tracker_that_fails_costs_no_cell(world, monkeypatch):
    from trueup.sweeps import run, track

    def broken(*_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(track, "available", lambda tracker: None)
    monkeypatch.setattr(track, "track", broken)
    said = []
    done = run.sweep(sweep_file(world, AUDITS), "out", part="1/2", track="mlflow", note=said.append)
    assert [r.state for r in done.records.values()] == ["done", "done"]
    assert len(said) == 1
    assert "mlflow took no results (ConnectionError: no route to host)" in said[0]
    assert len(cells_of("sweep.yaml")) == 4
