"""What could repair a confounded classifier: hybrid prompt arithmetic, its rivals, and repairs of the last layer.

Every family is tried on the same footing: it learns from the ``train`` and ``calibration`` splits, says what each of its
variants predicts on ``calibration`` (out of fold where it learnt from it), and a rule picks one variant.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor

from trueup.corpus.corpus import Corpus
from trueup.faults.confounding import maths
from trueup.faults.confounding.maths import Basis, PromptVector
from trueup.faults.confounding.mixes import Mixes, columns, judges
from trueup.measure import lean, shift
from trueup.measure.folds import folds
from trueup.run.heads import fit_heads, fit_sparse, warm_start
from trueup.run.objective import GroupDRO, Objective, Resampled, Weighted
from trueup.run.predict import Outputs, predict
from trueup.run.tangent import Tangent, expand
from trueup.run.train import Training, train
from trueup.subject import adapter as files
from trueup.subject.new_adapter import beside, prompt_embeddings, recipe_of
from trueup.subject.subject import Head, Subject
from trueup.subject.swap_adapter import wear, with_prompt


@dataclass(frozen=True)
class Knobs:
    """What prompt arithmetic leaves open: HyPA's values are not known.

    Attributes:
        l_y: coefficient of the task's own vector: P = P0 + l_Y tau_Y - l_Z tau_Z.
        l_z: tried coefficients of the confounder. The first is 0, and 1 is among them.
        ridge: of every tangent fit, in units of the mean squared gradient. Larger ones shorten tau_Z and leave more of z in place.
        at_start: prompts are linearised at the one that training started from, P0, where it is kept; else at the tuned one.
    """

    l_y: float = 1.0
    l_z: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
    ridge: float = 1e-3
    at_start: bool = True


LENGTHS, STEPS = (0.1, 0.25, 0.5), 6
"""Tried lengths and largest number of the re-linearised steps."""
STRENGTHS = (1e-3, 1e-2, 1e-1)
"""scikit-learn's C of a last layer fitted to standardised features."""
SPARSE, SUBSAMPLES = (1.0, 0.3, 0.1, 0.03), 10
"""Of DFR as published: scikit-learn's C under an L1 penalty, and how many balanced subsamples are averaged."""
DRO_STEPS = (0.001, 0.01, 0.1)
"""Tried steps of GroupDRO's group weights; 0.01 is the authors' default."""
KEPT = 0.95
"""Share of the AUPRC as the data are that the control rule keeps (task arithmetic, arXiv 2212.04089)."""
FOLDS = 5
CONTROL = "control"
"""The source of a family that is tried to show what must not help."""


@dataclass(frozen=True, eq=False)
class Change:
    """What a repair changes: the prompt (m, w), the last layer, or the whole adapter as PEFT's files hold it."""

    prompt: NDArray | None = None
    head: Head | None = None
    adapter: tuple[dict[str, Any], dict[str, Tensor]] | None = None

    def on(self, subject: Subject) -> Subject:
        """Another subject with the change; `subject` and its live model stay as they are."""
        if self.prompt is not None:
            subject = wear(subject, *with_prompt(subject, torch.as_tensor(self.prompt, dtype=torch.float32)))
        if self.adapter is not None:
            subject = wear(subject, *self.adapter)
        if self.head is not None:
            here = Head(self.head.weight.to(subject.device), self.head.bias.to(subject.device))
            subject = replace(subject, head=here)
        return subject


