"""Real text in which label and group go together as asked."""

from __future__ import annotations

import numpy as np
import pytest

from trueup.corpus import confounded
from trueup.corpus.corpus import Corpus
from trueup.corpus.mix import counts
from trueup.corpus.read import read
from trueup.errors import BadInput


@pytest.fixture
def source(monkeypatch):
    """A set that no package ships: 60 texts in the rarest cell of label and group."""
    rng = np.random.default_rng(0)
    y, z = (
        np.repeat([0, 1, 2, 0, 1], [300, 250, 60, 80, 60]),
        np.repeat(["a", "b", "c", "b", "a"], [300, 250, 60, 80, 60]),
    )
    order = rng.permutation(len(y))
    y, z = y[order], z[order]
    corpus = Corpus(
        [f"text {i}" for i in range(len(y))],
        y,
        ("bad", "good", "odd"),
        np.repeat("train", len(y)),
        None,
        {"site": z},
        "x",
    )
    monkeypatch.setattr("trueup.corpus.read.read", lambda *a, **k: corpus)
    monkeypatch.setitem(confounded.SETS, "planted", confounded.Coupled("x", "site", ("a", "b"), "good"))
    return read


@pytest.mark.parametrize(("name", "alpha"), [("planted:3", 3.0), ("planted", 5.0), ("planted:0.5", 0.5)])
def test_label_and_group_go_together_as_asked(source, name, alpha):
    corpus = source(f"confounded:{name}", seed=1)
    assert corpus.classes == ("good", "not good")
    bad, good = counts(corpus, "site", ("a", "b"))[::-1]
    share = good / (good + bad)
    assert share[1] / share[0] == pytest.approx(alpha, rel=0.05)
    assert good.sum() == pytest.approx(bad.sum(), abs=1)
    assert set(corpus.split) == {"train", "calibration", "test"}
    assert any(f"{alpha:g} times as frequent" in n for n in corpus.notes)


def test_seeds_draw_others_and_the_same_again(source):
    texts = [set(source("confounded:planted:3", seed=s).text) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("name", "said"),
    [("valnce:5", "Did you mean 'valence'"), ("valence:five", "no number above 0"), ("valence:0", "no number above 0"),
     ("valence:-1", "no number above 0"), ("valence:inf", "no number above 0")],
)  # fmt: skip
def test_slips_are_sentences(name, said):
    with pytest.raises(BadInput, match=said):
        read(f"confounded:{name}")
