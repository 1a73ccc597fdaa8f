"""What the harnesses that count share: kills, disks and the matrix."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NoReturn


def finish(counts: Any, out: Path | None) -> NoReturn:
    """Print the fields of `counts` as JSON, write them to `out` where that is given, and exit with 1 where something is wrong."""
    said = json.dumps(vars(counts), indent=1, sort_keys=True)
    print(said)
    if out:
        out.write_text(said + "\n")
    sys.exit(int(bool(counts.wrong)))
