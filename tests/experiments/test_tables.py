"""Tables over seeds: against numbers by hand, and pages that hold the numbers of their result files and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trueup import __version__
from trueup.errors import BadInput
from trueup.experiments.tables import RULE, SHARED, changes, lines, rendered, summary, table, verdicts
from trueup.measure.seeds import over_seeds
from trueup.sweeps.results import read

ROOT = Path(__file__).parents[2]


def row(cell: str, method: str, after: float, *, chosen=False, behind=None, control=False, **more):
    d = after - 0.5
    return {
        "cell": cell, "data": "d", "model": "embedded:m",
        "kind": "method", "measure": "auc", "method": method, "title": method.upper(), "source": "s",
        "value": 0.5, "after": after, "difference": d, "difference_low": d - 0.02, "difference_high": d + 0.02, "better": "higher",
        "behind": behind, "behind_low": None if behind is None else behind - 0.01,
        "behind_high": None if behind is None else behind + 0.01, "chosen": chosen, "control": control, "trueup": __version__,
        "setting": "at 1",
    } | more  # fmt: skip


def rows(rival: float = 0.6):
    """Two seeds in which the rule takes a and b in turn; c is far behind, and x must not help."""
    found = []
    for cell, chosen in (("0", "a"), ("1", "b")):
        own = {"a": 0.8, "b": 0.82}[chosen]
        for method, after in (("a", 0.8), ("b", 0.82), ("c", rival), ("x", 0.9)):
            took = method == chosen
            found.append(
                row(cell, method, after, chosen=took, behind=None if took else after - own, control=method == "x")
            )
    return found


def test_the_rule_stands_first_and_is_the_mean_of_what_it_takes():
    first, *rest = lines(rows(), "auc")
    assert (first.title, first.seeds, first.behind) == (RULE, 2, None)
    assert first.value == pytest.approx(0.81)
    wanted = over_seeds([(0.3, 0.28, 0.32), (0.32, 0.30, 0.34)], 0.3)
    assert (first.gained.low, first.gained.high) == pytest.approx((wanted.low, wanted.high))
    assert [line.title for line in rest] == ["X", "B", "A", "C"], "best first"
    assert rest[2].behind.value == pytest.approx((0.0 + (0.8 - 0.82)) / 2), "0 where the rule takes it"


def test_bold_is_the_rule_only_where_everything_else_lies_behind_it():
    alone = [r for r in rows() if r.get("method") not in ("a", "b") or r["chosen"]]
    for r in alone:
        r |= {"method": "ours", "title": "OURS"} if r.get("chosen") else {}
    assert f"| **{RULE}** |" in table(alone, "auc")
    near = [r | ({"behind_high": 0.2} if r.get("method") == "c" else {}) for r in alone]
    assert f"| {RULE} |" in table(near, "auc"), "the control"
    assert "as it is: 0.500; higher is better" in table(alone, "auc")


def test_without_a_choice_in_every_seed_there_is_no_first_line():
    some = [r | {"chosen": False} if r["cell"] == "1" and r["kind"] == "method" else r for r in rows()]
    found = lines(some, "auc")
    assert RULE not in [line.title for line in found]
    assert all(line.behind is None for line in found)


def test_a_page_is_filled_in_and_says_what_is_missing(tmp_path):
    pq.write_table(pa.Table.from_pylist(rows()), tmp_path / "it.parquet")
    page = "# A\n<!-- results: it auc d -->\nold 0.123\n<!-- end of results -->\nend 0.9\n"
    new = rendered(page, tmp_path)
    assert "0.123" not in new
    assert f"| {RULE} | trueup | 0.810 |" in new
    assert new.startswith("# A\n")
    assert new.endswith("\nend 0.9\n")
    assert rendered(new, tmp_path) == new
    short = rendered(page.replace("it auc d", "it auc all: c"), tmp_path)
    assert "| model and data | seeds | as it is | C | " in short
    assert "| m, d | 2 | 0.500 | +0.100 [" in short
    older = [r | {"trueup": "0.0.1"} if r["kind"] == "method" else r for r in rows()]
    pq.write_table(pa.Table.from_pylist(older), tmp_path / "it.parquet")
    assert "Made by trueup 0.0.1." in rendered(page, tmp_path)
    for slip, said in (
        ("it auc e", "It has 'd'"),
        ("it acu d", "'acu'"),
        ("other auc d", "no result file"),
        ("it auc all: y", "no method 'y'"),
    ):
        with pytest.raises(BadInput, match=said):
            rendered(page.replace("it auc d", slip), tmp_path)


def test_a_method_of_one_run_says_how_it_was_set():
    assert "| C | s |" in table(rows(), "auc")
    assert "| C (at 1) | s |" in table([r for r in rows() if r["cell"] == "0"], "auc")


def test_a_column_is_named_by_the_title_that_all_data_share():
    other = [r | {"data": "e"} for r in rows()]
    assert "| as it is | C |" in summary(rows() + other, "auc", ["c"])
    other = [r | {"title": "another"} if r["method"] == "c" else r for r in other]
    assert "| as it is | c |" in summary(rows() + other, "auc", ["c"])


def test_an_experiment_that_is_no_sweep_gives_its_own_table(tmp_path):
    row = {
        "case": "heads",
        "what": "W",
        "usual": "U",
        "usual_seconds": 6.0,
        "ours": "O",
        "our_seconds": 2.0,
        "difference": 1e-6,
    }
    row |= {"bound": 1e-4, "note": "", "usual_mb": None, "our_mb": None}
    made = {"settings": {}, "rows": [row], "code": "x", "trueup": "0.0.1"}
    page = "A\n<!-- results: speed -->\n9 x\n<!-- end of results -->\nend 9\n"
    with pytest.raises(BadInput, match="tools/render --take speed"):
        rendered(page, tmp_path)
    (tmp_path / "speed.json").write_text(json.dumps(made))
    new = rendered(page, tmp_path)
    assert "| W | U: 6 s | O: 2 s | 3 x |" in new
    assert "9 x" not in new
    assert "Made by trueup 0.0.1." in new
    assert rendered(new, tmp_path) == new
    (tmp_path / "speed.json").write_text(json.dumps(made | {"rows": [row | {"difference": 1e-2}]}))
    assert "none: the results differ" in rendered(page, tmp_path)
    with pytest.raises(BadInput, match="Did you mean 'speed'"):
        rendered(page.replace("speed", "sped"), tmp_path)


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda p: p.name)
def test_pages_hold_the_numbers_of_their_result_files(page):
    """A changed number, here or in the file, fails: `tools/render` puts it right."""
    text = page.read_text(encoding="utf-8")
    assert rendered(text, ROOT / "results") == text


def test_result_files_are_small_and_name_no_machine():
    files = sorted((ROOT / "results").glob("*.parquet"))
    assert files
    for file in files:
        assert file.stat().st_size < 200_000
        found = read(file)
        assert not {"host", "settings"} & set(found[0])
        assert not [r for r in found if str(r["model"]).startswith("/") or str(r["data"]).startswith("/")]
    for file in sorted((ROOT / "results").glob("*.json")):
        assert file.stat().st_size < 200_000
        assert str(Path.home()) not in file.read_text()


def cell(name: str, verdict: str, outcome: str, value: float, after=None, needed=None):
    """What a check leaves of a fault: its severity and its accuracy."""
    of = {"cell": name, "model": "embedded:m", "data": f"embedded:{name}", "fault": "confounding", "verdict": verdict,
          "outcome": outcome, "needed": needed, "threshold": 0.05, "trueup": __version__,
          "tuned": "lora"}  # fmt: skip
    ends = {"after": after, "after_low": after and after - 0.01, "after_high": after and after + 0.01}
    severity = (
        of
        | ends
        | {"kind": "severity", "measure": "severity", "value": value, "low": value - 0.02, "high": value + 0.02}
    )
    moved = {"difference": -0.01, "difference_low": -0.03, "difference_high": 0.01} if after else dict.fromkeys(
        ("difference", "difference_low", "difference_high"))  # fmt: skip
    return [severity, of | moved | {"kind": "measure", "measure": "accuracy", "value": 0.8}]


def test_verdicts_are_told_with_what_the_repair_changed():
    rows = [
        *cell("a", "found", "repaired", 0.2, 0.02), *cell("b", "clear", "clear", 0.0),
        *cell("c", "undecided", "undecided", 0.05, needed=4000), *cell("d", "found", "found", 0.3),
        *cell("e", "found", "trade-off", 0.3),
    ]  # fmt: skip
    lines_of = verdicts(rows, "confounding").splitlines()
    assert lines_of[0] == "The threshold is 0.05."
    assert lines_of[4] == (
        "| m, a | LoRA | found, repaired | 0.200 [0.180, 0.220] | 0.020 [0.010, 0.030] | -0.010 [-0.030, +0.010] |"
    )
    assert lines_of[5] == "| m, b | LoRA | clear | 0.000 [-0.020, 0.020] |  |  |"
    assert lines_of[6].startswith("| m, c | LoRA | undecided (80% power: 4,000 texts) | 0.050")
    assert lines_of[7].startswith("| m, d | LoRA | found, no repair confirmed | 0.300")
    assert lines_of[8].startswith("| m, e | LoRA | found, trade-off | 0.300"), "each repair that helps costs too much"
    run = [
        {**r, "settings": json.dumps({"kind": "prompt"})} for r in rows
    ]  # as a run has it, before its table is taken
    for r in run:
        del r["tuned"]
    assert "| m, a | soft prompt | found" in verdicts(run, "confounding")
    with pytest.raises(BadInput, match="No cell examined 'copying'"):
        verdicts(rows, "copying")


def test_what_a_repair_changed_is_told_over_its_seeds(tmp_path):
    def moved(seed: str, data: str, measure: str, value: float, change: float | None):
        r = row(seed, "", 0.0, data=data, kind="severity" if measure == "severity" else "measure", measure=measure)
        ends = (None,) * 4 if change is None else (value + change, change, change - 0.02, change + 0.02)
        told = dict(zip(("after", "difference", "difference_low", "difference_high"), ends, strict=True))
        return r | told | {"fault": "confounding", "value": value, "title": measure.upper(), "unit": "AUPRC lost"}

    rows = [
        *(moved(s, "d", "severity", 0.3, c) for s, c in (("0", -0.1), ("1", -0.2))),
        *(moved(s, "d", "present", 0.9, c) for s, c in (("0", 0.01), ("1", -0.01))),
        *(moved(s, "e", "severity", 0.2, c) for s, c in (("0", -0.1), ("1", None))),
    ]
    e = over_seeds([(c, c - 0.02, c + 0.02) for c in (-0.1, -0.2)], SHARED)
    assert e.low < -0.5, "two trainings that differ say little, however sure each is of its own texts"
    assert changes(rows, "confounding").splitlines() == [
        "| model and data | measure | seeds | before | after | difference [95%] |", "|---|---|---|---|---|---|",
        f"| m, d | severity: AUPRC lost | 2 | 0.300 | 0.150 | -0.150 [{e.low:+.3f}, {e.high:+.3f}] |",
        changes(rows, "confounding", ["present"]).splitlines()[2],
        "| m, e | severity: AUPRC lost | 1 | 0.200 | 0.100 | -0.100 [-0.120, -0.080] |",
    ]  # fmt: skip
    assert (
        changes(rows, "confounding", ["present"])
        .splitlines()[2]
        .startswith("| m, d | PRESENT | 2 | 0.900 | 0.900 | +0.000 [-")
    )
    with pytest.raises(BadInput, match="No cell repaired 'copying'"):
        changes(rows, "copying")
    with pytest.raises(BadInput, match=r"no measure 'presant' there\. Did you mean 'present'"):
        changes(rows, "confounding", ["presant"])
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    page = "<!-- results: x changes confounding: present -->\nold\n<!-- end of results -->\n"
    got = rendered(page, tmp_path)
    assert changes(rows, "confounding", ["present"]) in got
    assert "old" not in got
