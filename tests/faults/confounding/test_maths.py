"""The equations of confounding, against scikit-learn, scipy, plain PEFT, and the paper's way of training a tangent prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from torch.nn.attention import SDPBackend, sdpa_kernel

from trueup.faults.confounding import maths as M
from trueup.faults.confounding.planted import planted
from trueup.run import forward
from trueup.run.tangent import expand
from trueup.subject import adapter as files
from trueup.subject.new_adapter import Lora, fresh, prompt_embeddings
from trueup.subject.tiny import make_base

# ------------------------------------------------------------------------------------------- prompt vectors, shortcut


def test_prompt_vectors_are_a_vector_space():
    rng = np.random.default_rng(0)
    start, end, other = (rng.normal(size=(3, 5)).astype(np.float32) for _ in range(3))
    a, b = M.PromptVector.between(start, end), M.PromptVector.between(start, other)
    assert np.allclose(start + a.value, end)
    assert a.value.dtype == np.float64
    assert np.allclose((a + b - b).value, a.value)
    assert np.allclose((2 * a).value, (a + a).value)
    assert np.array_equal((a * 0.5).value, (0.5 * a).value)
    assert np.array_equal((-a).value, (-1 * a).value)
    assert (a - a).norm == 0
    assert (-3 * a).norm == pytest.approx(3 * a.norm)
    assert a.norm == pytest.approx(float(np.sqrt((a.value**2).sum())))
    assert np.allclose(M.PromptVector.between(end, other).value, (b - a).value)


@pytest.mark.parametrize("alpha", [0.2, 0.9, 1.1, 5.0])
def test_the_shortcut_of_two_by_two_is_the_polarity_coding(alpha: float):
    p0 = 0.3 * 2 / (1 + alpha)  # P(y=1) = .3, P(z=1) = .5
    table = np.array([[1 - p0, 1 - alpha * p0], [p0, alpha * p0]]) / 2
    coded = [1, 0] if alpha < 1 else [0, 1]
    assert M.shortcut(table).tolist() == coded
    assert M.shortcut(100 * table).tolist() == coded, "counts serve as well as shares"
    assert M.shortcut(table[:, ::-1]).tolist() == coded[::-1]
    assert M.shortcut(table[::-1]).tolist() == coded[::-1], "the flipped classes flip the coding"


def test_the_shortcut_of_larger_tables_is_the_largest_lift():
    # In group 0 class 0 is the most frequent, and class 2 the most frequent compared with elsewhere.
    table = np.array([[30.0, 60, 60], [5, 30, 5], [15, 5, 5]])
    assert M.shortcut(table).tolist() == [2, 1, 0]
    assert table.argmax(axis=0).tolist() == [0, 0, 0]
    rng = np.random.default_rng(0)
    for _ in range(50):
        t = rng.random((4, 3))
        p = t / t.sum()
        slow = [max(range(4), key=lambda y, z=z, p=p: p[y, z] / (p[y].sum() * p[:, z].sum())) for z in range(3)]
        assert M.shortcut(t).tolist() == slow
    assert M.shortcut(np.array([[10.0, 30], [20, 10], [0, 0]])).tolist() == [1, 0], "a class without rows is never it"


def test_the_coding_is_the_shortcut_where_it_names_every_class_and_holds_every_class_where_not():
    two = np.array([[0.45, 0.25], [0.05, 0.25]])
    assert M.coding(two).tolist() == [[1, 0], [0, 1]]
    assert M.coding(np.vstack([two, [0, 0]])).tolist() == [[1, 0, 0], [0, 1, 0]], "a class without rows is not missed"
    three = np.array([[0.2, 0.05, 0.05], [0.05, 0.2, 0.05], [0.05, 0.1, 0.25]])
    assert np.array_equal(M.coding(three), np.eye(3)[M.shortcut(three)])
    # Three classes and two groups: the second class goes best with neither.
    left = np.array([[30.0, 10], [20, 22], [10, 28]])
    assert M.shortcut(left).tolist() == [0, 2]
    assert np.allclose(M.coding(left), [[0.5, 1 / 3, 1 / 6], [10 / 60, 22 / 60, 28 / 60]])
    assert np.allclose(M.coding(left), M.coding(left / left.sum()))


# ------------------------------------------------------------------------------------------------------- tangent fits


def pieces(g: np.ndarray, step: int = 7) -> Any:
    def rows():
        for at in range(0, len(g), step):
            yield slice(at, min(len(g), at + step)), g[at : at + step]

    return rows


def problem(n: int, k: int, p: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients (n, k, p) of uneven scale, offsets, targets that a linear function half explains, and weights."""
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(n, k, p)) * np.geomspace(0.1, 3, p)
    offset = rng.normal(size=(n, k))
    z = np.concatenate([np.zeros((n, 1)), offset + g @ (rng.normal(size=p) / p)], axis=1)
    target = (z + rng.gumbel(size=z.shape)).argmax(axis=1)
    return g, offset, target, rng.random(n) + 0.1


