"""Objects become the corpus that the same rows in a file become; what cannot be used is refused in a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from trueup.corpus.corpus import Corpus
from trueup.corpus.read import read
from trueup.errors import BadInput

N = 40
TEXT = [f"example number {i}" for i in range(N)]
LABEL = ["yes" if i % 3 else "no" for i in range(N)]
SITE = ["a", "b", None, "c"] * (N // 4)
ROWS = [{"text": t, "label": y, "site": s} for t, y, s in zip(TEXT, LABEL, SITE, strict=True)]


def polars() -> Any:
    return pytest.importorskip("polars")


def holders() -> dict[str, Any]:
    """Every kind of object that holds `ROWS`, by a function that makes it."""
    columns = {"text": TEXT, "label": LABEL, "site": SITE}
    return {
        "pandas": lambda: pd.DataFrame(ROWS),
        "pandas, categories": lambda: pd.DataFrame(ROWS).astype({"label": "category", "text": "string"}),
        "pandas, another index": lambda: pd.DataFrame(ROWS, index=[f"r{i}" for i in range(N)]),
        "polars": lambda: polars().DataFrame(columns),
        "polars, categories": lambda: polars().DataFrame(columns).with_columns(polars().col("label").cast(polars().Categorical)),
        "Dataset": lambda: datasets.Dataset.from_list(ROWS),
        "Dataset, numpy": lambda: datasets.Dataset.from_list(ROWS).with_format("numpy"),
        "Dataset, named": lambda: (
            datasets.Dataset.from_dict({**columns, "label": [int(y == "yes") for y in LABEL]}).cast_column(
                "label", datasets.ClassLabel(names=["no", "yes"])
            )
        ),
        "DatasetDict of one": lambda: datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)),
        "records": lambda: ROWS,
        "columns": lambda: columns,
    }  # fmt: skip


@pytest.fixture(scope="module")
def filed(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    path = tmp_path_factory.mktemp("file") / "data.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    return read(path, attributes=["site"], seed=3)


def same(a: Corpus, b: Corpus) -> bool:
    sites = all(np.array_equal(a.attributes[k], b.attributes[k]) for k in a.attributes)
    return a.fingerprint == b.fingerprint and a.attributes.keys() == b.attributes.keys() and sites


@pytest.mark.parametrize("kind", holders())
def test_an_object_gives_the_corpus_of_its_rows_in_a_file(kind, filed):
    assert same(read(holders()[kind](), attributes="site", seed=3), filed)


@pytest.mark.parametrize("wrap", [list, tuple, np.array, pd.Series, lambda v: polars().Series(v)])
def test_a_pair_of_texts_and_labels(wrap, filed):
    got = read((wrap(TEXT), wrap(LABEL)), seed=3)
    assert got.fingerprint == filed.fingerprint
    assert read((wrap(TEXT), wrap(LABEL)), text="review", label="stars", seed=3).fingerprint == filed.fingerprint


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([i % 2 for i in range(N)], ("0", "1")),
        (np.arange(N) % 2, ("0", "1")),
        (torch.arange(N) % 2, ("0", "1")),
        ([float(i % 2) for i in range(N)], ("0", "1")),
        ([i % 2 == 0 for i in range(N)], ("False", "True")),
        (np.arange(N) % 2 == 0, ("False", "True")),
    ],
    ids=["ints", "array", "tensor", "floats", "bools", "array of bools"],
)
def test_labels_of_any_kind(labels, classes):
    got = read((TEXT, labels))
    assert got.classes == classes
    assert [got.classes[i] for i in got.label] == [classes[int(v)] for v in labels]


def test_the_order_of_class_names_is_that_of_the_feature():
    made = datasets.Dataset.from_dict({"text": TEXT, "label": [i % 2 for i in range(N)]})
    assert read(made.cast_column("label", datasets.ClassLabel(names=["z", "a"]))).classes == ("z", "a")


STEPS = ("low", "mid", "high")


def stepped(ordered: bool = True, categories: tuple[Any, ...] = STEPS, only: int = 3) -> pd.DataFrame:
    label = pd.Categorical([categories[i % only] for i in range(N)], categories=list(categories), ordered=ordered)
    return pd.DataFrame({"text": TEXT, "label": label})


def enumerated(only: int = 3) -> Any:
    pl = polars()
    return pl.DataFrame(
        {"text": TEXT, "label": [STEPS[i % only] for i in range(N)]}, schema_overrides={"label": pl.Enum(STEPS)}
    )


IN_ORDER = {
    "pandas": lambda folder, only: stepped(only=only),
    "columns": lambda folder, only: {"text": TEXT, "label": stepped(only=only)["label"]},
    "pair": lambda folder, only: (TEXT, stepped(only=only)["label"]),
    "pair of a Categorical": lambda folder, only: (TEXT, stepped(only=only)["label"].array),
    "polars": lambda folder, only: enumerated(only),
    "polars, pair": lambda folder, only: (TEXT, enumerated(only)["label"]),
    "parquet": lambda folder, only: kept(stepped(only=only), folder),
    "parquet, row groups": lambda folder, only: kept(stepped(only=only), folder, row_group_size=7),
    "parquet, polars": lambda folder, only: kept(enumerated(only), folder),
}


def kept(frame: Any, folder: Any, **how: Any) -> Any:
    path = folder / "d.parquet"
    frame.to_parquet(path, **how) if isinstance(frame, pd.DataFrame) else frame.write_parquet(path)
    return path


@pytest.mark.parametrize("kind", IN_ORDER)
@pytest.mark.parametrize("only", [3, 2])
def test_a_stated_order_is_the_order_of_the_classes_used_or_not(kind, only, tmp_path):
    """Unused ones stay, as those of a ClassLabel do: a head has a logit for each."""
    got = read(IN_ORDER[kind](tmp_path, only))
    assert got.classes == STEPS
    assert [got.classes[i] for i in got.label] == [STEPS[i % only] for i in range(N)]
    assert read(IN_ORDER[kind](tmp_path, only), classes=["high", "mid", "low"]).classes == ("high", "mid", "low")


def test_a_split_does_not_depend_on_a_stated_order():
    as_text = stepped().astype({"label": str})
    assert read(as_text).classes == ("high", "low", "mid"), "the control: no order is stated"
    assert list(read(stepped()).split) == list(read(as_text).split)


def test_categories_without_an_order_state_none(tmp_path):
    loose = stepped(ordered=False, only=2)
    assert read(loose).classes == read(kept(loose, tmp_path)).classes == ("low", "mid")
    pl = polars()
    found = pl.DataFrame({"text": TEXT, "label": [STEPS[i % 3] for i in range(N)]}).with_columns(
        pl.col("label").cast(pl.Categorical)
    )
    assert read(found).classes == read(kept(found, tmp_path)).classes == ("high", "low", "mid")


def test_a_file_that_lost_the_order_states_none(tmp_path):
    """Written without dictionaries, the values come back in the order of appearance, and still say that they are ordered."""
    shuffled = stepped().iloc[::-1]
    path = kept(shuffled, tmp_path, use_dictionary=False)
    assert tuple(pd.read_parquet(path)["label"].cat.categories) != STEPS, "the control: pandas has lost it too"
    assert read(path).classes == ("high", "low", "mid")


def test_numbers_may_be_ordered_and_a_gap_is_no_class():
    got = read(stepped(categories=(3, 1, 2)))
    assert got.classes == ("3", "1", "2")
    assert [got.classes[i] for i in got.label] == [str((3, 1, 2)[i % 3]) for i in range(N)]
    assert read(stepped(categories=(3.0, 1.0, 2.0))).classes == ("3", "1", "2")
    assert read(stepped(categories=("low", "high", "nan"), only=2)).classes == ("low", "high")
    holed = stepped()
    holed.loc[7, "label"] = None
    with pytest.raises(BadInput, match=r"no label in row 7\."):
        read(holed)


def test_the_parts_of_a_datasetdict_are_its_splits():
    def part(a: int, b: int) -> datasets.Dataset:
        return datasets.Dataset.from_list(ROWS[a:b])

    whole = read(datasets.DatasetDict(train=part(0, 20), validation=part(20, 30), test=part(30, 40)))
    assert list(whole.split) == ["train"] * 20 + ["calibration"] * 10 + ["test"] * 10
    two = read(datasets.DatasetDict(train=part(0, 20), test=part(20, 40)))
    assert set(two.split[:20]) == {"train"}
    assert set(two.split[20:]) == {"calibration", "test"}
    with pytest.raises(BadInput, match=r"The DatasetDict has the splits 'one', 'two', none of a known name"):
        read(datasets.DatasetDict(one=part(0, 20), two=part(20, 40)))


def test_a_split_column_of_a_frame():
    frame = pd.DataFrame(ROWS).assign(part=["train"] * 20 + ["dev"] * 10 + ["test"] * 10)
    assert list(read(frame, split="part").split) == ["train"] * 20 + ["calibration"] * 10 + ["test"] * 10


def test_columns_need_not_be_named_by_strings():
    frame = pd.DataFrame({0: TEXT, 1: LABEL})
    assert read(frame, text="0", label="1").text == TEXT


def test_what_is_read_stays_as_it_is():
    frame, made = pd.DataFrame(ROWS), datasets.Dataset.from_list(ROWS).with_format("torch")
    before = frame.copy()
    read(frame)
    read(made)
    pd.testing.assert_frame_equal(frame, before)
    assert made.format["type"] == "torch"


def holed(column: str, value: Any) -> list[dict]:
    return [{**r, column: value} if i == 7 else r for i, r in enumerate(ROWS)]


REFUSED = {
    "missing text": (lambda: pd.DataFrame(holed("text", None)), {}, r"The pandas DataFrame, column 'text': no text in row 7\."),
    "missing label": (lambda: pd.DataFrame(holed("label", float("nan"))), {}, r"column 'label': no label in row 7\."),
    "NA": (lambda: pd.DataFrame(holed("label", None)).astype("string"), {}, r"column 'label': no label in row 7\."),
    "by index": (
        lambda: pd.DataFrame(holed("text", None), index=[f"r{i}" for i in range(N)]), {}, r"no text in row r7\.",
    ),
    "polars": (lambda: polars().DataFrame(holed("label", None)), {}, r"The polars DataFrame, column 'label': no label in row 7\."),
    "Dataset": (lambda: datasets.Dataset.from_list(holed("text", None)), {}, r"The Dataset, column 'text': no text in row 7\."),
    "DatasetDict": (
        lambda: datasets.DatasetDict(train=datasets.Dataset.from_list(holed("text", " "))), {},
        r"The DatasetDict, column 'text': no text in row train\[7\]\.",
    ),
    "pair": (lambda: (TEXT, [None, *LABEL[1:]]), {}, r"The pair of texts and labels, column 'label': no label in row 0\."),
    "numbers": (lambda: pd.DataFrame(ROWS).assign(text=range(N)), {}, r"numbers where text belongs"),
    "column": (lambda: pd.DataFrame(ROWS), {"label": "labels"}, r"The pandas DataFrame has no column 'labels'\. Did you"),
    "twice": (lambda: pd.DataFrame([["a", "b"]], columns=["text", "text"]), {}, r"names 'text' more than once"),
    "lengths": (lambda: (TEXT, LABEL[1:]), {}, r"different lengths \('text' 40, 'label' 39\)"),
    "no rows": (lambda: pd.DataFrame({"text": [], "label": []}), {}, r"The pandas DataFrame has no rows"),
    "one class": (lambda: (TEXT, ["yes"] * N), {}, r"has only one class"),
    "texts alone": (lambda: TEXT, {}, r"no labels, .* give the pair \(texts, labels\)"),
    "a string for texts": (lambda: {"text": "x", "label": LABEL}, {}, r"column 'text': 'str' where a list of values belongs"),
    "lazy": (lambda: polars().DataFrame(ROWS).lazy(), {}, r"LazyFrame holds no rows yet"),
    "stream": (lambda: datasets.Dataset.from_list(ROWS).to_iterable_dataset(), {}, r"An IterableDataset is read as it streams"),
    "a part": (lambda: datasets.Dataset.from_list(ROWS), {"hub_split": "train"}, r"give the part 'train' itself"),
    "features": (lambda: datasets.Features(), {}, r"This Features cannot be read as labelled texts"),
    "series": (lambda: pd.Series(TEXT), {}, r"This Series cannot be read as labelled texts\. Give a file name"),
    "arrow": (lambda: pa.Table.from_pylist(ROWS), {}, r"This pyarrow Table cannot be .* Give what its to_pandas\(\) returns"),
    "nothing": (lambda: None, {}, r"This NoneType cannot be read"),
    "number": (lambda: 3, {}, r"This int cannot be read"),
}  # fmt: skip


def test_a_tensor_or_array_of_one_number_is_that_number():
    plain_one = read((TEXT, [int(y == "yes") for y in LABEL]))
    for scalar in (torch.tensor, np.array):
        labels = [scalar(int(y == "yes")) for y in LABEL]
        for source in ((TEXT, labels), [{"text": t, "label": y} for t, y in zip(TEXT, labels, strict=True)]):
            got = read(source)
            assert got.classes == plain_one.classes == ("0", "1")
            assert np.array_equal(got.label, plain_one.label)


def test_messages_name_both_tables_where_rows_to_test_on_come_apart():
    frame = pd.DataFrame(ROWS)
    with pytest.raises(BadInput, match=r"The pandas DataFrame and the pandas DataFrame: 40 of 40 clusters"):
        read(frame, test=frame)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_in_a_sentence(case):
    make, options, said = REFUSED[case]
    with pytest.raises(BadInput, match=said):
        read(make(), **options)


def test_no_library_of_frames_is_imported_for_other_data():
    code = (
        "import sys; from trueup.corpus.read import read; read(([f'text {i}' for i in range(40)], [i % 2 for i in range(40)])); "
        "print([m for m in ('pandas', 'polars', 'datasets', 'torch') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_records_may_have_keys_that_are_no_text():
    rows = [{0: r["text"], 1: r["label"]} for r in ROWS]
    got = read(rows, text="0", label="1", seed=3)
    assert got.text == read(ROWS, seed=3).text


def test_a_dataset_of_the_hub_says_where_it_came_from():
    import datasets

    import trueup

    held = datasets.Dataset.from_dict({"text": [f"text {i}" for i in range(40)], "label": [i % 2 for i in range(40)]})
    assert trueup.read(held).origin == {}
    held.info.download_checksums = {
        "hf://datasets/org/reviews@0123456789abcdef/data/train.parquet": {"num_bytes": 1, "checksum": None}
    }
    held.info.config_name = "en"
    known = {"id": "org/reviews", "revision": "0123456789abcdef", "config": "en"}
    assert trueup.read(held).origin == known
    parts = datasets.DatasetDict({"train": held, "test": held.map(lambda r: {"text": r["text"] + " again"})})
    assert trueup.read(parts).origin == known | {"split": "train+test"}
