"""Arithmetic with prompts and LoRA adapters: HyPA (a reconstruction), published alternatives to it, and a method of ours.

Notation: P0 is the prompt that training started from, P_Y the subject's tuned prompt, and P_Z a prompt trained to predict the
group. tau_Y = P_Y - P0 is the task's vector, and tau_Z is the confounder's. J f(x; P)[tau] is the derivative of the logits along
tau at the prompt P. A tangent prompt is one that is fitted in this linearised model.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trueup.corpus.corpus import Corpus
from trueup.faults.confounding import maths
from trueup.faults.confounding.evidence import CONTROL, Change, Evidence, Family, Variant, score
from trueup.faults.confounding.maths import PromptVector
from trueup.faults.confounding.retrained import SOFT, again, prompt_of, train_only
from trueup.measure.calibration import softmax
from trueup.run.heads import warm_start
from trueup.run.predict import predict
from trueup.run.tangent import Tangent, expand
from trueup.subject import adapter as files

LENGTHS, STEPS = (0.1, 0.25, 0.5), 6
"""The step lengths that `Relinearised` tries, and the largest number of its steps."""
KEPT = 0.95
"""The share of the AUPRC on the data as they are that `by_control` keeps (task arithmetic, arXiv 2212.04089)."""


class Prompted(Family):
    """A family that needs a subject with a soft prompt."""

    def possible(self, e: Evidence) -> bool:
        return e.prompt is not None


Rule = Callable[[Evidence, Sequence[Variant]], int]
"""A rule that chooses l_Z without shifted data: (evidence, variants in the order of `Knobs.l_z`) -> index of the variant."""


def as_published(e: Evidence, variants: Sequence[Variant]) -> int:
    """l_Z = 1."""
    return e.knobs.l_z.index(1.0)


def by_balanced_slice(e: Evidence, variants: Sequence[Variant]) -> int:
    """The l_Z with the best AUPRC on calibration examples, which are weighted to no coupling."""
    return int(np.argmax([score(e, v.held, "balanced") for v in variants]))


def by_control(e: Evidence, variants: Sequence[Variant]) -> int:
    """The largest l_Z that keeps `KEPT` of the AUPRC on the data as they are (task arithmetic, arXiv 2212.04089)."""
    least = KEPT * score(e, variants[0].held, "here")
    return max(i for i, v in enumerate(variants) if i == 0 or score(e, v.held, "here") >= least)


class Arithmetic(Prompted):
    """A family with one variant for each coefficient l_Z of the confounder's vector."""

    @abstractmethod
    def at(self, e: Evidence, coefficient: float) -> Variant:
        """The variant at l_Z = `coefficient`."""

    def variants(self, e: Evidence) -> list[Variant]:
        return [self.at(e, c) for c in e.knobs.l_z]

    def choose(self, e: Evidence, variants: Sequence[Variant]) -> int:
        return by_balanced_slice(e, variants)

    def flipped(self, e: Evidence, chosen: int) -> Variant | None:
        return self.at(e, -e.knobs.l_z[chosen]) if e.knobs.l_z[chosen] else None


def _prompted(e: Evidence, start: PromptVector, tau: PromptVector, coefficient: float) -> Variant:
    """The variant with the prompt `start` - l_Z `tau`."""
    return e.variant(f"l_Z = {coefficient:g}", Change(prompt=(start - coefficient * tau).value))


@dataclass(frozen=True)
class Hybrid(Arithmetic):
    """P = P0 + l_Y tau_Y - l_Z tau_Z, where tau_Z is the tangent confounder prompt at P0 (weight form; a reconstruction)."""

    rule: Rule
    key: str = ""
    title: str = ""
    source: str = "HyPA, reconstruction"

    def at(self, e: Evidence, coefficient: float) -> Variant:
        return e.once(_hybrid, coefficient)  # three rules choose among the same prompts

    def choose(self, e: Evidence, variants: Sequence[Variant]) -> int:
        return self.rule(e, variants)


