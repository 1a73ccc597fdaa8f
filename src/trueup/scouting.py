"""`trueup scout`: searches for columns that a classifier relies on. Writes a complete folder or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueup.errors import BadInput
from trueup.given import checked
from trueup.job import Job
from trueup.prepare import check_names, open_job
from trueup.store import atomic
from trueup.store.inputs import path_of
from trueup.store.work import work_folder

if TYPE_CHECKING:
    from trueup.corpus.corpus import Corpus
    from trueup.faults.confounding.leads import Scouted
    from trueup.subject.subject import Subject


@checked
def run_scout(
    job: Job, out: str | Path, *, force: bool = False, progress: Callable[[str, int, int], None] | None = None
) -> Scouted:
    """Run `scout` for a job and write `out`: ``scout.json``, ``report.html``, and ``job.json`` with the settings.

    Raises:
        TrueupError: the input cannot be used; nothing is written.
    """
    out = path_of(out)
    atomic.refuse_read(out, job.inputs)
    with work_folder(out) as work, atomic.new_folder(out, force=force) as new:
        check_names(job)
        # Imported late, because torch is slow to import: a wrong name or a taken folder is reported before.
        from trueup.report import scouted
        from trueup.run.predict import Session, within
        from trueup.store.cache import Memo

        with within(Session(Memo(work), progress=progress or (lambda stage, done, total: None))):
            result = _of_job(job)
        atomic.write_json(new / "scout.json", result.as_dict())
        atomic.write_json(new / "job.json", result.job)
        atomic.write_text(new / "report.html", scouted.page(result))
    return result


@checked
def scout(
    model: Any, data: Any, *, adapter: str | Path | None = None, tokenizer: Any = None, text: str = "text", label: str = "label",
    second: str | None = None, cluster: str | None = None, split: str | None = None, held_out: bool = False, test: Any = None,
    allow_leak: bool = False, limit: int | None = None, classes: Sequence[str] | None = None, template: str | None = None,
    verbaliser: Sequence[str] | None = None, max_length: int | None = None, device: str | None = None, dtype: str | None = None,
    quantize: str | Mapping[str, Any] | None = None, device_map: str | Mapping[str, Any] | None = None, seed: int | None = None,
) -> Scouted:  # fmt: skip
    """Search for columns that a classifier relies on: other columns of the data, surface cues (length, punctuation, links ...),
    words, cues of pairs (overlap, negation ...), and clusters of the model's hidden states.

    Columns are found on calibration examples and judged on test examples by the lean (AUPRC lost when the coupling of label and
    column is reversed). The false discovery rate is controlled over all columns that were judged.
    ``check(..., confounder="scout:1")`` examines and repairs the first one.

    Args:
        model: a Subject, or what `trueup.load` takes. data: a Corpus, or what `trueup.read` takes. Of a Corpus, only the columns
            that it contains are tried.
        adapter, tokenizer, classes, template, verbaliser, max_length, device, dtype, quantize, device_map: as in `trueup.load`.
        text, label, second, cluster, split, held_out, test, allow_leak, limit: as in `trueup.read`.
        seed: the seed of all random choices. None: the seed in the card of an adapter that `trueup tune` made, otherwise 0.

    Raises:
        Unsupported: the model has a few-shot prompt. BadInput: the data cannot be used, or have too few examples.
    """
    from trueup.corpus.corpus import Corpus
    from trueup.story import called, remembering
    from trueup.subject.subject import Subject

    with remembering():
        if isinstance(model, Subject) and isinstance(data, Corpus):
            return _scouted(model, data, seed or 0, {})
        adapter = None if adapter is None else str(adapter)
        job = Job(
            model=called(model), data=called(data), adapter=adapter, text=text, label=label, second=second, cluster=cluster,
            split=split, held_out=held_out, test=None if test is None else called(test), allow_leak=allow_leak, limit=limit,
            seed=seed, classes=None if classes is None else tuple(classes), template=template,
            verbaliser=None if verbaliser is None else tuple(verbaliser), max_length=max_length, device=device, dtype=dtype,
            quantize=quantize, device_map=device_map,
        )  # fmt: skip
        return _of_job(job, model=model, data=data, test=test, tokenizer=tokenizer)


def _of_job(job: Job, **objects: Any) -> Scouted:
    from trueup.subject.beside import read_card
    from trueup.subject.checkpoint import adapter_folder

    if job.confounder:
        raise BadInput(
            "A scout looks for columns that nobody named; for one that you know, `trueup check --confounder COLUMN` is made."
        )
    subject, corpus, seed = open_job(job, read_card(adapter_folder(job.adapter)), others=True, **objects)
    all_names = all(isinstance(x, str | Path) for x in objects.values() if x is not None)
    return _scouted(subject, corpus, seed, asdict(replace(job, seed=seed)) if all_names else {})


def _scouted(subject: Subject, corpus: Corpus, seed: int, job: dict[str, Any]) -> Scouted:
    from trueup.caveats import provenance
    from trueup.faults.confounding.scout import scout as search
    from trueup.run.predict import session
    from trueup.story import onward

    result = search(subject, corpus, seed=seed)
    return replace(
        result, title=f"{subject.source.adapter or subject.source.base} on {corpus.name}", notes=tuple(session().notes), job=job,
        onward=onward(result, job), provenance=provenance(subject, corpus, seed, None),
    )  # fmt: skip