@dataclass(frozen=True, eq=False)
class Variant:
    """One setting of a family.

    Attributes:
        name: the setting, for the table. held: (n, C) class probabilities on the calibration examples.
        predict: corpus -> (n, C). change: what to save; None for a function that no adapter computes.
    """

    name: str
    held: NDArray
    predict: Callable[[Corpus], NDArray]
    change: Change | None


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the families learn from.

    Attributes:
        train, held: corpora of the ``train`` and ``calibration`` splits; train_group, held_group their groups.
        sampled: rows of `train` on which tangent prompts are fitted: each costs a backward pass. All else learns from all of it.
        mixes: the tables of the calibration examples. code: (G, C) what the shortcut alone says of each group.
        choosing: (n,) bool: the calibration examples that choose settings and families, by clusters. The others judge the one
            that was chosen.
        prompt, start: the subject's prompt and the one it started from; None where there is none.
        training, lr: how adapters are trained again.
    """

    subject: Subject
    train: Corpus
    held: Corpus
    train_group: NDArray
    held_group: NDArray
    mixes: Mixes
    code: NDArray
    choosing: NDArray
    prompt: NDArray | None
    start: NDArray | None
    training: Training
    lr: float
    seed: int
    sampled: NDArray
    knobs: Knobs = Knobs()
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        return len(self.subject.classes)

    def balance(self, label: NDArray, group: NDArray) -> NDArray:
        """(n,) weights under which label and group are independent, with the margins of the calibration examples."""
        return shift.reweighted(np.searchsorted(self.there, label), group, self.mixes.balanced)

    @property
    def there(self) -> NDArray[np.int64]:
        """The classes that the calibration examples have. Others of the head take no part: their precision does not exist."""
        return np.unique(self.held.label)

    def columns(self, probability: NDArray, rows: NDArray) -> dict[str, NDArray]:
        """What `mixes.statistics` asks for, of some calibration examples that get these class probabilities (n, C)."""
        return self.columns_of(probability[rows], self.held.label[rows], self.held_group[rows], self.held.cluster[rows])

    def columns_of(self, probability: NDArray, label: NDArray, group: NDArray, cluster: NDArray) -> dict[str, NDArray]:
        """The same of any examples (n,) whose classes are `there`."""
        logits = np.log(np.maximum(probability[:, self.there], 1e-300))
        return columns(logits, np.searchsorted(self.there, label), group) | {
            "cluster": cluster, "judges": judges(cluster, self.seed),
        }  # fmt: skip

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once."""
        if key not in self.memory:
            self.memory[key] = make()
        return self.memory[key]

    def tangent(self, at: NDArray) -> tuple[Tangent, Basis]:
        """The training examples to first order at a prompt, and the basis of their gradients."""
        t = expand(self.subject, self.train.take(self.sampled), at)
        return t, maths.basis(t.rows, len(t), t.gradient.shape[1], t.at.size)

    @property
    def anchor(self) -> NDArray:
        """Where prompts are linearised (`Knobs.at_start`)."""
        anchor = self.start if self.start is not None and self.knobs.at_start else self.prompt
        assert anchor is not None
        return anchor

    @property
    def task(self) -> PromptVector:
        """P0 + l_Y tau_Y, with tau_Y = P_Y - P0: the subject's own prompt where l_Y is 1, as without a start."""
        assert self.prompt is not None
        if self.start is None or self.knobs.l_y == 1:
            return PromptVector(self.prompt)
        return PromptVector(self.start) + self.knobs.l_y * PromptVector.between(self.start, self.prompt)

    def confounder(self, at: NDArray, *, balanced: bool, target: NDArray | None = None) -> PromptVector:
        """The tangent prompt at `at`, on the training examples: of the shortcut, or of other classes `target` (n,)."""
        at_anchor = at is self.anchor
        # The anchors serve several families; the steps of `Relinearised` are passed once.
        t, b = self.once("tangent at the anchor", lambda: self.tangent(at)) if at_anchor else self.tangent(at)
        group, label = self.train_group[self.sampled], self.train.label[self.sampled]
        goal = self.code[group] if target is None else target[self.sampled]
        weight = self.balance(label, group) if balanced else None
        change, _ = maths.tangent_fit(b, t.margins, goal, self.knobs.ridge, weight=weight)
        return PromptVector(change.reshape(t.at.shape))

    @property
    def coded(self) -> Corpus:
        """The training examples under labels that the shortcut alone would give: drawn where it leaves several open."""
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, 8]))
        below = self.code[self.train_group].cumsum(axis=1) < 1 - rng.random((len(self.train), 1))
        return replace(self.train, label=below[:, :-1].sum(axis=1))

    @property
    def tau_z(self) -> PromptVector:
        """The tangent confounder prompt at the anchor, as published: examples count equally."""
        return self.once("tau_Z", lambda: self.confounder(self.anchor, balanced=False))

    @property
    def ordinary(self) -> PromptVector:
        """P_Z - P0 of an ordinary confounder prompt, trained from P0 under the subject's frozen last layer."""
        return self.once("ordinary tau_Z", self._ordinary)

    def _ordinary(self) -> PromptVector:
        assert self.start is not None
        new = again(self)
        train_only(self, new, SOFT, self.coded)
        return PromptVector.between(self.start, _prompt_of(new))

    @property
    def own(self) -> Outputs:
        """What the subject as it is says about the calibration examples."""
        return self.once("own", lambda: predict(self.subject, self.held))

    def variant(self, name: str, change: Change) -> Variant:
        """A variant that an adapter can carry."""

        def run(corpus: Corpus) -> NDArray:
            return predict(change.on(self.subject), corpus).probability

        return Variant(name, run(self.held), run, change)


