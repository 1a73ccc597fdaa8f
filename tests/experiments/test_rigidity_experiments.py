"""The minimal-transformer experiments: data, split, equal budgets, what each adapter can touch, training, resuming."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trueup.errors import BadInput
from trueup.experiments import protocols, resumed
from trueup.experiments import rigidity as r
from trueup.experiments.protocols import FULL, OURS, PAPER, Method, Shape

TINY = Shape(2, 2, 16)
PADDED = Shape(2, 2, 16, padding=3, affine=True)
BARE = Shape(2, 2, 16, padding=3, normed=False, affine=True)
PREFIX, QK, V, MLP = (
    Method("prefix", 3),
    Method("lora", 2, ("q", "k")),
    Method("lora", 2, ("v",)),
    Method("lora", 1, protocols.MLP),
)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few examples: what is tested here does not depend on their number."""
    for name, n in (("TRAIN", 1000), ("VALIDATION", 64), ("TEST", 64)):
        monkeypatch.setattr(r, name, n)


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def models(seeds: list[int], shape: Shape = TINY) -> r.Params:
    each = [r.new_model(shape, gen(s), PAPER if shape.padding else OURS) for s in seeds]
    return {k: torch.cat([m[k] for m in each]) for k in each[0]}


def adapter(method: Method, shape: Shape = TINY, runs: int = 1) -> r.Params:
    """A random adapter that does something: a fresh LoRA is the zero map."""
    each = [r.new_adapter(method, shape, gen(7 + run)) for run in range(runs)]
    return {
        k: torch.cat([a[k] for a in each]) + 0.3 * torch.randn(runs, *each[0][k].shape[1:], generator=gen(9))
        for k in each[0]
    }


def count(method: Method, shape: Shape) -> int:
    return sum(t.numel() for t in r.new_adapter(method, shape, gen(0)).values())


def random_tokens(n: int = 8, runs: int = 1) -> Tensor:
    return torch.randint(r.DIGITS, (runs, n, 2 * r.LENGTH - 1), generator=gen(3))


# ---------------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize(
    ("task", "slow"),
    [
        ("ascending", lambda x: sorted(x)),
        ("descending", lambda x: sorted(x)[::-1]),
        ("add 1", lambda x: [d + 1 for d in x]),
        ("add 2", lambda x: [d + 2 for d in x]),
        ("ascending, add 1", lambda x: [d + 1 for d in sorted(x)]),
        ("double histogram", lambda x: [x.count(d) for d in x]),
    ],
)
def test_answers_are_what_plain_lists_give(task, slow):
    tokens = r.tokens_of([task], "train", 200)[0].tolist()
    assert all(row[10:] == slow(row[:10]) for row in tokens)
    assert max(max(row) for row in tokens) < OURS.words
    worst = [7] * 10
    assert r.answers(task, torch.tensor([worst]))[0].tolist() == slow(worst)


@pytest.fixture
def asked(monkeypatch):
    """What `teach` asks of `train`, whose validation loss and best step are made up."""

    def made(losses: dict[int, float], best: dict[int, int]) -> list[int]:
        calls: list[int] = []

        def train(frozen, trained, shape, tasks, *, seeds, rates, steps, **_):
            calls.append(steps)
            one = {k: v[:1] for k, v in trained.items()}
            return {seed: r.Kept(one, losses[steps], 0.0, 1e-2, best.get(steps, steps)) for seed in seeds}

        monkeypatch.setattr(r, "train", train)
        shape = Shape(1, 1, 8)
        models = r._started(lambda g: r.new_model(shape, g), range(2))
        _, kept = r.teach(Method("lora", 1, protocols.MLP), models, shape, "add 1", [0, 1], 100)
        return [*calls, round(1000 * kept[0].loss)]

    return made


def test_steps_double_while_the_last_is_the_best_and_it_pays(asked):
    falling = {100: 2.0, 200: 1.0, 400: 0.5}
    assert asked(falling, {}) == [100, 200, 400, 500]
    assert asked(falling, {100: 90}) == [100, 2000], "it was done before the last step"
    assert asked(falling, {200: 100}) == [100, 200, 1000]
    assert asked({100: 2.0, 200: 1.999, 400: 0.5}, {}) == [100, 200, 1999], "it does not pay"
    assert asked({100: 2.0, 200: 2.5}, {}) == [100, 200, 2000], "and the better one is kept"


