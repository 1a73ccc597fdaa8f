"""Runs a check: audit -> repair -> second audit -> side effects (harm) -> Comparison. Writes a complete Report or nothing."""

from __future__ import annotations

import inspect
import tempfile
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueup.caveats import effect_of_adapter, length, order_of_classes, padded, provenance, snapshot, unknown, unused
from trueup.errors import BadInput, OutOfMemory, TrueupError, Unavailable, Unsupported, listing, out_of_memory
from trueup.faults.fault import Comparison, Fault, Finding, NoRemedy, each_fault
from trueup.given import checked
from trueup.job import Depth, Job, command_line, faults_of
from trueup.prepare import agreed, check_names, open_job
from trueup.run.processes import TeamMemo, folders, together
from trueup.store import atomic
from trueup.store.inputs import path_of
from trueup.versions import untested

if TYPE_CHECKING:
    from trueup.corpus.corpus import Corpus
    from trueup.faults.confounding.leads import Scouted
    from trueup.report.bundle import Report
    from trueup.run.predict import Session
    from trueup.subject.subject import Subject

Progress = Callable[[str, int, int], None]


@checked
def run_job(
    job: Job, out: str | Path, *, force: bool = False, progress: Progress | None = None, bases: Path | None = None
) -> Report:
    """Run a job and write its folder: report, findings, job, and each repair as a PEFT adapter.

    The results of forward passes are kept beside `out` until the folder is complete, so a run that was stopped continues where it
    stopped. Results of the base model without an adapter are kept in `bases`, if it is given, and other jobs can use them.

    Under ``accelerate launch`` the processes share the forward passes (`trueup.run.processes`), and only the first one writes.

    Raises:
        TrueupError: the input cannot be used; nothing is written.
    """
    out, began = path_of(out), datetime.now(UTC)
    atomic.refuse_read(out, job.inputs)
    faults = faults_of(job.faults, job.knobs)
    with together() as team, folders(team, out, force) as (work, new):
        check_names(job)
        # Imported late, because torch is slow to import: a wrong name or a taken folder is reported before.
        from trueup.report import bundle, html
        from trueup.run.predict import Session, within
        from trueup.store.cache import Memo
        from trueup.subject.beside import read_card
        from trueup.subject.checkpoint import adapter_folder

        earlier_check = _previous(out)
        session = Session(
            Memo(work) if team is None else TeamMemo(work, team),
            None if bases is None or team is not None else Memo(bases),
            progress=progress or (lambda stage, done, total: None),
            team=team,
        )
        with within(session):
            card = read_card(adapter_folder(job.adapter))
            subject, corpus, seed = open_job(job, card, others=_searches(faults, job.confounder, job.depth))
            notes_on_request = [] if job.faults else _unasked(faults, subject, corpus)
            report = check(
                subject,
                corpus,
                faults,
                seed=seed,
                repair=job.depth == "check",
                methods=job.depth == "methods",
                save=new,
                keep=job.keep,
                job=asdict(replace(job, seed=seed)),
            )
        report = replace(report, notes=[*report.notes, *notes_on_request], run=_ran(began))
        if earlier_check is not None:
            report = replace(report, previous=_since(earlier_check[0], report))
            atomic.write_text(new / PREVIOUS, earlier_check[1])
        bundle.write(report, new)
        atomic.write_text(new / "report.html", html.page(report))
    return report


PREVIOUS = "previous.html"
"""The page of the check that a run replaced, kept next to its own page."""


def _previous(out: Path) -> tuple[Report, str] | None:
    """The check in `out` that will be replaced, and its page; None where there is no readable check."""
    from trueup.report import bundle

    page = out / "report.html"
    if not page.is_file():
        return None
    try:
        return bundle.read(out), page.read_text(encoding="utf-8")
    except (TrueupError, OSError, UnicodeError):
        return None  # an unreadable check cannot be compared