class Family(ABC):
    """A way to repair, with its variants. `costly` ones train an adapter again."""

    key: str
    title: str
    source: str
    costly: bool = False

    @abstractmethod
    def possible(self, e: Evidence) -> bool:
        """Whether the family goes with this subject."""

    @abstractmethod
    def variants(self, e: Evidence) -> list[Variant]:
        """Every setting tried."""

    def choose(self, e: Evidence, variants: Sequence[Variant]) -> int:
        """The variant with the best AUPRC over all mixes of the calibration examples."""
        return int(np.argmax([score(e, v.held, "level") for v in variants]))

    def flipped(self, e: Evidence, chosen: int) -> Variant | None:
        """The control of what was chosen, with the polarity of the shortcut turned round: it must not help as well."""
        return None


def score(e: Evidence, probability: NDArray, what: str) -> float:
    """AUPRC of the calibration examples that choose: ``here``, ``balanced``, or ``level``, the mean over all mixes."""
    held = e.columns(probability, e.choosing)
    ranked, label, group = lean.margins(held["score"]), held["label"], held["group"]
    if what == "here":
        return shift.auprc(ranked, label)
    tables = e.mixes.tables if what == "level" else (e.mixes.balanced,)
    return float(np.mean([shift.auprc_at(ranked, label, group, t) for t in tables]))


class Prompted(Family):
    """A family that goes with a soft prompt."""

    def possible(self, e: Evidence) -> bool:
        return e.prompt is not None


class Arithmetic(Prompted):
    """A family with one variant for each coefficient of the confounder.

    `rule` says how l_Z is chosen without a look at shifted data (method file): ``one`` fixes it, ``balanced`` takes the best
    on calibration examples weighted to no coupling, ``control`` the largest that keeps 95% of the AUPRC as the data are.
    """

    rule: str = "balanced"

    @abstractmethod
    def at(self, e: Evidence, coefficient: float) -> Variant:
        """The variant at l_Z = `coefficient`."""

    def variants(self, e: Evidence) -> list[Variant]:
        return [self.at(e, c) for c in e.knobs.l_z]

    def choose(self, e: Evidence, variants: Sequence[Variant]) -> int:
        if self.rule == "one":
            return e.knobs.l_z.index(1.0)
        if self.rule == "balanced":
            return int(np.argmax([score(e, v.held, "balanced") for v in variants]))
        least = KEPT * score(e, variants[0].held, "here")
        return max(i for i, v in enumerate(variants) if i == 0 or score(e, v.held, "here") >= least)

    def flipped(self, e: Evidence, chosen: int) -> Variant | None:
        return self.at(e, -e.knobs.l_z[chosen]) if e.knobs.l_z[chosen] else None


def _prompted(e: Evidence, start: PromptVector, tau: PromptVector, coefficient: float) -> Variant:
    """The prompt `start` - l_Z `tau`."""
    return e.variant(f"l_Z = {coefficient:g}", Change(prompt=(start - coefficient * tau).value))


@dataclass(frozen=True)
class Hybrid(Arithmetic):
    """P = P0 + l_Y tau_Y - l_Z tau_Z with tau_Z the tangent confounder prompt at P0 (weight form; a reconstruction)."""

    rule: str
    key: str = ""
    title: str = ""
    source: str = "HyPA, reconstruction"

    def at(self, e: Evidence, coefficient: float) -> Variant:
        # Three rules choose among the same prompts.
        return e.once(f"hybrid {coefficient}", lambda: _prompted(e, e.task, e.tau_z, coefficient))


@dataclass(frozen=True)
class Flipped(Prompted):
    """The control with the polarity of the shortcut turned round, P_Y + tau_Z: it must not help."""

    key: str = "flipped"
    title: str = "control: hybrid arithmetic with the polarity flipped"
    source: str = CONTROL

    def variants(self, e: Evidence) -> list[Variant]:
        return [replace(_prompted(e, e.task, e.tau_z, -1.0), change=None)]


@dataclass(frozen=True)
class FunctionForm(Arithmetic):
    """f(x; P_Y) - l_Z J f(x; P0)[tau_Z], the function that the weight form approximates. No adapter computes it."""

    key: str = "function"
    title: str = "hybrid arithmetic on the function"
    source: str = "HyPA, reconstruction"

    def at(self, e: Evidence, coefficient: float) -> Variant:
        return _linear(e, coefficient, e.anchor, -coefficient * e.tau_z, around_subject=True)


