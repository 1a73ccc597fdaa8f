"""YAML by the rules of 1.2, with the lines of everything, and sentences for what is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from trueup.errors import BadInput
from trueup.sweeps.lines import read


def plain(folder: Path, text: str):
    (folder / "x.yaml").write_text(text, encoding="utf-8")
    return read(folder / "x.yaml").plain()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("2", 2), ("-0.5", -0.5), (".5", 0.5), ("1.", 1.0), ("1E+2", 100.0), ("010", 10), ("no", "no"),
        ("on", "on"), ("yes", "yes"), ("true", True), ("False", False), ("null", None), ("~", None), ("1_000", "1_000"),
        ("0x1f", "0x1f"), ("12:30", "12:30"), ("2026-11-30", "2026-11-30"), ("'2'", "2"), ("1e-3x", "1e-3x"),
        ("[1, [a, no]]", [1, ["a", "no"]]), ('"a\\nb"', "a\nb"),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(tmp_path, text, value):
    got = plain(tmp_path, f"x: {text}")["x"]
    assert got == value
    assert type(got) is type(value)


def test_everything_knows_its_line(tmp_path):
    (tmp_path / "x.yaml").write_text("a: 1\nb:\n  - 2\n  - c: 3\n", encoding="utf-8")
    root = read(tmp_path / "x.yaml")
    assert (root.value["a"].line, root.value["b"].value[0].line, root.value["b"].value[1].value["c"].line) == (1, 3, 4)
    assert root.value["b"].value[0].where == f"{tmp_path / 'x.yaml'}, line 3"


def test_merges_and_aliases_are_read(tmp_path):
    assert plain(tmp_path, "a: &x {m: 1, n: 2}\nb: {<<: *x, n: 3}\nc: *x\n") == {
        "a": {"m": 1, "n": 2}, "b": {"m": 1, "n": 3}, "c": {"m": 1, "n": 2},
    }  # fmt: skip


def test_json_is_yaml(tmp_path):
    assert plain(tmp_path, '{"a": [1, 2.5, "x", true, null]}') == {"a": [1, 2.5, "x", True, None]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: 'a' stands here and in line 1. Keep one."),
        ("a: [1\nb: 2\n", "line 2: this is no YAML"),
        ("a:\n\t- 1\n", "line 2: this is no YAML"),
        ("", "is empty"),
        ("# only words\n", "is empty"),
        ("? [a]\n: 1\n", "a key is a word"),
        ("a: &x [*x]\n", "holds itself through an alias"),
        ("a: !!python/object/apply:os.system [ls]\n", "has no place in a sweep"),
        ("a: {<<: 3}\n", "'<<' merges mappings"),
        ("a: [!!bool x]\n", "cannot be read"),
        ("a: !!binary aGVsbG8=\n", "is no word or number"),
        ("a: \x07\n", "this is no YAML"),
        (
            "a: &a [x]\n"
            + "".join(f"{c}: &{c} [{', '.join(['*' + p] * 99)}]\n" for p, c in zip("abcd", "bcde", strict=True)),
            "more than 1,000,000 values",
        ),
        ("a: !mine 3\n", "the tag '!mine' has no place in a sweep"),
        ("a: 1\n---\na: 2\n", "this is no YAML"),
        ("[" * 3000, "nested too deeply"),
    ],
)
def test_what_is_no_yaml_is_a_sentence(tmp_path, text, said):
    with pytest.raises(BadInput) as e:
        plain(tmp_path, text)
    assert said in str(e.value)
    assert "\n" not in str(e.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(BadInput, match=r"There is no file .*none.yaml'\. Check the path"):
        read(tmp_path / "none.yaml")
    (tmp_path / "night.yaml").write_text("steps: check")
    (tmp_path / "night.txt").write_text("no sweep")
    for slip in ("night.yml", "nigth.yaml"):
        with pytest.raises(BadInput, match=r"Did you mean 'night\.yaml'"):
            read(tmp_path / slip)
    (tmp_path / "x").write_bytes(b"a: \xff\xfe")
    with pytest.raises(BadInput, match="not UTF-8"):
        read(tmp_path / "x")
    with pytest.raises(BadInput, match="cannot be read"):
        read(tmp_path)
