"""Regular expressions that an adapter's settings bring: tried under a time limit before PEFT matches with them.

Python's ``re`` goes back over every way of matching, and of some patterns (``(a+)+$``) there are as many as there are subsets of
the name. PEFT matches each pattern against the name of each module of the base, and nothing can stop it there. So the same
matches are made first in a process of its own, which can be ended.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trueup.errors import BadInput, Unavailable, shortened

SECONDS = 10.0
"""The longest that all patterns of an adapter may take on the names of a base: thousands of names take milliseconds."""

_REPEATS = frozenset("*+?{")
"""A pattern without one of these has no second way of matching that could be gone back to, but for alternatives, one by one."""

_FORMS = {
    "target_modules": (r"(?:{})\Z",), "exclude_modules": (r"(?:{})\Z",), "feedforward_modules": (r"(?:{})\Z",),
    "layers_pattern": (r"(?:^|.*?\.){}\.(?P<idx>\d+)\.",), "modules_to_save": (r"(^|.*\.){}($|\..*)",),
}  # fmt: skip
"""What PEFT makes of the text of a setting and matches at the beginning of a name."""
_KEYS = (r"(.*\.)?({})$", r".*\.{}$")
"""The same of the keys of ``rank_pattern``, ``alpha_pattern`` and their like in other kinds of adapter."""

_TRY = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for setting, given, made in patterns:
    print(json.dumps([setting, given]), flush=True)
    try:
        re.compile(given)
        match = re.compile(made).match
    except (re.error, RecursionError, OverflowError) as e:
        print(json.dumps(str(e)))
        sys.exit(3)
    for name in names:
        match(name)
"""


def check(settings: Any, names: Iterable[str], other: str) -> None:
    """Raises BadInput where a pattern in `settings` is no regular expression, or takes longer than `SECONDS` on `names`.

    Args:
        settings: a PeftConfig. names: of every module of the base. other: begins the sentence.
    """
    if not (tried := list(_patterns(settings))):
        return
    # -I: nothing of the current folder, or of the user's, is imported.
    words = [sys.executable, "-I", "-c", _TRY]
    try:
        done = subprocess.run(
            words,
            input=json.dumps([tried, sorted(set(names))]).encode(),
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
        code, stdout, stderr = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as e:
        code, stdout, stderr = None, e.stdout or b"", b""
    except OSError as e:
        raise Unavailable(
            f"{other}: its settings hold regular expressions, which are tried in a process of their own, and Python cannot be "
            f"started for that ({e.strerror or e}). Make room for one more process, then run the same command again."
        ) from e
    if code == 0:
        return
    lines = stdout.decode().splitlines()
    wrong = json.loads(lines.pop()) if code == 3 else ""
    setting, given = json.loads(lines[-1]) if lines else ("", "")
    shown = shortened(given, 81)
    if code == 3:
        raise BadInput(
            f"{other}: {setting} in its settings is no regular expression ('{shown}': {wrong}). Correct it, or save the adapter "
            "again."
        )
    if code is None:
        raise BadInput(
            f"{other}: the regular expression '{shown}', {setting} in its settings, takes more than {SECONDS:g} s to be matched "
            "against the names of the base's modules. List the modules by their names there."
        )
    last = stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"exit code {code}"]
    raise BadInput(
        f"{other}: the regular expressions in its settings cannot be tried ({last[0][:160]}). List the modules by their names "
        "there."
    )


def _patterns(settings: Any) -> Iterator[tuple[str, str, str]]:
    """Each setting that holds a pattern with repeats: its key, the pattern, and what PEFT makes of it."""
    for key, value in vars(settings).items():
        if isinstance(value, Mapping) and key.endswith("_pattern"):
            forms, values = _KEYS, list(value)
        elif key == "layers_pattern" or key == "modules_to_save":
            forms, values = _FORMS[key], [value] if isinstance(value, str) else list(value or ())
        else:
            forms, values = _FORMS.get(key, ()), [value]
        for given in values:
            if isinstance(given, str) and _REPEATS & set(given):
                yield from ((key, given, form.replace("{}", given)) for form in forms)
