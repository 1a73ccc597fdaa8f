"""A guard for a model in use: label, confidence, whether to answer, and an alarm for texts that differ from the calibration texts.

```python
guard = trueup.Guard.read("out", risk=0.05)         # of a finished check; imports no torch
said = guard(logits, features)                      # (n, C) and (n, d), as the model gives them
said.label, said.confidence, said.answered, said.unusual
if guard.drift.alarm: ...
```
"""

from __future__ import annotations

import json
import threading
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from trueup.errors import BadInput, check_within, listing
from trueup.given import checked
from trueup.measure.confidence_scores import Calibrated, score_from_json, score_to_json
from trueup.measure.departure import Gaussian, drifted, gaussian, p_values
from trueup.store.inputs import near

FILE = "guard.npz"
"""The file that a repair of overconfidence keeps for a guard, next to its adapter."""
WINDOW = 100
"""Texts of one test for drift."""
ALARM = 0.001
"""Probability of a false alarm of one test for drift."""
UNUSUAL = 0.01
"""Share of texts from the distribution of the calibration texts that are called unusual. With m < 99 of these it is 1 / (m + 1):
the texts that are farther away than all of them."""
OFF = 0.05
"""The largest difference of logits from those that the features give, relative to the largest: half precision rounds that much."""


@dataclass(frozen=True)
class Drift:
    """The result of the last test for drift. There is one test after every 100 texts, on these texts.

    Attributes:
        p: the probability that texts from the distribution of the calibration texts differ from them as much as these do. 1 before
            the first test.
        tests, alarms: the number of tests, and how many of them raised an alarm. alarm: True if the last test did.
    """

    p: float = 1.0
    tests: int = 0
    alarms: int = 0
    alarm: bool = False


@dataclass(frozen=True, eq=False)
class Guarded:
    """The result of a guard for n texts.

    Attributes:
        label: n class names. confidence: (n,) the probability that the label is right.
        answered: (n,) True if the confidence reaches the certified threshold.
        p: (n,) the probability that a text from the distribution of the calibration texts is as far from them as this text. 1
            without features.
        unusual: (n,) True if p is at most 0.01, or is the smallest possible p if there are too few calibration texts for 0.01. The
            certified guarantee does not cover such a text.
        drift: the last test for drift.
    """

    label: list[str]
    confidence: np.ndarray
    answered: np.ndarray
    p: np.ndarray
    unusual: np.ndarray
    drift: Drift


