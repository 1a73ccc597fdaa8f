"""The parts of a report other than its findings: notes and warnings on model and data, a summary of the rows, and provenance."""

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
"""Most rows of the snapshot's table, and the number of texts that it shows."""
PADDED = 400
"""Test texts on which PEFT's own answers in padded batches are compared with those of one text at a time."""


def provenance(subject: Subject, corpus: Corpus, seed: int, job: Mapping[str, Any] | None) -> dict[str, Any]:
    """The facts that a reader needs to repeat a run and to trust it."""
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
        "model fingerprint": model_fingerprint(subject.model)[:16],  # independent of the model's path
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
    """`Report.data` for a corpus: the number of rows of each class, by attribute and split, and a few test texts."""
    splits, attributes = (
        [s for s in ("train", "calibration", "test") if (corpus.split == s).any()],
        list(corpus.attributes),
    )
    class_names, label = (corpus.classes, corpus.label) if corpus.labels is None else _label_sets(corpus)
    keys = list(zip(label.tolist(), *(corpus.attributes[a].tolist() for a in attributes), strict=True))
    counts = {s: Counter(k for k, split in zip(keys, corpus.split, strict=True) if split == s) for s in splits}
    order = sorted(set(keys), key=lambda k: (k[0], *map(str, k[1:])))
    test = np.flatnonzero(corpus.split == "test").tolist()
    # The first test text of each class comes first, then the others in their order.
    one_of_each_class = list({label[i]: i for i in reversed(test)}.values())[::-1]
    return {
        "splits": splits, "attributes": attributes,
        "rows": [[class_names[k[0]], *map(str, k[1:]), *(counts[s][k] for s in splits)] for k in order[:CELLS]],
        "more": max(0, len(order) - CELLS),
        "samples": [
            {"text": shortened(corpus.text[i], 240), "label": class_names[label[i]]}
            | {a: str(corpus.attributes[a][i]) for a in attributes}
            for i in list(dict.fromkeys([*one_of_each_class, *test]))[:SAMPLES]
        ],
    }  # fmt: skip


