"""The published way to find copying units: on a synthetic task, counting vowels, whose right answer no demonstration shows."""

from __future__ import annotations

from dataclasses import replace

from trueup.corpus import tasks
from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, Unsupported
from trueup.run.prompts import drawn, pool_of, rows, with_pool
from trueup.subject.few_shot_tokens import wording
from trueup.subject.subject import Subject
from trueup.subject.template import SHOT, Shots, Template

TASK = "noun-vowels"


def proxy(subject: Subject, *, seed: int) -> tuple[Subject, Corpus]:
    """The subject asked to count vowels with as many demonstrations as it is asked with now, and the pairs to ask it about.

    A demonstration is ``noun -> 2`` (confirmed: ``New York -> 2, Lyon -> 1, Florida ->``), one a line. Whether the model can
    count does not matter; only that it can say the answers does.

    Raises:
        Unsupported: an answer is not one token of its tokenizer, or the prompts do not fit.
    """
    data = tasks.load(TASK, seed=seed, progress=False).part("train")
    assert subject.template is not None
    chat = subject.template.chat
    template = Template("{text}" if chat else SHOT, data.classes, Shots(pool_of(subject).number), chat=chat)
    able = with_pool(replace(subject, template=template), data)
    try:
        assert able.template is not None
        longest = wording(able.tokenizer, able.template).longest
        rows(able, data.text, drawn(able, data, mode="never", seed=seed))
    except BadInput as e:
        raise Unsupported(f"The model cannot be asked to count vowels. {e}") from e
    if longest > 1 or len(set(able.verbaliser_ids())) < len(data.classes):
        raise Unsupported(
            f"The tokenizer does not write the numbers {data.classes[0]} to {data.classes[-1]} as one token each, which counting "
            "vowels as a proxy asks for. Find units on the task itself: --set copying.units_from=task."
        )
    return able, data
