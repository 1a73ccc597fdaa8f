"""What a causal model answers to few-shot prompts: greedily, in one token or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trueup.run import forward
from trueup.run.edit import patched
from trueup.run.predict import TOKENS, collect_rows, evaluating
from trueup.run.prompts import Row
from trueup.subject.subject import Subject
from trueup.subject.wording import wording


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers to n prompts.

    Attributes:
        answer: (n,) int64 class, -1 for anything that is no class.
        logits: (n, C) float32, of each class's first token.
        other: (n,) float32, the highest logit of a token with which no class begins.
    """

    answer: np.ndarray
    logits: np.ndarray
    other: np.ndarray


def answers(subject: Subject, rows: Sequence[Row]) -> Answers:
    """Greedy answers: the likeliest token of the whole vocabulary, and the next, as long as they spell one of the classes.

    An answer counts as soon as the words so far are a class and no longer class begins with them, or what ends an answer (or
    the whole text) follows.
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
    answer = np.full(len(rows), -1)
    said = {i: [int(t)] for i, t in enumerate(got[:, -1])}
    end = subject.tokenizer.eos_token_id
    before = subject.template.text.partition("{label}")[0]
    blank = before[len(before.rstrip()) :] + " "  # what may stand before an answer
    for length in range(1, words.longest + 2):
        going: dict[int, list[int]] = {}
        for i, tokens in said.items():
            ended = tokens[-1] == end
            text = subject.tokenizer.decode([*words.lead, *(tokens[:-1] if ended else tokens)])
            said_so_far = text.lstrip(blank).rstrip(" ").rstrip("\ufffd")  # a token may end inside a character
            if not ended and any(n.startswith(said_so_far) and n != said_so_far for n in names):
                going[i] = tokens
            else:
                answer[i] = max((c for n, c in names.items() if _says(said_so_far, n, words.stop)), default=-1,
                                key=lambda c: len(subject.classes[c]))  # fmt: skip
        if not going or length > words.longest:
            break
        again = [Row([*rows[i], *tokens]) for i, tokens in going.items()]
        next_token = collect_rows(subject, again, read, "answers")[:, -1]
        said = {i: [*tokens, int(t)] for (i, tokens), t in zip(going.items(), next_token, strict=True)}
    return Answers(answer, got[:, :-2], got[:, -2])


def _says(text: str, name: str, stop: str) -> bool:
    """Whether a text is `name`, or `name` and what ends an answer, or the beginning of that."""
    rest = text.removeprefix(name).lstrip(" ")
    return text.startswith(name) and (rest.startswith(stop) or stop.startswith(rest))


def patched_answers(subject: Subject, rows: Sequence[Row], states: np.ndarray) -> np.ndarray:
    """(n, l) int64: the class whose first token is likeliest, when what enters a layer at the last token is exchanged.

    Args:
        states: (n, l + 1, d) as `forward.hidden_states` gives them; the last, which has passed the final norm, is left out,
            and so is the first, which is the token's own embedding: column i is of layer i + 1.
    """
    depth, first = states.shape[1] - 1, subject.verbaliser_ids()
    found = np.empty((len(rows), depth - 1), np.int64)
    each = max(1, TOKENS // max(map(len, rows)))
    for start in range(0, len(rows), each):
        some = slice(start, start + each)
        batch = forward.collate(rows[some], subject.tokenizer.pad_token_id)
        mask = batch.mask.to(subject.device)
        with torch.inference_mode(), evaluating(subject):
            for at in range(1, depth):
                new = torch.as_tensor(states[some, at], device=subject.device)
                with patched(subject, at, new, mask):
                    logits = forward.next_token_logits(subject, batch)[:, first]
                found[some, at - 1] = logits.argmax(dim=1).cpu().numpy()
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
        logits = subject.base.get_output_embeddings()(states[:, :-1]).float()  # type: ignore[operator]
        lost = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        return ((lost * mask[:, 1:]).sum(dim=1) / mask[:, 1:].sum(dim=1)).unsqueeze(1)

    found = np.full(len(texts), np.nan)
    if long:
        found[long] = collect_rows(subject, [rows[i] for i in long], read, "text")[:, 0]
    return found
