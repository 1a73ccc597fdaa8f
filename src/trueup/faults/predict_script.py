"""``predict.py``: the short script beside a saved adapter that uses it with transformers and PEFT alone.

Its lines are those of the card (`trueup.faults.loading`), so that card and script cannot say different things.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

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


def script(about: Mapping[str, Any], classes: Sequence[str], *, load: str, inputs: str, read: str) -> str:
    """The text of the script.

    Args:
        about: what `loading.facts` says of the subject. classes: the names of the labels, in order.
        load: the lines that make `model` and `tok` of `BASE` and `FOLDER`. inputs: those that make `inputs` of `text`, and
            `second` for pairs. read: those that make `label` and `confidence` of `model` and `inputs`.
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
        example='("A text", "Its second text")' if pair else '"A text"', base=literal(str(about["base"])),
        classes="[" + ", ".join(map(literal, classes)) + "]", item="text, second" if pair else "text",
        load=textwrap.indent(load, " " * 4), inputs=textwrap.indent(inputs, " " * 8), read=textwrap.indent(read, " " * 8),
        fits="" if cuts else textwrap.indent(fits, " " * 8),
        help=json.dumps("texts, each followed by its second text" if pair else "texts to classify"),
        items="list(zip(given.text[::2], given.text[1::2]))" if pair else "given.text",
    )  # fmt: skip


def usage(folder: str, about: Mapping[str, Any]) -> str:
    """The line for a shell that runs the script of `folder`."""
    base = str(about["base"])
    if base.startswith("embedded:"):
        found = f"""python -c 'import trueup; print(trueup.fetch("{base}"))'"""
        return f'python {folder}/{NAME} "A text to classify" --base "$({found})"'
    return f'python {folder}/{NAME} "A text to classify"'


def literal(text: str) -> str:
    """A name as a Python literal that ends no line and no fenced block of a card."""
    return json.dumps(text).replace("`", "\\u0060")
