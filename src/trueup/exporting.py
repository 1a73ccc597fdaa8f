"""Exports a saved repair for a server: merged into its base, as a plain LoRA, or for ONNX Runtime. Each export is checked."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trueup.errors import BadInput, Unsupported, check_within, did_you_mean, listing
from trueup.given import checked
from trueup.store import atomic
from trueup.store.inputs import near, path_of

if TYPE_CHECKING:
    from torch import Tensor

    from trueup.measure.confidence_scores import Calibrated
    from trueup.run.same_logits import Same
    from trueup.subject.repaired import Repaired

Form = Literal["merged", "lora", "onnx"]
FORMS: tuple[Form, ...] = ("merged", "lora", "onnx")
SCORE = "confidence.npz"
"""Rows of the last layer that a confidence reads in addition to those of the classes: ``weight`` (k, d) and ``bias`` (k,), float32.
It is not a safetensors file, because vLLM reads every such file of a folder as weights of the model."""
REPAIR = "repair.md"
"""The repair's own card, next to an export: what was measured, and how prompts are written."""
TEXTS = 200
"""The most texts on which logits are compared."""
SYNTHETIC = 32
LONG = 8
"""Texts that are compared at the whole length of the audit."""
CONFIDENCE_ALLOWED = 1e-3
"""The largest difference of two confidences that counts as rounding: a score multiplies the rounding of logits by its slope."""


@dataclass(frozen=True)
class Exported:
    """The result of an export: the folder, its form, and how far its logits agree with those of the repair, loaded with plain PEFT.

    Attributes:
        folder: the folder that was written. form: ``merged``, ``lora`` or ``onnx``.
        apart: the largest difference of a logit, relative to the largest logit, in float32.
        texts: the number of compared texts. equal: the number of texts on which the same logit is the largest (for a model that
            writes text, at every token).
        synthetic: True if the texts were drawn at random, because no test texts were available.
        rank: the rank of a LoRA, otherwise 0.
        confidence: the largest difference of the confidence that the exported file computes. None if it computes none.
    """

    folder: Path
    form: Form
    apart: float
    equal: int
    texts: int
    synthetic: bool
    rank: int = 0
    confidence: float | None = None

    @property
    def sentence(self) -> str:
        kind = "random texts" if self.synthetic else "test texts"
        score_note = "" if self.confidence is None else f" The confidence differs by at most {self.confidence:.1g}."
        return (
            f"On {self.texts} {kind} the logits differ by at most {self.apart:.1g} of the largest logit (float32, loaded again "
            f"from the folder), and the largest logit is the same on {self.equal}.{score_note}"
        )


@checked
def export(
    repair: str | Path, form: str, out: str | Path, *, fault: str | None = None, model: str | None = None, force: bool = False
) -> Exported:  # fmt: skip
    """Write a saved repair in another form, and check on texts that its logits are the same.

    Args:
        repair: the folder of a repair, or the output folder of a check that made one.
        form: ``merged`` (a transformers model of its own), ``lora`` (a plain LoRA of one rank, for servers that put adapters on a
            base), or ``onnx`` (for ONNX Runtime; needs the extra ``trueup[onnx]``).
        out: the folder to write. It is written completely or not at all.
        fault: the repair to export, if the check made several.
        model: the base model, if it is no longer where the repair's card says.
        force: replace `out` if it exists.

    Raises:
        BadInput: there is no repair, or more than one; the folder is taken; the base is not the one it was made for.
        Unsupported: this repair cannot take that form, or would not say the same in it. Unavailable: a package is missing.
    """
    if form not in FORMS:
        raise BadInput(f"A repair is exported as {listing(FORMS)}, and not as '{form}'.{did_you_mean(form, FORMS)}")
    folder, out = repair_in(Path(repair), fault), path_of(out)
    atomic.refuse_read(out, {"repair": folder})
    atomic.refuse_taken(out, force)
    atomic.verify(folder)
    # Imported late, because torch and scipy are slow to import: a wrong name is reported before.
    from trueup import guard
    from trueup.subject.beside import read_card
    from trueup.subject.repaired import open_repaired

    card = read_card(folder)
    atomic.refuse_read(out, {"base": model or card.get("base")})
    opened = open_repaired(folder, card, model)
    texts, synthetic = _texts(folder, opened)
    with atomic.new_folder(out, force=force) as new:
        made = {"merged": _merged, "lora": _lora, "onnx": _onnx}[form](opened, new, texts)
        result = made.logits
        if not result.ok:
            raise Unsupported(
                f"In the form '{form}' the repair says something else: logits differ by {result.apart:.2g} of the largest, and "
                f"1e-5 is allowed. Nothing was written. Serve the adapter itself with PEFT: '{folder}'."
            )
        if made.confidence is not None and not made.confidence <= CONFIDENCE_ALLOWED:
            raise Unsupported(
                f"In the form '{form}' confidences differ by {made.confidence:.2g}, and {CONFIDENCE_ALLOWED:g} is allowed. Nothing "
                "was written. Export the repair merged."
            )
        for name, new_name in (("README.md", REPAIR), (guard.FILE, guard.FILE)):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, new / new_name)
        exported = Exported(out, form, result.apart, result.equal, result.texts, synthetic, made.rank, made.confidence)
        atomic.write_text(new / "README.md", _page(opened, exported))
    return exported


