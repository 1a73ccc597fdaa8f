"""The anatomy of a model: its row of the table, or for other families one discovered in its structure and tried on the model.

Names and shapes say where the parts could be (`anatomy_of`, on a skeleton without weights); short passes through the model in hand
say whether they are (`tried`). A part that fails is left out with the reason, and what needs it refuses with that. Beyond this,
each exact shortcut proves itself where it is used, as on every family (`run.proof`).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from trueup.errors import BadInput, Unsupported
from trueup.subject import past
from trueup.subject.anatomy import CALLED, FAMILIES, Anatomy
from trueup.subject.linear import active
from trueup.subject.quiet import quiet
from trueup.subject.weights import device_in

_ROWS = 13
"""Outputs of a skeleton's head: a number that no other layer has."""
_QUERY = ("q_proj", "query_proj", "query", "q_lin", "q", "q_b_proj", "wq", "Wq", "to_q", "linear_q", "queries")
_KEY = ("k_proj", "key_proj", "key", "k_lin", "k", "kv_b_proj", "wk", "Wk", "to_k", "linear_k", "keys")
_VALUE = ("v_proj", "value_proj", "value", "v_lin", "v", "kv_b_proj", "wv", "Wv", "to_v", "linear_v", "values")
_FUSED = (
    "query_key_value",
    "qkv_proj",
    "c_attn",
    "Wqkv",
    "qkv",
    "in_proj_qkv",
    "att_proj",
    "W_pack",
    "wqkv",
    "qkv_linear",
)
_DOWN = (
    "down_proj",
    "fc2",
    "w2",
    "wo",
    "lin2",
    "c_proj",
    "dense_4h_to_h",
    "fc_out",
    "Wo",
    "dense2",
    "ff2",
    "output_linear",
)
_OUT = ("o_proj", "out_proj", "dense", "c_proj", "out_lin", "Wo", "wo", "o", "out", "dense_out", "linear_out", "proj")
_NO_SELF_ATTENTION = ("cross", "encoder_attn", "encdecattention", "inter_attention", "expert")
"""In the names of attention to another text, and of experts that call their parts the same."""
_ELSEWHERE = ("vision", "visual", "image", "audio", "speech", "video", "talker", "mtp")
"""In the names of towers that read no text, and of heads that read ahead."""


def anatomy_of(config: Any, *, words: bool, trust_remote_code: bool = False) -> Anatomy:
    """The family of a transformers config: its row of the table, or what the structure of its model says, still to be `tried`.

    Args:
        words: the model answers with a word, and not with a classification head.

    Raises:
        Unsupported: transformers builds no such model for this config, or one without a linear last layer.
    """
    model_type = str(getattr(config, "model_type", "") or "")
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    classifier, reason = _skeleton(config, False, trust_remote_code)
    head, root = _head(classifier)
    writer, other = _skeleton(config, True, trust_remote_code) if words else (None, "")
    net, why = (writer, other) if words else (classifier, reason)
    if net is None:
        step = "Give another model."
        if words and classifier is not None:
            step = "Use it without --template and --verbaliser, as a classifier with a head."
        elif not words and _skeleton(config, True, trust_remote_code)[0] is not None:
            step = "Give --template and --verbaliser, so that the model answers with a word."
        raise Unsupported(f"The architecture '{model_type}' cannot be examined this way: {why}. {step}")
    if not words and not head:
        raise Unsupported(
            f"The classification head of '{model_type}' has no linear last layer with one output for each class, so its answers "
            "cannot be read as features times a matrix. Give a model with such a head."
        )
    return _sketch(net, Anatomy(
        model_type, "decoder" if words else "encoder", "", "", "", "", "", "", "", head, root, (), discovered=True,
    ))  # fmt: skip


def told(anatomy: Anatomy) -> tuple[str, ...]:
    """What a reader must know of an anatomy, in whole sentences; of most in the table nothing."""
    sentences: tuple[str, ...] = ()
    if anatomy.discovered:
        sentences += (
            f"'{anatomy.model_type}' is not among the families that trueup is tested with: where its parts are was discovered from "
            "its structure, and proven on this very model.",
        )
    parts: dict[str, list[str]] = {}
    for part, why in anatomy.lacks.items():
        parts.setdefault(why, []).append(CALLED[part])
    if parts:
        lacks = "; ".join(f"{', '.join(names)} ({why})" for why, names in parts.items())
        sentences += (f"Not found in '{anatomy.model_type}', so what needs it is not offered: {lacks}.",)
    if "layers" in anatomy.lacks:
        sentences += ("Where the layers inside would be shown, the input of the last layer stands alone.",)
    if anatomy.alone:
        sentences += (
            "What this model says of a text depends on the other texts of its batch or on padding, so texts were read one at a "
            "time.",
        )
    return sentences


