"""Speed against the usual way, in one process on one thread: equality first, then the ratio of the minimum of several.

python bench/speed.py [heads] [features] [tangent] [attention] [demonstrations] [staircase | staircase:MODEL:TOKENS:POINTS ...]
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers

from trueup.corpus import tasks
from trueup.corpus.read import read
from trueup.faults.confounding import maths as tangents
from trueup.faults.overconfidence import maths
from trueup.faults.overconfidence.candidates import ADUE_GRID
from trueup.run import forward, staircase
from trueup.run.heads import HeadRun, train_heads, warm_start
from trueup.run.predict import collect_rows, outputs, predict
from trueup.run.prompts import drawn, rows, with_pool
from trueup.run.tangent import expand
from trueup.run.trace import LEAST, Sums, Trace
from trueup.subject.anatomy import FAMILIES
from trueup.subject.load import load
from trueup.subject.recipe import Lora, Prompt, fresh, prompt_embeddings
from trueup.subject.subject import Head, Source, Subject, Template
from trueup.subject.tiny import make_tokenizer
from trueup.subject.units import layers_of, projection_of
from trueup.subject.wear import bare


def seconds(f: Callable[[], object], repeats: int = 3) -> float:
    """CPU seconds of this process, minimum of `repeats`."""
    best = np.inf
    for _ in range(repeats):
        start = time.process_time()
        f()
        best = min(best, time.process_time() - start)
    return best


def one_head(x: torch.Tensor, start: Head, objective: maths.Objective, run: HeadRun, seed: int = 0) -> Head:
    """The usual way: one head, torch.optim.Adam, OneCycleLR."""
    layer = torch.nn.Linear(x.shape[1], len(start.weight))
    layer.weight.data.copy_(start.weight)
    layer.bias.data.copy_(start.bias)
    optimiser = torch.optim.Adam(layer.parameters(), lr=run.lr)
    per_epoch = -(-len(x) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, run.lr, total_steps=per_epoch * run.epochs, pct_start=0.1)
    rng, alpha = np.random.default_rng(np.random.SeedSequence([seed, 3])), torch.tensor([run.alpha])
    for _ in range(run.epochs):
        order = torch.as_tensor(rng.permutation(len(x)))
        for at in range(0, len(x), 128):
            rows = order[at : at + 128]
            optimiser.zero_grad()
            pull = (layer.weight - start.weight).square().sum() + (layer.bias - start.bias).square().sum()
            loss = objective(layer(x[rows])[None], rows, alpha).sum() + run.beta * pull
            loss.backward()
            optimiser.step()
            schedule.step()
    return Head(layer.weight.detach(), layer.bias.detach())


def heads(n: int = 2000, d: int = 384, classes: int = 3) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=g)
    start = Head(torch.randn(classes, d, generator=g) * 0.1, torch.zeros(classes))
    z = x @ start.weight.T
    objective = maths.Objective(
        maths.clamped(maths.ADUE_U),
        (torch.rand(n, generator=g) < 0.2).float(),
        1 - z.softmax(-1).amax(-1),
    )
    together: list[list[Head]] = []
    alone: list[list[Head]] = []
    fast = seconds(lambda: together.append(train_heads(x.numpy(), start, objective, ADUE_GRID, biased=True)))
    slow = seconds(lambda: alone.append([one_head(x, start, objective, r) for r in ADUE_GRID]), repeats=2)
    gap = max(float((a.weight - b.weight).abs().max()) for a, b in zip(together[0], alone[0], strict=True))
    assert gap <= 1e-6, gap
    print(f"| 144-run AdUE grid, n={n}, d={d}, C={classes} | one head at a time {slow:.1f} s | batched {fast:.2f} s | "
          f"{slow / fast:.0f} x | largest weight difference {gap:.1e} |")  # fmt: skip


def features(n: int = 400) -> None:
    subject = fresh("embedded:minilm", Lora(), ("negative", "positive"), max_length=64)
    corpus = read("embedded:movie-reviews-short", limit=n)
    full: list[np.ndarray] = []
    slow = seconds(lambda: full.append(predict(subject, corpus).logits))
    kept = predict(subject, corpus).features
    cached: list[np.ndarray] = []
    fast = seconds(lambda: cached.append(outputs(subject, kept).logits), repeats=20)
    gap = float(np.abs(full[0] - cached[0]).max())
    assert gap <= 1e-5, gap
    print(f"| one candidate head on {n} texts, MiniLM | full pass {slow:.2f} s | cached features {fast * 1e3:.2f} ms | "
          f"{slow / max(fast, 1e-6):.0f} x | largest logit difference {gap:.1e} |")  # fmt: skip


def tangent(n: int = 320, epochs: tuple[int, ...] = (5, 10, 20)) -> None:
    """A tangent prompt by cached gradients and a convex fit, against Adam with a jvp through the model at every step."""
    subject = fresh("embedded:minilm", Prompt(10), ("negative", "positive"), max_length=32)
    corpus = read("embedded:movie-reviews-short", limit=n)
    warm_start(subject, corpus)
    for p in subject.model.parameters():
        p.requires_grad_(False)
    start = prompt_embeddings(subject)
    assert start is not None
    target, rows = torch.as_tensor(corpus.label), forward.tokenize(subject, corpus)
    ridge = 1e-3
    found: list[tuple[np.ndarray, float, tangents.Basis, np.ndarray]] = []

    def shortcut() -> None:
        t = expand(subject, corpus, start)
        base = tangents.basis(t.rows, len(t), 1, start.numel())
        change, loss = tangents.tangent_fit(base, t.margins, corpus.label, ridge)
        logits = t.logits[:, :2] + np.stack([np.zeros(n), t.moved(change.reshape(start.shape))[:, 0]], axis=1)
        found.append((change, loss + 0.5 * ridge * base.scale * float(change @ change), base, logits))

    def linear(change: torch.Tensor, some: np.ndarray) -> torch.Tensor:
        batch = forward.collate([rows[i] for i in some], subject.tokenizer.pad_token_id)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            z, moved = torch.func.jvp(lambda p: forward.logits(subject, batch, p), (start,), (change,))
        return z.detach() + moved

    def whole(change: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([linear(change, np.arange(i, min(i + 64, n))) for i in range(0, n, 64)])

    def objective(change: torch.Tensor, scale: float) -> float:
        z = whole(change)
        ce = torch.nn.functional.cross_entropy(z.double(), target)
        return float(ce) + 0.5 * ridge * scale * float(change.double().square().sum())

    def usual(passes: int, scale: float) -> torch.Tensor:
        change = torch.zeros_like(start, requires_grad=True)
        optimiser, rng = torch.optim.Adam([change], lr=1e-2), np.random.default_rng(0)
        for _ in range(passes):
            order = rng.permutation(n)
            for at in range(0, n, 32):
                some = order[at : at + 32]
                optimiser.zero_grad()
                loss = torch.nn.functional.cross_entropy(linear(change, some), target[some])
                (loss + 0.5 * ridge * scale * change.square().sum()).backward()
                optimiser.step()
        return change.detach()

    fast = seconds(shortcut, repeats=2)
    change, best, base, said = found[0]
    end = torch.as_tensor(change, dtype=torch.float32).reshape(start.shape)
    gap = abs(objective(end, base.scale) - best)
    assert gap <= 1e-5, gap  # the shortcut's optimum, looked at through the real model

    def margin(z: np.ndarray) -> np.ndarray:
        return z[:, 1] - z[:, 0]

    through = whole(end).numpy()
    apart = float(np.abs(margin(said) - margin(through)).max())
    assert apart <= 1e-3, apart  # so are its predictions, example by example
    for passes in epochs:
        ends: list[torch.Tensor] = []
        slow = seconds(lambda passes=passes, ends=ends: ends.append(usual(passes, base.scale)), repeats=1)
        reached = objective(ends[0], base.scale)
        assert best <= reached + 1e-6, (best, reached)
        alike = float((whole(ends[0]).numpy().argmax(axis=1) == through.argmax(axis=1)).mean())
        how = f"jvp at every step, {passes} epochs {slow:.1f} s, loss {reached:.4f}"
        ours = f"cached gradients {fast:.1f} s, loss {best:.4f}"
        print(
            f"| tangent prompt, {n} texts, MiniLM | {how} | {ours} | {slow / fast:.1f} x | losses differ by {gap:.0e}, "
            f"margins by {apart:.0e}; {alike:.1%} of the usual way's predictions are the same |"
        )


STAIRS = [f"{model}:{tokens}:6" for model in ("gpt2", "smollm2") for tokens in (32, 128, 512)]


def causal(name: str) -> Subject:
    """GPT-2 small with random weights, or the embedded decoder."""
    if name == "smollm2":
        subject = load("embedded:smollm2", template="{text}", verbaliser=[" a", " b"], max_length=1024, device="cpu")
    else:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
        words = Template("{text}", ("good", "bad"))
        subject = Subject(net, make_tokenizer(), FAMILIES["gpt2"], ("a", "b"), Source("random gpt2"), 1024, words)
    for p in subject.model.parameters():
        p.requires_grad_(False)
    return subject


def peak(f: Callable[[], object]) -> str:
    """MB by which the resident memory of this process grew at its highest while `f` ran (Linux)."""

    def megabytes(what: str) -> float:
        line = next(li for li in Path("/proc/self/status").read_text().splitlines() if li.startswith(what))
        return int(line.split()[1]) / 1024

    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what an earlier run freed would hide what this one takes
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = megabytes("VmRSS")
    f()
    return f"{megabytes('VmHWM') - before:.0f} MB"


def stairs(case: str, prompts: int = 8) -> None:
    """Attributions of all units by one climb, against one layer at a time over the whole prompt, its points as a batch.

    The climb takes all prompts, as it would in use; the usual way, which gains nothing by more than a batch, the first.
    """
    name, tokens, points = (int(part) if part.isdigit() else part for part in case.split(":"))
    assert isinstance(name, str) and isinstance(tokens, int) and isinstance(points, int), case  # noqa: PT018
    subject, rule = causal(name), staircase.gauss_legendre(points)
    depth, rng = len(layers_of(subject)), np.random.default_rng(0)
    rows = [forward.Row(rng.integers(5, 1000, tokens).tolist()) for _ in range(prompts)]
    answers = subject.base.get_output_embeddings().weight[torch.arange(100, 110)]  # type: ignore[operator]
    nodes, weights = torch.tensor(rule.nodes)[:, None], torch.tensor(rule.weights)[:, None]
    # At 512 tokens the usual way runs on the first and the last layer, which cost the most and the least, and is scaled up.
    some = range(depth) if tokens < 512 else (0, depth - 1)

    def shift(h: torch.Tensor, _: int) -> torch.Tensor:
        p = (h @ answers.T).softmax(-1)
        return p[:, 1:4].amax(1) - p[:, 0]

    def usual() -> torch.Tensor:
        units = torch.as_tensor(staircase.last_units(subject, rows[:1]))[0]
        ids, parts = torch.tensor([rows[0]]).expand(points, -1), []
        for at in some:
            path = (nodes * units[at]).requires_grad_()

            def put(_: object, inputs: tuple[torch.Tensor, ...], path: torch.Tensor = path) -> torch.Tensor:
                return torch.cat([inputs[0][:, :-1], path[:, None]], dim=1)

            hook = projection_of(subject, at)[1].register_forward_pre_hook(put)
            h = forward.backbone(subject, ids, torch.ones_like(ids), use_cache=False).last_hidden_state[:, -1]
            hook.remove()
            (slope,) = torch.autograd.grad(shift(h, 0).sum(), path)
            parts.append(units[at] * (weights * slope).sum(dim=0))
        return torch.stack(parts)

    ours: list[staircase.Attribution] = []
    theirs: list[torch.Tensor] = []
    fast_memory = peak(lambda: ours.append(staircase.attribute(subject, rows, shift, rule)))
    slow_memory = peak(lambda: theirs.append(usual()))
    fast = seconds(lambda: staircase.attribute(subject, rows, shift, rule)) / prompts
    slow = seconds(usual, repeats=2) * depth / len(some)
    expected = theirs[0].numpy()
    gap = float(np.abs(ours[0].values[0, list(some)] - expected).max() / np.abs(expected).max())
    assert gap <= 1e-5, gap
    measured = "" if len(some) == depth else f", measured on layers {some[0]} and {some[1]}"
    what = f"unit attributions of {depth} layers, {name}, {tokens} tokens, {points} points"
    theirs_said = f"one layer at a time {slow:.2f} s{measured}, {slow_memory}"
    ours_said = f"one climb of {prompts} prompts {fast:.3f} s each, {fast_memory}"
    print(
        f"| {what} | {theirs_said} | {ours_said} | {slow / fast:.0f} x | largest difference {gap:.1e} of the largest |",
        flush=True,
    )


def attention(tokens: int = 512, slots: int = 10) -> None:
    """What a prompt does to attention, reduced layer by layer, against keeping all maps of both passes and comparing them."""
    words = Template("{text}", (" a", " b"))
    subject = fresh("embedded:smollm2", Prompt(slots), ("a", "b"), template=words, max_length=1024, device="cpu")
    plain, rng = bare(subject), np.random.default_rng(0)
    ids = torch.tensor([rng.integers(5, 40000, tokens).tolist()])
    batch = forward.Batch(ids, torch.ones_like(ids))
    positions = {"position_ids": torch.arange(slots, slots + tokens)[None]}
    named = [(s.base.config, s.base.config._attn_implementation) for s in (subject, plain)]

    def usual() -> tuple[np.ndarray, np.ndarray]:
        for config, _ in named:
            config._attn_implementation = "eager"  # sdpa, the default, returns no maps
        with torch.inference_mode():
            now = forward.backbone(subject, ids, batch.mask, output_attentions=True).attentions
            old = forward.backbone(plain, ids, batch.mask, output_attentions=True, **positions).attentions
            change, mass = [], []
            for a, b in zip(now, old, strict=True):
                text = a[0, :, slots + 1 :, slots:]
                left = text.sum(-1, keepdim=True)
                moved, kept = (text / left - b[0, :, 1:]).abs().sum(-1) / 2, left[..., 0] >= LEAST
                change.append(torch.where(kept, moved, 0.0).sum(-1) / kept.sum(-1).clamp(min=1))
                mass.append(a[0, :, slots:, :slots].sum(-1).mean(-1))
        for config, was in named:
            config._attn_implementation = was
        return torch.stack(change).numpy(), torch.stack(mass).numpy()

    def ours() -> Trace:
        sums = Sums(subject)
        with torch.inference_mode():
            sums.add(subject, plain, batch)
        return sums.result()

    usual()  # the first pass also brings the weights into memory
    got: list[Trace] = []
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    fast_memory = peak(lambda: got.append(ours()))
    slow_memory = peak(lambda: kept.append(usual()))
    gap = max(float(np.abs(got[0].change - kept[0][0]).max()), float(np.abs(got[0].mass - kept[0][1]).max()))
    assert gap <= 1e-5, gap
    fast, slow = seconds(ours), seconds(usual)
    print(
        f"| attention with and without a prompt, SmolLM2, {tokens} tokens | all maps kept {slow:.2f} s, {slow_memory} "
        f"| a layer at a time, bias subspace and quantiles too {fast:.2f} s, {fast_memory} | {slow / fast:.1f} x "
        f"| change and mass differ by {gap:.0e} |",
        flush=True,
    )


def demonstrations(tokens: int = 200, queries: int = 16) -> None:
    """Fixed demonstrations read once for all queries of a batch, against the whole prompt for every query."""
    subject = load("embedded:smollm2", shots=4, device="cpu")
    data = tasks.load("first-of-list", seed=0)
    pool = data.part("train")
    pairs = [(t, data.classes[y]) for t, y in zip(pool.text, pool.label, strict=True)]
    assert subject.template is not None
    kept: list[tuple[str, str]] = []
    while len(subject.tokenizer(subject.template.before(kept))["input_ids"]) < tokens:
        kept.append(pairs[len(kept)])
    subject = with_pool(subject, pool.take(np.arange(len(kept), len(pool))), kept)
    asked = data.part("test")
    asked = asked.take(np.arange(min(queries, len(asked))))
    ours = rows(subject, asked.text, drawn(subject, asked))
    usual = [forward.Row(r) for r in ours]
    got: list[np.ndarray] = []
    fast = seconds(lambda: got.append(collect_rows(subject, ours, forward.next_token_logits, "answers")))
    whole: list[np.ndarray] = []
    slow = seconds(lambda: whole.append(collect_rows(subject, usual, forward.next_token_logits, "answers")), repeats=2)
    gap = float(np.abs(got[0] - whole[0]).max() / np.abs(whole[0]).max())
    assert gap <= 1e-5, gap
    own = float(np.mean([len(r) - r.shared for r in ours]))
    print(
        f"| {len(ours)} queries of {own:.0f} tokens behind {ours[0].shared} tokens of fixed demonstrations, SmolLM2 "
        f"| the whole prompt each time {slow:.1f} s | demonstrations once a batch {fast:.2f} s | {slow / fast:.1f} x "
        f"| largest difference {gap:.1e} of the largest |",
        flush=True,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("| what | the usual way | trueup | ratio | equality |\n|---|---|---|---|---|")
    for name in sys.argv[1:] or ("heads", "features", "tangent", "attention", "demonstrations", "staircase"):
        kind, _, case = name.partition(":")
        if kind == "staircase":
            for one in [case] if case else STAIRS:
                stairs(one)
        else:
            {
                "heads": heads, "features": features, "tangent": tangent, "attention": attention,
                "demonstrations": demonstrations,
            }[kind]()  # fmt: skip
