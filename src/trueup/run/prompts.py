"""Few-shot prompts in tokens: demonstrations drawn for each query, and the rows that a causal model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trueup.corpus import prompt
from trueup.corpus.corpus import Corpus
from trueup.corpus.prompt import Draws, Mode
from trueup.errors import BadInput
from trueup.subject.few_shot_tokens import prompt_ids, text_ids, wording
from trueup.subject.subject import SoftmaxResponse, Subject
from trueup.subject.template import Shots


class Row(list[int]):
    """Token ids of one example; `segments` gives the text of a pair that each token is of, for models that read it.

    The first `shared` tokens are those of fixed demonstrations, with which other rows begin as well.
    """

    segments: list[int] | None = None
    shared: int = 0


def with_pool(subject: Subject, corpus: Corpus, fixed: Sequence[tuple[str, str]] = ()) -> Subject:
    """A few-shot subject that takes its demonstrations from `corpus`, and its answers from the corpus' classes.

    Args:
        fixed: pairs of a text and its answer that stand before every query in place of drawn ones. Their answers become classes
            as well. Pairs drawn from `corpus` are what they are compared with (`corpus.prompt.fixed`).

    Raises:
        BadInput: the corpus' examples are pairs of texts.
    """
    if corpus.second is not None:
        raise BadInput(
            "A demonstration has one text and its answer; leave --second out, or join the two texts into one."
        )
    assert subject.template is not None
    assert subject.template.shots is not None
    pool = tuple((t, corpus.classes[y]) for t, y in zip(corpus.text, corpus.label, strict=True))
    classes = tuple(dict.fromkeys([*corpus.classes, *(y for _, y in fixed)]))
    number = len(fixed) or subject.template.shots.number
    shots = Shots(number, (*fixed, *pool), len(fixed))
    template = replace(subject.template, words=classes, shots=shots)
    return replace(subject, classes=classes, template=template, confidence=SoftmaxResponse(len(classes)))


def one_answer_each(corpus: Corpus) -> None:
    """Raises BadInput when a text stands in `corpus` with two answers."""
    answer: dict[str, int] = {}
    for text, y in zip(corpus.text, corpus.label, strict=True):
        key = " ".join(text.split())  # case is kept: Polish and polish are two questions
        if answer.setdefault(key, int(y)) != y:
            raise BadInput(
                f"'{corpus.name}' gives two answers to {text[:60]!r}: '{corpus.classes[answer[key]]}' and '{corpus.classes[y]}'. "
                "A demonstration has one; drop or correct the other."
            )


def pool_of(subject: Subject) -> Shots:
    """The subject's demonstrations.

    Raises:
        BadInput: it has none.
    """
    if subject.shots is None or not subject.shots.pool:
        raise BadInput(
            "The subject has no pairs to take demonstrations from. Give it some: `with_pool(subject, corpus.part('train'))`."
        )
    return subject.shots


def drawn(subject: Subject, corpus: Corpus, *, mode: Mode = "free", number: int | None = None, seed: int = 0) -> Draws:
    """`number` demonstrations for every query of `corpus`, from the subject's pool. Default: the subject's own number.

    A subject with fixed demonstrations gets these, or the first `number` of them.

    Raises:
        BadInput: the subject has no pool, or too small a one.
    """
    shots = pool_of(subject)
    place = {c: i for i, c in enumerate(subject.classes)}
    pool, answer = zip(*shots.pool, strict=True)
    arguments = pool, np.array([place[a] for a in answer]), corpus.text, corpus.label, len(subject.classes)
    number = shots.number if number is None else number
    if shots.fixed:
        return prompt.fixed(*arguments, number=number, kept=shots.fixed, mode=mode, seed=seed)
    return prompt.draw(*arguments, number=number, mode=mode, seed=seed)


MOST_NAMED = 30
"""Most answers that a prompt's first line names."""


def header(classes: Sequence[str]) -> str:
    """The first line of a prompt that names all answers, in alphabetical order whatever the order of `classes`.

    Raises:
        BadInput: there are more than `MOST_NAMED`.
    """
    if len(classes) > MOST_NAMED:
        raise BadInput(
            f"There are {len(classes)} answers, and a prompt's first line names at most {MOST_NAMED}. Ask without naming them, or "
            "keep the most frequent ones."
        )
    return f"The answer is one of: {', '.join(sorted(c.strip() for c in classes))}.\n"


