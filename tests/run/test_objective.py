"""Objectives: each is what its formula says, whatever the pieces, the processes and the kills."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput
from trueup.run import forward
from trueup.run import train as room
from trueup.run.objective import CrossEntropy, GroupDRO, Objective, Resampled, Weighted
from trueup.run.predict import Session, predict, within
from trueup.run.train import History, Training, train
from trueup.store import sealed
from trueup.subject.new_adapter import Lora, fresh
from trueup.subject.subject import Subject
from trueup.subject.tiny import make_base

CLASSES = ("no", "yes")
FILLER = ("the", "film", "was", "it", "very", "mat", "sat", "on")
TRAINING = Training(epochs=3, batch=16, save_every=2, patience=9)
N = 120


def corpus(n: int = N, seed: int = 0) -> Corpus:
    """*good* means yes, *bad* means no; the attribute `row` is each example's place."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    text = [
        " ".join(rng.permutation([*rng.choice(FILLER, int(rng.integers(1, 8))), ("bad", "good")[y]])) for y in label
    ]
    return Corpus(text, label, CLASSES, np.array(["train"] * n), attributes={"row": np.arange(n).astype(str)})


RNG = np.random.default_rng(7)
WEIGHT = RNG.exponential(size=N) * (RNG.random(N) > 0.1)
GROUP = RNG.choice([3, 8, -1], N, p=[0.6, 0.3, 0.1])
OBJECTIVES: dict[str, Objective] = {
    "plain": CrossEntropy(),
    "weighted": Weighted(WEIGHT),
    "resampled": Resampled(WEIGHT),
    "group-dro": GroupDRO(GROUP, 0.3),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_base("bert", tmp_path_factory.mktemp("base") / "bert"))


@pytest.fixture
def new(base: str):
    """A fresh subject, the same at every call."""
    return lambda dropout=0.0: fresh(base, Lora(4, dropout=dropout), CLASSES, max_length=32, device="cpu", seed=0)


def weights(subject: Subject) -> list[torch.Tensor]:
    return [p.detach().clone() for p in subject.model.parameters() if p.requires_grad]


