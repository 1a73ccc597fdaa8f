"""``predict.py``: the short script in the folder of a repair. It prints label and confidence of texts and does not need trueup.

Next to an adapter it needs transformers and PEFT (`script`); next to a merged model only transformers (`of_merged`). Its code is
that of the card (`trueup.faults.loading`), so that card and script cannot disagree.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from trueup.faults.loading import answer, code_literal, input_lines
from trueup.measure.confidence_scores import score_from_json

NAME = "predict.py"

_SCRIPT = '''"""{what}

    python {name} {shown}

prints one line of JSON a text: its label, and the confidence that the label is right. In Python:

    from predict import load, predict
    model, tok = load()
    list(predict([{example}], model, tok))

It needs torch, transformers and peft. It was written by trueup and does not need it.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

BASE = {base}
FOLDER = str(Path(__file__).resolve().parent)
CLASSES = {classes}


def load(BASE=BASE):
{load}
    return model, tok


@torch.no_grad()
def predict(texts, model, tok):
    for {item} in texts:
{inputs}
{fits}{read}
        yield {{"text": text, "label": CLASSES[int(label)], "confidence": float(confidence)}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description={what_json})
    parser.add_argument("text", nargs="+", help={help})
    parser.add_argument("--base", default=BASE, help="folder or hub id of the base model (default: %(default)s)")
    given = parser.parse_args()
    if given.base.startswith("embedded:"):
        sys.exit(
            "The base model is a folder in trueup's cache. Name it with --base; with trueup installed this prints it: "
            "python -c 'import trueup; print(trueup.fetch(\\"" + given.base + "\\"))'"
        )
    # The base reports its own last layer as missing; the adapter brings it.
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for answer in predict({items}, *load(given.base)):
        print(json.dumps(answer, ensure_ascii=False))
'''


_MERGED = '''"""Label and confidence of texts: `python predict.py "a text" "another"`. Made by trueup, which it does not need.

Answering only at a confidence of CERTIFIED[s] or more keeps the share of errors among the answered at or below s: certified on
the calibration data, for texts like those.
"""
'''
_LAST = [
    "    # of every token: the classifier reads the last one that is no padding",
    '    places = (inputs["input_ids"][0] != model.config.pad_token_id).nonzero()',
    "    features = features[:, int(places[-1]) if len(places) else -1]",
]


def script(about: Mapping[str, Any], classes: Sequence[str], *, load: str, inputs: str, read: str) -> str:
    """The text of the script that is saved next to an adapter.

    Args:
        about: the facts of the subject (`loading.facts`). classes: the names of the labels, in order.
        load: the lines of code that make `model` and `tok` from `BASE` and `FOLDER`. inputs: the lines that make `inputs` from
            `text`, and from `second` for pairs. read: the lines that make `label` and `confidence` from `model` and `inputs`.
    """
    pair = "second" in inputs
    what = "Classify pairs of texts with this adapter." if pair else "Classify texts with this adapter."
    cuts = about.get("shape") is None
    fits = (
        f'if inputs["input_ids"].shape[1] > {about["max_length"]}:\n'
        f'    sys.exit("A prompt has more than {about["max_length"]} tokens; shorten this text: " + repr(text))\n'
    )
    return _SCRIPT.format(
        what=what, name=NAME, what_json=json.dumps(what), shown='"A text" "Its second text"' if pair else '"A text" "Another text"',
        example='("A text", "Its second text")' if pair else '"A text"', base=code_literal(str(about["base"])),
        classes=_list(classes), item="text, second" if pair else "text",
        load=textwrap.indent(load, " " * 4), inputs=textwrap.indent(inputs, " " * 8), read=textwrap.indent(read, " " * 8),
        fits="" if cuts else textwrap.indent(fits, " " * 8),
        help=json.dumps("texts, each followed by its second text" if pair else "texts to classify"),
        items="list(zip(given.text[::2], given.text[1::2]))" if pair else "given.text",
    )  # fmt: skip


def usage(folder: str, about: Mapping[str, Any]) -> str:
    """The shell command that runs the script in `folder`."""
    base = str(about["base"])
    if base.startswith("embedded:"):
        found = f"""python -c 'import trueup; print(trueup.fetch("{base}"))'"""
        return f'python {folder}/{NAME} "A text to classify" --base "$({found})"'
    return f'python {folder}/{NAME} "A text to classify"'


def _list(names: Sequence[str]) -> str:
    return f"[{', '.join(map(code_literal, names))}]"


def of_merged(card: Mapping[str, Any], head: str, rows: str | None) -> str:
    """The text of the script that is saved next to a merged classifier.

    Args:
        card: the card of the repair. head: the name of the last layer. rows: the file with the further rows of the last layer
            that the confidence reads; None where it reads only those of the classes.
    """
    causal = bool(card.get("causal"))
    score = score_from_json(card["score"]) if "score" in card else None
    label, confidence = answer(len(card["classes"]), score=score, sigmoid=bool(card.get("sigmoid")))
    thresholds = {r["risk"]: r["threshold"] for r in card.get("abstention", ()) if r["threshold"] is not None}
    lines = [
        _MERGED,
        "import sys", "import threading", "from pathlib import Path", "",
        *(["import numpy as np"] if rows else []),
        "import torch",
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer", "",
        "FOLDER = Path(__file__).resolve().parent",
        f"CLASSES = {_list(card['classes'])}",
        f"CERTIFIED = {thresholds!r}  # share of errors among the answered: confidence at least",
        "model = AutoModelForSequenceClassification.from_pretrained(FOLDER, dtype=torch.float32).eval()",
        "tok = AutoTokenizer.from_pretrained(FOLDER)",
        *([f"model.config.pad_token_id = {card.get('pad')!r}"] if causal else []),
        *([f"more = {{k: torch.from_numpy(v) for k, v in np.load(FOLDER / {rows!r}).items()}}"] if rows else []),
        "here = threading.local()  # a server's threads have passes of their own",
        f"model.get_submodule({head!r}).register_forward_pre_hook(lambda _, given: setattr(here, 'features', given[0]))",
        "", "",
        "@torch.inference_mode()",
        "def read(text, second=None):",
        '    """Logits (1, K), the classes\' first, and the features (1, d) that the last layer reads."""',
        *(f"    {line}" for line in input_lines(card).splitlines()),
        "    logits, features = model(**inputs).logits, here.features",
        *(_LAST if causal else []),
        *(['    logits = torch.cat([logits, features @ more["weight"].T + more["bias"]], dim=1)'] if rows else []),
        "    return logits, features",
        "", "",
        "def predict(text, second=None):",
        '    """The label, and the probability that it is right."""',
        "    out = read(text, second)[0].double()",
        f"    label, confidence = {label}, {confidence}",
        "    return CLASSES[int(label)], float(confidence)",
        "", "",
        'if __name__ == "__main__":',
        "    for text in sys.argv[1:]:",
        '        print(*predict(text), sep="\\t")',
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
