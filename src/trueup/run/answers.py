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
        beyond: (n,) bool: no class, because the answer went on after a class's name (``b,k,s`` where ``b`` is one).
    """

    answer: np.ndarray
    logits: np.ndarray
    other: np.ndarray
    beyond: np.ndarray


def answers(subject: Subject, rows: Sequence[Row]) -> Answers:
    """Greedy answers: the likeliest token of the whole vocabulary, and the next, until it is settled which class they spell.

    An answer is a class by exact match, as of what ``generate`` writes up to the answer's end, with spaces stripped. It ends
    where the template says so, at a line break, or with the text. One full stop before the end is no part of it: a base model
    that closes its line like a sentence ("Paris.") has given the same answer, while "Paris or London", "1.5" for 1 and "b,k"
    for b are others. A class whose own name holds such a sign comes first.

    A prompt is read on only while its answer may still become a class, mostly for one token after the class's last: that one
    tells "1" from "10".
    """
    assert subject.template is not None
    words = wording(subject.tokenizer, subject.template)
    names = {c.strip(): i for i, c in enumerate(subject.classes)}
    first = torch.tensor([a[0] for a in words.answers], device=subject.device)

    def read(subject: Subject, batch: forward.Batch) -> Tensor:
        logits = forward.next_token_logits(subject, batch).float()
        own = logits[:, first]
        best = logits.argmax(dim=1)
        logits[:, first] = -torch.inf
        return torch.cat([own, logits.amax(dim=1, keepdim=True), best.unsqueeze(1).float()], dim=1)

    got = collect_rows(subject, list(rows), read, "answers")
    answer, beyond = np.full(len(rows), -1), np.zeros(len(rows), bool)
    answered = {i: [int(t)] for i, t in enumerate(got[:, -1])}
    ends = end_tokens(subject)
    # An answer may be spelt in more tokens than the tokenizer would take.
    for left in reversed(range(2 * (words.longest + words.end))):
        going: dict[int, list[int]] = {}
        for i, tokens in answered.items():
            ended = tokens[-1] in ends
            text = _after(subject, [*words.lead, *(tokens[:-1] if ended else tokens)])
            room = left and len(rows[i]) + len(tokens) <= subject.max_length
            if room and not ended and _open(text, names, words.stop):
                going[i] = tokens
                continue
            begun = [n for n in names if text.startswith(n)]
            whole = [n for n in begun if _ends(text[len(n) :], words.stop, ended)]
            answer[i] = names[max(whole, key=len)] if whole else -1
            beyond[i] = bool(begun) and not whole
        if not going:
            break
        again = [_longer(rows[i], tokens) for i, tokens in going.items()]
        next_token = collect_rows(subject, again, read, "answers")[:, -1]
        answered = {i: [*tokens, int(t)] for (i, tokens), t in zip(going.items(), next_token, strict=True)}
    return Answers(answer, got[:, :-2], got[:, -2], beyond)


def _longer(row: Row, tokens: list[int]) -> Row:
    longer = Row([*row, *tokens])
    longer.shared = row.shared
    return longer


def in_full(subject: Subject, row: Row, tokens: int = 12) -> str:
    """What the model answers to one prompt, up to the end of its line and at most so many tokens."""
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
    own = getattr(getattr(subject.model, "generation_config", None), "eos_token_id", None)  # one, several or none
    return {t for t in (subject.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])) if t is not None}


def _after(subject: Subject, tokens: Sequence[int]) -> str:
    """The text of an answer's tokens, without what stands between the prompt and every answer."""
    assert subject.template is not None
    if subject.template.chat:
        return subject.tokenizer.decode(tokens).lstrip()
    before = subject.template.text.partition("{label}")[0]
    return subject.tokenizer.decode(tokens).lstrip(before[len(before.rstrip()) :] + " ")


def _ends(rest: str, stop: str, ended: bool) -> bool:
    """Whether `rest`, which follows a class's name, begins with what ends an answer; `ended`: nothing comes after it."""
    if not stop:  # a tokenizer that cannot write it: an answer ends with its word
        return rest.startswith(" ") or (ended and not rest)
    rest = rest.lstrip(" ")
    return any(
        tail.startswith((stop, "\n", "\r")) or (ended and not tail)
        for tail in (rest, rest.removeprefix(".").lstrip(" "))
    )


def _open(text: str, names: Iterable[str], stop: str) -> bool:
    """Whether more of a text can still make it a class, or another one."""
    text = text.rstrip(" ").rstrip("\ufffd")  # a token may end inside a character
    for name in names:
        if name.startswith(text) and name != text:
            return True
        if text.startswith(name) and not _ends(text[len(name) :], stop, False):
            rest = text[len(name) :].lstrip(" ")
            if stop.startswith(rest) or stop.startswith(rest.removeprefix(".").lstrip(" ")):
                return True
    return False


def patched_answers(subject: Subject, rows: Sequence[Row], states: np.ndarray, layers: Sequence[int]) -> np.ndarray:
    """(n, l) int64: the class whose first token is likeliest, when what enters a layer at the last token is exchanged.

    Args:
        states: (n, l, d) those columns of what `forward.hidden_states` gives that enter `layers`.
        layers: which ones, from 0 on.
    """
    first = subject.verbaliser_ids()
    found = np.empty((len(rows), len(layers)), np.int64)
    each = max(1, TOKENS // max(map(len, rows)))
    for start in range(0, len(rows), each):
        some = slice(start, start + each)
        # What is exchanged is found by its place in the whole example.
        batch = replace(forward.collate(rows[some], subject.tokenizer.pad_token_id), shared=0)
        mask = batch.mask.to(subject.device)
        with torch.inference_mode(), evaluating(subject):
            for column, at in enumerate(layers):
                new = torch.as_tensor(states[some, column], device=subject.device)
                with patched(subject, at, new, mask):
                    logits = forward.next_token_logits(subject, batch)[:, first]
                found[some, column] = logits.argmax(dim=1).cpu().numpy()
    return found


def surprise(subject: Subject, texts: Sequence[str], *, tokens: int = 128) -> np.ndarray:
    """(n,) mean negative log likelihood of each text's tokens after its first, in nats; the first `tokens` of a text count.

    Its exponential is the text's perplexity. A text of fewer than two tokens is nan.
    """
    tokens = min(tokens, subject.max_length)
    rows = [Row(ids[:tokens]) for ids in (subject.tokenizer(t, verbose=False)["input_ids"] for t in texts)]
    long = [i for i, row in enumerate(rows) if len(row) > 1]

    def read(subject: Subject, batch: forward.Batch) -> Tensor:
        ids, mask = batch.ids.to(subject.device), batch.mask.to(subject.device)
        states = forward.backbone(subject, ids, mask).last_hidden_state[:, -ids.shape[1] :]
        logits = forward.word_logits(subject, states[:, :-1]).float()
        lost = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        return ((lost * mask[:, 1:]).sum(dim=1) / mask[:, 1:].sum(dim=1)).unsqueeze(1)

    found = np.full(len(texts), np.nan)
    if long:
        found[long] = collect_rows(subject, [rows[i] for i in long], read, "text")[:, 0]
    return found
