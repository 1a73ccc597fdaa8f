"""What the package says of its home: links of the README made absolute, and the project's addresses.

Both are taken from the GitHub workflow that builds a release (GITHUB_SERVER_URL, GITHUB_REPOSITORY, GITHUB_REF_NAME), so that a
fork names itself. A build anywhere else has neither, and leaves the README as it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|#|mailto:)([^)\s]+)\)")


def absolute(text: str, home: str, ref: str) -> str:
    """Markdown whose relative links and pictures are addresses of the repository `home` at `ref`."""

    def link(m: re.Match[str]) -> str:
        picture, words, target = m.groups()
        return f"{picture}[{words}]({home}/{'raw' if picture else 'blob'}/{ref}/{target})"

    return RELATIVE.sub(link, text)


def urls(home: str) -> dict[str, str]:
    """The project's addresses, as the package index shows them."""
    return {
        "Homepage": home, "Documentation": f"{home}/tree/main/docs", "Source": home, "Issues": f"{home}/issues",
        "Changelog": f"{home}/blob/main/CHANGELOG.md",
    }  # fmt: skip


def home_of(env: Mapping[str, str]) -> str | None:
    """The address of the repository whose workflow builds, or None."""
    if env.get("GITHUB_SERVER_URL") and env.get("GITHUB_REPOSITORY"):
        return f"{env['GITHUB_SERVER_URL']}/{env['GITHUB_REPOSITORY']}"
    return None


class Home(MetadataHookInterface):
    """Fills in ``readme`` and ``urls``."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        home = home_of(os.environ)
        if home is not None:
            text = absolute(text, home, os.environ.get("GITHUB_REF_NAME") or "main")
            metadata["urls"] = urls(home)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