def test_every_departure_goes_with_the_table(tmp_path: Path):
    said = r.table({"rows": [], "settings": {"seeds": 3, "width": 96, "steps": 1.0, "paper": False}})
    assert said.startswith(
        "# Prefixes and LoRAs on small transformers: a variant of the experiments of arXiv 2310.19698"
    )
    for part in ("layer norm in experiment 2", "padding slots", "20,000 to 500,000 steps at 64", "decay of 0.1",
                 "matrix by matrix", "deviation of 0.1 (theirs: 1)", "11 output tokens", "65,536"):  # fmt: skip
        assert part in said


def test_the_note_on_ten_twos_is_true():
    twos = (r.tokens_of(["double histogram"], "test", 3200)[0, :, 10:] == 2).all(dim=1).float().mean().item()
    assert f"score {twos:.1%} on the double histogram" in OURS.notes


def test_an_unknown_task_is_a_sentence():
    with pytest.raises(BadInput, match="no task 'reverse'"):
        r.answers("reverse", torch.zeros(1, 10, dtype=torch.long))


def test_the_parts_are_apart_and_a_quarter_is_held_out():
    seen = {part: {tuple(x) for x in r.inputs(part, 900).tolist()} for part in r.SHARES}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]
    held = sum(r.part_of([a, b, c, 0, 1]) != "train" for a in range(8) for b in range(8) for c in range(8))
    assert 0.17 < held / 512 < 0.33


def test_the_split_is_the_same_in_every_process():
    """The authors' was not: Python salts the hash of bytes. That it does is the control."""
    code = (
        "from trueup.experiments import rigidity as r\n"
        "print([r.inputs(p, 50).tolist() for p in r.SHARES], hash(b'salted'), sep='|')"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100,
            env=os.environ | {"PYTHONHASHSEED": salt, "OMP_NUM_THREADS": "1"},
        ).stdout.split("|")
        for salt in ("1", "2")
    ]  # fmt: skip
    assert said[0][0] == said[1][0]
    assert said[0][1] != said[1][1]


def test_inputs_with_many_repeats_are_drawn_more_often():
    few = [len(set(x)) <= 5 for x in r.inputs("train", 2000).tolist()]
    plain = (torch.randint(8, (2000, 10), generator=gen(0)).sort(1).values.diff(dim=1) != 0).sum(1) + 1 <= 5
    p = plain.float().mean().item()
    assert sum(few) / 2000 == pytest.approx(2 * p / (1 + p), abs=0.05)


# --------------------------------------------------------------------------------------------------------------- model


def slow_forward(p: r.Params, tokens: Tensor, shape: Shape, run: int) -> Tensor:
    """One run, head by head, every position of every layer (padding included), LoRA merged. Logits [n, 10, words]."""
    d, size, pad = shape.width, shape.width // shape.heads, shape.padding
    rows = torch.cat([torch.zeros(len(tokens[run]), pad, dtype=torch.long), tokens[run]], 1)
    x = p["words"][run][rows] + p["places"][run]
    length = x.shape[1]

    def weight(name: str) -> Tensor:
        w = p[f"{name}.w"][run]
        return w + p[f"{name}.a"][run] @ p[f"{name}.z"][run] if f"{name}.a" in p else w

    def norm(name: str, x: Tensor) -> Tensor:
        scale, shift = (p[f"{name}.{k}"][run] if shape.affine else None for k in "st")
        return F.layer_norm(x, (d,), scale, shift)

    for layer in range(shape.layers):
        h = x
        if (
            f"{layer}.px" in p
        ):  # in attention's input alone; what becomes of the residual stream there is as it is in the authors'
            h = torch.cat([p[f"{layer}.px"][run].expand(len(x), -1, -1), x[:, pad:]], 1)
        h = norm(f"{layer}.first", h) if shape.normed else h
        q, k, v = (h @ weight(f"{layer}.{m}") + p[f"{layer}.{m}.b"][run] for m in "qkv")
        heads = []
        for head in range(shape.heads):
            own = slice(head * size, (head + 1) * size)
            keys, values, slots = k[..., own], v[..., own], 0
            if f"{layer}.pk" in p:
                slots = p[f"{layer}.pk"].shape[2]
                keys = torch.cat([p[f"{layer}.pk"][run, head].repeat(len(x), 1, 1), keys], 1)
                values = torch.cat([p[f"{layer}.pv"][run, head].repeat(len(x), 1, 1), values], 1)
            scores = q[..., own] @ keys.mT / math.sqrt(size)
            scores += torch.full_like(scores, -math.inf).triu(slots + 1)
            heads.append(scores.softmax(-1) @ values)
        x = x + torch.cat(heads, -1) @ weight(f"{layer}.o") + p[f"{layer}.o.b"][run]
        h = F.gelu(norm(f"{layer}.second", x) @ weight(f"{layer}.up") + p[f"{layer}.up.b"][run], approximate="tanh")
        x = x + h @ weight(f"{layer}.down") + p[f"{layer}.down.b"][run]
    return (norm("last", x) @ p["head"][run])[:, length - r.LENGTH :]


