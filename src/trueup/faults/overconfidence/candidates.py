"""Every way of scoring confidence that stands for choice: the published heads, ours, and the baselines.

A family turns evidence into scores. `crossed` are out-of-fold scores on the held-out examples, one column per variant
(a grid's runs, a ridge's strengths), so that a family is judged on examples it did not learn from; `final` learns the
chosen variant from all of them. Families whose score is a function of one linear head's logits can be saved as an
adapter; the others are `comparison` only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from trueup.faults.overconfidence import maths
from trueup.measure.calibration import fit_temperature
from trueup.measure.selective import error_auc
from trueup.run.heads import HeadRun, Loss, train_heads
from trueup.subject.subject import Head

Array = NDArray[np.float64]

ADUE_GRID = tuple(
    HeadRun(lr, epochs, alpha, beta)
    for lr, epochs, alpha, beta in product((1e-3, 1e-4, 1e-5), (5, 10, 20), (0.0, 0.1, 0.3, 1.0), (0.01, 0.1, 0.5, 1.0))
)
"""The 144 runs of AdUE v1 (read in the authors' code)."""

ALIEN_GRID = tuple(
    HeadRun(lr, 20, alpha, beta)
    for lr, alpha, beta in product((4e-4, 1e-4, 1e-5), (0.01, 0.1, 1.0), (0.01, 0.1, 1.0))
)  # fmt: skip
"""The 27 runs of ALIEN (v2)."""

RIDGES = tuple(float(r) for r in np.logspace(-4, 1, 11))


@dataclass(frozen=True, eq=False)
class Part:
    """n examples as the classifier saw them: features (n, d), logits (n, C), label (n,)."""

    x: Array
    z: Array
    label: NDArray[np.int64]

    @property
    def predicted(self) -> NDArray[np.int64]:
        return self.z.argmax(axis=1)

    @property
    def error(self) -> NDArray[np.bool_]:
        return self.predicted != self.label

    def take(self, rows: NDArray[np.int64]) -> Part:
        return Part(self.x[rows], self.z[rows], self.label[rows])


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a repair may learn from.

    Attributes:
        train: what the adapter was tuned on (None when the corpus holds none of it). held: examples it never saw.
        head: the classifier's own. biased: whether the family's head has a bias. fold: (n_held,) cross-fitting folds.
        committee: mean class probabilities (n_held, C) of an ensemble of adapters on `held`, if one was trained.
    """

    train: Part | None
    held: Part
    head: Head
    biased: bool
    fold: NDArray[np.int64]
    seed: int
    committee: Array | None = None

    @property
    def classes(self) -> int:
        return len(self.head.weight)


@dataclass(frozen=True, eq=False)
class Learnt:
    """A finished score: what to add to the head (rows below the classes'), and the value that reads the logits."""

    extra: Head | None
    score: maths.Score

    def __call__(self, part: Part) -> Array:
        return self.score(self.logits(part))

    def logits(self, part: Part) -> Array:
        """(n, C + rows): the class logits and the extra rows."""
        if self.extra is None:
            return part.z
        w, b = self.extra.weight.double().numpy(), self.extra.bias.double().numpy()
        return np.concatenate([part.z, part.x @ w.T + b], axis=1)


@dataclass(frozen=True)
class Family:
    """One method. `learn(evidence, rows)` gives its variants learnt from the held-out examples `rows`.

    Attributes:
        key, title, source: name for tables, name for readers, paper or "ours".
        uses_held: False when nothing is learnt from held-out examples (only a variant is chosen on them).
        comparison: a function instead of `learn`, for scores that no linear head can carry:
            (evidence, rows, part) -> (n, variants).
        needs: evidence that must be there: ``train``, ``committee`` or nothing.
    """

    key: str
    title: str
    source: str
    learn: Callable[[Evidence, NDArray[np.int64]], Sequence[Learnt]] | None = None
    uses_held: bool = False
    comparison: Callable[[Evidence, NDArray[np.int64], Part], Array] | None = None
    needs: tuple[str, ...] = ()
    notes: str = field(default="", compare=False)

    @property
    def saveable(self) -> bool:
        return self.learn is not None

    def possible(self, evidence: Evidence) -> bool:
        """False when what it needs is not there."""
        return all(getattr(evidence, n) is not None for n in self.needs)

    def scores(self, evidence: Evidence, rows: NDArray[np.int64], part: Part) -> Array:
        """(n, variants) scores of `part`, learnt from the held-out `rows`. Higher is surer."""
        if self.comparison is not None:
            return self.comparison(evidence, rows, part)
        assert self.learn is not None
        return np.stack([learnt(part) for learnt in self.learn(evidence, rows)], axis=1)

    def crossed(self, evidence: Evidence) -> Array:
        """(n_held, variants): each held-out example scored by what was learnt without its fold."""
        every = np.arange(len(evidence.held.label))
        if not self.uses_held:
            return self.scores(evidence, every, evidence.held)
        result: Array | None = None
        for f in np.unique(evidence.fold):
            out = np.flatnonzero(evidence.fold == f)
            got = self.scores(evidence, np.flatnonzero(evidence.fold != f), evidence.held.take(out))
            result = np.empty((len(every), got.shape[1])) if result is None else result
            result[out] = got
        assert result is not None
        return result


def cross_select(scores: Array, error: NDArray[np.bool_], fold: NDArray[np.int64]) -> tuple[Array, int]:
    """Honest scores of a family with variants: in each fold, those of the variant that is best on the other folds.

    Returns the (n,) scores and the variant that is best on all. Picking the best of 144 runs on the very examples it is
    judged on would flatter large grids. Each fold's scores become ranks first: variants differ in scale.
    """
    aucs = np.nan_to_num([error_auc(s, error) for s in scores.T], nan=0.5)
    if scores.shape[1] == 1:
        return scores[:, 0], 0
    honest = np.empty(len(scores))
    for f in np.unique(fold):
        out = fold == f
        inner = [error_auc(s, error[~out]) for s in scores[~out].T]
        best = int(np.argmax(np.nan_to_num(inner, nan=0.5)))
        reference = np.sort(scores[:, best])
        low, high = (np.searchsorted(reference, scores[out, best], side=s) for s in ("left", "right"))
        honest[out] = (low + high) / 2 / len(scores)
    return honest, int(np.argmax(aucs))


# ------------------------------------------------------------------------------------------------------- the families


def _plain(make: Callable[[int], Sequence[maths.Score]]) -> Callable[[Evidence, NDArray[np.int64]], Sequence[Learnt]]:
    return lambda evidence, rows: [Learnt(None, s) for s in make(evidence.classes)]


def _temperature(evidence: Evidence, rows: NDArray[np.int64]) -> Sequence[Learnt]:
    part, c = evidence.held.take(rows), evidence.classes
    t = fit_temperature(part.z, part.label)
    return [Learnt(Head(evidence.head.weight / t, evidence.head.bias / t), maths.MaxSoftmax(c, start=c))]


def _trained(
    uncertainty: Callable[[Tensor], Tensor],
    anchor: Callable[[Tensor], Tensor],
    grid: Sequence[HeadRun],
    score: Callable[[int], maths.Score],
    *,
    held: bool,
) -> Callable[[Evidence, NDArray[np.int64]], Sequence[Learnt]]:
    def learn(evidence: Evidence, rows: NDArray[np.int64]) -> Sequence[Learnt]:
        part = evidence.held.take(rows) if held else evidence.train
        assert part is not None
        z = torch.as_tensor(part.z, dtype=torch.float32)
        objective: Loss = maths.Objective(
            uncertainty, torch.as_tensor(part.error, dtype=torch.float32), anchor(z)
        )  # fmt: skip
        heads = train_heads(part.x, evidence.head, objective, grid, biased=evidence.biased, seed=evidence.seed)
        return [Learnt(h, score(evidence.classes)) for h in heads]

    return learn


def _probe(evidence: Evidence, rows: NDArray[np.int64]) -> Sequence[Learnt]:
    part = evidence.held.take(rows)
    return [
        # A constant does not rank; families whose head has no bias go without it.
        Learnt(_row(f.weight, f.offsets[0] if evidence.biased else 0.0), maths.Column(evidence.classes))
        for f in _logistic(part, response=False)
    ]


def _shrunk(evidence: Evidence, rows: NDArray[np.int64]) -> Sequence[Learnt]:
    c = evidence.classes
    return [
        Learnt(_row(f.weight, 0.0), maths.ShrunkProbe(c, f.slope, tuple(map(float, f.offsets))))
        for f in _logistic(evidence.held.take(rows), response=True)
    ]


def _row(weight: Array, bias: float) -> Head:
    return Head(torch.as_tensor(weight[None], dtype=torch.float32), torch.tensor([bias], dtype=torch.float32))


@dataclass(frozen=True, eq=False)
class _Fit:
    weight: Array
    offsets: Array
    slope: float


def _logistic(part: Part, *, response: bool) -> Iterator[_Fit]:
    """Ridge logistic regression of being right, for each of `RIDGES`: on standardised features alone, or (`response`)
    also on one indicator per predicted class and the softmax response's log-odds.

    The intercept and the slope of the log-odds are free of ridge, so a strong ridge leaves the response's own ranking.
    """
    x, right = part.x, (~part.error).astype(np.float64)
    n, d = x.shape
    c = part.z.shape[1] if response else 0
    mean, unit = x.mean(axis=0), (x.std() + 1e-12) * np.sqrt(d)
    chosen = np.eye(c)[part.predicted] if response else np.empty((n, 0))
    s = np.concatenate([(x - mean) / unit, chosen], axis=1)
    o = maths.response_log_odds(part.z) if response else np.zeros(n)
    start = np.zeros(d + c + 2)
    for ridge in sorted(RIDGES, reverse=True):

        def loss(v: Array, ridge: float = ridge) -> tuple[float, Array]:
            w, b, a = v[:-2], v[-2], v[-1]
            t = s @ w + b + a * o
            r = (expit(t) - right) / n
            value = np.mean(np.logaddexp(0, t) - right * t) + ridge * (w @ w) / 2
            return float(value), np.concatenate([s.T @ r + ridge * w, [r.sum(), r @ o]])

        start = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 300}).x
        weight = start[:d] / unit
        offsets = start[d : d + c] if response else np.zeros(1)
        yield _Fit(weight, offsets + start[-2] - weight @ mean, float(max(start[-1], 0.0)))


