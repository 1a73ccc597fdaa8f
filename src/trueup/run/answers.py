"""What a causal model answers to few-shot prompts: greedily, in one token or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trueup.run import forward
from trueup.run.predict import collect_rows
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

    An answer counts when the words so far are a class and no longer class begins with them, or what ends an answer (or the
    whole text) follows.
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
    for length in range(1, words.longest + 2):
        going: dict[int, list[int]] = {}
        for i, tokens in said.items():
            ended = tokens[-1] == end
            text = subject.tokenizer.decode([*words.lead, *(tokens[:-1] if ended else tokens)])
            body, stop, _ = text.partition(words.stop)
            stopped = bool(stop) or ended
            body = body.strip().rstrip("\ufffd")  # a token may end inside a character
            longer = any(n.startswith(body) and n != body for n in names)
            if body in names and (stopped or not longer):
                answer[i] = names[body]
            elif not stopped and longer:
                going[i] = tokens
        if not going or length > words.longest:
            break
        again = [Row([*rows[i], *tokens]) for i, tokens in going.items()]
        next_token = collect_rows(subject, again, read, "answers")[:, -1]
        said = {i: [*tokens, int(t)] for (i, tokens), t in zip(going.items(), next_token, strict=True)}
    return Answers(answer, got[:, :-2], got[:, -2])
