"""The equations of overconfidence, against closed forms, scipy, scikit-learn and brute force."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.optimize import minimize
from scipy.special import expit, logit, logsumexp, softmax
from sklearn.covariance import EmpiricalCovariance

from trueup.faults.overconfidence import densities, objectives, platt
from trueup.measure import confidence_scores as S

RNG = np.random.default_rng(0)


def logits(n: int = 200, k: int = 7, scale: float = 3.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, k)) * scale


# ------------------------------------------------------------------------------------------------- uncertainties


@pytest.mark.parametrize("lam", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("c", [2, 3, 10])
def test_smooth_max_is_an_upper_bound_within_log_c_over_lam(lam: float, c: int):
    p = torch.softmax(torch.as_tensor(logits(500, c)), dim=-1)
    over = objectives.smooth_max(p, lam) - p.amax(-1)
    assert bool((over >= -1e-12).all())
    assert bool((over <= math.log(c) / lam + 1e-12).all())
    assert float(over.max()) > 0
    uniform = torch.full((1, c), 1 / c, dtype=torch.float64)
    assert float(objectives.smooth_max(uniform, lam)) == pytest.approx(1 / c + math.log(c) / lam), (
        "the upper bound is reached"
    )


def test_smooth_max_tightens_with_lam():
    p = torch.softmax(torch.as_tensor(logits(100, 4)), dim=-1)
    gaps = [float((objectives.smooth_max(p, lam) - p.amax(-1)).max()) for lam in (1, 10, 100, 1000)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 2e-3


@pytest.mark.parametrize("c", [2, 3, 5, 50])
def test_plain_adue_cannot_reach_one_and_rescaled_can(c: int):
    """U <= 1 - 1/C: with two classes BCE cannot fit an error. Rescaled, the uniform distribution is at 1 (less log C / lam)."""
    z = torch.cat([torch.as_tensor(logits(300, c)), torch.zeros(1, c, dtype=torch.float64)])
    plain, rescaled = objectives.adue_uncertainty(z, rescaled=False), objectives.adue_uncertainty(z, rescaled=True)
    assert float(plain.max()) <= 1 - 1 / c
    assert float(plain[-1]) == pytest.approx(1 - 1 / c - math.log(c) / 100)
    assert float(rescaled[-1]) == pytest.approx(1 - math.log(c) / 100 / (1 - 1 / c))
    assert float(rescaled.max()) <= 1
    assert int(rescaled.argmax()) == 300, "nothing is less sure than the uniform distribution"
    torch.testing.assert_close(rescaled, plain / (1 - 1 / c))
    sure = torch.tensor([[50.0] + [0.0] * (c - 1)], dtype=torch.float64)
    assert abs(float(objectives.adue_uncertainty(sure, rescaled=True))) < 1e-9


def test_entropy_is_scipys_normalised():
    z = logits(300, 5)
    want = scipy.stats.entropy(softmax(z, axis=1), axis=1) / math.log(5)
    np.testing.assert_allclose(objectives.entropy_uncertainty(torch.as_tensor(z)).numpy(), want, atol=1e-12)
    assert float(objectives.entropy_uncertainty(torch.zeros(1, 5))) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(S.NegativeEntropy(5)(z), 1 - want, atol=1e-12)
    # Where a probability is 0 in float64, 0 log 0 is 0.
    assert S.NegativeEntropy(3)(np.array([[1000.0, 0.0, -1000.0]])) == pytest.approx([1.0])


def test_uncertainties_take_any_leading_dimensions_and_have_gradients():
    z = torch.as_tensor(logits(24, 4)).reshape(2, 3, 4, 4).requires_grad_(True)
    for u in (lambda v: objectives.adue_uncertainty(v, rescaled=True), objectives.entropy_uncertainty):
        torch.testing.assert_close(u(z)[1, 2], u(z[1, 2]))
        assert torch.autograd.gradcheck(u, (z,))


UNCERTAINTIES = {"AdUE": objectives.ADUE_U, "AdUE, rescaled": objectives.RESCALED_U, "entropy": objectives.ENTROPY_U}


@pytest.mark.parametrize("u", UNCERTAINTIES.values(), ids=UNCERTAINTIES)
@pytest.mark.parametrize("c", [2, 3, 20])
def test_logs_are_those_of_the_uncertainty_where_that_does_not_round(u: objectives.Uncertainty, c: int):
    z = torch.as_tensor(logits(500, c, scale=2.0))
    value = u.value(z)
    got = u.logs(z)
    torch.testing.assert_close(got[0], value.log(), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(got[1], (1 - value).log(), rtol=1e-7, atol=1e-9)
    for k in range(2):
        torch.testing.assert_close(u.logs(z.reshape(2, 250, c))[k][1], got[k][250:])
        assert torch.autograd.gradcheck(lambda v, k=k: u.logs(v)[k], (z[:20].clone().requires_grad_(True),))
        np.testing.assert_allclose(u.logs(z.float())[k], got[k], rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("u", UNCERTAINTIES.values(), ids=UNCERTAINTIES)
@pytest.mark.parametrize("margin", [14.0, 20.0, 40.0, 70.0])
def test_the_surest_errors_teach_and_under_the_published_clamp_they_do_not(u: objectives.Uncertainty, margin: float):
    """An error at a margin m of two classes: log U falls by 1 a nat, so its gradient is -1 (for the entropy 1 less 1/m)."""

    def gradient(of: objectives.Uncertainty) -> float:
        z = torch.tensor([[0.0, margin]], requires_grad=True)
        loss = objectives.Objective(of, torch.ones(1), torch.zeros(1))(z[None], torch.tensor([0]), torch.tensor([0.0]))
        (g,) = torch.autograd.grad(loss.sum(), z)
        return float(g[0, 1])

    assert gradient(u) == pytest.approx(1.0 if u is not objectives.ENTROPY_U else 1 - 1 / (margin + 1), rel=2e-3)
    if margin > 20:
        assert gradient(objectives.clamped(u)) == 0, "the control"
    if margin == 14.0:
        assert gradient(objectives.clamped(u)) == pytest.approx(gradient(u), rel=0.02), "the clamp of 1e-7 starts at 16"
        assert gradient(objectives.clamped(u, 1e-4)) == 0


def test_a_right_prediction_is_pushed_off_a_tie_as_hard_as_the_entropy_says():
    """With two classes 1 - U is d^2 / (8 log 2) at a margin d near 0, so -log(1 - U) has the gradient -2 / d."""
    for d in (1e-1, 1e-2, 1e-3):
        z = torch.tensor([[0.0, d]], requires_grad=True)
        objective = objectives.Objective(objectives.ENTROPY_U, torch.zeros(1), torch.zeros(1))
        (g,) = torch.autograd.grad(objective(z[None], torch.tensor([0]), torch.tensor([0.0])).sum(), z)
        assert float(g[0, 1]) == pytest.approx(-2 / d, rel=0.01)
    hidden = objectives.Objective(objectives.clamped(objectives.ENTROPY_U, 1e-6), torch.zeros(1), torch.zeros(1))
    (g,) = torch.autograd.grad(hidden(z[None], torch.tensor([0]), torch.tensor([0.0])).sum(), z)
    assert float(g[0, 1]) == 0, "the control: a clamp hides it"
    tie = torch.zeros(1, 1, 2, requires_grad=True)
    loss = objectives.Objective(objectives.ENTROPY_U, torch.zeros(1), torch.zeros(1))(
        tie, torch.tensor([0]), torch.tensor([0.0])
    )
    (g,) = torch.autograd.grad(loss.sum(), tie)
    assert bool(torch.isfinite(loss).all() and torch.isfinite(g).all())


def test_objective_is_bce_and_the_pull_to_the_anchor():
    z, rows = torch.as_tensor(logits(40, 3)).float(), torch.tensor([5, 1, 30, 8])
    error = torch.as_tensor((np.random.default_rng(1).random(40) < 0.5).astype(np.float32))
    anchor = torch.rand(40, generator=torch.Generator().manual_seed(0))
    two = torch.stack([z[rows], -z[rows]])
    for uncertainty in (objectives.ENTROPY_U, objectives.clamped(objectives.ENTROPY_U)):
        got = objectives.Objective(uncertainty, error, anchor)(two, rows, torch.tensor([0.0, 0.3]))
        for r, alpha in ((0, 0.0), (1, 0.3)):
            u = objectives.entropy_uncertainty(two[r]).double().numpy()
            e, a = error[rows].double().numpy(), anchor[rows].double().numpy()
            want = -(e * np.log(u) + (1 - e) * np.log(1 - u)).mean() + alpha * ((u - a) ** 2).mean()
            assert float(got[r]) == pytest.approx(want, rel=1e-5)
        assert float(got[0]) != pytest.approx(float(got[1]), rel=1e-3)


@pytest.mark.parametrize("clamped", [False, True])
@pytest.mark.parametrize("u", UNCERTAINTIES.values(), ids=UNCERTAINTIES)
def test_slopes_of_two_classes_are_the_gradients_in_closed_form(u: objectives.Uncertainty, clamped: bool):
    rng = np.random.default_rng(0)
    far = [rng.normal(size=200) * scale for scale in (1e-2, 1.0, 6.0, 20.0)]
    margin = torch.as_tensor(np.concatenate([*far, [0.0, 80.0, -80.0]]))
    n = len(margin)
    error, anchor = torch.as_tensor((rng.random(n) < 0.5).astype(float)), torch.as_tensor(rng.random(n))
    rows, alpha = torch.as_tensor(rng.permutation(n)), torch.tensor([0.0, 0.3], dtype=torch.float64)
    objective = objectives.Objective(objectives.clamped(u) if clamped else u, error, anchor)
    z = torch.stack([0 * margin, margin], dim=-1).expand(2, n, 2).clone().requires_grad_(True)
    (slow,) = torch.autograd.grad(objective(z, rows, alpha).sum(), z)
    got = objective.slope(margin.expand(2, n), rows, alpha)
    torch.testing.assert_close(got, slow[..., 1], rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(got, -slow[..., 0], rtol=1e-8, atol=1e-12)
    short = objectives.Objective(objective.uncertainty, error.float(), anchor.float()).slope(
        margin.float().expand(2, n), rows, alpha.float()
    )
    # In float32 but where U or 1 - U is rounding, which only the clamp reads.
    near = (margin.abs() < 10) & (margin.abs() > 0.1) if clamped else margin.abs() < 1e9
    torch.testing.assert_close(short[:, near].double(), got[:, near], rtol=2e-3, atol=1e-6)
    wild = torch.tensor([[0.0, 1e4, -1e4, 120.0]]).float()
    for e in (0.0, 1.0):
        some = objectives.Objective(objective.uncertainty, torch.full((4,), e), torch.zeros(4))
        assert bool(torch.isfinite(some.slope(wild, torch.arange(4), torch.tensor([0.1]))).all())


@pytest.mark.parametrize("u", UNCERTAINTIES.values(), ids=UNCERTAINTIES)
@pytest.mark.parametrize("c", [2, 3, 20])
def test_the_loss_and_its_gradient_are_finite_everywhere(u: objectives.Uncertainty, c: int):
    """U of AdUE leaves [0, 1] by log(C) / lam, and float32 rounds to its ends."""
    z = torch.zeros(6, c)
    z[1:, 0] = torch.tensor([1e-4, 50.0, 99.0, 120.0, 1e4])
    z.requires_grad_(True)
    for e in (0.0, 1.0):
        loss = objectives.Objective(u, torch.full((6,), e), torch.zeros(6))(
            z[None], torch.arange(6), torch.tensor([0.1])
        )
        (g,) = torch.autograd.grad(loss.sum(), z)
        assert bool(torch.isfinite(loss).all())
        assert bool(torch.isfinite(g).all())


# -------------------------------------------------------------------------------------------------------- scores

C = 3
SCORES: list[Any] = [
    S.MaxSoftmax(C), S.MaxSoftmax(C, start=C), S.SmoothMax(C, start=0), S.SmoothMax(C, start=C), S.NegativeEntropy(C),
    S.NegativeEntropy(C, start=C), S.Margin(C), S.Energy(C), S.MaxLogit(C), *(S.PNorm(C, p) for p in range(10)),
    S.ProbabilityOfPredicted(C, start=C), S.ShrunkProbe(C, 0.7, (0.5, -0.25, 0.125)),
    S.ShrunkProbe(C, 0.0, (0.0, 0.0, 0.0)), S.ResponseLogOdds(C), S.Column(C),
    S.Column(C + 1),
]  # fmt: skip
CALIBRATED = [S.Calibrated(s, 1.7, -0.4) for s in SCORES]


def plain_torch(score: Any, z: np.ndarray) -> np.ndarray:
    """The line of the card, as its reader would run it: plain torch, with `out` the model's logits."""
    return eval(score.torch_line, {"__builtins__": {}}, {"out": torch.as_tensor(z)}).numpy()


