"""Families outside of the table: discovered, tried on the model in hand, held against transformers and PEFT, or refused by "
"the check."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from torch import nn

from trueup.corpus.corpus import Corpus
from trueup.errors import Unsupported
from trueup.faults.overconfidence import Overconfidence, planted
from trueup.run import forward, integrated_gradients
from trueup.run.attention import openly
from trueup.run.integrated_gradients import scaled_at_last
from trueup.run.predict import predict
from trueup.run.prompts import Row
from trueup.story import check
from trueup.subject import discover
from trueup.subject.load import load
from trueup.subject.quiet import quiet
from trueup.subject.subject import Subject
from trueup.subject.tiny import make_tokenizer

TOLERANCE = 1e-4
CLASSES = ("a", "b", "c")
TEXT = ["good cat sat", "bad", "the cat bad good mat sat on the good dog", "very loud film it was"]


def _tool() -> ModuleType:
    """tools/families.py, which tries every family; here it tries a handful."""
    path = Path(__file__).parents[2] / "tools" / "families.py"
    spec = importlib.util.spec_from_file_location("trueup_families_tool", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


tool = _tool()
HERE: dict[tuple[str, bool], set[str]] = {
    ("gemma2", False): set(), ("phi3", False): set(), ("olmo2", False): set(), ("falcon", False): set(),
    ("jamba", False): {"units"}, ("zamba2", False): {"units"}, ("qwen3_moe", False): {"units"},
    ("albert", False): {"layers", "units"},
    ("bart", False): {"layers", "units"}, ("funnel", False): {"layers", "units"},
    ("gemma2", True): {"answer words"}, ("phi3", True): set(), ("olmo2", True): set(), ("gemma3", True): set(),
    ("granite", True): {"a saved head"}, ("falcon", True): set(), ("qwen3_moe", True): {"steps (down)", "units"},
    ("falcon_mamba", True): {"a saved head"}, ("jamba", True): {"steps (down)", "steps (mixer_out)", "units"},
    ("rwkv", True): {"a saved head", "steps (down)", "steps (mixer_out)"},
}  # fmt: skip
"""Family, and whether it answers with words: what of it is refused. Everything else must equal transformers and plain PEFT."""


@pytest.mark.parametrize(
    ("family", "words"), HERE, ids=lambda x: x if isinstance(x, str) else ("words" if x else "head")
)
def test_a_family_outside_of_the_table(family: str, words: bool):
    row = tool.one(family, words, 120)
    assert row["outcome"] in ("works", "in part"), row
    assert set(row["refused"]) == HERE[family, words], row["refused"]
    assert "logits" in row["right"] or family == "gemma2"


def live(family: str, words: bool = False) -> Any:
    with quiet(), torch.random.fork_rng():
        return tool.build(family, words)


def opened(net: Any, words: bool = False, **how: Any) -> Subject:
    how = how or (
        {"template": "say {text} now", "verbaliser": ["good", "bad", "cat"]} if words else {"classes": CLASSES}
    )
    return load(net, tokenizer=make_tokenizer(pair=not words), max_length=32, **how)


def corpus(classes: tuple[str, ...] = CLASSES) -> Corpus:
    return Corpus(TEXT, np.arange(len(TEXT)) % len(classes), classes, np.array(["test"] * len(TEXT)))


def plain(net: Any, subject: Subject) -> np.ndarray:
    return tool.plain(net, [list(r) for r in forward.tokenize(subject, corpus(subject.classes))])


# ----------------------------------------------------------------------------------------------------- what was found


def test_a_discovered_anatomy_says_so_and_one_of_the_table_does_not():
    subject = opened(live("olmo2"))
    assert subject.anatomy.discovered
    assert "'olmo2' is not among the families that trueup is tested with" in subject.source.told[0]
    assert not subject.anatomy.lacks
    assert not opened(live("llama")).source.told, "the control"
    albert = opened(live("albert"))
    assert any("layers" in t and "no list of 4 blocks" in t for t in albert.source.told)


def test_the_same_parts_as_in_the_table():
    """What is discovered of a family that the table knows is what the table says."""
    for family, row in {
        f: discover.FAMILIES[f] for f in ("llama", "gpt2", "bert", "opt", "mamba", "qwen2", "roberta")
    }.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.delitem(discover.FAMILIES, family)
            found = discover.anatomy_of(tool.small(family), words=row.causal)
        for part in ("layers", "query", "key", "value", "mixer_out", "down", "head", "head_root", "after_padding"):
            assert getattr(found, part) == getattr(row, part), (family, part)
        assert found.discovered
        assert not row.discovered


@pytest.mark.parametrize("family", ["granite", "gemma2"])
def test_logits_that_are_scaled_or_capped_are_the_models_own(family: str):
    net = live(family, True)
    subject = opened(net, True, shots=2)
    assert (subject.anatomy.scale != 1) == (family == "granite")
    assert (subject.anatomy.cap > 0) == (family == "gemma2")
    row = [5, 6, 7, 8]
    with torch.no_grad():
        got = forward.next_token_logits(subject, forward.collate([Row(row)], 0))[0].numpy()
        off = forward.next_token_logits(
            replace(subject, anatomy=replace(subject.anatomy, scale=1.0, cap=0.0)), forward.collate([Row(row)], 0)
        )[0].numpy()
    own = tool.plain(net, [row], slice(None))[0]
    assert tool.apart(got, own) <= TOLERANCE
    assert tool.apart(off, own) > 1e-3, "the control"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["falcon_mamba", "gemma2", "granite", "olmo2"])
def test_a_language_model_in_16_bits_says_its_own_logits(family: str, dtype: torch.dtype):
    """A Mamba sums its layers in 32 bits and rounds before its head; a cap and a factor that is no power of two round once more."""
    net = live(family, True).to(dtype)
    if family == "granite":
        net.config.logits_scaling = 10.0
    subject = opened(net, True, shots=2)
    assert (subject.anatomy.scale != 1) == (family == "granite")
    assert (subject.anatomy.cap > 0) == (family == "gemma2")
    row = [5, 6, 7, 8]
    with torch.no_grad():
        got = forward.next_token_logits(subject, forward.collate([Row(row)], 0))[0].float().numpy()
        beside = (
            forward.next_token_logits(subject, forward.collate([Row(row), Row([9, *row, 4])], 0))[0].float().numpy()
        )
        own = net(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, 4, dtype=torch.long)).logits[0, -1]
    near = 2 * torch.finfo(dtype).eps
    assert tool.apart(got, own.float().numpy()) <= near
    assert tool.apart(beside, own.float().numpy()) <= 8 * near
    assert subject.anatomy.keeps


def test_a_factor_that_differs_from_1_by_more_than_rounding_is_not_rounding():
    """The control of what is allowed in 16 bits."""
    net = live("granite", True).to(torch.bfloat16)
    net.config.logits_scaling = 1.03
    assert opened(net, True, shots=2).anatomy.scale == pytest.approx(1 / 1.03, abs=0.002)


def test_a_model_that_reads_its_batch_is_read_one_text_at_a_time():
    net = live("funnel")
    subject = opened(net)
    assert subject.anatomy.alone
    assert any("one at a time" in t for t in subject.source.told)
    own = plain(net, subject)
    assert tool.apart(predict(subject, corpus()).logits, own) <= TOLERANCE
    together = replace(subject, anatomy=replace(subject.anatomy, alone=False))
    assert tool.apart(predict(together, corpus()).logits, own) > 1e-3, "the control: in a batch it says something else"


# ---------------------------------------------------------------------------------------------------------- refusals


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x)


def test_a_lora_of_experts_gives_what_plain_peft_gives(tmp_path: Path):
    """PEFT's `target_parameters`: weights of a mixture of experts, which lie in one tensor for all experts."""
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=2, target_modules=["q_proj"], target_parameters=experts, init_lora_weights=False
    )
    base = live("qwen3_moe")
    base.save_pretrained(tmp_path / "base")
    make_tokenizer(pair=True).save_pretrained(tmp_path / "base")
    with quiet():
        adapted = peft.get_peft_model(live("qwen3_moe"), config).eval()
        adapted.save_pretrained(tmp_path / "adapter")
    subjects = [opened(adapted), load(str(tmp_path / "base"), str(tmp_path / "adapter"), classes=CLASSES, device="cpu")]
    theirs = plain(adapted, subjects[0])
    assert tool.apart(theirs, plain(base.eval(), subjects[0])) > 0.01, "the control: the adapter changes the logits"
    for subject in subjects:
        assert tool.apart(theirs, predict(subject, corpus()).logits) <= TOLERANCE


