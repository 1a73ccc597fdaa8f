"""Every architecture family x every adapter kind x (head | verbaliser), on tiny random models and never a null adapter."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from drawn_weights import move
from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, TrueupError, Unsupported
from trueup.run import forward
from trueup.run.predict import predict
from trueup.subject import adapter as files
from trueup.subject.anatomy import FAMILIES
from trueup.subject.load import load
from trueup.subject.new_adapter import Lora, Prefix, Prompt, PTuning, Recipe, fresh
from trueup.subject.quiet import quiet
from trueup.subject.subject import Head, Subject, head_layer
from trueup.subject.template import Template

CLASSES = ("a", "b", "c")
WORDS = ("good", "bad", "cat")  # first letters differ too: the tiny Qwen2 spells
TEMPLATE = Template("say {text} now", WORDS)
KINDS: dict[str, Recipe | None] = {
    "lora": Lora(), "prompt": Prompt(4), "prefix": Prefix(4), "p-tuning": PTuning(4, 16), "ia3": None,
}  # fmt: skip
TEXT = ["good cat sat", "bad", "the cat bad good mat sat on the good dog", "good", "very loud film it was", "the trap"]
TOLERANCE = 1e-5


def refused(family: str, kind: str, mode: str) -> bool:
    anatomy = FAMILIES[family]
    return (
        (kind == "prefix" and not anatomy.prefix)
        or (mode == "head" and not anatomy.head)
        or (mode == "verbaliser" and not anatomy.causal)
    )


EVERY = [(f, k, m) for f in FAMILIES for k in KINDS for m in ("head", "verbaliser")]
RUNS = [c for c in EVERY if not refused(*c)]
REFUSED = [c for c in EVERY if refused(*c) and c[1] != "ia3"]  # IA3 is made with plain PEFT here: nothing to refuse


def corpus(text: list[str] = TEXT) -> Corpus:
    n = len(text)
    return Corpus(text, np.arange(n) % 3, CLASSES, np.array(["test"] * n))


def apart(a: Any, b: Any) -> float:
    """The largest difference, relative to the largest value (1 at least)."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(np.abs(a - b).max() / max(1.0, np.abs(b).max()))


def with_ia3(base: Path, family: str, mode: str, folder: Path) -> Subject:
    """IA3 is no recipe of trueup: adapted and saved with plain PEFT, read by trueup."""
    anatomy = FAMILIES[family]
    head = mode == "head"
    cls = transformers.AutoModelForSequenceClassification if head else transformers.AutoModelForCausalLM
    scaled = [anatomy.down] if anatomy.kind == "state-space" else [anatomy.value, anatomy.down]
    config = peft.IA3Config(
        task_type="SEQ_CLS" if head else "CAUSAL_LM", target_modules=scaled, feedforward_modules=[anatomy.down],
        fan_in_fan_out=family == "gpt2",
    )  # fmt: skip
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        net = cls.from_pretrained(base, **({"num_labels": 3} if head else {}))
        model = peft.get_peft_model(net, config)
        move(model)
        model.save_pretrained(str(folder), save_embedding_layers=False)
    return reload(base, folder, mode)


def reload(base: Path, folder: Path | None, mode: str) -> Subject:
    words = {} if mode == "head" else {"template": TEMPLATE.text, "verbaliser": WORDS}
    return load(str(base), str(folder) if folder else None, classes=CLASSES, max_length=32, device="cpu", **words)


def adapted(base: Path, family: str, kind: str, mode: str, folder: Path) -> Subject:
    recipe = KINDS[kind]
    if recipe is None:
        return with_ia3(base, family, mode, folder)
    template = TEMPLATE if mode == "verbaliser" else None
    subject = fresh(str(base), recipe, CLASSES, template=template, max_length=32, device="cpu")
    move(subject.model)
    return subject


@dataclass(frozen=True, eq=False)
class Case:
    """One combination, made once for all its tests."""

    family: str
    mode: str
    base: Path
    subject: Subject
    logits: np.ndarray


@pytest.fixture(scope="module", params=RUNS, ids="-".join)
def case(request: pytest.FixtureRequest, base_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family, kind, mode = request.param
    subject = adapted(base_of(family), family, kind, mode, tmp_path_factory.mktemp("made"))
    return Case(family, mode, base_of(family), subject, predict(subject, corpus()).logits)


def plain_logits(model: Any, subject: Subject, rows: list[int] | None = None) -> np.ndarray:
    """What the transformers or PEFT model itself says: one example at a time, unpadded."""
    got = []
    for ids in forward.tokenize(subject, corpus()):
        with torch.no_grad():
            z = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)).logits
        got.append((z[0] if rows is None else z[0, -1, rows]).numpy())
    return np.stack(got)


# ----------------------------------------------------------------------------------------------------------- anatomy


def test_adapters_are_not_null(case: Case, tmp_path: Path):
    """Everything below is about adapters that change what the model says."""
    model, with_it = case.subject.model, predict(case.subject, corpus()).features
    if case.subject.peft_config.is_prompt_learning:
        without = predict(replace(case.subject, model=model.get_base_model()), corpus()).features
    else:
        with model.disable_adapter():
            without = predict(case.subject, corpus()).features
    assert apart(without, with_it) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_anatomy_names_parts_that_run_once_per_layer(family: str, base_of: Any):
    anatomy = FAMILIES[family]
    cls = transformers.AutoModelForSequenceClassification if anatomy.head else transformers.AutoModelForCausalLM
    with quiet():
        model = cls.from_pretrained(base_of(family), **({"num_labels": 3} if anatomy.head else {})).eval()
    layers = model.base_model.get_submodule(anatomy.layers)
    assert len(layers) == anatomy.sizes(model.config)["num_layers"] == 2
    width = getattr(model.config, anatomy.width)
    names = {getattr(anatomy, part) for part in ("query", "key", "value", "mixer_out", "up", "down")} - {""}
    assert ("" in (anatomy.query, anatomy.key, anatomy.value)) == (anatomy.kind == "state-space")
    calls: dict[tuple[int, str], list[tuple[int, int]]] = {}
    hooks = []
    for i, layer in enumerate(layers):
        for name in names:

            def seen(_: Any, inputs: Any, out: Any, key: tuple[int, str] = (i, name)) -> None:
                calls.setdefault(key, []).append((inputs[0].shape[-1], out.shape[-1]))

            hooks.append(layer.get_submodule(name).register_forward_hook(seen))
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7, 8]]), attention_mask=torch.ones(1, 4, dtype=torch.long))
    for h in hooks:
        h.remove()
    assert set(calls) == {(i, name) for i in range(2) for name in names}
    assert all(len(c) == 1 for c in calls.values())
    sizes = {name: calls[0, name][0] for name in names}
    assert sizes[anatomy.mixer_out][1] == width
    assert sizes[anatomy.down][1] == width
    assert sizes[anatomy.up][0] == width
    if anatomy.kind != "state-space":
        gated = family == "modernbert"  # the gate is one matrix with what goes up
        assert sizes[anatomy.up][1] == (1 + gated) * sizes[anatomy.down][0], "what goes up comes down"
        assert sizes[anatomy.query][0] == sizes[anatomy.key][0] == sizes[anatomy.value][0] == width
        fused = anatomy.query == anatomy.key
        assert sizes[anatomy.query][1] == (3 if fused else 1) * sizes[anatomy.mixer_out][0]
    if anatomy.head:
        last = head_layer(model, anatomy)
        assert last is model.get_submodule(anatomy.head)
        assert last.out_features == 3
        assert (anatomy.head + ".").startswith(anatomy.head_root + ".")
        assert any(n.split(".")[-1] in anatomy.lora for n, _ in layers[0].named_modules())


def test_anatomy_finds_the_head_through_an_adapter(case: Case):
    """The head that `own_head` reads is the one that answers: changing it changes the logits, through PEFT's wrapper."""
    own = case.subject.own_head()
    x = predict(case.subject, corpus()).features
    assert apart(x @ own.weight.numpy().T + own.bias.numpy(), case.logits) <= TOLERANCE
    layers = case.subject.base.base_model.get_submodule(case.subject.anatomy.layers)
    for part in ("query", "key", "value", "mixer_out", "up", "down"):
        if name := getattr(case.subject.anatomy, part):
            assert layers[0].get_submodule(name) is not None


# ----------------------------------------------------------------------------------------------------------- logits


def test_an_example_does_not_depend_on_its_batch_or_padding(case: Case):
    every = corpus()
    long = corpus([*TEXT, " ".join(["loud film"] * 12)])
    assert apart(predict(case.subject, long).logits[: len(TEXT)], case.logits) <= TOLERANCE
    backwards = predict(case.subject, every.take(np.arange(len(TEXT))[::-1])).logits[::-1]
    assert apart(backwards, case.logits) <= TOLERANCE
    for i in range(len(TEXT)):
        alone = predict(case.subject, every.take(np.array([i]))).logits[0]
        assert apart(alone, case.logits[i]) <= TOLERANCE
    assert np.abs(case.logits[0] - case.logits[1]).max() > 1e-3, (
        "the examples differ, so the comparison means something"
    )


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom"])
def test_peft_itself_depends_on_padding(family: str, base_of: Any, tmp_path: Path):
    """The known trap (PEFT issues 764, 1093) that the test above would catch: its control."""
    subject = adapted(base_of(family), family, "prompt", "head", tmp_path)
    ids = forward.tokenize(subject, corpus())
    batch = forward.collate(ids, subject.tokenizer.pad_token_id)
    with torch.no_grad():
        padded = subject.model(input_ids=batch.ids, attention_mask=batch.mask).logits.numpy()
    alone = plain_logits(subject.model, subject)
    longest = max(range(len(ids)), key=lambda i: len(ids[i]))
    assert apart(padded[longest], alone[longest]) <= TOLERANCE
    assert apart(padded, alone) > 1e-2
    assert apart(predict(subject, corpus()).logits, alone) <= TOLERANCE


def test_logits_are_plain_pefts_own(case: Case):
    rows = None if case.mode == "head" else case.subject.verbaliser_ids()
    assert apart(plain_logits(case.subject.model, case.subject, rows), case.logits) <= TOLERANCE


# -------------------------------------------------------------------------------------------------------- save, load


def test_saved_by_trueup_loads_the_same(case: Case, tmp_path: Path):
    files.save_tuned(case.subject, tmp_path)
    assert apart(predict(reload(case.base, tmp_path, case.mode), corpus()).logits, case.logits) <= TOLERANCE


def test_saved_by_peft_loads_the_same(case: Case, tmp_path: Path):
    with quiet():
        case.subject.model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    assert apart(predict(reload(case.base, tmp_path, case.mode), corpus()).logits, case.logits) <= TOLERANCE


# ------------------------------------------------------------------------------------------------------- wider heads


def widened(subject: Subject) -> Head:
    own = subject.own_head()
    g = torch.Generator().manual_seed(3)
    extra = torch.randn(2, own.weight.shape[1], generator=g)
    biased = subject.template is None and subject.head_layer().bias is not None
    bias = torch.randn(2, generator=g) if biased else torch.zeros(2)
    return Head(torch.cat([own.weight, extra]), torch.cat([own.bias, bias]))


def plainly_loaded(base: Path, folder: Path, rows: int) -> Any:
    """As its users do where trueup is not installed."""
    with quiet():
        net = transformers.AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=rows, ignore_mismatched_sizes=True
        )
        return peft.PeftModel.from_pretrained(net, str(folder)).eval()


def assert_wide_head_travels(subject: Subject, base: Path, folder: Path) -> None:
    own = predict(subject, corpus()).logits
    head = widened(subject)
    with_head = replace(subject, head=head)
    ours = predict(with_head, corpus()).logits
    assert ours.shape[1] == 5
    assert apart(ours[:, :3], own) <= TOLERANCE
    before = subject.fingerprint
    settings, tensors = files.adapter_with_head(subject, head)
    files.write_adapter(folder, settings, tensors)
    assert subject.fingerprint == before
    theirs = plain_logits(plainly_loaded(base, folder, 5), subject)
    assert apart(theirs, ours) <= TOLERANCE
    assert apart(theirs[:, :3], own) <= TOLERANCE


def test_adapter_with_a_wider_head_loads_with_plain_peft(case: Case, tmp_path: Path):
    if not FAMILIES[case.family].head:
        with pytest.raises(Unsupported, match=f"no sequence classifier for '{case.family}'"):
            files.adapter_with_head(case.subject, case.subject.own_head())
        return
    assert_wide_head_travels(case.subject, case.base, tmp_path)


@pytest.mark.parametrize("family", [f for f, a in FAMILIES.items() if a.head])
def test_classifier_without_adapter_gets_one_that_carries_the_head(family: str, base_of: Any, tmp_path: Path):
    whole = tmp_path / "whole"
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        net = transformers.AutoModelForSequenceClassification.from_pretrained(base_of(family), num_labels=3)
        for p in head_layer(net, FAMILIES[family]).parameters():
            torch.nn.init.normal_(p)
        net.save_pretrained(whole)
        transformers.AutoTokenizer.from_pretrained(base_of(family)).save_pretrained(whole)
    subject = reload(whole, None, "head")
    (tmp_path / "out").mkdir()
    assert_wide_head_travels(subject, whole, tmp_path / "out")
    assert apart(predict(subject, corpus()).logits, plain_logits(net.eval(), subject)) <= TOLERANCE


@pytest.mark.parametrize("family", [f for f, a in FAMILIES.items() if a.head and a.causal])
def test_verbaliser_without_adapter_gets_one_that_carries_the_head(family: str, base_of: Any, tmp_path: Path):
    subject = reload(base_of(family), None, "verbaliser")
    assert_wide_head_travels(subject, base_of(family), tmp_path)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_bias_that_the_family_cannot_hold_is_refused(family: str, base_of: Any, tmp_path: Path):
    subject = adapted(base_of(family), family, "lora", "head", tmp_path)
    own = subject.own_head()
    files.adapter_with_head(subject, own)
    with pytest.raises(Unsupported, match=f"head of '{family}' has no bias; give a head without one"):
        files.adapter_with_head(subject, Head(own.weight, own.bias + 1))


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(("family", "kind", "mode"), REFUSED)
def test_what_cannot_be_is_refused_by_name(family: str, kind: str, mode: str, base_of: Any, tmp_path: Path):
    with pytest.raises(Unsupported, match=f"'{family}'") as e:
        adapted(base_of(family), family, kind, mode, tmp_path)
    sentence = str(e.value)
    assert sentence.endswith((".", "`.")), sentence
    assert "use " in sentence or "give " in sentence, f"no next step: {sentence}"


def test_narrow_electra_refuses_prompts(tmp_path: Path):
    config = transformers.ElectraConfig(
        vocab_size=30, embedding_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, pad_token_id=0,
    )  # fmt: skip
    from trueup.subject.tiny import make_tokenizer

    with quiet():
        transformers.ElectraModel(config).save_pretrained(tmp_path)
        make_tokenizer(pair=True).save_pretrained(tmp_path)
    for recipe in (Prompt(2), PTuning(2, 8)):
        with pytest.raises(Unsupported, match=r"narrower than its layers; use `tune lora`\.?"):
            fresh(str(tmp_path), recipe, CLASSES, device="cpu")
    subject = fresh(str(tmp_path), Lora(), CLASSES, device="cpu")
    assert predict(subject, corpus()).logits.shape == (len(TEXT), 3)


def test_a_layer_that_the_checkpoint_lacks_travels_with_the_adapter(base_of: Any, tmp_path: Path):
    """DeBERTa is published without the pooler of its classifier: what PEFT saves by itself would not bring it back."""
    base, folder = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(base_of("deberta-v2"), base)
    kept = load_file(str(base / "model.safetensors"))
    save_file(
        {k: v for k, v in kept.items() if not k.startswith("pooler.")},
        str(base / "model.safetensors"),
        {"format": "pt"},
    )
    subject = fresh(str(base), Lora(2), CLASSES, max_length=32, device="cpu")
    move(subject.model)
    folder.mkdir()
    files.save_tuned(subject, folder)
    logits = predict(subject, corpus()).logits
    assert apart(predict(reload(base, folder, "head"), corpus()).logits, logits) <= TOLERANCE
    assert apart(plain_logits(plainly_loaded(base, folder, 3), subject), logits) <= TOLERANCE
    with pytest.raises(BadInput, match=r"lacks the weights pooler\.dense\.bias.*cannot carry; use `tune lora`"):
        fresh(str(base), Prompt(2), CLASSES, device="cpu")


def test_every_family_has_a_tiny_model_and_every_refusal_is_a_trueup_error():
    from trueup.subject.tiny import SIZES

    assert set(SIZES) == set(FAMILIES)
    assert issubclass(Unsupported, TrueupError)
    assert {f for f, _, _ in RUNS} == set(FAMILIES)
    assert {k for _, k, _ in RUNS} == set(KINDS)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "gpt2"])
def test_an_adapter_that_left_the_head_to_its_base_carries_it_once_widened(family: str, base_of: Any, tmp_path: Path):
    """A LoRA of no task on a finished classifier keeps no head of its own; the wider adapter must bring all of it."""
    whole, thin, out = (tmp_path / n for n in ("whole", "thin", "out"))
    out.mkdir()
    anatomy = FAMILIES[family]
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        net = transformers.AutoModelForSequenceClassification.from_pretrained(base_of(family), num_labels=3)
        net.save_pretrained(whole)
        transformers.AutoTokenizer.from_pretrained(base_of(family)).save_pretrained(whole)
        config = peft.LoraConfig(target_modules=list(anatomy.lora), fan_in_fan_out=family == "gpt2")
        model = peft.get_peft_model(net, config)
        move(model)
        model.save_pretrained(str(thin))
    assert not any(anatomy.head in k for k in files.read_tensors(thin))
    assert_wide_head_travels(reload(whole, thin, "head"), whole, out)