def _linear(e: Evidence, coefficient: float, anchor: NDArray, tau: PromptVector, *, around_subject: bool) -> Variant:
    """Logits of the subject, or of the model at the anchor, plus J f(x; anchor)[tau]."""

    def run(corpus: Corpus) -> NDArray:
        # All coefficients share these, and so do families that linearise at one anchor.
        where = "start" if anchor is e.start else "tuned"
        t = e.once(f"expand {where} {corpus.fingerprint}", lambda: expand(e.subject, corpus, anchor))
        logits = t.logits
        if around_subject:
            own = e.once(f"logits {corpus.fingerprint}", lambda: predict(e.subject, corpus).logits)
            logits = own[:, : e.classes]
        moved = np.concatenate([np.zeros((len(t), 1)), t.moved(tau.value)], axis=1)
        return softmax(logits + moved, axis=1)

    return Variant(f"l_Z = {coefficient:g}", run(e.held), run, None)


class Started(Arithmetic):
    """Arithmetic that needs the prompt which training started from, P0."""

    def possible(self, e: Evidence) -> bool:
        return e.start is not None


@dataclass(frozen=True)
class Linearised(Started):
    """f(x; P0) + J f(x; P0)[l_Y tau_Y - l_Z (P_Z - P0)]: ordinary prompts, linearised after the fact (arXiv 2305.12827)."""

    key: str = "linearised"
    title: str = "post-hoc linearisation"
    source: str = "arXiv 2305.12827"
    costly: bool = True

    def possible(self, e: Evidence) -> bool:
        return super().possible(e) and e.subject.source.peft_type == "PROMPT_TUNING"

    def at(self, e: Evidence, coefficient: float) -> Variant:
        assert e.start is not None
        tau = e.task - PromptVector(e.start) - coefficient * e.ordinary
        return _linear(e, coefficient, e.start, tau, around_subject=False)


@dataclass(frozen=True)
class TangentBoth(Started):
    """P = P0 + l_Y tau_Y - l_Z tau_Z, both tangent: the label's prompt is linearised as well."""

    key: str = "tangent-tangent"
    title: str = "tangent minus tangent"
    source: str = "tangent task arithmetic"

    def at(self, e: Evidence, coefficient: float) -> Variant:
        assert e.start is not None
        return _prompted(e, PromptVector(e.start) + tangent_task(e), _tangent_z(e), coefficient)


@dataclass(frozen=True)
class TangentInside(Started):
    """f(x; P0) + J f(x; P0)[l_Y tau_Y - l_Z tau_Z], both tangent: judged inside the linearised model, where they were fitted."""

    key: str = "tangent-function"
    title: str = "tangent minus tangent, inside the linearised model"
    source: str = "arXiv 2305.12827"

    def at(self, e: Evidence, coefficient: float) -> Variant:
        assert e.start is not None
        return _linear(e, coefficient, e.start, tangent_task(e) - coefficient * _tangent_z(e), around_subject=False)


def tangent_task(e: Evidence) -> PromptVector:
    """l_Y tau_Y with tau_Y the tangent prompt of the labels at P0."""
    assert e.start is not None
    start = e.start
    return e.knobs.l_y * e.once("tangent tau_Y", lambda: e.confounder(start, balanced=False, target=e.train.label))


def _tangent_z(e: Evidence) -> PromptVector:
    """tau_Z at P0, wherever the hybrid linearises."""
    assert e.start is not None
    start = e.start
    return e.tau_z if e.anchor is start else e.once("tau_Z at P0", lambda: e.confounder(start, balanced=False))


@dataclass(frozen=True)
class Relinearised(Prompted):
    """Hybrid arithmetic in small steps, each linearised where the last one ended: P <- P - length * tau_Z(P). Ours.

    A confounder prompt is as long as the prompt itself, and the model is not linear so far out: subtracted in one piece
    it does a fraction of what its function form does. Each tangent prompt is fitted with label and group made independent
    by weights, so that it holds what tells the group and not what tells the label.
    """

    key: str = "relinearised"
    title: str = "hybrid arithmetic, re-linearised at each step"
    source: str = "trueup"

    def variants(self, e: Evidence) -> list[Variant]:
        return e.once("relinearised", lambda: self._steps(e))

    def _steps(self, e: Evidence) -> list[Variant]:
        assert e.prompt is not None
        at, found = e.prompt, [e.variant("0 steps", Change(prompt=e.prompt))]
        best = score(e, found[0].held, "level")
        for k in range(1, STEPS + 1):
            tau = e.confounder(at, balanced=True)
            # How far the linear picture holds differs by model and data, so the length is searched on calibration examples.
            tried = [e.variant(f"{k} steps, the last {c:g} long", Change(prompt=at - (c * tau).value)) for c in LENGTHS]
            levels = [score(e, v.held, "level") for v in tried]
            if max(levels) <= best:
                break
            best, found = max(levels), [*found, tried[int(np.argmax(levels))]]
            change = found[-1].change
            assert change is not None
            assert change.prompt is not None
            at = change.prompt
        return found


