"""A classifier that says when to trust it, behind HTTP: what `trueup export out --as merged -o served` wrote, with its guard.

    pip install fastapi uvicorn
    trueup export out --as merged -o served
    SERVED=served uvicorn serve_fastapi:app --port 8000
    curl -s localhost:8000/classify -H 'Content-Type: application/json' -d '{"text": "what a lovely flight"}'

An answer has the label, the chance that it is right, whether that reaches the certified threshold, and whether the text is unlike
those that the threshold was certified on. `/health` says whether the last texts have drifted away from these.

`python serve_fastapi.py served --load 1000` puts the load on both this server and the bare model behind the same framework, on
loopback, and prints how long an answer takes.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from fastapi import FastAPI
from pydantic import BaseModel

import trueup


class Asked(BaseModel):
    """One text, or a pair of them."""

    text: str
    second: str | None = None


def application(folder: Path, *, guarded: bool = True) -> FastAPI:
    """The server of an exported repair; without `guarded` the bare model's, to compare."""
    spec = importlib.util.spec_from_file_location("predict", folder / "predict.py")
    model = importlib.util.module_from_spec(spec)  # loads the model
    spec.loader.exec_module(model)
    app = FastAPI()
    if not guarded:

        @app.post("/classify")
        def classify_bare(asked: Asked) -> dict[str, object]:
            logits, _ = model.read(asked.text, asked.second)
            return {"label": model.CLASSES[int(logits[0, : len(model.CLASSES)].argmax())]}

        return app
    guard = trueup.Guard.read(folder)

    @app.post("/classify")
    def classify(asked: Asked) -> dict[str, object]:
        logits, features = model.read(asked.text, asked.second)
        said = guard(logits.numpy(), features.numpy())
        return {
            "label": said.label[0], "confidence": float(said.confidence[0]), "answered": bool(said.answered[0]),
            "unusual": bool(said.unusual[0]),
        }  # fmt: skip

    @app.get("/health")
    def health() -> dict[str, object]:
        return {
            "answers at": guard.threshold, "share of errors": guard.risk, "tests for drift": guard.drift.tests,
            "alarms": guard.drift.alarms, "drifted": guard.drift.alarm,
        }  # fmt: skip

    return app


if "SERVED" in os.environ:
    app = application(Path(os.environ["SERVED"]))


def load(folder: Path, texts: list[str], requests: int, workers: int = 4) -> None:
    """Both servers under `requests` requests each, from `workers` at once: milliseconds of an answer."""
    import http.client
    import json
    import threading
    import time
    from concurrent.futures import ThreadPoolExecutor

    import uvicorn

    ports = {"bare model": (8731, False), "with its guard": (8732, True)}
    for port, guarded in ports.values():
        server = uvicorn.Server(uvicorn.Config(application(folder, guarded=guarded), port=port, log_level="error"))
        threading.Thread(target=server.run, daemon=True).start()
        while not server.started:
            time.sleep(0.05)
    here = threading.local()

    def ask(port: int, text: str) -> float:
        if port not in vars(here):
            vars(here)[port] = http.client.HTTPConnection("127.0.0.1", port)
        to, begun = vars(here)[port], time.perf_counter()
        to.request("POST", "/classify", json.dumps({"text": text}), {"Content-Type": "application/json"})
        answer = to.getresponse()
        answer.read()
        if answer.status != 200:
            raise SystemExit(f"The server on port {port} answered {answer.status}.")
        return 1000 * (time.perf_counter() - begun)

    def both(text: str) -> list[float]:  # one after the other, so that both meet the same load
        return [ask(port, text) for port, _ in ports.values()]

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(both, texts * 10))  # warm
        took = list(pool.map(both, (texts[i % len(texts)] for i in range(requests))))
    for name, times in zip(ports, zip(*took, strict=True), strict=True):
        times = sorted(times)
        print(f"{name}: median {times[requests // 2]:.1f} ms, 95% {times[int(0.95 * requests)]:.1f} ms")
    to = http.client.HTTPConnection("127.0.0.1", ports["with its guard"][0])
    to.request("GET", "/health")
    print(to.getresponse().read().decode())


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    some = [
        "what a lovely flight",
        "my bag is lost again",
        "boarding at gate 12",
        "three hours late, and no word of why",
    ]
    load(Path(sys.argv[1]), some, int(sys.argv[sys.argv.index("--load") + 1]) if "--load" in sys.argv else 1000)
