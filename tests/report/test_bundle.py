"""A report survives writing and reading whole; a folder that is not one, or not whole, is refused in a sentence."""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_cases import comparison, finding, heat, report, with_before

from trueup.errors import BadInput
from trueup.report import bundle
from trueup.report.bundle import Report
from trueup.report.html import page
from trueup.store.atomic import MANIFEST, new_folder, sha256_of, write_text


def save(given: Report, target: Path) -> Path:
    with new_folder(target) as folder:
        bundle.write(given, folder)
        write_text(folder / "report.html", page(given))
    return target


def reseal(folder: Path) -> None:
    """Make the manifest agree with the files, as a forger or another program would."""
    files = {
        p.relative_to(folder).as_posix(): {"sha256": sha256_of(p), "size": p.stat().st_size}
        for p in folder.rglob("*")
        if p.is_file() and p.name != MANIFEST
    }
    (folder / MANIFEST).write_text(json.dumps({"files": files}))


def alter(folder: Path, change) -> None:
    data = json.loads((folder / "findings.json").read_text())
    change(data)
    (folder / "findings.json").write_text(json.dumps(data))
    reseal(folder)


@pytest.fixture(scope="module")
def given() -> Report:
    return report(comparison(), comparison("drift", 0.4, None))


@pytest.fixture
def saved(given: Report, tmp_path: Path) -> Path:
    return save(given, tmp_path / "out")


def test_the_folder_holds_the_named_files(saved: Path) -> None:
    names = {p.relative_to(saved).as_posix() for p in saved.rglob("*") if p.is_file()}
    assert names == {
        "findings.json", "job.json", "report.html", MANIFEST,
        "samples/tilt-before.npz", "samples/tilt-after.npz", "samples/drift-before.npz",
    }  # fmt: skip


def test_round_trip_equality(given: Report, saved: Path) -> None:
    back = bundle.read(saved)
    assert back == given
    before, original = back.comparisons[0].before, given.comparisons[0].before
    assert before.found is original.found
    assert before.samples["confidence"].dtype == np.float32
    assert before.samples.keys() == original.samples.keys()
    assert all(np.array_equal(before.samples[k], original.samples[k]) for k in original.samples)
    assert math.isnan(before.details["missing"])
    assert before.details["scores"][1] == math.inf
    assert back.comparisons[1].after is None


def test_what_is_saved_elsewhere_names_no_file_of_the_folder_it_came_from(given: Report, tmp_path: Path) -> None:
    change = {"fault": "tilt", "title": "Tilt", "then": "found", "now": "clear", "paired": True,
              "difference": {"value": -0.1, "low": -0.2, "high": -0.05, "p": 0.01}}  # fmt: skip
    again = replace(given, previous={"page": "previous.html", "changes": [change]})
    assert "previous.html" in page(again), "the control"
    assert "previous.html" not in (again.save(tmp_path / "elsewhere") / "report.html").read_text(encoding="utf-8")


def test_the_page_drawn_again_is_the_same(given: Report, saved: Path) -> None:
    """Order is part of it: measures and columns come back in the order given."""
    assert (saved / "report.html").read_text(encoding="utf-8") == page(given) == page(bundle.read(saved))


def test_equality_sees_each_part(given: Report) -> None:
    first, second = given.comparisons
    samples = dict(first.before.samples)
    samples["confidence"] = samples["confidence"] + np.float32(1e-6)
    others = [
        replace(given, title="another"),
        replace(given, job={}),
        replace(given, notes=[]),
        replace(given, examples={}),
        replace(given, provenance={}),
        replace(given, comparisons=(first,)),
        replace(given, comparisons=(with_before(first, severity=0.3100001), second)),
        replace(given, comparisons=(with_before(first, samples=samples), second)),
        replace(given, comparisons=(replace(first, harm={}), second)),
    ]
    assert replace(given) == given
    assert [o == given for o in others] == [False] * len(others)


def test_writing_twice_gives_the_same_bytes(given: Report, tmp_path: Path) -> None:
    a, b = save(given, tmp_path / "a"), save(given, tmp_path / "b")
    for file in a.rglob("*.*"):
        assert file.read_bytes() == (b / file.relative_to(a)).read_bytes(), file.name


def test_nan_survives_and_the_json_is_strict(tmp_path: Path) -> None:
    nan = float("nan")
    given = report(with_before(comparison(after=None), severity=nan, low=nan, high=math.inf), examples={})
    saved = save(given, tmp_path / "out")
    json.loads((saved / "findings.json").read_text(), parse_constant=lambda c: pytest.fail(f"not JSON: {c}"))
    back = bundle.read(saved)
    assert back == given
    assert math.isnan(back.comparisons[0].before.severity)
    assert back.comparisons[0].before.high == math.inf