def _label_sets(corpus: Corpus) -> tuple[list[str], np.ndarray]:
    """The sets of labels of multi-label texts as strings, the most frequent first, and (n,) the index of each text's set."""
    assert corpus.labels is not None
    sets, place, count = np.unique(corpus.labels, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(-count, kind="stable")
    names = [
        "; ".join(c for c, has in zip(corpus.classes, has_labels, strict=True) if has) or "(none)"
        for has_labels in sets[order]
    ]
    return names, np.argsort(order)[place.ravel()]


def effect_of_adapter(subject: Subject, test: Corpus) -> list[str]:
    """A note on what the adapter changes. Also warns where it changes nothing except for a new classification head."""
    from trueup.run.adapter_effect import effect
    from trueup.run.predict import session

    change = effect(subject, test)
    if change is not None and change.largest == 0:
        session().warn(
            f"The adapter's layers change no logit of {change.texts} test texts: all that it brings is its classification head. If "
            "layers were trained as well, their weights were not loaded, or not saved."
        )
    return [] if change is None else [change.sentence]


def padded(subject: Subject, test: Corpus) -> list[str]:
    """A note with the accuracy of PEFT itself in padded batches, which differs for a soft-prompted decoder classifier."""
    from trueup.run.predict import padded_answers, predict

    plain_classifier = subject.template is None and subject.head is None and not subject.multi_label
    if not (subject.soft_prompted and subject.anatomy.causal and plain_classifier):
        return []
    texts = test.take(np.arange(min(PADDED, len(test))))
    try:
        batched, one_by_one = padded_answers(subject, texts), predict(subject, texts).predicted
    except OutOfMemory:  # the findings do not need it
        return ["What PEFT itself says in padded batches of 8 was not measured: such a batch does not fit in memory."]
    return [
        f"PEFT itself is right on {(batched == texts.label).mean():.1%} of {len(texts)} test texts in padded batches of 8, and on "
        f"{(one_by_one == texts.label).mean():.1%} one text at a time, which is what is examined here. In a batch it reads a "
        "prompt-tuned classifier of this kind at the padding (PEFT issue 764), so a figure from batches is another one."
    ]


def length(subject: Subject, test: Corpus) -> dict[str, str]:
    """The longest input and the number of longer test texts, for the provenance. Warns if more than 5% of the texts are longer."""
    from trueup.run.forward import CUT, cut
    from trueup.run.predict import session
    from trueup.subject.positions import most_tokens

    longer = cut(subject, test)
    if longer.mean() > CUT:
        most = most_tokens(subject.base.config, subject.anatomy, subject.tokenizer, subject.peft_config)
        advice = (
            f"The model takes up to {most}: raise --max-length."
            if most > subject.max_length
            else "The model takes no more."
        )
        session().warn(
            f"{longer.mean():.0%} of the test texts are longer than {subject.max_length} tokens, and the model reads only their "
            f"beginnings. {advice}"
        )
    return {
        "longest input": f"{subject.max_length} tokens",
        "test texts cut there": f"{int(longer.sum())} of {len(test)} ({longer.mean():.1%})",
    }


UNKNOWN = 0.1
"""A report warns if the share of unknown tokens is this or more."""


def unknown(subject: Subject, test: Corpus) -> dict[str, str]:
    """The number of tokens of the test texts that the tokenizer does not know, for the provenance; empty where there are none.

    Warns from 10% on.
    """
    from trueup.run.forward import unknown as counted
    from trueup.run.predict import session

    unknown_tokens, tokens = counted(subject, test)
    if not (total := int(unknown_tokens.sum())):
        return {}
    share = total / tokens.sum()
    if share >= UNKNOWN:
        mostly = int(((2 * unknown_tokens >= tokens) & (unknown_tokens > 0)).sum())
        session().warn(
            f"The tokenizer does not know {share:.0%} of the tokens of the test texts, and half or more of {mostly} of {len(test)} "
            f"texts. It reads all of them as '{subject.tokenizer.unk_token}', so the model cannot tell these words apart. Check "
            "that the text column is the right one, and that model and tokenizer are made for the language of the texts."
        )
    return {"unknown tokens in test texts": f"{total:,} of {int(tokens.sum()):,} ({share:.1%})"}


def order_of_classes(subject: Subject, corpus: Corpus) -> None:
    """Warn where the model is right less often than a constant answer, or clearly less often than with another order of classes."""
    from trueup.prepare import ranked
    from trueup.run.predict import predict, session

    if subject.shots is not None:
        return
    test = corpus.part("test")
    accuracy, counts = float((predict(subject, test).predicted == test.label).mean()), np.bincount(test.label)
    share = counts.max() / len(test)
    # Every audit runs the test texts, but not all run the calibration texts: these are used only if needed.
    better_order = ranked(subject, corpus if accuracy < share else test)[2]
    if accuracy >= share and better_order is None:
        return
    sentences = [f"The model is right on {accuracy:.1%} of the {len(test):,} test texts."]
    if accuracy < share:
        sentences.append(f"Always answering '{test.classes[int(counts.argmax())]}' would be right on {share:.1%}.")
    if better_order is not None:
        sentences.append(
            f"With the classes in the order {listing(better_order[0])} it would be right on {better_order[1]:.1%}: check --classes."
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
        counts, role = test.labels.sum(axis=0), "a label"
    else:
        predicted_classes = set(predict(subject, test).predicted.tolist())
        counts, role = np.bincount(test.label, minlength=len(test.classes)), "the true label"
    never_predicted = [
        f"'{c}', {role} of {n:,} of {len(test):,} test texts"
        for i, (c, n) in enumerate(zip(test.classes, counts.tolist(), strict=True))
        if n and i not in predicted_classes
    ]
    more_labels = f"; and {len(never_predicted) - 12} more labels" if len(never_predicted) > 12 else ""
    return [f"The model never predicts {'; '.join(never_predicted[:12])}{more_labels}."] if never_predicted else []
