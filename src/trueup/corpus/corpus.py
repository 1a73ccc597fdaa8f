"""The noun Corpus: examples with text, label, attributes and split. No torch, no tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from trueup.corpus.row_clusters import clusters
from trueup.errors import BadInput, did_you_mean, listing

SPLITS = ("train", "calibration", "test")
"""The adapter was tuned on `train`. Repairs may learn and choose on `calibration`. Findings are reported on `test`, and nothing is
ever selected on `test`."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """Labelled examples in a fixed order. A corpus is frozen: every operation returns a new one.

    Attributes:
        text: n strings, none of them empty.
        label: (n,) int64, the index of each text's class in `classes`. All 0 for multi-label data.
        labels: (n, C) bool, the classes of each text in multi-label data, where a text can have any number of them. Otherwise
            None.
        classes: C class names, in the order of the classifier's logits.
        split: (n,) strings: ``train``, ``calibration`` or ``test``.
        second: n strings, the second text of each pair, or None.
        attributes: column name -> (n,) array of strings. These columns should not matter for the class (site, source, group).
        others: the remaining columns of the data, as groups. Only filled if `trueup.read` is asked for them (for `trueup.scout`).
        name: where the data came from, for messages and provenance.
        notes: sentences about how the data were read, for the report.
        cluster: (n,) int64. Rows with the same number are not independent of each other (`trueup.corpus.row_clusters`). Default:
            rows with equal text. A part of a corpus keeps the numbers of the whole corpus.
        origin: for a data set from the hub: its ``id``, ``config``, ``split`` and ``revision``, if known. Otherwise empty.
        guessed: True if the order of `classes` was not given. They are then the labels found in the data, in natural order.
    """

    text: Sequence[str]
    label: np.ndarray
    classes: tuple[str, ...]
    split: np.ndarray
    second: Sequence[str] | None = None
    attributes: Mapping[str, np.ndarray] = field(default_factory=dict)
    others: Mapping[str, np.ndarray] = field(default_factory=dict, kw_only=True)
    name: str = "corpus"
    notes: tuple[str, ...] = ()
    cluster: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    origin: Mapping[str, str] = field(default_factory=dict)
    guessed: bool = False
    labels: np.ndarray | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if len(self.cluster) != len(self.text):
            object.__setattr__(self, "cluster", clusters(self.text, self.second))

    def __len__(self) -> int:
        return len(self.text)

    def __repr__(self) -> str:
        parts = ", ".join(f"{(self.split == s).sum():,} {s}" for s in dict.fromkeys(self.split.tolist()))
        return f"Corpus({self.name!r}, {len(self):,} texts ({parts}), classes {listing(self.classes)})"

    def take(self, index: np.ndarray) -> Corpus:
        """The examples at `index`, in its order. `index` is (k,) int or (n,) bool."""
        index = np.asarray(index)
        if index.dtype == bool:
            index = np.flatnonzero(index)
        return replace(
            self,
            text=[self.text[i] for i in index],
            label=self.label[index],
            labels=None if self.labels is None else self.labels[index],
            split=self.split[index],
            second=None if self.second is None else [self.second[i] for i in index],
            attributes={k: v[index] for k, v in self.attributes.items()},
            others={k: v[index] for k, v in self.others.items()},
            cluster=self.cluster[index],
        )

    def part(self, split: str) -> Corpus:
        """The examples of one split.

        Raises:
            BadInput: `split` is not ``train``, ``calibration`` or ``test``, or has no examples.
        """
        if split not in SPLITS:
            raise BadInput(f"There is no split '{split}'; use one of {listing(SPLITS)}.")
        chosen = self.take(self.split == split)
        if not len(chosen):
            raise BadInput(
                f"'{self.name}' has no {split} examples, and they are needed here. Add some and say '{split}' in the column of "
                "`--split`, or leave `--split` and `--held-out` out to have all rows split by trueup."
            )
        return chosen

    def relabel(self, classes: Sequence[str]) -> Corpus:
        """The same examples, with labels as indices into `classes` (for example in the order of a subject's logits).

        Raises:
            BadInput: a label of an example is not in `classes`.
        """
        classes = tuple(classes)
        has = [(self.label == i) if self.labels is None else self.labels[:, i] for i in range(len(self.classes))]
        unknown = [c for c, rows in zip(self.classes, has, strict=True) if c not in classes and bool(rows.any())]
        if unknown:
            raise BadInput(self._unknown(unknown, classes))
        if self.labels is not None:
            none = np.zeros(len(self), bool)
            has_class = [has[self.classes.index(c)] if c in self.classes else none for c in classes]
            return replace(self, labels=np.stack(has_class, axis=1), classes=classes, guessed=False)
        place = np.array([classes.index(c) if c in classes else -1 for c in self.classes], dtype=np.int64)
        return replace(self, label=place[self.label], classes=classes, guessed=False)

    def of_label(self, place: int) -> Corpus:
        """One label of multi-label data, as two classes: texts without the label, and texts with it.

        Args:
            place: the index of the label in `classes`.
        """
        assert self.labels is not None
        name = self.classes[place]
        return replace(self, label=self.labels[:, place].astype(np.int64), classes=(f"not {name}", name), labels=None)

    def _unknown(self, unknown: Sequence[str], classes: Sequence[str]) -> str:
        found = f"'{self.name}' has labels that the classifier's head does not know: {listing(unknown)}. "
        found += f"The head knows {listing(classes)}. "
        if set(classes) == set(map(str, range(len(classes)))) and len(self.classes) <= len(classes):
            return found + (
                f"It has numbers in place of names: give all {len(classes)} names in the order of its logits (`--classes`, or "
                "`classes=[...]` in Python)."
            )
        if near := [(c, k) for c in unknown for k in classes if c.casefold().strip() == k.casefold().strip()]:
            spellings = listing([f"{c} for {k}" for c, k in near])
            return (
                found + f"Some differ in case or spaces alone ({spellings}): write the data's labels as the head does."
            )
        near = did_you_mean(unknown[0], classes)
        return (
            found + near.lstrip() + " " * bool(near) + "Rename or drop those rows, or use the adapter trained on them."
        )

    @property
    def fingerprint(self) -> str:
        """The sha256 of texts, labels, class names and splits. It is equal exactly if two corpora hold the same examples."""
        h = hashlib.sha256()
        for part in (self.text, self.second or ()):
            for t in part:
                raw = t.encode("utf-8", "surrogatepass")
                h.update(len(raw).to_bytes(8, "little") + raw)
        h.update(np.ascontiguousarray(self.label if self.labels is None else self.labels).tobytes())
        h.update("\0".join([*self.classes, *map(str, self.split)]).encode())
        return h.hexdigest()
