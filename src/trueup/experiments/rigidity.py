"""The minimal-transformer experiments of Petrov, Torr and Bibi (arXiv 2310.19698): a variant with equal tuning, or the original.

A small causal transformer reads 10 digits from 0..7 and continues with 10 tokens, the answer of a task. An answer counts only
if all 10 tokens are right. A model is pretrained on some tasks and frozen. Then it is taught a task with few trained parameters: a
prefix, a LoRA, or (for comparison) all its weights. The two ways to run them are two values of `Protocol`. `PAPER` follows the
authors' notebooks, which ran one seed each. `OURS` corrects these points:

- validation examples are separate from test examples, and choose the parameters that are kept;
- every method tries three learning rates over the same number of steps;
- a LoRA "of the MLP" adapts only the MLP (the authors' also adapted the attention's output projection);
- methods that are compared train exactly the same number of parameters;
- training is not judged too early: the steps are doubled while the last ones are the best and doubling pays.

Both split inputs by BLAKE2, so that every process splits them in the same way. The other differences from the published
experiments are listed in `Protocol.notes`, which are printed with every table. Many runs are trained at a time: each tensor has a
leading dimension of runs.
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trueup.errors import BadInput
from trueup.experiments import protocols, resumed
from trueup.experiments.protocols import FULL, OURS, PAPER, Cell, Family, Method, Protocol, Shape

DIGITS, LENGTH = 8, 10
"""An input has `LENGTH` digits from 0 to `DIGITS` - 1."""
SHARES = {"train": range(2, 8), "validation": range(0, 1), "test": range(1, 2)}
"""Part of the data -> its eighths of the inputs, by hash. A quarter is held out, as in the paper."""

TRAIN, VALIDATION, TEST = 2**16, 512, 3200
"""Examples of each part."""

SAVED = 1000
"""Steps between two saved states, with which a killed run continues."""

Params = dict[str, Tensor]
"""Weights by name; the first dimension is the run."""


# --------------------------------------------------------------------------------------------------------------- tasks


def answers(task: str, x: Tensor) -> Tensor:
    """The right answers of a task for inputs `x` [n, 10] of digits: tokens [n, 10]."""
    if task == "ascending":
        return x.sort(dim=1).values
    if task == "descending":
        return x.sort(dim=1, descending=True).values
    if task == "add 1":
        return x + 1
    if task == "add 2":
        return x + 2
    if task == "ascending, add 1":
        return x.sort(dim=1).values + 1
    if task == "double histogram":  # how often each digit occurs in the whole input
        return (x[:, :, None] == x[:, None, :]).sum(dim=2)
    raise BadInput(f"There is no task '{task}' in this experiment.")


def part_of(digits: Sequence[int]) -> str:
    """The part of the data that an input belongs to, by an unsalted hash: the same in every process."""
    eighth = hashlib.blake2b(bytes(digits), digest_size=1).digest()[0] % 8
    return next(part for part, eighths in SHARES.items() if eighth in eighths)


@functools.cache
def inputs(part: str, n: int) -> Tensor:
    """`n` inputs [n, 10] of one part, always the same. As in the paper, every second draw must have at most 5 different
    digits, so that inputs with many repeats are not rare."""
    return _drawn(np.random.default_rng(np.random.SeedSequence([0, *part.encode()])), part, n)


def endless(seed: int, step: int, n: int, how: Protocol) -> Tensor:
    """`n` training inputs [n, 10], different for each seed and step, so that a run can continue at any step."""
    return _drawn(np.random.default_rng(np.random.SeedSequence([1, seed, step])), "train", n, equal=how.words > LENGTH)


def _drawn(rng: np.random.Generator, part: str, n: int, *, equal: bool = True) -> Tensor:
    rows: list[np.ndarray] = []
    while len(rows) < n:
        drawn = rng.integers(0, DIGITS, (n, LENGTH), dtype=np.uint8)
        distinct = (np.diff(np.sort(drawn, axis=1), axis=1) != 0).sum(axis=1) + 1
        accepted = drawn[((distinct <= LENGTH // 2) | (rng.random(n) < 0.5)) & (equal | (distinct > 1))]
        rows += [row for row in accepted if part_of(row) == part]
    return torch.from_numpy(np.stack(rows[:n]).astype(np.int64))


# --------------------------------------------------------------------------------------------------------------- model


def _maps(shape: Shape) -> dict[str, tuple[int, int]]:
    """Linear maps of a layer: name -> (in, out)."""
    d = shape.width
    return {"q": (d, d), "k": (d, d), "v": (d, d), "o": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}


def new_model(shape: Shape, g: torch.Generator, how: Protocol = OURS) -> Params:
    """Weights of one fresh model, a leading dimension of 1."""
    d, positions = shape.width, shape.padding + 2 * LENGTH - 1
    embedding_spread = how.spread or 0.1
    p = {
        "words": torch.randn(1, how.words, d, generator=g) * embedding_spread,
        "places": torch.randn(1, positions, d, generator=g) * embedding_spread,
    }
    for layer in range(shape.layers):
        for name, (n, m) in _maps(shape).items():
            shrink = 1 / math.sqrt(2 * shape.layers) if name in ("o", "down") else 1.0
            p[f"{layer}.{name}.w"] = torch.randn(1, n, m, generator=g) * shrink * (how.spread or 1 / math.sqrt(n))
            p[f"{layer}.{name}.b"] = torch.zeros(1, 1, m)
    p["head"] = torch.randn(1, d, how.words, generator=g) * (how.spread or 1 / math.sqrt(d))
    if shape.affine:
        norms = [f"{layer}.{name}" for layer in range(shape.layers) for name in ("first", "second")]
        for name in [*(norms if shape.normed else norms[1::2]), "last"]:
            p |= {f"{name}.s": torch.ones(1, d), f"{name}.t": torch.zeros(1, d)}
    return p


def new_adapter(method: Method, shape: Shape, g: torch.Generator, how: Protocol = OURS) -> Params:
    """The trained parameters of one fresh prefix or LoRA, a leading dimension of 1. A LoRA starts as the zero map."""
    p: Params = {}
    for layer in range(shape.layers):
        if method.kind == "prefix" and shape.padding:
            p[f"{layer}.px"] = torch.randn(1, method.size, shape.width, generator=g) * how.prefix_spread
        elif method.kind == "prefix":
            for name in ("pk", "pv"):
                slots = (1, shape.heads, method.size, shape.width // shape.heads)
                p[f"{layer}.{name}"] = torch.randn(slots, generator=g) * how.prefix_spread
        for name in method.maps:
            n, m = _maps(shape)[name]
            p[f"{layer}.{name}.a"] = torch.randn(1, n, method.size, generator=g) / math.sqrt(n)
            p[f"{layer}.{name}.z"] = torch.zeros(1, method.size, m)
    return p


def forward(
    p: Mapping[str, Tensor], tokens: Tensor, shape: Shape, seen: list[Tensor] | None = None, dtype=torch.float32,
    drop: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:  # fmt: skip
    """Logits [runs, n, 10, words] of the answers, from tokens [runs, n, 19]: the input, and all but the last of the answer.

    Pre-norm blocks, learned positions, causal. A prefix of keys and values takes no position. Where the shape has padding, its
    slots come first, with token 0. A prefix `px` replaces the inputs of attention at these slots in each layer. No other position
    reads their outputs, so with a prefix they are not computed. In the last layer only the ten positions of the answer
    are computed, because the others are not used.

    Args:
        seen: if given, the attention [runs, n, heads, queries, prefix slots + keys] of each layer is appended.
        dtype: number type of the matrix products; the residual stream stays in float32.
        drop: dropout, applied to the embeddings, to attention, and to the outputs of both branches of a layer.
    """
    if shape.padding and "0.px" not in p:
        tokens = F.pad(tokens, (shape.padding, 0))
    runs, n, length = tokens.shape
    d, heads, words = shape.width, shape.heads, p["words"].shape[1]
    offset = words * torch.arange(runs)[:, None, None]
    x = drop(F.embedding(tokens + offset, p["words"].reshape(-1, d)) + p["places"][:, None, -length:])

    def norm(name: str, rows: Tensor) -> Tensor:
        out = F.layer_norm(rows, (d,))
        if f"{name}.s" in p:
            out = out * p[f"{name}.s"][:, None, None] + p[f"{name}.t"][:, None, None]
        return out.to(dtype)

    def first_norm(layer: int, rows: Tensor) -> Tensor:
        return norm(f"{layer}.first", rows) if shape.normed else rows.to(dtype)

    def linear(name: str, rows: Tensor) -> Tensor:
        flat = rows.flatten(1, 2)
        out = torch.baddbmm(p[f"{name}.b"].to(dtype), flat, p[f"{name}.w"].to(dtype))
        if f"{name}.a" in p:
            out = out + flat @ p[f"{name}.a"].to(dtype) @ p[f"{name}.z"].to(dtype)
        return out.unflatten(1, rows.shape[1:3])

    def split(rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (heads, d // heads)).transpose(2, 3)  # [runs, n, heads, positions, d / heads]

    def prefix(layer: int) -> list[Tensor]:
        """Keys and values [runs, 1, heads, slots, d / heads] in front; none without a prefix."""
        if f"{layer}.px" in p:
            rows = first_norm(layer, p[f"{layer}.px"][:, None])
            return [split(linear(f"{layer}.{name}", rows)) for name in ("k", "v")]
        return [p[f"{layer}.{name}"].to(dtype)[:, None] for name in ("pk", "pv") if f"{layer}.{name}" in p]

    causal = torch.ones(length, length, dtype=torch.bool).tril()
    for layer in range(shape.layers):
        first = length - LENGTH if layer == shape.layers - 1 else 0
        h = first_norm(layer, x)
        x, mask = x[:, :, first:], causal[first:]
        q, k, v = (split(linear(f"{layer}.{name}", h[:, :, at:])) for name, at in (("q", first), ("k", 0), ("v", 0)))
        if slots := prefix(layer):
            pk, pv = (s.expand(-1, n, -1, -1, -1) for s in slots)
            k, v = torch.cat([pk, k], dim=3), torch.cat([pv, v], dim=3)
            mask = F.pad(mask, (pk.shape[3], 0), value=True)
        scores = (q @ k.transpose(3, 4)).float() / math.sqrt(d // heads)
        attention = scores.masked_fill(~mask, -math.inf).softmax(dim=-1)
        if seen is not None:
            seen.append(attention)
        mixed = drop(attention).to(dtype) @ v
        x = x + drop(linear(f"{layer}.o", mixed.transpose(2, 3).flatten(3)))
        h = F.gelu(linear(f"{layer}.up", norm(f"{layer}.second", x)), approximate="tanh")
        x = x + drop(linear(f"{layer}.down", h))
    return (norm("last", x).flatten(1, 2) @ p["head"].to(dtype)).float().unflatten(1, x.shape[1:3])


# ------------------------------------------------------------------------------------------------------------ training


@dataclass(frozen=True)
class Kept:
    """The parameters that training kept for one seed: those of least validation loss over all rates and checks, or the last."""

    params: Params
    loss: float
    exact: float
    rate: float
    step: int


def tokens_of(tasks: Sequence[str], part: str, n: int) -> Tensor:
    """Tokens [tasks, n, 20]: the same `n` inputs of a part, each followed by the answer of each task."""
    return answered(tasks, inputs(part, n))


def answered(tasks: Sequence[str], x: Tensor) -> Tensor:
    """Tokens [tasks, n, 20]: inputs [n, 10], each followed by the answer of each task."""
    return torch.stack([torch.cat([x, answers(task, x)], dim=1) for task in tasks])


def judged(p: Params, tokens: Tensor, shape: Shape, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    """Mean loss [runs], and the share of completely right greedy answers [runs], on tokens [n, 20].

    One pass with the right answers as inputs is enough: greedy decoding writes the right answer exactly if each of its tokens
    is the likeliest one after the right tokens before it.
    """
    runs = len(p["words"])
    losses, correct = [], []
    with torch.no_grad():
        for batch in tokens.split(512):
            rows = batch.expand(runs, -1, -1)
            logits = forward(p, rows[:, :, :-1], shape, dtype=dtype)
            targets = rows[:, :, LENGTH:]
            losses.append(F.cross_entropy(logits.movedim(-1, 1), targets, reduction="none").mean(dim=2))
            correct.append((logits.argmax(dim=-1) == targets).all(dim=-1))
    return torch.cat(losses, dim=1).mean(dim=1), torch.cat(correct, dim=1).float().mean(dim=1)


def train(
    frozen: Params, trained: Params, shape: Shape, tasks: Sequence[str], *, seeds: Sequence[int], rates: Sequence[float],
    steps: int, batch: int, solved: float, dtype=torch.float32, how: Protocol = OURS, at: Path | None = None,
    say: Callable[[str], None] = lambda s: None,
) -> dict[int, Kept]:  # fmt: skip
    """Train many runs at once with AdamW of moments (0.9, 0.95), and each run's gradient clipped at norm 1.

    Runs of one seed see the same batches and dropout, and compete: after 30% of the steps only the one of least validation loss
    continues. A seed stops early when one of its runs answers the share `solved` of the validation inputs. Runs do not affect
    each other.

    Args:
        frozen, trained: parameters by name, with the run as first dimension. A name in both is taken from `trained`.
        tasks: one of them is drawn for each example.
        seeds, rates: seed and learning rate of each run.
        how: decay, dropout, clipping, the course of the rate, where inputs come from, and which parameters are kept.
        at: a file that is written every `SAVED` steps and at the end. If it exists, training continues from it, with the same
            figures as a training that was never killed. Its name must depend on all other arguments.
        say: gets a line on the progress four times.
    """
    data = None if how.endless else tokens_of(tasks, "train", TRAIN)
    check = tokens_of(tasks, "validation", VALIDATION)
    check = torch.stack([check[i % len(tasks), i] for i in range(VALIDATION)])
    seeds, lr = list(seeds), torch.tensor(rates)[:, None]
    orders = {seed: torch.Generator().manual_seed(seed) for seed in seeds}
    names, sizes = list(trained), [t[0].numel() for t in trained.values()]
    shape_of_name = {name: t.shape[1:] for name, t in trained.items()}
    frozen = {
        k: v.to(dtype) if k[0].isdigit() or k == "head" else v for k, v in frozen.items() if k not in shape_of_name
    }
    flat = torch.cat([t.flatten(1) for t in trained.values()], dim=1).detach()
    first_moment, second_moment = torch.zeros_like(flat), torch.zeros_like(flat)
    decay = torch.cat([torch.full(t[0].shape, decay_of(k, shape_of_name, how)).flatten() for k, t in trained.items()])
    check_interval = max(1, steps // 20)
    best: dict[int, Kept] = {}
    steps_done, active_runs = 0, list(range(len(seeds)))  # steps done, and the runs that go on
    if at is not None and (saved := resumed.kept(at, say)) is not None:
        stored = torch.load(io.BytesIO(saved), weights_only=True)
        steps_done, active_runs, flat, first_moment, second_moment = (
            stored[k] for k in ("step", "alive", "flat", "first", "second")
        )
        best = {seed: Kept(**kept) for seed, kept in stored["best"].items()}
        for seed, order in orders.items():
            order.set_state(stored["orders"][seed])
        seeds, lr, frozen = (
            [seeds[i] for i in active_runs],
            lr[active_runs],
            {k: v[active_runs] for k, v in frozen.items()},
        )

    def save(step: int) -> None:
        if at is None:
            return
        buffer = io.BytesIO()
        torch.save({
            "step": step, "alive": active_runs, "flat": flat, "first": first_moment, "second": second_moment,
            "best": {seed: vars(kept) for seed, kept in best.items()},
            "orders": {seed: order.get_state() for seed, order in orders.items()},
        }, buffer)  # fmt: skip
        resumed.keep(at, buffer.getvalue())

    def unpacked(rows: Tensor) -> Params:
        return {k: part.unflatten(1, shape_of_name[k]) for k, part in zip(names, rows.split(sizes, dim=1), strict=True)}

    def drop(x: Tensor) -> Tensor:
        if not how.dropout or not _whole(shape_of_name):
            return x
        kept = {seed: torch.rand(x.shape[1:], generator=orders[seed]) >= how.dropout for seed in dict.fromkeys(seeds)}
        return x * torch.stack([kept[seed] for seed in seeds]) / (1 - how.dropout)

    for step in range(steps_done + 1, steps + 1):
        if not seeds:
            break
        drawn = {}
        for seed in dict.fromkeys(seeds):
            which = torch.randint(len(tasks), (batch,), generator=orders[seed])
            if data is None:
                drawn[seed] = answered(tasks, endless(seed, step, batch, how))[which, torch.arange(batch)]
            else:
                drawn[seed] = data[which, torch.randint(TRAIN, (batch,), generator=orders[seed])]
        rows = torch.stack([drawn[seed] for seed in seeds])
        flat.requires_grad_()
        logits = forward(frozen | unpacked(flat), rows[:, :, :-1], shape, dtype=dtype, drop=drop)
        loss = F.cross_entropy(logits.movedim(-1, 1), rows[:, :, LENGTH:], reduction="none").mean(dim=(1, 2))
        (grad,) = torch.autograd.grad(loss.sum(), flat)
        flat = flat.detach()
        grad = clipped(
            grad,
            sizes if how.apart and not _whole(shape_of_name) and "a" in _leaves(shape_of_name) else [grad.shape[1]],
        )
        first_moment.lerp_(grad, 0.1)
        second_moment.lerp_(grad.square_(), 0.05)
        rate_factor = 1.0 if how.constant else min(1.0, step / 50, 0.05 + 0.95 * (steps - step) / (0.3 * steps))
        size = lr * rate_factor / (1 - 0.9**step)
        flat *= 1 - lr * rate_factor * decay
        flat -= size * first_moment / ((second_moment / (1 - 0.95**step)).sqrt_() + 1e-8)
        if step % check_interval == 0 or step == steps:
            losses, exact = judged(frozen | unpacked(flat), check, shape, dtype)
            losses = losses.nan_to_num(math.inf, math.inf)
            for i, seed in enumerate(seeds):
                if not how.chosen or seed not in best or losses[i] < best[seed].loss:
                    parameters = {k: v.clone() for k, v in unpacked(flat[i : i + 1]).items()}
                    best[seed] = Kept(parameters, float(losses[i]), float(exact[i]), float(lr[i]), step)
            if step % (5 * check_interval) == 0:
                say(f"step {step:,} of {steps:,}, validation loss {', '.join(f'{x:.3f}' for x in losses.tolist())}")
            seeds_done = {seed for i, seed in enumerate(seeds) if how.chosen and exact[i] >= solved}
            runs_left = [i for i, seed in enumerate(seeds) if seed not in seeds_done]
            if step == 6 * check_interval:
                runs_left = [
                    i for i in runs_left if losses[i] == min(losses[j] for j in runs_left if seeds[j] == seeds[i])
                ]
                runs_left = [i for n, i in enumerate(runs_left) if seeds[i] not in [seeds[j] for j in runs_left[:n]]]
            if len(runs_left) < len(seeds):
                seeds, active_runs, lr = (
                    [seeds[i] for i in runs_left],
                    [active_runs[i] for i in runs_left],
                    lr[runs_left],
                )
                flat, first_moment, second_moment = flat[runs_left], first_moment[runs_left], second_moment[runs_left]
                frozen = {k: v[runs_left] for k, v in frozen.items()}
        if step % SAVED == 0 or step == steps or not seeds:
            save(step)
    return best


def clipped(grad: Tensor, sizes: Sequence[int]) -> Tensor:
    """Gradients [runs, numbers]: for each run, each block of `sizes` numbers is scaled down to norm 1 where its norm is larger."""
    parts = grad.split(list(sizes), dim=1)
    return torch.cat([part * (1 / part.norm(dim=1, keepdim=True)).clamp(max=1) for part in parts], dim=1)


def decay_of(name: str, trained: Mapping[str, Any], how: Protocol) -> float:
    """The weight decay of one of the trained parameters. In a whole model only linear maps and the read-out have decay."""
    if not _whole(trained):
        return how.adapter_decay
    return how.decay if name.rpartition(".")[2] in ("w", "head") else 0.0


def _whole(trained: Mapping[str, Any]) -> bool:
    return "head" in trained


def _leaves(trained: Mapping[str, Any]) -> set[str]:
    return {name.rpartition(".")[2] for name in trained}


# --------------------------------------------------------------------------------------------------------- experiments


WORTH = 0.005
"""Decrease of the loss (nats) by which twice as many steps of training on a task must be better to double them again."""
SOLVED = 0.995
"""Share of right validation answers at which training on a task stops early."""


@dataclass(frozen=True)
class Settings:
    """Knobs of the bench.

    Attributes:
        seeds: how often each cell is repeated, from pretraining on.
        width: width of the widest model, cut to a multiple of the heads; None is the protocol's (96 and 256 in the paper, 96 in
            ours).
        steps: factor on all numbers of steps.
        precision: number type of matrix products; None is the protocol's. bfloat16 is about twice as fast on processors that
            support it.
        paper: whether `PAPER` is run, and not `OURS`.
        only: numbers of the experiments that are run; empty for all.
    """

    seeds: int = 3
    width: int | None = None
    steps: float = 1.0
    precision: str | None = None
    paper: bool = False
    only: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise BadInput(f"{self.seeds} seeds are none. Give --seeds 1 or more; the spread needs at least 3.")
        if self.widest < 8:
            raise BadInput(f"A width of {self.width} is too narrow for four heads. Give --width 8 or more.")
        if not 0 < self.steps < math.inf:
            raise BadInput(f"--steps {self.steps} is not a factor above 0. Give 1 for the usual number of steps.")
        experiment_numbers = sorted({cell.experiment for family in self.protocol.families for cell in family.cells})
        if unknown_numbers := [n for n in self.only if n not in experiment_numbers]:
            raise BadInput(
                f"There is no experiment {unknown_numbers[0]}. Give --only with one of {', '.join(map(str, experiment_numbers))}."
            )

    @property
    def protocol(self) -> Protocol:
        return PAPER if self.paper else OURS

    @property
    def widest(self) -> int:
        return self.protocol.width if self.width is None else self.width

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.precision or self.protocol.precision)

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that are run, each with the cells that are run."""
        chosen = [
            replace(family, cells=tuple(c for c in family.cells if not self.only or c.experiment in self.only))
            for family in self.protocol.families
        ]
        return tuple(family for family in chosen if family.cells)

    def shape(self, family: Family) -> Shape:
        width = min(family.shape.width, self.widest)
        return replace(family.shape, width=width - width % family.shape.heads)


