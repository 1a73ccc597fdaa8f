"""What cannot be loaded is refused with a sentence that names what was found and what to do next."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
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
from trueup.errors import BadInput, Unavailable, Unsupported
from trueup.job import Job
from trueup.prepare import open_job
from trueup.run.predict import predict
from trueup.subject import adapter as files
from trueup.subject import patterns
from trueup.subject.anatomy import FAMILIES
from trueup.subject.beside import CARD
from trueup.subject.checkpoint import load_tokenizer
from trueup.subject.load import load
from trueup.subject.new_adapter import Lora, Prefix, Prompt, PTuning, fresh
from trueup.subject.positions import position_limit
from trueup.subject.quiet import quiet
from trueup.subject.subject import Subject
from trueup.subject.template import Template
from trueup.subject.tiny import SIZES, make_base

CLASSES = ("no", "yes")
TEXT = ["good cat sat", "bad", "the cat bad good mat sat on the good dog"]
CORPUS = Corpus(TEXT, np.array([0, 1, 0]), CLASSES, np.array(["test"] * 3))


def tuned(base: Path, folder: Path, recipe: Any = None, template: Template | None = None) -> Subject:
    folder.mkdir()
    subject = fresh(str(base), recipe or Lora(4), CLASSES, template=template, max_length=32, device="cpu")
    move(subject.model)
    files.save_tuned(subject, folder)
    return subject


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished folders, never written to: bases, a finished classifier, a LoRA and a prompt."""
    root = tmp_path_factory.mktemp("kept")
    made = {f: make_base(f, root / f) for f in ("bert", "gpt2", "llama")}
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        whole = transformers.AutoModelForSequenceClassification.from_pretrained(
            made["bert"], num_labels=2, id2label={0: "down", 1: "up"}, label2id={"down": 0, "up": 1}
        )
        whole.save_pretrained(root / "classifier")
        transformers.AutoTokenizer.from_pretrained(made["bert"]).save_pretrained(root / "classifier")
    tuned(made["bert"], root / "lora")
    tuned(made["bert"], root / "prompt", Prompt(4))
    tuned(made["gpt2"], root / "gpt2-lora")
    return made | {n: root / n for n in ("classifier", "lora", "prompt", "gpt2-lora")}


@pytest.fixture
def copy(kept: dict[str, Path], tmp_path: Path):
    """A copy of a finished folder, to be damaged."""

    def get(name: str) -> Path:
        return Path(shutil.copytree(kept[name], tmp_path / name))

    return get


def edit(path: Path, **changes: Any) -> None:
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | changes))


def said(error: type[Exception], *words: str, **options: Any) -> str:
    """The sentence with which `load` refuses; all of `words` are in it."""
    with pytest.raises(error) as e:
        load(**options, device="cpu")
    sentence = str(e.value)
    for w in words:
        assert w in sentence, f"{w!r} is not in {sentence!r}"
    assert sentence.rstrip("`'").endswith((".", "?")), f"no whole sentence: {sentence!r}"
    return sentence


# ----------------------------------------------------------------------------------------- controls: what does load


def test_controls_load(kept: dict[str, Path]):
    for name in ("lora", "prompt"):
        subject = load(str(kept["bert"]), str(kept[name]), device="cpu")
        assert predict(subject, CORPUS).logits.shape == (3, 2)
        assert subject.classes == ("0", "1")
        assert not any(p.requires_grad for p in subject.model.parameters())
        assert not any(m.training for m in subject.model.modules())
    plain = load(str(kept["classifier"]), device="cpu")
    assert plain.classes == ("down", "up")
    words = load(str(kept["gpt2"]), template="say {text} now", verbaliser=["good", "bad"], device="cpu")
    assert words.classes == ("good", "bad")
    assert words.template == Template("say {text} now", ("good", "bad"))


def test_a_subject_prints_as_one_line(kept: dict[str, Path]):
    """In a notebook the model's whole structure would hide it."""
    base, adapter = str(kept["bert"]), str(kept["lora"])
    subject = load(base, adapter=adapter, device="cpu")
    assert repr(subject) == f"Subject({base!r}, adapter {adapter!r} (LORA), classes '0', '1', at most 128 tokens)"
    whole = load(str(kept["classifier"]), device="cpu")
    assert repr(whole).startswith(f"Subject({str(kept['classifier'])!r}, classes 'down', 'up', at most ")


def test_the_card_brings_class_names_length_and_words(copy: Any, kept: dict[str, Path]):
    folder = copy("lora")
    (folder / CARD).write_text(json.dumps({"classes": ["calm", "loud"], "max_length": 17}))
    subject = load(str(kept["bert"]), str(folder), device="cpu")
    assert (subject.classes, subject.max_length) == (("calm", "loud"), 17)
    over = load(str(kept["bert"]), str(folder), classes=["x", "y"], max_length=9, device="cpu")
    assert (over.classes, over.max_length) == (("x", "y"), 9)
    for few in (0, 3, -1):  # 0 is no word for the usual length
        with pytest.raises(BadInput, match=f"A max_length of {few} tokens leaves no room"):
            load(str(kept["bert"]), str(folder), max_length=few, device="cpu")
        with pytest.raises(BadInput, match=f"A max_length of {few} tokens leaves no room"):
            fresh(str(kept["bert"]), Lora(2), CLASSES, max_length=few, device="cpu")


