"""The contest at an equal budget: sizes are what they say, parts stay in their part, and tries are fair and repeatable."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from abilities import prefix_classifiers, prefixes
from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, Unsupported
from trueup.faults.rigidity import contest
from trueup.faults.rigidity.contest import KINDS, Entrant, Kind, budget, ladder, left_out, on, rivals, trained
from trueup.run import forward
from trueup.run.predict import Session, predict, within
from trueup.run.train import Training
from trueup.store.cache import Memo
from trueup.subject import adapter as files
from trueup.subject.anatomy import FAMILIES
from trueup.subject.new_adapter import Lora, Prefix, Prompt, PTuning, Recipe, fresh, size_of
from trueup.subject.quiet import quiet
from trueup.subject.subject import Subject
from trueup.subject.template import Template
from trueup.subject.tiny import make_tokenizer

CLASSES = ("no", "yes")
TEMPLATE = Template("say {text} now", ("bad", "good"))
FILLER = ("the", "film", "was", "it", "very", "cat", "dog", "mat", "sat", "on")
TRAINING = Training(epochs=1, batch=16)
ATTENTION = [f for f, a in FAMILIES.items() if a.query]
FUSED = ("gpt2", "bloom", "gpt_neox", "modernbert")
LORAS: tuple[Kind, ...] = ("query-key LoRA", "value-MLP LoRA")
DEPTH = 7


def corpus(n: int = 80, seed: int = 0) -> Corpus:
    """*good* means yes and *bad* means no, wherever it stands: 48 examples to train, 16 to choose, 16 to test."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 2
    text = [" ".join(rng.permutation([*rng.choice(FILLER, 4), ("bad", "good")[y]])) for y in label]
    split = np.array(["train"] * (n - 32) + ["calibration"] * 16 + ["test"] * 16)
    return Corpus(text, label, CLASSES, split)


@pytest.fixture(scope="module")
def made(base_of: Any) -> Callable[..., Subject]:
    """A subject of a family with a prompt of 4 tokens, or another adapter: a classifier, or one that answers with words."""

    def make(family: str = "bert", recipe: Recipe | None = None, words: bool = False) -> Subject:
        template = TEMPLATE if words else None
        default = Lora(1) if family == "mamba" else Prompt(4)
        return fresh(
            str(base_of(family)), recipe or default, CLASSES, template=template, max_length=32, device="cpu", seed=3
        )

    return make


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    """Two families of seven layers: one with separate and one with fused projections."""
    root, found = tmp_path_factory.mktemp("deep"), {}
    tokenizer = make_tokenizer()
    for family, sizes in {
        "llama": {"hidden_size": 16, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "num_key_value_heads": 2,
                  "intermediate_size": 24},
        "gpt2": {"n_embd": 16, "n_layer": DEPTH, "n_head": 4},
    }.items():  # fmt: skip
        config = transformers.AutoConfig.for_model(family, **sizes, vocab_size=len(tokenizer), pad_token_id=0)
        with quiet(), torch.random.fork_rng():
            torch.manual_seed(0)
            transformers.AutoModelForCausalLM.from_config(config).save_pretrained(root / family)
        tokenizer.save_pretrained(root / family)
        found[family] = fresh(str(root / family), Prompt(4), CLASSES, max_length=32, device="cpu")
    return found


def again(subject: Subject, recipe: Recipe) -> Subject:
    return fresh(
        subject.source.base, recipe, subject.classes, template=subject.template, max_length=32, device="cpu", seed=0
    )


def contestant(subject: Subject, kind: Kind, numbers: int = 300) -> contest.Rival:
    if kind == "prefix" and not prefix_classifiers() and kind in (barred := left_out(subject)):
        pytest.skip(barred[kind])
    return next(r for r in rivals(subject, numbers) if r.kind == kind)


def same(a: Entrant, b: Entrant) -> bool:
    return (
        a.lr == b.lr
        and a.tried == b.tried
        and a.settings == b.settings
        and set(a.tensors) == set(b.tensors)
        and all(torch.equal(a.tensors[k], b.tensors[k]) and a.tensors[k].dtype == b.tensors[k].dtype for k in a.tensors)
    )


