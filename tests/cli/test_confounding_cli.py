"""Confounding through the command line: found, repaired, noted where it cannot be examined, and refused in one sentence."""

from __future__ import annotations

import csv
import json
import math
import shlex
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from cli_cases import FAST, Said, trueup, write_csv

HEADER = ("text", "label", "part", "site", "parity", "same", "constant", "id", "rare")
SCHEMA = json.loads((files("trueup.report") / "findings.schema.json").read_text(encoding="utf-8"))
QUICK = ("--set", "confounding.resamples=20")


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data.csv`` with a site that goes with the label, a tiny ``adapter`` (a soft prompt) that reads it, and ``base``."""
    from trueup.faults.confounding import planted as P
    from trueup.subject import adapter as files
    from trueup.subject.beside import CARD
    from trueup.subject.new_adapter import prompt_embeddings

    folder = tmp_path_factory.mktemp("sick")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUEUP_CACHE", str(folder / "cache"))
        patch.setattr(P, "SIZES", {"train": 300, "calibration": 400, "test": 400})
        corpus = P.corpus_of(P.COUPLED, seed=11)
        subject = P.subject_for(corpus.part("train"))
    names = [corpus.classes[y] for y in corpus.label]
    rows = [
        (t, name, part, site, ("even", "odd")[i % 2], f"is {name}", "all", f"row {i}", "rare" if i % 40 == 0 else site)
        for i, (t, name, part, site) in enumerate(
            zip(corpus.text, names, corpus.split, corpus.attributes["site"], strict=True)
        )
    ]
    write_csv(folder / "data.csv", rows, HEADER)
    # A positive is never rare among the loud here: 60 and 30 negatives beside all positives of the test split.
    seen = {"calm": 0, "loud": 0}
    tilted = []
    for r in rows:
        if r[2] == "test" and r[1] == "negative":
            seen[r[3]] += 1
            if seen[r[3]] > {"calm": 60, "loud": 30}[r[3]]:
                continue
        tilted.append(r)
    write_csv(folder / "tilted.csv", tilted, HEADER)
    (folder / "adapter").mkdir()
    files.save_tuned(subject, folder / "adapter", start=prompt_embeddings(subject))
    card = {"classes": list(subject.classes), "max_length": 32}
    (folder / "adapter" / CARD).write_text(json.dumps(card))
    (folder / "base").symlink_to(subject.source.base)
    return folder


def words(sick: Path, *more: object, command: str = "check", data: str = "data.csv") -> list[object]:
    fault = ["confounding"] if command in ("audit", "repair") else []
    return [
        command, *fault, sick / "base", "--adapter", sick / "adapter", "--data", sick / data, "--split", "part", *QUICK, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def done(sick: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """What a check of confounding alone said and wrote; two columns were named."""
    out = tmp_path_factory.mktemp("done") / "out"
    more = ("--confounder", "site", "--confounder", "parity", "--fault", "confounding", "--max-cost", 0.2, "-o", out)
    return out, trueup(*words(sick, *more))


def told(out: Path) -> dict:
    return json.loads((out / "findings.json").read_text())


def test_a_check_finds_and_repairs(done: tuple[Path, Said]) -> None:
    out, said = done
    assert (said.err, said.code) == ("", 1)
    assert f"Repaired adapter: {out / 'confounding'}" in said.out
    assert f"Report: {out / 'report.html'}" in said.out
    (c,) = told(out)["comparisons"]
    assert c["before"]["found"] is True
    assert c["before"]["details"]["attribute"] == "site"
    assert c["after"]["severity"] < 0.75 * c["before"]["severity"], "what the budget lets it take"
    assert c["differences"]["severity"]["high"] < 0
    page = (out / "report.html").read_text()
    assert "Confounding" in page
    assert "site is loud" in page


def test_another_repair_is_taken_by_its_name(done: tuple[Path, Said], sick: Path, here: Path) -> None:
    page = (done[0] / "report.html").read_text()
    (c,) = told(done[0])["comparisons"]
    tried = {a["key"]: a for a in c["alternatives"]}
    (chosen,) = [k for k, a in tried.items() if a["chosen"]]
    other = next(k for k, a in tried.items() if a["saveable"] and a["gain_low"] > 0 and not a["chosen"])
    assert "Gain and cost of the repairs" in page
    assert f"<code>--take {other}</code>" in page
    assert f"<code>--take {chosen}</code>" not in page
    assert other in done[1].out
    words_ = words(sick, "--confounder", "site", "--fault", "confounding", "-o", "out")
    assert trueup(*words_, "--take", other).code == 1
    (taken,) = told(here / "out")["comparisons"]
    assert [a["key"] for a in taken["alternatives"] if a["chosen"]] == [other]
    assert json.loads((here / "out" / "confounding" / "trueup.json").read_text())["chosen"] == other
    said = trueup(*words_, "--force", "--take", other + "x")
    assert said.code in (1, 2), said
    assert f"Did you mean '{other}'?" in said.err + said.out.replace("\n", " ")


def test_where_each_repair_costs_more_than_the_budget_the_word_is_trade_off(sick: Path, here: Path) -> None:
    said = trueup(*words(sick, "--confounder", "site", "--fault", "confounding", "--max-cost", 0, "-o", "out"))
    assert (said.err, said.code) == ("", 1)
    (c,) = told(here / "out")["comparisons"]
    assert (c["state"], c["adapter"]) == ("trade-off", None)
    assert "--max-cost" in c["remedy"]
    assert "--take" in c["remedy"]
    assert "trade-off" in said.out
    assert not (here / "out" / "confounding").exists()
    said = trueup(*words(sick, "--fault", "overconfidence", "--max-cost", 0.1, "-o", "other"))
    assert said.code == 2
    assert (
        "--max-cost goes with the repair of confounding and copying, and not with that of overconfidence." in said.err
    )


def test_of_two_columns_each_is_examined_and_the_pair(done: tuple[Path, Said], sick: Path) -> None:
    (c,) = told(done[0])["comparisons"]
    assert c["before"]["details"]["attribute"] == "site"
    assert [o["attribute"] for o in c["before"]["details"]["others"]] == ["parity", "site*parity"]
    assert "lean on site*parity" in c["differences"]


def test_a_column_that_leans_beside_the_headline_is_found_all_the_same(sick: Path, here: Path) -> None:
    more = ("--confounder", "site", "--confounder", "parity", "--set", "confounding.attribute=parity", "-o", "out")
    said = trueup(*words(sick, *more, command="audit"))
    assert (said.code, said.err) == (1, ""), said
    before = told(here / "out")["comparisons"][0]["before"]
    assert (before["details"]["attribute"], before["found"]) == ("parity", False)
    assert "site" in before["details"]["also found"]
    only = ("--confounder", "parity", "-o", "only")
    assert trueup(*words(sick, *only, command="audit")).code == 0, "the control: parity alone"


def test_a_repair_against_two_columns_at_once_needs_examples_of_every_pair(sick: Path, here: Path) -> None:
    more = (
        "--confounder",
        "site",
        "--confounder",
        "parity",
        "--max-cost",
        1,
        "--set",
        "confounding.attribute=site*parity",
    )
    said = trueup(*words(sick, *more, "--fault", "confounding", "-o", "out"))
    (c,) = told(here / "out")["comparisons"]
    assert (said.code, c["adapter"], c["before"]["details"]["attribute"]) == (1, None, "site*parity")
    assert "site*parity 'calm, even'; a repair needs 10 in every cell" in c["remedy"]


def test_a_column_that_nobody_named_is_scouted_and_repaired(sick: Path, here: Path) -> None:
    given = (sick / "base", "--adapter", sick / "adapter", "--data", sick / "data.csv", "--split", "part")
    said = trueup("scout", *given, "-o", "out")
    assert (said.code, said.err) == (0, ""), said
    found = json.loads((here / "out" / "scout.json").read_text())
    first = found["leads"][0]
    assert {"site", "rare", 'the word "loud"', 'the word "calm"'} & {x["name"] for x in found["leads"]}, found
    assert (first["rank"], first["low"] > 0.05) == (1, True)
    assert found["tried"]["column"] == 4, (
        "site, parity, rare, and the label under another name; neither ids nor constants"
    )
    assert {p.name for p in (here / "out").iterdir()} == {"scout.json", "job.json", "report.html", "manifest.json"}
    page = (here / "out" / "report.html").read_text()
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    again = trueup("scout", *given, "-o", "again", "--json")
    assert json.loads(again.out) == found
    line = said.out.replace("\n", " ").rpartition("To examine and repair the first: trueup ")[2]
    command = [w if w != "OUT" else "mended" for w in shlex.split(line)]
    done = trueup(*command, "--fault", "confounding", "--max-cost", 1, *QUICK)
    (c,) = json.loads((here / "mended" / "findings.json").read_text())["comparisons"]
    assert (done.code, c["adapter"]) == (1, "confounding"), done
    assert c["before"]["details"]["attribute"] == first["name"]
    assert c["differences"]["severity"]["high"] < 0
    # As many as it names, and no more.
    said = trueup(*command[:-2], "-o", "none", "--confounder", "scout:99")
    assert said.code == 2
    assert "There is no column 'scout:99'." in said.err
    assert "'scout:1'" in said.err


def test_a_check_without_a_column_searches_for_one(sick: Path, here: Path) -> None:
    """The same columns under the same numbers as the scout's; the file is the same to the byte in a second run."""
    given = words(sick, *FAST)
    said = trueup(*given, "-o", "out")
    assert said.code in (0, 1), said
    assert "Search for shortcuts (exploratory)" in said.out
    found = told(here / "out")
    assert list(jsonschema.Draft202012Validator(SCHEMA).iter_errors(found)) == []
    first = found["shortcuts"]["leads"][0]
    assert first["low"] > 0.05
    assert found["shortcuts"]["tried"]["column"] == 4, "the data's other columns too"
    onward = found["shortcuts"]["onward"]
    assert "--confounder scout:1" in onward
    assert onward in (here / "out" / "report.html").read_text().replace("&#39;", "'")
    assert not [c for c in found["comparisons"] if c["before"]["fault"] == "confounding"]
    seen = (here / "out" / "findings.json").read_bytes()
    again = trueup(*given, "-o", "out", "--force", "--quiet")
    assert again.code == said.code
    now = json.loads((here / "out" / "findings.json").read_text())
    assert json.dumps(now["shortcuts"]) == json.dumps(json.loads(seen)["shortcuts"])
    scouted = trueup("scout", *given[1:6], "--split", "part", "-o", "scouted")
    assert scouted.code == 0, scouted
    assert json.loads((here / "scouted" / "scout.json").read_text())["leads"][0]["name"] == first["name"]
    alone = trueup(*given, "--fault", "overconfidence", "-o", "alone")
    assert "shortcuts" not in told(here / "alone"), alone


