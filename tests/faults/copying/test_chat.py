"""Copying of a chat: the same prompt as turns gives the same finding, and the repaired adapter's card asks it so."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from trueup.faults.adapter_remedy import Adapted
from trueup.faults.copying import Copying
from trueup.faults.copying.proxy import proxy
from trueup.run.answers import answers
from trueup.run.prompts import drawn, rows, with_pool
from trueup.subject.load import load
from trueup.subject.quiet import quiet
from trueup.subject.subject import Subject

from .cases import counting, said_by_the_card

FAULT = Copying(resamples=60, units_from="task")
AS_LINES = "{% for m in messages %}{{ m.content }} {% endfor %}"
"""Turns that are, in the words of the planted tokenizer, the lines of ``{text} {label}``."""


def as_chat(subject: Subject, header: str = "") -> Subject:
    assert subject.template is not None
    subject.tokenizer.chat_template = AS_LINES
    return replace(subject, template=replace(subject.template, text="{text}", header=header, chat=True))


@pytest.fixture(scope="module")
def case():
    subject, corpus = FAULT.planted("planted")
    return as_chat(subject), corpus


@pytest.fixture(scope="module")
def finding(case):
    return FAULT.audit(case[0], case[1].part("test"), seed=0)


def test_turns_that_make_the_same_prompt_make_the_same_finding(case, finding):
    subject, corpus = FAULT.planted("planted")
    plain = FAULT.audit(subject, corpus.part("test"), seed=0)
    assert finding.found
    assert (finding.severity, finding.low, finding.high) == (plain.severity, plain.low, plain.high)
    assert np.array_equal(finding.samples["answer_free"], plain.samples["answer_free"])
    assert finding.provenance["chat"]
    assert "chat" not in plain.provenance
    few = corpus.part("test").take(np.arange(5))
    a, b = (rows(s, few.text, drawn(s, few)) for s in (case[0], subject))
    assert [list(r) for r in a] == [list(r) for r in b]


def test_a_header_is_the_system_message_and_fixed_demonstrations_are_shared(case):
    subject, corpus = as_chat(case[0], "the film sat"), case[1]
    test = corpus.part("test").take(np.arange(20))
    fixed = with_pool(subject, corpus.part("train"), [("the cat sat key0", "amber"), ("a dog on key4", "amber")])
    draws = drawn(fixed, test)
    got = rows(fixed, test.text, draws)
    begins = subject.tokenizer.decode(got[0])
    assert begins.startswith("the film sat the cat sat key0 amber a dog on key4 amber ")
    assert {r.shared for r in got} == {3 + 5 + 5}
    alone = rows(fixed, test.text, draws)
    for r in alone:
        r.shared = 0
    assert np.allclose(answers(fixed, got).logits, answers(fixed, alone).logits, atol=1e-5)


def test_the_proxy_is_asked_as_a_chat_too():
    subject = as_chat(counting(True)[0])
    able, _ = proxy(subject, seed=0)
    assert able.template is not None
    assert (able.template.text, able.template.chat) == ("{text}", True)


def test_the_lines_of_the_card_ask_it_as_a_chat(case, finding, tmp_path):
    subject, corpus = case
    got = FAULT.repair(subject, corpus, finding, seed=0)
    assert isinstance(got, Adapted)
    saved = got.save(tmp_path / "copying")
    card = (saved / "README.md").read_text()
    assert "tok.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)" in card
    assert "the answer ends with its turn" in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    # The base's own tokenizer has no chat template here.
    lines = code.group(1).replace("\nturns = ", f"\ntok.chat_template = {AS_LINES!r}\nturns = ")
    few = corpus.part("test").take(np.arange(6))
    d = drawn(subject, few)
    with got.on(subject) as repaired:
        ours = answers(repaired, rows(subject, few.text, d)).answer
    for query, index, answer in zip(few.text, d.index, ours, strict=True):
        assert said_by_the_card(lines, subject, saved, query, index).split()[0] == corpus.classes[answer]


def test_a_saved_repair_is_asked_as_a_chat_by_itself(case, finding, tmp_path):
    subject, corpus = case
    base = tmp_path / "base"
    with quiet():
        subject.model.save_pretrained(base)
        subject.tokenizer.save_pretrained(base)
    here = with_pool(load(str(base), shots=4, chat=True, device="cpu"), corpus.part("train"))
    got = FAULT.repair(here, corpus, finding, seed=0)
    assert isinstance(got, Adapted)
    saved = got.save(tmp_path / "copying")
    again = load(str(base), adapter=str(saved), device="cpu")
    assert again.template is not None
    assert (again.template.chat, again.template.text, again.shots.number) == (True, "{text}", 4)
