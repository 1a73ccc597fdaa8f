"""Reads a file, a hub id, an embedded name or an object into a Corpus. Every error names the place and the next step."""

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
"""Prefixes of the names of data that packages ship."""


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
        split_column = {"held_out": held_out, "test": test is not None}
        return _task(name, second, attributes, cluster, split, hub_split, classes, seed, limit, progress, split_column)
    wanted = [c for c in (text, label, second, cluster, split, *attributes) if c]
    table, named, default_attributes, name, source_notes = _found(
        source, name, wanted, text, label, hub_split, seed, progress
    )
    if others and table.unread:  # a source of which only the columns that are wanted were read
        all_columns = [*wanted, *table.unread]
        try:
            table, named, default_attributes, name, source_notes = _found(
                source, name, all_columns, text, label, hub_split, seed, progress
            )
        except BadInput as e:  # an error in columns that were not requested must not stop the reading of the others
            source_notes = [
                *source_notes,
                f"The columns that were not named cannot be read, so they were left out. {e}",
            ]
    split_column = split or (None if held_out or test is not None else named)
    rows_of_source = len(table)
    if test is not None:
        _check_columns(table, [c for c in (text, label, second, cluster, *attributes, split_column) if c])
        table, tested = _with_test(table, test, [c for c in wanted if c != split], split_column, text, label)
        name = f"{name} and {tested}"
    attributes = attributes or tuple(a for a in default_attributes if a not in (text, label, second))
    _check_columns(table, [c for c in (text, label, second, cluster, *attributes, split_column) if c])

    texts = text_column(table, text)
    seconds = text_column(table, second) if second else None
    labels = None
    if not answers and (label_matrix := label_lists(table, label, classes, parted=multi_label)) is not None:
        labels, class_names, notes = label_matrix
        label_index = np.zeros(len(table), np.int64)
    else:
        label_index, class_names, notes = label_column(table, label, classes, answers=answers)
    notes = (*source_notes, *notes)
    groups: dict[str, np.ndarray] = {}
    for a in attributes:
        groups[a], more_notes = group_column(table, a)
        notes += more_notes
    used_columns = {text, label, second, cluster, split_column, PART, *attributes}
    unnamed = {
        c: g for c in table.columns if others and c not in used_columns and (g := other_column(table, c)) is not None
    }
    if cluster:
        cluster_of_row = cluster_column(table, cluster, texts, seconds, (text, label, second))
    else:
        cluster_of_row = clusters(texts, seconds)
    parts = _parts(table, split_column, rows_of_source, held_out)
    if parts is not None and not allow_leak:
        check_leak(cluster_of_row, parts, table.source)

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
        stratum_and_split = (
            stratum if parts is None else np.array([f"{p} {c}" for p, c in zip(parts, stratum, strict=True)])
        )
        kept_rows = stratified_subset(
            stratum_and_split, limit, seed, texts if seconds is None else list(zip(texts, seconds, strict=True))
        )
        texts, cluster_of_row = [texts[i] for i in kept_rows], cluster_of_row[kept_rows]
        seconds = None if seconds is None else [seconds[i] for i in kept_rows]
        label_index, stratum = label_index[kept_rows], stratum[kept_rows]
        labels = None if labels is None else labels[kept_rows]
        groups, unnamed = ({a: v[kept_rows] for a, v in of.items()} for of in (groups, unnamed))
        parts = None if parts is None else parts[kept_rows]
    if parts is None:
        names = SPLITS[1:] if held_out else SPLITS
        shares = (0.5, 0.5) if held_out else fractions
        parts = split_rows(cluster_of_row.tolist(), stratum, seed=seed, fractions=shares, names=names)
        check_split(parts, None if answers else stratum, cluster_of_row, table, names)
    else:
        parts = complete(parts, cluster_of_row.tolist(), stratum, seed, fractions)
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
        cluster_of_row,
        table.origin,
        guessed,
        others=unnamed,
        labels=labels,
    )


def _guessed(table: Table, label: str, classes: Sequence[str]) -> bool:
    """Whether the order of the classes found in a column is a guess: they are words, and the source states no order of them."""
    stated = label in table.names or label in table.order
    return not (stated or places(classes, len(classes)) is not None)