def test_every_score_class_is_tested():
    from typing import get_args

    assert {type(s) for s in SCORES} == set(get_args(S.Score))


@pytest.mark.parametrize("score", SCORES + CALIBRATED, ids=repr)
def test_a_score_is_its_line_of_plain_torch(score: Any):
    z = logits()
    values = score(z)
    assert values.shape == (200,)
    np.testing.assert_allclose(plain_torch(score, z), values, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(plain_torch(score, z.astype(np.float32)), values, rtol=2e-4, atol=2e-5)
    assert np.unique(values).size > 100, "a constant would pass as well"
    assert np.abs(plain_torch(score, logits(seed=1)) - values).max() > 1e-3


@pytest.mark.parametrize("score", SCORES + CALIBRATED, ids=repr)
def test_a_score_does_not_depend_on_its_neighbours(score: Any):
    z = logits(scale=8)
    every, order = score(z), np.random.default_rng(2).permutation(200)
    np.testing.assert_allclose(score(z[order]), every[order], rtol=1e-13)
    for i in (0, 17, 199):
        np.testing.assert_allclose(score(z[i : i + 1]), every[i : i + 1], rtol=1e-13)
    wild = np.concatenate([z[:1], np.full((1, 7), 1e4) * np.arange(7)])
    np.testing.assert_allclose(score(wild)[0], every[0], rtol=1e-13)


@pytest.mark.parametrize(
    "score", SCORES[:3] + SCORES[4:5] + SCORES[6:9] + SCORES[10:19] + [S.ResponseLogOdds(C)], ids=repr
)
def test_higher_is_surer(score: Any):
    """Of two predictions, the one whose winner stands out further scores higher, for every score of the classifier's own."""
    base = np.zeros((1, 7))
    sure, unsure = base.copy(), base.copy()
    start = getattr(score, "start", 0)
    sure[0, start : start + C], unsure[0, start : start + C] = (4.0, 1.5, 0.0), (2.0, 1.5, 0.0)
    assert float(score(sure)[0]) > float(score(unsure)[0])


def test_calibrated_is_the_sigmoid_and_keeps_the_ranking():
    z = logits()
    for score in SCORES:
        got = S.Calibrated(score, 2.0, -1.0)(z)
        np.testing.assert_allclose(got, expit(2 * score(z) - 1), rtol=1e-12)
    response = S.MaxSoftmax(C)
    assert np.array_equal(np.argsort(S.Calibrated(response, 3.0, 0.5)(z)), np.argsort(response(z)))


def test_calibrated_takes_float32_logits():
    z = logits().astype(np.float32)
    np.testing.assert_allclose(S.Calibrated(S.ResponseLogOdds(C), 1.0, 0.0)(z), S.MaxSoftmax(C)(z.astype(np.float64)))


def test_response_log_odds_is_exact_where_softmax_rounds_to_one():
    near = logits(300, 4)
    p = softmax(near, axis=1).max(axis=1)
    np.testing.assert_allclose(S.response_log_odds(near), np.log(p) - np.log1p(-p), rtol=1e-9)
    far = np.array([[50.0, 0.0, 0.0], [60.0, 0.0, 0.0], [900.0, 10.0, -5.0]])
    assert np.all(softmax(far, axis=1).max(axis=1) == 1.0), "the softmax has rounded: no ranking is left in it"
    want = [50 - math.log(2), 60 - math.log(2), 890 - math.log1p(math.exp(-15))]
    np.testing.assert_allclose(S.response_log_odds(far), want, rtol=1e-14)
    assert S.response_log_odds(np.array([[2.0, 5.0]])) == pytest.approx([3.0])
    np.testing.assert_allclose(S.response_log_odds(far + 1e3), S.response_log_odds(far), rtol=1e-12)


def test_shrunk_probe_is_its_three_parts():
    """With its correction at 0 it ranks as the softmax response does; each part adds what it says."""
    z = logits()
    still = z.copy()
    still[:, C] = 0
    own = S.response_log_odds(z[:, :C])
    np.testing.assert_allclose(S.ShrunkProbe(C, 1.0, (0.0, 0.0, 0.0))(still), own)
    offsets = (1.0, 1 / 3, -2.0)
    want = 0.4 * own + np.take(offsets, z[:, :C].argmax(axis=1)) + z[:, C]
    score = S.ShrunkProbe(C, 0.4, offsets)
    np.testing.assert_allclose(score(z), want)
    np.testing.assert_allclose(plain_torch(score, z), want, atol=1e-6, err_msg="the card rounds offsets to 6 digits")


def test_smooth_max_score_is_one_less_adue():
    z = logits()
    u = objectives.adue_uncertainty(torch.as_tensor(z[:, C : 2 * C]), rescaled=False).numpy()
    np.testing.assert_allclose(S.SmoothMax(C, start=C)(z), 1 - u, rtol=1e-12)


# --------------------------------------------------------------------------------------------------------- Platt


@pytest.mark.parametrize(("slope", "intercept"), [(1.5, -0.5), (0.3, 2.0), (6.0, 0.0)])
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (-40.0, 1.0), (3.0, 1e-3), (0.0, 200.0)])
def test_platt_recovers_a_planted_slope_and_intercept(slope: float, intercept: float, shift: float, scale: float):
    """Also on scores of other units: the same probabilities come out."""
    rng = np.random.default_rng(0)
    s = rng.normal(size=40_000)
    right = rng.random(len(s)) < expit(slope * s + intercept)
    a, b = platt.platt(s * scale + shift, right)
    assert a * scale == pytest.approx(slope, rel=0.06)
    assert a * shift + b == pytest.approx(intercept, abs=0.1)