def fitting(subject: Subject) -> None:
    """Raises BadInput where a demonstration does not fit the template: its text or answer holds the end of a demonstration."""
    shots, template = pool_of(subject), subject.template
    assert template is not None
    stop = wording(subject.tokenizer, template).stop
    # With a tokenizer that has no line break, a demonstration must still be one line.
    ends = stop or "\n"
    if template.chat:
        broken = [(x, y) for x, y in shots.pool if ends in y or "\n" in y.strip()]
        ends = ends if any(ends in y for _, y in broken) else "\n"
    else:
        broken = [(x, y) for x, y in shots.pool if ends in y or ("\n" in x and "\n" in (ends, template.text[-1:]))]
    if broken:
        text, answer = broken[0]
        what = f"the answer {answer!r}" if ends in answer else f"the text {text[:60]!r}"
        raise BadInput(
            f"{len(broken)} of {len(shots.pool)} demonstrations do not fit the template {template.text!r}: {what} holds a "
            f"{ends if ends in answer else chr(10)!r}, which ends a demonstration there. Drop or join such lines, or give "
            "a template whose demonstrations end otherwise."
        )


def rows(
    subject: Subject, text: Sequence[str], draws: Draws, answers: np.ndarray | None = None, first: str = ""
) -> list[Row]:
    """The prompt of every query, up to where its answer goes.

    Args:
        answers: (n, k) answers for the demonstrations to carry instead of their own, as indices of classes.
        first: the text before the demonstrations, as :func:`header` gives it.

    Raises:
        BadInput: a prompt and its answer are longer than the model reads.
    """
    template, shots = subject.template, subject.shots
    assert template is not None
    assert shots is not None
    words = wording(subject.tokenizer, template)
    answer_length = words.longest + words.end - 1  # what follows a prompt while its answer is read
    # Where every query has the same demonstrations, these are read once for all queries.
    identical = bool(shots.fixed) and answers is None and len(np.unique(draws.index, axis=0)) == 1
    fixed_pairs = [shots.pool[j] for j in draws.index[0] if j >= 0] if identical else []
    shared_ids: list[int] = []
    if identical and template.chat:
        # The turns of another query: only tokens that agree are shared.
        shared_ids = prompt_ids(subject.tokenizer, template, "x", fixed_pairs, first)
    elif identical:
        shared_ids = text_ids(subject.tokenizer, first + template.before(fixed_pairs))
    prompt_rows: list[Row] = []
    for i, query in enumerate(text):
        pairs = [shots.pool[j] for j in draws.index[i] if j >= 0]
        if answers is not None:
            pairs = [(x, subject.classes[a]) for (x, _), a in zip(pairs, answers[i][draws.index[i] >= 0], strict=True)]
        row = Row([*prompt_ids(subject.tokenizer, template, query, pairs, first), *words.lead])
        if identical:
            # A token may span the beginning of the query, so only the tokens that agree are shared.
            row.shared = next(
                (k for k, (a, b) in enumerate(zip(row, shared_ids, strict=False)) if a != b), len(shared_ids)
            )
            row.shared = min(row.shared, len(row) - 1)
        if len(row) + answer_length > subject.max_length:
            raise BadInput(_too_long(subject, query, pairs, len(words.lead) + answer_length, first))
        prompt_rows.append(row)
    return prompt_rows


def _too_long(subject: Subject, query: str, pairs: list[tuple[str, str]], answer: int, first: str) -> str:
    assert subject.template is not None

    def length(shown: int) -> int:
        assert subject.template is not None
        return len(prompt_ids(subject.tokenizer, subject.template, query, pairs[:shown], first)) + answer

    fit = next((k for k in range(len(pairs), -1, -1) if length(k) <= subject.max_length), 0)
    lower = f"at most {fit} of them fit. Lower --shots to {fit}, raise" if fit else "not one of them fits. Raise"
    shown = query if len(query) < 40 else query[:37] + "..."
    return (
        f"The prompt for {shown!r} with {len(pairs)} demonstrations and its answer has {length(len(pairs))} tokens, and "
        f"{subject.max_length} are read: {lower} --max-length, or give shorter texts."
    )
