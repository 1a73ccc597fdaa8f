"""From the names in a Job to a Subject and a Corpus that agree with each other, and what a reader must know of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trueup.errors import BadInput, TrueupError, listing
from trueup.job import Job

SCOUT = "scout:"
"""How the name of a column begins that `trueup scout` found: ``scout:1`` is its first."""

if TYPE_CHECKING:
    from trueup.corpus.corpus import Corpus
    from trueup.subject.subject import Subject


def open_job(
    job: Job,
    card: Mapping[str, Any],
    *,
    model: Any = None,
    data: Any = None,
    tokenizer: Any = None,
    others: bool = False,
) -> tuple[Subject, Corpus, int]:
    """The job's subject, corpus and seed, with notes to the session. Data are read first: they fail fast.

    Args:
        card: what stands beside the adapter.
        model, data, tokenizer: objects that stand behind the job's names; None where the names are all there is.
        others: bring the data's other columns, for a scout.
    """
    from trueup.corpus.corpus import Corpus
    from trueup.corpus.read import demonstrations, read
    from trueup.subject import load as door
    from trueup.subject.subject import Shots, Subject

    tuned = card.get("tuned") or {}
    same = _same_data(tuned.get("data"), job.data)
    seed = job.seed if job.seed is not None else (tuned.get("seed") or 0 if same else 0)
    limit = job.limit if job.limit is not None or not same else tuned.get("limit")
    subject, shots = model, job.shots
    pairs = () if job.demos is None else tuple(demonstrations(job.demos, text=job.text, label=job.label))
    if pairs and shots not in (None, len(pairs)):
        raise BadInput(
            f"--shots asks for {shots} demonstrations, and '{job.demos}' has {len(pairs)} pairs, all of which stand before every "
            "query. Leave --shots out, or drop pairs."
        )
    shots = len(pairs) or shots
    if shots is None and job.data.startswith("task:") and not job.verbaliser and not card:
        shots = Shots().number
    asked = (card.get("template") or {}).get("shots") if shots is None else shots
    corpus = data
    scouted = tuple(c for c in job.confounder if c.startswith(SCOUT))
    named = tuple(c for c in job.confounder if c not in scouted)
    if not isinstance(corpus, Corpus):

        def columns(attributes: tuple[str, ...], others: bool) -> Corpus:
            return read(
                job.data if data is None else data, text=job.text, label=job.label, second=job.second,
                attributes=attributes, others=others, cluster=job.cluster, split=job.split, allow_leak=job.allow_leak, seed=seed,
                limit=limit, classes=job.classes, answers=(subject.shots if isinstance(subject, Subject) else asked) is not None,
            )  # fmt: skip

        corpus = columns(named, others or bool(scouted))
    if not isinstance(subject, Subject):
        subject = door.load(
            job.model if model is None else model, job.adapter, tokenizer=tokenizer, classes=job.classes,
            template=job.template, verbaliser=job.verbaliser, shots=shots, chat=job.chat, max_length=job.max_length,
            device=job.device, revision=job.revision, allow_pickle=job.allow_pickle, trust_remote_code=job.trust_remote_code,
        )  # fmt: skip
    subject = _prompted(subject, corpus, job, pairs)
    _same_base(subject)
    _first_tokens(subject)
    subject, corpus = agreed(subject, corpus, named=job.classes is not None)
    if scouted:
        from trueup.faults.confounding.scout import scout, with_columns

        # As the scout's own command reads them: a column that is named here was tried there like any other.
        seen = columns((), True) if named and not isinstance(data, Corpus) else corpus
        found = with_columns(subject, corpus, scouted, scout(subject, seen, seed=seed))
        corpus = replace(
            found, attributes={k: v for k, v in found.attributes.items() if k in named or k not in corpus.attributes}
        )
    _tuned_on(job, subject, corpus, card)
    if model is None or isinstance(model, str | Path):
        _on_a_full_base(job, subject, corpus)
    if data is None or isinstance(data, str | Path):
        # A repair learns from this split, so its card has to say which it was, as that of `trueup tune` does.
        own = {"seed": seed, "limit": limit, "train": _train(corpus)}
        seen = {k: tuned[k] for k in (*own, "also") if k in tuned} if same else own
        if tuned and not same:
            seen = seen | {"also": [*(tuned.get("also") or ()), tuned.get("data")]}
        subject = replace(subject, source=replace(subject.source, seen=seen | {"data": job.data}))
    return subject, corpus, seed


def _prompted(subject: Subject, corpus: Corpus, job: Job, pairs: tuple[tuple[str, str], ...]) -> Subject:
    """The subject with the header and the fixed demonstrations that the job asks for."""
    from trueup.run.predict import session
    from trueup.run.prompts import with_pool
    from trueup.subject.load import as_meant, check_template

    if job.header is None and not pairs:
        return subject
    template = subject.template
    if template is None or template.shots is None:
        raise BadInput(
            "--header and --demos go with prompts that show demonstrations, and this model is not asked so. Give --shots 4, or "
            "leave them out."
        )
    if job.header is not None:
        header = as_meant(job.header)
        if (part := next((p for p in ("{text}", "{label}") if p in header), None)) is not None:
            raise BadInput(
                f"The header {header!r} has {part} in it, which stands for a demonstration's own. Put it into --template."
            )
        header += "" if template.chat or not header or header != header.rstrip() else "\n"
        template = replace(template, header=header)
        if template.chat:
            check_template(subject.tokenizer, template)
        subject = replace(subject, template=template)
    if not pairs:
        return subject
    new = sorted({y for _, y in pairs} - set(corpus.classes))
    if new:
        session().note(
            f"The demonstrations in '{job.demos}' give {listing(new)}, which no pair of the data has as its answer. If that is a "
            "slip of spelling, correct it."
        )
    return with_pool(subject, corpus.take(np.flatnonzero(corpus.split == "train")), pairs)


def agreed(subject: Subject, corpus: Corpus, *, named: bool) -> tuple[Subject, Corpus]:
    """Both with one set of class names, where one side has only numbers: the report's notes say which was taken for what.

    A model without names has its logits in the data's own order of classes; labels that are numbers under a model with names
    are places among its logits, as transformers' own trainer reads them. `named`: the user gave the names.
    """
    from trueup.run.predict import session

    for sentence in corpus.notes:
        session().note(sentence)
    numbers = tuple(str(i) for i in range(len(subject.classes)))
    if subject.shots is not None or named:
        return subject, corpus
    nameless = "The model does not name its classes"
    if subject.source.borrowed and set(subject.classes) != set(corpus.classes):
        # The base's names are those of the task it was trained for, and the adapter's head is of another.
        nameless = f"The adapter's head brings no class names, and the base's are not the data's ({listing(subject.classes, 4)})"
        subject = replace(subject, classes=numbers)
    if subject.classes == corpus.classes:
        return subject, corpus
    if subject.classes == numbers and len(corpus.classes) == len(numbers):
        subject = replace(subject, classes=corpus.classes)
        _in_order(subject, corpus)
        session().note(
            f"{nameless}; its logits were taken to be in the data's order: {listing(corpus.classes)}. If "
            "it was trained in another, every figure here is wrong: give --classes."
        )
        return subject, corpus
    if set(corpus.classes) <= set(numbers) and not set(corpus.classes) & set(subject.classes):
        names = tuple(subject.classes[int(c)] for c in corpus.classes)
        pairs = ", ".join(f"{c} is '{n}'" for c, n in zip(corpus.classes, names, strict=True))
        session().note(f"Labels that are numbers were read as places among the model's classes: {pairs}.")
        return subject, replace(corpus, classes=names)
    return subject, corpus


def _in_order(subject: Subject, corpus: Corpus) -> None:
    """Raises BadInput when another order of the model's logits than the data's is far and surely better."""
    from trueup.measure.accuracy import surer_order
    from trueup.run.predict import predict

    test = corpus.part("test")
    predicted = predict(subject, test).predicted
    if (found := surer_order(predicted, test.label, len(corpus.classes))) is None:
        return
    order, share = found
    names = [corpus.classes[i] for i in order]
    raise BadInput(
        f"The model does not name its classes. With its logits in the data's order, {listing(corpus.classes)}, it is right on "
        f"{(predicted == test.label).mean():.1%} of the test texts, and on {share:.1%} as {listing(names)}. Say in which order it "
        "was trained: `--classes`, or classes=[...] in Python; if the data's order is right, give that."
    )


def _same_base(subject: Subject) -> None:
    """Notes an adapter that says it was made for a base of another name: weights of equal shapes can be other weights."""
    from trueup.run.predict import session

    base, made_for = subject.source.base, getattr(subject.peft_config, "base_model_name_or_path", None)
    if subject.source.adapter is None or not made_for or _weights(made_for) == _weights(base):
        return
    session().note(
        f"The adapter says that it was made for '{made_for}', and was put on '{base}', where its shapes fit. If these are not the "
        "same weights, every figure here is wrong."
    )


COMPARED = 200
"""Test texts on which an adapter is tried on the quantised base that it was trained on."""


def _on_a_full_base(job: Job, subject: Subject, corpus: Corpus) -> None:
    """Notes an adapter that was trained on a quantised base and is examined on the full one, with what that makes, measured."""
    from trueup.run.predict import predict, session
    from trueup.subject import adapter as files
    from trueup.subject import load as door

    settings = files.trained_on(door.adapter_folder(job.adapter), subject.peft_config)
    if settings is None or subject.quantised or subject.shots is not None:
        return
    bits = 4 if settings.get("load_in_4bit") else 8
    said = f"The adapter was trained on a base in {bits} bits, and is examined on the full one."
    try:
        own = door.load(
            job.model, job.adapter, classes=subject.classes, template=job.template, verbaliser=job.verbaliser,
            max_length=subject.max_length, device=job.device, revision=job.revision, allow_pickle=job.allow_pickle,
            trust_remote_code=job.trust_remote_code, quantised=settings,
        )  # fmt: skip
    except (TrueupError, ImportError) as e:
        session().note(f"{said} What that changes could not be measured ({' '.join(str(e).split())[:160]})")
        return
    some = corpus.relabel(subject.classes).part("test")
    some = some.take(np.arange(min(COMPARED, len(some))))
    full, there = predict(subject, some), predict(own, some)
    session().note(
        f"{said} On {len(some)} test texts it is right on {(full.predicted == some.label).mean():.1%} here and on "
        f"{(there.predicted == some.label).mean():.1%} there; {(full.predicted != there.predicted).mean():.1%} of the answers "
        f"differ, and the confidences by {np.abs(full.confidence - there.confidence).mean():.3f} on average. Who serves it in "
        f"{bits} bits gives trueup that model instead: a live one, from Python."
    )


def _weights(name: str) -> str:
    """What tells two names of models apart: the last part of a hub id or path, and of a Trainer's checkpoint the whole path."""
    path = Path(name).resolve() if Path(name).exists() else Path(name)
    hub = next((p for p in path.parts if p.startswith("models--")), None)  # a snapshot in the hub's cache
    if hub is not None:
        return hub.rpartition("--")[2].lower()
    return str(path) if path.name.startswith("checkpoint-") else path.name.lower()


