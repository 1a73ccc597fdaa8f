"""Copying: a model with demonstrations in its prompt repeats their answers instead of learning the task that they show.

Paper: Ali, Wolf and Titov, arXiv 2410.01288. We have its abstract, its introduction and public reviews. Reconstructed parts are
marked in the code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from trueup.errors import BadInput, did_you_mean, listing
from trueup.faults.fault import MULTI_LABEL, Difference, Fault, Finding, Method, NoRemedy, Remedy

if TYPE_CHECKING:
    from trueup.corpus.corpus import Corpus
    from trueup.subject.subject import Subject

UNITS_FROM = ("both", "proxy", "task")


@dataclass(frozen=True)
class Copying(Fault):
    """Does a few-shot prompt make the model repeat its examples' answers? Severity: wrong copies above chance.

    Attributes:
        threshold: the severity above which a fault is found.
        prose: ordinary text (data as of `trueup.read`, with columns ``text`` and ``label``). A repair should not change its
            perplexity.
        resamples: the number of bootstrap resamples.
        units_from: the task on which a repair looks for units to scale. ``proxy``: counting the vowels of nouns, as in the
            paper; the units are then used on your task. ``task``: your own prompts. ``both``: candidates from either.
        max_cost: the accuracy that a repair may cost, here and in tasks where copying is right, as a share of queries. trueup adds
            0.03 to it, because about 100 queries cannot resolve a smaller loss.
        take: ``units`` or ``heads``: take the repair of this kind whose copying is nearest to chance, whatever it costs. Empty: the
            best repair within `max_cost`.
    """

    threshold: float = 0.03
    prose: str = "embedded:bbc"
    resamples: int = 1000
    units_from: str = "both"
    max_cost: float = 0.02
    take: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resamples < 10:
            raise BadInput(f"The setting copying.resamples is {self.resamples}; give 10 or more.")
        if not 0 < self.threshold < 1:
            raise BadInput(f"The setting copying.threshold is {self.threshold}; give a number between 0 and 1.")
        if not 0 <= self.max_cost <= 1:
            raise BadInput(f"The setting copying.max_cost is {self.max_cost}; give a share of queries, such as 0.02.")
        if self.units_from not in UNITS_FROM:
            raise BadInput(
                f"The setting copying.units_from is '{self.units_from}'.{did_you_mean(self.units_from, UNITS_FROM)} Give one of "
                f"{listing(UNITS_FROM)}."
            )

    name: ClassVar[str] = "copying"
    title: ClassVar[str] = "Copying"
    question: ClassVar[str] = "Does my few-shot prompt copy its examples' answers?"
    paper: ClassVar[str] = "arXiv 2410.01288"
    needs: ClassVar[str] = "a causal model with `--shots N` (for a `task:NAME` the default is 4)"
    unit: ClassVar[str] = "share of queries copied wrongly, above chance"
    headline: ClassVar[tuple[str, ...]] = ("accuracy", "excess_shown", "excess_hidden")
    departures: ClassVar[tuple[str, ...]] = (
        "Only copying errors above chance are counted. Chance is how often newly drawn demonstrations would show the same wrong "
        "answer, given that they show the right answer or not. The paper counts all copying errors.",
        "If a task has at most 30 answers, its queries are asked again with all answers named in the prompt. Where the right "
        "answer is not shown, copies that disappear then are not counted, because the model did not know the possible answers.",
        "The paper judges on prompts that never show the right answer. Here, freely drawn demonstrations are the main measure. "
        "Otherwise a model that only avoids shown answers would seem to improve.",
        "Every repair is compared with a penalty on the logits of shown answers. If the penalty does more, the repair is offered "
        "nevertheless, because the penalty is not an adapter. The card shows both.",
        "We have only the abstract and the introduction of the paper. The attributed shift, the baseline, the scope of the min-max "
        "normalisation, the quadrature and the grid are reconstructed.",
        "The paper finds units on a proxy task and prunes them for other tasks. Here, units found on the user's own prompts are "
        "candidates too (copying.units_from).",
        "Ours: attention heads (induction heads, arXiv 2209.11895; function-vector heads, arXiv 2310.15213) are compared with "
        "the units at equal size. They replace the units if they come nearer to chance and lose no accuracy compared with them.",
    )

    def applies_to(self, subject: Subject, corpus: Corpus) -> str | None:
        if subject.multi_label:
            return MULTI_LABEL
        if not subject.anatomy.causal:
            return f"'{subject.anatomy.model_type}' is an encoder: it is not given examples in its prompt, so it has none to copy."
        if subject.shots is None:
            return "It is not asked with demonstrations; give --shots 4 to examine it as a few-shot prompt."
        if subject.shots.number == 0:
            return "It is asked with 0 demonstrations, so it has none to copy; give --shots 4."
        if subject.shots.pool and len(subject.classes) < 2:
            return "There is one answer, so copying it cannot be told from knowing it."
        return None

    def audit(self, subject: Subject, corpus: Corpus, *, seed: int) -> Finding:
        from trueup.faults.copying.audit import audit

        return audit(subject, corpus, threshold=self.threshold, resamples=self.resamples, seed=seed)

    def repair(self, subject: Subject, corpus: Corpus, finding: Finding, *, seed: int) -> Remedy | NoRemedy:
        from trueup.faults.copying.repair import repair

        return repair(
            subject, corpus, finding, seed=seed, resamples=self.resamples, max_cost=self.max_cost, take=self.take,
            proxy=self.units_from != "task", task=self.units_from != "proxy",
        )  # fmt: skip

    def methods(self, subject: Subject, corpus: Corpus, *, seed: int) -> list[Method]:
        from trueup.faults.copying.methods import methods

        return methods(
            subject, corpus, seed=seed, resamples=self.resamples, max_cost=self.max_cost, proxy=self.units_from != "task",
            task=self.units_from != "proxy",
        )  # fmt: skip

    def consequence(self, before: Finding, after: Finding | None) -> str:
        from trueup.faults.copying.audit import consequence

        return consequence(before, after)

    def compare(self, before: Finding, after: Finding, *, seed: int) -> dict[str, Difference]:
        from trueup.faults.copying.audit import compare

        return compare(before, after, resamples=self.resamples, seed=seed)

    def examples(self, corpus: Corpus, before: Finding, after: Finding | None) -> list[dict[str, str | float | bool]]:
        from trueup.faults.copying.audit import examples

        return examples(corpus, before, after)

    def harm(self, subject: Subject, repaired: Subject, corpus: Corpus, *, seed: int) -> dict[str, Difference]:
        from trueup.faults.copying.harm import harm

        return harm(subject, repaired, corpus, prose=self.prose, resamples=self.resamples, seed=seed)

    def planted(self, case: Literal["planted", "healthy", "sham"]) -> tuple[Subject, Corpus]:
        from trueup.faults.copying.planted import planted

        return planted(case)

    def null(self, subject: Subject) -> Remedy:
        from trueup.faults.copying.repair import null_remedy

        return null_remedy(subject)

    def read(self, folder: Path, subject: Subject) -> Remedy:
        from trueup.faults.adapter_remedy import read_adapted

        return read_adapted(self.name, folder, subject)