@dataclass(eq=False)
class Guard:
    """A certified threshold, a confidence and an alarm for a model in use. `Guard.read` makes it. Threads can share one.

    Attributes:
        classes: C class names. score: computes the confidence from K logits.
        weight, bias: (K, d) and (K,) the last layer, with the rows of the classes first. The guard uses it to detect logits of
            another model, and to compute the other K - C logits if only those of the classes are given.
        seen: the distribution of the features of some calibration texts. distances: (m,) the distances of other calibration texts
            from it, sorted; one text of each cluster.
        threshold: the confidence from which on the guard answers. risk: the certified share of errors among the answered texts.
        drift: the last test for drift.
    """

    classes: tuple[str, ...]
    score: Calibrated
    weight: np.ndarray
    bias: np.ndarray
    seen: Gaussian
    distances: np.ndarray
    threshold: float
    risk: float
    drift: Drift = field(default_factory=Drift, init=False)
    _waiting: list[float] = field(default_factory=list, init=False, repr=False)
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False)

    @staticmethod
    @checked
    def read(folder: str | Path, *, risk: float | None = None) -> Guard:
        """Read the guard from the folder of a finished check, of its repair of overconfidence, or of an export of that repair.

        Args:
            risk: the share of errors among the answered texts, one of those that were certified. None: the smallest of them.

        Raises:
            BadInput: there is no repair of overconfidence, the file is damaged, or nothing was certified at `risk`.
        """
        folder = Path(folder)
        file = next((f for f in (folder / FILE, folder / "overconfidence" / FILE) if f.is_file()), None)
        if file is None:
            raise BadInput(_absent(folder))
        try:
            with np.load(file, allow_pickle=False) as stored:
                settings, arrays = (
                    json.loads(str(stored["about"])),
                    {k: stored[k] for k in stored.files if k != "about"},
                )
            certified = {float(r["risk"]): r["threshold"] for r in settings["abstention"]}
            parts = (tuple(map(str, settings["classes"])), score_from_json(settings["score"]), Gaussian.of(arrays))
            weight, bias, distances = (arrays[k].astype(np.float64) for k in ("weight", "bias", "distances"))
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as e:
            raise BadInput(
                f"'{file}' is damaged ({type(e).__name__}: {e}). Run its check again, or copy the file again."
            ) from e
        by_risk = {r: float(t) for r, t in certified.items() if t is not None}
        if not by_risk:
            raise BadInput(
                f"No confidence was certified for any of the shares of errors {listing(certified)} in '{file.parent}', so a guard "
                "would never answer. Give the check more calibration texts, or a better model."
            )
        risk = min(by_risk) if risk is None else risk
        if risk not in by_risk:
            raise BadInput(
                f"Nothing was certified at a share of errors of {risk:g}; it was at {listing(sorted(by_risk))}. Give one of these."
            )
        return Guard(parts[0], parts[1], weight, bias, parts[2], distances, by_risk[risk], risk)

    def __call__(self, logits: ArrayLike, features: ArrayLike | None = None) -> Guarded:
        """Judge n texts, and add them to the test for drift.

        Args:
            logits: (n, C) logits of the classes, or (n, K) with the other logits that the confidence reads; (C,) for one text.
            features: (n, d) the inputs of the last layer. With None, no text is judged as unusual, and there is no test for drift.

        Raises:
            BadInput: another number of classes or features than the guarded model has, NaN, or logits that are not those of the
                guarded model for these features.
        """
        z = np.atleast_2d(np.asarray(logits, dtype=np.float64))
        x = None if features is None else np.atleast_2d(np.asarray(features, dtype=np.float64))
        c, k = len(self.classes), len(self.weight)
        self._fits(z, x, c, k)
        if x is not None:
            z = self._whole(z, x)
        class_logits = z[:, :c]
        p = np.ones(len(z)) if x is None else p_values(distance := self.seen.distance(x), self.distances)
        confidence = self.score(z)
        if x is not None:
            self._count(distance)  # pyright: ignore[reportPossiblyUnboundVariable]
        return Guarded(
            [self.classes[i] for i in class_logits.argmax(axis=1)],
            confidence,
            confidence >= self.threshold,
            p,
            p <= max(UNUSUAL, 1 / (1 + len(self.distances))),
            self.drift,
        )

    def _fits(self, z: np.ndarray, x: np.ndarray | None, c: int, k: int) -> None:
        if z.ndim != 2 or z.shape[1] not in (c, k):
            raise BadInput(
                f"The logits have {z.shape[-1]} columns, and the guarded model has {c} classes: {listing(self.classes)}. Give the "
                "logits of that model, before any softmax."
            )
        if x is None and z.shape[1] < k:
            raise BadInput(
                f"The confidence reads {k - c} more numbers than the {c} logits, and takes them from the features. Give the "
                "features, or all of the repaired model's logits."
            )
        if x is not None and x.shape != (len(z), self.weight.shape[1]):
            raise BadInput(
                f"The features are {x.shape}, and for these logits they would be {(len(z), self.weight.shape[1])}: what the last "
                "layer of the guarded model reads, one row for each text."
            )
        if not np.isfinite(z).all() or (x is not None and not np.isfinite(x).all()):
            raise BadInput(
                "Logits or features are NaN or infinite, so the model answered nothing. Check its weights and its type."
            )

    def _whole(self, z: np.ndarray, x: np.ndarray) -> np.ndarray:
        """All K logits: missing ones are computed from the features. Raises BadInput for the logits of another model."""
        recomputed = x @ self.weight.T + self.bias
        gap, size = (
            float(np.abs(recomputed[:, : z.shape[1]] - z).max(initial=0.0)),
            float(np.abs(recomputed).max(initial=1.0)),
        )
        if gap > OFF * size:
            raise BadInput(
                f"The logits are not what the guarded model makes of these features: they are off by {gap:.3g}. They are those of "
                "another model, in another order, or after a softmax. Give logits and features of one pass of the repaired model."
            )
        return np.concatenate([z, recomputed[:, z.shape[1] :]], axis=1)

    def _count(self, distance: np.ndarray) -> None:
        with self._lock:
            self._waiting += distance.tolist()
            while len(self._waiting) >= WINDOW:
                block, self._waiting = np.array(self._waiting[:WINDOW]), self._waiting[WINDOW:]
                p = drifted(block, self.distances)
                alarm = p <= ALARM
                self.drift = Drift(p, self.drift.tests + 1, self.drift.alarms + alarm, alarm)


def _absent(folder: Path) -> str:
    """Why there is no guard in a folder, as sentences."""
    if not folder.is_dir():
        return f"There is no folder '{folder}'.{near(folder, '*/findings.json')} Give the one that `trueup check ... -o` wrote."
    repair = next((f for f in (folder / "overconfidence", folder) if (f / "adapter_config.json").is_file()), None)
    if repair is not None:
        return (
            f"'{repair}' holds no {FILE}. A repair of overconfidence brings one, unless it was kept without a gain on the test "
            "examples or its calibration texts are too few. Give the folder of another check."
        )
    try:
        comparisons = json.loads((folder / "findings.json").read_text(encoding="utf-8"))["comparisons"]
        reason = next(
            (f" Its report says: {c['remedy']}" for c in comparisons if c["before"]["fault"] == "overconfidence"), ""
        )
    except (OSError, ValueError, KeyError, TypeError):
        reason = f" {step}" if (step := check_within(folder, "")) else ""
    return f"'{folder}' holds no repair of overconfidence, from which a guard is read.{reason}"


def arrays_of(
    classes: tuple[str, ...], score: Calibrated, abstention: Any, weight: np.ndarray, bias: np.ndarray, learnt: np.ndarray,
    held: np.ndarray,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The arrays of `FILE`. `learnt` (n, d) are the features that define the distribution of the calibration texts.

    `held` (m, d) are features of other calibration texts, one of each cluster; their distances are the reference for new texts.
    """
    gaussian_arrays = {k: v.astype(np.float32) for k, v in gaussian(learnt).arrays().items()}
    settings = json.dumps(
        {"classes": list(classes), "score": score_to_json(score), "abstention": abstention}, default=float
    )
    distances = np.sort(Gaussian.of(gaussian_arrays).distance(held))
    return gaussian_arrays | {"about": np.array(settings), "weight": weight, "bias": bias, "distances": distances}
