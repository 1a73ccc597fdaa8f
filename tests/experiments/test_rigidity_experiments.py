"""The minimal-transformer experiments: data, split, equal budgets, what each adapter can touch, training, resuming."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trueup.errors import BadInput
from trueup.experiments import rigidity as r

TINY = r.Shape(2, 2, 16)
PREFIX, QK, V, MLP = (
    r.Method("prefix", 3),
    r.Method("lora", 2, ("q", "k")),
    r.Method("lora", 2, ("v",)),
    r.Method("lora", 1, r.MLP),
)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few examples: what is tested here does not depend on their number."""
    for name, n in (("TRAIN", 1000), ("VALIDATION", 64), ("TEST", 64)):
        monkeypatch.setattr(r, name, n)


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def models(seeds: list[int], shape: r.Shape = TINY) -> r.Params:
    each = [r.new_model(shape, gen(s)) for s in seeds]
    return {k: torch.cat([m[k] for m in each]) for k in each[0]}


def adapter(method: r.Method, shape: r.Shape = TINY, runs: int = 1) -> r.Params:
    """A random adapter that does something: a fresh LoRA is the zero map."""
    each = [r.new_adapter(method, shape, gen(7 + run)) for run in range(runs)]
    return {
        k: torch.cat([a[k] for a in each]) + 0.3 * torch.randn(runs, *each[0][k].shape[1:], generator=gen(9))
        for k in each[0]
    }


def count(method: r.Method, shape: r.Shape) -> int:
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
    assert max(max(row) for row in tokens) < r.WORDS
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
        shape = r.Shape(1, 1, 8)
        models = r._started(lambda g: r.new_model(shape, g), range(2))
        _, kept = r.teach(r.Method("lora", 1, r.MLP), models, shape, "add 1", [0, 1], 100)
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
    said = r.table({"rows": [], "settings": {"seeds": 3, "width": 96, "steps": 1.0}})
    assert said.startswith(
        "# Prefixes and LoRAs on small transformers: a variant of the experiments of arXiv 2310.19698"
    )
    for part in ("layer norm in experiment 2", "padding slots", "100,000 to 500,000 steps at 64", "decay of 0.1",
                 "matrix by matrix", "deviation of 0.1 (theirs: 1)", "11 output tokens", "65,536"):  # fmt: skip
        assert part in said


def test_the_note_on_ten_twos_is_true():
    twos = (r.tokens_of(["double histogram"], "test", 3200)[0, :, 10:] == 2).all(dim=1).float().mean().item()
    assert f"score {twos:.1%} on the double histogram" in r.NOTES


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


def slow_forward(p: r.Params, tokens: Tensor, shape: r.Shape, run: int) -> Tensor:
    """One run, head by head, every position of every layer, LoRA merged into its weight. Logits [n, 10, 11]."""
    d, size = shape.width, shape.width // shape.heads
    x = p["words"][run][tokens[run]] + p["places"][run]
    length = x.shape[1]

    def weight(name: str) -> Tensor:
        w = p[f"{name}.w"][run]
        return w + p[f"{name}.a"][run] @ p[f"{name}.z"][run] if f"{name}.a" in p else w

    for layer in range(shape.layers):
        h = F.layer_norm(x, (d,))
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
        h = F.gelu(F.layer_norm(x, (d,)) @ weight(f"{layer}.up") + p[f"{layer}.up.b"][run], approximate="tanh")
        x = x + h @ weight(f"{layer}.down") + p[f"{layer}.down.b"][run]
    return (F.layer_norm(x, (d,)) @ p["head"][run])[:, length - r.LENGTH :]


@pytest.mark.parametrize("method", [None, PREFIX, QK, V, MLP], ids=str)
def test_the_forward_pass_agrees_with_a_slow_one(method):
    p = models([1, 2]) | (adapter(method, runs=2) if method else {})
    tokens = random_tokens(runs=2)
    fast = r.forward(p, tokens, TINY)
    for run in range(2):
        torch.testing.assert_close(fast[run], slow_forward(p, tokens, TINY, run), atol=2e-5, rtol=1e-4)


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
        rows[i, r.LENGTH + i // 2 % r.LENGTH] = (rows[i, r.LENGTH + i // 2 % r.LENGTH] + 1) % r.WORDS
    assert r.judged(p, rows, TINY)[1].item() == 0.5


# ------------------------------------------------------------------------------------------------------------- budgets


@pytest.mark.parametrize("width", [8, 96, 256])
def test_compared_methods_train_exactly_the_same_number(width):
    settings = r.Settings(width=width)
    one, four, _ = (settings.shape(family) for family in r.FAMILIES)
    methods = [c.method for c in r.FAMILIES[0].cells if c.method and c.method != r.FULL]
    counts = [count(m, one) for m in methods]
    assert counts == [2 * one.width] * 3 + [10 * one.width] * 3
    lora, prefix = (c.method for c in r.FAMILIES[1].cells[1:3])
    assert lora
    assert prefix
    assert count(lora, four) == count(prefix, four) == 40 * four.width


def test_compared_methods_try_equally_many_rates():
    assert {len(rates) for rates in r.RATES.values()} == {3}
    assert r.RATES["prefix"] == r.RATES["lora"]


def test_the_paper_s_sizes_are_the_paper_s():
    paper = r.Settings(width=256)
    assert [paper.shape(f) for f in r.FAMILIES] == [r.Shape(1, 1, 96), r.Shape(4, 4, 256), r.Shape(1, 4, 256)]


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


def test_teaching_stops_once_solved():
    assert taught([0], [1e-2], [5], solved=0.0)[0].step == 2
    assert taught([0], [1e-2], [5])[0].step > 2


def test_the_same_seed_gives_the_same_figures_and_another_does_not():
    runs = [r.teach(PREFIX, models([s, s + 1]), TINY, "add 1", [s, s + 1], 6)[1] for s in (0, 0, 2)]
    assert [k.loss for k in runs[0]] == [k.loss for k in runs[1]]
    assert [k.loss for k in runs[0]] != [k.loss for k in runs[2]]


def test_training_learns():
    """A fresh one-layer model learns adding 1 by copying; at the start it is at chance."""
    shape = r.Shape(1, 1, 32)
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
    cells = sum(len(f.cells) for f in r.FAMILIES)
    assert len(again) == cells + len(r.FAMILIES) - 5
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


@pytest.mark.parametrize("knobs", [{"seeds": 0}, {"width": 3}, {"steps": 0.0}, {"steps": math.nan}])
def test_bad_knobs_are_sentences(knobs):
    with pytest.raises(BadInput, match="Give"):
        r.Settings(**knobs)