# ------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [(Prompt(4), 4 * 32), (PTuning(3, 16), 3 * 32), (Prefix(2), 2 * 2 * 2 * 32), (Lora(2), 2 * 3 * 2 * (32 + 32))],
)
def test_the_budget_is_the_subjects_own_adapter_without_its_head(made: Any, recipe: Recipe, expected: int):
    subject = made("bert", recipe)
    assert any("classifier" in k for k in files.adapter_tensors(subject)), "the head is there and is not counted"
    assert budget(subject) == size_of(recipe, subject) == expected


def test_a_subject_without_an_adapter_has_no_budget(made: Any):
    subject = made("bert")
    with pytest.raises(BadInput, match="no adapter, so there is no budget"):
        budget(replace(subject, model=subject.model.get_base_model()))
    with pytest.raises(BadInput, match="budget is 0"):
        rivals(subject, 0)


@pytest.mark.parametrize("family", ATTENTION)
def test_every_kind_comes_as_near_to_the_budget_as_it_can(made: Any, family: str):
    subject = made(family)
    for numbers in (20, 300, 1500):
        found = rivals(subject, numbers)
        assert {r.kind for r in found} | set(left_out(subject)) == set(KINDS)
        for r in found:
            assert r.size == size_of(r.recipe, subject)
            own = abs(math.log(r.size / numbers))
            for other in neighbours(r.recipe, depth=2):
                assert own <= abs(math.log(size_of(other, subject) / numbers)), (r, other)


def neighbours(recipe: Recipe, depth: int) -> list[Recipe]:
    """One token, layer or rank more and less, where there is such a thing."""
    if isinstance(recipe, Prefix) and recipe.rank:
        return [replace(recipe, rank=n) for n in (recipe.rank - 1, recipe.rank + 1) if n]
    if not isinstance(recipe, Lora):
        return [replace(recipe, tokens=n) for n in (recipe.tokens - 1, recipe.tokens + 1) if n]
    layers = len(recipe.layers) or depth
    counts = [n for n in (layers - 1, layers + 1) if 0 < n <= depth] if recipe.rank == 1 else []
    few: list[Recipe] = [replace(recipe, layers=tuple(range(n))) for n in counts]
    return few + [replace(recipe, rank=n) for n in (recipe.rank - 1, recipe.rank + 1) if n and not recipe.layers]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ATTENTION)
def test_the_size_is_what_is_really_trained(made: Any, family: str, kind: Kind):
    """Counted by the gradients of a random function of the features, once no B is zero."""
    subject = made(family)
    if kind in left_out(subject):
        pytest.skip(left_out(subject)[kind])
    rival = contestant(subject, kind)
    new = again(subject, rival.recipe)
    own = {n: p for n, p in new.model.named_parameters() if p.requires_grad and "modules_to_save" not in n}
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for n, p in own.items():
            p.add_(torch.randn(p.shape, generator=g) * (0.1 if "lora_B" in n else 0.01))
    for layer in new.base.modules():
        if hasattr(layer, "activation_fn"):
            layer.activation_fn = torch.nn.GELU()  # some of OPT's rectified units are off whatever they read
    ids = torch.randint(4, len(new.tokenizer), (400, 6), generator=g)
    x = forward.features(new, forward.Batch(ids, torch.ones_like(ids)))
    (x * torch.randn(x.shape, generator=g)).sum().backward()
    reached = sum(int((p.grad != 0).sum()) for p in own.values() if p.grad is not None)
    held = sum(p.numel() for p in own.values()) - rival.size
    fused = family in FUSED and kind in LORAS
    assert (held > 0) == fused, "only fused matrices have rows that must stay"
    assert reached == rival.size
    assert {n for n, p in new.model.named_parameters() if p.requires_grad} >= set(own)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_small_lora_is_spread_evenly_through_the_depth(deep: dict[str, Subject], family: str):
    subject = deep[family]
    for kind in LORAS:
        one = size_of(Lora(1, part=contest.PARTS[kind]), subject) // DEPTH
        found = {k: contestant(subject, kind, k * one).recipe for k in (1, 2, 3, DEPTH)}
        layers = {k: r.layers for k, r in found.items() if isinstance(r, Lora)}
        assert layers == {1: (3,), 2: (1, 5), 3: (1, 3, 5), DEPTH: ()}
        tall = contestant(subject, kind, 3 * DEPTH * one).recipe
        assert (tall.rank, tall.alpha, tall.layers) == (3, 6, ())  # type: ignore[union-attr]
        least = contestant(subject, kind, 1)
        assert (least.recipe.layers, least.size) == ((3,), one)  # type: ignore[union-attr]


