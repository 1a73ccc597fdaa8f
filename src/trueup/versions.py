"""Whether the packages that are installed are those that trueup was tested with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version

from trueup.errors import TESTED


def untested() -> str | None:
    """A note on installed versions outside the ranges of trueup's own metadata; None where all lie inside.

    pip keeps to these ranges; other installers, and ``pip install --no-deps``, need not.
    """
    from packaging.requirements import Requirement

    others = []
    for wanted in map(Requirement, requires("trueup") or ()):
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(wanted.name)
        except PackageNotFoundError:  # an import will say so
            continue
        if not wanted.specifier.contains(installed, prereleases=True):
            tested = ",".join(sorted(map(str, wanted.specifier), reverse=True))
            others.append(f"{wanted.name} {installed} (but with {tested})")
    if not others:
        return None
    return f"trueup {version('trueup')} was not tested with {', '.join(others)}. If a figure looks wrong: {TESTED}"
