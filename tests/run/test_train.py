"""Training: it learns, repeats, survives being killed, splits where memory runs out, and keeps its best epoch."""

from __future__ import annotations

import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, Unavailable
from trueup.run import forward
from trueup.run import train as room
from trueup.run.predict import Outputs, Session, predict, within
from trueup.run.train import History, Training, train
from trueup.subject.adapter import adapter_tensors
from trueup.subject.new_adapter import Lora, Prefix, Prompt, PTuning, fresh, prompt_embeddings
from trueup.subject.subject import Subject
from trueup.subject.template import Template
from trueup.subject.tiny import make_base

CLASSES = ("no", "yes")
FILLER = ("the", "film", "was", "it", "very", "cat", "dog", "mat", "sat", "on")
TRAINING = Training(epochs=3, batch=16, save_every=2, patience=9)


def corpus(n: int = 120, seed: int = 0, filler: bool = True) -> Corpus:
    """*good* means yes, *bad* means no, wherever it stands; without `filler` there is nothing else."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    text = []
    for y in label:
        word, others = ("bad", "good")[y], int(rng.integers(1, 8))
        words = [*(rng.choice(FILLER, others) if filler else [word] * others), word]
        text.append(" ".join(rng.permutation(words)))
    return Corpus(text, label, CLASSES, np.array(["train"] * n))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("bases")
    return {f: str(make_base(f, root / f)) for f in ("bert", "llama")}


@pytest.fixture
def new(bases: dict[str, str]):
    """A fresh subject, the same at every call."""

    def make(recipe: Any = None, family: str = "bert", **options: Any) -> Subject:
        recipe = recipe or Lora(4, dropout=0.1)
        return fresh(bases[family], recipe, CLASSES, max_length=32, device="cpu", seed=0, **options)

    return make


def weights(subject: Subject) -> list[torch.Tensor]:
    return [p.detach().clone() for p in subject.model.parameters() if p.requires_grad]


def identical(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def apart(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def run(subject: Subject, training: Training = TRAINING, **options: Any) -> History:
    return train(subject, corpus(), training, **({"lr": 1e-2, "seed": 0} | options))


# ------------------------------------------------------------------------------------------------------------ learns


@pytest.mark.parametrize("recipe", [Lora(4), Prompt(6), Prefix(6), PTuning(6, 16)], ids=lambda r: r.name)
def test_a_planted_task_is_learnt(recipe: Any, new: Any):
    # A prompt steers a random model less far than a LoRA does: it gets the task without filler.
    subject, filler = new(recipe), recipe.name == "lora"
    other = corpus(200, seed=1, filler=filler)
    tuned = {n: p.detach().clone() for n, p in subject.model.named_parameters() if p.requires_grad and "class" not in n}
    before = float((predict(subject, other).predicted == other.label).mean())
    kept = {n: p.detach().clone() for n, p in subject.model.named_parameters() if not p.requires_grad}
    history = train(subject, corpus(filler=filler), replace(TRAINING, epochs=14), lr=2e-2, seed=0)
    after = float((predict(subject, other).predicted == other.label).mean())
    assert before < 0.75
    assert after > 0.9
    assert history.validation_accuracy[history.best_epoch] > 0.85
    assert history.loss[-1] < history.loss[0]
    now = dict(subject.model.named_parameters())
    assert kept
    assert all(torch.equal(v, now[n]) for n, v in kept.items()), "only the adapter moved"
    assert tuned
    assert all(not torch.equal(v, now[n]) for n, v in tuned.items() if "lora_A" not in n), "and not the head alone"
    assert all(p.grad is None for p in subject.model.parameters())
    assert not any(m.training for m in subject.model.modules())


def test_a_causal_model_learns_to_answer_with_a_word(new: Any):
    subject, other = (
        new(Lora(4), "llama", template=Template("{text} say", ("positive", "negative"))),
        corpus(200, seed=1),
    )
    before = float((predict(subject, other).predicted == other.label).mean())
    run(subject, replace(TRAINING, epochs=8), lr=2e-2)
    assert before < 0.75
    assert float((predict(subject, other).predicted == other.label).mean()) > 0.9


def test_too_little_to_train_on_is_said(new: Any):
    few, one = corpus().take(np.arange(9)), corpus().take(corpus().label == 1)
    for part, words in ((few, "has 9 training examples of 2 classes"), (one, "examples of 1 classes")):
        with pytest.raises(BadInput, match=words + "; training needs at least 10 examples of 2 classes"):
            train(new(), part, TRAINING, lr=1e-2, seed=0)


# ----------------------------------------------------------------------------------------------------------- repeats


def test_the_same_seed_gives_the_same_weights_bit_for_bit(new: Any):
    a, b, c = new(), new(), new()
    assert identical(weights(a), weights(b))
    ha = run(a)
    torch.rand(7)  # what else draws random numbers must not matter
    hb = run(b)
    assert identical(weights(a), weights(b))
    assert ha == hb
    run(c, seed=1)
    assert apart(weights(a), weights(c)) > 1e-3


def test_training_leaves_the_random_state_alone(new: Any):
    subject = new()
    before = torch.random.get_rng_state()
    run(subject, replace(TRAINING, epochs=1))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_index_comes_once_per_epoch_in_batches_of_similar_length():
    lengths = list(np.random.default_rng(0).integers(1, 60, 333))
    for epoch in range(3):
        batches = list(room._batches(lengths, 8, 5, epoch))
        assert sorted(np.concatenate(batches)) == list(range(333))
        assert max(map(len, batches)) == 8
        assert len(batches) == -(-333 // 8)
        padding = sum(max(lengths[i] for i in b) * len(b) - sum(lengths[i] for i in b) for b in batches)
        plain = np.random.default_rng(0).permutation(333)
        plainly = sum(
            max(lengths[i] for i in b) * len(b) - sum(lengths[i] for i in b)
            for b in np.array_split(plain, len(batches))
        )
        assert padding < plainly / 3
    same = [
        np.array_equal(a, b)
        for a, b in zip(room._batches(lengths, 8, 5, 0), room._batches(lengths, 8, 5, 0), strict=True)
    ]
    assert all(same)
    firsts = {tuple(np.concatenate(list(room._batches(lengths, 8, s, e)))) for s in (5, 6) for e in (0, 1)}
    assert len(firsts) == 4, "another seed or epoch, another order"


def test_the_validation_share_holds_every_class_and_nothing_twice():
    whole = corpus()
    fit, held = room._validation_split(whole, 0.1, 3)
    assert len(fit) + len(held) == len(whole)
    assert set(np.unique(held.label)) == set(np.unique(fit.label)) == {0, 1}
    assert abs(len(held) - 12) <= 1
    rare = replace(whole, label=np.array([1] + [0] * (len(whole) - 1)))
    fit, held = room._validation_split(rare, 0.1, 3)
    assert 1 in fit.label, "the only example of a class is trained on"
    assert len(held) == 12


def test_rates_rise_and_fall():
    rates = [room._schedule(s, 100, 0.1) for s in range(100)]
    assert max(rates) == 1.0
    assert np.argmax(rates) in (9, 10)
    assert rates[0] == pytest.approx(0.1)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.02
    assert room._schedule(0, 1, 0.0) == 1.0


# ------------------------------------------------------------------------------------------------------------ killed


class Killed(Exception):
    pass


def killed_at(stage: str, count: int) -> Session:
    """A session whose progress raises at the `count`-th report of `stage`."""
    reports = 0

    def progress(now: str, done: int, total: int) -> None:
        nonlocal reports
        reports += now == stage
        if now == stage and reports == count:
            raise Killed

    return Session(progress=progress)


@pytest.mark.parametrize(
    ("stage", "count", "save_every", "saves"),
    [
        ("training", 5, 2, True), ("training", 8, 1, True), ("training", 10, 2, True), ("training", 21, 2, True),
        ("training", 3, 50, False), ("features", 1, 2, True), ("features", 1, 7, False), ("features", 2, 7, True),
        ("features", 3, 7, True),
    ],
)  # fmt: skip
def test_a_killed_run_goes_on_to_the_same_weights(
    stage: str, count: int, save_every: int, saves: bool, new: Any, tmp_path: Path
):
    """7 steps an epoch, 3 epochs: killed inside an epoch, at its end, and while it is being validated."""
    training, path = replace(TRAINING, save_every=save_every), tmp_path / "checkpoint"
    whole = new()
    told: list[tuple[str, int, int]] = []
    with within(Session(progress=lambda *report: told.append(report))):
        want = run(whole, training)
    assert [d for s, d, _ in told if s == "training"] == list(range(1, 22)), "7 steps an epoch"
    with within(killed_at(stage, count)), pytest.raises(Killed):
        run(new(), training, checkpoint=path)
    saved = path.is_file()
    resumed, current = new(), Session()
    with within(current):
        got = run(resumed, training, checkpoint=path)
    assert identical(weights(resumed), weights(whole))
    assert got == want
    assert got.steps == 21
    assert len(got.loss) == len(got.validation_nll) == 3
    assert any("Training went on from step" in n for n in current.notes) == saved == saves


def test_a_finished_run_started_again_only_reads(new: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, first, again = tmp_path / "checkpoint", new(), new()
    want = run(first, checkpoint=path)
    monkeypatch.setattr(room, "_step", lambda *_: pytest.fail("a step was taken"))
    assert run(again, checkpoint=path) == want
    assert identical(weights(first), weights(again))


def test_a_checkpoint_of_another_run_is_not_gone_on_from(new: Any, tmp_path: Path):
    path = tmp_path / "checkpoint"
    with within(killed_at("training", 9)), pytest.raises(Killed):
        run(new(), checkpoint=path)
    kept = path.read_bytes()
    plain = new()
    want = run(plain, lr=3e-3)
    other, current = new(), Session()
    with within(current):
        assert run(other, lr=3e-3, checkpoint=path) == want
    assert identical(weights(other), weights(plain))
    assert not any("went on" in n for n in current.notes)
    path.write_bytes(kept)
    with within(current):
        run(new(), checkpoint=path)
    assert any("went on from step 8" in n for n in current.notes), "the control: its own run does go on"


def turned(raw: bytes, at: int) -> bytes:
    """`raw` with one bit turned in the byte at `at`."""
    return raw[:at] + bytes([raw[at] ^ 64]) + raw[at + 1 :]


def test_a_damaged_checkpoint_is_as_good_as_none(new: Any, tmp_path: Path):
    """One bit turned anywhere, among the weights too: begun anew, and said."""
    path, plain = tmp_path / "checkpoint", new()
    want = run(plain)
    with within(killed_at("training", 16)), pytest.raises(Killed):
        run(new(), checkpoint=path)
    whole = path.read_bytes()
    places = [20, *range(len(whole) // 6, len(whole), len(whole) // 6), len(whole) - 1]
    for spoilt in (*(turned(whole, at) for at in places), b"[1]", b"", whole[:-1], whole + b"0"):
        path.write_bytes(spoilt)
        state, again = room._State([], None, path, {}), Session()
        with within(again):
            state.load()
        assert state.step == 0, "nothing of it is taken"
        assert any("is damaged, or of another trueup, so training began anew" in n for n in again.notes)
    again = new()
    assert run(again, checkpoint=path) == want
    assert identical(weights(again), weights(plain))
    path.write_bytes(whole)
    with within(Session()) as control:
        run(new(), checkpoint=path)
    assert any("went on from step 14" in n for n in control.notes)


# ------------------------------------------------------------------------------------------------------------ memory


def no_room_above(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    sizes: list[int] = []
    plain = forward.logits

    def logits(subject: Subject, batch: forward.Batch) -> torch.Tensor:
        sizes.append(len(batch.ids))
        if len(batch.ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return plain(subject, batch)

    monkeypatch.setattr(forward, "logits", logits)
    return sizes


@pytest.mark.parametrize("piece", [1, 3, 8, 16])
def test_pieces_give_the_gradients_of_the_whole(piece: int, new: Any):
    subject, part = new(Lora(4)), corpus()
    ids, label = forward.tokenize(subject, part), torch.as_tensor(part.label)
    parameters = [p for p in subject.model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=1.0)
    rows = np.arange(13)
    loss = room._step(room._Tuned(subject), optimiser, None, subject, ids, label, rows, piece)
    got = [p.grad.clone() for p in parameters]
    subject.model.zero_grad()
    z = forward.logits(subject, forward.collate([ids[i] for i in rows], 0))
    whole = torch.nn.functional.cross_entropy(z, label[:13])
    whole.backward()
    want = [p.grad for p in parameters]
    assert max(float(g.abs().max()) for g in want) > 1e-2
    assert apart(got, want) <= 1e-5
    assert loss == pytest.approx(float(whole.detach()), abs=1e-5)


def test_a_step_is_split_when_memory_runs_out(new: Any, monkeypatch: pytest.MonkeyPatch):
    training = replace(TRAINING, epochs=2)
    whole, split, current = new(Lora(4)), new(Lora(4)), Session()
    want = run(whole, training)
    sizes = no_room_above(monkeypatch, 5)
    with within(current):
        got = run(split, training)
    assert sizes[:3] == [16, 8, 4]
    assert max(sizes[2:]) <= 5, "it does not run out again at every step"
    assert apart(weights(whole), weights(split)) <= 1e-5
    assert got.loss == pytest.approx(want.loss, abs=1e-5)
    assert any("split into pieces of 4 examples" in n for n in current.notes)
    start = new(Lora(4))
    assert apart(weights(whole), weights(start)) > 1e-2


def test_one_example_too_large_is_said(new: Any, monkeypatch: pytest.MonkeyPatch):
    no_room_above(monkeypatch, 0)
    with pytest.raises(Unavailable, match="One training example does not fit in memory; lower --max-length"):
        run(new())


def test_other_errors_are_raised_as_they_are(new: Any, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(forward, "logits", broken)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(new())


# -------------------------------------------------------------------------------------------------- some parameters


def named(subject: Subject, word: str) -> dict[str, torch.nn.Parameter]:
    return {n: p for n, p in subject.model.named_parameters() if p.requires_grad and word in n}


@pytest.mark.parametrize("word", ["prompt", "class"])
def test_only_the_parameters_asked_for_move(word: str, new: Any):
    subject = new(Prompt(5))
    every = named(subject, "")
    asked = named(subject, word)
    assert 0 < len(asked) < len(every)
    before = {n: p.detach().clone() for n, p in subject.model.named_parameters()}
    history = run(subject, parameters=list(asked.values()))
    assert history.steps == 21
    moved = {n for n, p in subject.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(asked)
    assert list(named(subject, "")) == list(every), "the others can be trained again"
    assert all(p.grad is None for p in subject.model.parameters())


def test_all_parameters_in_any_order_are_the_default(new: Any):
    a, b = new(), new()
    assert run(a) == run(b, parameters=list(named(b, "").values())[::-1])
    assert identical(weights(a), weights(b))


def test_parameters_can_be_trained_again_after_an_error(new: Any):
    subject = new(Prompt(5))
    every = list(named(subject, ""))
    with within(killed_at("training", 3)), pytest.raises(Killed):
        run(subject, parameters=list(named(subject, "prompt").values()))
    assert list(named(subject, "")) == every


def test_parameters_that_are_not_the_models_are_said(new: Any):
    subject, other = new(Prompt(5)), new(Prompt(5))
    mine, frozen = weights(subject), [p for p in subject.model.parameters() if not p.requires_grad]
    some = list(named(subject, "prompt").values())
    for wrong, count in (
        ([*some, *named(other, "prompt").values()], "1 of the 2"),
        (frozen[:1], "1 of the 1"),
        ([], "0"),
    ):
        with pytest.raises(BadInput, match=f"{count}.*parameters given to train.*that require a gradient"):
            run(subject, parameters=wrong)
    assert identical(weights(subject), mine)


def test_a_checkpoint_of_other_parameters_is_not_gone_on_from(new: Any, tmp_path: Path):
    path = tmp_path / "checkpoint"
    for word, resumed in (("prompt", True), ("class", False), ("", False)):
        path.unlink(missing_ok=True)
        first, again, current = new(Prompt(5)), new(Prompt(5)), Session()
        with within(killed_at("training", 9)), pytest.raises(Killed):
            run(first, checkpoint=path, parameters=list(named(first, "prompt").values()))
        with within(current):
            run(again, checkpoint=path, parameters=list(named(again, word).values()))
        assert any("went on" in n for n in current.notes) == resumed


# -------------------------------------------------------------------------------------------------------- best epoch


@pytest.mark.parametrize(("right", "best", "epochs"), [((0.5, 0.9, 0.6, 0.7), 1, 4), ((0.5, 0.6, 0.7, 0.9), 3, 4),
                                                       ((0.9, 0.8, 0.7, 0.6), 0, 3)])  # fmt: skip
def test_the_best_epoch_is_kept(
    right: tuple[float, ...], best: int, epochs: int, new: Any, monkeypatch: pytest.MonkeyPatch
):
    """Validation says `right` of the true class in each epoch; patience is 2."""
    seen: list[list[torch.Tensor]] = []

    def judged(subject: Subject, part: Corpus) -> Outputs:
        p = right[len(seen)]
        seen.append(weights(subject))
        probability = np.full((len(part), 2), 1 - p)
        probability[np.arange(len(part)), part.label] = p
        return Outputs(np.empty(0), np.empty(0), part.label, np.empty(0), probability)

    monkeypatch.setattr(room, "predict", judged)
    subject = new()
    history = run(subject, replace(TRAINING, epochs=4, patience=2))
    assert len(seen) == len(history.loss) == epochs
    assert history.best_epoch == best
    assert identical(weights(subject), seen[best])
    assert all(not identical(seen[best], other) for i, other in enumerate(seen) if i != best)
    assert history.validation_nll == pytest.approx([-np.log(p) for p in right[:epochs]])


# ----------------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_prompt_starts_from_the_texts_embeddings_and_its_start_is_kept(family: str, new: Any):
    subject = new(Prompt(5, start="good bad"), family)
    ids = subject.tokenizer("good bad good bad good", add_special_tokens=False)["input_ids"]
    assert len(ids) == 5
    rows = subject.base.get_input_embeddings().weight[ids].detach()
    assert torch.equal(prompt_embeddings(subject), rows)
    history = run(subject, replace(TRAINING, epochs=1))
    assert history.start is not None
    assert torch.equal(history.start, rows)
    after = prompt_embeddings(subject)
    assert after.shape == rows.shape == (5, 32)
    assert float((after - rows).abs().max()) > 1e-3
    assert run(new(Lora(4)), replace(TRAINING, epochs=1)).start is None


def test_p0_survives_a_kill(new: Any, tmp_path: Path):
    path = tmp_path / "checkpoint"
    rows = prompt_embeddings(new(Prompt(5)))
    with within(killed_at("training", 9)), pytest.raises(Killed):
        run(new(Prompt(5)), checkpoint=path)
    again, current = new(Prompt(5)), Session()
    with within(current):
        history = run(again, checkpoint=path)
    assert any("went on" in n for n in current.notes)
    assert torch.equal(history.start, rows)
    assert not torch.equal(prompt_embeddings(again), rows)


# ------------------------------------------------------------------------------------------------------ two processes

SCRIPT = """
import sys
from pathlib import Path
from trueup.subject.new_adapter import Lora, Prompt
from trueup.tuning import TuneJob, tune
base, data, out = sys.argv[1:]
for kind, recipe in (("lora", Lora(4)), ("prompt", Prompt(4))):
    job = TuneJob(base, data, recipe, device="cpu", max_length=32, training={"epochs": 2, "batch": 9, "lr": 1e-2})
    tune(job, Path(out) / kind)
