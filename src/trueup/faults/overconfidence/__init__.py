"""Overconfidence: the confidence of an adapted classifier predicts its errors less well than it could.

Paper: Zabolotnyi et al., arXiv 2505.15443. Version 1 is AdUE; version 2 renames and changes it to ALIEN. Losses, grid (144 runs)
and optimiser (Adam with OneCycle) agree with the public code of the authors. The severity is ours. The papers measure only the
ranking of errors, which depends mostly on the noise of the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from trueup.errors import BadInput, Unsupported
from trueup.faults.fault import Difference, Fault, Finding, Method, NoRemedy, Remedy

if TYPE_CHECKING:
    from trueup.corpus.corpus import Corpus
    from trueup.faults.overconfidence.audit import Learnt
    from trueup.subject.subject import Subject


@dataclass(frozen=True)
class Overconfidence(Fault):
    """When may a prediction be trusted? Severity: the share of the confidence's Brier loss that could have been avoided.

    Attributes:
        threshold: the severity above which a fault is found. A softmax at a temperature of about 0.7 or 1.5 has 0.02.
        folds: the number of folds for cross-fitting the repair.
        members: the number of adapters to train as an ensemble that is distilled. 0: none. Each costs about one training.
        passes: the number of forward passes with dropout, for MC dropout. 0: none.
        delta: the largest probability that any certified abstention threshold is wrong.
        resamples: the number of bootstrap resamples.
        drop_in: keep the classifier's outputs as they are. The repair is then one temperature in the last layer, which any
            pipeline reads.
    """

    threshold: float = 0.02
    folds: int = 5
    members: int = 0
    passes: int = 0
    delta: float = 0.05
    resamples: int = 1000
    drop_in: bool = False
    learnt: Learnt | Mapping[str, Learnt] | None = field(
        default=None, repr=False, compare=False, metadata={"knob": False}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for knob, least in (("folds", 2), ("members", 0), ("passes", 0), ("resamples", 10)):
            if getattr(self, knob) < least:
                raise BadInput(f"The setting overconfidence.{knob} is {getattr(self, knob)}; give {least} or more.")
        for knob in ("threshold", "delta"):
            if not 0 < getattr(self, knob) < 1:
                raise BadInput(
                    f"The setting overconfidence.{knob} is {getattr(self, knob)}; give a share between 0 and 1."
                )

    name: ClassVar[str] = "overconfidence"
    title: ClassVar[str] = "Overconfidence"
    question: ClassVar[str] = "When may I trust a prediction?"
    paper: ClassVar[str] = "arXiv 2505.15443 (AdUE, ALIEN)"
    needs: ClassVar[str] = "a classifier: a head (multi-label too), or answer words (`--verbaliser`)"
    unit: ClassVar[str] = "avoidable share of the confidence's Brier loss"
    headline: ClassVar[tuple[str, ...]] = ("gap", "confidence_brier", "error_auc")
    departures: ClassVar[tuple[str, ...]] = (
        "AdUE and ALIEN are tried as published and in corrected versions: U is rescaled by 1 - 1/C, errors come from held-out "
        "examples instead of the memorised training split, and heads are trained in float32.",
        "The softmax response is kept unless a candidate is significantly better than the recalibrated softmax response, on "
        "examples that were not used to choose it.",
        "Heads and densities learn from a few thousand training examples at most.",
        "Only the last linear layer of a head is trained. If a head has a dense layer before it, that layer is not changed.",
    )

    def applies_to(self, subject: Subject, corpus: Corpus) -> str | None:
        if subject.shots is not None:
            return "It answers from demonstrations in its prompt; this repair is a last layer for one text. Examine it for copying."
        if len(subject.classes) < 2:
            return "It has one class, so it cannot be wrong about it."
        return None

    def prepared(self, subject: Subject, corpus: Corpus, *, seed: int) -> Overconfidence:
        if subject.multi_label:
            from trueup.faults.overconfidence.label_by_label import learn as learn_labels

            return replace(self, learnt=learn_labels(subject, corpus, seed=seed))
        from trueup.faults.overconfidence.audit import learn

        return replace(self, learnt=learn(subject, corpus, seed=seed))

    def audit(self, subject: Subject, corpus: Corpus, *, seed: int) -> Finding:
        from trueup.faults.overconfidence import label_by_label
        from trueup.faults.overconfidence.audit import audit

        if self.learnt is None:
            raise BadInput(
                "Overconfidence compares with a forecast that calibration examples teach, and none is here yet; let it be learnt "
                "first: fault = fault.prepared(subject, corpus, seed=0)."
            )
        if isinstance(self.learnt, Mapping):
            return label_by_label.audit(
                subject, corpus, self.learnt, threshold=self.threshold, resamples=self.resamples, seed=seed
            )
        return audit(subject, corpus, self.learnt, threshold=self.threshold, resamples=self.resamples, seed=seed)

    def repair(self, subject: Subject, corpus: Corpus, finding: Finding, *, seed: int) -> Remedy | NoRemedy:
        if subject.multi_label:
            return NoRemedy(
                "No repair is offered for a head that gives each text any number of labels: it was audited label by label. Where a "
                "label overstates or understates, fit a scale and an offset of its logit to held-out texts (Platt scaling)."
            )
        from trueup.faults.overconfidence.repair import drop_in, repair

        if self.drop_in:
            return drop_in(subject, corpus, folds=self.folds, resamples=self.resamples, delta=self.delta, seed=seed)
        return repair(
            subject,
            corpus,
            folds=self.folds,
            members=self.members,
            passes=self.passes,
            resamples=self.resamples,
            delta=self.delta,
            seed=seed,
        )

    def methods(self, subject: Subject, corpus: Corpus, *, seed: int) -> list[Method]:
        if subject.multi_label:
            raise Unsupported(
                "Methods are compared on heads that give each text one class, and this one is multi-label."
            )
        from trueup.faults.overconfidence.methods import methods

        return methods(
            subject,
            corpus,
            folds=self.folds,
            members=self.members,
            passes=self.passes,
            resamples=self.resamples,
            seed=seed,
        )

    def consequence(self, before: Finding, after: Finding | None) -> str:
        from trueup.faults.overconfidence import label_by_label
        from trueup.faults.overconfidence.audit import consequence

        if "labels" in before.details:
            return label_by_label.consequence(before)
        return consequence(before, after)

    def compare(self, before: Finding, after: Finding, *, seed: int) -> dict[str, Difference]:
        from trueup.faults.overconfidence import label_by_label
        from trueup.faults.overconfidence.audit import compare

        if "labels" in before.details:
            return label_by_label.compare(before, after, resamples=self.resamples, seed=seed)
        return compare(before, after, resamples=self.resamples, seed=seed)

    def examples(self, corpus: Corpus, before: Finding, after: Finding | None) -> list[dict[str, str | float | bool]]:
        from trueup.faults.overconfidence import label_by_label
        from trueup.faults.overconfidence.audit import examples

        if "labels" in before.details:
            return label_by_label.examples(corpus, before)
        return examples(corpus, before, after)

    def planted(self, case: Literal["planted", "healthy", "sham"]) -> tuple[Subject, Corpus]:
        from trueup.faults.overconfidence.planted import planted

        return planted(case)

    def null(self, subject: Subject) -> Remedy:
        from trueup.faults.overconfidence.confidence_head import null_remedy

        if subject.multi_label:
            raise Unsupported("No repair goes onto a head that gives each text any number of labels.")
        return null_remedy(subject)

    def read(self, folder: Path, subject: Subject) -> Remedy:
        from trueup.faults.overconfidence.confidence_head import read_remedy

        return read_remedy(folder, subject)