@dataclass(frozen=True)
class LastLayer(Family):
    """A last layer fitted again on features of train and calibration: `how` says on which and how.

    The back-door adjustment is its linear form: a layer fitted beside the groups, whose part in the logits is then held at its
    mean. For two classes it ranks as sum_z P(z) P(y | x, z) nearly does; what it says as a chance is an approximation.

    DFR as published (Kirichenko et al.) is fitted on calibration examples alone: under an L1 penalty, on subsamples that hold each
    (label, group) cell equally often, averaged; its strength by the accuracy of the worst cell. Ours weights them instead.

    With `after`, on those of the re-linearised prompt, so that prompt and last layer change together.
    """

    how: str
    key: str = ""
    title: str = ""
    source: str = ""
    after: bool = False

    def possible(self, e: Evidence) -> bool:
        # A prompt of a model that answers with words and a last layer are not one adapter.
        return bool(e.subject.anatomy.head) and (
            not self.after or (e.prompt is not None and e.subject.template is None)
        )

    def variants(self, e: Evidence) -> list[Variant]:
        prompt = None
        if self.after:
            steps = Relinearised()
            found = steps.variants(e)
            change = found[steps.choose(e, found)].change
            assert change is not None
            prompt = change.prompt
        x, z = self._features(e, "train", prompt), self._features(e, "held", prompt)
        y, g = (e.train.label, e.held.label), (e.train_group, e.held_group)
        cell = e.held.label * len(e.code) + e.held_group
        fold = folds(cell, FOLDS, seed=np.random.SeedSequence([e.seed, 6]), cluster=e.held.cluster)
        # Of the calibration examples each fold goes without its own, and the last fit has all.
        kept = np.arange(FOLDS + 1)[:, None] != fold
        found = []
        for name, fit in self._fits(e):
            held = np.empty((len(z), e.classes))
            *crossed, whole = fit(x, z, y[0], y[1], g[0], g[1], kept)
            for head, rest in zip(crossed, kept, strict=False):
                held[~rest] = _apply(head, z[~rest])
            change = Change(prompt=prompt, head=Head(*(torch.as_tensor(t, dtype=torch.float32) for t in whole)))

            def run(corpus: Corpus, change: Change = change) -> NDArray:
                return predict(change.on(e.subject), corpus).probability

            found.append(Variant(name, held, run, change))
        return found

    def choose(self, e: Evidence, variants: Sequence[Variant]) -> int:
        if self.how != "published":
            return super().choose(e, variants)
        cell = (e.held.label * len(e.code) + e.held_group)[e.choosing]
        right = [(v.held.argmax(axis=1) == e.held.label)[e.choosing] for v in variants]
        return int(np.argmax([min(r[cell == c].mean() for c in np.unique(cell)) for r in right]))

    def _features(self, e: Evidence, which: str, prompt: NDArray | None) -> NDArray:
        def make() -> NDArray:
            return predict(Change(prompt=prompt).on(e.subject), getattr(e, which)).features.astype(np.float64)

        return e.once(f"features {which}, {prompt is not None}", make)

    def _fits(self, e: Evidence) -> list[tuple[str, Callable[..., list[tuple[NDArray, NDArray]]]]]:
        """Settings, each with a function of features, labels and groups of train and calibration, and of which of the latter are
        kept (F, n): F heads."""
        biased = e.subject.template is None and e.subject.head_layer().bias is not None
        own = e.subject.own_head()

        def each(fit):
            return lambda x, z, yx, yz, gx, gz, kept: [fit(x, z[k], yx, yz[k], gx, gz[k]) for k in kept]

        def both_of(kept, x):
            return np.concatenate([np.ones((len(kept), len(x)), bool), kept], axis=1)

        def balanced(strength: float, both: bool):
            def fit(x, z, yx, yz, gx, gz, kept):
                weight = np.zeros(kept.shape)
                for f, k in enumerate(kept):
                    weight[f, k] = e.balance(yz[k], gz[k])
                features, label, rows = z, yz, kept
                if both:
                    features, label, rows = np.concatenate([x, z]), np.concatenate([yx, yz]), both_of(kept, x)
                    weight = np.concatenate([np.tile(e.balance(yx, gx), (len(kept), 1)), weight], axis=1)
                found = fit_heads(features, label, e.classes, rows, strength=strength, weight=weight, biased=biased)
                return [(w, b) for w, b, _ in found]

            return fit

        def published(x, z, yx, yz, gx, gz):
            """At each of `SPARSE`, on the same subsamples."""
            cell = yz * len(e.code) + gz
            rows = [np.flatnonzero(cell == c) for c in np.unique(cell)]
            least = min(map(len, rows))
            rng = np.random.default_rng(np.random.SeedSequence([e.seed, 14]))
            found = []
            for _ in range(SUBSAMPLES):
                some = np.concatenate([rng.permutation(r)[:least] for r in rows])
                found.append(fit_sparse(z[some], yz[some], e.classes, SPARSE[::-1], biased=biased)[::-1])
            return [tuple(np.mean(part, axis=0) for part in zip(*at, strict=True)) for at in zip(*found, strict=True)]

        def erased(x, z, yx, yz, gx, gz):
            """The own last layer, and one fitted anew at each of `STRENGTHS`, behind features without the group."""
            features, label, group = np.concatenate([x, z]), np.concatenate([yx, yz]), np.concatenate([gx, gz])
            weight = np.concatenate([e.balance(yx, gx), e.balance(yz, gz)])
            a, c = maths.leace(features, np.eye(int(group.max()) + 1)[group], weight=weight)
            shape = (len(STRENGTHS), len(features))
            anew = fit_heads(
                features @ a.T + c, label, e.classes, np.ones(shape, bool), strength=STRENGTHS,
                weight=np.broadcast_to(weight, shape), biased=biased,
            )  # fmt: skip
            before = own.weight.numpy().astype(np.float64), own.bias.numpy().astype(np.float64)
            heads = [maths.through(w, b, a, c) for w, b in (before, *(fit[:2] for fit in anew))]
            return heads if biased else [(w, np.zeros_like(b)) for w, b in heads]

        made: dict[bytes, list] = {}

        def one_of(several, i: int):
            def fit(x, z, yx, yz, gx, gz, kept):
                # What is erased is the same at every strength, and so are subsamples.
                if (key := kept.tobytes()) not in made:
                    made[key] = each(several)(x, z, yx, yz, gx, gz, kept)
                return [heads[i] for heads in made[key]]

            return fit

        def backdoor(strength: float):
            def fit(x, z, yx, yz, gx, gz, kept):
                features, label, group = np.concatenate([x, z]), np.concatenate([yx, yz]), np.concatenate([gx, gz])
                one_hot, rows = np.eye(int(group.max()) + 1)[group], both_of(kept, x)
                found = fit_heads(features, label, e.classes, rows, strength=strength, extra=one_hot, biased=biased)
                # sum_z P(z) P(y | x, z) is no linear layer; the logits' mean over P(z) is one.
                return [
                    (w, b + of_group @ one_hot[k].mean(axis=0) * biased)
                    for (w, b, of_group), k in zip(found, rows, strict=True)
                ]

            return fit

        if self.how == "dfr":
            return [
                (f"C = {s:g}, {'train and calibration' if both else 'calibration'}", balanced(s, both))
                for s in STRENGTHS for both in (True, False)
            ]  # fmt: skip
        if self.how == "published":
            return [(f"C = {s:g}", one_of(published, i)) for i, s in enumerate(SPARSE)]
        if self.how == "leace":
            names = ("own last layer", *(f"C = {s:g}" for s in STRENGTHS))
            return [(name, one_of(erased, i)) for i, name in enumerate(names)]
        return [(f"C = {s:g}", backdoor(s)) for s in STRENGTHS]