def test_platt_never_turns_the_ranking_round():
    rng = np.random.default_rng(0)
    s = rng.normal(size=2000)
    for right in (rng.random(2000) < expit(-3 * s), rng.random(2000) < 0.5, np.ones(2000, bool), np.zeros(2000, bool)):
        slope, intercept = platt.platt(s, right)
        assert slope > 0
        p = expit(slope * s + intercept)
        assert np.array_equal(np.argsort(p, kind="stable"), np.argsort(s, kind="stable"))
        assert p.mean() == pytest.approx(right.mean(), abs=0.05)


def platt_by_lbfgs(score: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """The same likelihood of the log of the slope, by scipy: the slow way."""
    n1, n0 = int(right.sum()), int((~right).sum())
    target = np.where(right, (n1 + 1) / (n1 + 2), 1 / (n0 + 2))
    mean, scale = float(score.mean()), float(score.std()) or 1.0
    s = (score - mean) / scale

    def loss(ab: np.ndarray) -> tuple[float, np.ndarray]:
        v = np.exp(ab[0]) * s + ab[1]
        p = expit(v)
        value = np.mean(np.logaddexp(0, v) - target * v)
        return float(value), np.array([np.mean((p - target) * np.exp(ab[0]) * s), np.mean(p - target)])

    start, bounds = np.array([0.0, float(logit(target.mean()))]), [(-6, 6), (None, None)]
    best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=platt.TO_THE_END)
    slope = float(np.exp(best.x[0])) / scale
    return slope, float(best.x[1]) - slope * mean