def _since(then: Report, now: Report) -> dict[str, Any]:
    """`Report.previous` for an earlier check: each fault of both checks, with the change of its severity before any repair."""
    from trueup.changes import change
    from trueup.report.words import state_of, title_of

    comparison_before = {c.before.fault: c for c in then.comparisons}
    changes = []
    for c in now.comparisons:
        if (old_comparison := comparison_before.get(c.before.fault)) is not None:
            try:
                fault_change = change(old_comparison.before, c.before, then, now)
            except BadInput:  # the fault was measured on another column or at another coupling
                continue
            changes.append({
                "fault": c.before.fault, "title": title_of(c.before), "then": state_of(old_comparison), "now": state_of(c),
                "paired": fault_change.paired, "difference": asdict(fault_change.differences["severity"]),
            })  # fmt: skip
    return {"page": PREVIOUS, "changes": changes}


@checked
def check(
    model: Any,
    data: Any,
    faults: Fault | str | Sequence[Fault | str] = (),
    *,
    fault: Fault | str | None = None,
    adapter: str | Path | None = None,
    tokenizer: Any = None,
    text: str = "text",
    label: str = "label",
    second: str | None = None,
    confounder: str | Sequence[str] = (),
    cluster: str | None = None,
    split: str | None = None,
    held_out: bool = False,
    test: Any = None,
    allow_leak: bool = False,
    limit: int | None = None,
    classes: Sequence[str] | None = None,
    template: str | None = None,
    verbaliser: Sequence[str] | None = None,
    shots: int | None = None,
    chat: bool = False,
    demos: str | Path | None = None,
    header: str | None = None,
    max_length: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    quantize: str | Mapping[str, Any] | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    seed: int | None = None,
    repair: bool = True,
    methods: bool = False,
    save: str | Path | None = None,
    keep: bool = False,
    job: Mapping[str, Any] | None = None,
) -> Report:
    """Examine a model for faults on the test split, repair them on the other splits, and examine it again on the same test split.

    Args:
        model: a Subject, or what `trueup.load` takes: a name, or a live PeftModel or transformers model, which is not changed.
        data: a Corpus, or what `trueup.read` takes: a name, a pandas or polars DataFrame, a ``datasets.Dataset`` or
            ``DatasetDict``, a list of dicts, or a pair (texts, labels).
        faults: names of faults, or faults with their own settings such as ``trueup.Confounding(threshold=0.1)``. Default: all
            faults except those that are only examined on request.
        fault: a single fault, in place of `faults`.
        adapter, tokenizer, classes, template, verbaliser, shots, chat, max_length, device, dtype, quantize, device_map: as in
            `trueup.load`, if the model is not a Subject.
        demos, header: for a few-shot prompt: a file with the demonstrations of every query, and a line before the first
            demonstration (in a chat, the system message).
        text, label, second, confounder, cluster, split, held_out, test, allow_leak, limit: as in `trueup.read`, if the data are not
            a Corpus; `confounder` is its `attributes`.
        seed: the seed of all random choices. Default: the seed in the card of an adapter that `trueup tune` made, otherwise 0.
        repair: False stops after the first finding. methods: in place of a repair, compare all methods on the test examples, for
            research (`Comparison.methods`). Nothing is chosen or saved.
        save: a folder for the repaired adapters, with a subfolder for each fault. keep: also save repairs that show no measurable
            gain on the test examples.
        job: the settings that the report keeps, so that the check can be repeated. Default: those of this call, if model and data
            are given by name.

    Raises:
        Unsupported: no fault applies to the model.
        BadInput: the data are not sufficient for an audit, or an option is given that a Subject or a Corpus already contains.
    """
    from trueup.corpus.corpus import Corpus
    from trueup.subject.beside import read_card
    from trueup.subject.checkpoint import UNNAMED, adapter_folder
    from trueup.subject.subject import Subject

    began = datetime.now(UTC)
    for name, thing, door in (("model", model, "load"), ("data", data, "read")):
        if thing is None:
            raise BadInput(f"{name} is None. Give what `trueup.{door}` takes or returns.")
    named_faults = _named(faults, fault)
    adapter = str(adapter) if isinstance(adapter, Path) else adapter
    chosen_faults = [f for g in named_faults for f in ([g] if isinstance(g, Fault) else faults_of([g]))] or faults_of()
    confounder = (confounder,) if isinstance(confounder, str) else tuple(confounder)
    depth: Depth = "methods" if methods else "check" if repair else "audit"
    if save is not None and depth == "check":
        # Not first when a repair is written: it would be lost.
        atomic.refuse_other(Path(save))
        for f in chosen_faults:
            atomic.refuse_taken(Path(save) / f.name, force=True)
    if isinstance(model, Subject):
        _settled(
            "A Subject", "load", adapter=adapter, tokenizer=tokenizer, classes=classes, template=template,
            verbaliser=verbaliser, shots=shots, chat=chat or None, demos=demos, header=header, max_length=max_length, device=device,
            dtype=dtype, quantize=quantize, device_map=device_map,
        )  # fmt: skip
    if isinstance(data, Corpus):
        _settled(
            "A Corpus", "read", second=second, confounder=confounder, cluster=cluster, split=split, held_out=held_out or None,
            test=test, limit=limit, allow_leak=allow_leak or None,
        )  # fmt: skip
    with remembering() as current_session:
        if note := untested():
            current_session.note(note)
        if isinstance(model, Subject) and isinstance(data, Corpus):
            (subject, corpus), seed = agreed(model, data, named=False), seed or 0
        else:
            job_of_call = Job(
                model=called(model), data=called(data), adapter=adapter, text=text, label=label, second=second,
                confounder=confounder, cluster=cluster, split=split, held_out=held_out,
                test=None if test is None else called(test), allow_leak=allow_leak, keep=keep, limit=limit,
                faults=tuple(f.name for f in chosen_faults) if named_faults else (), depth=depth, seed=seed,
                classes=None if classes is None else tuple(classes), template=template,
                verbaliser=None if verbaliser is None else tuple(verbaliser), shots=shots, chat=chat,
                demos=None if demos is None else str(demos), header=header, max_length=max_length, device=device, dtype=dtype,
                quantize=quantize, device_map=device_map,
                knobs={f.name: own for f in chosen_faults if (own := _set_knobs(f))},
            )  # fmt: skip
            card = read_card(adapter_folder(adapter))
            others = _searches(chosen_faults, confounder, depth)
            subject, corpus, seed = open_job(
                job_of_call, card, model=model, data=data, test=test, tokenizer=tokenizer, others=others
            )
            named = all(isinstance(thing, str | Path) for thing in (model, data, *([] if test is None else [test])))
            if job is None and named:
                job = asdict(replace(job_of_call, seed=seed))
        unasked = [] if named_faults else _unasked(chosen_faults, subject, corpus)
        if subject.source.base == UNNAMED:
            current_session.note(
                f"No name is known under which the base model's weights load again, so saved repairs say '{UNNAMED}', and repairs "
                "that train again were not tried. Save the base with save_pretrained and load it from there to have both."
            )
        report = _examined(
            subject, corpus, chosen_faults, seed=seed, depth=depth, save=None if save is None else Path(save), keep=keep, job=job
        )  # fmt: skip
        notes = [*current_session.notes, *report.notes, *unasked]
        return replace(report, notes=notes, warnings=current_session.warnings, run=_ran(began))