@prefixes
def test_a_prompt_leaves_half_of_the_positions_to_the_text(made: Any):
    found = {r.kind: r.recipe for r in rivals(made("bert"), 10**6)}
    assert (found["prompt"], found["prefix"]) == (Prompt(64), Prefix(64))
    assert size_of(found["query-key LoRA"], made("bert")) == pytest.approx(10**6, rel=0.01)


@pytest.fixture
def few_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as fit into the numbers of models this narrow."""
    monkeypatch.setattr(contest, "SLOTS", 4)


MIXED = [f for f in ATTENTION if FAMILIES[f].prefix]


@pytest.mark.parametrize("family", MIXED)
def test_a_prefix_of_which_no_slot_fits_is_mixed_from_few_directions(made: Any, family: str, few_slots: None):
    """Trained numbers are counted by gradients; what is kept is a plain prefix, whose keys and values span `rank` directions."""
    subject = made(family)
    if "prefix" in left_out(subject):
        pytest.skip(left_out(subject)["prefix"])
    one = size_of(Prefix(1), subject)
    assert contestant(subject, "prefix", one).recipe == Prefix(1)
    assert contestant(subject, "prefix", math.ceil(one / contest.UNEQUAL)).recipe == Prefix(1), (
        "near enough to be compared"
    )
    mixed = contestant(subject, "prefix", one * 5 // 8)
    assert isinstance(mixed.recipe, Prefix)
    assert mixed.recipe.tokens == contest.SLOTS
    assert 1 / contest.UNEQUAL < mixed.size / (one * 5 / 8) < contest.UNEQUAL
    new = again(subject, mixed.recipe)
    own = {n: p for n, p in new.model.named_parameters() if p.requires_grad and "prompt_encoder" in n}
    assert sum(p.numel() for p in own.values()) == mixed.size
    ids = torch.randint(4, len(new.tokenizer), (50, 6), generator=torch.Generator().manual_seed(0))
    forward.features(new, forward.Batch(ids, torch.ones_like(ids))).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in own.values())
    kept = next(t for n, t in files.adapter_tensors(new).items() if n == "prompt_embeddings")
    rows = kept.reshape(-1, new.peft_config.token_dim)  # type: ignore[union-attr]
    assert len(kept) == contest.SLOTS
    assert len(rows) == size_of(Prefix(contest.SLOTS), subject) // new.peft_config.token_dim  # type: ignore[union-attr]
    assert torch.linalg.matrix_rank(rows, rtol=1e-4) == min(mixed.recipe.rank, *rows.shape)
    assert torch.linalg.matrix_rank(files.adapter_tensors(again(subject, Prefix(contest.SLOTS)))["prompt_embeddings"]
                                    .reshape(rows.shape), rtol=1e-4) == min(rows.shape), "the control"  # fmt: skip


@pytest.mark.parametrize(("family", "words"), [("bert", False), ("llama", False), ("llama", True)])
def test_a_trained_mixed_prefix_is_saved_as_a_plain_one(
    made: Any, family: str, words: bool, tmp_path: Path, few_slots: None
):
    subject = made(family, None, words)
    mixed = contestant(subject, "prefix", size_of(Prefix(1), subject) * 5 // 8)
    entrant = trained(subject, corpus(), mixed, rates=(3,), training=TRAINING, seed=0)
    assert (entrant.settings["num_virtual_tokens"], entrant.settings["prefix_projection"]) == (contest.SLOTS, False)
    worn = on(subject, entrant)
    said = predict(worn, corpus().part("test")).logits
    _, model = plain(subject, entrant, tmp_path)
    assert not any("mixes" in n for n, _ in model.named_parameters())
    rows = None if not words else subject.verbaliser_ids()
    for i, ids in enumerate(forward.tokenize(worn, corpus().part("test"))):
        with torch.no_grad():
            z = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)).logits
        assert np.abs((z[0] if rows is None else z[0, -1, rows]).numpy() - said[i]).max() < 1e-5


def test_the_ladder_climbs_above_the_budget(made: Any):
    subject = made("llama")
    each = 2 * ((32 + 32) + 2 * (32 + 16))  # grouped keys and values are half as wide
    assert [(r.kind, r.recipe, r.size) for r in ladder(subject, 2 * each)] == [
        ("LoRA", Lora(r, 2 * r), r * each) for r in (4, 8, 16)
    ]
    assert len(ladder(subject, 1)) == 5
    assert ladder(subject, 16 * each) == []


@prefixes
def test_who_cannot_compete_is_said_and_left_out(made: Any, tmp_path: Path):
    assert left_out(made("bert")) == {}
    distil = made("distilbert")
    assert set(left_out(distil)) == {"prefix"}
    assert "'distilbert'" in left_out(distil)["prefix"]
    mamba = made("mamba", words=True)
    assert set(left_out(mamba)) == {"prefix", *LORAS}
    assert [r.kind for r in rivals(mamba, 100)] == ["prompt"]
    config = transformers.ElectraConfig(
        vocab_size=30, embedding_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, pad_token_id=0,
    )  # fmt: skip
    with quiet():
        transformers.ElectraModel(config).save_pretrained(tmp_path)
        make_tokenizer(pair=True).save_pretrained(tmp_path)
    narrow = fresh(str(tmp_path), Lora(1), CLASSES, max_length=32, device="cpu")
    assert "embeddings (16) are not as wide" in left_out(narrow)["prompt"]
    assert [r.kind for r in rivals(narrow, 100)] == list(LORAS)


@prefixes
def test_weights_that_the_checkpoint_lacks_leave_the_contest_to_the_loras(tmp_path: Path):
    """A BERT saved without its pooler: a LoRA carries the one that was drawn, and a prompt cannot."""
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, pad_token_id=0
    )
    with quiet():
        transformers.BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
        make_tokenizer(pair=True).save_pretrained(tmp_path)
    subject = fresh(str(tmp_path), Lora(1), CLASSES, max_length=32, device="cpu")
    assert "brings 'bert.pooler.dense.bias', 'bert.pooler.dense.weight' beside its head" in left_out(subject)["prefix"]
    assert [r.kind for r in rivals(subject, 100)] == list(LORAS)


def test_a_lora_of_a_layer_or_part_that_is_not_there_is_refused(made: Any):
    base = made("bert").source.base
    for recipe, sentence in (
        (Lora(layers=(2,)), "no layer 2: the model has layers 0 to 1"),
        (Lora(part="key"), "cannot adapt the part 'key'"),  # type: ignore[arg-type]
        (Lora(part="query-key", targets=("query",)), "and no targets, or targets alone"),
    ):
        with pytest.raises(BadInput, match=sentence):
            fresh(base, recipe, CLASSES, device="cpu")
    with pytest.raises(Unsupported, match="'mamba' has no attention"):
        size_of(Lora(part="query-key"), made("mamba", words=True))


# ------------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize("kind", LORAS)
@pytest.mark.parametrize("family", [*FUSED, "llama", "bert"])
def test_a_part_changes_its_own_rows_alone(made: Any, family: str, kind: Kind, tmp_path: Path):
    """After training, in the merged weights as plain PEFT makes them, and in the attention that they give."""
    subject = made(family)
    recipe = Lora(1, 2, layers=(1,), part=contest.PARTS[kind])
    rival = contest.Rival(kind, recipe, size_of(recipe, subject))
    # A hundred times the usual rate, with decay: what must stay does so also where the rest moves far.
    training = replace(TRAINING, epochs=2, weight_decay=0.5)
    entrant = trained(subject, corpus(), rival, rates=(100,), training=training, seed=0)
    base, model = plain(subject, entrant, tmp_path)
    before = {n: p.clone() for n, p in base.named_parameters()}
    merged = dict(model.merge_and_unload().named_parameters())
    changed = {n for n in merged if n in before and not torch.equal(merged[n], before[n])}
    anatomy = subject.anatomy
    parts = (anatomy.query, anatomy.key) if kind == LORAS[0] else (anatomy.value, anatomy.up, anatomy.down)
    layer = f".{anatomy.layers}.1."
    head = {n for n in merged if n.startswith(anatomy.head_root)}
    assert {n for n in changed - head if layer not in f".{n}"} == set()
    assert {n.split(layer.strip("."))[-1].lstrip(".") for n in changed - head} == {f"{p}.weight" for p in parts}
    if family in FUSED:
        name = next(n for n in changed if n.endswith(f"{anatomy.query}.weight"))
        delta = merged[name] - before[name]
        q, k, v = thirds(family, delta.T if family == "gpt2" else delta, heads=4)
        theirs, others = ((q, k), (v,)) if kind == LORAS[0] else ((v,), (q, k))
        assert all(bool((t == 0).all()) for t in others)
        assert all(float(t.detach().abs().max()) > 1e-3 for t in theirs)
        rows = entrant.tensors[next(n for n in entrant.tensors if anatomy.query in n and "lora_B" in n)]
        assert int((rows == 0).all(dim=1).sum()) == sum(len(t) for t in others)


def thirds(family: str, matrix: torch.Tensor, heads: int) -> tuple[torch.Tensor, ...]:
    """Query, key and value rows of a fused matrix (3 d, d), as transformers' own code takes them apart."""
    if family in ("gpt2", "modernbert"):
        return matrix.split(len(matrix) // 3)
    each = matrix.view(heads, 3, -1, matrix.shape[-1])
    return tuple(each[:, i].reshape(-1, matrix.shape[-1]) for i in range(3))


def plain(subject: Subject, entrant: Entrant, folder: Path) -> tuple[Any, Any]:
    """Two bases, the second with the saved adapter on it, as its users have them where trueup is not installed."""
    files.write_adapter(folder, entrant.settings, entrant.tensors)
    words = subject.template is not None
    cls = transformers.AutoModelForCausalLM if words else transformers.AutoModelForSequenceClassification
    with quiet():
        bases = [
            cls.from_pretrained(
                subject.source.base, attn_implementation="eager", **({} if words else {"num_labels": 2})
            )
            for _ in range(2)
        ]
        return bases[0].eval(), peft.PeftModel.from_pretrained(bases[1], str(folder)).eval()


@pytest.mark.parametrize("kind", LORAS)
@pytest.mark.parametrize("family", [*FUSED, "llama", "bert"])
def test_only_query_and_key_change_where_a_layer_looks(made: Any, family: str, kind: Kind):
    """The same rows seen from outside: the first layer's attention, which value and feed-forward cannot reach."""
    subject = made(family)
    new = again(subject, Lora(1, 2, layers=(0,), part=contest.PARTS[kind]))
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for n, p in new.model.named_parameters():
            if "lora_B" in n:
                p.copy_(torch.randn(p.shape, generator=g))
    new.base.set_attn_implementation("eager")  # type: ignore[operator]
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        adapted = new.model(input_ids=ids, output_attentions=True)
        with new.model.disable_adapter():
            bare = new.model(input_ids=ids, output_attentions=True)
    assert float((adapted.logits - bare.logits).abs().max()) > 1e-4, "the adapter does something"
    moved = float((adapted.attentions[0] - bare.attentions[0]).abs().max())
    assert (moved == 0) if kind == LORAS[1] else (moved > 1e-3)


@pytest.mark.parametrize("kind", LORAS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_named_modules_and_no_others_are_adapted(deep: dict[str, Subject], family: str, kind: Kind):
    """Also where PEFT shortens twenty and more full names to their ends."""
    subject, part = deep[family], contest.PARTS[kind]
    for recipe in (Lora(1, 2, part=part), Lora(1, 2, layers=(0, 5), part=part)):
        new = again(subject, recipe)
        settings, tensors = files.adapter_of(new)
        for model in (new.model, on(subject, Entrant(contestant(subject, kind), 1.0, (), settings, tensors)).model):
            net = model.get_base_model()
            found = {n for n, m in net.named_modules() if hasattr(m, "lora_A")}
            assert found == set(recipe.modules(net, subject.anatomy))
            assert {n.split(".")[-3] for n in found} == set(map(str, recipe.layers or range(DEPTH)))


# ------------------------------------------------------------------------------------------------------------ trained


CASES = [(f, k, w) for f in ("bert", "gpt2", "llama") for k in KINDS for w in (False, True) if not (w and f == "bert")]


@pytest.mark.parametrize(("family", "kind", "words"), CASES)
def test_a_trained_rival_is_worn_and_saved_as_plain_peft(
    made: Any, family: str, kind: Kind, words: bool, tmp_path: Path
):
    subject = made(family, Lora(1) if kind == "prompt" else None, words)
    before = subject.fingerprint
    entrant = trained(subject, corpus(), contestant(subject, kind), rates=(3,), training=TRAINING, seed=0)
    worn = on(subject, entrant)
    part = corpus().part("test")
    said = predict(worn, part).logits
    assert np.abs(said - predict(subject, part).logits).max() > 1e-3, "another adapter says something else"
    _, model = plain(subject, entrant, tmp_path)
    rows = None if not words else subject.verbaliser_ids()
    for i, ids in enumerate(forward.tokenize(worn, part)):
        with torch.no_grad():
            z = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)).logits
        assert np.abs((z[0] if rows is None else z[0, -1, rows]).numpy() - said[i]).max() < 1e-5
    assert subject.fingerprint == before
    assert not any(p.requires_grad or p._backward_hooks for p in worn.model.parameters() if p is not None)
    # What trained it is chosen by its word on calibration: read again through the worn adapter, it is the same.
    held = corpus().part("calibration")
    got = predict(worn, held)
    assert -np.log(got.probability[np.arange(len(held)), held.label]).mean() == pytest.approx(
        entrant.tried[0].nll, abs=1e-6
    )
    assert (got.predicted == held.label).mean() == entrant.tried[0].accuracy


