"""A grid of heads as one tensor is the same as each head alone with torch's own Adam and OneCycleLR."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from trueup.run.heads import HeadRun, train_heads
from trueup.run.predict import Session, within
from trueup.subject.subject import Head

N, D, C, BATCH = 300, 12, 3, 64
RUNS = (
    HeadRun(1e-2, 4, 0.0, 0.01),
    HeadRun(1e-3, 7, 0.3, 0.1),
    HeadRun(1e-3, 1, 1.0, 1.0),
    HeadRun(1e-4, 4, 0.1, 0.5),
    HeadRun(1e-2, 7, 1.0, 0.0),
    HeadRun(1e-3, 3, 0.0, 0.0),
)


def data() -> tuple[np.ndarray, Head, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    g = torch.Generator().manual_seed(0)
    x = rng.normal(size=(N, D)).astype(np.float32)
    start = Head(torch.randn(C, D, generator=g) * 0.3, torch.randn(C, generator=g) * 0.3)
    error = torch.as_tensor((rng.random(N) < 0.3).astype(np.float32))
    anchor = torch.as_tensor(rng.random(N).astype(np.float32))
    return x, start, error, anchor


def loss(z: torch.Tensor, rows: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Any loss will do: this one bends, uses the rows, and weighs alpha per run."""
    _, _, error, anchor = data()
    u = 1 - z.softmax(-1).square().sum(-1)
    return (u - error[rows]).square().mean(-1) + alpha * (u - anchor[rows]).square().mean(-1)


def alone(run: HeadRun, *, biased: bool, seed: int) -> Head:
    """The slow way: one head, torch.optim.Adam, OneCycleLR (10% warm-up)."""
    x, start, _, _ = data()
    layer = torch.nn.Linear(D, C)
    with torch.no_grad():
        layer.weight.copy_(start.weight)
        layer.bias.copy_(start.bias)
    layer.bias.requires_grad_(biased)
    trained = [p for p in layer.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=run.lr)
    steps = -(-N // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, run.lr, total_steps=steps * run.epochs, pct_start=0.1)
    rng, features = np.random.default_rng(np.random.SeedSequence([seed, 3])), torch.as_tensor(x)
    for _ in range(run.epochs):
        order = torch.as_tensor(rng.permutation(N))
        for at in range(0, N, BATCH):
            rows = order[at : at + BATCH]
            optimiser.zero_grad()
            pull = (layer.weight - start.weight).square().sum()
            if biased:
                pull = pull + (layer.bias - start.bias).square().sum()
            value = loss(layer(features[rows])[None], rows, torch.tensor([run.alpha])).sum() + run.beta * pull
            value.backward()
            optimiser.step()
            schedule.step()
    return Head(layer.weight.detach(), layer.bias.detach())


def grid(runs: tuple[HeadRun, ...] = RUNS, *, biased: bool = True, seed: int = 0, batch: int = BATCH) -> list[Head]:
    x, start, _, _ = data()
    return train_heads(x, start, loss, runs, biased=biased, batch=batch, seed=seed)


def apart(a: Head, b: Head) -> float:
    return max(float((a.weight - b.weight).abs().max()), float((a.bias - b.bias).abs().max()))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("seed", [0, 5])
def test_a_grid_is_each_head_alone_with_torchs_optimiser(biased: bool, seed: int):
    _, start, _, _ = data()
    for run, head in zip(RUNS, grid(biased=biased, seed=seed), strict=True):
        assert apart(head, alone(run, biased=biased, seed=seed)) <= 1e-6, run
        assert apart(head, start) > 2e-5, "it moved, so the comparison means something"
        assert biased or torch.equal(head.bias, start.bias)
        assert head.weight.shape == (C, D)


def test_one_step_runs_as_torch_does():
    """A run of a single step, where the warm-up has no length: torch's schedule has a corner there."""
    x, start, _, _ = data()
    run = HeadRun(1e-2, 2, 0.1, 0.1)
    (head,) = train_heads(x, start, loss, [run], biased=True, batch=N)
    layer = torch.nn.Linear(D, C)
    with torch.no_grad():
        layer.weight.copy_(start.weight)
        layer.bias.copy_(start.bias)
    optimiser = torch.optim.Adam(layer.parameters(), lr=run.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, run.lr, total_steps=2, pct_start=0.1)
    rng = np.random.default_rng(np.random.SeedSequence([0, 3]))
    for _ in range(2):
        rows = torch.as_tensor(rng.permutation(N))
        optimiser.zero_grad()
        pull = (layer.weight - start.weight).square().sum() + (layer.bias - start.bias).square().sum()
        (loss(layer(torch.as_tensor(x)[rows])[None], rows, torch.tensor([0.1])).sum() + 0.1 * pull).backward()
        optimiser.step()
        schedule.step()
    assert apart(head, Head(layer.weight.detach(), layer.bias.detach())) <= 1e-6


def test_a_run_of_ten_steps_is_possible():
    """There torch's own schedule divides by zero (a warm-up of exactly one step); a grid must not fall over it."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ZeroDivisionError):
        torch.optim.lr_scheduler.OneCycleLR(torch.optim.Adam([parameter]), 1e-3, total_steps=10, pct_start=0.1)
    _, start, _, _ = data()
    (ten,), (fifteen,) = grid((HeadRun(1e-2, 2, 0.0, 0.0),)), grid((HeadRun(1e-2, 3, 0.0, 0.0),))
    assert 0 < apart(ten, start) < 2 * apart(fifteen, start)


def test_the_order_of_the_runs_is_kept():
    forwards, backwards = grid(), grid(RUNS[::-1])
    for a, b in zip(forwards, backwards[::-1], strict=True):
        assert apart(a, b) <= 1e-6
    assert apart(forwards[0], forwards[-1]) > 1e-3


@pytest.mark.parametrize("i", range(len(RUNS)))
def test_a_run_does_not_depend_on_the_grid(i: int):
    (by_itself,) = grid((RUNS[i],))
    assert apart(by_itself, grid()[i]) <= 1e-6
    # Also next to a run that falls over: its infinities stay its own.
    wild = HeadRun(1e6, RUNS[i].epochs, 0.0, 1e6)
    assert apart(by_itself, grid((wild, RUNS[i], wild))[1]) <= 1e-6


def test_a_run_ends_when_its_epochs_do():
    """Beside a far longer run, and with a rate so large that going on at the schedule's last value would show."""
    short = HeadRun(1.0, 1, 0.0, 0.0)
    (by_itself,) = grid((short,))
    assert apart(by_itself, grid((HeadRun(1e-3, 30, 0.0, 0.0), short))[1]) <= 1e-5


@pytest.mark.parametrize(("name", "value"), [("lr", 3e-3), ("epochs", 5), ("alpha", 0.7), ("beta", 0.4)])
def test_every_knob_of_a_run_counts(name: str, value: float):
    run = HeadRun(1e-3, 4, 0.1, 0.1)
    a, b = grid((run, replace(run, **{name: value})))
    assert apart(a, b) > 1e-6


def test_seed_and_batch_count_and_repeat():
    first = grid()
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(first, grid(), strict=True))
    assert apart(first[0], grid(seed=1)[0]) > 1e-6
    assert apart(first[0], grid(batch=32)[0]) > 1e-5


