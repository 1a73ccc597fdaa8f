"""The bench of speed: equal first, relative to the largest number, and no ratio of things that differ."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from trueup.cli.bench import SpeedCase
from trueup.errors import BadInput
from trueup.experiments import speed


def test_a_difference_is_relative_to_the_largest_number():
    assert speed.apart([1.0, 1000.0], [1.0, 1001.0]) == pytest.approx(1 / 1001)
    assert speed.apart(np.float32([1e-9, 2e-9]), np.float32([1e-9, 1e-9])) == pytest.approx(1.0), "small is not equal"
    assert speed.apart([0.0], [0.0]) == 0


def test_the_grid_of_heads_is_equal_and_is_told_as_such():
    [row] = speed.heads(n=400, d=6, classes=3)
    assert row.equal
    assert 0 < row.difference <= row.bound
    assert row.usual_seconds > 0
    assert row.our_seconds > 0


def test_what_neither_has_a_number_for_is_the_same():
    nan = math.nan
    assert speed.apart([nan, 2.0], [nan, 2.0]) == 0
    assert speed.apart([nan, 2.1], [nan, 2.0]) == pytest.approx(0.05)
    for one in (([nan, 2.0], [1.0, 2.0]), ([1.0, 2.0], [nan, 2.0])):
        assert not speed.Row("a", "b", 1.0, "c", 1.0, speed.apart(*one)).equal


def test_what_differs_has_no_ratio(tmp_path, monkeypatch):
    def cases(difference):
        def one():
            yield speed.Row("a sum", "one by one", 10.0, "at once", 0.01, difference, note="as it was", our_mb=3.0)

        return {"sum": (one,), "other": (one,)}

    monkeypatch.setattr(speed, "CASES", cases(1e-9))
    said = []
    got = speed.run(tmp_path / "good", speed.Settings(("sum",)), say=said.append)
    assert speed.failed(got) == []
    assert said == ["sum: a sum: one by one 10 s, at once 10 ms: 1e+03 x"]
    assert "| a sum | one by one: 10 s | at once: 10 ms, 3 MB | 1e+03 x | 1e-09; as it was |" in speed.table(got)
    assert json.loads((tmp_path / "good" / "speed.json").read_text())["rows"] == json.loads(
        json.dumps(got["rows"]).replace("NaN", "null")
    )

    for wrong in (1e-3, math.inf):
        monkeypatch.setattr(speed, "CASES", cases(wrong))
        got = speed.run(tmp_path / f"bad {wrong}", speed.Settings(), say=said.append)
        assert speed.failed(got) == ["a sum", "a sum"]
        assert "1e+03 x" not in speed.table(got)
        assert "none: the results differ" in speed.table(got)


def test_a_part_of_a_case_that_is_done_is_kept(tmp_path, monkeypatch):
    done = []

    def one():
        done.append(1)
        yield speed.Row("a", "b", 1.0, "c", 1.0, 0.0)

    def broken():
        raise KeyboardInterrupt

    monkeypatch.setattr(speed, "CASES", {"one": (one, broken)})
    with pytest.raises(KeyboardInterrupt):
        speed.run(tmp_path / "out", speed.Settings(), say=lambda s: None)
    monkeypatch.setattr(speed, "CASES", {"one": (one, one)})
    assert len(speed.run(tmp_path / "out", speed.Settings(), say=lambda s: None)["rows"]) == 2
    assert len(done) == 2, "the first was not measured again"


def test_no_such_case():
    with pytest.raises(BadInput, match=r"There is no case 'head'\. Did you mean 'heads'\?"):
        speed.Settings(("head",))


def test_a_package_that_is_not_installed_is_said_and_fails_nothing(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(speed, "installed", lambda package: False)
    monkeypatch.setattr(speed, "CASES", {"laplace": (lambda: speed.laplace(n=60, d=4, priors=(1.0,)),)})
    said: list[str] = []
    got = speed.run(tmp_path / "out", speed.Settings(), say=said.append)
    assert speed.failed(got) == []
    assert "laplace-torch is not installed" in said[0]
    assert "| laplace-torch is not installed | its posterior in closed form: " in speed.table(got)


def test_the_command_line_names_every_case() -> None:
    assert [c.value for c in SpeedCase] == list(speed.CASES)