def test_a_scout_reads_the_rows_that_the_check_of_its_column_reads(sick: Path, here: Path) -> None:
    """With --held-out there are other calibration and test examples, and the command that is printed says so."""
    given = (sick / "base", "--adapter", sick / "adapter", "--data", sick / "data.csv")
    said = trueup("scout", *given, "--held-out", "--dtype", "float32", "-o", "out")
    assert said.code == 0, said.err
    assert {"--held-out", "--dtype", "scout:1"} <= set(said.out.split())
    found = json.loads((here / "out" / "scout.json").read_text())
    examples = found["provenance"]["examples"]
    assert (examples["train"], abs(examples["calibration"] - examples["test"]) <= 2) == (0, True), examples
    rows = trueup("scout", *given, "-o", "split")
    assert json.loads((here / "split" / "scout.json").read_text())["provenance"]["examples"]["train"] > 0, rows


def test_a_scout_takes_what_a_check_takes_of_model_and_data(sick: Path, here: Path) -> None:
    import typer

    from trueup.cli.entry import app
    from trueup.cli.options import PANELS

    commands = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    check, scout = ({p.name for p in commands[name].params} for name in ("check", "scout"))
    wanted = {*PANELS["Model"], *PANELS["Data"]} - {"confounder"}
    assert wanted <= check
    assert wanted - scout == set()
    given = (sick / "base", "--adapter", sick / "adapter", "--data", sick / "data.csv", "--held-out")
    said = trueup("scout", *given, "-o", "out")
    assert said.code == 0, said
    found = json.loads((here / "out" / "scout.json").read_text())
    assert not any("add --held-out" in note for note in found["notes"])
    line = said.out.replace("\n", " ").rpartition("To examine the first: trueup ")[2]
    command = [w if w != "OUT" else "mended" for w in shlex.split(line)]
    assert "--held-out" in command
    trueup(*command, "--fault", "confounding", *QUICK)
    (c,) = told(here / "mended")["comparisons"]
    assert c["before"]["details"]["attribute"] == found["leads"][0]["name"]


