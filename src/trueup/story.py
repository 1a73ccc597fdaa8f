"""The story: audit -> repair -> audit again -> harm -> Comparison. From a Job to a Report, whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trueup.errors import BadInput, Unsupported, did_you_mean, listing
from trueup.faults.fault import Comparison, Fault, Finding, NoRemedy, each_fault

if TYPE_CHECKING:
    from trueup.corpus.corpus import Corpus
    from trueup.report.bundle import Report
    from trueup.run.predict import Session
    from trueup.subject.subject import Subject

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Job:
    """One check as data: what the command line says, and what ``job.json`` keeps to repeat it.

    Attributes:
        model, adapter, template, verbaliser, shots, classes, max_length, device, revision, allow_pickle,
            trust_remote_code: as in `trueup.load`. In-context tasks (``task:NAME``) are asked with 4 shots unless told
            otherwise.
        data, text, label, second, confounder, split, limit: as in `trueup.read`; `confounder` are its attributes.
        faults: names; empty for every fault that applies.
        depth: ``audit`` stops after the first finding, ``check`` repairs and audits again.
        seed: root of every random choice. None: the seed that `trueup tune` wrote beside the adapter, else 0, so that
            a tuned adapter is examined on the split it has not seen.
        knobs: fault name -> knob -> value.
    """

    model: str
    data: str
    adapter: str | None = None
    text: str = "text"
    label: str = "label"
    second: str | None = None
    confounder: tuple[str, ...] = ()
    split: str | None = None
    limit: int | None = None
    faults: tuple[str, ...] = ()
    depth: Literal["audit", "check"] = "check"
    seed: int | None = None
    classes: tuple[str, ...] | None = None
    template: str | None = None
    verbaliser: tuple[str, ...] | None = None
    shots: int | None = None
    max_length: int | None = None
    device: str | None = None
    revision: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    knobs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Job:
        """The job that ``job.json`` holds.

        Raises:
            BadInput: a key is unknown, or `model` or `data` is missing.
        """
        known = {f.name for f in fields(Job)}
        for key in data:
            if key not in known:
                raise BadInput(f"A job has no setting '{key}'.{did_you_mean(key, known)} It has {listing(known, 99)}.")
        for key in ("model", "data"):
            if key not in data:
                raise BadInput(f"The job does not say which {key}; add it.")
        tuples = {k: tuple(v) for k, v in data.items() if isinstance(v, list)}
        return Job(**{**data, **tuples})


def faults_of(names: Sequence[str] = (), knobs: Mapping[str, Mapping[str, Any]] | None = None) -> list[Fault]:
    """Faults by name with their knobs set; for no names all but those examined on request, unless a knob of theirs is set.

    Raises:
        BadInput: an unknown fault or knob.
    """
    known = {f.name: f for f in each_fault()}
    for name in [*names, *(knobs or {})]:
        if name not in known:
            raise BadInput(f"There is no fault '{name}'.{did_you_mean(name, known)} There are {listing(known)}.")
    chosen = []
    usual = [k for k, f in known.items() if not f.on_request or k in (knobs or {})]
    for name in dict.fromkeys(names or usual):
        given = (knobs or {}).get(name, {})
        allowed = known[name].knobs()
        for knob in given:
            if knob not in allowed:
                raise BadInput(
                    f"'{name}' has no knob '{knob}'.{did_you_mean(knob, allowed)} It has {listing(allowed)}."
                )
        chosen.append(known[name](**{k: _knob(name, k, v, allowed[k]) for k, v in given.items()}))
    return chosen


def _knob(fault: str, knob: str, value: Any, default: Any) -> Any:
    """`value`, when it is of the default's kind; a whole number serves where a fraction is meant."""
    kind = type(default)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if kind is float and whole:
        value = float(value)
    if kind is str:  # a column may be named 2024 or true
        return value if isinstance(value, str) else json.dumps(value)
    right = whole if kind is int else isinstance(value, kind)
    if not right or (kind is float and not math.isfinite(value)):
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
        raise BadInput(
            f"The knob {fault}.{knob} is {names.get(kind, kind.__name__)}, such as {default}, but {value!r} was given. "
            f"Correct it, for example --set {fault}.{knob}={default}."
        )
    return value