def _ran(began: datetime) -> dict[str, Any]:
    """`Report.run`: the times when a run began and ended, its duration, and its peak memory."""
    from trueup.run import memory

    ended = datetime.now(UTC)
    times = {k: t.strftime("%Y-%m-%dT%H:%M:%SZ") for k, t in (("began", began), ("ended", ended))}
    return times | {"seconds": round((ended - began).total_seconds(), 3), "peak_bytes": memory.peak()}


@checked
def audit(model: Any, data: Any, faults: Fault | str | Sequence[Fault | str] = (), **options: Any) -> Report:
    """Examine a model for faults without a repair. This is `check` with ``repair=False``, and takes the same options."""
    return check(model, data, faults, **options, repair=False)


@checked
def repair(model: Any, data: Any, fault: Fault | str, **options: Any) -> Report:
    """Examine a model for one fault, repair it, and examine it again. This is `check` for a single fault, and takes the same
    options. ``save=FOLDER`` saves the repaired adapter."""
    return check(model, data, fault=fault, **options)


def _with_options(verb: Any, *without: str) -> None:
    """Give a function the signature of `check` in place of ``**options``, so that editors can complete the options."""
    signature = inspect.signature(verb, eval_str=False)
    own_parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    options_of_check = [
        p for name, p in inspect.signature(check).parameters.items() if p.kind is p.KEYWORD_ONLY and name not in without
    ]
    names = {p.name for p in own_parameters}
    verb.__signature__ = signature.replace(
        parameters=[*own_parameters, *(p for p in options_of_check if p.name not in names)]
    )


