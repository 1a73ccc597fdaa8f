"""The matrix: ``python tests/matrix/matrix.py -o matrix.json``. Adapter kind x model family x padding side x batch size x number
type x fault, on tiny random models, with the counts of what held, what was refused by a sentence, and what is wrong.

A cell is a family, a kind of adapter and a way to answer (a classification head, or words). `test_matrix.py` runs some of them.
``--live 5`` runs every fifth of them on a live model, with a file of its own: the model is as it was, however a check ends.
What a cell held is written to the file of ``-o`` at its end: the same command, stopped and given again, goes on behind it.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import numpy as np
import peft
import torch
import transformers

import trueup
from counted import finish
from drawn_weights import move
from trueup.corpus.corpus import Corpus
from trueup.errors import TrueupError, Unsupported
from trueup.faults.confounding import maths
from trueup.faults.confounding.retrained import prompt_of
from trueup.faults.fault import each_fault
from trueup.run import forward
from trueup.run import predict as predicting
from trueup.run.predict import predict, session, within
from trueup.subject import adapter as files
from trueup.subject.anatomy import FAMILIES
from trueup.subject.kinds import Lora, Prefix, Prompt, PTuning
from trueup.subject.load import load
from trueup.subject.new_adapter import fresh
from trueup.subject.quiet import quiet
from trueup.subject.subject import Subject, head_layer, model_fingerprint
from trueup.subject.swap_adapter import wear, with_prompt, without_layers
from trueup.subject.template import Template
from trueup.subject.tiny import make_base

CLASSES = WORDS = ("good", "bad")
TEMPLATE = Template("say {text} now", WORDS)
KINDS = ("none", "lora", "rslora", "dora", "ia3", "prompt", "p-tuning", "prefix")
RECIPES = {"lora": Lora(4), "prompt": Prompt(4), "p-tuning": PTuning(4, 16), "prefix": Prefix(4)}
SIDES, BATCHES = ("right", "left"), (1, 3, 10**6)
NEAR = {"float32": 1e-5, "bfloat16": 0.05}
"""By number type, how far apart logits may lie that rounding alone tells apart, of the largest (1 at least)."""
QUICK: dict[str, dict[str, Any]] = {
    "overconfidence": {"resamples": 20, "folds": 2}, "confounding": {"resamples": 20, "l_z": "0,1"}, "copying": {"resamples": 20},
    "rigidity": {"resamples": 20, "epochs": 1, "tries": 1, "seeds": 3},
}  # fmt: skip
RNG = np.random.default_rng(0)
TEXT = [" ".join(RNG.choice(["good", "bad", "cat", "sat", "the", "film"], 2 + i % 7)) for i in range(96)]
LABEL = RNG.integers(0, 2, 96)
CORPUS = Corpus(
    TEXT, LABEL, CLASSES, np.array(["train", "calibration", "test"] * 32), attributes={"site": (LABEL + (RNG.random(96) < 0.3)) % 2}
)  # fmt: skip
FEW = CORPUS.take(np.arange(7))


@dataclass(frozen=True)
class Cell:
    family: str
    kind: str
    mode: str

    def __str__(self) -> str:
        return f"{self.family}-{self.kind}-{self.mode}"


CELLS = [Cell(f, k, m) for f in FAMILIES for k in KINDS for m in ("head", "words")]


@dataclass
class Counts:
    """Of each check: how often it held, was refused by a sentence, and was wrong; what was wrong; and the cells behind it."""

    held: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    cells: list[str] = field(default_factory=list)

    @classmethod
    def kept(cls, file: Path) -> Counts:
        said = json.loads(file.read_text())
        return cls(Counter(said["held"]), Counter(said["refused"]), said["wrong"], said["cells"])

    def judge(self, cell: Cell, check: str, what: str, ok: bool) -> None:
        if ok:
            self.held[check] += 1
        else:
            self.wrong.append(f"{cell}, {check}: {what}")


def apart(a: Any, b: Any) -> float:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        return float("inf")
    return float(np.abs(a - b).max() / max(1.0, np.abs(b).max()))


# --------------------------------------------------------------------------------------------------------------- made


def adapted(cell: Cell, base: Path, folder: Path) -> tuple[Path, Path | None]:
    """A base and an adapter of the cell, written to files; of ``none`` in a head, a whole classifier.

    Raises:
        Unsupported: trueup makes none of the kind for the family.
    """
    anatomy, words = FAMILIES[cell.family], cell.mode == "words"
    if words and not anatomy.causal:
        raise Unsupported(f"'{cell.family}' answers with no words.")
    folder.mkdir(parents=True)
    if cell.kind in RECIPES:
        template = TEMPLATE if words else None
        subject = fresh(str(base), RECIPES[cell.kind], CLASSES, template=template, max_length=48, device="cpu")
        move(subject.model)
        files.save_tuned(subject, folder)
        return base, folder
    if not words and not anatomy.head:
        raise Unsupported(f"'{cell.family}' has no sequence classifier.")
    if words and cell.kind == "none":
        return base, None
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        cls = transformers.AutoModelForCausalLM if words else transformers.AutoModelForSequenceClassification
        net: Any = cls.from_pretrained(base, **({} if words else {"num_labels": 2}))
        if cell.kind == "none":
            for p in head_layer(net, anatomy).parameters():
                torch.nn.init.normal_(p)
            net.save_pretrained(folder)
            transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
            return folder, None
        task = "CAUSAL_LM" if words else "SEQ_CLS"
        turned = cell.family == "gpt2"
        if cell.kind == "ia3":
            scaled = [anatomy.down] if anatomy.kind == "state-space" else [anatomy.value, anatomy.down]
            config: Any = peft.IA3Config(
                task_type=task, target_modules=scaled, feedforward_modules=[anatomy.down], fan_in_fan_out=turned
            )
        else:
            config = peft.LoraConfig(
                task_type=task, r=4, lora_alpha=6, target_modules=list(anatomy.lora), fan_in_fan_out=turned,
                use_dora=cell.kind == "dora", use_rslora=cell.kind == "rslora",
            )  # fmt: skip
        model = peft.get_peft_model(net, config)
        move(model)
        model.save_pretrained(str(folder), save_embedding_layers=False)
    return base, folder


def loaded(cell: Cell, made: tuple[Path, Path | None], **options: Any) -> Subject:
    words = {"template": TEMPLATE.text, "verbaliser": WORDS} if cell.mode == "words" else {}
    base, folder = made
    adapter = None if folder is None else str(folder)
    return load(str(base), adapter, classes=CLASSES, max_length=48, device="cpu", **words, **options)


def live(cell: Cell, made: tuple[Path, Path | None]) -> tuple[Any, Any]:
    """A model as users of transformers and PEFT have it in the middle of a training: some modules in training mode and some not,
    gradients on some weights, hooks of their own; and its tokenizer."""
    base, folder = made
    cls = transformers.AutoModelForCausalLM if cell.mode == "words" else transformers.AutoModelForSequenceClassification
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = cls.from_pretrained(base, **({} if cell.mode == "words" else {"num_labels": 2}))
        model.config.pad_token_id = 0
        if folder is not None:
            soft = cell.kind in ("prompt", "p-tuning", "prefix")  # which PEFT loads frozen
            model = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=not soft)
    model.train()
    list(model.modules())[len(list(model.modules())) // 2].eval()
    model.register_forward_hook(lambda *_: None)
    for i, p in enumerate(p for p in model.parameters() if p.requires_grad):
        if i % 2:
            p.grad = torch.full_like(p, 0.5)
    return model, transformers.AutoTokenizer.from_pretrained(base)


def state(model: Any, tokenizer: Any) -> list[Any]:
    """All of a live model and its tokenizer that could be changed."""
    inner = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    weights = [
        (n, p.data_ptr(), p.requires_grad, None if p.grad is None else p.grad.sum().item())
        for n, p in model.named_parameters()
    ]
    hooks = [(n, len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for n, m in model.named_modules()]
    return [
        model_fingerprint(model),
        weights,
        hooks,
        inner.config.to_dict(),
        repr(tokenizer),
        torch.get_rng_state().tolist(),
    ]


# ------------------------------------------------------------------------------------------------------------- checks


def alone(subject: Subject, corpus: Corpus) -> np.ndarray:
    return np.concatenate([predict(subject, corpus.take(np.array([i]))).logits for i in range(len(corpus))])


def no_batch(counts: Counts, cell: Cell, made: tuple[Path, Path | None]) -> None:
    """An example's result does not depend on its batch: padding side x batch size x number type."""
    for dtype, near in NEAR.items():
        try:
            subject = loaded(cell, made, dtype=dtype)
            each = alone(subject, FEW)
        except TrueupError as e:
            print(f"{cell}, {dtype}: {e}", file=sys.stderr)
            counts.refused[f"batch, {dtype}"] += 1
            continue
        counts.judge(cell, "control: examples differ", dtype, apart(each[0], each[1]) > 1e-3)
        longest = max(len(r) for r in predicting.rows_of(subject, FEW))
        for side in SIDES:
            tokenizer = copy.deepcopy(subject.tokenizer)
            tokenizer.padding_side = side
            for size in BATCHES:
                with patched(predicting, "TOKENS", size * longest if size > 1 else 1):
                    got = predict(replace(subject, tokenizer=tokenizer), FEW).logits
                ok = apart(got, each) <= near
                counts.judge(cell, "batch", f"{dtype}, {side}, {size}: {apart(got, each):.2g}", ok)


