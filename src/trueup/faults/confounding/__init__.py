"""Confounding: the classifier uses a shortcut (site, source, group) instead of the meaning of the text.

Paper: Sheng et al., arXiv 2605.03096 (HyPA). We have only its abstract. The shift protocol agrees with the public code of its
authors (DeconDTN). Reconstructed parts are marked in the code.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from trueup.errors import BadInput, did_you_mean
from trueup.faults.fault import MULTI_LABEL, Chart, Difference, Fault, Finding, Method, NoRemedy, Remedy

if TYPE_CHECKING:
    from trueup.corpus.corpus import Corpus
    from trueup.faults.confounding.audit import Trained
    from trueup.faults.confounding.evidence import Knobs
    from trueup.subject.subject import Subject


@dataclass(frozen=True)
class Confounding(Fault):
    """How much does the classifier rely on a column that should not matter? Severity: the AUPRC that is lost because it does, in
    either direction.

    Attributes:
        threshold: the severity above which a fault is found.
        attribute: the column that gives the headline severity and that a repair removes. ``site*sex`` takes two columns together:
            each pair of values is a group. Empty: the column that the classifier relies on most on calibration examples. All other
            columns and pairs are examined too.
        coupling: the coupling at which the severity is measured: how many times as frequent a class is in its own group. 0: the
            coupling of the training examples if it is above 2 (at most 5), otherwise 3.
        max_cost: the accuracy that a repair may cost on data like the test data, as a share of examples.
        take: the key of the repair to take; the report lists the keys. Empty: the best repair within `max_cost`.
        retrain: also try repairs that train an adapter again (an ordinary confounder prompt or LoRA, GroupDRO,
            resampling, importance weights). Each costs about one training.
        l_y: the coefficient of the task's own vector in the prompt arithmetic P0 + l_Y tau_Y - l_Z tau_Z. The abstract of the
            HyPA paper does not give it.
        l_z: the coefficients of the confounder's vector to try, separated by commas. 0 and 1 are always tried.
        ridge: the ridge penalty of the fits in the linearised model.
        anchor: the prompt at which the model is linearised: the ``start`` of the training, or the ``tuned`` one.
        resamples: the number of bootstrap resamples.
    """

    threshold: float = 0.05
    attribute: str = ""
    coupling: float = 0.0
    max_cost: float = 0.02
    take: str = ""
    retrain: bool = False
    l_y: float = 1.0
    l_z: str = "0,0.25,0.5,1,2,4"
    ridge: float = 1e-3
    anchor: str = "start"
    resamples: int = 1000
    trained: Trained | None = field(default=None, repr=False, compare=False, metadata={"knob": False})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resamples < 10:
            raise BadInput(f"The setting confounding.resamples is {self.resamples}; give 10 or more.")
        if not 0 < self.threshold < 1:
            raise BadInput(f"The setting confounding.threshold is {self.threshold}; give a number between 0 and 1.")
        if self.coupling and not 1 < self.coupling < float("inf"):
            raise BadInput(
                f"The setting confounding.coupling is {self.coupling}; give a ratio above 1, or 0 for that of the "
                "training examples."
            )
        if not 0 <= self.max_cost <= 1:
            raise BadInput(
                f"The setting confounding.max_cost is {self.max_cost}; give a share of examples, such as 0.02."
            )

        if self.anchor not in ("start", "tuned"):
            raise BadInput(
                f"The setting confounding.anchor is '{self.anchor}'.{did_you_mean(self.anchor, ('start', 'tuned'))} "
                "Give start or tuned."
            )
        if not 0 < self.ridge < float("inf"):
            raise BadInput(f"The setting confounding.ridge is {self.ridge}; give a number above 0, such as 0.001.")
        _ = self.coefficients

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The l_Z to try, sorted; 0 and 1 are among them. Raises BadInput where `l_z` is not a list of numbers of 0 or more."""
        try:
            given = {float(c) for c in self.l_z.split(",")}
        except ValueError:
            given = {-1.0}
        if not all(0 <= c < float("inf") for c in given):
            raise BadInput(
                f"The setting confounding.l_z is '{self.l_z}'; give numbers of 0 or more with commas between them, such as 0.5,1,2."
            )
        return tuple(sorted(given | {0.0, 1.0}))

    name: ClassVar[str] = "confounding"
    title: ClassVar[str] = "Confounding"
    question: ClassVar[str] = "Does my classifier rely on something that should not matter?"
    paper: ClassVar[str] = "arXiv 2605.03096 (HyPA)"
    needs: ClassVar[str] = "`--confounder COLUMN` (not needed for embedded data with such a column)"
    reads_states: ClassVar[bool] = True
    unit: ClassVar[str] = "AUPRC lost to leaning on the attribute"
    headline: ClassVar[tuple[str, ...]] = ("auprc_towards", "auprc_against", "accuracy")
    departures: ClassVar[tuple[str, ...]] = (
        "We have only the abstract of HyPA. The arithmetic is reconstructed from task arithmetic and its tangent-space form.",
        "The coupling of label and group is changed by weighting every example, instead of drawing test sets. This estimates the "
        "same quantity without the noise of a draw.",
        "The drop of AUPRC under a reversed coupling is split into the lean (a group has a head start) and the floor (a group is "
        "harder). AUPRC is the mean over classes, and the coupling is a nominal one, so the result does not depend on the order of "
        "classes and groups or on the coupling of the test data.",
        "Ours: the confounder prompt is subtracted in small steps, with a new linearisation at each step. It is fitted with "
        "weights that make label and group independent.",
        "Ours: repairs of the last layer (DFR, LEACE, back-door adjustment) are tried too. Calibration examples choose among all.",
    )

    def applies_to(self, subject: Subject, corpus: Corpus) -> str | None:
        if subject.shots is not None:
            return "It answers from demonstrations in its prompt, which are drawn anew for every text; examine it for copying."
        if subject.multi_label:
            return MULTI_LABEL
        if len(subject.classes) < 2:
            return "It has one class, so nothing can be confounded with it."
        if not corpus.attributes:
            return "No column was named that should not matter; name one with --confounder COLUMN."
        return None

    def prepared(self, subject: Subject, corpus: Corpus, *, seed: int) -> Confounding:
        from trueup.faults.confounding.audit import attribute_of, leaning_most, trained_on

        attribute = attribute_of(corpus, self.attribute or leaning_most(subject, corpus, self.coupling))
        return replace(self, attribute=attribute, trained=trained_on(subject, corpus, attribute))

    def audit(self, subject: Subject, corpus: Corpus, *, seed: int) -> Finding:
        from trueup.faults.confounding.audit import audit

        return audit(
            subject, corpus, attribute=self.attribute, coupling=self.coupling, trained=self.trained, threshold=self.threshold,
            resamples=self.resamples, seed=seed,
        )  # fmt: skip

    def repair(self, subject: Subject, corpus: Corpus, finding: Finding, *, seed: int) -> Remedy | NoRemedy:
        from trueup.faults.confounding.repair import repair

        return repair(
            subject, corpus, finding, attribute=self.attribute, coupling=self.coupling, retrain=self.retrain,
            max_cost=self.max_cost, take=self.take, knobs=self._arithmetic, resamples=self.resamples, seed=seed,
        )  # fmt: skip

    def methods(self, subject: Subject, corpus: Corpus, *, seed: int) -> list[Method]:
        from trueup.faults.confounding.methods import methods

        return methods(
            subject, corpus, attribute=self.attribute, coupling=self.coupling, retrain=self.retrain, max_cost=self.max_cost,
            knobs=self._arithmetic, resamples=self.resamples, seed=seed,
        )  # fmt: skip

    @property
    def _arithmetic(self) -> Knobs:
        from trueup.faults.confounding.evidence import Knobs

        return Knobs(self.l_y, self.coefficients, self.ridge, self.anchor == "start")

    def consequence(self, before: Finding, after: Finding | None) -> str:
        from trueup.faults.confounding.audit import consequence

        return consequence(before, after)

    def compare(self, before: Finding, after: Finding, *, seed: int) -> dict[str, Difference]:
        from trueup.faults.confounding.audit import compare

        return compare(before, after, resamples=self.resamples, seed=seed)

    def pictures(self, before: Finding, after: Finding) -> tuple[Chart, ...]:
        from trueup.faults.confounding.audit import pictures

        return pictures(before, after)

    def examples(self, corpus: Corpus, before: Finding, after: Finding | None) -> list[dict[str, str | float | bool]]:
        from trueup.faults.confounding.audit import examples

        return examples(corpus, before, after)

    def planted(self, case: Literal["planted", "healthy", "sham"]) -> tuple[Subject, Corpus]:
        from trueup.faults.confounding.planted import planted

        return planted(case)

    def null(self, subject: Subject) -> Remedy:
        from trueup.faults.confounding.repair import null_remedy

        return null_remedy(subject)

    def read(self, folder: Path, subject: Subject) -> Remedy:
        from trueup.faults.confounding.repair import read_remedy

        return read_remedy(folder, subject)
