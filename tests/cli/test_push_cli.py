"""--push-to-hub against a stand-in for the hub on this machine: what arrives, and what is said when it cannot."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from trueup.faults.rigidity import planted as P
from trueup.store import atomic
from trueup.subject.adapter import save_tuned
from trueup.subject.beside import CARD


class Hub(ThreadingHTTPServer):
    """Keeps what is committed to it; says no to `closed` repositories."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.made: list[dict[str, Any]] = []


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def say(self, code: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.path.startswith("/api/whoami"):
            self.say(
                200 if "hf_right" in self.headers.get("authorization", "") else 401, {"name": "me", "type": "user"}
            )
        else:
            self.say(200, {"id": "me/model", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            given = json.loads(body)
            self.server.made.append(given)
            self.say(200, {"url": f"http://127.0.0.1:{self.server.server_port}/me/{given['name']}", "id": "1"})
        elif "/closed/" in self.path:
            self.say(403, {"error": "you may not"})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.say(200, {"files": files})
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self.say(200, {"commitUrl": "http://127.0.0.1/me/model/commit/1", "commitOid": "1" * 40, "success": True})
        else:
            self.say(200, {})


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prompt-tuned adapter that overstates, and its data: overconfidence is found and repaired."""
    import csv

    folder = tmp_path_factory.mktemp("push")
    subject, corpus = P.planted("healthy")
    with torch.no_grad():
        subject.head_layer().weight.mul_(6.0)
    (folder / "prompt").mkdir()
    save_tuned(subject, folder / "prompt")
    atomic.write_json(folder / "prompt" / CARD, {"classes": list(corpus.classes), "max_length": 32})
    with open(folder / "data.csv", "w", newline="") as f:
        w = csv.writer(f)
        w.writerow(["text", "label", "part"])
        w.writerows(zip(corpus.text, [corpus.classes[y] for y in corpus.label], corpus.split, strict=True))
    return folder


def run(hub: Hub, sick: Path, out: Path, repo: str, *, token: str = "hf_right", more: tuple[str, ...] = ()) -> Any:
    """In a process of its own: huggingface_hub reads its endpoint once."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "OFFLINE" not in k} | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_TOKEN": token, "HF_HOME": str(out.parent / "home"),
        "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    words = [
        "check", str(P._base()), "--adapter", str(sick / "prompt"), "--data", str(sick / "data.csv"), "--split", "part",
        "--fault", "overconfidence", "--set", "overconfidence.resamples=50", "-o", str(out), "--push-to-hub", repo,
    ]  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "trueup", *words, *more], env=env, capture_output=True, text=True, check=False
    )


def test_the_adapter_arrives_whole(hub: Hub, sick: Path, tmp_path: Path) -> None:
    said = run(hub, sick, tmp_path / "out", "me/model")
    assert said.returncode in (0, 1), said.stderr
    assert "Pushed: overconfidence to" in said.stdout
    assert hub.made[-1]["name"] == "model"
    saved = tmp_path / "out" / "overconfidence"
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", CARD} <= set(hub.files)
    assert hub.files["adapter_model.safetensors"] == (saved / "adapter_model.safetensors").read_bytes()
    assert b"## What was measured" in hub.files["README.md"]
    # Where things lie on this machine is nobody else's business.
    base, card = str(P._base()), json.loads(hub.files[CARD])
    assert base in (saved / "README.md").read_text(), "the control"
    assert not [n for n, c in hub.files.items() if base.encode() in c or str(sick).encode() in c]
    assert (card["adapter"], card["base"]) == ("prompt", P._base().name)
    assert f"To be published in me/model: README.md ({len(hub.files['README.md']):,} bytes), " in said.stdout


@pytest.mark.parametrize(
    ("repo", "token", "sentence"),
    [("no good name/x/y", "hf_right", "cannot be a repository's name"), ("model", "hf_right", "give owner/name"),
     ("me/model", "hf_wrong", "could not be pushed to")],
)  # fmt: skip
def test_refused_before_anything_is_computed(
    hub: Hub, sick: Path, tmp_path: Path, repo: str, token: str, sentence: str
) -> None:
    said = run(hub, sick, tmp_path / "out", repo, token=token)
    assert said.returncode == 2
    assert sentence in said.stderr
    assert "Traceback" not in said.stderr
    assert not (tmp_path / "out").exists()


def test_what_the_hub_refuses_is_still_here(hub: Hub, sick: Path, tmp_path: Path) -> None:
    said = run(hub, sick, tmp_path / "out", "me/closed")
    assert said.returncode == 2
    assert "hf upload me/closed" in said.stderr
    assert "Traceback" not in said.stderr
    assert (tmp_path / "out" / "overconfidence" / "adapter_model.safetensors").is_file()
