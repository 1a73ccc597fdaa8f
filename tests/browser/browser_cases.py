"""What the tests of the page in a browser share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Opened:
    """A page in the browser, and everything it said: console messages, errors, dialogs, and addresses it asked for."""

    page: Any
    address: str
    said: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