# ----------------------------------------------------------------------------------------------------------- structure


def _skeleton(config: Any, words: bool, trust_remote_code: bool) -> tuple[Any, str]:
    """The model that transformers builds for a config, without weights; else None and the reason."""
    cls = transformers.AutoModelForCausalLM if words else transformers.AutoModelForSequenceClassification
    config = copy.deepcopy(config)
    if not words:
        config.num_labels = _ROWS
    with quiet(), torch.random.fork_rng(), torch.device("meta"):
        try:
            return cls.from_config(config, trust_remote_code=trust_remote_code), ""
        except Exception as e:  # each class checks its config in its own way
            if isinstance(e, ValueError) and "Unrecognized configuration class" in str(e):
                kind = "causal language model" if words else "sequence classifier"
                return None, f"transformers {transformers.__version__} has no {kind} of this family"
            return None, f"transformers cannot build it from its config ({_short(e)})"


def _head(net: Any) -> tuple[str, str]:
    """The last linear layer of a skeleton, and the module that PEFT keeps to keep it; empty where there is none."""
    if net is None:
        return "", ""
    found = [n for n, m in net.named_modules() if isinstance(m, nn.Linear) and m.out_features == _ROWS]
    inside = f"{net.base_model_prefix}."
    if len(found) != 1 or found[0].startswith(inside):
        return "", ""
    return found[0], found[0].split(".")[0]


def _sketch(net: Any, anatomy: Anatomy) -> Anatomy:
    """Where the parts could be, by names and shapes."""
    lacks: dict[str, str] = {}
    path, why = _layers(net, anatomy)
    body: nn.Module = net.base_model
    if not path:
        lacks = {"layers": why, "attention": why, "mixer_out": why, "down": why}
        return replace(anatomy, lacks=lacks, lora=_adaptable(net, anatomy), after_padding=_after_padding(body))
    layers = list(body.get_submodule(path))  # type: ignore[arg-type]
    width = anatomy.size(net.config, "width")
    query, key, value = _attention(layers)
    if not value:
        which = [str(i) for i, layer in enumerate(layers) if not _attention([layer])[2]]
        some = f"layers {', '.join(which[:6])} lack" if len(which) < len(layers) else "none of its layers has"
        what = f"{some} an attention with query, key and value projections that their names tell apart"
        what = what if which else "its layers name the parts of their attention differently"
        lacks["attention"] = lacks["mixer_out"] = what
    scope = value.split(".")[0] if value else ""
    out = _unanimous(layers, lambda layer: _mixer_out(layer, scope, width)) if scope else ""
    if scope and not out:
        lacks["mixer_out"] = f"no layer of its attention ('{scope}') is alone in writing {width} numbers"
    up, down, why = _feed_forward(layers, scope, width)
    recurrent = any(isinstance(m, nn.Conv1d) for layer in layers for m in layer.modules()) or _decays(layers)
    kind = anatomy.kind
    mixer = _mamba_mixer(layers, width)
    if (
        kind != "encoder"
        and recurrent
        and (mixer or (down and _decays(layers)))
        and not any(_attention([x])[2] for x in layers)
    ):
        kind = "state-space"
        up, down, why = mixer or (up, down, why)
        out, lacks = down, {}
    if not down:
        lacks["down"] = why
    # A hybrid has attention in some of its layers.
    attended = next((found for x in layers if (found := _attention([x]))[2]), ())
    lora = tuple(dict.fromkeys(n.rpartition(".")[2] for n in attended))
    lora = lora or ((up.rpartition(".")[2],) if up else _adaptable(net, anatomy))
    return replace(
        anatomy, kind=kind, layers=path, query=query, key=key, value=value, mixer_out=out, up=up, down=down, lora=lora,
        lacks=lacks, prefix=kind != "state-space", after_padding=_after_padding(body),
    )  # fmt: skip


