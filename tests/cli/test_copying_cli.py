"""Copying through the command line: found, repaired, repeated by its own command, and refused in one sentence."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from cli_cases import Said, trueup, write_csv

HEADER = ("x", "y", "part")
ASKED = ("--text", "x", "--label", "y", "--shots", 4, "--template", "{text} {label}")


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, which copies; its ``pairs.csv``; ``prose.csv``, ordinary text in its words; and ``bert``, an encoder."""
    from trueup.faults.copying import planted as P
    from trueup.subject.tiny import make_base

    folder = tmp_path_factory.mktemp("copying")
    (folder / "base").symlink_to(P._base("planted"))
    make_base("bert", folder / "bert")
    corpus = P._corpus("planted")
    names = [corpus.classes[y] for y in corpus.label]
    write_csv(folder / "pairs.csv", zip(corpus.text, names, corpus.split, strict=True), HEADER)
    prose = [(" ".join(P.FILLERS[(i + j) % 8] for j in range(6)), "ab"[i % 2]) for i in range(40)]
    write_csv(folder / "prose.csv", [(f"{t} key{i % 12}", c) for i, (t, c) in enumerate(prose)])
    return folder


def pairs_of(folder: Path) -> list[list[str]]:
    with open(folder / "pairs.csv", newline="") as f:
        return list(csv.reader(f))[1:]


def words(sick: Path, *more: object, command: str = "check", model: str = "base", data: object = None) -> list[object]:
    """The command, without what examines other faults."""
    fault = ["copying"] if command == "audit" else []
    alone = ["--fault", "copying"] if command == "check" else []
    quick = ["--set", "copying.resamples=50", "--set", f"copying.prose={sick / 'prose.csv'}"]
    data = data or sick / "pairs.csv"
    return [command, *fault, sick / model, "--data", data, *alone, *quick, *more]