def test_virtual_tokens_leave_less_room(kept: dict[str, Path]):
    assert (
        load(str(kept["bert"]), str(kept["lora"]), device="cpu").max_length == SIZES["bert"]["max_position_embeddings"]
    )
    assert load(str(kept["bert"]), str(kept["prompt"]), device="cpu").max_length == 128 - 4
    roberta = transformers.RobertaConfig(max_position_embeddings=130)
    assert position_limit(roberta, FAMILIES["roberta"]) == 128


# --------------------------------------------------------------------------------------------------- models


def test_missing_folder(tmp_path: Path):
    said(BadInput, f"no folder '{tmp_path / 'gone'}'", "Check the path", "hub id", model=str(tmp_path / "gone"))


@pytest.mark.parametrize("name", ["x" * 300, "/".join(["a" * 200] * 30), "~no.such.user/x"])
def test_a_name_that_no_folder_can_have(name: str, kept: dict[str, Path]):
    for words in ({"model": name}, {"model": str(kept["bert"]), "adapter": name}):
        said(BadInput, f"The path '{name[:80]}", "cannot be followed (", "Correct it", **words)
    said(BadInput, "There is no folder './x'", model="./x")  # the control


def test_file_instead_of_a_folder(kept: dict[str, Path]):
    file = str(kept["bert"] / "config.json")
    said(BadInput, f"'{file}' is a file", "Give the folder that holds its config.json", model=file)