def run_job(job: Job, out: Path, *, force: bool = False, progress: Progress | None = None) -> Report:
    """Do the job and write its folder: report, findings, job, and each remedy as a PEFT adapter.

    Passes through the model are kept beside `out` until the folder is whole, so a killed run goes on where it stopped.

    Raises:
        TrueupError: the input cannot be used; nothing is written.
    """
    from trueup.report import bundle, html
    from trueup.run.predict import Session, within
    from trueup.store import atomic
    from trueup.store.cache import Memo
    from trueup.subject.adapter import read_card
    from trueup.subject.load import adapter_folder

    out = Path(out)
    faults = faults_of(job.faults, job.knobs)
    with scratch(out) as work, atomic.new_folder(out, force=force) as new:
        session = Session(Memo(work), progress=progress or (lambda stage, done, total: None))
        with within(session):
            card = read_card(adapter_folder(job.adapter))
            subject, corpus, seed = open_job(job, card)
            notes = [*_warnings(job, card, corpus), *(() if job.faults else _unasked(faults, subject, corpus))]
            report = check(
                subject,
                corpus,
                faults,
                seed=seed,
                repair=job.depth == "check",
                save=new,
                job=asdict(replace(job, seed=seed)),
            )
        report = replace(report, notes=[*notes, *report.notes])
        bundle.write(report, new)
        atomic.write_text(new / "report.html", html.page(report))
    return report


def check(
    model: Any,
    data: Any,
    faults: Fault | str | Sequence[Fault | str] = (),
    *,
    adapter: str | None = None,
    tokenizer: Any = None,
    text: str = "text",
    label: str = "label",
    second: str | None = None,
    confounder: str | Sequence[str] = (),
    split: str | None = None,
    limit: int | None = None,
    classes: Sequence[str] | None = None,
    template: str | None = None,
    verbaliser: Sequence[str] | None = None,
    shots: int | None = None,
    max_length: int | None = None,
    device: str | None = None,
    seed: int | None = None,
    repair: bool = True,
    save: str | Path | None = None,
    job: Mapping[str, Any] | None = None,
) -> Report:
    """Examine a model for each fault on the test split; repair on the others; examine again on the same test split.

    Args:
        model: a Subject; whatever `trueup.load` takes: a name, or a live PeftModel or transformers model, which stays as it
            is.
        data: a Corpus; whatever `trueup.read` takes: a name, a pandas or polars DataFrame, a ``datasets.Dataset`` or
            ``DatasetDict``, a list of dicts, a pair (texts, labels).
        faults: names, or faults with their knobs set; empty for all but those examined on request.
        adapter, tokenizer, classes, template, verbaliser, shots, max_length, device: as in `trueup.load`, for a model that
            is no Subject yet.
        text, label, second, confounder, split, limit: as in `trueup.read`, for data that are no Corpus yet; `confounder`
            are its attributes.
        seed: root of every random choice. None: the seed that `trueup tune` wrote beside the adapter, else 0.
        repair: False stops after the first finding.
        save: a folder for the remedies, one subfolder per fault.
        job: what the report keeps to repeat the check; by itself for a model and data given by name.

    Raises:
        Unsupported: no fault applies to the model. BadInput: the data cannot carry an audit, or an option is given for a
            Subject or a Corpus, which have it settled.
    """
    from trueup.corpus.corpus import Corpus
    from trueup.subject.adapter import read_card
    from trueup.subject.load import UNNAMED, adapter_folder
    from trueup.subject.subject import Subject

    given = [faults] if isinstance(faults, Fault | str) else list(faults)
    chosen = [f for g in given for f in ([g] if isinstance(g, Fault) else faults_of([g]))] or faults_of()
    confounder = (confounder,) if isinstance(confounder, str) else tuple(confounder)
    if isinstance(model, Subject):
        _settled(
            "A Subject", "load", adapter=adapter, tokenizer=tokenizer, classes=classes, template=template,
            verbaliser=verbaliser, shots=shots, max_length=max_length, device=device,
        )  # fmt: skip
    if isinstance(data, Corpus):
        _settled("A Corpus", "read", second=second, confounder=confounder, split=split, limit=limit)
    with _remembering() as now:
        if isinstance(model, Subject) and isinstance(data, Corpus):
            (subject, corpus), seed, notes = _agreed(model, data, named=False), seed or 0, []
        else:
            asked = Job(
                model=_called(model), data=_called(data), adapter=adapter, text=text, label=label, second=second,
                confounder=confounder, split=split, limit=limit, faults=tuple(f.name for f in chosen) if given else (),
                depth="check" if repair else "audit", seed=seed,
                classes=None if classes is None else tuple(classes), template=template,
                verbaliser=None if verbaliser is None else tuple(verbaliser), shots=shots, max_length=max_length,
                device=device,
                knobs={f.name: own for f in chosen if (own := _set_knobs(f))},
            )  # fmt: skip
            card = read_card(adapter_folder(adapter))
            subject, corpus, seed = open_job(asked, card, model=model, data=data, tokenizer=tokenizer)
            notes = _warnings(
                asked if subject.shots is None else replace(asked, shots=subject.shots.number), card, corpus
            )
            if job is None and isinstance(model, str | Path) and isinstance(data, str | Path):
                job = asdict(replace(asked, seed=seed))
        if not given:
            notes += _unasked(chosen, subject, corpus)
        if subject.source.base == UNNAMED:
            notes.append(
                f"No name is known under which the base model's weights load again, so saved repairs say '{UNNAMED}', and repairs "
                "that train again were not tried. Save the base with save_pretrained and load it from there to have both."
            )
        report = _examined(
            subject, corpus, chosen, seed=seed, repair=repair, save=None if save is None else Path(save), job=job
        )  # fmt: skip
        return replace(report, notes=[*notes, *report.notes, *now.notes])