def test_odd_text_and_numpy_values_are_written(tmp_path: Path) -> None:
    odd = {
        "surrogate": "a\ud800b",
        "path": Path("x"),
        "int": np.int64(3),
        "array": np.arange(3),
        "set": {2, 1},
        4: (1, 2),
    }
    given = report(provenance=odd)
    back = bundle.read(save(given, tmp_path / "out"))
    assert back == given
    assert back.provenance == {
        "surrogate": "a?b",
        "path": "x",
        "int": 3,
        "array": [0, 1, 2],
        "set": [1, 2],
        "4": [1, 2],
    }


def test_no_folder_and_a_foreign_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no folder"):
        bundle.read(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="not an output of `trueup check`"):
        bundle.read(tmp_path)


@pytest.mark.parametrize("name", ["findings.json", "samples/tilt-after.npz", "report.html", "job.json"])
def test_a_changed_or_missing_file_is_damage(saved: Path, name: str) -> None:
    data = (saved / name).read_bytes()
    (saved / name).write_bytes(data[:-7])
    with pytest.raises(BadInput, match=r"changed .*\.(json|npz|html)"):
        bundle.read(saved)
    if name != "findings.json":
        (saved / name).unlink()
        with pytest.raises(BadInput, match="missing"):
            bundle.read(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("title"),
        lambda d: d.update(title=3),
        lambda d: d.update(format="x"),
        lambda d: d["comparisons"][0]["before"].update(severity="high"),
        lambda d: d["comparisons"][0]["before"].update(surprise=1),
        lambda d: d["comparisons"][0]["before"].update(fault="../../etc"),
        lambda d: d["comparisons"][0]["before"]["measures"]["lean"].update(better="<b>"),
        lambda d: d["comparisons"][0]["before"]["charts"][0]["series"][0].update(x=[1]),
        lambda d: d["comparisons"][0]["differences"]["lean"].update(p=None),
        lambda d: d["comparisons"][0].update(remedy=None),
        lambda d: d["comparisons"][1]["before"].update(samples=1),
        lambda d: d.update(comparisons=7),
    ],
)
def test_a_well_sealed_but_wrong_file_is_refused(saved: Path, change) -> None:
    alter(saved, change)
    with pytest.raises(BadInput, match="damaged"):
        bundle.read(saved)


@pytest.fixture
def mapped(tmp_path: Path) -> Path:
    """A saved report whose first chart is a map of two rows, one cell of it empty."""
    chart = heat({"layer 0": [0.1, -0.2, float("nan")], "layer 1": [0.3, 0.4, 0.5]})
    return save(report(with_before(comparison(after=None), charts=(chart,)), examples={}), tmp_path / "map")


def test_a_map_survives(mapped: Path) -> None:
    chart = bundle.read(mapped).comparisons[0].before.charts[0]
    assert (chart.kind, chart.value_title) == ("heat", "share of the weight")
    assert [s.name for s in chart.series] == ["layer 0", "layer 1"]
    assert math.isnan(chart.series[0].y[2])
    assert page(bundle.read(mapped)) == (mapped / "report.html").read_text(encoding="utf-8")


def _first_chart(data: dict) -> dict:
    return data["comparisons"][0]["before"]["charts"][0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["series"][0].update(x=[0, 1]), "columns of unequal length"),
        (
            lambda c: c["series"][1].update(x=[0, 1], y=[0.3, 0.4]),
            "the rows of the chart 'mass' have different columns",
        ),
        (lambda c: c["series"][1].update(x=[0, 1, 7]), "different columns"),
        (lambda c: c["series"][1].update(y=[0.3, "0.4", 0.5]), "expected a number, got str"),
        (lambda c: c["series"][0].update(name=3), "expected str"),
        (lambda c: c.update(kind="heatmap"), "of kind 'heatmap'"),
        (lambda c: c.update(value_title=None), "expected str"),
        (lambda c: c.update(kind="bar") or c["series"][1].update(y=[0.3, None, 0.5]), "got NoneType"),
    ],
)
def test_a_map_made_wrong_by_hand_is_refused(mapped: Path, change, words: str) -> None:
    alter(mapped, lambda d: change(_first_chart(d)))
    with pytest.raises(BadInput, match=words):
        bundle.read(mapped)


