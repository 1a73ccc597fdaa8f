"""The families of confidence scores among which a repair chooses: the published heads, ours, and the baselines.

A family turns evidence into scores. `crossed` gives out-of-fold scores on the held-out examples, one column per variant (the
runs of a grid, the strengths of a ridge), so that a family is judged on examples that it did not learn from. `learnt` learns the
chosen variant from all of them. A family whose score is a function of the logits of one linear head can be saved as an adapter. The
others serve for `comparison` only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from trueup.faults.overconfidence import densities, objectives, platt
from trueup.faults.overconfidence.forecast import Seen, probes, ridge_paths
from trueup.measure import confidence_scores
from trueup.measure.calibration import fit_temperature
from trueup.measure.selective import error_auc, error_aucs
from trueup.run.heads import HeadRun, Loss, train_heads
from trueup.run.predict import session
from trueup.subject.subject import Head

Array = NDArray[np.float64]

ADUE_GRID = tuple(
    HeadRun(lr, epochs, alpha, beta)
    for lr, epochs, alpha, beta in product((1e-3, 1e-4, 1e-5), (5, 10, 20), (0.0, 0.1, 0.3, 1.0), (0.01, 0.1, 0.5, 1.0))
)
"""The 144 runs of AdUE v1 (from the authors' code)."""

EPOCHS, PATIENCE = 50, 5
"""Settings of the authors' later training loop: the most epochs, and the epochs without a better validation AUC that end a run."""

ADUE_EPOCHS_GRID = tuple(
    HeadRun(lr, EPOCHS, alpha, beta)
    for lr, alpha, beta in product((1e-3, 1e-4, 1e-5), (0.0, 0.1, 0.3, 1.0), (0.01, 0.1, 0.5, 1.0))
)
"""The grid of AdUE v1 without its numbers of epochs, which validation chooses instead."""

ALIEN_GRID = tuple(
    HeadRun(lr, 20, alpha, beta)
    for lr, alpha, beta in product((4e-4, 1e-4, 1e-5), (0.01, 0.1, 1.0), (0.01, 0.1, 1.0))
)  # fmt: skip
"""The 27 runs of ALIEN (v2)."""


@dataclass(frozen=True, eq=False)
class Part:
    """n examples with the outputs of the classifier: features `x` (n, d), logits `z` (n, C), label (n,)."""

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
    """The data from which a repair may learn.

    Attributes:
        train: the examples on which the adapter was tuned (None if the corpus has none). held: held-out examples.
        head: the head of the classifier. biased: whether a learnt head may have a bias. fold: (n_held,) cross-fitting folds.
        committee: mean class probabilities (n_held, C) of an ensemble of adapters on `held`, if one was trained.
        dropped: mean class probabilities (n_held, C) of forward passes with dropout, if there were any.
    """

    train: Part | None
    held: Part
    head: Head
    biased: bool
    fold: NDArray[np.int64]
    seed: int
    committee: Array | None = None
    dropped: Array | None = None

    @property
    def classes(self) -> int:
        return len(self.head.weight)


@dataclass(frozen=True, eq=False)
class Learnt:
    """A learnt score: the rows to add to the head below those of the classes, and the function that reads the logits."""

    extra: Head | None
    score: confidence_scores.Score

    def __call__(self, part: Part) -> Array:
        return self.score(self.logits(part))

    def logits(self, part: Part) -> Array:
        """(n, C + rows): the class logits and the outputs of the extra rows."""
        if self.extra is None:
            return part.z
        w, b = self.extra.weight.double().numpy(), self.extra.bias.double().numpy()
        return np.concatenate([part.z, part.x @ w.T + b], axis=1)


@dataclass(frozen=True)
class Family:
    """One method of scoring confidence.

    Attributes:
        key, title, source: name for tables, name for readers, paper or "ours".
        learn: (evidence, rows) -> the variants, learnt from the held-out examples `rows`.
        uses_held: False if nothing is learnt from held-out examples (only a variant is chosen on them).
        together: used instead of `learn` if one training serves several sets of held-out examples:
            (evidence, sets) -> the variants for each set.
        comparison: used instead of `learn` for scores that no linear head can compute:
            (evidence, rows, part) -> (n, variants).
        needs: the attributes of the evidence that must not be None: ``train``, ``committee``, ``dropped`` or nothing.
        notes: the differences from the source, for the card.
    """

    key: str
    title: str
    source: str
    learn: Callable[[Evidence, NDArray[np.int64]], Sequence[Learnt]] | None = None
    uses_held: bool = False
    together: Callable[[Evidence, Sequence[NDArray[np.int64]]], Sequence[Sequence[Learnt]]] | None = None
    comparison: Callable[[Evidence, NDArray[np.int64], Part], Array] | None = None
    needs: tuple[str, ...] = ()
    notes: str = ""

    @property
    def saveable(self) -> bool:
        return self.comparison is None

    def possible(self, evidence: Evidence) -> bool:
        """Whether the evidence has everything that the family needs."""
        return all(getattr(evidence, n) is not None for n in self.needs)

    def learnt(self, evidence: Evidence, sets: Sequence[NDArray[np.int64]]) -> Sequence[Sequence[Learnt]]:
        """The variants that are learnt from each set of held-out examples."""
        if self.together is not None:
            return self.together(evidence, sets)
        assert self.learn is not None
        return [self.learn(evidence, rows) for rows in sets]

    def crossed(self, evidence: Evidence) -> Array:
        """(n_held, variants): the score of each held-out example by a variant learnt without its fold. Higher is surer.

        Raises:
            ValueError: a score is not a finite number.
        """
        every, fold = np.arange(len(evidence.held.label)), evidence.fold
        outs = [np.flatnonzero(fold == f) for f in np.unique(fold)] if self.uses_held else [every]
        ins = [np.setdiff1d(every, out) for out in outs] if self.uses_held else [every]
        if self.comparison is not None:
            parts = [
                self.comparison(evidence, rows, evidence.held.take(out)) for rows, out in zip(ins, outs, strict=True)
            ]
        else:
            parts = [
                np.stack([variant(evidence.held.take(out)) for variant in variants], axis=1)
                for variants, out in zip(self.learnt(evidence, ins), outs, strict=True)
            ]
        result = np.empty((len(every), parts[0].shape[1]))
        for out, part in zip(outs, parts, strict=True):
            result[out] = part
        if not np.isfinite(result).all():
            raise ValueError(f"{(~np.isfinite(result)).any(axis=1).sum()} of its scores are no finite numbers")
        return result


def crossed_losses(scores: Array, right: NDArray[np.bool_], fold: NDArray[np.int64]) -> Array:
    """(n, variants) Brier losses of scores (n, variants), each calibrated by Platt scaling on the other folds.

    Scores of different folds come from different heads, on different scales. If they were ranked together over folds, this alone
    would cost a head that learnt from held-out examples up to .03 of error ROC-AUC. A loss is computed for each example by itself.
    """
    loss = np.empty(scores.shape)
    for f in np.unique(fold):
        out = fold == f
        slope, intercept = platt.platts(scores[~out], right[~out])
        loss[out] = np.square(expit(slope * scores[out] + intercept) - right[out, None])
    return loss


def cross_pick(loss: Array, fold: NDArray[np.int64]) -> tuple[Array, int]:
    """The best column of `loss` (n, variants), and an honest loss (n,) of choosing it.

    In each fold the loss is that of the column that is best on the other folds, so that no example judges its own choice.

    Returns: the honest losses (n,), and the column that is best on all rows.
    """
    honest = np.empty(len(loss))
    for f in np.unique(fold):
        out = fold == f
        honest[out] = loss[out, int(loss[~out].mean(axis=0).argmin())]
    return honest, int(loss.mean(axis=0).argmin())


def auc_within(score: Array, error: NDArray[np.bool_], fold: NDArray[np.int64]) -> float:
    """Error ROC-AUC of scores (n,) that are compared only within folds. Each fold has the weight of its pairs of an error and a
    right prediction. Unit: probability. Higher is better; nan without a pair."""
    pairs = np.array([error[fold == f].sum() * (~error[fold == f]).sum() for f in np.unique(fold)])
    aucs = [error_auc(score[fold == f], error[fold == f]) for f in np.unique(fold)]
    return float(np.nansum(pairs * aucs) / pairs.sum()) if pairs.sum() else math.nan


@dataclass(frozen=True, eq=False)
class Choice:
    """The best of all families by point estimate, and the out-of-fold losses of the softmax response and of the choice.

    Attributes:
        key, title: those of the chosen family. learnt: its chosen variant, learnt from all examples.
        slope, intercept: the Platt scaling of its score. crossed: (n,) its out-of-fold scores.
        best: the (n,) out-of-fold scores of the best variant of every family, by key.
        stated, recalibrated, chosen: (n,) Brier losses of the softmax response as it is, of the recalibrated response, and of what
            the other folds choose among all heads and scores that can be saved.
        table: one row for each family: error ROC-AUC within folds, Brier loss, and the share of the response's loss that it saves.
    """

    key: str
    title: str
    learnt: Learnt
    slope: float
    intercept: float
    crossed: Array
    best: dict[str, Array]
    stated: Array
    recalibrated: Array
    chosen: Array
    table: list[dict[str, Any]]


def choose(evidence: Evidence, families: Sequence[Family]) -> Choice:
    """Choose among the saveable `families` except the softmax response, by the Brier loss of out-of-fold scores. Nothing is judged
    here."""
    held, fold = evidence.held, evidence.fold
    right = ~held.error
    stated = np.square(RESPONSE.crossed(evidence)[:, 0] - right)
    recalibrated = stated
    table: list[dict[str, Any]] = []
    scores: dict[str, Array] = {}
    best_scores: dict[str, Array] = {}
    losses: dict[str, Array] = {}
    possible = [f for f in families if f.possible(evidence)]
    for i, family in enumerate(possible):
        session().progress("trying candidates", i, len(possible))
        try:
            crossed = _odds(held)[:, None] if family is RESPONSE else family.crossed(evidence)
        except (ArithmeticError, ValueError) as e:  # a singular matrix or a variance of 0 stops only this family
            session().note(f"The score '{family.title}' could not be computed, and the others go on without it: {e}.")
            continue
        loss = crossed_losses(crossed, right, fold)
        honest, best = cross_pick(loss, fold)
        if family is RESPONSE:
            recalibrated = honest
        elif family.saveable:
            scores[family.key], losses[family.key] = crossed, loss
        best_scores[family.key] = crossed[:, best]
        table.append(
            {
                "key": family.key, "title": family.title, "source": family.source, "saveable": family.saveable, "variant": best,
                "variants": loss.shape[1],
                "auc": auc_within(crossed[:, best], held.error, fold), "brier": float(honest.mean()),
                "saved": float(1 - honest.mean() / stated.mean()),
            }
        )  # fmt: skip
    session().progress("trying candidates", len(possible), len(possible))
    honest, best = cross_pick(np.concatenate(list(losses.values()), axis=1), fold)
    owner = [(key, v) for key, loss in losses.items() for v in range(loss.shape[1])]
    key, variant = owner[best]
    family = next(f for f in possible if f.key == key)
    crossed = scores[key][:, variant]
    slope, intercept = platt.platt(crossed, right)
    learnt = family.learnt(evidence, [np.arange(len(right))])[0][variant]
    return Choice(
        key, family.title, learnt, slope, intercept, crossed, best_scores, stated, recalibrated, honest, table
    )


# ------------------------------------------------------------------------------------------------------- the families


def _plain(
    make: Callable[[int], Sequence[confidence_scores.Score]],
) -> Callable[[Evidence, NDArray[np.int64]], Sequence[Learnt]]:
    return lambda evidence, rows: [Learnt(None, s) for s in make(evidence.classes)]


def _temperature(evidence: Evidence, rows: NDArray[np.int64]) -> Sequence[Learnt]:
    part, c = evidence.held.take(rows), evidence.classes
    t = fit_temperature(part.z, part.label)
    return [Learnt(Head(evidence.head.weight / t, evidence.head.bias / t), confidence_scores.MaxSoftmax(c, start=c))]


def _trained(
    uncertainty: objectives.Uncertainty,
    anchor: Callable[[Tensor], Tensor],
    grid: Sequence[HeadRun],
    score: Callable[[int], confidence_scores.Score],
    *,
    held: bool,
) -> Callable[[Evidence, NDArray[np.int64]], Sequence[Learnt]]:
    def learn(evidence: Evidence, rows: NDArray[np.int64]) -> Sequence[Learnt]:
        part = evidence.held.take(rows) if held else evidence.train
        assert part is not None
        objective = _objective(part, uncertainty, anchor)
        heads = train_heads(part.x, evidence.head, objective, grid, biased=evidence.biased, seed=evidence.seed)
        return [Learnt(h, score(evidence.classes)) for h in heads]

    return learn


def _objective(part: Part, uncertainty: objectives.Uncertainty, anchor: Callable[[Tensor], Tensor]) -> Loss:
    z = torch.as_tensor(part.z, dtype=torch.float32)
    return objectives.Objective(uncertainty, torch.as_tensor(part.error, dtype=torch.float32), anchor(z))


def _best_epochs(evidence: Evidence, sets: Sequence[NDArray[np.int64]]) -> Sequence[Sequence[Learnt]]:
    """AdUE trained by its authors' later loop. It computes the error ROC-AUC on validation examples after each epoch, runs for at
    most `EPOCHS` epochs, ends after `PATIENCE` epochs without a better AUC, and keeps the best epoch. The validation examples are
    each of `sets` in turn, subsets of the held-out examples, so that one training serves all."""
    part, held, c = evidence.train, evidence.held, evidence.classes
    assert part is not None
    x = torch.as_tensor(np.concatenate([held.x, np.ones((len(held.x), 1))], axis=1), dtype=torch.float32)
    shape = (len(sets), len(ADUE_EPOCHS_GRID))
    best, since = np.full(shape, -np.inf), np.zeros(shape, np.int64)
    heads = [[evidence.head] * shape[1] for _ in sets]
    among = _kept(evidence, sets)

    def watch(theta: Tensor) -> bool:
        z = (theta.reshape(-1, x.shape[1]) @ x.T).reshape(len(theta), c, len(x))
        sure = objectives.smooth_max(objectives.softmax(z.mT)).numpy()
        # Without an error, or without a right prediction, all epochs are equally good.
        aucs = np.nan_to_num(error_aucs(sure, held.error, among), nan=0.5).T
        for s, auc in enumerate(aucs):
            better = (auc > best[s]) & (since[s] < PATIENCE)
            since[s] = np.where(better, 0, since[s] + (since[s] < PATIENCE))
            best[s] = np.where(better, auc, best[s])
            for r in np.flatnonzero(better):
                heads[s][r] = Head(theta[r, :, :-1].clone(), theta[r, :, -1].clone())
        return bool((since >= PATIENCE).all())

    objective = _objective(part, objectives.clamped(objectives.ADUE_U), objectives.response_uncertainty)
    train_heads(
        part.x, evidence.head, objective, ADUE_EPOCHS_GRID, biased=evidence.biased, seed=evidence.seed, watch=watch
    )
    return [[Learnt(h, confidence_scores.SmoothMax(c, start=c)) for h in set_heads] for set_heads in heads]


def _kept(evidence: Evidence, sets: Sequence[NDArray[np.int64]]) -> NDArray[np.bool_]:
    """(sets, n_held) whether an example is in a set."""
    return np.stack([np.isin(np.arange(len(evidence.held.label)), rows) for rows in sets])


def _probe(evidence: Evidence, sets: Sequence[NDArray[np.int64]]) -> Sequence[Sequence[Learnt]]:
    held = evidence.held
    return [
        # A constant does not change the ranking, so a head without a bias leaves it out.
        [
            Learnt(_row(w, o[0] if evidence.biased else 0.0), confidence_scores.Column(evidence.classes))
            for w, o, _ in path
        ]
        for path in ridge_paths(held.x, ~held.error, _kept(evidence, sets))
    ]


def _shrunk(evidence: Evidence, sets: Sequence[NDArray[np.int64]]) -> Sequence[Sequence[Learnt]]:
    held, c = evidence.held, evidence.classes
    seen = Seen(held.x, confidence_scores.response_log_odds(held.z), held.predicted, c)
    return [
        [
            Learnt(_row(f.weight, 0.0), confidence_scores.ShrunkProbe(c, f.slope, tuple(map(float, f.offsets))))
            for f in path
        ]
        for path in probes(seen, ~held.error, _kept(evidence, sets))
    ]


def _row(weight: Array, bias: float) -> Head:
    return Head(torch.as_tensor(weight[None], dtype=torch.float32), torch.tensor([bias], dtype=torch.float32))


def _distilled(evidence: Evidence, rows: NDArray[np.int64]) -> Sequence[Learnt]:
    """A second head trained to predict the committee's mean probabilities. The score is its probability of the predicted class."""
    assert evidence.committee is not None
    part, target = evidence.held.take(rows), torch.as_tensor(evidence.committee[rows], dtype=torch.float32)

    def loss(z: Tensor, at: Tensor, alpha: Tensor) -> Tensor:
        return -(target[at] * torch.log_softmax(z, dim=-1)).sum(-1).mean(-1)

    grid = [HeadRun(lr, 20, 0.0, beta) for lr, beta in product((1e-2, 1e-3), (0.001, 0.01, 0.1))]
    heads = train_heads(part.x, evidence.head, loss, grid, biased=evidence.biased, seed=evidence.seed)
    c = evidence.classes
    return [Learnt(h, confidence_scores.ProbabilityOfPredicted(c, start=c)) for h in heads]


def _density(
    fit: Callable[[Part, Part, int], Array],
) -> Callable[[Evidence, NDArray[np.int64], Part], Array]:
    """The comparison by a density, in two sets of variants: with features as they are, and at length 1, as the authors of HUQ use
    them."""

    def score(evidence: Evidence, rows: NDArray[np.int64], part: Part) -> Array:
        assert evidence.train is not None
        n = len(part.label)
        sides = ((evidence.train, part), (_unit(evidence.train), _unit(part)))
        return np.concatenate([fit(t, p, evidence.seed).reshape(n, -1) for t, p in sides], axis=1)

    return score


def _unit(part: Part) -> Part:
    return Part(densities.unit(part.x), part.z, part.label)


def _hybrid(evidence: Evidence, rows: NDArray[np.int64], part: Part) -> Array:
    """HUQ over its authors' grid. As theirs, its density is Mahalanobis' on features at length 1. Ranks are among the held-out
    examples."""
    assert evidence.train is not None
    train, held, scored = (_unit(p) for p in (evidence.train, evidence.held, part))
    sr = confidence_scores.MaxSoftmax(evidence.classes)
    held_density, density = (densities.mahalanobis(train.x, train.label, p.x) for p in (held, scored))
    return np.stack(
        [
            densities.hybrid(sr(part.z), density, sr(held.z), held_density, weight, inside, ambiguous)
            for inside, ambiguous in HUQ_THRESHOLDS
            for weight in HUQ_WEIGHTS
        ],
        axis=1,
    )


HUQ_WEIGHTS = tuple(i / 10 for i in range(11))
HUQ_THRESHOLDS = ((0.0, 1.0), *product((0.05, 0.1, 0.15), (0.95, 1.0)))
"""The grids of HUQ, from its authors' code: the weight of the aleatoric part, and the thresholds (`inside`, `ambiguous`) of
`densities.hybrid`."""


def _opinion(of: str) -> Callable[[Evidence, NDArray[np.int64], Part], Array]:
    """The probability of the predicted class in the mean probabilities `of` (an attribute of `Evidence`). Their rows are those of
    `part`, in the same order."""

    def score(evidence: Evidence, rows: NDArray[np.int64], part: Part) -> Array:
        return getattr(evidence, of)[np.arange(len(part.label)), part.predicted][:, None]

    return score


def _laplace(evidence: Evidence, rows: NDArray[np.int64], part: Part) -> Array:
    assert evidence.train is not None
    priors = np.logspace(-2, 3, 6)
    return np.stack([densities.laplace(evidence.train.x, evidence.train.z, part.x, part.z, p) for p in priors], axis=1)


ADUE, ALIEN = "arXiv 2505.15443v1", "arXiv 2505.15443v2"
_own_adue = lambda c: confidence_scores.SmoothMax(c, start=c)  # noqa: E731
_own_alien = lambda c: confidence_scores.NegativeEntropy(c, start=c)  # noqa: E731
_LENGTHS = "With features as they are, and at length 1; the better on held-out examples is shown."
_HEADS = "Heads are trained in float32 (published: bfloat16), and the last layer alone (published: with the dense layer before it)."

RESPONSE = Family("response", "softmax response", "baseline", _plain(lambda c: [confidence_scores.MaxSoftmax(c)]))


def _odds(part: Part) -> Array:
    """The log-odds of the softmax response: the same ranking without rounding at 1, on a scale that suits Platt scaling."""
    return confidence_scores.response_log_odds(part.z)


PUBLISHED_U = objectives.clamped(objectives.ADUE_U)
FAMILIES: tuple[Family, ...] = (
    RESPONSE,
    Family("entropy", "entropy", "baseline", _plain(lambda c: [confidence_scores.NegativeEntropy(c)])),
    Family("margin", "margin", "baseline", _plain(lambda c: [confidence_scores.Margin(c)])),
    Family("energy", "energy", "arXiv 2010.03759", _plain(lambda c: [confidence_scores.Energy(c)])),
    Family("max-logit", "maximum logit", "baseline", _plain(lambda c: [confidence_scores.MaxLogit(c)])),
    Family(
        "p-norm", "MaxLogit-pNorm", "arXiv 2305.15508",
        _plain(lambda c: [confidence_scores.MaxSoftmax(c), *(confidence_scores.PNorm(c, p) for p in range(10))]),
    ),
    Family("temperature", "temperature scaling", "arXiv 1706.04599", _temperature, uses_held=True),
    Family(
        "adue", "AdUE (v1), as published", ADUE,
        _trained(PUBLISHED_U, objectives.response_uncertainty, ADUE_GRID, _own_adue, held=False), needs=("train",),
        notes=f"U is held within 1e-7 of 0 and 1, as published. {_HEADS}",
    ),
    Family(
        "adue-epochs", "AdUE (v1), best epoch by validation AUC", ADUE, together=_best_epochs, uses_held=True, needs=("train",),
        notes="The authors' later loop: up to 50 epochs, an end after 5 without a better validation AUC, and the best kept. Its "
        f"learning rate follows the same cycle, over 50 epochs. {_HEADS}",
    ),
    Family(
        "alien", "ALIEN (v2), as published", ALIEN,
        _trained(objectives.ENTROPY_U, objectives.entropy_uncertainty, ALIEN_GRID, _own_alien, held=False), needs=("train",),
        notes=f"The loss is taken in logs; 1 - U, which is 0 where two classes tie, is held above 1e-12. {_HEADS}",
    ),
    Family(
        "adue-held", "AdUE, corrected", "ours",
        _trained(objectives.RESCALED_U, objectives.RESCALED_U.value, ADUE_GRID, _own_adue, held=True), uses_held=True,
        notes="U is rescaled to reach 1, the errors are held out, and the loss is taken in logs: the surest errors teach most.",
    ),
    Family(
        "alien-held", "ALIEN, corrected", "ours",
        _trained(objectives.ENTROPY_U, objectives.entropy_uncertainty, ALIEN_GRID, _own_alien, held=True), uses_held=True,
        notes="The errors are held out.",
    ),
    Family("probe", "logistic probe", "baseline", together=_probe, uses_held=True),
    Family("shrunk", "shrunk probe", "ours", together=_shrunk, uses_held=True),
    Family("distilled", "distilled ensemble", "ours", _distilled, uses_held=True, needs=("committee",)),
    Family(
        "ensemble", "deep ensemble", "arXiv 1612.01474", needs=("committee",), comparison=_opinion("committee"),
        notes="What the members' mean probabilities give the class that the examined adapter predicts.",
    ),
    Family(
        "dropout", "MC dropout", "arXiv 1506.02142", needs=("dropped",), comparison=_opinion("dropped"),
        notes="What the passes' mean probabilities give the predicted class. Dropout inside attention stays off.",
    ),
    Family(
        "mahalanobis", "Mahalanobis", "arXiv 1807.03888", needs=("train",),
        comparison=_density(lambda t, p, s: densities.mahalanobis(t.x, t.label, p.x)), notes=_LENGTHS,
    ),
    Family(
        "relative", "relative Mahalanobis", "arXiv 2106.09022", needs=("train",),
        comparison=_density(lambda t, p, s: densities.relative_mahalanobis(t.x, t.label, p.x)), notes=_LENGTHS,
    ),
    Family(
        "rde", "robust density (RDE)", "arXiv 2203.01677", needs=("train",),
        comparison=_density(lambda t, p, s: densities.robust_density(t.x, t.label, p.x, p.predicted, seed=s)),
        notes="With the log determinant, as the paper's density has it, and without, as HUQ's authors' code. At most 600 training "
        f"examples enter the kernel. {_LENGTHS}",
    ),
    Family(
        "huq", "HUQ", "ACL 2023", comparison=_hybrid, needs=("train",),
        notes="Its two thresholds and its weight over the authors' grid. Ranks are taken against the held-out examples.",
    ),
    Family("laplace", "last-layer Laplace", "arXiv 2106.14806", comparison=_laplace, needs=("train",)),
)  # fmt: skip
"""All families, in the order of tables. The first is the fall-back."""