def _distilled(evidence: Evidence, rows: NDArray[np.int64]) -> Sequence[Learnt]:
    """A second head trained to give the committee's mean probabilities; scored by what it gives the predicted class."""
    assert evidence.committee is not None
    part, target = evidence.held.take(rows), torch.as_tensor(evidence.committee[rows], dtype=torch.float32)

    def loss(z: Tensor, at: Tensor, alpha: Tensor) -> Tensor:
        return -(target[at] * torch.log_softmax(z, dim=-1)).sum(-1).mean(-1)

    grid = [HeadRun(lr, 20, 0.0, beta) for lr, beta in product((1e-2, 1e-3), (0.001, 0.01, 0.1))]
    heads = train_heads(part.x, evidence.head, loss, grid, biased=evidence.biased, seed=evidence.seed)
    c = evidence.classes
    return [Learnt(h, maths.ProbabilityOfPredicted(c, start=c)) for h in heads]


def _density(
    fit: Callable[[Part, Part, int], Array],
) -> Callable[[Evidence, NDArray[np.int64], Part], Array]:
    def score(evidence: Evidence, rows: NDArray[np.int64], part: Part) -> Array:
        assert evidence.train is not None
        return fit(evidence.train, part, evidence.seed)[:, None]

    return score


def _hybrid(evidence: Evidence, rows: NDArray[np.int64], part: Part) -> Array:
    assert evidence.train is not None
    held, train = evidence.held, evidence.train
    sr = maths.MaxSoftmax(evidence.classes)
    near = maths.mahalanobis(train.x, train.label, held.x)
    here = maths.mahalanobis(train.x, train.label, part.x)
    weights = (0.25, 0.5, 0.75)
    return np.stack([maths.hybrid(sr(part.z), here, sr(held.z), near, w) for w in weights], axis=1)


