"""The estimand and its verdict: the forecast against oracles, the parts that add up, the words, and what must not change them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from trueup.errors import BadInput
from trueup.faults.fault import Finding
from trueup.faults.overconfidence import Overconfidence, audit, platt
from trueup.faults.overconfidence import forecast as fc
from trueup.faults.overconfidence.planted import planted
from trueup.faults.overconfidence.worlds import Draw, calibrated, ignored, judge, repeated, uniform
from trueup.measure import confidence_scores
from trueup.run.predict import predict
from trueup.subject.subject import SoftmaxResponse


def drawn(source, n: int, seed: int = 0) -> Draw:
    return source(np.random.default_rng(seed), n)


def finding_of(held: Draw, test: Draw, *, threshold: float = 0.02, resamples: int = 200) -> Finding:
    forecast = fc.learn(held.seen, held.right, held.cluster, seed=0)
    columns = test.columns(fc.recalibrated(held.seen, held.right), forecast)
    return audit.finding(
        columns, taught=held.cluster, threshold=threshold, resamples=resamples, seed=0
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- forecast


def test_the_ridge_path_is_scikit_learns():
    """scikit-learn puts its ridge on every column: the log-odds go in a million times as large, so that theirs weighs nothing."""
    rng = np.random.default_rng(0)
    n, d, c = 300, 5, 3
    x, odds, predicted = rng.normal(size=(n, d)), rng.normal(size=n), rng.integers(0, c, n)
    right = rng.random(n) < expit(0.7 * odds + x[:, 0] - 0.5 * (predicted == 1))
    unit = x.std() * np.sqrt(d)
    theirs_x = np.concatenate([(x - x.mean(axis=0)) / unit, np.eye(c)[predicted], 1e3 * odds[:, None]], axis=1)
    (path,) = fc.ridge_paths(x, right, np.ones((1, n), bool), odds, np.eye(c)[predicted])
    for ridge, (weight, offsets, slope) in zip(fc.RIDGES, path, strict=True):
        fit = LogisticRegression(C=1 / (ridge * n), tol=1e-10, max_iter=20_000).fit(theirs_x, right)
        theirs = fit.predict_proba(theirs_x)[:, 1]
        np.testing.assert_allclose(expit(x @ weight + offsets[predicted] + slope * odds), theirs, atol=3e-3)
        if ridge == fc.RIDGES[0]:
            assert np.abs(theirs - expit(odds)).max() > 0.05, "the control: the fit does something"


def slow_path(x, right, odds, chosen):
    """One set of rows, one ridge after the other, by scipy's L-BFGS under the bound."""
    (n, d), c, y = x.shape, chosen.shape[1], right.astype(float)
    mean, unit = x.mean(axis=0), (x.std() + 1e-12) * np.sqrt(d)
    s = np.concatenate([(x - mean) / unit, chosen], axis=1)
    at = np.append(np.zeros(d + c + 1), 1.0)
    for ridge in fc.RIDGES:

        def loss(v, ridge=ridge):
            w, b, a = v[:-2], v[-2], v[-1]
            t = s @ w + b + a * odds
            r = (expit(t) - y) / n
            value = np.mean(np.logaddexp(0, t) - y * t) + ridge * (w @ w) / 2
            return value, np.concatenate([s.T @ r + ridge * w, [r.sum(), r @ odds]])

        bounds = [(None, None)] * (d + c + 1) + [(0.0, None)]
        at = minimize(loss, at, jac=True, method="L-BFGS-B", bounds=bounds, options=platt.TO_THE_END).x
        weight = at[:d] / unit
        yield weight, at[d : d + c] + at[-2] - weight @ mean, at[-1]


@pytest.mark.parametrize("sense", [1.0, -1.0])
@pytest.mark.parametrize("d", [5, 300])
def test_ridge_paths_of_several_sets_are_each_alone_by_the_slow_way(d: int, sense: float):
    """More features than rows as well, and log-odds that go the wrong way: their slope stays at 0."""
    rng = np.random.default_rng(1)
    n, c = 240, 3
    x, odds, predicted = rng.normal(size=(n, d)) + 2, np.abs(rng.normal(size=n)), rng.integers(0, c, n)
    right = rng.random(n) < expit(0.8 * sense * odds + x[:, 0] - 2 - 0.5 * (predicted == 1))
    kept = np.concatenate([np.arange(3)[:, None] != rng.integers(0, 3, n), np.ones((1, n), bool)])
    chosen = np.eye(c)[predicted]
    slopes = []
    for k, path in zip(kept, fc.ridge_paths(x, right, kept, odds, chosen), strict=True):
        slow = slow_path(x[k], right[k], odds[k], chosen[k])
        for (w, o, s), (weight, offsets, slope) in zip(path, slow, strict=True):
            theirs = expit(x @ weight + offsets[predicted] + slope * odds)
            np.testing.assert_allclose(expit(x @ w + o[predicted] + s * odds), theirs, atol=3e-6)
            assert s == 0 or s == pytest.approx(slope, abs=1e-4)
            slopes.append(s)
    assert (min(slopes) > 0.1) == (sense > 0)
    assert (max(slopes) == 0) == (sense < 0)


