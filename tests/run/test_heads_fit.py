"""One logistic head on features is scikit-learn's own, written in the features' units; and the start that it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from trueup.corpus.corpus import Corpus
from trueup.run.heads import fit_head, fit_heads, fit_sparse, warm_start
from trueup.run.predict import predict
from trueup.subject.new_adapter import Lora, Prefix, Prompt, PTuning, fresh
from trueup.subject.subject import Subject
from trueup.subject.tiny import WORDS

N, D = 120, 5
STRENGTH = 0.3


def data(classes: int = 3, *, extra: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features far from the origin and of very different spreads, which a fit without standardising would notice."""
    rng = np.random.default_rng(0)
    label = np.arange(N) % classes
    x = rng.normal(size=(N, D)) + rng.normal(size=(classes, D))[label]
    x = x * np.array([0.01, 0.1, 1.0, 10.0, 100.0]) + np.array([3.0, -1.0, 0.0, 20.0, 500.0])
    return x, label, rng.normal(size=(N, extra))


def directly(
    x: np.ndarray, label: np.ndarray, *, weight: np.ndarray | None = None, extra: np.ndarray | None = None,
    biased: bool = True, strength: float = STRENGTH, **how: Any,
) -> np.ndarray:  # fmt: skip
    """scikit-learn's decision function on the same examples."""
    z = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-6) if biased else x / (x.std(axis=0) + 1e-6)
    z = z if extra is None else np.hstack([z, extra])
    fit = LogisticRegression(C=strength, max_iter=3000, fit_intercept=biased, **({"tol": 1e-6} | how))
    return fit.fit(z, label, sample_weight=weight).decision_function(z)


def logits_of(x: np.ndarray, head: tuple[np.ndarray, np.ndarray, np.ndarray], extra: np.ndarray | None) -> np.ndarray:
    w, b, e = head
    z = x @ w.T + b
    return z if extra is None else z + extra @ e.T


def deciding(z: np.ndarray) -> np.ndarray:
    """As `decision_function` says it: a column a class, or for two classes their margin."""
    return z[:, 1] - z[:, 0] if z.shape[1] == 2 else z


