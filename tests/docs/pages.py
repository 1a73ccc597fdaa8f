"""What the tests of the documentation share: its pages, their code blocks and the command lines in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md") if p.name != "log.md")
"""The log is a record of what was run, with commands as they were then; it is checked for links alone."""

_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>(?:run|not run)\b[^>]*) -->\n+)?^```(?P<info>\w*[^\n]*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the title it is given, the mark in the comment before it, and where it stands."""

    language: str
    title: str
    mark: str
    code: str
    at: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text, found = page.read_text(encoding="utf-8"), []
    for m in _FENCE.finditer(text):
        language, _, rest = m["info"].partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        line = text.count("\n", 0, m.start("code"))
        at = f"{page.relative_to(ROOT)}:{line}"
        found.append(Block(language, title[1] if title else "", (m["mark"] or "").strip(), m["code"], at))
    return found


def prose(page: Path) -> str:
    """A page without its fenced blocks and comments."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def commands(code: str) -> list[list[str]]:
    """The words of every command of a shell block, comments left out."""
    lines = re.sub(r"\\\n\s*", " ", code).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]
