"""Which versions a CI leg installs, and which moved: from pyproject.toml and constraints.txt, with nothing but Python itself.

    python tools/versions.py lowest      requirements for pip: the lowest version allowed of what trueup runs on, pip aside
    python tools/versions.py newest      the ranges as they stand
    python tools/versions.py unbounded   the ranges without their upper ends
    pip freeze | python tools/versions.py moved     what differs from constraints.txt

The extras `demo` and `test` come along. `lowest` and `newest` leave torch as in constraints.txt: its download is gigabytes.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEGS = ("lowest", "newest", "unbounded")


def declared(project: dict) -> tuple[list[str], list[str]]:
    """The requirements of a project table: what trueup itself runs on, and the tools of its tests."""
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *extras["demo"]], extras["test"]


def wanted(leg: str, project: dict, lock: dict[str, str]) -> list[str]:
    """The requirement lines of a leg."""
    runs_on, tools = declared(project)
    if leg == "lowest":
        runs_on = [line if name_of(line) == "pip" else re.sub(r">=([^,]+).*", r"==\1", line) for line in runs_on]
    if leg == "unbounded":
        return [line.partition(",<")[0] for line in [*runs_on, *tools]]
    return [f"torch=={lock['torch']}" if name_of(line) == "torch" else line for line in [*runs_on, *tools]]


def pins(lines: Iterable[str]) -> dict[str, str]:
    """Version by name of lines ``name==version``, whatever follows; other lines are passed over."""
    found = (re.match(r"([\w.-]+)==([^\s;]+)", line) for line in lines)
    return {name_of(m[1]): m[2] for m in found if m}


def moved(installed: dict[str, str], lock: dict[str, str], project: dict) -> list[str]:
    """A line for each package that the lock holds in another version, those that trueup names itself first."""
    ranges = {name_of(line): line for lines in declared(project) for line in lines}
    others = sorted(
        (name not in ranges, name)
        for name, version in installed.items()
        if name in lock and version.partition("+")[0] != lock[name]
    )
    return [
        f"  {name} {lock[name]} -> {installed[name]}"
        + (f"   (pyproject.toml: {ranges[name]})" if name in ranges else "")
        for _, name in others
    ]


def name_of(line: str) -> str:
    """The name at the start of a requirement, in the form that equal names share."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line)[0]).lower()


def main(what: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lock = pins((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    if what == "moved":
        lines = moved(pins(sys.stdin), lock, project)
        print("Other versions than in constraints.txt:", *(lines or ["  none"]), sep="\n")
    else:
        print(*wanted(what, project, lock), sep="\n")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in (*LEGS, "moved"):
        sys.exit(__doc__)
    main(sys.argv[1])
