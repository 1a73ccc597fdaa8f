"""The same question asked otherwise: classes renamed or listed in another order, groups renamed, a constant on all logits."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch

from trueup.corpus.corpus import Corpus
from trueup.faults.fault import Fault
from trueup.faults.rigidity.audit import References
from trueup.subject.attention_modules import of_the_adapter
from trueup.subject.subject import Head, Subject
from trueup.subject.tiny import SPECIAL, make_tokenizer


def with_names(subject: Subject, corpus: Corpus) -> tuple[Subject, Corpus]:
    """Other class names, of which the alphabet's order is the reverse. A model that writes its answers writes the new ones."""
    order = sorted(subject.classes, reverse=True)
    new = {c: f"name{order.index(c)}" for c in subject.classes}
    names = tuple(new[c] for c in subject.classes)
    if (template := subject.template) is None:
        return replace(subject, classes=names), replace(corpus, classes=names)
    assert template.shots is not None
    known = subject.tokenizer.get_vocab()
    words = [new.get(w, w) for w in sorted(known, key=known.__getitem__)]
    shots = replace(template.shots, pool=tuple((x, new[y]) for x, y in template.shots.pool))
    respelt = replace(
        subject, classes=names, tokenizer=make_tokenizer(words[len(SPECIAL) :]),
        template=replace(template, words=names, shots=shots),
    )  # fmt: skip
    return respelt, replace(corpus, classes=names)


def in_reverse(subject: Subject, corpus: Corpus) -> tuple[Subject, Corpus]:
    """The classes listed the other way round, and with them the logits, or the words that are answers."""
    classes = subject.classes[::-1]
    if subject.template is not None:
        turned = replace(subject, classes=classes, template=replace(subject.template, words=classes))
    else:
        head = subject.own_head()
        turned = replace(subject, classes=classes, head=Head(head.weight.flip(0), head.bias.flip(0)))
    return turned, corpus.relabel(classes)


def regrouped(corpus: Corpus) -> Corpus:
    """Other names for every attribute's values, of which the alphabet's order is the reverse; one more where there is none."""
    attributes = corpus.attributes or {"site": np.array(["north", "south"])[np.arange(len(corpus)) % 2]}
    renamed = {}
    for key, values in attributes.items():
        names, which = np.unique(values, return_inverse=True)
        renamed[key] = np.array([f"group{len(names) - i}" for i in range(len(names))])[which]
    return replace(corpus, attributes=renamed)


def with_constant(subject: Subject, constant: float = 3.0) -> Subject:
    """The same on every logit of every example: of the classes, or of the whole vocabulary."""
    if subject.template is None:
        head = subject.own_head()
        return replace(subject, head=Head(head.weight, head.bias + constant))
    model = copy.deepcopy(subject.model)
    layer = model.get_output_embeddings()
    layer.bias = torch.nn.Parameter(torch.full((len(layer.weight),), constant), requires_grad=False)
    return replace(subject, model=model)


def learnt(fault: Fault, ready: Fault, subject: Subject, corpus: Corpus, *, reverse: bool = False) -> Fault:
    """`fault` with what its audits compare with, learnt from the question as it is asked now.

    Adapters take minutes to train. Those that `ready` has are kept, their heads turned round with the classes.
    """
    refs = getattr(ready, "learnt", None)
    if not isinstance(refs, References):
        return fault.prepared(subject, corpus, seed=0)
    if not reverse:
        return ready
    teams = {}
    for kind, team in refs.entrants.items():
        members = tuple(
            replace(m, tensors={k: t if of_the_adapter(k) else t.flip(0) for k, t in m.tensors.items()})
            for m in team.members
        )
        teams[kind] = replace(team, members=members)
    return replace(ready, learnt=replace(refs, entrants=teams))  # type: ignore[call-arg]
