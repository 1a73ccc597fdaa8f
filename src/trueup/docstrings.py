"""Parses sections of this project's docstrings (``Attributes:``, ``Args:``, ``Raises:``) into entries: names and their meaning."""

from __future__ import annotations

import inspect
import re
from collections.abc import Container, Iterator, Sequence

SECTION = re.compile(r"(Attributes|Args|Parameters|Raises|Returns|Yields): *(.*)")


def section(doc: str, wanted: str) -> list[str]:
    """The lines of the section `wanted` of a docstring, without their indentation."""
    body, inside = [], False
    for line in inspect.cleandoc(doc).splitlines():
        if inside and line.strip() and not line.startswith("    "):
            break
        if inside:
            body.append(line)
        inside = inside or ((found := SECTION.fullmatch(line)) is not None and found[1] == wanted)
    return body


def entries(
    body: Sequence[str], begin: Container[str] = (), *, any_name: bool = False
) -> Iterator[tuple[list[str], str]]:
    """The entries of a section: names, and their meaning. Text before the first name is an entry without names.

    Args:
        begin: names that may begin an entry in the middle of a line. any_name: every name may do so.
    """
    joined: list[str] = []
    for line in inspect.cleandoc("\n" + "\n".join(body)).splitlines():
        if line.startswith(" ") and joined:
            joined[-1] += " " + line.strip()
        elif line.strip():
            joined.append(line.strip())
    names, meaning = [], ""
    for text in joined:
        for k, part in enumerate(re.split(r"(?<=[.;]) (?=[\w, ]+: )", text)):
            head, colon, entry_meaning = part.partition(": ")
            entry_names = [n.strip() for n in head.split(",")]
            if colon and all(n.isidentifier() for n in entry_names) and (k == 0 or entry_names[0] in begin or any_name):
                if meaning:
                    yield names, meaning
                names, meaning = entry_names, entry_meaning
            else:
                meaning = f"{meaning} {part}" if meaning else part
    if meaning:
        yield names, meaning
