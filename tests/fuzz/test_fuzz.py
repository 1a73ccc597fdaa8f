"""Hostile inputs are taken, or refused by a sentence: every one that ever failed, and some that are new each time a target changes.

The long form: ``python tests/fuzz/long.py --inputs 20000``.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

import flips
import fuzzing

from trueup.errors import BadInput

FAILED = json.loads((Path(__file__).parent / "failed.json").read_text())
"""What ever failed, as a target and edits."""
INPUTS = {"adapter": 40, "base": 30, "data": 60, "output": 20, "cache": 150, "sweep": 60}

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes and signals as on POSIX")


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, fuzzing.Target]:
    return fuzzing.targets(tmp_path_factory.mktemp("fuzz") / "made")


@pytest.mark.parametrize("name", fuzzing.NAMES)
def test_what_is_sound_is_taken(targets: dict[str, fuzzing.Target], tmp_path: Path, name: str) -> None:
    """The control of all that follow."""
    assert fuzzing.judge(targets[name], [], tmp_path) == ("took", "")
    assert targets[name].files


@pytest.mark.parametrize("case", FAILED, ids=range(len(FAILED)))
def test_what_ever_failed_does_not_fail_again(targets: dict[str, fuzzing.Target], tmp_path: Path, case: dict) -> None:
    word, said = fuzzing.judge(targets[case["target"]], case["edits"], tmp_path)
    assert word != "wrong", said


@pytest.mark.parametrize("name", fuzzing.NAMES)
def test_new_ones(targets: dict[str, fuzzing.Target], tmp_path: Path, name: str) -> None:
    counts = {"took": 0, "refused": 0}
    for number in range(INPUTS[name]):
        edits = fuzzing.draw(targets[name], number)
        word, said = fuzzing.judge(targets[name], edits, tmp_path)
        assert word != "wrong", (said, json.dumps({"target": name, "edits": edits}))
        counts[word] += 1
    print(f"{name}: {counts}")


def test_a_bit_that_a_disk_has_turned_is_seen(tmp_path: Path) -> None:
    met, missed = flips.run(tmp_path)
    assert met.total() > 10_000
    assert not missed.total()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["query", "LORA", "(a+)+$"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=6,
)  # fmt: skip


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    key=st.sampled_from(["r", "target_modules", "rank_pattern", "bias", "peft_type", "task_type", "modules_to_save"]),
    value=JSON,
)
def test_any_value_of_a_setting(targets, tmp_path: Path, key: str, value: object) -> None:
    word, said = fuzzing.judge(
        targets["adapter"], [["json", "adapter/adapter_config.json", [key], "set", value]], tmp_path
    )
    assert word != "wrong", said


def evil(what: str, outside: Path) -> None:
    if what == "network":
        import socket

        socket.getaddrinfo("localhost", 1)
    elif what == "command":
        subprocess.run(["true"], check=False)
    elif what == "write":
        outside.write_text("x")
    elif what == "import":
        with contextlib.suppress(ImportError):
            __import__(fuzzing.EVIL)
    elif what == "time":
        began = time.process_time()
        while time.process_time() - began < 30:
            pass
    elif what == "wait":
        with open(os.open(outside, os.O_RDONLY)) as f:  # a pipe that nobody writes to
            f.read()
    elif what == "crash":
        raise KeyError("x")
    elif what == "no sentence":
        raise BadInput("wrong")


@pytest.mark.parametrize(
    "what", ["network", "command", "write", "import", "time", "wait", "crash", "no sentence", "nothing"]
)
def test_the_judge_sees_what_it_watches_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(fuzzing, "SECONDS", 0.3)
    monkeypatch.setattr(fuzzing, "WAIT", 3.0)
    sound, outside = tmp_path / "sound", tmp_path / "outside"
    sound.mkdir()
    (sound / "a.txt").write_text("x")
    (tmp_path / "scratch").mkdir()
    if what == "wait":
        os.mkfifo(outside)
    target = fuzzing.Target("evil", sound, lambda folder: evil(what, outside))
    word, said = fuzzing.judge(target, [], tmp_path / "scratch")
    assert (word, bool(said)) == (("took", False) if what == "nothing" else ("wrong", True))


def test_a_pickle_is_told_by_what_it_does(targets: dict[str, fuzzing.Target], tmp_path: Path) -> None:
    """Weights as a pickle that writes a file: refused; the control is unpickled, and seen."""

    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    made = tmp_path / "made"
    made.mkdir()
    for file in (targets["adapter"].folder / "adapter").iterdir():
        if file.name != "adapter_model.safetensors":
            (made / "adapter").mkdir(exist_ok=True)
            (made / "adapter" / file.name).write_bytes(file.read_bytes())
    (made / "adapter" / "adapter_model.bin").write_bytes(pickle.dumps(Payload()))
    (tmp_path / "scratch").mkdir()
    hostile = fuzzing.Target("pickle", made, targets["adapter"].run)
    assert fuzzing.judge(hostile, [], tmp_path / "scratch")[0] == "refused"
    assert not (tmp_path / "ran").exists()
    naive = fuzzing.Target(
        "pickle", made, lambda folder: pickle.loads((folder / "adapter/adapter_model.bin").read_bytes())
    )
    assert fuzzing.judge(naive, [], tmp_path / "scratch")[1].startswith("did open")