_with_options(audit, "repair", "methods", "save", "keep")
_with_options(repair, "repair", "methods")


def _named(faults: Any, fault: Any) -> list[Fault | str]:
    """The faults that a caller names with `faults` or `fault`."""
    if fault is not None and faults not in ((), None):
        raise BadInput("faults and fault both name what to examine. Give one of them.")
    selected = fault if fault is not None else () if faults is None else faults
    if isinstance(selected, type) and issubclass(selected, Fault):
        raise BadInput(
            f"{selected.__name__} is a class. Give '{selected.name}' or {selected.__name__}(), with the settings to change."
        )
    fault_list = [selected] if isinstance(selected, Fault | str) else selected
    if not isinstance(fault_list, Sequence | set | frozenset) or not all(
        isinstance(f, Fault | str) for f in fault_list
    ):
        raise BadInput(
            f"faults is {type(selected).__name__} here. Give a name, such as 'overconfidence', a fault with its own settings, such "
            "as trueup.Overconfidence(threshold=0.05), or a list of these."
        )
    return list(fault_list)


@contextmanager
def remembering() -> Iterator[Session]:
    """The session with a memory of passes through the model: its own memory, or one that is deleted after the block."""
    from trueup.run.predict import session, within
    from trueup.store.cache import Memo

    current_session = session()
    if current_session.memo is not None:
        with within(current_session):
            yield current_session
        return
    with (
        tempfile.TemporaryDirectory(prefix="trueup-") as folder,
        within(replace(current_session, memo=Memo(Path(folder)))) as session_with_memo,
    ):
        yield session_with_memo


def _examined(
    subject: Subject, corpus: Corpus, faults: Sequence[Fault], *, seed: int, depth: Depth, save: Path | None, keep: bool,
    job: Mapping[str, Any] | None,
) -> Report:  # fmt: skip
    """The report of all faults that can be examined. Its notes say which cannot, and why."""
    from trueup.corpus.clusters import repeated
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
    adapter_notes = effect_of_adapter(subject, test)
    crashes = _Crashes(subject)
    scouted = (
        _shortcuts(faults, subject, corpus, crashes, seed, job) if _searches(faults, corpus.attributes, depth) else None
    )
    single_fault = len(faults) - len(reasons) == 1
    comparisons, examples, unfinished = [], {}, []
    for fault in sorted(faults, key=lambda f: not f.reads_states):
        if fault.name in reasons:
            continue
        try:
            comparison = _one(fault, subject, corpus, test, crashes, seed=seed, depth=depth, save=save, keep=keep)
            example_rows = fault.examples(test, comparison.before, comparison.after)
        except BaseException as e:  # a panic of a tokenizer written in Rust is not an Exception
            # An error or a crash of one fault must not lose the findings of the others.
            if single_fault:
                raise
            reasons[fault.name] = crashes.survived(e, fault)
            if isinstance(e, Unavailable) or out_of_memory(e):
                unfinished.append(fault.name)
            continue
        comparisons.append(replace(comparison, consequence=fault.consequence(comparison.before, comparison.after)))
        examples[fault.name] = example_rows
    fault_order = [f.name for f in faults]
    comparisons.sort(key=lambda c: fault_order.index(c.before.fault))
    reasons = {name: reasons[name] for name in fault_order if name in reasons}
    if not comparisons:
        raise crashes.last or BadInput(
            f"No fault could be examined. {' '.join(f'{k}: {v}' for k, v in reasons.items())}"
        )
    # After the faults: one that reads hidden states has computed the features in the same pass.
    if not subject.multi_label:
        order_of_classes(subject, corpus)
    return Report(
        title=f"{_short(subject.source.adapter or subject.source.base)} on {_short(corpus.name)}",
        job=dict(job or {}),
        comparisons=tuple(comparisons),
        examples={name: examples[name] for name in fault_order if name in examples},
        provenance=provenance(subject, corpus, seed, job) | length(subject, test) | unknown(subject, test),
        notes=[
            *subject.source.told,
            *adapter_notes,
            *([repeats_note] if (repeats_note := repeated(corpus)) else []),
            *padded(subject, test),
            *unused(subject, test),
            *(f"{name} was not examined: {reason}" for name, reason in reasons.items()),
        ],
        crashes=crashes.told,
        unfinished=unfinished,
        data=snapshot(corpus),
        shortcuts=scouted,
    )


