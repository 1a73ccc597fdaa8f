"""Units found on one task, asked of others: in a planted model they help where it copies, and random ones do not."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from trueup.errors import BadInput
from trueup.experiments import transfer
from trueup.faults.copying.planted import planted


@pytest.fixture(scope="module")
def made():
    subject, corpus = planted("planted")
    rng = np.random.default_rng(0)
    other = np.zeros(len(corpus), bool)  # two tasks of one kind that share no pair
    for part in ("train", "calibration", "test"):
        rows = np.flatnonzero(corpus.split == part)
        other[rng.permutation(rows)[: len(rows) // 3]] = True
    return subject, {"here": corpus.take(~other), "there": corpus.take(other)}


@pytest.fixture
def two_tasks(made, monkeypatch):
    subject, corpora = made
    kind = SimpleNamespace(copying_is_right=False)
    stub = SimpleNamespace(
        load=lambda name, seed=0: corpora[name], find=lambda name: kind, TASKS=dict.fromkeys(corpora, kind)
    )
    monkeypatch.setattr(transfer, "tasks", stub)
    monkeypatch.setattr(transfer, "load", lambda model, shots: subject)
    monkeypatch.setattr("trueup.faults.copying.contest.bystanders", lambda *a, **k: iter(()))


def test_planted_units_help_the_other_task_and_random_ones_do_not(two_tasks, tmp_path):
    got = transfer.run(tmp_path / "out", transfer.Settings(sources=("here",), queries=200), say=lambda s: None)
    (there,) = (transfer.judged(r) for r in got["rows"] if r["task"] == "there")
    copies = {k: there["changes"]["here"][k]["copies"] for k in ("units", "random")}
    assert there["copies"] > 0.06, "it copies there as well"
    assert copies["units"][2] < -0.05, "the units of one task lower copies in the other"
    assert copies["random"][2] > -0.05, "the control"
    assert there["changes"]["here"]["units"]["accuracy"][1] > 0
    (here,) = (r for r in got["rows"] if r["task"] == "here")
    assert here["queries"] == 200, "of its own task the test queries alone: calibration chose"
    assert there["queries"] == 180, "of another task both"
    assert json.loads((tmp_path / "out" / "transfer.json").read_text())["rows"] == got["rows"]
    found = got["units"]["here"]["units"].values()
    assert sum(len(of["factors"]) for of in found) == got["units"]["here"]["count"], "each scaled unit is named"
    assert transfer.table(got) == (tmp_path / "out" / "transfer.md").read_text()


def test_a_run_goes_on_where_it_was_stopped(two_tasks, tmp_path, monkeypatch):
    settings = transfer.Settings(sources=("here",), queries=40)
    whole = transfer.run(tmp_path / "whole", settings, say=lambda s: None)

    asked, first = transfer._asked, []

    def stopping(*a):
        if len(first) == 2:
            raise KeyboardInterrupt
        first.append(1)
        return asked(*a)

    monkeypatch.setattr(transfer, "_asked", stopping)
    with pytest.raises(KeyboardInterrupt):
        transfer.run(tmp_path / "out", settings, say=lambda s: None)
    later = []
    monkeypatch.setattr(transfer, "_asked", lambda *a: later.append(1) or asked(*a))
    monkeypatch.setattr(transfer, "_found", None)  # what was found is not looked for again
    assert transfer.run(tmp_path / "out", settings, say=lambda s: None) == whole
    assert len(first) + len(later) == 2 * 3, "each task once as it is, with the units and with random ones"


def test_the_mean_of_the_other_tasks_leaves_out_the_source():
    def row(task, value):
        return {"task": task, "changes": {"a": {"units": {"accuracy": [value, value - 0.1, value + 0.1]}}}}

    rows = [row("a", 9.0), row("b", 0.1), row("c", 0.2), row("d", 0.6)]
    got = transfer.elsewhere(rows, "a", "units", "accuracy")
    low, high = stats.t.interval(0.95, 2, loc=0.3, scale=stats.sem([0.1, 0.2, 0.6]))
    assert (got.value, got.low, got.high) == pytest.approx((0.3, low, high))


def test_a_change_is_paired_by_cluster():
    right = np.array([1.0, 0.0] * 50)
    none = np.zeros(100)
    before = {"right": right, "copied": none, "expected": none, "cluster": np.arange(100)}
    after = before | {"right": np.ones(100)}
    got = transfer.apart(before, after)
    assert got["accuracy"][0] == 0.5
    assert got["accuracy"][1] > 0.35
    assert got["copies"] == [0.0, pytest.approx(-0.0275, abs=1e-4), pytest.approx(0.0275, abs=1e-4)], (
        "none of 100 changed"
    )
    alike = transfer.apart(before | {"cluster": np.arange(100) // 10}, after)
    assert alike["accuracy"][1] < got["accuracy"][1] < 0.5 < got["accuracy"][2] < alike["accuracy"][2], (
        "10 examples, not 100"
    )


def test_a_task_that_is_not_there_is_told():
    with pytest.raises(BadInput, match="Did you mean 'first-of-list'"):
        transfer.Settings(sources=("first-of-lists",))
    with pytest.raises(BadInput, match="one or more sources"):
        transfer.Settings(sources=())
