"""Averaged predictions: of several adapters of one kind with different seeds, or of one classifier with dropout left on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from trueup.corpus.corpus import Corpus
from trueup.errors import Unsupported
from trueup.run.predict import predict, session
from trueup.run.train import Training, train
from trueup.subject.kinds import RECIPES
from trueup.subject.new_adapter import beside, recipe_of
from trueup.subject.subject import Subject


def committee(
    subject: Subject, tuned_on: Corpus, at: Corpus, *, members: int, seed: int, training: Training | None = None
) -> np.ndarray:
    """(n, C) class probabilities of `at`, averaged over `members` adapters (Lakshminarayanan et al., arXiv 1612.01474).

    Each member is a new adapter of the subject's kind, trained on all of `tuned_on`. Its seed decides its initial weights, the
    order of the examples, and the validation part that stops its training.

    Raises:
        Unsupported: the subject has no adapter, or one whose kind trueup cannot train.
    """
    recipe = recipe_of(subject)
    if recipe is None:
        raise Unsupported(f"An ensemble needs an adapter of a kind trueup can train ({', '.join(RECIPES)}).")
    training = training or Training()
    total = np.zeros((len(at), len(subject.classes)))
    for m in range(members):
        member = beside(subject, recipe, seed=seed + m)
        train(member, tuned_on, training, lr=training.lr or recipe.lr, seed=seed + m)
        total += predict(member, at).probability
        session().progress("training the ensemble", m + 1, members)
    return total / members


def dropped(subject: Subject, at: Corpus, *, passes: int, seed: int) -> np.ndarray:
    """(n, C) class probabilities of `at`, averaged over `passes` with dropout left on (Gal and Ghahramani, arXiv 1506.02142).

    Dropout inside the attention of some families is not a module, and stays off.

    Raises:
        Unsupported: the model has no dropout of a rate above 0.
    """
    layers = [m for m in subject.model.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    if not layers:
        raise Unsupported("The model has no dropout of a rate above 0, so every pass would say the same.")
    total = np.zeros((len(at), len(subject.classes)))
    with torch.random.fork_rng(), _dropping(layers):
        for i in range(passes):
            torch.manual_seed(int(np.random.SeedSequence([seed, 6, i]).generate_state(1)[0]))
            total += predict(subject, at).probability
            session().progress("passes with dropout", i + 1, passes)
    return total / passes


@contextlib.contextmanager
def _dropping(layers: list[nn.Dropout]) -> Iterator[None]:
    """`layers` apply dropout inside the block, whatever mode the model is in."""
    hooks = [
        hook
        for m in layers
        for hook in (
            m.register_forward_pre_hook(lambda m, _: m.train() and None),
            m.register_forward_hook(lambda m, *_: m.eval() and None),
        )
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