def _hybrid(e: Evidence, coefficient: float) -> Variant:
    return _prompted(e, e.task, e.tau_z, coefficient)


class Flipped(Prompted):
    """A control with the polarity of the shortcut reversed: P_Y + tau_Z. It must not help."""

    key = "flipped"
    title = "control: hybrid arithmetic with the polarity flipped"
    source = CONTROL

    def variants(self, e: Evidence) -> list[Variant]:
        return [replace(_prompted(e, e.task, e.tau_z, -1.0), change=None)]


class FunctionForm(Arithmetic):
    """f(x; P_Y) - l_Z J f(x; P0)[tau_Z], the function that the weight form (`Hybrid`) approximates. No adapter computes it."""

    key = "function"
    title = "hybrid arithmetic on the function"
    source = "HyPA, reconstruction"

    def at(self, e: Evidence, coefficient: float) -> Variant:
        return _linear(e, coefficient, e.anchor, -coefficient * e.tau_z, around_subject=True)


def _linear(e: Evidence, coefficient: float, anchor: NDArray, tau: PromptVector, *, around_subject: bool) -> Variant:
    """Logits of the subject, or of the model at the anchor, plus J f(x; anchor)[tau]."""

    def run(corpus: Corpus) -> NDArray:
        # All coefficients share this expansion, and so do all families that linearise at the same anchor.
        t = e.once(_expanded, anchor is e.start, corpus)
        logits = t.logits
        if around_subject:
            logits = e.once(_logits, corpus)[:, : e.classes]
        moved = np.concatenate([np.zeros((len(t), 1)), t.moved(tau.value)], axis=1)
        return softmax(logits + moved)

    return Variant(f"l_Z = {coefficient:g}", run(e.held), run, None)


def _expanded(e: Evidence, at_start: bool, corpus: Corpus) -> Tangent:
    """The model to first order in the prompt, at the prompt that training started from or at the tuned one."""
    anchor = e.start if at_start else e.prompt
    assert anchor is not None
    return expand(e.subject, corpus, anchor)


def _logits(e: Evidence, corpus: Corpus) -> NDArray:
    return predict(e.subject, corpus).logits


class Started(Arithmetic):
    """Arithmetic that needs P0, the prompt that training started from."""

    def possible(self, e: Evidence) -> bool:
        return e.start is not None


class Linearised(Started):
    """f(x; P0) + J f(x; P0)[l_Y tau_Y - l_Z (P_Z - P0)]: ordinary prompts, linearised after training (arXiv 2305.12827)."""

    key = "linearised"
    title = "post-hoc linearisation"
    source = "arXiv 2305.12827"
    costly = True

    def possible(self, e: Evidence) -> bool:
        return super().possible(e) and e.subject.source.peft_type == "PROMPT_TUNING"

    def at(self, e: Evidence, coefficient: float) -> Variant:
        assert e.start is not None
        tau = e.task - PromptVector(e.start) - coefficient * e.once(ordinary)
        return _linear(e, coefficient, e.start, tau, around_subject=False)


class TangentBoth(Started):
    """P = P0 + l_Y tau_Y - l_Z tau_Z, where both vectors are tangent prompts: that of the labels as well."""

    key = "tangent-tangent"
    title = "tangent minus tangent"
    source = "tangent task arithmetic"

    def at(self, e: Evidence, coefficient: float) -> Variant:
        assert e.start is not None
        return _prompted(e, PromptVector(e.start) + tangent_task(e), _tangent_z(e), coefficient)


class TangentInside(Started):
    """f(x; P0) + J f(x; P0)[l_Y tau_Y - l_Z tau_Z]: tangent prompts, evaluated in the linearised model that fitted them."""

    key = "tangent-function"
    title = "tangent minus tangent, inside the linearised model"
    source = "arXiv 2305.12827"

    def at(self, e: Evidence, coefficient: float) -> Variant:
        assert e.start is not None
        return _linear(e, coefficient, e.start, tangent_task(e) - coefficient * _tangent_z(e), around_subject=False)