@pytest.mark.parametrize("n", [30, 213, 2000])
@pytest.mark.parametrize("kind", ["plain", "turned", "long tails", "ties", "nearly constant", "parted", "no error"])
def test_platts_are_what_a_slow_fit_of_each_column_finds(n: int, kind: str):
    rng = np.random.default_rng(0)
    s = rng.normal(size=(n, 4)) * 3
    right = rng.random(n) < expit(s[:, 0])
    right = {"parted": s[:, 0] > 0, "no error": np.ones(n, bool)}.get(kind, right)
    s = {"turned": -s, "long tails": np.exp(3 * s), "ties": np.round(s), "nearly constant": np.sign(s) * 1e-9 + 5}.get(
        kind, s
    )
    slope, intercept = platt.platts(s, right)
    for column, a, b in zip(s.T, slope, intercept, strict=True):
        slow = platt_by_lbfgs(column, right)
        np.testing.assert_allclose(expit(a * column + b), expit(slow[0] * column + slow[1]), atol=2e-6, rtol=0)
        assert platt.platt(column, right) == pytest.approx((a, b), rel=1e-6)


def test_platt_of_a_constant_score_is_the_rate():
    # One whose mean differs from it by rounding as well.
    for n, constant in ((400, 0.7), (100, 1 / 3 + 1e6)):
        slope, intercept = platt.platt(np.full(n, constant), np.arange(n) < 0.75 * n)
        assert slope > 0
        assert expit(slope * constant + intercept) == pytest.approx(0.75, abs=0.02)