@contextmanager
def _remembering() -> Iterator[Session]:
    """The session, with a memory of passes through the model: its own, or one that ends with the block."""
    from trueup.run.predict import session, within
    from trueup.store.cache import Memo

    now = session()
    if now.memo is not None:
        with within(now):
            yield now
        return
    with tempfile.TemporaryDirectory(prefix="trueup-") as folder, within(replace(now, memo=Memo(Path(folder)))) as kept:
        yield kept


def _examined(
    subject: Subject, corpus: Corpus, faults: Sequence[Fault], *, seed: int, repair: bool, save: Path | None,
    job: Mapping[str, Any] | None,
) -> Report:  # fmt: skip
    """The report of all faults that can be examined; its notes say which cannot, and why."""
    from trueup.report.bundle import Report
    from trueup.run.prompts import one_answer_each, with_pool

    if subject.shots is not None:
        one_answer_each(corpus)
        subject = subject if subject.shots.pool else with_pool(subject, corpus.part("train"))
    corpus = corpus.relabel(subject.classes)
    test = corpus.part("test")
    reasons = {f.name: reason for f in faults if (reason := f.applies_to(subject, corpus)) is not None}
    if len(reasons) == len(faults):
        raise Unsupported(f"No fault can be examined here. {' '.join(f'{k}: {v}' for k, v in reasons.items())}")
    alone = len(faults) - len(reasons) == 1
    comparisons, examples = [], {}
    for fault in faults:
        if fault.name in reasons:
            continue
        try:
            comparison = _one(fault, subject, corpus, test, seed=seed, repair=repair, save=save)
        except (BadInput, Unsupported) as e:
            # What one fault cannot use must not cost the findings of the others.
            if alone:
                raise
            reasons[fault.name] = str(e)
            continue
        comparisons.append(comparison)
        examples[fault.name] = fault.examples(test, comparison.before, comparison.after)
    if not comparisons:
        raise BadInput(f"No fault could be examined. {' '.join(f'{k}: {v}' for k, v in reasons.items())}")
    return Report(
        title=f"{subject.source.adapter or subject.source.base} on {corpus.name}",
        job=dict(job or {}),
        comparisons=tuple(comparisons),
        examples=examples,
        provenance=provenance(subject, corpus, seed, job),
        notes=[*_unused(subject, test), *(f"{name} was not examined: {reason}" for name, reason in reasons.items())],
    )


