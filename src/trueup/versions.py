"""Checks whether the installed packages have the versions that trueup was tested with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version

from trueup.errors import TESTED


def untested() -> str | None:
    """A note on installed versions outside the ranges of trueup's own metadata; None where all are inside.

    pip respects these ranges; other installers, and ``pip install --no-deps``, may not.
    """
    from packaging.requirements import Requirement

    outside = []
    for requirement in map(Requirement, requires("trueup") or ()):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:  # the import of the package reports this
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            tested = ",".join(sorted(map(str, requirement.specifier), reverse=True))
            outside.append(f"{requirement.name} {installed} (but with {tested})")
    if not outside:
        return None
    return f"trueup {version('trueup')} was not tested with {', '.join(outside)}. If a figure looks wrong: {TESTED}"
