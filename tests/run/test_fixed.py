"""Demonstrations that never change: read once for all queries, and equal to reading the whole prompt every time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, Unsupported
from trueup.run import forward
from trueup.run import predict as runs
from trueup.run.answers import answers
from trueup.run.edit import scaled
from trueup.run.prompts import Row, drawn, rows, with_pool
from trueup.subject.load import load
from trueup.subject.new_adapter import Lora, Prompt, fresh
from trueup.subject.subject import Subject
from trueup.subject.template import Template
from trueup.subject.tiny import WORDS
from trueup.subject.units import width_of

FAMILIES = ("gpt2", "llama", "bloom", "gemma3_text", "mamba", "mamba2")
WORDED = tuple(w for w in WORDS if w not in ("say", "now"))
DEMOS = tuple(zip(("the cat", "a good film", "dog mat", "loud"), WORDED, strict=False))


def corpus(n: int = 30) -> Corpus:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDED, rng.integers(1, 6))) + f" {'the ' * (i % 5)}cat" for i in range(n)]
    return Corpus(texts, np.arange(n) % len(WORDED), WORDED, np.array(["train"] * n))


def fixed(
    base: Path, header: str = "good film\n", demos: tuple[tuple[str, str], ...] = DEMOS
) -> tuple[Subject, Corpus]:
    subject, pairs = load(str(base), shots=4, template="{text} say {label} now\n", device="cpu"), corpus()
    assert subject.template is not None
    return with_pool(replace(subject, template=replace(subject.template, header=header)), pairs, demos), pairs


def whole(asked: list[Row]) -> list[Row]:
    """The same prompts, of which nothing is shared."""
    return [Row(r) for r in asked]


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_the_whole_prompt(family: str, base_of: Callable[[str], Path]):
    subject, pairs = fixed(base_of(family))
    asked = rows(subject, pairs.text, drawn(subject, pairs))
    assert min(r.shared for r in asked) == max(r.shared for r in asked) > 10
    assert min(len(r) - r.shared for r in asked) < max(len(r) - r.shared for r in asked), "queries of several lengths"
    got, want = answers(subject, asked), answers(subject, whole(asked))
    assert np.array_equal(got.answer, want.answer)
    assert np.abs(got.logits - want.logits).max() <= 1e-5 * np.abs(want.logits).max()
    # The controls: the demonstrations matter, and so does where the query stands behind them.
    others, _ = fixed(base_of(family), demos=DEMOS[::-1])
    other = answers(others, rows(others, pairs.text, drawn(others, pairs)))
    assert np.abs(other.logits - want.logits).max() > 1e-3 * np.abs(want.logits).max()
    bare = answers(subject, [Row(r[r.shared :]) for r in asked])
    assert np.abs(bare.logits - want.logits).max() > 1e-3 * np.abs(want.logits).max()


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_they_are_read_once_in_a_batch(family: str, base_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch):
    subject, pairs = fixed(base_of(family))
    asked = rows(subject, pairs.text, drawn(subject, pairs))
    plain, read = forward.backbone, []

    def counting(s: Subject, ids: torch.Tensor, *rest: object, **named: object):
        read.append(ids.numel())
        return plain(s, ids, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(forward, "backbone", counting)
    with torch.inference_mode():
        runs.collect_rows(subject, asked, forward.features, "features")
        once, _ = sum(read), read.clear()
        runs.collect_rows(subject, whole(asked), forward.features, "features")
    assert once < sum(read) / 2


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_scaled_units_are_scaled_in_the_demonstrations_as_well(family: str, base_of: Callable[[str], Path]):
    subject, pairs = fixed(base_of(family))
    asked = rows(subject, pairs.text, drawn(subject, pairs))
    plain = answers(subject, asked)
    with scaled(subject, {0: torch.full((width_of(subject, 0),), 0.3)}):
        got, want = answers(subject, asked), answers(subject, whole(asked))
    assert np.abs(got.logits - want.logits).max() <= 1e-5 * np.abs(want.logits).max()
    assert np.abs(got.logits - plain.logits).max() > 1e-3 * np.abs(want.logits).max()


@pytest.mark.parametrize("recipe", [Lora(2), Prompt(3)], ids=["lora", "prompt"])
def test_beside_an_adapter(recipe: object, base_of: Callable[[str], Path]):
    plain, pairs = fixed(base_of("llama"))
    words = Template("{text} say {label} now\n", WORDED)
    worn = fresh(str(base_of("llama")), recipe, WORDED, template=words, max_length=128, device="cpu")  # type: ignore[arg-type]
    with torch.no_grad():
        for name, p in worn.model.named_parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    subject = replace(worn, template=plain.template)
    asked = rows(subject, pairs.text, drawn(subject, pairs))
    got, want = answers(subject, asked), answers(subject, whole(asked))
    assert np.abs(got.logits - want.logits).max() <= 1e-5 * np.abs(want.logits).max()


def test_a_model_that_cannot_go_on_from_what_it_keeps_is_refused(
    base_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    subject, pairs = fixed(base_of("llama"))
    asked = rows(subject, pairs.text, drawn(subject, pairs))
    plain = forward.past.returned

    def forgetful(output: object):
        kept = plain(output)
        for layer in kept.layers:
            layer.values = layer.values * 0
        return kept

    monkeypatch.setattr(forward.past, "returned", forgetful)
    with pytest.raises(Unsupported, match="Reading fixed demonstrations once"):
        answers(subject, asked)


def test_the_prompt_is_the_header_the_pairs_and_the_query(base_of: Callable[[str], Path]):
    subject, pairs = fixed(base_of("llama"))
    (row,) = rows(subject, pairs.text[:1], drawn(subject, pairs.take(np.arange(1))))
    said = subject.tokenizer.decode(row, skip_special_tokens=True)
    lines = "".join(f"{x} say {y} now\n" for x, y in DEMOS)
    assert said.split() == ["good", "film", *lines.split(), *pairs.text[0].split(), "say"]
    with pytest.raises(BadInput, match="There are 4 fixed demonstrations, and 5 are asked for"):
        drawn(subject, pairs, number=5)
