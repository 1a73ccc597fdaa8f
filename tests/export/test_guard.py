"""A guard says what the repaired subject says, from logits and features alone, and knows texts and models that are not its own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trueup
from trueup.errors import BadInput
from trueup.faults.fault import Comparison, Difference
from trueup.faults.overconfidence.candidates import Part
from trueup.faults.overconfidence.confidence_head import ConfidenceHead, read_remedy
from trueup.faults.overconfidence.planted import planted
from trueup.faults.overconfidence.repair import Side, Split, guarded, part_of
from trueup.guard import FILE, WINDOW, Guard
from trueup.run.predict import Session, predict, within


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Any, Any, ConfidenceHead, Path]:
    """Subject, corpus, the repair and its folder."""
    subject, corpus = planted("planted")
    fault = trueup.Overconfidence(resamples=20, folds=2, members=1, passes=0, delta=0.2).prepared(
        subject, corpus, seed=0
    )
    remedy = fault.repair(subject, corpus, fault.audit(subject, corpus.part("test"), seed=0), seed=0)
    assert isinstance(remedy, ConfidenceHead), getattr(remedy, "reason", "")
    # A threshold that answers half of the texts, whatever this small case certifies.
    with remedy.on(subject) as repaired:
        half = float(np.median(predict(repaired, corpus.part("test")).confidence))
    about = json.loads(str(remedy.guard["about"]))
    about["abstention"] = [{"risk": 0.1, "threshold": half}, {"risk": 0.05, "threshold": None}]
    remedy = replace(remedy, guard={**remedy.guard, "about": np.array(json.dumps(about))})
    return subject, corpus, remedy, remedy.save(tmp_path_factory.mktemp("out") / "overconfidence")


def test_it_says_what_the_repaired_subject_says(made):
    subject, corpus, remedy, folder = made
    test = corpus.part("test")
    with remedy.on(subject) as repaired:
        want = predict(repaired, test)
    for given in (folder, folder.parent):
        guard = Guard.read(given)
        for logits in (want.logits, want.logits[:, :2]):
            said = guard(logits, want.features)
            assert said.label == [subject.classes[i] for i in want.predicted]
            assert np.allclose(said.confidence, want.confidence, atol=1e-5)
            assert (said.answered == (said.confidence >= guard.threshold)).all()
            assert 0 < said.answered.mean() < 1
    assert guard.risk == 0.1
    assert guard.threshold == float(np.median(want.confidence))
    assert Guard.read(folder)(want.logits[0], want.features[0]).confidence[0] == pytest.approx(
        want.confidence[0], abs=1e-5
    )
    assert (np.sort(said.p)[: len(said.p) // 20] <= 0.3).all()


def test_it_survives_save_and_load(made):
    subject, _, remedy, folder = made
    again = read_remedy(folder, subject)
    assert again.guard.keys() == remedy.guard.keys()
    assert all(np.array_equal(again.guard[k], remedy.guard[k]) for k in remedy.guard)


def test_what_is_kept_without_a_gain_certifies_nothing(made, tmp_path):
    subject, corpus, remedy, folder = made
    fault = trueup.Overconfidence(resamples=20).prepared(subject, corpus, seed=0)
    before = fault.audit(subject, corpus.part("test"), seed=0)
    gain = {"severity": Difference(-0.2, -0.3, -0.1, 0.01)}
    none = {"severity": Difference(0.0, -0.1, 0.1, 0.9)}
    kept, useless = (Comparison(before, before, "", d) for d in (gain, none))
    assert Guard.read(remedy.save(tmp_path / "kept", kept)).threshold == Guard.read(folder).threshold
    with pytest.raises(BadInput, match=rf"holds no {FILE}.*kept without a gain"):
        Guard.read(remedy.save(tmp_path / "useless", useless))


def test_too_few_calibration_texts_cost_the_guard_and_not_the_repair(made):
    subject, corpus, remedy, _ = made
    few = np.flatnonzero(corpus.split == "calibration")[:19]
    three = Part(np.zeros((3, remedy.head.weight.shape[1])), np.zeros((3, 2)), np.zeros(3, np.int64))
    split = Split(Side(few, part_of(subject, corpus.take(few)), few), Side(np.arange(3), three, np.arange(3)), few)
    with within(Session()) as now:
        bare = guarded(replace(remedy, guard={}), split, 0)
    assert not bare.guard
    assert "comes without a guard: 19 examples are too few" in now.notes[0]


def test_drift_alarms_after_a_window_of_other_texts_and_not_of_the_same(made):
    subject, corpus, _, folder = made
    x = predict(subject, corpus.part("test")).features.astype(float)
    same, other = Guard.read(folder), Guard.read(folder)
    for guard, rows in ((same, x), (other, x + 3 * x.std())):
        rows = np.concatenate([rows] * (1 + WINDOW // len(rows)))[:WINDOW]
        logits = rows @ guard.weight.T + guard.bias
        for row, z in zip(rows[:-1], logits[:-1], strict=True):
            guard(z, row)
        assert guard.drift.tests == 0
        guard(logits[-1], rows[-1])
        assert guard.drift.tests == 1
    m = len(other.distances)
    far = other(logits[-1], rows[-1])  # which is farther than each of m
    assert (far.unusual[0], far.p[0]) == (True, pytest.approx(1 / (m + 1)))
    assert (same.drift.alarm, same.drift.alarms) == (False, 0)
    assert (other.drift.alarm, other.drift.alarms) == (True, 1)


def test_threads_lose_no_text(made):
    subject, corpus, _, folder = made
    x = predict(subject, corpus.part("test")).features[:10].astype(float)
    guard = Guard.read(folder)
    logits = x @ guard.weight.T + guard.bias
    threads = [threading.Thread(target=lambda: [guard(logits, x) for _ in range(25)]) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert guard.drift.tests == 4 * 25 * 10 // WINDOW


def test_what_is_not_of_the_guarded_model_is_a_sentence(made, tmp_path):
    subject, corpus, remedy, folder = made
    out = predict(subject, corpus.part("test"))
    z, x = out.logits[:6], out.features[:6]
    guard = Guard.read(folder)

    def refused(said: str, *args: Any) -> None:
        with pytest.raises(BadInput, match=said):
            guard(*args)

    refused(r"The logits have 5 columns, and the guarded model has 2 classes", np.ones((6, 5)), x)
    refused(r"The features are \(6, 3\), and for these logits they would be \(6, ", z, x[:, :3])
    refused(r"The features are \(5, ", z, x[:5])
    refused(r"not what the guarded model makes of these features: .* another model", z[:, ::-1] + 1, x)
    refused(r"another model, in another order, or after a softmax", z, x + 5)
    refused(r"NaN or infinite", z * np.nan, x)
    if len(guard.weight) > 2:
        refused(r"The confidence reads .* Give the features", z)
        assert guard(np.concatenate([z, x @ guard.weight[2:].T + guard.bias[2:]], axis=1)).p.tolist() == [1.0] * 6
    guard(z, x)
    for given, said in (
        (tmp_path / "nowhere", "There is no folder"), (tmp_path, "holds no repair of overconfidence, from which a guard is read"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=said):
            Guard.read(given)
    with pytest.raises(BadInput, match=r"Nothing was certified at a share of errors of 0\.05; it was at '0\.1'"):
        Guard.read(folder, risk=0.05)
    old = replace(remedy, guard={}).save(tmp_path / "overconfidence")
    with pytest.raises(BadInput, match=rf"holds no {FILE}\. A repair of overconfidence brings one"):
        Guard.read(old)
    none = json.loads(str(remedy.guard["about"])) | {"abstention": [{"risk": 0.1, "threshold": None}]}
    never = replace(remedy, guard={**remedy.guard, "about": np.array(json.dumps(none))}).save(tmp_path / "never")
    with pytest.raises(BadInput, match="a guard would never answer"):
        Guard.read(never)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / FILE).write_bytes((folder / FILE).read_bytes()[:200])
    with pytest.raises(BadInput, match="is damaged"):
        Guard.read(tmp_path / "cut")


@pytest.mark.parametrize("form", ["merged", "lora"])
def test_an_export_carries_the_guard(made, form, tmp_path):
    _, _, _, folder = made
    done = trueup.export(folder, form, tmp_path / "served")
    code = (
        f"import sys, trueup\nguard = trueup.Guard.read({str(done.folder)!r})\n"
        "print([m for m in ('torch', 'transformers', 'sklearn', 'pandas') if m in sys.modules], guard.risk)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[] 0.1"


def test_a_check_without_a_repair_says_why(tmp_path):
    told = {
        "comparisons": [
            {"before": {"fault": "overconfidence"}, "remedy": "Nothing is better than the softmax response."}
        ]
    }
    (tmp_path / "findings.json").write_text(json.dumps(told))
    with pytest.raises(BadInput, match="Its report says: Nothing is better than the softmax response"):
        Guard.read(tmp_path)
    (tmp_path / "demo" / "report").mkdir(parents=True)
    (tmp_path / "demo" / "report" / "findings.json").write_text(json.dumps(told))
    with pytest.raises(BadInput, match=r"Give '.*report', which holds the check"):
        Guard.read(tmp_path / "demo")