@pytest.fixture(scope="module")
def done(sick: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    out = tmp_path_factory.mktemp("done") / "out"
    return out, trueup(*words(sick, *ASKED, "--split", "part", "-o", out))


def told(out: Path) -> dict:
    return json.loads((out / "findings.json").read_text())


def test_a_check_finds_and_repairs(done: tuple[Path, Said]) -> None:
    out, said = done
    assert (said.err, said.code) == ("", 1)
    assert f"Report: {out / 'report.html'}" in said.out
    assert f"Repaired adapter: {out / 'copying'}" in said.out
    assert "Copying" in (out / "report.html").read_text()
    (c,) = told(out)["comparisons"]
    assert c["before"]["found"] is True
    assert c["after"]["severity"] < 0.2 * c["before"]["severity"]
    assert c["differences"]["severity"]["high"] < 0


def test_the_repaired_adapter_is_examined_again_without_more_words(
    done: tuple[Path, Said], sick: Path, here: Path
) -> None:
    adapter = done[0] / "copying"
    said = trueup(
        *words(
            sick, "--text", "x", "--label", "y", "--split", "part", "--adapter", adapter, "-o", "again", command="audit"
        )
    )
    assert (said.err, said.code) == ("", 0)
    (first,), (again,) = told(done[0])["comparisons"], told(here / "again")["comparisons"]
    assert again["before"]["severity"] == first["after"]["severity"]
    assert again["before"]["provenance"]["shots"] == 4


def test_the_command_in_the_report_repeats_it(done: tuple[Path, Said], sick: Path, here: Path) -> None:
    said = trueup(*words(sick, *ASKED, "--split", "part", "-o", "first", command="audit"))
    assert (said.err, said.code) == ("", 1)
    again = shlex.split(told(here / "first")["provenance"]["command"])
    assert again[again.index("--shots") + 1] == "4"
    assert again[again.index("--template") + 1] == "{text} {label}"
    assert trueup(*again[1:-1], "second").code == 1
    first, second = told(here / "first"), told(here / "second")
    assert first["comparisons"] == second["comparisons"]
    assert first["comparisons"][0]["after"] is None


def test_beside_other_faults_a_subject_without_shots_is_not_asked_for_copies(
    sick: Path, world: Path, here: Path
) -> None:
    said = trueup(
        "audit", "copying", world / "bert", "--adapter", world / "adapter", "--data", world / "data.csv", "-o", "out"
    )
    assert said.code == 2
    assert "No fault can be examined here. copying: " in said.err
    assert "is an encoder" in said.err


def test_a_text_with_two_answers_is_refused(sick: Path, here: Path) -> None:
    rows = pairs_of(sick)
    x, y, part = rows[7]
    write_csv(here / "twice.csv", [*rows, ("  ".join(x.split()), "amber" if y != "amber" else "blue", part)], HEADER)
    said = trueup(*words(sick, *ASKED, "-o", "out", command="audit", data=here / "twice.csv"))
    assert said.code == 2, said
    assert "gives two answers to" in said.err
    assert x.split()[-1] in said.err
    write_csv(here / "again.csv", [*rows, rows[7]], HEADER)
    assert trueup(*words(sick, *ASKED, "-o", "out", command="audit", data=here / "again.csv")).code in (0, 1)


REFUSED = {
    "encoder": ("bert", ASKED, ("'bert' is an encoder", "demonstrations in its prompt", "causal model")),
    "verbaliser": ("base", (*ASKED, "--verbaliser", "amber,blue"), ("bring their own answers", "leave --verbaliser out")),
    "no label": ("base", (*ASKED[:-1], "{text} ->"), ("has no {label} in it", "'{text} -> {label}")),
    "no text": ("base", (*ASKED[:-1], "-> {label}"), ("has no {text} in it",)),
    "label first": ("base", (*ASKED[:-1], "{label} {text}"), ("the answer must come after the text",)),
    "pairs": ("base", (*ASKED, "--second", "part"), ("one text and its answer", "leave --second out")),
    "none": ("base", (*ASKED[:5], 0, *ASKED[6:]), ("0 demonstrations", "--shots 4")),
    "many": ("base", (*ASKED[:5], 9000, *ASKED[6:]), ("9000 demonstrations need 9000 pairs", "there are", "--shots")),
    "long": ("base", (*ASKED, "--max-length", 12), ("with 4 demonstrations", "12 are read", "--max-length")),
    "task": ("base", (*ASKED[4:], "--limit", 100), ("reads the answer '", "back as '[UNK]", "drop its pairs")),
    "knob": ("base", (*ASKED, "--set", "copying.resamples=1"), ("copying.resamples is 1", "10 or more")),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(sick: Path, here: Path, name: str) -> None:
    model, more, says = REFUSED[name]
    data = "task:length" if name == "task" else None
    before = sorted(here.rglob("*"))
    said = trueup(*words(sick, *more, "-o", "runs/out", command="audit", model=model, data=data))
    assert (said.code, said.out) == (2, ""), said
    assert said.err.startswith("trueup: ")
    assert said.err.count("\n") == 1, said.err
    assert said.err.rstrip()[-1] in ".?)", said.err
    for part in says:
        assert part in said.err, said.err
    assert sorted(here.rglob("*")) == before, "something was written"


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        ({"train": 3}, "4 demonstrations need 4 pairs to draw from, and there are 3"),
        ({"test": 9}, "9 queries to examine; copying needs at least 10"),
    ],
)
def test_too_few_pairs(sick: Path, here: Path, keep: dict[str, int], says: str) -> None:
    def audit(more: int) -> Said:
        few: list[list[str]] = []
        for row in pairs_of(sick):
            if sum(r[2] == row[2] for r in few) < keep.get(row[2], 10**6) + more:
                few.append(row)
        write_csv(here / "few.csv", few, HEADER)
        return trueup(*words(sick, *ASKED, "--split", "part", "-o", "out", command="audit", data=here / "few.csv"))

    said = audit(0)
    assert (said.code, said.out) == (2, "")
    assert says in said.err
    assert not (here / "out").exists()
    assert audit(1).code in (0, 1), "the control: with one more it is examined"


def open_pairs(n: int) -> list[tuple[str, str]]:
    """Pairs no two of which have one answer, in words that the planted model knows."""
    from trueup.faults.copying import planted as P

    words = [*P.ANSWERS, *P.FILLERS]
    names = [f"{a} {b}" for a in words for b in words if a != b][:n]
    return [(f"{name} key{i % 12}", name) for i, name in enumerate(names)]


def test_with_shots_answers_need_not_be_classes(sick: Path, here: Path) -> None:
    """120 different answers in 120 rows: no classes to a classifier, and nothing odd to a prompt."""
    write_csv(here / "open.csv", open_pairs(120), ("x", "y"))
    said = trueup(*words(sick, *ASKED, "-o", "out", command="audit", data=here / "open.csv"))
    assert said.code in (0, 1), said
    found = told(here / "out")
    assert found["provenance"]["examples"] == {"train": 48, "calibration": 36, "test": 36}
    assert len(found["provenance"]["classes"]) == 120
    assert found["comparisons"][0]["before"]["provenance"]["pool"] == 48
    # The control: without shots the same column does not hold classes.
    bare = trueup("audit", "overconfidence", sick / "base", "--data", here / "open.csv", *ASKED[:4], "-o", "bare")
    assert bare.code == 2
    assert "120 different labels in 120 rows, so it does not hold classes" in bare.err


