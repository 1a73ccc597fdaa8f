"""A report for continuous integration: what fails a job, JUnit XML, and a summary in Markdown."""

from __future__ import annotations

import re
from typing import Literal
from xml.sax.saxutils import escape, quoteattr

from trueup.errors import visible
from trueup.faults.fault import Comparison, Finding
from trueup.report import words
from trueup.report.bundle import Report, crash_file

FailOn = Literal["found", "undecided", "reduced"]

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MARK = {"repaired": "✅", "clear": "✅", "undecided": "❔", "reduced": "⚠️", "trade-off": "⚠️"}


def fails(comparison: Comparison, fail_on: FailOn) -> bool:
    """Whether a fault fails a job.

    ``found``: the model has the fault before any repair. ``undecided``: it has the fault, or may have it. ``reduced``: it has the
    fault, and the repaired adapter is not clear of it (`state_of` is not ``repaired``, or a further column is still found). Where
    a fault is examined on several columns, one column is enough.
    """
    before, last = comparison.before, comparison.after or comparison.before
    states = {before.verdict} | _on_further_columns(before)
    if fail_on == "reduced":
        return "found" in states and (words.state_of(comparison) != "repaired" or "found" in _on_further_columns(last))
    return bool(states & ({"found", "undecided"} if fail_on == "undecided" else {"found"}))


def _on_further_columns(finding: Finding) -> set[str]:
    """The verdicts on the columns on which a fault was examined, other than the column of the headline."""
    return {column["verdict"] for column in finding.details.get("others", ())}


def junit(report: Report, fail_on: FailOn) -> str:
    """The report as JUnit XML: a test case for each fault. It fails according to `fails`; a fault not examined is an error."""
    cases, failures = [], 0
    suite = _text(report.title)
    for c in report.comparisons:
        failed, state = fails(c, fail_on), words.state_of(c)
        failures += failed
        element = f"      <failure type={quoteattr(state)} message={_attribute(words.verdict(c))}/>\n" if failed else ""
        element += f"      <system-out>{escape(_text(f'{state}. {words.verdict(c)}'))}</system-out>\n"
        cases.append(
            f"    <testcase classname={quoteattr(suite)} name={_attribute(c.before.fault)}>\n{element}    </testcase>\n"
        )
    for fault, why in report.unexamined.items():
        element = f'      <error type="not examined" message={_attribute(why)}/>\n'
        cases.append(
            f"    <testcase classname={quoteattr(suite)} name={_attribute(fault)}>\n{element}    </testcase>\n"
        )
    counts = f'tests="{len(cases)}" failures="{failures}" errors="{len(report.unexamined)}"'
    when = "".join(f" {k}={_attribute(v)}" for k, v in _when(report).items())
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<testsuites name="trueup" {counts}>\n  <testsuite name={quoteattr(suite)} {counts}{when}>\n'
        f"{''.join(cases)}  </testsuite>\n</testsuites>\n"
    )


def markdown(report: Report) -> str:
    """The report as GitHub's Markdown: a table of the faults, their sentences, warnings and notes."""
    lines = [f"### trueup: {_cell(report.title)}", ""]
    lines += [f"> **Warning** {_cell(w)}\n" for w in report.warnings]
    if report.comparisons:
        lines += ["| fault | state | severity before | after |", "|---|---|---|---|"]
    for c in report.comparisons:
        state = words.state_of(c)
        after = words.interval(c.after) if c.after is not None else "–"
        lines.append(
            f"| {_cell(c.before.fault)} | {_MARK.get(state, '❌')} {state} | {words.interval(c.before)} | {after} |"
        )
    lines.append("")
    lines += [f"- **{_cell(words.title_of(c.before))}** {_cell(words.verdict(c))}" for c in report.comparisons]
    lines += [f"- **{_cell(fault)}** was not examined. {_cell(why)}" for fault, why in report.unexamined.items()]
    lines += [f"- **{_cell(name)}** crashed; `{crash_file(name)}` holds the traceback." for name in report.crashes]
    notes = [n for n in report.notes if not any(n.startswith(f"{f} was not examined") for f in report.unexamined)]
    if notes:
        lines += ["", "<details><summary>Notes</summary>", "", *(f"- {_cell(n)}" for n in notes), "", "</details>"]
    if command := report.provenance.get("command"):
        fence = "`" * 4
        lines += ["", f"{fence}bash", " ".join(visible(command).split("\n")).replace(fence, ""), fence]
    return "\n".join(lines) + "\n"


def _when(report: Report) -> dict[str, str]:
    run = report.run
    return {"timestamp": run["began"].removesuffix("Z"), "time": f"{run['seconds']:.3f}"} if run else {}


def _text(text: object) -> str:
    """Text with the characters that XML cannot hold replaced."""
    return _NOT_XML.sub("\ufffd", visible(text))


def _attribute(text: object) -> str:
    return quoteattr(_text(text))


def _cell(text: object) -> str:
    """Text in one line of Markdown, escaped, so that names from data become neither markup nor links."""
    return re.sub(r"([\\`*_{}\[\]<>|#~@!&])", r"\\\1", " ".join(words.clean(text, 600).split()))