import os
(Path(out) / os.environ.get("RANK", "alone")).touch()
"""


@pytest.mark.slow
def test_two_processes_train_the_adapters_of_one(
    bases: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each process takes its share of every batch (odd batches included); the gradients are the same numbers."""
    whole = corpus(104)
    rows = ["text,label,split"] + [
        f"{t},{CLASSES[y]},{'test' if i >= 84 else 'train'}"
        for i, (t, y) in enumerate(zip(whole.text, whole.label, strict=True))
    ]
    (tmp_path / "data.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "script.py").write_text(SCRIPT)

    def words(out: str) -> list[str]:
        return [str(tmp_path / "script.py"), bases["bert"], str(tmp_path / "data.csv"), str(tmp_path / out)]

    # Not accelerate's own launcher: with --cpu it starts a single process, whatever --num_processes says.
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([sys.executable, *launch, *words("by-2")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "by-2" / "0").is_file() and (tmp_path / "by-2" / "1").is_file(), "there were two processes"  # noqa: PT018
    monkeypatch.setattr(sys, "argv", words("by-1"))
    runpy.run_path(sys.argv[0])
    assert (tmp_path / "by-1" / "alone").is_file()
    for kind, recipe in (("lora", Lora(4)), ("prompt", Prompt(4))):
        one, two = (load_file(tmp_path / f"by-{n}" / kind / "adapter_model.safetensors") for n in (1, 2))
        assert set(one) == set(two)
        assert max(float((one[k] - two[k]).abs().max()) for k in one) <= 1e-5, kind
        start = adapter_tensors(fresh(bases["bert"], recipe, CLASSES, max_length=32, device="cpu", seed=0))
        assert max(float((one[k] - start[k]).abs().max()) for k in one) > 1e-3, "it was trained"


def test_training_that_diverges_is_said(new: Any):
    with pytest.raises(BadInput, match=r"diverged.*Take a lower --lr"):
        train(new(Lora(rank=2)), corpus(), Training(epochs=1), lr=1e30, seed=0)


# ------------------------------------------------------------------------------------------------------------ devices


def test_a_subject_stays_on_its_own_device(new: Any, monkeypatch: pytest.MonkeyPatch):
    """Accelerate has a device of its own: the first GPU, for a subject on the second. Here it is one without memory."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    want = new()
    run(want)
    subject = new()
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")
    try:
        assert room.processes().count == 1
        run(subject)
        assert Accelerator().device.type == "meta", "the control: accelerate would have taken it there"
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert {p.device.type for p in subject.model.parameters()} == {"cpu"}
    assert identical(weights(subject), weights(want))


@pytest.mark.parametrize("theirs", [{"mixed_precision": "bf16"}, {"mixed_precision": "no"}, {}], ids=str)
def test_a_process_may_have_set_accelerate_up_otherwise(
    new: Any, monkeypatch: pytest.MonkeyPatch, theirs: dict[str, str]
):
    """Accelerate has one device and one precision for a whole process: here another one's, of an earlier training."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    want = new()
    run(want)
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")
    try:
        other = Accelerator(**theirs)
        with pytest.raises(ValueError, match="already been initialized"):
            Accelerator(mixed_precision="fp16", cpu=True)  # the control
        subject = new()
        run(subject)
        assert other.device.type == "meta"
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert identical(weights(subject), weights(want))


def test_settings_of_another_kind_are_said():
    for name, value in (("epochs", "4"), ("batch", 8.0), ("lr", "fast"), ("warmup", None), ("clip", True)):
        with pytest.raises(BadInput, match=f"The training's {name} is .*; give a .*number, such as "):
            Training(**{name: value})
    assert Training(epochs=np.int64(2), lr=np.float32(0.5), clip=1).lr == 0.5
