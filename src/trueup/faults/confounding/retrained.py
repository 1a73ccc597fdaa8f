"""Repairs that train the same kind of adapter again, with an objective that counteracts the shortcut."""

from __future__ import annotations

from abc import abstractmethod

import torch
from numpy.typing import NDArray

from trueup.corpus.corpus import Corpus
from trueup.faults.confounding.evidence import Change, Evidence, Family, Variant
from trueup.run.objective import GroupDRO, Objective, Resampled, Weighted
from trueup.run.train import train
from trueup.subject import adapter as files
from trueup.subject.new_adapter import beside, prompt_embeddings, recipe_of
from trueup.subject.subject import Subject

DRO_STEPS = (0.001, 0.01, 0.1)
"""The step sizes of GroupDRO's group weights that are tried; 0.01 is the authors' default."""


class Retrained(Family):
    """The same kind of adapter trained again from its start with another objective, on all training examples."""

    costly = True

    def possible(self, e: Evidence) -> bool:
        # The recipe does not describe trained biases, or initialisations that change the base weights, so these would be lost.
        config = e.subject.peft_config
        plain = getattr(config, "bias", "none") == "none" and getattr(config, "init_lora_weights", True) is True
        # An adapter that is trained again has a logit for each class, unlike a sigmoid head.
        return plain and not e.subject.sigmoid and recipe_of(e.subject) is not None

    def variants(self, e: Evidence) -> list[Variant]:
        found = []
        for name, objective in self.objectives(e):
            new = again(e)
            train(new, e.train, e.training, lr=e.lr, seed=e.seed, objective=objective)
            found.append(e.variant(name, Change(adapter=files.adapter_of(new))))
        return found

    @abstractmethod
    def objectives(self, e: Evidence) -> list[tuple[str, Objective]]:
        """The name and the objective of each setting."""


class GroupRobust(Retrained):
    """The worst (label, group) cell gets the largest weight (Sagawa et al., arXiv 1911.08731)."""

    key, title, source = "group-dro", "trained again, GroupDRO", "arXiv 1911.08731"

    def objectives(self, e: Evidence) -> list[tuple[str, Objective]]:
        group = e.train.label * len(e.code) + e.train_group
        return [(f"step {step:g}", GroupDRO(group, step)) for step in DRO_STEPS]


class BalancedSampling(Retrained):
    """Examples are drawn so that label and group are independent."""

    key, title, source = "resampled", "trained again, balanced resampling", "resampling"

    def objectives(self, e: Evidence) -> list[tuple[str, Objective]]:
        return [("trained", Resampled(e.balance(e.train.label, e.train_group)))]


class ImportanceWeighted(Retrained):
    """Examples are weighted so that label and group are independent."""

    key, title, source = "weighted", "trained again, importance weights", "importance weighting"

    def objectives(self, e: Evidence) -> list[tuple[str, Objective]]:
        return [("trained", Weighted(e.balance(e.train.label, e.train_group)))]


def again(e: Evidence) -> Subject:
    """A fresh adapter of the subject's kind, with the subject's own last layer, and with its start P0 where that is kept."""
    s, recipe = e.subject, recipe_of(e.subject)
    assert recipe is not None
    new = beside(s, recipe, seed=e.seed)
    known = dict(s.model.named_parameters())
    with torch.no_grad():
        # The whole head is copied: RoBERTa and similar models have a dense layer before the last one.
        for name, parameter in new.model.named_parameters():
            if "modules_to_save" in name and name in known and known[name].shape == parameter.shape:
                parameter.copy_(known[name])
        if s.template is None:  # needed too where the subject's adapter changes the layer without saving it whole
            new.head_layer().weight.copy_(s.own_head().weight)
            if new.head_layer().bias is not None:
                new.head_layer().bias.copy_(s.own_head().bias)
        if e.start is not None and s.source.peft_type == "PROMPT_TUNING":
            new.model.prompt_encoder[new.model.active_adapter].embedding.weight.copy_(torch.as_tensor(e.start))
    return new


SOFT = "prompt_encoder"
"""A part of the names of a soft prompt's parameters."""


def train_only(e: Evidence, new: Subject, named: str, corpus: Corpus) -> None:
    """Train only the parameters with `named` in their name, on `corpus`, with the training settings of the subject's adapter."""
    some = [p for n, p in new.model.named_parameters() if named in n]
    train(new, corpus, e.training, lr=e.lr, seed=e.seed, parameters=some)


def prompt_of(subject: Subject) -> NDArray:
    """(m, w) the soft prompt of a subject, which must have one."""
    soft = prompt_embeddings(subject)
    assert soft is not None
    return soft.float().numpy()