def _apply(head: tuple[NDArray, NDArray], x: NDArray) -> NDArray:
    return softmax(x @ head[0].T + head[1], axis=1)


@dataclass(frozen=True)
class Retrained(Family):
    """The same kind of adapter trained again from its start with another objective, on all training examples."""

    how: str
    key: str = ""
    title: str = ""
    source: str = ""
    costly: bool = True

    def possible(self, e: Evidence) -> bool:
        # What the recipe does not know of would be lost: biases, and starts that change the base weights.
        config = e.subject.peft_config
        plain = getattr(config, "bias", "none") == "none" and getattr(config, "init_lora_weights", True) is True
        # What is trained anew has a logit for each class.
        return plain and not e.subject.sigmoid and recipe_of(e.subject) is not None

    def variants(self, e: Evidence) -> list[Variant]:
        found = []
        for name, objective in self._objectives(e):
            new = again(e)
            train(new, e.train, e.training, lr=e.lr, seed=e.seed, objective=objective)
            found.append(e.variant(name, Change(adapter=files.adapter_of(new))))
        return found

    def _objectives(self, e: Evidence) -> list[tuple[str, Objective]]:
        if self.how == "group-dro":
            group = e.train.label * len(e.code) + e.train_group
            return [(f"step {step:g}", GroupDRO(group, step)) for step in DRO_STEPS]
        weight = e.balance(e.train.label, e.train_group)
        return [("trained", Weighted(weight) if self.how == "weighted" else Resampled(weight))]