def _laplace(evidence: Evidence, rows: NDArray[np.int64], part: Part) -> Array:
    assert evidence.train is not None
    priors = np.logspace(-2, 3, 6)
    return np.stack([maths.laplace(evidence.train.x, evidence.train.z, part.x, part.z, p) for p in priors], axis=1)


ADUE, ALIEN = "arXiv 2505.15443 v1", "arXiv 2505.15443 v2"
_plain_adue = lambda z: maths.adue_uncertainty(z, rescaled=False)  # noqa: E731
_scaled_adue = lambda z: maths.adue_uncertainty(z, rescaled=True)  # noqa: E731
_own_adue = lambda c: maths.SmoothMax(c, start=c)  # noqa: E731
_own_alien = lambda c: maths.NegativeEntropy(c, start=c)  # noqa: E731

RESPONSE = Family("response", "softmax response", "baseline", _plain(lambda c: [maths.MaxSoftmax(c)]))

FAMILIES: tuple[Family, ...] = (
    RESPONSE,
    Family("entropy", "entropy", "baseline", _plain(lambda c: [maths.NegativeEntropy(c)])),
    Family("margin", "margin", "baseline", _plain(lambda c: [maths.Margin(c)])),
    Family("energy", "energy", "arXiv 2010.03759", _plain(lambda c: [maths.Energy(c)])),
    Family("max-logit", "maximum logit", "baseline", _plain(lambda c: [maths.MaxLogit(c)])),
    Family(
        "p-norm", "MaxLogit-pNorm", "arXiv 2305.15508",
        _plain(lambda c: [maths.MaxSoftmax(c), *(maths.PNorm(c, p) for p in range(10))]),
    ),
    Family("temperature", "temperature scaling", "arXiv 1706.04599", _temperature, uses_held=True),
    Family(
        "adue", "AdUE, as published", ADUE,
        _trained(_plain_adue, maths.response_uncertainty, ADUE_GRID, _own_adue, held=False), needs=("train",),
    ),
    Family(
        "alien", "ALIEN, as published", ALIEN,
        _trained(maths.entropy_uncertainty, maths.entropy_uncertainty, ALIEN_GRID, _own_alien, held=False), needs=("train",),
    ),
    Family(
        "adue-held", "AdUE, corrected", "ours",
        _trained(_scaled_adue, _scaled_adue, ADUE_GRID, _own_adue, held=True), uses_held=True,
    ),
    Family(
        "alien-held", "ALIEN, corrected", "ours",
        _trained(maths.entropy_uncertainty, maths.entropy_uncertainty, ALIEN_GRID, _own_alien, held=True), uses_held=True,
    ),
    Family("probe", "logistic probe", "baseline", _probe, uses_held=True),
    Family("shrunk", "shrunk probe", "ours", _shrunk, uses_held=True),
    Family("distilled", "distilled ensemble", "ours", _distilled, uses_held=True, needs=("committee",)),
    Family(
        "mahalanobis", "Mahalanobis", "arXiv 1807.03888", needs=("train",),
        comparison=_density(lambda t, p, s: maths.mahalanobis(t.x, t.label, p.x)),
    ),
    Family(
        "relative", "relative Mahalanobis", "arXiv 2106.09022", needs=("train",),
        comparison=_density(lambda t, p, s: maths.relative_mahalanobis(t.x, t.label, p.x)),
    ),
    Family(
        "rde", "robust density", "arXiv 2203.01677", needs=("train",),
        comparison=_density(lambda t, p, s: maths.robust_density(t.x, t.label, p.x, p.predicted, seed=s)),
    ),
    Family("huq", "HUQ", "ACL 2023", comparison=_hybrid, needs=("train",)),
    Family("laplace", "last-layer Laplace", "arXiv 2106.14806", comparison=_laplace, needs=("train",)),
)  # fmt: skip
"""In the order of tables. The first is the fall-back."""
