"""A live model becomes the Subject that its files become, and stays as it was, whatever is done with it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import numpy as np
import peft
import pytest
import torch
import transformers
from torch import nn

from drawn_weights import move
from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, Unsupported
from trueup.faults.overconfidence import Overconfidence
from trueup.run.predict import predict
from trueup.subject import adapter as files
from trueup.subject.checkpoint import UNNAMED, resolve
from trueup.subject.load import load
from trueup.subject.new_adapter import Lora, Prefix, Prompt, PTuning, fresh
from trueup.subject.quiet import quiet
from trueup.subject.subject import Subject, model_fingerprint
from trueup.subject.swap_adapter import bare, wear

CLASSES = ("no", "yes")
RNG = np.random.default_rng(0)
TEXT = [" ".join(RNG.choice(["good", "bad", "cat", "sat", "the", "film"], 3 + i % 5)) for i in range(240)]
CORPUS = Corpus(TEXT, RNG.integers(0, 2, 240), CLASSES, np.array(["train", "calibration", "test"] * 80))
WORDS = {"template": "{text} is", "verbaliser": ("good", "bad")}


def tokenizer_of(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def moved(base: Path, recipe: Any = None) -> Subject:
    """A new adapter on `base`, still in training, every weight of it moved."""
    subject = fresh(str(base), recipe or Lora(4), CLASSES, device="cpu")
    move(subject.model)
    subject.model.train()
    return subject


def saved(base: Path, folder: Path, recipe: Any = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    files.save_tuned(moved(base, recipe), folder)
    return folder


def live(base: Path, adapter: Path | None = None, *, trainable: bool = True, causal: bool = False) -> Any:
    """The model as users of transformers and peft have it: still trainable, and in training mode."""
    cls = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForSequenceClassification
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls.from_pretrained(base, dtype=torch.float32, **({} if causal else {"num_labels": 2}))
        if not causal:
            model.config.pad_token_id = 0
        if adapter is not None:
            model = peft.PeftModel.from_pretrained(model, adapter, is_trainable=trainable)
    return model.train()


@pytest.fixture(scope="module")
def lora(base_of, tmp_path_factory) -> Path:
    return saved(base_of("bert"), tmp_path_factory.mktemp("adapters") / "lora")


def state(model: Any) -> tuple[str, list[Any]]:
    """All of a live model that could be changed: its fingerprint, and where each tensor is, with its gradient."""
    return model_fingerprint(model), [
        (n, p.data_ptr(), str(p.device), p.requires_grad, None if p.grad is None else p.grad.sum().item())
        for n, p in model.named_parameters()
    ] + [model.config.to_dict() if not isinstance(model, peft.PeftModel) else model.get_base_model().config.to_dict()]


@pytest.mark.parametrize(
    "family", ["bert", "roberta", "distilbert", "gpt2", "llama", "mpnet", "deberta-v2", "modernbert"]
)
def test_a_live_model_says_what_its_files_say(base_of, tmp_path, family):
    base = base_of(family)
    adapter = saved(base, tmp_path / "adapter")
    filed = load(str(base), str(adapter), classes=CLASSES, device="cpu")
    adopted = load(live(base, adapter), tokenizer=tokenizer_of(base), classes=CLASSES)
    a, b = predict(filed, CORPUS), predict(adopted, CORPUS)
    assert np.array_equal(a.logits, b.logits)
    assert (adopted.source.base, adopted.source.peft_type) == (str(base), "LORA")
    assert adopted.max_length == filed.max_length


@pytest.mark.parametrize("recipe", [Prompt(4), PTuning(4, 16), Prefix(4), Lora(2)], ids=lambda r: r.name)
@pytest.mark.parametrize("state", ["loaded", "in training"])
def test_every_kind_of_adapter(base_of, tmp_path, recipe, state):
    base = base_of("bert")
    adapter = saved(base, tmp_path / "adapter", recipe)
    filed = load(str(base), str(adapter), classes=CLASSES, device="cpu")
    model = moved(base, recipe).model if state == "in training" else live(base, adapter, trainable=False)
    adopted = load(model, tokenizer=tokenizer_of(base), classes=CLASSES)
    assert adopted.source.peft_type == filed.source.peft_type
    np.testing.assert_allclose(predict(filed, CORPUS).logits, predict(adopted, CORPUS).logits, atol=1e-6)


def test_without_an_adapter_and_with_words(base_of):
    base = base_of("llama")
    model = live(base, causal=True)
    before = state(model)
    adopted = load(model, tokenizer=tokenizer_of(base), **WORDS)
    assert adopted.classes == ("good", "bad")
    assert np.array_equal(
        predict(adopted, CORPUS).logits, predict(load(str(base), device="cpu", **WORDS), CORPUS).logits
    )
    shots = load(model, tokenizer=tokenizer_of(base), shots=2)
    assert (shots.shots.number, shots.classes, shots.max_length) == (2, (), 128)
    assert state(model) == before


def test_the_tokenizer_is_found_by_the_name_the_model_remembers(base_of, lora):
    assert load(live(base_of("bert"), lora)).tokenizer.get_vocab() == tokenizer_of(base_of("bert")).get_vocab()


def test_class_names_are_the_models_own_unless_given(base_of):
    model = live(base_of("bert"))
    tok = tokenizer_of(base_of("bert"))
    assert load(model, tokenizer=tok).classes == ("0", "1")
    model.config.id2label = {0: "down", 1: "up"}
    assert load(model, tokenizer=tok).classes == ("down", "up")
    assert load(model, tokenizer=tok, classes=CLASSES).classes == CLASSES


def _used(subject: Subject) -> None:
    fault = Overconfidence(resamples=20, folds=2).prepared(subject, CORPUS, seed=0)
    finding = fault.audit(subject, CORPUS.part("test"), seed=0)
    fault.repair(subject, CORPUS, finding, seed=0)
    with fault.null(subject).on(subject) as repaired:
        predict(repaired, CORPUS)
    wear(subject, *files.adapter_of(subject))
    bare(subject)


def test_a_live_model_stays_as_it_was(base_of, lora):
    model, tok = live(base_of("bert"), lora), tokenizer_of(base_of("bert"))
    seen: list[int] = []
    hook = model.register_forward_hook(lambda *_: seen.append(1))
    model.get_base_model().bert.encoder.layer[0].eval()  # a mode of its own
    model(**tok(["good cat"], return_tensors="pt")).logits.sum().backward()
    tok.padding_side = "left"
    before, said = state(model), repr(tok)
    _used(load(model, tokenizer=tok, classes=CLASSES))
    assert state(model) == before
    assert repr(tok) == said
    hook.remove()


def test_a_live_model_stays_as_it_was_after_an_error(base_of, lora, monkeypatch):
    model = live(base_of("bert"), lora)
    before = state(model)
    subject = load(model, tokenizer=tokenizer_of(base_of("bert")), classes=CLASSES)
    monkeypatch.setattr("trueup.run.forward.collate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict(subject, CORPUS)
    assert state(model) == before
    with pytest.raises(BadInput, match=r"has 2 classes, but 3 class names"):
        load(model, tokenizer=tokenizer_of(base_of("bert")), classes=("a", "b", "c"))
    assert state(model) == before


def test_the_view_costs_no_weights_and_its_own_modes_do_not_show(base_of, lora):
    model = live(base_of("bert"), lora)
    subject = load(model, tokenizer=tokenizer_of(base_of("bert")))
    theirs, ours = dict(model.named_parameters()), dict(subject.model.named_parameters())
    assert theirs.keys() == ours.keys()
    assert all(theirs[n].data_ptr() == ours[n].data_ptr() for n in theirs)
    assert not any(p.requires_grad for p in ours.values())
    assert not any(m.training for m in subject.model.modules())
    assert all(m.training for m in model.modules())
    fixed = load(str(base_of("bert")), str(lora), device="cpu")
    assert model_fingerprint(subject.model) == model_fingerprint(fixed.model)


def test_models_as_trainers_and_accelerate_leave_them(base_of, lora):
    base, tok = base_of("bert"), tokenizer_of(base_of("bert"))
    wanted = predict(load(live(base, lora), tokenizer=tok), CORPUS).logits
    model = live(base, lora)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    before = state(model)
    assert np.array_equal(predict(load(model, tokenizer=tok), CORPUS).logits, wanted)
    assert state(model) == before
    model = live(base, lora)
    accelerate.hooks.add_hook_to_module(model, accelerate.hooks.AlignDevicesHook("cpu"))
    assert np.array_equal(predict(load(model, tokenizer=tok), CORPUS).logits, wanted)
    model = live(base, lora)
    model.compile()
    assert np.array_equal(predict(load(model, tokenizer=tok), CORPUS).logits, wanted)


def test_a_module_that_cannot_be_copied_is_said(base_of):
    class Locked(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("Cannot pickle a prepared model")

    model = live(base_of("bert"))
    model.bert.pooler.dense = Locked(32, 32)
    with pytest.raises(
        Unsupported, match=r"No view can be had of this Bert.*Cannot pickle a prepared model.*unwrap_model"
    ):
        load(model, tokenizer=tokenizer_of(base_of("bert")))


def test_half_precision_stays_half(base_of, lora):
    model = live(base_of("bert"), lora).to(torch.bfloat16)
    subject = load(model, tokenizer=tokenizer_of(base_of("bert")), classes=CLASSES)
    assert {p.dtype for p in subject.model.parameters()} == {torch.bfloat16}
    assert subject.source.base == str(base_of("bert"))
    before = state(model)
    _used(subject)
    assert state(model) == before


def test_a_tokenizer_without_padding_is_not_given_any(base_of):
    tok = tokenizer_of(base_of("gpt2"))
    tok.pad_token, tok.eos_token = None, "[SEP]"
    assert load(live(base_of("gpt2")), tokenizer=tok).tokenizer.pad_token == "[SEP]"
    assert tok.pad_token is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")
def test_a_model_on_a_card_stays_there(base_of, lora):
    model = live(base_of("bert"), lora).to("cuda")
    before = state(model)
    subject = load(model, tokenizer=tokenizer_of(base_of("bert")), classes=CLASSES)
    assert subject.device.type == "cuda"
    _used(subject)
    assert state(model) == before


# ------------------------------------------------------------------------------------ the name under which it loads again


def test_the_name_of_the_base_is_kept_where_its_weights_are_there(base_of, lora):
    base, tok = base_of("bert"), tokenizer_of(base_of("bert"))
    assert load(live(base, lora), tokenizer=tok).source.base == str(base)
    model = live(base, lora)
    with torch.no_grad():
        model.get_base_model().bert.embeddings.word_embeddings.weight.add_(0.01)
    assert load(model, tokenizer=tok).source.base == UNNAMED


def test_weights_without_a_name(base_of):
    made = transformers.BertForSequenceClassification(live(base_of("bert")).config)
    made.config._name_or_path = ""
    assert load(made, tokenizer=tokenizer_of(base_of("bert"))).source.base == UNNAMED
    with pytest.raises(BadInput, match=r"does not say which tokenizer .* Give it: tokenizer="):
        load(made)
    with pytest.raises(Unsupported, match=r"no name is known .* Save it with save_pretrained"):
        resolve(UNNAMED)


def test_a_folder_that_is_gone_is_no_name(base_of):
    model = live(base_of("bert"))
    model.config._name_or_path = "/nowhere/base"
    assert load(model, tokenizer=tokenizer_of(base_of("bert"))).source.base == UNNAMED
    model.config._name_or_path = "org/not-in-the-cache"  # on the hub, for all that is known here
    assert load(model, tokenizer=tokenizer_of(base_of("bert"))).source.base == "org/not-in-the-cache"


def test_a_folder_whose_weights_cannot_be_compared_is_no_name(base_of, tmp_path):
    """A pickled checkpoint may be of other weights than those in memory."""
    live(base_of("bert")).save_pretrained(tmp_path / "pickled")
    net = live(tmp_path / "pickled")
    assert load(net, tokenizer=tokenizer_of(base_of("bert"))).source.base == str(tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(net.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    assert load(net, tokenizer=tokenizer_of(base_of("bert"))).source.base == UNNAMED


def test_a_head_that_no_adapter_carries_must_stand_in_the_checkpoint(base_of, tmp_path):
    base, tok = base_of("bert"), tokenizer_of(base_of("bert"))
    config = peft.LoraConfig(r=2, target_modules=["query"])  # no task type: the head stays in the base
    with quiet():
        loose = peft.get_peft_model(live(base), config)
    assert load(loose, tokenizer=tok).source.base == UNNAMED
    live(base).save_pretrained(tmp_path / "whole")
    with quiet():
        kept = peft.get_peft_model(live(tmp_path / "whole"), config)
    assert load(kept, tokenizer=tok).source.base == str(tmp_path / "whole")


@pytest.mark.parametrize("named", [True, False])
def test_a_saved_repair_loads_with_plain_peft(base_of, lora, tmp_path, named):
    base, tok = base_of("bert"), tokenizer_of(base_of("bert"))
    model = live(base, lora)
    if not named:
        model.get_base_model().config._name_or_path = ""
        model.peft_config["default"].base_model_name_or_path = None
    subject = load(model, tokenizer=tok, classes=CLASSES)
    remedy = Overconfidence().null(subject)
    remedy.save(tmp_path / "remedy")
    with quiet():
        plain = peft.PeftModel.from_pretrained(live(base), tmp_path / "remedy").eval()
    text = TEXT[3]
    with torch.no_grad():
        got = plain(**tok(text, return_tensors="pt")).logits.numpy()
    one = Corpus([text], np.array([0]), CLASSES, np.array(["test"]))
    np.testing.assert_allclose(got[:, :2], predict(subject, one).logits, atol=1e-5)
    settings = peft.PeftConfig.from_pretrained(tmp_path / "remedy")
    assert settings.base_model_name_or_path == (str(base) if named else UNNAMED)


# ---------------------------------------------------------------------------------------------------------- what is refused


def _put_in_by_transformers(base: Path, lora: Path) -> Any:
    model = live(base)
    try:
        model.add_adapter(peft.LoraConfig(r=2, target_modules=["query"]))
    except ValueError as e:  # transformers 5.24 asks for a PEFT that is not released yet
        if "version of PEFT" not in str(e):
            raise
        pytest.skip(str(e))
    return model


def _with(base: Path, lora: Path, change: Any) -> Any:
    model = live(base, lora)
    change(model)
    return model


def _another_head(model: Any) -> None:
    model.classifier = nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 2))


def _of_several_tasks(base: Path) -> Any:
    with quiet():
        return peft.get_peft_model(
            live(base), peft.PolyConfig(r=2, n_tasks=2, target_modules=["query"], task_type="SEQ_CLS")
        )


REFUSED = {
    "not a model": (lambda b, a: object(), BadInput, r"This object is no model that can be examined\. Give a PeftModel"),
    "a plain module": (lambda b, a: nn.Linear(2, 2), BadInput, r"This Linear is no model"),
    "compiled": (lambda b, a: torch.compile(live(b)), BadInput, r"OptimizedModule is no model .* its attribute '_orig_mod'"),
    "a compiled adapter": (lambda b, a: torch.compile(live(b, a)), BadInput, r"OptimizedModule .* its attribute '_orig_mod'"),
    "parallel": (lambda b, a: torch.nn.DataParallel(live(b)), BadInput, r"DataParallel is no model .* its attribute 'module'"),
    "a pipeline": (lambda b, a: SimpleNamespace(model=live(b)), BadInput, r"is no model .* its attribute 'model'"),
    "the inside of an adapter": (lambda b, a: live(b, a).get_base_model(), BadInput, r"This Bert.* is the inside of a PeftModel"),
    "its tuner": (lambda b, a: live(b, a).base_model, BadInput, r"This LoraModel is the inside .* Give the PeftModel itself"),
    "a class": (lambda b, a: transformers.BertModel, BadInput, r"BertModel is a class\. Give a model: what its from_pretrained"),
    "kind": (lambda b, a: _of_several_tasks(b), Unsupported, r"of kind 'POLY', which trueup does not examine.*'LORA'.*'VERA'"),
    "family": (
        lambda b, a: transformers.PerceiverForSequenceClassification(
            transformers.PerceiverConfig(
                num_latents=4, d_latents=16, d_model=16, num_self_attends_per_block=1, num_self_attention_heads=2,
                num_cross_attention_heads=2, vocab_size=30, max_position_embeddings=16,
            )
        ),
        Unsupported, r"The classification head of 'perceiver' has no linear last layer",
    ),
    "no head": (lambda b, a: transformers.AutoModel.from_pretrained(b), Unsupported, r"A BertModel is no classifier of texts"),
    "another head": (lambda b, a: _with(b, a, lambda m: _another_head(m.get_base_model())), Unsupported, r"The head of this Bert"),
    "merged": (lambda b, a: _with(b, a, lambda m: m.merge_adapter()), BadInput, r"merged .* model\.unmerge_adapter\(\)"),
    "off": (lambda b, a: _with(b, a, lambda m: m.base_model.disable_adapter_layers()), BadInput, r"The adapter is switched off"),
    "transformers' own": (_put_in_by_transformers, Unsupported, r"put it on with PeftModel\.from_pretrained"),
    "meta": (lambda b, a: live(b).to("meta"), BadInput, r"The model lies on 'meta'; put it on one device"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_examined_is_refused_by_name(base_of, lora, case):
    make, kind, said = REFUSED[case]
    with quiet():
        model = make(base_of("bert"), lora)
    with pytest.raises(kind, match=said):
        load(model, tokenizer=tokenizer_of(base_of("bert")))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adapter": "folder"}, r"A live model brings its own adapter"),
        ({"device": "cpu"}, r"A live model brings its own device, so 'cpu' cannot be had"),
        ({"tokenizer": "bert"}, r"A str is no tokenizer of transformers"),
        ({"classes": ("a",)}, r"has 2 classes, but 1 class names"),
        (WORDS, r"'bert' is an encoder and does not answer with a word"),
    ],
)
def test_options_that_do_not_fit_are_refused(base_of, lora, options, said):
    options = {"tokenizer": tokenizer_of(base_of("bert"))} | options
    with pytest.raises((BadInput, Unsupported), match=said):
        load(live(base_of("bert"), lora), **options)


def test_one_adapter_is_active(base_of):
    with quiet():
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        model = peft.get_peft_model(live(base_of("llama"), causal=True), config)
        model.add_adapter("other", config)
    options = {"tokenizer": tokenizer_of(base_of("llama")), **WORDS}
    model.set_adapter("other")
    assert load(model, **options).model.active_adapter == "other"
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(BadInput, match=r"The adapters 'default', 'other' are active; activate exactly one"):
        load(model, **options)


def test_a_causal_model_needs_words(base_of):
    with pytest.raises(
        BadInput, match=r"A LlamaForCausalLM has no classification head; give `template` and `verbaliser`"
    ):
        load(live(base_of("llama"), causal=True), tokenizer=tokenizer_of(base_of("llama")))
    with pytest.raises(BadInput, match=r"A LlamaForSequenceClassification answers with its head"):
        load(live(base_of("llama")), tokenizer=tokenizer_of(base_of("llama")), **WORDS)


def test_a_name_takes_no_tokenizer(base_of):
    with pytest.raises(BadInput, match=r"is loaded with it; leave `tokenizer` out"):
        load(str(base_of("bert")), tokenizer=tokenizer_of(base_of("bert")))