def tangent_task(e: Evidence) -> PromptVector:
    """l_Y tau_Y, where tau_Y is the tangent prompt of the labels at P0."""
    return e.knobs.l_y * e.once(_tangent_y)


def _tangent_y(e: Evidence) -> PromptVector:
    assert e.start is not None
    return e.confounder(e.start, balanced=False, target=e.train.label)


def _tangent_z(e: Evidence) -> PromptVector:
    """tau_Z at P0, even where `Hybrid` linearises at the tuned prompt."""
    return e.tau_z if e.anchor is e.start else e.once(_tau_z_at_start)


def _tau_z_at_start(e: Evidence) -> PromptVector:
    assert e.start is not None
    return e.confounder(e.start, balanced=False)


def ordinary(e: Evidence) -> PromptVector:
    """P_Z - P0 of an ordinary confounder prompt, which is trained from P0 while the subject's last layer is frozen."""
    assert e.start is not None
    new = again(e)
    train_only(e, new, SOFT, e.coded)
    return PromptVector.between(e.start, prompt_of(new))


class Relinearised(Prompted):
    """Hybrid arithmetic in small steps, each linearised where the last one ended: P <- P - length * tau_Z(P). Ours.

    A confounder prompt is about as long as the prompt itself, and the model is not linear over that distance. Subtracted in one
    step, it has only a fraction of the effect of its function form. Each tangent prompt is fitted with weights that make label
    and group independent, so that it captures what predicts the group and not what predicts the label.
    """

    key = "relinearised"
    title = "hybrid arithmetic, re-linearised at each step"
    source = "trueup"

    def variants(self, e: Evidence) -> list[Variant]:
        return e.once(_steps)


def _steps(e: Evidence) -> list[Variant]:
    assert e.prompt is not None
    prompt, kept = e.prompt, [e.variant("0 steps", Change(prompt=e.prompt))]
    best = score(e, kept[0].held, "level")
    for k in range(1, STEPS + 1):
        tau_z = e.confounder(prompt, balanced=True)
        # The distance over which the model is nearly linear differs by model and data, so calibration examples choose the length.
        tried = [
            e.variant(f"{k} steps, the last {c:g} long", Change(prompt=prompt - (c * tau_z).value)) for c in LENGTHS
        ]
        levels = [score(e, v.held, "level") for v in tried]
        if max(levels) <= best:
            break
        best, kept = max(levels), [*kept, tried[int(np.argmax(levels))]]
        change = kept[-1].change
        assert change is not None
        assert change.prompt is not None
        prompt = change.prompt
    return kept


class OrdinaryBoth(Started):
    """P = P0 + l_Y tau_Y - l_Z (P_Z - P0), where P_Z is an ordinary confounder prompt (`ordinary`)."""

    key = "ordinary-ordinary"
    title = "ordinary minus ordinary"
    source = "task prompt vectors (arXiv 2408.01119)"
    costly = True

    def possible(self, e: Evidence) -> bool:
        return super().possible(e) and e.subject.source.peft_type == "PROMPT_TUNING"

    def at(self, e: Evidence, coefficient: float) -> Variant:
        return _prompted(e, e.task, e.once(ordinary), coefficient)