def _layers(net: Any, anatomy: Anatomy) -> tuple[str, str]:
    """The list of blocks, from the backbone; else why there is none."""
    body, depth = net.base_model, anatomy.size(net.config, "depth")
    lists = {
        n: m for n, m in body.named_modules()
        if isinstance(m, nn.ModuleList) and len(m) == depth and not any(part in n for part in _ELSEWHERE)
        and all(len([x for x in block.modules() if _linear(x)]) > 1 for block in m)
    }  # fmt: skip
    found = [n for n in lists if not any(n.startswith(f"{other}.") for other in lists)]
    if len(found) > 1 and (decoder := getattr(net, "get_decoder", lambda: None)()) is not None:
        inside = next((f"{n}." for n, m in body.named_modules() if m is decoder and n), "")
        text = [n for n in found if inside and n.startswith(inside)]
        found = text if len(text) == 1 and not getattr(net.config, "is_encoder_decoder", False) else found
    if len(found) == 1:
        return found[0], ""
    if not found:
        return "", f"the model has no list of {depth} blocks, one for each of its config's layers"
    return "", f"its lists of {depth} blocks cannot be told apart ({', '.join(sorted(found)[:4])})"


def _linear(module: Any) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _shape(module: Any) -> tuple[int, int]:
    """(inputs, outputs)."""
    if hasattr(module, "in_features"):
        return module.in_features, module.out_features
    return int(module.weight.shape[0]), int(module.weight.shape[1])


def _linears(layer: nn.Module) -> dict[str, Any]:
    return {n: m for n, m in layer.named_modules() if _linear(m)}


def _unanimous(layers: Sequence[nn.Module], find: Callable[[nn.Module], str]) -> str:
    """What `find` says of every layer; empty where they differ."""
    found = {find(layer) for layer in layers}
    return found.pop() if len(found) == 1 else ""


def _attention(layers: Sequence[nn.Module]) -> tuple[str, str, str]:
    """Query, key and value projections, one name for all where they are fused; empty where not every layer has them alike."""

    def named(layer: nn.Module, leaves: Sequence[str]) -> list[str]:
        # A cross-attention reads another text; its twin reads this one.
        return [
            n for n in _linears(layer)
            if n.rpartition(".")[2] in leaves and "." in n and not any(part in n.lower() for part in _NO_SELF_ATTENTION)
        ]  # fmt: skip

    def one(layer: nn.Module) -> tuple[str, str, str]:
        fused, values = named(layer, _FUSED), named(layer, _VALUE)
        if len(values) == 1:
            within = f"{values[0].rpartition('.')[0]}."
            query, key = ([n for n in named(layer, leaves) if n.startswith(within)] for leaves in (_QUERY, _KEY))
            if len(query) == len(key) == 1:
                return query[0], key[0], values[0]
        return (fused[0], fused[0], fused[0]) if len(fused) == 1 and not values else ("", "", "")

    found = {one(layer) for layer in layers}
    return found.pop() if len(found) == 1 else ("", "", "")


def _mixer_out(layer: nn.Module, scope: str, width: int) -> str:
    within = {n: m for n, m in _linears(layer).items() if n.startswith(f"{scope}.")}
    taken = {*_QUERY, *_KEY, *_VALUE, *_FUSED}
    found = [n for n, m in within.items() if _shape(m)[1] == width and n.rpartition(".")[2] not in taken]
    named = [n for n in found if n.rpartition(".")[2] in _OUT]
    return found[0] if len(found) == 1 else named[0] if len(named) == 1 else ""


def _feed_forward(layers: Sequence[nn.Module], scope: str, width: int) -> tuple[str, str, str]:
    """The projections up and down, and why there is none down."""
    mixed = [i for i, layer in enumerate(layers) if any("expert" in n for n, _ in layer.named_parameters())]
    if mixed:
        which = "its layers" if len(mixed) == len(layers) else f"layers {', '.join(map(str, mixed[:6]))}"
        return "", "", f"{which} mix experts, so that a unit is not shared by all tokens"

    def find(layer: nn.Module) -> str:
        candidates = {n: m for n, m in _linears(layer).items() if not (scope and n.startswith(f"{scope}."))}
        found = [n for n, m in candidates.items() if _shape(m)[1] == width]
        named = [n for n in found if n.rpartition(".")[2] in _DOWN]
        wider = [n for n in found if _shape(candidates[n])[0] > width]
        return next((some[0] for some in (found, named, wider) if len(some) == 1), "")

    down = _unanimous(layers, find)
    if not down:
        return "", "", f"not every layer has one feed-forward projection alone that writes {width} numbers"
    units = _shape(layers[0].get_submodule(down))[0]
    candidates = {
        n: m for n, m in _linears(layers[0]).items() if n != down and not (scope and n.startswith(f"{scope}."))
    }
    ups = [n for n, m in candidates.items() if _shape(m) in ((width, units), (width, 2 * units))]
    return next((n for n in reversed(ups) if "gate" not in n), ups[0] if ups else down), down, ""