def _searches(faults: Sequence[Fault], columns: Collection[str], depth: Depth) -> bool:
    """Whether a check searches for columns: it examines confounding, and no confounder is named."""
    return not columns and depth != "methods" and any(f.name == CONFOUNDING for f in faults)


CONFOUNDING = "confounding"


def _shortcuts(
    faults: Sequence[Fault],
    subject: Subject,
    corpus: Corpus,
    crashes: _Crashes,
    seed: int,
    job: Mapping[str, Any] | None,
) -> Scouted | None:
    """The result of a search for columns, made before the audits, which use the same pass. None, with a note, where it failed."""
    from trueup.faults.confounding.scout import scout, why_not
    from trueup.run.predict import session

    if why_not(subject) is not None:
        return None
    try:
        scouted = scout(subject, corpus, seed=seed)
        repair_job = {**job, "faults": (CONFOUNDING,), "depth": "check"} if job else {}
        return replace(scouted, onward=onward(scouted, repair_job))
    except BaseException as e:  # the audits do not need it
        reason = crashes.survived(e, next(f for f in faults if f.name == CONFOUNDING))
        session().note(f"No shortcut was searched for. {reason}")
        return None


def onward(found: Scouted, job: Mapping[str, Any]) -> str:
    """The command that examines and repairs the first column that a search with the settings `job` named.

    It is empty where the search named no column, or where no command repeats the job.
    """
    return (command_line({**job, "confounder": ("scout:1",)}) or "") if found.leads and job else ""


