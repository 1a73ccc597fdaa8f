"""Standard training of an adapter: one loop for every kind, on several processes through accelerate, resumable at any step."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch as safetensors
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, Unavailable, out_of_memory
from trueup.run import forward
from trueup.run.objective import CrossEntropy, Objective
from trueup.run.predict import evaluating, predict, rows_of, session
from trueup.run.processes import processes
from trueup.store import sealed
from trueup.subject.new_adapter import prompt_embeddings
from trueup.subject.subject import Subject, model_fingerprint


@dataclass(frozen=True)
class Training:
    """Settings of a training. The defaults suit adapters on a few thousand short texts.

    Attributes:
        lr: peak learning rate; None takes that of the adapter's kind. Linear warm-up over the share `warmup` of the steps, then
            linear decay to 0.
        epochs, batch: passes over the training examples, and examples per step (all processes together).
        weight_decay: AdamW's, on matrices. clip: largest gradient norm.
        validation: share of the training examples set aside to choose the best epoch by NLL.
        patience: epochs without a better validation NLL before training stops.
        save_every: steps between checkpoints.
    """

    lr: float | None = None
    epochs: int = 4
    batch: int = 32
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    validation: float = 0.1
    patience: int = 2
    save_every: int = 50

    def __post_init__(self) -> None:
        """Raises BadInput where a value cannot be used for training."""
        for f in fields(self):
            value, integral = getattr(self, f.name), f.type == "int"
            if isinstance(value, bool) or not isinstance(value, Integral if integral else Real):
                if value is not None or f.default is not None:
                    kind = "a whole number" if integral else "a number"
                    raise BadInput(f"The training's {f.name} is {value!r}; give {kind}, such as {f.default or 0.001}.")
        for name in ("epochs", "batch", "patience", "save_every"):
            if getattr(self, name) < 1:
                raise BadInput(f"The training's {name} is {getattr(self, name)}; give 1 or more.")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise BadInput(f"The training's {name} is {value}; give a number above 0, such as 0.001.")
        if not 0 <= self.warmup <= 1 or not 0 < self.validation < 1 or not self.weight_decay >= 0:
            raise BadInput(
                f"warmup {self.warmup}, validation {self.validation} and weight_decay {self.weight_decay} cannot be used "
                "together; the first two are shares below 1, the last is 0 or more."
            )


@dataclass(frozen=True)
class History:
    """The course of a training: mean loss, validation NLL and accuracy per epoch, best epoch, steps, initial prompt P0."""

    loss: list[float]
    validation_nll: list[float]
    validation_accuracy: list[float]
    best_epoch: int
    steps: int
    start: Tensor | None = field(default=None, compare=False)


class _Tuned(nn.Module):
    """The classifier as a module that calls `run.forward`, so that accelerate can wrap it."""

    def __init__(self, subject: Subject):
        super().__init__()
        self.model = subject.model
        self.subject = subject

    def forward(self, ids: Tensor, mask: Tensor, segments: Tensor | None) -> Tensor:
        return forward.logits(self.subject, forward.Batch(ids, mask, segments))


def train(
    subject: Subject, corpus: Corpus, training: Training, *, lr: float, seed: int, objective: Objective | None = None,
    parameters: Sequence[Tensor] | None = None, checkpoint: Path | None = None,
) -> History:  # fmt: skip
    """Train the subject's live adapter on all of `corpus` (give its ``train`` part) and keep the best epoch's weights.

    Batches hold texts of similar length; each step reseeds dropout from (seed, step), so a killed run that finds its
    `checkpoint` goes on to bit-identical weights. When memory runs out a step is split into smaller pieces.

    Args:
        objective: what is minimised, and what chooses the best epoch; its arrays are over the rows of `corpus`, the
            validation share included. None: the mean cross-entropy.
        parameters: the trainable parameters of the model to train; the others stay as they are. None: all.

    Raises:
        BadInput: fewer than two classes, fewer than 10 examples, or an objective or parameters that do not belong to them.
        Unavailable: one example does not fit in memory.
    """
    if len(corpus) < 10 or len(np.unique(corpus.label)) < 2:
        raise BadInput(
            f"'{corpus.name}' has {len(corpus)} training examples of {len(np.unique(corpus.label))} classes; "
            "training needs at least 10 examples of 2 classes."
        )
    objective = objective or CrossEntropy()
    if objective.rows not in (None, len(corpus)):
        raise BadInput(
            f"The objective is over {objective.rows} rows and '{corpus.name}' has {len(corpus)} training examples; "
            "give it one entry for each of them, in their order."
        )
    chosen = _chosen(subject.model, parameters)
    with _only(subject.model, list(chosen.values())):
        return _train(subject, corpus, training, lr, seed, objective, chosen, checkpoint)


def _train(
    subject: Subject, corpus: Corpus, training: Training, lr: float, seed: int, objective: Objective,
    chosen: dict[str, nn.Parameter], checkpoint: Path | None,
) -> History:  # fmt: skip
    """`train` once its input is known to be usable: `chosen` are the only parameters that require a gradient."""
    shared = _shared(subject)
    fit, validation, fit_objective, validation_objective = _validation_split(
        corpus, training.validation, seed, objective
    )
    ids = rows_of(subject, fit)
    label = torch.as_tensor(fit.label)
    tuned = _Tuned(subject)
    parameters = list(chosen.values())
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": training.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=lr,
    )
    wrapped, optimiser = shared.prepare(tuned, optimiser) if shared else (tuned, optimiser)
    start = prompt_embeddings(subject)
    per_epoch = -(-len(fit) // training.batch)
    total = per_epoch * training.epochs
    made_by = asdict(training) | {
        "lr": lr, "seed": seed, "from": _beginning(subject, fit, validation, ids), "objective": objective.identity,
        "parameters": list(chosen),
    }  # fmt: skip
    state = _State(parameters, optimiser, checkpoint, made_by)
    state.start, state.objective = start, fit_objective.begin()
    state.load()
    piece = 1 if subject.anatomy.alone else training.batch
    current, first_process = session(), processes().rank == 0
    with torch.random.fork_rng(), evaluating(subject):
        while state.step < total and not state.stale(training.patience):
            epoch, within_epoch = divmod(state.step, per_epoch)
            batches = list(_batches([len(r) for r in ids], training.batch, seed, epoch, fit_objective.chance))
            subject.model.train()
            for rows in batches[within_epoch:]:
                _reseed(int(np.random.SeedSequence([seed, state.step]).generate_state(1)[0]), subject.device)
                for group in optimiser.param_groups:
                    group["lr"] = lr * _schedule(state.step, total, training.warmup)
                weight, losses = (
                    fit_objective.weights(rows, state.objective),
                    torch.zeros(len(rows), dtype=torch.float64),
                )
                while True:
                    try:
                        loss = _step(wrapped, optimiser, shared, subject, ids, label, rows, piece, weight, losses)
                        break
                    except (RuntimeError, MemoryError) as e:
                        if not out_of_memory(e):
                            raise
                        if piece == 1:
                            raise Unavailable(
                                "One training example does not fit in memory; lower --max-length or take a smaller model."
                            ) from e
                        piece = max(1, piece // 2)
                        current.note(
                            f"Memory ran out while training; each step was split into pieces of {piece} examples."
                        )
                nn.utils.clip_grad_norm_(parameters, training.clip)
                optimiser.step()
                state.advance(loss, fit_objective.after(state.objective, rows, losses))
                current.progress("training", state.step, total)
                # Not at the epoch's end: a run killed during validation would go on without it. The epoch's end is saved below.
                if first_process and state.step % training.save_every == 0 and state.step % per_epoch:
                    state.save()
            outputs = predict(subject, validation)
            nll = validation_objective.judge(
                -np.log(np.clip(outputs.probability[np.arange(len(validation)), validation.label], 1e-12, 1))
            )
            state.end_epoch(
                nll if np.isfinite(nll) else float("inf"), float((outputs.predicted == validation.label).mean())
            )
            if first_process:
                state.save()
    if not np.isfinite(state.nll).any():
        raise BadInput(f"Training diverged: its loss is no number at learning rate {lr:g}. Take a lower --lr.")
    state.restore_best()
    for p in parameters:
        p.grad = None
    return History(state.loss, state.nll, state.accuracy, int(np.argmin(state.nll)), state.step, state.start)


def _reseed(number: int, device: torch.device) -> None:
    # For every device at once torch formats a traceback, which took an eighth of a small model's step.
    (torch.default_generator if device.type == "cpu" else torch).manual_seed(number)


def _chosen(model: nn.Module, parameters: Sequence[Tensor] | None) -> dict[str, nn.Parameter]:
    """The parameters to train by their names, in the model's order however they were given."""
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if parameters is None:
        return trainable
    requested = {id(p) for p in parameters}
    chosen = {n: p for n, p in trainable.items() if id(p) in requested}
    if not requested or len(chosen) < len(requested):
        raise BadInput(
            f"{len(requested) - len(chosen)} of the {len(requested)} parameters given to train are no trainable parameters of the "
            "model; give one or more of its parameters that require a gradient."
        )
    return chosen