# ------------------------------------------------------------------------------------------ baselines on features


def clusters(n: int = 300, d: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d))
    label = rng.integers(0, 3, n)
    means = rng.normal(size=(3, d)) * 4
    return (
        means[label] + rng.normal(size=(n, d)) @ mix,
        label,
        means[rng.integers(0, 3, 60)] + rng.normal(size=(60, d)) @ mix,
    )


def test_mahalanobis_is_scikit_learns():
    x, label, at = clusters()
    centred = np.concatenate([x[label == c] - x[label == c].mean(axis=0) for c in range(3)])
    tied = EmpiricalCovariance(assume_centered=True).fit(centred)
    ridge = tied.covariance_ + 1e-3 * np.trace(tied.covariance_) / 5 * np.eye(5)
    tied.precision_, tied.location_ = np.linalg.inv(ridge), np.zeros(5)
    want = -np.min([tied.mahalanobis(at - x[label == c].mean(axis=0)) for c in range(3)], axis=0)
    np.testing.assert_allclose(densities.mahalanobis(x, label, at), want, rtol=1e-9)
    whole = EmpiricalCovariance().fit(x)
    whole.precision_ = np.linalg.inv(whole.covariance_ + 1e-3 * np.trace(whole.covariance_) / 5 * np.eye(5))
    np.testing.assert_allclose(densities.relative_mahalanobis(x, label, at), want + whole.mahalanobis(at), rtol=1e-9)


