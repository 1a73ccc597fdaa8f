"""A variant of the minimal-transformer experiments of Petrov, Torr and Bibi (arXiv 2310.19698): over seeds, with equal tuning.

A small causal transformer reads 10 digits from 0..7 and continues with 10 tokens, the answer of a task; a call counts only
if all 10 are right. A model is pretrained on some tasks, frozen, and then taught a task through few trained parameters: a
prefix, a LoRA, or (for comparison) all its weights. Put right against the authors' notebooks, which ran one seed each:

- the split hashes an input with BLAKE2, so it is the same in every process, and validation is apart from test;
- every method tries three learning rates over the same number of steps, and what is kept is chosen on validation;
- a LoRA "of the MLP" adapts the MLP alone (theirs also adapted the attention's output projection);
- methods that are compared train exactly the same number of parameters.

- nobody is judged before it is done: the steps are doubled while the last ones are the best and doubling pays.

What else differs is listed in `NOTES`, which goes with every table. Runs are trained many at a time: each tensor has a leading
dimension of runs.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trueup.errors import BadInput
from trueup.experiments import resumed
from trueup.store import atomic

DIGITS, LENGTH, WORDS = 8, 10, 11
"""Digits 0..7 in, ten of them; tokens 0..10 out, since a count of the double histogram can be 10."""
SHARES = {"train": range(2, 8), "validation": range(0, 1), "test": range(1, 2)}
"""Which eighths of the inputs, by hash, belong to which part: a quarter is held out, as in the paper."""

TRAIN, VALIDATION, TEST = 2**16, 512, 3200
"""Examples of each part."""

Params = dict[str, Tensor]
"""Weights by name; the first dimension is the run."""


# --------------------------------------------------------------------------------------------------------------- tasks


def answers(task: str, x: Tensor) -> Tensor:
    """What each task wants for inputs `x` [n, 10] of digits: tokens [n, 10]."""
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
    return next(part for part, own in SHARES.items() if eighth in own)


@functools.cache
def inputs(part: str, n: int) -> Tensor:
    """`n` inputs [n, 10] of one part, always the same. As in the paper, every second draw must have at most 5 different
    digits, so that inputs with many repeats are not rare."""
    rng = np.random.default_rng(np.random.SeedSequence([0, *part.encode()]))
    rows: list[np.ndarray] = []
    while len(rows) < n:
        drawn = rng.integers(0, DIGITS, (n, LENGTH), dtype=np.uint8)
        distinct = (np.diff(np.sort(drawn, axis=1), axis=1) != 0).sum(axis=1) + 1
        kept = drawn[(distinct <= LENGTH // 2) | (rng.random(n) < 0.5)]
        rows += [row for row in kept if part_of(row) == part]
    return torch.from_numpy(np.stack(rows[:n]).astype(np.int64))


# --------------------------------------------------------------------------------------------------------------- model


@dataclass(frozen=True)
class Shape:
    """Sizes of a transformer."""

    layers: int
    heads: int
    width: int


@dataclass(frozen=True)
class Method:
    """What is trained on top of a frozen model.

    Attributes:
        kind: "full" (every weight), "prefix" (keys and values per layer) or "lora" (on the linear maps `maps`).
        size: slots of the prefix, or rank of the LoRA.
    """

    kind: str
    size: int = 0
    maps: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        if self.kind == "lora":
            where = "MLP" if self.maps == MLP else "+".join(self.maps)
            return f"LoRA of {where}, rank {self.size}"
        return {"full": "full fine-tuning", "prefix": f"prefix, {self.size} slot{'s' * (self.size > 1)}"}[self.kind]


MLP = ("up", "down")
FULL = Method("full")


def _maps(shape: Shape) -> dict[str, tuple[int, int]]:
    """Linear maps of a layer: name -> (in, out)."""
    d = shape.width
    return {"q": (d, d), "k": (d, d), "v": (d, d), "o": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}


def new_model(shape: Shape, g: torch.Generator) -> Params:
    """Weights of one fresh model, a leading dimension of 1."""
    d = shape.width
    p = {
        "words": torch.randn(1, WORDS, d, generator=g) * 0.1,
        "places": torch.randn(1, 2 * LENGTH - 1, d, generator=g) * 0.1,
    }
    for layer in range(shape.layers):
        for name, (n, m) in _maps(shape).items():
            shrink = 1 / math.sqrt(2 * shape.layers) if name in ("o", "down") else 1.0
            p[f"{layer}.{name}.w"] = torch.randn(1, n, m, generator=g) * shrink / math.sqrt(n)
            p[f"{layer}.{name}.b"] = torch.zeros(1, 1, m)
    p["head"] = torch.randn(1, d, WORDS, generator=g) / math.sqrt(d)
    return p


def new_adapter(method: Method, shape: Shape, g: torch.Generator) -> Params:
    """The trained parameters of one fresh prefix or LoRA, a leading dimension of 1. A LoRA starts as the zero map."""
    p: Params = {}
    for layer in range(shape.layers):
        if method.kind == "prefix":
            for name in ("pk", "pv"):
                slots = (1, shape.heads, method.size, shape.width // shape.heads)
                p[f"{layer}.{name}"] = torch.randn(slots, generator=g) * 0.1
        for name in method.maps:
            n, m = _maps(shape)[name]
            p[f"{layer}.{name}.a"] = torch.randn(1, n, method.size, generator=g) / math.sqrt(n)
            p[f"{layer}.{name}.z"] = torch.zeros(1, method.size, m)
    return p


def forward(
    p: Mapping[str, Tensor], tokens: Tensor, shape: Shape, seen: list[Tensor] | None = None, dtype=torch.float32
) -> Tensor:
    """Logits [runs, n, 10, 11] of the answers, from tokens [runs, n, 19]: the input, and all but the last of the answer.

    Pre-norm blocks, learned positions, causal. A prefix takes no position. In the last layer only the ten positions that
    answer are computed, for nobody reads the others.

    Args:
        seen: if given, the attention [runs, n, heads, queries, prefix slots + keys] of each layer is appended.
        dtype: of the matrix products; the residual stream stays in float32.
    """
    runs, n, length = tokens.shape
    d, heads = shape.width, shape.heads
    offset = WORDS * torch.arange(runs)[:, None, None]
    x = F.embedding(tokens + offset, p["words"].reshape(-1, d)) + p["places"][:, None]

    def linear(name: str, rows: Tensor) -> Tensor:
        flat = rows.flatten(1, 2)
        out = torch.baddbmm(p[f"{name}.b"].to(dtype), flat, p[f"{name}.w"].to(dtype))
        if f"{name}.a" in p:
            out = out + flat @ p[f"{name}.a"].to(dtype) @ p[f"{name}.z"].to(dtype)
        return out.unflatten(1, rows.shape[1:3])

    def split(rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (heads, d // heads)).transpose(2, 3)  # [runs, n, heads, positions, d / heads]

    causal = torch.ones(length, length, dtype=torch.bool).tril()
    for layer in range(shape.layers):
        first = LENGTH - 1 if layer == shape.layers - 1 else 0
        h = F.layer_norm(x, (d,)).to(dtype)
        x, mask = x[:, :, first:], causal[first:]
        q, k, v = (split(linear(f"{layer}.{name}", h[:, :, at:])) for name, at in (("q", first), ("k", 0), ("v", 0)))
        if f"{layer}.pk" in p:
            pk, pv = (p[f"{layer}.{name}"].to(dtype)[:, None].expand(-1, n, -1, -1, -1) for name in ("pk", "pv"))
            k, v = torch.cat([pk, k], dim=3), torch.cat([pv, v], dim=3)
            mask = F.pad(mask, (pk.shape[3], 0), value=True)
        scores = (q @ k.transpose(3, 4)).float() / math.sqrt(d // heads)
        attention = scores.masked_fill(~mask, -math.inf).softmax(dim=-1)
        if seen is not None:
            seen.append(attention)
        mixed = attention.to(dtype) @ v
        x = x + linear(f"{layer}.o", mixed.transpose(2, 3).flatten(3))
        h = F.layer_norm(x, (d,)).to(dtype)
        x = x + linear(f"{layer}.down", F.gelu(linear(f"{layer}.up", h), approximate="tanh"))
    return (F.layer_norm(x, (d,)).to(dtype).flatten(1, 2) @ p["head"].to(dtype)).float().unflatten(1, x.shape[1:3])


# ------------------------------------------------------------------------------------------------------------ training


@dataclass(frozen=True)
class Kept:
    """What training kept of one seed: the parameters of least validation loss over all rates and checks."""

    params: Params
    loss: float
    exact: float
    rate: float
    step: int


def tokens_of(tasks: Sequence[str], part: str, n: int) -> Tensor:
    """Tokens [tasks, n, 20]: the same `n` inputs of a part, each followed by the answer of each task."""
    x = inputs(part, n)
    return torch.stack([torch.cat([x, answers(task, x)], dim=1) for task in tasks])


def judged(p: Params, tokens: Tensor, shape: Shape, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    """Mean loss [runs], and the share of wholly right greedy answers [runs], on tokens [n, 20].

    One pass under the right answers tells what greedy decoding would do: it writes the right answer exactly if each token
    is the likeliest one after the right tokens before it.
    """
    runs = len(p["words"])
    losses, right = [], []
    with torch.no_grad():
        for some in tokens.split(512):
            rows = some.expand(runs, -1, -1)
            logits = forward(p, rows[:, :, :-1], shape, dtype=dtype)
            wanted = rows[:, :, LENGTH:]
            losses.append(F.cross_entropy(logits.movedim(-1, 1), wanted, reduction="none").mean(dim=2))
            right.append((logits.argmax(dim=-1) == wanted).all(dim=-1))
    return torch.cat(losses, dim=1).mean(dim=1), torch.cat(right, dim=1).float().mean(dim=1)


def train(
    frozen: Params, trained: Params, shape: Shape, tasks: Sequence[str], *, seeds: Sequence[int], rates: Sequence[float],
    steps: int, batch: int, solved: float, dtype=torch.float32, say: Callable[[str], None] = lambda s: None,
) -> dict[int, Kept]:  # fmt: skip
    """Train many runs at once with AdamW's moments (0.9, 0.95), no weight decay, and each run's gradient clipped at norm 1.

    Runs of one seed see the same batches and compete: after 30% of the steps only the one of least validation loss goes on,
    and a seed is done early once a run of it answers `solved` of the validation inputs. No run touches another.

    Args:
        frozen, trained: parameters by name, run first; what both name is taken from `trained`.
        tasks: one of them is drawn for each example.
        seeds, rates: of each run. The rate rises for 50 steps, stays, and falls to a twentieth over the last 30%.
        say: is told four times how far training is.
    """
    data, check = tokens_of(tasks, "train", TRAIN), tokens_of(tasks, "validation", VALIDATION)
    check = torch.stack([check[i % len(tasks), i] for i in range(VALIDATION)])
    seeds, lr = list(seeds), torch.tensor(rates)[:, None]
    orders = {seed: torch.Generator().manual_seed(seed) for seed in seeds}
    names, sizes = list(trained), [t[0].numel() for t in trained.values()]
    like = {name: t.shape[1:] for name, t in trained.items()}
    frozen = {k: v.to(dtype) if k[0].isdigit() or k == "head" else v for k, v in frozen.items() if k not in like}
    flat = torch.cat([t.flatten(1) for t in trained.values()], dim=1).detach()
    first, second = torch.zeros_like(flat), torch.zeros_like(flat)
    every = max(1, steps // 20)
    best: dict[int, Kept] = {}

    def unpacked(rows: Tensor) -> Params:
        return {k: part.unflatten(1, like[k]) for k, part in zip(names, rows.split(sizes, dim=1), strict=True)}

    for step in range(1, steps + 1):
        drawn = {}
        for seed in dict.fromkeys(seeds):
            which = torch.randint(len(tasks), (batch,), generator=orders[seed])
            drawn[seed] = data[which, torch.randint(TRAIN, (batch,), generator=orders[seed])]
        rows = torch.stack([drawn[seed] for seed in seeds])
        flat.requires_grad_()
        logits = forward(frozen | unpacked(flat), rows[:, :, :-1], shape, dtype=dtype)
        loss = F.cross_entropy(logits.movedim(-1, 1), rows[:, :, LENGTH:], reduction="none").mean(dim=(1, 2))
        (grad,) = torch.autograd.grad(loss.sum(), flat)
        flat = flat.detach()
        grad *= (1 / grad.norm(dim=1, keepdim=True)).clamp(max=1)
        first.lerp_(grad, 0.1)
        second.lerp_(grad.square_(), 0.05)
        pace = min(1.0, step / 50, 0.05 + 0.95 * (steps - step) / (0.3 * steps))
        size = lr * pace / (1 - 0.9**step)
        flat -= size * first / ((second / (1 - 0.95**step)).sqrt_() + 1e-8)
        if step % every:
            continue
        losses, exact = judged(frozen | unpacked(flat), check, shape, dtype)
        losses = losses.nan_to_num(math.inf, math.inf)
        for i, seed in enumerate(seeds):
            if seed not in best or losses[i] < best[seed].loss:
                mine = {k: v.clone() for k, v in unpacked(flat[i : i + 1]).items()}
                best[seed] = Kept(mine, float(losses[i]), float(exact[i]), float(lr[i]), step)
        if step % (5 * every) == 0:
            say(f"step {step:,} of {steps:,}, validation loss {', '.join(f'{x:.3f}' for x in losses.tolist())}")
        done = {seed for i, seed in enumerate(seeds) if exact[i] >= solved}
        left = [i for i, seed in enumerate(seeds) if seed not in done]
        if step == 6 * every:
            left = [i for i in left if losses[i] == min(losses[j] for j in left if seeds[j] == seeds[i])]
            left = [i for n, i in enumerate(left) if seeds[i] not in [seeds[j] for j in left[:n]]]
        if not left:
            break
        if len(left) < len(seeds):
            seeds, lr, flat, first, second = [seeds[i] for i in left], lr[left], flat[left], first[left], second[left]
            frozen = {k: v[left] for k, v in frozen.items()}
    return best


# --------------------------------------------------------------------------------------------------------- experiments


@dataclass(frozen=True)
class Cell:
    """One line of the table.

    Attributes:
        method: what is trained on the task; None is the pretrained model as it is.
        published: exact match of the paper's single seed; lowest and highest where it gives several tasks together; None
            for what it did not run.
    """

    experiment: int
    task: str
    method: Method | None
    published: float | tuple[float, float] | None = None


@dataclass(frozen=True)
class Family:
    """Cells that share one pretrained model; `shape` is the paper's."""

    shape: Shape
    tasks: tuple[str, ...]
    pretraining: int
    teaching: int
    cells: tuple[Cell, ...]


