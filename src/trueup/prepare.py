"""Turns the names in a Job into a Subject and a Corpus that fit each other, with notes on them for the report."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trueup.errors import BadInput, TrueupError, listing
from trueup.job import Job, one_line
from trueup.store.inputs import path_of

SCOUT = "scout:"
"""Prefix of the name of a column that `trueup scout` found: ``scout:1`` is its first."""

if TYPE_CHECKING:
    from trueup.corpus.corpus import Corpus
    from trueup.subject.outputs import Outputs
    from trueup.subject.subject import Subject


CHECKED = 16 << 20
"""Bytes of the largest data file whose columns are checked before the libraries are loaded: a larger file is read only once."""


def check_names(job: Job, *, fresh: bool = False) -> None:
    """Check the names of files, folders and columns before the libraries of models are loaded, which takes seconds.

    Later steps would find the same errors. Names that only a hub can check are checked later.

    Args:
        fresh: the job trains its own head, so the head of the model does not matter.

    Raises:
        BadInput: a name does not exist, the names of the classes do not fit the head, or their order is unknown. Unsupported: the
            settings ask an encoder to answer with a word.
    """
    from trueup.corpus import read as reader
    from trueup.subject import places
    from trueup.subject.beside import read_card

    # A column that a scout will find is not in any file.
    names = [job.text, job.label, job.second, job.cluster, *(c for c in job.confounder if not c.startswith(SCOUT))]
    reader.check_roles(job.text, job.label, job.second)
    reader.check_held_out(job.held_out, job.test is not None, job.split, job.shots is not None)
    card = read_card(path_of(job.adapter) if job.adapter is not None else None)
    # With demonstrations the labels are answers and not classes.
    shots_of_card = (card.get("template") or {}).get("shots")
    answers = job.shots is not None or job.demos is not None or shots_of_card is not None
    texts = [n for n in (job.text, job.second) if n]
    rows: dict[str, Any] = {"texts": texts, "label": "" if answers else job.label, "classes": job.classes}
    classes_found = reader.check_source(
        job.data, [n for n in (*names, job.split) if n], CHECKED, split=None if job.test else job.split, **rows
    )
    if job.test is not None:
        classes_of_test = reader.check_source(job.test, [n for n in names if n], CHECKED, **rows)
        classes_found = (
            None
            if classes_found is None or classes_of_test is None
            else (tuple(dict.fromkeys(classes_found[0] + classes_of_test[0])), classes_found[1])
        )
    if job.demos is not None:
        reader.check_source(job.demos, [job.text, job.label], CHECKED)
    places.check_weights(job.dtype, job.quantize, job.device_map, job.device)
    check_model(job.model)
    folder = None
    if job.adapter is not None:
        if (folder := places.adapter_path(job.adapter)) is None:
            places.check_hub_id(job.adapter, places.SETTINGS)
            return
        places.check_adapter(folder, job.adapter)
    _check_answers(job, folder, card, classes_found, fresh)


def _check_answers(
    job: Job, adapter: Path | None, card: Mapping[str, Any], found: tuple[tuple[str, ...], bool] | None, fresh: bool
) -> None:
    """As `check_names`, for the template, the answers and the classes of the model.

    `card`: trueup's own card next to the adapter. `found`: the classes in the data, and whether their order is a guess.
    """
    from trueup.subject import outputs
    from trueup.subject.anatomy import answers_with_no_word, check_words
    from trueup.subject.template import Shots, template_of

    if card.get("template"):
        return
    shots = job.shots
    if shots is None and (job.demos is not None or (job.data.startswith("task:") and not job.verbaliser and not card)):
        shots = Shots().number
    config = outputs.model_config(job.model, job.revision)
    family = outputs.family_of(config)
    if adapter is not None:
        outputs.check_base(config, adapter, str(job.adapter), job.model)
    if family is not None and not family.causal and (job.template or job.verbaliser or shots is not None):
        raise answers_with_no_word(family, shots is not None)
    template = template_of(job.template, job.verbaliser, shots, job.chat)
    if family is not None:
        check_words(family, template)
    if fresh or template is not None:
        return
    if family is not None and adapter is None and outputs.headless(config):
        raise outputs.no_head(job.model, None)
    head = outputs.outputs_of(config, adapter, card)
    if head is None:
        return
    if job.classes:
        outputs.check_names(job.classes, head.classes)
    elif found is not None and found[1] and not head.multi_label:
        _check_order(job, head, found[0])


def _check_order(job: Job, head: Outputs, labels: tuple[str, ...]) -> None:
    """Raises BadInput where the labels are words, and no file of the model gives their order in its head."""
    if head.names and (not head.brought or set(head.names) == set(labels)):
        return
    column = f"column '{job.label}' of '{job.data}'" + (f" and '{job.test}'" if job.test else "")
    if len(labels) > head.classes:
        raise BadInput(
            f"The classifier has {head.classes} classes, and {column} has {len(labels)} labels: {listing(labels)}. Name the column "
            "of the labels that it was trained on (--label), or give the adapter that was trained on these."
        )
    advice = f"for example --classes {shlex.quote(one_line(labels))}"
    if len(labels) < head.classes:
        advice = f"all {head.classes} of them; {column} has only {listing(labels)}"
    raise BadInput(
        f"{'The adapter' if job.adapter else 'The model'} does not name its classes, and {column} holds words, so their order is "
        f"needed. Say in which order it was trained (its label2id), {advice} (classes=[...] in Python). If you do not know the "
        "order, try one: the report warns if another is surely better."
    )


def check_model(name: str) -> None:
    """As `check_names`, for the name of a model."""
    from trueup.subject import places

    if name.startswith("embedded:"):
        from trueup.subject.embedded import check

        check(name.removeprefix("embedded:"))
        return
    places.check_model(name, name)
    if not path_of(name).exists():
        places.check_hub_id(name)


def open_job(
    job: Job,
    card: Mapping[str, Any],
    *,
    model: Any = None,
    data: Any = None,
    test: Any = None,
    tokenizer: Any = None,
    others: bool = False,
) -> tuple[Subject, Corpus, int]:
    """The job's subject, corpus and seed, with notes to the session. Data are read first, because their errors show soonest.

    Args:
        card: trueup's own card next to the adapter.
        model, data, test, tokenizer: objects for the names in the job; None where there is only a name.
        others: also read the other columns of the data, for a scout.
    """
    from trueup.corpus.corpus import Corpus
    from trueup.corpus.read import demonstrations, read
    from trueup.run.predict import session
    from trueup.subject import checkpoint as door
    from trueup.subject.load import load
    from trueup.subject.subject import Subject
    from trueup.subject.template import Shots

    tuned = card.get("tuned") or {}
    same_data = _same_data(tuned.get("data"), job.data)
    seed = job.seed if job.seed is not None else (tuned.get("seed") or 0 if same_data else 0)
    card_of_data = tuned if same_data else {}
    limit = job.limit if job.limit is not None else card_of_data.get("limit")
    cluster = job.cluster if job.cluster is not None else card_of_data.get("cluster")
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
    shots_asked = (card.get("template") or {}).get("shots") if shots is None else shots
    corpus = data
    scouted = tuple(c for c in job.confounder if c.startswith(SCOUT))
    named_columns = tuple(c for c in job.confounder if c not in scouted)
    if not isinstance(corpus, Corpus):
        multi_label = model.multi_label if isinstance(model, Subject) else door.says_multi_label(
            job.model if model is None else model, revision=job.revision, trust_remote_code=job.trust_remote_code
        )  # fmt: skip

        few_shot = (subject.shots if isinstance(subject, Subject) else shots_asked) is not None

        def columns(attributes: tuple[str, ...], others: bool) -> Corpus:
            return read(
                job.data if data is None else data, text=job.text, label=job.label, second=job.second,
                attributes=attributes, others=others, cluster=cluster, split=job.split, held_out=job.held_out,
                test=job.test if test is None else test, allow_leak=job.allow_leak, seed=seed, limit=limit,
                classes=job.classes, answers=few_shot, multi_label=multi_label,
            )  # fmt: skip

        # A model that answers from demonstrations is not scouted, so its other columns are not needed.
        corpus = columns(named_columns, (others and not few_shot) or bool(scouted))
    if (team := session().team) is not None:
        team.agree("data", f"{len(corpus)} texts of fingerprint {corpus.fingerprint[:12]}")
    if not isinstance(subject, Subject):
        subject = load(
            job.model if model is None else model, job.adapter, tokenizer=tokenizer, classes=job.classes,
            template=job.template, verbaliser=job.verbaliser, shots=shots, chat=job.chat, max_length=job.max_length,
            device=job.device, dtype=job.dtype, quantize=job.quantize, device_map=job.device_map, revision=job.revision,
            allow_pickle=job.allow_pickle, trust_remote_code=job.trust_remote_code,
        )  # fmt: skip
    if team is not None:
        team.agree("model", f"fingerprint {subject.fingerprint[:12]}")
    subject = _prompted(subject, corpus, job, pairs)
    _same_base(subject)
    _first_tokens(subject)
    subject, corpus = agreed(subject, corpus, named=job.classes is not None)
    if scouted:
        from trueup.faults.confounding.scout import scout, with_columns

        # All columns are read as the command `trueup scout` reads them, where a column named here was one of the others.
        record = columns((), True) if named_columns and not isinstance(data, Corpus) else corpus
        with_scouted = with_columns(subject, corpus, scouted, scout(subject, record, seed=seed))
        corpus = replace(
            with_scouted,
            attributes={
                k: v for k, v in with_scouted.attributes.items() if k in named_columns or k not in corpus.attributes
            },
        )
    _tuned_on(job, subject, corpus, card)
    if model is None or isinstance(model, str | Path):
        _on_a_full_base(job, subject, corpus)
    if data is None or isinstance(data, str | Path):
        # A repair learns from this split, so its card records the split, like the card of `trueup tune`.
        split_record = {"seed": seed, "limit": limit, "cluster": cluster, "train": _train(corpus)}
        record = {k: tuned[k] for k in (*split_record, "also") if k in tuned} if same_data else split_record
        if tuned and not same_data:
            record = record | {"also": [*(tuned.get("also") or ()), tuned.get("data")]}
        subject = replace(subject, source=replace(subject.source, seen=record | {"data": job.data}))
    return subject, corpus, seed


def _prompted(subject: Subject, corpus: Corpus, job: Job, pairs: tuple[tuple[str, str], ...]) -> Subject:
    """The subject with the header and the fixed demonstrations of the job."""
    from trueup.run.predict import session
    from trueup.run.prompts import with_pool
    from trueup.subject.checkpoint import check_template
    from trueup.subject.template import as_meant

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
        if (placeholder := next((p for p in ("{text}", "{label}") if p in header), None)) is not None:
            raise BadInput(
                f"The header {header!r} has {placeholder} in it, which stands for a demonstration's own. Put it into --template."
            )
        header += "" if template.chat or not header or header != header.rstrip() else "\n"
        template = replace(template, header=header)
        if template.chat:
            check_template(subject.tokenizer, template)
        subject = replace(subject, template=template)
    if not pairs:
        return subject
    extra = sorted({y for _, y in pairs} - set(corpus.classes))
    if extra:
        session().note(
            f"The demonstrations in '{job.demos}' give {listing(extra)}, which no pair of the data has as its answer. If that is a "
            "slip of spelling, correct it."
        )
    return with_pool(subject, corpus.take(np.flatnonzero(corpus.split == "train")), pairs)


def agreed(subject: Subject, corpus: Corpus, *, named: bool) -> tuple[Subject, Corpus]:
    """Subject and corpus with the same class names, where one of them has only numbers. The report's notes say what was assumed.

    The logits of a model without names are taken to be in the data's own order of classes. With a model that has names, labels
    that are numbers are indices of its logits, as transformers' own trainer reads them. `named`: the user gave the names.
    """
    from trueup.corpus.values import numbers_in, places
    from trueup.run.predict import session

    for sentence in corpus.notes:
        session().note(sentence)
    if subject.multi_label or corpus.labels is not None:
        subject, corpus = _label_by_label(subject, corpus)
    numbers = tuple(str(i) for i in range(len(subject.classes)))
    if subject.shots is not None or named:
        return subject, corpus
    no_names = "The model does not name its classes"
    if subject.source.borrowed and set(subject.classes) != set(corpus.classes):
        # The base's names belong to the task that it was trained for, and the adapter's head is for another task.
        no_names = f"The adapter's head brings no class names, and the base's are not the data's ({listing(subject.classes, 4)})"
        subject = replace(subject, classes=numbers)
    if subject.classes == corpus.classes:
        return subject, corpus
    if subject.classes == numbers and len(corpus.classes) == len(numbers):
        subject = replace(subject, classes=corpus.classes)
        _in_order(subject, corpus, no_names)
        session().note(
            f"{no_names}; its logits were taken to be in the data's order: {listing(corpus.classes)}. If "
            "it was trained in another, every figure here is wrong: give --classes."
        )
        return subject, corpus
    index_of_label = (
        None if set(corpus.classes) & set(subject.classes) else places(corpus.classes, len(subject.classes))
    )
    if (
        index_of_label is not None
        and len(set(index_of_label.values())) == len(index_of_label)
        and max(index_of_label.values()) < len(subject.classes)
    ):
        names = tuple(subject.classes[index_of_label[c]] for c in corpus.classes)
        pairs = ", ".join(f"{c} is '{n}'" for c, n in zip(corpus.classes, names, strict=True))
        session().note(
            f"Labels that are {numbers_in(corpus.classes)} were read as places among the model's classes: {pairs}."
        )
        return subject, replace(corpus, classes=names)
    return subject, corpus


def _label_by_label(subject: Subject, corpus: Corpus) -> tuple[Subject, Corpus]:
    """Subject and corpus as multi-label, where one of them is: each logit has its own sigmoid, and each label its own column.

    Raises:
        BadInput: lists of labels for a model that gives each text one class.
    """
    from trueup.corpus.values import MARK
    from trueup.run.predict import session
    from trueup.subject.swap_adapter import brings_head

    if corpus.labels is None:
        return subject, replace(
            corpus, labels=np.eye(len(corpus.classes), dtype=bool)[corpus.label], label=corpus.label * 0
        )
    if not subject.multi_label:
        # The config of a base does not describe the head that an adapter brings.
        kind = (
            None
            if subject.source.adapter and brings_head(subject)
            else getattr(subject.base.config, "problem_type", None)
        )
        intro = f"'{corpus.name}' gives each text a list of labels, and "
        if subject.template is not None or subject.sigmoid or kind == "single_label_classification":
            reason = "answers with one word" if subject.template else "has one logit" if subject.sigmoid else (
                "chooses one class a text (problem_type single_label_classification in its config)"
            )  # fmt: skip
            raise BadInput(
                f"{intro}the model {reason}. Name a column with one class a text, or give a model with a multi-label head."
            )
        if (corpus.labels.sum(axis=1) == 1).all():
            raise BadInput(
                f"{intro}each list has one label, while nothing says that the head is multi-label. Give a column with one class a "
                "text; or set problem_type to multi_label_classification in the model's config."
            )
        session().note(
            "The data give each text a list of labels, so each logit was read through a sigmoid of its own. If the head was "
            "trained to choose one class a text (a softmax), every figure here is wrong."
        )
        subject = replace(subject, multi_label=True)
    if (mark := MARK.fullmatch(corpus.classes[0])) is not None and len(corpus.classes) == int(mark[2]):
        if len(corpus.classes) != len(subject.classes):
            raise BadInput(
                f"'{corpus.name}' gives each text {len(corpus.classes)} yes/no marks, and the head has {len(subject.classes)} "
                f"labels: {listing(subject.classes)}. Give one mark for each label, in the order of the logits."
            )
        corpus = replace(corpus, classes=subject.classes, guessed=False)
    return subject, corpus


def _in_order(subject: Subject, corpus: Corpus, nameless: str) -> None:
    """Raises BadInput where the order of the data's classes is a guess, or another order of the logits is clearly better.

    The held-out rows decide, including those for calibration: the order of the classes is not a finding about a fault.
    """
    if subject.multi_label:
        if corpus.guessed:
            raise BadInput(
                f"{nameless}, so their order is needed. Say in which order it was trained, for example --classes "
                f"{shlex.quote(one_line(corpus.classes))} (classes=[...] in Python)."
            )
        return
    if corpus.guessed:  # an error in any case, so a few texts are enough for a proposal
        rows = np.flatnonzero(corpus.split != "train")
        corpus = corpus.take(rows[np.unique(np.linspace(0, len(rows) - 1, TRIED).round().astype(int))])
    accuracy, texts_held_out, better_order = ranked(subject, corpus)
    if better_order is None and not corpus.guessed:
        return
    accuracy_sentence = (
        f"As {listing(corpus.classes)} it is right on {accuracy:.1%} of {texts_held_out:,} held-out texts"
    )
    accuracy_sentence += (
        f", and as {listing(better_order[0])} on {better_order[1]:.1%}" if better_order is not None else ""
    )
    raise BadInput(
        f"{nameless}, so their order is needed. {accuracy_sentence}. Say in which order it was trained, for example "
        f"--classes {shlex.quote(one_line(better_order[0] if better_order else corpus.classes))} (classes=[...] in Python)."
    )


TRIED = 200
"""Held-out texts from which an order of the classes is proposed."""


def ranked(subject: Subject, corpus: Corpus) -> tuple[float, int, tuple[list[str], float] | None]:
    """The accuracy on the held-out rows, their number, and a clearly better order of the classes with its accuracy, or None.

    The better order is from `surer_order`. Subject and corpus have the same classes in the same order.
    """
    from trueup.measure.accuracy import surer_order
    from trueup.run.predict import predict

    parts = [
        corpus.part(s) for s in ("calibration", "test") if (corpus.split == s).any()
    ]  # one by one: passes that others share
    predicted = np.concatenate([predict(subject, p).predicted for p in parts])
    label = np.concatenate([p.label for p in parts])
    surer = surer_order(predicted, label, len(corpus.classes))
    better_order = None if surer is None else ([corpus.classes[i] for i in surer[0]], surer[1])
    return float((predicted == label).mean()), len(label), better_order


def _same_base(subject: Subject) -> None:
    """Note it where the adapter's config names another base: weights with equal shapes can be other weights."""
    from trueup.run.predict import session
    from trueup.subject.checkpoint import resolve

    base, made_for = subject.source.base, getattr(subject.peft_config, "base_model_name_or_path", None)
    if subject.source.adapter is None or not made_for or _weights(made_for) == _weights(base):
        return
    if base.startswith("embedded:") and Path(made_for).resolve() == Path(resolve(base)).resolve():
        return
    session().note(
        f"The adapter says that it was made for '{made_for}', and was put on '{base}', where its shapes fit. If these are not the "
        "same weights, every figure here is wrong."
    )


