"""An explanation of each metric that a page shows, found by a term in the metric's title or unit."""

from __future__ import annotations

import re
from collections.abc import Iterable

TERMS: dict[str, tuple[str, str]] = {
    "severity": (r"\bseverity\b", "The one number by which a fault is judged. 0 means no fault; higher is worse."),
    "threshold": (r"\bthreshold\b", "The severity up to which a fault is tolerated. You can set it."),
    "AUPRC": (
        r"\bAUPRC\b|average precision",
        "Area under the precision-recall curve, mean over classes: how well scores put a class before the others. 1 is perfect.",
    ),
    "error ROC-AUC": (
        r"error ROC-AUC",
        "How often a right prediction has a higher confidence than a wrong one. 0.5 is chance, 1 is perfect.",
    ),
    "AUGRC": (
        r"\bAUGRC\b",
        "Area under the generalised risk-coverage curve: the mean share of errors let through when unsure texts are refused.",
    ),
    "Brier": (r"\bBrier\b", "The mean squared distance between a stated probability and what happened. 0 is perfect."),
    "NLL": (r"\bNLL\b", "Negative log-likelihood, in nats: the surprise at the true answers. A sure error costs most."),
    "calibration error": (
        r"calibration error|\bECE\b",
        "How far stated confidences lie from the share that is right, over groups of like confidence.",
    ),
    "confidence less accuracy": (
        r"confidence less accuracy",
        "Above 0 the model is surer than it is right on average; below 0 it is less sure.",
    ),
    "lean": (r"\blean", "AUPRC lost because one group gets a head start, beyond what is lost because a group is harder."),
    "floor": (r"\bfloor\b", "AUPRC that would be lost even if no group had a head start: one group is harder. It is no shortcut."),
    "nominal coupling": (
        r"nominal coupling",
        "The coupling at which a lean is measured, whatever that of the test examples is: that of the training where it is "
        "known and above 2, and 3 otherwise.",
    ),
    "coupling": (
        r"\bcoupl",
        "How many times as frequent each class is in its own group, at even margins. 1: label and group are unrelated.",
    ),
    "use of the attribute": (r"use of the attribute", "How far the group moves the predicted probability of texts with one label."),
    "presence of the attribute": (
        r"presence of the attribute",
        "How well a linear probe reads the group from the last hidden state. A model can encode an attribute without using it.",
    ),
    "Wasserstein distance": (r"Wasserstein", "How far apart the groups' hidden states lie, in standard deviations. 0 by chance."),
    "true positive rate": (r"true positive rate", "Of the texts of a class, the share that the model recognises."),
    "false positive rate": (r"false positive rate", "Of the texts of other classes, the share that is taken for this class."),
    "worst cell": (r"worst \(label, group\)", "The combination of label and group on which the model is right least often."),
    "copied above chance": (
        r"copied",
        "Wrong answers that stand among the demonstrations of the prompt, beyond those that would stand there by chance.",
    ),
    "task vector": (r"task vector", "A hidden state of a prompt with demonstrations, given to a query without any."),
    "accuracy": (r"\baccuracy\b", "The share of texts on which the answer is right."),
    "95% interval": (
        r"\binterval",
        "The range in brackets: made so that it holds the true value in 95 of 100 such checks. It counts clusters and not rows.",
    ),
    "paired difference": (r"paired", "After minus before on the same texts, so that what both share cancels."),
}  # fmt: skip
"""term -> the pattern that finds it in a title, and its explanation. The first term that matches explains a title."""


def explained(title: str) -> str:
    """A sentence that explains the metric called `title`; empty where no term of the glossary is in it."""
    return next((meaning for pattern, meaning in TERMS.values() if re.search(pattern, title, re.IGNORECASE)), "")


def used(texts: Iterable[str]) -> list[tuple[str, str]]:
    """The terms that occur in any of `texts`, with their explanations, in alphabetical order."""
    joined = "\n".join(texts)
    terms = [(term, meaning) for term, (pattern, meaning) in TERMS.items() if re.search(pattern, joined, re.IGNORECASE)]
    return sorted(terms, key=lambda pair: pair[0].lower())