def test_a_map_made_otherwise_by_hand_is_read(mapped: Path) -> None:
    """The same alterations, but right ones: an empty cell written as null, and other names for all columns."""

    def change(data: dict) -> None:
        for row in _first_chart(data)["series"]:
            row["x"] = ["a", "b", "c"]
        _first_chart(data)["series"][1]["y"][0] = None

    alter(mapped, change)
    chart = bundle.read(mapped).comparisons[0].before.charts[0]
    assert chart.series[1].y[0] is None
    assert list(chart.series[0].x) == ["a", "b", "c"]
    assert "no value" in page(bundle.read(mapped))


def test_a_report_with_verdicts_of_another_meaning_is_not_read_as_if_it_were_new(saved: Path) -> None:
    alter(saved, lambda d: d.update(format=bundle.FORMAT - 1))
    with pytest.raises(BadInput, match=r"older trueup \(format \d\).*trueup rerun .* --force"):
        bundle.read(saved)


def test_the_state_stands_in_the_file(saved: Path) -> None:
    told = json.loads((saved / "findings.json").read_text())["comparisons"]
    assert [(c["state"], c["before"]["verdict"]) for c in told] == [
        ("repaired", "found"), ("found", "found"),
    ]  # fmt: skip


def test_a_broken_archive_and_a_pickle_are_refused(saved: Path) -> None:
    target = saved / "samples" / "tilt-before.npz"
    target.write_bytes(b"PK\x03\x04 nothing")
    reseal(saved)
    with pytest.raises(BadInput, match="damaged"):
        bundle.read(saved)
    np.savez(target, confidence=np.array([{"a": 1}], dtype=object))
    reseal(saved)
    with pytest.raises(BadInput, match="damaged"):
        bundle.read(saved)


def test_a_header_that_promises_more_than_there_is_is_not_believed(saved: Path) -> None:
    """Three gigabytes would be made room for before the first byte of them is missed."""
    target = saved / "samples" / "tilt-before.npz"
    bundle.read(saved)  # the control
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (400_000_000,)})
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("confidence.npy", header.getvalue())
    reseal(saved)
    with pytest.raises(BadInput, match=r"'confidence\.npy' is not as long as its header says"):
        bundle.read(saved)


def test_a_pipe_in_place_of_a_file_is_not_waited_for(saved: Path) -> None:
    (saved / "manifest.json").unlink()
    os.mkfifo(saved / "manifest.json")
    with pytest.raises(BadInput, match=r"manifest\.json of .* cannot be read"):
        bundle.read(saved)


def test_a_newer_format_says_so(saved: Path) -> None:
    alter(saved, lambda d: d.update(format=bundle.FORMAT + 1))
    with pytest.raises(BadInput, match="newer trueup"):
        bundle.read(saved)


def test_what_a_report_refuses() -> None:
    with pytest.raises(BadInput, match="twice"):
        report(comparison(), comparison())
    with pytest.raises(BadInput, match="cannot be a fault's name"):
        report(comparison("../x"))
    with pytest.raises(BadInput, match="after"):
        report(replace(comparison(), after=finding("other")))
    with pytest.raises(BadInput, match="not in the report"):
        report(comparison(), examples={"nobody": []})
    with pytest.raises(BadInput, match="at most 200"):
        report(comparison(), examples={"tilt": [{"a": 1.0}] * 201})


def test_what_writing_refuses(tmp_path: Path) -> None:
    objects = with_before(comparison(), samples={"a": np.array([{}], dtype=object)})
    uneven = with_before(comparison(), samples={"a": np.zeros(3), "b": np.zeros(4)})
    for case, words in ((objects, "Python objects"), (uneven, "differ in length")):
        with pytest.raises(BadInput, match=words):
            save(report(case), tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_report_is_printed_in_a_line_for_each_fault_and_found_by_name(given: Report) -> None:
    lines = repr(given).splitlines()
    assert len(lines) == 1 + len(given.comparisons)
    for line, c in zip(lines[1:], given.comparisons, strict=True):
        assert line.startswith(f"  {c.before.fault}: {c.outcome}, severity {c.before.severity:.3f} [")
        assert given[c.before.fault] is c
        assert c.before.fault in given
    assert list(given) == [c.before.fault for c in given.comparisons]
    assert "tlit" not in given
    asked = replace(given, job={**given.job, "faults": ["confounding"]})
    assert "  confounding: not examined" in repr(asked)
    with pytest.raises(BadInput, match=r"no fault 'tlit'\. Did you mean 'tilt'"):
        given["tlit"]
    with pytest.raises(BadInput, match="It was not examined"):
        asked["confounding"]
