"""One forward pass of a Subject, differentiable, and correct under padding. All calls of live models go through this module.

PEFT's own forward reads decoder classifiers at the wrong token when a batch has both a prompt and padding (PEFT issues 764,
1093). Here inputs are padded on the right, prompts stand in front, and the answer is read at each example's own last token,
so the result of an example does not depend on the other examples of its batch.
"""

from __future__ import annotations

import contextlib
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, Unsupported
from trueup.run import prompts
from trueup.run.prompts import Row
from trueup.subject import past, tokens
from trueup.subject.few_shot_tokens import begins, text_ids
from trueup.subject.linear import map_of
from trueup.subject.subject import Head, Subject
from trueup.subject.units import layers_of

T = TypeVar("T")
CUT = 0.05
"""Share of texts that are longer than the model reads (see `cut`) above which a reader is warned."""
AT_ONCE = 256
"""Texts that the tokenizer is given at once. It holds all tokens of these texts in memory, also those beyond the cut."""
LETTERS = 8
"""The tokenizer first gets only this many characters of a text for each token that the model reads (`begins`)."""
_GAP = re.compile(r"(?<=\S) ")
Known = dict[tuple[str, str | None], tuple[array, bytes | None]]
"""(text, second text) -> token ids, and the text of the pair that each is of. Arrays take a tenth of the memory of lists."""


@dataclass(frozen=True)
class Batch:
    """Token ids, mask and segments (or None) of b examples, padded on the right: (b, t) int64, on the CPU until used.

    All examples begin with the same `shared` tokens.
    """

    ids: Tensor
    mask: Tensor
    segments: Tensor | None = None
    shared: int = 0


def tokenize(subject: Subject, corpus: Corpus, known: Known | None = None) -> list[Row]:
    """Token ids of each example, at most ``subject.max_length``. Templates are filled, and cut inside the example.

    Args:
        known: token ids from earlier calls for a subject with this tokenizer, template and length; new ones are added.

    Raises:
        BadInput: an example has no token at all.
    """
    with tokens.said(f"'{subject.source.base}'"):  # a damaged tokenizer panics on some texts only
        return _tokenized(subject, corpus, known)


def _tokenized(subject: Subject, corpus: Corpus, known: Known | None) -> list[Row]:
    if subject.shots is not None:
        return prompts.rows(subject, corpus.text, prompts.drawn(subject, corpus))
    known = {} if known is None else known
    keys = _pairs(corpus)
    new = [key for key in dict.fromkeys(keys) if key not in known]
    for at in range(0, len(new), AT_ONCE):
        known.update(zip(new[at : at + AT_ONCE], _read(subject, new[at : at + AT_ONCE]), strict=True))
    rows = []
    for i, key in enumerate(keys):
        ids, segments = known[key]
        row = Row(ids)
        row.segments = None if segments is None else list(segments)
        if not row:
            raise BadInput(f"Example {i + 1} of '{corpus.name}' becomes no token at all; drop it or give it text.")
        rows.append(row)
    return rows


def _pairs(corpus: Corpus) -> list[tuple[str, str | None]]:
    return list(zip(corpus.text, [None] * len(corpus) if corpus.second is None else corpus.second, strict=True))


def _arguments(pairs: Sequence[tuple[str, str | None]]) -> tuple[list[str], ...]:
    """The texts as a tokenizer takes them, and the second ones where there are any."""
    first, second = ([str(t) for t in side] for side in zip(*pairs, strict=True))
    return (first,) if pairs[0][1] is None else (first, second)