def test_folder_without_config_says_what_is_there(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("hello")
    said(BadInput, "holds no model", "config.json", "'notes.txt'", model=str(tmp_path))
    empty = tmp_path / "empty"
    empty.mkdir()
    said(BadInput, "holds no model", "found none", model=str(empty))
    (tmp_path / "checkpoint-60").mkdir()
    (tmp_path / "checkpoint-60" / "config.json").write_text("{}")
    said(BadInput, "in folders below it: 'checkpoint-60'", "Give one of these folders", model=str(tmp_path))


def test_adapter_folder_given_as_the_model(kept: dict[str, Path]):
    lora = str(kept["lora"])
    said(BadInput, f"'{lora}' is a PEFT adapter", "Give the base model first", f"--adapter {lora}", model=lora)


def test_hub_name_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The suite runs with the hub switched off; the sentence is that of a name that cannot be had."""

    asked = []

    def closed(*_: Any, **__: Any) -> None:
        asked.append(1)
        raise OSError(
            "We couldn't connect to the hub, and found nothing in the cache. See how to run offline at https://x.y."
        )

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", closed)
    said(
        Unavailable, "'nobody/nothing' is not a local folder", "(We couldn't connect to the hub, and found nothing in the cache).",
        "embedded:minilm", model="nobody/nothing",
    )  # fmt: skip
    said(Unavailable, "'minilm' is not a local folder", "Did you mean 'embedded:minilm'?", model="minilm")
    for name, file in (("tuned", "adapter_config.json"), ("whole", "config.json")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / file).write_text("{}")
    monkeypatch.chdir(tmp_path)
    said(Unavailable, "'runs/whol' is not", "Did you mean 'whole'?", model="runs/whol")
    monkeypatch.setattr("huggingface_hub.snapshot_download", closed)
    model = "embedded:minilm"
    said(
        Unavailable,
        "'runs/tuned2' is not",
        "Did you mean 'tuned'?",
        "or give a folder",
        model=model,
        adapter="runs/tuned2",
    )
    asked.clear()
    job = Job("nobody/nothing", str(tmp_path / "d.csv"))
    (tmp_path / "d.csv").write_text("text,label\na,x\nb,y\n")
    with pytest.raises(Unavailable, match="nobody/nothing"):
        open_job(job, {})
    assert len(asked) == 1, "a hub that is out of reach is tried for half a minute each time"


def test_unknown_embedded_model():
    said(BadInput, "no embedded model 'minlim'", "Did you mean 'minilm'?", "'smollm2'", model="embedded:minlim")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (transformers.ViTConfig(), ("'vit'", "has no sequence classifier of this family", "Give another model")),
        (transformers.GraniteConfig(), ("'granite'", "has no sequence classifier", "Give --template and --verbaliser")),
        (transformers.PerceiverConfig(), ("'perceiver'", "no linear last layer", "Give a model with such a head")),
    ],
)
def test_an_architecture_that_cannot_be_examined_is_refused_by_name(
    config: Any, words: tuple[str, ...], tmp_path: Path
):
    config.save_pretrained(tmp_path)
    said(Unsupported, *words, model=str(tmp_path))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"problem_type": "regression", "num_labels": 2}, ("gives 2 numbers", "regression")),
        ({"problem_type": "regression", "num_labels": 1}, ("gives 1 number and", "one for yes and no")),
        ({"problem_type": "single_label_classification", "num_labels": 3}, ()),
    ],
)
def test_a_head_that_chooses_no_class_is_refused(
    options: dict[str, Any], words: tuple[str, ...], kept: Any, tmp_path: Path
):
    with quiet():
        net = transformers.AutoModelForSequenceClassification.from_pretrained(kept["bert"], **options)
        net.save_pretrained(tmp_path)
        tokenizer = transformers.AutoTokenizer.from_pretrained(kept["bert"])
        tokenizer.save_pretrained(tmp_path)
    if not words:
        assert load(str(tmp_path), device="cpu").classes == load(net, tokenizer=tokenizer).classes == ("0", "1", "2")
        return
    said(Unsupported, *words, model=str(tmp_path))
    with pytest.raises(Unsupported, match=words[0]):
        load(net, tokenizer=tokenizer)
    # An adapter that brings a head of its own was tuned to choose one class.
    (tmp_path / "adapter").mkdir()
    files.save_tuned(fresh(str(tmp_path), Lora(2), ("a", "b", "c"), device="cpu"), tmp_path / "adapter")
    assert load(str(tmp_path), str(tmp_path / "adapter"), device="cpu").classes == ("0", "1", "2")


def test_base_without_head_and_without_adapter(kept: dict[str, Path]):
    for family in ("bert", "gpt2"):
        said(BadInput, "has no classification head", "--verbaliser", "trueup tune lora", model=str(kept[family]))


def test_encoder_does_not_answer_with_a_word(kept: dict[str, Path]):
    said(
        Unsupported, "'bert' is an encoder", "without --template and --verbaliser",
        model=str(kept["bert"]), template="{text}", verbaliser=["good", "bad"],
    )  # fmt: skip


def test_missing_base_weights_are_named(copy: Any):
    """A checkpoint that lost a layer would answer at random: refused, not re-drawn."""
    folder = copy("classifier")
    tensors = load_file(folder / "model.safetensors")
    gone = "bert.encoder.layer.1.output.dense.weight"
    assert gone in tensors
    del tensors[gone]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    said(BadInput, gone, "answer at random", "trueup tune lora", model=str(folder))


def test_damaged_base(copy: Any):
    folder = copy("classifier")
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    said(BadInput, str(folder), "could not be loaded", "complete transformers model", model=str(folder))


def test_a_base_with_an_adapter_in_its_folder(copy: Any, kept: dict[str, Path]):
    """transformers puts that adapter on unasked: alone, and under the one that was asked for."""
    folder = copy("bert")
    load(str(folder), str(kept["lora"]), device="cpu")  # the control
    for file in (files.SETTINGS, "adapter_model.safetensors"):
        shutil.copy(kept["lora"] / file, folder)
    words = (f"'{folder}' holds an adapter", "figures would be of the two together", "give that as --adapter")
    said(BadInput, *words, model=str(folder), adapter=str(kept["lora"]))
    said(BadInput, *words, model=str(folder))
    with pytest.raises(BadInput, match="beside the model"):
        fresh(str(folder), Lora(4), CLASSES)


QUERY = "encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: torch.full_like(t, float("nan")), ("NaN or infinite numbers in", QUERY)),
        (lambda t: (100 * t).to(torch.int8), (f"holds '{QUERY}' as I8", "Save the model again")),
        (lambda t: t.to(torch.complex64), (f"holds '{QUERY}' as C64",)),
        (lambda t: t.to(torch.float16), None),
    ],
)
def test_base_weights_that_are_no_numbers(spoil: Any, words: tuple[str, ...] | None, copy: Any, kept: dict[str, Path]):
    folder = copy("bert")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {QUERY: spoil(tensors[QUERY])}, file, {"format": "pt"})
    if words is None:  # the control
        load(str(folder), str(kept["lora"]), device="cpu")
    else:
        said(BadInput, *words, model=str(folder), adapter=str(kept["lora"]))


@pytest.mark.parametrize(
    "change",
    [{"num_hidden_layers": 10**6}, {"num_hidden_layers": 2001, "hidden_size": 4}, {"vocab_size": 2**30}],
    ids=str,
)
def test_a_config_that_speaks_of_more_than_its_weights_hold(
    change: dict[str, int], copy: Any, kept: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    folder = copy("bert")
    edit(folder / "config.json", **change)
    monkeypatch.setattr(
        transformers.AutoModelForSequenceClassification, "from_pretrained", lambda *_, **__: pytest.fail("made")
    )
    said(BadInput, "the two do not belong together", "its weights are", model=str(folder), adapter=str(kept["lora"]))


@pytest.mark.parametrize("kind", [torch.int8, torch.complex64, torch.float16])
def test_adapter_weights_of_another_type(kind: torch.dtype, copy: Any, kept: dict[str, Path]):
    folder = copy("lora")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(k for k in tensors if "lora_B" in k)
    save_file(tensors | {key: tensors[key].to(kind)}, file)
    if kind is torch.float16:  # the control
        load(str(kept["bert"]), str(folder), device="cpu")
    else:
        name = str(kind).removeprefix("torch.")
        said(BadInput, f"'{key}' is {name} in the adapter", model=str(kept["bert"]), adapter=str(folder))


def test_a_tokenizer_whose_files_do_not_go_together(copy: Any, kept: dict[str, Path]):
    """The tokenizers library panics, which is no Exception."""
    folder = copy("bert")
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["post_processor"]["special_tokens"] = {}
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    words = (f"The tokenizer of '{folder}' cannot read text", "PanicException", "save_pretrained")
    said(BadInput, *words, model=str(folder), adapter=str(kept["lora"]))


@pytest.mark.parametrize("family", ["bert", "gpt2", "xlm-roberta", "llama", "mpnet", "t5"])
def test_a_folder_without_a_vocabulary(family: str, tmp_path: Path):
    """What Trainer saves without a processing_class. transformers makes up a tokenizer for most of these families, and reads all
    texts alike with it."""
    transformers.AutoConfig.for_model(family).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=r"The tokenizer of 'mine' has no vocabulary.*processing_class"):
        load_tokenizer(str(tmp_path), "mine")


def test_a_model_whose_tokenizer_is_gone(copy: Any):
    folder = copy("classifier")
    load(str(folder), device="cpu")  # the control
    for file in [*folder.glob("vocab*"), folder / "tokenizer.json"]:
        file.unlink(missing_ok=True)
    said(BadInput, f"The tokenizer of '{folder}' has no vocabulary", model=str(folder))
    (folder / "tokenizer.json").write_text("{")
    said(BadInput, f"The tokenizer of '{folder}' could not be loaded", "damaged", model=str(folder))


def test_model_that_wants_code_of_its_own(copy: Any, tmp_path: Path):
    folder = copy("classifier")
    marker = tmp_path / "ran"
    (folder / "evil.py").write_text(
        f"open({str(marker)!r}, 'w').close()\nfrom transformers import BertConfig\nclass Evil(BertConfig): pass\n"
    )
    edit(folder / "config.json", model_type="own", auto_map={"AutoConfig": "evil.Evil"})
    said(Unsupported, str(folder), "needs code of its own", "--trust-remote-code", model=str(folder))
    assert not marker.exists()


# --------------------------------------------------------------------------------------------------- pickles


def as_pickle(folder: Path, safe: str, pickled: str) -> None:
    torch.save(load_file(folder / safe), folder / pickled)
    (folder / safe).unlink()


def test_base_that_is_a_pickle(copy: Any, kept: dict[str, Path]):
    folder = copy("classifier")
    as_pickle(folder, "model.safetensors", "pytorch_model.bin")
    said(BadInput, "pickle", "pytorch_model.bin", "--allow-pickle", "safe_serialization=True", model=str(folder))
    allowed = predict(load(str(folder), allow_pickle=True, device="cpu"), CORPUS).logits
    assert np.array_equal(allowed, predict(load(str(kept["classifier"]), device="cpu"), CORPUS).logits)


def test_adapter_that_is_a_pickle(copy: Any, kept: dict[str, Path]):
    folder = copy("lora")
    as_pickle(folder, "adapter_model.safetensors", "adapter_model.bin")
    where = {"model": str(kept["bert"]), "adapter": str(folder)}
    said(BadInput, "pickle", "adapter_model.bin", "--allow-pickle", "safe_serialization=True", **where)
    allowed = predict(load(**where, allow_pickle=True, device="cpu"), CORPUS).logits
    assert np.array_equal(allowed, predict(load(str(kept["bert"]), str(kept["lora"]), device="cpu"), CORPUS).logits)


class Runs:
    """Creates a file when unpickled: what an attacker's pickle would do."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_an_allowed_pickle_still_runs_no_code(copy: Any, kept: dict[str, Path], tmp_path: Path):
    import pickle

    marker = tmp_path / "ran"
    pickle.loads(pickle.dumps(Runs(marker)))
    assert marker.exists(), "the attack works where nobody looks"
    marker.unlink()
    for name, file, where in (
        ("lora", "adapter_model", {"model": str(kept["bert"]), "adapter": str(tmp_path / "lora")}),
        ("classifier", "pytorch_model", {"model": str(tmp_path / "classifier")}),
    ):
        folder = copy(name)
        next(folder.glob("*.safetensors")).unlink()
        torch.save({"x": Runs(marker)}, folder / f"{file}.bin")
        sentence = said(
            BadInput, str(folder), "no plain file of tensors", "Ask its author for", **where, allow_pickle=True
        )
        assert "weights_only" not in sentence, "torch's own text tells how to run it"
        assert not marker.exists()


@pytest.mark.parametrize("held", [[1, 2], {1: torch.ones(2)}, {"state_dict": {"x": torch.ones(2)}, "epoch": 3}])
def test_a_pickle_that_holds_no_names_and_tensors(held: Any, copy: Any, kept: dict[str, Path]):
    folder = copy("lora")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(held, folder / "adapter_model.bin")
    said(
        BadInput, "something else than names and their tensors", model=str(kept["bert"]), adapter=str(folder),
        allow_pickle=True,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------- adapters


def test_missing_adapter_folder(kept: dict[str, Path], tmp_path: Path):
    gone = str(tmp_path / "gone")
    said(BadInput, f"no adapter folder '{gone}'", "Check the path", model=str(kept["bert"]), adapter=gone)
    file = str(kept["lora"] / "adapter_config.json")
    said(BadInput, f"'{file}' is a file", f"--adapter '{kept['lora']}'", model=str(kept["bert"]), adapter=file)


def test_folder_that_is_no_adapter(kept: dict[str, Path]):
    other = str(kept["classifier"])
    said(
        BadInput, f"'{other}' is no PEFT adapter", "no adapter_config.json", "'config.json'", "It is a whole model",
        model=str(kept["bert"]), adapter=other,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("{", ("not readable JSON", "Save the adapter again")),
        ("[1]", ("holds [1] where an object of", "Save the adapter again")),
    ],
)
def test_broken_adapter_settings(written: str, words: tuple[str, ...], copy: Any, kept: dict[str, Path]):
    folder = copy("lora")
    (folder / "adapter_config.json").write_text(written)
    said(BadInput, "adapter_config.json", *words, model=str(kept["bert"]), adapter=str(folder))


@pytest.mark.parametrize(
    ("kind", "hint"), [("CARTRIDGE", ""), ("LORRA", "Did you mean 'LORA'?"), ("lora", "Did you mean 'LORA'?")]
)
def test_unknown_adapter_kind(kind: str | None, hint: str, copy: Any, kept: dict[str, Path]):
    folder = copy("lora")
    edit(folder / "adapter_config.json", peft_type=kind)
    sentence = said(
        Unsupported, f"of kind '{kind}'", "'PROMPT_TUNING'", "'IA3'", hint, model=str(kept["bert"]), adapter=str(folder)
    )
    assert ("Did you mean" in sentence) == bool(hint)


def test_an_adapter_of_another_library_names_no_kind(copy: Any, kept: dict[str, Path]):
    folder = copy("lora")
    edit(folder / "adapter_config.json", peft_type=None)
    said(Unsupported, "names no kind (peft_type in", "AdapterHub", model=str(kept["bert"]), adapter=str(folder))


def test_damaged_adapter_weights(copy: Any, kept: dict[str, Path]):
    folder = copy("lora")
    where = {"model": str(kept["bert"]), "adapter": str(folder)}
    raw = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(raw[: len(raw) // 2])
    said(BadInput, f"adapter weights in '{folder}' are damaged", "Save the adapter again", **where)
    (folder / "adapter_model.safetensors").unlink()
    said(BadInput, "no adapter_model.safetensors", "Save the adapter again", **where)


def test_damaged_card(copy: Any, kept: dict[str, Path]):
    folder = copy("lora")
    (folder / CARD).write_text("{")
    said(BadInput, "trueup.json", "not readable JSON", model=str(kept["bert"]), adapter=str(folder))


def variant(family: str, folder: Path, **sizes: Any) -> Path:
    """A base of the same family with other sizes."""
    before = SIZES[family]
    SIZES[family] = before | sizes
    try:
        return make_base(family, folder)
    finally:
        SIZES[family] = before


@pytest.mark.parametrize(
    ("sizes", "word"),
    [
        ({"num_hidden_layers": 3}, "no weights for"),
        ({"num_hidden_layers": 1}, "no place for"),
        ({"hidden_size": 16, "intermediate_size": 24}, "(4, 32) in the adapter and (4, 16) in the model"),
    ],
)
def test_adapter_made_for_another_size(sizes: dict[str, int], word: str, kept: dict[str, Path], tmp_path: Path):
    other = variant("bert", tmp_path / "other", **sizes)
    said(
        BadInput, f"The adapter '{kept['lora']}' does not fit '{other}'", f"made for '{kept['bert']}'", word,
        "Give the base model it was trained on", model=str(other), adapter=str(kept["lora"]),
    )  # fmt: skip


def test_adapter_made_for_another_family(kept: dict[str, Path]):
    for base, adapter in (("gpt2", "lora"), ("bert", "gpt2-lora"), ("llama", "gpt2-lora")):
        said(
            BadInput, "does not fit", f"made for '{kept['bert' if adapter == 'lora' else 'gpt2']}'",
            "Give the base model it was trained on", model=str(kept[base]), adapter=str(kept[adapter]),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("family", "recipe", "sizes", "key", "has", "wants"),
    [
        ("bert", Prompt(4), {"hidden_size": 16}, "token_dim", 32, 16),
        ("gpt2", Prompt(4), {"n_embd": 16}, "token_dim", 32, 16),
        ("gpt2", PTuning(4, 16), {"n_embd": 16}, "token_dim", 32, 16),
        ("gpt2", Prefix(4), {"n_embd": 16}, "token_dim", 32, 16),
        ("bert", Prefix(4), {"num_hidden_layers": 3}, "num_layers", 2, 3),
        ("gpt2", Prefix(4), {"n_head": 2}, "num_attention_heads", 4, 2),
        ("llama", Prefix(4), {"num_key_value_heads": 4}, "token_dim", 16, 32),  # two heads of width 8 for four queries
    ],
)
def test_prompt_made_for_another_size(
    family: str,
    recipe: Any,
    sizes: dict[str, int],
    key: str,
    has: int,
    wants: int,
    kept: dict[str, Path],
    tmp_path: Path,
):
    """PEFT makes it by its own settings, so that only the base tells."""
    words = {} if family == "bert" else {"template": "say {text} now", "verbaliser": ["good", "bad"]}
    template = Template("say {text} now", ("good", "bad")) if words else None
    adapter, other = tmp_path / "made", variant(family, tmp_path / "other", **sizes)
    tuned(kept[family], adapter, recipe, template)
    said(
        BadInput, f"The adapter '{adapter}' does not fit '{other}'", f"made for '{kept[family]}'",
        f"its {key} is {has}, and for this model it would be {wants}. Give the base model it was trained on.",
        model=str(other), adapter=str(adapter), **words,
    )  # fmt: skip
    fits = load(str(kept[family]), str(adapter), device="cpu", **words)
    assert predict(fits, CORPUS).logits.shape == (3, 2)


def test_prompt_settings_without_sizes_are_filled_in(copy: Any, kept: dict[str, Path]):
    folder = copy("prompt")
    edit(folder / "adapter_config.json", token_dim=None, num_layers=None, num_attention_heads=None)
    bare, whole = (load(str(kept["bert"]), str(f), device="cpu") for f in (folder, kept["prompt"]))
    assert np.array_equal(predict(bare, CORPUS).logits, predict(whole, CORPUS).logits)


# ------------------------------------------------------------------------------------------ words and class names


def test_class_words_with_the_same_first_token(kept: dict[str, Path]):
    said(
        BadInput, "'good cat'", "'good dog'", "same token", "Choose words that differ in their first token",
        model=str(kept["gpt2"]), template="say {text}", verbaliser=["good cat", "bad", "good dog"],
    )  # fmt: skip


def test_template_without_a_place_for_the_text(kept: dict[str, Path]):
    said(
        BadInput, "'say it now'", "no {text}", "say where the example goes",
        model=str(kept["gpt2"]), template="say it now", verbaliser=["good", "bad"],
    )  # fmt: skip


def test_one_word_is_no_choice(kept: dict[str, Path]):
    said(
        BadInput, "at least two class words", "one per class",
        model=str(kept["gpt2"]), template="say {text}", verbaliser=["good"],
    )  # fmt: skip


def test_wrong_number_of_class_names(kept: dict[str, Path]):
    for where in ({"model": str(kept["bert"]), "adapter": str(kept["lora"])}, {"model": str(kept["classifier"])}):
        said(BadInput, "has 2 classes, but 3", "'x', 'y', 'z'", "one name per class", classes=["x", "y", "z"], **where)
    said(
        BadInput, "2 classes, but 1", "one name per class", classes=["x"],
        model=str(kept["gpt2"]), template="say {text}", verbaliser=["good", "bad"],
    )  # fmt: skip


def test_fresh_refuses_as_load_does(kept: dict[str, Path]):
    with pytest.raises(BadInput, match="2 class words for 3 classes; give one word per class"):
        fresh(str(kept["gpt2"]), Lora(), ("a", "b", "c"), template=Template("{text}", ("good", "bad")), device="cpu")
    with pytest.raises(BadInput, match="same token"):
        fresh(str(kept["gpt2"]), Lora(), ("a", "b"), template=Template("{text}", ("good", "good")), device="cpu")
    with pytest.raises(Unsupported, match="'bert' is an encoder"):
        fresh(str(kept["bert"]), Lora(), ("a", "b"), template=Template("{text}", ("good", "bad")), device="cpu")


# --------------------------------------------------------------------------------- adapter_config.json is untrusted


def test_settings_are_read_by_whitelist_and_run_nothing(
    copy: Any, kept: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, marker = copy("lora"), tmp_path / "ran"
    (tmp_path / "evil_module.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    mapping = {"base_model_class": "Evil", "parent_library": "evil_module"}
    edit(
        folder / "adapter_config.json", auto_mapping=mapping,
        runtime_config={"ephemeral_gpu_offload": True}, from_the_future=3, __class__="x",
    )  # fmt: skip
    settings = files.read_config(folder)
    assert settings.auto_mapping is None
    assert not hasattr(settings, "from_the_future")
    subject = load(str(kept["bert"]), str(folder), device="cpu")
    assert not marker.exists()
    assert np.array_equal(
        predict(subject, CORPUS).logits,
        predict(load(str(kept["bert"]), str(kept["lora"]), device="cpu"), CORPUS).logits,
    )
    # The control: PEFT's own door imports that module where nothing holds it back.
    edit(copy("prompt") / "adapter_config.json", task_type=None, auto_mapping=mapping)
    with quiet(), pytest.raises(AttributeError, match="from_pretrained"):  # Evil is no model class
        peft.AutoPeftModel.from_pretrained(str(tmp_path / "prompt"), import_allowlist=["evil_module"])
    assert marker.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lora_alpha", float("nan")), ("lora_alpha", 1e300), ("use_rslora", "no"), ("use_dora", 1), ("r", 2**40), ("r", -1),
        ("target_modules", [["query"]]), ("target_modules", {"query": 1}), ("target_parameters", "x"), ("layers_pattern", 3),
        ("base_model_name_or_path", 7), ("revision", ["main"]),
        ("loftq_config", {"loftq_bits": "x"}), ("rank_pattern", {"query": {}}),
        ("layer_replication", [[0, 2]] * 100_000), ("modules_to_save", "classifier"), ("peft_type", ["LORA"]), ("bias", None),
    ],
)  # fmt: skip
def test_settings_of_another_kind_are_refused_by_their_key(key: str, value: Any, copy: Any, kept: dict[str, Path]):
    """Some of these PEFT takes without a word, as another adapter: any text is true, and NaN is a number."""
    folder = copy("lora")
    edit(folder / files.SETTINGS, **{key: value})
    said(BadInput, f"for '{key}", ", which is", "save the adapter again" if key != "peft_type" else "Save", 
         model=str(kept["bert"]), adapter=str(folder))  # fmt: skip


def test_sizes_that_no_weight_has_are_refused_before_they_are_allocated(
    copy: Any, kept: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(peft, "get_peft_model", lambda *_: pytest.fail("allocated"))
    for name, key in (("lora", "r"), ("prompt", "num_virtual_tokens")):
        folder = copy(name)
        edit(folder / files.SETTINGS, **{key: 1_000_000})
        words = f"its settings ask for {key} 1000000, and its weights have"
        said(BadInput, words, "Save the adapter again", model=str(kept["bert"]), adapter=str(folder))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target_modules", r"([a-z.]+)+\d"), ("exclude_modules", r"(\w\w?|\.)+!"), ("layers_pattern", ["layer", "([a-z.]+)+x"]),
        ("rank_pattern", {"([a-z.]+)+!": 4}), ("alpha_pattern", {"(.*)*!": 4}), ("modules_to_save", ["classifier", "([a-z.]+)+!"]),
    ],
)  # fmt: skip
def test_a_pattern_that_would_be_matched_for_years_is_refused(
    key: str, value: Any, copy: Any, kept: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(patterns, "SECONDS", 1.0)
    folder = copy("lora")
    # PEFT asks for a choice of layers beside their pattern.
    edit(folder / files.SETTINGS, **{key: value} | ({"layers_to_transform": [0]} if key == "layers_pattern" else {}))
    words = (
        "the regular expression '",
        f"{key} in its settings, takes more than 1 s",
        "List the modules by their names",
    )
    said(BadInput, *words, model=str(kept["bert"]), adapter=str(folder))


def test_a_pattern_that_is_none_is_refused_by_its_key(copy: Any, kept: dict[str, Path]):
    folder = copy("lora")
    edit(folder / files.SETTINGS, target_modules="*query")
    words = "target_modules in its settings is no regular expression ('*query': nothing to repeat at position 0)"
    said(BadInput, words, "Correct it, or save the adapter again", model=str(kept["bert"]), adapter=str(folder))


def test_the_patterns_that_trainers_write_are_matched(copy: Any, kept: dict[str, Path]):
    """The control, with what unsloth writes: the same modules, by patterns."""
    folder = copy("lora")
    was = load(str(kept["bert"]), str(folder), device="cpu")
    names = json.loads((folder / files.SETTINGS).read_text())["target_modules"]
    edit(folder / files.SETTINGS, rank_pattern={".*nowhere.*": 4},
         target_modules=rf"(?:.*?(?:encoder|language|text).*?(?:attn|attention).*?(?:{'|'.join(names)}).*?)")  # fmt: skip
    now = load(str(kept["bert"]), str(folder), device="cpu")
    assert np.array_equal(predict(was, CORPUS).logits, predict(now, CORPUS).logits)


def test_layers_of_megatron_are_refused_and_no_module_is_imported(copy: Any, kept: dict[str, Path]):
    folder = copy("lora")
    edit(folder / files.SETTINGS, megatron_config={"x": 1}, megatron_core="evil_module")
    said(Unsupported, "layers of Megatron", "merge", model=str(kept["bert"]), adapter=str(folder))


@pytest.mark.parametrize(
    ("card", "key"),
    [
        ({"classes": "no, yes"}, "classes"), ({"classes": [1, 2]}, "classes[0]"), ({"max_length": "32"}, "max_length"),
        ({"sigmoid": "no"}, "sigmoid"),
        ({"template": "say {text}"}, "template"), ({"template": {"text": 1, "words": ["a", "b"]}}, "template.text"),
        ({"template": {"text": "{text}", "words": [None]}}, "template.words[0]"),
        ({"template": {"text": "{text}", "words": [], "shots": {}}}, "template.shots"),
        ({"tuned": {"also": [["a"]]}}, "tuned.also[0]"), ({"tuned": {"training": {"lr": "fast"}}}, "tuned.training.lr"),
        ([1], ""),
    ],
)  # fmt: skip
def test_a_card_of_another_shape_is_refused_by_file_and_key(card: Any, key: str, copy: Any, kept: dict[str, Path]):
    folder = copy("lora")
    (folder / CARD).write_text(json.dumps(card))
    where = f"for '{key}'" if key else "where an object of settings belongs"
    said(BadInput, f"'{folder / CARD}' holds", where, model=str(kept["bert"]), adapter=str(folder))
    empty = dict.fromkeys(("classes", "max_length", "template", "tuned"))
    (folder / CARD).write_text(json.dumps(empty))  # the control
    assert load(str(kept["bert"]), str(folder), device="cpu").classes == ("0", "1")


@pytest.mark.parametrize("task", ["TOKEN_CLS", "QUESTION_ANS", "SEQ_2_SEQ_LM"])
def test_an_adapter_for_another_task_is_refused_by_its_name(task: str, copy: Any, kept: dict[str, Path]):
    folder = copy("lora")
    edit(folder / "adapter_config.json", task_type=task)
    with pytest.raises(
        Unsupported, match=f"was trained for the task '{task}', and trueup examines classifiers of whole"
    ):
        load(str(kept["bert"]), str(folder), device="cpu")
    edit(folder / "adapter_config.json", task_type=None)  # the control
    load(str(kept["bert"]), str(folder), device="cpu")


def test_every_key_that_matters_is_kept(kept: dict[str, Path]):
    mine, plain = files.read_config(kept["lora"]), peft.PeftConfig.from_pretrained(str(kept["lora"]))
    for key in ("r", "lora_alpha", "target_modules", "modules_to_save", "task_type", "peft_type", "fan_in_fan_out"):
        assert getattr(mine, key) == getattr(plain, key), key
    assert mine.r == 4


# ----------------------------------------------------------------------------------------------------- other refusals


def test_template_without_words(kept: dict[str, Path]):
    said(BadInput, "template needs --verbaliser", "one word per class", model=str(kept["gpt2"]), template="say {text}")


def test_unknown_device(kept: dict[str, Path]):
    with pytest.raises(BadInput, match=r"no device 'cup'\. Did you mean 'cpu'\?.*--device"):
        load(str(kept["bert"]), str(kept["lora"]), device="cup")


def test_prompt_that_leaves_no_room(kept: dict[str, Path]):
    with pytest.raises(BadInput, match=r"126 virtual tokens leave no room.*128 positions.*Take fewer tokens"):
        fresh(str(kept["bert"]), Prompt(126), CLASSES, device="cpu")
    assert fresh(str(kept["bert"]), Prompt(124), CLASSES, device="cpu").max_length == 4


# ------------------------------------------------------------------------------------------------ a card edited by hand


@pytest.mark.parametrize(
    ("tuned", "key", "found"),
    [
        ("yesterday", "tuned", '"yesterday"'), (["a"], "tuned", '["a"]'), (False, "tuned", "false"),
        ({"training": "long"}, "tuned.training", '"long"'), ({"training": [4]}, "tuned.training", "[4]"),
        ({"seed": "seven"}, "tuned.seed", '"seven"'), ({"seed": -1}, "tuned.seed", "-1"), ({"seed": True}, "tuned.seed", "true"),
        ({"limit": 1.5}, "tuned.limit", "1.5"), ({"data": ["a.csv"]}, "tuned.data", '["a.csv"]'),
    ],
)  # fmt: skip
def test_what_tuning_noted_is_refused_by_file_and_key(
    copy: Any, kept: dict[str, Path], tuned: Any, key: str, found: str
):
    folder = copy("lora")
    (folder / CARD).write_text(json.dumps({"tuned": tuned}))
    words = (str(folder / CARD), f"holds {found} for '{key}', which is ", f"Correct it, or delete '{key}'.")
    said(BadInput, *words, model=str(kept["bert"]), adapter=str(folder))
    (folder / CARD).write_text(json.dumps({"tuned": {"data": "a.csv", "seed": 0, "limit": None, "training": {}}}))
    load(str(kept["bert"]), str(folder), device="cpu")


def edited(folder: Path, **changes: Any) -> Path:
    edit(folder / files.SETTINGS, **changes)
    return folder


def renamed(folder: Path, name: Callable[[str], str], **more: Any) -> Path:
    """The adapter in `folder` with other names of its weights, and more of them."""
    file = folder / "adapter_model.safetensors"
    save_file({name(k): v for k, v in load_file(file).items()} | more, file)
    return folder


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda k: f"module.{k}",
        lambda k: f"_orig_mod.{k}",
        lambda k: f"base_model.model.{k}",
        lambda k: k.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda k: k.replace("classifier.", "classifier.modules_to_save.default."),
    ],
)
def test_names_of_a_wrapped_model_are_refused_as_such(wrapped: Any, copy: Any, kept: dict[str, Path]):
    """PEFT leaves such weights out: the base would be examined, with a head of chance."""
    said(
        BadInput, "names its weights as a wrapped model does", "save_pretrained of the PeftModel inside", model=str(kept["bert"]),
        adapter=str(renamed(copy("lora"), wrapped)),
    )  # fmt: skip


def test_names_with_the_adapters_own_name_in_them_load_as_in_peft(copy: Any, kept: dict[str, Path]):
    named = renamed(copy("lora"), lambda k: re.sub(r"(lora_[AB])\.", r"\1.default.", k))
    assert any("lora_A.default.weight" in k for k in load_file(named / "adapter_model.safetensors"))
    ids = torch.tensor([[5, 6, 7]])
    mine = load(str(kept["bert"]), str(named), device="cpu")
    sound = load(str(kept["bert"]), str(kept["lora"]), device="cpu")
    rows = len(sound.own_head().weight)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(kept["bert"], num_labels=rows)
    plain = peft.PeftModel.from_pretrained(base, named).eval()
    with torch.no_grad():
        assert torch.equal(mine.model(input_ids=ids).logits, plain(input_ids=ids).logits)
        assert torch.equal(mine.model(input_ids=ids).logits, sound.model(input_ids=ids).logits)
        with plain.disable_adapter():
            assert not torch.equal(mine.model(input_ids=ids).logits, plain(input_ids=ids).logits)


@pytest.mark.parametrize("flag", ["fan_in_fan_out", "use_rslora", "use_dora", "inference_mode"])
def test_a_flag_that_is_null_is_false_as_in_peft(flag: str, copy: Any, kept: dict[str, Path]):
    adapter = edited(copy("lora"), **{flag: None})
    ids = torch.tensor([[5, 6, 7]])
    sound, mine = (load(str(kept["bert"]), str(a), device="cpu") for a in (kept["lora"], adapter))
    with torch.no_grad():
        assert torch.equal(mine.model(input_ids=ids).logits, sound.model(input_ids=ids).logits)


def test_settings_that_forget_the_head_are_told_apart_from_another_base(copy: Any, kept: dict[str, Path]):
    forgot = edited(copy("lora"), task_type=None, modules_to_save=None)
    said(
        BadInput,
        "the base has no place for",
        "or correct its adapter_config.json (task_type,",
        model=str(kept["bert"]),
        adapter=str(forgot),
    )
    layer = "base_model.model.bert.encoder.layer.9.attention.self.query.lora_A.weight"
    shutil.rmtree(forgot)
    other = renamed(copy("lora"), str, **{layer: torch.ones(4, 32)})
    with pytest.raises(BadInput, match=r"no place for .*layer\.9.*Give the base model it was trained on\.$"):
        load(str(kept["bert"]), str(other), device="cpu")


def test_a_task_in_lower_case_is_known_by_its_name(copy: Any, kept: dict[str, Path]):
    said(
        Unsupported, "'seq_cls'", "Did you mean 'SEQ_CLS'? Correct task_type in its adapter_config.json.", model=str(kept["bert"]),
        adapter=str(edited(copy("lora"), task_type="seq_cls")),
    )  # fmt: skip
