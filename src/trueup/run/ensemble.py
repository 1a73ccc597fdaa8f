"""Several adapters of one kind: trained like the subject's own, each on other folds of the same examples."""

from __future__ import annotations

import numpy as np

from trueup.corpus.corpus import Corpus
from trueup.errors import Unsupported
from trueup.run.predict import predict, session
from trueup.run.train import Training, train
from trueup.subject.recipe import RECIPES, beside, recipe_of
from trueup.subject.subject import Subject


def committee(
    subject: Subject, tuned_on: Corpus, at: Corpus, *, members: int, seed: int, training: Training | None = None
) -> np.ndarray:
    """(n, C) class probabilities of `at`, averaged over `members` adapters (Lakshminarayanan et al., arXiv 1612.01474).

    Each member is a fresh adapter of the subject's kind, with its own seed, trained on all but one of `members` folds of
    `tuned_on`; a single member on all of it.

    Raises:
        Unsupported: the subject has no adapter, or one whose kind trueup cannot train.
    """
    recipe = recipe_of(subject)
    if recipe is None:
        raise Unsupported(f"An ensemble needs an adapter of a kind trueup can train ({', '.join(RECIPES)}).")
    training = training or Training()
    fold = np.random.default_rng(np.random.SeedSequence([seed, 5])).permutation(np.arange(len(tuned_on)) % members)
    total = np.zeros((len(at), len(subject.classes)))
    for m in range(members):
        member = beside(subject, recipe, seed=seed + m)
        train(
            member,
            tuned_on.take(fold != m) if members > 1 else tuned_on,
            training,
            lr=training.lr or recipe.lr,
            seed=seed + m,
        )
        total += predict(member, at).probability
        session().progress("training the ensemble", m + 1, members)
    return total / members