def _read(subject: Subject, pairs: Sequence[tuple[str, str | None]]) -> list[tuple[array, bytes | None]]:
    """The values of `Known`."""
    if subject.template is not None:
        return [(array("i", _templated(subject, *pair)), None) for pair in pairs]
    tok, most = subject.tokenizer, subject.max_length

    def read(some: Sequence[tuple[str, str | None]]) -> list[tuple[array, bytes | None]]:
        encoded = tok(*_arguments(some), truncation=True, max_length=most, verbose=False)
        types = pairs[0][1] is not None and getattr(subject.base.config, "type_vocab_size", 0) > 1
        segments = (
            map(bytes, encoded["token_type_ids"]) if types and "token_type_ids" in encoded else [None] * len(some)
        )
        return list(zip((array("i", ids) for ids in encoded["input_ids"]), segments, strict=True))

    return _by_beginnings(subject, pairs, read, lambda found: len(found[0]) == most)


def cut(subject: Subject, corpus: Corpus) -> np.ndarray:
    """(n,) bool: the examples that are longer than ``subject.max_length`` tokens, of which the model reads a beginning."""
    tok = subject.tokenizer
    if subject.shots is not None:  # a prompt that is too long is refused, and never cut
        return np.zeros(len(corpus), dtype=bool)
    longer: list[bool] = []
    pairs = _pairs(corpus)

    def read(some: Sequence[tuple[str, str | None]]) -> list[bool]:
        return [
            len(r) > subject.max_length for r in tok(*_arguments(some), truncation=False, verbose=False)["input_ids"]
        ]

    for at in range(0, len(pairs), AT_ONCE):
        some = pairs[at : at + AT_ONCE]
        if subject.template is None:
            longer += _by_beginnings(subject, some, read, lambda found: found)
        else:
            longer += [len(text_ids(tok, subject.template.fill(*pair))) > subject.max_length for pair in some]
    return np.array(longer)


