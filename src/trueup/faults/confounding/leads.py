"""The result of a scout (a search for columns that the classifier relies on) as data for reports: no model, no torch.

Nothing here says whether a column should matter. A word that carries the meaning gives a head start (a higher score of one class
at a given label), and so does a word that only gives away the source.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from trueup.errors import two_digits

if TYPE_CHECKING:
    from trueup.corpus.cues import Cue

KINDS = {
    "column": "columns of the data", "surface": "surface cues", "pair": "cues of the pair", "word": "words and phrases",
    "cluster": "clusters of hidden states",
}  # fmt: skip


@dataclass(frozen=True)
class Lead:
    """A column that a scout derived or found, and the results for it on test examples.

    Attributes:
        rank: the rank among the named columns, 1 for the largest lean; 0 if the column is not named. name, kind: as in
            `corpus.cues.Cue`.
        groups: the values of the column. favoured: the class to which each value gives a head start at a given label.
        lean, low, high: the lean at a coupling of 3 in AUPRC, and its interval, which allows for the choice of columns (false
            coverage rate). q: the false discovery rate at which the column is named. searched: the lean on the calibration
            examples.
        clusters, accuracy: the number of clusters and the accuracy of each group, on test examples. coupling: how many times as
            frequent the favoured class is in its group in the test examples, with even margins. Below 1, the data are coupled
            against the lean.
        like: the rank of a column with a larger lean that gives the head start to nearly the same texts, or 0.
        examples: texts of each group, with errors that follow the head start first: ``group``, ``text``, ``label``, ``predicted``.
    """

    rank: int
    name: str
    kind: str
    groups: tuple[str, ...]
    favoured: tuple[str, ...]
    lean: float
    low: float
    high: float
    q: float
    searched: float
    clusters: tuple[int, ...]
    accuracy: tuple[float, ...]
    coupling: float
    like: int = 0
    examples: tuple[Mapping[str, str], ...] = ()

    @property
    def sentence(self) -> str:
        """A sentence: the favoured class of each group, and the AUPRC that is lost when the coupling is reversed."""
        from trueup.corpus.cues import NOT_THERE, THERE

        if self.groups == (NOT_THERE, THERE):
            without, having = self.favoured
            starts = f"'{having}' where {self.name} is there, '{without}' where it is not"
        else:
            starts = ", ".join(
                f"'{c}' where {self.name} is {g}" for c, g in zip(self.favoured, self.groups, strict=True)
            )
        price = f"{self.lean:.3f} [{self.low:.3f}, {self.high:.3f}] AUPRC"
        return f"At a given label it favours {starts}. Reversing that costs {price}."


@dataclass(frozen=True, eq=False)
class Scouted:
    """The result of a scout, a search for columns that the classifier relies on.

    Attributes:
        leads: the named columns, with the largest lean first. unproven: of the columns that were judged and are not named, those
            with the largest lean. named: the number of named columns. A check with its own search keeps only the first in `leads`.
        tried: kind -> the number of columns that were tried on calibration examples. rare: the number of those with too few
            examples of a label in a group. judged: the number of columns that were judged on test examples.
        searching, judging: the numbers of independent clusters of calibration examples and of test examples.
        threshold: the lean that a named column exceeds. smallest: the lean that would be named in 80% of cases with these examples
            (nan if nothing was judged). needed: if no column is named, the number of test clusters at which the column with the
            largest lean would be named, if this can be computed.
        onward: the command that examines and repairs the first named column. Empty if there is none.
        title, notes, job, provenance: as in `trueup.Report`.
    """

    leads: tuple[Lead, ...]
    unproven: tuple[Lead, ...]
    named: int
    tried: Mapping[str, int]
    rare: int
    judged: int
    searching: int
    judging: int
    threshold: float
    smallest: float
    needed: int | None
    columns: tuple[Cue, ...] = field(default=(), repr=False)
    onward: str = ""
    title: str = ""
    notes: Sequence[str] = ()
    job: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """A sentence: how many columns were tried, judged and named, and which lean can be found with these examples."""
        # Imported late: reports import this module, and these two load scipy.
        from trueup.faults.confounding import search
        from trueup.faults.confounding.mixes import FEWEST

        kinds = ", ".join(f"{KINDS[k]}: {n}" for k, n in self.tried.items() if n)
        text = (
            f"{sum(self.tried.values())} derived columns were tried on {self.searching:,} independent calibration examples "
            f"({kinds}); {self.rare} of them have fewer than {FEWEST} examples of some label in some group. "
        )
        if not self.judged:
            return (
                f"{text}No column was judged on the test examples: the others do not lean on the calibration examples, or are too "
                "rare in the test examples."
            )
        text += (
            f"{self.judged} {'was' if self.judged == 1 else 'were'} judged on {self.judging:,} independent test examples, "
            f"and {self.named or 'none'} {'has' if self.named == 1 else 'have'} a lean above {self.threshold:g} "
            f"at a false discovery rate of {search.RATE:.0%}."
        )
        if math.isfinite(self.smallest):
            text += f" With this many examples, the search finds a lean of {self.smallest:.2f} in 80% of cases."
        if not self.named and self.needed is not None:
            enough = f"{two_digits(self.needed):,} independent test examples"
            text += f" If the strongest is as strong as it looks, about {enough} would name it."
        return text

    def as_dict(self) -> dict[str, Any]:
        """The result as values that JSON can hold; `columns` and `job` are left out."""
        return _told(self, self.leads) | {k: getattr(self, k) for k in ("title", "notes", "provenance")}

    def __str__(self) -> str:
        return "\n".join([self.sentence, *(f"{x.rank}. {x.name}: {x.sentence}" for x in self.leads)])


_COUNTS = ("named", "tried", "rare", "judged", "searching", "judging", "threshold", "smallest", "needed")
"""The fields of `Scouted` that hold numbers."""
TOLD = 10
"""The most named columns that the findings of a check hold."""


def in_check(found: Scouted) -> dict[str, Any]:
    """The result of a search as a check's findings hold it, as JSON values. `read` makes it a Scouted again."""
    return _told(found, found.leads[:TOLD])