@pytest.mark.parametrize("n", [25, 34])
def test_few_pairs_with_shots_are_split_and_what_they_are_too_few_for_is_said(sick: Path, here: Path, n: int) -> None:
    write_csv(here / "few.csv", open_pairs(n), ("x", "y"))
    said = trueup(*words(sick, *ASKED, "-o", "out", command="audit", data=here / "few.csv"))
    if n == 34:
        assert said.code in (0, 1), said
        assert told(here / "out")["provenance"]["examples"] == {"train": 14, "calibration": 10, "test": 10}
        return
    assert (said.code, said.out) == (2, "")
    assert (
        "gives 7 queries to examine; copying needs at least 10. Give 34 pairs or more to have so many split off, or a larger "
        "test split." in said.err
    )
    as_classes = (*ASKED[:4], "--verbaliser", "yes,no")
    bare = trueup("audit", "overconfidence", sick / "base", "--data", here / "few.csv", *as_classes, "-o", "bare")
    assert "too few rows for three splits" in bare.err


def test_an_adapter_that_was_made_for_shots_reads_answers_too(done: tuple[Path, Said], sick: Path, here: Path) -> None:
    write_csv(here / "open.csv", open_pairs(120), ("x", "y"))
    said = trueup(
        *words(sick, "--text", "x", "--label", "y", "--adapter", done[0] / "copying", "-o", "out", command="audit",
               data=here / "open.csv")
    )  # fmt: skip
    assert said.code in (0, 1), said
    assert told(here / "out")["comparisons"][0]["before"]["provenance"]["shots"] == 4


def test_answers_that_went_on_after_a_class_are_told(sick: Path, here: Path) -> None:
    """The planted model says its answer again and again. To a prompt whose lines end with a word it never says, that is more."""

    def notes(template: str, out: str) -> list[str]:
        asked = ("--text", "x", "--label", "y", "--shots", 4, "--template", template)
        assert trueup(*words(sick, *asked, "-o", out, command="audit")).code in (0, 1)
        return [n for n in told(here / out)["notes"] if "went on after a class's name" in n]

    (note,) = notes("{text} {label} film", "more")
    assert re.match(
        r"\d+ of \d+ answers went on after a class's name and were counted as no class, such as '\w+ \w+", note
    )
    assert notes("{text} {label}", "whole") == [], "the control"


def test_demonstrations_need_training_examples(sick: Path, here: Path) -> None:
    write_csv(here / "held.csv", [r for r in pairs_of(sick) if r[2] != "train"], HEADER)
    said = trueup(*words(sick, *ASKED, "--split", "part", "-o", "out", data="held.csv", command="audit"))
    assert (said.code, said.out) == (2, "")
    assert (
        "'held.csv' has no train examples, and they are needed here. Add some and say 'train' in the column of `--split`"
        in said.err
    )
    assert said.err.count("\n") == 1
    assert not (here / "out").exists()


# ------------------------------------------------------------------------------------------ a prompt of the user's own

DEMOS = (("the cat sat key0", "amber"), ("a dog on key4", "amber"), ("on the mat key1", "blue"))


def test_a_prompt_with_fixed_demonstrations_and_a_header(sick: Path, tmp_path: Path, here: Path) -> None:
    write_csv(tmp_path / "demos.csv", DEMOS, ("x", "y"))
    own = ("--demos", tmp_path / "demos.csv", "--header", "the film", "--split", "part")
    asked = ("--text", "x", "--label", "y", "--template", "{text} {label}")
    said = trueup(*words(sick, *asked, *own, "-o", "out", command="audit"))
    assert (said.err, said.code) == ("", 1)
    (c,) = told(here / "out")["comparisons"]
    assert "With 3 fixed demonstrations it is right on" in c["before"]["sentence"]
    job = json.loads((here / "out" / "job.json").read_text())
    assert (job["demos"], job["header"]) == (str(tmp_path / "demos.csv"), "the film")
    # The same from a jsonl file, and by the command that the report gives.
    lines = [json.dumps({"x": x, "y": y}) for x, y in DEMOS]
    (tmp_path / "demos.jsonl").write_text("\n".join(lines))
    own = ("--demos", tmp_path / "demos.jsonl", *own[2:])
    again = trueup(*words(sick, *asked, *own, "-o", "again", command="audit"))
    assert again.code == 1
    assert told(here / "again")["comparisons"][0]["before"]["severity"] == c["before"]["severity"]


