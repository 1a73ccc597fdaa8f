"""Speed against the usual way, in one process on one thread: equality first, then the ratio of the minimum of several.

python bench/speed.py [heads] [features]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from trueup.corpus.read import read
from trueup.faults.overconfidence import maths
from trueup.faults.overconfidence.candidates import ADUE_GRID
from trueup.run.heads import HeadRun, train_heads
from trueup.run.predict import outputs, predict
from trueup.subject.recipe import Lora, fresh
from trueup.subject.subject import Head


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
        lambda z: maths.adue_uncertainty(z, rescaled=False),
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("| what | the usual way | trueup | ratio | equality |\n|---|---|---|---|---|")
    for name in sys.argv[1:] or ("heads", "features"):
        {"heads": heads, "features": features}[name]()