def identical(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def apart(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def run(subject: Subject, objective: Objective | None, training: Training = TRAINING, **options: Any) -> History:
    return train(subject, corpus(), training, **({"lr": 1e-2, "seed": 0, "objective": objective} | options))


# --------------------------------------------------------------------------------------------------------- reference


def slowly(subject: Subject, kind: str) -> tuple[list[float], dict[int, float], float]:
    """One epoch of `kind` by its formula, row by row, on the rows and batches that training takes.

    Returns each step's loss, GroupDRO's q at the end, and the criterion on the validation share.
    """
    fit, held, *_ = room._validation_split(corpus(), TRAINING.validation, 0, OBJECTIVES[kind])
    row = fit.attributes["row"].astype(int)  # places in the whole corpus, over which WEIGHT and GROUP are
    ids = forward.tokenize(subject, fit)
    sizes = {g: (GROUP[row] == g).sum() for g in set(GROUP.tolist())}
    chance = {
        "resampled": [WEIGHT[r] / sum(WEIGHT[row]) for r in row],
        "group-dro": [1 / len(sizes) / sizes[GROUP[r]] for r in row],  # every group as often as any other
    }.get(kind)
    batches = list(room._batches([len(r) for r in ids], TRAINING.batch, 0, 0, chance))
    parameters = [p for p in subject.model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        [{"params": [p], "weight_decay": TRAINING.weight_decay * (p.ndim > 1)} for p in parameters]
    )
    groups = sorted(set(GROUP.tolist()))
    q = {g: 1 / len(groups) for g in groups}
    total, losses = len(batches) * TRAINING.epochs, []
    subject.model.train()
    for at, rows in enumerate(batches):
        for settings in optimiser.param_groups:
            settings["lr"] = 1e-2 * room._schedule(at, total, TRAINING.warmup)
        ce = []
        for i in rows:
            z = forward.logits(subject, forward.collate([ids[i]], 0))[0]
            ce.append(torch.logsumexp(z, 0) - z[fit.label[i]])
        if kind in ("plain", "resampled"):
            loss = sum(ce) / len(rows)
        elif kind == "weighted":
            mean = sum(WEIGHT[r] for r in row) / len(row)
            loss = sum(WEIGHT[row[i]] / mean * c for i, c in zip(rows, ce, strict=True)) / len(rows)
        else:
            each = {g: [c for i, c in zip(rows, ce, strict=True) if GROUP[row[i]] == g] for g in groups}
            means = {g: sum(c) / len(c) if c else torch.zeros(()) for g, c in each.items()}
            loss = sum(q[g] * means[g] for g in groups)
            q = {g: q[g] * float(torch.exp(0.3 * means[g].detach())) for g in groups}
            q = {g: v / sum(q.values()) for g, v in q.items()}
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, TRAINING.clip)
        optimiser.step()
        losses.append(float(loss.detach()))
    subject.model.eval()
    got = predict(subject, held)
    nll = {int(r): -np.log(p[y]) for r, p, y in zip(held.attributes["row"], got.probability, held.label, strict=True)}
    if kind in ("weighted", "resampled"):
        criterion = sum(WEIGHT[r] * v for r, v in nll.items()) / sum(WEIGHT[r] for r in nll)
    elif kind == "group-dro":
        criterion = max(np.mean([v for r, v in nll.items() if GROUP[r] == g]) for g in groups)
    else:
        criterion = np.mean(list(nll.values()))
    return losses, q, float(criterion)


class Enough(Exception):
    pass


def kept_at(path: Path) -> tuple[dict[str, Any], list[Tensor]]:
    """What a checkpoint says, the state of the objective with it, and the weights where training stood."""
    raw = sealed.read(path, room.SEALED)
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    tensors = safetensors.torch.load(raw)
    now = [tensors[f"now.{i}"] for i in range(sum(k.startswith("now.") for k in tensors))]
    return json.loads(header["__metadata__"]["said"]) | {"objective": tensors["objective"]}, now


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_training_is_the_formula_row_by_row(kind: str, new: Any, tmp_path: Path):
    want, got, plain, path = new(), new(), new(), tmp_path / "checkpoint"
    losses, q, criterion = slowly(want, kind)

    def one_epoch(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("training", 8):
            raise Enough

    # Three epochs' learning rates, stopped after the first, so that no later epoch can be the one that is kept.
    with within(Session(progress=one_epoch)), pytest.raises(Enough):
        run(got, OBJECTIVES[kind], checkpoint=path)
    kept, now = kept_at(path)
    assert kept["step"] == len(losses) == 7
    assert apart(now, weights(want)) <= 2e-5
    assert kept["loss"] == [pytest.approx(np.mean(losses), abs=1e-5)]
    assert kept["nll"] == [pytest.approx(criterion, abs=1e-5)]
    if kind == "group-dro":
        assert kept["objective"].exp().tolist() == pytest.approx([q[g] for g in sorted(q)], abs=1e-6)
        assert max(q.values()) > 0.34, "q has moved"
    if kind != "plain":
        slowly(plain, "plain")
        assert apart(now, weights(plain)) > 1e-3, "the control: it is not the plain mean's training"


# ---------------------------------------------------------------------------------------------------- piece by piece


@pytest.mark.parametrize("piece", [1, 3, 8])
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_pieces_give_the_gradients_of_the_whole(kind: str, piece: int, new: Any):
    from accelerate import Accelerator

    subject, part = new(), corpus()
    ids, label = forward.tokenize(subject, part), torch.as_tensor(part.label)
    parameters = [p for p in subject.model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=1.0)
    rows = np.array([4, 9, 4, 17, 3, 50, 21, 4, 8, 33, 99, 2, 61])  # a row three times, as when resampled
    state = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    weight = OBJECTIVES[kind].weights(rows, state)
    got = []
    for size in (piece, len(rows)):
        losses = torch.zeros(len(rows), dtype=torch.float64)
        loss = room._step(
            room._Tuned(subject), optimiser, Accelerator(cpu=True), subject, ids, label, rows, size, weight, losses
        )
        got.append(([p.grad.clone() for p in parameters], loss, losses))
    (pieces, loss, losses), (whole, want, each) = got
    assert max(float(g.abs().max()) for g in whole) > 1e-2
    assert apart(pieces, whole) <= 1e-5
    assert loss == pytest.approx(want, abs=1e-5)
    assert torch.allclose(losses, each, atol=1e-5)
    z = forward.logits(subject, forward.collate([ids[i] for i in rows], 0))
    ce = torch.nn.functional.cross_entropy(z, label[rows], reduction="none").detach()
    assert torch.allclose(losses, ce.double(), atol=1e-5)
    assert want == pytest.approx(float((weight * ce).mean()), abs=1e-5)


def test_equal_weights_are_the_plain_mean_bit_for_bit(new: Any):
    plain, given, ones, twos, other = (new(0.1) for _ in range(5))
    want = run(plain, None)
    assert run(given, CrossEntropy()) == run(ones, Weighted(np.ones(N))) == run(twos, Weighted(np.full(N, 2))) == want
    assert all(identical(weights(plain), weights(s)) for s in (given, ones, twos))
    run(other, Weighted(WEIGHT))
    assert not identical(weights(plain), weights(other))


# ------------------------------------------------------------------------------------------------------------ killed


class Killed(Exception):
    pass


def killed_at(count: int) -> Session:
    def progress(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("training", count):
            raise Killed

    return Session(progress=progress)


@pytest.mark.parametrize("count", [5, 8, 17])
@pytest.mark.parametrize("kind", ["weighted", "resampled", "group-dro"])
def test_a_killed_run_goes_on_to_the_same_weights(kind: str, count: int, new: Any, tmp_path: Path):
    path, whole, resumed, current = tmp_path / "checkpoint", new(0.1), new(0.1), Session()
    want = run(whole, OBJECTIVES[kind])
    with within(killed_at(count)), pytest.raises(Killed):
        run(new(0.1), OBJECTIVES[kind], checkpoint=path)
    with within(current):
        got = run(resumed, OBJECTIVES[kind], checkpoint=path)
    assert any("went on from step" in n for n in current.notes)
    assert got == want
    assert identical(weights(resumed), weights(whole))


def test_without_its_state_it_would_not(new: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The control of the test above: q is worth saving."""
    path, whole, resumed = tmp_path / "checkpoint", new(0.1), new(0.1)
    run(whole, OBJECTIVES["group-dro"])
    with within(killed_at(8)), pytest.raises(Killed):
        run(new(0.1), OBJECTIVES["group-dro"], checkpoint=path)
    load = room._State.load

    def forgetful(state: Any) -> None:
        begun = state.objective
        load(state)
        state.objective = begun

    monkeypatch.setattr(room._State, "load", forgetful)
    run(resumed, OBJECTIVES["group-dro"], checkpoint=path)
    assert not identical(weights(resumed), weights(whole))


def test_a_checkpoint_of_another_objective_is_not_gone_on_from(new: Any, tmp_path: Path):
    path, training = tmp_path / "checkpoint", replace(TRAINING, epochs=1)
    with within(killed_at(3)), pytest.raises(Killed):
        run(new(), GroupDRO(GROUP, 0.3), training, checkpoint=path)
    kept, swapped = path.read_bytes(), GROUP[::-1].copy()
    for objective, resumed in (
        (None, False), (Weighted(WEIGHT), False), (GroupDRO(GROUP, 0.2), False), (GroupDRO(swapped, 0.3), False),
        (GroupDRO(GROUP.copy(), 0.3), True),
    ):  # fmt: skip
        path.write_bytes(kept)
        current = Session()
        with within(current):
            run(new(), objective, training, checkpoint=path)
        assert any("went on" in n for n in current.notes) == resumed


def test_an_objective_serves_two_trainings(new: Any):
    objective, a, b = GroupDRO(GROUP, 0.3), new(), new()
    assert run(a, objective) == run(b, objective)
    assert identical(weights(a), weights(b))


# ----------------------------------------------------------------------------------------------------- batches, rows


def test_rows_are_drawn_in_proportion_to_their_weight():
    weight = np.array([0.0, 1.0, 2.0, 5.0] * 60)
    chance, lengths = Resampled(weight).chance, list(RNG.integers(1, 60, 240))
    drawn = [np.concatenate(list(room._batches(lengths, 8, 5, e, chance))) for e in range(60)]
    assert all(len(d) == 240 for d in drawn)
    assert {len(list(room._batches(lengths, 8, 5, e, chance))) for e in range(3)} == {30}
    share = np.bincount(np.concatenate(drawn) % 4, minlength=4) / (60 * 240)
    assert share[0] == 0
    assert share[1:] == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.02)
    again = np.concatenate(list(room._batches(lengths, 8, 5, 3, chance)))
    assert np.array_equal(again, drawn[3])
    assert not np.array_equal(again, drawn[4])
    assert not np.array_equal(again, np.concatenate(list(room._batches(lengths, 8, 6, 3, chance))))


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_split_cuts_corpus_and_objective_alike(kind: str):
    objective, whole = OBJECTIVES[kind], corpus()
    fit, held, aim, judge = room._validation_split(whole, 0.1, 3, objective)
    for part, cut in ((fit, aim), (held, judge)):
        row = part.attributes["row"].astype(int)
        if isinstance(cut, Weighted | Resampled):
            assert np.array_equal(cut.weight, WEIGHT[row])
        if isinstance(cut, GroupDRO):
            assert np.array_equal(np.array([-1, 3, 8])[cut.group], GROUP[row])
            assert cut.step == 0.3
    assert sorted([*fit.attributes["row"], *held.attributes["row"]], key=int) == list(whole.attributes["row"])
    if kind == "plain":
        assert held.text == room._validation_split(whole, 0.1, 3)[1].text


def test_the_validation_share_holds_every_group():
    whole = corpus()
    group = np.zeros(N, dtype=int)
    group[[3, 4, 5, 6]] = 1
    assert any(
        not set(room._validation_split(whole, 0.1, s)[1].attributes["row"]) & {"3", "4", "5", "6"} for s in range(5)
    ), "the control: by class alone it often holds none of a rare group"
    for s in range(5):
        _, held, aim, judge = room._validation_split(whole, 0.1, s, GroupDRO(group))
        assert set(judge.group) == set(aim.group) == {0, 1}
        assert abs(len(held) - 12) <= 2


# ---------------------------------------------------------------------------------------------------------- group DRO


def test_q_follows_the_losses_and_a_group_that_a_batch_lacks_loses_nothing_by_it():
    objective = GroupDRO(np.array([0, 0, 1, 1, 2, 2]), step=0.5)
    state = objective.begin()
    assert state.exp().tolist() == pytest.approx([1 / 3] * 3)
    rows, losses = np.array([0, 1, 2]), torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
    q = np.exp([0.5 * 2.0, 0.5 * 0.5, 0.0]) / 3
    assert objective.after(state, rows, losses).exp().tolist() == pytest.approx(q / q.sum())
    assert objective.weights(rows, state).tolist() == pytest.approx([3 / 3 / 2, 3 / 3 / 2, 3 / 3])
    for _ in range(5000):
        state = objective.after(state, rows, losses)
    assert state.exp().tolist() == pytest.approx([1, 0, 0])
    for _ in range(5000):
        state = objective.after(state, np.array([4]), torch.tensor([4.0]))
    assert state.exp().tolist() == pytest.approx([0, 0, 1]), "no q is rounded to 0 for good"


def test_groups_are_drawn_evenly():
    """As published; the control: as the corpus has them, a group of 3 in 100 is rarely in a batch."""
    group = np.where(np.arange(100) < 3, 7, 1)
    chance = GroupDRO(group).chance
    assert chance.sum() == pytest.approx(1)
    assert chance[group == 7].sum() == pytest.approx(0.5)
    batches = [b for epoch in range(10) for b in room._batches([5] * 100, 16, 0, epoch, chance)]
    assert np.mean([(group[b] == 7).mean() for b in batches]) == pytest.approx(0.5, abs=0.06)
    assert np.mean([(group[b] == 7).mean() for b in room._batches([5] * 100, 16, 0, 0, None)]) < 0.06


def test_a_group_of_which_no_row_is_trained_on_holds_no_share():
    part = GroupDRO(np.array([5, 5, 9, 7])).take(np.array([True, True, True, False]))
    assert part.begin().exp().tolist() == pytest.approx([0.5, 0.5])


def confusing(n: int, seed: int, minority: float) -> tuple[Corpus, np.ndarray]:
    """One word means the class; another, said three times, agrees with it in group 0 and contradicts it in group 1."""
    rng = np.random.default_rng(seed)
    label, group = rng.integers(0, 2, n), (rng.random(n) < minority).astype(int)
    text = [
        " ".join(rng.permutation([("bad", "good")[y], *[("cat", "dog")[y ^ g]] * 3]))
        for y, g in zip(label, group, strict=True)
    ]
    return Corpus(text, label, CLASSES, np.array(["train"] * n)), group


def test_group_dro_raises_the_worst_group(new: Any):
    part, group = confusing(240, 0, 0.08)
    other, where = confusing(400, 1, 0.5)
    shuffled = np.random.default_rng(3).permutation(group)
    worst = {}
    for name, objective in (("plain", None), ("dro", GroupDRO(group)), ("shuffled", GroupDRO(shuffled))):
        subject = new()
        train(subject, part, replace(TRAINING, epochs=3), lr=1e-2, seed=0, objective=objective)
        right = predict(subject, other).predicted == other.label
        assert right[where == 0].mean() > 0.9
        worst[name] = right[where == 1].mean()
    assert worst["plain"] < 0.6
    assert worst["dro"] > 0.9
    assert worst["shuffled"] < 0.6, "the control: groups that mean nothing raise nothing"


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Weighted(np.ones((3, 2))), r"weights have shape \(3, 2\); give one number per row"),
        (lambda: Weighted(np.array([1.0, -2.0])), "weight of row 2 is -2; give finite numbers of 0 or more"),
        (lambda: Resampled(np.array([1.0, np.nan])), "weight of row 2 is nan; give finite"),
        (lambda: Resampled(np.zeros(4)), "The 4 weights of the objective are all 0"),
        (lambda: GroupDRO(np.array([0.5, 1.0])), "type float64; give one integer per row"),
        (lambda: GroupDRO(np.array([], dtype=int)), r"shape \(0,\)"),
        (lambda: GroupDRO(GROUP, 0.0), "step is 0.0; give a number above 0"),
    ],
)
def test_what_cannot_be_minimised_is_said(make: Any, words: str):
    with pytest.raises(BadInput, match=words):
        make()


def test_an_objective_over_other_rows_is_said(new: Any):
    with pytest.raises(BadInput, match="is over 119 rows and 'corpus' has 120 training examples; give it one entry"):
        run(new(), Weighted(np.ones(N - 1)))


def test_what_was_given_may_change_later():
    weight, group = WEIGHT.copy(), GROUP.copy()
    objectives = Weighted(weight), Resampled(weight), GroupDRO(group)
    before = [o.identity for o in objectives]
    weight[:], group[:] = 1, 0
    assert [o.identity for o in objectives] == before
    assert len(set(before)) == 3
    assert before[2] == GroupDRO(GROUP).identity != GroupDRO(GROUP, 0.02).identity


# ------------------------------------------------------------------------------------------------------ two processes

SCRIPT = """
import sys
import numpy as np
import torch
from trueup.corpus.corpus import Corpus
from trueup.run.objective import GroupDRO
from trueup.run.train import Training, processes, train
from trueup.subject.new_adapter import Lora, fresh
base, out = sys.argv[1:]
rng = np.random.default_rng(0)
label, group = rng.integers(0, 2, 80), rng.integers(0, 3, 80)
text = [("bad", "good")[y] + " the film was it"[: 4 * int(rng.integers(1, 4))] for y in label]
subject = fresh(base, Lora(4), ("no", "yes"), max_length=32, device="cpu", seed=0)
tensors = [p for p in subject.model.parameters() if p.requires_grad and p.ndim > 1]
training = Training(epochs=2, batch=9, save_every=1)
path = out + f"-{processes().rank}"
from pathlib import Path
train(subject, Corpus(text, label, ("no", "yes"), np.array(["train"] * 80)), training, lr=1e-2, seed=0,
      objective=GroupDRO(group, 0.3), parameters=tensors, checkpoint=Path(path + "-checkpoint"))
torch.save([p.detach() for p in tensors], path)
"""


@pytest.mark.slow
def test_two_processes_train_what_one_does(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "script.py").write_text(SCRIPT)

    def words(out: str) -> list[str]:
        return [str(tmp_path / "script.py"), base, str(tmp_path / out)]

    # Not accelerate's own launcher: with --cpu it starts a single process, whatever --num_processes says.
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([sys.executable, *launch, *words("by-2")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    monkeypatch.setattr(sys, "argv", words("by-1"))
    runpy.run_path(sys.argv[0])
    one, first, second = (torch.load(tmp_path / f"by-{n}") for n in ("1-0", "2-0", "2-1"))
    assert identical(first, second), "q agrees, and so do the weights"
    assert apart(one, first) <= 1e-5
    q, both = (kept_at(tmp_path / f"by-{n}-0-checkpoint")[0]["objective"] for n in (1, 2))
    assert torch.allclose(q, both, atol=1e-6)
    assert float(q.exp().max()) > 1 / 3 + 1e-3, "q has moved"