FOUR = ("ascending", "descending", "add 1", "add 2")
FAMILIES = (  # in the order of running: what takes long and tells most comes before experiment 2
    Family(
        Shape(1, 1, 96), ("ascending",), 1500, 1500,
        (
            Cell(1, "ascending", None, 0.914),
            Cell(1, "descending", None, 0.0),
            Cell(1, "descending", FULL, 0.849),
            Cell(1, "descending", Method("prefix", 1), 0.0),
            Cell(1, "descending", Method("lora", 1, ("q",))),
            Cell(1, "descending", Method("lora", 1, ("v",))),
            Cell(1, "descending", Method("prefix", 5)),
            Cell(1, "descending", Method("lora", 5, ("q",))),
            Cell(1, "descending", Method("lora", 1, MLP)),
        ),
    ),
    Family(
        Shape(4, 4, 256), FOUR, 2000, 2000,
        (
            Cell(4, "double histogram", None, 0.0),
            Cell(4, "double histogram", Method("lora", 1, MLP), 0.924),
            Cell(4, "double histogram", Method("prefix", 5), 0.003),
            Cell(3, "ascending, add 1", Method("prefix", 10), 0.716),
            Cell(3, "double histogram", Method("prefix", 10), 0.006),
            *(Cell(3, task, Method("prefix", 10), (0.996, 1.0)) for task in FOUR),
        ),
    ),
    Family(
        Shape(1, 4, 256), FOUR, 3000, 1500,
        tuple(Cell(2, task, Method("prefix", 1), was) for task, was in zip(FOUR, (0.941, 0.837, 0.996, 0.998), strict=True)),
    ),
)  # fmt: skip
RATES = {"full": (3e-4, 1e-3, 3e-3), "prefix": (2e-3, 1e-2, 5e-2), "lora": (2e-3, 1e-2, 5e-2)}
"""Learning rates that each kind tries, three each; prefix and LoRA the same."""
PRETRAINING_RATE = 1e-3
BATCH = {"pretraining": 64, "teaching": 32}
MOST, WORTH = 4, 0.005
"""By how much the steps of teaching are at most multiplied, and by how much (nats) twice as many have to be better to go on."""
SOLVED = 0.995
"""Share of right validation answers at which teaching stops early."""


