"""Adapters of kinds whose shape trueup does not know: read as PEFT runs them; on them a repair changes the last layer alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, Unsupported
from trueup.faults.rigidity import Rigidity
from trueup.run import forward
from trueup.run.predict import predict
from trueup.subject import adapter as files
from trueup.subject.load import load
from trueup.subject.new_adapter import recipe_of
from trueup.subject.quiet import quiet
from trueup.subject.subject import Head, Subject
from trueup.subject.units import scales_as_adapter, width_of

TOLERANCE = 1e-5
CLASSES = ("a", "b", "c")
TEXT = ["good cat sat", "bad", "the cat bad good mat sat on the good dog"]
KINDS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10}, "VERA": {"r": 2}, "LOHA": {"r": 2}, "OFT": {"oft_block_size": 8}, "HRA": {"r": 2},
    "LILY": {"r": 4}, "BEFT": {},
}  # fmt: skip
"""LILY chooses its experts over a whole batch, so what it says of a text depends on its neighbours."""


def corpus() -> Corpus:
    return Corpus(TEXT, np.arange(3), CLASSES, np.array(["test"] * 3))


def classifier(base: Path, rows: int) -> Any:
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=rows, ignore_mismatched_sizes=True
    )


def made(base: Path, kind: str, folder: Path, **more: Any) -> Any:
    """A live PEFT model of a kind, saved to `folder`."""
    config = files.AUDITED[kind](task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"], **KINDS[kind], **more)
    with quiet(), torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = peft.get_peft_model(classifier(base, 3), config)
        g = torch.Generator().manual_seed(1)
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=g) * 0.1)
        model.eval().save_pretrained(str(folder), save_embedding_layers=False)
    return model


def plain(model: Any, subject: Subject) -> np.ndarray:
    with torch.no_grad():
        return np.concatenate(
            [model(input_ids=torch.tensor([r])).logits.numpy() for r in forward.tokenize(subject, corpus())]
        )


@pytest.fixture(scope="module", params=KINDS)
def case(
    request: pytest.FixtureRequest, base_of: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Any, Subject]:
    folder = tmp_path_factory.mktemp("kind")
    model = made(base_of("llama"), request.param, folder)
    return request.param, model, load(str(base_of("llama")), str(folder), classes=CLASSES, max_length=32, device="cpu")


def test_it_is_read_as_peft_runs_it(case: tuple[str, Any, Subject]):
    kind, model, subject = case
    got, own = predict(subject, corpus()).logits, plain(model, subject)
    assert subject.source.peft_type == kind
    assert np.abs(got - own).max() <= TOLERANCE
    with model.disable_adapter():
        assert np.abs(got - plain(model, subject)).max() > 0.01, "the control: it changes what the model says"
    assert subject.anatomy.alone == (kind == "LILY")
    assert any("one at a time" in t for t in subject.source.told) == (kind == "LILY")


def test_live_it_says_the_same(case: tuple[str, Any, Subject], base_of: Any):
    kind, model, subject = case
    tokenizer = transformers.AutoTokenizer.from_pretrained(base_of("llama"))
    same = load(model, tokenizer=tokenizer, classes=CLASSES, max_length=32)
    assert np.abs(predict(same, corpus()).logits - predict(subject, corpus()).logits).max() <= TOLERANCE
    assert same.anatomy.alone == (kind == "LILY")


def test_a_repaired_head_is_saved_on_top_of_it(case: tuple[str, Any, Subject], base_of: Any, tmp_path: Path):
    _, _, subject = case
    own, g = subject.own_head(), torch.Generator().manual_seed(3)
    head = Head(
        torch.cat([own.weight, torch.randn(2, own.weight.shape[1], generator=g)]), torch.cat([own.bias, torch.zeros(2)])
    )
    files.write_adapter(tmp_path, *files.adapter_with_head(subject, head))
    with quiet():
        theirs = peft.PeftModel.from_pretrained(classifier(base_of("llama"), 5), str(tmp_path)).eval()
    ours = predict(replace(subject, head=head), corpus()).logits
    assert ours.shape[1] == 5
    assert np.abs(plain(theirs, subject) - ours).max() <= TOLERANCE * max(1, np.abs(ours).max())


def test_what_it_cannot_carry_is_said(case: tuple[str, Any, Subject]):
    kind, _, subject = case
    assert recipe_of(subject) is None
    with pytest.raises(
        Unsupported, match=rf"of kind {kind}, whose files cannot hold scaled units.*only the last layer"
    ):
        scales_as_adapter(subject, {0: torch.full((width_of(subject, 0),), 0.5)})
    assert f"Its adapter is of kind '{kind}'" in str(Rigidity().applies_to(subject, corpus()))


def test_a_kind_without_a_place_for_a_head_says_so(base_of: Any, tmp_path: Path):
    with quiet(), torch.random.fork_rng(), torch.no_grad():
        net = transformers.AutoModelForCausalLM.from_pretrained(base_of("llama"))
        model = peft.get_peft_model(net, peft.TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[4, 5, 6]))
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3)
        model.eval().save_pretrained(str(tmp_path), save_embedding_layers=False)
    words = {"template": "say {text} now", "verbaliser": ["good", "bad", "cat"], "max_length": 32, "device": "cpu"}
    subject = load(str(base_of("llama")), str(tmp_path), **words)
    rows, bare = forward.tokenize(subject, corpus()), load(str(base_of("llama")), **words)
    with torch.no_grad():
        own = np.stack(
            [model(input_ids=torch.tensor([r])).logits[0, -1, subject.verbaliser_ids()].numpy() for r in rows]
        )
    assert np.abs(predict(subject, corpus()).logits - own).max() <= TOLERANCE
    assert np.abs(predict(bare, corpus()).logits - own).max() > 0.01, "the control: it changes what the model says"
    with pytest.raises(Unsupported, match=r"PEFT keeps no head in an adapter of kind TRAINABLE_TOKENS"):
        files.adapter_with_head(subject, subject.own_head())
    files.adapter_with_head(bare, bare.own_head())


def test_a_head_that_it_adapts_is_no_matrix(base_of: Any, tmp_path: Path):
    with quiet():
        config = peft.VeraConfig(r=2, target_modules=["q_proj", "score"])
        model = peft.get_peft_model(classifier(base_of("llama"), 3), config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base_of("llama"))
    with pytest.raises(
        Unsupported, match=r"The head of this Llama.*|last layer is a .*, which trueup cannot read as a matrix"
    ):
        load(model, tokenizer=tokenizer, classes=CLASSES)


@pytest.fixture(scope="module")
def allocated(base_of: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A live AdaLoRA that was trained until it had given its ranks away, unevenly, and its files."""
    folder = tmp_path_factory.mktemp("allocated")
    config = peft.AdaLoraConfig(
        task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"], total_step=8, tinit=1, tfinal=1, init_r=4, target_r=1
    )
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        model = peft.get_peft_model(classifier(base_of("llama"), 3), config)
        model.get_base_model().config.pad_token_id = 0
        steps = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for i in range(8):
            steps.zero_grad()
            model(input_ids=torch.tensor([[4, 5], [6, 7], [8, 9]]), labels=torch.arange(3)).loss.backward()
            steps.step()
            model.base_model.update_and_allocate(i)
        model.eval().save_pretrained(str(folder), save_embedding_layers=False)
    return model, folder