def run(
    out: str | Path, settings: Settings, *, force: bool = False, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Run every cell, and write `out`/rigidity.json and `out`/rigidity.md. Returns the contents of rigidity.json.

    Finished parts are kept for a run that is killed and started again (`resumed.run`).

    Raises:
        BadInput: `out` is there already and `force` is not given.
    """

    def make(parts: resumed.Parts) -> dict[str, Any]:
        rows = []
        for family in settings.families:
            models = _pretrained(family, settings, parts, say)
            rows += [_cell(cell, models, family, settings, parts, say) for cell in family.cells]
        rows.sort(key=lambda row: row["experiment"])  # stable: within an experiment as listed
        settings_used = asdict(settings) | {
            "width": settings.widest,
            "precision": str(settings.dtype).removeprefix("torch."),
        }
        return {"settings": settings_used, "rows": rows, "versions": {"torch": str(torch.__version__)}}

    return resumed.run(
        out, "rigidity", resumed.code_of(sys.modules[__name__], protocols), make, table, force=force
    )  # fmt: skip


def _steps(steps: int, settings: Settings) -> int:
    return max(1, round(steps * settings.steps))


def _started(make: Callable[[torch.Generator], Params], seeds: Sequence[int]) -> Params:
    """Fresh parameters for one run of each seed, stacked."""
    fresh_params = [make(torch.Generator().manual_seed(seed)) for seed in seeds]
    return {k: torch.cat([p[k] for p in fresh_params]) for k in fresh_params[0]}


def _pretrained(family: Family, settings: Settings, parts: resumed.Parts, say: Callable[[str], None]) -> Params:
    """The family's pretrained models, one run for each seed, trained or read from a finished part."""
    from safetensors.torch import load, save

    shape, steps = settings.shape(family), _steps(family.pretraining, settings)
    file = parts.file("pretrained", shape, family.tasks, steps, settings, suffix=".safetensors")
    if (data := resumed.kept(file, say)) is None:
        start, seeds = time.monotonic(), range(settings.seeds)
        protocol = settings.protocol
        fresh = _started(lambda g: new_model(shape, g, protocol), seeds)
        kept = train({}, fresh, shape, family.tasks, seeds=seeds, rates=[protocol.pretraining_rate] * len(seeds), steps=steps,
                     batch=protocol.pretraining_batch, solved=math.inf, dtype=settings.dtype, how=protocol, at=_half(file, 1),
                     say=lambda s: say(f"  pretraining {shape}: {s}"))  # fmt: skip
        models = {k: torch.cat([kept[seed].params[k] for seed in seeds]) for k in fresh}
        resumed.keep(file, data := save(models))
        _half(file, 1).unlink(missing_ok=True)
        say(f"Pretrained {shape} on {', '.join(family.tasks)}: {steps} steps, validation loss "
            f"{', '.join(f'{kept[s].loss:.3f}' for s in seeds)} ({time.monotonic() - start:.0f} s)")  # fmt: skip
    return load(data)


def _cell(
    cell: Cell, models: Params, family: Family, settings: Settings, parts: resumed.Parts, say: Callable[[str], None]
) -> dict[str, Any]:
    """One line of the table: trained with every seed at three rates, chosen on validation, judged on test; or read again."""
    shape = settings.shape(family)
    steps = _steps(cell.steps or family.teaching, settings) if cell.method else 0
    file = parts.file(cell, shape, family.tasks, family.pretraining, steps, settings)
    if (row := resumed.kept_json(file, say)) is not None:
        return row
    start, seeds = time.monotonic(), list(range(settings.seeds))
    row = {
        "experiment": cell.experiment, "task": cell.task, "method": cell.method.title if cell.method else "as pretrained",
        "shape": asdict(shape), "published": cell.published, "parameters": 0, "steps": steps, "used": [], "rates": [],
    }  # fmt: skip
    taught_params: Params = {}
    if cell.method:
        prefix = f"  experiment {cell.experiment}, {cell.task}, {row['method']}"
        taught_params, kept = teach(
            cell.method, models, shape, cell.task, seeds, steps, settings.dtype, how=settings.protocol, rate=cell.rate, at=file,
            say=lambda s: say(f"{prefix}: {s}"),
        )  # fmt: skip
        row |= {
            "parameters": sum(t[0].numel() for t in taught_params.values()), "used": [k.step for k in kept],
            "rates": [k.rate for k in kept], "validation": [k.exact for k in kept],
        }  # fmt: skip
    row["accuracy"] = judged(models | taught_params, tokens_of([cell.task], "test", TEST)[0], shape)[1].tolist()
    resumed.keep(file, row)
    for times in _multiples(settings.protocol):
        _half(file, times).unlink(missing_ok=True)
    say(f"Experiment {cell.experiment}, {cell.task}, {row['method']}: "
        f"{', '.join(f'{a:.1%}' for a in row['accuracy'])} ({time.monotonic() - start:.0f} s)")  # fmt: skip
    return resumed.kept_json(file)  # as a later run would read it


def teach(
    method: Method, models: Params, shape: Shape, task: str, seeds: Sequence[int], steps: int, dtype=torch.float32,
    how: Protocol = OURS, rate: float | None = None, at: Path | None = None, say: Callable[[str], None] = lambda s: None,
) -> tuple[Params, list[Kept]]:  # fmt: skip
    """Train each pretrained model on one task at `rate`, or at every rate of the method. Returns the parameters kept, one run for
    each seed.

    Steps are doubled, up to `how.most` times as many, while for most seeds the last check is the best and doubling lowers the
    mean validation loss by more than `WORTH`. The best parameters are kept. The state of the training is in a file next to `at`.
    """
    rates = how.rates[method.kind] if rate is None else (rate,)
    runs = [seed for seed in seeds for _ in rates]
    rows = [i for i in range(len(seeds)) for _ in rates]
    frozen = {k: v[rows] for k, v in models.items()}
    fresh = frozen if method == FULL else _started(lambda g: new_adapter(method, shape, g, how), runs)
    best: list[Kept] = []
    for times in _multiples(how):
        kept_of_seed = train(frozen, fresh, shape, [task], seeds=runs, rates=list(rates) * len(seeds), steps=times * steps,
                     batch=how.teaching_batch, solved=SOLVED, dtype=dtype, how=how, say=say,
                     at=None if at is None else _half(at, times))  # fmt: skip
        kept_now = [kept_of_seed[seed] for seed in seeds]
        improved = not best or np.mean([k.loss for k in best]) - np.mean([k.loss for k in kept_now]) > WORTH
        if not best or np.mean([k.loss for k in kept_now]) < np.mean([k.loss for k in best]):
            best = kept_now
        seeds_done = [k.exact >= SOLVED or k.step < times * steps for k in kept_now]
        if not improved or sum(seeds_done) > len(seeds) / 2:
            break
    return {k: torch.cat([kept_run.params[k] for kept_run in best]) for k in fresh}, best


def _multiples(how: Protocol) -> list[int]:
    return [2**i for i in range(how.most.bit_length())]


def _half(file: Path, times: int) -> Path:
    """The file with the state of the unfinished training that makes the part `file`."""
    return file.with_suffix(f".training{times}")


def table(result: Mapping[str, Any]) -> str:
    """The rows as a Markdown table, and below it the differences from the published experiments."""
    protocol = PAPER if result["settings"]["paper"] else OURS
    lines = [
        f"# {protocol.title}",
        "",
        "| experiment | model | task | method | trained parameters | published, one seed | ours, mean [min, max] | steps |",
        "|---|---|---|---|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        shape, accuracies, published_figures, kept_steps = row["shape"], row["accuracy"], row["published"], row["used"]
        published = (
            ""
            if published_figures is None
            else " to ".join(
                f"{a:.1%}"
                for a in (published_figures if isinstance(published_figures, Sequence) else [published_figures])
            )
        )
        sizes = f"{shape['layers']} x {shape['heads']} heads, width {shape['width']}"
        steps = f"{row['steps']:,}" + (f" (kept {min(kept_steps):,} to {max(kept_steps):,})" if kept_steps else "")
        cells = [
            row["experiment"], sizes, row["task"], row["method"], f"{row['parameters']:,}", published,
            f"{np.mean(accuracies):.1%} [{min(accuracies):.1%}, {max(accuracies):.1%}]", steps,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, "", protocol.notes.format(**result["settings"]), ""])