class _Crashes:
    """The crashes of single faults, after which the run continues: a sentence for the report, and the traceback for a file."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.whole = subject, subject.fingerprint
        self.told: dict[str, str] = {}
        self.last: BaseException | None = None

    def survived(self, e: BaseException, fault: Fault) -> str:
        """A sentence on why there is no finding, or no repair, of `fault`. Raises `e` again where the run must stop.

        It must stop after an interrupt, and where a crash has changed the model.
        """
        from trueup.report.bundle import crash_file

        if isinstance(e, TrueupError):
            return str(e)
        if isinstance(e, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise e
        if out_of_memory(e):
            return str(OutOfMemory())
        if self.subject.fingerprint != self.whole:
            raise e
        self.told[fault.name], self.last = "".join(traceback.format_exception(e)), e
        message = " ".join(str(e).split())[:200]
        return (
            f"trueup crashed there ({type(e).__name__}: {message}). Please report it with {crash_file(fault.name)}, which lies in "
            "the output folder and holds the traceback."
        )


def _settled(what: str, how: str, **options: Any) -> None:
    """Raises BadInput when an option is given that a Subject or Corpus (`what`) already contains."""
    if named := [k for k, v in options.items() if v is not None and v != ()]:
        raise BadInput(f"{what} has its {listing(named)} settled; give that to `trueup.{how}` instead, which makes it.")


def called(thing: Any) -> str:
    """The word for a model or data in a message: its name, or its type."""
    return str(thing) if isinstance(thing, str | Path) else type(thing).__name__


def _set_knobs(fault: Fault) -> dict[str, Any]:
    """The knobs of a fault that do not have their default values."""
    return {k: getattr(fault, k) for k, default in fault.knobs().items() if getattr(fault, k) != default}


def _short(place: str) -> str:
    """A hub id, or the last two parts of a longer path. The provenance has the whole path."""
    return "/".join(Path(place).parts[-2:])


def _one(
    fault: Fault, subject: Subject, corpus: Corpus, test: Corpus, crashes: _Crashes, *, seed: int, depth: Depth,
    save: Path | None, keep: bool,
) -> Comparison:  # fmt: skip
    fault = fault.prepared(subject, corpus, seed=seed)
    before = _told(fault, fault.audit(subject, test, seed=seed), corpus)
    if depth == "audit":
        return Comparison(before, None, "Only an audit was asked for.")
    try:
        if depth == "methods":
            methods_compared = tuple(fault.methods(subject, corpus, seed=seed))
            return Comparison(
                before,
                None,
                "Methods were compared on the test examples, and none was chosen.",
                methods=methods_compared,
            )
        return _repaired(fault, subject, corpus, test, before, seed=seed, save=save, keep=keep)
    except BaseException as e:
        # The finding is kept without a repair.
        return Comparison(before, None, crashes.survived(e, fault))


def _repaired(
    fault: Fault, subject: Subject, corpus: Corpus, test: Corpus, before: Finding, *, seed: int, save: Path | None,
    keep: bool,
) -> Comparison:  # fmt: skip
    from trueup.run.predict import session, unchanged

    try:
        null_remedy = fault.null(subject)
    except (BadInput, Unsupported):
        null_remedy = None  # the repair below reports the reason
    if null_remedy is not None:
        with null_remedy.on(subject) as same_subject:
            unchanged(subject, same_subject, test)
    budget = getattr(fault, "max_cost", Comparison.budget)
    remedy = fault.repair(subject, corpus, before, seed=seed)
    if isinstance(remedy, NoRemedy):
        before_with_trials = replace(before, details={**before.details, "tried": remedy.tried})
        return Comparison(
            before_with_trials,
            None,
            remedy.reason,
            budget=budget,
            alternatives=remedy.alternatives,
            too_dear=remedy.too_dear,
        )
    with remedy.on(subject) as repaired:
        after = _told(fault, fault.audit(repaired, test, seed=seed), corpus)
        after = replace(after, charts=(*after.charts, *fault.pictures(before, after), *remedy.charts()))
        try:
            harm = fault.harm(subject, repaired, test, seed=seed)
        except (BadInput, Unsupported) as e:
            session().note(f"What the repair of {fault.name} cost elsewhere was not measured: {e}")
            harm = {}
    comparison = Comparison(
        before, after, remedy.describe(), fault.compare(before, after, seed=seed), harm, None, budget, remedy.alternatives(),
    )  # fmt: skip
    if not comparison.gained and not keep:
        # The remedy's own sentence states a gain, which was not measured, so it is replaced.
        return replace(
            comparison,
            remedy="A repair was made. It brought no measurable gain on the test examples, so it is not handed over; --keep "
            "(keep=True in Python) writes it all the same.",
        )
    if save is not None:
        comparison = replace(comparison, adapter=fault.name, usage=remedy.usage(fault.name))
        remedy.save(save / fault.name, comparison)
    return comparison


def _told(fault: Fault, finding: Finding, corpus: Corpus) -> Finding:
    about = {
        "title": fault.title,
        "question": fault.question,
        "paper": fault.paper,
        "departures": list(fault.departures),
        "headline": list(fault.headline),
        **({"dataset": dict(corpus.origin)} if corpus.origin else {}),
    }
    return replace(
        finding, provenance={**finding.provenance, **about, "knobs": {k: getattr(fault, k) for k in fault.knobs()}}
    )


def _unasked(faults: Sequence[Fault], subject: Subject, corpus: Corpus) -> list[str]:
    """Notes on faults that could be examined here, but are examined only on request."""
    requested = {f.name for f in faults}
    return [
        f"{f.name} was not examined: {f.on_request}. Ask for it by name: --fault {f.name}, or faults=['{f.name}']."
        for f in each_fault()
        if f.name not in requested and f().applies_to(subject, corpus) is None
    ]
