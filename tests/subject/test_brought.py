"""Adapters, embeddings and tokenizers as PEFT, Trainer and TRL save them: the oracle is plain transformers and PEFT.

One text at a time, unpadded. Every adapter is moved away from its start, saved with PEFT's own save_pretrained, and read
from its folder and live.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, processors

import trueup
from drawn_weights import move
from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, Unsupported
from trueup.faults.loading import facts, load_lines
from trueup.faults.overconfidence import Overconfidence
from trueup.prepare import agreed
from trueup.run import forward
from trueup.run.predict import Session, predict, within
from trueup.subject import adapter as files
from trueup.subject import tokens
from trueup.subject.checkpoint import check_template, pinned
from trueup.subject.few_shot_tokens import first_tokens
from trueup.subject.linear import map_of
from trueup.subject.load import load
from trueup.subject.new_adapter import Lora, beside
from trueup.subject.quiet import quiet
from trueup.subject.subject import Subject
from trueup.subject.swap_adapter import bare, wear
from trueup.subject.template import Template

TEXT = ["good cat sat", "bad", "the cat bad good mat sat on the good dog", "very loud film it was"]
CORPUS = Corpus(TEXT, np.array([0, 1, 0, 1]), ("0", "1"), np.array(["test"] * 4))
WORDS = {"template": "say {text} now", "verbaliser": ["good", "bad"]}
TOLERANCE = 1e-5
Config = Any


def lora(*targets: str, task: str | None = "CAUSAL_LM", **more: Any) -> Config:
    return peft.LoraConfig(r=4, task_type=task, target_modules=list(targets), **more)


def gpt2(*targets: str, **more: Any) -> Config:
    return lora(*targets, fan_in_fan_out=True, **more)


def ia3(*targets: str, inputs: tuple[str, ...] = (), task: str | None = "CAUSAL_LM") -> Config:
    return peft.IA3Config(task_type=task, target_modules=list(targets), feedforward_modules=list(inputs))


@dataclass(frozen=True)
class Case:
    """An adapter: its base's family, its settings, the head it stands on (``words``, a ``new`` one, the base's ``own``), rows
    of resized embeddings, what PEFT is told when it saves, and whether a head can be saved in its head's place."""

    family: str
    config: Config
    head: str = "words"
    rows: int = 0
    saving: tuple[tuple[str, Any], ...] = ()
    replaced: bool = True