def shaken(p: r.Params, by: float = 0.3) -> r.Params:
    """With norms' scales and all weights moved, so that each of them matters."""
    return {k: v + by * torch.randn(v.shape, generator=gen(i)) for i, (k, v) in enumerate(p.items())}


@pytest.mark.parametrize("shape", [TINY, PADDED, BARE], ids=str)
@pytest.mark.parametrize("method", [None, PREFIX, QK, V, MLP], ids=str)
def test_the_forward_pass_agrees_with_a_slow_one(method, shape):
    p = shaken(models([1, 2], shape)) | (adapter(method, shape, runs=2) if method else {})
    tokens = random_tokens(runs=2)
    fast = r.forward(p, tokens, shape)
    for run in range(2):
        torch.testing.assert_close(fast[run], slow_forward(p, tokens, shape, run), atol=1e-4, rtol=1e-3)


def test_no_position_reads_a_later_one():
    p, tokens = models([0]) | adapter(PREFIX), random_tokens()
    changed = tokens.clone()
    changed[:, :, 14] = (changed[:, :, 14] + 1) % 8
    before, after = r.forward(p, tokens, TINY), r.forward(p, changed, TINY)
    assert torch.equal(before[:, :, :5], after[:, :, :5])
    assert not torch.equal(before[:, :, 5:], after[:, :, 5:])


