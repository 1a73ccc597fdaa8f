"""From a file, a hub id, an embedded name or an object to a Corpus; every failure is a sentence that says where and what next."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from trueup.corpus.adopt import table_of
from trueup.corpus.corpus import SPLITS, Corpus
from trueup.corpus.files import data_file, read_file
from trueup.corpus.hub import PART, hub_table, saved_to_disk
from trueup.corpus.row_clusters import check_leak, cluster_column, clusters, same_key
from trueup.corpus.split import (
    FRACTIONS,
    POOL_FRACTIONS,
    TEST_NAMES,
    check_split,
    complete,
    named_split,
    split_rows,
    stratified_subset,
)
from trueup.corpus.table import Table
from trueup.corpus.values import (
    HIDDEN,
    absent,
    group_column,
    label_column,
    label_lists,
    other_column,
    places,
    text_column,
)
from trueup.errors import BadInput, did_you_mean, listing
from trueup.given import checked
from trueup.store.inputs import path_of

SHIPPED = ("embedded:", "confounded:")
"""How the names of data begin that packages ship."""


@checked
def read(
    source: str | Path | Any,
    *,
    text: str = "text",
    label: str = "label",
    second: str | None = None,
    attributes: str | Sequence[str] = (),
    others: bool = False,
    cluster: str | None = None,
    split: str | None = None,
    held_out: bool = False,
    test: str | Path | Any = None,
    allow_leak: bool = False,
    seed: int = 0,
    fractions: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
    answers: bool = False,
    multi_label: bool = False,
    limit: int | None = None,
    hub_split: str | None = None,
    progress: bool = True,
) -> Corpus:
    """Read labelled texts, check them strictly, and assign every example to a split.

    Args:
        source: a file in csv (with any field separator), tsv, jsonl, json or parquet format, also compressed with gzip; a folder
            written by `save_to_disk` of ``datasets``; or a data set of the Hugging Face Hub, as ``ID`` or ``ID:CONFIG``. Or one of
            the data sets that come with trueup: ``embedded:NAME``; ``confounded:NAME:ALPHA``, a sample of an embedded set in
            which class and group are dependent (`trueup.corpus.confounded`); or ``task:NAME``, pairs for in-context learning
            with their own splits. Or an object: a pandas or polars DataFrame, a ``datasets.Dataset`` or ``DatasetDict``, a list
            of dicts, a dict of columns, or a pair (texts, labels). Messages count the rows of an object from 0, or name them
            by their pandas index.
        text, label, second: the columns with the text, its class, and the second text of a pair.
        attributes: columns that should not matter for the class (site, source, group). For an embedded data set, its own
            column is the default. A row without a value gets the group ``(missing)``. Words that libraries write for a missing
            value, such as ``nan``, count as missing too; `Corpus.notes` then says so.
        others: also read the remaining columns (`Corpus.others`). Numbers are cut into thirds and rare values are merged.
            Columns with one value, or with nearly as many values as rows, are left out.
        cluster: a column that says which rows belong together (patient, author, document). Such rows, and rows with equal
            text, are always in the same split. An interval counts them as one example (`trueup.corpus.row_clusters`).
        split: a column that gives the split of each row: ``train``, ``calibration`` or ``test``, or other usual names of splits
            (`SPLIT_NAMES`). Without it, the rows are split at random by `seed`, stratified by class, with each cluster in one
            split. If the column names only one held-out part, this part is divided into calibration and test. If it names no
            training part, there are no ``train`` examples; an audit does not need them.
        held_out: the model was not trained on any of the rows. Half of them become ``calibration``, half ``test``, and none
            ``train``. With `test`, all rows of `source` become ``calibration``.
        test: a file or object like `source`, with the same columns, for the test examples. The rows of `source` become
            ``train``, and half of the rows of `test` become ``calibration``. If `split` names calibration rows of `source`, or
            with `held_out`, all rows of `test` become ``test``.
        allow_leak: accept given splits that share clusters. Otherwise they are refused.
        fractions: the shares of train, calibration and test. Default: 0.6, 0.2, 0.2; with `answers` 0.4, 0.3, 0.3.
        classes: the class names in the order of the classifier's logits. Default: the names that the source defines (a
            ``ClassLabel``, the categories of an ordered pandas Categorical or of a polars Enum, used or not), otherwise the
            labels found, in natural order (numbers by value).
        answers: the labels are answers to a few-shot prompt and not classes. Any number of different answers is allowed, the
            splits are not stratified by them, and ``train`` is the pool of demonstrations. `trueup.check` and the command line
            set it if there are `shots`.
        multi_label: a text can have any number of labels. ``;`` or ``|`` separates the names in a cell, and an empty cell means no
            label. Lists of names, of class ids, or of yes/no marks are recognised without this option, also as text in a csv
            file (`trueup.corpus.values.label_lists`). Rows are then stratified by their rarest label. `trueup.check` and the
            command line set it from the model's head.
        limit: use a random subset of at most this many examples, stratified by class.
        hub_split: one split of a hub data set (``train``, ``train[:2000]``), whose rows are then split here.
        progress: show a progress bar on standard error while an embedded data set is downloaded.

    Raises:
        BadInput: the source, a column or a value cannot be used. The message names it, its place, and the next step.
        Unavailable: a data set of the hub or an embedded one cannot be downloaded.
    """
    attributes = (attributes,) if isinstance(attributes, str) else tuple(attributes)
    fractions = fractions or (POOL_FRACTIONS if answers else FRACTIONS)
    _check_options(text, label, second, fractions, limit, seed)
    check_held_out(held_out, test is not None, split, answers)
    name = str(source) if isinstance(source, str | Path) else ""
    if name.startswith("task:"):
        given = {"held_out": held_out, "test": test is not None}
        return _task(name, second, attributes, cluster, split, hub_split, classes, seed, limit, progress, given)
    wanted = [c for c in (text, label, second, cluster, split, *attributes) if c]
    table, named, natural, name, source_notes = _found(source, name, wanted, text, label, hub_split, seed, progress)
    if others and table.unread:  # a source of which only the columns that are wanted were read
        every = [*wanted, *table.unread]
        try:
            table, named, natural, name, source_notes = _found(
                source, name, every, text, label, hub_split, seed, progress
            )
        except BadInput as e:  # what nobody asked for must not cost what was
            source_notes = [
                *source_notes,
                f"The columns that were not named cannot be read, so they were left out. {e}",
            ]
    given = split or (None if held_out or test is not None else named)
    own = len(table)
    if test is not None:
        _check_columns(table, [c for c in (text, label, second, cluster, *attributes, given) if c])
        table, tested = _with_test(table, test, [c for c in wanted if c != split], given, text, label)
        name = f"{name} and {tested}"
    attributes = attributes or tuple(a for a in natural if a not in (text, label, second))
    _check_columns(table, [c for c in (text, label, second, cluster, *attributes, given) if c])

    texts = text_column(table, text)
    seconds = text_column(table, second) if second else None
    labels = None
    if not answers and (several := label_lists(table, label, classes, parted=multi_label)) is not None:
        labels, class_names, notes = several
        label_index = np.zeros(len(table), np.int64)
    else:
        label_index, class_names, notes = label_column(table, label, classes, answers=answers)
    notes = (*source_notes, *notes)
    groups: dict[str, np.ndarray] = {}
    for a in attributes:
        groups[a], more = group_column(table, a)
        notes += more
    taken = {text, label, second, cluster, given, PART, *attributes}
    unnamed = {c: g for c in table.columns if others and c not in taken and (g := other_column(table, c)) is not None}
    if cluster:
        together = cluster_column(table, cluster, texts, seconds, (text, label, second))
    else:
        together = clusters(texts, seconds)
    parts = _parts(table, given, own, held_out)
    if parts is not None and not allow_leak:
        check_leak(together, parts, table.source)

    if labels is not None and (not labels.size or (labels == labels[:1]).all()):
        raise BadInput(
            f"{table.source}, column '{label}': all texts have the same labels, so none can be judged. Give others too."
        )
    if labels is None and len(np.unique(label_index)) < 2 and not answers:
        raise BadInput(
            f"{table.source} has only one class in column '{label}': '{class_names[label_index[0]]}'. "
            f"{HIDDEN if class_names[label_index[0]] == '-1' else ''}Give data with at least two classes, or another label column."
        )
    stratum = np.zeros_like(label_index) if answers else label_index if labels is None else _rarest(labels)
    if limit is not None and limit < len(texts):
        kinds = stratum if parts is None else np.array([f"{p} {c}" for p, c in zip(parts, stratum, strict=True)])
        kept = stratified_subset(
            kinds, limit, seed, texts if seconds is None else list(zip(texts, seconds, strict=True))
        )
        texts, together = [texts[i] for i in kept], together[kept]
        seconds = None if seconds is None else [seconds[i] for i in kept]
        label_index, stratum = label_index[kept], stratum[kept]
        labels = None if labels is None else labels[kept]
        groups, unnamed = ({a: v[kept] for a, v in of.items()} for of in (groups, unnamed))
        parts = None if parts is None else parts[kept]
    if parts is None:
        names = SPLITS[1:] if held_out else SPLITS
        shares = (0.5, 0.5) if held_out else fractions
        parts = split_rows(together.tolist(), stratum, seed=seed, fractions=shares, names=names)
        check_split(parts, None if answers else stratum, together, table, names)
    else:
        parts = complete(parts, together.tolist(), stratum, seed, fractions)
    guessed = not answers and classes is None and _guessed(table, label, class_names)
    return Corpus(
        texts,
        label_index,
        class_names,
        parts,
        seconds,
        groups,
        name,
        notes,
        together,
        table.origin,
        guessed,
        others=unnamed,
        labels=labels,
    )


def _guessed(table: Table, label: str, classes: Sequence[str]) -> bool:
    """Whether the order of the classes found in a column says nothing: they are words, and the source states no order of them."""
    stated = label in table.names or label in table.order
    return not (stated or places(classes, len(classes)) is not None)


def _rarest(labels: np.ndarray) -> np.ndarray:
    """(n,) the place of the rarest label that each row of (n, C) has; C where it has none."""
    order = np.argsort(labels.sum(axis=0), kind="stable")
    return np.where(labels.any(axis=1), order[labels[:, order].argmax(axis=1)], labels.shape[1]).astype(np.int64)


def check_source(
    name: str,
    wanted: Sequence[str],
    most: int,
    *,
    texts: Sequence[str] = (),
    split: str | None = None,
    label: str = "",
    classes: Sequence[str] | None = None,
) -> tuple[tuple[str, ...], bool] | None:
    """Raises BadInput where `name` is of no data or, in a file of at most `most` bytes, a column, a text or a label is wrong. A hub
    id passes. Returns the classes in the label column, and whether nothing states their order; None where it was not looked at.

    Args:
        texts: columns of which each row needs a text.
        split: the column of which each row needs the name of a split.
        label, classes: the column of which each row needs one of the classes. Nothing is looked at where a cell is empty or may
            hold several labels: the model decides what that means.
    """
    if name.startswith("task:"):
        from trueup.corpus import tasks

        tasks.find(name)
    elif name.startswith("embedded:"):
        from trueup.corpus import embedded

        embedded.find(name)
    elif name.startswith("confounded:"):
        from trueup.corpus import confounded

        confounded.find(name)
    else:
        folder = path_of(name)
        saved = any((folder / file).is_file() for file in ("dataset_dict.json", "state.json"))
        path = None if saved else data_file(name)
        if path is not None and (stat := path.stat()).st_size <= most:
            stamp = stat.st_size, stat.st_mtime_ns
            asked = None if classes is None else tuple(classes)
            return _looked_at(path, stamp, tuple(wanted), tuple(texts), split, label, asked)
    return None


@lru_cache(maxsize=1000)
def _looked_at(
    path: Path, stamp: tuple[int, int], wanted: tuple[str, ...], texts: tuple[str, ...], split: str | None, label: str,
    classes: tuple[str, ...] | None,
) -> tuple[tuple[str, ...], bool] | None:  # fmt: skip
    """As `check_source`, of one state of a file, which the cells of a sweep share.

    stamp: the file's size, and the time of its last change.
    """
    table = read_file(path, wanted)
    _check_columns(table, wanted)
    for text in texts:
        text_column(table, text)
    if split:
        named_split(table, split)
    if label and not any(absent(v) or re.search(r"[;|\[]", str(v)) for v in table.columns[label]):
        found = label_column(table, label, classes)[1]
        return found, classes is None and _guessed(table, label, found)
    return None


def check_held_out(held_out: bool, test: bool, split: str | None, answers: bool) -> None:
    """Raises BadInput where what says which rows are held out says two things."""
    if held_out and split:
        raise BadInput(
            f"The split column '{split}' says which rows were trained on, and held_out (`--held-out`) says that none was. "
            "Leave one of them out."
        )
    if answers and (held_out or test):
        raise BadInput(
            "held_out and test (`--held-out`, `--test`) say which rows a classifier was not trained on. A few-shot prompt shows "
            "rows as its demonstrations; leave them out, or name the parts with a split column."
        )


def _with_test(
    table: Table, test: Any, wanted: Sequence[str], given: str | None, text: str, label: str
) -> tuple[Table, str]:
    """The rows of `table`, then those of `test`, and what the latter is called. Messages name the file of each row."""
    name = str(test) if isinstance(test, str | Path) else ""
    if isinstance(test, str | Path) and data_file(test) is None:
        raise BadInput(
            f"--test names a file with rows to test on (csv, tsv, json, jsonl, parquet), and '{name}' is none. Correct the path."
        )
    more, parted, _, name, _ = _found(test, name, wanted, text, label, None, 0, False)
    if parted is not None:
        raise BadInput(f"{more.source} has parts of its own; give the one that tests.")
    _check_columns(more, wanted)
    if table.names.get(label) != more.names.get(label) or table.order.get(label) != more.order.get(label):
        raise BadInput(
            f"{table.source} and {more.source} name the classes of '{label}' differently. Give both with the same names in the "
            "same order, or both as plain words."
        )
    its = re.sub("^The ", "the ", more.source)  # within a sentence
    named = [f"{n} of {its}" for n in more.at]
    at = [*table.at, *named] if table.unit == more.unit else [f"{table.unit} {n}" for n in table.at]
    at = at if table.unit == more.unit else [*at, *(f"{more.unit} {n}" for n in named)]
    columns = {c: [*table.columns[c], *more.columns[c]] for c in wanted}
    if given:
        columns[given] = [*table.columns[given], *["test"] * len(more)]
        if any(str(v).strip().lower() in TEST_NAMES for v in table.columns[given] if not absent(v)):
            raise BadInput(
                f"{table.source}, column '{given}': some rows say test, and --test names {more.source} to test on. Leave one of "
                "them out."
            )
    source = f"{table.source} and {its}"
    unit = table.unit if table.unit == more.unit else "row"
    every = list(dict.fromkeys([*table.every, *more.every]))
    return Table(columns, at, unit, source, table.names, every, table.order, table.origin), name


def _parts(table: Table, given: str | None, own: int, held_out: bool) -> np.ndarray | None:
    """(n,) of `SPLITS` where they are given: by a column, or as the first `own` rows and those of a file to test on."""
    if given:
        return named_split(table, given)
    if own == len(table):
        return None
    return np.array(["calibration" if held_out else "train"] * own + ["test"] * (len(table) - own), dtype="U11")


def demonstrations(path: str | Path, *, text: str = "text", label: str = "label") -> list[tuple[str, str]]:
    """Pairs of a text and its answer, in the file's order: the demonstrations of a prompt that stays as it is.

    Raises:
        BadInput: the file, a column or a value cannot be used, or a text stands there twice; the sentence names it and its place.
    """
    found = data_file(path)
    if found is None:
        raise BadInput(
            f"--demos names a file of pairs (csv, tsv, json, jsonl, parquet), and '{path}' is none. Correct the path."
        )
    table = read_file(found, [text, label])
    _check_columns(table, [text, label])
    texts = text_column(table, text)
    index, names, _ = label_column(table, label, None, answers=True)
    first: dict[str, int] = {}
    for i, key in enumerate(same_key(texts, None)):
        if first.setdefault(key, i) != i:
            raise BadInput(
                f"{table.source}, column '{text}': {table.where([first[key], i])} hold the same text, {texts[i][:60]!r}. A "
                "demonstration stands in a prompt once; delete one."
            )
    return [(x, names[y]) for x, y in zip(texts, index, strict=True)]


def _task(
    name: str, second: str | None, attributes: Sequence[str], cluster: str | None, split: str | None, hub_split: str | None,
    classes: Sequence[str] | None, seed: int, limit: int | None, progress: bool, more: Mapping[str, bool],
) -> Corpus:  # fmt: skip
    from trueup.corpus import tasks

    given = {
        "second": second,
        "attributes": attributes,
        "cluster": cluster,
        "split": split,
        "hub_split": hub_split,
        **more,
    }
    if named := [k for k, v in given.items() if v]:
        raise BadInput(
            f"'{name}' is an in-context task, which brings its own queries, answers and splits; leave {listing(named)} out."
        )
    task = tasks.load(name, seed=seed, limit=limit, progress=progress)
    return task if classes is None else task.relabel(classes)


def _found(
    source: Any, name: str, wanted: Sequence[str], text: str, label: str, hub_split: str | None, seed: int, progress: bool
) -> tuple[Table, str | None, tuple[str, ...], str, list[str]]:  # fmt: skip
    """The columns of `source`, the column of its splits and the attributes where it brings them, what it is called, and sentences
    about how it was made."""
    held, shipped = not isinstance(source, str | Path), name.startswith(SHIPPED)
    saved = None if held or shipped else saved_to_disk(path_of(name))
    path = None if held or shipped or saved is not None else data_file(source)
    if hub_split is not None and held:
        raise BadInput(
            f"hub_split names a part of a hub dataset; of an object that you hold, give the part '{hub_split}' itself."
        )
    if hub_split is not None and (shipped or saved is not None or path is not None):
        raise BadInput(f"'{name}' is no hub dataset, so it has no part '{hub_split}'. Leave hub_split out.")
    if shipped:
        from trueup.corpus import confounded, embedded

        source_notes: list[str] = []
        if name.startswith(confounded.PREFIX):
            found, alpha = confounded.find(name)
            natural: tuple[str, ...] = (found.attribute,)
            corpus = read(found.source, attributes=natural, seed=seed, progress=progress)
            columns, source_notes = confounded.columns(found, alpha, corpus, seed)
        else:
            dataset, columns = embedded.load(name, progress=progress)
            natural = dataset.attributes
        return (
            Table(columns, range(1, len(columns["text"]) + 1), "row", f"'{name}'", {}),
            None,
            natural,
            name,
            source_notes,
        )
    if path is not None:
        return read_file(path, wanted), None, (), name, []
    if held or saved is not None:
        table, named, kind = table_of(source if saved is None else saved, wanted, text=text, label=label)
        return table, named, (), name or kind, []
    table, named = hub_table(name, wanted, label, hub_split)
    return table, named, (), name, []


def check_roles(text: str, label: str, second: str | None) -> None:
    """Raises BadInput where one column is named for two things, or none for one."""
    if not text or not label:
        raise BadInput(f"The {'label' if text else 'text'} column has an empty name. Name the column that holds it.")
    if label in (text, second) or text == second:
        twice = text if text == second else label
        raise BadInput(f"The column '{twice}' is named twice. Name different columns for the text and the label.")


def _check_options(
    text: str, label: str, second: str | None, fractions: Sequence[float], limit: int | None, seed: int
) -> None:
    check_roles(text, label, second)
    if len(fractions) != 3 or not all(f > 0 for f in fractions) or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise BadInput(
            f"The fractions {tuple(fractions)} cannot be used; give three numbers above 0 that sum to 1, for train, "
            "calibration and test, such as 0.6 0.2 0.2."
        )
    if limit is not None and limit < 1:
        raise BadInput(f"The limit is {limit}; give the number of rows to keep, 1 or more.")
    if seed < 0:
        raise BadInput(f"The seed is {seed}; give a whole number, 0 or more.")


def _check_columns(table: Table, wanted: Sequence[str]) -> None:
    for name in wanted:
        if name not in table.columns:
            known = [c for c in table.every if c != PART]
            # The name of the option is also its default, so that nobody may have said it.
            option = f" with --{name} (in Python {name}=)" if name in ("text", "label") else ""
            raise BadInput(
                f"{table.source} has no column '{name}'.{did_you_mean(name, known)} "
                f"Its columns are {listing(known)}; name the right one{option}.{_of_sft(name, known)}"
            )


def _of_sft(name: str, known: Sequence[str]) -> str:
    """What to do with rows as supervised fine-tuning takes them, as a sentence with a space before it; else empty."""
    if name not in ("text", "label"):
        return ""
    if {"prompt", "completion"} <= set(known):
        return " Of rows with a prompt and a completion, give --text prompt --label completion."
    if chats := [c for c in known if c in ("messages", "conversations")]:
        return (
            f" trueup does not read chats ('{chats[0]}'): write what the user says into one column, and what the assistant answers "
            "into another."
        )
    return ""
