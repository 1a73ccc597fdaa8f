"""What a causal model answers to few-shot prompts: greedily, in one token or several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trueup.run import forward
from trueup.run.edit import patched
from trueup.run.predict import TOKENS, collect_rows, evaluating
from trueup.run.prompts import Row
from trueup.subject.few_shot_tokens import wording
from trueup.subject.subject import Subject


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers to n prompts.

    Attributes:
        answer: (n,) int64 class, -1 for anything that is no class.
        logits: (n, C) float32, of each class's first token.
        other: (n,) float32, the highest logit of a token with which no class begins.
        beyond: (n,) bool: no class, because the answer continued after a class's name (``b,k,s`` where ``b`` is one).
    """

    answer: np.ndarray
    logits: np.ndarray
    other: np.ndarray
    beyond: np.ndarray


def answers(subject: Subject, rows: Sequence[Row]) -> Answers:
    """Greedy answers: the likeliest token of the whole vocabulary, then the next, until the class that they spell is settled.

    An answer is a class by exact match, as with the text that ``generate`` writes up to the end of the answer, with spaces
    stripped. The answer ends where the template says so, at a line break, or with the text. One full stop before the end does not
    belong to it: a base model that closes its line like a sentence ("Paris.") has given the same answer, while "Paris or London",
    "1.5" for 1 and "b,k" for b are others. A class whose own name holds such a sign takes precedence.

    A prompt is continued only while its answer may still become a class. In most cases this is one token after the last one of
    the class, which tells "1" from "10".
    """
    assert subject.template is not None
    words = wording(subject.tokenizer, subject.template)
    names = {c.strip(): i for i, c in enumerate(subject.classes)}
    first_tokens = torch.tensor([a[0] for a in words.answers], device=subject.device)

    def read(subject: Subject, batch: forward.Batch) -> Tensor:
        logits = forward.next_token_logits(subject, batch).float()
        class_logits = logits[:, first_tokens]
        best = logits.argmax(dim=1)
        logits[:, first_tokens] = -torch.inf
        return torch.cat([class_logits, logits.amax(dim=1, keepdim=True), best.unsqueeze(1).float()], dim=1)

    readings = collect_rows(subject, list(rows), read, "answers")
    answer, beyond = np.full(len(rows), -1), np.zeros(len(rows), bool)
    answered = {i: [int(t)] for i, t in enumerate(readings[:, -1])}
    ends = end_tokens(subject)
    # A model may spell an answer in more tokens than the tokenizer does.
    for tokens_left in reversed(range(2 * (words.longest + words.end))):
        unsettled: dict[int, list[int]] = {}
        for i, tokens in answered.items():
            ended = tokens[-1] in ends
            text = _after(subject, [*words.lead, *(tokens[:-1] if ended else tokens)])
            may_continue = tokens_left and len(rows[i]) + len(tokens) <= subject.max_length
            if may_continue and not ended and _open(text, names, words.stop):
                unsettled[i] = tokens
                continue
            begun_names = [n for n in names if text.startswith(n)]
            complete = [n for n in begun_names if _ends(text[len(n) :], words.stop, ended)]
            answer[i] = names[max(complete, key=len)] if complete else -1
            beyond[i] = bool(begun_names) and not complete
        if not unsettled:
            break
        longer_rows = [_longer(rows[i], tokens) for i, tokens in unsettled.items()]
        next_token = collect_rows(subject, longer_rows, read, "answers")[:, -1]
        answered = {i: [*tokens, int(t)] for (i, tokens), t in zip(unsettled.items(), next_token, strict=True)}
    return Answers(answer, readings[:, :-2], readings[:, -2], beyond)


def _longer(row: Row, tokens: list[int]) -> Row:
    longer = Row([*row, *tokens])
    longer.shared = row.shared
    return longer


def in_full(subject: Subject, row: Row, tokens: int = 12) -> str:
    """The model's answer to one prompt, up to the end of its line and at most `tokens` tokens."""
    assert subject.template is not None
    lead, ends = wording(subject.tokenizer, subject.template).lead, end_tokens(subject)

    def read(subject: Subject, batch: forward.Batch) -> Tensor:
        return forward.next_token_logits(subject, batch).argmax(dim=1, keepdim=True).float()

    answered: list[int] = []
    while len(answered) < tokens and len(row) + len(answered) <= subject.max_length:
        token = int(collect_rows(subject, [Row([*row, *answered])], read, "next token")[0, 0])
        if token in ends or "\n" in _after(subject, [*lead, *answered, token]):
            break
        answered.append(token)
    return _after(subject, [*lead, *answered]).strip()