@contextlib.contextmanager
def _only(model: nn.Module, parameters: Sequence[Tensor]) -> Iterator[None]:
    """No other parameter of the model requires a gradient inside the block; after it, all are as before."""
    # Leaving them out of the optimiser is not enough: several processes wait for the gradient of all that require one.
    trained = {id(p) for p in parameters}
    untrained = [p for p in model.parameters() if p.requires_grad and id(p) not in trained]
    try:
        for p in untrained:
            p.requires_grad_(False)
        yield
    finally:
        for p in untrained:
            p.requires_grad_(True)


def _beginning(subject: Subject, fit: Corpus, held: Corpus, ids: list[forward.Row]) -> str:
    """sha256 of the model and the data at the beginning, so that a checkpoint of others is not continued."""
    config = subject.peft_config.to_dict() if subject.peft_config else {}
    settings = {k: sorted(v) if isinstance(v, set) else str(v) for k, v in config.items()}
    contents = [
        model_fingerprint(subject.model),
        fit.fingerprint,
        held.fingerprint,
        ids,
        [r.segments for r in ids],
        settings,
    ]
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def _step(
    wrapped: nn.Module, optimiser: Any, shared: Any, subject: Subject,
    ids: list[forward.Row], label: Tensor, rows: np.ndarray, piece: int, weight: Tensor | None = None,
    losses: Tensor | None = None,
) -> float:  # fmt: skip
    """Gradients of the mean cross-entropy over `rows`, each process on its share, piece by piece. Returns the mean.

    shared: the Accelerator of `_shared`, or None. weight: (b,), how often each of `rows` counts in the mean; None: once.
    losses: (b,), filled in every process with each row's cross-entropy.
    """
    world, rank = (shared.num_processes, shared.process_index) if shared else (1, 0)
    # Places in the batch and not rows: a batch that was drawn with replacement may hold a row twice.
    places = np.arange(len(rows))
    own_places = places[rank::world] if len(rows) >= world else places[[rank % len(rows)]]
    share = 1.0 if len(rows) >= world or rank < len(rows) else 0.0
    weight = torch.ones(len(rows)) if weight is None else weight.float()
    optimiser.zero_grad()
    total, row_losses = 0.0, torch.zeros(len(rows), device=subject.device)
    for at in range(0, len(own_places), piece):
        piece_places = own_places[at : at + piece]
        piece_rows = rows[piece_places]
        batch = forward.collate([ids[i] for i in piece_rows], subject.tokenizer.pad_token_id)
        with _autocast(subject.device):
            z = wrapped(batch.ids, batch.mask, batch.segments)
        # The sum is divided by the size of the whole batch, so gradients depend neither on pieces nor on the number of processes.
        ce = F.cross_entropy(z.float(), label[piece_rows].to(z.device), reduction="none")
        loss = (ce * weight[piece_places].to(z.device)).sum() * share / len(rows)
        (loss * world).backward()
        total += float(loss.detach())
        row_losses[piece_places] = ce.detach().to(row_losses) * share
    if losses is not None:
        # Each place is filled by one process and is 0 in the others, so the sum is the same in every process.
        losses.copy_(shared.reduce(row_losses) if shared else row_losses)
    return total


