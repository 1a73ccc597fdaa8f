"""Reading a prompt: its nearest words against brute force, and descriptions on a model that says what its states say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trueup.errors import BadInput, Unsupported
from trueup.run import prompt_description
from trueup.run.prompt_description import Patch, described, log_probability, nearest, usual_cosine, written
from trueup.subject import tiny
from trueup.subject.anatomy import FAMILIES
from trueup.subject.load import load
from trueup.subject.new_adapter import Lora, Prefix, Prompt, PTuning, Recipe, fresh
from trueup.subject.subject import Subject
from trueup.subject.swap_adapter import bare
from trueup.subject.template import Template
from trueup.subject.units import layers_of

CLASSES = ("a", "b", "c")
TEMPLATE = Template("say {text} now", ("good", "bad", "cat"))  # first letters differ too: the tiny Qwen2 spells
CAUSAL = [f for f, a in FAMILIES.items() if a.causal]
ASK = "say it : {prompt}"


def made(base: Path, recipe: Recipe, *, words: bool = True) -> Subject:
    template = TEMPLATE if words else None
    return fresh(str(base), recipe, CLASSES, template=template, max_length=32, device="cpu")


def start_of(subject: Subject, recipe: Prompt) -> list[str]:
    """The words of the tokens that the prompt was started from, as `nearest` names them."""
    ids = subject.tokenizer(recipe.start, add_special_tokens=False)["input_ids"]
    return prompt_description._words(subject, torch.tensor((ids * recipe.tokens)[: recipe.tokens]))


def perturb(subject: Subject, size: float = 1.0) -> Subject:
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in subject.model.prompt_encoder.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * size)
    return subject


def rows_of(subject: Subject) -> np.ndarray:
    """The vocabulary as the model embeds it, in double."""
    with torch.no_grad():
        known = torch.arange(min(len(subject.tokenizer), subject.model.word_embeddings.num_embeddings))
        return subject.model.word_embeddings(known).double().numpy()


def prompt_of(subject: Subject) -> np.ndarray:
    return subject.model.get_prompt_embedding_to_save(adapter_name="default").detach().double().numpy()


# ------------------------------------------------------------------------------------------------------ nearest words


@pytest.mark.parametrize("family", FAMILIES)
def test_words_are_read_back_and_noise_is_not(family: str, base_of: Any):
    recipe = Prompt(3, start="good cat sat")
    subject = made(base_of(family), recipe, words=FAMILIES[family].causal)
    before = subject.fingerprint
    read = nearest(subject, 2)
    assert [near[0].token for near in read] == start_of(subject, recipe)
    for near in read:
        assert near[0].cosine == pytest.approx(1, abs=1e-9)
        assert near[0].distance == 0
        assert near[1].cosine < 0.95
        assert near[1].distance > 0.01
    assert subject.fingerprint == before
    assert all(near[0].cosine < 0.9 for near in nearest(perturb(subject)))


@pytest.mark.parametrize("recipe", [Prompt(4), PTuning(3, 16)], ids=lambda r: r.name)
@pytest.mark.parametrize("piece", [3, 8, 10_000])
def test_nearest_is_brute_force(recipe: Recipe, piece: int, base_of: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prompt_description, "PIECE", piece)
    subject = perturb(made(base_of("llama"), recipe))
    rows, prompt = rows_of(subject), prompt_of(subject)
    cosine = (prompt @ rows.T) / np.linalg.norm(prompt, axis=1)[:, None] / np.linalg.norm(rows, axis=1)
    for i, near in enumerate(nearest(subject, 5)):
        best = np.argsort(-cosine[i])[:5]
        assert [n.token for n in near] == [subject.tokenizer.decode([t]) for t in best]
        assert np.allclose([n.cosine for n in near], cosine[i, best], atol=1e-6)
        assert np.allclose([n.distance for n in near], np.linalg.norm(rows[best] - prompt[i], axis=1), atol=1e-6)
    unit = rows / np.linalg.norm(rows, axis=1)[:, None]
    among = unit @ unit.T - 2 * np.eye(len(unit))
    drawn = np.random.default_rng(3).permutation(len(rows))[:11]  # odd: the median is one of them
    assert usual_cosine(subject, sample=11, seed=3) == pytest.approx(np.median(among[drawn].max(axis=1)), abs=1e-6)


def test_only_tokens_that_the_tokenizer_knows_and_the_model_has(base_of: Any):
    """The embedding is padded beyond the tokenizer, and the prompt lies on a padded row; or the tokenizer knows more."""
    subject = made(base_of("llama"), Prompt(2))
    known, embedding = len(subject.tokenizer), subject.model.word_embeddings
    wide = torch.cat([embedding.weight.data, torch.randn(5, embedding.weight.shape[1])])
    embedding.weight.data, embedding.num_embeddings = wide, len(wide)
    with torch.no_grad():
        subject.model.prompt_encoder["default"].embedding.weight.copy_(wide[-2:])
    assert len(nearest(subject, 1000)[0]) == known
    assert nearest(subject)[0][0].cosine < 0.9
    embedding.weight.data, embedding.num_embeddings = wide[:7], 7
    assert {n.token for n in nearest(subject, 1000)[0]} == {subject.tokenizer.decode([t]) for t in range(7)}


# ------------------------------------------------------------------------------------------------------- descriptions


@pytest.mark.parametrize("family", CAUSAL)
def test_a_placeholders_own_states_change_nothing_and_others_do(family: str, base_of: Any):
    """Identity, and its control; and the states are those that go in, at the place where they go in."""
    subject = made(base_of(family), Prompt(3))
    alone = bare(subject)
    ids, at = prompt_description._asking(subject, ASK, 3, 6)
    end = subject.tokenizer("good cat sat")["input_ids"][-3:]
    with torch.inference_mode():
        own = prompt_description.entering(alone, ids=ids)[:, 0, at : at + 3]
        other = prompt_description.entering(alone, ids=[*ids[:at], *end])[:, 0, at : at + 3]
    plain = written(alone, ids, at, [None], 6)[0]
    assert len(plain) >= 1
    for layer in range(len(own)):
        patches = [Patch(layer, own[layer])]
        assert written(alone, ids, at, patches, 6) == [plain]
        same = log_probability(alone, ids, at, patches, [plain])
        assert same == pytest.approx(log_probability(alone, ids, at, [None], [plain]), abs=1e-6)
        changed = log_probability(alone, ids, at, [Patch(layer, other[layer] * 2)], [plain])
        assert abs(changed - same) > 1e-4
    # At the first layer, other words' states are other words.
    swapped = [*ids[:at], *end]
    assert written(alone, ids, at, [Patch(0, other[0])], 6) == written(alone, swapped, at, [None], 6)
    changed = log_probability(alone, ids, at, [Patch(0, other[0])], [plain])
    assert changed == pytest.approx(log_probability(alone, swapped, at, [None], [plain]), abs=1e-5)
    assert abs(changed - same) > 1e-4


@pytest.mark.parametrize("family", CAUSAL)
def test_log_probability_is_what_generation_says(family: str, base_of: Any):
    """Token by token by the model's own logits, for texts of different lengths in one batch, one of them empty."""
    subject = made(base_of(family), Prompt(2))
    alone = bare(subject)
    ids, at = prompt_description._asking(subject, ASK, 2, 4)
    texts = [[5, 6, 7], [8], []]
    got = log_probability(alone, ids, at, [None] * 3, texts)
    assert np.isnan(got[2])
    for text, mean in zip(texts[:2], got[:2], strict=True):
        with torch.no_grad():
            every = alone.model(input_ids=torch.tensor([[*ids, *text]])).logits[0].log_softmax(dim=-1)
        expected = np.mean([float(every[len(ids) - 1 + i, t]) for i, t in enumerate(text)])
        assert mean == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("recipe", [Prompt(3), PTuning(3, 16)], ids=lambda r: r.name)