CASES: dict[str, Case] = {
    "lm_head": Case("llama", lora("q_proj", "lm_head")),
    "lm_head alone": Case("llama", lora("lm_head")),
    "lm_head, DoRA": Case("llama", lora("q_proj", "lm_head", use_dora=True)),
    "lm_head, rsLoRA, dropout, own rank": Case(
        "llama", lora("q_proj", "lm_head", use_rslora=True, lora_dropout=0.2, rank_pattern={"lm_head": 2})
    ),
    "lm_head, biased LoRA": Case("llama", lora("q_proj", "lm_head", lora_bias=True), replaced=False),
    "lm_head, MiCA": Case("llama", lora("q_proj", "lm_head", init_lora_weights="mica")),
    "lm_head, IA3 of outputs": Case("llama", ia3("v_proj", "lm_head")),
    "lm_head, IA3 of inputs": Case("llama", ia3("v_proj", "lm_head", inputs=("lm_head",))),
    "lm_head kept whole": Case("llama", lora("q_proj", modules_to_save=["lm_head"])),
    "embeddings kept whole": Case("llama", lora("q_proj", modules_to_save=["embed_tokens", "lm_head"])),
    "single tokens": Case("llama", lora("q_proj", trainable_token_indices=[4, 5, 11])),
    "single tokens of both": Case(
        "llama", lora("q_proj", trainable_token_indices={"embed_tokens": [4, 5], "lm_head": [11]})
    ),
    "embed_tokens": Case("llama", lora("q_proj", "embed_tokens")),
    "embed_tokens and lm_head": Case("llama", lora("embed_tokens", "lm_head")),
    "wte": Case("gpt2", gpt2("c_attn", "wte")),
    "tied lm_head": Case("gpt2", gpt2("c_attn", "lm_head")),
    "tied by PEFT": Case("gpt2", gpt2("c_attn", "wte", ensure_weight_tying=True)),
    "tied single tokens": Case("gpt2", gpt2("c_attn", trainable_token_indices={"wte": [4, 11]})),
    "score": Case("llama", lora("q_proj", "score", task=None), "own"),
    "score alone": Case("gpt2", lora("score", task=None), "own"),
    "score, DoRA": Case("llama", lora("q_proj", "score", task=None, use_dora=True), "own"),
    "score, biased LoRA": Case("llama", lora("q_proj", "score", task=None, lora_bias=True), "own", replaced=False),
    "score of a classifier": Case("llama", lora("q_proj", "score", task="SEQ_CLS"), "new"),
    "classifier": Case("bert", lora("query", "classifier", task=None), "own"),
    "classifier, biased": Case("bert", lora("query", "classifier", task=None, lora_bias=True, bias="all"), "own"),
    "classifier, by a pattern": Case(
        "bert", peft.LoraConfig(r=4, target_modules=r".*(query|classifier)", use_dora=True), "own"
    ),
    "classifier, IA3": Case("bert", ia3("query", "classifier", inputs=("classifier",), task=None), "own"),
    "two layers of a head": Case("roberta", lora("query", "classifier.dense", "classifier.out_proj", task=None), "own"),
    "word_embeddings": Case("bert", lora("query", "word_embeddings", task="SEQ_CLS"), "new"),
    "resized": Case("llama", lora("q_proj"), rows=31),
    "resized, tied": Case("gpt2", gpt2("c_attn"), rows=31),
    "resized classifier": Case("bert", lora("query", task="SEQ_CLS"), "new", rows=31),
    "resized decoder classifier": Case("llama", lora("q_proj", task="SEQ_CLS"), "new", rows=31),
    "resized, both adapted": Case("llama", lora("embed_tokens", "lm_head"), rows=31),
    "resized, kept whole": Case("llama", lora("q_proj", modules_to_save=["embed_tokens", "lm_head"]), rows=31),
    "resized, single tokens": Case("llama", lora("q_proj", trainable_token_indices=[4, 28, 30]), rows=31),
    "resized, a prompt": Case("llama", peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), rows=31),
    "embeddings saved on request": Case("llama", lora("q_proj"), saving=(("save_embedding_layers", True),)),
    "PiSSA": Case("llama", lora("q_proj", init_lora_weights="pissa")),
    "PiSSA, turned": Case("gpt2", gpt2("c_attn", init_lora_weights="pissa")),
    "OLoRA on the head": Case("llama", lora("q_proj", "lm_head", init_lora_weights="olora")),
    "orthogonal": Case("llama", lora("q_proj", init_lora_weights="orthogonal")),
    "gaussian": Case("llama", lora("q_proj", init_lora_weights="gaussian")),
    "EVA": Case("llama", lora("q_proj", init_lora_weights="eva")),
    "no start": Case("llama", lora("q_proj", init_lora_weights=False)),
}


def base_for(case: Case, base_of: Any, folder: Path) -> Path:
    """The base as a checkpoint: with a head of its own where the adapter brings none."""
    if case.head != "own":
        return base_of(case.family)
    if not folder.is_dir():
        with quiet(), torch.random.fork_rng():
            torch.manual_seed(0)
            net = transformers.AutoModelForSequenceClassification.from_pretrained(base_of(case.family), num_labels=2)
            net.save_pretrained(folder)
            transformers.AutoTokenizer.from_pretrained(base_of(case.family)).save_pretrained(folder)
    return folder


def plain_base(base: Path, head: str, rows: int = 0) -> Any:
    words = head == "words"
    cls = transformers.AutoModelForCausalLM if words else transformers.AutoModelForSequenceClassification
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        net = cls.from_pretrained(base, **({} if words else {"num_labels": 2, "ignore_mismatched_sizes": True}))
        if rows:
            net.resize_token_embeddings(rows, mean_resizing=False)
    net.config.pad_token_id = 0
    return net


def moved(model: Any) -> Any:
    move(model)
    return model.eval()


def plainly(model: Any, subject: Subject, words: bool) -> np.ndarray:
    """What plain transformers and PEFT say: one text at a time, unpadded."""
    got = []
    for ids in forward.tokenize(subject, CORPUS):
        with torch.no_grad():
            z = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)).logits
        got.append(z[0, -1, subject.verbaliser_ids()].numpy() if words else z[0].numpy())
    return np.stack(got)


def apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / max(1.0, np.abs(b).max()))


@dataclass(frozen=True, eq=False)
class Made:
    case: Case
    base: Path
    folder: Path
    model: Any

    @property
    def words(self) -> bool:
        return self.case.head == "words"

    def subject(self, how: str) -> Subject:
        options: dict[str, Any] = WORDS if self.words else {}
        if how == "folder":
            return load(str(self.base), str(self.folder), device="cpu", **options)
        return load(self.model, tokenizer=transformers.AutoTokenizer.from_pretrained(self.base), **options)


