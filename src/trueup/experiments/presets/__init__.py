"""The experiments of three papers as sweeps: ``NAME-small.yaml`` for a processor, ``NAME-paper.yaml`` with the paper's models.

``examples-small.yaml`` is of no paper: real classifiers on which a fault is found, clear or undecided.
``representation-small.yaml`` is what hybrid prompt arithmetic changes inside the model.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from trueup.errors import BadInput
from trueup.store import atomic
from trueup.store.cache import cache_folder

HEADLINES = {"confounding": "severity", "copying": "severity", "overconfidence": "error_auc"}
"""Each experiment that compares methods, and the measure by which its methods are compared first."""
_MADE = re.compile(r"MADE(?=/)")


def file_of(name: str, size: str, *, make: bool) -> Path:
    """The sweep of an experiment, ready to be read.

    What a sweep calls ``MADE/...`` is made here, in trueup's cache, where `make` says so and it is not there yet.

    Raises: BadInput where the experiment has no such size.
    """
    shipped = Path(__file__).parent / f"{name}-{size}.yaml"
    if not shipped.is_file():
        raise BadInput(f"The experiment '{name}' has no preset '{size}', as it repeats no paper. Leave --preset out.")
    text = shipped.read_text(encoding="utf-8")
    if not _MADE.search(text):
        return shipped
    from trueup.experiments import keys

    code = hashlib.sha256(Path(keys.__file__).read_bytes()).hexdigest()[:12]
    made = cache_folder() / "made" / f"keys-{code}"
    if make:
        keys.make(made)
    file = cache_folder() / "made" / f"{name}-{size}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(file, _MADE.sub(made.as_posix(), text))
    return file
