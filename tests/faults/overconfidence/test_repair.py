"""Choice without self-deception: cross-selection, the fall-back, what a repair may look at, and what it leaves alone."""

from __future__ import annotations

import ast
import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, Unsupported
from trueup.faults.fault import NoRemedy
from trueup.faults.overconfidence import Overconfidence, candidates, densities, objectives, platt, repair
from trueup.faults.overconfidence.abstention import certificates, upwards
from trueup.faults.overconfidence.candidates import (
    FAMILIES,
    Evidence,
    Family,
    Part,
    auc_within,
    choose,
    cross_pick,
    crossed_losses,
)
from trueup.faults.overconfidence.confidence_head import ConfidenceHead
from trueup.faults.overconfidence.planted import planted
from trueup.faults.overconfidence.repair import judge
from trueup.measure import confidence_scores
from trueup.measure.folds import folds
from trueup.measure.selective import error_auc
from trueup.run import ensemble
from trueup.run.ensemble import committee, dropped
from trueup.run.heads import train_heads
from trueup.run.predict import Session, predict, within
from trueup.run.train import Training
from trueup.subject.new_adapter import Lora, fresh
from trueup.subject.subject import Head
from trueup.subject.template import Template
from trueup.subject.tiny import make_base

FAULT = Overconfidence(resamples=300)


@pytest.fixture(scope="module")
def case():
    return planted("planted")


@pytest.fixture(scope="module")
def remedy(case):
    subject, corpus = case
    return FAULT.repair(subject, corpus, None, seed=0)  # type: ignore[arg-type]


def test_of_many_training_examples_a_part_teaches(case, monkeypatch):
    subject, corpus = case
    split = repair.split_calibration(subject, corpus, folds=5, seed=0)
    assert isinstance(split, repair.Split)

    def taught(corpus: Corpus) -> Part:
        several = {"committee": None, "dropped": None}
        train = repair.evidence(subject, corpus, split, several, seed=0).train
        assert train is not None
        return train

    everything = taught(corpus)
    assert len(everything.label) == (corpus.split == "train").sum() <= repair.TAUGHT, "the control: few are all taken"
    monkeypatch.setattr(repair, "TAUGHT", 150)
    part = taught(corpus)
    assert 100 <= len(part.label) <= 150
    assert part.label.mean() == pytest.approx(everything.label.mean(), abs=0.02), "each class keeps its share"
    assert _among(part, everything)
    assert not _among(everything, part), "the control"
    # The rows' order has no say in which they are.
    turned = taught(corpus.take(np.random.default_rng(0).permutation(len(corpus))))
    assert len(turned.label) == len(part.label)
    assert _among(turned, part)


def _among(some: Part, others: Part) -> bool:
    """Whether each example of `some` has the features of one of `others`, up to rounding."""
    return bool((np.abs(some.x[:, None] - others.x).max(axis=2).min(axis=1) < 1e-4).all())


def test_the_best_of_many_noise_variants_does_not_flatter():
    rng = np.random.default_rng(0)
    honest, naive = [], []
    for _ in range(20):
        loss = rng.random((200, 144))
        got, best = cross_pick(loss, np.arange(200) % 5)
        honest.append(got.mean())
        naive.append(loss[:, best].mean())
    assert abs(np.mean(honest) - 0.5) < 0.02
    assert np.mean(naive) < 0.46  # the control: picking and judging on the same examples flatters


def test_cross_pick_finds_a_variant_that_is_better():
    loss = np.random.default_rng(1).random((300, 20))
    loss[:, 7] -= 0.3
    got, best = cross_pick(loss, np.arange(300) % 5)
    assert best == 7
    assert got.mean() == pytest.approx(loss[:, 7].mean())


