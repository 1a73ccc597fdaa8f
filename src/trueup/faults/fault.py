"""The seam: Fault, Finding, Remedy, Comparison, and the laws that hold them together.

The laws (held by ``tests/laws`` on every fault, on its planted, healthy and sham cases):

1.  The same seed gives the same finding, to the byte; other numbers of threads and other batches change it by rounding alone.
2.  An audit leaves the subject's fingerprint (weights, buffers, hooks, training mode, requires_grad) as it was.
3.  Planted scores above sham and above healthy, and only planted is called a fault.
4.  After ``with remedy.on(subject)`` the subject is bit-identical, also when the block raised.
5.  A remedy lowers severity on held-out planted data.
6.  A null remedy changes no prediction and no confidence.
7.  Finding and remedy survive save and load.
8.  The saved remedy, loaded with plain PEFT, gives the same logits.
9.  An unknown architecture is discovered, or refused by name.
10. An example's result does not depend on its batch or its padding.
11. Verdict, severity and interval do not depend on what classes and groups are called or how they are ordered, on the rows'
    order, or on a constant added to all logits of an example; rows that are repeated do not narrow an interval.
12. What has no fault is not found at any number of examples; what has one is, given enough.

This module imports no model: only numbers and text cross the seam.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import MISSING, asdict, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from trueup.docstrings import entries, section
from trueup.errors import BadInput
from trueup.given import shown

if TYPE_CHECKING:
    from trueup.corpus.corpus import Corpus
    from trueup.subject.subject import Subject

Better = Literal["higher", "lower", "zero"]
"""Which direction is better; `zero` of a signed number that should be 0."""
Verdict = Literal["found", "clear", "undecided"]
Outcome = Literal[
    "found", "clear", "undecided", "repaired", "reduced", "trade-off", "no gain", "made worse", "not measured"
]
"""What a check says of a fault: a verdict where there was no repair, or nothing to repair, else what the repair came to."""


MULTI_LABEL = (
    "It gives each text any number of labels, and this is examined in classifiers that give each text one class. Examine it for "
    "overconfidence."
)
"""Why a fault does not apply to a multi-label head."""


@dataclass(frozen=True)
class Measure:
    """One number of a finding, with its bootstrap interval, unit and polarity.

    Attributes:
        value, low, high: the estimate and the ends of its interval, in `unit`.
        unit: what one unit means, for a reader ("probability", "nats", "share of examples").
        better: which direction is better, ``higher``, ``lower``, or ``zero`` for a signed number that should be 0.
        title: the name a reader sees ("error ROC-AUC").
    """

    value: float
    low: float
    high: float
    unit: str
    better: Better
    title: str


@dataclass(frozen=True)
class Difference:
    """After minus before on the same examples: a paired bootstrap interval, and a two-sided bootstrap p-value."""

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Series:
    """One line, or one set of bars, of a chart: x and y of equal length, and an optional band low..high.

    Attributes:
        cut: under a chart's `slider` with a `column`: the value there that an example needs to be answered at each x.
    """

    name: str
    x: Sequence[float] | Sequence[str]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    cut: Sequence[float] | None = None


@dataclass(frozen=True)
class Slider:
    """A place on the x axis of a line chart that the reader moves: the report says what every line is there.

    It goes from one point of the lines to the next, so that each number it shows was measured.

    Attributes:
        label: what is moved ("share of texts answered").
        start: the x where it stands at first.
        examples: where x is the share of examples that are answered: of how many. The report counts the refused.
        column: the column of the example table that decides which are refused (see `Series.cut`); with " after" behind
            its name it is the repaired subject's. Empty where nothing is refused.
    """

    label: str
    start: float
    examples: int = 0
    column: str = ""


@dataclass(frozen=True)
class Chart:
    """A picture as data. The report draws before and after of the same `key` in one frame.

    Attributes:
        kind: ``line``, ``bar``, or ``heat``: a map of cells, such as layer by head. Each series of a map is one row of
            it: `name` is the row's label, `x` the columns (the same in every row), `y` the cells, NaN where there is no
            value. The farther from 0, the stronger the colour: darker on a light page, lighter on a dark one. At most
            100 rows and columns are drawn: choose which, where there are more.
        x_title, y_title: the names of the axes; of a map, what its columns and its rows are.
        reading: one sentence that says how to read it.
        diagonal: draw y = x as a guide (reliability diagrams).
        value_title: what a cell of a map is, with its unit ("attention mass on the prompt").
        log10: each x is the logarithm of what it stands for: the report shows 10**x, on a logarithmic axis.
        slider: lets the reader move along the x axis of a line chart.
        here: the x of the audited examples as they are, which the report marks; None where no x is.
    """

    key: str
    title: str
    kind: Literal["line", "bar", "heat"]
    x_title: str
    y_title: str
    reading: str
    series: tuple[Series, ...]
    diagonal: bool = False
    value_title: str = ""
    log10: bool = False
    slider: Slider | None = None
    here: float | None = None


@dataclass(frozen=True)
class Alternative:
    """A repair that was tried: what it gains and what it costs, on calibration examples that chose nothing.

    Attributes:
        key, title: what `--take` names it, and what a reader does.
        gain, gain_low, gain_high: severity taken away, with its paired interval, in the unit of the severity.
        cost, cost_low, cost_high: accuracy lost as the data are, a share of examples.
        chosen: it is the repair. saveable: an adapter can carry it.
    """

    key: str
    title: str
    gain: float
    gain_low: float
    gain_high: float
    cost: float
    cost_low: float
    cost_high: float
    chosen: bool = False
    saveable: bool = True


@dataclass(frozen=True)
class Method:
    """What one way to repair does on the test examples, beside all others: for comparing methods, and not for choosing one.

    Attributes:
        key, title: the name for tables, and for readers. source: the paper, or "ours". setting: what calibration examples chose.
        values: the fault's measures under it, by key. differences: these less those of the subject as it is, paired.
        behind: these less those of the method that trueup's rule takes, paired; empty where it takes none.
        chosen: it is that method. saveable: an adapter can carry it. control: it is tried because it must not help.
    """

    key: str
    title: str
    source: str
    setting: str
    values: Mapping[str, float]
    differences: Mapping[str, Difference]
    behind: Mapping[str, Difference] = field(default_factory=dict)
    chosen: bool = False
    saveable: bool = True
    control: bool = False


def as_differences(got: Mapping[str, Any]) -> dict[str, Difference]:
    """Paired estimates of the bootstrap, as they cross the seam."""
    return {k: Difference(d.value, d.low, d.high, d.p) for k, d in got.items()}


@dataclass(frozen=True, eq=False)
class Finding:
    """What an audit says. The headline is `severity`: higher is worse.

    Attributes:
        fault: the fault's name. unit: what one unit of severity is.
        severity, low, high: the headline and its bootstrap interval.
        threshold: a fault is found when the whole interval lies above it, so noise alone is not called a fault; it is clear
            of it when the whole interval lies below.
        sentence: the finding in one plain sentence.
        measures: further numbers by key. charts: pictures as data.
        details: anything else that JSON can hold (chosen candidate, tables, thresholds).
        samples: per-example arrays, all of the same length n and in the audited corpus' order (pairing needs them).
        provenance: fingerprints, seed, versions, knobs.
        doubt: why nothing is decided whatever the interval says (too few clusters), as a sentence; empty where there is no such
            reason.
        needed: how many clusters of examples would decide, where that can be said (`bootstrap.clusters_needed`).
    """

    fault: str
    unit: str
    severity: float
    low: float
    high: float
    threshold: float
    sentence: str
    measures: Mapping[str, Measure] = field(default_factory=dict)
    charts: tuple[Chart, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[str, np.ndarray] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    doubt: str = ""
    needed: int | None = None

    @property
    def verdict(self) -> Verdict:
        """``found`` or ``clear`` when the whole interval lies on one side of the threshold and no doubt is raised."""
        if self.doubt:
            return "undecided"
        return "found" if self.low > self.threshold else "clear" if self.high < self.threshold else "undecided"

    @property
    def found(self) -> bool:
        """True when the whole interval of the severity lies above the threshold, and no doubt is raised."""
        return self.verdict == "found"

    def as_dict(self) -> dict[str, Any]:
        """Everything but `samples`, ready for JSON. `from_dict` reads it back."""
        return {k: v for k, v in asdict(self).items() if k != "samples"} | {
            "verdict": self.verdict,
            "found": self.found,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any], samples: Mapping[str, np.ndarray] | None = None) -> Finding:
        """The finding that `as_dict` wrote, with its per-example arrays put back."""
        rest = {k: v for k, v in data.items() if k not in ("verdict", "found", "measures", "charts")}
        charts = tuple(_chart(c) for c in data.get("charts", ()))
        measures = {k: Measure(**m) for k, m in data.get("measures", {}).items()}
        return Finding(**rest, measures=measures, charts=charts, samples=dict(samples or {}))


def _chart(data: Mapping[str, Any]) -> Chart:
    """The chart that `Finding.as_dict` wrote, also before there were sliders."""
    slider = data.get("slider")
    series = tuple(Series(**s) for s in data["series"])
    return Chart(**{**data, "series": series, "slider": Slider(**slider) if slider is not None else None})


class Remedy(ABC):
    """A repair as a value: it can be put on a subject, taken off, described, and saved as a PEFT adapter."""

    @abstractmethod
    def on(self, subject: Subject) -> AbstractContextManager[Subject]:
        """A context manager that yields the repaired subject and leaves `subject` bit-identical afterwards.

        Raises:
            BadInput: the subject is not the one the remedy was made for (its fingerprint differs).
        """

    @abstractmethod
    def save(self, folder: Path, comparison: Comparison | None = None) -> Path:
        """Write a PEFT adapter and its card to `folder`, whole or not at all; returns the folder.

        With a `comparison` the card also says what was measured before and after.

        The folder loads with ``PeftModel.from_pretrained`` where trueup is not installed.
        """

    @abstractmethod
    def describe(self) -> str:
        """One plain sentence: what the repair does."""

    def usage(self, folder: str) -> str:
        """The shortest lines of code that use what was saved in `folder`, without trueup."""
        return f'PeftModel.from_pretrained(base, "{folder}")'

    def charts(self) -> tuple[Chart, ...]:
        """Pictures of the repair itself, for the report. They are not saved with the adapter."""
        return ()

    def alternatives(self) -> tuple[Alternative, ...]:
        """What was tried and can be told by gain and cost, this repair among it."""
        return ()


def dearer(cost: float, budget: float) -> bool:
    """Whether a cost is above a budget: both are shares of examples, and .77 less .75 is a little more than .02 as floats."""
    return cost > budget + 1e-9


@dataclass(frozen=True)
class NoRemedy:
    """No repair is offered, and why.

    Attributes:
        tried: the candidates' scores, so that the reason can be checked. alternatives: as `Remedy.alternatives`.
        too_dear: there is a repair that helps, and each such costs more than may be paid.
    """

    reason: str
    tried: Mapping[str, Any] = field(default_factory=dict)
    alternatives: tuple[Alternative, ...] = ()
    too_dear: bool = False


@dataclass(frozen=True, eq=False)
class Comparison:
    """One fault before and after its repair, on the same held-out examples, and what the repair did elsewhere.

    Attributes:
        before, after: findings; `after` is None when there was no remedy.
        remedy: the repair in one sentence, or the reason why there is none.
        differences: measure key -> paired difference, after minus before.
        harm: measure key -> paired difference of what should not have changed (accuracy above all).
        adapter: name of the folder of the saved remedy inside the job's output folder, or None.
        budget: how much accuracy, as the data are, a repair may cost before it is called a trade-off.
        alternatives: the repairs that were tried, by gain and cost. too_dear: none was made, because each that helps costs more
            than the budget.
        methods: where they were asked for in place of a repair, every method on the test examples.
        consequence: what the finding means for a user, in plain words (`Fault.consequence`).
        usage: how the saved adapter is used, as lines of code in the output folder (`Remedy.usage`).
    """

    before: Finding
    after: Finding | None
    remedy: str
    differences: Mapping[str, Difference] = field(default_factory=dict)
    harm: Mapping[str, Difference] = field(default_factory=dict)
    adapter: str | None = None
    budget: float = 0.02
    alternatives: tuple[Alternative, ...] = ()
    too_dear: bool = False
    methods: tuple[Method, ...] = ()
    consequence: str = ""
    usage: str = ""

    @property
    def gained(self) -> bool:
        """Whether the paired interval of the severity lies wholly below 0: a gain on examples that chose nothing."""
        d = self.differences.get("severity")
        return d is not None and self.after is not None and math.isfinite(self.after.severity) and d.high < 0

    @property
    def outcome(self) -> Outcome:
        """The word for the fault.

        After a repair: ``made worse`` or ``no gain`` by the paired interval of the severity; with a gain ``trade-off`` when it
        cost more accuracy than the budget (or none was made because each that helps does), ``repaired`` when the second audit is
        clear, else ``reduced``. A model that was clear stays so unless it was made worse, and one that was undecided unless it
        gained. ``not measured`` where the first audit has no number.
        """
        if any(math.isnan(x) for x in (self.before.severity, self.before.low, self.before.high, self.before.threshold)):
            return "not measured"
        word, after, d = self.before.verdict, self.after, self.differences.get("severity")
        if after is None:
            return "trade-off" if self.too_dear and word != "clear" else word
        worse = d is not None and d.low > 0
        if worse and after.verdict != "clear":
            return "made worse"
        if word == "clear":
            return word
        if not self.gained:
            return "no gain" if word == "found" else word
        cost = self.harm.get("accuracy")
        if cost is not None and dearer(-cost.value, self.budget):
            return "trade-off"
        return "repaired" if after.verdict == "clear" else "reduced"

    def title(self, key: str) -> str:
        """What a measure is called; the key in words where neither finding has it, as in the harm table."""
        known = self.before.measures.get(key) or (self.after and self.after.measures.get(key))
        return known.title if known else key.replace("_", " ")


@dataclass(frozen=True)
class Fault(ABC):
    """A fault as a value: its fields are its knobs, each with a good default. One folder each under ``faults/``."""

    def __post_init__(self) -> None:
        """Raises BadInput where a knob is not of the kind of its default. A fault with checks of its own calls this first."""
        for f in fields(self):  # type: ignore[arg-type]  # every fault is a dataclass
            if f.metadata.get("knob", True) and f.default is not MISSING:
                object.__setattr__(self, f.name, _knob(self.name, f.name, getattr(self, f.name), f.default))

    name: ClassVar[str]
    title: ClassVar[str]
    question: ClassVar[str]
    paper: ClassVar[str]
    unit: ClassVar[str]
    departures: ClassVar[tuple[str, ...]] = ()
    """What differs from the paper, or is reconstruction: one sentence each, for the report."""
    headline: ClassVar[tuple[str, ...]] = ()
    """The keys of the three measures that a report shows first."""
    needs: ClassVar[str] = ""
    """What a check must be given before it examines this fault, with the options that give it."""
    on_request: ClassVar[str] = ""
    """Why a check examines this fault only when it is named, as half a sentence; empty where it costs little."""
    reads_states: ClassVar[bool] = False
    """Whether its audit reads hidden states. A check examines such faults first: the pass that gives the states gives the features
    that others ask for."""

    @abstractmethod
    def applies_to(self, subject: Subject, corpus: Corpus) -> str | None:
        """None when the fault can be examined on `subject` with `corpus`, else the reason why not, as a sentence."""

    def prepared(self, subject: Subject, corpus: Corpus, *, seed: int) -> Self:
        """This fault with whatever its audits compare a subject with, learnt without looking at ``test``.

        Before the first audit, once: the repaired subject is held against the same. Most faults need nothing.
        """
        return self

    @classmethod
    def knobs(cls) -> dict[str, Any]:
        """The knobs a user can set, with their defaults. What `prepared` adds is none."""
        return {f.name: getattr(cls(), f.name) for f in fields(cls) if f.metadata.get("knob", True)}

    @classmethod
    def described(cls) -> dict[str, str]:
        """What each knob does, as the docstring says it under ``Attributes:``. Names that share a description each have it."""
        knobs = cls.knobs()
        told = entries(section(cls.__doc__ or "", "Attributes"), knobs)
        return dict.fromkeys(knobs, "") | {n: text for names, text in told for n in names if n in knobs}

    @abstractmethod
    def audit(self, subject: Subject, corpus: Corpus, *, seed: int) -> Finding:
        """Examine `subject` on all of `corpus` (the caller chooses the split: pass ``corpus.part("test")``).

        Raises:
            Unsupported: `applies_to` gives a reason. BadInput: the corpus cannot carry the audit.
        """

    @abstractmethod
    def repair(self, subject: Subject, corpus: Corpus, finding: Finding, *, seed: int) -> Remedy | NoRemedy:
        """Learn a repair from the ``train`` and ``calibration`` splits of `corpus`. Never looks at ``test``."""

    def methods(self, subject: Subject, corpus: Corpus, *, seed: int) -> list[Method]:
        """Every method that a repair tries, and its rivals, on ``test``: each learnt and set on ``train`` and ``calibration`` as a
        repair does it. It compares methods; nothing is chosen by it.

        Raises:
            Unsupported: methods of this fault are not compared so.
        """
        from trueup.errors import Unsupported

        raise Unsupported(
            f"{self.title} has no methods that are compared on test examples; its check is a contest itself."
        )

    @abstractmethod
    def compare(self, before: Finding, after: Finding, *, seed: int) -> dict[str, Difference]:
        """Paired differences, after minus before, of this fault's measures. Both findings on the same examples."""

    def consequence(self, before: Finding, after: Finding | None) -> str:
        """What the finding means for who uses the model, in one to three plain sentences; `after` is the repaired model's.

        It says no more than the verdict does: what is undecided is not said to be there.
        """
        return before.sentence

    def pictures(self, before: Finding, after: Finding) -> tuple[Chart, ...]:
        """Charts of what the repair changed, for the report: paired differences that no table has room for."""
        return ()

    @abstractmethod
    def examples(self, corpus: Corpus, before: Finding, after: Finding | None) -> list[dict[str, str | float | bool]]:
        """At most 200 rows for the report's example table, the most telling first. `corpus` is the audited one."""

    def harm(self, subject: Subject, repaired: Subject, corpus: Corpus, *, seed: int) -> dict[str, Difference]:
        """What a repair should leave alone, after minus before, paired: here a classifier's accuracy and NLL."""
        from trueup.measure import bootstrap
        from trueup.measure.accuracy import accuracy, same_predictions
        from trueup.measure.calibration import nll
        from trueup.run.predict import predict

        def right(predicted, probability, label, weight=None):
            return accuracy(predicted, label, weight=weight)

        def surprise(predicted, probability, label, weight=None):
            return nll(probability, label, weight=weight)

        a, b = predict(subject, corpus), predict(repaired, corpus)
        classes = len(subject.classes)
        # That a repair of the confidence changes no prediction is no estimate.
        certain = same_predictions(a.logits[:, :classes], b.logits[:, :classes])
        counted = right if certain else bootstrap.Share(lambda predicted, probability, label: predicted == label)
        got = bootstrap.paired_many(
            {"accuracy": counted, "nll": surprise},
            (a.predicted, a.probability, corpus.label), (b.predicted, b.probability, corpus.label), seed,
            cluster=corpus.cluster,
        )  # fmt: skip
        return as_differences(got)

    @abstractmethod
    def planted(self, case: Literal["planted", "healthy", "sham"]) -> tuple[Subject, Corpus]:
        """A tiny subject and corpus: with exactly this fault, without it, or with its look but not its substance."""

    @abstractmethod
    def read(self, folder: Path, subject: Subject) -> Remedy:
        """The remedy that `Remedy.save` wrote to `folder`, for `subject`."""

    @abstractmethod
    def null(self, subject: Subject) -> Remedy:
        """The remedy that changes nothing (for the laws)."""


