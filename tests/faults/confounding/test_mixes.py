"""What a repair changes in confounding's measures, from logits alone."""

import numpy as np
import pytest

from trueup.faults.confounding.mixes import columns, differences, judges, mixes, nominal

RATES = ("accuracy", "worst_group_accuracy", "true_positive_gap")


def _samples(logits: np.ndarray, label: np.ndarray, group: np.ndarray) -> dict[str, np.ndarray]:
    cluster = np.arange(len(label))
    return columns(logits, label, group) | {"cluster": cluster, "judges": judges(cluster, 0)}


@pytest.mark.parametrize("changed", [0, 2])
def test_a_repair_that_hardly_changes_an_answer_is_not_known_to_change_none(changed: int):
    """240 texts: the shares' intervals are as wide as those of 240 texts have to be, and the estimate lies within."""
    rng = np.random.default_rng(0)
    label, group = rng.integers(0, 2, (2, 240))
    logits = np.stack([np.zeros(240), 4.0 * (2 * label - 1) + 2 * group + rng.normal(size=240)], axis=1)
    after = logits + np.array([0, 0.05])
    after[:changed] = after[:changed, ::-1]
    cells = np.bincount(label * 2 + group, minlength=4).reshape(2, 2).astype(float)
    m = mixes(cells, *nominal(cells, None, 0.0)[:2])
    got = differences(
        _samples(logits, label, group), _samples(after, label, group), m, m, ("severity", *RATES), resamples=100, seed=0
    )
    assert list(got) == ["severity", *RATES]
    for key in RATES:
        assert got[key].low <= got[key].value <= got[key].high
        assert got[key].low < got[key].value - 2 / 240
        assert got[key].high > got[key].value + 2 / 240
    assert -0.03 < got["accuracy"].low < got["accuracy"].high < 0.03