@pytest.fixture(scope="module", params=CASES, ids=lambda n: n.replace(" ", "-").replace(",", ""))
def made(request: pytest.FixtureRequest, base_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Made:
    case: Case = CASES[request.param]
    root = tmp_path_factory.mktemp("made")
    base = base_for(case, base_of, root / "base")
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        model = moved(peft.get_peft_model(plain_base(base, case.head, case.rows), case.config))
        model.save_pretrained(str(root / "adapter"), **dict(case.saving))
    return Made(case, base, root / "adapter", model)


@pytest.mark.parametrize("how", ["folder", "live"])
def test_an_adapter_says_what_it_says_in_plain_peft(made: Made, how: str, tmp_path: Path):
    """Read, worn again, saved again, and with its head put into a classification head: the same numbers."""
    subject = made.subject(how)
    with quiet():
        plain = peft.PeftModel.from_pretrained(
            plain_base(made.base, made.case.head, made.case.rows), str(made.folder)
        ).eval()
    expected = plainly(plain, subject, made.words)
    got = predict(subject, CORPUS)
    assert apart(got.logits, expected) <= TOLERANCE
    own = subject.own_head()
    assert apart(got.features @ own.weight.numpy().T + own.bias.numpy(), expected) <= TOLERANCE
    assert apart(plainly(bare(subject).model, subject, made.words), expected) > 1e-3, "the adapter matters"
    assert apart(predict(wear(subject, *files.adapter_of(subject)), CORPUS).logits, expected) <= TOLERANCE

    def saved(adapter: Any, folder: Path, head: str) -> np.ndarray:
        folder.mkdir()
        files.write_adapter(folder, *adapter, files.brought(subject))
        with quiet():
            again = peft.PeftModel.from_pretrained(
                plain_base(made.base, head, subject.source.vocabulary), str(folder)
            ).eval()
        return plainly(again, subject, head == "words")

    assert apart(saved(files.adapter_of(subject), tmp_path / "own", made.case.head), expected) <= TOLERANCE
    if not made.case.replaced:
        with pytest.raises(Unsupported, match=r"adds a bias to the head .* Train the adapter without lora_bias"):
            files.adapter_with_head(subject, own)
        return
    head = "own" if made.case.head == "own" else "new"
    assert apart(saved(files.adapter_with_head(subject, own), tmp_path / "head", head), expected) <= TOLERANCE


def test_the_map_of_a_layer_trains_what_the_layer_trains(base_of: Any):
    """Gradients of a LoRA on the head through its matrix are those through the layer."""
    with quiet():
        net = plain_base(base_of("llama"), "words")
        layer = moved(peft.get_peft_model(net, lora("lm_head", use_dora=True))).get_base_model().lm_head
    parameters = [p for p in layer.parameters() if p.requires_grad]
    x = torch.randn(5, 32)
    weight, _ = map_of(layer, [3, 7])
    ours = torch.autograd.grad((x @ weight.T).square().sum(), parameters)
    theirs = torch.autograd.grad(layer(x)[:, [3, 7]].square().sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-4, rtol=1e-4)
        assert b.abs().max() > 0


def test_a_head_that_is_no_matrix_is_refused(base_of: Any):
    class Bent(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input).tanh()

    net = plain_base(base_of("bert"), "new")
    straight, net.classifier = net.classifier, Bent(32, 2)
    tok = transformers.AutoTokenizer.from_pretrained(base_of("bert"))
    with pytest.raises(Unsupported, match=r"computes something else than its weights say .* merge_and_unload"):
        load(net, tokenizer=tok)
    net.classifier = straight
    load(net, tokenizer=tok)


def test_repairs_that_train_again_are_not_offered_where_embeddings_come_along(base_of: Any, tmp_path: Path):
    with quiet():
        model = moved(peft.get_peft_model(plain_base(base_of("llama"), "words", 31), lora("q_proj")))
        model.save_pretrained(tmp_path)
    subject = load(str(base_of("llama")), str(tmp_path), device="cpu", **WORDS)
    assert subject.source.vocabulary == 31
    with pytest.raises(Unsupported, match=r"brings embeddings of the base with it.*merge_and_unload"):
        beside(subject, Lora(2), seed=0)
    assert "base.resize_token_embeddings(31, mean_resizing=False)" in load_lines(facts(subject), None)


def test_new_rows_that_nobody_saved_are_refused(base_of: Any, tmp_path: Path):
    """PEFT saves the adapted one of two resized embeddings, and not the other."""
    with quiet():
        model = moved(peft.get_peft_model(plain_base(base_of("llama"), "words", 31), lora("q_proj", "lm_head")))
        model.save_pretrained(tmp_path)
    with pytest.raises(
        BadInput, match=r"embeddings of 31 rows where the model has 27, .* not bring the new rows\. Merge it"
    ):
        load(str(base_of("llama")), str(tmp_path), device="cpu", **WORDS)


# ------------------------------------------------------------------------------------------------------------ tokenizers


def with_tokenizer(folder: Path, tokenizer: Any) -> Path:
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def spare(base_of: Any, tmp_path: Path) -> tuple[Path, Path, Any]:
    """A base with rows to spare, an adapter trained with two more tokens, and its tokenizer."""
    base, folder = tmp_path / "base", tmp_path / "adapter"
    own = transformers.AutoTokenizer.from_pretrained(base_of("bert"))
    own.save_pretrained(base)
    plain_base(base_of("bert"), "new", 40).bert.save_pretrained(base)
    with quiet():
        moved(peft.get_peft_model(plain_base(base, "new"), lora("query", task="SEQ_CLS"))).save_pretrained(folder)
    own.add_tokens(["superb", "dreadful"])
    return base, with_tokenizer(folder, own), own


RARE = Corpus(
    ["superb film", "dreadful film", "the superb cat"], np.array([0, 1, 0]), ("0", "1"), np.array(["test"] * 3)
)


def plain_text(model: Any, tokenizer: Any, texts: list[str]) -> np.ndarray:
    with torch.no_grad():
        return np.stack([model(**tokenizer(t, return_tensors="pt")).logits[0].numpy() for t in texts])


def test_the_adapters_own_tokenizer_is_used_and_travels_with_a_repair(spare: Any, tmp_path: Path):
    base, folder, own = spare
    subject = load(str(base), str(folder), device="cpu")
    with quiet():
        plain = peft.PeftModel.from_pretrained(plain_base(base, "new"), str(folder)).eval()
    expected = plain_text(plain, own, list(RARE.text))
    assert apart(predict(subject, RARE).logits, expected) <= TOLERANCE
    old = plain_text(plain, transformers.AutoTokenizer.from_pretrained(base), list(RARE.text))
    assert apart(old, expected) > 1e-3, "the base's tokenizer reads something else"
    (told,) = subject.source.told
    assert re.search(r"beside the adapter, .* it has 2 more tokens, 'superb', 'dreadful'", told)
    assert subject.source.tokenizer == str(folder)
    out = Overconfidence().null(subject).save(tmp_path / "out")
    assert "AutoTokenizer.from_pretrained(FOLDER)" in (out / "README.md").read_text()
    with quiet():
        again = peft.PeftModel.from_pretrained(plain_base(base, "new"), str(out)).eval()
    assert (
        apart(plain_text(again, transformers.AutoTokenizer.from_pretrained(out), list(RARE.text)), expected)
        <= TOLERANCE
    )
    fresh = beside(subject, Lora(2), seed=0)
    assert fresh.tokenizer.get_vocab() == own.get_vocab()


def test_a_report_says_which_tokenizer_was_used(spare: Any):
    base, folder, _ = spare
    rng = np.random.default_rng(0)
    text = [" ".join(rng.choice(["superb", "dreadful", "good", "bad", "film", "was"], 5)) for _ in range(120)]
    data = Corpus(text, rng.integers(0, 2, 120), ("0", "1"), np.array(["train", "calibration", "test"] * 40))
    report = trueup.check(
        str(base), data, [Overconfidence(resamples=20)], adapter=str(folder), device="cpu", repair=False
    )
    assert any("it has 2 more tokens, 'superb', 'dreadful'" in n for n in report.notes)
    assert report.provenance["tokenizer"] == str(folder)
    given = trueup.check(load(str(base), str(folder), device="cpu"), data, [Overconfidence(resamples=20)], repair=False)
    assert any("it has 2 more tokens" in n for n in given.notes)


def test_a_given_tokenizer_that_is_another_travels_as_well(spare: Any, tmp_path: Path):
    base, folder, own = spare
    with quiet():
        model = peft.PeftModel.from_pretrained(plain_base(base, "new"), str(folder))
    subject = load(model, tokenizer=own)
    assert re.search(r"given is not the base's: it has 2 more tokens", subject.source.told[0])
    out = Overconfidence().null(subject).save(tmp_path / "out")
    assert transformers.AutoTokenizer.from_pretrained(out).get_vocab() == own.get_vocab()
    same = load(model, tokenizer=transformers.AutoTokenizer.from_pretrained(base))
    assert (same.source.tokenizer, same.source.told) == (None, ())
    assert "from_pretrained(BASE)" in (Overconfidence().null(same).save(tmp_path / "same") / "README.md").read_text()


def test_the_bases_tokenizer_beside_an_adapter_is_no_news(base_of: Any, tmp_path: Path):
    base = base_of("bert")
    with quiet():
        moved(peft.get_peft_model(plain_base(base, "new"), lora("query", task="SEQ_CLS"))).save_pretrained(tmp_path)
    with_tokenizer(tmp_path, transformers.AutoTokenizer.from_pretrained(base))
    subject = load(str(base), str(tmp_path), device="cpu")
    assert (subject.source.tokenizer, subject.source.told) == (None, ())


def lower(t: Any) -> None:
    t.backend_tokenizer.normalizer = normalizers.Lowercase()


def unframed(t: Any) -> None:
    t.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: setattr(t, "pad_token", "[SEP]"), ["its pad token is '[SEP]' and not '[PAD]'"]),
        (lambda t: setattr(t, "eos_token", "[SEP]"), ["its eos token is '[SEP]' and not none"]),
        (lambda t: t.add_tokens(["cat sat"]), ["it has 1 more token, 'cat sat'", "it splits texts otherwise"]),
        (lower, ["it splits texts otherwise"]),
        (unframed, ["it puts other tokens around a text ([UNK] cat instead of [CLS] [UNK] cat [SEP])"]),
    ],
    ids=["pad", "eos", "added", "split", "frame"],
)
def test_what_is_another_about_a_tokenizer_is_named(change: Any, words: list[str], base_of: Any, monkeypatch: Any):
    base, own = (transformers.AutoTokenizer.from_pretrained(base_of("bert")) for _ in range(2))
    sample = "The cat" if change is unframed else "The cat sat"
    monkeypatch.setattr(tokens, "_SAMPLE", sample)
    assert tokens.differences(own, base) == []
    change(own)
    found = tokens.differences(own, base)
    assert len(found) == len(words)
    assert all(f.startswith(w) for f, w in zip(found, words, strict=True)), found
    assert tokens.differences(base, own), "the other way round as well"