def _first_tokens(subject: Subject) -> None:
    """Notes answer words of which a part alone is read."""
    from trueup.run.predict import session

    if subject.template is None or subject.shots is not None:
        return
    read = zip(
        subject.template.words, subject.tokenizer.batch_decode([[i] for i in subject.verbaliser_ids()]), strict=True
    )
    if cut := [f"{first!r} of {word!r}" for word, first in read if first.strip() != word.strip()]:
        session().note(f"Of an answer word the first token alone is read: {', '.join(cut)}.")


def _tuned_on(job: Job, subject: Subject, corpus: Corpus, card: Mapping[str, Any]) -> None:
    """Notes what is known, or not known, of the examples that the model was tuned on: some may stand in the test split."""
    from trueup.corpus.clusters import leaked
    from trueup.run.predict import session

    tuned, classes = card.get("tuned"), card.get("classes") or ()
    if set(classes) == set(corpus.classes):  # their order is no difference between the splits
        corpus = corpus.relabel(classes)
    earlier = any(_same_data(d, job.data) for d in (tuned or {}).get("also") or ())
    untuned = subject.peft_config is None and (subject.shots is not None or job.data.startswith("task:"))
    if earlier or not (tuned or untuned or job.split):  # who names the splits says what was held out
        session().note(
            "Nothing says which examples the model was tuned on; if some of these were among them, the audit flatters it."
        )
    elif tuned and _same_data(tuned.get("data"), job.data) and tuned.get("train") != _train(corpus):
        session().note(
            "The adapter was tuned on another split of the same data, so test examples may have been trained on. "
            f"Leave out --seed and --limit, or give --seed {tuned.get('seed')}."
        )
    if shared := int(leaked(corpus).sum()):
        session().note(
            f"{shared} test rows share a text or a cluster with the other given splits; their results flatter."
        )


def _train(corpus: Corpus) -> str:
    """The fingerprint of the training examples, of which there may be none: audits need only those held out."""
    return corpus.take(corpus.split == "train").fingerprint


def _same_data(a: str | None, b: str) -> bool:
    """Whether two names are of the same data: equal, or of one file or folder."""
    with suppress(OSError, ValueError):  # a name that no file can have is no file's
        return a == b or (a is not None and os.path.samefile(a, b))
    return False