def _told(found: Scouted, leads: Sequence[Lead]) -> dict[str, Any]:
    return {
        "sentence": found.sentence, "leads": [asdict(x) for x in leads], "unproven": [asdict(x) for x in found.unproven],
    } | {k: getattr(found, k) for k in (*_COUNTS, "onward")}  # fmt: skip


def read(data: Mapping[str, Any]) -> Scouted:
    """The Scouted that `in_check` wrote. Raises KeyError, TypeError or ValueError where `data` is not one."""
    counts = {k: data[k] for k in _COUNTS}
    counts["tried"] = {k: int(n) for k, n in dict(data["tried"]).items() if k in KINDS}
    for k in ("named", "rare", "judged", "searching", "judging"):
        counts[k] = int(data[k])
    counts["threshold"], counts["smallest"] = float(data["threshold"]), float(data["smallest"])
    counts["needed"] = None if data["needed"] is None else int(data["needed"])
    return Scouted(
        tuple(map(_lead, data["leads"])), tuple(map(_lead, data["unproven"])), onward=str(data["onward"]), **counts
    )


def _lead(data: Mapping[str, Any]) -> Lead:
    as_type = {"int": int, "float": float, "str": str}
    values: dict[str, Any] = {}
    for f in fields(Lead):
        value, kind = data[f.name], str(f.type)
        if kind in as_type:
            values[f.name] = as_type[kind](value)
        elif f.name == "examples":
            values[f.name] = tuple({k: str(e[k]) for k in ("group", "text", "label", "predicted")} for e in value)
        else:
            values[f.name] = tuple(map(as_type[kind.removeprefix("tuple[").partition(",")[0]], value))
    groups = len(values["groups"])
    if any(len(values[k]) != groups for k in ("favoured", "clusters", "accuracy")):
        raise ValueError("a column's groups and what is said of them differ in number")
    return Lead(**values)