def test_a_token_without_a_row_is_refused(base_of: Any, tmp_path: Path):
    base = base_of("bert")
    with quiet():
        model = moved(peft.get_peft_model(plain_base(base, "new"), lora("query", task="SEQ_CLS")))
        model.save_pretrained(tmp_path)
    more = transformers.AutoTokenizer.from_pretrained(base)
    more.add_tokens(["superb"])
    with_tokenizer(tmp_path, more)
    said = r"has tokens up to number 27, such as 'superb', and the model's embeddings have 27 rows"
    with pytest.raises(BadInput, match=rf"beside the adapter '.*' {said}"):
        load(str(base), str(tmp_path), device="cpu")
    with pytest.raises(BadInput, match=rf"The tokenizer {said}"):
        load(model, tokenizer=more)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BadInput, match=r"tokenizer beside the adapter .* could not be loaded: .* take its files away"):
        load(str(base), str(tmp_path), device="cpu")


def test_a_tokenizer_of_a_resized_vocabulary(base_of: Any, tmp_path: Path):
    """As the usual recipe has it: tokens added, embeddings resized, both saved beside the adapter."""
    base = base_of("bert")
    more = transformers.AutoTokenizer.from_pretrained(base)
    more.add_tokens(["superb", "dreadful"])
    with quiet():
        net = plain_base(base, "new", len(more))
        model = moved(peft.get_peft_model(net, lora("query", task="SEQ_CLS")))
        model.save_pretrained(tmp_path)
    with_tokenizer(tmp_path, more)
    subject = load(str(base), str(tmp_path), device="cpu")
    expected = plain_text(model, more, list(RARE.text))
    assert apart(predict(subject, RARE).logits, expected) <= TOLERANCE
    assert len({tuple(r) for r in expected.round(4).tolist()}) == 3, "the new tokens matter"
    out = Overconfidence().null(subject).save(tmp_path / "out")
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    scope: dict[str, Any] = {"BASE": str(base), "FOLDER": str(out), "text": RARE.text[0]}
    with torch.no_grad(), quiet():
        exec(code, scope)  # the card's own lines
    assert scope["tok"].get_vocab() == more.get_vocab()
    got = plain_text(scope["model"], scope["tok"], list(RARE.text))
    assert apart(got[:, :2], expected) <= TOLERANCE


