"""`trueup tune`: standard training of an adapter, from a TuneJob to a folder that plain PEFT loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trueup.errors import BadInput, did_you_mean, listing
from trueup.given import check_fields, checked, shown
from trueup.job import Job
from trueup.prepare import check_names
from trueup.store import atomic
from trueup.store.inputs import path_of
from trueup.store.work import work_folder

if TYPE_CHECKING:
    from trueup.corpus.corpus import Corpus
    from trueup.subject.kinds import Recipe


@dataclass(frozen=True)
class TuneJob:
    """The settings of one training.

    Attributes:
        recipe: the kind of adapter with its settings, from `trueup.subject.kinds`: ``Lora(rank=8)``, ``Prompt(tokens=10)``,
            ``Prefix(tokens=10)`` or ``PTuning(tokens=10)``.
        training: how to train it, by the names of `trueup.run.train.Training`: ``{"epochs": 2, "lr": 1e-3}``.

    The other fields are as in `trueup.Job`.

    Raises:
        BadInput: a field is of the wrong type.
    """

    model: str
    data: str
    recipe: Recipe
    text: str = "text"
    label: str = "label"
    second: str | None = None
    cluster: str | None = None
    split: str | None = None
    limit: int | None = None
    seed: int = 0
    classes: tuple[str, ...] | None = None
    template: str | None = None
    verbaliser: tuple[str, ...] | None = None
    max_length: int | None = None
    device: str | None = None
    dtype: str | None = None
    quantize: str | None = None
    revision: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from trueup.subject.kinds import RECIPES

        check_fields(self)
        if not isinstance(self.recipe, tuple(RECIPES.values())):
            kinds = listing(f"{k.__name__}()" for k in RECIPES.values())
            raise BadInput(
                f"trueup.TuneJob: 'recipe' is {shown(self.recipe)}, which is no kind of adapter. Give one of trueup.subject.kinds "
                f"with its settings: {kinds}."
            )


TRAINED: dict[str, type] = {
    "kind": str, "rank": int, "tokens": int, "start": str, "lr": float, "epochs": int, "batch": int,
}  # fmt: skip
"""The settings of an adapter and its training, by their names on the command line -> type. Others are fields of `TuneJob`."""
_RECIPE = ("rank", "tokens", "start")


def tune_job(given: Mapping[str, Any], *, kind: str, **chosen: Any) -> TuneJob:
    """The job for an adapter of `kind`, a name of `RECIPES`. `chosen` are the other settings of `TRAINED`, or None for defaults.

    A LoRA's alpha is twice its rank.

    Raises:
        BadInput: there is no such kind, or a setting does not belong to it.
    """
    from trueup.subject.kinds import RECIPES

    if kind not in RECIPES:
        raise BadInput(
            f"There is no kind of adapter '{kind}'.{did_you_mean(kind, RECIPES)} There are {listing(RECIPES)}."
        )
    chosen = {k: v for k, v in chosen.items() if v is not None}
    allowed = {f.name for f in fields(RECIPES[kind])}
    options = {k: chosen.pop(k) for k in _RECIPE if k in chosen}
    for k in options:
        if k not in allowed:
            raise BadInput(
                f"'{k}' does not go with the kind '{kind}'; it has {listing(o for o in _RECIPE if o in allowed)}."
            )
    if "rank" in options:
        options["alpha"] = 2 * options["rank"]
    return TuneJob(**given, recipe=RECIPES[kind](**options), training=chosen)


@dataclass(frozen=True)
class Tuned:
    """The result of a training: folder of the adapter, test accuracy, number of epochs, the epoch that was kept, notes."""

    folder: Path
    accuracy: float
    validation_accuracy: float
    epochs: int
    best_epoch: int
    trained: int
    weights: int
    notes: tuple[str, ...]


def check_tuning(job: TuneJob) -> None:
    """Check the names in the settings of a training before the libraries of models are loaded.

    Raises:
        TrueupError: as `trueup.prepare.check_names`.
    """
    weights = {"device": job.device, "dtype": job.dtype, "quantize": job.quantize}
    answer_settings = {"classes": job.classes, "template": job.template, "verbaliser": job.verbaliser}
    check_names(Job(job.model, job.data, **_columns(job), **answer_settings, **weights), fresh=True)  # type: ignore[arg-type]


def _columns(job: TuneJob) -> dict[str, Any]:
    return {"text": job.text, "label": job.label, "second": job.second, "cluster": job.cluster, "split": job.split}


@checked
def tune(
    job: TuneJob, out: str | Path, *, force: bool = False, progress: Callable[[str, int, int], None] | None = None
) -> Tuned:
    """Train on the ``train`` split and write a plain PEFT adapter, its card ``trueup.json`` and, for prompts, P0.

    A run that was stopped continues from its last checkpoint if it is started again with the same job. Under
    ``accelerate launch`` each process takes its share of every batch, and only the first one writes.

    Raises:
        TrueupError: the input cannot be used; nothing is written.
    """
    out = path_of(out)
    atomic.refuse_read(out, {"base": job.model, "data": job.data})
    atomic.refuse_taken(out, force)
    check_tuning(job)
    # Imported late, because torch is slow to import: a wrong name is reported before.
    from trueup.corpus.read import read
    from trueup.run.forward import CUT, cut
    from trueup.run.heads import warm_start
    from trueup.run.predict import Session, predict, within
    from trueup.run.processes import processes
    from trueup.run.train import Training, train
    from trueup.subject.adapter import save_tuned
    from trueup.subject.beside import CARD
    from trueup.subject.kinds import Lora
    from trueup.subject.new_adapter import fresh
    from trueup.subject.template import template_of

    unknown_settings = set(job.training) - set(Training.__dataclass_fields__)
    if unknown_settings:
        raise BadInput(
            f"Training has no setting '{sorted(unknown_settings)[0]}'; it has {', '.join(Training.__dataclass_fields__)}."
        )
    training = Training(**job.training)
    template = template_of(job.template, job.verbaliser)
    with work_folder(out, mine=processes().rank == 0) as work, processes().writing(out, force) as new:
        corpus = read(job.data, **_columns(job), seed=job.seed, limit=job.limit, classes=job.classes)  # type: ignore[arg-type]
        if corpus.labels is not None:
            raise BadInput(
                f"The labels of '{job.data}' in column '{job.label}' are lists, and `trueup tune` trains classifiers that give "
                "each text one class. Name a column with one class, or train with transformers (problem_type "
                "multi_label_classification) and give the adapter to `trueup check`."
            )
        subject = fresh(
            job.model, job.recipe, corpus.classes, template=template, max_length=job.max_length, device=job.device,
            dtype=job.dtype, quantize=job.quantize, seed=job.seed, revision=job.revision, allow_pickle=job.allow_pickle,
            trust_remote_code=job.trust_remote_code,
        )  # fmt: skip
        train_part = corpus.part("train")
        too_long = cut(subject, train_part).mean()
        work.mkdir(parents=True, exist_ok=True)
        session = Session(progress=progress or (lambda stage, done, total: None))
        if too_long > CUT:
            session.note(
                f"{too_long:.0%} of the training texts are longer than {subject.max_length} tokens, and the model reads only their "
                "beginnings. Raise --max-length if the model takes more."
            )
        with within(session):
            for sentence in corpus.notes:
                session.note(sentence)
            if template is None and not isinstance(job.recipe, Lora):
                warm_start(subject, train_part)
            history = train(
                subject,
                train_part,
                training,
                lr=training.lr or job.recipe.lr,
                seed=job.seed,
                checkpoint=work / "checkpoint",
            )
            test = corpus.part("test")
            accuracy = float((predict(subject, test).predicted == test.label).mean())
            _learnt(test, accuracy)
        if new is not None:
            card = {
                "classes": list(corpus.classes),
                "max_length": subject.max_length,
                "tuned": {
                    "data": job.data, "seed": job.seed, "limit": job.limit, "cluster": job.cluster, "train": train_part.fingerprint,
                    "recipe": {"kind": job.recipe.name} | asdict(job.recipe), "training": asdict(training),
                    "test_accuracy": accuracy, "history": asdict(replace(history, start=None)),
                },
            }  # fmt: skip
            if template is not None:
                card["template"] = asdict(template)
            save_tuned(subject, new, start=history.start)
            atomic.write_json(new / CARD, card)
    return Tuned(
        out, accuracy, history.validation_accuracy[history.best_epoch], len(history.loss), history.best_epoch,
        sum(p.numel() for p in subject.model.parameters() if p.requires_grad),
        sum(p.numel() for p in subject.model.parameters()), tuple(session.notes),
    )  # fmt: skip


def _learnt(test: Corpus, right: float) -> None:
    """Note it where the test accuracy `right` is not above that of a classifier with a constant answer."""
    from trueup.run.predict import session

    counts = np.bincount(test.label, minlength=len(test.classes))
    most_common = int(counts.argmax())
    if right <= (share := float(counts[most_common] / len(test))):
        session().note(
            f"The test accuracy of {right:.3f} is not above the {share:.3f} of always answering '{test.classes[most_common]}': so "
            "accuracy does not show that it learnt the task. Try more --epochs, another --lr or another kind of adapter."
        )