def test_a_ridge_path_bears_log_odds_that_hardly_vary():
    """Beside the intercept they are one column but for float32's rounding, and neither is under the ridge."""
    rng = np.random.default_rng(0)
    x, right = rng.normal(size=(200, 4)), rng.random(200) < 0.7
    for odds in (30 + 1e-3 * rng.normal(size=200), 3e3 + rng.normal(size=200), np.zeros(200)):
        for path in fc.ridge_paths(x, right, np.ones((1, 200), bool), odds, np.eye(2)[np.arange(200) % 2]):
            for w, o, s in path:
                p = expit(x @ w + o[np.arange(200) % 2] + s * odds)
                assert abs(p.mean() - right.mean()) < 1e-6, "the intercept is free"
                assert s >= 0


@pytest.mark.parametrize("far", [60.0, 2000.0])
def test_a_ridge_path_ends_where_wrong_predictions_have_a_confidence_that_rounds_to_one(far: float):
    """Intercept and slope are free: at the minimum both score equations hold. At a slope of 1 wrong ones have no curvature."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        surest, ease, x = rng.random(300) < 0.5, rng.normal(2.5, 1, 300), rng.normal(size=(300, 8))
        odds, right = np.where(surest, far, ease), rng.random(300) < np.where(surest, 0.92, expit(ease))
        for w, o, s in fc.ridge_paths(x, right, np.ones((1, 300), bool), odds)[0]:
            p = expit(x @ w + o + s * odds)
            assert p.mean() == pytest.approx(right.mean(), abs=1e-5)
            assert s == 0 or ((p - right) @ odds) / far / 300 == pytest.approx(0, abs=1e-5)
            assert p[surest].mean() == pytest.approx(right[surest].mean(), abs=0.05)


def test_a_forecast_learns_what_there_is_to_be_known_and_no_more():
    held, test = drawn(ignored(), 1500), drawn(ignored(), 4000, 1)
    taught = fc.learn(held.seen, held.right, held.cluster, seed=0)
    assert taught.ridge is not None
    assert fc.avoidable(expit(test.odds), taught(test.seen), test.right) > 0.1
    nothing, more = drawn(uniform(), 1500), drawn(uniform(), 4000, 1)
    useless = fc.learn(nothing.seen, nothing.right, nothing.cluster, seed=0)
    assert -0.03 < fc.avoidable(expit(more.odds), useless(more.seen), more.right) < 0.005


def test_with_few_errors_recalibration_alone_is_taught():
    held = drawn(uniform(), 60)
    right = np.arange(60) != 3
    taught = fc.learn(held.seen, right, held.cluster, seed=0)
    assert taught.ridge is None
    slope, intercept = platt.platt(held.odds, right)
    np.testing.assert_allclose(taught(held.seen), expit(slope * held.odds + intercept))


def test_copies_of_a_text_do_not_choose_the_ridge_for_it():
    """Every text four times: by clusters the forecast is no worse than of each once, by rows it has learnt them by heart."""
    source, test = repeated(calibrated(0.15, noise=120), 4), drawn(calibrated(0.15, noise=120), 4000, 1)
    by_cluster, by_row = [], []
    for seed in range(4):
        held = drawn(source, 150, seed)
        for found, cluster in ((by_cluster, held.cluster), (by_row, np.arange(len(held.odds)))):
            taught = fc.learn(held.seen, held.right, cluster, seed=seed)
            found.append(fc.avoidable(expit(test.odds), taught(test.seen), test.right))
    assert np.mean(by_cluster) > -0.15
    assert np.mean(by_row) < np.mean(by_cluster) - 0.2, "the control"


def test_log_odds_do_not_round_and_are_those_of_the_confidence():
    z = np.array([[50.0, 0.0, 0.0], [1.0, 0.5, 0.0]])
    response = SoftmaxResponse(3)
    assert response(z)[0] == 1.0
    np.testing.assert_allclose(audit.log_odds(z, response)[0], 50 - np.log(2))
    np.testing.assert_allclose(audit.log_odds(z, response)[1], logit(response(z)[1]))
    other = confidence_scores.Calibrated(confidence_scores.ResponseLogOdds(3), 0.5, -1.0)
    np.testing.assert_allclose(expit(audit.log_odds(z, other)), other(z))
    np.testing.assert_allclose(audit.log_odds(z, lambda z: np.full(len(z), 0.7)), logit(0.7))


# ----------------------------------------------------------------------------------------------------------- finding


def test_severity_is_one_less_the_ratio_of_losses_and_its_parts_add_up():
    test = drawn(uniform(0.25), 500, 1)
    got = finding_of(drawn(uniform(0.25), 500), test)
    s = got.samples
    c, r, f = (np.mean((s[k] - s["right"]) ** 2) for k in ("confidence", "recalibrated", "forecast"))
    assert (
        got.severity
        == pytest.approx(1 - f / c)
        == pytest.approx(fc.avoidable(s["confidence"], s["forecast"], s["right"]))
    )
    assert got.measures["misstated"].value == pytest.approx(1 - r / c)
    assert got.measures["misranked"].value == pytest.approx((r - f) / c)
    assert got.severity == pytest.approx(got.measures["misstated"].value + got.measures["misranked"].value)
    assert got.measures["gap"].value == pytest.approx(s["confidence"].mean() - s["right"].mean())
    assert got.measures["confidence_brier"].value == pytest.approx(c)
    assert got.measures["gap"].low > 0
    assert "it overstates" in got.sentence


def test_the_direction_is_told():
    under = finding_of(drawn(uniform(2.0), 1500), drawn(uniform(2.0), 1500, 1))
    assert under.measures["gap"].high < 0
    assert "it understates" in under.sentence


@pytest.mark.parametrize("seed", range(3))
def test_noise_of_the_task_is_no_fault_and_the_same_scores_at_another_temperature_are(seed):
    """The old headline, 1 - error ROC-AUC, is .28 in both."""
    words = {}
    for t in (1.0, 0.25):
        got = finding_of(drawn(uniform(t), 1000, seed), drawn(uniform(t), 1000, 100 + seed))
        words[t] = got.verdict
        assert 0.24 < 1 - got.measures["error_auc"].value < 0.32
    assert words == {1.0: "clear", 0.25: "found"}


def test_the_verdict_does_not_depend_on_names_or_order():
    held, test = drawn(ignored(0.8), 400), drawn(ignored(0.8), 400, 1)
    here = finding_of(held, test)

    def moved(part: Draw, seed: int) -> Draw:
        order = np.random.default_rng(seed).permutation(len(part.odds))
        rows = Draw(**{k: v if k == "classes" else v[order] for k, v in vars(part).items()})
        return replace(rows, predicted=1 - rows.predicted, other=1 - rows.other)

    there = finding_of(moved(held, 1), moved(test, 2))
    for k in ("severity", "low", "high"):
        assert getattr(there, k) == pytest.approx(getattr(here, k), abs=2e-4), k
    for k, m in here.measures.items():
        assert there.measures[k].value == pytest.approx(m.value, abs=2e-4), k
    assert there.verdict == here.verdict
    assert (here.high - here.low) > 0.05, "the control: two hundredths of a percent are little"


def test_a_constant_added_to_all_logits_changes_nothing():
    subject, corpus = planted("planted")
    fault = Overconfidence(resamples=50)
    before = fault.prepared(subject, corpus, seed=0).audit(subject, corpus.part("test"), seed=0)
    layer = subject.head_layer()
    layer.bias.data += 3.0
    after = fault.prepared(subject, corpus, seed=0).audit(subject, corpus.part("test"), seed=0)
    assert after.severity == pytest.approx(before.severity, abs=1e-4)
    assert (after.low, after.high) == pytest.approx((before.low, before.high), abs=1e-3)


def test_three_words_and_what_would_decide():
    base = Finding("f", "u", 0.05, 0.03, 0.07, 0.02, "s")
    assert (base.verdict, base.found) == ("found", True)
    assert replace(base, low=0.01).verdict == "undecided"
    assert replace(base, severity=-0.01, low=-0.02, high=0.01).verdict == "clear"
    assert (replace(base, doubt="Few.").verdict, replace(base, doubt="Few.").found) == ("undecided", False)
    assert replace(base, low=float("nan"), high=float("nan")).verdict == "undecided"
    back = Finding.from_dict(replace(base, doubt="Few.", needed=300).as_dict())
    assert (back.verdict, back.doubt, back.needed) == ("undecided", "Few.", 300)
    held = drawn(uniform(2.0), 250)
    few = finding_of(held, drawn(uniform(2.0), 250, 1))
    assert few.verdict == "undecided"
    assert few.needed is not None
    assert few.needed > 250
    many = finding_of(held, drawn(uniform(2.0), 4 * few.needed, 1))
    assert many.verdict == "found"
    assert many.needed is None


@pytest.mark.parametrize(
    ("held", "test", "says"),
    [
        (drawn(uniform(), 400), drawn(uniform(), 25), "There are only 25 independent clusters"),
        (drawn(uniform(), 400), drawn(repeated(uniform(), 4), 25), "There are only 25 independent clusters"),
        (drawn(uniform(), 400), drawn(calibrated(0.001), 300), "errors among 300 test examples"),
        (drawn(uniform(), 400), drawn(repeated(calibrated(0.003), 4), 300), "one a cluster counted"),
        (drawn(uniform(), 150), drawn(uniform(), 400), "The calibration examples are 150 independent clusters"),
    ],
)  # fmt: skip
def test_why_nothing_is_decided_is_said(held, test, says):
    got = finding_of(held, test)
    assert got.verdict == "undecided"
    assert says in got.doubt


def test_little_calibration_is_no_doubt_of_what_the_test_examples_show():
    """What few examples have taught is judged by the others; only *nothing is wrong* needs many teachers."""
    got = finding_of(drawn(uniform(0.25), 100), drawn(uniform(0.25), 600, 1))
    assert got.verdict == "found"


def test_a_model_without_errors_has_a_finding_that_can_be_filed():
    held = drawn(uniform(), 300)
    test = replace(drawn(uniform(), 300, 1), right=np.ones(300, bool))
    got = finding_of(held, test)
    assert got.verdict == "undecided"
    assert "error_auc" not in got.measures
    assert all(np.isfinite([m.value, m.low, m.high]).all() for m in got.measures.values())


# ------------------------------------------------------------------------------------------------------------- fault


def test_healthy_is_clear_at_any_size():
    """A classifier whose labels were drawn from its own probabilities: nothing is ever found, and more examples make it sure."""
    words = {}
    for n in (60, 250, 2500):
        subject, corpus = planted("healthy", {"train": 400, "calibration": n, "test": n})
        fault = Overconfidence(resamples=100).prepared(subject, corpus, seed=0)
        words[n] = fault.audit(subject, corpus.part("test"), seed=0).verdict
    assert words[60] == "undecided"
    assert words[250] != "found"
    assert words[2500] == "clear"


def test_what_is_compared_with_must_have_been_learnt():
    subject, corpus = planted("healthy")
    with pytest.raises(BadInput, match=r"fault\.prepared\(subject, corpus, seed=0\)"):
        Overconfidence().audit(subject, corpus.part("test"), seed=0)
    with pytest.raises(BadInput, match="no calibration examples"):
        Overconfidence().prepared(subject, corpus.take(corpus.split != "calibration"), seed=0)


def test_a_repaired_subject_is_held_against_the_same_forecast():
    subject, corpus = planted("planted")
    test = corpus.part("test")
    fault = Overconfidence(resamples=50).prepared(subject, corpus, seed=0)
    before = fault.audit(subject, test, seed=0)
    with fault.repair(subject, corpus, before, seed=0).on(subject) as repaired:  # type: ignore[union-attr]
        after = fault.audit(repaired, test, seed=0)
        confidence = predict(repaired, test).confidence
    assert np.array_equal(before.samples["forecast"], after.samples["forecast"])
    assert np.array_equal(before.samples["right"], after.samples["right"])
    np.testing.assert_allclose(expit(after.samples["odds"]), confidence, atol=1e-6)
    moved = fault.compare(before, after, seed=0)["severity"]
    assert moved.value == pytest.approx(after.severity - before.severity)
    assert moved.high < 0


def test_the_worlds_verdict_is_the_audits():
    parts = (drawn(uniform(0.25), 300), drawn(uniform(0.25), 300, 1))
    got = judge(parts, 0)
    assert got.verdict == "found"
    assert set(got.intervals) == {"severity", *audit.MEASURES}


def test_the_slope_is_a_plain_number_and_the_line_of_the_card_is_plain_torch():
    rng = np.random.default_rng(5)
    x, odds = rng.normal(size=(200, 4)), rng.normal(size=200)
    right = rng.random(200) < 1 / (1 + np.exp(-odds))
    [path] = fc.ridge_paths(x, right, np.ones((1, 200), bool), odds, np.eye(2)[np.arange(200) % 2])
    assert {type(slope) for _, _, slope in path} == {float}
    # Whatever made the numbers: a card is read where numpy is not imported.
    odd = (np.float64(0.5), np.float64(-0.5))
    probe = confidence_scores.ShrunkProbe(2, np.float64(path[0][2]), odd)
    line = confidence_scores.Calibrated(probe, np.float64(1.5), np.float64(0.25)).torch_line
    assert "np." not in line
    z = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.is_tensor(eval(line, {"out": z}))
