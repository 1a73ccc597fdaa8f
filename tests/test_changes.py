"""Two checks side by side: the fault's own paired differences on the same texts, independent ones on others."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

import trueup
from trueup import cli
from trueup.errors import BadInput
from trueup.faults.fault import Comparison, Finding
from trueup.faults.overconfidence.planted import planted
from trueup.report import bundle
from trueup.report.bundle import Report
from trueup.store.atomic import new_folder
from trueup.story import _since

FAULT = trueup.Overconfidence(resamples=50)


def a_report(finding: Finding, data: str = "a", seed: int = 3) -> Report:
    provenance = {"data fingerprint": data, "examples": "all", "seed": seed}
    return Report("A check", {"faults": ["overconfidence"]}, (Comparison(finding, None, ""),), {}, provenance)


@pytest.fixture(scope="module")
def found() -> dict[str, Finding]:
    """The planted model and the healthy one, on the texts of the planted case."""
    subject, corpus = planted("planted")
    healthy, _ = planted("healthy")
    found = {}
    for case, model in {"planted": subject, "healthy": healthy}.items():
        audited = FAULT.prepared(model, corpus, seed=3).audit(model, corpus.part("test"), seed=3)
        knobs = {k: getattr(FAULT, k) for k in FAULT.knobs()}
        found[case] = replace(audited, provenance={**audited.provenance, "knobs": knobs})
    return found


def test_on_the_same_texts_it_is_the_faults_own_comparison(found) -> None:
    [change] = trueup.compare(a_report(found["planted"]), a_report(found["healthy"]))
    assert change.paired
    assert change.differences == FAULT.compare(found["planted"], found["healthy"], seed=3)
    assert change.word == ("better" if change.differences["severity"].high < 0 else "no clear change")
    [back] = trueup.compare(a_report(found["healthy"]), a_report(found["planted"]))
    assert back.differences["severity"].value == pytest.approx(-change.differences["severity"].value)
    [same] = trueup.compare(a_report(found["planted"]), a_report(found["planted"]))
    assert (same.word, same.differences["severity"].value, same.settings) == ("same", 0, {})


def test_severities_of_two_columns_are_two_quantities(found) -> None:
    site, author = (replace(found["planted"], details={"attribute": a}) for a in ("site", "the author"))
    assert trueup.compare(a_report(site), a_report(site))[0].word == "same"
    with pytest.raises(
        BadInput, match=r"on the column 'site', and the second on 'the author'.*overconfidence.attribute=site"
    ):
        trueup.compare(a_report(site), a_report(author))
    assert _since(a_report(site), a_report(author))["changes"] == []
    assert len(_since(a_report(site), a_report(site))["changes"]) == 1


def test_severities_at_two_couplings_are_two_quantities(found) -> None:
    three, five, near = (
        replace(found["planted"], details={"attribute": "site", "strength": s}) for s in (3.0, 5.0, 3.001)
    )
    assert trueup.compare(a_report(three), a_report(near))[0].word == "same"
    with pytest.raises(BadInput, match=r"at a coupling of 3, and the second at 5.*overconfidence.coupling=3"):
        trueup.compare(a_report(three), a_report(five))


def test_settings_that_differ_are_told(found, tmp_path, capsys) -> None:
    other = replace(
        found["planted"],
        provenance={**found["planted"].provenance, "knobs": {**found["planted"].provenance["knobs"], "folds": 7}},
    )
    [change] = trueup.compare(a_report(found["planted"]), a_report(other))
    assert change.settings == {"folds": (FAULT.folds, 7)}
    a, b = saved(a_report(found["planted"]), tmp_path / "a"), saved(a_report(other), tmp_path / "b")
    with pytest.raises(SystemExit):
        cli.main(["compare", str(a), str(b)])
    assert f"overconfidence.folds was {FAULT.folds}, and is 7." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["compare", str(a), str(a)])
    assert "differ in" not in capsys.readouterr().out


def test_options_that_differ_are_told(found, tmp_path, capsys) -> None:
    asked = {"model": "m", "classes": ["neg", "pos"], "max_length": None, "keep": False}
    old = replace(a_report(found["planted"]), job=asked)
    new = replace(old, job=asked | {"classes": ["pos", "neg"], "max_length": 24, "keep": True})
    a, b = saved(old, tmp_path / "a"), saved(new, tmp_path / "b")
    with pytest.raises(SystemExit):
        cli.main(["compare", str(a), str(b)])
    said = capsys.readouterr().out
    assert "The two checks differ in --classes: 'neg,pos' in the first, 'pos,neg' in the second." in said
    assert "The two checks differ in --max-length: not given in the first, '24' in the second." in said
    assert said.count("differ in") == 2
    with pytest.raises(SystemExit):
        cli.main(["compare", str(a), str(a)])  # the control
    assert "differ in" not in capsys.readouterr().out


def test_on_other_texts_the_two_intervals_are_put_together(found) -> None:
    a, b = found["planted"], found["healthy"]
    [change] = trueup.compare(a_report(a, "a"), a_report(b, "b"))
    d = change.differences["severity"]
    assert not change.paired
    assert list(change.differences) == ["severity"]
    assert d.value == pytest.approx(b.severity - a.severity)
    assert d.low == pytest.approx(d.value - math.hypot(b.severity - b.low, a.high - a.severity))
    assert d.high == pytest.approx(d.value + math.hypot(b.high - b.severity, a.severity - a.low))
    assert math.isnan(d.p)


def test_checks_without_a_fault_in_common_are_refused(found) -> None:
    other = replace(found["healthy"], fault="copying")
    with pytest.raises(BadInput, match="the first examined 'overconfidence', the second 'copying'"):
        trueup.compare(a_report(found["planted"]), a_report(other))


def saved(report: Report, folder: Path) -> Path:
    with new_folder(folder) as new:
        bundle.write(report, new)
    return folder


def test_the_command_tells_and_ends_with_1_where_it_got_worse(found, tmp_path, capsys) -> None:
    good, bad = (saved(a_report(found[k]), tmp_path / k) for k in ("healthy", "planted"))
    for old, new, code in ((good, bad, 1), (bad, good, 0), (good, good, 0)):
        with pytest.raises(SystemExit) as end:
            cli.main(["compare", str(old), str(new)])
        said = capsys.readouterr().out
        assert end.value.code == code, said
        assert "the same test texts, paired" in said
        assert ("worse" in said.splitlines()[2]) == bool(code)
    with pytest.raises(SystemExit):
        cli.main(["compare", str(good), str(bad), "--json"])
    [told] = json.loads(capsys.readouterr().out)
    assert (told["fault"], told["word"], told["paired"]) == ("overconfidence", "worse", True)
    elsewhere = saved(a_report(found["planted"], "other texts"), tmp_path / "elsewhere")
    with pytest.raises(SystemExit):
        cli.main(["compare", str(good), str(elsewhere), "--json"])
    [told] = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # nan is no JSON
    assert not told["paired"]
    with pytest.raises(SystemExit) as end:
        cli.main(["compare", str(good), str(tmp_path / "none")])
    assert end.value.code == 2
    assert "none" in capsys.readouterr().err