def _rarest(labels: np.ndarray) -> np.ndarray:
    """(n,) the index of the rarest label that each row of (n, C) has; C for a row without labels."""
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
    """Check the name of data and, in a file of at most `most` bytes, its columns. A hub id is not checked.

    Returns the classes in the label column, and whether their order is a guess; None where the column was not read. Raises
    BadInput where there are no such data, or a column, a text or a label is wrong.

    Args:
        texts: columns in which each row needs a text.
        split: the column in which each row needs the name of a split.
        label, classes: the column in which each row needs one of the classes. It is not checked where a cell is empty or may
            hold several labels: the meaning of these depends on the model.
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
            class_tuple = None if classes is None else tuple(classes)
            return _looked_at(path, stamp, tuple(wanted), tuple(texts), split, label, class_tuple)
    return None


@lru_cache(maxsize=1000)
def _looked_at(
    path: Path, stamp: tuple[int, int], wanted: tuple[str, ...], texts: tuple[str, ...], split: str | None, label: str,
    classes: tuple[str, ...] | None,
) -> tuple[tuple[str, ...], bool] | None:  # fmt: skip
    """As `check_source`, for one state of a file. The result is cached for the other cells of a sweep.

    stamp: the file's size, and the time of its last change.
    """
    table = read_file(path, wanted)
    _check_columns(table, wanted)
    for text in texts:
        text_column(table, text)
    if split:
        named_split(table, split)
    if label and not any(absent(v) or re.search(r"[;|\[]", str(v)) for v in table.columns[label]):
        class_names = label_column(table, label, classes)[1]
        return class_names, classes is None and _guessed(table, label, class_names)
    return None


def check_held_out(held_out: bool, test: bool, split: str | None, answers: bool) -> None:
    """Raises BadInput where two options contradict each other about which rows are held out."""
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
    """The rows of `table`, then those of `test`, and the name of the latter. Messages name the file of each row."""
    name = str(test) if isinstance(test, str | Path) else ""
    if isinstance(test, str | Path) and data_file(test) is None:
        raise BadInput(
            f"--test names a file with rows to test on (csv, tsv, json, jsonl, parquet), and '{name}' is none. Correct the path."
        )
    added, test_split, _, name, _ = _found(test, name, wanted, text, label, None, 0, False)
    if test_split is not None:
        raise BadInput(f"{added.source} has parts of its own; give the one that tests.")
    _check_columns(added, wanted)
    if table.names.get(label) != added.names.get(label) or table.order.get(label) != added.order.get(label):
        raise BadInput(
            f"{table.source} and {added.source} name the classes of '{label}' differently. Give both with the same names in the "
            "same order, or both as plain words."
        )
    added_source = re.sub("^The ", "the ", added.source)  # within a sentence
    named = [f"{n} of {added_source}" for n in added.at]
    at = [*table.at, *named] if table.unit == added.unit else [f"{table.unit} {n}" for n in table.at]
    at = at if table.unit == added.unit else [*at, *(f"{added.unit} {n}" for n in named)]
    columns = {c: [*table.columns[c], *added.columns[c]] for c in wanted}
    if given:
        columns[given] = [*table.columns[given], *["test"] * len(added)]
        if any(str(v).strip().lower() in TEST_NAMES for v in table.columns[given] if not absent(v)):
            raise BadInput(
                f"{table.source}, column '{given}': some rows say test, and --test names {added.source} to test on. Leave one of "
                "them out."
            )
    source = f"{table.source} and {added_source}"
    unit = table.unit if table.unit == added.unit else "row"
    all_names = list(dict.fromkeys([*table.every, *added.every]))
    return Table(columns, at, unit, source, table.names, all_names, table.order, table.origin), name


def _parts(table: Table, given: str | None, own: int, held_out: bool) -> np.ndarray | None:
    """(n,) of `SPLITS` where they are given: by a column, or by a test file, whose rows follow the first `own`. Else None."""
    if given:
        return named_split(table, given)
    if own == len(table):
        return None
    return np.array(["calibration" if held_out else "train"] * own + ["test"] * (len(table) - own), dtype="U11")


def demonstrations(path: str | Path, *, text: str = "text", label: str = "label") -> list[tuple[str, str]]:
    """Pairs of a text and its answer, in the file's order: the demonstrations of a prompt with fixed demonstrations.

    Raises:
        BadInput: the file, a column or a value cannot be used, or a text occurs twice; the message names it and its place.
    """
    file = data_file(path)
    if file is None:
        raise BadInput(
            f"--demos names a file of pairs (csv, tsv, json, jsonl, parquet), and '{path}' is none. Correct the path."
        )
    table = read_file(file, [text, label])
    _check_columns(table, [text, label])
    texts = text_column(table, text)
    index, names, _ = label_column(table, label, None, answers=True)
    first_row: dict[str, int] = {}
    for i, key in enumerate(same_key(texts, None)):
        if first_row.setdefault(key, i) != i:
            raise BadInput(
                f"{table.source}, column '{text}': {table.where([first_row[key], i])} hold the same text, {texts[i][:60]!r}. A "
                "demonstration stands in a prompt once; delete one."
            )
    return [(x, names[y]) for x, y in zip(texts, index, strict=True)]


def _task(
    name: str, second: str | None, attributes: Sequence[str], cluster: str | None, split: str | None, hub_split: str | None,
    classes: Sequence[str] | None, seed: int, limit: int | None, progress: bool, more: Mapping[str, bool],
) -> Corpus:  # fmt: skip
    from trueup.corpus import tasks

    options = {
        "second": second,
        "attributes": attributes,
        "cluster": cluster,
        "split": split,
        "hub_split": hub_split,
        **more,
    }
    if named := [k for k, v in options.items() if v]:
        raise BadInput(
            f"'{name}' is an in-context task, which brings its own queries, answers and splits; leave {listing(named)} out."
        )
    task = tasks.load(name, seed=seed, limit=limit, progress=progress)
    return task if classes is None else task.relabel(classes)


def _found(
    source: Any, name: str, wanted: Sequence[str], text: str, label: str, hub_split: str | None, seed: int, progress: bool
) -> tuple[Table, str | None, tuple[str, ...], str, list[str]]:  # fmt: skip
    """The columns of `source`, the column of its splits, its own attributes, its name, and sentences about how it was made.

    The column of splits is None, and attributes are empty, where the source has none.
    """
    is_object, shipped = not isinstance(source, str | Path), name.startswith(SHIPPED)
    saved = None if is_object or shipped else saved_to_disk(path_of(name))
    path = None if is_object or shipped or saved is not None else data_file(source)
    if hub_split is not None and is_object:
        raise BadInput(
            f"hub_split names a part of a hub dataset; of an object that you hold, give the part '{hub_split}' itself."
        )
    if hub_split is not None and (shipped or saved is not None or path is not None):
        raise BadInput(f"'{name}' is no hub dataset, so it has no part '{hub_split}'. Leave hub_split out.")
    if shipped:
        from trueup.corpus import confounded, embedded

        source_notes: list[str] = []
        if name.startswith(confounded.PREFIX):
            coupled, alpha = confounded.find(name)
            default_attributes: tuple[str, ...] = (coupled.attribute,)
            corpus = read(coupled.source, attributes=default_attributes, seed=seed, progress=progress)
            columns, source_notes = confounded.columns(coupled, alpha, corpus, seed)
        else:
            dataset, columns = embedded.load(name, progress=progress)
            default_attributes = dataset.attributes
        return (
            Table(columns, range(1, len(columns["text"]) + 1), "row", f"'{name}'", {}),
            None,
            default_attributes,
            name,
            source_notes,
        )
    if path is not None:
        return read_file(path, wanted), None, (), name, []
    if is_object or saved is not None:
        table, named, kind = table_of(source if saved is None else saved, wanted, text=text, label=label)
        return table, named, (), name or kind, []
    table, named = hub_table(name, wanted, label, hub_split)
    return table, named, (), name, []


def check_roles(text: str, label: str, second: str | None) -> None:
    """Raises BadInput where one column has two roles, or the text or the label has no column."""
    if not text or not label:
        raise BadInput(f"The {'label' if text else 'text'} column has an empty name. Name the column that holds it.")
    if label in (text, second) or text == second:
        column = text if text == second else label
        raise BadInput(f"The column '{column}' is named twice. Name different columns for the text and the label.")


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
            column_names = [c for c in table.every if c != PART]
            # "text" and "label" are also defaults, so the user may not have named the column: the message explains the option.
            option = f" with --{name} (in Python {name}=)" if name in ("text", "label") else ""
            raise BadInput(
                f"{table.source} has no column '{name}'.{did_you_mean(name, column_names)} "
                f"Its columns are {listing(column_names)}; name the right one{option}.{_of_sft(name, column_names)}"
            )


def _of_sft(name: str, known: Sequence[str]) -> str:
    """Advice for rows in a form of supervised fine-tuning, as a sentence with a space before it; else empty."""
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
