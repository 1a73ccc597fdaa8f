"""What PEFT cannot do with the installed transformers is said before anything is trained, loaded or saved."""

from __future__ import annotations

import peft
import pytest
import torch
import transformers

from abilities import prefix_classifiers
from trueup.errors import Unsupported
from trueup.subject.load import load
from trueup.subject.new_adapter import Lora, Prefix, Prompt, fresh
from trueup.subject.quiet import quiet
from trueup.subject.swap_adapter import cannot_run
from trueup.subject.template import Template

SAID = (
    rf"PEFT {peft.__version__} cannot run an adapter of kind 'PREFIX_TUNING' on a BertForSequenceClassification of transformers "
    rf"{transformers.__version__}: .*constraints\.txt"
)


def plain_runs(base, task: str) -> bool:
    """The oracle: plain PEFT on one text."""
    cls = transformers.AutoModelForSequenceClassification if task == "SEQ_CLS" else transformers.AutoModelForCausalLM
    with quiet():
        model = peft.get_peft_model(cls.from_pretrained(base), peft.PrefixTuningConfig(task, num_virtual_tokens=2))
        try:
            model(input_ids=torch.tensor([[5, 6]]), attention_mask=torch.ones(1, 2, dtype=torch.long))
        except ValueError:
            return False
    return True


def test_a_prefix_on_a_classifier_is_made_exactly_where_peft_runs_it(base_of):
    base = base_of("bert")
    assert plain_runs(base, "SEQ_CLS") == prefix_classifiers()
    if prefix_classifiers():
        assert fresh(str(base), Prefix(2), ("a", "b"), device="cpu").source.peft_type == "PREFIX_TUNING"
    else:
        with pytest.raises(Unsupported, match=SAID):
            fresh(str(base), Prefix(2), ("a", "b"), device="cpu")


def test_a_saved_prefix_is_refused_before_its_data_are_read(base_of, tmp_path):
    base = base_of("bert")
    with quiet():
        net = transformers.AutoModelForSequenceClassification.from_pretrained(base)
        peft.get_peft_model(net, peft.PrefixTuningConfig("SEQ_CLS", num_virtual_tokens=2)).save_pretrained(
            str(tmp_path)
        )
    if prefix_classifiers():
        assert load(str(base), str(tmp_path), device="cpu").source.peft_type == "PREFIX_TUNING"
    else:
        with pytest.raises(Unsupported, match=SAID):
            load(str(base), str(tmp_path), device="cpu")


def test_other_kinds_and_prefixes_that_write_run_with_every_version(base_of):
    for recipe in (Lora(2), Prompt(2)):
        fresh(str(base_of("bert")), recipe, ("a", "b"), device="cpu")
    assert plain_runs(base_of("llama"), "CAUSAL_LM")
    fresh(str(base_of("llama")), Prefix(2), ("a", "b"), template=Template("say {text}", ("good", "bad")), device="cpu")


def test_a_contest_leaves_out_what_peft_cannot_run(base_of, monkeypatch):
    subject = fresh(str(base_of("bert")), Lora(2), ("a", "b"), device="cpu")
    before = subject.fingerprint
    said = cannot_run(subject, peft.PrefixTuningConfig(num_virtual_tokens=1))
    assert (said is None) == prefix_classifiers()
    assert subject.fingerprint == before

    def broken(*_, **__):
        raise ValueError("past key values have moved")

    monkeypatch.setattr(peft.PeftModelForSequenceClassification, "forward", broken)
    assert "past key values have moved" in str(cannot_run(subject, peft.PrefixTuningConfig(num_virtual_tokens=1)))
