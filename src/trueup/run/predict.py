"""Whole corpora through a Subject: features and logits of every example, bucketed by length, remembered on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from trueup import __version__
from trueup.corpus.corpus import Corpus
from trueup.errors import OutOfMemory, Unavailable, Unsupported, out_of_memory
from trueup.measure.calibration import softmax
from trueup.run import forward
from trueup.run.processes import Team
from trueup.run.proof import equal
from trueup.store.cache import Memo
from trueup.subject.sharing import whole_batches
from trueup.subject.subject import Subject, body_fingerprint
from trueup.subject.template import Template
from trueup.subject.units import layers_of

T = TypeVar("T")
VERSIONS = [__version__, *(version(p) for p in ("torch", "transformers", "peft"))]
"""The versions that computed a remembered pass: another version of a library may compute other numbers."""
FEATURES = "features"
"""The stage name under which the features of a pass are remembered."""
TOKENS = 4096
"""Tokens of one batch, padding included. Halved, with a note, each time that memory runs out."""


@dataclass
class Session:
    """What runs share during one job: a memory of finished passes, progress, notes for the report, and warnings for its head.

    `bases` remembers passes of a base without an adapter; jobs that share it compute each such pass once. `team`: the
    processes that share the passes of this job, where there are several.
    """

    memo: Memo | None = None
    bases: Memo | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None
    team: Team | None = None
    tokens: dict[tuple[int, int, Template | None], tuple[Any, forward.Known]] = field(default_factory=dict, repr=False)

    def known(self, subject: Subject) -> forward.Known:
        """Token ids of the texts that were read in this session with this tokenizer, length and template."""
        key = (id(subject.tokenizer), subject.max_length, subject.template)
        # The tokenizer is stored with them: while it lives, no other object can have its id.
        return self.tokens.setdefault(key, (subject.tokenizer, {}))[1]

    def memory(self, subject: Subject) -> Memo | None:
        """Where passes of `subject` are remembered; None where they are not."""
        return self.bases if self.bases and self.memo and subject.peft_config is None else self.memo

    def note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def warn(self, sentence: str) -> None:
        """A note that a reader must see before any figure."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)


_session: ContextVar[Session | None] = ContextVar("trueup_session", default=None)


def session() -> Session:
    """The current session; outside of `within`, one that remembers nothing."""
    return _session.get() or Session()


@contextlib.contextmanager
def within(current: Session) -> Iterator[Session]:
    """Runs inside the block share `current`."""
    token = _session.set(current)
    try:
        yield current
    finally:
        _session.reset(token)


@dataclass(frozen=True, eq=False)
class Outputs:
    """The outputs of a classifier for n examples, in their order.

    Attributes:
        features: (n, d) float32, the input of the last linear layer.
        logits: (n, K) float32; the first C columns are the classes.
        predicted: (n,) int64, argmax over the C class logits. confidence: (n,), higher is surer.
        probability: (n, C) softmax of the class logits.
    """

    features: np.ndarray
    logits: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    probability: np.ndarray


def predict(subject: Subject, corpus: Corpus) -> Outputs:
    """Features, logits, predicted classes and confidences of every example, in the corpus' order.

    Examples run in batches of similar length, and no result depends on the batch. When memory runs out the batch is
    halved, and the session notes it.

    Raises:
        BadInput: an example has no token. Unavailable: one example alone does not fit in memory.
    """
    x = collect(subject, corpus, forward.features, FEATURES, head=False)
    return outputs(subject, x)


def rows_of(subject: Subject, corpus: Corpus) -> list[forward.Row]:
    """`forward.tokenize`, which tokenizes each text once in a session: the same texts come again in other orders and parts."""
    return forward.tokenize(subject, corpus, None if subject.shots is not None else session().known(subject))


def outputs(subject: Subject, x: np.ndarray) -> Outputs:
    """The outputs that follow from features alone: the head is linear, so no pass through the model is needed."""
    z = _through_head(subject, x)
    classes = z[:, : len(subject.classes)]
    return Outputs(x, z.astype(np.float32), classes.argmax(axis=1), subject.confidence(z), softmax(classes))


def _through_head(subject: Subject, x: np.ndarray) -> np.ndarray:
    """(n, d) features -> (n, K) float64 logits, computed in double, or in the head's own dtype where that has 16 bits.

    A bfloat16 model rounds its logits for every user who loads it, so a threshold has to hold for the rounded ones.
    """
    head, dtype = forward.live_head(subject), forward.head_type(subject)
    if dtype.itemsize >= 4:
        w, b = head.weight.detach().double().cpu().numpy(), head.bias.detach().double().cpu().numpy()
        return x.astype(np.float64) @ w.T + b
    with torch.inference_mode():
        rows = torch.as_tensor(x, device=subject.device).to(dtype)
        return nn.functional.linear(rows, head.weight.to(dtype), head.bias.to(dtype)).double().cpu().numpy()


def layers_read(subject: Subject) -> int:
    """The number of states that `hidden_states` gives for each example: one where the layers could not be discovered."""
    return 1 if "layers" in subject.anatomy.lacks else len(layers_of(subject)) + 1