def full_loss(g, offset, target, weight, penalty):
    """The objective as the docstring has it, and its gradient, in the space of the prompt itself."""
    w = weight / weight.sum()

    def f(d):
        z = np.concatenate([np.zeros((len(g), 1)), offset + g @ d], axis=1)
        ce = logsumexp(z, axis=1) - z[np.arange(len(z)), target]
        p = np.exp(z - logsumexp(z, axis=1, keepdims=True))
        p[np.arange(len(z)), target] -= 1
        return w @ ce + penalty / 2 * d @ d, np.einsum("n,nk,nkp->p", w, p[:, 1:], g) + penalty * d

    return f


@pytest.mark.parametrize(("n", "k", "p"), [(60, 1, 20), (20, 1, 60), (60, 2, 25), (10, 3, 70), (30, 1, 30)])
def test_a_basis_holds_all_that_a_set_of_gradients_can_see(n: int, k: int, p: int):
    g = problem(n, k, p)[0]
    b = M.basis(pieces(g), n, k, p)
    r = b.vectors.shape[1]
    assert r == min(n * k, p)
    assert np.allclose(b.vectors.T @ b.vectors, np.eye(r), atol=1e-9)
    assert np.allclose(b.coordinates @ b.vectors.T, g, atol=1e-8)
    assert b.scale == pytest.approx((g**2).sum() / (n * k))
    c = np.random.default_rng(1).normal(size=r)
    assert np.linalg.norm(b.vectors @ c) == pytest.approx(np.linalg.norm(c))
    assert np.allclose(b.coordinates @ c, g @ (b.vectors @ c))


def test_gram_and_covariance_give_the_same_fit():
    """The same gradients once with nK < p (Gram) and once, zeros cut off by hand, with nK >= p (covariance)."""
    g, offset, target, weight = problem(40, 2, 30)
    wide = np.concatenate([g, np.zeros((40, 2, 70))], axis=2)  # 80 rows in 100 dimensions
    tall, gram = M.basis(pieces(g), 40, 2, 30), M.basis(pieces(wide), 40, 2, 100)
    assert gram.vectors.shape == (100, 30), "directions without a gradient are left out"
    a, loss_a = M.tangent_fit(tall, offset, target, 0.01, weight=weight)
    b, loss_b = M.tangent_fit(gram, offset, target, 0.01, weight=weight)
    assert np.allclose(a, b[:30], atol=1e-6)
    assert np.abs(b[30:]).max() < 1e-9
    assert loss_a == pytest.approx(loss_b, abs=1e-9)


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize(("n", "p"), [(80, 15), (30, 60)])
def test_a_fit_without_offsets_is_scikit_learns(n: int, p: int, ridge: float):
    g, offset, target, weight = problem(n, 1, p)
    base = M.basis(pieces(g), n, 1, p)
    for w in (None, weight):
        d, _ = M.tangent_fit(base, np.zeros_like(offset), target, ridge, weight=w)
        strength = 1 / (n * ridge * base.scale)  # scikit-learn: C * sum of losses + |w|^2 / 2
        theirs = LogisticRegression(C=strength, fit_intercept=False, tol=1e-10, max_iter=100_000).fit(
            g[:, 0], target, sample_weight=None if w is None else w / w.mean()
        )
        assert np.allclose(d, theirs.coef_[0], atol=1e-5 * np.abs(theirs.coef_).max())