def test_a_slip_in_a_scout_is_told_before_the_libraries_load(
    sick: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trueup.scouting._of_job", lambda job: pytest.fail("the libraries would be loaded here"))
    said = trueup(
        "scout", sick / "base", "--adapter", sick / "adapter", "--data", sick / "data.csv", "--text", "txt", "-o", "out"
    )
    assert said.code == 2
    assert "has no column 'txt'" in said.err


def test_a_scout_of_too_few_examples_says_how_many_there_are(sick: Path, here: Path) -> None:
    said = trueup(
        "scout", sick / "base", "--adapter", sick / "adapter", "--data", sick / "data.csv", "--limit", 60, "-o", "out"
    )
    assert said.code == 2
    assert "A scout needs two classes with 20 independent examples in calibration and in test each" in said.err
    assert not (here / "out").exists()


def test_the_repaired_adapter_loads_with_plain_peft(done: tuple[Path, Said], sick: Path) -> None:
    import peft
    import transformers

    import trueup as api
    from trueup.run.predict import predict

    out, _ = done
    base = transformers.AutoModelForSequenceClassification.from_pretrained(sick / "base", num_labels=2)
    model = peft.PeftModel.from_pretrained(base, str(out / "confounding")).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(sick / "base")
    corpus = api.read(str(sick / "data.csv"), split="part")
    few = corpus.part("test").take(np.arange(30))
    with torch.no_grad():
        plain = torch.cat([model(**tokenizer(t, return_tensors="pt")).logits for t in few.text]).numpy()
    # And trueup itself can go on from it.
    again = api.load(str(sick / "base"), str(out / "confounding"), device="cpu")
    assert np.allclose(predict(again, few).logits, plain, atol=1e-4)


def test_without_a_column_the_other_faults_are_examined_and_a_note_says_why(sick: Path, here: Path) -> None:
    said = trueup(*words(sick, *FAST, "-o", "out"))
    assert (said.code in (0, 1), said.err) == (True, ""), said
    report = told(here / "out")
    assert [c["before"]["fault"] for c in report["comparisons"]] == ["overconfidence"]
    assert any(
        n.startswith("confounding was not examined: ") and "--confounder COLUMN" in n for n in report["notes"]
    ), report["notes"]


def test_a_column_that_cannot_be_used_costs_the_other_faults_nothing(sick: Path, here: Path) -> None:
    said = trueup(*words(sick, *FAST, "--confounder", "constant", "-o", "out"))
    assert said.code in (1, 2), "a column that was named and not examined is no clean bill"
    report = told(here / "out")
    assert [c["before"]["fault"] for c in report["comparisons"]] == ["overconfidence"]
    (note,) = [n for n in report["notes"] if n.startswith("confounding was not examined: ")]
    assert "is 'all' in every example" in note
    assert said.err == f"trueup: {note}\n"


def test_without_training_examples_the_finding_stands_and_the_repair_says_what_to_add(sick: Path, here: Path) -> None:
    with open(sick / "data.csv", newline="") as f:
        header, *rows = csv.reader(f)
    write_csv(here / "held.csv", [r for r in rows if r[2] != "train"], header)
    said = trueup(*words(sick, "--confounder", "site", "--fault", "confounding", "-o", "out", data=here / "held.csv"))
    assert (said.code, said.err) == (1, "")
    (c,) = told(here / "out")["comparisons"]
    assert c["after"] is None
    assert (
        "has no train examples, and they are needed here. Add some and say 'train' in the column of `--split`"
        in c["remedy"]
    )


def test_a_finding_without_a_repair_is_still_a_finding(sick: Path, here: Path) -> None:
    """A repair needs ten calibration examples in every cell; the audit of the test split does not."""
    import csv

    with open(sick / "data.csv", newline="") as f:
        rows = list(csv.reader(f))[1:]
    kept = [r for r in rows if not (r[2] == "calibration" and r[1] == "positive" and r[3] == "calm")]
    write_csv(here / "data.csv", kept, HEADER)
    base = [
        "repair",
        "confounding",
        sick / "base",
        "--adapter",
        sick / "adapter",
        "--data",
        "data.csv",
        "--split",
        "part",
    ]
    said = trueup(*base, *QUICK, "--confounder", "site", "-o", "out")
    assert (said.code, said.err) == (1, ""), said
    (c,) = told(here / "out")["comparisons"]
    assert c["after"] is None
    assert c["remedy"].startswith("The calibration split of ")
    assert "0 examples with label 'positive' and site 'calm'" in c["remedy"]
    assert not (here / "out" / "confounding").exists()


# --------------------------------------------------------------------------------------------------------- bad input

REFUSED = {
    "misspelt": (("--confounder", "sit"), ("no column 'sit'", "Did you mean 'site'?")),
    "misspelt knob": (
        ("--confounder", "site", "--set", "confounding.attribute=sitee"),
        ("has no attribute 'sitee'", "Did you mean 'site'?", "--confounder COLUMN"),
    ),
    "none": ((), ("No column was named", "--confounder COLUMN")),
    "constant": (("--confounder", "constant"), ("is 'all' in every example", "--confounder COLUMN")),
    "identical": (("--confounder", "same"), ("is the label under another name", "name another column")),
    "id": (("--confounder", "id"), ("different values in", "as an id has")),
    "small cell": (("--confounder", "rare"), ("have label", "and rare 'rare'", "merge or drop rare values of 'rare'")),
    "a word": (
        ("--confounder", "site", "--set", "confounding.coupling=abc"),
        ("confounding.coupling is a number", "'abc' (str) was given", "--set confounding.coupling=0.0"),
    ),
    "negative": (("--confounder", "site", "--set", "confounding.coupling=-2"), ("confounding.coupling is -2", "ratio above 1")),
    "threshold": (("--confounder", "site", "--set", "confounding.threshold=2"), ("confounding.threshold is 2",)),
    "retrain": (("--confounder", "site", "--set", "confounding.retrain=yes"), ("confounding.retrain is true or false",)),
}  # fmt: skip


def refused(*argv: object, says: tuple[str, ...]) -> None:
    before = sorted(Path.cwd().rglob("*"))
    said = trueup(*argv)
    assert (said.code, said.out) == (2, ""), said
    assert said.err.startswith("trueup: ")
    assert said.err.count("\n") == 1, said.err
    assert said.err.rstrip()[-1] in ".?)", said.err
    for part in says:
        assert part in said.err, said.err
    assert sorted(Path.cwd().rglob("*")) == before, "something was written"


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(sick: Path, here: Path, name: str) -> None:
    more, says = REFUSED[name]
    refused(*words(sick, *more, "-o", "runs/out", command="audit"), says=says)


def test_when_every_fault_refuses_the_data_each_says_why(sick: Path, here: Path) -> None:
    import csv

    with open(sick / "data.csv", newline="") as f:
        rows = list(csv.reader(f))[1:]
    few = [r for r in rows if r[2] != "test"] + [r for r in rows if r[2] == "test"][:15]
    write_csv(here / "data.csv", few, HEADER)
    base = [
        "check",
        sick / "base",
        "--adapter",
        sick / "adapter",
        "--data",
        "data.csv",
        "--split",
        "part",
        *FAST,
        *QUICK,
    ]
    refused(*base, "--confounder", "site", "-o", "out", says=("confounding: ", "overconfidence: "))


def test_a_number_of_examples_that_is_an_estimate_is_told_in_two_digits() -> None:
    from trueup.faults.confounding.leads import Scouted

    for needed, said in ((36_488, "37,000"), (61, "61"), (101, "110")):
        found = Scouted((), (), 0, {"word": 3}, 0, 3, 40, 40, 0.05, 0.1, needed)
        assert f"about {said} independent test examples would name it" in found.sentence


def test_what_a_scout_prints_is_strict_json(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing was judged, the smallest lean that would be found is no number; Python's NaN is none in JSON."""
    from trueup import scouting
    from trueup.faults.confounding.leads import Scouted

    found = Scouted((), (), 0, {"word": 3}, 3, 0, 40, 40, 0.05, math.nan, None)
    monkeypatch.setattr(scouting, "run_scout", lambda *_, **__: found)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    said = trueup("scout", "embedded:minilm", "--data", "d.csv", "-o", "out", "--json")
    told = json.loads(said.out, parse_constant=refuse)
    assert told["smallest"] is None
    assert told["judged"] == 0
