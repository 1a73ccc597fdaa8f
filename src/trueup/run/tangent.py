"""A prompt classifier as a linear function of its prompt: per-example gradients, computed once for all fits that follow.

At a prompt P0 the class logits are, to first order, f(x; P0) + J(x) D with D a change of the prompt. J does not depend on
D, so a fit of D needs the model only once: one forward pass and C - 1 backward passes for each example. Each example has its
own copy of the prompt, so the passes are shared by a whole batch.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueup.corpus.corpus import Corpus
from trueup.errors import Unsupported
from trueup.run import forward
from trueup.run.predict import TOKENS, in_batches, memo_key, rows_of, session
from trueup.store import atomic
from trueup.subject.subject import Subject

LARGE = 1 << 29
"""Bytes above which gradients are in a memory-mapped file instead of in memory."""
CHUNK = 1 << 22
"""Numbers of a gradient that are read at once."""


@dataclass(frozen=True, eq=False)
class Tangent:
    """A prompt classifier to first order at the prompt `at`, on n examples.

    Attributes:
        at: (m, w) the prompt. logits: (n, C) float32 class logits there.
        gradient: (n, C - 1, m * w): d(f_c - f_0)/dP for the classes c = 1 .. C - 1. A softmax depends on nothing else.
        scale: (n, C - 1) factors for the rows of `gradient`: ones, unless the rows are stored as float16.
    """

    at: np.ndarray
    logits: np.ndarray
    gradient: np.ndarray
    scale: np.ndarray

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def margins(self) -> np.ndarray:
        """(n, C - 1) float64: f_c - f_0 at the prompt `at`."""
        z = self.logits.astype(np.float64)
        return z[:, 1:] - z[:, :1]

    def rows(self) -> Iterator[tuple[slice, np.ndarray]]:
        """The gradient in pieces that fit in memory: a slice of examples, and (k, C - 1, m * w) float64."""
        step = max(1, CHUNK // max(1, self.gradient[0].size))
        for at in range(0, len(self), step):
            part = slice(at, min(len(self), at + step))
            yield part, self.gradient[part].astype(np.float64) * self.scale[part, :, None]

    def moved(self, change: np.ndarray) -> np.ndarray:
        """(n, C - 1): the change of the margins, to first order, when the prompt changes by `change` (m, w)."""
        flat = change.reshape(-1).astype(np.float64)
        return np.concatenate([g @ flat for _, g in self.rows()])


def expand(subject: Subject, corpus: Corpus, at: Tensor | np.ndarray, *, half: bool = False) -> Tangent:
    """The expansion of `subject` at the prompt `at` (m, w) on every example of `corpus`, in its order.

    The result is kept in the session's memory; above `LARGE` bytes its gradient is in a memory-mapped file.

    Args:
        half: store gradients as float16, each row scaled to a largest entry of 1. An entry is then off by at most 2^-12
            of its row's largest, so a margin moves by at most 2^-12 * max|J| * sum|D|.

    Raises:
        Unsupported: the subject has no soft prompt. Unavailable: one example does not fit in memory.
    """
    if not subject.soft_prompted:
        raise Unsupported(
            "Only a prompt-tuned subject has a prompt to differentiate by; tune one: `trueup tune prompt`."
        )
    prompt = torch.as_tensor(at, dtype=torch.float32).to(subject.device)
    classes = len(subject.classes)

    def read(subject: Subject, batch: forward.Batch) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = prompt.expand(len(batch.ids), -1, -1).clone().requires_grad_(True)
            z = forward.logits(subject, batch, leaf)[:, :classes].float()
            # The logits of an example depend only on its own copy of the prompt, so the gradient of the sum over the batch
            # holds the gradient of each example.
            rows = [
                torch.autograd.grad((z[:, c] - z[:, 0]).sum(), leaf, retain_graph=c + 1 < classes)[0].flatten(1)
                for c in range(1, classes)
            ]
        return z.detach(), torch.stack(rows, dim=1)

    ids = rows_of(subject, corpus)
    prompt_digest = hashlib.sha256(prompt.detach().float().cpu().numpy().tobytes()).hexdigest()[:16]
    shape = (len(ids), classes - 1, prompt.numel())
    dtype = np.dtype(np.float16 if half else np.float32)
    current = session()
    key = (
        memo_key(subject, ids, f"prompt gradients of {classes} classes at {prompt_digest}, {dtype}")
        if current.memo
        else ""
    )
    at_numpy = prompt.cpu().numpy()
    large = int(np.prod(shape)) * dtype.itemsize > LARGE
    file = None
    if large:
        file = _file(current.memo.folder if current.memo else None, key or "gradient")
    remembered = current.memo.get(key) if current.memo else None
    if remembered is not None and (
        file is None or (file.is_file() and atomic.sha256_of(file) == str(remembered["sha256"]))
    ):
        gradient = remembered["gradient"] if file is None else np.load(file, mmap_mode="r")
        return Tangent(at_numpy, remembered["logits"], gradient, remembered["scale"])
    part = file.with_suffix(".part") if file is not None else None
    gradient: Any = np.empty(shape, dtype) if part is None else np.lib.format.open_memmap(part, "w+", dtype, shape)
    if part is not None and hasattr(os, "posix_fallocate"):
        # All of the file is allocated first: where the disk is full, a write through mapped memory would kill the process.
        with open(part, "rb+") as f:
            os.posix_fallocate(f.fileno(), 0, part.stat().st_size)
    logits, scale = np.empty((len(ids), classes), np.float32), np.ones(shape[:2], np.float32)
    # A backward pass keeps every layer's activations: an eighth of the tokens of a forward pass.
    for take, (z, rows) in in_batches(subject, ids, read, "gradients of the prompt", tokens=TOKENS // 8):
        logits[take] = z.cpu().numpy()
        if half:
            scale[take] = rows.abs().amax(dim=2).clamp(min=1e-30).cpu().numpy()
            rows = rows / rows.abs().amax(dim=2, keepdim=True).clamp(min=1e-30)
        gradient[take] = rows.cpu().numpy()
    record: dict[str, np.ndarray] = {"logits": logits, "scale": scale}
    if file is not None and part is not None:
        gradient.flush()
        del gradient
        if current.memo:
            record["sha256"] = np.array(atomic.sha256_of(part))
        part.replace(file)
        gradient = np.load(file, mmap_mode="r")
    else:
        record["gradient"] = gradient
    if current.memo:
        current.memo.put(key, record)
    return Tangent(at_numpy, logits, gradient, scale)


def _file(folder: Path | None, key: str) -> Path:
    """The file of a large gradient: next to the session's memory, or in a temporary folder that is removed with the process."""
    if folder is None:
        temporary = tempfile.TemporaryDirectory(prefix="trueup-")
        weakref.finalize(_file, temporary.cleanup)
        return Path(temporary.name) / f"{key}.npy"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{key[:40]}.npy"
