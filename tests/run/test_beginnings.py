"""Texts that are longer than a model reads: their beginnings alone are tokenised, and give what the whole texts do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from trueup.corpus.corpus import Corpus
from trueup.run import forward
from trueup.subject.new_adapter import Lora, fresh
from trueup.subject.tiny import make_base

LENGTH = 12
SIGNS = [
    *"abcdefgh ABC.,'!-<[]1234",
    " ",
    " ",
    "  ",
    "\t",
    "\n",
    "\x00",
    "\x1c",
    "\x85",
    "\u00a0",
    "\u3000",
    "\u200b",
    "\u0301",
    "é",
    "語",
    "😀",
]


def texts(n: int = 400) -> list[str]:
    """Of every length around and beyond what is read at first, with all kinds of white space, and one without any."""
    rng = np.random.default_rng(0)
    found = ["".join(rng.choice(SIGNS, rng.integers(1, 60 * LENGTH))).strip() or "a" for _ in range(n)]
    return [*dict.fromkeys(found), "a" * 50 * LENGTH, "a " + " " * 50 * LENGTH + "b c", "語" * 50 * LENGTH]


def learnt(raw: Tokenizer, trainer: object, pair: str) -> transformers.PreTrainedTokenizerFast:
    raw.train_from_iterator(texts(), trainer)
    if pair:
        ends = [(t, raw.token_to_id(t)) for t in ("[CLS]", "[SEP]")]
        raw.post_processor = processors.TemplateProcessing(single=pair, special_tokens=ends)
    named = {f"{k.lower()}_token": f"[{k}]" for k in ("PAD", "UNK", "CLS", "SEP")}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, **named)


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def bert() -> transformers.PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    return learnt(raw, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL), "[CLS] $A [SEP]")


def gpt2() -> transformers.PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return learnt(raw, trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL), "")


@pytest.mark.parametrize("make", [bert, gpt2])
def test_the_beginning_of_a_text_gives_what_the_whole_does(
    make: Callable[[], transformers.PreTrainedTokenizerFast], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    subject = fresh(str(make_base("bert", tmp_path / "base")), Lora(), ("no", "yes"), max_length=LENGTH)
    subject, given = replace(subject, tokenizer=make()), texts()
    corpus = Corpus(given, np.arange(len(given)) % 2, subject.classes, np.array(["test"] * len(given)))
    short = []
    gap = forward._GAP.search
    monkeypatch.setattr(forward, "_GAP", SimpleNamespace(search=lambda *a: (short.append(found := gap(*a)), found)[1]))
    rows, longer = forward.tokenize(subject, corpus), forward.cut(subject, corpus)
    assert sum(s is not None for s in short) > len(given), "most are longer than what is read at first"
    monkeypatch.setattr(forward, "begins", lambda tok: False)
    assert rows == forward.tokenize(subject, corpus)
    np.testing.assert_array_equal(longer, forward.cut(subject, corpus))
    assert longer.any()
    assert not longer.all()


def test_no_beginning_is_enough_where_words_are_not_split_first():
    tok = bert()
    assert forward.begins(tok)
    tok.truncation_side = "left"
    assert not forward.begins(tok)
    tok = bert()
    tok.add_tokens(["two words"])
    assert not forward.begins(tok)
    tok = gpt2()
    tok.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    assert not forward.begins(tok)