def test_a_loss_is_of_a_score_calibrated_without_its_own_fold():
    rng = np.random.default_rng(0)
    score, fold = rng.normal(size=(300, 2)) * [1, 50], np.arange(300) % 3
    right = rng.random(300) < 1 / (1 + np.exp(-score[:, 0]))
    loss = crossed_losses(score, right, fold)
    slope, intercept = platt.platt(score[fold != 1, 0], right[fold != 1])
    p = 1 / (1 + np.exp(-slope * score[fold == 1, 0] - intercept))
    np.testing.assert_allclose(loss[fold == 1, 0], (p - right[fold == 1]) ** 2)
    turned = crossed_losses(score, np.where(fold == 1, ~right, right), fold)
    assert not np.allclose(turned[fold == 0], loss[fold == 0]), "what a fold says teaches the others"


def test_ranks_are_compared_within_folds_alone():
    """Two folds on scales of their own: pooled, a perfect ranking within each looks poor."""
    rng = np.random.default_rng(0)
    fold, error = np.arange(400) % 2, rng.random(400) < np.where(np.arange(400) % 2 == 1, 0.6, 0.2)
    score = -error.astype(float) + 0.01 * rng.random(400) + 5 * fold
    assert auc_within(score, error, fold) == 1
    assert error_auc(score, error) < 0.8, "the control"
    own = [error_auc(score[fold == f], error[fold == f]) for f in (0, 1)]
    noisy = score + rng.normal(size=400)
    assert auc_within(noisy, error, np.zeros(400, int)) == pytest.approx(error_auc(noisy, error))
    assert own == [1, 1]


def _synthetic(seed: int, signal: float, n: int = 700, times: int = 1, d: int = 8) -> tuple[Evidence, np.ndarray]:
    """A calibrated binary classifier; with `signal`, one feature that the head does not use tells errors apart.

    Returns the evidence and the clusters of its held-out examples, each of which stands there `times` times.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    weight = np.zeros((2, d))
    weight[1, 0] = 2.0
    p = 1 / (1 + np.exp(-(x @ weight[1])))
    label = (rng.random(n) < p).astype(np.int64)
    flip = rng.random(n) < signal * (x[:, 3] > 0.8)
    label = np.where(flip, 1 - (p > 0.5), label)
    part = Part(x, x @ weight.T, label)
    head = Head(torch.tensor(weight, dtype=torch.float32), torch.zeros(2))
    rows = np.repeat(np.arange(300, n), times)
    held = part.take(rows)
    fold = folds(held.error, 5, seed=seed, cluster=rows)
    return Evidence(part.take(np.arange(300)), held, head, True, fold, seed), rows


CHEAP = tuple(
    f for f in FAMILIES if f.saveable and f.key not in ("adue", "alien", "adue-held", "alien-held", "adue-epochs")
)
"""Without the grids of trained heads, for the sake of time."""


def _saved(evidence: Evidence, cluster: np.ndarray, families=CHEAP):
    choice = choose(evidence, families)
    return choice, judge(
        [choice.stated, choice.recalibrated, choice.chosen], evidence.held.error, cluster, resamples=200, seed=0
    )


def test_a_head_is_chosen_where_the_features_know_more():
    evidence, cluster = _synthetic(0, 0.9)
    choice, saved = _saved(evidence, cluster, FAMILIES)
    assert saved.beyond.low > 0
    other = _synthetic(50, 0.9, 8000)[0].held
    plain = confidence_scores.MaxSoftmax(2)(other.z)
    assert error_auc(choice.learnt(other), other.error) > error_auc(plain, other.error) + 0.03
    confidence = 1 / (1 + np.exp(-choice.slope * choice.learnt(other) - choice.intercept))
    truly = 1 - np.mean((confidence - ~other.error) ** 2) / np.mean((plain - ~other.error) ** 2)
    assert abs(saved.whole.value - truly) < 0.1
    assert [r["key"] for r in choice.table] == [f.key for f in FAMILIES if f.possible(evidence)]
    assert all(0 < r["brier"] < 0.5 for r in choice.table)


def test_the_best_epoch_is_that_of_the_slow_loop():
    """Every epoch's heads, and scikit-learn's ROC-AUC on each set of validation examples, by the authors' rule."""
    evidence, _ = _synthetic(3, 0.6, 500)
    every, part = np.arange(200), evidence.train
    assert part is not None
    sets = [every[:120], every[80:]]
    epochs: list[torch.Tensor] = []
    objective = candidates._objective(part, objectives.clamped(objectives.ADUE_U), objectives.response_uncertainty)
    grid = candidates.ADUE_EPOCHS_GRID
    train_heads(
        part.x, evidence.head, objective, grid, biased=True, seed=3, watch=lambda t: bool(epochs.append(t.clone()))
    )
    assert len(epochs) == 50
    got, kept = candidates._best_epochs(evidence, sets), set()
    for rows, learnt in zip(sets, got, strict=True):
        held = evidence.held.take(rows)
        for r in range(0, len(grid), 7):
            best, since = (-1.0, 0), 0
            for e, theta in enumerate(epochs):
                one = candidates.Learnt(
                    Head(theta[r, :, :-1], theta[r, :, -1]), confidence_scores.SmoothMax(2, start=2)
                )
                auc = roc_auc_score(held.error, -one(held).astype(np.float32))
                best, since = ((auc, e), 0) if auc > best[0] + 1e-9 else (best, since + 1)
                if since == 5:
                    break
            kept.add(best[1])
            extra = learnt[r].extra
            assert extra is not None
            assert roc_auc_score(held.error, -learnt[r](held)) == pytest.approx(best[0], abs=2e-3)
            assert any(torch.equal(extra.weight, t[r, :, :-1]) for t in epochs)
    assert len(kept) > 1, "the control: the best epochs differ"