@dataclass(frozen=True)
class Settings:
    """Knobs of the bench.

    Attributes:
        seeds: how often each cell is repeated, from pretraining on.
        width: the widest model; the paper has 96 and 256. It is cut to a multiple of the heads.
        steps: factor on all numbers of steps.
        precision: of matrix products: float32, or bfloat16, which is about twice as fast on processors that have it.
    """

    seeds: int = 3
    width: int = 96
    steps: float = 1.0
    precision: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise BadInput(f"{self.seeds} seeds are none. Give --seeds 1 or more; the spread needs at least 3.")
        if self.width < 8:
            raise BadInput(f"A width of {self.width} is too narrow for four heads. Give --width 8 or more.")
        if not 0 < self.steps < math.inf:
            raise BadInput(f"--steps {self.steps} is not a factor above 0. Give 1 for the usual number of steps.")

    def shape(self, family: Family) -> Shape:
        width = min(family.shape.width, self.width)
        return Shape(family.shape.layers, family.shape.heads, width - width % family.shape.heads)


def run(
    out: str | Path, settings: Settings, *, force: bool = False, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Run every cell, and write `out`/rigidity.json and `out`/rigidity.md. Returns what rigidity.json holds.

    What is finished is kept for a run that is killed and started again (`resumed.run`).

    Raises:
        BadInput: `out` is there already and `force` is not given.
    """

    def make(parts: resumed.Parts) -> dict[str, Any]:
        rows = []
        for family in FAMILIES:
            models = _pretrained(family, settings, parts, say)
            rows += [_cell(cell, models, family, settings, parts, say) for cell in family.cells]
        rows.sort(key=lambda row: row["experiment"])  # stable: within an experiment as listed
        return {"settings": asdict(settings), "rows": rows, "versions": {"torch": str(torch.__version__)}}

    return resumed.run(out, "rigidity", resumed.code_of(sys.modules[__name__]), make, table, force=force)


def _steps(steps: int, settings: Settings) -> int:
    return max(1, round(steps * settings.steps))


def _started(make: Callable[[torch.Generator], Params], seeds: Sequence[int]) -> Params:
    """Fresh parameters of one run per seed, stacked."""
    each = [make(torch.Generator().manual_seed(seed)) for seed in seeds]
    return {k: torch.cat([p[k] for p in each]) for k in each[0]}


def _pretrained(family: Family, settings: Settings, parts: resumed.Parts, say: Callable[[str], None]) -> Params:
    """The family's pretrained models, one run per seed, trained or read again."""
    from safetensors.torch import load, save

    shape, steps = settings.shape(family), _steps(family.pretraining, settings)
    file = parts.file("pretrained", shape, family.tasks, steps, settings, suffix=".safetensors")
    if not file.is_file():
        began, seeds = time.monotonic(), range(settings.seeds)
        fresh = _started(lambda g: new_model(shape, g), seeds)
        kept = train({}, fresh, shape, family.tasks, seeds=seeds, rates=[PRETRAINING_RATE] * len(seeds), steps=steps,
                     batch=BATCH["pretraining"], solved=math.inf, dtype=getattr(torch, settings.precision),
                     say=lambda s: say(f"  pretraining {shape}: {s}"))  # fmt: skip
        models = {k: torch.cat([kept[seed].params[k] for seed in seeds]) for k in fresh}
        atomic.write_bytes(file, save(models))
        say(f"Pretrained {shape} on {', '.join(family.tasks)}: {steps} steps, validation loss "
            f"{', '.join(f'{kept[s].loss:.3f}' for s in seeds)} ({time.monotonic() - began:.0f} s)")  # fmt: skip
    return load(file.read_bytes())


def _cell(
    cell: Cell, models: Params, family: Family, settings: Settings, parts: resumed.Parts, say: Callable[[str], None]
) -> dict[str, Any]:
    """One line of the table: taught on every seed at three rates, chosen on validation, judged on test; or read again."""
    shape = settings.shape(family)
    steps = _steps(family.teaching, settings) if cell.method else 0
    file = parts.file(cell, shape, family.tasks, family.pretraining, steps, settings)
    if file.is_file():
        return json.loads(file.read_bytes())
    began, seeds = time.monotonic(), list(range(settings.seeds))
    row: dict[str, Any] = {
        "experiment": cell.experiment, "task": cell.task, "method": cell.method.title if cell.method else "as pretrained",
        "shape": asdict(shape), "published": cell.published, "parameters": 0, "steps": steps, "used": [], "rates": [],
    }  # fmt: skip
    taught: Params = {}
    if cell.method:
        about = f"  experiment {cell.experiment}, {cell.task}, {row['method']}"
        taught, kept = teach(
            cell.method, models, shape, cell.task, seeds, steps, getattr(torch, settings.precision),
            say=lambda s: say(f"{about}: {s}"),
        )  # fmt: skip
        row |= {
            "parameters": sum(t[0].numel() for t in taught.values()), "used": [k.step for k in kept],
            "rates": [k.rate for k in kept], "validation": [k.exact for k in kept],
        }  # fmt: skip
    row["accuracy"] = judged(models | taught, tokens_of([cell.task], "test", TEST)[0], shape)[1].tolist()
    atomic.write_json(file, row)
    say(f"Experiment {cell.experiment}, {cell.task}, {row['method']}: "
        f"{', '.join(f'{a:.1%}' for a in row['accuracy'])} ({time.monotonic() - began:.0f} s)")  # fmt: skip
    return json.loads(file.read_bytes())  # as a later run would read it


def teach(
    method: Method, models: Params, shape: Shape, task: str, seeds: Sequence[int], steps: int, dtype=torch.float32,
    say: Callable[[str], None] = lambda s: None,
) -> tuple[Params, list[Kept]]:  # fmt: skip
    """Teach each pretrained model one task at every rate of the method. Returns the parameters kept, one run per seed.

    Steps are doubled, up to `MOST` times as many, while for most seeds the last check is the best and doubling lowers the mean
    validation loss by more than `WORTH`; what did best is kept.
    """
    rates = RATES[method.kind]
    runs = [seed for seed in seeds for _ in rates]
    rows = [i for i in range(len(seeds)) for _ in rates]
    frozen = {k: v[rows] for k, v in models.items()}
    fresh = frozen if method == FULL else _started(lambda g: new_adapter(method, shape, g), runs)
    best: list[Kept] = []
    for times in (2**i for i in range(MOST.bit_length())):
        kept = train(frozen, fresh, shape, [task], seeds=runs, rates=list(rates) * len(seeds), steps=times * steps,
                     batch=BATCH["teaching"], solved=SOLVED, dtype=dtype, say=say)  # fmt: skip
        now = [kept[seed] for seed in seeds]
        pays = not best or np.mean([k.loss for k in best]) - np.mean([k.loss for k in now]) > WORTH
        if not best or np.mean([k.loss for k in now]) < np.mean([k.loss for k in best]):
            best = now
        done = [k.exact >= SOLVED or k.step < times * steps for k in now]
        if not pays or sum(done) > len(seeds) / 2:
            break
    return {k: torch.cat([one.params[k] for one in best]) for k in fresh}, best


def table(result: Mapping[str, Any]) -> str:
    """The rows as a markdown table, and below it what differs from the paper."""
    lines = [
        "# Prefixes and LoRAs on small transformers: a variant of the experiments of arXiv 2310.19698",
        "",
        "| experiment | model | task | method | trained parameters | published, one seed | ours, mean [min, max] | steps |",
        "|---|---|---|---|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        shape, got, was, used = row["shape"], row["accuracy"], row["published"], row["used"]
        published = (
            "" if was is None else " to ".join(f"{a:.1%}" for a in (was if isinstance(was, Sequence) else [was]))
        )
        sizes = f"{shape['layers']} x {shape['heads']} heads, width {shape['width']}"
        steps = f"{row['steps']:,}" + (f" (kept {min(used):,} to {max(used):,})" if used else "")
        cells = [
            row["experiment"], sizes, row["task"], row["method"], f"{row['parameters']:,}", published,
            f"{np.mean(got):.1%} [{min(got):.1%}, {max(got):.1%}]", steps,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, "", NOTES.format(**result["settings"]), ""])


NOTES = """\
Exact match of the whole ten-token answer, greedy, on 3,200 test inputs; {seeds} seed(s), each from pretraining on. Model:
layers x heads. Every method tries three learning rates, goes on with the best on validation after 30% of the steps, and stops
early at 99.5% of the validation inputs. Steps are doubled, up to four times as many, while the last ones are the best and
doubling pays; those of the table are what was given at first, and those of the kept parameters. Ten 2s, whatever the input,
score 0.9% on the double histogram.

This is a variant of the published experiments and not a repetition. It differs in this:

- A prefix is trained keys and values in every layer. Theirs replaces the layer's input at padding positions: half as many
  parameters a slot, and a strict subset of what keys and values can do. Their pretraining holds these padding slots; ours has none.
- Their LoRA "of the MLP" adapts attention's output projection too. Ours adapts the MLP alone, and 5 slots of keys and values have
  as many parameters as it has at rank 1 (theirs: 12 slots, and 12,288 parameters at width 256).
- Models are at most {width} wide (theirs: 96 in experiment 1, else 256). Theirs has no first layer norm in experiment 2. Our layer
  norms have no affine part, which the next linear map can express. No dropout.
- The usual steps times {steps:g}, in batches of 64 (pretraining) and 32. Theirs trains prefixes for 100,000 to 500,000 steps at 64.
- 65,536 fixed training inputs, split by an unsalted hash, with validation apart from test; 11 output tokens.
- AdamW without decay, a rate that rises, stays and falls, and a gradient that is clipped as a whole. Theirs: decay of 0.1, a
  constant rate, clipping matrix by matrix. A prefix starts at a standard deviation of 0.1 (theirs: 1)."""