def test_described_leaves_the_subject_as_it_was(family: str, recipe: Recipe, base_of: Any):
    subject = perturb(made(base_of(family), recipe), 0.3)
    before = subject.fingerprint
    once = described(subject, target=ASK, tokens=5, most=9)
    assert once == described(subject, target=ASK, tokens=5, most=9)
    assert [x.score for x in once] == sorted((x.score for x in once), reverse=True)
    assert {(x.source, x.target) for x in once} <= {(0, 0), (1, 0)}
    assert subject.fingerprint == before


def test_rows_do_not_mix(base_of: Any, monkeypatch: pytest.MonkeyPatch):
    """Several pairs of layers in one batch, or each by itself."""
    subject = perturb(made(base_of("gpt2"), Prompt(3)), 0.3)
    pairs = [(0, 0), (1, 1), (0, 1), (1, 0)]
    together = described(subject, layers=pairs, target=ASK, tokens=5, most=9)
    monkeypatch.setattr(prompt_description, "TOKENS", 1)
    alone = [x for pair in pairs for x in described(subject, layers=[pair], target=ASK, tokens=5)]
    assert len(alone) == len(together)
    for x in together:
        y = next(y for y in alone if (y.source, y.target) == (x.source, x.target))
        assert x.text == y.text
        assert x.score == pytest.approx(y.score, abs=1e-5)


def test_nothing_is_left_after_an_exception(base_of: Any):
    subject = made(base_of("gpt2"), Prompt(3))
    before = subject.fingerprint

    def broken() -> None:
        with prompt_description._put(subject, 0, [Patch(1, torch.zeros(3, 32))]):
            assert subject.fingerprint != before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    with pytest.raises(IndexError):
        prompt_description.entering(subject, ids=[10_000])
    assert subject.fingerprint == before


# ---------------------------------------------------------------------------------------------------- a planted model

AFTER = {"apple": "fruit", "hammer": "tool", "robin": "bird"}