def test_all_kinds_begin_from_the_same_head_and_only_a_probe_apart(made: Any, monkeypatch: pytest.MonkeyPatch):
    """RoBERTa's head has a random dense layer before the last one: the same draw under every kind."""
    subject, seen = made("roberta"), {}

    def train(new: Subject, *_: Any, **__: Any) -> SimpleNamespace:
        seen[kind] = files.adapter_tensors(new)
        return SimpleNamespace(best_epoch=0)

    monkeypatch.setattr(contest, "train", train)
    for kind in KINDS:
        trained(subject, corpus(), contestant(subject, kind), rates=(1,), training=TRAINING, seed=0)
    dense = [next(t for n, t in s.items() if n.endswith("classifier.dense.weight")) for s in seen.values()]
    last = [next(t for n, t in s.items() if n.endswith("classifier.out_proj.weight")) for s in seen.values()]
    assert len(dense) == 4
    assert all(torch.equal(dense[0], d) for d in dense)
    # LoRAs change nothing at the start, so their probes are one; a prompt's is of the features under the prompt.
    assert torch.equal(last[2], last[3])
    assert not torch.equal(last[0], last[2])


def test_the_best_rate_on_calibration_is_kept_and_every_try_begins_anew(made: Any):
    subject = made("bert")
    rival = contestant(subject, "query-key LoRA")
    three = trained(subject, corpus(), rival, rates=(0.3, 30, 1), training=TRAINING, seed=0)
    alone = [trained(subject, corpus(), rival, rates=(r,), training=TRAINING, seed=0) for r in (0.3, 30, 1)]
    assert [a.tried[0] for a in alone] == list(three.tried)
    assert len({a.nll for a in three.tried}) == 3
    best = min(alone, key=lambda a: a.tried[0].nll)
    assert three.lr == best.lr
    assert all(torch.equal(three.tensors[k], best.tensors[k]) for k in best.tensors)


def test_it_learns_what_can_be_learnt(made: Any):
    training = replace(TRAINING, epochs=6)
    for kind in KINDS:
        subject = made("bert")
        entrant = trained(subject, corpus(200), contestant(subject, kind), rates=(3,), training=training, seed=0)
        assert entrant.tried[0].accuracy > 0.8, kind


def test_the_same_seed_gives_the_same_and_another_does_not(made: Any):
    subject = made("bert")
    rival = contestant(subject, "value-MLP LoRA")
    one, two, other = (
        trained(subject, corpus(), rival, rates=(1,), training=TRAINING, seed=s) for s in (0, 0, 1)
    )  # fmt: skip
    assert same(one, two)
    assert not same(one, other)


def test_the_test_split_is_never_read(made: Any):
    subject, data = made("bert"), corpus()
    rival = contestant(subject, "prompt")
    one = trained(subject, data, rival, rates=(1, 3), training=TRAINING, seed=0)

    def poisoned(split: str) -> Corpus:
        spoilt = data.split == split
        text = ["" if bad else t for t, bad in zip(data.text, spoilt, strict=True)] if split == "test" else data.text
        wrong = 99 if split == "test" else 1 - data.label
        return replace(data, text=text, label=np.where(spoilt, wrong, data.label))

    assert same(one, trained(subject, poisoned("test"), rival, rates=(1, 3), training=TRAINING, seed=0))
    for split in ("train", "calibration"):
        assert not same(one, trained(subject, poisoned(split), rival, rates=(1, 3), training=TRAINING, seed=0))


def test_labels_are_brought_into_the_subjects_order(made: Any):
    subject, data = made("bert"), corpus()
    turned = replace(data, classes=CLASSES[::-1], label=1 - data.label)
    rival = contestant(subject, "prompt")
    a, b = (trained(subject, c, rival, rates=(1,), training=TRAINING, seed=0) for c in (data, turned))
    assert same(a, b)


@pytest.mark.parametrize("wild", [1e9, 1e30])
@pytest.mark.parametrize("kind", ["prompt", "value-MLP LoRA"])
def test_a_rate_that_diverges_counts_as_tried(made: Any, kind: Kind, wild: float):
    """A prompt is normed away at once, so that training at the lower of the two ends in numbers, only bad ones."""
    subject = made("gpt2")
    rival = contestant(subject, kind)
    entrant = trained(subject, corpus(), rival, rates=(wild, 1), training=TRAINING, seed=0)
    calm = trained(subject, corpus(), rival, rates=(1,), training=TRAINING, seed=0)
    assert entrant.tried[0].nll > 100
    assert math.isinf(entrant.tried[0].nll) == (wild > 1e9 or kind != "prompt")
    assert (entrant.lr, entrant.tried[1]) == (calm.lr, calm.tried[0])
    assert all(torch.equal(entrant.tensors[k], calm.tensors[k]) for k in calm.tensors)


