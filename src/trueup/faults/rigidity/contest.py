"""The contest at an equal budget: a prompt, a prefix and two kinds of LoRA, each with as many trained numbers.

Method file, D8: a prompt cannot change what attention relates to what in its own layer, a LoRA of query and key can, and one
of value and feed-forward changes what is read and computed instead. All start from the same base, seed and way of starting
the last layer, learn from the same examples, and get the same number of learning rates; the published comparison gave
LoRA and prefix rates that differ a hundredfold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, listing
from trueup.measure.calibration import nll
from trueup.run import forward
from trueup.run.heads import warm_start
from trueup.run.predict import memo_key, predict, session, within
from trueup.run.train import Training, train
from trueup.subject import adapter as files
from trueup.subject.attention_modules import brought_whole, of_the_adapter
from trueup.subject.kinds import Lora, Part, Prefix, Prompt, Recipe
from trueup.subject.new_adapter import beside, size_of
from trueup.subject.positions import position_limit
from trueup.subject.subject import Subject
from trueup.subject.swap_adapter import cannot_run, wear

Kind = Literal["prompt", "prefix", "query-key LoRA", "value-MLP LoRA", "LoRA"]
KINDS: tuple[Kind, ...] = ("prompt", "prefix", "query-key LoRA", "value-MLP LoRA")
"""Who meets in the contest. The plain LoRA is the repair's."""
PARTS: dict[Kind, Part] = {"query-key LoRA": "query-key", "value-MLP LoRA": "value-mlp"}
UNEQUAL = 1.5
"""Ratio of sizes above which two adapters are not compared."""
SLOTS = 16
"""Slots of a prefix whose keys and values are mixed from shared directions."""
RANKS = (1, 2, 4, 8, 16)
"""Tried ranks of the repair."""
RATE: dict[Kind, float] = {"prompt": 1e-2, "prefix": 1e-2, "query-key LoRA": 3e-3, "value-MLP LoRA": 3e-3, "LoRA": 3e-3}
"""The middle of the learning rates tried. A LoRA this small takes larger steps than one of rank 8: on all-MiniLM-L6-v2
each of them chose the highest of a third, one and three thousandths."""
MOST_TRIES, MOST_EPOCHS = 9, 4
"""Most learning rates that an entrant tries, and by how much its effort is at most multiplied."""
WORTH = 0.005
"""Mean NLL (nats) by which an edge has to be better than the rate beside it, or twice the effort than once, to go on."""


@dataclass(frozen=True)
class Rival:
    """One entry of the contest: its kind, how to make it, and how many numbers it trains without the head."""

    kind: Kind
    recipe: Recipe
    size: int

    def fits(self, size: int) -> bool:
        """Whether it may be compared with adapters of `size` numbers (`UNEQUAL`)."""
        return max(self.size / size, size / self.size) <= UNEQUAL


@dataclass(frozen=True)
class Attempt:
    """One learning rate tried: mean NLL (nats, inf where training diverged) and accuracy (then 0) on calibration; the epochs it
    was given, and whether the last of them was the best."""

    lr: float
    nll: float
    accuracy: float
    epochs: int = 0
    growing: bool = False


@dataclass(frozen=True, eq=False)
class Entrant:
    """A trained rival. `kept` is the attempt at its learning rate.

    Attributes:
        lr: the learning rate kept, which has the lowest NLL on calibration. tried: every rate, in the order tried.
        settings, tensors: the PEFT adapter, head included, as its files hold it.
    """

    rival: Rival
    lr: float
    tried: tuple[Attempt, ...]
    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def kept(self) -> Attempt:
        return next(a for a in self.tried if a.lr == self.lr)


@dataclass(frozen=True, eq=False)
class Team:
    """One rival trained from several seeds, at the learning rate and effort that suit them best in the mean.

    Attributes:
        members: one a seed. tried: what was tried, with means over the seeds; `kept` is the best.
    """

    members: tuple[Entrant, ...]
    tried: tuple[Attempt, ...]

    @property
    def rival(self) -> Rival:
        return self.members[0].rival

    @property
    def kept(self) -> Attempt:
        return min(self.tried, key=lambda a: a.nll)

    @property
    def handed(self) -> Entrant:
        """The member that a repair hands over: the lowest NLL on calibration."""
        return min(self.members, key=lambda m: m.kept.nll)


