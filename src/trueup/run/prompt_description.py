"""A soft prompt in words: the tokens nearest to it, and the text that the base model writes when it is asked to describe it.

`described` follows InSPEcT (Ramati, Gottesman and Geva, arXiv 2410.11660), a kind of Patchscope (Ghandeharioun et al., arXiv
2401.06102). The hidden states of the prompt replace those of the placeholders in a text that asks for a description, and the
base model, without the prompt, continues the text. Three points are ours and not the paper's: the words of the text; the prompt
enters as embeddings, where the authors' code puts it after the first layer; and the score, where the paper compares with the
known task.

Neither is evidence of what the prompt does. A prompt with any effect can be made to lie near any words (Khashabi et al.,
arXiv 2112.08348), and a model writes something fluent about any states.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trueup.errors import BadInput, Unsupported
from trueup.run import forward
from trueup.run.answers import end_tokens
from trueup.run.predict import TOKENS, evaluating
from trueup.run.prompts import Row
from trueup.subject.new_adapter import prompt_embeddings
from trueup.subject.positions import position_limit
from trueup.subject.subject import Subject
from trueup.subject.swap_adapter import bare
from trueup.subject.units import layers_of

PIECE = 8192
"""Rows of the vocabulary that are compared at once."""
PLACE = "{prompt}"
TARGET = (
    "Instruction: Is this e-mail wanted?\nTask: decide whether an e-mail is spam or not spam\n\n"
    "Instruction: Name the time of year of the story:\n"
    "Task: tell whether a story takes place in spring, summer, autumn or winter\n\n"
    "Instruction: Sort what the customer wrote by its purpose\n"
    "Task: tell whether a customer asks a question, places an order or complains\n\n"
    "Instruction:{prompt}\nTask:"
)
"""Three prompts, each with its description, and the placeholders where a fourth prompt would stand.

