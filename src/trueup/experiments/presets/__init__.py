"""The experiments of three papers as sweeps: ``NAME-small.yaml`` for a processor, ``NAME-paper.yaml`` with the paper's models.

``examples-small.yaml`` is of no paper: real classifiers on which a fault is found, clear or undecided.
``representation-small.yaml`` is what hybrid prompt arithmetic changes inside the model.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from trueup.errors import BadInput
from trueup.store import atomic
from trueup.store.cache import cache_folder

HEADLINES = {"confounding": "severity", "copying": "severity", "overconfidence": "error_auc"}
"""Each experiment that compares methods, and the measure by which its methods are compared first."""
_MADE = re.compile(r"MADE/([\w.-]+)")


def file_of(name: str, size: str, *, make: bool, say: Callable[[str], None] = lambda s: None) -> Path:
    """The sweep of an experiment, ready to be read.

    What a sweep calls ``MADE/...`` is made here, in trueup's cache, where `make` says so and it is not there yet. `say` is told.

    Raises: BadInput where the experiment has no such size.
    """
    shipped = Path(__file__).parent / f"{name}-{size}.yaml"
    if not shipped.is_file():
        raise BadInput(f"The experiment '{name}' has no preset '{size}', as it repeats no paper. Leave --preset out.")
    text = shipped.read_text(encoding="utf-8")
    if not _MADE.search(text):
        return shipped
    from trueup.experiments import animals, keys

    makers = {"mamba": keys, "keys.csv": keys, "recall.csv": animals, "first-animal.csv": animals}
    folders = {thing: _folder_of(makers[thing]) for thing in dict.fromkeys(_MADE.findall(text))}
    if make:
        for thing, folder in folders.items():
            if not folder.exists():
                say(f"Making {thing} in trueup's cache, once.")
            makers[thing].make(folder)
    file = cache_folder() / "made" / f"{name}-{size}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(file, _MADE.sub(lambda m: (folders[m[1]] / m[1]).as_posix(), text))
    return file


def _folder_of(maker: ModuleType) -> Path:
    """Where in the cache a module's things are: another version of the module makes others."""
    file = Path(str(maker.__file__))
    return cache_folder() / "made" / f"{file.stem}-{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"
