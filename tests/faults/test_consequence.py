"""What a finding means in plain words: no more than its verdict says, and the numbers that the finding holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from trueup.faults.fault import Finding, Measure, each_fault


def measures(**values: float) -> dict[str, Measure]:
    return {k: Measure(v, v - 0.01, v + 0.01, "share", "higher", k) for k, v in values.items()}


MADE: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "confounding": (
        {"measures": measures(auprc_towards=0.89, auprc_against=0.67), "details": {"attribute": "site", "groups": ["a", "b"]}},
        {"measures": measures(auprc_towards=0.87, auprc_against=0.80)},
        ("leans on 'site'", "the two groups of 'site' swapped roles", "would fall from 0.89 to 0.67", "from 0.87 to 0.80"),
    ),
    "overconfidence": (
        {"measures": measures(gap=0.08, accuracy=0.85)}, {"measures": measures(gap=0.01, accuracy=0.85)},
        ("cannot rely on this model's confidence", "it states 93.0% and is right on 85.0%", "the repaired adapter states 86.0%"),
    ),
    "copying": ({}, {"severity": 0.01}, ("copies answers", "30.0% get a wrong answer", "with the repaired adapter 1.0%")),
    "rigidity": (
        {"details": {"verdict": "weights needed"}}, {"severity": 0.01, "details": {"verdict": "weights needed"}},
        ("cannot do this task as well", "30.0 points above that of a prompt", "1.0 points above that of the repaired"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(MADE))
def test_it_says_what_the_verdict_says_and_no_more(name: str) -> None:
    fault = {f.name: f for f in each_fault()}[name]()
    first, then, parts = MADE[name]
    found = Finding(name, "share", 0.3, 0.25, 0.35, 0.05, "x", **first)
    after = replace(found, low=0.0, high=0.02, **then)
    told = fault.consequence(found, after)
    assert all(part in told for part in parts), told
    assert "repaired adapter" not in fault.consequence(found, None)
    assert fault.consequence(found, None).endswith(".")
    unsure = fault.consequence(replace(found, low=0.01), None)
    assert unsure.startswith("It is not settled whether")
    clear = fault.consequence(replace(found, severity=0.01, low=0.0, high=0.02), None)
    assert parts[0] not in clear
    assert not clear.startswith("It is not settled")


def test_every_fault_is_here_and_names_three_measures() -> None:
    assert {f.name for f in each_fault()} == set(MADE)
    assert all(len(f.headline) == 3 for f in each_fault())


def test_of_many_groups_and_a_lean_the_other_way() -> None:
    fault = {f.name: f for f in each_fault()}["confounding"]()
    many = Finding("confounding", "share", 0.3, 0.25, 0.35, 0.05, "x", details={"attribute": "site", "groups": ["a", "b", "c"]},
                   measures=measures(auprc_towards=0.67, auprc_against=0.89))  # fmt: skip
    assert "label and 'site' went together the other way, its quality (AUPRC) would rise from 0.67 to 0.89" in (
        fault.consequence(many, None)
    )
