"""The contents of a report, without its files and its page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trueup.errors import BadInput
from trueup.faults.confounding import leads
from trueup.faults.fault import Comparison

MOST_EXAMPLES = 200
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""The allowed names of a fault, which become names of files."""


@dataclass(frozen=True, eq=False, repr=False)
class Contents:
    """The contents of a report's files and page. `trueup.report.bundle.Report` adds the files, and describes each field."""

    title: str
    job: Mapping[str, Any]
    comparisons: tuple[Comparison, ...]
    examples: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    crashes: Mapping[str, str] = field(default_factory=dict)
    unfinished: Sequence[str] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    shortcuts: leads.Scouted | None = None
    previous: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unexamined(self) -> dict[str, str]:
        """Name of a fault without a finding that was requested by name, crashed, or lacked a resource -> the reason, a sentence."""
        # A job that names a confounder requests confounding.
        requested = self.job.get("faults") or (["confounding"] if self.job.get("confounder") else [])
        examined, reasons = {c.before.fault for c in self.comparisons}, {}
        for fault in dict.fromkeys([*requested, *self.crashes, *self.unfinished]):
            if fault not in examined:
                prefix = f"{fault} was not examined: "
                sentences = (n.removeprefix(prefix) for n in self.notes if n.startswith(prefix))
                reasons[fault] = next(sentences, "It was not examined.")
        return reasons

    def __post_init__(self) -> None:
        names = [c.before.fault for c in self.comparisons]
        for c in self.comparisons:
            name = c.before.fault
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise BadInput(f"{name!r} cannot be a fault's name: use letters, digits, '_' and '-', 64 at most.")
            if names.count(name) > 1:
                raise BadInput(f"The fault '{name}' occurs twice in one report: give each fault once.")
            if c.after is not None and c.after.fault != name:
                raise BadInput(f"A comparison holds '{name}' before and '{c.after.fault}' after: compare one fault.")
        for name in self.crashes:
            if not NAME.fullmatch(name):  # it becomes a file's name
                raise BadInput(f"{name!r} cannot be a fault's name: use letters, digits, '_' and '-', 64 at most.")
        for name, table in self.examples.items():
            if name not in names:
                raise BadInput(f"There are examples for '{name}', which is not in the report: give its comparison too.")
            if len(table) > MOST_EXAMPLES:
                raise BadInput(
                    f"The example table of '{name}' has {len(table)} rows: choose at most {MOST_EXAMPLES} of them."
                )
