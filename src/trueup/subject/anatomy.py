"""Where the parts are: one table of the architecture families that trueup is tested with; `discover` finds those of the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trueup.errors import Unsupported
from trueup.subject.template import Template

Kind = Literal["encoder", "decoder", "state-space"]

CALLED = {
    "layers": "layers", "attention": "attention", "mixer_out": "output projection of the attention heads",
    "down": "feed-forward units", "head": "last layer",
}  # fmt: skip


@dataclass(frozen=True)
class Anatomy:
    """One architecture family. Paths are dotted module names; `layers` starts at the backbone, the rest in a layer.

    Attributes:
        model_type: the family's ``config.model_type``.
        kind: ``encoder`` (bidirectional), ``decoder`` (causal attention) or ``state-space`` (causal, no attention).
        layers: the list of blocks, from the backbone.
        query, key, value: attention projections; the same name three times where they are one fused matrix;
            empty for state-space models.
        mixer_out: what brings the mixed tokens back to the residual stream.
        up, down: the feed-forward projections; `down` is the one whose input are the units (``out_proj`` in Mamba).
        head: the last linear layer of the sequence classifier, from the model; empty where transformers has none.
        head_root: the module that PEFT keeps as a whole (``modules_to_save``) to keep that layer.
        lora: the layers that LoRA adapts unless told otherwise.
        width, heads, depth: names of the config's fields for hidden size, attention heads, layers.
        prefix: whether PEFT's prefix tuning runs on this family.
        in_turn: a fused matrix holds query, key and value rows of each head in turn; else all queries, all keys, all values.
        after_padding: the first token has the position after that of padding, and not 0.
        discovered: found from the structure of a model that is not in the table.
        lacks: by the part that was not found (``layers``, ``attention``, ``mixer_out``, ``down``, ``head``), why; whatever needs it
            refuses with that.
        alone: an example's result depends on what stands beside it in a batch, so examples run one at a time.
        keeps: what the model keeps of the first tokens serves to read further ones.
        scale, cap: a language model's logits are cap * tanh(scale * head / cap), without the cap where it is 0.
    """

    model_type: str
    kind: Kind
    layers: str
    query: str
    key: str
    value: str
    mixer_out: str
    up: str
    down: str
    head: str
    head_root: str
    lora: tuple[str, ...]
    width: str = "hidden_size"
    heads: str = "num_attention_heads"
    depth: str = "num_hidden_layers"
    prefix: bool = True
    in_turn: bool = False
    after_padding: bool = False
    discovered: bool = False
    lacks: Mapping[str, str] = field(default_factory=dict, compare=False)
    alone: bool = False
    keeps: bool = True
    scale: float = 1.0
    cap: float = 0.0

    @property
    def causal(self) -> bool:
        """True when a token sees only what stands before it, so that the last token carries the answer."""
        return self.kind != "encoder"

    def need(self, part: str) -> None:
        """Raises Unsupported where `part` was not found, with the check that failed."""
        if part in self.lacks:
            raise Unsupported(
                f"The {CALLED[part]} of '{self.model_type}' could not be discovered: {self.lacks[part]}. What needs only the last "
                "layer works all the same; for the rest give a model of another family."
            )

    def capped(self, logits: Any) -> Any:
        """Logits under the soft cap of a language model that has one."""
        return self.cap * (logits / self.cap).tanh() if self.cap else logits

    def size(self, config: Any, name: Literal["width", "heads", "depth"]) -> int:
        """The field of the config, or of the part of it that is about text; at least 1."""
        return int(getattr(config.get_text_config(), getattr(self, name) or "no heads", 0) or 1)

    def sizes(self, config: Any) -> dict[str, Any]:
        """`token_dim`, `num_layers` and `num_attention_heads` of a model, under the names PEFT's prompt configs use.

        Prompts are as wide as the word embeddings, which ELECTRA keeps narrower than its layers.
        """
        text = config.get_text_config()
        width = int(getattr(text, "embedding_size", None) or self.size(text, "width"))
        return {
            "token_dim": width,
            "num_layers": self.size(text, "depth"),
            "num_attention_heads": self.size(text, "heads"),
        }

    def prefix_sizes(self, config: Any) -> dict[str, Any]:
        """`sizes` of a prefix, whose keys and values are as many and as wide as the model's own: PEFT counts heads that share
        them (grouped-query attention) once."""
        text = config.get_text_config()
        sizes, shared = self.sizes(text), getattr(text, "num_key_value_heads", None)
        if shared is None:
            return sizes
        wide = getattr(text, "head_dim", None) or sizes["token_dim"] // sizes["num_attention_heads"]
        return sizes | {"token_dim": wide * shared, "num_attention_heads": shared}


def _bert_like(model_type: str, head: str, **names: Any) -> Anatomy:
    return Anatomy(
        model_type, "encoder", "encoder.layer",
        "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
        "intermediate.dense", "output.dense", head, "classifier", ("query", "key", "value"),
        prefix=model_type != "electra", **names,
    )  # fmt: skip


def _llama_like(model_type: str) -> Anatomy:
    return Anatomy(
        model_type, "decoder", "layers",
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.up_proj", "mlp.down_proj", "score", "score", ("q_proj", "k_proj", "v_proj"),
    )  # fmt: skip


def _neox_like(model_type: str, layers: str, attention: str, **names: Any) -> Anatomy:
    fused = f"{attention}.query_key_value"
    return Anatomy(
        model_type, "decoder", layers, fused, fused, fused, f"{attention}.dense",
        "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "score", "score", ("query_key_value",), in_turn=True, **names,
    )  # fmt: skip


def _mamba_like(model_type: str) -> Anatomy:
    return Anatomy(
        model_type, "state-space", "layers", "", "", "", "mixer.out_proj",
        "mixer.in_proj", "mixer.out_proj", "", "", ("in_proj",), heads="", prefix=False,
    )  # fmt: skip


FAMILIES: dict[str, Anatomy] = {
    a.model_type: a
    for a in (
        _bert_like("bert", "classifier"),
        *(  # one architecture under three names
            _bert_like(name, "classifier.out_proj", after_padding=True) for name in ("roberta", "xlm-roberta", "camembert")
        ),
        _bert_like("electra", "classifier.out_proj"),
        Anatomy(
            "distilbert", "encoder", "transformer.layer",
            "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin",
            "ffn.lin1", "ffn.lin2", "classifier", "classifier", ("q_lin", "k_lin", "v_lin"),
            width="dim", heads="n_heads", depth="n_layers", prefix=False,
        ),
        Anatomy(
            "deberta-v2", "encoder", "encoder.layer",
            "attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj", "attention.output.dense",
            "intermediate.dense", "output.dense", "classifier", "classifier", ("query_proj", "key_proj", "value_proj"),
            prefix=False,
        ),
        Anatomy(
            "modernbert", "encoder", "layers", "attn.Wqkv", "attn.Wqkv", "attn.Wqkv", "attn.Wo",
            "mlp.Wi", "mlp.Wo", "classifier", "classifier", ("Wqkv",), prefix=False,
        ),
        Anatomy(
            "mpnet", "encoder", "encoder.layer",
            "attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o",
            "intermediate.dense", "output.dense", "classifier.out_proj", "classifier", ("q", "k", "v"), prefix=False,
            after_padding=True,
        ),
        Anatomy(
            "gpt2", "decoder", "h", "attn.c_attn", "attn.c_attn", "attn.c_attn", "attn.c_proj",
            "mlp.c_fc", "mlp.c_proj", "score", "score", ("c_attn",), width="n_embd", heads="n_head", depth="n_layer",
        ),
        Anatomy(
            "opt", "decoder", "decoder.layers",
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj",
            "fc1", "fc2", "score", "score", ("q_proj", "k_proj", "v_proj"),
        ),
        _neox_like("bloom", "h", "self_attention", heads="n_head", depth="n_layer"),
        _neox_like("gpt_neox", "layers", "attention"),
        *map(_llama_like, ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text")),
        *map(_mamba_like, ("mamba", "mamba2")),
    )
}  # fmt: skip


def check_words(anatomy: Anatomy, template: Template | None) -> None:
    """Raises Unsupported where a model of this anatomy does not answer as the template asks."""
    if template is None:
        return
    if not anatomy.causal:
        raise answers_with_no_word(anatomy, template.shots is not None)
    if anatomy.cap and template.shots is None:
        raise Unsupported(
            f"'{anatomy.model_type}' caps its logits softly (at {anatomy.cap:g}), so that answer words are no linear last layer "
            "that could be read or repaired. Ask it with demonstrations (--shots 4), or train a classification head on it: `trueup "
            "tune lora MODEL --data ...`."
        )


def answers_with_no_word(anatomy: Anatomy, shots: bool = False) -> Unsupported:
    """The refusal of a verbaliser, or of demonstrations, on an encoder, which does not write the next word."""
    if anatomy.discovered:
        return Unsupported(
            f"This '{anatomy.model_type}' is no causal model: another last token changes what it makes of those before it, as in "
            "an encoder. Use it without --template, --verbaliser and --shots, as a classifier with a head, or set is_decoder in "
            "its config if it was trained to write."
        )
    if shots:
        return Unsupported(
            f"'{anatomy.model_type}' is an encoder and does not learn from demonstrations in its prompt; give a causal model, "
            "such as 'embedded:smollm2'."
        )
    return Unsupported(
        f"'{anatomy.model_type}' is an encoder and does not answer with a word; use it without --template and --verbaliser, "
        "as a classifier with a head."
    )
