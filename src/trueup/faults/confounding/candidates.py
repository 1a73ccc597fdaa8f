"""The list of all repairs of a confounded classifier that are tried."""

from __future__ import annotations

from trueup.faults.confounding.arithmetic import (
    Flipped,
    FunctionForm,
    Hybrid,
    Linearised,
    LoraArithmetic,
    OrdinaryBoth,
    Relinearised,
    TangentBoth,
    TangentInside,
    TaskPrompt,
    Under,
    as_published,
    by_balanced_slice,
    by_control,
)
from trueup.faults.confounding.evidence import Family
from trueup.faults.confounding.last_layer import (
    BackDoor,
    Erased,
    PublishedReweighted,
    Reweighted,
    ReweightedAfterPrompt,
)
from trueup.faults.confounding.retrained import BalancedSampling, GroupRobust, ImportanceWeighted

ARITHMETIC: tuple[Family, ...] = (
    Relinearised(),
    Hybrid(as_published, "hybrid-one", "hybrid arithmetic, l_Z = 1"),
    Hybrid(by_balanced_slice, "hybrid-balanced", "hybrid arithmetic, l_Z by the balanced slice"),
    Hybrid(by_control, "hybrid-control", "hybrid arithmetic, l_Z by the control rule"),
    FunctionForm(),
    Linearised(),
    TangentBoth(),
    TangentInside(),
    OrdinaryBoth(),
)
"""Every family of prompt arithmetic. Each is tried under the subject's own last layer, and under others (`Under`)."""

FAMILIES: tuple[Family, ...] = (
    *ARITHMETIC,
    Flipped(),
    ReweightedAfterPrompt(),
    PublishedReweighted(),
    Reweighted(),
    Erased(),
    BackDoor(),
    LoraArithmetic(),
    GroupRobust(),
    BalancedSampling(),
    ImportanceWeighted(),
    *(Under(inner, balanced) for balanced in (False, True) for inner in (TaskPrompt(), *ARITHMETIC)),
)