def _settled(what: str, how: str, **options: Any) -> None:
    """Raises BadInput when an option is given that `what` has settled already."""
    if named := [k for k, v in options.items() if v is not None and v != ()]:
        raise BadInput(f"{what} has its {listing(named)} settled; give that to `trueup.{how}` instead, which makes it.")


def _called(thing: Any) -> str:
    """What a message calls a model or data: its name, or its kind."""
    return str(thing) if isinstance(thing, str | Path) else type(thing).__name__


def _set_knobs(fault: Fault) -> dict[str, Any]:
    """The knobs of a fault that are not at their defaults."""
    return {k: getattr(fault, k) for k, default in fault.knobs().items() if getattr(fault, k) != default}


def _agreed(subject: Subject, corpus: Corpus, *, named: bool) -> tuple[Subject, Corpus]:
    """Both with one set of class names, where one side has only numbers: the report's notes say which was taken for what.

    A model without names has its logits in the data's own order of classes; labels that are numbers under a model with names
    are places among its logits, as transformers' own trainer reads them. `named`: the user gave the names.
    """
    from trueup.run.predict import session

    numbers = tuple(str(i) for i in range(len(subject.classes)))
    if subject.shots is not None or named or subject.classes == corpus.classes:
        return subject, corpus
    if subject.classes == numbers and len(corpus.classes) == len(numbers):
        subject = replace(subject, classes=corpus.classes)
        _in_order(subject, corpus)
        session().note(
            f"The model does not name its classes; its logits were taken to be in the data's order: {listing(corpus.classes)}. If "
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


def _unused(subject: Subject, test: Corpus) -> list[str]:
    """A note on classes that the test texts have and the model never answers."""
    from trueup.run.predict import predict

    if subject.shots is not None:
        return []
    said = set(predict(subject, test).predicted.tolist())
    silent = [f"{c} ({n} of {len(test)} test texts)" for i, c in enumerate(test.classes)
              if i not in said and (n := int((test.label == i).sum()))]  # fmt: skip
    return [f"The model never answers {listing(silent)}."] if silent else []


def _one(
    fault: Fault, subject: Subject, corpus: Corpus, test: Corpus, *, seed: int, repair: bool, save: Path | None
) -> Comparison:
    from trueup.run.predict import session

    fault = fault.prepared(subject, corpus, seed=seed)
    before = _told(fault, fault.audit(subject, test, seed=seed))
    if not repair:
        return Comparison(before, None, "Only an audit was asked for.")
    try:
        remedy = fault.repair(subject, corpus, before, seed=seed)
    except (BadInput, Unsupported) as e:
        # The finding stands without its repair.
        remedy = NoRemedy(str(e))
    if isinstance(remedy, NoRemedy):
        return Comparison(replace(before, details={**before.details, "tried": remedy.tried}), None, remedy.reason)
    with remedy.on(subject) as repaired:
        after = _told(fault, fault.audit(repaired, test, seed=seed))
        after = replace(after, charts=(*after.charts, *remedy.charts()))
        try:
            harmed = fault.harm(subject, repaired, test, seed=seed)
        except (BadInput, Unsupported) as e:
            session().note(f"What the repair of {fault.name} cost elsewhere was not measured: {e}")
            harmed = {}
    comparison = Comparison(
        before, after, remedy.describe(), fault.compare(before, after, seed=seed), harmed, fault.name if save else None
    )
    if save is not None:
        remedy.save(save / fault.name, comparison)
    return comparison


def open_job(
    job: Job, card: Mapping[str, Any], *, model: Any = None, data: Any = None, tokenizer: Any = None
) -> tuple[Subject, Corpus, int]:
    """The job's subject, corpus and seed; `card` stands beside its adapter. Data are read first: they fail fast.

    Args:
        model, data, tokenizer: objects that stand behind the job's names; None where the names are all there is.
    """
    from trueup.corpus.corpus import Corpus
    from trueup.corpus.read import read
    from trueup.subject import load as door
    from trueup.subject.subject import Shots, Subject

    tuned = card.get("tuned") or {}
    same = _same_data(tuned.get("data"), job.data)
    seed = job.seed if job.seed is not None else int(tuned.get("seed", 0) if same else 0)
    limit = job.limit if job.limit is not None or not same else tuned.get("limit")
    corpus = data
    if not isinstance(corpus, Corpus):
        corpus = read(
            job.data if data is None else data, text=job.text, label=job.label, second=job.second,
            attributes=job.confounder, split=job.split, seed=seed, limit=limit, classes=job.classes,
        )  # fmt: skip
    subject, shots = model, job.shots
    if shots is None and job.data.startswith("task:") and not job.verbaliser and not card:
        shots = Shots().number
    if not isinstance(subject, Subject):
        subject = door.load(
            job.model if model is None else model, job.adapter, tokenizer=tokenizer, classes=job.classes,
            template=job.template, verbaliser=job.verbaliser, shots=shots, max_length=job.max_length, device=job.device,
            revision=job.revision, allow_pickle=job.allow_pickle, trust_remote_code=job.trust_remote_code,
        )  # fmt: skip
    _same_base(subject)
    _first_tokens(subject)
    subject, corpus = _agreed(subject, corpus, named=job.classes is not None)
    if data is None or isinstance(data, str | Path):
        # A repair learns from this split, so its card has to say which it was, as that of `trueup tune` does.
        own = {"seed": seed, "limit": limit, "train": corpus.part("train").fingerprint}
        seen = {k: tuned[k] for k in (*own, "also") if k in tuned} if same else own
        if tuned and not same:
            seen = seen | {"also": [*tuned.get("also", ()), tuned.get("data")]}
        subject = replace(subject, source=replace(subject.source, seen=seen | {"data": job.data}))
    return subject, corpus, seed


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


def _same_data(a: str | None, b: str) -> bool:
    """Whether two names are of the same data: equal, or of one file or folder."""
    return a == b or (a is not None and Path(a).exists() and Path(b).exists() and os.path.samefile(a, b))


def provenance(subject: Subject, corpus: Corpus, seed: int, job: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a reader needs to repeat and to trust a run."""
    import torch

    config = subject.peft_config
    packages = ("trueup", "torch", "transformers", "peft", "scikit-learn", "numpy")
    return {
        "command": command_line(job) if job else None,
        "seed": seed,
        "model": subject.source.base,
        "adapter": subject.source.adapter,
        "adapter kind": subject.source.peft_type,
        "adapter settings": {
            k: sorted(set(v))
            if isinstance(v, list | set) and all(isinstance(x, str) for x in v)
            else str(getattr(v, "value", v))
            for k, v in (config.to_dict() if config else {}).items()
            if v not in (None, {}, [])
        },
        "model fingerprint": subject.fingerprint[:16],
        "data": corpus.name,
        "data fingerprint": corpus.fingerprint[:16],
        "examples": {s: int((corpus.split == s).sum()) for s in ("train", "calibration", "test")},
        "classes": list(subject.classes),
        "device": str(subject.device),
        "dtype": str(next(subject.model.parameters()).dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {p: version(p) for p in packages},
    }


def names_in(line: str) -> tuple[str, ...]:
    """Names parted at commas; one that holds a comma stands in double quotes, as in a csv file."""
    return tuple(name for row in csv.reader(io.StringIO(line, newline="")) for name in row)


def one_line(names: Sequence[object]) -> str:
    """The line that `names_in` reads as these names."""
    line = io.StringIO()
    csv.writer(line).writerow(names)
    return line.getvalue().removesuffix("\r\n")


def command_line(job: Mapping[str, Any]) -> str | None:
    """The command that repeats a job; None where no one command does.

    The command line audits one fault at a time.
    """
    faults, audit = list(job.get("faults") or ()), job.get("depth") == "audit"
    if audit and len(faults) != 1:
        return None
    words = ["trueup", *(["audit", faults[0]] if audit else ["check"])]
    words.append(str(job["model"]))
    for key, value in job.items():
        option = {"faults": "--fault", "max_length": "--max-length"}.get(key, "--" + key.replace("_", "-"))
        if (
            key in ("model", "depth", "knobs")
            or value is None
            or value is False
            or value in ((), [])
            or (key == "faults" and audit)
        ):
            continue
        if key in ("text", "label") and value == key:
            continue
        if value is True:
            words.append(option)
        elif key in ("faults", "confounder"):
            for v in value:
                words += [option, str(v)]
        elif isinstance(value, list | tuple):
            words += [option, one_line(value)]
        else:
            words += [option, str(value)]
    for fault, knobs in (job.get("knobs") or {}).items():
        for knob, value in knobs.items():
            words += ["--set", f"{fault}.{knob}={json.dumps(value)}"]
    return shlex.join([*words, "-o", "OUT"])


@contextmanager
def scratch(out: Path, *, mine: bool = True) -> Iterator[Path]:
    """Where a job keeps finished work until its folder is whole: beside the folder, hidden. Only its owner clears it.

    Enter it before the folder is made, so that it goes last: a kill in between costs nothing. After input that cannot
    be used it goes as well, unless an earlier run that was killed had left it.
    """
    import shutil

    out = Path(os.path.abspath(out))
    work = out.parent / f".{out.name}.work"
    if not mine:
        yield work
        return
    earlier, absent = work.exists(), [p for p in out.parents if not p.exists()]
    try:
        yield work
    except (BadInput, Unsupported):
        if not earlier:
            shutil.rmtree(work, ignore_errors=True)
            with suppress(OSError):
                for folder in absent:
                    folder.rmdir()
        raise
    shutil.rmtree(work, ignore_errors=True)


def _told(fault: Fault, finding: Finding) -> Finding:
    about = {
        "title": fault.title,
        "question": fault.question,
        "paper": fault.paper,
        "departures": list(fault.departures),
    }
    return replace(
        finding, provenance={**finding.provenance, **about, "knobs": {k: getattr(fault, k) for k in fault.knobs()}}
    )


def _unasked(faults: Sequence[Fault], subject: Subject, corpus: Corpus) -> list[str]:
    """What could have been examined too, had it been asked for."""
    asked = {f.name for f in faults}
    return [
        f"{f.name} was not examined: {f.on_request}. Ask for it by name: --fault {f.name}, or faults=['{f.name}']."
        for f in each_fault()
        if f.name not in asked and f().applies_to(subject, corpus) is None
    ]


def _warnings(job: Job, card: Mapping[str, Any], corpus: Corpus) -> list[str]:
    from trueup.corpus.split import leaked

    notes = []
    tuned, classes = card.get("tuned"), card.get("classes") or ()
    if set(classes) == set(corpus.classes):  # their order is no difference between the splits
        corpus = corpus.relabel(classes)
    earlier = any(_same_data(d, job.data) for d in (tuned or {}).get("also", ()))
    if earlier or (not tuned and (job.adapter is not None or not (job.shots or job.data.startswith("task:")))):
        notes.append(
            "Nothing says which examples the model was tuned on; if some of these were among them, the audit flatters it."
        )
    elif tuned and _same_data(tuned.get("data"), job.data) and tuned.get("train") != corpus.part("train").fingerprint:
        notes.append(
            "The adapter was tuned on another split of the same data, so test examples may have been trained on. "
            f"Leave out --seed and --limit, or give --seed {tuned.get('seed')}."
        )
    if job.split and (shared := int(leaked(corpus).sum())):
        notes.append(
            f"{shared} test texts also stand in the other splits of column '{job.split}'; their results flatter."
        )
    return notes