def hidden_states(subject: Subject, corpus: Corpus, layers: Sequence[int] = ()) -> np.ndarray:
    """(n, layers + 1, d) float32: the residual stream per example (see `forward.hidden_states`).

    The same pass gives the features, which are remembered, so that `predict` needs no further pass. Where the layers could not be
    discovered, the result is the features: (n, 1, d). `layers`: only these states, which saves memory.
    """
    if "layers" in subject.anatomy.lacks:
        return predict(subject, corpus).features[:, None]
    taken = list(layers)

    def read(subject: Subject, batch: forward.Batch) -> Tensor:
        states, x = forward.states_and_features(subject, batch)
        states = states[:, taken] if taken else states
        return torch.cat([states.flatten(1).float(), x.float()], dim=1)

    ids, width = rows_of(subject, corpus), forward.live_head(subject).weight.shape[1]
    stage = "hidden states and features" + (f" at layers {', '.join(map(str, taken))}" if taken else "")
    rows = collect_rows(subject, ids, read, stage, head=False, parts={FEATURES: slice(-width, None)})
    return rows[:, :-width].reshape(len(ids), len(taken) or layers_read(subject), -1)


def collect(
    subject: Subject, corpus: Corpus, read: Callable[[Subject, forward.Batch], Tensor], stage: str, *, head: bool = True
) -> np.ndarray:
    """`read` over the corpus: one float32 row per example, in the corpus' order. `head` as in `collect_rows`."""
    return collect_rows(subject, rows_of(subject, corpus), read, stage, head=head)


def collect_rows(
    subject: Subject, ids: list[forward.Row], read: Callable[[Subject, forward.Batch], Tensor], stage: str, *,
    head: bool = True, parts: Mapping[str, slice] | None = None,
) -> np.ndarray:  # fmt: skip
    """`read` over rows of tokens: one float32 row each, in their order.

    `head` False: `read` does not use the last linear layer, so the remembered rows also serve a subject whose last layer was
    repaired. `parts`: stage name -> columns of the rows that are also remembered separately, under that stage.
    """
    memo = session().memory(subject)
    # Sorted by length and contents, so that remembered rows serve the same examples in any order, with equal bits.
    order = _in_order(ids)
    ids, place = [ids[i] for i in order], np.argsort(order)
    # The state, which is part of the key, is computed once and before the pass.
    state = state_of(subject, head=head) if memo else ""
    key = memo_key(subject, ids, stage, state=state) if memo else ""
    if memo and (remembered := memo.get(key)) is not None:
        return remembered["rows"][place]
    proven(subject, ids)
    team = session().team
    share = (team.rank, team.count) if team else (0, 1)
    with torch.inference_mode():
        parts_of = [
            (take, values.float().cpu().numpy()) for take, values in in_batches(subject, ids, read, stage, share=share)
        ]
    if team:
        digest = hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:12]
        parts_of = [
            part
            for batches_of_process in team.exchange(f"{stage} of {len(ids)} texts ({digest})", parts_of)
            for part in batches_of_process
        ]
    rows = np.empty((len(ids), *parts_of[0][1].shape[1:]), np.float32)
    for take, values in parts_of:
        rows[take] = values
    if memo:
        memo.put(key, {"rows": rows})
        for part, columns in (parts or {}).items():
            memo.put(memo_key(subject, ids, part, state=state), {"rows": rows[:, columns]})
    return rows[place]


def _in_order(ids: list[forward.Row]) -> list[int]:
    """Rows of tokens by length and contents."""
    return sorted(range(len(ids)), key=lambda i: (len(ids[i]), ids[i], ids[i].segments or []))


PROVEN_ON = 64
"""Tokens of the example on which the shortcut from features to logits is compared with the model itself."""
_PROVEN: WeakKeyDictionary[nn.Module, set[tuple[bool, ...]]] = WeakKeyDictionary()


def proven(subject: Subject, ids: list[forward.Row]) -> None:
    """Check once for each model, on the shortest example, that features and head give the logits of the model itself.

    Raises:
        Unsupported: they differ by more than rounding, or the libraries cannot run the model as it is.
    """
    shortest = min(ids, key=len)
    with torch.inference_mode():
        reused = bool(shortest.shared) and forward.reusable(subject)
    case = subject.template is None, subject.shots is None, reused
    if case in _PROVEN.setdefault(subject.model, set()):
        return
    what = f"The way from features to logits of a {type(subject.base).__name__}"
    # The beginning of the example is enough: a long prompt would give too many logits of a whole vocabulary.
    beginning = forward.Row(shortest[:PROVEN_ON])
    try:
        with torch.inference_mode(), evaluating(subject):
            model_logits, shortcut_logits, terms = forward.own_logits(subject, beginning)
            whole_batch = forward.collate([shortest], 0)
            states = (
                [forward.features(subject, b) for b in (whole_batch, replace(whole_batch, shared=0))] if reused else []
            )
    except (RuntimeError, MemoryError) as e:
        if out_of_memory(e):  # the pass over the whole example reports this
            return
        raise Unsupported(
            f"The model cannot be run as it is ({' '.join(str(e).split())[:200].rstrip('.')}). Run it once by itself; where its "
            "parts are of different types, give them one with model.to(dtype)."
        ) from e
    if not bool(torch.isfinite(model_logits).all()):  # training has diverged, which is reported elsewhere
        return
    for logits in shortcut_logits:
        equal(logits, model_logits, what, "the logits", terms)
    if states:
        equal(states[0], states[1], "Reading fixed demonstrations once", "the final hidden states")
    _PROVEN[subject.model].add(case)