def again(e: Evidence) -> Subject:
    """A fresh adapter of the subject's kind, with the subject's own last layer, and its own start where that is kept."""
    s, recipe = e.subject, recipe_of(e.subject)
    assert recipe is not None
    new = beside(s, recipe, seed=e.seed)
    known = dict(s.model.named_parameters())
    with torch.no_grad():
        # The whole head: RoBERTa and its like have a dense layer before the last one.
        for name, parameter in new.model.named_parameters():
            if "modules_to_save" in name and name in known and known[name].shape == parameter.shape:
                parameter.copy_(known[name])
        if s.template is None:  # also where the subject's adapter changes it and does not keep it whole
            new.head_layer().weight.copy_(s.own_head().weight)
            if new.head_layer().bias is not None:
                new.head_layer().bias.copy_(s.own_head().bias)
        if e.start is not None and s.source.peft_type == "PROMPT_TUNING":
            new.model.prompt_encoder[new.model.active_adapter].embedding.weight.copy_(torch.as_tensor(e.start))
    return new


SOFT = "prompt_encoder"
"""In the names of a soft prompt's parameters."""


def train_only(e: Evidence, new: Subject, named: str, corpus: Corpus) -> None:
    """Train the parameters with `named` in their name on `corpus`, as the subject's adapter was; all else is frozen."""
    some = [p for n, p in new.model.named_parameters() if named in n]
    train(new, corpus, e.training, lr=e.lr, seed=e.seed, parameters=some)


def _prompt_of(subject: Subject) -> NDArray:
    soft = prompt_embeddings(subject)
    assert soft is not None
    return soft.float().numpy()


def _arrays(tensors: dict[str, Tensor]) -> dict[str, NDArray]:
    return {k: v.float().numpy() for k, v in tensors.items()}


@dataclass(frozen=True)
class OrdinaryBoth(Started):
    """P = P0 + l_Y tau_Y - l_Z (P_Z - P0) with an ordinary confounder prompt, trained from P0 under the subject's frozen head."""

    key: str = "ordinary-ordinary"
    title: str = "ordinary minus ordinary"
    source: str = "task prompt vectors (arXiv 2408.01119)"
    costly: bool = True

    def possible(self, e: Evidence) -> bool:
        return super().possible(e) and e.subject.source.peft_type == "PROMPT_TUNING"

    def at(self, e: Evidence, coefficient: float) -> Variant:
        return _prompted(e, e.task, e.ordinary, coefficient)


@dataclass(frozen=True)
class LoraArithmetic(Arithmetic):
    """W_Y - l_Z W_Z by exact concatenation, with a confounder LoRA trained under the subject's frozen last layer (TAPER)."""

    key: str = "lora-arithmetic"
    title: str = "LoRA task arithmetic"
    source: str = "TAPER, reconstruction"
    costly: bool = True

    def possible(self, e: Evidence) -> bool:
        if e.subject.source.peft_type != "LORA" or e.subject.sigmoid:
            return False
        settings = e.subject.peft_config.to_dict()
        # A recipe keeps a list of modules, but no pattern and no choice of layers: a new LoRA would change other ones.
        listed = not isinstance(settings["target_modules"], str)
        whole = not settings.get("layers_to_transform") and not settings.get("exclude_modules")
        plain = settings.get("init_lora_weights", True) is True
        # A classification head is kept whole by a new LoRA, and so are embeddings not adapted.
        apart = ("lora_embedding_", *(() if e.subject.template is not None else (f".{e.subject.anatomy.head}.lora_",)))
        words = any(part in k for k in files.adapter_tensors(e.subject) for part in apart)
        return listed and whole and plain and not words and maths.why_no_concatenation(settings) is None

    def at(self, e: Evidence, coefficient: float) -> Variant:
        own, other = files.adapter_of(e.subject), e.once("confounder LoRA", lambda: self._trained(e))
        settings, weights = maths.concatenate(own[0], _arrays(own[1]), other[0], _arrays(other[1]), -coefficient)
        tensors = {k: torch.as_tensor(v) for k, v in weights.items()}
        return e.variant(f"l_Z = {coefficient:g}", Change(adapter=(settings, tensors)))

    def _trained(self, e: Evidence) -> tuple[dict[str, Any], dict[str, Tensor]]:
        new = again(e)
        train_only(e, new, "lora_", e.coded)
        return files.adapter_of(new)


