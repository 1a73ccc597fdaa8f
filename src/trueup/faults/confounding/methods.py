"""Every family of repairs of a confounded classifier, compared on test examples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trueup.corpus import mix
from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, Unsupported, listing
from trueup.faults.confounding.audit import attribute_of
from trueup.faults.confounding.evidence import Knobs, evidence
from trueup.faults.confounding.mixes import COLUMNS, differences, statistics
from trueup.faults.confounding.repair import best_of, offered
from trueup.faults.fault import Difference, Method
from trueup.run.predict import predict, session
from trueup.subject.subject import Subject

ON_TEST = ("severity", "level", "auprc_against", "accuracy")
"""What `methods` reports for each family: the lean (absolute), the mean AUPRC over all couplings, AUPRC at the reversed nominal
coupling, and accuracy on the data as they are."""


def methods(
    subject: Subject, corpus: Corpus, *, attribute: str, coupling: float, retrain: bool, max_cost: float, knobs: Knobs,
    resamples: int, seed: int,
) -> list[Method]:  # fmt: skip
    """Compare every family on ``test``. Fits and settings are as in `repair`; the couplings are those of the calibration examples.

    Raises: as `repair`; Unsupported where the last layer is repaired already.
    """
    corpus = corpus.relabel(subject.classes)
    attribute = attribute_of(corpus, attribute)
    if subject.head is not None:
        raise Unsupported(
            "The subject already carries a repaired last layer; compare methods on the adapter it was made from."
        )
    e = evidence(subject, corpus, attribute, coupling, seed, knobs)
    offers = offered(e, retrain=retrain)
    test = corpus.part("test")
    group = mix.group_index(test, attribute, mix.groups_of(corpus.take(corpus.split != "test"), attribute))
    if missing := set(np.unique(test.label)) ^ set(e.there):
        raise BadInput(
            f"Test and calibration examples are not of the same classes ({listing([test.classes[c] for c in sorted(missing)])} "
            "stands in one alone). Give more rows, or a split in which both have all."
        )

    def sampled(probability: NDArray) -> dict[str, NDArray]:
        return e.columns_of(probability, test.label, group, test.cluster)

    own_samples = sampled(predict(subject, test).probability)
    under = {o.key: sampled(o.variant.predict(test)) for o in offers}
    chosen = best_of(offers, max_cost)

    def apart(a: dict[str, NDArray], b: dict[str, NDArray]) -> dict[str, Difference]:
        return differences(a, b, e.mixes, None, ON_TEST, resamples=resamples, seed=seed)

    found = []
    for o in offers:
        row = under[o.key]
        now = statistics(row, e.mixes, own=False)
        found.append(
            Method(
                o.key, o.title, o.family.source, o.variant.name,
                {k: float(now[k](*(row[c] for c in COLUMNS))) for k in ON_TEST}, apart(own_samples, row),
                {} if chosen is None or o is chosen else apart(under[chosen.key], row), o is chosen,
                o.variant.change is not None, o.control,
            )
        )  # fmt: skip
        session().progress("methods on the test examples", len(found), len(offers))
    return found