def test_the_start_is_left_alone_and_a_strong_pull_keeps_a_head_there():
    x, start, _, _ = data()
    weight, bias = start.weight.clone(), start.bias.clone()
    loose, tight = train_heads(x, start, loss, [HeadRun(1e-3, 20, 0, 0), HeadRun(1e-3, 20, 0, 1e4)], biased=True)
    assert torch.equal(start.weight, weight)
    assert torch.equal(start.bias, bias)
    assert apart(tight, start) < apart(loose, start) / 3


def test_training_lowers_the_loss_and_tells_of_its_progress():
    x, start, _, _ = data()
    rows, told = torch.arange(N), []

    def value(head: Head) -> float:
        z = torch.as_tensor(x) @ head.weight.T + head.bias
        return float(loss(z[None], rows, torch.zeros(1)))

    with within(Session(progress=lambda *told_: told.append(told_))):
        (head,) = grid((HeadRun(1e-2, 20, 0.0, 0.0),))
    assert value(head) < value(start) - 0.01
    assert told == [("training heads", i + 1, 20) for i in range(20)]


class Two:
    """A loss that of two classes sees their margin alone, with its derivative."""

    def __init__(self) -> None:
        _, _, self.error, self.anchor = data()

    def __call__(self, z: torch.Tensor, rows: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        p = z.softmax(-1)[..., 1]
        return ((p - self.error[rows]).square() + alpha[:, None] * (p - self.anchor[rows]).square()).mean(-1)

    def slope(self, margin: torch.Tensor, rows: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        p = margin.sigmoid()
        off = 2 * (p - self.error[rows]) + 2 * alpha[:, None] * (p - self.anchor[rows])
        return off * p * (1 - p) / len(rows)


@pytest.mark.parametrize("biased", [True, False])
def test_one_row_for_two_classes_is_both(biased: bool):
    x, start, _, _ = data()
    start, two = Head(start.weight[:2], start.bias[:2]), Two()
    seen: list[list[torch.Tensor]] = [[], []]
    fast, slow = (
        train_heads(x, start, loss, RUNS, biased=biased, watch=lambda t, of=of: bool(of.append(t.clone())))
        for loss, of in zip((two, lambda *given: two(*given)), seen, strict=True)
    )
    for run, a, b in zip(RUNS, fast, slow, strict=True):
        assert apart(a, b) <= 1e-6, run
        assert apart(a, start) > 2e-5
        assert biased or torch.equal(a.bias, start.bias)
    assert len(seen[0]) == 7
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
