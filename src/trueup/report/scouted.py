"""The results of a scout (a search for columns that the classifier relies on): a terminal table, and a self-contained page."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from trueup.faults.confounding.leads import Scouted
from trueup.faults.confounding.search import RATE
from trueup.report import words
from trueup.report.embedded import asset, policy, template
from trueup.report.table import _text as text
from trueup.report.table import leads_table

ROWS, TOLD = 10, 3
"""The most named columns that the terminal lists, and that it shows with examples."""


def scout_table(found: Scouted) -> RenderableType:
    """The named columns for a terminal of 80 columns or more, with one example of each group, and what was tried."""
    parts: list[RenderableType] = [text(found.title, "bold", 200), text(found.sentence, "", 1000)]
    if found.leads:
        parts += [leads_table(found.leads[:ROWS]), text(words.EXPLAINED, "dim", 400)]
        for lead in found.leads[:TOLD]:
            parts += [Text(""), text(f"{lead.rank}. {lead.name}", "bold"), text(lead.sentence, "", 600)]
            parts.append(text(words.more(lead), "", 400))
            groups_shown: set[str] = set()
            for e in lead.examples:
                if e["group"] not in groups_shown:
                    groups_shown.add(e["group"])
                    parts.append(
                        text(f"  {e['group']}: {e['text']}  [{e['label']}, answered {e['predicted']}]", "dim", 160)
                    )
        if len(found.leads) > TOLD:
            parts += [Text(""), text(f"The page tells all {len(found.leads)}, with more examples.")]
    elif found.unproven:
        parts += [Text(""), text("The strongest that are not proven:", "bold"), leads_table(found.unproven)]
    if found.notes:
        parts += [Text(""), Text("Notes", "bold"), *(text(f"• {n}", "", 600) for n in found.notes)]
    return Group(*parts)


def page(found: Scouted) -> str:
    """The page: what was tried, each named column with its lean and examples of each group, and the command of the next step."""
    from markupsafe import Markup

    return template("scout.html.jinja").render(
        title=words.clean(found.title, 200), sentence=words.clean(found.sentence, 1500), explained=words.EXPLAINED,
        leads=[words.lead(x) for x in found.leads], unproven=[words.lead(x) for x in found.unproven], rate=f"{RATE:.0%}",
        notes=[words.clean(n, 1000) for n in found.notes], command=words.clean(found.onward, 4000),
        step=words.onward_step(found.onward),
        provenance=[(words.clean(k, 100), words.clean(v, 400)) for k, v in found.provenance.items()],
        csp=policy([]), css=Markup(asset("page.css")),
    )  # fmt: skip
