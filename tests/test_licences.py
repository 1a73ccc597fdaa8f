"""The licences of everything that installing trueup brings let it be used and passed on."""

from __future__ import annotations

from importlib.metadata import PackageMetadata, PackageNotFoundError, distribution

import pytest
from packaging.requirements import Requirement

FREE = ("apache", "mit", "bsd", "isc", "psf", "python software foundation", "mpl", "zlib", "cc0", "boost", "cnri")
"""What stands in the name of a licence that asks for no more than its text, and of its own changed files (MPL)."""
READ = {"altair": "BSD-3-Clause", "scipy": "BSD-3-Clause"}
"""Packages that have the text of their licence where its name belongs; read by hand."""
NOT_FREE = ("gpl", "agpl", "sspl", "noncommercial", "non-commercial", "proprietary", "nvidia")


def licence_of(name: str, metadata: PackageMetadata) -> str:
    """What a package says of its licence, in lower case."""
    classifiers = [c.rpartition(" :: ")[2] for c in metadata.get_all("Classifier") or () if c.startswith("License ::")]
    said = metadata.get("License-Expression") or READ.get(name) or metadata.get("License") or ", ".join(classifiers)
    return " ".join(said.lower().split())


def brought(root: str) -> dict[str, str]:
    """Every package that `root` needs here, directly or not, with its licence."""
    found: dict[str, str] = {}
    waiting = [root]
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:  # of another platform
            continue
        found[name] = licence_of(name, package.metadata)
        needs = [Requirement(r) for r in package.requires or ()]
        waiting += [r.name for r in needs if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def free(licence: str) -> bool:
    return bool(licence) and any(word in licence for word in FREE) and not any(word in licence for word in NOT_FREE)


def test_what_is_installed_with_trueup_is_free() -> None:
    found = {
        n: s for n, s in brought("trueup").items() if not n.startswith(("nvidia-", "cuda-"))
    }  # of torch's CUDA builds
    assert len(found) > 30
    assert {"torch", "transformers", "peft", "safetensors", "pyarrow"} <= set(found)
    assert {n: s for n, s in found.items() if not free(s)} == {}


@pytest.mark.parametrize("licence", ["", "gpl-3.0-or-later", "agpl-3.0", "cc-by-noncommercial", "see licence"])
def test_another_licence_is_noticed(licence: str) -> None:
    assert not free(licence)