def test_a_score_that_fails_is_noted_and_the_others_go_on():
    """Features that are the same for all: no covariance, no variance for a kernel."""
    evidence, _ = _synthetic(0, 0.0, 400)
    assert evidence.train is not None

    def flat(part: Part) -> Part:
        return Part(np.ones_like(part.x), part.z, part.label)

    with within(Session()) as here:
        dull = choose(replace(evidence, train=flat(evidence.train), held=flat(evidence.held)), FAMILIES)
    failed = {"Mahalanobis", "relative Mahalanobis", "robust density (RDE)", "HUQ"}
    assert {r["title"] for r in dull.table} == {f.title for f in FAMILIES if f.possible(evidence)} - failed
    assert len(here.notes) == len(failed)
    assert all("could not be computed, and the others go on without it" in n for n in here.notes)
    with within(Session()) as here:
        choose(evidence, FAMILIES)
    assert here.notes == [], "the control"


def test_scores_that_are_no_numbers_are_refused():
    evidence, _ = _synthetic(0, 0.0, 400)
    broken = Family("broken", "broken", "ours", comparison=lambda e, rows, part: np.full((len(part.label), 1), np.nan))
    with within(Session()) as here:
        table = choose(evidence, (*CHEAP, broken)).table
    assert "broken" not in [r["key"] for r in table]
    assert "100 of its scores are no finite numbers" in here.notes[0]


def test_every_departure_is_told_on_the_card(remedy, tmp_path):
    page = (remedy.save(tmp_path / "remedy") / "README.md").read_text()
    assert "- AdUE (v1), as published: U is held within 1e-7" in page
    assert "- MC dropout" not in page, "it was not tried"


def test_nothing_is_claimed_where_nothing_is_to_be_known():
    """A calibrated response, and heads that can only add noise: in at most 5% of runs a gain is claimed (binomial limit)."""
    claimed = sum(
        saved.beyond.low > 0 or saved.recalibration.low > 0
        for _, saved in (_saved(*_synthetic(s, 0.0, 500)) for s in range(40))
    )
    assert claimed <= 5  # P(more | 5%) = 1.4%