def _mamba_mixer(layers: Sequence[nn.Module], width: int) -> tuple[str, str, str] | None:
    """In and out projection of a recurrence that is all that a layer is; None where it is not."""

    def find(layer: nn.Module, leaf: str) -> str:
        found = [n for n in _linears(layer) if n.rpartition(".")[2] == leaf]
        return found[0] if len(found) == 1 else ""

    up, down = (_unanimous(layers, lambda layer, leaf=leaf: find(layer, leaf)) for leaf in ("in_proj", "out_proj"))
    if not up or not down or _shape(layers[0].get_submodule(down))[1] != width:
        return None
    return up, down, ""


def _decays(layers: Sequence[nn.Module]) -> bool:
    return any(
        part in n.rpartition(".")[2]
        for layer in layers
        for n, _ in layer.named_parameters()
        for part in ("A_log", "decay")
    )


def _adaptable(net: Any, anatomy: Anatomy) -> tuple[str, ...]:
    """The name's end of a linear layer that a dormant LoRA can stand on, beside the head."""
    apart = tuple(f"{n}." for n in (anatomy.head_root, "lm_head") if n)
    found = [n for n, m in net.named_modules() if _linear(m) and not f"{n}.".startswith(apart)]
    text = [n for n in found if not any(part in n for part in _ELSEWHERE)]
    return ((text or found)[0],) if text or found else ()


def _after_padding(body: nn.Module) -> bool:
    places = positions_of(body)
    return places is not None and places.padding_idx is not None


def positions_of(body: nn.Module) -> nn.Embedding | None:
    """The table of learnt positions; None in a model that has none."""
    return next(
        (m for n, m in body.named_modules() if n.endswith("position_embeddings") and isinstance(m, nn.Embedding)), None
    )


# -------------------------------------------------------------------------------------------------------------- trials


def tried(net: Any, anatomy: Anatomy, tokenizer: Any, *, words: bool) -> Anatomy:
    """A discovered anatomy as far as short passes through the model bear it out; one of the table is tested already.

    Raises:
        Unsupported: two passes over one text differ, the model cannot be run on text alone, or what its last layer reads is not one
            row of numbers for each text.
    """
    if not anatomy.discovered:
        return anatomy
    with torch.no_grad(), quiet(), _evaluating(net):
        return _Trial(net, anatomy, tokenizer, words).verdict()


def in_batches(net: Any, anatomy: Anatomy, tokenizer: Any, *, words: bool) -> Anatomy:
    """An anatomy that says whether this model, which wears an adapter of a kind that trueup does not know, reads a text alike alone
    and in a batch."""
    with torch.no_grad(), quiet(), _evaluating(net):
        return replace(anatomy, alone=not _Trial(net, anatomy, tokenizer, words).alike(anatomy.causal))