def test_two_passes_that_differ_are_refused():
    net = live("olmo2")
    net.model.norm = Noisy()
    with pytest.raises(Unsupported, match=r"Two passes of this 'olmo2' over one text differ"):
        opened(net)


def test_an_encoder_asked_for_a_word_is_refused_by_the_check_that_failed():
    with pytest.raises(Unsupported, match=r"'xlnet' is no causal model: another last token changes"):
        opened(live("xlnet", True), True)
    with pytest.raises(Unsupported, match=r"'gemma2' caps its logits softly .*--shots 4"):
        opened(live("gemma2", True), True)


def test_layers_that_do_not_run_in_their_order_are_left_out(monkeypatch: pytest.MonkeyPatch):
    net = live("olmo2")
    net.model.layers = nn.ModuleList(reversed(net.model.layers))
    assert not opened(net).anatomy.lacks, "the control: any order is one"
    plain_forward = type(net.model.layers[0]).forward
    again = net.model.layers[1]

    def twice(self: Any, hidden_states: torch.Tensor, *a: Any, **k: Any) -> Any:
        if self is net.model.layers[2]:
            hidden_states = again(hidden_states, *a, **k)
        return plain_forward(self, hidden_states, *a, **k)

    monkeypatch.setattr(type(again), "forward", twice)
    monkeypatch.setattr("trueup.subject.adopt.view_of", lambda model: model)
    subject = opened(net)
    assert "does not run once, in its order" in subject.anatomy.lacks["layers"]
    assert tool.apart(predict(subject, corpus()).logits, plain(net, subject)) <= TOLERANCE, "the head needs no layers"
    with pytest.raises(Unsupported, match=r"The layers of 'olmo2' could not be discovered: .* does not run once"):
        forward.hidden_states(subject, forward.collate([Row([5, 6])], 0))


