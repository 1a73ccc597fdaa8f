"""Another adapter on a shared base says what plain PEFT says with that adapter, and the first model never notices."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput
from trueup.run import forward
from trueup.run.predict import predict
from trueup.subject import adapter as files
from trueup.subject.anatomy import FAMILIES
from trueup.subject.load import load
from trueup.subject.new_adapter import Lora, Prefix, Prompt, PTuning, Recipe, fresh, prompt_embeddings
from trueup.subject.quiet import quiet
from trueup.subject.subject import Subject
from trueup.subject.swap_adapter import wear, with_prompt
from trueup.subject.template import Template

CLASSES = ("a", "b", "c")
TEMPLATE = Template("say {text} now", ("good", "bad", "cat"))  # first letters differ too: the tiny Qwen2 spells
TEXT = ["good cat sat", "bad", "the cat bad good mat sat on the good dog", "very loud film it was"]
KINDS: dict[str, Recipe] = {"prompt": Prompt(4), "p-tuning": PTuning(3, 16), "prefix": Prefix(2), "lora": Lora(2)}
SOFT = ("prompt", "p-tuning")
TOLERANCE = 1e-6

# Every family x kind: with a head where transformers has one, class words elsewhere and, once more, for two families.
RUNS = [
    (family, kind, mode)
    for family, anatomy in FAMILIES.items()
    for kind in KINDS
    for mode in (("head", "words") if family in ("gpt2", "llama") else ("head",) if anatomy.head else ("words",))
    if kind != "prefix" or anatomy.prefix
]
HEADS = [f for f, a in FAMILIES.items() if a.head]


def corpus(text: list[str] = TEXT) -> Corpus:
    return Corpus(text, np.arange(len(text)) % 3, CLASSES, np.array(["test"] * len(text)))


def apart(a: Any, b: Any) -> float:
    """The largest difference, relative to the largest value (1 at least)."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    assert np.isfinite(b).all()
    return float(np.abs(a - b).max() / max(1.0, np.abs(b).max()))


@pytest.fixture(scope="module")
def classifier_of(base_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's tiny finished classifier: a base with a head of its own."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp("classifiers") / family
            with quiet(), torch.random.fork_rng():
                torch.manual_seed(5)
                net = transformers.AutoModelForSequenceClassification.from_pretrained(base_of(family), num_labels=3)
                net.save_pretrained(folder)
                transformers.AutoTokenizer.from_pretrained(base_of(family)).save_pretrained(folder)
            made[family] = folder
        return made[family]

    return get


def adapted(base: Path, recipe: Recipe, mode: str = "head", *, seed: int = 1, **options: Any) -> Subject:
    template = TEMPLATE if mode == "words" else None
    options = {"max_length": 32, **options}
    subject = fresh(str(base), recipe, CLASSES, template=template, device="cpu", **options)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in subject.model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=g) * 0.3)
    return subject


def alone(subject: Subject) -> np.ndarray:
    """Logits of each example by itself: without padding, and without the rounding of another batch size."""
    return np.concatenate([predict(subject, corpus([text])).logits for text in TEXT])


def bare(folder: Path, **options: Any) -> Subject:
    return load(str(folder), classes=CLASSES, device="cpu", **{"max_length": 32, **options})


def adapter_of(subject: Subject) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """As PEFT's files hold it."""
    return subject.peft_config.to_dict(), files.adapter_tensors(subject)


def from_disk(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return files.read_config(folder).to_dict(), files.read_tensors(folder)


def plain_peft(base: Path, folder: Path, subject: Subject) -> np.ndarray:
    """The adapter in `folder` on a fresh base, loaded and run by PEFT alone: one example at a time, unpadded."""
    words = subject.template is not None
    cls = transformers.AutoModelForCausalLM if words else transformers.AutoModelForSequenceClassification
    with quiet():
        net = cls.from_pretrained(base, **({} if words else {"num_labels": 3}))
        model = peft.PeftModel.from_pretrained(net, str(folder)).eval()
    got = []
    for ids in forward.tokenize(subject, corpus()):
        with torch.no_grad():
            z = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)).logits
        got.append((z[0, -1, subject.verbaliser_ids()] if words else z[0]).numpy())
    return np.stack(got)