def identities(counts: Counts, cell: Cell, made: tuple[Path, Path | None]) -> None:
    """a - a is the base, weight 1 is the same function, and concatenation is the sum; DoRA is refused."""
    subject = loaded(cell, made)
    own = predict(subject, FEW).logits

    def is_(what: str, got: Subject, want: np.ndarray) -> None:
        off = apart(predict(got, FEW).logits, want)
        counts.judge(cell, "arithmetic", f"{what}: {off:.2g}", off <= NEAR["float32"])

    if cell.kind in ("prompt", "p-tuning"):
        start = np.random.default_rng(1).normal(size=prompt_of(subject).shape)
        tau = maths.PromptVector.between(start, prompt_of(subject))

        def at(prompt: np.ndarray) -> Subject:
            return wear(subject, *with_prompt(subject, torch.as_tensor(prompt, dtype=torch.float32)))

        base = predict(at(start), FEW).logits
        counts.judge(cell, "control: the vector does something", "", apart(base, own) > 1e-3)
        is_("P0 + 1 tau", at((maths.PromptVector(start) + 1.0 * tau).value), own)
        is_("P0 + tau - tau", at((maths.PromptVector(start) + tau - tau).value), base)
        is_("P - 0.3 tau_Z + 0.3 tau_Z", at((tau + maths.PromptVector(start) - 0.3 * tau + 0.3 * tau).value), own)
    if cell.kind in ("lora", "rslora", "dora"):
        settings, tensors = files.adapter_of(subject)
        if maths.why_no_concatenation(settings) is not None:
            counts.judge(cell, "DoRA is refused", "it is not DoRA", cell.kind == "dora")
            return
        counts.judge(cell, "control: not DoRA", "DoRA was taken", cell.kind != "dora")
        mine = {k: v.float().numpy() for k, v in tensors.items()}
        other = {k: v * 0.7 if ".lora_A." in k else v[::-1].copy() if ".lora_B." in k else v for k, v in mine.items()}

        def sum_of(more: dict[str, np.ndarray], coefficient: float) -> Subject:
            got, weights = maths.concatenate(settings, mine, settings, more, coefficient)
            return wear(subject, got, {k: torch.as_tensor(np.ascontiguousarray(v)) for k, v in weights.items()})

        bare = predict(without_layers(subject), FEW).logits
        counts.judge(cell, "control: the vector does something", "", apart(bare, own) > 1e-3)
        is_("1 a + 0 b", sum_of(other, 0.0), own)
        is_("a - a", sum_of(mine, -1.0), bare)
        half = {k: v * 0.5 if ".lora_B." in k else v for k, v in mine.items()}
        is_("a + 2 (a / 2) - a", wear(subject, *_again(settings, mine, half, 2.0, -1.0)), own)
        one, two = maths.concatenate(settings, mine, settings, other, 0.7)
        far = apart(_deltas(one, two), _deltas(settings, mine) + 0.7 * _deltas(settings, other))
        counts.judge(cell, "arithmetic", f"weights of a + 0.7 b: {far:.2g}", far <= NEAR["float32"])


