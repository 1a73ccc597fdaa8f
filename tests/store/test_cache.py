from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trueup.errors import BadInput
from trueup.store import sealed
from trueup.store.cache import Memo, cache_folder, kept_folder


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TRUEUP_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    assert not (tmp_path / "own").exists()


@pytest.mark.skipif(os.name != "posix", reason="XDG")
def test_the_cache_folder_is_the_usual_one(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("TRUEUP_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "trueup"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification says: ignore
    assert cache_folder() == tmp_path / ".cache" / "trueup"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache" / "trueup"
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache_folder() == tmp_path / "Library" / "Caches" / "trueup"


ARRAYS = st.dictionaries(
    st.text("abcxyz_ .-", min_size=1, max_size=6).filter(lambda s: not s.endswith(".npy")) | st.just("file"),
    hnp.arrays(
        st.sampled_from(["f4", "f8", "i8", "?", "U3", "f2"]), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)
    ),
    max_size=3,
)


@given(ARRAYS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
def test_what_is_put_comes_back(tmp_path, arrays):
    memo = Memo(tmp_path)
    assert memo.put("key", arrays)
    back = memo.get("key")
    assert back is not None
    assert set(back) == set(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)


def test_keys_do_not_mix_and_absent_is_none(tmp_path):
    memo = Memo(tmp_path / "new")
    assert memo.get("a/../b") is None
    memo.put("a/../b", {"x": np.arange(3)})
    memo.put("c", {"x": np.arange(4)})
    assert len((memo.get("a/../b") or {})["x"]) == 3
    assert len(list((tmp_path / "new").iterdir())) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new"]


def one_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


@pytest.mark.parametrize("spoil", [b"", b"not kept", b"PK\x03\x04", "cut", "more", "pickle"])
def test_a_spoilt_file_is_absent_and_removed(tmp_path, spoil):
    memo = Memo(tmp_path)
    memo.put("k", {"x": np.arange(1000)})
    file = one_file(tmp_path)
    if spoil == "pickle":
        with sealed.new_file(file, "k") as f:
            f.write(b'["x"]\n')
            np.lib.format.write_array(f, np.array([{"run": "me"}], dtype=object), allow_pickle=True)
    else:
        whole = file.read_bytes()
        file.write_bytes({"cut": whole[:-1], "more": whole + b"0"}.get(spoil, spoil))
    assert memo.get("k") is None
    assert list(tmp_path.iterdir()) == []
    assert memo.put("k", {"x": np.arange(2)})
    assert memo.get("k") is not None


def test_every_turned_bit_is_seen(tmp_path):
    memo = Memo(tmp_path)
    memo.put("k", {"rows": np.arange(6, dtype=np.float32).reshape(3, 2), "label": np.arange(3, dtype=np.int8)})
    file = one_file(tmp_path)
    whole = file.read_bytes()
    assert set(memo.get("k") or {}) == {"rows", "label"}, "the control"
    for at in range(8 * len(whole)):
        file.write_bytes(whole[: at // 8] + bytes([whole[at // 8] ^ 1 << at % 8]) + whole[at // 8 + 1 :])
        assert memo.get("k") is None, at


def test_what_was_kept_under_another_key_is_not_taken(tmp_path):
    memo = Memo(tmp_path)
    memo.put("a", {"x": np.arange(3)})
    one = one_file(tmp_path)
    memo.put("b", {"x": np.arange(3) + 1})
    (other,) = set(tmp_path.iterdir()) - {one}
    other.write_bytes(one.read_bytes())
    assert memo.get("b") is None
    assert (memo.get("a") or {})["x"].tolist() == [0, 1, 2], "the control"


def test_objects_are_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(TypeError, match="'x' holds Python objects"):
        Memo(tmp_path).put("k", {"x": np.array([{}], dtype=object)})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_only_costs_time(tmp_path):
    (tmp_path / "f").write_text("")
    memo = Memo(tmp_path / "f" / "memo")
    assert memo.put("k", {"x": np.arange(2)}) is False
    assert memo.get("k") is None


def test_the_folder_of_who_was_quicker_is_taken(tmp_path):
    """Two processes that make one model at first use, as test runners and job arrays do."""
    folder, made = tmp_path / "model", []

    def make(new: Path, who: str = "me") -> None:
        if who == "me":
            kept_folder(folder, lambda theirs: make(theirs, "they"), "it")
        made.append(who)
        (new / "weights").write_text(who)

    assert kept_folder(folder, make, "it") == folder
    assert (folder / "weights").read_text() == "they"
    assert made == ["they", "me"]
    (folder / "weights").write_text("spoilt")
    made.clear()
    kept_folder(folder, make, "it")
    assert (folder / "weights").read_text() == "they", "also where both make it again"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]

    def refuse(new: Path) -> None:
        raise BadInput("a reason")

    with pytest.raises(BadInput, match="a reason"):  # the control
        kept_folder(tmp_path / "other", refuse, "it")
