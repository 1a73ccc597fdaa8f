"""Methods compared on test examples, in the files and on the page."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from report_cases import EVIL, comparison, report

from trueup.errors import BadInput
from trueup.faults.fault import Difference, Method
from trueup.report import bundle
from trueup.report.html import page
from trueup.store.atomic import new_folder


def method(key: str, **more) -> Method:
    d = Difference(-0.1, -0.2, -0.05, 0.01)
    return replace(Method(key, f"Title of {key}", "arXiv 1", "l = 2", {"severity": 0.21}, {"severity": d}), **more)


@pytest.fixture
def compared():
    behind = {"severity": Difference(0.1, 0.02, 0.2, 0.03)}
    return report(
        comparison(
            after=None, methods=(method("a", chosen=True), method("b", behind=behind, saveable=False), method("c"))
        ),
        examples={},
    )


def test_methods_survive_the_files(compared, tmp_path: Path):
    with new_folder(tmp_path / "out") as folder:
        bundle.write(compared, folder)
    again = bundle.read(tmp_path / "out")
    assert again.comparisons[0].methods == compared.comparisons[0].methods
    assert again == compared


def test_the_page_lists_each_with_its_difference(compared):
    text = page(compared)
    assert "Every method on the test examples" in text
    assert text.count("(chosen by trueup)") == 1
    for key in "abc":
        assert f"Title of {key}" in text
    assert "−0.100" in text
    plain = report(comparison(after=None), examples={})
    assert "Every method on the test examples" not in page(plain), "the control"


def test_an_odd_title_stays_text(compared):
    c = compared.comparisons[0]
    odd = replace(compared, comparisons=(replace(c, methods=(method("a", title=EVIL),)),))
    assert EVIL not in page(odd)


@pytest.mark.parametrize("wrong", [{"values": {"severity": "much"}}, {"title": 3}, {"more": 1}], ids=str)
def test_a_wrong_method_is_damage(compared, wrong):
    data = asdict(compared.comparisons[0].methods[0]) | wrong
    with pytest.raises((BadInput, TypeError, ValueError)):
        bundle._method(data)


def test_a_measure_that_could_not_be_had_is_nan(compared, tmp_path: Path):
    c = compared.comparisons[0]
    odd = replace(compared, comparisons=(replace(c, methods=(method("a", values={"severity": math.nan}),)),))
    with new_folder(tmp_path / "out") as folder:
        bundle.write(odd, folder)
    assert math.isnan(bundle.read(tmp_path / "out").comparisons[0].methods[0].values["severity"])
    page(odd)
