"""What a report says beside its findings: notes and warnings on model and data, a look at the rows, and how to repeat it."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from trueup.errors import OutOfMemory, listing, shortened
from trueup.job import command_line

if TYPE_CHECKING:
    from trueup.corpus.corpus import Corpus
    from trueup.subject.subject import Subject

CELLS, SAMPLES = 24, 3
"""Rows of the snapshot's table, and texts that it shows."""
PADDED = 400
"""Test texts on which PEFT's own answers in padded batches are told beside those of one text at a time."""


def provenance(subject: Subject, corpus: Corpus, seed: int, job: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a reader needs to repeat and to trust a run."""
    import torch

    from trueup.subject.subject import model_fingerprint
    from trueup.subject.weights import laid

    config = subject.peft_config
    packages = ("trueup", "torch", "transformers", "peft", "scikit-learn", "numpy")
    return {
        "command": command_line(job) if job else None,
        "seed": seed,
        "model": subject.source.base,
        "adapter": subject.source.adapter,
        "adapter kind": subject.source.peft_type,
        "revision": subject.source.revision,
        "tokenizer": subject.source.tokenizer or subject.source.base,
        "adapter settings": {
            k: sorted(set(v))
            if isinstance(v, list | set) and all(isinstance(x, str) for x in v)
            else str(getattr(v, "value", v))
            for k, v in (config.to_dict() if config else {}).items()
            if v not in (None, {}, [])
        },
        "model fingerprint": model_fingerprint(subject.model)[:16],  # the same wherever the model lies
        "data": corpus.name,
        "data fingerprint": corpus.fingerprint[:16],
        "examples": {s: int((corpus.split == s).sum()) for s in ("train", "calibration", "test")},
        "independent clusters of them": {
            s: len(np.unique(corpus.cluster[corpus.split == s])) for s in ("train", "calibration", "test")
        },
        "classes": list(subject.classes),
        "device": str(subject.device),
        "dtype": str(next(subject.model.parameters()).dtype).removeprefix("torch."),
        **laid(subject),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {p: version(p) for p in packages},
    }


def snapshot(corpus: Corpus) -> dict[str, Any]:
    """What `Report.data` says of a corpus: how many rows each class has, by attribute and split, and a few test texts."""
    splits, attributes = (
        [s for s in ("train", "calibration", "test") if (corpus.split == s).any()],
        list(corpus.attributes),
    )
    named, label = (corpus.classes, corpus.label) if corpus.labels is None else _label_sets(corpus)
    keys = list(zip(label.tolist(), *(corpus.attributes[a].tolist() for a in attributes), strict=True))
    counts = {s: Counter(k for k, own in zip(keys, corpus.split, strict=True) if own == s) for s in splits}
    order = sorted(set(keys), key=lambda k: (k[0], *map(str, k[1:])))
    test = np.flatnonzero(corpus.split == "test").tolist()
    # One text of each class first, then whatever comes next.
    first = list({label[i]: i for i in reversed(test)}.values())[::-1]
    return {
        "splits": splits, "attributes": attributes,
        "rows": [[named[k[0]], *map(str, k[1:]), *(counts[s][k] for s in splits)] for k in order[:CELLS]],
        "more": max(0, len(order) - CELLS),
        "samples": [
            {"text": shortened(corpus.text[i], 240), "label": named[label[i]]}
            | {a: str(corpus.attributes[a][i]) for a in attributes}
            for i in list(dict.fromkeys([*first, *test]))[:SAMPLES]
        ],
    }  # fmt: skip


def _label_sets(corpus: Corpus) -> tuple[list[str], np.ndarray]:
    """The sets of labels that multi-label texts have, each in one line, the commonest first; and (n,) which of them a text has."""
    assert corpus.labels is not None
    sets, place, count = np.unique(corpus.labels, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(-count, kind="stable")
    names = ["; ".join(c for c, has in zip(corpus.classes, own, strict=True) if has) or "(none)" for own in sets[order]]
    return names, np.argsort(order)[place.ravel()]


def effect_of_adapter(subject: Subject, test: Corpus) -> list[str]:
    """A note on what the adapter changes. A warning too where that is nothing and the classification head alone is new."""
    from trueup.run.adapter_effect import effect
    from trueup.run.predict import session

    found = effect(subject, test)
    if found is not None and found.largest == 0:
        session().warn(
            f"The adapter's layers change no logit of {found.texts} test texts: all that it brings is its classification head. If "
            "layers were trained as well, their weights were not loaded, or not saved."
        )
    return [] if found is None else [found.sentence]


def padded(subject: Subject, test: Corpus) -> list[str]:
    """Why a user's own figure of a soft-prompted decoder classifier differs: what PEFT says of it in padded batches."""
    from trueup.run.predict import padded_answers, predict

    plain = subject.template is None and subject.head is None and not subject.multi_label
    if not (subject.soft_prompted and subject.anatomy.causal and plain):
        return []
    some = test.take(np.arange(min(PADDED, len(test))))
    try:
        batched, alone = padded_answers(subject, some), predict(subject, some).predicted
    except OutOfMemory:  # the findings do not need it
        return ["What PEFT itself says in padded batches of 8 was not measured: such a batch does not fit in memory."]
    return [
        f"PEFT itself is right on {(batched == some.label).mean():.1%} of {len(some)} test texts in padded batches of 8, and on "
        f"{(alone == some.label).mean():.1%} one text at a time, which is what is examined here. In a batch it reads a "
        "prompt-tuned classifier of this kind at the padding (PEFT issue 764), so a figure from batches is another one."
    ]


def length(subject: Subject, test: Corpus) -> dict[str, str]:
    """How long an input may be, and how many test texts are longer: for the provenance, and from 5% on a warning."""
    from trueup.run.forward import CUT, cut
    from trueup.run.predict import session
    from trueup.subject.positions import most_tokens

    longer = cut(subject, test)
    if longer.mean() > CUT:
        room = most_tokens(subject.base.config, subject.anatomy, subject.tokenizer, subject.peft_config)
        cure = (
            f"The model takes up to {room}: raise --max-length."
            if room > subject.max_length
            else "The model takes no more."
        )
        session().warn(
            f"{longer.mean():.0%} of the test texts are longer than {subject.max_length} tokens, and the model reads only their "
            f"beginnings. {cure}"
        )
    return {
        "longest input": f"{subject.max_length} tokens",
        "test texts cut there": f"{int(longer.sum())} of {len(test)} ({longer.mean():.1%})",
    }


UNKNOWN = 0.1
"""The share of unknown tokens from which a report warns."""


def unknown(subject: Subject, test: Corpus) -> dict[str, str]:
    """How many tokens of the test texts the tokenizer does not know: for the provenance where there are any, and from 10% on a
    warning."""
    from trueup.run.forward import unknown as counted
    from trueup.run.predict import session

    lost, tokens = counted(subject, test)
    if not (total := int(lost.sum())):
        return {}
    share = total / tokens.sum()
    if share >= UNKNOWN:
        mostly = int(((2 * lost >= tokens) & (lost > 0)).sum())
        session().warn(
            f"The tokenizer does not know {share:.0%} of the tokens of the test texts, and half or more of {mostly} of {len(test)} "
            f"texts. It reads all of them as '{subject.tokenizer.unk_token}', so the model cannot tell these words apart. Check "
            "that the text column is the right one, and that model and tokenizer are made for the language of the texts."
        )
    return {"unknown tokens in test texts": f"{total:,} of {int(tokens.sum()):,} ({share:.1%})"}


def order_of_classes(subject: Subject, corpus: Corpus) -> None:
    """A warning where the model is right less often than one answer to all would be, or far and surely less often than with its
    classes in another order."""
    from trueup.prepare import ranked
    from trueup.run.predict import predict, session

    if subject.shots is not None:
        return
    test = corpus.part("test")
    right, counts = float((predict(subject, test).predicted == test.label).mean()), np.bincount(test.label)
    share = counts.max() / len(test)
    # Test texts are passed in any audit; those for calibration are not.
    better = ranked(subject, corpus if right < share else test)[2]
    if right >= share and better is None:
        return
    sentences = [f"The model is right on {right:.1%} of the {len(test):,} test texts."]
    if right < share:
        sentences.append(f"Always answering '{test.classes[int(counts.argmax())]}' would be right on {share:.1%}.")
    if better is not None:
        sentences.append(
            f"With the classes in the order {listing(better[0])} it would be right on {better[1]:.1%}: check --classes."
        )
    else:
        sentences.append(
            "The adapter, the labels or the order of the classes may be wrong: check them before you read a verdict."
        )
    session().warn(" ".join(sentences))


def unused(subject: Subject, test: Corpus) -> list[str]:
    """A note on classes that the test texts have and the model never predicts."""
    from trueup.run.predict import predict

    if subject.shots is not None:
        return []
    if subject.multi_label:
        assert test.labels is not None
        predicted_classes = set(np.flatnonzero((predict(subject, test).logits > 0).any(axis=0)).tolist())
        counts, what = test.labels.sum(axis=0), "a label"
    else:
        predicted_classes = set(predict(subject, test).predicted.tolist())
        counts, what = np.bincount(test.label, minlength=len(test.classes)), "the true label"
    silent = [
        f"'{c}', {what} of {n:,} of {len(test):,} test texts"
        for i, (c, n) in enumerate(zip(test.classes, counts.tolist(), strict=True))
        if n and i not in predicted_classes
    ]
    more = f"; and {len(silent) - 12} more labels" if len(silent) > 12 else ""
    return [f"The model never predicts {'; '.join(silent[:12])}{more}."] if silent else []
