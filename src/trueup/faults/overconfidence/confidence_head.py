"""The remedy of overconfidence: further rows in a classifier's last layer, and the score that reads a confidence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueup import guard
from trueup.errors import BadInput
from trueup.faults import loading, predict_script
from trueup.faults.card import Card, page
from trueup.faults.fault import Comparison, Remedy
from trueup.faults.overconfidence.abstention import upwards
from trueup.faults.overconfidence.candidates import FAMILIES
from trueup.measure import confidence_scores
from trueup.measure.confidence_scores import score_from_json, score_to_json
from trueup.store import atomic
from trueup.subject import adapter as files
from trueup.subject.beside import CARD, read_card
from trueup.subject.subject import Head, Subject, model_fingerprint


@dataclass(frozen=True, eq=False, repr=False)
class ConfidenceHead(Remedy):
    """The classifier with further rows in its last layer. The first C logits are unchanged, bit for bit.

    Attributes:
        head: (K, d) rows and biases, those of the C classes first.
        score: computes the confidence from the K logits. classes: C names.
        made_for: the fingerprint of the model for which it was made.
        settings, tensors: the configuration and the weights of the PEFT adapter.
        card: the facts that are saved with the adapter: choice, candidates, abstention thresholds, how to load it.
        tokenizer: the tokenizer of the subject, saved with the adapter, if it differs from that of the base; else None.
        guard: the arrays that `trueup.Guard` reads, by name; empty if nothing was learnt.
    """

    head: Head
    score: confidence_scores.Calibrated
    classes: tuple[str, ...]
    made_for: str
    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    card: Mapping[str, Any]
    tokenizer: Any = None
    guard: Mapping[str, np.ndarray] = field(default_factory=dict)

    @contextlib.contextmanager
    def on(self, subject: Subject) -> Iterator[Subject]:
        if model_fingerprint(subject.model) != self.made_for:
            raise BadInput(
                "This confidence head was made for another model or adapter (weights or settings differ). Load the adapter it was "
                "made for, or repair this one: `trueup repair overconfidence MODEL --adapter DIR --data ...`."
            )
        yield replace(subject, head=self.head, confidence=self.score)

    def save(self, folder: Path, comparison: Comparison | None = None) -> Path:
        folder = Path(folder)
        saved = self
        if comparison is not None and not comparison.gained:  # a repair that is saved without a gain has no certificate
            saved = replace(
                self, card={k: v for k, v in self.card.items() if k not in ("promise", "abstention")}, guard={}
            )
        with atomic.new_folder(folder, force=folder.exists()) as new:
            files.write_adapter(new, self.settings, self.tensors, self.tokenizer)
            card = dict(saved.card) | {
                "made_for": self.made_for, "classes": list(self.classes), "rows": len(self.head.weight),
                "score": score_to_json(self.score),
            }  # fmt: skip
            atomic.write_json(new / CARD, card)
            if saved.guard:
                np.savez(new / guard.FILE, allow_pickle=False, **saved.guard)
            atomic.write_text(new / "README.md", page(_card(saved), comparison))
            load, inputs, read = _lines(self)
            text = predict_script.script(self.card, self.classes, load=load, inputs=inputs, read=read)
            atomic.write_text(new / predict_script.NAME, text)
        return folder

    def usage(self, folder: str) -> str:
        return predict_script.usage(folder, self.card)

    def describe(self) -> str:
        return f"{self.card['describe']} {self.card.get('promise', '')}".rstrip()


def read_remedy(folder: Path, subject: Subject) -> ConfidenceHead:
    """The remedy that `ConfidenceHead.save` wrote.

    Raises:
        BadInput: the folder holds no confidence head, or is damaged.
    """
    folder = Path(folder)
    card = read_card(folder)
    if "score" not in card or "made_for" not in card:
        raise BadInput(f"'{folder}' holds no confidence head saved by trueup; give the folder of a saved remedy.")
    atomic.verify(folder)
    settings, tensors = files.read_settings(folder), files.read_tensors(folder)
    choices = {k: v for k, v in card.items() if k not in ("made_for", "classes", "rows", "score")}
    return ConfidenceHead(
        files.head_in(tensors, subject.anatomy),
        score_from_json(card["score"]),
        tuple(card["classes"]),
        card["made_for"],
        settings,
        tensors,
        choices,
        files.brought(subject),
        _arrays_in(folder / guard.FILE),
    )


def _arrays_in(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        return {}
    with np.load(file, allow_pickle=False) as archive:
        return {k: archive[k] for k in archive.files}


def confidence_head(
    subject: Subject, head: Head, score: confidence_scores.Calibrated, card: Mapping[str, Any]
) -> ConfidenceHead:
    """The remedy for `subject` with the last layer `head` (K, d), whose logits `score` reads.

    Raises:
        Unsupported: as `subject.adapter.adapter_with_head`.
    """
    settings, tensors = files.adapter_with_head(subject, head)
    return ConfidenceHead(
        head, score, subject.classes, model_fingerprint(subject.model), settings, tensors, card, files.brought(subject)
    )


def with_rows(subject: Subject, extra: Head | None) -> Head:
    """The last layer with the rows of the classifier and those that a repair adds, on the subject's device."""
    head = subject.own_head()
    if extra is not None:
        head = Head(torch.cat([head.weight, extra.weight]), torch.cat([head.bias, extra.bias]))
    return Head(head.weight.to(subject.device), head.bias.to(subject.device))