def test_every_text_four_times_claims_no_more_than_once():
    """By clusters nothing is claimed; the control: by rows the copies of an example judge what they have taught."""
    by_cluster = by_row = 0
    for s in range(12):
        evidence, cluster = _synthetic(s, 0.0, 420, 4, 60)
        by_cluster += _saved(evidence, cluster)[1].beyond.low > 0
        torn = replace(evidence, fold=folds(evidence.held.error, 5, seed=s))
        by_row += _saved(torn, np.arange(len(cluster)))[1].beyond.low > 0
    assert by_cluster <= 2
    assert by_row >= 8


def test_a_repair_never_looks_at_test(case, remedy):
    subject, corpus = case
    other = np.where(corpus.split == "test", 1 - corpus.label, corpus.label)
    again = FAULT.repair(subject, replace(corpus, label=other), None, seed=0)  # type: ignore[arg-type]
    assert torch.equal(again.head.weight, remedy.head.weight)
    assert again.score == remedy.score
    # The control: what it may look at does change it.
    other = np.where(corpus.split == "calibration", 1 - corpus.label, corpus.label)
    changed = FAULT.repair(subject, replace(corpus, label=other), None, seed=0)  # type: ignore[arg-type]
    assert isinstance(changed, NoRemedy) or changed.score != remedy.score


def test_predictions_and_class_logits_are_untouched(case, remedy):
    subject, corpus = case
    test = corpus.part("test")
    before = predict(subject, test)
    with remedy.on(subject) as repaired:
        after = predict(repaired, test)
    assert np.array_equal(before.logits, after.logits[:, :2])
    assert np.array_equal(before.predicted, after.predicted)
    assert not np.array_equal(before.confidence, after.confidence)


def test_a_remedy_refuses_another_model(case, remedy, tmp_path):
    other = fresh(str(make_base("bert", tmp_path / "base", seed=5)), Lora(), ("negative", "positive"), device="cpu")
    with pytest.raises(BadInput, match="made for another model"), remedy.on(other):
        pass


def test_too_few_calibration_examples_are_refused(case):
    subject, corpus = case
    few = corpus.take(
        np.concatenate([np.flatnonzero(corpus.split == "calibration")[:19], np.flatnonzero(corpus.split == "test")])
    )
    with pytest.raises(BadInput, match="19 calibration examples; a repair needs at least 20"):
        FAULT.repair(subject, few, None, seed=0)  # type: ignore[arg-type]


def test_without_errors_there_is_no_remedy(case):
    subject, corpus = case
    agreed = replace(corpus, label=predict(subject, corpus).predicted)
    got = FAULT.repair(subject, agreed, None, seed=0)  # type: ignore[arg-type]
    assert isinstance(got, NoRemedy)
    assert "0 errors" in got.reason


def test_works_without_training_examples(case):
    subject, corpus = case
    got = FAULT.repair(subject, corpus.take(corpus.split != "train"), None, seed=0)  # type: ignore[arg-type]
    assert isinstance(got, ConfidenceHead)
    assert "adue" not in [r["key"] for r in got.card["candidates"]]


def test_a_state_space_model_is_examined_but_cannot_carry_a_head(tmp_path):
    base = make_base("mamba", tmp_path / "base")
    subject = fresh(
        str(base), Lora(rank=2), ("a", "b"), template=Template("{text}", ("good", "bad")), max_length=16, device="cpu"
    )
    rng = np.random.default_rng(0)
    words = ["cat", "dog", "film", "sat", "mat"]
    text = [" ".join(rng.choice(words, 8)) for _ in range(450)]
    corpus = Corpus(text, rng.integers(0, 2, 450), ("a", "b"), np.array(["calibration"] * 300 + ["test"] * 150))
    finding = FAULT.prepared(subject, corpus, seed=0).audit(subject, corpus.part("test"), seed=0)
    assert finding.verdict == "found"  # the labels are drawn by lot, and no confidence near 1/2 says so
    assert finding.measures["gap"].low > 0
    got = FAULT.repair(subject, corpus, finding, seed=0)
    assert isinstance(got, NoRemedy)
    assert "mamba" in got.reason


