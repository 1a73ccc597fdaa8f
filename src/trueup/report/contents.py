"""What a report says, apart from how it is kept and shown."""

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
"""What a fault may be called: it becomes the name of a file."""


@dataclass(frozen=True, eq=False, repr=False)
class Contents:
    """What the files hold and the page shows. `trueup.report.bundle.Report` is this with its files, and says what each field is."""

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
        """Fault that was asked for by name, crashed, or ran out of something, and has no finding -> why, as a sentence."""
        # Who names a column that should not matter asks for confounding.
        asked = self.job.get("faults") or (["confounding"] if self.job.get("confounder") else [])
        examined, found = {c.before.fault for c in self.comparisons}, {}
        for fault in dict.fromkeys([*asked, *self.crashes, *self.unfinished]):
            if fault not in examined:
                begun = f"{fault} was not examined: "
                whys = (n.removeprefix(begun) for n in self.notes if n.startswith(begun))
                found[fault] = next(whys, "It was not examined.")
        return found

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
