"""Confidence from the position of a text among the training features: Mahalanobis and robust densities, the mixture of ranks of
HUQ, and a last-layer Laplace posterior. Higher is surer everywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trueup.measure.calibration import softmax

Array = NDArray[np.float64]


def mahalanobis(train: Array, label: NDArray[np.int64], x: Array) -> Array:
    """(n,) confidence -min_c (x - mu_c)' S^-1 (x - mu_c), with one covariance S for all classes and a ridge of 1e-3 of its mean
    variance (Lee et al., arXiv 1807.03888). Higher is surer."""
    means, precision = _gaussians(train, label)
    d = np.stack([_squared(x - m, precision) for m in means], axis=1)
    return -d.min(axis=1)


def relative_mahalanobis(train: Array, label: NDArray[np.int64], x: Array) -> Array:
    """(n,) the Mahalanobis confidence plus the squared distance to one Gaussian of all classes (Ren et al., arXiv 2106.09022).
    Higher is surer."""
    _, whole = _gaussians(train, np.zeros(len(train), dtype=np.int64))
    return mahalanobis(train, label, x) + _squared(x - train.mean(axis=0), whole)


def robust_density(
    train: Array, label: NDArray[np.int64], x: Array, predicted: NDArray[np.int64], *, seed: int, most: int = 600
) -> Array:
    """(n, 2) RDE (Yoo et al., arXiv 2203.01677): kernel PCA, then a robust (MCD) Gaussian for each class.

    The first column is the paper's log density of the predicted class, -(d + log det S) / 2 with d the squared Mahalanobis
    distance. The second is -d alone, as in the code of the authors of HUQ. Higher is surer.
    Departures: at most `most` training examples enter the kernel. The number of dimensions is a quarter of the smallest class,
    from 2 to 32.
    """
    import warnings

    from sklearn.covariance import MinCovDet
    from sklearn.decomposition import KernelPCA

    rng = np.random.default_rng(seed)
    _vary(train, float(train.var(axis=0).sum()))
    keep = rng.permutation(len(train))[:most]
    smallest = min(int((label[keep] == c).sum()) for c in np.unique(label))
    k = min(max(smallest // 4, 2), 32)
    pca = KernelPCA(n_components=k, kernel="rbf", gamma=1.0 / train.shape[1] / float(train.var()), random_state=seed)
    reduced = pca.fit_transform(train[keep])
    reduced_x, score = pca.transform(x), np.full((len(x), 2), -np.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for c in np.unique(label):
            of_class, class_points = predicted == c, reduced[label[keep] == c]
            # Predictions of a class that is too rare for a covariance get the lowest score.
            if of_class.any() and len(class_points) > reduced.shape[1]:
                fit = MinCovDet(random_state=seed).fit(class_points)
                distance = fit.mahalanobis(reduced_x[of_class])
                score[of_class] = np.stack([-(distance + np.linalg.slogdet(fit.covariance_)[1]) / 2, -distance], axis=1)
    scored = np.isfinite(score[:, 0])
    return np.where(scored[:, None], score, score[scored].min(axis=0, initial=0.0))


def hybrid(
    response: Array, density: Array, reference_response: Array, reference_density: Array, weight: float = 0.5,
    inside: float = 0.0, ambiguous: float = 1.0,
) -> Array:  # fmt: skip
    """HUQ (Vazhentsev et al., ACL 2023): a mixture of ranks by aleatoric (response) and epistemic (density) uncertainty.

    With r_a and r_e the ranks, as shares of a reference set, the rank of an example is (1 - weight) r_e + weight r_a. Where r_e
    is at most `inside`, it is instead the rank by aleatoric uncertainty among only those reference examples. Where in addition
    r_a is above `ambiguous`, it is r_a. Ranks are taken in a reference set, so that the score of an example does not depend
    on the other examples that are scored.

    Args:
        response, density: (n,) confidences, higher is surer. reference_response, reference_density: (m,) those of the reference.

    Returns: (n,) 1 less that rank. Higher is surer.
    """

    def rank(confidence: Array, among: Array) -> Array:
        return (len(among) - np.searchsorted(np.sort(among), confidence)) / len(reference_response)

    a, e = rank(response, reference_response), rank(density, reference_density)
    near = rank(reference_density, reference_density) <= inside
    total = (1 - weight) * e + weight * a
    # A rank of 0 is surer than the whole reference. It does not count as inside where no reference example is inside.
    inner = (e <= inside) & near.any()
    total = np.where(inner, rank(response, reference_response[near]), total)
    return 1 - np.where(inner & (a > ambiguous), a, total)


def unit(x: Array) -> Array:
    """(n, d) rows scaled to length 1, as the authors of HUQ normalise features. A row of zeros is unchanged."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1.0)


def laplace(x: Array, z: Array, at: Array, z_at: Array, prior: float) -> Array:
    """Last-layer Laplace with a Kronecker-factored GGN (Ritter et al. 2018; Daxberger et al., arXiv 2106.14806).

    Args: features x (n, d) and logits z (n, C) of the training examples; features at (m, d) and logits z_at (m, C) to score;
    prior precision.
    Returns: (m,) the probit-averaged softmax response max_c softmax(z / sqrt(1 + pi/8 diag Var z)). Higher is surer.
    The posterior precision of the weights is A (x) B + prior I with A = X'X, B = mean_i(diag p_i - p_i p_i'), as in laplace-torch.
    """
    p = softmax(z)
    b = np.einsum("nc,ce->ce", p, np.eye(z.shape[1])) / len(p) - p.T @ p / len(p)
    va, ea = np.linalg.eigh(x.T @ x)
    vb, eb = np.linalg.eigh(b)
    va, vb = np.clip(va, 0, None), np.clip(vb, 0, None)
    h = (at @ ea) ** 2
    variance = np.einsum("md,dk,ck->mc", h, 1.0 / (np.outer(va, vb) + prior), eb**2, optimize=True)
    return softmax(z_at / np.sqrt(1 + np.pi / 8 * variance)).max(axis=1)


def _gaussians(x: Array, label: NDArray[np.int64]) -> tuple[list[Array], Array]:
    means = [x[label == c].mean(axis=0) for c in np.unique(label)]
    centred = np.concatenate([x[label == c] - m for c, m in zip(np.unique(label), means, strict=True)])
    s = centred.T @ centred / len(x)
    _vary(x, np.trace(s))
    return means, np.linalg.inv(s + 1e-3 * np.trace(s) / len(s) * np.eye(len(s)))


def _vary(x: Array, variance: float) -> None:
    """Raises ValueError if the variance of features (n, d), summed over them, is no more than rounding."""
    if variance <= 1e-24 * np.square(x).sum(axis=1).mean():
        raise ValueError("the features are the same for all training examples of a class")


def _squared(d: Array, precision: Array) -> Array:
    return np.einsum("nd,de,ne->n", d, precision, d, optimize=True)
