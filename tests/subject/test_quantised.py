"""Bases in 4 and 8 bits (bitsandbytes on a processor): the user's own model stays as it is, and the view says what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from trueup.corpus.corpus import Corpus
from trueup.faults.overconfidence.confidence_head import null_remedy
from trueup.run.predict import predict
from trueup.subject import adapter as files
from trueup.subject.checkpoint import UNNAMED
from trueup.subject.load import load
from trueup.subject.quiet import quiet
from trueup.subject.sharing import copy_of, state_of, whole_batches
from trueup.subject.subject import body_fingerprint
from trueup.subject.swap_adapter import bare, wear
from trueup.subject.tiny import make_tokenizer

pytest.importorskip("bitsandbytes")

CLASSES = ("a", "b", "c")
TEXT = ["good cat sat", "bad", "the cat bad good mat sat on the good dog", "very loud film it was"]
KINDS = {
    "8bit": {"load_in_8bit": True},
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "nf4 twice": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
}
FAMILIES = {
    "bert": {"num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 128},
    "llama": {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64, "intermediate_size": 128},
}


def corpus() -> Corpus:
    return Corpus(TEXT, np.arange(len(TEXT)) % 3, CLASSES, np.array(["test"] * len(TEXT)))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Bases whose layers are as wide as 4-bit kernels need them, with outliers that 8-bit layers look for."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp("wide") / family
            tokenizer = make_tokenizer(pair=family == "bert")
            config = transformers.AutoConfig.for_model(
                family, **FAMILIES[family], num_hidden_layers=2, vocab_size=len(tokenizer), pad_token_id=0,
                max_position_embeddings=64, num_labels=3,
            )  # fmt: skip
            with torch.random.fork_rng(), torch.no_grad(), quiet():
                torch.manual_seed(0)
                model = transformers.AutoModelForSequenceClassification.from_config(config)
                for p in model.parameters():
                    p.add_(torch.randn_like(p) * 0.1)
                model.get_input_embeddings().weight[:, 3] *= 60
                model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[family] = folder
        return made[family]

    return get


def live(base: Path, kind: str, *, adapter: bool = True) -> Any:
    settings = transformers.BitsAndBytesConfig(
        **KINDS[kind], bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=["classifier", "score"]
    )
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        net = transformers.AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=3, quantization_config=settings, dtype=torch.float32
        )
        if not adapter:
            return net.eval()
        names = ["query", "value"] if net.config.model_type == "bert" else ["q_proj", "v_proj"]
        config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=names, init_lora_weights=False)
        return peft.get_peft_model(net, config).eval()


def plain(model: Any, base: Path) -> np.ndarray:
    """One text at a time, by transformers and PEFT alone."""
    tok = transformers.AutoTokenizer.from_pretrained(base)
    with torch.no_grad():
        return torch.cat([model(**tok(t, return_tensors="pt")).logits for t in TEXT]).numpy()


def kept(model: Any) -> dict[str, Any]:
    """What lies beside every weight, by the identity of each thing, and the scales by their numbers."""
    found: dict[str, Any] = {}
    for name, p in model.named_parameters():
        found[name] = {k: id(v) for k, v in vars(p).items()}, p.detach().clone()
        for k, v in vars(getattr(p, "quant_state", None) or object.__new__(type("Empty", (), {}))).items():
            found[f"{name}.{k}"] = v.clone() if torch.is_tensor(v) else id(v)
    return found


def unchanged(before: dict[str, Any], after: dict[str, Any]) -> bool:
    def same(a: Any, b: Any) -> bool:
        if isinstance(a, tuple):
            return all(map(same, a, b))
        return torch.equal(a, b) if torch.is_tensor(a) else a == b

    return before.keys() == after.keys() and all(same(before[k], after[k]) for k in before)


@pytest.mark.parametrize("ran", [False, True], ids=["new", "ran"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_live_model_stays_as_it_is_and_the_view_says_what_it_says(family: str, kind: str, ran: bool, wide: Any):
    base = wide(family)
    want = plain(live(base, kind), base)
    mine = live(base, kind)
    if ran:
        plain(mine, base)
    before = kept(mine)
    subject = load(mine, tokenizer=transformers.AutoTokenizer.from_pretrained(base), classes=CLASSES)
    got = predict(subject, corpus()).logits
    files.adapter_tensors(subject)
    with null_remedy(subject).on(subject) as same:
        predict(same, corpus())
    predict(wear(subject, *files.adapter_of(subject)), corpus())
    predict(bare(subject), corpus())
    again = predict(subject, corpus()).logits
    assert unchanged(before, kept(mine))
    np.testing.assert_array_equal(plain(mine, base), want)
    np.testing.assert_allclose(got, want, atol=1e-2 * np.abs(want).max())
    np.testing.assert_array_equal(again, got)
    if kind == "8bit":  # one at a time, as its outliers are looked for over the whole batch
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    assert subject.source.base == UNNAMED
    assert subject.quantised


def test_a_plain_copy_would_have_changed_it(wide: Any):
    """The positive control: what the view did before, sharing the weights with all that lies beside them."""
    import copy

    mine = live(wide("bert"), "8bit")
    before = kept(mine)
    shared: dict[int, Any] = {id(p): p for p in mine.parameters()}
    plain(copy.deepcopy(mine, shared), wide("bert"))
    assert not unchanged(before, kept(mine))


def test_the_state_of_a_layer_that_has_run_is_not_asked_for(wide: Any):
    mine = live(wide("llama"), "4bit")
    want = plain(mine, wide("llama"))
    names = list(state_of(mine))
    np.testing.assert_array_equal(plain(mine, wide("llama")), want)
    expected = list(live(wide("llama"), "4bit").state_dict())
    assert set(names) == {n for n in expected if ".weight." not in n}


@pytest.mark.parametrize("kind", KINDS)
def test_a_fingerprint_is_of_the_scales_too_and_no_pass_changes_it(kind: str, wide: Any, tmp_path: Path):
    """Weights of twice the size have the same codes, and a memory of passes that takes the two for one answers for the other."""
    from trueup.run.predict import Session, within
    from trueup.store.cache import Memo

    base = wide("llama")
    net = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    with torch.no_grad():
        for layer in net.model.layers:
            layer.mlp.up_proj.weight.mul_(2)
    net.save_pretrained(tmp_path / "twice")
    tok = transformers.AutoTokenizer.from_pretrained(base)
    own, same, twice = (
        load(live(folder, kind, adapter=False), tokenizer=tok, classes=CLASSES)
        for folder in (base, base, tmp_path / "twice")
    )
    assert all(torch.equal(a, b) for a, b in zip(own.model.parameters(), twice.model.parameters(), strict=True))
    assert own.fingerprint == same.fingerprint != twice.fingerprint
    before = own.fingerprint, body_fingerprint(own)
    with within(Session(Memo(tmp_path / "kept"))):
        a, again, b = (predict(s, corpus()).logits for s in (own, same, twice))
    assert (own.fingerprint, body_fingerprint(own)) == before
    np.testing.assert_array_equal(a, again)
    assert np.abs(a - b).max() > 1e-2


@pytest.mark.parametrize(
    ("kind", "other"),
    [("4bit", {"bnb_4bit_compute_dtype": torch.bfloat16}), ("4bit", {"bnb_4bit_quant_type": "nf4"}),
     ("8bit", {"llm_int8_threshold": 0.5})],
)  # fmt: skip
def test_a_fingerprint_is_of_how_the_bits_are_computed_with(kind: str, other: dict[str, Any], wide: Any):
    def found(**settings: Any) -> str:
        asked = {"bnb_4bit_compute_dtype": torch.float32} | KINDS[kind] | settings
        with quiet():
            net = transformers.AutoModelForSequenceClassification.from_pretrained(
                wide("llama"), num_labels=3, dtype=torch.float32,
                quantization_config=transformers.BitsAndBytesConfig(**asked, llm_int8_skip_modules=["score"]),
            )  # fmt: skip
        with torch.no_grad():
            net.score.weight.zero_()  # it is drawn
        tok = transformers.AutoTokenizer.from_pretrained(wide("llama"))
        return load(net, tokenizer=tok, classes=CLASSES).fingerprint

    assert found() == found() != found(**other)


def test_eight_bits_go_one_at_a_time(wide: Any):
    assert whole_batches(live(wide("bert"), "8bit"))
    assert not whole_batches(live(wide("bert"), "4bit"))
    assert not whole_batches(copy_of(transformers.AutoModel.from_pretrained(wide("bert"))))


@pytest.mark.parametrize("kind", KINDS)
def test_folders(kind: str, wide: Any, tmp_path: Path):
    base = wide("bert")
    net = live(base, kind, adapter=False)
    net.save_pretrained(tmp_path / "base")
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "base")
    want = plain(live(base, kind, adapter=False), base)
    subject = load(str(tmp_path / "base"), classes=CLASSES, device="cpu")
    np.testing.assert_allclose(predict(subject, corpus()).logits, want, atol=1e-2 * np.abs(want).max())
    assert subject.source.base == str(tmp_path / "base")


@pytest.mark.parametrize("kind", KINDS)
def test_the_lines_of_a_card_quantise_as_the_live_model_is(kind: str, wide: Any, tmp_path: Path):
    base = wide("bert")
    mine = live(base, kind)
    subject = load(mine, tokenizer=transformers.AutoTokenizer.from_pretrained(base), classes=CLASSES)
    null_remedy(subject).save(tmp_path / "repair")
    page = (tmp_path / "repair" / "README.md").read_text()
    lines = page.partition("```python\n")[2].partition("```")[0]
    assert "quantization_config=" in lines
    space: dict[str, Any] = {"BASE": str(base), "FOLDER": str(tmp_path / "repair"), "text": TEXT[2]}
    with quiet():
        exec(lines, space)
    want = plain(live(base, kind), base)[2]
    np.testing.assert_allclose(space["out"][0, :3].detach().numpy(), want, atol=1e-2 * np.abs(want).max())


NF4_TWICE = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


@pytest.mark.parametrize(
    ("page", "name", "found"),
    [
        ("- load_in_8bit: False\n- load_in_4bit: True\n- bnb_4bit_quant_type: nf4\n- bnb_4bit_use_double_quant: True\n", "org/m",
         {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}),
        ("- load_in_8bit: True\n- load_in_4bit: False\n", "org/m", {"load_in_8bit": True}),
        (None, "unsloth/llama-3-8b-bnb-4bit",
         {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}),
        (None, "org/m", None), ("- load_in_8bit: False\n- load_in_4bit: False\n", "org/m", None),
        ("none of this", "org/4bit-thoughts", None),
    ],
)  # fmt: skip
def test_what_says_that_an_adapter_was_trained_on_a_quantised_base(
    page: str | None, name: str, found: Any, tmp_path: Path
):
    if page is not None:
        head = "The following `bitsandbytes` quantization config was used during training:\n" if "load" in page else ""
        card = f"# A card\n- load_in_4bit: True\n## Training procedure\n\n{head}{page}\n### Framework\n"
        (tmp_path / "README.md").write_text(card)
    settings = peft.LoraConfig()
    settings.base_model_name_or_path = name
    assert files.trained_on(tmp_path, settings) == found


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("adapter: qlora\nload_in_4bit: true\n", NF4_TWICE),
        ("adapter: lora\nload_in_4bit: true\nload_in_8bit: false\n", NF4_TWICE),
        ("adapter: qlora\n", NF4_TWICE), ("load_in_8bit: true\nload_in_4bit: false\nadapter: lora\n", {"load_in_8bit": True}),
        ("load_in_8bit: false\nload_in_4bit: false\nadapter: lora\n", None), ("# load_in_4bit: true\nadapter: lora\n", None),
    ],
)  # fmt: skip
def test_what_axolotls_card_says_of_the_base(given: str, found: Any, tmp_path: Path):
    card = f"---\nlicense: mit\n---\n\n<details>\n\naxolotl version: `0.9`\n```yaml\n{given}```\n\n"
    page = tmp_path / "README.md"
    page.write_text(card + "</details>\n\n```\nload_in_4bit: true\n```\n")
    assert files.trained_on(tmp_path, peft.LoraConfig()) == found
    page.write_text(page.read_text().replace("axolotl version", "our version"))
    assert files.trained_on(tmp_path, peft.LoraConfig()) is None, "the control: a page of nobody knows whom"


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ('{"quantization": "int4"}', NF4_TWICE | {"bnb_4bit_use_double_quant": False}),
        ('{"quantization": "int8"}', {"load_in_8bit": True}), ('{"quantization": "none"}', None), ('{"quantization": null}', None),
        ("[]", None), ("{", None), ("[" * 100_000, None), ("\udcff", None),
    ],
)  # fmt: skip
def test_what_autotrain_writes_of_the_base(written: str, found: Any, tmp_path: Path):
    (tmp_path / "training_params.json").write_bytes(written.encode("utf-8", "surrogateescape"))
    assert files.trained_on(tmp_path, peft.LoraConfig()) == found


def test_an_adapter_that_was_trained_on_a_quantised_base_is_measured_on_both(wide: Any, tmp_path: Path):
    """`trueup.check` on the full base: the note holds the share of answers that differ, by an oracle of plain PEFT."""
    import trueup

    base, folder = wide("bert"), tmp_path / "adapter"
    mine = live(base, "nf4 twice")
    with quiet():
        mine.save_pretrained(folder)
    (folder / "README.md").write_text(
        "The following `bitsandbytes` quantization config was used during training:\n- load_in_4bit: True\n"
        "- bnb_4bit_quant_type: nf4\n- bnb_4bit_use_double_quant: True\n"
    )
    rng = np.random.default_rng(0)
    words = ["good", "cat", "sat", "bad", "film", "dog", "mat", "loud", "poor"]
    texts = [" ".join(rng.choice(words, 6)) for _ in range(150)]
    rows = [
        {"text": t, "label": CLASSES[rng.integers(3)], "part": "test" if i % 2 else "calibration"}
        for i, t in enumerate(texts)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    report = trueup.check(
        str(base),
        str(data),
        ["overconfidence"],
        adapter=str(folder),
        classes=CLASSES,
        split="part",
        device="cpu",
        repair=False,
    )
    (note,) = [n for n in report.notes if "trained on a base in 4 bits" in n]
    test = [r for r in rows if r["part"] == "test"]
    tok = transformers.AutoTokenizer.from_pretrained(base)

    def asked(model: Any) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            z = torch.cat([model(**tok(r["text"], return_tensors="pt")).logits for r in test]).double().softmax(-1)
        return z.argmax(-1).numpy(), z.amax(-1).numpy()

    with quiet():
        full = peft.PeftModel.from_pretrained(
            transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3), folder
        ).eval()
    (a, sure), (b, there) = asked(full), asked(mine)
    label = np.array([CLASSES.index(r["label"]) for r in test])
    assert f"right on {(a == label).mean():.1%} here and on {(b == label).mean():.1%} there" in note
    assert f"{(a != b).mean():.1%} of the answers differ" in note
    assert f"confidences by {np.abs(sure - there).mean():.3f} on average" in note
    assert np.abs(sure - there).mean() > 1e-3, "the two differ, or the test shows nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_pass_through_a_base_in_4_bits_that_has_predicted(family: str, wide: Any):
    """bitsandbytes packs a layer when it predicts on some processors, and a packed layer has no gradient."""
    subject = load(str(wide(family)), classes=CLASSES, device="cpu", quantize="4bit")
    predict(subject, corpus())
    embedded = subject.base.get_input_embeddings()(torch.tensor([[5, 6, 7]])).detach()
    subject.model(inputs_embeds=embedded.clone()).logits.sum()  # a prediction, from which nothing asks for a gradient
    asked = embedded.clone().requires_grad_(True)
    subject.model.train()(inputs_embeds=asked).logits.double().square().sum().backward()
    assert asked.grad is not None
    assert bool(torch.isfinite(asked.grad).all())
    assert float(asked.grad.abs().sum()) > 0
