"""What a sweep's file comes to, and where it says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweep_cases import AUDITS, NAMES, sweep_file

from trueup.errors import BadInput
from trueup.job import Job
from trueup.sweeps.plan import Cell, cells_of, shard


def cells(folder: Path, text: str) -> list[Cell]:
    return cells_of(sweep_file(folder, text))


def test_a_matrix_is_every_combination(world):
    found = cells(world, AUDITS)
    assert [c.name for c in found] == NAMES
    assert [(c.settings["adapter"], c.settings["seed"]) for c in found] == [
        (f"runs/{a}/best", s) for a in "ab" for s in (0, 1)
    ]
    job = found[0].job()
    assert isinstance(job, Job)
    assert (job.depth, job.faults, job.knobs["overconfidence"]["folds"]) == ("audit", ("overconfidence",), 2)


def test_include_adds_and_exclude_takes_away(world):
    found = cells(
        world,
        """
        defaults: {model: bert, data: data.csv}
        matrix: {adapter: runs/*/best, seed: [0, 1], confounder: [site, [site, label]]}
        include:
          - {name: plain, adapter: runs/a/best}
          - {max_length: 64}
        exclude:
          - {adapter: "*/b/*"}
          - {seed: 1, confounder: site}
        """,
    )
    assert [c.name for c in found] == [
        "a_seed=0_site",
        "a_seed=0_site+label",
        "a_seed=1_site+label",
        "plain",
        "max_length=64",
    ]
    assert found[0].settings["confounder"] == ["site"]
    assert found[-1].settings == {"model": "bert", "data": "data.csv", "max_length": 64}


def test_a_tuning_has_its_own_settings(world):
    [cell] = cells(
        world,
        """
        steps: [tune, check]
        defaults: {model: bert, data: data.csv, kind: lora, rank: 4, lr: 1e-3, epochs: 2, seed: 3, cluster: site}
        """,
    )
    job, check = cell.tune_job(), cell.job("there")
    assert (job.recipe.rank, job.recipe.alpha, job.seed, dict(job.training)) == (4, 8, 3, {"lr": 1e-3, "epochs": 2})  # type: ignore[attr-defined]
    assert check is not None
    assert (check.adapter, check.seed, check.cluster, check.depth) == ("there", 3, "site", "check")


def test_words_that_look_like_numbers_stay_words(world):
    [cell] = cells(world, "defaults: {model: bert, data: data.csv, label: 2024, confounder: 1.50, classes: [no, 1e3]}")
    assert (cell.settings["label"], cell.settings["confounder"], cell.settings["classes"]) == (
        "2024",
        ["1.50"],
        ["no", "1e3"],
    )


def test_cells_of_one_base_stand_together(world):
    found = cells(world, "defaults: {data: data.csv}\nmatrix: {seed: [0, 1], model: [b, a]}")
    assert [c.settings["model"] for c in found] == ["a", "a", "b", "b"]


@given(n=st.integers(0, 40), parts=st.integers(1, 12))
def test_shards_are_a_partition_in_order(n, parts):
    all_of = [Cell(str(i), ("check",)) for i in range(n)]
    got = [shard(all_of, f"{i}/{parts}") for i in range(1, parts + 1)]
    assert [c for part in got for c in part] == all_of
    assert max(map(len, got)) - min(map(len, got)) <= 1


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3"])
def test_no_such_shard(part):
    with pytest.raises(BadInput, match="is no part of a sweep"):
        shard([], part)


BASE = "defaults: {model: bert, data: data.csv}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("default: {model: bert}", "line 1: there is no 'default' here. Did you mean 'defaults'?"),
        ("defaults:\n  modle: bert", "line 2: there is no 'modle' here. Did you mean 'model'?"),
        ("defaults:\n  max-length: 5", "Did you mean 'max_length'?"),
        ("defaults: [a]", "line 1: the settings is a mapping"),
        ("- a", "a sweep is a mapping"),
        (BASE + "steps: [tune, chekc]", "line 2: there is no step 'chekc'. Did you mean 'check'?"),
        (BASE + "steps: [check, tune]", "do not follow each other"),
        (BASE + "matrix: {rank: [1, 2]}", "line 2: 'rank' goes with the step tune"),
        (BASE + "steps: tune\nmatrix: {confounder: site}", "line 3: 'confounder' goes with the step check"),
        (BASE + "steps: [tune, check]\nmatrix: {kind: lora, adapter: x}", "'adapter' is what the step tune makes"),
        (BASE + "matrix: {seed: [0, one]}", "line 2: 'seed' is a whole number, and 'one' was given"),
        (BASE + "matrix: {seed: [1.5]}", "'seed' is a whole number, and '1.5' was given"),
        (BASE + "matrix: {keep: [1]}", "'keep' is true or false"),
        (BASE + "matrix: {seed: [0, 0]}", "line 2: '0' stands twice under seed"),
        (BASE + "matrix: {seed: []}", "the matrix has no value for 'seed'"),
        (BASE + "matrix: {seed: }", "'seed' has no value"),
        (BASE + "matrix: {model: {a: 1}}", "'model' is a word, and 'a mapping' was given"),
        (BASE + "matrix: {knobs: [3]}", "'knobs' maps names to values"),
        (BASE + "matrix: {adapter: run/*/best}", "the pattern 'run/*/best' matches no folder"),
        (BASE + "matrix: {adapter: run*}", "none of which holds an adapter_config.json"),
        (BASE + "exclude: {seed: 1}", "`exclude` is a list"),
        (BASE + "exclude: [{}]", "would exclude every cell"),
        (BASE + "matrix: {seed: [1]}\nexclude: [{seed: 1}]", "no cell is left"),
        (BASE + "include: [{name: a/b}]", "is no name of a folder"),
        (BASE + "include: [{name: a, seed: 1}, {name: A, seed: 2}]", "two cells have the name 'A'"),
        (
            BASE + "matrix: {seed: [0, 1]}\nexclude: [{seed: 7}]",
            "line 3: this entry of `exclude` is of no cell of the matrix",
        ),
        (BASE + "matrix: {seed: [-1]}", "'seed' is at least 0 and at most 4,294,967,295, and -1 was given"),
        (BASE + "matrix: {limit: [0]}", "'limit' is at least 3"),
        (BASE + "matrix: {model: ['']}", "'model' is empty"),
        (BASE + 'include: [{adapter: "a\\0b"}]', "line 2: 'adapter' holds a NUL character"),
        (BASE + "matrix: {knobs: [{overconfidence: 3}]}", "'knobs' maps names to values"),
        (BASE + "include: [{adapter: runs/*/best}]", "stands for several adapters. Patterns go under `matrix`"),
        (BASE + "include: [{seed: 1}, {seed: 1}]", "They ask the same."),
        ("defaults: {model: bert}", "does not say which data"),
        (BASE + "steps: tune", "does not say which kind"),
        (BASE + "steps: tune\nmatrix: {kind: [lorra]}", "There is no kind of adapter 'lorra'. Did you mean 'lora'?"),
        (BASE + "steps: tune\nmatrix: {kind: prompt, rank: 3}", "'rank' does not go with the kind 'prompt'"),
        (
            BASE + "matrix: {faults: [[confounding], confuonding]}",
            "There is no fault 'confuonding'. Did you mean 'confounding'?",
        ),
        (BASE + "matrix: {knobs: [{copying: {shot: 1}}]}", "'copying' has no setting 'shot'"),
        (
            "defaults:\n  faults:\n    - confounding\n    - typo\nmatrix: {seed: [0]}",
            "line 4: There is no fault 'typo'",
        ),
        ("defaults:\n  knobs:\n    copyin: {shot: 1}", "line 3: There is no fault 'copyin'. Did you mean 'copying'?"),
        (
            "defaults:\n  knobs:\n    overconfidence:\n      folds: 3\n      thresold: 1\nmatrix: {seed: [0]}",
            "line 5: 'overconfidence' has no setting 'thresold'",
        ),
        ("defaults:\n  knobs:\n    overconfidence:\n      folds: 1", "line 4: The setting overconfidence.folds is 1;"),
        (
            f"matrix:\n  knobs:\n    - overconfidence:\n        folds: {10**400}",
            "line 4: The setting overconfidence.folds is a whole",
        ),
        (
            f"matrix:\n  knobs:\n    - overconfidence:\n        threshold: {10**400}",
            "line 4: The setting overconfidence.threshold is a",
        ),
        (
            "steps: tune\ndefaults:\n  model: bert\n  data: data.csv\n  rank: 3\nmatrix:\n  kind: [lora, prompt]",
            "line 5, cell 'prompt': 'rank' does not go with the kind 'prompt'",
        ),
        ("steps: tune\ndefaults:\n  seed: 1\n  kind: lorra", "line 4: There is no kind of adapter 'lorra'"),
        *(
            (f"{BASE}{part}: {entry.format(key, value)}", f"line 2: '{key}' is at least {least} and at most ")
            for part, entry in (("matrix", "{{{}: [{}]}}"), ("include", "[{{{}: {}}}]"), ("exclude", "[{{{}: {}}}]"))
            for key, least in (("seed", 0), ("limit", 3), ("max_length", 4), ("shots", 0))
            for value in (10**400, -1)
        ),
        *(
            (
                BASE + f"steps: tune\ninclude: [{{kind: lora, {key}: {10**400}}}]",
                f"line 3: '{key}' is at least 1 and at most ",
            )
            for key in ("rank", "tokens", "epochs", "batch")
        ),
        (BASE + f"matrix: {{seed: [{'1' * 4400}]}}", "cannot be read"),
        *((BASE + f"include: [{{seed: {v}}}]", "'seed' is a whole number") for v in ("true", ".inf", ".nan", "1e3")),
        *(
            (BASE + f"steps: tune\ninclude: [{{kind: lora, lr: {v}}}]", "line 3: 'lr' is a number")
            for v in ("true", ".inf", ".nan", "1e999", 10**400)
        ),
        (
            BASE + "matrix:\n  data:\n    - data.csv\n    - ./data.csv",
            "line 4) are one job, which would be done twice. Their data is './data.csv' and 'data.csv', which comes to the same.",
        ),
        (
            BASE + "include:\n  - {name: a, adapter: runs/a/best}\n  - {name: b, adapter: runs//a/../a/best/}",
            "line 4: the cells 'b' and 'a'",
        ),
        (
            BASE + "include:\n  - {name: a, demos: gone.csv}\n  - {name: b, demos: ./gone.csv}",
            "which comes to the same",
        ),
        (BASE + "matrix: {seed: [0, 1]}\ninclude:\n  - {name: zero, seed: 0}", "line 4: the cells 'zero' and 'seed=0'"),
        (
            BASE + "include:\n  - {name: a}\n  - {name: b, text: text}",
            "Their text is 'text' and left out, which comes to the",
        ),
        (
            BASE + f"matrix: {{seed: {list(range(400))}, limit: {list(range(3, 303))}}}",
            "the matrix comes to 120,000 cells, and a sweep has at most 100,000",
        ),
    ],
)
def test_what_is_wrong_is_said_where_it_stands(world, text, said):
    with pytest.raises(BadInput) as e:
        cells(world, text)
    assert said in str(e.value), str(e.value)
    assert "sweep.yaml" in str(e.value)