COMPARED = 200
"""Test texts on which an adapter is also run on the quantised base that it was trained on."""


def _on_a_full_base(job: Job, subject: Subject, corpus: Corpus) -> None:
    """Note it where an adapter was trained on a quantised base and is examined on the full one, with the measured difference."""
    from trueup.run.predict import predict, session
    from trueup.subject import adapter as files
    from trueup.subject import checkpoint as door
    from trueup.subject.load import load

    settings = files.trained_on(door.adapter_folder(job.adapter), subject.peft_config)
    if settings is None or subject.quantised or subject.shots is not None or subject.multi_label:
        return
    bits = 4 if settings.get("load_in_4bit") else 8
    sentence = f"The adapter was trained on a base in {bits} bits, and is examined on the full one."
    try:
        quantised_subject = load(
            job.model, job.adapter, classes=subject.classes, template=job.template, verbaliser=job.verbaliser,
            max_length=subject.max_length, device=job.device, dtype=job.dtype, quantize=settings, device_map=job.device_map,
            revision=job.revision, allow_pickle=job.allow_pickle, trust_remote_code=job.trust_remote_code,
        )  # fmt: skip
    except (TrueupError, ImportError) as e:
        session().note(f"{sentence} What that changes could not be measured ({' '.join(str(e).split())[:160]})")
        return
    texts = corpus.relabel(subject.classes).part("test")
    texts = texts.take(np.arange(min(COMPARED, len(texts))))
    full, quant = predict(subject, texts), predict(quantised_subject, texts)
    session().note(
        f"{sentence} On {len(texts)} test texts it is right on {(full.predicted == texts.label).mean():.1%} here and on "
        f"{(quant.predicted == texts.label).mean():.1%} there; {(full.predicted != quant.predicted).mean():.1%} of the answers "
        f"differ, and the confidences by {np.abs(full.confidence - quant.confidence).mean():.3f} on average. Who serves it in "
        f"{bits} bits gives --quantize {bits}bit (quantize='{bits}bit' in Python)."
    )