def each_fault() -> Iterator[type[Fault]]:
    """Every fault there is, found by being a folder of this package that defines a Fault, in order of name."""
    import importlib
    import inspect
    import pkgutil

    package = importlib.import_module("trueup.faults")
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
        if not info.ispkg:
            continue
        module = importlib.import_module(f"trueup.faults.{info.name}")
        for _, member in inspect.getmembers(module, inspect.isclass):
            if issubclass(member, Fault) and not inspect.isabstract(member) and member.__module__ == module.__name__:
                yield member


LARGEST = 2**31 - 1
"""The largest whole number that a setting may be: no count comes near it, and what is larger no tensor takes as a size."""


def _knob(fault: str, knob: str, value: Any, default: Any) -> Any:
    """`value`, when it is of the default's kind; a whole number serves where a fraction is meant."""
    kind = type(default)
    if isinstance(value, Integral) and not isinstance(value, bool):
        if kind in (int, float) and abs(int(value)) <= LARGEST:
            return kind(value)
    elif kind is float and isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if kind is str and isinstance(value, bool | int | float):  # a column may be named 2024 or true
        return json.dumps(value)
    if isinstance(value, kind) and kind in (bool, str):
        return value
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
    raise BadInput(
        f"The knob {fault}.{knob} is {names.get(kind, kind.__name__)}, such as {default!r}, but {shown(value)} was given. Correct "
        f"it, for example --set {fault}.{knob}={json.dumps(default)}."
    )
