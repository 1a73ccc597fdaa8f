"""One large cluster beside many small ones decides nothing, in any fault, however far its interval lies from the threshold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from trueup.faults.confounding import mixes
from trueup.faults.copying import maths as copying
from trueup.faults.fault import Finding
from trueup.faults.overconfidence import audit as overconfidence
from trueup.faults.rigidity import maths as rigidity
from trueup.measure.bootstrap import Estimate
from trueup.measure.seeds import contrast

ALIKE = np.repeat(np.arange(100), 5)
LARGE = np.r_[np.zeros(300, np.int64), np.arange(1, 201)]
BEYOND = Estimate(0.30, 0.25, 0.35, 0.95)


def _overconfidence(cluster: np.ndarray) -> Finding:
    right = np.arange(len(cluster)) % 3 > 0
    said = overconfidence.doubt(right, cluster, np.arange(1_000), True)
    return Finding("overconfidence", "", 0.30, 0.25, 0.35, 0.02, "", doubt=said)


def _rigidity(cluster: np.ndarray) -> Finding:
    rng = np.random.default_rng(0)
    weights, prompt = ((rng.random((3, len(cluster))) < p).astype(float) for p in (0.95, 0.5))
    head = contrast([(1.0, weights), (-1.0, prompt)], cluster=np.arange(len(cluster)))
    return rigidity.judged(head, cluster, len(cluster), threshold=0.02, sentence="", measures={})


JUDGED: dict[str, Callable[[np.ndarray], Finding]] = {
    "confounding": lambda cluster: mixes.judged(BEYOND, cluster, threshold=0.05, sentence="", measures={}),
    "copying": lambda cluster: copying.judged(BEYOND, cluster, 0.9, threshold=0.01, measures={}),
    "overconfidence": _overconfidence,
    "rigidity": _rigidity,
}


@pytest.mark.parametrize("fault", JUDGED)
def test_one_large_cluster_decides_nothing(fault: str) -> None:
    control, one = JUDGED[fault](ALIKE), JUDGED[fault](LARGE)
    assert control.verdict == "found"
    assert not control.doubt
    assert one.verdict == "undecided"
    assert "the largest holds 60% of the examples" in one.doubt


def test_a_forecast_that_one_text_taught_clears_nothing() -> None:
    cluster = np.arange(600)
    right = cluster % 3 > 0
    one = np.r_[np.zeros(900, np.int64), np.arange(1, 601)]
    assert overconfidence.doubt(right, cluster, np.repeat(np.arange(601), 3), False) == ""
    assert "The largest cluster holds 60% of the 1,500 calibration examples" in overconfidence.doubt(
        right, cluster, one, False
    )
    assert overconfidence.doubt(right, cluster, one, True) == "", "what is found on other examples is found"