class _Trial:
    """Passes of one model over a few tokens."""

    def __init__(self, net: Any, anatomy: Anatomy, tokenizer: Any, words: bool) -> None:
        self.net, self.body, self.anatomy, self.words = net, net.base_model, anatomy, words
        self.head = active(net.get_output_embeddings()) if words else _at(net, anatomy.head)
        self.device = device_in(net)
        self.ids = self._tokens(tokenizer)

    def verdict(self) -> Anatomy:
        anatomy, family = self.anatomy, self.anatomy.model_type
        logits, x, passed = self._whole(self.ids)
        again, _, _ = self._whole(self.ids)
        if not _same(logits, again):
            raise Unsupported(
                f"Two passes of this '{family}' over one text differ, so nothing that it says can be examined. Set what it "
                "draws at random in its config, or give another model."
            )
        states = self._alone()
        causal = states is not None and self._causal(states)
        if self.words and states is None:
            raise Unsupported(
                f"The backbone of this '{family}' cannot be run by itself, so what its head answers from cannot be read. Give "
                "another model."
            )
        if self.words and not causal:
            return replace(anatomy, kind="encoder")
        if self.words:
            anatomy = self._scaled(anatomy, x, states, logits)
        else:
            causal = causal and self._reads_states(x, states)
        if not causal and x.ndim == 3 and not (logits.ndim == 2 and _same(self.head(x[0, -1]), logits[0])):
            raise Unsupported(
                f"The last layer of this '{family}' is given numbers of shape {tuple(x.shape)}, and what the model answers is "
                "not what that layer makes of the last of them, so what it answers from cannot be read. Give another model."
            )
        kind = anatomy.kind if causal and anatomy.kind == "state-space" else "decoder" if causal else "encoder"
        anatomy = self._with_layers(replace(anatomy, kind=kind), logits, states if causal else passed)
        # Which of several tokens is read behind padding is each family's own rule, and there is none without.
        alone = (not causal and x.ndim == 3) or not self.alike(causal)
        return replace(anatomy, alone=alone, keeps=causal and self._goes_on(kind, states))

    def _tokens(self, tokenizer: Any) -> list[int]:
        """A short text's tokens, in the frame that the tokenizer puts around every text; the others are drawn at random."""
        own_tokens = [int(i) for i in tokenizer("seven words that stand for a text", verbose=False)["input_ids"]]
        vocabulary = getattr(self.net.config.get_text_config(), "vocab_size", None) or len(tokenizer)
        special, most = {*tokenizer.all_special_ids}, min(len(tokenizer), vocabulary)
        drawn = torch.randint(most, (len(own_tokens), 64), generator=torch.Generator().manual_seed(0)).tolist()
        ids = [i if i in special and i != tokenizer.unk_token_id else next((j for j in row if j not in special), i)
               for i, row in zip(own_tokens, drawn, strict=True)]  # fmt: skip
        if len(ids) < 4:
            raise BadInput(
                f"The tokenizer makes {len(ids)} tokens of a text of seven words; give the one that belongs to the model."
            )
        return ids

    def _given(self, *rows: Sequence[int]) -> dict[str, Tensor]:
        pad, wide = getattr(self.net.config.get_text_config(), "pad_token_id", None) or 0, max(map(len, rows))
        ids = torch.tensor([[*row, *[pad] * (wide - len(row))] for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (wide - len(row)) for row in rows], device=self.device)
        return {"input_ids": ids, "attention_mask": mask}

    def _whole(self, *rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits, the input of the last layer, and the backbone's final states on the way (None where there are none)."""
        heads: list[Tensor] = []
        bodies: list[Any] = []
        hooks = [self.head.register_forward_pre_hook(lambda _, a: heads.append(a[0]))]
        if self.body is not self.net:
            hooks.append(self.body.register_forward_hook(lambda _, __, out: bodies.append(out)))
        try:
            logits = self.net(**self._given(*rows)).logits
        except Exception as e:  # each model asks for what it needs in its own way
            raise Unsupported(
                f"This {type(self.net).__name__} cannot be run on a text alone ({_short(e)}). Give a model that reads text."
            ) from e
        finally:
            for hook in hooks:
                hook.remove()
        if len(heads) != 1:
            raise Unsupported(
                f"The last layer of this {type(self.net).__name__} runs {len(heads)} times in one pass, so what it answers from "
                "cannot be read. Give another model."
            )
        states = getattr(bodies[-1], "last_hidden_state", None) if bodies else None
        return logits, heads[0], states

    def _states(self, *rows: Sequence[int], **options: Any) -> Tensor:
        return self._as_read(self.body(**self._given(*rows), **options).last_hidden_state)

    def _as_read(self, states: Any) -> Any:
        """Final states in the type in which the head reads them (see `forward.backbone`)."""
        short = next((p.dtype for p in self.head.parameters() if p.dtype in (torch.float16, torch.bfloat16)), None)
        return states.to(short) if short and isinstance(states, Tensor) and states.dtype == torch.float32 else states

    def _alone(self) -> Tensor | None:
        """The backbone's final states when it runs by itself; None where it needs more than text, such as a decoder's own input."""
        try:
            states = self._states(self.ids)
        except Exception:  # each asks for what it needs in its own way
            return None
        return states if isinstance(states, Tensor) and states.shape[:2] == (1, len(self.ids)) else None

    def _causal(self, states: Tensor) -> bool:
        """Whether another last token leaves the states before it as they are."""
        other = [*self.ids[:-1], next(i for i in (*self.ids[1:-1], self.ids[-1] ^ 1) if i != self.ids[-1])]
        return _same(self._states(other)[:, :-1], states[:, :-1])

    def _reads_states(self, x: Tensor, states: Tensor | None) -> bool:
        """Whether the last layer is given the final states: all of them, or that of the last token."""
        assert states is not None
        if x.ndim == 3:
            return x.shape[1] <= states.shape[1] and _same(x, states[:, -x.shape[1] :])
        return _same(x, states[:, -1])

    def _scaled(self, anatomy: Anatomy, x: Tensor, states: Tensor | None, said: Tensor) -> Anatomy:
        """What a language model does to the numbers that its head makes of the final states: nothing, a factor, or a soft cap."""
        assert states is not None
        read = states if states.shape[-1] == x.shape[-1] else torch.zeros_like(x)
        plain, said = self.head(read)[0, -1], said[0, -1]
        # A cap first: where logits are small it looks like nothing, or like a factor near 1.
        cap = float(getattr(self.net.config.get_text_config(), "final_logit_softcapping", None) or 0)
        near = torch.finfo(plain.dtype).eps if plain.dtype.itemsize < 4 else NEAR  # one rounding more than the model's
        if cap and _same((capped := replace(anatomy, cap=cap)).capped(plain), said, near):
            return capped
        if _same(plain, said, near):
            return anatomy
        scale = float((plain.float() * said.float()).sum() / plain.float().square().sum())
        if _same(plain * scale, said, near):
            return replace(anatomy, scale=scale)
        raise Unsupported(
            f"What this '{anatomy.model_type}' says of the next token is not what its head makes of the final states of its "
            "backbone, nor that by a factor or a soft cap, so what it answers from cannot be read. Give another model."
        )

    def _with_layers(self, anatomy: Anatomy, said: Tensor, states: Tensor | None) -> Anatomy:
        if not anatomy.layers:
            return anatomy
        try:
            why = self._runs(anatomy, said, states)
        except Exception as e:  # whatever a model does with what it is given
            why = f"they could not be watched at work ({_short(e)})"
        if states is None and not why:
            why = "the backbone gives no final states"
        if why:
            parts = dict.fromkeys(("layers", "attention", "mixer_out", "down"), why)
            return replace(anatomy, layers="", query="", key="", value="", mixer_out="", up="", down="", lacks=parts)
        ran = self._ran(anatomy)
        lacks = dict(anatomy.lacks)
        depth = len(self.body.get_submodule(anatomy.layers))
        for part, empty in (
            ("down", ("up", "down")),
            ("mixer_out", ("mixer_out",)),
            ("value", ("query", "key", "value")),
        ):
            name = getattr(anatomy, part)
            if name and any(ran[name, at] != 1 for at in range(depth)):
                lacks["attention" if part == "value" else part] = f"'{name}' does not run once in each layer"
                anatomy = replace(anatomy, **dict.fromkeys(empty, ""))
        wide = anatomy.mixer_out and _read(self.body.get_submodule(anatomy.layers)[0].get_submodule(anatomy.mixer_out))
        heads = anatomy.size(self.net.config, "heads")
        if anatomy.kind == "decoder" and wide and wide % heads:
            lacks["mixer_out"] = f"its {wide} inputs are no multiple of the {heads} heads"
            anatomy = replace(anatomy, mixer_out="")
        return replace(anatomy, lacks=lacks)

    def _runs(self, anatomy: Anatomy, said: Tensor, states: Tensor | None) -> str:
        """Why the layers are not what every token goes through, one after another; empty where they are."""
        layers = list(self.body.get_submodule(anatomy.layers))
        width = anatomy.size(self.net.config, "width")
        order: list[int] = []
        wrong: list[str] = []

        def watch(change: Callable[[Tensor, int], Tensor]) -> Tensor:
            def enter(at: int) -> Any:
                def hook(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
                    order.append(at)
                    x = inputs[0] if inputs else named.get("hidden_states")
                    if not isinstance(x, Tensor) or tuple(x.shape) != (1, len(self.ids), width):
                        wrong.append(f"layer {at} is not given the states of the {len(self.ids)} tokens")
                        return None
                    new = change(x, at)
                    return ((new, *inputs[1:]), named) if inputs else (inputs, named | {"hidden_states": new})

                return hook

            hooks = [layer.register_forward_pre_hook(enter(i), with_kwargs=True) for i, layer in enumerate(layers)]
            try:
                return self.net(**self._given(self.ids)).logits
            finally:
                for hook in hooks:
                    hook.remove()

        if states is not None and states.shape[-1] != width:
            return f"the final states are {states.shape[-1]} wide, and the layers {width}"
        same = watch(lambda x, _: x.clone())
        if wrong:
            return wrong[0]
        if order != list(range(len(layers))):
            return f"'{anatomy.layers}' does not run once, in its order, in a pass"
        if not _same(same, said):
            return "states that are put back as they were change the answer"
        g = torch.Generator().manual_seed(1)
        noise = torch.randn(1, len(self.ids), width, generator=g).to(said)
        moved = watch(lambda x, at: x + noise * x.std() if at == len(layers) - 1 else x)
        return "other states before the last layer leave the answer as it is" if _same(moved, said) else ""

    def _ran(self, anatomy: Anatomy) -> Counter[tuple[str, int]]:
        """How often each part of each layer runs in a pass, on all tokens."""
        ran: Counter[tuple[str, int]] = Counter()
        hooks: list[Any] = []
        for at, layer in enumerate(self.body.get_submodule(anatomy.layers)):
            for name in {anatomy.down, anatomy.mixer_out, anatomy.query, anatomy.key, anatomy.value} - {""}:

                def count(_: nn.Module, inputs: tuple[Any, ...], key: tuple[str, int] = (name, at)) -> None:
                    ran[key] += 1 if inputs[0][..., 0].numel() == len(self.ids) else 2

                hooks.append(layer.get_submodule(name).register_forward_pre_hook(count))
        try:
            self.net(**self._given(self.ids))
        finally:
            for hook in hooks:
                hook.remove()
        return ran

    def alike(self, causal: bool) -> bool:
        """Whether a text is read alike alone, and beside a longer one behind padding."""
        # Of several lengths, each with one beginning and one end token, as every text.
        texts = [[*self.ids[:k], self.ids[-1]] for k in range(2, 6) if k < len(self.ids)] + [
            [*self.ids[:-1], *self.ids[1:]]
        ]
        try:
            if causal:
                batched = self._states(*texts)
                return all(_same(self._states(t)[0, -1], batched[i, len(t) - 1]) for i, t in enumerate(texts))
            batched = self._whole(*texts)[0]
            return all(_same(self._whole(t)[0][0], batched[i]) for i, t in enumerate(texts))
        except Exception:  # what cannot be run in a batch is run alone
            return False

    def _goes_on(self, kind: str, states: Tensor | None) -> bool:
        """Whether what the model keeps of the first tokens, given back for the rest, leads to the same final states."""
        assert states is not None
        whole, half = self._given(self.ids), len(self.ids) // 2
        ids, mask = whole["input_ids"], whole["attention_mask"]
        try:
            name = past.argument(self.body)
            cache = past.returned(self.body(input_ids=ids[:, :half], attention_mask=mask[:, :half], use_cache=True))
            step, continued = 1 if kind == "state-space" else len(self.ids) - half, []
            for at in range(half, len(self.ids), step):
                seen = mask[:, at : at + 1] if kind == "state-space" else mask
                out = self.body(input_ids=ids[:, at : at + step], attention_mask=seen, use_cache=True, **{name: cache})
                continued.append(self._as_read(out.last_hidden_state))
        except Exception:  # many models keep something else, or nothing
            return False
        return _same(torch.cat(continued, dim=1), states[:, half:])


def _at(net: Any, path: str) -> Any:
    """The module of this name, seen through PEFT's ``modules_to_save`` wrapper."""
    module: Any = net
    for name in path.split("."):
        module = active(getattr(module, name))
    return module


def _read(module: Any) -> int:
    """Inputs of a projection, in the adapter's wrapping where there is one."""
    return _shape(module.get_base_layer() if hasattr(module, "get_base_layer") else module)[0]


NEAR, NEAR_SHORT = 1e-4, 0.05
"""How far apart, relative to the largest value, two results may lie that rounding alone tells apart: in 32 bits, and in 16."""


def _same(a: Tensor, b: Tensor, near: float | None = None) -> bool:
    """Equal but for rounding, relative to the largest value."""
    near = near or (NEAR if b.dtype == torch.float32 else NEAR_SHORT)
    return a.shape == b.shape and bool(
        (a.float() - b.float()).abs().max() <= near * b.float().abs().max().clamp(min=1e-6)
    )


def _short(e: Exception) -> str:
    return " ".join(f"{type(e).__name__}: {e}".split())[:200].rstrip(".")


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode
