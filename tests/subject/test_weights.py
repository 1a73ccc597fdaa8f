"""--dtype, --quantize and --device-map: the base as it was asked for, and what it says is what transformers and PEFT say of it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, Unsupported
from trueup.faults.overconfidence.confidence_head import null_remedy
from trueup.run.forward import Row, own_logits
from trueup.run.predict import predict
from trueup.run.proof import equal, tolerance
from trueup.subject import adapter as files
from trueup.subject import weights as room
from trueup.subject.checkpoint import keeping_base
from trueup.subject.kinds import Lora, Prompt
from trueup.subject.load import load
from trueup.subject.new_adapter import beside, fresh
from trueup.subject.quiet import quiet
from trueup.subject.swap_adapter import bare, wear
from trueup.subject.tiny import SIZES, kept_base, make_tokenizer
from trueup.subject.weights import Weights, offloaded

CLASSES = ("a", "b", "c")
TEXT = ["good cat sat", "bad", "the cat bad good mat sat on the good dog", "very loud film it was"]
WIDE = {"num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 128}
"""As wide as the kernels of 4 bits need it."""
FAMILIES = {
    "bert": WIDE, "roberta": WIDE, "llama": WIDE | {"num_key_value_heads": 2, "head_dim": 32},
    "qwen2": WIDE | {"num_key_value_heads": 2},
    "gpt_neox": WIDE, "opt": WIDE | {"ffn_dim": 128, "word_embed_proj_dim": 64}, "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 2},
}  # fmt: skip
TARGETS = {
    "bert": ["query", "value"], "roberta": ["query", "value"], "gpt_neox": ["query_key_value"], "gpt2": ["c_attn"],
}  # fmt: skip


def corpus() -> Corpus:
    return Corpus(TEXT, np.arange(len(TEXT)) % 3, CLASSES, np.array(["test"] * len(TEXT)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Bases of several families, each with a LoRA that brings a head."""
    known: dict[str, tuple[Path, Path]] = {}

    def get(family: str) -> tuple[Path, Path]:
        if family in known:
            return known[family]
        base, adapter = (tmp_path_factory.mktemp("weights") / family / part for part in ("base", "adapter"))
        tokenizer = make_tokenizer(pair=family == "bert")
        config = transformers.AutoConfig.for_model(
            family, **SIZES[family] | FAMILIES[family], vocab_size=len(tokenizer), pad_token_id=0, num_labels=3
        )
        with torch.random.fork_rng(), torch.no_grad(), quiet():
            torch.manual_seed(0)
            net = transformers.AutoModelForSequenceClassification.from_config(config)
            for p in net.parameters():
                p.add_(torch.randn_like(p) * 0.1)
            net.save_pretrained(base)
            settings = peft.LoraConfig(
                task_type="SEQ_CLS", r=2, target_modules=TARGETS.get(family, ["q_proj", "v_proj"]), init_lora_weights=False,
                fan_in_fan_out=family == "gpt2",
            )  # fmt: skip
            peft.get_peft_model(net, settings).save_pretrained(adapter)
        tokenizer.save_pretrained(base)
        known[family] = base, adapter
        return known[family]

    return get


def plain(base: Path, adapter: Path, **options: Any) -> np.ndarray:
    """Logits, one text at a time, by transformers and PEFT alone."""
    tok = transformers.AutoTokenizer.from_pretrained(base)
    with quiet(), torch.no_grad():
        net = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, **options)
        net.config.pad_token_id = 0
        model = peft.PeftModel.from_pretrained(net, adapter).eval()
        return np.concatenate([model(**tok(t, return_tensors="pt")).logits.float().numpy() for t in TEXT])


def same(got: np.ndarray, want: np.ndarray, dtype: torch.dtype) -> None:
    np.testing.assert_allclose(got, want, atol=tolerance(dtype) * np.abs(want).max())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "auto"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_number_type(family: str, dtype: str, made: Any):
    base, adapter = made(family)
    subject = load(str(base), str(adapter), classes=CLASSES, device="cpu", dtype=dtype)
    kind = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    assert {p.dtype for n, p in subject.base.named_parameters() if "lora" not in n} == {kind}
    want = plain(base, adapter, dtype=dtype)
    same(predict(subject, corpus()).logits, want, kind)
    if dtype == "bfloat16":  # the control: it is not float32 by another name
        assert np.abs(want - plain(base, adapter, dtype="float32")).max() > 1e-3


def test_the_usual_type(made: Any, tmp_path: Path):
    """float32 on a processor, whatever the checkpoint is saved in; `auto` is what it is saved in."""
    base, _ = made("bert")
    with quiet():
        net = transformers.AutoModelForSequenceClassification.from_pretrained(base, dtype="bfloat16")
    net.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path)
    types = {
        d: next(load(str(tmp_path), classes=CLASSES, device="cpu", dtype=d).model.parameters()).dtype
        for d in (None, "auto")
    }
    assert types == {None: torch.float32, "auto": torch.bfloat16}


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gpt2"])
def test_quantised(family: str, bits: str, made: Any, tmp_path: Path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: trueup[quantize]")
    base, adapter = made(family)
    subject = load(str(base), str(adapter), classes=CLASSES, device="cpu", quantize=bits)
    settings = transformers.BitsAndBytesConfig(
        **room.QUANTISED[bits], bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=["classifier", "score"]
    )
    want = plain(base, adapter, dtype=torch.float32, quantization_config=settings)
    got = predict(subject, corpus()).logits
    np.testing.assert_allclose(got, want, atol=1e-2 * np.abs(want).max())
    full = plain(base, adapter, dtype=torch.float32)
    assert np.abs(got - full).max() > 2 * np.abs(got - want).max(), "it is not the full base"
    assert subject.quantised and subject.source.base == str(base)  # noqa: PT018
    null_remedy(subject).save(tmp_path / "repair")
    page = (tmp_path / "repair" / "README.md").read_text()
    assert "quantization_config=" in page.partition("```python\n")[2].partition("```")[0]
    with pytest.raises(Unsupported, match=r"fewer bits.*Give it in full"):
        beside(subject, Lora(2), seed=0)


def test_the_bits_that_the_adapter_was_trained_on(made: Any, tmp_path: Path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: trueup[quantize]")
    base, adapter = made("bert")
    page = (
        "The following `bitsandbytes` quantization config was used during training:\n- load_in_4bit: True\n"
        "- bnb_4bit_quant_type: fp4\n- bnb_4bit_use_double_quant: False\n"
    )
    for file in adapter.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "README.md").write_text(page)
    four, eight = (load(str(base), str(tmp_path), classes=CLASSES, device="cpu", quantize=b) for b in ("4bit", "8bit"))
    assert four.base.config.quantization_config.bnb_4bit_quant_type == "fp4"
    assert not four.source.told
    assert "trained on a base in 4 bits, and is examined on one in 8" in eight.source.told[0]


# ------------------------------------------------------------------------------------------------------- device maps


def layout(family: str, base: Path, tmp_path: Path) -> Path:
    """The second layer and everything after the layers on disk, the rest in memory."""
    with quiet(), torch.device("meta"):
        net = transformers.AutoModelForSequenceClassification.from_config(transformers.AutoConfig.from_pretrained(base))
    blocks = next(n for n, m in net.named_modules() if isinstance(m, torch.nn.ModuleList))
    head = next(n for n, _ in reversed(list(net.named_children())))
    file = tmp_path / "map.json"
    file.write_text(json.dumps({"": "cpu", f"{blocks}.1": "disk", head: "disk"}))
    return file


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_on_disk(family: str, dtype: str, made: Any, tmp_path: Path):
    base, adapter = made(family)
    whole = load(str(base), str(adapter), classes=CLASSES, device="cpu", dtype=dtype)
    want = predict(whole, corpus()).logits
    for _ in range(2):  # also where the base is kept for the next job
        with keeping_base():
            subject = load(
                str(base), str(adapter), classes=CLASSES, dtype=dtype, device_map=str(layout(family, base, tmp_path))
            )
            assert offloaded(subject.base)
            np.testing.assert_array_equal(predict(subject, corpus()).logits, want)
    same(want, plain(base, adapter, dtype=dtype), getattr(torch, dtype))
    assert subject.fingerprint == whole.fingerprint, "it is the same model wherever its layers lie"
    again = wear(subject, *files.adapter_of(subject))
    np.testing.assert_array_equal(predict(again, corpus()).logits, want)
    assert np.abs(predict(bare(subject), corpus()).logits - want).max() > 1e-3, "the control: the adapter changes it"
    with null_remedy(subject).on(subject) as unchanged:
        np.testing.assert_array_equal(predict(unchanged, corpus()).logits, want)
    with pytest.raises(Unsupported, match="Training another adapter needs all weights in memory"):
        beside(subject, Lora(2), seed=0)


def test_the_map_that_accelerate_makes(made: Any):
    base, adapter = made("llama")
    subject = load(str(base), str(adapter), classes=CLASSES, device_map="auto", dtype="float32")
    whole = load(str(base), str(adapter), classes=CLASSES, dtype="float32", device="cpu")
    same(predict(subject, corpus()).logits, predict(whole, corpus()).logits, torch.float32)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_prompts_before_layers_on_disk(kind: str, made: Any, tmp_path: Path):
    base, _ = made("llama")
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        net = transformers.AutoModelForSequenceClassification.from_pretrained(base)
        make = peft.PromptTuningConfig if kind == "prompt" else peft.PrefixTuningConfig
        peft.get_peft_model(net, make(task_type="SEQ_CLS", num_virtual_tokens=3)).save_pretrained(tmp_path / "a")
    map_ = str(layout("llama", base, tmp_path))
    if kind == "prefix":  # PEFT 0.21 looks for a device that is neither the processor nor the disk, and finds none
        with pytest.raises(Unsupported, match="cannot run an adapter of kind 'PREFIX_TUNING'"):
            load(str(base), str(tmp_path / "a"), classes=CLASSES, device_map=map_, dtype="float32")
        return
    subject = load(str(base), str(tmp_path / "a"), classes=CLASSES, device_map=map_, dtype="float32")
    want = predict(load(str(base), str(tmp_path / "a"), classes=CLASSES, device="cpu"), corpus()).logits
    np.testing.assert_array_equal(predict(subject, corpus()).logits, want)


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "bfloat"}, r"no number type 'bfloat'\. Did you mean 'bfloat16'\?"),
        ({"quantize": "4bits"}, r"no quantisation '4bits'\. Did you mean '4bit'\?"),
        ({"device_map": "atuo"}, r"neither a device map nor a file.*Did you mean 'auto'\?"),
        ({"device_map": {"layers.7": "cpu", "": "cpu"}}, r"names 'layers\.7', and .* has no such part"),
        ({"device_map": {"": "cdua"}}, r"There is no device 'cdua'"),
        ({"device_map": {"": True}}, r"puts '' on True, which is no device"),
        ({"device_map": {}}, r"is an object of module names"),
        ({"device_map": "auto", "device": "cpu"}, r"leave --device out, or the map"),
        ({"device_map": {"model.layers.0": "disk"}}, r"gives 'model.embed_tokens' of .* no device"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_so_is_said(options: dict[str, Any], said: str, made: Any):
    base, _ = made("llama")
    with pytest.raises(BadInput, match=said):
        load(str(base), classes=CLASSES, **options)


def test_a_type_that_the_processor_does_not_compute(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> Any:
        raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")

    Weights("float16").checked("cpu")  # the control
    monkeypatch.setattr(room.F, "linear", refuse)
    with pytest.raises(BadInput, match=r"does not compute in float16 on 'cpu'.*Take --dtype float32"):
        Weights("float16").checked("cpu")


def test_bitsandbytes_that_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(room.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        BadInput, match=r"bitsandbytes, which is not installed\. pip install 'trueup\[quantize\]' brings it"
    ):
        Weights(quantize="4bit").checked("cpu")


@pytest.mark.parametrize("method", ["gptq", "awq", "torchao", "hqq"])
def test_a_checkpoint_whose_quantisation_needs_a_package(method: str, made: Any, tmp_path: Path):
    """A folder that says it is quantised so."""
    if importlib.util.find_spec({"gptq": "gptqmodel", "awq": "gptqmodel"}.get(method, method)):
        pytest.skip("The package is installed here.")
    base, _ = made("llama")
    for file in base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    extra = {"gptq": {"bits": 4, "group_size": 128, "desc_act": False}, "awq": {"bits": 4, "group_size": 128, "zero_point": True},
             "torchao": {"quant_type": "int8_weight_only"}, "hqq": {"quant_config": {}}}[method]  # fmt: skip
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": method, **extra}})
    )
    with pytest.raises(
        BadInput, match=rf"is quantised \({method}\), and transformers cannot load that here.*not quantised"
    ):
        load(str(tmp_path), classes=CLASSES, device="cpu")


def test_a_quantised_checkpoint_is_not_quantised_again(made: Any, tmp_path: Path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: trueup[quantize]")
    base, _ = made("llama")
    settings = transformers.BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["score"])
    with quiet():
        net = transformers.AutoModelForSequenceClassification.from_pretrained(base, quantization_config=settings)
        net.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path)
    assert load(str(tmp_path), classes=CLASSES, device="cpu").quantised
    with pytest.raises(BadInput, match=r"is quantised already \(bitsandbytes\)\. Leave --quantize out"):
        load(str(tmp_path), classes=CLASSES, device="cpu", quantize="8bit")


def test_a_live_model_has_its_own():
    with pytest.raises(BadInput, match="A live model brings its own dtype, so 'bfloat16' cannot be had with it"):
        load(torch.nn.Linear(2, 2), dtype="bfloat16")


# -------------------------------------------------------------------------------------------------- what rests on them


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_head_with_a_large_bias_in_a_short_type(family: str, tmp_path: Path):
    """Small logits that are differences of large terms: what is rounded before the bias is added is another number."""
    base = kept_base(family)
    subject = fresh(str(base), Prompt(4), CLASSES, max_length=32, device="cpu", dtype="bfloat16")
    head = subject.head_layer()
    with torch.no_grad():
        head.weight.mul_(200)
        row = Row([4, 5, 6, 7, 8])
        own, (got, given), terms = own_logits(subject, row)
        if head.bias is not None:
            head.bias.sub_(own.to(head.bias))
            own, (got, given), terms = own_logits(subject, row)
            assert float(own.abs().max()) < 0.02 * float(terms.max()), "the terms cancel"
    equal(got, own, "A head", "the logits", terms)
    equal(given, own, "A prompt given from outside", "the logits", terms)
    wrong = own + 0.01 * terms.max()  # the control: more than one rounding of the terms is another number
    if head.bias is not None:
        with pytest.raises(Unsupported, match="does not give what the model itself gives"):
            equal(wrong, own, "A head", "the logits", terms)


def test_units_of_a_quantised_base_are_not_scaled(monkeypatch: pytest.MonkeyPatch):
    from trueup.faults.copying import Copying
    from trueup.faults.copying.planted import planted

    subject, data = planted("planted")
    fault = Copying()
    finding = fault.audit(subject, data.part("test"), seed=0)
    assert finding.found, "the control: there is something to repair"
    monkeypatch.setattr(type(subject), "quantised", True)
    with pytest.raises(Unsupported, match=r"keeps its weights in fewer bits\. Give the base in full"):
        fault.repair(subject, data, finding, seed=0)


def test_the_report_says_how_the_base_is_kept(made: Any, tmp_path: Path):
    base, _ = made("llama")
    assert room.laid(load(str(base), classes=CLASSES, device="cpu")) == {}
    away = load(str(base), classes=CLASSES, device_map=str(layout("llama", base, tmp_path)))
    assert room.laid(away)["device map"]["disk"] == "2 parts"
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: trueup[quantize]")
    eight = load(str(base), classes=CLASSES, device="cpu", quantize="8bit")
    assert room.laid(eight) == {"quantisation": "bitsandbytes 8 bits"}


@pytest.mark.parametrize("way", ["folder", "live"])
def test_weights_of_torchao(way: str, made: Any, tmp_path: Path):
    """A weight that is several tensors: it is examined, told from another, and left as it is."""
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    base, _ = made("llama")
    settings = transformers.TorchAoConfig(quantization.Int8WeightOnlyConfig(), modules_to_not_convert=["score"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    with quiet():
        net = transformers.AutoModelForSequenceClassification.from_pretrained(
            base, quantization_config=settings, dtype=torch.float32
        ).eval()
    net.config.pad_token_id = 0
    with torch.no_grad():
        want = np.concatenate([net(**tokenizer(t, return_tensors="pt")).logits.numpy() for t in TEXT])
    if way == "folder":
        net.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        subject = load(str(tmp_path), classes=CLASSES, device="cpu")
    else:
        subject = load(net, tokenizer=tokenizer, classes=CLASSES)
    assert subject.quantised
    same(predict(subject, corpus()).logits, want, torch.float32)
    before = subject.fingerprint
    assert before != load(str(base), classes=CLASSES, device="cpu").fingerprint
    weight: Any = subject.base.get_submodule("model.layers.0.mlp.down_proj").weight
    with torch.no_grad():
        weight.qdata[0, 0] += 1
    assert subject.fingerprint != before, "the control: one number of one of its tensors is another model"
