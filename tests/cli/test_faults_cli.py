"""`trueup faults`: what is examined, what each needs, and every knob with its default and its description."""

from __future__ import annotations

import pytest
from cli_cases import trueup

from trueup.cli.start import filled
from trueup.faults.fault import each_fault


def test_the_list_has_every_fault_its_question_and_its_needs() -> None:
    said = trueup("faults")
    assert said.code == 0
    for cls in each_fault():
        assert f"{cls.name}: {cls.question}" in said.out
        assert cls.needs.replace("`", "") in said.out


@pytest.mark.parametrize("cls", list(each_fault()), ids=lambda c: c.name)
def test_one_fault_has_every_knob_with_its_default_and_what_it_does(cls) -> None:
    said = trueup("faults", cls.name)
    assert said.code == 0
    about = cls.described()
    assert list(about) == list(cls.knobs())
    for knob, value in cls.knobs().items():
        assert f"  {knob} = {value!r}\n    {about[knob].split()[0].replace('``', '')}" in said.out, (
            "a knob is not described"
        )


@pytest.mark.parametrize("before", range(78, 92))
def test_an_option_is_not_divided_at_the_end_of_a_line(before: int) -> None:
    lines = filled("x" * before + " raise --max-length or --max-cost").splitlines()
    assert len(lines) == 2
    assert {"--max-length", "--max-cost"} <= {word for line in lines for word in line.split()}


def test_a_slip_is_a_sentence() -> None:
    said = trueup("faults", "copyng")
    assert said.code == 2
    assert "Did you mean 'copying'?" in said.err
    assert "Traceback" not in said.err