def test_a_committee_is_a_mean_of_different_adapters(case):
    subject, corpus = case
    quick = Training(epochs=1, lr=5e-3)
    part, at = corpus.part("train").take(np.arange(120)), corpus.part("calibration").take(np.arange(40))
    two = committee(subject, part, at, members=2, seed=1, training=quick)
    assert np.allclose(two.sum(axis=1), 1)
    three = committee(subject, part, at, members=3, seed=1, training=quick)
    assert not np.allclose(two, three)
    assert np.array_equal(two, committee(subject, part, at, members=2, seed=1, training=quick))


def test_a_distilled_head_stands_for_choice_when_members_are_asked_for(case):
    subject, corpus = case
    got = replace(FAULT, members=2).repair(subject, corpus, None, seed=0)  # type: ignore[arg-type]
    assert isinstance(got, ConfidenceHead)
    assert {"distilled", "ensemble"} <= {r["key"] for r in got.card["candidates"]}


def test_passes_with_dropout_differ_and_leave_the_model_as_it_was(case):
    subject, corpus = case
    dropping = replace(subject, model=copy.deepcopy(subject.model))
    layers = [m for m in dropping.model.modules() if isinstance(m, torch.nn.Dropout)]
    at = corpus.part("calibration").take(np.arange(30))
    for m in layers:
        m.p = 0.0
    with pytest.raises(Unsupported, match="no dropout of a rate above 0"):
        dropped(dropping, at, passes=2, seed=0)
    for m in layers:
        m.p = 0.3
    before = predict(dropping, at).probability
    got = dropped(dropping, at, passes=4, seed=0)
    assert np.allclose(got.sum(axis=1), 1)
    assert np.abs(got - before).max() > 1e-3
    assert np.array_equal(got, dropped(dropping, at, passes=4, seed=0))
    assert not np.array_equal(got, dropped(dropping, at, passes=4, seed=1))
    assert np.array_equal(before, predict(dropping, at).probability)
    assert not any(m.training for m in layers)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in layers)
    found = replace(FAULT, passes=2).repair(dropping, corpus, None, seed=0)  # type: ignore[arg-type]
    told = found.card if isinstance(found, ConfidenceHead) else found.tried
    assert "dropout" in [r["key"] for r in told["candidates"]]


def test_a_class_too_rare_for_a_covariance_does_not_end_a_repair():
    rng = np.random.default_rng(0)
    train, label = rng.normal(size=(300, 6)), np.arange(300) % 3
    train[label == 1] += 3
    keep = (label != 2) | (np.arange(300) == 2)  # one example of the third class is left
    x, predicted = rng.normal(size=(50, 6)), np.arange(50) % 3
    score = densities.robust_density(train[keep], label[keep], x, predicted, seed=0)
    assert np.isfinite(score).all()
    assert (score[predicted == 2].max(axis=0) <= score[predicted != 2].min(axis=0)).all()


def test_a_head_learnt_on_a_device_is_read_on_the_cpu(case):
    subject, _ = case
    assert subject.own_head().weight.device.type == "cpu"
    moved = replace(
        subject, model=copy.deepcopy(subject.model).to(torch.float64)
    )  # another dtype stands in for a device
    assert moved.own_head().weight.dtype == torch.float32


def test_a_printed_threshold_is_never_below_the_certified_one():
    for t in (0.87654, 0.99987, 0.5, 0.123456789, 0.9999999):
        shown = float(upwards(t))
        assert t <= shown <= t + 0.001 * (1 - t) + 1e-12
    assert float(f"{0.87654:.3f}") >= 0.87654  # the control: plain rounding goes either way
    assert float(f"{0.87644:.3f}") < 0.87644