def end_tokens(subject: Subject) -> set[int]:
    """The tokens that end a text: the tokenizer's, and those at which transformers' own generation stops."""
    generation_ends = getattr(
        getattr(subject.model, "generation_config", None), "eos_token_id", None
    )  # one, several or none
    return {
        t
        for t in (
            subject.tokenizer.eos_token_id,
            *(generation_ends if isinstance(generation_ends, list) else [generation_ends]),
        )
        if t is not None
    }


def _after(subject: Subject, tokens: Sequence[int]) -> str:
    """The text of an answer's tokens, without the characters of the template between the prompt and every answer."""
    assert subject.template is not None
    if subject.template.chat:
        return subject.tokenizer.decode(tokens).lstrip()
    template_start = subject.template.text.partition("{label}")[0]
    return subject.tokenizer.decode(tokens).lstrip(template_start[len(template_start.rstrip()) :] + " ")


def _ends(rest: str, stop: str, ended: bool) -> bool:
    """Whether `rest`, the text after a class's name, begins with the end of an answer; `ended`: no token follows it."""
    if not stop:  # the tokenizer cannot write the stop: an answer ends with its word
        return rest.startswith(" ") or (ended and not rest)
    rest = rest.lstrip(" ")
    return any(
        tail.startswith((stop, "\n", "\r")) or (ended and not tail)
        for tail in (rest, rest.removeprefix(".").lstrip(" "))
    )


def _open(text: str, names: Iterable[str], stop: str) -> bool:
    """Whether further tokens can still make a text a class, or another class."""
    text = text.rstrip(" ").rstrip("\ufffd")  # a token may end inside a character
    for name in names:
        if name.startswith(text) and name != text:
            return True
        if text.startswith(name) and not _ends(text[len(name) :], stop, False):
            remainder = text[len(name) :].lstrip(" ")
            if stop.startswith(remainder) or stop.startswith(remainder.removeprefix(".").lstrip(" ")):
                return True
    return False


def patched_answers(subject: Subject, rows: Sequence[Row], states: np.ndarray, layers: Sequence[int]) -> np.ndarray:
    """(n, l) int64: the class whose first token is likeliest, when the input of a layer at the last token is replaced.

    Args:
        states: (n, l, d) the columns of `forward.hidden_states` that are the inputs of `layers`.
        layers: numbers of the layers, from 0.
    """
    first = subject.verbaliser_ids()
    classes = np.empty((len(rows), len(layers)), np.int64)
    batch_size = max(1, TOKENS // max(map(len, rows)))
    for start in range(0, len(rows), batch_size):
        part = slice(start, start + batch_size)
        # shared=0: the states are replaced by their position in the whole example.
        batch = replace(forward.collate(rows[part], subject.tokenizer.pad_token_id), shared=0)
        mask = batch.mask.to(subject.device)
        with torch.inference_mode(), evaluating(subject):
            for column, at in enumerate(layers):
                replacement = torch.as_tensor(states[part, column], device=subject.device)
                with patched(subject, at, replacement, mask):
                    logits = forward.next_token_logits(subject, batch)[:, first]
                classes[part, column] = logits.argmax(dim=1).cpu().numpy()
    return classes


def surprise(subject: Subject, texts: Sequence[str], *, tokens: int = 128) -> np.ndarray:
    """(n,) mean negative log likelihood of each text's tokens after its first, in nats; only the first `tokens` are read.

    Its exponential is the text's perplexity. A text of fewer than two tokens is nan.
    """
    tokens = min(tokens, subject.max_length)
    rows = [Row(ids[:tokens]) for ids in (subject.tokenizer(t, verbose=False)["input_ids"] for t in texts)]
    scored = [i for i, row in enumerate(rows) if len(row) > 1]

    def read(subject: Subject, batch: forward.Batch) -> Tensor:
        ids, mask = batch.ids.to(subject.device), batch.mask.to(subject.device)
        states = forward.backbone(subject, ids, mask).last_hidden_state[:, -ids.shape[1] :]
        logits = forward.word_logits(subject, states[:, :-1]).float()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        return ((losses * mask[:, 1:]).sum(dim=1) / mask[:, 1:].sum(dim=1)).unsqueeze(1)

    nll = np.full(len(texts), np.nan)
    if scored:
        nll[scored] = collect_rows(subject, [rows[i] for i in scored], read, "text")[:, 0]
    return nll