class LoraArithmetic(Arithmetic):
    """W_Y - l_Z W_Z by exact concatenation. The confounder LoRA is trained while the subject's last layer is frozen (TAPER)."""

    key = "lora-arithmetic"
    title = "LoRA task arithmetic"
    source = "TAPER, reconstruction"
    costly = True

    def possible(self, e: Evidence) -> bool:
        if e.subject.source.peft_type != "LORA" or e.subject.sigmoid:
            return False
        settings = e.subject.peft_config.to_dict()
        # A recipe stores a list of modules, but no name pattern and no choice of layers: a new LoRA would change other modules.
        listed = not isinstance(settings["target_modules"], str)
        whole = not settings.get("layers_to_transform") and not settings.get("exclude_modules")
        plain = settings.get("init_lora_weights", True) is True
        # A new LoRA saves the whole classification head and adapts no embeddings: an adapter with a LoRA on either differs from it.
        names_elsewhere = (
            "lora_embedding_",
            *(() if e.subject.template is not None else (f".{e.subject.anatomy.head}.lora_",)),
        )
        adapts_elsewhere = any(part in k for k in files.adapter_tensors(e.subject) for part in names_elsewhere)
        return listed and whole and plain and not adapts_elsewhere and maths.why_no_concatenation(settings) is None

    def at(self, e: Evidence, coefficient: float) -> Variant:
        task_lora, confounder_lora = files.adapter_of(e.subject), e.once(_confounder_lora)
        settings, weights = maths.concatenate(
            task_lora[0], _arrays(task_lora[1]), confounder_lora[0], _arrays(confounder_lora[1]), -coefficient
        )
        tensors = {k: torch.as_tensor(v) for k, v in weights.items()}
        return e.variant(f"l_Z = {coefficient:g}", Change(adapter=(settings, tensors)))


def _confounder_lora(e: Evidence) -> tuple[dict[str, Any], dict[str, Tensor]]:
    new = again(e)
    train_only(e, new, "lora_", e.coded)
    return files.adapter_of(new)


def _arrays(tensors: dict[str, Tensor]) -> dict[str, NDArray]:
    return {k: v.float().numpy() for k, v in tensors.items()}


class TaskPrompt(Prompted):
    """The subject's prompt with nothing subtracted. Under another last layer, it shows what that layer alone changes."""

    key = "prompt"
    title = "prompt tuned again"
    source = "prompt tuning"

    def variants(self, e: Evidence) -> list[Variant]:
        return [e.variant("l_Z = 0", Change(prompt=e.prompt))]


@dataclass(frozen=True)
class Under(Family):
    """Prompt arithmetic under another last layer, which is fitted at P0 and then frozen. The task's prompt is tuned again under it.

    The subject's own last layer was trained on coupled examples, so it holds a part of the shortcut that no prompt can remove.
    ``frozen`` fits the layer to the same examples and keeps it fixed while the prompt is trained. ``balanced`` fits it with weights
    that make label and group independent. The family needs a classification head: the last layer of a subject that answers with
    words is frozen already.
    """

    inner: Family
    balanced: bool
    costly = True

    @property
    def name(self) -> str:
        return "balanced" if self.balanced else "frozen"

    @property
    def key(self) -> str:  # type: ignore[override]
        return f"{self.inner.key}@{self.name}"

    @property
    def title(self) -> str:  # type: ignore[override]
        return f"{self.inner.title}, under a {self.name} head"

    @property
    def source(self) -> str:  # type: ignore[override]
        return self.inner.source

    def possible(self, e: Evidence) -> bool:
        tuned = e.start is not None and e.subject.source.peft_type == "PROMPT_TUNING"
        return tuned and e.subject.template is None and self.inner.possible(e)

    def variants(self, e: Evidence) -> list[Variant]:
        underlying = self._there(e)
        layer = underlying.subject.own_head()
        variants_found = []
        for v in self.inner.variants(underlying):
            # The change is saved from the original subject, so it holds the last layer as well as the prompt.
            change = None if v.change is None else Change(prompt=v.change.prompt, head=layer)
            variants_found.append(replace(v, change=change))
        return variants_found

    def choose(self, e: Evidence, variants: Sequence[Variant]) -> int:
        return self.inner.choose(self._there(e), variants)

    def flipped(self, e: Evidence, chosen: int) -> Variant | None:
        return self.inner.flipped(self._there(e), chosen)

    def _there(self, e: Evidence) -> Evidence:
        """The same evidence with a subject whose prompt was tuned under the other last layer."""
        return e.once(_under, self.balanced)


def _under(e: Evidence, balanced: bool) -> Evidence:
    new = again(e)
    warm_start(new, e.train, weight=e.balance(e.train.label, e.train_group) if balanced else None)
    train_only(e, new, SOFT, e.train)
    return replace(e, subject=new, prompt=prompt_of(new))