def test_where_every_rate_diverges_it_is_said(made: Any, monkeypatch: pytest.MonkeyPatch):
    def diverges(*_: Any, **__: Any) -> None:
        raise BadInput("Training diverged.")

    subject = made("bert")
    monkeypatch.setattr(contest, "train", diverges)
    with pytest.raises(
        BadInput, match=r"No learning rate tried \(0.01, 0.03\) trains a prompt on 'corpus': Training div"
    ):
        trained(subject, corpus(), contestant(subject, "prompt"), rates=(1, 3), training=TRAINING, seed=0)


def test_a_killed_contest_goes_on(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is remembered is not trained again, and is the same to the bit; anything else is."""
    subject, data = made("bert"), corpus()
    rival, ran, train = contestant(subject, "query-key LoRA"), [], contest.train
    monkeypatch.setattr(contest, "train", lambda *a, **k: ran.append(k["lr"]) or train(*a, **k))
    stages: list[tuple[str, int, int]] = []

    def run(rates: tuple[float, ...] = (1, 3), c: Corpus = data, r: contest.Rival = rival, **options: Any) -> Entrant:
        ran.clear()
        with within(Session(memo=Memo(tmp_path), progress=lambda *a: stages.append(a))):
            return trained(subject, c, r, rates=rates, **({"training": TRAINING, "seed": 0} | options))

    first = run()
    assert ran == pytest.approx([3e-3, 9e-3])
    assert {s for s, _, _ in stages if s.startswith("tuning")} == {f"tuning query-key LoRA {i}/2" for i in (1, 2)}
    assert any(0 < done < total for _, done, total in stages)
    second = run()
    assert ran == []
    assert same(first, second)
    forgetful = trained(subject, data, rival, rates=(1, 3), training=TRAINING, seed=0)
    assert same(first, forgetful)
    assert same(first, run(training=replace(TRAINING, lr=0.5)))
    assert ran == [], "the training's own rate is not read"
    third = run((1, 2))
    assert ran == pytest.approx([6e-3]), "one try remembered, one new"
    assert third.tried[0] == first.tried[0]
    shorter = data.take(np.arange(4, len(data)))
    recipe = replace(rival.recipe, alpha=3)
    changes: list[dict[str, Any]] = [
        {"training": replace(TRAINING, epochs=2)}, {"seed": 1}, {"c": shorter}, {"r": replace(rival, recipe=recipe)},
    ]  # fmt: skip
    for change in changes:
        run(**change)
        assert len(ran) == 2, change


# ------------------------------------------------------------------------------------------------------------- seeds


def as_if(monkeypatch: pytest.MonkeyPatch, nll: Callable[[float, int, int], float], growing: bool = False) -> list:
    """`trained` that trains nothing: its NLL is a function of rate, epochs and seed. The calls, in order."""
    asked: list[tuple[float, int, int]] = []

    def made(
        _subject: Any, _corpus: Any, rival: contest.Rival, *, rates: Any, training: Training, seed: int
    ) -> Entrant:
        asked.append((rates[0], training.epochs, seed))
        value = nll(rates[0], training.epochs, seed)
        if math.isinf(value):
            raise BadInput("Training diverged.")
        lr = rates[0] * contest.RATE[rival.kind]
        tried = (contest.Attempt(lr, value, 0.5, training.epochs, growing),)
        return Entrant(rival, lr, tried, {}, {"seed": torch.tensor(seed)})

    monkeypatch.setattr(contest, "trained", made)
    return asked


RIVAL = contest.Rival("prompt", Prompt(2), 64)


def teamed(rates: tuple[float, ...] = (1 / 3, 1.0, 3.0), seeds: int = 3) -> contest.Team:
    return contest.team(None, corpus(), RIVAL, rates=rates, training=TRAINING, seeds=seeds, seed=7)  # type: ignore[arg-type]


def test_rates_go_on_while_the_best_lies_on_an_edge(monkeypatch: pytest.MonkeyPatch):
    asked = as_if(monkeypatch, lambda rate, *_: abs(math.log(rate / 27)))
    got = teamed()
    assert got.kept.lr == pytest.approx(27 * contest.RATE["prompt"])
    assert sorted({round(r, 2) for r, *_ in asked}) == [0.33, 1, 3, 9, 27, 81]
    asked = as_if(monkeypatch, lambda rate, *_: -math.log(rate))
    assert len({r for r, *_ in asked}) == 0
    teamed()
    assert len({r for r, *_ in asked}) == contest.MOST_TRIES, "not for ever"
    asked = as_if(monkeypatch, lambda *_: 0.5)
    teamed()
    assert len({r for r, *_ in asked}) == 3, "flat: nothing to follow"


def test_the_rate_is_the_best_in_the_mean_of_the_seeds_and_diverging_once_is_diverging(monkeypatch: pytest.MonkeyPatch):
    """The first seed alone likes the highest rate, at which the others fail."""
    as_if(monkeypatch, lambda rate, _, seed: {1 / 3: 0.6, 1: 0.4}.get(rate, 0.1 if seed == 7 else 3.0))
    got = teamed()
    assert got.kept.lr == contest.RATE["prompt"]
    assert len({int(m.tensors["seed"]) for m in got.members}) == len(got.members) == 3
    as_if(monkeypatch, lambda rate, _, seed: math.inf if rate > 1 and seed != 7 else 0.5 - 0.1 * math.log(rate))
    assert teamed().kept.lr == contest.RATE["prompt"]
    as_if(monkeypatch, lambda *_: math.inf)
    with pytest.raises(BadInput, match="trains a prompt on 'corpus' from each of 3 seeds: Training diverged"):
        teamed()


def test_effort_doubles_while_it_pays_and_the_last_epoch_is_the_best(monkeypatch: pytest.MonkeyPatch):
    asked = as_if(monkeypatch, lambda rate, epochs, _: 1 / epochs + abs(math.log(rate)), growing=True)
    assert teamed().kept.epochs == contest.MOST_EPOCHS * TRAINING.epochs
    assert {e for _, e, _ in asked} == {1, 2, 4}
    as_if(monkeypatch, lambda rate, epochs, _: 1 / epochs + abs(math.log(rate)), growing=False)
    assert teamed().kept.epochs == TRAINING.epochs, "the control: the last epoch was not the best"
    as_if(monkeypatch, lambda rate, epochs, _: 1 - 0.001 * epochs + abs(math.log(rate)), growing=True)
    assert max(a.epochs for a in teamed().tried) == 2, "twice the effort did not pay"