def base_tensors(subject: Subject) -> dict[int, tuple[str, torch.Tensor]]:
    """The base's parameters and buffers by address, those that an adapter brought left out."""
    adapters = ("lora_", "modules_to_save", "prompt_encoder")
    named = (*subject.base.named_parameters(), *subject.base.named_buffers())
    return {t.data_ptr(): (n, t) for n, t in named if not any(a in n for a in adapters)}


def new_bytes(subject: Subject, other: Subject) -> int:
    """The bytes of `other` that are no tensor of `subject`."""
    known = {t.data_ptr() for t in (*subject.model.parameters(), *subject.model.buffers())}
    own = {t.data_ptr(): t.nbytes for t in (*other.model.parameters(), *other.model.buffers())}
    return sum(size for at, size in own.items() if at not in known)


# ------------------------------------------------------------------------------------------- one's own, and another's


@dataclass(frozen=True, eq=False)
class Case:
    """A subject, and in `other` the files of another adapter of its kind on its base; made once for all their tests."""

    kind: str
    mode: str
    base: Path
    subject: Subject
    logits: np.ndarray
    other: Path


@pytest.fixture(scope="module", params=RUNS, ids="-".join)
def case(request: pytest.FixtureRequest, base_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family, kind, mode = request.param
    base, other = base_of(family), tmp_path_factory.mktemp("other")
    files.save_tuned(adapted(base, KINDS[kind], mode, seed=7), other)
    subject = adapted(base, KINDS[kind], mode)
    return Case(kind, mode, base, subject, predict(subject, corpus()).logits, other)


def test_ones_own_adapter_gives_the_very_same_logits(case: Case):
    subject, before = case.subject, case.subject.fingerprint
    worn = wear(subject, *adapter_of(subject))
    assert np.array_equal(predict(worn, corpus()).logits, case.logits)
    assert subject.fingerprint == before
    assert np.array_equal(predict(subject, corpus()).logits, case.logits)
    assert (worn.source, worn.max_length) == (subject.source, subject.max_length)
    assert not worn.model.training
    # The control: an adapter that differs in one number is noticed.
    settings, tensors = adapter_of(subject)
    name = next(k for k in tensors if "lora_B" in k or "prompt" in k)
    tensors[name].view(-1)[0] += 0.1
    assert not np.array_equal(predict(wear(subject, settings, tensors), corpus()).logits, case.logits)


def test_anothers_adapter_gives_what_plain_peft_gives(case: Case):
    """Worn by a subject of the same kind, and by one of another kind; both go on sharing every weight of their base."""
    theirs = plain_peft(case.base, case.other, case.subject)
    across = {"prompt": "lora", "p-tuning": "lora", "prefix": "prompt", "lora": "prompt"}[case.kind]
    settings, tensors = from_disk(case.other)
    for own in (case.kind, across):
        subject = case.subject if own == case.kind else adapted(case.base, KINDS[own], case.mode)
        logits = case.logits if own == case.kind else predict(subject, corpus()).logits
        before = subject.fingerprint
        worn = wear(subject, settings, tensors)
        assert subject.fingerprint == before
        ours = alone(worn)
        for i in range(len(TEXT)):
            assert apart(ours[i], theirs[i]) <= TOLERANCE, (own, i)
        assert apart(predict(worn, corpus()).logits, theirs) <= 1e-4, "and in one padded batch"
        assert apart(ours, logits) > 1e-2, "the other adapter says something else"
        assert subject.fingerprint == before
        assert np.array_equal(predict(subject, corpus()).logits, logits), own
        assert worn.source == replace(subject.source, peft_type=case.subject.source.peft_type)
        assert worn.source.peft_type == worn.peft_config.peft_type.value
        assert subject.source.peft_type == subject.peft_config.peft_type.value
        assert set(base_tensors(worn)) == set(base_tensors(subject))
        assert len(base_tensors(subject)) > 10
        # What is new is the adapter, its copy of the head, and for p-tuning the encoder that the file no longer has.
        brought = sum(t.nbytes for t in tensors.values())
        encoder = sum(t.nbytes for n, t in worn.model.named_parameters() if "mlp_head" in n or "lstm" in n)
        assert 0 < new_bytes(subject, worn) <= brought + encoder


@pytest.mark.parametrize("family", HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_bare_classifier_wears_any_adapter(family: str, kind: str, classifier_of: Any, tmp_path: Path):
    if kind == "prefix" and not FAMILIES[family].prefix:
        return
    folder = classifier_of(family)
    files.save_tuned(adapted(folder, KINDS[kind], seed=7), tmp_path)
    subject = bare(folder)
    before, logits = subject.fingerprint, predict(subject, corpus()).logits
    worn = wear(subject, *from_disk(tmp_path))
    assert apart(alone(worn), plain_peft(folder, tmp_path, subject)) <= TOLERANCE
    assert apart(predict(worn, corpus()).logits, logits) > 1e-2
    assert subject.fingerprint == before
    assert subject.peft_config is None
    assert np.array_equal(predict(subject, corpus()).logits, logits)


@pytest.mark.parametrize("family", HEADS)
def test_a_bare_classifier_wears_its_own_head_and_a_dormant_adapter(family: str, classifier_of: Any):
    subject = bare(classifier_of(family))
    logits = predict(subject, corpus()).logits
    settings, tensors = files.adapter_with_head(subject, subject.own_head())
    assert np.array_equal(predict(wear(subject, settings, tensors), corpus()).logits, logits)
    head = next(k for k in tensors if k.endswith(f"{FAMILIES[family].head}.weight"))
    tensors[head] = tensors[head] + 1
    assert apart(predict(wear(subject, settings, tensors), corpus()).logits, logits) > 1e-2


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2", "llama"])
@pytest.mark.parametrize("own", ["prompt", "lora"])
def test_an_adapter_without_a_head_gets_the_bases_head_and_not_the_other_adapters(
    family: str, own: str, classifier_of: Any, tmp_path: Path
):
    folder, anatomy = classifier_of(family), FAMILIES[family]
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(3)
        net = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
        config = peft.LoraConfig(
            target_modules=list(anatomy.lora), init_lora_weights=False, fan_in_fan_out=family == "gpt2"
        )
        peft.get_peft_model(net, config).save_pretrained(str(tmp_path))
    assert not any(anatomy.head in k for k in files.read_tensors(tmp_path))
    subject = adapted(folder, KINDS[own])
    assert not torch.equal(subject.own_head().weight, bare(folder).own_head().weight), "its adapter has its own head"
    worn = wear(subject, *from_disk(tmp_path))
    assert torch.equal(worn.own_head().weight, bare(folder).own_head().weight)
    assert apart(alone(worn), plain_peft(folder, tmp_path, subject)) <= TOLERANCE
    assert not torch.equal(subject.own_head().weight, worn.own_head().weight)


def test_one_after_another(base_of: Any, tmp_path: Path):
    """Wearing is no stack: what was worn in between leaves no trace."""
    base = base_of("bert")
    subject = adapted(base, KINDS["lora"])
    logits, worn = predict(subject, corpus()).logits, subject
    for i, kind in enumerate(KINDS):
        folder = tmp_path / kind
        folder.mkdir()
        files.save_tuned(adapted(base, KINDS[kind], seed=10 + i), folder)
        worn = wear(worn, *from_disk(folder))
        assert apart(alone(worn), plain_peft(base, folder, subject)) <= TOLERANCE, kind
    assert np.array_equal(predict(wear(worn, *adapter_of(subject)), corpus()).logits, logits)
    assert np.array_equal(predict(subject, corpus()).logits, logits)


# ------------------------------------------------------------------------------------------------------- what is shared


def test_changing_the_worn_adapter_never_reaches_the_subject(base_of: Any):
    for own in KINDS:
        subject = adapted(base_of("bert"), KINDS[own])
        before, logits = subject.fingerprint, predict(subject, corpus()).logits
        worn = wear(subject, *adapter_of(subject))
        shared = base_tensors(subject)
        with torch.no_grad():
            changed = [p.add_(1.0) for p in worn.model.parameters() if p.data_ptr() not in shared]
        assert changed
        assert subject.fingerprint == before, own
        assert np.array_equal(predict(subject, corpus()).logits, logits)
        assert apart(predict(worn, corpus()).logits, logits) > 1e-2
        # Modes and hooks are each model's own as well.
        worn.model.train()
        worn.head_layer().register_forward_hook(lambda *_: None)
        assert subject.fingerprint == before, own


class Allocations(TorchDispatchMode):
    """Counts the bytes of every new storage that an operation makes inside the block."""

    def __enter__(self) -> Any:
        self.seen: dict[int, torch.Tensor] = {}
        self.total = 0
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs or {}))}
        out = func(*args, **(kwargs or {}))
        for t in _tensors(out):
            at = t.untyped_storage().data_ptr()
            if at not in given and at not in self.seen:
                self.seen[at] = t  # kept alive, so that no address comes twice
                self.total += t.untyped_storage().nbytes()
        return out


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for v in value:
            yield from _tensors(v)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_no_memory_of_the_bases_size_is_allocated(family: str, kind: str, base_of: Any):
    """Not even for a moment: a base whose embeddings alone weigh far more than any adapter on it."""
    base = base_of(family)
    for own in ("lora", "prompt", None):
        if own is None:
            with quiet():
                net = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
            subject = replace(adapted(base, KINDS["lora"]), model=net.eval())
        else:
            subject = adapted(base, KINDS[own])
        with quiet():
            subject.base.resize_token_embeddings(20_000, mean_resizing=False)
        size = sum(p.nbytes for p in subject.base.parameters())
        assert size > 2_500_000
        settings, tensors = adapter_of(adapted(base, KINDS[kind]))
        with Allocations() as made:
            wear(subject, settings, tensors)
        assert 0 < made.total < size / 20, own
    with Allocations() as made:
        copy.deepcopy(subject.model)
    assert made.total >= size, "the control: a copy is counted"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_trainable_base_stays_trainable(family: str, kind: str, base_of: Any, classifier_of: Any):
    folder = classifier_of(family)
    settings, tensors = adapter_of(adapted(folder, KINDS[kind], seed=7))
    for subject in (bare(folder), adapted(folder, KINDS["lora"]), adapted(folder, KINDS["prompt"])):
        shared = base_tensors(subject)
        for i, (_, t) in enumerate(shared.values()):
            if isinstance(t, torch.nn.Parameter):
                t.requires_grad_(i % 2 == 0)
        before = subject.fingerprint
        flags = {at: t.requires_grad for at, (_, t) in shared.items()}
        assert len(set(flags.values())) == 2
        worn = wear(subject, settings, tensors)
        assert subject.fingerprint == before
        assert {at: t.requires_grad for at, (_, t) in base_tensors(worn).items()} == flags
        brought = [p for p in worn.model.parameters() if p.data_ptr() not in shared]
        assert brought
        assert not any(p.requires_grad for p in brought)
        predict(worn, corpus())
        assert subject.fingerprint == before


