"""The seam: Fault, Finding, Remedy, Comparison, and the laws that hold them together.

The laws (held by ``tests/laws`` on every fault, on its planted, healthy and sham cases):

1.  The same seed gives the same finding, byte for byte. Other numbers of threads and other batch sizes change it by rounding only.
2.  An audit does not change the subject: weights, buffers, hooks, training mode and requires_grad stay as they were.
3.  The severity of the planted case is above that of the sham and of the healthy case. Only the planted case is *found*.
4.  After ``with remedy.on(subject)`` the subject is bit-identical to before, even if the block raised an exception.
5.  A remedy lowers the severity on held-out examples of the planted case.
6.  A null remedy (one that should do nothing) changes no prediction and no confidence.
7.  A finding and a remedy are the same after they are saved and loaded.
8.  The saved remedy, loaded with plain PEFT, gives the same logits.
9.  On an unknown architecture the fault works on parts that trueup discovers, or it is refused and the error names the
    architecture.
10. The result of an example does not depend on its batch or its padding.
11. Verdict, severity and interval do not depend on the names or the order of classes and groups, on the order of the rows, or on a
    constant that is added to all logits of an example. Repeated rows do not make an interval narrower.
12. In simulations, a fault that is not there is not found at any number of examples, apart from the error rate of the intervals. A
    fault that is there is found if there are enough examples.

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
        better: the direction that is better: ``higher``, ``lower``, or ``zero`` for a signed number that should be 0.
        title: the name in the report ("error ROC-AUC").
    """

    value: float
    low: float
    high: float
    unit: str
    better: Better
    title: str


@dataclass(frozen=True)
class Difference:
    """A paired difference, after minus before, on the same examples.

    Attributes:
        value, low, high: the difference and its paired 95% bootstrap interval.
        p: the two-sided bootstrap p-value.
    """

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Series:
    """One line, or one set of bars, of a chart.

    Attributes:
        name: the name in the legend.
        x, y: the points, of equal length.
        low, high: the ends of an interval around each y, or None.
        cut: only for a chart whose `slider` has a `column`: the value in this column that an example needs at each x, so that
            it is answered.
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
    """A chart as data. The report draws the charts of both findings with the same `key` in one frame: before and after.

    Attributes:
        key: the name that the chart has in the finding before and in the finding after the repair.
        title: the heading in the report.
        kind: ``line``, ``bar``, or ``heat``: a heat map, for example of layers and heads. Each series of a heat map is one
            row: `name` is the label of the row, `x` the columns (the same in every row), `y` the values, NaN for none. The
            colour is stronger the farther a value is from 0. The report draws at most 100 rows and 100 columns.
        x_title, y_title: the names of the axes. For a heat map: what its columns and its rows are.
        reading: one sentence that says how to read the chart.
        series: the lines, the sets of bars, or the rows of a heat map.
        diagonal: draw the line y = x as a guide (reliability diagrams).
        value_title: what the values of a heat map are, with their unit ("attention mass on the prompt").
        log10: each x is a logarithm to base 10. The report shows 10**x on a logarithmic axis.
        slider: a position on the x axis of a line chart that the reader can move.
        here: the x of the audited examples, which the report marks. None if no x stands for them.
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
    """The result of an audit. Its main number is `severity`; higher is worse.

    Attributes:
        fault: the name of the fault. unit: what one unit of severity means.
        severity, low, high: the estimate and the ends of its 95% bootstrap interval, in `unit`.
        threshold: the severity with which the interval is compared (see `verdict`).
        sentence: the result in one plain sentence.
        measures: further numbers, by key. charts: charts as data.
        details: everything else, as values that JSON can hold (chosen candidate, tables, thresholds).
        samples: arrays with one value for each of the n audited examples, in the order of the corpus. Paired differences are
            computed from them.
        provenance: fingerprints, seed, versions, and the fault's settings (knobs).
        doubt: a sentence that says why the verdict is undecided whatever the interval is, such as too few clusters. Otherwise
            empty.
        needed: with how many clusters of examples 80% of checks would reach a verdict if the severity is as estimated
            (`bootstrap.clusters_needed`). None if this cannot be computed.
    """

    fault: str
    unit: str
    severity: float
    low: float
    high: float
    threshold: float
    sentence: str
    measures: Mapping[str, Measure] = field(default_factory=dict, repr=False)
    charts: tuple[Chart, ...] = field(default=(), repr=False)
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)
    samples: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    doubt: str = ""
    needed: int | None = None

    @property
    def verdict(self) -> Verdict:
        """``found`` if the whole interval is above the threshold, ``clear`` if it is below, otherwise ``undecided``. With a
        `doubt` it is always ``undecided``."""
        if self.doubt:
            return "undecided"
        return "found" if self.low > self.threshold else "clear" if self.high < self.threshold else "undecided"

    @property
    def found(self) -> bool:
        """True if the verdict is ``found``."""
        return self.verdict == "found"

    def as_dict(self) -> dict[str, Any]:
        """Everything except `samples`, as values that JSON can hold. `from_dict` is the inverse."""
        return {k: v for k, v in asdict(self).items() if k != "samples"} | {
            "verdict": self.verdict,
            "found": self.found,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any], samples: Mapping[str, np.ndarray] | None = None) -> Finding:
        """The finding from which `as_dict` made `data`, with its `samples`."""
        fields = {k: v for k, v in data.items() if k not in ("verdict", "found", "measures", "charts")}
        charts = tuple(_chart(c) for c in data.get("charts", ()))
        measures = {k: Measure(**m) for k, m in data.get("measures", {}).items()}
        return Finding(**fields, measures=measures, charts=charts, samples=dict(samples or {}))


def _chart(data: Mapping[str, Any]) -> Chart:
    """The chart that `Finding.as_dict` wrote, also before there were sliders."""
    slider = data.get("slider")
    series = tuple(Series(**s) for s in data["series"])
    return Chart(**{**data, "series": series, "slider": Slider(**slider) if slider is not None else None})


class Remedy(ABC):
    """A repair. It can be applied to a subject and removed again, described, and saved as a PEFT adapter."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self.describe()}"

    @abstractmethod
    def on(self, subject: Subject) -> AbstractContextManager[Subject]:
        """A context manager that yields the repaired subject. Afterwards `subject` is identical to before, bit by bit.

        Raises:
            BadInput: the repair was made for another subject (the fingerprints differ).
        """

    @abstractmethod
    def save(self, folder: Path, comparison: Comparison | None = None) -> Path:
        """Write a PEFT adapter and its card to `folder`, completely or not at all. Returns the folder.

        The adapter loads with ``PeftModel.from_pretrained``, which does not need trueup.

        Args:
            comparison: the measurements before and after the repair, which are then also on the card.
        """

    @abstractmethod
    def describe(self) -> str:
        """What the repair does, in one plain sentence."""

    def usage(self, folder: str) -> str:
        """The shortest code that uses the adapter saved in `folder`, without trueup."""
        return f'PeftModel.from_pretrained(base, "{folder}")'

    def charts(self) -> tuple[Chart, ...]:
        """Charts about the repair itself, for the report. They are not saved with the adapter."""
        return ()

    def alternatives(self) -> tuple[Alternative, ...]:
        """All repairs that were tried and have a gain and a cost, including this one."""
        return ()


def dearer(cost: float, budget: float) -> bool:
    """Whether a cost is above a budget: both are shares of examples, and .77 less .75 is a little more than .02 as floats."""
    return cost > budget + 1e-9


@dataclass(frozen=True)
class NoRemedy:
    """The reason why there is no repair.

    Attributes:
        reason: the reason, as a sentence.
        tried: the scores of the candidates, which support the reason. alternatives: as in `Remedy.alternatives`.
        too_dear: True if some repair helps, but every one that helps costs more than the budget.
    """

    reason: str
    tried: Mapping[str, Any] = field(default_factory=dict)
    alternatives: tuple[Alternative, ...] = ()
    too_dear: bool = False


@dataclass(frozen=True, eq=False)
class Comparison:
    """One fault before and after its repair, on the same held-out examples, with the side effects of the repair.

    Attributes:
        before, after: the findings. `after` is None if there is no repair.
        remedy: what the repair does in one sentence, or the reason why there is none.
        differences: key of a measure -> its paired difference, after minus before.
        harm: side effects: key of a measure that should not have changed (above all the accuracy) -> its paired difference.
        adapter: the name of the adapter's folder inside the output folder, or None.
        budget: the accuracy that a repair may cost on data like the test data. A repair that costs more is a trade-off.
        alternatives: the repairs that were tried, with gain and cost. too_dear: True if there is no repair because every one
            that helps costs more than the budget.
        methods: the results of all methods on the test examples, if they were compared in place of a repair.
        consequence: what the finding means for someone who uses the model, in plain words (`Fault.consequence`).
        usage: the code that uses the saved adapter, for the output folder (`Remedy.usage`).
    """

    before: Finding
    after: Finding | None
    remedy: str
    differences: Mapping[str, Difference] = field(default_factory=dict, repr=False)
    harm: Mapping[str, Difference] = field(default_factory=dict, repr=False)
    adapter: str | None = None
    budget: float = 0.02
    alternatives: tuple[Alternative, ...] = field(default=(), repr=False)
    too_dear: bool = False
    methods: tuple[Method, ...] = field(default=(), repr=False)
    consequence: str = ""
    usage: str = field(default="", repr=False)

    @property
    def gained(self) -> bool:
        """True if the whole paired interval of the severity is below 0. The examples were not used to choose the repair."""
        d = self.differences.get("severity")
        return d is not None and self.after is not None and math.isfinite(self.after.severity) and d.high < 0

    @property
    def outcome(self) -> Outcome:
        """The verdict after the repair. Without a repair it is the verdict before.

        - ``made worse``: the paired interval of the severity is above 0, and the repaired model is not clear.
        - ``no gain``: the fault was found, and the paired interval of the severity is not below 0.
        - ``trade-off``: the severity fell, but the repair costs more accuracy than the budget. Or there is no repair because
          every one that helps costs more.
        - ``repaired``: the severity fell, and the repaired model is clear.
        - ``reduced``: the severity fell, and the repaired model is not clear.
        - ``not measured``: the first audit has no number.

        A model that was clear stays clear unless it was made worse. A model that was undecided stays undecided unless the
        severity fell or it was made worse.
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
        """The title of a measure. If neither finding has the measure, as for some side effects, the title is made from its key."""
        known = self.before.measures.get(key) or (self.after and self.after.measures.get(key))
        return known.title if known else key.replace("_", " ")


@dataclass(frozen=True)
class Fault(ABC):
    """A fault that trueup examines. Its fields are its settings (knobs), each with a default. Each fault is a folder in
    ``faults/``."""

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
        """None if the fault can be examined on `subject` with `corpus`, otherwise the reason why not, as a sentence."""

    def prepared(self, subject: Subject, corpus: Corpus, *, seed: int) -> Self:
        """This fault with the reference that its audits need, learnt without the ``test`` split.

        It is called once, before the first audit. The audit of the repaired subject uses the same reference. Most faults need
        none and return themselves.
        """
        return self

    @classmethod
    def knobs(cls) -> dict[str, Any]:
        """The settings (knobs) that a user can change, with their defaults. Fields that `prepared` fills are not among them."""
        return {f.name: getattr(cls(), f.name) for f in fields(cls) if f.metadata.get("knob", True)}

    @classmethod
    def described(cls) -> dict[str, str]:
        """The description of each setting, from ``Attributes:`` in the docstring of the class."""
        knobs = cls.knobs()
        meanings = entries(section(cls.__doc__ or "", "Attributes"), knobs)
        return dict.fromkeys(knobs, "") | {n: text for names, text in meanings for n in names if n in knobs}

    @abstractmethod
    def audit(self, subject: Subject, corpus: Corpus, *, seed: int) -> Finding:
        """Examine `subject` on all examples of `corpus`. The caller chooses the split, usually ``corpus.part("test")``.

        Raises:
            Unsupported: `applies_to` gives a reason. BadInput: the corpus is not sufficient for the audit.
        """

    @abstractmethod
    def repair(self, subject: Subject, corpus: Corpus, finding: Finding, *, seed: int) -> Remedy | NoRemedy:
        """Learn a repair from the ``train`` and ``calibration`` splits of `corpus`. The ``test`` split is not used."""

    def methods(self, subject: Subject, corpus: Corpus, *, seed: int) -> list[Method]:
        """The results on ``test`` of every method that a repair tries, and of its rivals. Each is learnt and tuned on ``train``
        and ``calibration``, as in a repair. This compares methods for research; it does not choose one.

        Raises:
            Unsupported: this fault has no such comparison.
        """
        from trueup.errors import Unsupported

        raise Unsupported(
            f"{self.title} has no methods that are compared on test examples; its check is a contest itself."
        )

    @abstractmethod
    def compare(self, before: Finding, after: Finding, *, seed: int) -> dict[str, Difference]:
        """The paired differences of the severity and of the measures, after minus before. Both findings must be on the same
        examples."""

    def consequence(self, before: Finding, after: Finding | None) -> str:
        """What the finding means for someone who uses the model, in one to three plain sentences.

        It claims no more than the verdict: an undecided fault is not called present.

        Args:
            after: the finding on the repaired model, or None.
        """
        return before.sentence

    def pictures(self, before: Finding, after: Finding) -> tuple[Chart, ...]:
        """Charts of what the repair changed, for the report: paired differences that are too many for a table."""
        return ()

    @abstractmethod
    def examples(self, corpus: Corpus, before: Finding, after: Finding | None) -> list[dict[str, str | float | bool]]:
        """At most 200 rows for the report's table of examples, the most informative first. `corpus` is the audited one."""

    def harm(self, subject: Subject, repaired: Subject, corpus: Corpus, *, seed: int) -> dict[str, Difference]:
        """What a repair should leave alone, after minus before, paired: here a classifier's accuracy and NLL."""
        from trueup.measure import bootstrap
        from trueup.measure.accuracy import same_predictions
        from trueup.measure.calibration import nll
        from trueup.run.predict import predict

        def surprise(predicted, probability, label, weight=None):
            return nll(probability, label, weight=weight)

        a, b = predict(subject, corpus), predict(repaired, corpus)
        classes = len(subject.classes)
        # That a repair of the confidence changes no prediction is no estimate.
        certain = same_predictions(a.logits[:, :classes], b.logits[:, :classes])
        right = bootstrap.Share(lambda predicted, probability, label: predicted == label)
        differences = bootstrap.paired_many(
            {"accuracy": right.certain() if certain else right, "nll": surprise},
            (a.predicted, a.probability, corpus.label), (b.predicted, b.probability, corpus.label), seed,
            cluster=corpus.cluster,
        )  # fmt: skip
        return as_differences(differences)

    @abstractmethod
    def planted(self, case: Literal["planted", "healthy", "sham"]) -> tuple[Subject, Corpus]:
        """A tiny subject and corpus for tests: with exactly this fault (``planted``), without it (``healthy``), or with something
        that looks like this fault but is not (``sham``)."""

    @abstractmethod
    def read(self, folder: Path, subject: Subject) -> Remedy:
        """The repair that `Remedy.save` wrote to `folder`, for `subject`."""

    @abstractmethod
    def null(self, subject: Subject) -> Remedy:
        """A repair that changes nothing, for the tests that every fault must pass."""


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
        f"The setting {fault}.{knob} is {names.get(kind, kind.__name__)}, such as {default!r}, but {shown(value)} was given. "
        f"Correct it, for example --set {fault}.{knob}={json.dumps(default)}."
    )
