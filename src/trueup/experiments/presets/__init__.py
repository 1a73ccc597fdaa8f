"""The experiments of three papers as sweeps: ``NAME-small.yaml`` for a CPU, ``NAME-paper.yaml`` with the paper's models.

``examples-small.yaml`` is not from a paper: real classifiers on which a fault is found, clear or undecided.
``representation-small.yaml`` measures what hybrid prompt arithmetic changes inside the model.
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
"""Experiment that compares methods -> the measure by which its methods are compared first."""
_MADE = re.compile(r"MADE/([\w.-]+)")


def file_of(name: str, size: str, *, make: bool, say: Callable[[str], None] = lambda s: None) -> Path:
    """The sweep file of an experiment.

    Files that a sweep names ``MADE/...`` are made in trueup's cache, if `make` is True and they are missing; `say` gets a line.

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
    folders = {file_name: _folder_of(makers[file_name]) for file_name in dict.fromkeys(_MADE.findall(text))}
    if make:
        for file_name, folder in folders.items():
            if not folder.exists():
                say(f"Making {file_name} in trueup's cache, once.")
            makers[file_name].make(folder)
    file = cache_folder() / "made" / f"{name}-{size}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(file, _MADE.sub(lambda m: (folders[m[1]] / m[1]).as_posix(), text))
    return file


def _folder_of(maker: ModuleType) -> Path:
    """The cache folder for the files that a module makes. Another version of the module has another folder."""
    file = Path(str(maker.__file__))
    return cache_folder() / "made" / f"{file.stem}-{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"
