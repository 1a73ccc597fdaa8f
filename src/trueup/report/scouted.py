"""What a scout found: a table for the terminal, and one self-contained page."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trueup.faults.confounding.scout import Lead, Scouted
from trueup.faults.confounding.search import RATE
from trueup.report import words
from trueup.report.html import asset, policy, template
from trueup.report.table import _table as new_table
from trueup.report.table import _text as text

EXPLAINED = (
    "A word that carries the meaning and one that betrays the source both give a head start, and no figure can tell them apart. "
    "Choose the column that should not matter."
)

ROWS, TOLD = 10, 3
"""Of the named columns: how many the terminal lists, and tells with examples."""


def scout_table(found: Scouted) -> RenderableType:
    """The named columns for a terminal of 80 columns or more, with one example of either side, and what was tried."""
    parts: list[RenderableType] = [text(found.title, "bold", 200), text(found.sentence, "", 1000)]
    if found.leads:
        parts += [_table(found.leads[:ROWS]), text(EXPLAINED, "dim", 400)]
        for lead in found.leads[:TOLD]:
            parts += [Text(""), text(f"{lead.rank}. {lead.name}", "bold"), text(lead.sentence, "", 600)]
            if more := _more(lead):
                parts.append(text(more, "", 400))
            seen: set[str] = set()
            for e in lead.examples:
                if e["group"] not in seen:
                    seen.add(e["group"])
                    parts.append(
                        text(f"  {e['group']}: {e['text']}  [{e['label']}, answered {e['predicted']}]", "dim", 160)
                    )
        if len(found.leads) > TOLD:
            parts += [Text(""), text(f"The page tells all {len(found.leads)}, with more examples.")]
    elif found.unproven:
        parts += [Text(""), text("The strongest that are not proven:", "bold"), _table(found.unproven)]
    if found.notes:
        parts += [Text(""), Text("Notes", "bold"), *(text(f"• {n}", "", 600) for n in found.notes)]
    return Group(*parts)


def _table(leads: tuple[Lead, ...]) -> Table:
    table = new_table()
    table.add_column("", width=3, justify="right")
    table.add_column("column", overflow="fold", ratio=1)
    table.add_column("lean, AUPRC lost", width=22, overflow="fold")
    table.add_column("q", width=7, justify="right", overflow="fold")
    for x in leads:
        table.add_row(str(x.rank or "–"), text(x.name), _lean(x), _rate(x.q))
    return table


def _lean(x: Lead) -> str:
    return f"{words.number(x.lean)} [{words.number(x.low)}, {words.number(x.high)}]"


def _rate(q: float) -> str:
    return "<0.001" if q < 0.001 else f"{q:.3f}"


def _more(x: Lead) -> str:
    """How the data couple the column with the label, accuracy by group, and whether it goes with a column above."""
    way = (
        f"the favoured class is {x.coupling:.2g} times as frequent in its group"
        if x.coupling >= 1
        else f"the favoured class is {1 / x.coupling:.2g} times rarer in its group"
    )
    right = ", ".join(f"{a:.1%} where {g} ({n:,})" for g, a, n in zip(x.groups, x.accuracy, x.clusters, strict=True))
    like = f" It gives much the same texts the head start as no. {x.like}." if x.like else ""
    return f"In the test examples {way}. Accuracy: {right}.{like}"


def page(found: Scouted, command: str | None) -> str:
    """The page: what was tried, each named column with its price and examples of either side, and the command that goes on.

    Args:
        command: the check of the first column; None where there is none.
    """
    from markupsafe import Markup

    def shown(x: Lead) -> dict[str, Any]:
        return {
            "rank": x.rank or "–", "name": words.clean(x.name, 200), "sentence": words.clean(x.sentence, 600), "lean": _lean(x),
            "q": _rate(x.q), "kind": x.kind, "more": words.clean(_more(x), 600),
            "examples": [{k: words.clean(v, 300) for k, v in e.items()} for e in x.examples],
        }  # fmt: skip

    return template("scout.html.jinja").render(
        title=words.clean(found.title, 200), sentence=words.clean(found.sentence, 1500), explained=EXPLAINED,
        leads=[shown(x) for x in found.leads], unproven=[shown(x) for x in found.unproven], rate=f"{RATE:.0%}",
        notes=[words.clean(n, 1000) for n in found.notes], command=command and words.clean(command, 4000),
        provenance=[(words.clean(k, 100), words.clean(v, 400)) for k, v in found.provenance.items()],
        csp=policy([]), css=Markup(asset("page.css")),
    )  # fmt: skip