def parrot(start: str, tokens: int = 2) -> Subject:
    """A Llama without attention to speak of, which says what the last token's state makes it say, and stops."""
    words = [*AFTER, *AFTER.values(), "tell", "x"]

    def build(model: Any, word: dict[str, int]) -> None:
        for i in word.values():
            model.model.embed_tokens.weight[i, i] += 1.0
        for before, after in AFTER.items():
            model.lm_head.weight[word[after], word[before]] += 4.0
            model.lm_head.weight[3, word[after]] += 4.0
        model.lm_head.weight[3, word["x"]] += 4.0

    base = tiny.kept_llama(
        "said-parrot", words, build, hidden_size=24, intermediate_size=8, num_hidden_layers=2, num_attention_heads=1,
        num_key_value_heads=1,
    )  # fmt: skip
    template = Template("{text}", ("fruit", "tool"))
    return fresh(str(base), Prompt(tokens, start=start), ("a", "b"), template=template, device="cpu")


@pytest.mark.parametrize("word", AFTER)
def test_a_planted_prompt_says_its_word(word: str):
    subject = parrot(word)
    pairs = [(s, t) for s in (0, 1) for t in (0, 1)]
    got = described(subject, layers=pairs, target="tell tell {prompt}", most=9, seed=2)
    assert [x.text for x in got] == [AFTER[word]] * 4
    assert all(x.score > 1 for x in got), "it would not have been said without the prompt"
    assert all(x.log_probability > -0.1 for x in got)


def test_a_prompt_without_anything_to_say_says_nothing():
    """The control: the placeholder's own word, after which the model ends."""
    assert described(parrot("x"), target="tell {prompt}") == []


def test_a_text_that_any_prompt_brings_forth_scores_nothing():
    """Compared with no prompt alone this would look like a find: the random words happen to be the prompt's."""
    subject = parrot("apple", 1)
    every = prompt_description._vocabulary(subject).numpy()
    seed = next(s for s in range(99) if np.random.default_rng(s).choice(every, 1)[0] == 4)
    (got,) = described(subject, layers=[(0, 0)], target="tell {prompt}", seed=seed)
    assert got.text == "fruit"
    assert got.score == 0


# ------------------------------------------------------------------------------------------------- layers, refusals


@pytest.mark.parametrize("depth", [1, 2, 3, 6, 30, 126])
def test_some_layers_are_there(depth: int):
    pairs = prompt_description.some_layers(depth)
    assert all(0 <= at < depth for pair in pairs for at in pair)
    assert len(set(pairs)) == len(pairs)
    assert len(pairs) == (6 if depth >= 8 else len(pairs))


def test_a_description_is_one_line(base_of: Any):
    subject = made(base_of("gpt2"), Prompt(2))

    class Spelled:
        eos_token_id, pad_token_id = 3, 0

        def decode(self, ids: list[int]) -> str:
            return "".join({7: "\n", 8: " ", 9: "a", 10: "b\nc"}[i] for i in ids)

    line = lambda ids: prompt_description._first_line(replace(subject, tokenizer=Spelled()), ids)  # noqa: E731
    assert line([9, 9, 7, 9]) == [9, 9]
    assert line([7, 8, 9, 9, 7, 9]) == [7, 8, 9, 9], "an empty line is no description"
    assert line([9, 10]) == [9]
    assert line([9, 3, 9]) == [9]
    assert line([8, 7, 3]) == []
    assert line([]) == []


def test_what_has_no_prompt_is_refused(base_of: Any):
    with pytest.raises(Unsupported, match="A prefix is keys and values inside the layers"):
        nearest(made(base_of("gpt2"), Prefix(2)))
    with pytest.raises(Unsupported, match="A prefix is keys and values inside the layers"):
        described(made(base_of("gpt2"), Prefix(2)))
    with pytest.raises(Unsupported, match="has an adapter of kind LORA, so there is no prompt to read; tune one"):
        usual_cosine(made(base_of("gpt2"), Lora(2)))
    with pytest.raises(Unsupported, match="has no adapter, so there is no prompt to read"):
        nearest(load(str(base_of("gpt2")), template="{text}", verbaliser=["good", "bad"], device="cpu"))


def test_what_cannot_write_is_refused(base_of: Any):
    with pytest.raises(Unsupported, match="'bert' is an encoder and cannot write a description of its prompt"):
        described(made(base_of("bert"), Prompt(2), words=False))
    with pytest.raises(Unsupported, match="A model with a classification head in place of its words cannot write"):
        described(made(base_of("llama"), Prompt(2), words=False))


def test_layers_and_targets_that_do_not_fit_are_refused(base_of: Any):
    subject = made(base_of("gpt2"), Prompt(2))
    assert len(layers_of(subject)) == 2
    with pytest.raises(BadInput, match=r"There is no layer 2: the model has layers 0 to 1\. Give pairs of these\."):
        described(subject, layers=[(0, 0), (1, 2)])
    with pytest.raises(BadInput, match=r"has 0 times \{prompt\} in it; say once where the prompt goes\."):
        described(subject, target="say it")
    with pytest.raises(BadInput, match=r"takes 122 tokens and its description 20, and the model has 128 positions"):
        described(subject, target="say " * 120 + "{prompt}")
