"""Files become corpora; whatever is wrong with them becomes one sentence that says where and what next."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import pickle
import re
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trueup.corpus import files
from trueup.corpus.clusters import leaked
from trueup.corpus.files import KINDS
from trueup.corpus.read import read
from trueup.corpus.split import split_rows, stratified_subset
from trueup.corpus.values import MARKS, MISSING, WORDS, missing, natural_order
from trueup.errors import BadInput, TrueupError, Unavailable


def rows(n: int = 20) -> list[dict]:
    return [{"text": f"example number {i}", "label": "yes" if i % 2 else "no", "site": f"s{i % 3}"} for i in range(n)]


def as_csv(path: Path, records: list[dict], delimiter: str = ",") -> Path:
    with open(path, "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, list(records[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(records)
    return path


def as_jsonl(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


def write(path: Path, records: list[dict]) -> Path:
    if path.suffix == ".csv":
        return as_csv(path, records)
    if path.suffix == ".tsv":
        return as_csv(path, records, "\t")
    if path.suffix == ".jsonl":
        return as_jsonl(path, records)
    if path.suffix == ".json":
        path.write_text(json.dumps(records), encoding="utf-8")
        return path
    pq.write_table(pa.Table.from_pylist(records), path)
    return path


FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_gives_the_same_corpus(tmp_path, ending):
    corpus = read(write(tmp_path / f"d{ending}", rows()), attributes=["site"])
    assert list(corpus.text) == [r["text"] for r in rows()]
    assert corpus.classes == ("no", "yes")
    assert [corpus.classes[i] for i in corpus.label] == [r["label"] for r in rows()]
    assert corpus.label.dtype == np.int64
    assert corpus.attributes["site"].tolist() == [r["site"] for r in rows()]
    assert {s: int((corpus.split == s).sum()) for s in ("train", "calibration", "test")} == {
        "train": 12,
        "calibration": 4,
        "test": 4,
    }
    reference = read(write(tmp_path / "r.csv", rows()))
    assert corpus.fingerprint == reference.fingerprint


def test_other_columns_and_pairs(tmp_path):
    records = [{"a": f"first {i}", "b": f"second {i}", "y": i % 2} for i in range(10)]
    corpus = read(write(tmp_path / "d.jsonl", records), text="a", second="b", label="y")
    assert corpus.second == [r["b"] for r in records]
    assert corpus.classes == ("0", "1")


HOSTILE = st.text(
    st.sampled_from("abc\"'\\,;\t\n\r\u2028\u2029\x85\x0b\x00\x1a\ufeff\u202e\u05d0\u0627\U0001f600e\u0301<&>{}")
    | st.characters(exclude_categories=("Cs",)),
    min_size=1,
    max_size=30,
).filter(str.strip)


@pytest.mark.parametrize("ending", FORMATS)
@given(texts=st.lists(HOSTILE, min_size=8, max_size=12, unique_by=lambda t: " ".join(t.split())))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
def test_hostile_text_survives(tmp_path, ending, texts):
    texts = ["word", *texts]  # at least one that is no number
    records = [{"text": t, "label": "ab"[i % 2]} for i, t in enumerate(texts)]
    assert list(read(write(tmp_path / f"d{ending}", records)).text) == texts


@pytest.mark.parametrize("sign", ";|\t,")
@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_the_header_tells_what_parts_the_fields(tmp_path, sign, ending):
    """Spreadsheets of half the world write semicolons, and a byte order mark before them."""
    odd = [r | {"text": f"{r['text']}, {i}; a | b"} for i, r in enumerate(rows())]
    path = as_csv(tmp_path / f"d{ending}", odd, sign)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    corpus = read(path, attributes=["site"])
    assert list(corpus.text) == [r["text"] for r in odd]
    assert list(corpus.attributes["site"]) == [r["site"] for r in odd]


def test_what_parts_the_fields_is_looked_for_outside_of_quotes(tmp_path):
    body = "".join(f"text {i};{'ab'[i % 2]};0\n" for i in range(12))
    for name, head in (
        ("quoted", '"text";label;"a, b, c"\n'),
        ("often", "text;label;score (0,1)\n"),
        ("excel", "sep=;\ntext;label;n\n"),
    ):
        assert len(read(raw(tmp_path / f"{name}.csv", head + body))) == 12
    tabs = body.replace(";", "\t")
    assert len(read(raw(tmp_path / "d.tsv", "text\tlabel\tone (a, b; c; d; e)\n" + tabs))) == 12
    with pytest.raises(BadInput, match="line 14: 1 field found, 3 expected"):
        read(raw(tmp_path / "bad.csv", "sep=;\ntext;label;n\n" + body.replace("text 11;b;0", "alone")))


@pytest.mark.parametrize("parts", [False, True])
def test_a_data_set_saved_to_disk_is_what_it_was(tmp_path, parts):
    import datasets

    whole = datasets.Dataset.from_list(rows(40))
    held = datasets.DatasetDict(train=whole.select(range(20)), test=whole.select(range(20, 40))) if parts else whole
    held.save_to_disk(str(tmp_path / "kept"))
    here, there = read(held, attributes=["site"]), read(tmp_path / "kept", attributes=["site"])
    assert here.fingerprint == there.fingerprint
    assert there.name == str(tmp_path / "kept")
    with pytest.raises(BadInput, match="is no hub dataset"):
        read(tmp_path / "kept", hub_split="train[:10]")
    (tmp_path / "kept" / ("dataset_dict.json" if parts else "state.json")).write_text("{")
    with pytest.raises(BadInput, match="saved to disk, but cannot be read"):
        read(tmp_path / "kept")


def test_a_blank_group_is_a_missing_one(tmp_path):
    odd = [r | {"site": ["", " ", "s1"][i % 3]} for i, r in enumerate(rows())]
    assert set(read(as_csv(tmp_path / "d.csv", odd), attributes=["site"]).attributes["site"]) == {"(missing)", "s1"}


def test_a_text_may_be_longer_than_the_csv_module_likes(tmp_path):
    records = [r | {"text": r["text"] + "x" * 200_000} for r in rows(6)]
    limit = csv.field_size_limit()
    assert len(read(write(tmp_path / "d.csv", records)).text[0]) > 200_000
    assert csv.field_size_limit() == limit


def test_words_that_libraries_take_for_missing_stay_words(tmp_path):
    words = ["NA", "null", "None", "N/A", "nan", "-", "n/a", "true"]
    records = [{"text": w, "label": "ab"[i % 2]} for i, w in enumerate(words)]
    assert list(read(write(tmp_path / "d.csv", records)).text) == words


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    path = write(tmp_path / "d.csv", rows())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read(path)) == 20


def test_what_an_object_inside_of_a_column_names_twice_is_the_users(tmp_path):
    lines = [f'{{"text": "a {i}", "label": "{"xy"[i % 2]}", "meta": {{"k": 1, "k": 2}}}}' for i in range(12)]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    assert len(read(tmp_path / "d.jsonl")) == 12


def test_json_lines_under_the_name_json_and_other_shapes(tmp_path):
    path = tmp_path / "d.json"
    expected = read(as_jsonl(path, rows())).fingerprint
    for shape in (
        {"data": rows()},
        {name: [r[name] for r in rows()] for name in rows()[0]},
    ):
        path.write_text(json.dumps(shape))
        assert read(path).fingerprint == expected


# -- labels


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([10, 9, 2], ("2", "9", "10")),
        ([1.0, 0.0], ("0", "1")),
        (["b10", "b9", "A"], ("A", "b9", "b10")),
        (["-1", "1", "0"], ("-1", "0", "1")),
        ([True, False], ("False", "True")),
    ],
)
@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_class_names_are_strings_in_natural_order(tmp_path, labels, classes, ending):
    records = [{"text": f"t {i}", "label": labels[i % len(labels)]} for i in range(4 * len(labels))]
    corpus = read(write(tmp_path / f"d{ending}", records))
    assert corpus.classes == classes


@given(st.lists(st.text("a1-0 b9", max_size=5)))
def test_natural_order_is_total(names):
    backwards = list(reversed(names))
    assert sorted(names, key=natural_order) == sorted(backwards, key=natural_order)


def test_named_classes_give_the_order(tmp_path):
    path = write(tmp_path / "d.csv", rows())
    corpus = read(path, classes=["yes", "maybe", "no"])
    assert corpus.classes == ("yes", "maybe", "no")
    assert [corpus.classes[i] for i in corpus.label] == [r["label"] for r in rows()]
    with pytest.raises(BadInput, match="'no' in lines 2, 4, 6 and 7 more is none"):
        read(path, classes=["yes", "now"])


def test_parquet_keeps_class_names_of_the_datasets_library(tmp_path):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "a"])})
    data = datasets.Dataset.from_dict(
        {"text": [f"t {i}" for i in range(8)], "label": [i % 2 for i in range(8)]}, features
    )
    data.to_parquet(tmp_path / "d.parquet")
    corpus = read(tmp_path / "d.parquet")
    assert corpus.classes == ("z", "a")
    assert corpus.label.tolist() == [0, 1] * 4


def test_an_absent_attribute_is_a_group_of_its_own(tmp_path):
    records = rows()
    records[3]["site"] = None
    corpus = read(write(tmp_path / "d.jsonl", records), attributes=["site"])
    assert corpus.attributes["site"][3] == "(missing)"


# -- missing values that are written out


def test_the_words_for_missing_are_those_of_pandas():
    from pandas._libs.parsers import STR_NA_VALUES

    assert (MARKS | WORDS) - {"NAN", "NaT"} == STR_NA_VALUES
    assert not MARKS & WORDS
    for v in (*MARKS, *WORDS, " nan ", None, float("nan"), np.float32("nan"), pd.NA, pd.NaT):
        assert missing(v), v
    for v in ("none", "Nan", "na", "nothing", "0", 0, 0.0, False, "-", "?"):
        assert not missing(v), v


def sites(path: Path, values: list) -> Path:
    return write(path, [r | {"site": values[i % len(values)]} for i, r in enumerate(rows(len(values) * 12))])


@pytest.mark.parametrize("word", sorted((MARKS | WORDS) - {"", "NA"}))
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_group_written_as_missing_is_missing(tmp_path, word, ending):
    corpus = read(
        sites(tmp_path / f"d{ending}", ["north", word, "south", "" if ending == ".csv" else None]), attributes=["site"]
    )
    assert corpus.attributes["site"].tolist() == ["north", MISSING, "south", MISSING] * 12
    (note,) = corpus.notes
    assert f"Column 'site': '{word}' (12 of 48 rows) was read as no value" in note


def test_a_frame_that_pandas_wrote_or_turned_to_text_has_one_missing_group(tmp_path):
    frame = pd.DataFrame(rows()).assign(site=[None if i % 4 == 0 else f"s{i % 3}" for i in range(20)])
    want = read(frame, attributes=["site"])
    assert (want.attributes["site"] == MISSING).sum() == 5
    assert want.notes == (), "the control: nothing was taken for anything"
    frame.to_csv(tmp_path / "d.csv", index=False, na_rep="nan")
    as_text = frame.assign(site=[str(v) for v in frame["site"]])
    for made, word in (
        (tmp_path / "d.csv", "nan"),
        (as_text, str(frame["site"][0])),
        (frame.astype({"site": "string"}), ""),
    ):
        got = read(made, attributes=["site"])
        assert got.attributes["site"].tolist() == want.attributes["site"].tolist()
        assert [f"Column 'site': '{word}' (5 of 20 rows)" in n for n in got.notes] == [True] * bool(word)


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        (["NA", "EU", "US"], True),
        (["NA", "EMEA", "APAC", ""], True),
        (["NA", "ZA", "BW"], True),
        (["NA", "north", "south"], False),
        (["NA", "EU", "south"], False),
        (["NA", "", "nan"], False),
        (["NA", "1", "2"], False),
    ],
)
def test_na_among_codes_is_a_code(tmp_path, values, kept):
    corpus = read(sites(tmp_path / "d.csv", values), attributes=["site"])
    assert corpus.attributes["site"][0] == ("NA" if kept else MISSING)
    assert any("was read as a code like the other values" in n for n in corpus.notes) is kept
    assert any("'NA'" in n and "read as no value" in n for n in corpus.notes) is not kept


def test_a_label_written_as_missing_is_refused_or_a_class_by_its_name(tmp_path):
    for mark in sorted(MARKS - {""}):
        path = write(tmp_path / "d.csv", [*rows(), {"text": "more", "label": mark, "site": "s"}])
        with pytest.raises(BadInput, match="no label in line 22"):
            read(path)
    for word in sorted(WORDS):
        corpus = read(
            write(tmp_path / "d.csv", [r | {"label": word if i < 4 else r["label"]} for i, r in enumerate(rows())])
        )
        assert word in corpus.classes
        (note,) = corpus.notes
        assert f"Column 'label': '{word}' (4 of 20 rows) was read as a class of that name" in note
        assert read(tmp_path / "d.csv", classes=["no", "yes", word]).notes == (), "who names it means it"
    path = write(tmp_path / "d.csv", [r | {"label": "nan" if i % 2 else "no"} for i, r in enumerate(rows())])
    assert read(path, classes=["nan", "no"]).classes == ("nan", "no")
    assert read(write(tmp_path / "e.csv", rows()), attributes=["site"]).notes == ()


# -- answers, which are no classes


def pairs(n: int, answers: int | None = None) -> list[dict]:
    return [{"text": f"query number {i}", "label": f"answer {i % (answers or n)}"} for i in range(n)]


def parted(corpus) -> list[int]:
    return [int((corpus.split == s).sum()) for s in ("train", "calibration", "test")]


def test_any_number_of_answers_will_do(tmp_path):
    path = write(tmp_path / "d.csv", pairs(150))
    with pytest.raises(BadInput, match="150 different labels in 150 rows, so it does not hold classes"):
        read(path)
    corpus = read(path, answers=True)
    assert parted(corpus) == [60, 45, 45]
    assert [corpus.classes[i] for i in corpus.label] == [p["label"] for p in pairs(150)]
    assert corpus.fingerprint == read(path, answers=True).fingerprint
    assert corpus.fingerprint != read(path, answers=True, seed=1).fingerprint
    assert parted(read(path, answers=True, fractions=(0.6, 0.2, 0.2))) == [90, 30, 30]
    assert sum(parted(read(path, answers=True, limit=20))) == 20


def test_few_pairs_are_split_where_classes_could_not_be(tmp_path):
    path = write(tmp_path / "d.csv", pairs(25))
    with pytest.raises(BadInput, match="too few rows for three splits"):
        read(path)
    assert parted(read(path, answers=True)) == [10, 8, 7]
    assert min(parted(read(write(path, pairs(3)), answers=True))) == 1
    with pytest.raises(BadInput, match=r"has 2 different texts, too few for three splits; 3 is the least"):
        read(write(path, [*pairs(2), *pairs(2)]), answers=True)


def test_answers_split_as_classes_do_by_text_and_by_a_column(tmp_path):
    corpus = read(write(tmp_path / "d.csv", [p for p in pairs(12) for _ in range(3)]), answers=True)
    assert all(len(set(corpus.split[3 * i : 3 * i + 3])) == 1 for i in range(12))
    named = [p | {"part": "train" if i < 20 else "dev"} for i, p in enumerate(pairs(40))]
    assert parted(read(write(tmp_path / "d.csv", named), split="part", answers=True)) == [20, 10, 10]
    assert parted(read(tmp_path / "d.csv", split="part", answers=True, limit=20)) == [10, 5, 5]


def test_what_is_wrong_with_an_answer_is_still_said(tmp_path):
    for bad, said in (("", "no label in line 5"), ("nan", "no label in line 5")):
        with pytest.raises(BadInput, match=said):
            read(
                write(tmp_path / "d.csv", [p | {"label": bad} if i == 3 else p for i, p in enumerate(pairs(20))]),
                answers=True,
            )
    corpus = read(
        write(tmp_path / "d.csv", [p | {"label": "None"} if i == 3 else p for i, p in enumerate(pairs(20))]),
        answers=True,
    )
    assert "Column 'label': 'None' (1 of 20 rows) was read as an answer of that name" in corpus.notes[0]
    assert read(write(tmp_path / "d.csv", pairs(20, answers=1)), answers=True).classes == ("answer 0",)


# -- splits


@st.composite
def labelled(draw):
    counts = draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    label = np.array(draw(st.permutations([c for c, n in enumerate(counts) for _ in range(n)])))
    return label


FRACTIONS = st.sampled_from([(0.6, 0.2, 0.2), (0.5, 0.25, 0.25), (0.34, 0.33, 0.33), (0.2, 0.4, 0.4)])


@given(labelled(), st.integers(0, 9), FRACTIONS)
def test_a_split_is_a_stratified_partition(label, seed, fractions):
    keys = list(range(len(label)))
    part = split_rows(keys, label, seed=seed, fractions=fractions)
    assert set(part) <= {"train", "calibration", "test"}
    for c in np.unique(label):
        n = int((label == c).sum())
        for name, f in zip(("train", "calibration", "test"), fractions, strict=True):
            got = int((part[label == c] == name).sum())
            assert abs(got - f * n) < 1 + 1e-9
            assert got >= (n >= 3)
    assert (part == split_rows(keys, label, seed=seed, fractions=fractions)).all()


@given(labelled(), st.data(), st.integers(0, 9))
def test_no_text_is_in_two_splits(label, data, seed):
    keys = data.draw(st.lists(st.integers(0, 12), min_size=len(label), max_size=len(label)))
    part = split_rows(keys, label, seed=seed)
    where: dict[int, set] = {}
    for k, p in zip(keys, part, strict=True):
        where.setdefault(k, set()).add(p)
    assert all(len(p) == 1 for p in where.values())
    own = {}  # class -> its texts, where no text has two classes
    for k, c in zip(keys, label, strict=True):
        own.setdefault(c, set()).add(k)
    for c, texts in own.items():
        others = set().union(*(t for d, t in own.items() if d != c)) if len(own) > 1 else set()
        if len(texts - others) == len(texts) >= 3:
            assert set(part[label == c]) == {"train", "calibration", "test"}


@pytest.mark.parametrize("sizes", [(4, 4, 4), (10, 1, 1), (5, 5, 1), (1, 1, 1), (9, 9, 1, 1)])
@pytest.mark.parametrize("fractions", [(0.6, 0.2, 0.2), (0.98, 0.01, 0.01)])
def test_three_texts_reach_all_splits_however_often_they_repeat(sizes, fractions):
    keys = [k for k, n in enumerate(sizes) for _ in range(n)]
    part = split_rows(keys, np.zeros(len(keys), dtype=int), seed=0, fractions=fractions)
    assert set(part) == {"train", "calibration", "test"}


def test_the_seed_matters_and_only_the_seed():
    label = np.arange(100) % 2
    a, b, c = (split_rows(list(range(100)), label, seed=s) for s in (0, 0, 1))
    assert (a == b).all()
    assert (a != c).any()


@given(labelled(), st.integers(0, 9), st.randoms())
def test_neither_the_rows_order_nor_the_classes_names_have_a_say(label, seed, random):
    """A file that is shuffled, or whose classes are called otherwise, is split and cut as before."""
    keys = [f"text {i // 2}" for i in range(len(label))]
    order = random.sample(range(len(label)), len(label))
    called = np.array(random.sample(range(int(label.max()) + 1), int(label.max()) + 1))[label]
    part = split_rows(keys, label, seed=seed)
    texts = [f"{k}, {c}" for k, c in zip(keys, label, strict=True)]
    kept = {texts[i] for i in stratified_subset(label, len(label) // 2, seed, texts)}
    for again in (label, called):
        if len(set(np.bincount(label).tolist())) == int(label.max()) + 1:  # no class is as frequent as another
            shuffled = split_rows([keys[i] for i in order], again[order], seed=seed)
            assert (shuffled == part[order]).all()
        some = stratified_subset(again[order], len(label) // 2, seed, [texts[i] for i in order])
        assert {texts[order[i]] for i in some} == kept


def test_a_shuffled_file_with_other_class_names_holds_out_the_same_texts(tmp_path):
    records = [{"text": f"text {i}", "label": "abc"[i % 3]} for i in range(90)]
    calls = {"a": "zebra", "b": "b", "c": "ape"}
    again = [{"text": r["text"], "label": calls[r["label"]]} for r in reversed(records)]
    for limit in (None, 40):
        held = []
        for name, some in (("d.csv", records), ("e.csv", again)):
            test = read(write(tmp_path / name, some), limit=limit).part("test")
            held.append(set(test.text))
        assert held[0] == held[1]


def test_texts_that_differ_in_white_space_or_case_are_the_same(tmp_path):
    records = [{"text": f"{'tTt'[j]} {i}" + " " * j, "label": "ab"[i % 2]} for i in range(10) for j in range(3)]
    corpus = read(write(tmp_path / "d.csv", records))
    for i in range(10):
        assert len(set(corpus.split[3 * i : 3 * i + 3])) == 1
    assert not leaked(corpus).any()


@given(labelled(), st.integers(1, 200), st.integers(0, 5))
def test_a_subset_keeps_the_shares(label, size, seed):
    kept = stratified_subset(label, size, seed)
    assert len(kept) == min(size, len(label))
    assert (np.diff(kept) > 0).all()
    for c in np.unique(label):
        exact = len(kept) * (label == c).mean()
        assert abs((label[kept] == c).sum() - exact) < 1 + 1e-9


def test_limit_is_stratified_and_deterministic(tmp_path):
    path = write(tmp_path / "d.csv", [r | {"label": "yes" if i < 150 else "no"} for i, r in enumerate(rows(200))])
    corpus = read(path, limit=40)
    assert len(corpus) == 40
    assert int((corpus.label == corpus.classes.index("yes")).sum()) == 30
    assert corpus.fingerprint == read(path, limit=40).fingerprint
    assert corpus.fingerprint != read(path, limit=40, seed=1).fingerprint
    assert len(read(path, limit=10_000)) == 200


def test_a_split_column_is_obeyed(tmp_path):
    names = ["train", "Training", "dev", "validation", "test", "EVAL"]
    records = [r | {"part": names[i % 6]} for i, r in enumerate(rows(24))]
    corpus = read(write(tmp_path / "d.csv", records), split="part")
    assert corpus.split.tolist() == ["train", "train", "calibration", "calibration", "test", "test"] * 4


def test_a_single_held_out_part_becomes_two(tmp_path):
    records = [r | {"part": "train" if i < 20 else "dev"} for i, r in enumerate(rows(40))]
    corpus = read(write(tmp_path / "d.csv", records), split="part")
    assert (corpus.split[:20] == "train").all()
    for c in (0, 1):
        held_out = corpus.split[20:][corpus.label[20:] == c]
        assert sorted(held_out) == ["calibration"] * 5 + ["test"] * 5


@pytest.mark.parametrize(
    ("names", "counts"), [(["dev", "test"], (0, 20, 20)), (["test"], (0, 20, 20)), (["dev"], (0, 20, 20))]
)
def test_what_is_held_out_may_be_all_there_is(tmp_path, names, counts):
    records = [r | {"part": names[i // 2 % len(names)]} for i, r in enumerate(rows(40))]
    corpus = read(write(tmp_path / "d.csv", records), split="part")
    assert tuple(int((corpus.split == s).sum()) for s in ("train", "calibration", "test")) == counts
    with pytest.raises(BadInput, match="has no train examples"):
        corpus.part("train")


def test_leakage_of_a_given_split_is_seen(tmp_path):
    records = [r | {"part": ["train", "dev", "test"][i % 3]} for i, r in enumerate(rows(12))]
    records[2]["text"] = records[0]["text"] + " "
    path = write(tmp_path / "d.csv", records)
    with pytest.raises(BadInput, match=r"1 of 11 clusters .*'train', 'test', 2 rows in all.*--allow-leak"):
        read(path, split="part")
    corpus = read(path, split="part", allow_leak=True)
    assert np.flatnonzero(leaked(corpus)).tolist() == [2]


def test_limit_keeps_the_shares_of_a_given_split(tmp_path):
    records = [r | {"part": ["train", "dev", "test", "test"][i // 2 % 4]} for i, r in enumerate(rows(80))]
    corpus = read(write(tmp_path / "d.csv", records), split="part", limit=40)
    assert [int((corpus.split == s).sum()) for s in ("train", "calibration", "test")] == [10, 10, 20]


# -- what can be wrong


def raw(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def zipped(members: dict[str, str]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as z:
        for name, data in members.items():
            z.writestr(name, data)
    return made.getvalue()


def tarred(name: str, data: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as t:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        t.addfile(member, io.BytesIO(data.encode()))
    return made.getvalue()


HEAD = "text,label\n"
GOOD = "".join(f"some text {i},{'ab'[i % 2]}\n" for i in range(12))

WRONG = {
    "empty.csv": ("", "is empty (0 bytes)"),
    "blank.csv": ("\n\n  \n", "only blank lines"),
    "header.csv": (HEAD, "has columns but no rows"),
    "ragged.csv": (HEAD + GOOD + "a,b,c\n", "line 14: 3 fields found, 2 expected ('text', 'label')"),
    "short.csv": (HEAD + '"two\nlines",a\nalone\n', "line 4: 1 field found, 2 expected"),
    "quote.csv": (HEAD + GOOD + '"never closed,a\nmore,b\n', "line 14: the quotes of the record"),
    "stray.csv": (HEAD + '"a" b,c\n', "line 2: the quotes of the record"),
    "twice.csv": ("text,label,text\na,b,c\n", "the header names 'text' more than once"),
    "semicolon.csv": (
        "text;label\na;b\na;b;c\n",
        "line 3: 3 fields found, 2 expected ('text', 'label'). Put fields that hold a semicolon",
    ),
    "latin.csv": ((HEAD + GOOD).encode() + "café,a\n".encode("latin-1"), "byte 0xE9 at offset 184 (line 14)"),
    "bom_latin.csv": (b"\xef\xbb\xbftext,label\ncaf\xe9,a\n", "byte 0xE9 at offset 17 (line 2)"),
    "utf16.csv": ((HEAD + GOOD).encode("utf-16"), "is in UTF-16"),
    "misspelt.csv": ("txet,label\n" + GOOD, "no column 'text'. Did you mean 'txet'? Its columns are 'txet', 'label'"),
    "nolabel.csv": ("text,group\n" + GOOD, "no column 'label'. Its columns are 'text', 'group'"),
    "gap.csv": (HEAD + GOOD + ",a\n  ,b\nx,a\n", "column 'text': no text in lines 14 and 15"),
    "gaplabel.csv": (HEAD + GOOD + "x,\ny,NaN\n", "column 'label': no label in lines 14 and 15"),
    "oneclass.csv": (HEAD + "x,a\ny,a\nz,a\n", "only one class in column 'label': 'a'"),
    "numbers.csv": (HEAD + "1.5,a\n2,b\n-3e4,a\n", "numbers where text belongs (such as '1.5' in line 2)"),
    "few.csv": (HEAD + "x,a\ny,b\nz,a\n", "too few rows for three splits (3 rows, and 1 different"),
    "same.csv": (HEAD + "x,a\nx,a\nx,a\ny,b\ny,b\ny,b\n", "too few rows for three splits (6 rows, and 1 different"),
    "ids.csv": (HEAD + "".join(f"text {i},id{i}\n" for i in range(150)), "150 different labels in 150 rows"),
    "twice.jsonl": (
        '{"text": "a", "label": "b"}\n{"text": "a", "label": "b", "label": "c"}\n',
        "line 2 names 'label' more than once. Rename one of them.",
    ),
    "twice.json": ('[{"text": "a", "label": "b", "text": "c"}]', "record 1 names 'text' more than once"),
    "twice_columns.json": ('{"text": ["a"], "label": ["b"], "text": ["c"]}', "names 'text' more than once"),
    "broken.jsonl": ('{"text": "a", "label": "b"}\n\n{"text": "a", "label"\n', "line 3: not valid JSON"),
    "list.jsonl": ('{"text": "a", "label": "b"}\n["a", "b"]\n', "line 2: a list where an object belongs"),
    "deep.jsonl": ("[" * 100_000, "line 1: not valid JSON"),
    "huge.jsonl": ('{"text": "a", "label": ' + "1" * 5000 + "}", "line 1: not valid JSON"),
    "partly.jsonl": ('{"text": "a", "label": "b"}\n{"label": "c"}\n', "no text in line 2"),
    "nan.jsonl": ('{"text": "a", "label": "b"}\n{"text": NaN, "label": "c"}\n', "no text in line 2"),
    "number.jsonl": ('{"text": "a", "label": "b"}\n{"text": 3, "label": "c"}\n', "numbers where text belongs (line 2"),
    "object.jsonl": ('{"text": {"a": 1}, "label": "b"}\n', "'dict' where text belongs (line 1"),
    "many.jsonl": ('{"text": "a", "label": {"b": 1}}\n', "an object in line 1, but each text needs one class"),
    "half.jsonl": ('{"text": "a \\ud83d", "label": "b"}\n', "line 1 holds half a character (a surrogate, U+D83D)"),
    "broken.json": ('[{"text": "a",\n "label": }]', "line 2, column 11: not valid JSON"),
    "scalar.json": ("3", "holds a number. Give a list of objects"),
    "mixed.json": ('[{"text": "a", "label": "b"}, 4]', "record 2: a number where an object belongs"),
    "uneven.json": ('{"text": ["a", "b"], "label": ["x"]}', "its columns have different lengths"),
    "none.json": ("[]", "has columns but no rows"),
    "not.parquet": ("PAR1 but not really", "is not a readable parquet file"),
    "sheet.xlsx": ("PK", "ends in '.xlsx', which trueup does not read"),
    "utf16le.csv": (
        (HEAD + GOOD).encode("utf-16-le"),
        "is in UTF-16LE. Save it as UTF-8 (`iconv -f UTF-16LE -t UTF-8`)",
    ),
    "utf16be.tsv": ((HEAD + GOOD).encode("utf-16-be"), "is in UTF-16BE. Save it as UTF-8"),
    "utf32.csv": ((HEAD + GOOD).encode("utf-32"), "is in UTF-32. Save it as UTF-8 (`iconv -f UTF-32 -t UTF-8`)"),
    "xz.csv": (lzma.compress((HEAD + GOOD).encode()), "is packed with xz. Unpack it (`xz -dk`) and give that file"),
    "d.csv.xz": (lzma.compress((HEAD + GOOD).encode()), "is packed with xz"),
    "bz2.csv": (bz2.compress((HEAD + GOOD).encode()), "is packed with bzip2. Unpack it (`bzip2 -dk`)"),
    "zst.jsonl": (b"\x28\xb5\x2f\xfd" + bytes(40), "is packed with zstd"),
    "zip.csv": (
        zipped({"in/side.csv": HEAD + GOOD}),
        "is a zip archive. Unpack it and give the file in it; there are 'in/side.csv'.",
    ),
    "other.zip": (zipped({"a.txt": "x"}), "is a zip archive. Unpack it and give the file in it."),
    "torn.zip": (zipped({"a.csv": "x"})[:60], "is a zip archive"),
    "excel.csv": (
        zipped({"docProps/app.xml": "", "xl/workbook.xml": ""}),
        "is an Excel workbook. Save its sheet as 'CSV UTF-8'",
    ),
    "excel.xlsx": (zipped({"[Content_Types].xml": "", "xl/workbook.xml": ""}), "is an Excel workbook"),
    "calc.csv": (
        zipped({"mimetype": "application/vnd.oasis.opendocument.spreadsheet", "content.xml": ""}),
        "an OpenDocument file",
    ),
    "old.csv": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "is an old Office file (such as .xls)"),
    "columns.csv": (
        b"PAR1" + bytes(30) + b"PAR1",
        "is a parquet file. Let its name end in .parquet and give that file",
    ),
    "page.csv": (
        "\n<!DOCTYPE html>\n<html><body>Sign in, please</body></html>",
        "is a web page or XML, as a download leaves",
    ),
    "page.json": (b"\xef\xbb\xbf<HTML><p>404</p></HTML>", "is a web page or XML"),
    "page.parquet": ("<html>429</html>", "is a web page or XML"),
    "pointer.csv": (
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
        "pointer of Git LFS to data that are not",
    ),
    "pickle.csv": (pickle.dumps(["a", "b"], protocol=4), "is a pickle, which can run code and is not opened"),
    "tar.csv": (tarred("a.csv", HEAD + GOOD), "is a tar archive. Unpack it and give the file in it"),
    "tar.csv.gz": (gzip.compress(tarred("a.csv", HEAD + GOOD)), "is a tar archive"),
    "d.tar.gz": (gzip.compress(tarred("a.csv", HEAD + GOOD)), "ends in '.tar.gz', which trueup does not read"),
    "twice.csv.gz": (gzip.compress(gzip.compress(b"text")), "is packed with gzip twice"),
    "nothing.csv.gz": (gzip.compress(b""), "unpacks to nothing (0 bytes)"),
    "ends.csv.gz": (gzip.compress((HEAD + GOOD).encode())[:-12], "is a gzip file that cannot be unpacked"),
    "spoilt.csv": (gzip.compress((HEAD + GOOD).encode())[:12] + b"\xff" * 60, "is a gzip file that cannot be unpacked"),
    "rows.csv.gz": (gzip.compress((HEAD + GOOD + "a,b,c\n").encode()), "line 14: 3 fields found, 2 expected"),
    "not.parquet.gz": (gzip.compress(b"not really"), "is not a readable parquet file"),
    "noending": (HEAD + GOOD, "ends in '', which trueup does not read"),
}


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("named", [False, True])
def test_a_gzip_file_is_what_it_holds(tmp_path, ending, named):
    plain = write(tmp_path / f"p{ending}", rows())
    packed = tmp_path / (f"d{ending}.gz" if named else f"d{ending}")
    half = len(plain.read_bytes()) // 2
    # Two members, one after the other, are one file: bgzip and `cat` make such.
    packed.write_bytes(gzip.compress(plain.read_bytes()[:half]) + gzip.compress(plain.read_bytes()[half:]))
    assert read(packed, attributes=["site"]).fingerprint == read(plain, attributes=["site"]).fingerprint
    assert read(str(packed)).fingerprint == read(plain).fingerprint


def test_what_pandas_packs_is_read(tmp_path):
    pd.DataFrame(rows()).to_csv(tmp_path / "d.csv.gz", index=False)
    pd.DataFrame(rows()).to_json(tmp_path / "d.jsonl.gz", orient="records", lines=True)
    plain = read(write(tmp_path / "d.csv", rows())).fingerprint
    assert read(tmp_path / "d.csv.gz").fingerprint == read(tmp_path / "d.jsonl.gz").fingerprint == plain
    with pytest.raises(BadInput, match=r"Did you mean 'd\.csv\.gz'\?|Data files in .*'d\.csv\.gz', 'd\.jsonl\.gz'"):
        read(tmp_path / "dd.csv.gz")
    with pytest.raises(BadInput, match=r"in it there are 'd\.csv', 'd\.csv\.gz', 'd\.jsonl\.gz'"):
        read(tmp_path)


def test_a_gzip_file_may_not_unpack_to_what_no_memory_holds(tmp_path, monkeypatch):
    text = (HEAD + GOOD).encode()
    path = raw(tmp_path / "d.csv.gz", gzip.compress(text))
    monkeypatch.setattr(files, "UNPACKED", len(text))
    assert len(read(path)) == 12, "the control: just as much as may be"
    monkeypatch.setattr(files, "UNPACKED", len(text) - 1)
    with pytest.raises(BadInput, match=r"unpacks to more than .* GiB, .*Unpack it yourself \(`gunzip -k`\)"):
        read(path)


LONG = "text,label\n" + "".join(f"a fine film {i},pos\na poor film {i},neg\n" for i in range(30))
AS_JSON = json.dumps([{"text": f"film {i}", "label": "ab"[i % 2]} for i in range(60)])


@pytest.mark.parametrize(
    ("name", "text", "bound", "said"),
    [
        ("d.csv", LONG, {"MOST_ROWS": 59}, "holds more than 59 rows, the most that is read of a file"),
        ("d.csv", LONG, {"UNPACKED": 800}, "GiB of text in 'label', 'text', the most that is read"),
        ("d.csv", LONG + '"' + "x" * 50, {"LONGEST": 40}, "line 62: it is 40 characters long or longer"),
        ("d.csv", LONG + '"' + "x\n" * 30, {"LONGEST": 40}, "line 62: a field of the record that starts here is longer than 40"),
        ("d.jsonl", AS_JSON[1:-1].replace("}, ", "}\n"), {"MOST_ROWS": 59}, "holds more than 59 rows"),
        ("d.jsonl", AS_JSON[1:-1].replace("}, ", "}\n"), {"LONGEST": 30}, "line 1: it is 30 characters long or longer"),
        ("d.json", AS_JSON, {"LONGEST_JSON": 999}, "is longer than 999 characters, the most that is read of one JSON list"),
        ("d.json", AS_JSON, {"MOST_ROWS": 59}, "holds more than 59 rows"),
        ("d.json", '{"data": ' + AS_JSON + "}", {"LONGEST": 999}, "longer than 999 characters, the most that is read of one JSON"),
    ],
)  # fmt: skip
def test_a_file_of_no_end_is_refused_before_memory_is(tmp_path, monkeypatch, name, text, bound, said):
    path = raw(tmp_path / name, text.encode())
    if '"' + "x" not in text:
        assert len(read(path)) == 60, "the control"
    for constant, value in bound.items():
        monkeypatch.setattr(files, constant, value)
    with pytest.raises(BadInput, match=re.escape(said)):
        read(path)
    limit = csv.field_size_limit()
    assert limit != 40


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".csv", "/".join(["a" * 200] * 30), "~no.such.user/d.csv"])
def test_a_name_that_no_file_can_have(name):
    with pytest.raises(
        BadInput, match=rf"^The path '{re.escape(name[:80])}.*' cannot be followed \(.*\)\. Correct it\.$"
    ):
        read(name)


def test_a_column_without_a_name(tmp_path):
    for which in ("text", "label"):
        with pytest.raises(BadInput, match=f"^The {which} column has an empty name"):
            read(write(tmp_path / "d.csv", rows()), **{which: ""})


def test_rows_are_read_as_they_come(tmp_path):
    """A file of 12 MB, of which the columns asked for are 1%, takes no memory to speak of."""
    path = tmp_path / "wide"
    for ending, one in (
        (".csv", lambda i, long: f'"good, {i}",{"ab"[i % 2]},{long}\n'),
        (".jsonl", lambda i, long: json.dumps({"text": f"good, {i}", "label": "ab"[i % 2], "body": long}) + "\n"),
    ):
        file = path.with_suffix(ending)
        head = "text,label,body\n" if ending == ".csv" else ""
        file.write_text(head + "".join(one(i, "y" * 3000) for i in range(4000)))
        tracemalloc.start()
        try:
            table = files.read_file(file, ["text", "label"])
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert (len(table), list(table.columns), table.every) == (4000, ["text", "label"], ["text", "label", "body"])
        assert table.columns["text"][-1] == "good, 3999"
        assert peak < 3e6, ending


@pytest.mark.parametrize("bad", ["latin", "cut"])
def test_a_byte_that_is_no_utf8_is_placed_wherever_it_stands(tmp_path, bad):
    """Also beyond the pieces in which a file is read, and where a character lies across two of them."""
    for before in (0, 8190, 2**20 - 18, 2**20 - 17, 2**20 + 5):
        head = b"text,label\n" + "é".encode() + b"a" * before + b",pos\n"
        data = head + (b"caf\xe9,neg\n" if bad == "latin" else b"caf\xc3")
        with pytest.raises(
            BadInput, match=rf"byte 0x{'E9' if bad == 'latin' else 'C3'} at offset {len(head) + 3} \(line 3\)"
        ):
            read(raw(tmp_path / "d.csv", data))


def test_a_json_list_is_taken_apart_as_the_json_module_does(tmp_path):
    """3,000 mutations of a list: the same records, or an error at the same place."""
    rng, sound, failed = np.random.default_rng(0), 0, 0
    whole = json.dumps([{"text": "a [b", "label": 1, "x": [1, {"y": None}]}, {"text": "é,]", "label": 2}], indent=1)
    for _ in range(3000):
        text = list(whole)
        for _ in range(rng.integers(1, 3)):
            at = int(rng.integers(len(text)))
            text[at : at + int(rng.integers(0, 2))] = str(rng.choice(list('[]{},:"\\ \n1a')))
        text = "".join(text)
        if not text.lstrip().startswith("["):
            continue
        try:
            theirs = json.loads(text, parse_constant=files._constant)
        except json.JSONDecodeError as e:
            failed += 1
            place = (e.lineno, e.colno)
            with pytest.raises((json.JSONDecodeError, BadInput)) as caught:
                files._json_list(text, tmp_path, ["text", "label", "x"])
            if isinstance(caught.value, json.JSONDecodeError):  # else a record before that place is none
                assert (caught.value.lineno, caught.value.colno) == place, text
        else:
            sound += 1
            if all(isinstance(r, dict) for r in theirs):
                table = files._json_list(text, tmp_path, list({k for r in theirs for k in r}))
                assert len(table) == len(theirs)
                assert {k: [r.get(k) for r in theirs] for k in table.columns} == table.columns
    assert min(sound, failed) > 300


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_one_sentence_with_the_place_and_the_next_step(tmp_path, name):
    data, said = WRONG[name]
    with pytest.raises(BadInput) as caught:
        read(raw(tmp_path / name, data))
    message = str(caught.value)
    assert said in message
    assert name in message
    assert "\n" not in message
    assert message.rstrip()[-1] in ".)"
    assert len(message) < 700
    assert "Traceback" not in message


def test_the_good_file_of_these_tests_is_good(tmp_path):
    assert len(read(raw(tmp_path / "good.csv", HEAD + GOOD))) == 12


def test_many_places_are_counted(tmp_path):
    with pytest.raises(BadInput, match=r"no text in lines 2, 3, 4, 5, 6 and 15 more\. Fill in or delete them"):
        read(write(tmp_path / "d.csv", [r | {"text": ""} for r in rows(20)]))


def test_parquet_numbers_and_nulls_and_twice(tmp_path):
    path = tmp_path / "d.parquet"
    with pytest.raises(BadInput, match="numbers where text belongs"):
        read(write(path, [r | {"text": i} for i, r in enumerate(rows())]))
    with pytest.raises(BadInput, match="no text in row 1"):
        read(write(path, [{"text": None, "label": "no"}, *rows()]))
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), path)
    with pytest.raises(BadInput, match="names the column 'text' more than once"):
        read(path)


def test_a_missing_file_names_its_neighbours(tmp_path):
    write(tmp_path / "reviews.csv", rows())
    with pytest.raises(BadInput, match=r"no file .*\. Did you mean 'reviews.csv'\?"):
        read(tmp_path / "review.csv")
    with pytest.raises(BadInput, match=r"does not exist\. Correct the path"):
        read(str(tmp_path / "none" / "review.csv"))
    with pytest.raises(BadInput, match=r"is a folder\. Name one data file; in it there are 'reviews\.csv'"):
        read(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_to_nothing_says_so_and_is_no_neighbour(tmp_path):
    write(tmp_path / "reviews.csv", rows())
    (tmp_path / "review.csv").symlink_to(tmp_path / "gone.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(BadInput, match=r"review\.csv' is a link to '.*gone\.csv', which is not there"):
        read(tmp_path / "review.csv")
    with pytest.raises(BadInput, match=r"Data files in '.*': 'reviews\.csv'\. Correct"):
        read(tmp_path / "rewiew.csv")
    (tmp_path / "linked.csv").symlink_to(tmp_path / "reviews.csv")
    assert len(read(tmp_path / "linked.csv")) == len(read(tmp_path / "reviews.csv")), "the control"


def test_a_byte_order_mark_that_stands_twice_is_no_part_of_a_name(tmp_path):
    write(tmp_path / "once.csv", rows())
    (tmp_path / "twice.csv").write_bytes(b"\xef\xbb\xbf" * 2 + (tmp_path / "once.csv").read_bytes())
    assert list(read(tmp_path / "twice.csv").text) == list(read(tmp_path / "once.csv").text)


def test_split_columns_that_cannot_be_used(tmp_path):
    path = tmp_path / "d.csv"
    write(path, [r | {"part": "train" if i else "extra"} for i, r in enumerate(rows())])
    with pytest.raises(BadInput, match=r"no split is called 'extra' \(line 2\)\. Use train"):
        read(path, split="part")
    write(path, [r | {"part": "train"} for r in rows()])
    with pytest.raises(BadInput, match=r"every row says 'train'.*Name some test, or leave the split column out"):
        read(path, split="part")
    with pytest.raises(BadInput, match=r"no column 'prat'\. Did you mean 'part'"):
        read(path, split="prat")
    with pytest.raises(BadInput, match=r"no column 'sitte'\. Did you mean 'site'"):
        read(path, attributes=["sitte"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fractions": (0.5, 0.5)}, "fractions"),
        ({"fractions": (0.8, 0.2, 0.0)}, "above 0"),
        ({"fractions": (0.8, 0.2, 0.2)}, "sum to 1"),
        ({"fractions": (float("nan"), 0.5, 0.5)}, "above 0"),
        ({"limit": 0}, "limit is 0"),
        ({"limit": 1}, "larger limit"),
        ({"limit": 4}, "larger limit"),
        ({"label": "text"}, "named twice"),
        ({"second": "text"}, "named twice"),
        ({"classes": ["yes", "yes", "no"]}, "one class twice"),
        ({"hub_split": "train"}, "no hub dataset"),
    ],
)
def test_options_that_cannot_be_used(tmp_path, options, said):
    with pytest.raises(BadInput, match=said):
        read(write(tmp_path / "d.csv", rows()), **options)


@given(st.binary(max_size=200), st.sampled_from([".csv", ".tsv", ".json", ".jsonl", ".parquet"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
def test_no_file_whatever_gives_a_traceback(tmp_path, data, ending):
    said = "."
    try:
        read(raw(tmp_path / f"d{ending}", data))
    except TrueupError as e:  # any other error fails the test
        said = str(e)
    assert said[-1] in ".)"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["text", "label"]), inner, max_size=2),
    max_leaves=4,
)


@given(
    st.lists(st.fixed_dictionaries({"text": st.text(max_size=5) | ANYTHING, "label": ANYTHING}), max_size=9) | ANYTHING,
    st.sampled_from([".json", ".jsonl"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
def test_no_json_whatever_gives_a_traceback(tmp_path, thing, ending):
    said = "."
    text = json.dumps(thing) if ending == ".json" or not isinstance(thing, list) else "\n".join(map(json.dumps, thing))
    try:
        read(raw(tmp_path / f"d{ending}", text), attributes=["label"] if ending == ".json" else ())
    except TrueupError as e:  # any other error fails the test
        said = str(e)
    assert said[-1] in ".)"


# -- hub


@pytest.fixture
def hub(monkeypatch):
    import datasets

    calls: list[tuple] = []

    def use(answer):
        def load_dataset(path, name=None, split=None):
            calls.append((path, name, split))
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    return use


def part(n: int, start: int = 0, hidden: bool = False, column: str = "sentence"):
    import datasets

    features = datasets.Features(
        {
            column: datasets.Value("string"),
            "label": datasets.ClassLabel(names=["bad", "good"]),
            "i": datasets.Value("int32"),
        }
    )
    data = {
        column: [f"hub text {i}" for i in range(start, start + n)],
        "label": [-1 if hidden else i % 2 for i in range(n)],
        "i": list(range(n)),
    }
    return datasets.Dataset.from_dict(data, features)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("embeded:tweets", "'embedded:tweets'"),
        ("tweets", "'embedded:tweets', 'confounded:tweets'"), ("tsk:plural", "'task:plural'"),
        ("heldout", "'held-out.csv'"), ("someone/else", ""),
    ],
)  # fmt: skip
def test_data_that_no_hub_has_may_be_a_file_or_data_that_come_with_it(hub, tmp_path, monkeypatch, name, meant):
    (tmp_path / "held-out.csv").write_text("text,label\na,x\n")
    monkeypatch.chdir(tmp_path)
    hub(ConnectionError("no network"))
    with pytest.raises(Unavailable) as e:
        read(name)
    assert (f"Did you mean {meant}?" in str(e.value)) if meant else ("Did you mean" not in str(e.value))


def test_a_benchmark_with_hidden_test_labels(hub):
    import datasets

    parts = {"train": part(20), "validation": part(12, 20), "test": part(8, 40, hidden=True)}
    calls = hub(datasets.DatasetDict(parts))
    corpus = read("org/bench:sst2", text="sentence")
    assert calls == [("org/bench", "sst2", None)]
    assert corpus.classes == ("bad", "good")
    assert len(corpus) == 32
    assert (corpus.split[:20] == "train").all()
    assert sorted(corpus.split[20:]) == ["calibration"] * 6 + ["test"] * 6


def test_three_named_splits_are_kept_and_others_left(hub):
    import datasets

    parts = {"test": part(6, 20), "train": part(20), "dev": part(4, 30), "extra": part(9, 50)}
    hub(datasets.DatasetDict(parts))
    corpus = read("org/bench", text="sentence")
    assert [int((corpus.split == s).sum()) for s in ("train", "calibration", "test")] == [20, 4, 6]


def test_one_part_is_split_here(hub):
    import datasets

    hub(datasets.DatasetDict({"train": part(20)}))
    assert sorted(set(read("bench", text="sentence").split)) == ["calibration", "test", "train"]
    calls = hub(part(20))
    assert len(read("bench", text="sentence", hub_split="train[:20]")) == 20
    assert calls[-1] == ("bench", None, "train[:20]")


def test_hub_troubles_are_sentences(hub):
    import datasets

    hub(part(20))
    with pytest.raises(BadInput, match=r"no column 'sentense'\. Did you mean 'sentence'\?.*'sentence', 'label', 'i'"):
        read("bench", text="sentense")
    hub(part(8, hidden=True))
    with pytest.raises(BadInput, match=r"no label in rows test\[0\], test\[1\].*hub_split"):
        read("bench", text="sentence", hub_split="test")
    hub(datasets.DatasetDict({"train": part(8), "test": part(8, column="other")}))
    with pytest.raises(BadInput, match="Part 'test' of 'bench' has no column 'sentence'"):
        read("bench", text="sentence")
    hub(datasets.DatasetDict({"a": part(8), "b": part(8)}))
    with pytest.raises(BadInput, match="splits 'a', 'b', none of a known name"):
        read("bench", text="sentence")
    hub(datasets.exceptions.DatasetNotFoundError("no"))
    with pytest.raises(BadInput, match="no dataset 'bench' on the hub"):
        read("bench")
    hub(ValueError("Config name is missing. Please pick one among ['a', 'b']"))
    with pytest.raises(BadInput, match=r"Please pick one.*'bench:CONFIG'"):
        read("bench")
    for error in (ConnectionError("x"), TimeoutError("x"), type("ProxyError", (Exception,), {})("x")):
        hub(error)
        with pytest.raises(Unavailable, match="Check the network"):
            read("bench")


def test_a_near_file_is_named_when_the_hub_has_nothing(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "reviews.csv", rows())
    hub(ConnectionError("x"))
    with pytest.raises(Unavailable, match=r"Did you mean 'reviews.csv'\?"):
        read("reviews")


def test_reading_leaves_the_datasets_library_as_loud_as_it_was(hub):
    import datasets

    hub(part(20))
    before = (datasets.utils.logging.get_verbosity(), datasets.are_progress_bars_disabled())
    read("bench", text="sentence")
    assert (datasets.utils.logging.get_verbosity(), datasets.are_progress_bars_disabled()) == before


def test_reading_a_file_imports_neither_torch_nor_datasets(tmp_path):
    import subprocess
    import sys

    write(tmp_path / "d.csv", rows())
    code = (
        "import sys; from trueup.corpus.read import read; import trueup.store.packages, trueup.corpus.embedded; "
        "read('d.csv'); print(sorted({'torch', 'transformers', 'datasets', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert KINDS


# -------------------------------------------------------------------------------------------- what strangers put into files

ROWS = [f"the film was good {i}" for i in range(60)]
LABELS = ["a", "b"] * 30


def jsonl(path: Path, **more: Any) -> Path:
    rows = [
        {"text": t, "label": y} | {k: v(i) for k, v in more.items()}
        for i, (t, y) in enumerate(zip(ROWS, LABELS, strict=True))
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_labels_of_more_digits_than_python_reads_are_in_order(tmp_path):
    path = tmp_path / "d.csv"
    small, large = "2" * 5000, "1" * 5001
    path.write_text("text,label\n" + "\n".join(f"{t},{large if i % 2 else small}" for i, t in enumerate(ROWS)))
    assert read(path).classes == (small, large)


@pytest.mark.parametrize("column", ["label", "site"])
def test_half_a_character_is_named_in_every_column_that_is_read(tmp_path, column: str):
    path = jsonl(tmp_path / "d.jsonl", **{column: lambda i: "\ud800" if i == 3 else "xy"[i % 2]})
    with pytest.raises(BadInput, match=rf"column '{column}': line 4 holds half a character \(a surrogate, U\+D800\)"):
        read(path, attributes=["site"] if column == "site" else ())
    if column == "site":  # the control
        read(path)


@pytest.mark.parametrize("text", ["sep=;\n", "sep=,\n\n\n"])
def test_a_file_of_its_sign_alone(tmp_path, text: str):
    path = tmp_path / "d.csv"
    path.write_text(text)
    with pytest.raises(BadInput, match="is empty but for its first line"):
        read(path)


def parquet(path: Path, **more: Any) -> Path:
    pq.write_table(pa.table({"text": ROWS, "label": LABELS} | more), path)
    return path


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "good", "completion": "yes"}, "give --text prompt --label completion."),
        ({"messages": [{"role": "user", "content": "good"}]}, "trueup does not read chats ('messages')"),
        ({"conversations": [{"from": "human", "value": "good"}]}, "trueup does not read chats ('conversations')"),
    ],
)
def test_rows_of_supervised_fine_tuning_are_told_how_to_go_on(tmp_path: Path, row: dict, says: str):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for _ in range(4)))
    with pytest.raises(BadInput, match="has no column 'text'") as refused:
        read(file)
    assert says in str(refused.value)
    with pytest.raises(BadInput, match="has no column 'site'") as other:
        read(file, text=next(iter(row)), label="site")
    assert says not in str(other.value), "the user has named the text"


def test_only_the_columns_asked_for_are_read(tmp_path):
    """A date that Python has no word for costs nothing where nobody asked for its column, and is a sentence where one did."""
    path = parquet(tmp_path / "d.parquet", when=pa.array([2**62] * 60, pa.timestamp("us")))
    assert read(path).classes == ("a", "b")
    with pytest.raises(BadInput, match=r"column 'when': date value out of range\. Write the column as text"):
        read(path, attributes=["when"])
    with pytest.raises(BadInput, match=r"has no column 'whn'\. Did you mean 'when'\? Its columns are .*'when'"):
        read(path, attributes=["whn"])


def test_a_column_that_nobody_named_costs_nothing_but_itself(tmp_path):
    """A search reads the other columns too: one that cannot be read is a note, and no end of a check that did not ask for it."""
    site = ["x", "y"] * 30
    path = parquet(tmp_path / "d.parquet", when=pa.array([2**62] * 60, pa.timestamp("us")), site=site)
    got = read(path, others=True)
    assert (len(got), got.others) == (60, {})
    assert any("left out" in n and "column 'when': date value out of range" in n for n in got.notes)
    sound = read(parquet(tmp_path / "sound.parquet", site=site), others=True)  # the control
    assert list(sound.others) == ["site"]
    assert not any("left out" in n for n in sound.notes)


NAMES = b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": [[1], null]}}}}'


@pytest.mark.parametrize("said", [b"[" * 100_000, NAMES])
def test_metadata_that_names_no_classes_names_none(tmp_path, said: bytes):
    table = pa.table({"text": ROWS, "label": [0, 1] * 30}).replace_schema_metadata({b"huggingface": said})
    pq.write_table(table, tmp_path / "d.parquet")
    assert read(tmp_path / "d.parquet").classes == ("0", "1")


def test_a_small_file_of_a_long_text_many_times(tmp_path, monkeypatch):
    """Some kilobytes of a packed column may stand for gigabytes."""
    monkeypatch.setattr(files, "UNPACKED", 10**6)
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 2000), pa.array(["good " * 200]))
    pq.write_table(pa.table({"text": texts, "label": ["a", "b"] * 1000}), path := tmp_path / "d.parquet")
    assert path.stat().st_size < 10_000
    with pytest.raises(BadInput, match=r"columns 'text', 'label' hold more than .* GiB of text"):
        read(path)
    blob = pa.DictionaryArray.from_arrays(pa.array([0] * 60), pa.array(["x" * 10**6]))
    assert len(read(parquet(path, blob=blob))) == 60, "the control: nobody asks for that column"


def test_texts_that_a_file_keeps_once_are_the_same(tmp_path):
    """As a dictionary or not, in groups of rows, with empty cells: the values are those that were written."""
    values = [None if i % 7 == 0 else f"s{i % 5}" for i in range(60)]
    plain_path, packed = tmp_path / "a.parquet", tmp_path / "b.parquet"
    table = pa.table({"text": ROWS, "label": LABELS, "site": values})
    pq.write_table(table, plain_path, use_dictionary=False)
    pq.write_table(table, packed, use_dictionary=["label", "site"], row_group_size=7)
    a, b = (read(p, attributes=["site"]) for p in (plain_path, packed))
    assert a.text == b.text == ROWS
    assert (
        a.attributes["site"].tolist()
        == b.attributes["site"].tolist()
        == ["(missing)" if v is None else v for v in values]
    )


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "d.csv")
    with pytest.raises(BadInput, match="is no plain file"):
        read(tmp_path / "d.csv")


LABELS_AS_PLACES = {
    "csv of pandas": ("False", "True"), "csv of R": ("FALSE", "TRUE"), "JSON": (False, True), "numbers": (0, 1),
    "floats": (0.0, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("kind", LABELS_AS_PLACES)
def test_true_and_false_are_places_as_a_trainer_reads_them(tmp_path, kind):
    two = LABELS_AS_PLACES[kind]
    path = jsonl(tmp_path / "d.jsonl", label=lambda i: two[i % 2])
    corpus = read(path, classes=["neg", "pos"])
    assert [corpus.classes[i] for i in corpus.label[:2]] == ["neg", "pos"]
    (note,) = corpus.notes
    what = "numbers" if kind in ("numbers", "floats") else "true and false"
    assert note.startswith(f"Labels that are {what} were read as places among the classes that you gave: ")
    assert not read(path).guessed
    if kind not in ("numbers", "floats"):
        with pytest.raises(BadInput, match="is none of the classes 'a', 'b', 'c'"):
            read(path, classes=["a", "b", "c"])


def test_labels_that_are_nearly_the_same_are_told(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", label=lambda i: ("pos", "neg", "Pos")[i % 3])
    (note,) = read(path).notes
    assert "'Pos', 'pos' differ only in upper and lower case or in spaces, and were read as different classes" in note
    assert read(jsonl(tmp_path / "d.jsonl", label=lambda i: ("pos", "neg", "good")[i % 3])).notes == ()
    path = jsonl(tmp_path / "d.jsonl", label=lambda i: ("POS", "NEG")[i % 2])
    with pytest.raises(BadInput, match=r"'POS' in .* is none of the classes 'neg', 'pos'\. Did you mean 'pos'\?"):
        read(path, classes=["neg", "pos"])


def test_scores_are_no_classes(tmp_path):
    (note,) = read(jsonl(tmp_path / "d.jsonl", label=lambda i: (0.0, 0.5)[i % 2])).notes
    assert "numbers with fractions, such as 0.5, and each was read as the name of a class" in note
    assert read(jsonl(tmp_path / "d.jsonl", label=lambda i: (0.0, 5.0)[i % 2])).notes == (), (
        "the control: whole numbers"
    )
    with pytest.raises(BadInput, match=r"60 different labels in 60 rows, such as .*trueup does not examine regression"):
        read(jsonl(tmp_path / "d.jsonl", label=lambda i: i / 7))


def test_a_file_with_hidden_labels_says_what_they_are(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", label=lambda i: -1)
    with pytest.raises(
        BadInput, match=r"only one class in column 'label': '-1'\. A label of -1 is what benchmarks write"
    ):
        read(path)
    path = jsonl(tmp_path / "d.jsonl", label=lambda i: -1 if i > 40 else i % 2)
    with pytest.raises(
        BadInput, match=r"'-1' in .* is none of the classes 'a', 'b'.* A label of -1 is what benchmarks write"
    ):
        read(path, classes=["a", "b"])


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 1, 0.5, 1], r"'0\.5' in row 2 is none of the classes 'neg', 'pos'\..* Numbers are read as places"),
        ([1, 2, 1, 2], r"'2' in rows 1 and 3 is none"),
        ([0, 1, "maybe", 1], r"'maybe' in row 2 is none of the classes 'neg', 'pos'\. Correct"),
        (["true", "1", "0", "false"], r"'true' in rows 0, 1, 2 and 1 more is none"),  # of one kind each, and not of one
    ],
)
def test_where_some_labels_are_places_the_others_are_named(labels, said):
    with pytest.raises(BadInput, match=said):
        read((["one", "two", "three", "four"], labels), classes=["neg", "pos"])


def test_clusters_that_no_split_can_part_are_told_as_such():
    texts, labels = [f"text {i}" for i in range(60)], ["a", "b"] * 30
    site = ["x" if i % 4 < 2 or i == 3 else "y" for i in range(60)]
    site = ["y" if i == 0 else s for i, s in enumerate(site)]  # x has more of b, y more of a
    with pytest.raises(BadInput, match=r"too few clusters for two splits: its 60 rows are 2 .*more clusters"):
        read({"text": texts, "label": labels, "site": site}, cluster="site", held_out=True)


def test_lists_of_one_and_zero_in_both_orders_are_marks_and_in_one_order_are_ids():
    texts = [f"text {i}" for i in range(40)]
    marks = [[1.0, 0.0] if i % 2 else [0.0, 1.0] for i in range(40)]
    corpus = read((texts, marks), classes=["neg", "pos"])
    assert corpus.labels is not None
    assert np.array_equal(corpus.labels, np.array(marks) > 0)
    with pytest.raises(BadInput, match="all texts have the same labels"):  # each has both
        read((texts, [[0, 1]] * 40), classes=["neg", "pos"])