Where the placeholders come last, as in the paper, SmolLM2-135M goes on with the prompt or tells a story.
"""


@dataclass(frozen=True)
class Near:
    """A token of the vocabulary, and how near a virtual token it is: cosine similarity and Euclidean distance."""

    token: str
    cosine: float
    distance: float


@dataclass(frozen=True)
class Said:
    """A text that the base model wrote about a prompt.

    Attributes:
        source, target: the prompt's states at the input of layer `source` were put into the input of layer `target`.
        text: one line, at most about 20 tokens.
        log_probability: mean over the tokens of the text, in nats, with the prompt's states in place.
        score: `log_probability` minus the higher of two others: with the placeholders unchanged, and with the states of a
            prompt of random words. Above 0 the text depends on this prompt; near 0 it would have been
            written about any prompt. The best text on SmolLM2-135M has at most 0.2 for prompts without a meaning (two of
            noise, one of random words), and 0.5 to 2.7 for prompts that are the words of a task (two).
    """

    source: int
    target: int
    text: str
    log_probability: float
    score: float


@dataclass(frozen=True, eq=False)
class Patch:
    """States (m, d) that replace the inputs of `layer` at m tokens."""

    layer: int
    states: Tensor


# ------------------------------------------------------------------------------------------------------ nearest words


def nearest(subject: Subject, most: int = 5) -> list[list[Near]]:
    """For each virtual token the `most` tokens of the vocabulary nearest by cosine, the nearest first.

    `usual_cosine` gives the scale to judge these cosines by.

    Raises:
        Unsupported: the subject's adapter is no soft prompt.
    """
    prompt = _prompt_of(subject)
    ids = _closest(subject, prompt, most)[1]
    nearest_words: list[list[Near]] = []
    for row, near in zip(prompt.double(), ids, strict=True):
        rows = _embedded(subject, near).double()
        # Computed again in double: an equal row has exactly cosine 1 and distance 0, and ties in direction get an order.
        cosine = torch.nn.functional.cosine_similarity(rows, row.unsqueeze(0), dim=1).clamp(-1, 1)
        distance = (rows - row).norm(dim=1)
        neighbours = zip(_words(subject, near), cosine.tolist(), distance.tolist(), strict=True)
        nearest_words.append(sorted((Near(*n) for n in neighbours), key=lambda n: (-n.cosine, n.distance)))
    return nearest_words


def usual_cosine(subject: Subject, *, sample: int = 256, seed: int = 0) -> float:
    """The scale of `nearest`: the median cosine of a token of the vocabulary with its own nearest neighbour.

    The median is over a sample of tokens. A virtual token whose nearest token has a much lower cosine is near to no token.

    Raises:
        Unsupported: as `nearest`.
    """
    _prompt_of(subject)
    vocabulary = _vocabulary(subject)
    drawn = np.random.default_rng(seed).permutation(len(vocabulary))[:sample]
    tokens = vocabulary[torch.as_tensor(np.sort(drawn))]
    cosines, ids = _closest(subject, _embedded(subject, tokens), 2)
    # The nearest token of a token is itself, unless another token has the same row.
    return float(torch.where(ids[:, 0] == tokens, cosines[:, 1], cosines[:, 0]).median())


def _closest(subject: Subject, rows: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """(m, k) cosines and ids of the k <= `most` tokens nearest to each of `rows` (m, w). The vocabulary is read in pieces."""
    unit = torch.nn.functional.normalize(rows, dim=1)
    cosines, ids = rows.new_empty(len(rows), 0), torch.empty(len(rows), 0, dtype=torch.long)
    for piece in _vocabulary(subject).split(PIECE):
        cosine = unit @ torch.nn.functional.normalize(_embedded(subject, piece), dim=1).T
        cosines = torch.cat([cosines, cosine], dim=1)
        ids = torch.cat([ids, piece.expand(len(rows), -1)], dim=1)
        cosines, best = cosines.topk(min(most, cosines.shape[1]), dim=1)
        ids = ids.gather(1, best)
    return cosines, ids


def _vocabulary(subject: Subject) -> Tensor:
    """The tokens that the tokenizer knows and the model has embeddings for: either can have tokens that the other lacks."""
    rows = subject.model.word_embeddings.num_embeddings
    return torch.tensor(sorted({i for i in subject.tokenizer.get_vocab().values() if i < rows}))


def _embedded(subject: Subject, ids: Tensor) -> Tensor:
    """(n, w) float32 on the CPU: the embeddings of tokens in the model. Some families scale the rows of the weight."""
    with torch.inference_mode():
        return subject.model.word_embeddings(ids.to(subject.device)).float().cpu()


def _words(subject: Subject, ids: Tensor) -> list[str]:
    """Each token as text, or its name in the vocabulary where it is a part of a character or an empty text."""
    tok, words = subject.tokenizer, []
    for i in ids.tolist():
        text = tok.decode([i])
        words.append(text if text and "\ufffd" not in text else str(tok.convert_ids_to_tokens(i)))
    return words


# ------------------------------------------------------------------------------------------------------- descriptions


def described(
    subject: Subject,
    *,
    layers: Sequence[tuple[int, int]] | None = None,
    target: str = TARGET,
    tokens: int = 20,
    most: int = 3,
    seed: int = 0,
) -> list[Said]:
    """Texts that the base model writes about a causal model's prompt: the `most` texts with the highest score, the best first.

    Args:
        layers: pairs of a source and a target layer; `some_layers` by default.
        target: the text that asks for a description, with ``{prompt}`` where the placeholders go. A description ends at the
            end of its line.
        tokens: most tokens of a description.
        seed: seed of the prompt of random words that the score compares with.

    Raises:
        Unsupported: an encoder, a classification head, or an adapter that is no soft prompt.
        BadInput: a layer that is not there, a target without its place, or one that is too long.
    """
    if not subject.anatomy.causal:
        raise Unsupported(
            f"'{subject.anatomy.model_type}' is an encoder and cannot write a description of its prompt; read its nearest "
            "words instead, or give a causal model."
        )
    prompt = _prompt_of(subject)
    if subject.template is None:
        raise Unsupported(
            "A model with a classification head in place of its words cannot write a description of its prompt; read the "
            "nearest words instead, or tune with --template and --verbaliser."
        )
    depth = len(layers_of(subject))
    pairs = list(dict.fromkeys(some_layers(depth) if layers is None else layers))
    for at in (at for pair in pairs for at in pair):
        if not 0 <= at < depth:
            raise BadInput(f"There is no layer {at}: the model has layers 0 to {depth - 1}. Give pairs of these.")
    ids, at = _asking(subject, target, len(prompt), tokens)
    with torch.inference_mode(), evaluating(subject):
        # The prompt, and a prompt of random words to compare with: (layers, 2, m, d).
        drawn = np.random.default_rng(seed).choice(_vocabulary(subject).numpy(), len(prompt))
        states = entering(subject, torch.stack([prompt, _embedded(subject, torch.as_tensor(drawn))]))
    base = bare(subject)
    patches = [Patch(t, states[s, 0]) for s, t in pairs]
    random_patches = [Patch(t, states[s, 1]) for s, t in pairs]
    texts = [_first_line(base, row) for row in written(base, ids, at, patches, tokens)]
    log_probabilities = log_probability(base, ids, at, patches, texts)
    baseline = np.fmax(log_probability(base, ids, at, [None] * len(pairs), texts),
                    log_probability(base, ids, at, random_patches, texts))  # fmt: skip
    descriptions = [
        Said(
            s,
            t,
            base.tokenizer.decode(text).strip(),
            float(log_probabilities[i]),
            float(log_probabilities[i] - baseline[i]),
        )
        for i, ((s, t), text) in enumerate(zip(pairs, texts, strict=True))
        if text
    ]
    return sorted(descriptions, key=lambda x: -x.score)[:most]


def some_layers(depth: int) -> list[tuple[int, int]]:
    """Six (source, target) pairs of layers of a model of `depth` layers, fewer in a shallow one.

    Sources are in the first half of the model, targets in its first quarter.
    """
    eighth, quarter, half = depth // 8, depth // 4, depth // 2
    pairs = [(0, 0), (eighth, eighth), (quarter, eighth), (quarter, quarter), (half, eighth), (half, quarter)]
    return list(dict.fromkeys(pairs))


def entering(subject: Subject, prompt: Tensor | None = None, ids: Sequence[int] = ()) -> Tensor:
    """(layers, b, t, d): the inputs of each layer in a pass over prompts (b, m, w), tokens, or prompts before tokens."""
    caught: list[Tensor] = []

    def read(_: object, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        caught.append(inputs[0] if inputs else named["hidden_states"])

    rows = torch.tensor([list(ids)] * (1 if prompt is None else len(prompt)), dtype=torch.long, device=subject.device)
    hooks = [layer.register_forward_pre_hook(read, with_kwargs=True) for layer in layers_of(subject)]
    try:
        forward.backbone(subject, rows, torch.ones_like(rows), prompt)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(caught)


def written(
    subject: Subject, ids: Sequence[int], at: int, patches: Sequence[Patch | None], tokens: int = 20
) -> list[list[int]]:
    """The greedy continuation of `ids` by a causal model without an adapter, once for each patch.

    Args:
        at: index in `ids` of the first token whose states a patch replaces.
        patches: a patch of None leaves the states as they are.
    """
    generated: list[list[int]] = []
    for patches_of_batch in _batches(patches, len(ids) + tokens):
        rows = torch.tensor([list(ids)] * len(patches_of_batch), device=subject.device)
        with torch.inference_mode(), evaluating(subject), _put(subject, at, patches_of_batch):
            sequences = subject.model.generate(
                rows, attention_mask=torch.ones_like(rows), max_new_tokens=tokens, do_sample=False, num_beams=1,
                repetition_penalty=1.0, pad_token_id=subject.tokenizer.pad_token_id,
            )  # fmt: skip
        generated += sequences[:, len(ids) :].tolist()
    return generated


def log_probability(
    subject: Subject, ids: Sequence[int], at: int, patches: Sequence[Patch | None], texts: Sequence[Sequence[int]]
) -> np.ndarray:
    """(n,) mean log probability of the tokens of each text after `ids`, under its patch; nan for a text without tokens."""
    means = np.full(len(texts), np.nan)
    longest = len(ids) + max(map(len, texts), default=0)
    for indices in _batches([i for i, text in enumerate(texts) if len(text)], longest):
        batch = forward.collate([Row([*ids, *texts[i]]) for i in indices], subject.tokenizer.pad_token_id)
        rows, mask = batch.ids.to(subject.device), batch.mask.to(subject.device)
        with torch.inference_mode(), evaluating(subject), _put(subject, at, [patches[i] for i in indices]):
            states = forward.backbone(subject, rows, mask).last_hidden_state[:, len(ids) - 1 : -1]
            logits = forward.word_logits(subject, states).float()
        text, text_mask = rows[:, len(ids) :], mask[:, len(ids) :]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), text, reduction="none")
        means[indices] = (-(losses * text_mask).sum(dim=1) / text_mask.sum(dim=1)).cpu().numpy()
    return means


@contextlib.contextmanager
def _put(subject: Subject, at: int, patches: Sequence[Patch | None]) -> Iterator[None]:
    """Inside the block, row i of a batch reads the states of patch i at its tokens from `at` on."""

    def hook(rows: list[tuple[int, Tensor]]):
        def put(_: object, inputs: tuple[Tensor, ...], named: dict[str, Tensor]):
            x = inputs[0] if inputs else named["hidden_states"]
            if x.shape[1] <= at:
                return None  # generation reads one more token; the patched tokens are in the cache
            x = x.clone()
            for i, states in rows:
                x[i, at : at + len(states)] = states.to(x)
            return ((x, *inputs[1:]), named) if inputs else (inputs, named | {"hidden_states": x})

        return put

    by_layer: dict[int, list[tuple[int, Tensor]]] = {}
    for i, patch in enumerate(patches):
        if patch is not None:
            by_layer.setdefault(patch.layer, []).append((i, patch.states))
    layers = layers_of(subject)
    hooks = [layers[t].register_forward_pre_hook(hook(rows), with_kwargs=True) for t, rows in by_layer.items()]
    try:
        yield
    finally:
        for h in hooks:
            h.remove()


def _asking(subject: Subject, target: str, places: int, tokens: int) -> tuple[list[int], int]:
    """The target's tokens with `places` placeholders in them, and where these begin."""
    if target.count(PLACE) != 1:
        raise BadInput(
            f"The target text has {target.count(PLACE)} times {PLACE} in it; say once where the prompt goes."
        )
    tok = subject.tokenizer
    before, after = target.split(PLACE)
    head = tok(before, verbose=False)["input_ids"]
    # Placeholders are joined as tokens and not as text, so no tokenizer can merge two of them into one.
    placeholder = tok(" x", add_special_tokens=False, verbose=False)["input_ids"][-1]
    tail = tok(after, add_special_tokens=False, verbose=False)["input_ids"] if after else []
    ids = [*head, *[placeholder] * places, *tail]
    limit = position_limit(subject.base.config, subject.anatomy)
    if len(ids) + tokens > limit:
        raise BadInput(
            f"The target text takes {len(ids)} tokens and its description {tokens}, and the model has {limit} positions; give a "
            "shorter target."
        )
    return ids, len(head)