def _weights(name: str) -> str:
    """A key that is equal for names of the same model: the last part of a hub id or path; for a Trainer's checkpoint the path."""
    path = Path(name).resolve() if Path(name).exists() else Path(name)
    hub_folder = next((p for p in path.parts if p.startswith("models--")), None)  # a snapshot in the hub's cache
    if hub_folder is not None:
        return hub_folder.rpartition("--")[2].lower()
    return str(path) if path.name.startswith("checkpoint-") else path.name.lower()


def _first_tokens(subject: Subject) -> None:
    """Note answer words of which only the first token is read."""
    from trueup.run.predict import session

    if subject.template is None or subject.shots is not None:
        return
    word_and_token = zip(
        subject.template.words, subject.tokenizer.batch_decode([[i] for i in subject.verbaliser_ids()]), strict=True
    )
    if shortened_words := [
        f"{first_token!r} of {word!r}" for word, first_token in word_and_token if first_token.strip() != word.strip()
    ]:
        session().note(f"Of an answer word the first token alone is read: {', '.join(shortened_words)}.")


def _tuned_on(job: Job, subject: Subject, corpus: Corpus, card: Mapping[str, Any]) -> None:
    """Note what is known of the examples that the model was tuned on: some of them may be in the test split."""
    from trueup.corpus.clusters import leaked
    from trueup.run.predict import session

    tuned, classes = card.get("tuned"), card.get("classes") or ()
    if set(classes) == set(corpus.classes):  # another order of the classes must not count as another split
        corpus = corpus.relabel(classes)
    tuned_before = any(_same_data(d, job.data) for d in (tuned or {}).get("also") or ())
    untuned = subject.peft_config is None and (subject.shots is not None or job.data.startswith("task:"))
    same_data = tuned is not None and _same_data(tuned.get("data"), job.data)
    other_split = same_data and (tuned or {}).get("train") != _train(corpus)
    named_splits = bool(job.split or job.held_out or job.test)  # the user has said what was held out
    if job.held_out and (other_split or tuned_before):
        raise BadInput(
            f"The adapter's card says that it was tuned on rows of '{job.data}', and --held-out (held_out=True in Python) says "
            "that none was trained on. Leave that out: the card's own split is taken."
        )
    if tuned_before:
        session().note(
            "The adapter was tuned on some rows of these data before, and its card does not say which. On rows that it was trained "
            "on, it looks better than it is. Use --split with a column that says which rows are training rows."
        )
    elif not (tuned or untuned or named_splits):
        set_aside, rows = int((corpus.split == "train").sum()), len(corpus)
        detail = f", so {set_aside:,} of your {rows:,} rows were set aside as training rows" if set_aside else ""
        session().note(
            f"trueup does not know which rows the model was trained on{detail}. If it was trained on none of them, add --held-out "
            "(held_out=True in Python); half of the rows are then test rows. If it was trained on some of them, use --split with a "
            "column that says which: on rows that it was trained on, a model looks better than it is."
        )
    elif tuned and other_split and not job.test:
        session().note(
            "The adapter was tuned on another split of the same data, so test examples may have been trained on. "
            f"Leave out --seed, --limit and --cluster, or give --seed {tuned.get('seed')}. An adapter that was tuned without "
            "--cluster needs a --split column to be examined with it."
        )
    if shared_rows := int(leaked(corpus).sum()):
        session().note(
            f"{shared_rows} test rows share a text or a cluster with the other given splits. On these rows the model looks better "
            "than it is."
        )


def _train(corpus: Corpus) -> str:
    """The fingerprint of the training examples. There may be none: audits need only held-out examples."""
    return corpus.take(corpus.split == "train").fingerprint


def _same_data(a: str | None, b: str) -> bool:
    """Whether two names are of the same data: equal names, or one file or folder."""
    with suppress(OSError, ValueError):  # a name that no file can have
        return a == b or (a is not None and os.path.samefile(a, b))
    return False
