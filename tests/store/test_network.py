"""Whether the hub answers is asked once. Where it does not, its libraries are quick and quiet; where it does, nothing changes."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from huggingface_hub import constants

from trueup.errors import Unavailable
from trueup.store import network
from trueup.store.network import asking_hub, unanswered
from trueup.subject import places


class Hub:
    """Answers, or raises, one thing after the other; the last again and again."""

    def __init__(self, *answers: object) -> None:
        self.answers, self.asked = list(answers), []

    def head(self, address: str, timeout: float) -> object:
        self.asked.append((address, timeout))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


NO_NAME = type("ConnectError", (Exception,), {})("[Errno -2] Name or service not known")
TOO_LONG = type("ConnectTimeout", (Exception,), {})("timed out")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A hub that answers as told, for a process that may ask it."""
    monkeypatch.setattr(network, "_answer", None)
    monkeypatch.setattr(network, "PAUSE", 0.0)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")

    def use(*answers: object) -> Hub:
        made = Hub(*answers)
        monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: made)
        return made

    return use


@pytest.mark.parametrize(
    ("answers", "tries", "why"),
    [
        (["404: there is no such page"], 1, None),  # any answer is one
        ([NO_NAME, "200"], 2, None),  # the first try on a new network
        ([NO_NAME], 2, f"{constants.ENDPOINT} does not answer: [Errno -2] Name or service not known"),
        ([TOO_LONG], 1, f"{constants.ENDPOINT} does not answer: timed out"),  # which took long enough
    ],
)
def test_the_hub_is_asked_once_for_a_while(answers: list[object], tries: int, why: str | None, hub: Any):
    made = hub(*answers)
    assert unanswered() == why
    assert unanswered() == why
    assert made.asked == [(constants.ENDPOINT, constants.HF_HUB_ETAG_TIMEOUT)] * tries


def test_an_old_answer_is_not_believed(hub: Any, monkeypatch: pytest.MonkeyPatch):
    hub(NO_NAME)
    assert unanswered() is not None
    hub("200")
    assert unanswered() is not None, "the control: a fresh one is"
    monkeypatch.setattr(network, "KEPT", 0.0)
    assert unanswered() is None


def test_a_hub_that_is_out_of_bounds_is_not_asked(hub: Any, monkeypatch: pytest.MonkeyPatch):
    made = hub(NO_NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert unanswered() is None
    assert made.asked == []


def test_libraries_read_their_cache_alone_while_the_hub_does_not_answer(hub: Any, tmp_path: Any):
    import datasets.config

    made = hub(NO_NAME)
    datasets_before = datasets.config.HF_HUB_OFFLINE
    with asking_hub(str(tmp_path)):
        assert constants.HF_HUB_OFFLINE is False, "a folder needs no hub"
    assert made.asked == []
    with suppress(ZeroDivisionError), asking_hub("org/name"):
        assert constants.HF_HUB_OFFLINE is True
        assert datasets.config.HF_HUB_OFFLINE is True
        raise ZeroDivisionError
    assert constants.HF_HUB_OFFLINE is False
    assert datasets.config.HF_HUB_OFFLINE is datasets_before


def test_a_hub_that_answers_is_asked_as_ever(hub: Any):
    hub("200")
    with asking_hub("org/name"):
        assert constants.HF_HUB_OFFLINE is False


def test_a_name_is_held_against_the_hub_before_anything_is_loaded(
    hub: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    hub(NO_NAME)
    with pytest.raises(
        Unavailable, match=r"'org/name' is no folder.*does not answer.*Name or service not known.*Check the name"
    ):
        places.check_hub_id("org/name")
    with pytest.raises(Unavailable, match=r"Did you mean 'embedded:minilm'\?"):
        places.check_hub_id("minilm")
    (tmp_path / "models--org--name").mkdir()
    places.check_hub_id("org/name")  # of which the cache has something
    monkeypatch.setattr(network, "_answer", None)
    hub("404")
    places.check_hub_id("org/other")


def test_models_adapters_and_data_of_a_hub_that_does_not_answer(
    hub: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
):
    """Nothing but the one question leaves this machine: no library's own look-up, which would be tried again and again."""
    import trueup

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.http_backoff", pytest.fail, raising=False)
    monkeypatch.setattr("huggingface_hub.utils._http.http_backoff", pytest.fail)
    made = hub(NO_NAME)
    for ask in (
        lambda: trueup.load("org/name"),
        lambda: trueup.load("embedded:minilm", "org/name"),
        lambda: trueup.read("org/name"),
    ):
        with pytest.raises(Unavailable, match=r"org/name.*Check the n"):
            ask()
    assert len(made.asked) == 2
