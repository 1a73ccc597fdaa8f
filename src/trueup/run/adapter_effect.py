"""Whether an adapter does anything: the largest change of a logit against the same model with the adapter's layers off."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput
from trueup.run import forward
from trueup.run.predict import collect
from trueup.subject.subject import Subject
from trueup.subject.swap_adapter import brings_head, without_layers

TEXTS = 32
"""Texts that are read with the adapter and without it; a quarter as many where prompts hold demonstrations."""
ROUNDING = 16 * float(torch.finfo(torch.float32).eps)
"""Changes up to this share of the largest logit are rounding, as a DoRA that was never trained gives them."""


@dataclass(frozen=True)
class Effect:
    """What an adapter changes.

    Attributes:
        largest: the largest change of a logit, 0 where all of them are rounding.
        typical: the median over the texts of the largest change in each.
        texts: how many were read.
        head: the adapter brings a classification head that is not the base's; both sides are read with it.
    """

    largest: float
    typical: float
    texts: int
    head: bool

    @property
    def sentence(self) -> str:
        head_note = ", both with the classification head of the adapter" if self.head else ""
        return (
            f"The adapter changes a logit by {self.largest:.3g} at most, and by {self.typical:.3g} for the median text, compared "
            f"with the base ({self.texts} test texts{head_note})."
        )


def effect(subject: Subject, corpus: Corpus) -> Effect | None:
    """The effect of the adapter of `subject` on the logits of the first texts of `corpus`; None without an adapter.

    With demonstrations in the prompt the logits are those of the next token over the whole vocabulary.
    A classification head that the adapter brings is used on both sides: without it a base would answer at random.

    Raises:
        BadInput: no logit changes, and the adapter brings no head, or brings a head and an untrained LoRA.
    """
    if subject.peft_config is None:
        return None
    few_shot = subject.shots is not None
    texts = corpus.take(np.arange(min(TEXTS // 4 if few_shot else TEXTS, len(corpus))))
    read = forward.next_token_logits if few_shot else forward.logits
    with_adapter, without_adapter = (
        collect(s, texts, read, "with and without the adapter") for s in (subject, without_layers(subject))
    )
    change = np.abs(with_adapter - without_adapter).max(axis=1)
    head, no_effect = brings_head(subject), bool(change.max() <= ROUNDING * np.abs(with_adapter).max())
    if no_effect and (not head or _untrained(subject)):
        raise BadInput(nothing(subject, len(texts), head))
    return Effect(
        0.0 if no_effect else float(change.max()), 0.0 if no_effect else float(np.median(change)), len(texts), head
    )


def nothing(subject: Subject, texts: int, head: bool) -> str:
    """The sentences of the error for an adapter without effect: what was seen, the usual causes, the next step."""
    name = f"The adapter '{subject.source.adapter}'" if subject.source.adapter else "The adapter"
    claim = f"{name} changes nothing before the classification head that it brings" if head else f"{name} does nothing"
    if _untrained(subject):
        return (
            f"{claim}: every B of its LoRA is 0, as before the first step of training, so no logit of {texts} test texts differs "
            "from the base's. Either it was never trained, or its weights were not loaded because their names in the file have "
            "another prefix than the model's (PEFT only warns of missing keys). Give the adapter that training saved."
        )
    return (
        f"{claim}: no logit of {texts} test texts differs from those of the base without it. Usual causes: its weights were not "
        "loaded, because their names in the file have another prefix than the model's (PEFT only warns of missing keys); another "
        "adapter is active (model.set_adapter); it was merged into this base already; or it was never trained. Give the base that "
        "it was trained on and the adapter that training saved, or leave the adapter out."
    )


def _untrained(subject: Subject) -> bool:
    """Whether every B of a LoRA is 0 and its A is not, as PEFT initialises it. A LoRA that only carries a head has both at 0."""
    zero = [(n, bool((p == 0).all())) for n, p in subject.model.named_parameters() if ".lora_" in n]
    b_is_zero, a_is_zero = ([z for n, z in zero if f"{end}." in n] for end in ("_B", "_A"))
    return bool(b_is_zero) and all(b_is_zero) and not all(a_is_zero)