def budget(subject: Subject) -> int:
    """How many numbers the subject's own adapter brings, without the classification head.

    P-tuning counts as the prompt it makes.

    Raises:
        BadInput: it has no adapter.
    """
    own_tensors = {k: t for k, t in files.adapter_tensors(subject).items() if of_the_adapter(k)}
    if not own_tensors:
        raise BadInput(
            f"'{subject.source.base}' has no adapter, so there is no budget to compete at. Tune one first: "
            f"`trueup tune prompt {subject.source.base} --data ...`."
        )
    return sum(t.numel() for t in own_tensors.values())


def left_out(subject: Subject) -> dict[Kind, str]:
    """The kinds that cannot compete on this subject, each with a sentence that says why."""
    anatomy, config = subject.anatomy, subject.base.config
    found: dict[Kind, str] = {}
    if whole_layers := brought_whole(subject):
        # Most often weights that the checkpoint lacks, drawn at random when the adapter was tuned.
        reason = f"The subject's adapter brings {listing(whole_layers, 3)} beside its head, which PEFT's prompts do not carry."
        found |= {"prompt": reason, "prefix": reason}
    width, words = anatomy.size(config, "width"), subject.base.get_input_embeddings().weight.shape[1]  # type: ignore[operator,union-attr]
    if width != words:
        found["prompt"] = (
            f"PEFT's prompt tuning does not run on a model whose embeddings ({words}) are not as wide as its layers ({width})."
        )
    if not anatomy.prefix:
        found["prefix"] = f"PEFT's prefix tuning does not run on '{anatomy.model_type}'."
    elif reason := cannot_run(subject, Prefix(1).config(anatomy, anatomy.sizes(config))):
        found["prefix"] = reason
    if not anatomy.query:
        found |= dict.fromkeys(PARTS, f"'{anatomy.model_type}' has no attention to adapt.")
    elif anatomy.discovered and (anatomy.query == anatomy.value or not anatomy.down):
        why = (
            "which rows of its fused projection are queries"
            if anatomy.query == anatomy.value
            else "its feed-forward layers"
        )
        found |= dict.fromkeys(PARTS, f"Where '{anatomy.model_type}' has {why} is not known.")
    return found


def rivals(subject: Subject, budget: int) -> list[Rival]:
    """One rival of each kind that can compete, as near to the budget (in log ratio) as its kind gets.

    A prompt or prefix takes at most half of the model's positions. A LoRA has rank 1 in as many layers as fit, at least one,
    evenly spaced through the depth; where the budget is above rank 1 in every layer, the rank is raised.

    One slot of a prefix costs as many numbers as the keys and values of all layers are wide. Where that is too many by more than
    `UNEQUAL`, the prefix has `SLOTS` slots, mixed from as many shared directions as come nearest to the budget.

    Raises:
        BadInput: a budget below 1.
    """
    if budget < 1:
        raise BadInput(f"The budget is {budget} trained numbers; give 1 or more, such as 3840.")
    barred = left_out(subject)
    return [_rival(subject, kind, budget) for kind in KINDS if kind not in barred]


def _rival(subject: Subject, kind: Kind, budget: int) -> Rival:
    if kind in PARTS:
        part = PARTS[kind]
        depth = subject.anatomy.sizes(subject.base.config)["num_layers"]
        spaced_layers = [Lora(1, 2, layers=_spaced(k, depth), part=part) for k in range(1, depth)]
        rank = _times(budget, size_of(Lora(1, 2, part=part), subject))
        recipes: list[Recipe] = [*spaced_layers, Lora(rank, 2 * rank, part=part)]
    else:
        cls = Prompt if kind == "prompt" else Prefix
        most = position_limit(subject.base.config, subject.anatomy) // 2
        recipes = [cls(min(most, _times(budget, size_of(cls(1), subject))))]
        if kind == "prefix" and size_of(Prefix(1), subject) > UNEQUAL * budget:
            slots = min(SLOTS, most)
            recipes.append(Prefix(slots, _times(budget, size_of(Prefix(slots, 1), subject))))
    return min((Rival(kind, r, size_of(r, subject)) for r in recipes), key=lambda r: _off(r.size, budget))


def _off(size: int, budget: int) -> float:
    return abs(math.log(size / budget))


