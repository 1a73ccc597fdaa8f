"""Induction heads: found where one is wired by hand, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from trueup.errors import Unsupported
from trueup.run.attention_heads import LENGTH, REPEATS, SEQUENCES, followers, prefix_matching, repeated
from trueup.run.forward import Row
from trueup.subject.load import load
from trueup.subject.quiet import quiet
from trueup.subject.subject import Subject
from trueup.subject.tiny import WORDS, make_tokenizer


def wired(folder: Path, *, copies: bool) -> Subject:
    """A GPT-2 of two layers with two heads each. Head 0 of layer 0 looks at the token before; where it `copies`, head 1 of layer
    1 looks for where its own token was that one: an induction head (Elhage et al. 2021, Olsson et al. 2022)."""
    tokenizer = make_tokenizer()
    words, places = len(tokenizer), 4 * LENGTH
    wide = words + places  # of a head: any of both fits
    config = transformers.GPT2Config(
        vocab_size=words, n_positions=places, n_embd=2 * wide, n_layer=2, n_head=2, n_inner=4, pad_token_id=0, bos_token_id=2,
        eos_token_id=3, tie_word_embeddings=False, resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0,
    )  # fmt: skip
    with torch.random.fork_rng(), torch.no_grad(), quiet():
        torch.manual_seed(0)
        model: Any = transformers.GPT2LMHeadModel(config)
        for name, p in model.named_parameters():
            if "ln_" not in name:
                p.copy_(torch.randn_like(p) * 1e-3)
        # The stream: which word, which place, which word before.
        word, place, before = torch.arange(words), words + torch.arange(places), words + places + torch.arange(words)
        model.transformer.wte.weight[word, word] += 1
        model.transformer.wpe.weight[torch.arange(places), place] += 1
        q, k, v = (2 * wide * i for i in range(3))
        first, second = model.transformer.h[0].attn, model.transformer.h[1].attn
        first.c_attn.weight[place[1:], q + torch.arange(places - 1)] += 10
        first.c_attn.weight[place[:-1], k + torch.arange(places - 1)] += 10
        first.c_attn.weight[word, v + torch.arange(words)] += 1
        first.c_proj.weight[torch.arange(words), before] += 1
        if copies:
            second.c_attn.weight[word, q + wide + torch.arange(words)] += 10
            second.c_attn.weight[before, k + wide + torch.arange(words)] += 10
        model.eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return load(str(folder), template="say {text} now", verbaliser=["good", "bad"], device="cpu")


def test_an_induction_head_is_found_and_without_one_none_is(tmp_path: Path):
    subject, without = (wired(tmp_path / str(copies), copies=copies) for copies in (True, False))
    before = subject.fingerprint
    rows = repeated(subject, 0)
    score, even = prefix_matching(subject, rows)
    assert subject.fingerprint == before
    assert score.shape == (2, 2)
    assert score[1, 1] > 0.9
    assert np.delete(score, 3).max() < 2 * even, "nor is the head that looks at the token before one"
    score, even = prefix_matching(without, rows)
    assert score.max() < 2 * even


def test_the_score_is_that_of_transformers_own_attention(base_of: Any):
    subject = load(str(base_of("llama")), template="say {text} now", verbaliser=["good", "bad"], device="cpu")
    rows = [Row([4, 5, 6, 4, 5, 6, 4]), Row([7, 7, 7]), Row([8, 9, 8, 9])]
    score, even = prefix_matching(subject, rows)
    subject.base.set_attn_implementation("eager")  # type: ignore[operator]
    theirs, chance = [], []
    for row in rows:
        with torch.no_grad():
            maps = subject.base(torch.tensor([row]), output_attentions=True).attentions
        at = [[k for k in range(1, q + 1) if row[k - 1] == row[q]] for q in range(len(row))]
        some = [q for q, ks in enumerate(at) if ks]
        theirs.append(np.mean([[m[0, :, q, at[q]].sum(-1).numpy() for m in maps] for q in some], axis=0))
        chance.append(np.mean([len(at[q]) / (q + 1) for q in some]))
    assert np.abs(score - np.mean(theirs, axis=0)).max() < 1e-5
    assert even == pytest.approx(np.mean(chance))


def test_followers_by_hand():
    ids = torch.tensor([[5, 6, 5, 6, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    assert followers(ids, mask)[0].nonzero().tolist() == [[2, 1], [3, 2]]


def test_rows_are_ordinary_tokens_repeated(base_of: Any):
    subject = load(str(base_of("gpt2")), template="say {text} now", verbaliser=["good", "bad"], device="cpu")
    rows = repeated(subject, 0)
    length = min(LENGTH, len(WORDS))
    assert len(rows) == SEQUENCES
    for row in rows:
        assert list(row) == list(row)[:length] * REPEATS
        assert len(set(row)) == length
        assert min(row) > 3, "no special token"
    assert rows == repeated(subject, 0)
    assert rows != repeated(subject, 1)
    short = load(
        str(base_of("gpt2")), template="say {text} now", verbaliser=["good", "bad"], max_length=30, device="cpu"
    )
    assert {len(r) for r in repeated(short, 0)} == {7 * REPEATS}


def test_a_state_space_model_has_no_attention_to_score(base_of: Any):
    subject = load(str(base_of("mamba")), template="say {text} now", verbaliser=["good", "bad"], device="cpu")
    with pytest.raises(Unsupported, match="there is no attention"):
        prefix_matching(subject, repeated(subject, 0))