def test_a_class_name_cannot_write_code_into_the_card(remedy, tmp_path):
    evil = "b). x\n\n```python\nimport os\n```\n("
    folder = replace(remedy, classes=("a", evil)).save(tmp_path / "remedy")
    blocks = (folder / "README.md").read_text().split("```python\n")[1:]
    assert len(blocks) == 1
    # The name is a literal there and nothing else: what the code imports is what every card's does.
    for code in (blocks[0].partition("```")[0], (folder / "predict.py").read_text()):
        tree = ast.parse(code)
        asked = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names}
        assert "os" not in asked
        assert evil in {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}


def test_an_ensemble_that_cannot_be_trained_is_noted_and_left_out(case):
    subject, corpus = case
    bare = replace(FAULT, members=2)
    without = corpus.take(corpus.split != "train")
    with within(Session()) as here:
        got = bare.repair(subject, without, None, seed=0)  # type: ignore[arg-type]
    assert any("No ensemble was tried" in n and "no training examples for its 2 members" in n for n in here.notes)
    assert isinstance(got, ConfidenceHead)
    assert "distilled" not in [r["key"] for r in got.card["candidates"]]


def test_every_member_is_trained_on_everything(case, monkeypatch):
    subject, corpus = case
    part, at = corpus.part("train").take(np.arange(60)), corpus.part("calibration").take(np.arange(10))
    seen = []
    monkeypatch.setattr(ensemble, "train", lambda member, on, training, *, lr, seed: seen.append((len(on), seed)))
    committee(subject, part, at, members=3, seed=1, training=Training(epochs=1))
    assert seen == [(60, 1), (60, 2), (60, 3)]


def _noisy_top(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Risk 0.25 among the surest 5%, 0.02 among the next 55%, 0.5 below: the top is not where it is safest."""
    rng = np.random.default_rng(seed)
    c = rng.random(n)
    return c, rng.random(n) < np.select([c > 0.95, c > 0.4], [0.25, 0.02], 0.5)


def test_a_threshold_is_certified_past_an_unlucky_top_and_holds():
    broken = found = naive = 0
    for s in range(200):
        row = next(
            r
            for r in certificates(*_noisy_top(2 * s, 300), *_noisy_top(2 * s + 1, 300), np.arange(300), 0.25, s)
            if r["risk"] == 0.1  # a fifth of .25 is for each risk
        )
        c, e = _noisy_top(10_000 + s, 20_000)
        if row["threshold"] is not None:
            found += 1
            broken += e[c >= row["threshold"]].mean() > 0.1
        c0, e0 = _noisy_top(2 * s + 1, 300)
        picked = next(t for t in np.sort(c0) if e0[c0 >= t].mean() <= 0.1)
        naive += e[c >= picked].mean() > 0.1
    assert found > 150
    assert broken / 200 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    assert naive / 200 > 0.3  # the control: the threshold that just fits the data at hand breaks its promise


def test_certificates_hold_together_where_every_text_stands_four_times():
    """All thresholds at once: broken in at most 5% of draws by clusters; the control: by rows, in far more."""
    broken = {"clusters": 0, "rows": 0}
    fresh_c, fresh_e = _noisy_top(99_999, 40_000)
    for s in range(150):
        (c0, e0), (c1, e1) = _noisy_top(2 * s, 100), _noisy_top(2 * s + 1, 100)
        four, ids = [np.repeat(a, 4) for a in (c1, e1)], np.repeat(np.arange(100), 4)
        for how, cluster in (("clusters", ids), ("rows", np.arange(400))):
            got = certificates(c0, e0, *four, cluster, 0.05, s)
            held = [r for r in got if r["threshold"] is not None]
            broken[how] += any(fresh_e[fresh_c >= r["threshold"]].mean() > r["risk"] for r in held)
    assert broken["clusters"] <= 14  # P(more | 5%) = 1.3%
    assert broken["rows"] > 20
