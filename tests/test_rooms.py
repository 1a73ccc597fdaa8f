"""The room test: imports go down the floors only, and each outside library stands behind its one door."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import trueup

ROOT = Path(trueup.__file__).parent
FLOOR = {"errors": 0, "docstrings": 0,
         "versions": 1, "given": 1, "store": 1, "measure": 1, "guard": 2, "corpus": 2, "subject": 2, "run": 3,
         "faults": 4, "report": 5,
         "job": 5, "prepare": 6, "changes": 6, "caveats": 7, "tuning": 7, "fetching": 7, "exporting": 7, "estimator": 7,
         "story": 8, "demo": 9, "sweeps": 9, "scouting": 9,
         "experiments": 10, "cli": 11, "__main__": 12, "__init__": 13}  # fmt: skip
DOORS = {
    "transformers": {"subject"}, "peft": {"subject"}, "tokenizers": {"subject"}, "accelerate": {"run"},
    "typer": {"cli"}, "rich": {"cli", "report", "store"}, "datasets": {"corpus"}, "pyarrow": {"corpus", "sweeps"},
    "yaml": {"sweeps"}, "trackio": {"sweeps"}, "mlflow": {"sweeps"}, "ray": {"run"},
    "jinja2": {"report"}, "altair": {"report"}, "vl_convert": {"report"}, "huggingface_hub": {"store", "subject"},
    "onnx": {"run"}, "onnxruntime": {"run"},
}  # fmt: skip
EQUATIONS = ("maths", "objectives", "platt", "densities")
"""Files of a fault that hold equations only: functions of arrays and tensors, no model."""


def imports(source: str) -> list[str]:
    """Every module that a file names in an import, wherever it stands."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found += [node.module] if node.module != "trueup" else [f"trueup.{a.name}" for a in node.names]
    return found


def faults_in(path: Path, source: str) -> list[str]:
    """What is wrong with one file, as sentences."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    room, wrong = parts[0], []
    for name in imports(source):
        top, *rest = name.split(".")
        if top == "trueup" and rest and rest[0] in FLOOR:
            there = rest[0]
            if FLOOR[there] > FLOOR[room]:
                wrong.append(f"{path.name} ({room}) imports {name}, which is upstairs")
            if FLOOR[there] == FLOOR[room] and there != room:
                wrong.append(f"{path.name} ({room}) imports {name}, which is next door")
            if (
                room == "faults"
                and there == "faults"
                and len(parts) > 2
                and len(rest) > 1
                and rest[1] not in ("fault", "adapter_remedy", "card", parts[1])
            ):
                wrong.append(f"{path.name} imports another fault: {name}")
        if top in DOORS and room not in DOORS[top]:
            wrong.append(f"{path.name} ({room}) opens {top}, whose door is {DOORS[top]}")
        if room == "measure" and top == "torch":
            wrong.append(f"{path.name} is numbers only, and imports {name}")
        if parts[-1] in EQUATIONS and top == "trueup" and rest and rest[0] in ("run", "subject", "corpus"):
            wrong.append(f"{path.name} is equations only, and imports {name}")
    return wrong


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    assert faults_in(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("run/predict.py", "from trueup.faults.fault import Finding"),
        ("corpus/read.py", "import transformers"),
        ("corpus/read.py", "from trueup.subject.subject import Subject"),
        ("measure/selective.py", "import torch"),
        ("faults/copying/maths.py", "from trueup.run.predict import predict"),
        ("faults/overconfidence/densities.py", "from trueup.run.predict import predict"),
        ("faults/overconfidence/audit.py", "from trueup.faults.copying import maths"),
        ("story.py", "import typer"),
    ],
)
def test_a_wrong_import_is_noticed(where, line):
    assert faults_in(ROOT / where, line)


def module_of(path: Path) -> str:
    parts = ("trueup", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def needed(source: str, known: Mapping[str, Path]) -> set[str]:
    """The modules of trueup that a file imports: at its top, inside functions, and for types alone."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            whole = {f"{node.module}.{a.name}" for a in node.names}
            found |= (whole & known.keys()) or {node.module}
    # The package hands out names of every room, and rooms read its version.
    return (found & known.keys()) - {"trueup"}


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules of which each imports the next and the last the first; none where there is no such circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        return e.args[1]
    return []


def test_no_module_imports_itself_through_others():
    known = {module_of(p): p for p in ROOT.rglob("*.py")}
    graph = {m: needed(p.read_text(), known) for m, p in known.items()}
    assert circle(graph) == []
    lazily = "def f():\n    from trueup.report import html"
    assert needed(lazily, known) >= {"trueup.report.html"}, "the control: what a function imports counts"
    back = graph["trueup.report.contents"] | needed(lazily, known)
    assert {"trueup.report.html", "trueup.report.contents"} <= set(circle(graph | {"trueup.report.contents": back}))


def test_every_room_has_a_floor():
    rooms = {p.relative_to(ROOT).with_suffix("").parts[0] for p in ROOT.rglob("*.py")}
    assert rooms <= set(FLOOR)


def test_every_test_file_has_a_name_of_its_own():
    """pytest collects no two files of one name from folders without ``__init__.py``: CI would be the first to see it."""
    names: dict[str, list[Path]] = {}
    for file in Path(__file__).parent.rglob("test_*.py"):
        if not (file.parent / "__init__.py").exists():
            names.setdefault(file.name, []).append(file)
    assert not {n: f for n, f in names.items() if len(f) > 1}