def _first_line(subject: Subject, tokens: Sequence[int]) -> list[int]:
    """The tokens of a text up to the end of its first line that is not empty, or up to the model's own end."""
    ends = end_tokens(subject)
    line: list[int] = []
    for token in tokens:
        if token in ends or "\n" in subject.tokenizer.decode([*line, token]).lstrip():
            break
        line.append(token)
    return line if subject.tokenizer.decode(line).strip() else []


def _batches(things: Sequence, width: int) -> Iterator[list]:
    batch_size = max(1, TOKENS // width)
    for start in range(0, len(things), batch_size):
        yield list(things[start : start + batch_size])


def _prompt_of(subject: Subject) -> Tensor:
    """(m, w) float32: the virtual tokens' embeddings."""
    if subject.soft_prompted:
        prompt = prompt_embeddings(subject)
        assert prompt is not None
        return prompt.float()
    kind = subject.source.peft_type
    if kind == "PREFIX_TUNING":
        raise Unsupported(
            "A prefix is keys and values inside the layers; it has no embeddings that could be compared with words. Tune a "
            "prompt: `trueup tune prompt`."
        )
    adapter = f"an adapter of kind {kind}" if kind else "no adapter"
    raise Unsupported(f"The subject has {adapter}, so there is no prompt to read; tune one: `trueup tune prompt`.")