@pytest.mark.parametrize("ridge", [1e-3, 0.1])
@pytest.mark.parametrize(("n", "k", "p"), [(80, 1, 12), (40, 3, 20), (15, 2, 50)])
def test_a_fit_with_offsets_and_weights_is_the_optimum_of_the_full_space(n: int, k: int, p: int, ridge: float):
    g, offset, target, weight = problem(n, k, p, seed=n)
    base = M.basis(pieces(g), n, k, p)
    for w in (np.ones(n), weight):
        d, told = M.tangent_fit(base, offset, target, ridge, weight=w)
        penalty = ridge * base.scale
        f = full_loss(g, offset, target, w, penalty)
        value, gradient = f(d)
        assert np.abs(gradient).max() < 1e-6
        assert told == pytest.approx(value - penalty / 2 * d @ d, abs=1e-9)
        slow = minimize(f, np.zeros(p), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 5000})
        assert value <= slow.fun + 1e-10
        assert np.allclose(d, slow.x, atol=1e-4 * max(1.0, np.abs(slow.x).max()))
    # The controls: the offsets and the weights each count, and nearby prompts are worse.
    assert not np.allclose(d, M.tangent_fit(base, 0 * offset, target, ridge, weight=weight)[0], atol=1e-2)
    assert not np.allclose(d, M.tangent_fit(base, offset, target, ridge)[0], atol=1e-3)
    rng = np.random.default_rng(0)
    assert all(f(d + 0.01 * rng.normal(size=p))[0] > value for _ in range(20))


def test_plain_gradient_descent_comes_to_the_same_prompt():
    g, offset, target, weight = problem(50, 2, 8)
    base = M.basis(pieces(g), 50, 2, 8)
    d, _ = M.tangent_fit(base, offset, target, 0.05, weight=weight)
    f, slow = full_loss(g, offset, target, weight, 0.05 * base.scale), np.zeros(8)
    for _ in range(4000):
        slow -= 0.1 * f(slow)[1]
    assert np.allclose(d, slow, atol=1e-6)


def test_more_ridge_makes_a_shorter_prompt_and_a_higher_loss():
    g, offset, target, _ = problem(60, 1, 20)
    base = M.basis(pieces(g), 60, 1, 20)
    got = [M.tangent_fit(base, offset, target, r) for r in (1e-4, 1e-2, 1.0, 100.0)]
    lengths, losses = [np.linalg.norm(d) for d, _ in got], [v for _, v in got]
    assert lengths == sorted(lengths, reverse=True)
    assert losses == sorted(losses)
    assert lengths[-1] < 0.01 * lengths[0]


def test_a_target_of_probabilities_is_that_of_as_many_examples():
    g, offset, _, weight = problem(30, 2, 12)
    share = np.random.default_rng(2).dirichlet(np.ones(3), size=30)
    soft, told = M.tangent_fit(M.basis(pieces(g), 30, 2, 12), offset, share, 0.05, weight=weight)
    # Every example three times, once in each class, with its share of the weight.
    thrice = np.repeat(g, 3, axis=0)
    many = M.basis(pieces(thrice), 90, 2, 12)
    hard, loss = M.tangent_fit(
        many, np.repeat(offset, 3, axis=0), np.tile(np.arange(3), 30), 0.05, weight=(weight[:, None] * share).ravel()
    )
    assert np.allclose(soft, hard, atol=1e-6)
    assert told == pytest.approx(loss, abs=1e-9)
    one = np.arange(30) % 3
    base = M.basis(pieces(g), 30, 2, 12)
    assert np.array_equal(
        M.tangent_fit(base, offset, one, 0.05)[0], M.tangent_fit(base, offset, np.eye(3)[one], 0.05)[0]
    )