def _shared(subject: Subject) -> Any:
    """The ``Accelerator`` through which several processes train together; None for one process alone.

    One process does not use accelerate. Accelerate has one device and one precision for a whole process, which an earlier training
    may have set otherwise, and it would move a subject on cuda:1 to the first GPU. Half precision is torch's own in both cases.
    """
    if processes().count == 1 or session().team is not None:
        return None  # inside a shared check every process trains the whole adapter, with the same result
    from accelerate import Accelerator

    return Accelerator(mixed_precision="no", cpu=subject.device.type == "cpu")


def _autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 on a GPU that supports it."""
    half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast("cuda", torch.bfloat16) if half else contextlib.nullcontext()


def _schedule(step: int, total: int, warmup: float) -> float:
    rise = max(1, round(warmup * total))
    return (step + 1) / rise if step < rise else max(0.0, (total - step) / max(1, total - rise))


def _validation_split(corpus: Corpus, share: float, seed: int, objective: Objective | None = None) -> tuple[Any, ...]:
    """The corpus to fit and the one held out; with an objective also the objective over the rows of each."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    held_out = np.zeros(len(corpus), dtype=bool)
    strata = None if objective is None else objective.strata
    stratum = np.stack([corpus.label, np.zeros_like(corpus.label) if strata is None else strata])
    for k in np.unique(stratum, axis=1).T:
        members = rng.permutation(np.flatnonzero((stratum == k[:, None]).all(axis=0)))
        held_out[members[: max(1, round(share * len(members)))]] = len(members) > 1
    return tuple(x.take(rows) for x in (corpus, objective) if x is not None for rows in (~held_out, held_out))