def test_judging_in_one_pass_is_greedy_decoding():
    """Half of the answers are what the model decodes token by token, half differ from it in one token."""
    p, n = models([4]), 40
    rows = torch.cat([r.inputs("test", n), torch.zeros(n, r.LENGTH, dtype=torch.long)], dim=1)
    for at in range(r.LENGTH):
        rows[:, r.LENGTH + at] = r.forward(p, rows[None, :, :-1], TINY)[0, :, at].argmax(-1)
    assert len(set(map(tuple, rows[:, r.LENGTH :].tolist()))) > 5
    assert r.judged(p, rows, TINY)[1].item() == 1
    for i in range(0, n, 2):
        rows[i, r.LENGTH + i // 2 % r.LENGTH] = (rows[i, r.LENGTH + i // 2 % r.LENGTH] + 1) % OURS.words
    assert r.judged(p, rows, TINY)[1].item() == 0.5


# ------------------------------------------------------------------------------------------------------------- budgets


@pytest.mark.parametrize("width", [8, 96, 256])
def test_compared_methods_train_exactly_the_same_number(width):
    settings = r.Settings(width=width)
    one, four, _ = (settings.shape(family) for family in OURS.families)
    methods = [c.method for c in OURS.families[0].cells if c.method and c.method != FULL]
    counts = [count(m, one) for m in methods]
    assert counts == [2 * one.width] * 3 + [10 * one.width] * 3
    lora, prefix = (c.method for c in OURS.families[1].cells[1:3])
    assert lora
    assert prefix
    assert count(lora, four) == count(prefix, four) == 40 * four.width


def test_compared_methods_try_equally_many_rates():
    assert {len(rates) for rates in OURS.rates.values()} == {3}
    assert OURS.rates["prefix"] == OURS.rates["lora"]


def test_the_paper_s_sizes_are_the_paper_s():
    wide = r.Settings(width=256)
    assert [wide.shape(f) for f in OURS.families] == [Shape(1, 1, 96), Shape(4, 4, 256), Shape(1, 4, 256)]
    paper = r.Settings(paper=True)
    assert [paper.shape(f) for f in PAPER.families] == [f.shape for f in PAPER.families]


# ---------------------------------------------------------------------------------------- what an adapter can touch


def relative_attention(p: r.Params) -> Tensor:
    """Attention of layer 0 over content alone, renormalised: [1, n, heads, 19, 19]."""
    seen: list[Tensor] = []
    r.forward(p, random_tokens(), TINY, seen)
    content = seen[0][..., -(2 * r.LENGTH - 1) :]
    return content / content.sum(-1, keepdim=True)


def test_a_prefix_leaves_relative_attention_and_a_lora_of_q_and_k_does_not():
    base = models([0])
    was = relative_attention(base)
    for method in (PREFIX, V, MLP):
        assert torch.allclose(relative_attention(base | adapter(method)), was, atol=1e-6), method
        assert not torch.allclose(
            r.forward(base | adapter(method), random_tokens(), TINY), r.forward(base, random_tokens(), TINY)
        )
    moved = (relative_attention(base | adapter(QK)) - was).abs().sum(-1).mean() / 2
    assert moved > 0.02


def test_a_lora_of_the_mlp_leaves_the_attention_s_maps():
    names = {name.split(".")[1] for name in r.new_adapter(MLP, TINY, gen(0))}
    assert names == {"up", "down"}
    taught, _ = r.teach(MLP, models([0]), TINY, "add 1", [0], 4)
    assert {name.split(".")[1] for name in taught} == {"up", "down"}


def test_a_fresh_lora_changes_nothing():
    base = models([0])
    fresh = r.new_adapter(QK, TINY, gen(0))
    assert torch.equal(r.forward(base | fresh, random_tokens(), TINY), r.forward(base, random_tokens(), TINY))


# ------------------------------------------------------------------------------------------------------------ training


def taught(seeds: list[int], rates: list[float], frozen: list[int], steps: int = 40, solved: float = math.inf):
    base = models(frozen)
    each = [r.new_adapter(PREFIX, TINY, gen(s)) for s in seeds]
    fresh = {k: torch.cat([a[k] for a in each]) for k in each[0]}
    return r.train(base, fresh, TINY, ["add 1"], seeds=seeds, rates=rates, steps=steps, batch=16, solved=solved)


def same(a: r.Kept, b: r.Kept) -> None:
    assert (a.rate, a.step) == (b.rate, b.step)
    assert a.loss == pytest.approx(b.loss, abs=1e-4)
    for k in a.params:
        torch.testing.assert_close(a.params[k], b.params[k], atol=1e-4, rtol=1e-3)


def test_training_together_is_training_alone():
    together = taught([0, 1, 2], [1e-2, 1e-2, 3e-2], frozen=[5, 6, 7])
    for seed, rate, base in ((0, 1e-2, 5), (1, 1e-2, 6), (2, 3e-2, 7)):
        same(together[seed], taught([seed], [rate], frozen=[base])[seed])


def test_the_best_rate_goes_on_as_if_it_had_been_alone():
    together = taught([0, 0, 0, 1, 1, 1], [0.0, 1e-2, 1e-5] * 2, frozen=[5, 5, 5, 6, 6, 6])
    for seed, base in ((0, 5), (1, 6)):
        assert together[seed].rate == pytest.approx(1e-2)
        same(together[seed], taught([seed], [1e-2], frozen=[base])[seed])


def test_a_run_that_diverges_does_not_harm_the_others():
    together = taught([0, 0], [math.nan, 1e-2], frozen=[5, 5])
    same(together[0], taught([0], [1e-2], frozen=[5])[0])


@pytest.mark.parametrize("how", [OURS, replace(PAPER, chosen=True)], ids=["ours", "paper"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_training_that_is_killed_goes_on_to_the_same(how, whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Killed after the rate was chosen and after a save: batches, dropout, moments and the choice go on bit by bit."""
    monkeypatch.setattr(r, "SAVED", 7)
    base, seeds = models([0, 0, 1, 1], PADDED), [0, 0, 1, 1]
    fresh = base if whole else adapter(PREFIX, PADDED, runs=4)

    def kept(at: Path | None, forward=r.forward, say=lambda s: None) -> dict[int, r.Kept]:
        monkeypatch.setattr(r, "forward", forward)
        return r.train(base, fresh, PADDED, ["add 1", "add 2"], seeds=seeds, rates=[1e-2, 1e-3] * 2, steps=20, batch=8,
                       solved=9, how=how, at=at, say=say)  # fmt: skip

    calls, real = [0], r.forward

    def dying(*args, **kwargs):
        calls[0] += 1
        if calls[0] == 35:  # a step is two passes: one to learn, one to check
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    whole_run = kept(None)
    with pytest.raises(KeyboardInterrupt):
        kept(tmp_path / "half", dying)
    data = resumed.kept(tmp_path / "half")
    assert torch.load(io.BytesIO(data), weights_only=True)["step"] == 14
    calls[0] = 100
    for seed, again in kept(tmp_path / "half", dying).items():
        assert (again.rate, again.step, again.loss) == (
            whole_run[seed].rate,
            whole_run[seed].step,
            whole_run[seed].loss,
        )
        assert all(torch.equal(again.params[k], whole_run[seed].params[k]) for k in again.params)
    assert calls[0] == 100 + 2 * 6, "only what was left was done"
    kept(tmp_path / "half", dying)
    assert calls[0] == 112, "what is done is not done again"
    spoilt = bytearray((tmp_path / "half").read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    (tmp_path / "half").write_bytes(spoilt)
    said: list[str] = []
    again = kept(tmp_path / "half", dying, said.append)
    assert calls[0] == 112 + 2 * 20, "a checkpoint with one turned bit is not gone on from"
    assert said[0] == "The part 'half' that an earlier run kept is damaged, so it is made again."
    assert [k.loss for k in again.values()] == [k.loss for k in whole_run.values()]


def test_teaching_stops_once_solved():
    assert taught([0], [1e-2], [5], solved=0.0)[0].step == 2
    assert taught([0], [1e-2], [5])[0].step > 2


def test_the_same_seed_gives_the_same_figures_and_another_does_not():
    runs = [r.teach(PREFIX, models([s, s + 1]), TINY, "add 1", [s, s + 1], 6)[1] for s in (0, 0, 2)]
    assert [k.loss for k in runs[0]] == [k.loss for k in runs[1]]
    assert [k.loss for k in runs[0]] != [k.loss for k in runs[2]]


def test_training_learns():
    """A fresh one-layer model learns adding 1 by copying; at the start it is at chance."""
    shape = Shape(1, 1, 32)
    base = r.new_model(shape, gen(0))
    check = r.tokens_of(["add 1"], "test", 64)[0]
    kept = r.train({}, base, shape, ["add 1"], seeds=[0], rates=[1e-2], steps=200, batch=32, solved=0.9)[0]
    assert r.judged(base, check, shape)[1].item() == 0
    assert r.judged(kept.params, check, shape)[1].item() > 0.8


# ------------------------------------------------------------------------------------------------------------ the bench

FAST = r.Settings(seeds=2, width=8, steps=0.001, precision="float32")


def test_a_killed_bench_goes_on_and_gives_the_same(tmp_path: Path):
    whole = r.run(tmp_path / "whole", FAST, say=lambda s: None)

    def killed(sentence: str) -> None:
        said.extend(finished(sentence))
        if len(said) == 5:
            raise KeyboardInterrupt

    def finished(sentence: str) -> list[str]:
        return [] if sentence.startswith(" ") else [sentence]

    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        r.run(tmp_path / "out", FAST, say=killed)
    assert not (tmp_path / "out").exists()
    again: list[str] = []
    assert r.run(tmp_path / "out", FAST, say=lambda s: again.extend(finished(s))) == whole
    cells = sum(len(f.cells) for f in OURS.families)
    assert len(again) == cells + len(OURS.families) - 5
    assert not set(again) & set(said)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]
    for name in ("rigidity.json", "rigidity.md"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert json.loads((tmp_path / "out" / "rigidity.json").read_text())["rows"] == whole["rows"]
    lines = (tmp_path / "out" / "rigidity.md").read_text().splitlines()
    assert sum(line.startswith("| ") for line in lines) == cells + 1


def test_a_taken_folder_is_refused_before_any_work(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(BadInput, match="--force"):
        r.run(tmp_path / "out", FAST, say=lambda s: pytest.fail(s))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize(
    "knobs",
    [{"seeds": 0}, {"width": 3}, {"steps": 0.0}, {"steps": math.nan}, {"only": (5,)}, {"only": (1, 0), "paper": True}],
)
def test_bad_knobs_are_sentences(knobs):
    with pytest.raises(BadInput, match="Give"):
        r.Settings(**knobs)


# ------------------------------------------------------------------------------------------- as the paper's authors do it


def test_what_the_notebooks_say_of_their_sizes_is_true_of_these():
    """Notebook 04 prints 12,288 for both sides; 01 trains 96 numbers; the exhausted steps are those of its cells."""
    by = {(c.experiment, c.method.kind, c.task): (f, c) for f in PAPER.families for c in f.cells if c.method}
    sizes = {}
    for (n, kind, _), (family, cell) in by.items():
        assert cell.method
        if kind == "prefix":
            assert cell.method.size == family.shape.padding, "a prefix stands for all padding slots"
        if kind != "full":
            fresh = r.new_adapter(cell.method, family.shape, gen(0), PAPER)
            sizes[n, kind] = sum(t.numel() for t in fresh.values())
    assert sizes == {
        (1, "prefix"): 96,
        (2, "prefix"): 256,
        (3, "prefix"): 10240,
        (4, "prefix"): 12288,
        (4, "lora"): 12288,
    }
    steps = {(n, kind, task): cell.steps or family.teaching for (n, kind, task), (family, cell) in by.items()}
    assert steps[1, "full", "descending"] == 10_000
    assert steps[1, "prefix", "descending"] == 40_000
    assert steps[2, "prefix", "add 1"] == 30_000
    assert (steps[3, "prefix", "add 1"], steps[3, "prefix", "double histogram"]) == (20_000, 500_000)
    assert (steps[4, "prefix", "double histogram"], steps[4, "lora", "double histogram"]) == (100_000, 10_000)
    assert [f.pretraining for f in PAPER.families] == [20_000, 20_000, 40_000, 40_000]


def test_padding_slots_take_part_in_pretraining_and_a_prefix_stands_in_their_place():
    """A prefix that brings to each layer what the padding slots brought there changes nothing; without padding, answers change."""
    p, tokens = shaken(models([0], PADDED), 0.1), random_tokens()
    was = r.forward(p, tokens, PADDED)
    first = (p["words"][0, 0] + p["places"][0, :3])[None]
    one = Shape(1, 2, 16, padding=3, affine=True)
    short = {k: v for k, v in p.items() if not k.startswith("1.")}
    torch.testing.assert_close(r.forward(short | {"0.px": first}, tokens, one), r.forward(short, tokens, one))
    less = Shape(2, 2, 16, affine=True)
    bare = p | {"places": p["places"][:, 3:]}
    assert not torch.allclose(r.forward(bare, tokens, less), was, atol=1e-3)


def test_a_bare_shape_has_no_norm_before_attention():
    """Scaling what attention is given changes its pattern; behind a norm it cannot."""
    tokens = random_tokens()

    def pattern(shape: Shape, scale: float) -> Tensor:
        p, seen = models([0], shape), []
        r.forward(p | {k: p[k] * scale for k in ("words", "places")}, tokens, shape, seen)
        return seen[0]

    assert torch.allclose(pattern(PADDED, 50.0), pattern(PADDED, 100.0), atol=1e-4)
    assert not torch.allclose(pattern(BARE, 50.0), pattern(BARE, 100.0), atol=1e-3)
    assert not any("first" in k for k in r.new_model(BARE, gen(0), PAPER))


def slow_training(p: r.Params, names: list[str], shape: Shape, task: str, lr: float, steps: int, how) -> r.Params:
    """One run, trained by torch's own AdamW and clipping, as the authors' trainers do; no dropout."""
    live = {k: v.clone().requires_grad_(k in names) for k, v in p.items()}
    whole = "head" in names
    decays = [k for k in names if k.split(".")[-1] in ("w", "head")] if whole else []
    rate = {k: (how.decay if k in decays else 0.0) if whole else how.adapter_decay for k in names}
    optimiser = torch.optim.AdamW(
        [{"params": [live[k]], "weight_decay": rate[k]} for k in names], lr=lr, betas=(0.9, 0.95)
    )
    order = gen(0)
    for step in range(1, steps + 1):
        torch.randint(1, (16,), generator=order)
        rows = r.answered([task], r.endless(0, step, 16, how))
        optimiser.zero_grad()
        z = slow_forward(live, rows[:, :, :-1], shape, 0)
        F.cross_entropy(z.flatten(0, 1), rows[0, :, r.LENGTH :].flatten()).backward()
        if any(k.endswith(".a") for k in names):
            for k in names:
                torch.nn.utils.clip_grad_norm_(live[k], 1.0)
        else:
            torch.nn.utils.clip_grad_norm_([live[k] for k in names], 1.0)
        optimiser.step()
    return {k: live[k].detach() for k in names}


@pytest.mark.parametrize("method", [FULL, PREFIX, Method("lora", 2, ("o", "up", "down"))], ids=str)
def test_training_is_that_of_torch_with_the_authors_settings(method):
    """Against torch.optim.AdamW and clip_grad_norm_; each setting undone gives other weights, so the agreement says something."""
    base = shaken(models([3], PADDED), 0.5)  # gradients of a norm above 1, so that clipping does something
    fresh = base if method == FULL else shaken(r.new_adapter(method, PADDED, gen(1), PAPER), 0.5)
    how = replace(PAPER, dropout=0.0, decay=5.0, adapter_decay=2.0)
    names = list(fresh)
    # Keys' biases move nothing, so their gradient is rounding, of which AdamW makes steps as large as of any other.
    compared = [k for k in names if not k.endswith("k.b")]

    def fast(how) -> Tensor:
        kept = r.train(base, fresh, PADDED, ["add 1"], seeds=[0], rates=[1e-2], steps=4, batch=16, solved=0.0, how=how)
        assert kept[0].step == 4, "no stopping"
        return torch.cat([kept[0].params[k].flatten() for k in compared])

    slow = slow_training(base | fresh, names, PADDED, "add 1", 1e-2, 4, how)
    wanted = torch.cat([slow[k].flatten() for k in compared])
    torch.testing.assert_close(fast(how), wanted, atol=1e-3, rtol=1e-2)
    undone = [replace(how, decay=0.0, adapter_decay=0.0), replace(how, constant=False)]
    if method.kind == "lora":
        undone.append(replace(how, apart=False))
    for other in undone:
        assert (fast(other) - wanted).abs().max() > 5e-3, other


def test_dropout_is_of_whole_models_alone_and_each_seed_has_its_own():
    base, adapters = models([0, 1], PADDED), adapter(PREFIX, PADDED, runs=2)

    def kept(fresh: r.Params, seeds: list[int], how=PAPER) -> list[Tensor]:
        rows = [v[seeds] for v in fresh.values()]
        got = r.train(
            {k: v[seeds] for k, v in base.items()}, dict(zip(fresh, rows, strict=True)), PADDED, ["add 1"],
            seeds=seeds, rates=[1e-3] * len(seeds), steps=3, batch=16, solved=9, how=how,
        )  # fmt: skip
        return [torch.cat([v.flatten() for v in got[s].params.values()]) for s in seeds]

    without = replace(PAPER, dropout=0.0)
    assert torch.equal(kept(adapters, [0])[0], kept(adapters, [0], without)[0])
    assert not torch.allclose(kept(base, [0])[0], kept(base, [0], without)[0], atol=1e-4)
    for together, alone in zip(kept(base, [0, 1]), [kept(base, [s])[0] for s in (0, 1)], strict=True):
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-3)


def test_training_inputs_never_end_and_none_has_one_digit_ten_times(monkeypatch: pytest.MonkeyPatch):
    one, again, next_ = (r.endless(0, step, 200, PAPER) for step in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, next_)
    assert not torch.equal(one, r.endless(1, 1, 200, PAPER))
    assert {r.part_of(x) for x in one.tolist()} == {"train"}
    monkeypatch.setattr(r, "DIGITS", 1)  # every draw has one digit ten times
    monkeypatch.setattr(r, "part_of", lambda row: "train")
    assert len(r.endless(0, 1, 5, OURS)) == 5
    drawn = r.np.random.default_rng(0)
    monkeypatch.setattr(r, "DIGITS", 2)
    rows = r._drawn(drawn, "train", 3000, equal=False)
    assert (rows.amin(1) < rows.amax(1)).all()
    assert (r._drawn(drawn, "train", 3000).amin(1) == 1).any(), "with two digits some are drawn"
    assert r.answers("double histogram", rows).max() < PAPER.words


def test_fresh_weights_and_prefixes_start_where_theirs_do():
    shape = PAPER.families[0].shape
    p = r.new_model(shape, gen(0), PAPER)
    assert p["words"].shape[1] == 10
    assert p["places"].shape[1] == 20
    for name, spread in (
        ("0.q.w", 0.02),
        ("0.o.w", 0.02 / math.sqrt(2)),
        ("0.down.w", 0.02 / math.sqrt(2)),
        ("head", 0.02),
    ):
        assert p[name].std().item() == pytest.approx(spread, rel=0.1)
    prefix = r.new_adapter(Method("prefix", 12), PAPER.families[2].shape, gen(0), PAPER)
    assert torch.cat(list(prefix.values())).std().item() == pytest.approx(1.0, rel=0.05)


def test_the_paper_s_last_parameters_are_kept_and_ours_are_the_best():
    """At a rate that ruins the model the last are worse than the first, in the paper's way too."""
    base = models([0])
    kept = {
        how.chosen: r.train({}, base, TINY, ["add 1"], seeds=[0], rates=[3.0], steps=21, batch=8, solved=9, how=how)[0]
        for how in (replace(OURS, constant=True), replace(OURS, constant=True, chosen=False))
    }
    assert kept[False].step == 21
    assert kept[True].step < 21
    assert kept[True].loss < kept[False].loss


def test_one_experiment_as_published_runs_end_to_end(tmp_path: Path):
    settings = r.Settings(seeds=1, width=8, steps=0.0002, paper=True, only=(4, 1))
    got = r.run(tmp_path / "out", settings, say=lambda s: None)
    assert [(row["experiment"], row["method"], row["steps"], row["parameters"]) for row in got["rows"]] == [
        (1, "as pretrained", 0, 0), (1, "as pretrained", 0, 0), (1, "full fine-tuning", 2, 1208), (1, "prefix, 1 slot", 8, 8),
        (4, "as pretrained", 0, 0), (4, "LoRA of o+up+down, rank 1", 2, 384), (4, "prefix, 12 slots", 20, 384),
    ]  # fmt: skip
    said = (tmp_path / "out" / "rigidity.md").read_text()
    assert said.startswith(f"# {PAPER.title}")
    assert "times 0.0002, and models at most 8 wide" in said


def test_a_published_experiment_that_is_killed_in_the_middle_of_a_training_goes_on(tmp_path: Path, monkeypatch):
    settings = r.Settings(seeds=1, width=8, steps=0.0005, paper=True, only=(1,))
    whole = r.run(tmp_path / "whole", settings, say=lambda s: None)
    monkeypatch.setattr(r, "SAVED", 1)
    real, calls = r.forward, [0]

    def dying(*args, **kwargs):
        calls[0] += 1
        if calls[0] == 11:  # in the sixth of ten steps of pretraining
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(r, "forward", dying)
    with pytest.raises(KeyboardInterrupt):
        r.run(tmp_path / "out", settings, say=lambda s: None)
    (half,) = tmp_path.rglob("*.training1")
    assert torch.load(half, weights_only=True)["step"] == 5
    assert r.run(tmp_path / "out", settings, say=lambda s: None) == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]