@dataclass(frozen=True)
class TaskPrompt(Prompted):
    """The subject's prompt, from which nothing is subtracted. Under another last layer: what that layer alone changes."""

    key: str = "prompt"
    title: str = "prompt tuned again"
    source: str = "prompt tuning"

    def variants(self, e: Evidence) -> list[Variant]:
        return [e.variant("l_Z = 0", Change(prompt=e.prompt))]


@dataclass(frozen=True)
class Under(Family):
    """Prompt arithmetic under another shared last layer, fitted at P0 and then frozen; the task's prompt is tuned under it anew.

    The subject's own last layer learnt from coupled examples, so part of the shortcut sits where no prompt reaches. ``frozen`` fits
    the layer to the same examples and keeps it out of the prompt's training; ``balanced`` fits it with label and group made
    independent by weights. A subject that answers with words has a frozen last layer as it is.
    """

    inner: Family
    how: Literal["frozen", "balanced"]
    costly: bool = True

    @property
    def key(self) -> str:  # type: ignore[override]
        return f"{self.inner.key}@{self.how}"

    @property
    def title(self) -> str:  # type: ignore[override]
        return f"{self.inner.title}, under a {self.how} head"

    @property
    def source(self) -> str:  # type: ignore[override]
        return self.inner.source

    def possible(self, e: Evidence) -> bool:
        tuned = e.start is not None and e.subject.source.peft_type == "PROMPT_TUNING"
        return tuned and e.subject.template is None and self.inner.possible(e)

    def variants(self, e: Evidence) -> list[Variant]:
        there = self._there(e)
        layer = there.subject.own_head()
        found = []
        for v in self.inner.variants(there):
            # To save it from the subject as it is, the last layer goes with the prompt.
            change = None if v.change is None else Change(prompt=v.change.prompt, head=layer)
            found.append(replace(v, change=change))
        return found

    def choose(self, e: Evidence, variants: Sequence[Variant]) -> int:
        return self.inner.choose(self._there(e), variants)

    def flipped(self, e: Evidence, chosen: int) -> Variant | None:
        return self.inner.flipped(self._there(e), chosen)

    def _there(self, e: Evidence) -> Evidence:
        """The same evidence on a subject whose prompt was tuned under the other last layer."""
        return e.once(f"under a {self.how} head", lambda: self._tuned(e))

    def _tuned(self, e: Evidence) -> Evidence:
        new = again(e)
        warm_start(new, e.train, weight=e.balance(e.train.label, e.train_group) if self.how == "balanced" else None)
        train_only(e, new, SOFT, e.train)
        return replace(e, subject=new, prompt=_prompt_of(new), memory={})


ARITHMETIC: tuple[Family, ...] = (
    Relinearised(),
    Hybrid("one", "hybrid-one", "hybrid arithmetic, l_Z = 1"),
    Hybrid("balanced", "hybrid-balanced", "hybrid arithmetic, l_Z by the balanced slice"),
    Hybrid("control", "hybrid-control", "hybrid arithmetic, l_Z by the control rule"),
    FunctionForm(),
    Linearised(),
    TangentBoth(),
    TangentInside(),
    OrdinaryBoth(),
)
"""Every row of prompt arithmetic: under the subject's own last layer, and under others."""

FAMILIES: tuple[Family, ...] = (
    *ARITHMETIC,
    Flipped(),
    LastLayer(
        "dfr", "relinearised-dfr", "re-linearised hybrid prompt, then its last layer again", "trueup", after=True
    ),
    LastLayer("published", "dfr-published", "last layer again, as published (DFR)", "arXiv 2204.02937"),
    LastLayer("dfr", "dfr", "last layer again, weighted to balance", "trueup, after arXiv 2204.02937"),
    LastLayer("leace", "leace", "attribute erased before the last layer (LEACE)", "arXiv 2306.03819"),
    LastLayer(
        "backdoor", "backdoor", "back-door adjustment of the last layer", "Pearl 2009, section 3.3; of the logits"
    ),
    LoraArithmetic(),
    Retrained("group-dro", "group-dro", "trained again, GroupDRO", "arXiv 1911.08731"),
    Retrained("resampled", "resampled", "trained again, balanced resampling", "resampling"),
    Retrained("weighted", "weighted", "trained again, importance weights", "importance weighting"),
    *(Under(inner, how) for how in ("frozen", "balanced") for inner in (TaskPrompt(), *ARITHMETIC)),
)