def unknown(subject: Subject, corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    """(n,) each: the number of unknown tokens in each example, and the number of all its tokens.

    Nothing is counted for a tokenizer without a token for the unknown (it spells every text in bytes), or whose token for the
    unknown is also its end, begin or pad token.
    """
    tok, unk = subject.tokenizer, subject.tokenizer.unk_token_id
    uncounted = unk is None or unk in (tok.eos_token_id, tok.bos_token_id, tok.pad_token_id)
    counts: list[tuple[int, int]] = []
    pairs = _pairs(corpus)

    def read(some: Sequence[tuple[str, str | None]]) -> list[tuple[int, int]]:
        encoded = tok(
            *_arguments(some), add_special_tokens=False, truncation=True, max_length=subject.max_length, verbose=False
        )
        return [(ids.count(unk), len(ids)) for ids in map(list, encoded["input_ids"])]

    for at in range(0, 0 if uncounted else len(pairs), AT_ONCE):
        counts += _by_beginnings(subject, pairs[at : at + AT_ONCE], read, lambda found: found[1] == subject.max_length)
    return tuple(np.array(counts or [(0, 0)] * len(corpus)).T)  # type: ignore[return-value]


def _by_beginnings(
    subject: Subject,
    pairs: Sequence[tuple[str, str | None]],
    read: Callable[[Sequence[tuple[str, str | None]]], list[T]],
    enough: Callable[[T], bool],
) -> list[T]:
    """`read` of every pair. For a long single text it first reads only the beginning, and then the whole if not `enough`.

    Where `enough` is true of the result for the beginning, the whole text has the same result. Beginnings save time: a tokenizer
    splits all of a text before it drops the tokens beyond the cut.
    """
    if pairs[0][1] is not None or not begins(subject.tokenizer):
        return read(pairs)
    most_characters = LETTERS * subject.max_length
    ends = [_GAP.search(text, most_characters) if len(text) > most_characters else None for text, _ in pairs]
    results = read([(text[: end.start()] if end else text, None) for (text, _), end in zip(pairs, ends, strict=True)])
    incomplete = [i for i, end in enumerate(ends) if end and not enough(results[i])]
    for i, whole_result in zip(incomplete, read([pairs[i] for i in incomplete]) if incomplete else [], strict=True):
        results[i] = whole_result
    return results


def _templated(subject: Subject, text: str, second: str | None) -> list[int]:
    tok, most = subject.tokenizer, subject.max_length
    assert subject.template is not None
    ids = text_ids(tok, subject.template.fill(text, second))
    while len(ids) > most:
        body = tok(text, add_special_tokens=False, verbose=False)["input_ids"]
        keep = len(body) - (len(ids) - most)
        if keep < 1:
            raise BadInput(f"The template alone is longer than {most} tokens; shorten it or raise --max-length.")
        text = tok.decode(body[:keep])
        shorter = text_ids(tok, subject.template.fill(text, second))
        if len(shorter) >= len(ids):
            text = text[: max(1, len(text) // 2)]
            shorter = text_ids(tok, subject.template.fill(text, second))
        ids = shorter
    return ids


def collate(rows: Sequence[Row], pad: int) -> Batch:
    """Pad on the right to the longest row."""
    width = max(map(len, rows))
    filled = np.full((len(rows), width), pad, dtype=np.int64)
    for row, source_row in zip(filled, rows, strict=True):
        row[: len(source_row)] = source_row
    ids = torch.from_numpy(filled)
    mask = torch.from_numpy((np.arange(width) < np.array([[len(row)] for row in rows])).astype(np.int64))
    if rows[0].segments is None:
        shared = min(row.shared for row in rows)
        return Batch(ids, mask, shared=shared if bool((ids[:, :shared] == ids[0, :shared]).all()) else 0)
    segments = np.zeros_like(filled)
    for row, source_row in zip(segments, rows, strict=True):
        row[: len(source_row)] = np.asarray(source_row.segments)
    return Batch(ids, mask, torch.from_numpy(segments))


def features(subject: Subject, batch: Batch, prompt: Tensor | None = None) -> Tensor:
    """(b, d): the input of the classifier's last linear layer, one row per example. Keeps gradients if enabled.

    `prompt` (m, w) for all examples, or (b, m, w) one for each, stands in for the soft prompt of the adapter.
    """
    if prompt is not None and not subject.soft_prompted:
        raise Unsupported("Only a prompt-tuned subject takes a prompt; tune one: `trueup tune prompt`.")
    ids, mask = batch.ids.to(subject.device), batch.mask.to(subject.device)
    if subject.anatomy.causal and batch.shared and reusable(subject):
        return _after_shared(subject, ids, mask, batch.shared)
    if subject.anatomy.causal:
        return at_last(backbone(subject, ids, mask, prompt).last_hidden_state, read_up_to(subject, ids, mask))
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, **segments(subject, batch)}
    model = subject.model
    if prompt is not None:
        model, arguments = subject.base, _in_front(subject, arguments, prompt)
    head_inputs: list[Tensor] = []
    hook = subject.head_layer().register_forward_pre_hook(lambda _, inputs: head_inputs.append(inputs[0]))
    try:
        model(**arguments)
    finally:
        hook.remove()
    # A head that reads every token answers at the last one.
    return head_inputs[-1] if head_inputs[-1].ndim == 2 else at_last(head_inputs[-1], read_up_to(subject, ids, mask))


def reusable(subject: Subject) -> bool:
    """Whether a model's cache of the first tokens can serve several examples: not with a soft prompt, nor with gradients on."""
    config = subject.peft_config
    return subject.anatomy.keeps and not (torch.is_grad_enabled() or (config is not None and config.is_prompt_learning))


def _after_shared(subject: Subject, ids: Tensor, mask: Tensor, shared: int) -> Tensor:
    """(b, d) as `features`, for (b, t) tokens of which the first `shared` are the same in all rows: these are read once.

    Their keys and values, or the recurrent state after them, precede the other tokens of every example. This is exact. With b
    examples the shared part is nearly b times cheaper.
    """
    cache = past.returned(backbone(subject, ids[:1, :shared], mask[:1, :shared], use_cache=True))
    cache.reorder_cache(torch.zeros(len(ids), dtype=torch.long, device=ids.device))
    rest_mask, name = mask[:, shared:], past.argument(subject.base.base_model)  # type: ignore[arg-type]
    if subject.anatomy.kind != "state-space":
        states = backbone(subject, ids[:, shared:], mask, use_cache=True, **{name: cache}).last_hidden_state
        return at_last(states, rest_mask)
    # A cached state is continued one token at a time: given several tokens, Mamba in transformers starts from zeros.
    steps = [
        backbone(subject, ids[:, at : at + 1], mask[:, at : at + 1], use_cache=True, **{name: cache}).last_hidden_state
        for at in range(shared, ids.shape[1])
    ]
    return at_last(torch.cat(steps, dim=1), rest_mask)


def hidden_states(subject: Subject, batch: Batch) -> Tensor:
    """(b, layers + 1, d): the residual stream, embeddings first: at the last token (causal), averaged over tokens else."""
    ids, mask = batch.ids.to(subject.device), batch.mask.to(subject.device)
    # Not transformers' output_hidden_states: that leaves its own hooks on the model for good.
    with entering(subject, lambda h, _: h) as states:
        backbone(subject, ids, mask, **({} if subject.anatomy.causal else segments(subject, batch)))
    return pooled(subject, states, ids, mask)


def states_and_features(subject: Subject, batch: Batch) -> tuple[Tensor, Tensor]:
    """`hidden_states` and `features` from one pass."""
    if subject.anatomy.causal:
        states = hidden_states(subject, batch)
        return states, states[:, -1]
    with entering(subject, lambda h, _: h) as states:
        x = features(subject, batch)
    return pooled(subject, states, batch.ids.to(subject.device), batch.mask.to(subject.device)), x


def pooled(subject: Subject, states: Sequence[Tensor], ids: Tensor, mask: Tensor) -> Tensor:
    """(b, layers + 1, d) of states (b, t, d): at the last token (causal), averaged over the text's tokens else."""
    if subject.anatomy.causal:
        answer_mask = read_up_to(subject, ids, mask)
        return torch.stack([at_last(h, answer_mask) for h in states], dim=1)
    weight = mask.unsqueeze(-1) / mask.sum(dim=1, keepdim=True).unsqueeze(-1)
    return torch.stack([(h[:, -ids.shape[1] :] * weight).sum(dim=1) for h in states], dim=1)


@contextlib.contextmanager
def entering(subject: Subject, change: Callable[[Tensor, int], Tensor]) -> Iterator[list[Tensor]]:
    """Inside the block a pass fills the list with the states (b, t, d) that enter each layer, and the output of the last one.

    `change` gets the states that enter a layer and the layer's number; the layer reads what it returns.
    """
    net: nn.Module = subject.base.base_model  # type: ignore[assignment]
    states: list[Tensor] = []

    def before(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        states.append(change(inputs[0] if inputs else named["hidden_states"], len(states)))
        return ((states[-1], *inputs[1:]), named) if inputs else (inputs, {**named, "hidden_states": states[-1]})

    hooks = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers_of(subject)]
    hooks.append(net.register_forward_hook(lambda _, __, out: states.append(out.last_hidden_state)))
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def live_head(subject: Subject) -> Head:
    """The head of the live model (trainable where the adapter trains it, with an adapter's change of it), or the stand-in head."""
    if subject.head is not None:
        return subject.head
    return subject.head_map()


def head_type(subject: Subject) -> torch.dtype:
    """The type in which the model's own head computes its logits."""
    weight = map_of(subject.head_layer(), [0])[0]
    return weight.dtype


def reader(subject: Subject) -> Callable[[Tensor], Tensor]:
    """A function (..., d) features -> (..., K) logits by the live head as it is now. The head is looked up once for many calls."""
    head, words = live_head(subject), subject.template is not None and subject.head is None

    def read(x: Tensor) -> Tensor:
        # In one call, as the model does: in a 16-bit type, rounding the product before adding the bias gives another number.
        logits = nn.functional.linear(x, head.weight.to(x), head.bias.to(x))
        return subject.anatomy.capped(logits) if words else logits

    return read


def logits(subject: Subject, batch: Batch, prompt: Tensor | None = None) -> Tensor:
    """(b, K) logits of the classifier, K >= C when a stand-in head carries more rows. `prompt` as in `features`."""
    return reader(subject)(features(subject, batch, prompt))


def next_token_logits(subject: Subject, batch: Batch) -> Tensor:
    """(b, V): a causal model's logits of the token that follows each example."""
    return word_logits(subject, features(subject, batch))


def word_logits(subject: Subject, states: Tensor) -> Tensor:
    """(..., d) final states -> (..., V) a language model's logits, with the scaling and capping that the model applies."""
    anatomy, logits = subject.anatomy, subject.base.get_output_embeddings()(states)  # type: ignore[operator]
    return anatomy.capped(logits if anatomy.scale == 1 else logits * anatomy.scale)


def segments(subject: Subject, batch: Batch) -> dict[str, Tensor]:
    """The argument that tells the two texts of a pair apart, where the tokenizer gave one."""
    return {} if batch.segments is None else {"token_type_ids": batch.segments.to(subject.device)}


def own_logits(subject: Subject, row: Row) -> tuple[Tensor, list[Tensor], Tensor]:
    """Logits of one unpadded example: of the transformers or PEFT model itself, of each way through this module, and their terms.

    The terms are sums of |feature| * |weight|: the rounding error of a logit is relative to them. All are (K,): the classes,
    the class words, or the whole vocabulary where answers are read from demonstrations. One way is features and then head.
    With a soft prompt the second way is the same with that prompt given as an argument, as `run.tangent` gives it.
    """
    subject = replace(subject, head=None)
    batch = collate([row], 0)
    arguments = {"input_ids": batch.ids.to(subject.device), "attention_mask": batch.mask.to(subject.device)}
    # Some models widen the logits that their head has rounded.
    logits_of_model = subject.model(**arguments, **segments(subject, batch)).logits[0].to(head_type(subject))
    if subject.shots is not None:
        return logits_of_model[-1], [next_token_logits(subject, batch)[0]], logits_of_model[-1].abs()
    class_logits = logits_of_model if subject.template is None else logits_of_model[-1, subject.verbaliser_ids()]
    class_logits = torch.cat([torch.zeros_like(class_logits), class_logits]) if subject.sigmoid else class_logits
    ways = [features(subject, batch)]
    if subject.soft_prompted and subject.peft_config is not None:
        ways.append(features(subject, batch, subject.model.get_prompt(batch_size=1)[0]))
    return (
        class_logits,
        [reader(subject)(x)[0] for x in ways],
        ways[0][0].abs() @ live_head(subject).weight.to(class_logits).abs().T,
    )


def batched_logits(subject: Subject, rows: Sequence[Row], each: int = 8) -> Tensor:
    """(n, C): logits of the PEFT model itself for a soft-prompted decoder classifier, in padded batches of `each` examples.

    Examples keep their order and are padded on the tokenizer's own side, as transformers' Trainer evaluates. PEFT reads such a
    classifier at the last position of the batch, also where that is padding (PEFT issue 764). So these logits are not those of
    one example alone.
    """
    side, pad, logits_of_batches = subject.tokenizer.padding_side, subject.tokenizer.pad_token_id, []
    for start in range(0, len(rows), each):
        batch_rows = rows[start : start + each]
        batch = collate(batch_rows, pad)
        if side == "left":
            ids, mask = (torch.stack([t.roll(len(t) - len(r)) for t, r in zip(ts, batch_rows, strict=True)])
                         for ts in (batch.ids, batch.mask))  # fmt: skip
            batch = Batch(ids, mask)
        logits_of_batches.append(
            subject.model(input_ids=batch.ids.to(subject.device), attention_mask=batch.mask.to(subject.device)).logits
        )
    logits = torch.cat(logits_of_batches)
    return (
        torch.cat([torch.zeros_like(logits), logits], dim=1) if subject.sigmoid else logits[:, : len(subject.classes)]
    )


def read_up_to(subject: Subject, ids: Tensor, mask: Tensor) -> Tensor:
    """(b, t) a mask that ends at the token where a causal model's answer is read, in most cases the last one.

    A classifier is read at the rightmost token that is not the pad token, as transformers does. This holds also where the
    tokenizer ends every text with an end token that is the pad token too. With a soft prompt it is read at the very end.
    """
    pad = subject.pad_token_id
    if subject.template is not None or subject.soft_prompted or pad is None:
        return mask
    place = torch.arange(ids.shape[1], device=ids.device)
    last = (place * ((ids != pad) & mask.bool())).amax(dim=1, keepdim=True)
    return (place <= last).long()


def at_last(states: Tensor, mask: Tensor) -> Tensor:
    """(b, d): `states` (b, t, d) at each example's last real token, by its mask (b, t') over the text alone, t' <= t."""
    # A prompt in front makes `states` longer than `mask`; the last real token sits that much further on.
    last = states.shape[1] - mask.shape[1] + mask.sum(dim=1) - 1
    return states[torch.arange(len(states), device=states.device), last]


def backbone(subject: Subject, ids: Tensor, mask: Tensor, prompt: Tensor | None = None, **options: Any) -> Any:
    """The transformers backbone's own output on (b, t) tokens padded on the right, with the adapter's prompt or prefix.

    Its last states have the dtype in which the head reads them. A 16-bit Mamba sums its layers in 32 bits, and rounds before its
    head.
    """
    net, config = subject.base.base_model, subject.peft_config
    if subject.anatomy.kind == "state-space":
        options.setdefault("use_cache", False)
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, **options}
    if config is not None and config.is_prompt_learning:
        if config.peft_type.value == "PREFIX_TUNING":
            if not subject.anatomy.prefix:
                raise Unsupported(
                    f"Prefix tuning does not run on '{subject.anatomy.model_type}'; use a prompt or a LoRA."
                )
            arguments[past.argument(net)] = subject.model.get_prompt(batch_size=len(ids))  # type: ignore[arg-type]
            arguments["attention_mask"] = torch.cat([mask.new_ones(len(mask), config.num_virtual_tokens), mask], dim=1)
        else:
            soft_prompt: Any = subject.model.get_prompt(batch_size=len(ids)) if prompt is None else prompt  # type: ignore[operator]
            arguments = _in_front(subject, arguments, soft_prompt)
    out = net(**arguments)  # type: ignore[operator]
    if subject.anatomy.kind == "state-space":
        out.last_hidden_state = out.last_hidden_state.to(head_type(subject))
    return out


def _in_front(subject: Subject, given: dict[str, Any], prompt: Tensor) -> dict[str, Any]:
    """The arguments of a forward pass with `prompt` embedded before the tokens, as PEFT's prompt tuning puts it."""
    ids, mask = given["input_ids"], given["attention_mask"]
    embedded = subject.model.word_embeddings(ids)
    prompt = prompt.to(embedded).expand(len(ids), -1, -1)
    arguments = {k: v for k, v in given.items() if k not in ("input_ids", "attention_mask")}
    if "token_type_ids" in arguments:
        token_types = arguments["token_type_ids"]
        arguments["token_type_ids"] = torch.cat([token_types.new_zeros(prompt.shape[:2]), token_types], dim=1)
    wide_mask = torch.cat([mask.new_ones(prompt.shape[:2]), mask], dim=1)
    return {"inputs_embeds": torch.cat([prompt, embedded], dim=1), "attention_mask": wide_mask, **arguments}