def repair_in(folder: Path, fault: str | None = None) -> Path:
    """The folder of a repair: `folder` itself, or the repair that the check in `folder` made.

    Raises:
        BadInput: it holds no repair, or several and `fault` does not say which.
    """
    if not atomic.there(folder):
        raise BadInput(
            f"There is no folder '{folder}'.{near(folder, '*/findings.json', '*/adapter_config.json')} Give the folder of a "
            "repair, or the one that `trueup check ... -o` wrote."
        )
    if (fault_of_folder := _repairs(folder)) is not None:
        if fault not in (None, fault_of_folder):
            raise BadInput(
                f"'{folder}' is a repair of {fault_of_folder}, and not of '{fault}'. Leave --fault out, or give another folder."
            )
        return folder
    if (folder / "adapter_config.json").is_file():
        raise BadInput(
            f"'{folder}' is a PEFT adapter, and no repair that trueup made. PEFT's merge_and_unload merges it, and "
            "`trueup check` repairs it."
        )
    repairs = sorted(p.name for p in folder.iterdir() if _repairs(p) is not None)
    if fault is not None and fault not in repairs:
        raise BadInput(
            f"'{folder}' holds no repair of '{fault}'.{did_you_mean(fault, repairs)} It holds repairs of {listing(repairs)}."
        )
    if not repairs:
        advice = check_within(folder, "Give the folder that `trueup check ... -o` wrote.")
        if (folder / "findings.json").is_file():
            from trueup.report import bundle

            reasons = [f"{c.before.fault} ({c.outcome}): {c.remedy}" for c in bundle.read(folder).comparisons]
            advice = f"What its report says of repairs: {' '.join(reasons)}"
        raise BadInput(f"'{folder}' holds no repair, so there is nothing to export. {advice}")
    if len(repairs) > 1 and fault is None:
        raise BadInput(f"'{folder}' holds {len(repairs)} repairs: {listing(repairs)}. Say which: --fault {repairs[0]}.")
    return folder / (fault or repairs[0])