def test_words_that_make_no_folder_are_told_apart(world):
    found = cells(world, BASE + "matrix: {label: [ü, ö, 日本, 'a b', 'a,b'], text: [x, y]}")
    assert len({c.name for c in found}) == 10
    assert next(c.name for c in cells(world, BASE + "matrix: {verbaliser: [[a], [b]], shots: [1, 2]}")) == "a_shots=1"


def test_a_star_excludes_any_value(world):
    found = cells(
        world, BASE + "matrix: {seed: [0, 1], adapter: runs/*/best}\nexclude: [{seed: '*', adapter: '*/a/*'}]"
    )
    assert [c.name for c in found] == ["seed=0_b", "seed=1_b"]


def test_long_names_are_cut_and_stay_apart(world):
    found = cells(world, BASE + f"include: [{{text: {'x' * 200}}}, {{text: {'x' * 199}y}}]")
    assert len({c.name for c in found}) == 2
    assert all(len(c.name) <= 120 for c in found)


def test_cells_that_differ_in_anything_are_no_one_job(world):
    """The control of jobs that are told to be one."""
    (world / "link").symlink_to("runs")
    found = cells(
        world,
        BASE
        + """
matrix: {adapter: [runs/a/best, runs/b/best, link/a/best, org/name], seed: [0, 1]}
include:
  - {name: none}
  - {name: other, model: ./org/name}
""",
    )
    assert len(found) == 10