def _batches(
    lengths: list[int], size: int, seed: int, epoch: int, chance: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Every index once, in batches of similar length and random order, which depend only on (seed, epoch).

    With `chance`, (n,) summing to 1, n indices are drawn with replacement instead.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, 2, epoch]))
    n = len(lengths)
    order = rng.permutation(n) if chance is None else rng.choice(n, n, p=chance)
    pool, length = size * 16, np.asarray(lengths)
    batches: list[np.ndarray] = []
    for at in range(0, len(order), pool):
        pool_rows = order[at : at + pool]
        pool_rows = pool_rows[np.argsort(length[pool_rows], kind="stable")]
        batches += [pool_rows[i : i + size] for i in range(0, len(pool_rows), size)]
    for i in rng.permutation(len(batches)):
        yield batches[i]


SEALED = "training checkpoint 1"
"""The name under which a checkpoint is sealed. The number is the version of its format: other versions are not parsed."""


class _State:
    """The state of a training: weights, optimiser, objective, step, curves and the best weights; on disk where a path is given."""

    SAID = ("step", "sum", "count", "loss", "nll", "accuracy")

    def __init__(self, parameters: Sequence[Tensor], optimiser: Any, path: Path | None, made_by: dict[str, Any]):
        self.parameters, self.optimiser, self.path, self.made_by = parameters, optimiser, path, made_by
        self.step, self.sum, self.count = 0, 0.0, 0
        self.loss: list[float] = []
        self.nll: list[float] = []
        self.accuracy: list[float] = []
        self.best: list[Tensor] = []
        self.start: Tensor | None = None
        self.objective = torch.zeros(0)

    def advance(self, loss: float, objective: Tensor) -> None:
        self.step, self.sum, self.count = self.step + 1, self.sum + loss, self.count + 1
        self.objective = objective

    def end_epoch(self, nll: float, accuracy: float) -> None:
        self.loss.append(self.sum / max(1, self.count))
        self.sum, self.count = 0.0, 0
        self.nll.append(nll)
        self.accuracy.append(accuracy)
        if nll <= min(self.nll):
            self.best = [p.detach().cpu().clone() for p in self.parameters]

    def stale(self, patience: int) -> bool:
        return len(self.nll) > 0 and len(self.nll) - 1 - int(np.argmin(self.nll)) >= patience

    def restore_best(self) -> None:
        with torch.no_grad():
            for p, b in zip(self.parameters, self.best, strict=True):
                p.copy_(b)

    def save(self) -> None:
        if self.path is None:
            return
        metadata = {k: getattr(self, k) for k in self.SAID} | {"made_by": self.made_by}
        tensors = {"objective": self.objective} | ({} if self.start is None else {"start": self.start})
        for i, p in enumerate(self.parameters):
            tensors[f"now.{i}"] = p
        for i, p in enumerate(self.best):
            tensors[f"best.{i}"] = p
        for i, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{i}.{name}": value for name, value in moments.items()}
        plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        sealed.write(self.path, SEALED, safetensors.save(plain, {"said": json.dumps(metadata)}))

    def load(self) -> None:
        """Restore the state of an earlier run with the same beginning, if its checkpoint is intact."""
        if self.path is None or not self.path.is_file():
            return
        try:
            content = sealed.read(self.path, SEALED)
        except (sealed.Spoilt, OSError):
            session().note("The checkpoint of an earlier run is damaged, or of another trueup, so training began anew.")
            return
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = json.loads(header["__metadata__"]["said"])
        tensors = safetensors.load(content)
        weights = [tensors[f"now.{i}"] for i in range(len([k for k in tensors if k.startswith("now.")]))]
        same_run = metadata["made_by"] == json.loads(json.dumps(self.made_by))
        if not same_run or [p.shape for p in weights] != [p.shape for p in self.parameters]:
            return
        with torch.no_grad():
            for p, value in zip(self.parameters, weights, strict=True):
                p.copy_(value)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimiser."):
                _, i, name = key.split(".", 2)
                moments.setdefault(int(i), {})[name] = value
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": moments})
        for k in self.SAID:
            setattr(self, k, metadata[k])
        self.objective, self.start = tensors["objective"], tensors.get("start")
        self.best = [tensors[f"best.{i}"] for i in range(len(self.parameters)) if f"best.{i}" in tensors]
        session().note(f"Training went on from step {self.step}, where an earlier run had stopped.")