def test_densities_are_higher_inside_and_independent_of_the_batch():
    x, label, at = clusters()
    far = at + 60.0
    for score in (
        densities.mahalanobis,
        lambda t, y, v: densities.robust_density(t, y, v, np.zeros(len(v), dtype=np.int64), seed=0)[:, 0],
    ):
        inside, outside = score(x, label, at), score(x, label, far)
        assert np.all(np.isfinite(np.concatenate([inside, outside])))
        np.testing.assert_allclose(score(x, label, at[3:4]), inside[3:4], rtol=1e-7)
    assert densities.mahalanobis(x, label, at).min() > densities.mahalanobis(x, label, far).max()
    np.testing.assert_allclose(
        densities.relative_mahalanobis(x, label, at[3:4]), densities.relative_mahalanobis(x, label, at)[3:4]
    )


def test_robust_density_ranks_the_predicted_class_own_examples_first():
    x, label, _ = clusters(600)
    own = densities.robust_density(x, label, x, label, seed=0)
    other = densities.robust_density(x, label, x, (label + 1) % 3, seed=0)
    assert (np.median(own, axis=0) > np.median(other, axis=0)).all()
    assert np.array_equal(own, densities.robust_density(x, label, x, label, seed=0)), "the same seed, the same scores"


def test_robust_density_is_a_log_density_and_a_distance():
    """Of one class they rank alike; between classes of unlike spread the log determinant tells them apart."""
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 200)
    x = rng.normal(size=(400, 4)) * np.where(label == 1, 1.5, 0.3)[:, None] + 3.0 * label[:, None]
    got = densities.robust_density(x, label, x, label, seed=0)
    for c in range(2):
        assert scipy.stats.spearmanr(*got[label == c].T).statistic == pytest.approx(1)
        whole = got[label == c] @ [1.0, -0.5]
        np.testing.assert_allclose(whole, whole[0], rtol=1e-9, err_msg="they differ by the class' half log determinant")
    assert (got[:, 0] - got[:, 1] / 2)[0] - (got[:, 0] - got[:, 1] / 2)[-1] > 1, "a narrow class is dense"


def test_hybrid_with_thresholds_is_the_authors_on_the_sample_itself():
    """Their linear step: ranks of aleatoric and epistemic uncertainty; its equation, written with scipy's ranks."""
    rng = np.random.default_rng(0)
    a, e = rng.random(200), rng.random(200)
    for inside, ambiguous, weight in ((0.1, 0.9, 0.3), (0.3, 0.95, 0.0), (0.0, 1.0, 0.7), (0.15, 1.0, 1.0)):
        ra, re = scipy.stats.rankdata(a), scipy.stats.rankdata(e)
        want = (1 - weight) * re + weight * ra
        near = re <= inside * 200
        want[near] = scipy.stats.rankdata(a[near])
        doubtful = near & (ra > ambiguous * 200)
        want[doubtful] = ra[doubtful]
        np.testing.assert_allclose(
            1 - densities.hybrid(-a, -e, -a, -e, weight, inside, ambiguous), want / 200, atol=1e-12
        )