@pytest.mark.parametrize(
    ("lines", "options", "says"),
    [
        ("x,y\na,amber\n", ("--shots", 4), "--shots asks for 4 demonstrations, and '{file}' has 1 pairs"),
        ("x,z\na,amber\n", (), "'{file}' has no column 'y'. Its columns are 'x', 'z'; name the right one."),
        ("x,y\na,amber\nb,\n", (), "'{file}', column 'y': no label in line 3. Fill in or delete it."),
        ("x,y\na,amber\n ,blue\n", (), "'{file}', column 'x': no text in line 3."),
        ("x,y\na,amber\nb,c,d\n", (), "'{file}', line 3: 3 fields found, 2 expected"),
        ("x,y\na,amber\na,blue\n", (), "'{file}', column 'x': lines 2 and 3 hold the same text, 'a'."),
        ("x,y\na,amber\n", ("--header", "{text}: "), "The header '{{text}}: ' has {{text}} in it"),
    ],
)
def test_demonstrations_that_cannot_be_used(
    sick: Path, tmp_path: Path, here: Path, lines: str, options: tuple[object, ...], says: str
) -> None:
    file = tmp_path / "demos.csv"
    file.write_text(lines)
    asked = ("--text", "x", "--label", "y", "--template", "{text} {label}", "--split", "part", "--demos", file)
    said = trueup(*words(sick, *asked, *options, "-o", "out", command="audit"))
    assert said.code == 2
    assert says.format(file=file) in said.err


def test_demonstrations_that_are_not_there_and_a_model_that_is_not_asked_so(sick: Path, here: Path) -> None:
    said = trueup(
        *words(sick, "--text", "x", "--label", "y", "--demos", sick / "demos.csv", "-o", "o", command="audit")
    )
    assert said.code == 2
    assert "There is no file" in said.err
    asked = ("--template", "{text}", "--verbaliser", "amber,blue,coral,denim")
    columns = ("--text", "x", "--label", "y", "--split", "part")
    said = trueup(*words(sick, *columns, *asked, "--header", "the", "-o", "o", command="audit"))
    assert said.code == 2
    assert "--header and --demos go with prompts that show demonstrations" in said.err


def test_an_answer_that_no_pair_of_the_data_has_is_noted(sick: Path, tmp_path: Path, here: Path) -> None:
    write_csv(tmp_path / "demos.csv", [*DEMOS, ("a film key2", "the")], ("x", "y"))
    asked = ("--text", "x", "--label", "y", "--template", "{text} {label}", "--split", "part")
    said = trueup(*words(sick, *asked, "--demos", tmp_path / "demos.csv", "-o", "out", command="audit"))
    assert said.code in (0, 1)
    assert "give 'the', which no pair of the data has as its answer" in " ".join(told(here / "out")["notes"])


# ------------------------------------------------------------------------------------------------------------- a chat


@pytest.fixture(scope="module")
def instruct(sick: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base with a chat template whose turns are the lines of the other tests, in its tokenizer's words."""
    folder = shutil.copytree((sick / "base").resolve(), tmp_path_factory.mktemp("chat") / "instruct")
    (folder / "MANIFEST.json").unlink(missing_ok=True)
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    chat = no_system + "{% for m in messages %}{{ m.content }} {% endfor %}"
    (folder / "chat_template.jinja").write_text(chat)
    return folder


def test_a_chat_is_asked_by_the_tokenizers_template_and_recorded(
    sick: Path, instruct: Path, here: Path, done: tuple[Path, Said]
) -> None:
    asked = ("--text", "x", "--label", "y", "--shots", 4, "--split", "part")
    said = trueup(*words(sick, *asked, "--chat", "-o", "out", command="audit", model=str(instruct)))
    assert (said.err, said.code) == ("", 1)
    assert json.loads((here / "out" / "job.json").read_text())["chat"] is True
    assert " --chat " in (here / "out" / "report.html").read_text()
    (c,), (lines,) = told(here / "out")["comparisons"], told(done[0])["comparisons"]
    assert c["before"]["severity"] == lines["before"]["severity"], "the same tokens"
    refused = trueup(*words(sick, *asked, "--chat", "-o", "not", command="audit"))
    assert refused.code == 2
    assert "The tokenizer has no chat template, so --chat has nothing to spell turns with." in refused.err
    headed = ("--chat", "--header", "the film", "-o", "not")
    refused = trueup(*words(sick, *asked, *headed, command="audit", model=str(instruct)))
    assert refused.code == 2
    assert "takes no system message (no system). Leave --header out, or put it into --template" in refused.err
    assert refused.err.count("\n") == 1
