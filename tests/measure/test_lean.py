"""Lean and floor against a slow reference, and what must not change them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import average_precision_score

from trueup.errors import BadInput
from trueup.measure import lean, shift


def drawn(classes: int, groups: int, n: int = 300, start: float = 1.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    y, z = rng.integers(classes, size=n), rng.integers(groups, size=n)
    logits = rng.normal(size=(n, classes)) + 1.2 * np.eye(classes)[y]
    logits += start * np.eye(max(classes, groups))[z][:, :classes]
    logits[: n // 3] = logits[n // 3 : 2 * (n // 3)]  # ties
    z[: n // 3] = z[n // 3 : 2 * (n // 3)]
    return lean.centred(logits), y, z


def slow(score, y, z, coupling, weight):
    """By scikit-learn, table by table, on softmax probabilities."""
    classes, groups = coupling.shape
    have = shift.joint(y, z, classes, groups, weight=weight)
    free = np.outer(have.sum(axis=1), have.sum(axis=0))
    starts = np.array([
        np.mean([np.average(score[at], axis=0, weights=weight[at]) for c in range(classes) for at in [(y == c) & (z == g)]], axis=0)
        for g in range(groups)
    ])  # fmt: skip
    found = []
    for s in (score, score - starts[z]):
        each = []
        for sign in (1, -1):
            w = weight * (shift.coupled_as(free, np.exp(sign * coupling)) / have)[y, z]
            p = np.round(softmax(s, axis=1), 12)
            each.append(np.mean([average_precision_score(y == c, p[:, c], sample_weight=w) for c in range(classes)]))
        found.append(each[0] - each[1])
    return found


@pytest.mark.parametrize(("classes", "groups"), [(2, 2), (2, 3), (3, 2), (4, 3)])
def test_drop_and_floor_are_scikit_learns_and_batches_are_one_by_one(classes, groups):
    score, y, z = drawn(classes, groups)
    rng = np.random.default_rng(1)
    coupling = lean.along(rng.normal(size=(classes, groups)))
    weight = rng.multinomial(len(y), np.full(len(y), 1 / len(y)), size=3).astype(float)
    together = lean.drop_and_floor(score, y, z, coupling, weight=weight)
    for k in range(3):
        alone = lean.drop_and_floor(score, y, z, coupling, weight=weight[k])
        assert together[:, k] == pytest.approx(alone, abs=1e-9)
        assert alone == pytest.approx(slow(score, y, z, coupling, weight[k]), abs=1e-7)


def test_a_head_start_is_lean_and_a_harder_group_is_floor():
    even = np.array([[1.0, -1], [-1, 1]])
    rng = np.random.default_rng(0)
    y, z = rng.integers(2, size=(2, 40_000))

    def of(signal, start):
        margin = (2 * y - 1) * np.array(signal)[z] + rng.normal(size=len(y)) + start * (z - 0.5)
        drop, floor = lean.drop_and_floor(lean.centred(np.stack([-margin, margin], axis=1)), y, z, lean.along(even))
        return drop - floor, floor

    ahead, _ = of((0.75, 0.75), 1.0)
    both, _ = of((1.25, 0.4), 1.0)
    none, none_floor = of((1.25, 0.4), 0.0)
    assert ahead == pytest.approx(0.167, abs=0.01)
    assert both > 0.1
    assert none == pytest.approx(0, abs=0.005)
    assert of((0.75, 0.75), -1.0)[0] == pytest.approx(-ahead, abs=0.01)
    rare = rng.random(len(y)) < np.where((y == 1) & (z == 0), 0.1, 1)  # a floor needs unequal margins
    margin = (2 * y - 1) * np.array((1.25, 0.4))[z] + rng.normal(size=len(y))
    drop, floor = lean.drop_and_floor(
        lean.centred(np.stack([-margin, margin], axis=1))[rare], y[rare], z[rare], lean.along(even)
    )
    assert abs(floor) > 0.02 > abs(none_floor)
    assert drop - floor == pytest.approx(0, abs=0.01)


def test_the_direction_is_scaled_and_a_direction_that_says_nothing_is_refused():
    coupling = lean.along([[3.0, 1], [1, 1]], 3.0)
    assert np.exp(coupling[0, 0] + coupling[1, 1] - coupling[0, 1] - coupling[1, 0]) == pytest.approx(9)
    assert lean.along([[5, 4], [6, 7]]) == pytest.approx(lean.along([[1, 0], [0, 1]])), "rows and columns say nothing"
    with pytest.raises(BadInput, match="beyond its rows and columns"):
        lean.along([[1, 2], [3, 4]])
    with pytest.raises(BadInput, match="strength is 1"):
        lean.along([[1, 0], [0, 1]], 1.0)


def test_an_empty_cell_has_no_lean_and_says_so_for_its_resample_alone():
    score, y, z = drawn(2, 2)
    weight = np.ones((2, len(y)))
    weight[0, (y == 1) & (z == 1)] = 0
    got = lean.drop_and_floor(score, y, z, lean.along(np.eye(2)), weight=weight)
    assert np.isnan(got[:, 0]).all()
    assert np.isfinite(got[:, 1]).all()


@pytest.mark.parametrize(("classes", "groups"), [(2, 2), (2, 3), (3, 2)])
def test_auprc_at_many_tables_and_resamples_is_that_of_each(classes, groups):
    score, y, z = drawn(classes, groups)
    rng = np.random.default_rng(1)
    tables = [rng.dirichlet(np.ones(classes * groups)).reshape(classes, groups) for _ in range(3)]
    weight = rng.integers(0, 3, (5, len(y))).astype(float)
    weight[1, (y == 0) & (z == 0)] = 0  # a cell is not drawn
    weight[2, y == 1] = 0  # a class is not drawn
    weight[3] = (y == 1) * weight[3]  # it alone is drawn
    with np.errstate(all="raise"):
        found = lean.auprcs_at(score, y, z, tables, weight=weight)
    for t, table in enumerate(tables):
        for b in range(5):
            one = shift.auprc_at(lean.margins(score), y, z, table, weight=weight[b])
            assert found[t, b] == pytest.approx(one, abs=1e-12, nan_ok=True), (t, b)
    for b in range(5):
        one = shift.auprc(lean.margins(score), y, weight=weight[b])
        assert found[-1, b] == pytest.approx(one, abs=1e-12, nan_ok=True), b
    assert np.isnan(found[:, 3]).all()
    assert np.isfinite(found[:, [0, 1, 4]]).all()
