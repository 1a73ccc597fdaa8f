"""Shortcuts planted in real text under the embedded encoder: a scout finds them and its column repairs them; where there is none
it names none of them."""

from __future__ import annotations

import numpy as np
import pytest

import trueup
from drawn_weights import move
from trueup.corpus.corpus import Corpus
from trueup.faults.confounding import Confounding
from trueup.faults.confounding.leads import Scouted
from trueup.faults.confounding.scout import scout, with_columns
from trueup.run.heads import warm_start
from trueup.run.predict import Session, within
from trueup.store.cache import Memo
from trueup.subject.new_adapter import Lora, fresh
from trueup.subject.subject import Subject

pytestmark = pytest.mark.slow
SIZES = {"train": 500, "calibration": 400, "test": 400}
RATE = 0.9
"""Of positive texts, the share that has the plant; of negative texts the rest."""
WORD = "seriously"


def drawn(plant: str, seed: int = 0) -> tuple[Corpus, np.ndarray]:
    """Sentences of film reviews, or of products and tweets, and which of them have the plant: label and plant go together. The
    plant ``none`` is a word that goes with no label."""
    rng = np.random.default_rng(seed)
    if plant == "cluster":
        source = trueup.read("embedded:valence", attributes=("domain",), seed=0)
        source = source.take(np.isin(source.attributes["domain"], ("product", "tweet")))
        has = source.attributes["domain"] == "tweet"
    else:
        source = trueup.read("embedded:movie-reviews-short", seed=0)
        length = np.array([len(t.split()) for t in source.text])
        has = length > np.median(length) if plant == "length" else rng.random(len(source)) < 0.5
        if plant == "length":  # short and long ones, none between
            some = (length <= np.quantile(length, 0.3)) | (length >= np.quantile(length, 0.7))
            source, has = source.take(some), has[some]
    label = (source.label == source.classes.index("positive")).astype(np.int64)
    rows, split = [], []
    left = {(y, z): rng.permutation(np.flatnonzero((label == y) & (has == z))).tolist() for y in (0, 1) for z in (0, 1)}
    for part, n in SIZES.items():
        for i in range(n):
            y = i % 2
            rate = 0.5 if plant == "none" else RATE if y else 1 - RATE
            rows.append(left[y, int(rng.random() < rate)].pop())
            split.append(part)
    texts, there = [source.text[i] for i in rows], has[rows]
    if plant in ("word", "none"):
        texts = [f"{WORD} {t}" if z else t for t, z in zip(texts, there, strict=True)]
    return Corpus(texts, label[rows], ("negative", "positive"), np.array(split), name=f"planted {plant}"), there


def examined(plant: str) -> tuple[Subject, Corpus, np.ndarray, Scouted]:
    """A classifier whose last layer is fitted to the planted training texts, and what a scout finds."""
    corpus, there = drawn(plant)
    subject = fresh("embedded:minilm", Lora(), corpus.classes, max_length=24, device="cpu", seed=0)
    move(subject.model, 0.005)  # an adapter that changes nothing is refused
    warm_start(subject, corpus.part("train"))
    return subject, corpus, there, scout(subject, corpus, seed=0)


def agreement(found: Scouted, corpus: Corpus, there: np.ndarray) -> list[float]:
    """Of each named column, the share of test texts on which it agrees with the plant, whatever its groups are called."""
    test = corpus.split == "test"
    shares = []
    for cue in found.columns:
        own = np.unique(cue.of(corpus.take(test)), return_inverse=True)[1] > 0
        share = float((own == there[test]).mean())
        shares.append(max(share, 1 - share))
    return shares


@pytest.mark.parametrize(("plant", "least"), [("word", 0.99), ("length", 0.9), ("cluster", 0.75)])
def test_a_plant_in_real_text_is_found_and_its_column_repairs_it(plant, least, tmp_path):
    with within(Session(Memo(tmp_path))):
        subject, corpus, there, found = examined(plant)
        shares = agreement(found, corpus, there)
        assert shares, found.sentence
        best = int(np.argmax(shares))
        assert shares[best] >= least, list(zip([x.name for x in found.leads], shares, strict=True))
        wanted = with_columns(subject, corpus, [f"scout:{best + 1}"], found)
        report = trueup.check(subject, wanted, Confounding(resamples=200, max_cost=1.0), seed=0)
    (c,) = report.comparisons
    assert c.before.found
    assert c.differences["severity"].high < 0
    lead, d = found.leads[best], c.differences["severity"]
    after = c.after
    assert after is not None
    print(
        f"PLANT {plant}: tried {sum(found.tried.values())}, judged {found.judged}, named {found.named}; scout:{best + 1} "
        f"'{lead.name}' lean {lead.lean:.3f} [{lead.low:.3f}, {lead.high:.3f}], agrees {shares[best]:.3f}, first {shares[0]:.3f} "
        f"'{found.leads[0].name}'; repair {c.before.severity:.3f} -> {after.severity:.3f} [{after.low:.3f}, {after.high:.3f}], "
        f"paired {d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}], accuracy {c.harm['accuracy'].value:+.3f}, {c.outcome}"
    )


def test_a_word_that_goes_with_no_label_is_not_named(tmp_path):
    """The control: the same word in as many texts of either class."""
    with within(Session(Memo(tmp_path))):
        _, corpus, there, found = examined("none")
        assert WORD not in " ".join(x.name for x in found.leads)
        assert max(agreement(found, corpus, there), default=0.5) < 0.75
        print(f"PLANT none: {found.sentence} {[x.name for x in found.leads]}")
