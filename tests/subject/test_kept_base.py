"""A base that stays in memory between jobs: nobody can tell, and no job sees another."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trueup.corpus.corpus import Corpus
from trueup.run.predict import predict
from trueup.run.train import Training, train
from trueup.subject import checkpoint as door
from trueup.subject.checkpoint import keeping_base
from trueup.subject.new_adapter import Lora, Prompt, fresh
from trueup.subject.subject import model_fingerprint


def corpus() -> Corpus:
    texts = ["good film", "bad film", "the film was fine", "poor", "very good", "it was bad", "calm", "loud"] * 4
    return Corpus(texts, np.arange(32) % 2, ("a", "b"), np.array(["train"] * 32), name="toy")


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "electra"])
def test_a_job_on_a_kept_base_is_the_job_alone(family, base_of):
    base = str(base_of(family))

    def jobs() -> list[str]:
        said = []
        for recipe, seed in ((Lora(rank=2), 0), (Lora(rank=2), 1), (Prompt(tokens=2), 0)):
            subject = fresh(base, recipe, ("a", "b"), seed=seed, device="cpu")
            train(subject, corpus(), Training(epochs=1, batch=8), lr=0.01, seed=seed)
            said += [model_fingerprint(subject.model), predict(subject, corpus()).logits.tobytes().hex()]
        return said

    alone = jobs()
    with keeping_base():
        assert jobs() == alone
        assert jobs() == alone


def test_the_kept_base_is_never_written_to_and_is_read_once(base_of, monkeypatch):
    base, loads = str(base_of("bert")), []
    real = door.transformers.AutoModelForSequenceClassification.from_pretrained
    monkeypatch.setattr(
        door.transformers.AutoModelForSequenceClassification, "from_pretrained",
        lambda *a, **k: loads.append(a) or real(*a, **k),
    )  # fmt: skip
    with keeping_base():
        for _ in range(3):
            subject = fresh(base, Lora(rank=2), ("a", "b"), device="cpu")
            before = {k: v.clone() for k, v in door._kept.net.state_dict().items()}
            train(subject, corpus(), Training(epochs=1, batch=8), lr=0.1, seed=0)
            assert all(torch.equal(v, before[k]) for k, v in door._kept.net.state_dict().items())
            assert all(p.requires_grad for p in door._kept.net.parameters())
        assert len(loads) == 1
        fresh(base, Lora(rank=2), ("a", "b", "c"), device="cpu")
        assert len(loads) == 2, "another head is another model"
    assert door._kept.net is None
    fresh(base, Lora(rank=2), ("a", "b"), device="cpu")
    assert len(loads) == 3, "outside of the block every job loads its own"


def test_a_base_that_was_written_again_is_read_again(tmp_path, base_of):
    import shutil

    folder = tmp_path / "bert"
    shutil.copytree(base_of("bert"), folder)
    with keeping_base():
        first = fresh(str(folder), Lora(rank=2), ("a", "b"), device="cpu")
        net = door.transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
        with torch.no_grad():
            net.base_model.embeddings.word_embeddings.weight.mul_(2)
        net.save_pretrained(folder)
        second = fresh(str(folder), Lora(rank=2), ("a", "b"), device="cpu")
    a, b = (s.base.base_model.embeddings.word_embeddings.weight for s in (first, second))
    assert torch.equal(2 * a, b)


def test_a_vocabulary_that_one_job_resizes_is_not_the_next_ones(base_of):
    base = str(base_of("gpt2"))
    with keeping_base():
        first = fresh(base, Lora(rank=2), ("a", "b"), device="cpu")
        first.base.resize_token_embeddings(first.base.config.vocab_size + 3, mean_resizing=False)
        second = fresh(base, Lora(rank=2), ("a", "b"), device="cpu")
    assert second.base.config.vocab_size == first.base.config.vocab_size - 3
    assert len(second.base.get_input_embeddings().weight) == second.base.config.vocab_size