# --------------------------------------------------------------------------------------------------------- fit_head


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("columns", [None, 2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_head_is_scikit_learns_in_the_features_own_units(
    classes: int, weighted: bool, columns: int | None, biased: bool
):
    x, label, extra = data(classes, extra=columns or 0)
    given: dict[str, Any] = {
        "weight": np.linspace(0.1, 3, N) if weighted else None,
        "extra": extra if columns else None,
    }
    head = fit_head(x, label, classes, strength=STRENGTH, biased=biased, **given)
    assert [a.shape for a in head] == [(classes, D), (classes,), (classes, columns or 0)]
    z = deciding(logits_of(x, head, given["extra"]))
    theirs = directly(x, label, biased=biased, **given)
    np.testing.assert_allclose(z, theirs, atol=1e-8 * np.abs(theirs).max(), rtol=0)

    # Each of the arguments tells: without it the head is another.
    def others(**changed: Any) -> np.ndarray:
        return deciding(logits_of(x, fit_head(x, label, classes, **({"strength": STRENGTH, "biased": biased} | given
                                                                    | changed)), None))  # fmt: skip

    assert np.abs(others(biased=not biased) - z).max() > 1e-3
    assert np.abs(others(strength=10 * STRENGTH) - z).max() > 1e-3
    if weighted:
        assert np.abs(others(weight=None) - z).max() > 1e-3
    if columns:
        assert np.abs(others(extra=None) - z).max() > 1e-3


def test_without_a_bias_the_head_has_none():
    for classes in (2, 3):
        x, label, _ = data(classes)
        w, b, _ = fit_head(x, label, classes, strength=STRENGTH, biased=False)
        assert np.array_equal(b, np.zeros(classes))
        assert np.abs(w).max() > 0
        _, b, _ = fit_head(x, label, classes, strength=STRENGTH, biased=True)
        assert np.abs(b).min() > 1e-3, "the control: these features want one"


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_sparse_head_is_the_optimum_of_its_penalty(classes: int, biased: bool):
    """Of two classes liblinear's, held against saga: without a bias it gives no list of intercepts (a head of a decoder)."""
    x, label, _ = data(classes)
    x = x if biased else x - x.mean(axis=0)  # saga does not get far where columns lie 300 spreads from 0
    head = fit_head(x, label, classes, strength=0.1, biased=biased, sparse=True)
    z = (x - x.mean(axis=0) * biased) / (x.std(axis=0) + 1e-6)
    l1: dict[str, Any] = {"penalty": "l1"} if LogisticRegression().l1_ratio is None else {"l1_ratio": 1.0}
    slow = LogisticRegression(
        C=0.1, max_iter=20_000, tol=1e-9, fit_intercept=biased, solver="saga", random_state=0, **l1
    )
    theirs = slow.fit(z, label).decision_function(z)
    # liblinear penalises the intercept a little, as its documentation says.
    close = 0.15 if biased and classes == 2 else 1e-3
    np.testing.assert_allclose(deciding(logits_of(x, head, None)), theirs, atol=close * np.abs(theirs).max(), rtol=0)
    assert (head[0] == 0).any(), "the control: a sparse head leaves features out"
    assert (head[1] == 0).all() == (not biased)


def test_examples_of_weight_zero_are_as_if_absent_from_the_fit():
    """The weights are scikit-learn's: whole numbers of them are repeated examples, at the same standardising."""
    x, label, _ = data()
    times = np.random.default_rng(2).integers(0, 3, N)
    z = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-6)
    again = np.repeat(np.arange(N), times)
    fit = LogisticRegression(C=STRENGTH, max_iter=3000, tol=1e-8).fit(z[again], label[again])
    head = fit_head(x, label, 3, strength=STRENGTH, weight=times.astype(float))
    np.testing.assert_allclose(logits_of(x, head, None), fit.decision_function(z), atol=1e-4)
    plain = fit_head(x, label, 3, strength=STRENGTH)
    assert np.abs(logits_of(x, plain, None) - fit.decision_function(z)).max() > 1e-2


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("absent", [0, 1, 2, 3])
@pytest.mark.parametrize("present", [2, 3])
def test_a_class_that_is_absent_never_wins(absent: int, present: int, biased: bool):
    """Two classes are a special case of scikit-learn's: one row that stands for both."""
    x, label, _ = data(present)
    names = [c for c in range(present + 1) if c != absent]
    if absent > present:
        return
    label = np.array(names)[label]
    head = fit_head(x, label, present + 1, strength=STRENGTH, biased=biased)
    far = np.random.default_rng(1).normal(size=(500, D)) * 10 * x.std(axis=0) + x.mean(axis=0)
    for points in (x, far):
        z = logits_of(points, head, None)
        assert (z.argmax(axis=1) != absent).all()
        assert (z[:, absent] < z[:, names].max(axis=1)).all()
        assert set(z.argmax(axis=1)) == set(names), "and each of the others does somewhere"
    z = logits_of(x, head, None)
    theirs = directly(x, label, biased=biased)
    np.testing.assert_allclose(deciding(z[:, names]), theirs, atol=1e-8 * np.abs(theirs).max(), rtol=0)
    if biased:
        p = np.exp(z - z.max(axis=1, keepdims=True))
        assert (p[:, absent] < 1e-10).all()


def test_a_constant_feature_breaks_nothing():
    x, label, _ = data()
    still = np.hstack([x, np.full((N, 1), 7.0)])
    head, plain = (fit_head(f, label, 3, strength=STRENGTH) for f in (still, x))
    np.testing.assert_allclose(logits_of(still, head, None), logits_of(x, plain, None), atol=1e-3)
    assert all(np.isfinite(a).all() for a in head)


# -------------------------------------------------------------------------------------------------------- warm_start


def corpus(classes: int = 3) -> Corpus:
    """A word says the class, among others that do not."""
    rng = np.random.default_rng(0)
    label = np.arange(60) % classes
    text = [" ".join([*rng.choice(WORDS[:7], 3), ("good", "bad", "loud")[c]]) for c in label]
    return Corpus(text, label, ("a", "b", "c")[:classes], np.array(["train"] * 60))


def loss(subject: Subject, every: Corpus) -> float:
    return float(log_loss(every.label, predict(subject, every).probability, labels=range(len(every.classes))))


@pytest.mark.parametrize("recipe", [Prompt(3), PTuning(3, 16), Prefix(3), Lora(2)], ids=lambda r: r.name)
@pytest.mark.parametrize(("family", "classes"), [("bert", 2), ("roberta", 3), ("gpt2", 3), ("llama", 2)])
def test_a_warm_start_lowers_the_loss_and_touches_the_last_layer_alone(
    family: str, classes: int, recipe: Any, base_of: Callable[[str], Path]
):
    every = corpus(classes)
    subject = fresh(str(base_of(family)), recipe, every.classes, max_length=32, device="cpu")
    cold, features = loss(subject, every), predict(subject, every).features
    layer = subject.head_layer()
    before = {n: t.clone() for n, t in subject.model.state_dict().items()}
    flags = [(n, p.requires_grad) for n, p in subject.model.named_parameters()]
    modes = [m.training for m in subject.model.modules()]
    assert warm_start(subject, every, strength=1.0) is None
    assert loss(subject, every) < 0.9 * cold
    assert subject.head_layer() is layer
    mine = {t.data_ptr() for t in layer.parameters()}
    after = subject.model.state_dict()
    changed = {n for n, t in after.items() if not torch.equal(t, before[n])}
    assert changed
    assert all(after[n].data_ptr() in mine for n in changed)
    assert mine == {after[n].data_ptr() for n in changed}, "its bias too, where it has one"
    assert [(n, p.requires_grad) for n, p in subject.model.named_parameters()] == flags
    assert [m.training for m in subject.model.modules()] == modes
    assert np.array_equal(predict(subject, every).features, features)
    w, b, _ = fit_head(features.astype(float), every.label, classes, strength=1.0, biased=layer.bias is not None)
    np.testing.assert_allclose(predict(subject, every).logits, features @ w.T + b, atol=1e-4)
    # A weaker pull fits better, so `strength` is heard; and the same start twice is the same.
    warm = loss(subject, every)
    warm_start(subject, every, strength=100.0)
    assert loss(subject, every) < warm
    warm_start(subject, every, strength=1.0)
    assert loss(subject, every) == pytest.approx(warm, abs=1e-6)


def test_a_warm_start_serves_the_labels_it_is_given(base_of: Callable[[str], Path]):
    """The control of a lower loss: fitted to other labels, it is not lower on these."""
    every = corpus(2)
    wrong = replace(every, label=1 - every.label)
    subject = fresh(str(base_of("bert")), Prompt(3), every.classes, max_length=32, device="cpu")
    cold = loss(subject, every)
    warm_start(subject, wrong, strength=1.0)
    assert loss(subject, every) > cold
    assert loss(subject, wrong) < cold


# -------------------------------------------------------------------------------------------------------- fit_heads


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("columns", [None, 2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_heads_fitted_together_are_each_alone(classes: int, weighted: bool, columns: int | None, biased: bool):
    x, label, extra = data(classes, extra=columns or 0)
    rng = np.random.default_rng(1)
    kept = np.concatenate([np.arange(3)[:, None] != np.arange(N) % 3, np.ones((2, N), bool)])
    strength = [0.3, 0.3, 0.3, 0.3, 30.0]
    weight = rng.gamma(2, size=kept.shape) if weighted else None
    extra = extra if columns else None
    # A class that nobody has stays out.
    got = fit_heads(x, label, classes + 1, kept, strength=strength, weight=weight, extra=extra, biased=biased)
    for f, (k, head) in enumerate(zip(kept, got, strict=True)):
        own = None if extra is None else extra[k]
        given: dict[str, Any] = {"weight": None if weight is None else weight[f, k], "extra": own, "biased": biased}
        slow = fit_head(x[k], label[k], classes + 1, strength=strength[f], **given)
        assert [a.shape for a in head] == [a.shape for a in slow]
        ours, theirs = logits_of(x[k], head, own), logits_of(x[k], slow, own)
        np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs[:, :classes]).max(), rtol=0)
        # Where scikit-learn goes on to the minimum, it is the same.
        if classes == 2:
            exact = directly(x[k], label[k], strength=strength[f], solver="newton-cholesky", tol=1e-12, **given)
            np.testing.assert_allclose(deciding(ours[:, :2]), exact, atol=1e-8 * np.abs(exact).max(), rtol=0)
    assert np.abs(logits_of(x, got[0], extra) - logits_of(x, got[1], extra)).max() > 1e-2, "the rows tell"


def test_heads_fitted_together_with_more_features_than_rows_and_classes_apart():
    """A parted pair of classes, and a Hessian that lacks most directions."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 100)) + 5
    label = (x[:, 0] > 5).astype(int)
    kept = rng.random((4, 40)) < 0.8
    for strength in (1e-3, 100.0):
        for k, head in zip(kept, fit_heads(x, label, 2, kept, strength=strength), strict=True):
            exact = directly(x[k], label[k], strength=strength, solver="newton-cholesky", tol=1e-12)
            ours = deciding(logits_of(x[k], head, None))
            np.testing.assert_allclose(ours, exact, atol=1e-6 * np.abs(exact).max(), rtol=0)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("parted", [False, True])
def test_sparse_heads_along_their_strengths_are_liblinears(biased: bool, parted: bool):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 150)) @ rng.normal(size=(150, 150)) + (5 if biased else 0)
    score = x[:, 0] - x[:, 0].mean() + 0.5 * x[:, 1]
    label = (score + (0 if parted else 1) * rng.normal(size=90) * score.std() > score.mean()).astype(int)
    strengths = (1e-4, 0.03, 0.1, 0.3, 1.0)
    unit = x.std(axis=0) + 1e-6
    z = np.concatenate([(x - x.mean(axis=0) * biased) / unit, np.ones((90, int(biased)))], axis=1)
    l1: dict[str, Any] = {"penalty": "l1"} if LogisticRegression().l1_ratio is None else {"l1_ratio": 1.0}
    zeros = []
    for strength, (w, b) in zip(strengths, fit_sparse(x, label + 1, 4, strengths, biased=biased), strict=True):
        assert (w[[0, 3]] == 0).all()
        assert (b[[0, 3]] == -30.0 * biased).all()
        u = (w[2] - w[1]) * unit
        u = np.append(u, b[2] - b[1] + (w[2] - w[1]) @ x.mean(axis=0)) if biased else u
        exact = LogisticRegression(
            C=strength, fit_intercept=False, solver="liblinear", tol=1e-9, max_iter=5_000, random_state=0, **l1
        ).fit(z, label).coef_[0]  # fmt: skip
        np.testing.assert_allclose(z @ u, z @ exact, atol=1e-4 * max(1.0, np.abs(z @ exact).max()), rtol=0)

        def loss(v: np.ndarray, strength: float = strength) -> float:
            return float(strength * np.logaddexp(0, np.where(label == 1, -1, 1) * (z @ v)).sum() + np.abs(v).sum())

        assert loss(u) <= loss(exact) * (1 + 1e-9)
        # And as it was called before, whose end is a little before the minimum.
        slow = fit_head(x, label + 1, 4, strength=strength, biased=biased, sparse=True)
        theirs = deciding((x @ slow[0].T + slow[1])[:, 1:3])
        np.testing.assert_allclose(z @ u, theirs, atol=2e-2 * max(1.0, np.abs(theirs).max()), rtol=0)
        zeros.append(int((np.abs(u) < 1e-12).sum()))
        (alone,) = fit_sparse(x, label + 1, 4, [strength], biased=biased)
        np.testing.assert_allclose(alone[0], w, atol=1e-7 * np.abs(w).max() + 1e-12)
    assert zeros == sorted(zeros, reverse=True)
    assert zeros[0] > zeros[-1] > 0, "the control: sparser where the data weigh less"


def test_sparse_heads_of_three_classes_are_each_alone():
    x, label, _ = data()
    for strength, (w, b) in zip((0.03, 0.3), fit_sparse(x, label, 3, (0.03, 0.3)), strict=True):
        slow = fit_head(x, label, 3, strength=strength, sparse=True)
        assert np.array_equal(w, slow[0])
        assert np.array_equal(b, slow[1])