def test_a_hub_adapter_brings_its_tokenizer(spare: Any, monkeypatch: pytest.MonkeyPatch):
    base, folder, own = spare
    asked: list[str] = []

    def snapshot(name: str, *, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert load(str(base), "org/adapter", device="cpu").tokenizer.get_vocab() == own.get_vocab()
    names = [p.name for p in folder.iterdir() if p.name != "README.md"]
    assert all(any(fnmatch(n, p) for p in asked) for n in names), names
    assert not any(fnmatch("modeling.py", p) or fnmatch("model.safetensors", p) for p in asked)


def pieces(*words: str) -> Any:
    """A tokenizer as Llama-2 and Mistral have it: a space of its own before every text, and words with and without it."""
    vocabulary = ["<unk>", "<s>", "</s>", "\u2581", *"abcdefghijklmnopqrstuvwxyz:S01"]
    merges: list[tuple[str, str]] = []
    for word in words:
        whole = word[0]
        for letter in word[1:]:
            merges.append((whole, letter))
            whole += letter
            vocabulary.append(whole)
        merges.append(("\u2581", word))
        vocabulary.append("\u2581" + word)
    merges = list(dict.fromkeys(merges))
    raw = Tokenizer(models.BPE({p: i for i, p in enumerate(dict.fromkeys(vocabulary))}, merges, unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    raw.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def test_a_class_word_is_read_as_it_follows_the_prompt():
    tok = pieces("negative", "positive")
    assert tok.tokenize(" negative")[0] == tok.tokenize(" positive")[0] == "\u2581", "alone they start alike"

    def first(text: str, *words: str) -> list[str]:
        return tok.convert_ids_to_tokens(first_tokens(tok, Template(text, words)))

    assert first("{text} S:", " negative", " positive") == ["\u2581negative", "\u2581positive"]
    assert first("{text} S: ", "negative", "positive") == [
        "\u2581negative",
        "\u2581positive",
    ]  # the space melts into it
    assert first("{text} S:", "negative", "positive") == ["negative", "positive"]
    assert first("{text} S: ", "0", "1") == ["0", "1"]
    with pytest.raises(
        BadInput, match=r"' 0' and ' 1' start with the same token.* end the template with it, and leave it out"
    ):
        check_template(tok, Template("{text} S:", (" 0", " 1")))
    check_template(tok, Template("{text} S: ", ("0", "1")))


# ---------------------------------------------------------------------------------------------------- settings and folders


@pytest.fixture
def plain_lora(base_of: Any, tmp_path: Path) -> tuple[Path, Path, Any]:
    """A base, a LoRA on both of its layers saved by PEFT, and the live model."""
    with quiet():
        model = moved(peft.get_peft_model(plain_base(base_of("bert"), "new"), lora("query", task="SEQ_CLS")))
        model.save_pretrained(tmp_path / "adapter")
    return base_of("bert"), tmp_path / "adapter", model


def edited(folder: Path, **changes: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def refusal(base: Path, folder: Any, **options: Any) -> str:
    with pytest.raises((BadInput, Unsupported)) as e:
        load(str(base), str(folder), device="cpu", **options)
    return str(e.value)


def test_a_pattern_and_a_choice_of_layers(base_of: Any, tmp_path: Path):
    """PEFT of today takes one or the other; the weights say what was meant."""
    base = base_of("bert")
    with quiet():
        some = lora("query", task="SEQ_CLS", layers_to_transform=[1])
        model = moved(peft.get_peft_model(plain_base(base, "new"), some))
        model.save_pretrained(tmp_path)
    edited(tmp_path, target_modules=".*query", layers_to_transform=[1])
    subject = load(str(base), str(tmp_path), device="cpu")
    assert apart(predict(subject, CORPUS).logits, plainly(model, subject, False)) <= TOLERANCE
    (tmp_path / "again").mkdir()
    files.write_adapter(tmp_path / "again", *files.adapter_of(subject))
    with quiet():
        again = peft.PeftModel.from_pretrained(plain_base(base, "new"), str(tmp_path / "again")).eval()
    assert apart(plainly(again, subject, False), plainly(model, subject, False)) <= TOLERANCE


def test_settings_that_peft_refuses_are_a_sentence(plain_lora: Any):
    base, folder, _ = plain_lora
    assert "PEFT does not take the settings in" in refusal(base, edited(folder, layers_pattern="layer"))


def test_a_prompt_that_began_as_text_needs_neither_text_nor_tokenizer(base_of: Any, tmp_path: Path):
    base = base_of("bert")
    with quiet():
        config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)
        model = moved(peft.get_peft_model(plain_base(base, "new"), config))
        model.save_pretrained(tmp_path)
    for missing in ({}, {"tokenizer_name_or_path": "gone/away"}, {"prompt_tuning_init_text": "Say"}):
        edited(tmp_path, prompt_tuning_init="TEXT", **missing)
        subject = load(str(base), str(tmp_path), device="cpu")
        assert apart(predict(subject, CORPUS).logits, plainly(model, subject, False)) <= TOLERANCE


def test_starts_that_cannot_be_made_again(plain_lora: Any, monkeypatch: pytest.MonkeyPatch):
    base, folder, model = plain_lora
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    edited(folder, init_lora_weights="loftq", loftq_config={"loftq_bits": 4, "loftq_iter": 1})
    subject = load(str(base), str(folder), device="cpu")
    assert "started by LoftQ beside base weights rounded to 4 bits" in subject.source.told[0]
    # On the base as it is, a trained LoftQ adapter is a plain LoRA.
    assert apart(predict(subject, CORPUS).logits, plainly(model, subject, False)) <= TOLERANCE
    assert files.adapter_of(subject)[0]["init_lora_weights"] is True
    edited(folder, init_lora_weights="lora_ga", loftq_config={})
    assert "LoRA-GA" in load(str(base), str(folder), device="cpu").source.told[0]
    edited(folder, init_lora_weights="pissa_niter_4")
    assert "draws random numbers (pissa_niter_4)" in load(str(base), str(folder), device="cpu").source.told[0]
    sentence = refusal(base, edited(folder, init_lora_weights="corda"))
    assert "CorDA" in sentence
    assert "path_initial_model_for_weight_conversion" in sentence


def test_the_folders_below_are_named(plain_lora: Any, tmp_path: Path):
    base, folder, model = plain_lora
    runs = tmp_path / "runs"
    for name in ("checkpoint-120", "checkpoint-60"):
        shutil.copytree(folder, runs / name)
    sentence = refusal(base, runs)
    assert f"'{runs}' holds 2 adapters in folders below it: 'checkpoint-60', 'checkpoint-120'." in sentence
    assert f"--adapter {runs}/checkpoint-120." in sentence
    shutil.rmtree(runs / "checkpoint-60")
    assert f"Give that folder: --adapter {runs}/checkpoint-120." in refusal(base, runs)
    load(str(base), str(runs / "checkpoint-120"), device="cpu")
    with quiet():
        model.add_adapter("second", lora("query", task="SEQ_CLS"))
        named = tmp_path / "named"
        model.save_pretrained(str(named), selected_adapters=["second"])
    assert f"--adapter {named}/second." in refusal(base, named)


def test_numbers_that_are_none_are_named(plain_lora: Any):
    base, folder, model = plain_lora
    tensors = load_file(folder / "adapter_model.safetensors")
    key = "base_model.model.bert.encoder.layer.1.attention.self.query.lora_B.weight"
    tensors[key][0, 0] = float("nan")
    save_file(tensors, folder / "adapter_model.safetensors")
    sentence = refusal(base, folder)
    assert f"'{folder / 'adapter_model.safetensors'}' holds NaN or infinite numbers in '{key}'" in sentence
    assert "earlier checkpoint" in sentence
    with torch.no_grad():
        model.get_base_model().bert.encoder.layer[0].attention.self.query.lora_A.default.weight[0, 0] = float("inf")
    with pytest.raises(BadInput, match=r"The adapter 'default' holds NaN or infinite numbers in '.*layer\.0.*lora_A"):
        load(model, tokenizer=transformers.AutoTokenizer.from_pretrained(base))


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("XLORA", "PEFT cannot merge such an adapter"),
        ("MULTITASK_PROMPT_TUNING", "PEFT cannot merge such an adapter into its base, so tune one of these kinds"),
        ("CPT", "`trueup tune lora MODEL --data ...`"),
        ("ADAPTION_PROMPT", "PEFT cannot merge such an adapter"),
        ("LORRA", "Did you mean 'LORA'?"),
    ],
)
def test_other_kinds_end_in_the_next_step(kind: str, step: str, plain_lora: Any):
    base, folder, _ = plain_lora
    sentence = refusal(base, edited(folder, peft_type=kind))
    assert step in sentence


@pytest.mark.parametrize(
    ("task", "step"), [("TOKEN_CLS", "or tune one on its base"), ("FEATURE_EXTRACTION", "tune a classifier on")]
)
def test_other_tasks_end_in_the_next_step(task: str, step: str, plain_lora: Any):
    base, folder, model = plain_lora
    assert step in refusal(base, edited(folder, task_type=task))
    model.peft_config["default"].task_type = task
    with pytest.raises(Unsupported, match=rf"The adapter 'default' was trained for the task '{task}'.*{step}"):
        load(model, tokenizer=transformers.AutoTokenizer.from_pretrained(base))


def test_live_adapters_of_other_kinds_end_in_the_next_step(base_of: Any):
    tok = transformers.AutoTokenizer.from_pretrained(base_of("llama"))
    for config, step in (
        (peft.ShadowConfig(task_type="CAUSAL_LM"), r"PEFT cannot merge such an adapter"),
        (
            peft.MultitaskPromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
            r"PEFT cannot merge such an adapter",
        ),
    ):
        with quiet():
            model = peft.get_peft_model(plain_base(base_of("llama"), "words"), config)
        with pytest.raises(Unsupported, match=rf"The adapter 'default' is of kind .*{step}"):
            load(model, tokenizer=tok, **WORDS)


# ------------------------------------------------------------------------------------------------- names and revisions


@pytest.mark.parametrize("rows", [2, 5])
@pytest.mark.parametrize("how", ["folder", "live"])
def test_class_names_of_another_task_are_not_taken(rows: int, how: str, base_of: Any, tmp_path: Path):
    """The base was tuned for something else, and the adapter brings its own head."""
    names = ["calm", "loud", "slow", "fast", "odd"][:rows]
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        whole = transformers.AutoModelForSequenceClassification.from_pretrained(
            base_of("bert"), id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}
        )
        whole.save_pretrained(tmp_path / "base")
        tok = transformers.AutoTokenizer.from_pretrained(base_of("bert"))
        tok.save_pretrained(tmp_path / "base")
        model = moved(peft.get_peft_model(plain_base(tmp_path / "base", "new"), lora("query", task="SEQ_CLS")))
        model.save_pretrained(tmp_path / "adapter")
    if how == "folder":
        subject = load(str(tmp_path / "base"), str(tmp_path / "adapter"), device="cpu")
    else:
        subject = load(model, tokenizer=tok)
    assert apart(predict(subject, CORPUS).logits, plainly(model, subject, False)) <= TOLERANCE
    n = 40
    rng = np.random.default_rng(0)
    text = [" ".join(rng.choice(["good", "bad", "film", "was"], 4)) for _ in range(n)]
    data = Corpus(text, np.arange(n) % 2, ("no", "yes"), np.array(["test"] * n))
    with within(Session()) as session:
        got, _ = agreed(subject, data, named=False)
    assert got.classes == ("no", "yes")
    assert "in the data's order" in session.notes[0]
    assert ("'calm', 'loud'" in session.notes[0]) == (rows == 2)
    if rows == 2:  # where the names are the data's, they say the order
        turned = Corpus(text, np.arange(n) % 2, ("loud", "calm"), np.array(["test"] * n))
        with within(Session()) as session:
            assert agreed(subject, turned, named=False)[0].classes == ("calm", "loud")
        assert session.notes == []


