"""The distance is that of a Gaussian whose covariance is written out, p-values are uniform, and the drift test is scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, mannwhitneyu
from sklearn.decomposition import PCA

from trueup.errors import BadInput
from trueup.measure.departure import Gaussian, drifted, gaussian, p_values


def draw(rng: np.random.Generator, n: int, d: int = 12) -> np.ndarray:
    return rng.normal(size=(n, d)) * np.linspace(3, 0.5, d) + 5


def test_the_distance_is_mahalanobis_under_probabilistic_pca():
    rng = np.random.default_rng(0)
    x, other = draw(rng, 60), draw(rng, 9)
    got = gaussian(x)
    pca = PCA(n_components=6).fit(x)  # whose covariance is that of probabilistic PCA
    off = other - pca.mean_
    want = np.einsum("nd,de,ne->n", off, pca.get_precision(), off)
    assert len(got.axes) == 6
    assert np.allclose(got.distance(other), want, rtol=1e-9)
    assert np.allclose(Gaussian.of(got.arrays()).distance(other), want)


def test_a_direction_that_was_never_seen_is_far():
    rng = np.random.default_rng(1)
    x = draw(rng, 100) * np.r_[np.ones(11), 0.0]
    got, seen = gaussian(x), draw(rng, 5) * np.r_[np.ones(11), 0.0]
    away = seen + np.r_[np.zeros(11), 3.0]
    assert (got.distance(away) > got.distance(seen) + 5).all()


def test_p_values_hold_their_level_for_texts_of_the_same_kind():
    rng, below, drawn = np.random.default_rng(2), 0, 0
    for _ in range(300):
        got = gaussian(draw(rng, 40))
        p = p_values(got.distance(draw(rng, 1)), np.sort(got.distance(draw(rng, 99))))
        below, drawn = below + int((p <= 0.1).sum()), drawn + len(p)
    assert binomtest(below, drawn, 0.1).pvalue > 0.001
    far = p_values(np.array([1e9]), np.sort(rng.random(99)))
    assert far == pytest.approx(0.01), "the smallest there is with 99"


def test_drift_is_the_rank_test_of_scipy():
    rng = np.random.default_rng(3)
    for shift in (0.0, 0.5):
        seen, now = np.sort(np.round(rng.normal(size=80), 1)), np.round(rng.normal(size=30) + shift, 1)
        want = mannwhitneyu(now, seen, alternative="greater", method="asymptotic").pvalue
        assert drifted(now, seen) == pytest.approx(want, rel=1e-9)
    assert drifted(np.ones(5), np.ones(9)) == 1.0


def test_drift_alarms_as_rarely_as_it_says():
    rng = np.random.default_rng(4)
    p = np.array([drifted(rng.random(100), np.sort(rng.random(150))) for _ in range(4000)])
    for level in (0.05, 0.01):
        assert binomtest(int((p <= level).sum()), len(p), level).pvalue > 0.001
    away = [drifted(rng.random(100) * 0.9 + 0.4, np.sort(rng.random(150))) for _ in range(50)]
    assert np.mean(np.array(away) <= 0.001) > 0.9, "the control: what has drifted is seen"


@pytest.mark.parametrize("x", [np.zeros((5, 3)), np.ones((40, 3))])
def test_what_says_nothing_is_refused(x):
    with pytest.raises(BadInput, match=r"too few|are the same"):
        gaussian(x)
