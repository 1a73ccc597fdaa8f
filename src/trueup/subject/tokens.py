"""A tokenizer that came with an adapter: whether there is one, and in what it is another than the base's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trueup.errors import BadInput, listing

FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model", "spm.model",
    "sentencepiece*.model", "*.tiktoken", "chat_template*",
)  # fmt: skip
"""What a tokenizer is saved as, as patterns of names."""

_VOCABULARIES = (
    "tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model", "spm.model", "sentencepiece.bpe.model",
)  # fmt: skip
_NAMED = ("pad", "eos", "bos", "unk", "sep", "cls", "mask")
_SAMPLE = "The Film wasn't good: 12 of 34 said  it, naïvely."


def has_one(folder: Path | None) -> bool:
    """Whether a whole tokenizer stands in `folder`."""
    return folder is not None and any((folder / name).is_file() for name in _VOCABULARIES)


PANIC = "PanicException"
"""What Python calls the panic of a library that is written in Rust: a BaseException, of a class of each library's own."""


@contextmanager
def said(whose: str) -> Iterator[None]:
    """Inside the block, a panic of the tokenizers library, and a token whose number is none that a model could have, is BadInput:
    what the tokenizer's files say does not go together."""
    try:
        yield
    except BaseException as e:
        if type(e).__name__ != PANIC and not isinstance(e, OverflowError):
            raise
        raise _damaged(whose, e) from e


def tried(tokenizer: Any, whose: str) -> None:
    """Raises BadInput where `tokenizer` cannot read a text, alone or before another, or knows no word.

    Where a folder or a repository has no vocabulary, transformers makes a tokenizer of special tokens alone and says nothing.
    """
    special = {
        *tokenizer.all_special_tokens,
        *(str(t) for t in getattr(tokenizer, "added_tokens_decoder", {}).values()),
    }
    if not any(any(map(str.isalnum, t)) for t in tokenizer.get_vocab() if t not in special):
        raise none(whose)
    with said(whose):
        try:
            tokenizer(_SAMPLE, verbose=False)
        except Exception as e:
            raise _damaged(whose, e) from e
        with suppress(Exception):  # some have no form for a pair, and are not asked for one
            tokenizer(_SAMPLE, _SAMPLE, verbose=False)


def none(whose: str) -> BadInput:
    """The refusal of a model that came without the vocabulary of its tokenizer."""
    return BadInput(
        f"The tokenizer of {whose} has no vocabulary: there is no file of it, and without it all texts would be read alike. Save "
        "the tokenizer beside the weights with tokenizer.save_pretrained (Trainer does so if it got processing_class)."
    )


def _damaged(whose: str, e: BaseException) -> BadInput:
    return BadInput(
        f"The tokenizer of {whose} cannot read text ({type(e).__name__}: {' '.join(str(e).split())[:160].rstrip('.')}). Its files "
        "are damaged, or do not go together. Fetch them again, or save them again with tokenizer.save_pretrained."
    )


def differences(own: Any, base: Any) -> list[str]:
    """What tells the tokenizer `own` from `base` in what a model reads, as halves of a sentence; none where nothing does."""
    own_words, base_words = own.get_vocab(), base.get_vocab()
    found: list[str] = []
    if more := sorted(own_words.keys() - base_words.keys(), key=own_words.__getitem__):
        found.append(f"it has {len(more)} more token{'s' * (len(more) > 1)}, {listing(more, 4)}")
    if less := sorted(base_words.keys() - own_words.keys(), key=base_words.__getitem__):
        found.append(f"it lacks {len(less)} token{'s' * (len(less) > 1)}, {listing(less, 4)}")
    if moved := [t for t, i in own_words.items() if base_words.get(t, i) != i]:
        found.append(f"{len(moved)} tokens have other numbers, such as {listing(moved, 2)}")
    for name in _NAMED:
        a, b = getattr(own, f"{name}_token", None), getattr(base, f"{name}_token", None)
        if str(a) != str(b):
            found.append(f"its {name} token is {_quoted(a)} and not {_quoted(b)}")
    a, b = (tok.convert_ids_to_tokens(tok(_SAMPLE, verbose=False)["input_ids"]) for tok in (own, base))
    if a != b:
        plain_a, plain_b = (tok.tokenize(_SAMPLE) for tok in (own, base))
        what = "it splits texts otherwise" if plain_a != plain_b else "it puts other tokens around a text"
        found.append(f"{what} ({_ends(a)} instead of {_ends(b)})")
    return found


def rows_of(model: Any) -> int:
    """Rows of a transformers model's token embeddings; 0 where it has no one table of them, such as CANINE, which hashes."""
    try:
        return len(model.get_input_embeddings().weight)
    except (NotImplementedError, AttributeError):
        return 0


def check_rows(tokenizer: Any, rows: int, which: str) -> None:
    """Raises BadInput when `tokenizer` has tokens for which the model has no row among its `rows`. `which`: whose it is."""
    above = sorted((i, t) for t, i in tokenizer.get_vocab().items() if i >= rows)
    if above:
        raise BadInput(
            f"{which} has tokens up to number {above[-1][0]}, such as {listing([t for _, t in above], 3)}, and the model's "
            f"embeddings have {rows} rows: these tokens cannot be read. Give the tokenizer that the model was trained with, or a "
            "model whose embeddings were resized and saved with the adapter (save_embedding_layers=True)."
        )


def _quoted(token: Any) -> str:
    return "none" if token is None else f"'{token}'"


def _ends(tokens: list[str]) -> str:
    return " ".join(tokens if len(tokens) < 8 else [*tokens[:4], "...", *tokens[-3:]])
