"""JSON of strangers: what is wrong is said with its place, and nothing looks into it before."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from trueup.errors import BadInput
from trueup.store import schema
from trueup.store.schema import FLAG, TEXT, either, lists, mapping, number, one_of, optional, record, whole

KIND = record(
    {
        "r": whole(1), "alpha": number(), "share": number(0, 1), "on": FLAG, "bias": one_of("none", "all"),
        "names": optional(either(TEXT, lists(TEXT))), "pairs": lists(lists(whole(), 2)), "ranks": optional(mapping(whole(1))),
        "inside": optional(record({"seed": whole()}, needed=("seed",))),
    },
    needed=("r",),
)  # fmt: skip
GOOD = {
    "r": 4, "alpha": 0.5, "share": 1, "on": True, "bias": "all", "names": ["q", "v"], "pairs": [[0, 2]], "ranks": {"q": 2},
    "inside": {"seed": 0}, "of another version": {"anything": [1, {}]},
}  # fmt: skip


def said(path: Path) -> str:
    with pytest.raises(BadInput) as e:
        schema.read(path, KIND, otherwise="Save it again.", correct="Correct '{at}'.")
    return str(e.value)


def test_what_fits_is_read(tmp_path):
    file = tmp_path / "settings.json"
    for text in (json.dumps(GOOD), "\ufeff" + json.dumps(GOOD), '{"r": 1, "names": null, "inside": null}'):
        file.write_text(text, encoding="utf-8")
        assert schema.read(file, KIND, otherwise="", correct="")["r"] == json.loads(text.lstrip("\ufeff"))["r"]


@pytest.mark.parametrize(
    ("change", "at", "words"),
    [
        ({"r": 0}, "r", "holds 0 for 'r', which is a whole number, 1 or above"),
        ({"r": True}, "r", "true"), ({"r": 4.0}, "r", "4.0"), ({"r": 2**31}, "r", "a number of many digits"),
        ({"alpha": "1"}, "alpha", '"1"'), ({"alpha": float("nan")}, "alpha", "NaN"), ({"alpha": 1e300}, "alpha", "1e+300"),
        ({"share": 1.5}, "share", "from 0 to 1"), ({"on": 1}, "on", "true or false"), ({"on": "x"}, "on", "true or false"),
        ({"bias": ["none"]}, "bias", "one of none, all"), ({"names": [[]]}, "names", "text or a list of text or null"),
        ({"names": "\ud800"}, "names", "text"), ({"pairs": [[0, 2], [1]]}, "pairs[1]", "2 times"),
        ({"pairs": [[0, -1]]}, "pairs[0][1]", "-1"), ({"ranks": {"q": "x"}}, "ranks.q", '"x"'),
        ({"inside": {}}, "inside", "with seed"), ({"inside": {"seed": None}}, "inside.seed", "null"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_by_its_place(tmp_path, change: dict[str, Any], at: str, words: str):
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(GOOD | change))
    sentence = said(file)
    assert f"for '{at}', which is " in sentence
    assert words in sentence
    assert sentence.endswith(f"Correct '{at}'.")


def test_a_whole_of_another_kind(tmp_path):
    file = tmp_path / "settings.json"
    file.write_text("[1]")
    assert said(file) == f"'{file}' holds [1] where an object of settings with r belongs. Correct ''."


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{", "not readable JSON"), (b"\xff\xfe{", "not readable JSON"), (b"", "not readable JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deep"), (b'{"r": ' + b"9" * 5000 + b"}", "not readable JSON"),
    ],
)  # fmt: skip
def test_what_is_no_json(tmp_path, raw: bytes, words: str):
    file = tmp_path / "settings.json"
    file.write_bytes(raw)
    assert words in said(file)
    assert said(file).endswith("Save it again.")


def test_what_is_no_plain_file_or_has_no_end(tmp_path, monkeypatch):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "it is no plain file" in said(pipe), "and nobody waits for a writer"
    assert "cannot be read" in said(tmp_path)
    assert "cannot be read (No such file" in said(tmp_path / "none")
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(GOOD))
    schema.read(file, KIND, otherwise="", correct="")  # the control
    monkeypatch.setattr(schema, "MOST_BYTES", 20)
    assert "it is longer than 20 bytes" in said(file)
