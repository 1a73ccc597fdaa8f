"""What is uploaded: a saved adapter without paths of this machine, or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trueup.errors import BadInput
from trueup.store import atomic
from trueup.subject.hub import contents, publishable


def adapter(at: Path, **card: object) -> Path:
    base = at / "models" / "bert"
    base.mkdir(parents=True)
    with atomic.new_folder(at / "out" / "copying") as new:
        atomic.write_json(new / "adapter_config.json", {"base_model_name_or_path": str(base), "r": 4, "revision": None})
        atomic.write_json(
            new / "trueup.json", {"base": str(base), "tuned": {"data": "~/d.csv", "also": ["org/set"]}} | card
        )
        atomic.write_json(new / "tokenizer.json", {"vocab": ["/usr/bin", "./", "/root"]})
        atomic.write_text(new / "README.md", f"`BASE` is `{json.dumps(str(base))}`, of {base}.")
        (new / "adapter_model.safetensors").write_bytes(b"weights")
    return at / "out" / "copying"


def test_names_take_the_place_of_paths(tmp_path):
    saved = adapter(tmp_path)
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    with publishable(saved) as folder:
        atomic.verify(folder)
        said = {p.name: p.read_text() for p in folder.iterdir()}
        names = [name for name, _ in contents(folder)]
    assert not folder.exists()
    assert names == sorted(before)
    assert json.loads(said["adapter_config.json"]) == {"base_model_name_or_path": "bert", "r": 4, "revision": None}
    assert json.loads(said["trueup.json"]) == {"base": "bert", "tuned": {"data": "d.csv", "also": ["org/set"]}}
    assert said["README.md"] == '`BASE` is `"bert"`, of bert.'
    assert json.loads(said["tokenizer.json"])["vocab"] == ["/usr/bin", "./", "/root"], "words that only look like paths"
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


@pytest.mark.parametrize("describe", ["hf_" + "a" * 30, "It lies in HERE/notes.", "-----BEGIN RSA PRIVATE KEY-----"])
def test_keys_and_paths_that_are_left_are_refused(tmp_path, monkeypatch, describe: str):
    monkeypatch.chdir(tmp_path)
    saved = adapter(tmp_path, describe=describe.replace("HERE", str(tmp_path)))
    with (
        pytest.raises(BadInput, match=r"trueup.json' holds .*a path of this machine or a key.*Nothing was pushed"),
        publishable(saved),
    ):
        pass
