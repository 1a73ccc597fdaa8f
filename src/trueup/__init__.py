"""trueup: find and repair faults of adapted language models, and show on held-out data that a repair helps.

```python
import trueup

report = trueup.check(peft_model, frame, ["overconfidence"], tokenizer=tokenizer, text="review", label="stars")
```

The model is an object in memory or a name. The data are a data frame, a data set, a list of texts and labels, or a file. The same
in parts:

```python
subject = trueup.load("embedded:minilm", adapter="my-lora")
corpus = trueup.read("reviews.csv", text="review", label="stars")
fault = trueup.Overconfidence().prepared(subject, corpus, seed=0)
finding = fault.audit(subject, corpus.part("test"), seed=0)
```

Every repair is a plain PEFT adapter: what `remedy.save(folder)` writes loads with ``PeftModel.from_pretrained``, without trueup.
Importing this package does not import torch. Each name is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from trueup.changes import Change, compare
    from trueup.corpus.corpus import Corpus
    from trueup.corpus.read import read
    from trueup.errors import BadInput, TrueupError, Unavailable, Unsupported
    from trueup.estimator import ConfidenceClassifier, confidence_score
    from trueup.exporting import Exported, export
    from trueup.faults.confounding import Confounding
    from trueup.faults.confounding.leads import Lead, Scouted
    from trueup.faults.copying import Copying
    from trueup.faults.fault import Comparison, Fault, Finding, NoRemedy, Remedy
    from trueup.faults.overconfidence import Overconfidence
    from trueup.faults.rigidity import Rigidity
    from trueup.fetching import fetch
    from trueup.guard import Drift, Guard, Guarded
    from trueup.job import Job, faults_of
    from trueup.report.bundle import Report
    from trueup.run.engine import Processes, Ray
    from trueup.scouting import run_scout, scout
    from trueup.story import audit, check, repair, run_job
    from trueup.subject.load import load
    from trueup.subject.subject import Subject
    from trueup.sweeps.run import Swept, sweep
    from trueup.tuning import TuneJob, tune

_WHERE = {
    "load": "subject.load", "read": "corpus.read", "check": "story", "audit": "story", "repair": "story",
    "run_job": "story", "Job": "job", "faults_of": "job",
    "sweep": "sweeps.run", "Swept": "sweeps.run", "Processes": "run.engine", "Ray": "run.engine",
    "scout": "scouting", "run_scout": "scouting", "Scouted": "faults.confounding.leads", "Lead": "faults.confounding.leads",
    "compare": "changes", "Change": "changes", "fetch": "fetching",
    "export": "exporting", "Exported": "exporting", "Guard": "guard", "Guarded": "guard", "Drift": "guard",
    "tune": "tuning", "TuneJob": "tuning", "ConfidenceClassifier": "estimator",
    "confidence_score": "estimator",
    "Subject": "subject.subject", "Corpus": "corpus.corpus", "Fault": "faults.fault", "Finding": "faults.fault",
    "Remedy": "faults.fault", "NoRemedy": "faults.fault", "Comparison": "faults.fault", "Report": "report.bundle",
    "Confounding": "faults.confounding", "Copying": "faults.copying", "Overconfidence": "faults.overconfidence",
    "Rigidity": "faults.rigidity",
    "TrueupError": "errors",
    "BadInput": "errors", "Unsupported": "errors", "Unavailable": "errors",
}  # fmt: skip

__all__ = [
    "BadInput", "Change",
    "Comparison", "ConfidenceClassifier", "Confounding", "Copying", "Corpus", "Drift", "Exported", "Fault", "Finding", "Guard",
    "Guarded", "Job", "Lead", "NoRemedy",
    "Overconfidence", "Processes", "Ray", "Remedy", "Report", "Rigidity", "Scouted", "Subject", "Swept",
    "TrueupError", "TuneJob", "Unavailable", "Unsupported", "audit", "check", "compare", "confidence_score",
    "export", "faults_of", "fetch", "load", "read", "repair", "run_job", "run_scout", "scout", "sweep", "tune",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'trueup' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(f"trueup.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