def null_remedy(subject: Subject) -> ConfidenceHead:
    """The head as it is with the softmax response. It changes no prediction and no confidence."""
    c, card = len(subject.classes), loading.facts(subject) | {"describe": "Changes nothing."}
    # sigmoid(log-odds of the softmax response) is the response itself, so this score is the identity.
    score = confidence_scores.Calibrated(confidence_scores.ResponseLogOdds(c), 1.0, 0.0)
    return confidence_head(subject, with_rows(subject, None), score, card)


def _lines(remedy: ConfidenceHead) -> tuple[str, str, str]:
    """The code of the card, in three parts: load the model, make the inputs, compute label and confidence."""
    label, confidence = loading.answer(len(remedy.classes), score=remedy.score)
    return (
        loading.load_lines(remedy.card, len(remedy.head.weight), remedy.classes), loading.input_lines(remedy.card),
        f"out = model(**inputs).logits.double()\nlabel, confidence = {label}, {confidence}",
    )  # fmt: skip


def _warning(remedy: ConfidenceHead) -> str:
    """The warning on the card for users of Hugging Face pipelines; empty if there is nothing to warn of."""
    if remedy.card.get("drop in"):
        return ""
    use = f"Use `{predict_script.NAME}` in this folder, or the code below."
    if (extra := len(remedy.head.weight) - len(remedy.classes)) > 0:
        outputs, them = ("an extra output that is", "it") if extra == 1 else (f"{extra} extra outputs that are", "them")
        return (
            f'`pipeline("text-classification")`. The model has {outputs} no class. The pipeline includes {them} '
            f"in its softmax, so its scores are wrong. {use}"
        )
    return (
        '`pipeline("text-classification")` gives the labels, and its scores are the softmax of the model as it was, not this '
        f"confidence. {use}"
    )


def _card(remedy: ConfidenceHead) -> Card:
    c, card = len(remedy.classes), remedy.card
    rows = "\n".join(
        f"| {100 * r['risk']:g}% | "
        + (f"{upwards(r['threshold'])} | {r['coverage']:.0%} |" if r["threshold"] is not None else "none | 0% |")
        for r in card.get("abstention", ())
    )
    sections: list[tuple[str, str]] = []
    if rows:
        sections.append((
            "When to trust it",
            "If the classifier answers only at or above a threshold of this table, the error rate among the answered texts is at "
            f"most the risk in its row. With probability {1 - card['delta']:.0%} over the draw of the calibration data, this is "
            "true for all rows together (Learn-then-Test).\n\n"
            f"| risk | confidence at least | answered |\n|---|---|---|\n{rows}",
        ))  # fmt: skip
    tried = "\n".join(
        f"| {r['title']} | {r['source']} | {r['brier']:.4f} | {r['saved']:+.1%} | {r['auc']:.3f} |"
        for r in sorted(card.get("candidates", ()), key=lambda r: r["brier"])
    )
    if tried:
        sections.append((
            "What was tried",
            "The table has the cross-validated Brier loss after Platt scaling on the calibration examples used for choosing, the "
            "share of the softmax response's Brier loss that the score saves, and the error ROC-AUC within folds. The numbers of "
            "the chosen score at the top of this card are from other examples."
            f"\n\n| score | source | Brier loss | saved | AUC |\n|---|---|---|---|---|\n{tried}\n\n{_differs(card['candidates'])}",
        ))  # fmt: skip
    return Card(
        "overconfidence", "A classifier that says when to trust it", remedy.describe(), str(card["base"]), "text-classification",
        (
            f"It is a drop-in: the {c} logits are the classifier's own at another temperature. Their softmax is the confidence, "
            f'also in `pipeline("text-classification")` ({loading.class_names(remedy.classes)}).'
            if card.get("drop in")
            else f"The first {c} logits are the classifier's own, unchanged ({loading.class_names(remedy.classes)})."
        ),
        "\n".join(_lines(remedy)),
        loading.closing(card), tuple(sections), _warning(remedy), str(card.get("licence") or ""),
    )  # fmt: skip


def _differs(candidates: Sequence[Mapping[str, Any]]) -> str:
    """A list of the differences between the scores that were tried and their sources."""
    tried = {r["key"] for r in candidates}
    return "\n".join(f"- {f.title}: {f.notes}" for f in FAMILIES if f.notes and f.key in tried)