def _repairs(folder: Path) -> str | None:
    """The fault of the repair that is saved in `folder`; None where `folder` is not a repair."""
    try:
        card = json.loads((folder / "trueup.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not ((folder / "adapter_config.json").is_file() and isinstance(card, dict) and "made_for" in card):
        return None
    return str(card.get("repairs") or "overconfidence")


def _texts(folder: Path, repair: Repaired) -> tuple[list[dict[str, Tensor]], bool]:
    """Inputs of one text each: test texts of the check that made the repair, or random tokens where there are none.

    A report shows only the beginnings of texts, so the first `LONG` are extended by the texts that follow, up to the length that
    was examined.
    """
    import numpy as np
    import torch

    texts: list[str] = []
    if (folder.parent / "findings.json").is_file():
        from trueup.report import bundle

        rows = [row for table in bundle.read(folder.parent).examples.values() for row in table]
        texts = list(dict.fromkeys(str(row["text"]) for row in rows if row.get("text")))[:TEXTS]
    tok, most = repair.tokenizer, int(repair.card.get("max_length") or 128)
    if texts:
        texts = [" ".join([*texts[i:], *texts[:i]]) if i < LONG else t for i, t in enumerate(texts)]
        inputs = [tok(t, truncation=True, max_length=most, return_tensors="pt") for t in texts]
        return [
            {k: v for k, v in g.items() if k in ("input_ids", "attention_mask")}
            for g in inputs
            if g["input_ids"].numel()
        ], False
    rng = np.random.default_rng(0)
    special = set(tok.all_special_ids)
    ordinary_tokens = [i for i in range(len(tok)) if i not in special]
    ids = [
        torch.as_tensor(rng.choice(ordinary_tokens, size=(1, int(n))))
        for n in rng.integers(2, min(most, 64) + 1, SYNTHETIC)
    ]
    return [{"input_ids": i, "attention_mask": torch.ones_like(i)} for i in ids], True


@dataclass(frozen=True)
class _Made:
    """The check of an export: its logits and confidences compared with those of the repair, and its rank (`Exported`)."""

    logits: Same
    rank: int = 0
    confidence: float | None = None


def _merged(repair: Repaired, new: Path, texts: Sequence[dict[str, Tensor]]) -> _Made:
    from trueup.faults import predict_script
    from trueup.run.same_logits import logits_of, same
    from trueup.subject import repaired

    net = repaired.merged(repair)
    if not repair.causal:
        rows = SCORE if _classes_alone(repair, net, new) else None
        script = predict_script.of_merged(repair.card, repair.anatomy.head, rows)
        atomic.write_text(new / predict_script.NAME, script)
    repaired.saved(net, repair.tokenizer, new)
    del net
    reloaded = repaired.opened(new, repair.causal, repair.tokenizer)
    return _Made(same((logits_of(repair.model, x), logits_of(reloaded, x)) for x in texts))


def _classes_alone(repair: Repaired, net: Any, new: Path) -> bool:
    """Reduce a merged classifier to its own classes. Returns whether its confidence reads further rows, then written to `SCORE`."""
    import numpy as np

    from trueup.subject import repaired

    sigmoid = bool(repair.card.get("sigmoid")) and "score" not in repair.card
    weight, bias = repaired.with_classes(net, repair.anatomy, repair.classes, sigmoid=sigmoid)
    if len(weight):
        np.savez(new / SCORE, allow_pickle=False, weight=weight.float().numpy(), bias=bias.float().numpy())
    return bool(len(weight))


def _lora(repair: Repaired, new: Path, texts: Sequence[dict[str, Tensor]]) -> _Made:
    from trueup.run.same_logits import logits_of, same
    from trueup.subject import adapter as files
    from trueup.subject import repaired

    settings, tensors = repaired.as_lora(repair)
    files.write_adapter(new, settings, tensors, repair.tokenizer)
    reloaded = repaired.with_adapter(repair, new)
    return _Made(same((logits_of(repair.model, x), logits_of(reloaded, x)) for x in texts), int(settings["r"]))


def _onnx(repair: Repaired, new: Path, texts: Sequence[dict[str, Tensor]]) -> _Made:
    from trueup.run import onnx
    from trueup.run.same_logits import logits_of, same
    from trueup.subject import repaired

    onnx.needed()
    net, file, score = repaired.merged(repair), new / "model.onnx", _score(repair)
    head = None if repair.causal else repair.anatomy.head
    onnx.write(net, file, texts[0], head=head, classes=len(repair.classes), score=score)
    if not repair.causal:
        _classes_alone(repair, net, new)
    repair.tokenizer.save_pretrained(new)
    net.config.save_pretrained(new)
    read = onnx.reader(file, ["logits"] + ["confidence"] * (score is not None))
    gaps: list[float] = []

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for x in texts:
            own_logits, (served_logits, *served_confidence) = logits_of(repair.model, x), read(x)
            if score is not None:
                gaps.append(abs(float(served_confidence[0]) - float(score(own_logits[None].numpy())[0])))
            yield own_logits, served_logits

    return _Made(same(pairs()), confidence=max(gaps, default=None))


def _score(repair: Repaired) -> Calibrated | None:
    """The score that computes the confidence of a repaired classifier from its logits; None for other repairs."""
    from trueup.measure.confidence_scores import score_from_json

    return score_from_json(repair.card["score"]) if not repair.causal and "score" in repair.card else None


_FORMS = {
    "merged": "It is a transformers model of its own. No adapter, no PEFT and no trueup is needed.",
    "lora": "It is a plain LoRA of rank {rank} in every layer that it changes, for PEFT and servers that put adapters on a base.",
    "onnx": "`model.onnx` is for ONNX Runtime. It takes `input_ids` and `attention_mask` (batch, tokens) and gives {outputs}.",
}


def _page(repair: Repaired, done: Exported) -> str:
    """The text of the README of an export."""
    from trueup.faults.loading import class_names, literal

    card = repair.card
    parts = [
        f"# A repair of {_repairs(repair.folder)}, exported ({done.form})",
        str(card.get("describe") or ""),
        _FORMS[done.form].format(rank=done.rank, outputs=_outputs(repair, done)),
        f"Base: {literal(str(card['base']))}. "
        + (f"Classes: {class_names(repair.classes)}." if repair.classes else ""),
        f"`{REPAIR}` is the card of the repair: what was measured, its limits, and how prompts are written.",
        f"## Proof\n\n{done.sentence}",
    ]
    if (code := _started(repair, done)) is not None:
        meaning_of_name = {
            "FOLDER": "the folder of this page", "BASE": "the base, named above", "text": "a text or a list of texts",
            "ids": "the tokens of the prompt (batch, tokens)", "mask": "1 for each of them and 0 for padding",
        }  # fmt: skip
        names_used = {n.id for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Name)}
        meanings = [f"`{n}` is {what}" for n, what in meaning_of_name.items() if n in names_used]
        parts.append(f"## How to use it\n\n```python\n{code}\n```\n\n{'; '.join(meanings)}.")
    if not repair.causal and done.form == "merged":
        addition = (
            f" It reads the added rows from `{SCORE}`. The model itself has the logits of the classes only."
            if "score" in card and int(card.get("rows") or 0) > len(repair.classes)
            else ""
        )
        parts.append(
            f"`predict.py` prints the label and the confidence: `python predict.py 'a text'`. It needs only transformers.{addition}"
        )
    return "\n\n".join(p for p in parts if p) + "\n"


def _started(repair: Repaired, done: Exported) -> str | None:
    from trueup.faults.loading import input_lines

    task = "text-generation" if repair.causal else "text-classification"
    if done.form == "merged":
        return f"from transformers import pipeline\nserve = pipeline({task!r}, FOLDER)"
    if done.form == "lora":
        kind = "CausalLM" if repair.causal else "SequenceClassification"
        rows = "" if repair.causal else f", num_labels={len(repair.head.weight)}"
        return (
            f"from peft import PeftModel\nfrom transformers import AutoModelFor{kind}\n"
            f"model = PeftModel.from_pretrained(AutoModelFor{kind}.from_pretrained(BASE{rows}), FOLDER)"
        )
    session_lines = "import onnxruntime\nsession = onnxruntime.InferenceSession(f'{FOLDER}/model.onnx')\n"
    if repair.causal:
        return f"{session_lines}logits = session.run(['logits'], {{'input_ids': ids, 'attention_mask': mask}})[0]"
    inputs = "{k: inputs[k] for k in ('input_ids', 'attention_mask')}"
    outputs = "logits, confidence" if done.confidence is not None else "logits,"
    names = "['logits', 'confidence']" if done.confidence is not None else "['logits']"
    label = (
        "(logits[:, 0] > 0).astype(int)"
        if repair.card.get("sigmoid") and done.confidence is None
        else "logits.argmax(-1)"
    )
    return (
        f"from transformers import AutoTokenizer  # works without torch\n{session_lines}"
        f"tok = AutoTokenizer.from_pretrained(FOLDER)\n{input_lines(repair.card, arrays='np')}\n"
        f"{outputs} = session.run({names}, {inputs})\nlabel = {label}"
    )


def _outputs(repair: Repaired, done: Exported) -> str:
    """The outputs of an ONNX file, for its README."""
    if repair.causal:
        return "`logits`"
    if done.confidence is None:
        return "`logits` and `features`"
    return (
        "`logits`, `features` (`trueup.Guard` reads them) and `confidence`, the probability that the class of the largest logit is "
        "right"
    )