def test_an_adalora_that_gave_its_ranks_away(allocated: tuple[Any, Path], base_of: Any, tmp_path: Path):
    model, folder = allocated
    kept = {sum(v) for v in json.loads((folder / "adapter_config.json").read_text())["rank_pattern"].values()}
    assert {0} < kept, "the control: the ranks differ, and some modules have none"
    subject = load(str(base_of("llama")), str(folder), classes=CLASSES, max_length=32, device="cpu")
    own = plain(model, subject)
    assert np.abs(predict(subject, corpus()).logits - own).max() <= TOLERANCE
    with model.disable_adapter():
        assert np.abs(own - plain(model, subject)).max() > 0.01, "the control: it changes what the model says"
    tokenizer = transformers.AutoTokenizer.from_pretrained(base_of("llama"))
    same = load(model, tokenizer=tokenizer, classes=CLASSES, max_length=32)
    assert np.abs(predict(same, corpus()).logits - own).max() <= TOLERANCE
    for i, found in enumerate((subject, same)):
        (tmp_path / str(i)).mkdir()
        files.write_adapter(tmp_path / str(i), *files.adapter_with_head(found, found.own_head()))
        with quiet():
            again = peft.PeftModel.from_pretrained(classifier(base_of("llama"), 3), str(tmp_path / str(i))).eval()
        assert np.abs(plain(again, subject) - own).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"init_r": 10**9}, "its settings ask for init_r 1000000000"),
        ({"init_r": 8}, "its rank_pattern says of 4 ranks of .* and its init_r is 8"),
        ({"rank_pattern": {"a": 3}}, "rank_pattern"),
        ({"rank_pattern": {"nowhere.lora_E": [True] * 4}}, "nowhere"),
        ({"r": 10**9}, None),  # which an AdaLoRA does not read
    ],
)
def test_ranks_that_an_adalora_cannot_have(
    change: dict[str, Any], said: str | None, allocated: tuple[Any, Path], base_of: Any, tmp_path: Path
):
    shutil.copytree(allocated[1], tmp_path, dirs_exist_ok=True)
    settings = tmp_path / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | change))

    def read() -> None:
        load(str(base_of("llama")), str(tmp_path), classes=CLASSES, max_length=32, device="cpu")

    if said is None:
        read()
        return
    with pytest.raises(BadInput, match=said):
        read()