def test_a_step_that_is_wrong_with_other_units_alone_is_refused(monkeypatch: pytest.MonkeyPatch):
    """With factors of 1 it is right, so the proof of every climb passes; the passes that it is held against do not."""
    subject = opened(live("olmo2", True), True, shots=2)
    rows, half = [Row([5, 6, 7, 8])], [{0: torch.tensor(0.5)}]
    scaled_at_last(subject, rows, lambda h, _: h, half)
    integrated_gradients._STEPPED.clear()
    scaled = integrated_gradients._Run.climb_scaled

    def off(self: Any, candidates: Any) -> torch.Tensor:
        return scaled(self, [{at: f * 0.9 for at, f in c.items()} for c in candidates])

    monkeypatch.setattr(integrated_gradients._Run, "climb_scaled", off)
    with pytest.raises(Unsupported, match=r"'olmo2' does not give what .* with other units in layer 0"):
        scaled_at_last(subject, rows, lambda h, _: h, half)


def test_attention_that_cannot_be_opened_is_refused(monkeypatch: pytest.MonkeyPatch):
    subject = opened(live("olmo2"))
    openly(subject, Row([5, 6, 7]))
    monkeypatch.setattr(
        "trueup.run.attention._attention", transformers.models.llama.modeling_llama.eager_attention_forward
    )
    with pytest.raises(Unsupported, match=r"could not be run|shows itself 0 times"):
        openly(subject, Row([5, 6, 7]))


def test_faults_that_need_more_than_the_head_say_what_is_not_there():
    from trueup.faults.rigidity import Rigidity

    subject = opened(live("bart"))
    assert "could not be discovered: its lists of 4 blocks" in str(Rigidity().applies_to(subject, corpus()))
    assert Overconfidence().applies_to(subject, corpus()) is None


# -------------------------------------------------------------------------------------------------------- end to end


@pytest.mark.parametrize("family", ["jamba", "qwen3_moe", "gemma3", "bart"])
def test_a_repair_of_overconfidence_end_to_end(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A hybrid, a mixture of experts, a vision-language wrapper's text part, and one whose layers cannot be told apart."""
    base = tmp_path / "base"
    net = live(family)
    net.save_pretrained(base)
    make_tokenizer(pair=True).save_pretrained(base)

    def subject() -> Subject:
        made = planted.with_lora(base)
        if (layer := made.head_layer()).bias is None:
            layer.bias = nn.Parameter(torch.zeros(2), requires_grad=False)  # for what plants the fault, which sets one
            without.append(layer)
        return made

    without: list[Any] = []
    monkeypatch.setattr(planted, "_subject", subject)
    made, texts = planted.planted("planted", {"train": 160, "calibration": 240, "test": 160})
    for layer in without:
        layer.bias = None
    fault = Overconfidence(members=0, passes=0, resamples=100)
    report = check(made, texts, [fault], save=tmp_path / "saved", keep=True)
    [comparison] = report.comparisons
    assert any(f"'{family}' is not among the families" in n for n in report.notes)
    assert comparison.after is not None, comparison.remedy
    folder = tmp_path / "saved" / "overconfidence"
    remedy = fault.read(folder, made)
    some = texts.part("test").take(np.arange(4))
    with remedy.on(made) as repaired:
        ours = predict(repaired, some).logits
    with quiet():
        cls = transformers.AutoModelForSequenceClassification
        wide = cls.from_pretrained(base, num_labels=ours.shape[1], ignore_mismatched_sizes=True)
        theirs = peft.PeftModel.from_pretrained(wide, str(folder)).eval()
    assert tool.apart(tool.plain(theirs, [list(r) for r in forward.tokenize(made, some)]), ours) <= TOLERANCE