def test_rows_at_length_one():
    x = np.array([[3.0, 4.0], [0.0, 0.0], [-2.0, 0.0]])
    np.testing.assert_allclose(densities.unit(x), [[0.6, 0.8], [0, 0], [-1, 0]])


def test_hybrid_mixes_ranks_against_a_reference():
    reference_a, reference_b = np.arange(10.0), np.arange(10.0) * 100
    a, b = np.array([-1.0, 4.5, 99.0]), np.array([1e9, 450.0, -1.0])
    np.testing.assert_allclose(densities.hybrid(a, b, reference_a, reference_b, 0.5), [0.5, 0.5, 0.5])
    np.testing.assert_allclose(densities.hybrid(a, b, reference_a, reference_b, 1.0), [0.0, 0.5, 1.0])
    np.testing.assert_allclose(densities.hybrid(a, b, reference_a, reference_b, 0.25), [0.75, 0.5, 0.25])
    np.testing.assert_allclose(densities.hybrid(a[:1], b[:1], reference_a, reference_b, 0.25), [0.75])
    shuffled = np.random.default_rng(0).permutation(10)
    np.testing.assert_allclose(densities.hybrid(a, b, reference_a[shuffled], reference_b, 0.25), [0.75, 0.5, 0.25])
    np.testing.assert_allclose(
        densities.hybrid(np.exp(a), b, np.exp(reference_a), reference_b, 0.25),
        [0.75, 0.5, 0.25],
        err_msg="only ranks count",
    )


@pytest.mark.parametrize("prior", [0.01, 1.0, 100.0])
def test_laplace_is_the_dense_kronecker_posterior(prior: float):
    """Brute force: the (dC x dC) precision A (x) B + prior I, inverted whole; Var z_c = (x (x) e_c)' P^-1 (x (x) e_c)."""
    rng = np.random.default_rng(0)
    n, d, c, m = 30, 4, 3, 8
    x, z, at, z_at = rng.normal(size=(n, d)), rng.normal(size=(n, c)), rng.normal(size=(m, d)) * 2, logits(m, c)
    p = softmax(z, axis=1)
    a, b = x.T @ x, sum(np.diag(q) - np.outer(q, q) for q in p) / n
    covariance = np.linalg.inv(np.kron(a, b) + prior * np.eye(d * c))
    want = []
    for row, logit_row in zip(at, z_at, strict=True):
        jacobian = np.kron(row[None], np.eye(c))
        variance = np.diag(jacobian @ covariance @ jacobian.T)
        want.append(softmax(logit_row / np.sqrt(1 + np.pi / 8 * variance)).max())
    got = densities.laplace(x, z, at, z_at, prior)
    np.testing.assert_allclose(got, want, rtol=1e-10)
    np.testing.assert_allclose(densities.laplace(x, z, at[2:3], z_at[2:3], prior), got[2:3], rtol=1e-10)
    assert np.all(got <= softmax(z_at, axis=1).max(axis=1) + 1e-12), "doubt about the weights never makes surer here"


def test_laplace_far_from_the_data_is_unsure_and_a_strong_prior_is_the_softmax():
    rng = np.random.default_rng(0)
    x, z, z_at = rng.normal(size=(50, 4)), rng.normal(size=(50, 3)), logits(20, 3)
    near, far = rng.normal(size=(20, 4)), rng.normal(size=(20, 4)) * 1e4
    assert densities.laplace(x, z, far, z_at, 1.0).max() < 0.4
    assert densities.laplace(x, z, near, z_at, 1.0).max() > 0.6
    np.testing.assert_allclose(densities.laplace(x, z, near, z_at, 1e9), softmax(z_at, axis=1).max(axis=1), atol=1e-6)


def test_energy_is_scipys_and_does_not_overflow():
    z = logits(50, 3, scale=400)
    np.testing.assert_allclose(S.Energy(3)(z), logsumexp(z, axis=1))
    assert np.all(np.isfinite(S.Energy(3)(z * 100)))