def _times(budget: int, each: int) -> int:
    """How many of `each` come nearest to the budget in log ratio; 1 at least."""
    low = max(1, budget // each)
    return min(low, low + 1, key=lambda n: _off(n * each, budget))


def _spaced(number: int, depth: int) -> tuple[int, ...]:
    """The middles of `number` equal stretches of the layers."""
    return tuple((2 * i + 1) * depth // (2 * number) for i in range(number))


def ladder(subject: Subject, budget: int) -> list[Rival]:
    """LoRAs of query, key and value in every layer (``anatomy.lora``), of growing rank, all larger than the budget."""
    steps = [Rival("LoRA", recipe, size_of(recipe, subject)) for recipe in (Lora(r, 2 * r) for r in RANKS)]
    return [step for step in steps if step.size > budget]


def on(subject: Subject, entrant: Entrant) -> Subject:
    """The subject with the entrant's adapter and head in place of its own; `subject` is left as it is."""
    return wear(subject, entrant.settings, entrant.tensors)


def seeds_of(seed: int, number: int) -> list[int]:
    """The seeds of so many trainings, `seed` itself first."""
    return [seed, *np.random.SeedSequence([seed, 21]).generate_state(max(0, number - 1)).tolist()]


def team(
    subject: Subject, corpus: Corpus, rival: Rival, *, rates: Sequence[float], training: Training, seeds: int, seed: int
) -> Team:
    """The rival trained from several seeds, at the learning rate and effort with the lowest mean NLL on calibration.

    Rates are extended by a factor of 3 while the best lies on an edge (`MOST_TRIES` in all), and epochs doubled while the last
    one is the best and doubling lowers the NLL (up to `MOST_EPOCHS` times), so that no kind is judged before it is done.

    Raises:
        BadInput: no rate trains it from every seed, or as `trained`.
    """
    tried: dict[tuple[float, int], tuple[Attempt, tuple[Entrant, ...]]] = {}
    failure: BadInput | None = None

    def attempt(rate: float, epochs: int) -> None:
        nonlocal failure
        longer_training = replace(training, epochs=epochs)
        try:
            members = tuple(
                trained(subject, corpus, rival, rates=(rate,), training=longer_training, seed=s)
                for s in seeds_of(seed, seeds)
            )
        except BadInput as e:
            failure = e
            tried[rate, epochs] = Attempt(rate * RATE[rival.kind], math.inf, 0.0, epochs), ()
            return
        best_attempts = [m.kept for m in members]
        lr, last = best_attempts[0].lr, float(np.mean([a.growing for a in best_attempts]))
        loss, right = (float(np.mean([getattr(a, k) for a in best_attempts])) for k in ("nll", "accuracy"))
        tried[rate, epochs] = Attempt(lr, loss, right, epochs, last > 0.5), members

    def best() -> tuple[float, int]:
        return min(tried, key=lambda k: tried[k][0].nll)

    for rate in rates:
        attempt(rate, training.epochs)
    while len(tried) < MOST_TRIES:
        (rate, _), known = best(), sorted(r for r, _ in tried)
        inner = known[1:2] if rate == known[0] else known[-2:-1]
        gained = tried[inner[0], training.epochs][0].nll - tried[best()][0].nll if inner else math.inf
        if rate not in (known[0], known[-1]) or not gained > WORTH:
            break
        attempt(3 * rate if rate == known[-1] else rate / 3, training.epochs)
    rate, epochs = best()
    while tried[rate, epochs][0].growing and epochs < MOST_EPOCHS * training.epochs:
        before = tried[rate, epochs][0].nll
        attempt(rate, 2 * epochs)
        if not before - tried[rate, 2 * epochs][0].nll > WORTH:
            break
        epochs *= 2
    members = tried[best()][1]
    if not members:
        listed = ", ".join(f"{a.lr:g}" for a, _ in tried.values())
        raise BadInput(
            f"No learning rate tried ({listed}) trains a {rival.kind} on '{corpus.name}' from each of {seeds} seeds: {failure}"
        )
    return Team(members, tuple(a for a, _ in tried.values()))


def trained(
    subject: Subject, corpus: Corpus, rival: Rival, *, rates: Sequence[float], training: Training, seed: int
) -> Entrant:
    """The rival trained once per rate on the ``train`` examples; the lowest NLL on ``calibration`` is kept.

    ``test`` is not read. Every try begins from the same fresh adapter and the same last layer, a linear probe of the features
    under that fresh adapter (the language-model head where the subject answers with a word). What training gave is
    remembered in the session's memo, where there is one, try by try.

    Args:
        rates: in units of the kind's own (`RATE`). Those at which training diverges count as tried.
        training: the same for all; its `lr` is not read.

    Raises:
        BadInput: every rate diverged, or as `recipe.beside` and `train`.
    """
    part, held = (corpus.part(split).relabel(subject.classes) for split in ("train", "calibration"))
    now = session()
    new = beside(subject, rival.recipe, seed=seed)
    # Taken here: it says what training begins with, and must not depend on what was tried before.
    begin = "" if now.memo is None else _beginning(new, part, held, rival, training, seed)
    parameters = [p for p in new.model.parameters() if p.requires_grad]
    start: list[Tensor] = []
    tried: list[Attempt] = []
    best: dict[str, Tensor] = {}
    failure: BadInput | None = None
    for i, rate in enumerate(rates):
        lr = rate * RATE[rival.kind]
        known = now.memo.get(f"{begin} {lr!r}") if now.memo else None
        if known is None:
            if not start:
                if subject.template is None:
                    warm_start(new, part)
                start = [p.detach().clone() for p in parameters]
            with torch.no_grad():
                for p, value in zip(parameters, start, strict=True):
                    p.copy_(value)
            try:
                attempt, tensors = _tried(new, part, held, lr, training, seed, f"{rival.kind} {i + 1}/{len(rates)}")
            except BadInput as e:
                failure = e
                tried.append(Attempt(lr, math.inf, 0.0, training.epochs))
                continue
            if now.memo:
                numbers = {k: np.array(getattr(attempt, k)) for k in ("nll", "accuracy", "growing")}
                # numpy has no bfloat16, and float32 holds each of its values.
                now.memo.put(f"{begin} {lr!r}", numbers | {f"at {k}": v.float().numpy() for k, v in tensors.items()})
        else:
            attempt = Attempt(
                lr, float(known["nll"]), float(known["accuracy"]), training.epochs, bool(known["growing"])
            )
            tensors = {k: torch.as_tensor(known[f"at {k}"]).to(v.dtype) for k, v in files.adapter_tensors(new).items()}
            now.progress(f"tuning {rival.kind} {i + 1}/{len(rates)}", 1, 1)
        if attempt.nll < min((a.nll for a in tried), default=math.inf):
            best = tensors
        tried.append(attempt)
    if not best:
        listed = ", ".join(f"{a.lr:g}" for a in tried)
        raise BadInput(
            f"No learning rate tried ({listed}) trains a {rival.kind} on '{corpus.name}'"
            + (f": {failure}" if failure else "; give lower rates.")
        )
    best_attempt = min(tried, key=lambda a: a.nll)
    return Entrant(rival, best_attempt.lr, tuple(tried), files.settings_of(new, new.peft_config), best)


def _tried(
    new: Subject, part: Corpus, held: Corpus, lr: float, training: Training, seed: int, name: str
) -> tuple[Attempt, dict[str, Tensor]]:
    """What `new` says of the calibration examples once it is trained at `lr`, and its adapter.

    Raises:
        BadInput: training diverged.
    """
    now = session()

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "training":
            now.progress(f"tuning {name}", done, total)

    # The passes of training are asked for once: remembering each epoch's would fill the disk.
    with within(replace(now, memo=None, progress=progress)):
        history = train(new, part, training, lr=lr, seed=seed)
        predicted = predict(new, held)
    if not np.isfinite(predicted.probability).all():
        return Attempt(lr, math.inf, 0.0, training.epochs), files.adapter_tensors(new)
    right = float((predicted.predicted == held.label).mean())
    growing = history.best_epoch == training.epochs - 1
    return Attempt(lr, nll(predicted.probability, held.label), right, training.epochs, growing), files.adapter_tensors(
        new
    )


def _beginning(new: Subject, part: Corpus, held: Corpus, rival: Rival, training: Training, seed: int) -> str:
    """What a try depends on, its learning rate apart: the fresh model, both corpora, the recipe, the training, the seed."""
    settings = {k: v for k, v in asdict(training).items() if k != "lr"}
    identity = [rival.kind, rival.recipe.name, asdict(rival.recipe), settings, seed, part.fingerprint, held.fingerprint]
    rows = forward.tokenize(new, part) + forward.tokenize(new, held)
    return memo_key(new, rows, f"rigidity {json.dumps(identity)}")