def test_the_adapters_revision_of_its_base_is_taken():
    config = peft.LoraConfig(base_model_name_or_path="org/base", revision="abc")
    assert pinned(config, "org/base", None) == (
        "abc",
        ("The adapter was made for revision 'abc' of 'org/base', which was taken.",),
    )
    assert pinned(config, "org/base", "abc") == ("abc", ())
    revision, (told,) = pinned(config, "org/base", "def")
    assert revision == "def"
    assert "made for revision 'abc'" in told
    assert "'def' was taken" in told
    assert pinned(config, "org/other", None) == (None, ())
    assert pinned(peft.LoraConfig(base_model_name_or_path="org/base"), "org/base", None) == (None, ())


def test_the_revision_reaches_the_hub(plain_lora: Any, monkeypatch: pytest.MonkeyPatch):
    base, folder, _ = plain_lora
    edited(folder, base_model_name_or_path="org/base", revision="abc")
    asked: list[Any] = []
    for cls in (transformers.AutoConfig, transformers.AutoTokenizer, transformers.AutoModelForSequenceClassification):

        def fetched(name: str, *args: Any, real: Any = cls.from_pretrained, **options: Any) -> Any:
            if name == "org/base":
                asked.append(options.pop("revision", None))
            return real(str(base), *args, **options)

        monkeypatch.setattr(cls, "from_pretrained", fetched)
    subject = load("org/base", str(folder), device="cpu")
    assert asked == ["abc"] * 3
    assert subject.source.revision == "abc"