# ------------------------------------------------------------------------------------------------------------- refusals


def narrower(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = next(k for k in tensors if "lora_A" in k or "prompt" in k)
    return tensors | {name: tensors[name][:, :-1].contiguous()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own", [None, "lora", "prompt"])
def test_an_adapter_that_does_not_fit_is_refused_in_a_sentence(
    own: str | None, kind: str, base_of: Any, classifier_of: Any
):
    folder = classifier_of("bert")
    subject = bare(folder) if own is None else adapted(folder, KINDS[own])
    for _, t in base_tensors(subject).values():
        if isinstance(t, torch.nn.Parameter):
            t.requires_grad_(True)
    before, logits = subject.fingerprint, predict(subject, corpus()).logits
    settings, tensors = adapter_of(adapted(folder, KINDS[kind]))
    _, foreign = adapter_of(adapted(base_of("gpt2"), KINDS[kind]))
    first = next(iter(tensors))
    broken = {
        "has no weights for": {k: v for k, v in tensors.items() if k != first},
        "has no place for": tensors | {"base_model.model.nowhere.weight": torch.zeros(2, 2)},
        "in the adapter and": narrower(tensors),
        "it has no weights for": foreign,
    }
    for what, given in broken.items():
        with pytest.raises(BadInput, match=rf"The adapter 'the repaired adapter' does not fit '.*{what}.*\.$") as e:
            wear(subject, settings, given)
        assert "\n" not in str(e.value)
        assert str(e.value).endswith("Give the base model it was trained on.")
        assert subject.fingerprint == before, what
    assert np.array_equal(predict(subject, corpus()).logits, logits)
    wear(subject, settings, tensors)  # the control: whole, it fits
    assert subject.fingerprint == before


def test_a_lora_for_layers_that_are_not_there_is_refused(base_of: Any):
    subject = adapted(base_of("bert"), KINDS["prompt"])
    settings, tensors = adapter_of(adapted(base_of("gpt2"), KINDS["lora"]))
    before = subject.fingerprint
    with pytest.raises(BadInput, match=r"does not fit .*Give the base model it was trained on\.$"):
        wear(subject, settings, tensors)
    assert subject.fingerprint == before


def test_a_worn_prompt_leaves_room_for_itself(base_of: Any, tmp_path: Path):
    """A LoRA takes no positions and a prompt does: the longest text must shrink as it does when the prompt is loaded."""
    long = corpus([" ".join(["loud film"] * 80), "bad"])
    for family in ("bert", "roberta", "gpt2"):
        base, folder = base_of(family), tmp_path / family
        folder.mkdir()
        files.save_tuned(adapted(base, Prompt(10), max_length=None), folder)
        subject = adapted(base, KINDS["lora"], max_length=None)
        alone = load(str(base), str(folder), classes=CLASSES, device="cpu")
        worn = wear(subject, *from_disk(folder))
        assert worn.max_length == alone.max_length == subject.max_length - 10
        assert apart(predict(worn, long).logits, predict(alone, long).logits) <= TOLERANCE
    roomy = adapted(base_of("bert"), KINDS["lora"], max_length=32)
    assert wear(roomy, *from_disk(tmp_path / "bert")).max_length == 32, "where there is room it stays"


# ----------------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("case", [r for r in RUNS if r[1] in SOFT], ids="-".join, indirect=True)
def test_with_prompt_changes_the_prompt_alone(case: Case, tmp_path: Path):
    """A prompt from p-tuning's encoder becomes prompt tuning that says the same."""
    base, subject, logits = case.base, case.subject, case.logits
    before, own = subject.fingerprint, prompt_embeddings(subject)
    assert own is not None
    settings, tensors = with_prompt(subject, own)
    files.write_adapter(tmp_path, settings, tensors)
    kept = files.adapter_tensors(subject)
    assert set(tensors) == set(kept)
    assert all(torch.equal(tensors[k], kept[k]) for k in kept)
    same = wear(subject, settings, tensors)
    assert same.source.peft_type == "PROMPT_TUNING"
    assert apart(predict(same, corpus()).logits, logits) <= TOLERANCE
    assert apart(plain_peft(base, tmp_path, subject), logits) <= 1e-5
    config = files.read_config(tmp_path)
    assert isinstance(config, peft.PromptTuningConfig)
    assert config.base_model_name_or_path == subject.source.base
    for name in ("num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads", "task_type",
                 "num_transformer_submodules", "modules_to_save"):  # fmt: skip
        assert getattr(config, name) == getattr(subject.peft_config, name), name
    # Another prompt, of another length and type: the prompt is that one, and all else is as it was.
    other = torch.cat([own, own[:2] + 0.5]).double().requires_grad_(True)
    settings, tensors = with_prompt(subject, other)
    assert torch.equal(tensors["prompt_embeddings"], other.detach().float())
    assert tensors["prompt_embeddings"].data_ptr() != other.data_ptr()
    assert set(tensors) == set(kept)
    assert all(torch.equal(tensors[k], kept[k]) for k in kept if k != "prompt_embeddings")
    moved = wear(subject, settings, tensors)
    assert torch.equal(prompt_embeddings(moved), other.detach().float())
    assert moved.peft_config.num_virtual_tokens == len(other)
    assert torch.equal(moved.own_head().weight, subject.own_head().weight)
    assert apart(predict(moved, corpus()).logits, logits) > 1e-3
    assert subject.fingerprint == before


def test_with_prompt_keeps_the_revision(base_of: Any):
    subject = adapted(base_of("bert"), Prompt(4))
    settings, _ = with_prompt(subject, torch.zeros(4, 32))
    assert settings["revision"] is None
    pinned = replace(subject, source=replace(subject.source, revision="abc"))
    settings, _ = with_prompt(pinned, torch.zeros(4, 32))
    assert settings["revision"] == "abc"
    assert settings["inference_mode"] is True


# ------------------------------------------------------------------------------------------------------------- files


def test_a_config_keeps_what_it_knows_and_no_code():
    raw = peft.LoraConfig(r=3, target_modules=["query"]).to_dict()
    wild = raw | {
        "auto_mapping": {"parent_library": "os", "base_model_class": "system"},
        "a_key_of_tomorrow": 1,
        "inference_mode": False,
    }
    for kind in (raw["peft_type"], "LORA"):  # as PEFT's enum, and as JSON holds it
        config = files.config_of(wild | {"peft_type": kind})
        assert type(config) is peft.LoraConfig
        assert (config.r, set(config.target_modules), config.inference_mode) == (3, {"query"}, True)
        assert config.auto_mapping is None
        assert not hasattr(config, "a_key_of_tomorrow")
    assert wild["inference_mode"] is False, "what was given is left as it is"
    for kind, cls in files.KINDS.items():
        sizes = {"num_virtual_tokens": 2} if "T" in kind and kind.endswith("TUNING") else {}
        assert type(files.config_of({"peft_type": kind, **sizes})) is cls


@pytest.mark.parametrize("kind", KINDS)
def test_config_of_is_what_read_config_reads(kind: str, base_of: Any, tmp_path: Path):
    subject = adapted(base_of("bert"), KINDS[kind])
    files.save_tuned(subject, tmp_path)
    assert files.config_of(files.read_config(tmp_path).to_dict()).to_dict() == files.read_config(tmp_path).to_dict()
    assert type(files.config_of(subject.peft_config.to_dict())) is type(files.read_config(tmp_path))


def test_a_kept_start_is_read_and_a_missing_or_damaged_one_is_none(base_of: Any, tmp_path: Path):
    subject = adapted(base_of("bert"), Prompt(4))
    start = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    assert files.read_start(None) is None
    assert files.read_start(tmp_path / "nowhere") is None
    files.save_tuned(subject, tmp_path)
    assert files.read_start(tmp_path) is None, "nothing kept it"
    files.save_tuned(subject, tmp_path, start=start)
    file = tmp_path / files.P0
    assert torch.equal(files.read_start(tmp_path), start)
    whole = file.read_bytes()
    for damaged in (b"", b"not safetensors at all", whole[:-8], whole[:20], b"\xff" * len(whole)):
        file.write_bytes(damaged)
        assert files.read_start(tmp_path) is None, damaged[:20]
    file.write_bytes(whole.replace(b"prompt_embeddings", b"quite_other_names"))
    assert files.read_start(tmp_path) is None, "another tensor is no start"
    file.write_bytes(whole)
    assert torch.equal(files.read_start(tmp_path), start)
    file.unlink()
    file.mkdir()
    assert files.read_start(tmp_path) is None
    file.rmdir()
    files.save_tuned(subject, tmp_path, start=start.half())
    got = files.read_start(tmp_path)
    assert got.dtype == torch.float32
    assert torch.equal(got, start.half().float())


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_eats_into_the_base_leaves_the_shared_base_alone(base_of: Any, start: str):
    subject = adapted(base_of("bert"), Lora(2))
    settings, tensors = adapter_of(subject)
    before, logits = subject.fingerprint, alone(subject)
    worn = wear(subject, dict(settings) | {"init_lora_weights": start}, tensors)
    assert np.array_equal(alone(worn), logits)
    assert subject.fingerprint == before
    # The control: PEFT itself does change the base for such a start.
    with quiet():
        net = transformers.AutoModel.from_pretrained(base_of("bert"))
    query = "encoder.layer.0.attention.self.query"
    weight = net.get_submodule(query).weight.detach().clone()
    config = peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights=start)
    changed = peft.get_peft_model(net, config).get_base_model().get_submodule(query).base_layer.weight
    assert not torch.equal(changed, weight)