def padded_answers(subject: Subject, corpus: Corpus) -> np.ndarray:
    """(n,) the classes that the PEFT model itself predicts in padded batches (see `forward.batched_logits`).

    Raises:
        OutOfMemory: such a batch does not fit in memory, and a smaller one would give other answers.
    """
    try:
        with torch.inference_mode(), evaluating(subject):
            return forward.batched_logits(subject, rows_of(subject, corpus)).argmax(dim=1).cpu().numpy()
    except (RuntimeError, MemoryError) as e:
        if out_of_memory(e):
            raise OutOfMemory from e
        raise


def unchanged(subject: Subject, same: Subject, corpus: Corpus, *, texts: int = 4) -> None:
    """Check that a remedy that changes nothing gives the same logits for the first `texts` examples, except for rounding.

    Raises:
        Unsupported: it does not, so the effect of the repair could not be told from that of its implementation.
    """
    rows = rows_of(subject, corpus.take(np.arange(min(texts, len(corpus)))))
    read = forward.logits if subject.shots is None else forward.next_token_logits

    def said(s: Subject) -> Tensor:
        logits: dict[int, Tensor] = {}
        with torch.inference_mode():
            for taken, logits_of_batch in in_batches(s, rows, read, "testing an empty repair"):
                logits |= zip(taken, logits_of_batch, strict=True)
        return torch.stack([logits[i] for i in range(len(rows))])

    equal(said(same), said(subject), "A repair that changes nothing", "the logits")


def in_batches(
    subject: Subject,
    ids: list[forward.Row],
    read: Callable[[Subject, forward.Batch], T],
    stage: str,
    *,
    tokens: int | None = None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[list[int], T]]:
    """Every example once, in batches of similar length of at most `tokens` tokens: indices of the rows, and what `read` gives.

    `tokens` None is `TOKENS`. `share` (i, n): only each n-th batch, from the i-th on.

    Raises:
        Unavailable: one example alone does not fit in memory.
    """
    # A budget of 1 is a batch of one example.
    current, budget, done = (
        session(),
        1 if subject.anatomy.alone or whole_batches(subject.model) else tokens or TOKENS,
        0,
    )
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
    planned = [order] if share[1] == 1 else _planned(order, ids, budget)[share[0] :: share[1]]
    order = [i for batch in planned for i in batch]
    ends = np.cumsum([len(batch) for batch in planned])
    while done < len(order):
        take = _fitting(order[: ends[np.searchsorted(ends, done, side="right")]], ids, done, budget)
        try:
            with evaluating(subject):
                result = read(subject, forward.collate([ids[i] for i in take], subject.tokenizer.pad_token_id))
        except (RuntimeError, MemoryError) as e:
            if not out_of_memory(e):
                raise
            if len(take) == 1:
                raise Unavailable(
                    f"One example of {len(ids[take[0]])} tokens does not fit in memory; lower --max-length."
                ) from e
            budget = max(1, budget // 2)
            current.note(f"Memory ran out; batches were halved to {budget} tokens.")
            continue
        yield take, result
        done += len(take)
        current.progress(stage, done, len(order))


@contextlib.contextmanager
def evaluating(subject: Subject) -> Iterator[None]:
    """Every module is in eval mode inside the block, and in its previous mode after it."""
    modes = [(m, m.training) for m in subject.model.modules()]
    subject.model.eval()
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode


def _fitting(order: list[int], ids: list[forward.Row], start: int, budget: int) -> list[int]:
    stop = start + 1
    while stop < len(order) and (stop - start + 1) * len(ids[order[stop]]) <= budget:
        stop += 1
    return order[start:stop]


def _planned(order: list[int], ids: list[forward.Row], budget: int) -> list[list[int]]:
    """The batches that one process would make."""
    batches: list[list[int]] = []
    done = 0
    while done < len(order):
        batches.append(_fitting(order, ids, done, budget))
        done += len(batches[-1])
    return batches


def state_of(subject: Subject, *, head: bool = True) -> str:
    """Fingerprint of what a pass depends on: the whole subject, or all of it except its last linear layer."""
    return subject.fingerprint if head else body_fingerprint(subject)


def memo_key(subject: Subject, ids: list[forward.Row], stage: str, *, state: str | None = None) -> str:
    """The key under which a pass over rows of tokens is remembered. `state` None is `state_of` the whole subject."""
    contents: list[Any] = [
        stage,
        state_of(subject) if state is None else state,
        VERSIONS,
        ids,
        [r.segments for r in ids],
    ]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()
