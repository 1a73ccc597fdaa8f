"""Rigidity: a prompt can bias the output of an attention layer, but cannot change its attention pattern over the text. Is the
prompt the bottleneck, and which weights would help?

Paper: Petrov, Torr and Bibi, arXiv 2310.19698 v2: a prompt or prefix is "potentially less expressive" and "may not be able to
learn" a task that needs new attention patterns. This is a limit of a given model and a short prompt. Long prompts on models that
are built for it can approximate any function (arXiv 2402.14753). The patterns of deeper layers do change, because earlier layers
change their inputs (arXiv 2506.13674).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from trueup.errors import BadInput
from trueup.faults.fault import MULTI_LABEL, Difference, Fault, Finding, NoRemedy, Remedy

if TYPE_CHECKING:
    from trueup.corpus.corpus import Corpus
    from trueup.faults.rigidity.audit import References
    from trueup.subject.subject import Subject

MOST_TRIES = 9
KINDS = ("LORA", "PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING")


@dataclass(frozen=True)
class Rigidity(Fault):
    """Can a prompt do this task, or are weights needed? Severity: accuracy of the best weights above a prompt's, both of equal
    size and effort, over training seeds.

    Attributes:
        threshold: the severity above which a fault is found. Below it, a prompt is enough.
        epochs: the number of passes over the training examples for each adapter in the comparison. It is doubled, up to four times
            as many, for an adapter that still improves.
        tries: the number of learning rates for each of these adapters. More are tried if the best one is the lowest or highest.
        seeds: how often each of these adapters is trained; at least 3.
        most: the largest number of training examples to use.
        resamples: the number of bootstrap resamples.
    """

    threshold: float = 0.03
    epochs: int = 4
    tries: int = 3
    seeds: int = 3
    most: int = 2000
    resamples: int = 1000
    learnt: References | None = field(default=None, repr=False, compare=False, metadata={"knob": False})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resamples < 10:
            raise BadInput(f"The setting rigidity.resamples is {self.resamples}; give 10 or more.")
        if not 0 < self.threshold < 1:
            raise BadInput(f"The setting rigidity.threshold is {self.threshold}; give a number between 0 and 1.")
        for name, least in (("epochs", 1), ("tries", 1), ("seeds", 3), ("most", 20)):
            if getattr(self, name) < least:
                raise BadInput(f"The setting rigidity.{name} is {getattr(self, name)}; give {least} or more.")
        if self.tries > MOST_TRIES:
            raise BadInput(
                f"The setting rigidity.tries is {self.tries}; give at most {MOST_TRIES}: each is 3 times the last."
            )

    name: ClassVar[str] = "rigidity"
    title: ClassVar[str] = "Rigidity"
    question: ClassVar[str] = "Can a prompt do this task at all, or do I need weights?"
    paper: ClassVar[str] = "arXiv 2310.19698"
    needs: ClassVar[str] = "`--fault rigidity`, and an adapter that is a prompt, a prefix, p-tuning or a LoRA"
    unit: ClassVar[str] = "accuracy advantage of weights over a prompt of equal size and effort"
    headline: ClassVar[tuple[str, ...]] = ("accuracy", "this_prompt", "under_tuned")
    on_request: ClassVar[str] = "it is about prompts, and the audit trains dozens of small adapters to compare with"
    departures: ClassVar[tuple[str, ...]] = (
        "The paper proves what one layer cannot do and shows it on small transformers. The verdict on a real task is ours: "
        "adapters of equal size are trained with equal effort from several seeds and compared on held-out examples. The examined "
        "prompt is not one of them. The report says separately how far it is under-tuned.",
        "Encoders with a soft prompt read their answer at the first token of the prompt, whose own attention is trained. For "
        "them the theorem covers the tokens of the text, and not that token.",
        "Calibration examples are halved. One half chooses learning rates, kinds of adapter and the repair. The other half "
        "judges the repair.",
        "To separate 'direct' from 'through inputs', the adapter acts in one layer at a time.",
    )

    def applies_to(self, subject: Subject, corpus: Corpus) -> str | None:
        if subject.multi_label:
            return MULTI_LABEL
        family = subject.anatomy.model_type
        if subject.anatomy.kind == "state-space":
            return f"'{family}' is a state-space model: it has no attention that a prompt could leave as it is."
        if (why := subject.anatomy.lacks.get("layers") or subject.anatomy.lacks.get("attention")) is not None:
            return f"The attention of '{family}', which is what a prompt moves, could not be discovered: {why}."
        if subject.shots is not None:
            return (
                "It is asked with demonstrations and no trained prompt; tune one to examine it: `trueup tune prompt`."
            )
        if subject.peft_config is None:
            return (
                "It has no adapter, so there is nothing to examine. Tune a prompt first: "
                f"`trueup tune prompt {subject.source.base} --data ...`."
            )
        if subject.source.peft_type not in KINDS:
            return f"Its adapter is of kind '{subject.source.peft_type}'; this was built for prompts, prefixes, p-tuning and LoRA."
        virtual, window = (
            int(getattr(config, name, None) or 0)
            for config, name in ((subject.peft_config, "num_virtual_tokens"), (subject.base.config, "sliding_window"))
        )
        if subject.source.peft_type == "PREFIX_TUNING" and 0 < window <= virtual:
            return (
                f"Its prefix of {virtual} tokens is no shorter than the model's window of {window}, which cuts it off."
            )
        if subject.sigmoid:
            return "Its head gives one logit, and the adapters that it would compete with are trained with one for each class."
        if len(subject.classes) < 2:
            return "There is one class, so every adapter is right."
        return None

    def prepared(self, subject: Subject, corpus: Corpus, *, seed: int) -> Rigidity:
        from trueup.faults.rigidity.audit import references

        learnt = references(
            subject, corpus, epochs=self.epochs, tries=self.tries, seeds=self.seeds, most=self.most, seed=seed
        )
        return replace(self, learnt=learnt)

    def audit(self, subject: Subject, corpus: Corpus, *, seed: int) -> Finding:
        from trueup.faults.rigidity.audit import audit

        return audit(subject, corpus, self._learnt(), threshold=self.threshold, seed=seed)

    def repair(self, subject: Subject, corpus: Corpus, finding: Finding, *, seed: int) -> Remedy | NoRemedy:
        from trueup.faults.rigidity.repair import repair

        return repair(
            subject, self._learnt(), finding, epochs=self.epochs, tries=self.tries, seeds=self.seeds,
            resamples=self.resamples, seed=seed,
        )  # fmt: skip

    def _learnt(self) -> References:
        if self.learnt is None:
            raise BadInput(
                "Rigidity compares with adapters trained on the train split, and none are here yet; let them be trained "
                "first: fault = fault.prepared(subject, corpus, seed=0)."
            )
        return self.learnt

    def consequence(self, before: Finding, after: Finding | None) -> str:
        from trueup.faults.rigidity.audit import consequence

        return consequence(before, after)

    def compare(self, before: Finding, after: Finding, *, seed: int) -> dict[str, Difference]:
        from trueup.faults.rigidity.audit import compare

        return compare(before, after)

    def examples(self, corpus: Corpus, before: Finding, after: Finding | None) -> list[dict[str, str | float | bool]]:
        from trueup.faults.rigidity.audit import examples

        return examples(corpus, before, after)

    def planted(self, case: Literal["planted", "healthy", "sham"]) -> tuple[Subject, Corpus]:
        from trueup.faults.rigidity.planted import planted

        return planted(case)

    def null(self, subject: Subject) -> Remedy:
        from trueup.faults.rigidity.repair import null_remedy

        return null_remedy(subject)

    def read(self, folder: Path, subject: Subject) -> Remedy:
        from trueup.faults.adapter_remedy import read_adapted

        return read_adapted(self.name, folder, subject)
