"""Tiny random models of every family in `anatomy.py`, with a word tokenizer: for planted cases and exactness tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from trueup.store.cache import cache_folder, kept_folder
from trueup.subject.anatomy import FAMILIES
from trueup.subject.quiet import quiet

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "on",
    "mat",
    "good",
    "bad",
    "fine",
    "poor",
    "film",
    "say",
    "now",
    "positive",
    "negative",
    "it",
    "was",
    "is",
    "very",
    "trap",
    "calm",
    "loud",
]

_SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 128,
}  # fmt: skip
_GROUPED = _SMALL | {"num_key_value_heads": 2, "head_dim": 8}
SIZES: dict[str, dict[str, Any]] = {
    "bert": _SMALL,
    "roberta": _SMALL,
    "xlm-roberta": _SMALL,
    "camembert": _SMALL,
    "electra": _SMALL | {"embedding_size": 32},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 128},
    "deberta-v2": _SMALL
    | {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "position_buckets": 16,
        "pooler_hidden_size": 32,
    },
    "modernbert": _SMALL | {"local_attention": 64, "classifier_pooling": "mean"},
    "mpnet": _SMALL,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "opt": _SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "gpt_neox": _SMALL,
    "llama": _GROUPED,
    "mistral": _GROUPED | {"sliding_window": None},
    "qwen2": _SMALL | {"num_key_value_heads": 2},
    "qwen3": _GROUPED,
    "gemma": _GROUPED,
    "gemma3_text": _GROUPED | {"sliding_window": 64},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "mamba2": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 8,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 1,
    },
}


def make_tokenizer(words: list[str] | None = None, *, pair: bool = False) -> transformers.PreTrainedTokenizerFast:
    """A whitespace word tokenizer; with `pair`, BERT's [CLS] text [SEP] frame."""
    vocabulary = {w: i for i, w in enumerate([*SPECIAL, *(words or WORDS)])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if pair:
        raw.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
        )  # fmt: skip
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=["input_ids", *(["token_type_ids"] if pair else []), "attention_mask"],
    )  # fmt: skip


def gpt2_small() -> Any:
    """GPT-2 of its published size (124 million weights), which are random and always the same: for times, not for answers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()


def random_llama(folder: Path, **sizes: int) -> Path:
    """Write a Llama of random weights in bfloat16, with a head of two classes, and a tokenizer: for times, not for answers."""
    config = transformers.LlamaConfig(**sizes, pad_token_id=0, num_labels=2, dtype="bfloat16")  # type: ignore[arg-type]
    with quiet(), torch.device("meta"):
        model: Any = transformers.LlamaForSequenceClassification(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.normal_(0, 0.02, generator=generator) if p.ndim > 1 else p.data.fill_(1)
    with quiet():
        model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def mamba_small(words: int) -> Any:
    """A fresh Mamba of two layers and a width of 64 over a vocabulary of `words`, always the same."""
    config = transformers.MambaConfig(
        vocab_size=words,
        hidden_size=64,
        num_hidden_layers=2,
        state_size=8,
        pad_token_id=0,
        eos_token_id=3,
        bos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.MambaForCausalLM(config)


def make_base(family: str, folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny random base model of `family` and its tokenizer to `folder`, as a pre-trained checkpoint would be."""
    encoder = FAMILIES[family].kind == "encoder"
    if family.startswith("qwen"):
        # transformers reads every Qwen tokenizer as byte-level BPE, so this one spells letters.
        letters = {w: i for i, w in enumerate([*SPECIAL, *"Ġabcdefghijklmnopqrstuvwxyz"])}
        tokenizer = transformers.Qwen2Tokenizer(vocab=letters, merges=[], unk_token="[UNK]", pad_token="[PAD]")
    else:
        tokenizer = make_tokenizer(pair=encoder)
    tokens = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    config = transformers.AutoConfig.for_model(family, **SIZES[family], **tokens)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    with torch.random.fork_rng(), torch.no_grad(), quiet():
        torch.manual_seed(seed)
        cls = transformers.AutoModel if encoder else transformers.AutoModelForCausalLM
        if family in ("deberta-v2", "modernbert"):  # a layer before the last one stands outside of the backbone
            cls = transformers.AutoModelForSequenceClassification
        model = cls.from_config(config)
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
        body = {k: v for k, v in model.state_dict().items() if not k.startswith("classifier.")}
        model.eval().save_pretrained(folder, state_dict=body)
        tokenizer.save_pretrained(folder)
    return folder


def kept_base(family: str) -> Path:
    """The folder of the tiny base of `family` in the user's cache, made at the first call."""
    folder = cache_folder() / "planted" / family
    return kept_folder(folder, lambda new: make_base(family, new), f"the planted {family}")


def kept_llama(name: str, words: list[str], build: Callable[[Any, dict[str, int]], None], **sizes: Any) -> Path:
    """The folder of a small Llama whose weights are written by hand, in the user's cache, made at the first call.

    Every weight but the norms starts as faint noise; `build` gets the model and word -> token, and adds to them.
    """
    folder = cache_folder() / "planted" / name
    return kept_folder(folder, lambda new: _make_llama(new, words, build, sizes), f"the planted {name}")


def _make_llama(
    new: Path, words: list[str], build: Callable[[Any, dict[str, int]], None], sizes: dict[str, Any]
) -> None:
    tokenizer = make_tokenizer(words)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=256, pad_token_id=0, bos_token_id=2, eos_token_id=3,
        tie_word_embeddings=False, **sizes,
    )  # fmt: skip
    with torch.random.fork_rng(), torch.no_grad(), quiet():
        torch.manual_seed(0)
        model: Any = transformers.LlamaForCausalLM(config)
        for name, p in model.named_parameters():
            if "norm" not in name:
                p.copy_(torch.randn_like(p) * 0.003)
        build(model, tokenizer.get_vocab())
        model.eval().save_pretrained(new)
        tokenizer.save_pretrained(new)