def test_a_tangent_fit_is_never_behind_a_long_run_of_adam_on_jvp():
    """The paper's way: the linearised model by a jvp through the backbone at each step, and Adam on the prompt."""
    subject, corpus = planted("planted")
    few = corpus.part("train").take(np.arange(80))
    prompt = prompt_embeddings(subject)
    assert prompt is not None
    target = (few.attributes["site"] == "loud").astype(np.int64)
    t = expand(subject, few, prompt)
    base = M.basis(t.rows, len(t), 1, prompt.numel())
    ridge = 1e-3
    penalty = ridge * base.scale
    d, told = M.tangent_fit(base, t.margins, target, ridge)
    batch = forward.collate(forward.tokenize(subject, few), subject.tokenizer.pad_token_id)
    goal = torch.as_tensor(target)

    def linear(change: torch.Tensor) -> torch.Tensor:
        z, moved = torch.func.jvp(lambda p: forward.logits(subject, batch, p), (prompt,), (change,))
        return z + moved

    def loss(change: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(linear(change), goal)

    with sdpa_kernel(SDPBackend.MATH):
        ours = torch.as_tensor(d.reshape(prompt.shape), dtype=torch.float32)
        assert float(loss(ours)) == pytest.approx(told, abs=1e-4), "the fit's loss is the linearised model's"
        change = torch.zeros_like(prompt)
        adam = torch.optim.Adam([change], lr=0.02)
        start = None
        for _ in range(200):
            change.grad, value = torch.func.grad_and_value(lambda c: loss(c) + penalty / 2 * c.square().sum())(change)
            start = float(value) if start is None else start
            adam.step()
        theirs = float(loss(change) + penalty / 2 * change.square().sum())
    mine = told + penalty / 2 * float(d @ d)
    assert start is not None
    assert theirs < 0.85 * start, "the control: Adam did learn"
    assert mine <= theirs + 1e-5, (mine, theirs)


# ------------------------------------------------------------------------------------------------------------ erasure


def groups(n: int, d: int, g: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correlated features that move with a group, its one-hot, and weights that are not even."""
    rng = np.random.default_rng(seed)
    z = rng.integers(0, g, n)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 2 * rng.normal(size=(g, d))[z] + 3
    return x, np.eye(g)[z], rng.random(n) + 0.2


def cross(x: np.ndarray, z: np.ndarray, w: np.ndarray) -> float:
    w = w / w.sum()
    return float(np.abs(((x - w @ x) * w[:, None]).T @ (z - w @ z)).max())


@pytest.mark.parametrize("g", [2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_leace_leaves_no_covariance_and_no_probe(g: int, weighted: bool):
    x, z, w = groups(600, 8, g)
    w = w if weighted else np.ones(600)
    a, c = M.leace(x, z, weight=w if weighted else None)
    erased = x @ a.T + c
    assert cross(x, z, w) > 0.1
    assert cross(erased, z, w) < 1e-9
    assert np.allclose(w @ erased / w.sum(), w @ x / w.sum()), "the mean stays"
    assert np.linalg.matrix_rank(np.eye(8) - a, tol=1e-6) == g - 1

    def probe(features):
        fit = LogisticRegression(C=100, tol=1e-9, max_iter=20_000).fit(features, z.argmax(axis=1), sample_weight=w)
        right = np.average(fit.predict(features) == z.argmax(axis=1), weights=w)
        return right, fit.predict_proba(features).std(axis=0).max()

    majority = (w @ z / w.sum()).max()
    assert probe(x)[0] > majority + 0.2
    assert probe(x)[1] > 0.1
    assert probe(erased)[0] == pytest.approx(majority, abs=1e-6)
    assert probe(erased)[1] < 1e-3
    if weighted:  # the control: the weights matter
        plain = M.leace(x, z)
        assert cross(x @ plain[0].T + plain[1], z, w) > 1e-3


def test_leace_changes_less_than_other_erasers():
    x, z, _ = groups(500, 6, 3)
    a, c = M.leace(x, z, shrink=1e-10)
    change = ((x @ a.T + c - x) ** 2).mean(axis=0)
    centre = x - x.mean(axis=0)
    basis = np.linalg.svd(centre.T @ (z - z.mean(axis=0)) / len(x), full_matrices=False)[0][:, :2]
    rng = np.random.default_rng(1)
    metrics = [np.eye(6), *(m @ m.T + 0.1 * np.eye(6) for m in rng.normal(size=(30, 6, 6)))]
    for m in metrics:
        other = np.eye(6) - basis @ np.linalg.solve(basis.T @ m @ basis, basis.T @ m)
        assert cross(centre @ other.T, z, np.ones(500)) < 1e-9, "it is an eraser"
        theirs = ((centre @ other.T - centre) ** 2).mean(axis=0)
        assert change.sum() < theirs.sum()
        assert (change <= theirs + 1e-9).all(), "along every axis at once"


@pytest.mark.parametrize("n", [8, 10, 49, 400])
@pytest.mark.parametrize("columns", [1, 2])
def test_leace_leaves_features_alone_where_the_group_is_constant(n: int, columns: int):
    x, _, w = groups(n, 4, 2)
    z = np.zeros((n, columns))
    z[:, 0] = 1
    for weight in (None, w):
        a, c = M.leace(x, z, weight=weight)
        assert np.allclose(a, np.eye(4), atol=1e-9)
        assert np.allclose(c, 0, atol=1e-9)


def test_leace_bears_features_without_variance():
    x, z, _ = groups(300, 5, 2)
    x = np.concatenate([x, np.ones((300, 1)), x[:, :1]], axis=1)
    a, c = M.leace(x, z)
    assert np.isfinite(a).all()
    assert cross(x @ a.T + c, z, np.ones(300)) < 1e-9


def test_a_head_through_an_affine_change_is_the_head_of_changed_features():
    rng = np.random.default_rng(0)
    x, w, b, a, c = (rng.normal(size=s) for s in ((20, 5), (3, 5), 3, (5, 5), 5))
    weight, bias = M.through(w, b, a, c)
    assert np.allclose(x @ weight.T + bias, (x @ a.T + c) @ w.T + b)


# --------------------------------------------------------------------------------------------------- LoRA arithmetic


def low_rank(folder: Path, rank: int, alpha: int, seed: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A LoRA with a life of its own (B is not 0), as PEFT's files hold it."""
    subject = fresh(str(folder), Lora(rank, alpha), ("a", "b"), device="cpu", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in subject.model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    settings = subject.peft_config.to_dict() | {"inference_mode": True, "base_model_name_or_path": str(folder)}
    return settings, {k: v.numpy() for k, v in files.adapter_tensors(subject).items()}


def plain(base: Path) -> Any:
    return transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, pad_token_id=0).eval()


def merged(base: Path, head: dict[str, np.ndarray], parts: list[tuple[dict, dict, float, float]]) -> Any:
    """The base with the head, and with s B A of each LoRA added to its weights by hand. parts: settings, tensors, s, sign."""
    model = plain(base)
    state = model.state_dict()
    for key, value in head.items():
        name = key.removeprefix("base_model.model.")
        if ".lora_" not in key:
            state[name] = torch.as_tensor(value)
    for settings, tensors, s, coefficient in parts:
        for key in (k for k in tensors if ".lora_A." in k):
            delta = coefficient * s * tensors[key.replace(".lora_A.", ".lora_B.")] @ tensors[key]
            name = key.removeprefix("base_model.model.").replace(".lora_A", "")
            state[name] = state[name] + torch.as_tensor(delta.T if settings["fan_in_fan_out"] else delta)
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("rslora", [(False, False), (True, False), (True, True)])
def test_concatenation_is_the_sum_of_two_loras(family: str, rslora: tuple[bool, bool], tmp_path: Path):
    base = make_base(family, tmp_path / "base")
    one, other = low_rank(base, 2, 6, seed=1), low_rank(base, 4, 2, seed=2)
    one[0]["use_rslora"], other[0]["use_rslora"] = rslora
    s = [6 / (2**0.5 if rslora[0] else 2), 2 / (4**0.5 if rslora[1] else 4)]
    ids = torch.randint(4, 20, (6, 9), generator=torch.Generator().manual_seed(0))
    said = {}
    for coefficient in (0.0, -0.7, 2.0):
        settings, tensors = M.concatenate(*one, *other, coefficient)
        folder = tmp_path / f"sum{coefficient}"
        folder.mkdir()
        files.write_adapter(folder, settings, {k: torch.as_tensor(v) for k, v in tensors.items()})
        with torch.no_grad():
            said[coefficient] = peft.PeftModel.from_pretrained(plain(base), str(folder)).eval()(ids).logits
            by_hand = merged(base, one[1], [(*one, s[0], 1.0), (*other, s[1], coefficient)])(ids).logits
        assert torch.allclose(said[coefficient], by_hand, atol=2e-5)
    # Coefficient 0 is the first one's function, by PEFT's own arithmetic, and another coefficient is not.
    folder = tmp_path / "one"
    folder.mkdir()
    files.write_adapter(folder, one[0], {k: torch.as_tensor(v) for k, v in one[1].items()})
    with torch.no_grad():
        first = peft.PeftModel.from_pretrained(plain(base), str(folder)).eval()(ids).logits
    assert torch.allclose(said[0.0], first, atol=2e-5)
    assert float((said[-0.7] - first).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, None),
        ({"use_rslora": True, "bias": "none", "rank_pattern": {}, "alpha_pattern": {}, "use_dora": False}, None),
        ({"use_dora": True}, "DoRA"),
        ({"rank_pattern": {"query": 4}}, "layer to layer"),
        ({"alpha_pattern": {"query": 4}}, "layer to layer"),
        ({"bias": "lora_only"}, "biases"),
        ({"bias": "all"}, "biases"),
        ({"lora_bias": True}, "biases"),
    ],
)
def test_why_no_concatenation(settings: dict[str, Any], says: str | None):
    got = M.why_no_concatenation(settings)
    assert got is None if says is None else says in str(got)


def test_peft_s_own_defaults_can_be_concatenated():
    assert M.why_no_concatenation(peft.LoraConfig().to_dict()) is None
    assert M.why_no_concatenation(peft.LoraConfig(use_dora=True).to_dict()) is not None
