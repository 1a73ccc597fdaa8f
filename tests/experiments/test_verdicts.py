"""The bench of verdicts: it counts right, goes on where it stopped, and in reduced form holds what is required of a verdict."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from scipy.stats import binom

from trueup.errors import BadInput
from trueup.experiments import resumed, verdicts
from trueup.faults.overconfidence import worlds as overconfidence
from trueup.measure.worlds import Judged, Rates, World, rates


def coin(rng, n):
    return rng.normal(size=n)


def judge(x, seed):
    """A verdict on the mean, with the textbook interval."""
    half = 1.96 * x.std() / np.sqrt(len(x))
    low, high = x.mean() - half, x.mean() + half
    return Judged("found" if low > 0 else "clear" if high < 0 else "undecided", {"mean": (low, high), "none": (0, 0)})


WORLD = World("zero", "none", "null", coin, judge, lambda judged: {"mean": 0.0, "none": 0.0})


def test_rates_are_counted():
    got = rates(WORLD, 100, 400, 0)
    assert got.runs == 400 == sum(got.words.values())
    below, inside, above = got.held["mean"]
    assert below + inside + above == 400
    assert 0.92 < got.coverage("mean") < 0.98
    assert above == got.words["found"], "here found is a miss on that side"
    assert "none" not in got.held, "an interval of no width says nothing of its coverage"


def test_runs_add_up_in_whatever_parts_they_are_done():
    assert rates(WORLD, 50, 12, 3) == rates(WORLD, 50, 5, 3) + rates(WORLD, 50, 7, 3, first=5)
    assert len({str(rates(WORLD, 50, 12, seed)) for seed in range(3, 9)}) > 1, "the control: the seed matters"
    assert np.isnan(Rates().rate("found"))


def test_a_killed_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    calls = []

    def counted(world, n, runs, seed, *, first=0):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append((n, runs, first))
        return rates(world, n, runs, seed, first=first)

    monkeypatch.setattr(verdicts, "worlds", lambda: [WORLD])
    monkeypatch.setattr(verdicts, "rates", counted)
    settings = verdicts.Settings(runs=50, sizes=(40, 80))
    with pytest.raises(KeyboardInterrupt):
        verdicts.run(tmp_path / "out", settings, say=lambda s: None)
    assert calls == [(40, 20, 0), (40, 20, 20), (40, 10, 40)]
    calls.clear()
    result = verdicts.run(tmp_path / "out", settings, say=lambda s: None)
    assert calls == [(80, 20, 0), (80, 20, 20), (80, 10, 40)]
    assert [row["runs"] for row in result["rows"]] == [50, 50]
    assert result["rows"][0]["words"] == rates(WORLD, 40, 50, 0).words
    assert (tmp_path / "out" / "verdicts.md").read_text() == verdicts.table(result)


def test_what_other_code_kept_is_drawn_again(tmp_path, monkeypatch):
    """The control: the test above, where the code is the same."""
    monkeypatch.setattr(verdicts, "worlds", lambda: [WORLD])
    killed = iter([True])

    def counted(world, n, runs, seed, *, first=0):
        calls.append(first)
        if first == 20 and next(killed, False):
            raise KeyboardInterrupt
        return rates(world, n, runs, seed, first=first)

    monkeypatch.setattr(verdicts, "rates", counted)
    settings, calls = verdicts.Settings(runs=40, sizes=(40,)), []
    with pytest.raises(KeyboardInterrupt):
        verdicts.run(tmp_path / "out", settings, say=lambda s: None)
    monkeypatch.setattr(resumed, "code_of", lambda *modules: "another")
    result = verdicts.run(tmp_path / "out", settings, say=lambda s: None)
    assert calls == [0, 20, 0, 20]
    assert result["code"] == "another"


def test_a_part_with_a_turned_bit_is_made_again_and_told(tmp_path):
    parts, said = resumed.Parts(tmp_path, "code"), []
    file = parts.file("a part")
    resumed.keep(file, {"runs": 20})
    assert resumed.kept_json(file, said.append) == {"runs": 20}
    whole = file.read_bytes()
    for bit in range(8 * len(whole)):
        spoilt = bytearray(whole)
        spoilt[bit // 8] ^= 1 << bit % 8
        file.write_bytes(spoilt)
        assert resumed.kept_json(file, said.append) is None, bit
    assert len(said) == 8 * len(whole)
    file.write_bytes(whole)
    file.rename(other := parts.file("another part"))
    assert resumed.kept_json(other) is None, "a part under another's name is not that part"
    assert resumed.kept_json(file) is None


def test_the_code_is_known_by_every_file_of_a_package(tmp_path):
    def package(text: str) -> str:
        (tmp_path / "some").mkdir(exist_ok=True)
        (tmp_path / "some" / "inner.py").write_text(text)
        module = ModuleType("some")
        module.__path__ = [str(tmp_path / "some")]
        return resumed.code_of(module)

    assert package("a = 1") == package("a = 1") != package("a = 2")


def test_the_table_says_what_falls_short():
    row = {"fault": "f", "world": "w", "kind": "null", "n": 1000, "runs": 200, "held": {"severity": (20, 150, 30)}}
    bad = verdicts.table({"rows": [row | {"words": {"found": 20, "clear": 100, "undecided": 80}}]})
    assert bad.startswith("Draws of each world: 200 at n = 1,000. The columns")
    assert "| 10% / 50% | 75% |  | found too often at 1,000, severity covered 75% at 1,000 |" in bad
    good = verdicts.table(
        {"rows": [row | {"words": {"found": 2, "clear": 198, "undecided": 0}, "held": {"severity": (4, 190, 6)}}]}
    )
    assert "| f | w | 1% / 99% | 95% |  |  |" in good.splitlines()
    assert good.splitlines()[-1] == (
        "Draws that are *found*, over all worlds without the fault: f 2 of 200 draws, 1.0% [0.3%, 3.6%]."
    )
    blind = {"kind": "fault", "held": {}, "words": {"found": 100, "clear": 0, "undecided": 100}}
    assert "found too rarely at 1,000" in verdicts.table({"rows": [row | blind]})


def test_the_table_has_a_line_for_each_world_and_pools_the_intervals_of_its_sizes():
    row = {
        "fault": "f",
        "world": "w",
        "kind": "fault",
        "runs": 100,
        "words": {"found": 90, "clear": 0, "undecided": 10},
    }
    sizes = {60: (50, 50, 0), 200: (2, 96, 2), 1000: (4, 94, 2)}
    lines = verdicts.table(
        {"rows": [row | {"n": n, "held": {"severity": h, "floor": h, "gap": (0, 100, 0)}} for n, h in sizes.items()]}
    ).splitlines()
    assert lines[0].startswith("Draws of each world: 100 at n = 60, 100 at n = 200, 100 at n = 1,000. ")
    assert lines[-3] == "| f | w (fault) | 90% / 0% | 90% / 0% | 90% / 0% | 95% | 95% to 100% |  |"
    assert lines[-5].startswith("| fault | world | n = 60 | n = 200 | n = 1,000 |")


def test_no_runs_are_refused():
    with pytest.raises(BadInput, match="--runs 1 or more"):
        verdicts.Settings(runs=0)


def test_every_faults_worlds_are_found():
    found = verdicts.worlds()
    assert {w.name for w in overconfidence.WORLDS} <= {w.name for w in found if w.fault.startswith("overconfidence")}
    assert len({(w.fault, w.name) for w in found}) == len(found)
    assert {w.kind for w in found} == {"null", "fault"}


# The reduced form: all worlds of a kind together, with limits that a verdict as required breaks once in two hundred times.


@pytest.fixture(scope="module")
def reduced():
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(overconfidence, "RESAMPLES", 150)
    total: dict[tuple[str, int], Rates] = {}
    for world in overconfidence.WORLDS:
        n, runs = (250, 8) if world.kind == "null" else (1000, 4)
        got = rates(world, n, runs, 1)
        total[world.kind, n] = total.get((world.kind, n), Rates()) + got
    monkeypatch.undo()
    return total


def test_nothing_is_found_where_nothing_is(reduced):
    got = reduced["null", 250]
    assert got.words["found"] <= binom.ppf(0.995, got.runs, 0.025)
    assert got.words["clear"] > got.runs / 3, "the control: a verdict that says nothing would never be wrong"


def test_what_is_there_is_found(reduced):
    got = reduced["fault", 1000]
    assert got.words["found"] >= binom.ppf(0.005, got.runs, 0.8)
    assert got.words["clear"] <= 1


def test_intervals_hold_the_truth_as_often_as_they_say(reduced):
    """Between 92 and 98%, within binomial limits for a set of intervals of which several come from one draw."""
    for got in reduced.values():
        for key, (below, inside, above) in got.held.items():
            n = below + inside + above
            assert inside >= binom.ppf(0.001, n, 0.92), (key, got.coverage(key))