def _again(
    settings: dict[str, Any], mine: dict[str, np.ndarray], half: dict[str, np.ndarray], c: float, d: float
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """a + c (a / 2) + d a: a concatenation of a concatenation."""
    one = maths.concatenate(settings, mine, settings, half, c)
    got, weights = maths.concatenate(*one, settings, mine, d)
    return got, {k: torch.as_tensor(np.ascontiguousarray(v)) for k, v in weights.items()}


def _deltas(settings: dict[str, Any], tensors: dict[str, np.ndarray]) -> np.ndarray:
    """What a LoRA adds to its weights by its own equation, all in one row."""
    r = settings["r"]
    scale = settings["lora_alpha"] / (r**0.5 if settings.get("use_rslora") else r)
    downs = sorted(k for k in tensors if ".lora_A." in k)
    return np.concatenate([(scale * tensors[k.replace(".lora_A.", ".lora_B.")] @ tensors[k]).ravel() for k in downs])


def remedies(counts: Counts, cell: Cell, made: tuple[Path, Path | None], folder: Path) -> None:
    """A null remedy of each fault changes nothing, comes off bit for bit, and is the same saved, in plain PEFT."""
    subject = loaded(cell, made)
    own, before = predict(subject, FEW).logits, subject.fingerprint
    for fault in each_fault():
        if fault().applies_to(subject, CORPUS) is not None:
            continue
        try:
            nothing = fault().null(subject)
            with nothing.on(subject) as same:
                got = predict(same, FEW)
        except TrueupError:
            counts.refused["null remedy"] += 1
            continue
        right = np.array_equal(got.predicted, predict(subject, FEW).predicted)
        off = apart(got.logits[:, : own.shape[1]], own)
        counts.judge(cell, "null remedy", f"{fault.name}: {off:.2g}", right and off <= NEAR["float32"])
        counts.judge(cell, "remedy comes off", fault.name, subject.fingerprint == before)
        try:
            saved = nothing.save(folder / fault.name)
        except TrueupError:
            counts.refused["plain PEFT"] += 1
            continue
        off = apart(_plainly(subject, saved, got.logits.shape[1]), got.logits)
        counts.judge(cell, "plain PEFT", f"{fault.name}: {off:.2g}", off <= NEAR["float32"])


def _plainly(subject: Subject, saved: Path, rows: int) -> np.ndarray:
    """Logits of a saved adapter as transformers and PEFT give them, one text at a time."""
    words = json.loads((saved / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    with quiet():
        if words:
            net: Any = transformers.AutoModelForCausalLM.from_pretrained(subject.source.base)
        else:
            net = transformers.AutoModelForSequenceClassification.from_pretrained(
                subject.source.base, num_labels=rows, ignore_mismatched_sizes=True
            )
        model = peft.PeftModel.from_pretrained(net, str(saved)).eval()
    got = []
    with torch.no_grad():
        for ids in forward.tokenize(subject, FEW):
            z = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)).logits
            got.append((z[0, -1, subject.verbaliser_ids()] if words else z[0]).numpy())
    return np.stack(got)


def _memory() -> BaseException:
    return torch.OutOfMemoryError("on purpose")


ENDS: dict[str, Callable[[], BaseException] | None] = {
    "success": None, "an exception": lambda: ZeroDivisionError("on purpose"), "an interrupt": KeyboardInterrupt,
    "memory ran out once": _memory, "memory ran out": _memory,
}  # fmt: skip


def restored(counts: Counts, cell: Cell, made: tuple[Path, Path | None], only: tuple[str, ...] = ()) -> None:
    """The user's live model is as it was after a check of each fault, or of `only` these, however it ends and wherever."""
    model, tokenizer = live(cell, made)
    for fault in each_fault():
        if only and fault.name not in only:
            continue
        shots = fault.name == "copying"
        words: dict[str, Any] = {"classes": CLASSES}
        if cell.mode == "words":
            words = {"shots": 2} if shots else {"template": TEMPLATE.text, "verbaliser": WORDS}
        quick = fault(**QUICK[fault.name])
        passes = 0
        for end, error in ENDS.items():
            for at in (0.05, 0.9) if error is not None and passes else (0.5,):
                if error is not None and not passes:
                    continue  # the fault does not apply, or the model cannot be examined
                before = state(model, tokenizer)
                tap = Tap(round(at * passes), error, once="once" in end)
                said: BaseException | None = None
                with patched(forward, "collate", tap):
                    try:
                        trueup.check(model, ROWS, quick, tokenizer=tokenizer, max_length=48, **WHERE, **words)
                    except (TrueupError, ZeroDivisionError, KeyboardInterrupt) as e:
                        said = e
                if error is None:
                    passes = tap.seen if said is None else 0
                    if isinstance(said, TrueupError):
                        counts.refused["live model"] += 1
                    elif said is not None:
                        counts.wrong.append(f"{cell}, {fault.name}: {said!r}")
                same = state(model, tokenizer)
                ok = same == before
                what = [n for n, a, b in zip(PARTS, before, same, strict=True) if a != b]
                check = "live model" if passes else "live model that is not examined"
                counts.judge(cell, check, f"{fault.name}, {end} at {at}: {what}", ok)
                # A later check has fewer passes than the first, which proves the model's ways once: it may end before that pass.
                if end == "an interrupt" and tap.seen > tap.at and not isinstance(said, KeyboardInterrupt):
                    counts.wrong.append(f"{cell}, {fault.name}: an interrupt was swallowed ({said!r})")


PARTS = ("fingerprint", "weights", "hooks", "config", "tokenizer", "random state")
WHERE = {"text": "text", "label": "label", "confounder": "site"}
ROWS = [
    {"text": " ".join(RNG.choice(["good", "bad", "cat", "sat", "the", "film", "it", "very"], 9)), "label": CLASSES[i % 2],
     "site": f"s{(i // 2) % 2}"}
    for i in range(280)
]  # fmt: skip
"""As many as a check of each fault needs."""


class Tap:
    """Counts passes, and raises at one of them, or from it on."""

    def __init__(self, at: int, error: Callable[[], BaseException] | None, *, once: bool) -> None:
        self.at, self.error, self.once, self.seen, self.real = at, error, once, 0, forward.collate

    def __call__(self, *given: Any, **more: Any) -> Any:
        self.seen += 1
        if self.error is not None and (self.seen - 1 == self.at if self.once else self.seen > self.at):
            raise self.error()
        return self.real(*given, **more)


@contextmanager
def patched(where: Any, name: str, value: Any) -> Iterator[None]:
    old = getattr(where, name)
    setattr(where, name, value)
    try:
        yield
    finally:
        setattr(where, name, old)


def run(counts: Counts, cell: Cell, base: Path, folder: Path, *, on_live: bool = False) -> None:
    """The checks of a cell; with `on_live` those of a live model alone, which take longest."""
    try:
        made = adapted(cell, base, folder / "made")
        loaded(cell, made)
    except Unsupported as e:
        print(f"{cell}: {e}", file=sys.stderr)
        counts.refused["cell"] += 1
        return
    counts.held["cell"] += 1
    with within(replace(session(), memo=None)):
        if on_live:
            restored(counts, cell, made)
            return
        no_batch(counts, cell, made)
        identities(counts, cell, made)
        remedies(counts, cell, made, folder / "saved")


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--only", action="append", help="a family; repeatable")
    ask.add_argument("--live", type=int, help="of how many cells one is run, and on a live model alone")
    ask.add_argument("-o", "--out", type=Path, help="where the counts go, and where it goes on")
    given = ask.parse_args()
    torch.set_num_threads(1)
    counts, bases = Counts.kept(given.out) if given.out and given.out.exists() else Counts(), {}
    with tempfile.TemporaryDirectory() as root:
        for cell in CELLS[:: given.live or 1]:
            if (given.only and cell.family not in given.only) or str(cell) in counts.cells:
                continue
            if cell.family not in bases:
                bases[cell.family] = make_base(cell.family, Path(root, cell.family))
            try:
                run(counts, cell, bases[cell.family], Path(root, "cell"), on_live=bool(given.live))
            except Exception as e:  # the others are run all the same
                traceback.print_exc()
                counts.wrong.append(f"{cell}: {e!r}")
            counts.cells.append(str(cell))
            shutil.rmtree(Path(root, "cell"), ignore_errors=True)
            print(f"{cell}: {sum(counts.held.values()):,} held, {len(counts.wrong)} wrong", file=sys.stderr, flush=True)
            if given.out:
                given.out.write_text(json.dumps(vars(counts)))
    finish(counts, given.out)


if __name__ == "__main__":
    main()
