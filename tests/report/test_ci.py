"""What a report says to continuous integration: exit codes, JUnit XML, Markdown, and the schema of findings.json."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from report_cases import EVIL, comparison, evil_report, report

from trueup.faults.fault import Comparison
from trueup.report import bundle, ci
from trueup.report.bundle import Report
from trueup.store.atomic import new_folder

SCHEMA = json.loads((files("trueup.report") / "findings.schema.json").read_text(encoding="utf-8"))
RUN = {"began": "2026-01-01T00:00:00Z", "ended": "2026-01-01T00:00:02Z", "seconds": 2.0, "peak_bytes": 10**9}


def of_width(before: float, after: float | None, high: float) -> Comparison:
    """A comparison whose second audit has an interval up to `high`; the threshold is that of `report_cases`."""
    made = comparison(before=before, after=after)
    if made.after is None:
        return made
    return replace(made, after=replace(made.after, high=high))


def test_what_fails() -> None:
    repaired = comparison()
    assert bundle.words.state_of(repaired) == "repaired"
    left = of_width(0.31, 0.05, repaired.before.threshold + 0.01)
    assert bundle.words.state_of(left) == "reduced"
    alone = comparison(after=None)
    undecided = replace(alone, before=replace(alone.before, low=-1.0))
    clear = replace(alone, before=replace(alone.before, low=-1.0, high=alone.before.threshold - 0.01))
    more = {"others": [{"attribute": "sex", "verdict": "clear"}, {"attribute": "site*sex", "verdict": "found"}]}
    elsewhere = replace(clear, before=replace(clear.before, details=more))
    open_ = {"others": [{"attribute": "sex", "verdict": "clear"}, {"attribute": "site*sex", "verdict": "undecided"}]}
    unsure = replace(clear, before=replace(clear.before, details=open_))
    sure = replace(clear, before=replace(clear.before, details={"others": open_["others"][:1]}))
    assert repaired.after is not None
    partly = replace(repaired, after=replace(repaired.after, details=more))
    cases = {
        "repaired": repaired, "reduced": left, "found": alone, "undecided": undecided, "clear": clear, "elsewhere": elsewhere,
        "partly": partly, "unsure": unsure, "sure": sure,
    }  # fmt: skip
    failing = {how: {k for k, c in cases.items() if ci.fails(c, how)} for how in ("found", "undecided", "reduced")}
    assert failing == {
        "found": {"repaired", "reduced", "found", "elsewhere", "partly"},
        "undecided": {"repaired", "reduced", "found", "undecided", "elsewhere", "partly", "unsure"},
        "reduced": {"reduced", "found", "elsewhere", "partly"},
    }


def test_junit_counts_what_it_holds() -> None:
    given = replace(
        report(), run=RUN, job={"faults": ["tilt", "copying"]}, notes=["copying was not examined: No prompt."]
    )
    states = {c.before.fault: c.before.found for c in given.comparisons}
    suite = ET.fromstring(ci.junit(given, "found"))[0]
    assert suite.tag == "testsuite"
    assert (suite.get("tests"), suite.get("errors")) == (str(len(states) + 1), "1")
    assert suite.get("failures") == str(sum(states.values()))
    assert (suite.get("time"), suite.get("timestamp")) == ("2.000", "2026-01-01T00:00:00")
    for case in suite:
        name = case.get("name") or ""
        assert (case.find("failure") is not None) == states.get(name, False)
        assert (case.find("error") is not None) == (name == "copying")
    reduced = ET.fromstring(ci.junit(given, "reduced"))[0]
    assert int(reduced.get("failures") or 0) < int(suite.get("failures") or 0)


def test_what_strangers_wrote_is_text() -> None:
    given = evil_report(EVIL + "\x00\ufffe\x1b[31m")
    tree = ET.fromstring(ci.junit(given, "found"))
    assert "<script>alert(1)</script>" in "".join(t for e in tree.iter() for t in [e.text or "", *e.attrib.values()])
    told, fence, _ = ci.markdown(given).partition("````")
    assert fence
    assert "<script" not in told.replace(r"\<script", "")
    assert "<img" not in told.replace(r"\<img", "")


def test_the_summary_has_a_row_for_each_fault() -> None:
    given = report()
    rows = [line for line in ci.markdown(given).splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(given.comparisons)
    for row, c in zip(rows, given.comparisons, strict=True):
        assert row.startswith(f"| {c.before.fault} |")
        assert bundle.words.state_of(c) in row


def written(given: Report, folder: Path) -> Any:
    with new_folder(folder) as new:
        bundle.write(given, new)
    return json.loads((folder / "findings.json").read_text())


def wrong(data: Any) -> list[str]:
    return [e.json_path for e in jsonschema.Draft202012Validator(SCHEMA).iter_errors(data)]


def test_the_schema_is_one_and_has_the_number_of_the_format() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$id"] == f"urn:trueup:findings:{bundle.FORMAT}"
    assert SCHEMA["properties"]["format"] == {"const": bundle.FORMAT}


SPOILT: dict[str, Callable[[Any], object]] = {
    "$.format": lambda d: d.update(format=1),
    "$": lambda d: d.update(more=1),
    "$.comparisons[0].state": lambda d: d["comparisons"][0].update(state="fine"),
    "$.comparisons[0].before.severity": lambda d: d["comparisons"][0]["before"].update(severity="0.3"),
    "$.comparisons[0].before": lambda d: d["comparisons"][0]["before"].pop("verdict"),
}


@pytest.mark.parametrize("at", SPOILT)
def test_the_schema_refuses_what_is_not_of_the_format(at: str, tmp_path: Path) -> None:
    data = written(replace(report(), run=RUN), tmp_path / "out")
    assert wrong(data) == []
    SPOILT[at](data)
    assert wrong(data) == [at]


def test_reports_of_every_kind_are_of_the_schema(tmp_path: Path) -> None:
    nan = float("nan")
    odd = replace(comparison(after=None), before=replace(comparison().before, severity=nan, low=nan, high=float("inf")))
    for i, given in enumerate((report(), evil_report(), report(odd, examples={}))):
        assert wrong(written(given, tmp_path / str(i))) == []


def test_the_time_is_kept_and_makes_no_difference(tmp_path: Path) -> None:
    given = replace(report(), run=RUN)
    assert written(given, tmp_path / "out") == written(report(), tmp_path / "other")
    assert json.loads((tmp_path / "out" / bundle.RUN).read_text()) == RUN
    back = bundle.read(tmp_path / "out")
    assert back.run == RUN
    assert back == report()