@pytest.mark.parametrize(
    ("text", "out", "said"),
    [
        (
            BASE + "matrix: {adapter: [runs/a/best]}",
            "runs/a/best/out",
            "line 2: the folder 'runs/a/best/out' that the sweep",
        ),
        (BASE + "include: [{adapter: runs/a/best}]", "runs/a/best", "lies in the adapter 'runs/a/best'"),
        ("include: [{model: bert, data: data.csv}]", "bert/x/y", "lies in the model 'bert'"),
        ("defaults: {data: data.csv}\ninclude: [{model: '.'}]", "out", "line 2: the folder 'out'"),
        (
            BASE + "include: [{adapter: runs/a/best}]",
            "runs",
            "the adapter 'runs/a/best' lies in 'runs', where the sweep itself",
        ),
        (BASE + "matrix: {adapter: 'runs/**/'}", "runs/out", "line 2: the pattern 'runs/**/' reaches into 'runs/out'"),
        (BASE + "matrix: {adapter: '*/*/*/report/over*'}", "out", "reaches into 'out'"),
        (BASE + "matrix: {adapter: ['out/cells/*/adapter', runs/a/best]}", "./out", "matches no folder"),
    ],
)
def test_what_cells_read_is_apart_from_what_they_write(world, text, out, said):
    for n, at in (("a", "odd/cells/x/report/overconfidence"), ("b", "runs/a/best/x")):
        (world / at).mkdir(parents=True)
        (world / at / "adapter_config.json").write_text(f'{{"{n}": 1}}')
    file = sweep_file(world, text)
    with pytest.raises(BadInput) as e:
        cells_of(file, out)
    assert said in str(e.value)


@pytest.mark.parametrize("out", ["out", "runs/out", "runs/a/out", "bert-out"])
def test_a_folder_beside_what_cells_read_is_fine(world, out):
    assert len(cells_of(sweep_file(world, AUDITS), out)) == 4
