"""Every causal and every sequence-classification model that transformers builds from a small random config, through trueup once.

    python tools/families.py [-o results.jsonl] [--only TYPE ...] [--seconds 180]

Each is held against transformers and PEFT themselves: the logits of single texts, a head of more rows saved and loaded with plain
PEFT, units scaled at the last token against whole passes, and units scaled by a saved adapter. Prints one line for each model, and
counts: works, in part (what is refused, and why), refused, not built (from a small config), too slow, crashed, WRONG (any
number that differs by more than rounding). Exits 1 where a number is wrong or trueup crashed. Rows already in the results are not
run again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from trueup.corpus.corpus import Corpus
from trueup.errors import TrueupError
from trueup.run import forward
from trueup.run.edit import scaled
from trueup.run.integrated_gradients import scaled_at_last
from trueup.run.predict import evaluating, predict
from trueup.run.prompts import Row
from trueup.subject import adapter as files
from trueup.subject.load import load
from trueup.subject.quiet import quiet
from trueup.subject.subject import Head, Subject
from trueup.subject.tiny import make_tokenizer
from trueup.subject.units import layers_of, scales_as_adapter, width_of

TOLERANCE = 1e-3
"""Largest difference from transformers itself, relative to the largest value: float32, a few layers."""
MOST = 40_000_000
"""Weights of a model that is still called small."""
TEXT = ["good cat sat", "bad", "the cat bad good mat sat on the good dog", "very loud film it was"]
WORDS = ("good", "bad", "cat")
CLASSES = ("a", "b", "c")

WIDTH, HEADS, LAYERS, UNITS, VOCABULARY = 32, 4, 4, 48, 64
BY_NAME: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size", "embed_dim", "d_embed", "hidden_dim",
                     "pooler_hidden_size", "lru_width", "model_dim"), WIDTH),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "encoder_attention_heads", "decoder_attention_heads", "num_heads",
                     "nhead"), HEADS),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "num_layers",
                     "num_decoder_layers", "num_encoder_layers", "layers"), LAYERS),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner", "dff",
                     "hidden_dim_ff", "moe_intermediate_size", "shared_expert_intermediate_size", "expert_dim", "ffn_hidden_size",
                     "shared_intermediate_size", "intermediate_size_mlp", "mlp_intermediate_size"), UNITS),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_top_k", "top_k_experts"), 2),
    "num_key_value_heads": 2, "head_dim": 8, "d_kv": 8, "max_position_embeddings": 128, "n_positions": 128,
    "vocab_size": VOCABULARY,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "qk_head_dim": 16,
    "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1,
    "state_size": 8, "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_expand": 2, "mamba_n_groups": 1,
    "mamba_num_heads": 4, "mamba_head_dim": 16, "mamba_ngroups": 1, "n_mamba_heads": 2, "mamba_chunk_size": 8, "mamba_dt_rank": 4,
    "mamba_headdim": 16, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
    "sliding_window": 64, "local_attention": 64, "attention_window": 64, "type_vocab_size": 2, "word_embed_proj_dim": WIDTH,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "attention_head_size": 8,
    "intermediate_size_per_layer": UNITS, "block_size": 8, "num_memory_blocks": 2, "bottleneck_size": 16,
    "entity_vocab_size": 8, "entity_emb_size": WIDTH, "coordinate_size": 6, "shape_size": 4, "default_language": "en_XX",
}  # fmt: skip
SPECIAL: dict[str, dict[str, Any]] = {
    "jamba": {"num_hidden_layers": 4}, "zamba": {"num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 2},
    "zamba2": {"num_hidden_layers": 6, "layers_block_type": ["mamba", "mamba", "hybrid"] * 2, "num_mem_blocks": 1,
               "n_mamba_heads": 4},
    "granite": {"logits_scaling": 8.0}, "gemma2": {"final_logit_softcapping": 1.0},
    "bamba": {"attn_layer_indices": [1, 3]}, "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2}, "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "falcon_h1": {"mamba_d_ssm": 64}, "mamba2": {"num_heads": 8}, "zaya": {"num_experts_per_tok": 1},
    "esmc": {"num_key_value_heads": HEADS}, "gptj": {"rotary_dim": 4}, "codegen": {"rotary_dim": 4},
    "reformer": {"axial_pos_shape": [16, 8], "axial_pos_embds_dim": [16, 16], "attn_layers": ["local"] * 2, "hash_seed": 0},
    "funnel": {"block_sizes": [2, 2], "d_head": 8, "d_inner": UNITS}, "xlnet": {"d_inner": UNITS, "d_head": 8},
    "mpt": {"n_heads": 4}, "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 64},
    "falcon": {"alibi": False}, "squeezebert": {"q_groups": 2, "k_groups": 2, "v_groups": 2, "post_attention_groups": 1,
                                                "intermediate_groups": 2, "output_groups": 2},
    "mobilebert": {"intra_bottleneck_size": 16, "true_hidden_size": 16}, "convbert": {"head_ratio": 2},
    "recurrent_gemma": {"attention_window_size": 64}, "perceiver": {"num_latents": 8, "d_latents": WIDTH, "d_model": WIDTH},
    "longformer": {"attention_window": [8] * LAYERS}, "lilt": {"hidden_size": 48},
    "gemma3n_text": {"intermediate_size": [UNITS] * 4, "num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0] * 4},
}  # fmt: skip
_STALE = (
    "layer_types",
    "mlp_layer_types",
    "layers_block_type",
    "transformers_version",
    "no_rope_layers",
    "moe_layers",
    "per_layer_config",
)
"""Of a config inside of another: lists with one entry for each of the layers there were, which a config fills in by itself."""
FIXED = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}


class Late(BaseException):
    """A model took too long. No Exception, so that nothing on the way takes it for one."""


def small(model_type: str) -> Any:
    """The config of a family, every size that is known by its name made small."""
    cls = CONFIG_MAPPING[model_type]
    config = cls(**_made_small(cls(), model_type))
    for name, value in FIXED.items():
        if not hasattr(config, name):
            setattr(config, name, value)
    return config


def _made_small(config: Any, model_type: str) -> dict[str, Any]:
    there: dict[str, Any] = {}
    for name in (*config.to_dict(), *getattr(config, "attribute_map", {})):
        with contextlib.suppress(Exception):  # some say that a number differs from layer to layer
            there[name] = getattr(config, name)
    given: dict[str, Any] = {}
    for name, value in there.items():
        if isinstance(value, transformers.PreTrainedConfig):
            inner = value.to_dict() | _made_small(value, value.model_type)
            given[name] = {k: v for k, v in inner.items() if k not in _STALE or k in SPECIAL.get(value.model_type, {})}
        elif name in FIXED:
            given[name] = FIXED[name]
        elif name in BY_NAME and isinstance(value, int | float | str | type(None)) and not isinstance(value, bool):
            given[name] = BY_NAME[name]
        elif name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            given[name] = VOCABULARY - 1
        elif "dropout" in name and isinstance(value, float):
            given[name] = 0.0
    if "kv_lora_rank" in there and "num_key_value_heads" in given:
        given["num_key_value_heads"] = HEADS  # keys and values are made anew for each head
    mapped = {v: k for k, v in getattr(config, "attribute_map", {}).items()}
    given = {k: v for k, v in given.items() if mapped.get(k) not in given or k in config.to_dict()}
    return {k: v for k, v in given.items() if k in config.to_dict() or k in there} | SPECIAL.get(model_type, {})


def build(model_type: str, words: bool) -> Any:
    """A random model; raises whatever transformers raises."""
    config = small(model_type)
    cls = transformers.AutoModelForCausalLM if words else transformers.AutoModelForSequenceClassification
    if words:
        config.is_decoder = True  # as those are used whose encoder can be told to write
    else:
        config.num_labels = len(CLASSES)
    with torch.device("meta"):
        size = sum(p.numel() for p in cls.from_config(config).parameters())
    if size > MOST:
        raise MemoryError(f"{size:,} weights in spite of a small config")
    torch.manual_seed(0)
    net = cls.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for p in net.parameters():
            if p.is_floating_point():
                p.add_(torch.randn_like(p) * 0.05)
    plain(net, [[5, 6, 7, 3]])
    return net


def reloaded(net: Any, words: bool, folder: Path) -> Any:
    """The model as its checkpoint gives it, which is what a saved adapter is put on."""
    net.save_pretrained(folder)
    make_tokenizer(pair=not words).save_pretrained(folder)
    cls = transformers.AutoModelForCausalLM if words else transformers.AutoModelForSequenceClassification
    first, second = (cls.from_pretrained(folder, dtype=torch.float32).eval() for _ in range(2))
    if apart(plain(second, [[5, 6, 7, 3]]), plain(first, [[5, 6, 7, 3]])) > TOLERANCE:
        raise RuntimeError("two loads of its checkpoint say different things")
    return first


def plain(net: Any, rows: list[list[int]], pick: Any = None) -> np.ndarray:
    """What transformers or PEFT says of single texts, unpadded."""
    got = []
    for ids in rows:
        with torch.no_grad():
            z = net(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)).logits[0]
        got.append((z if pick is None else z[-1, pick]).float().numpy())
    return np.stack(got)


def apart(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or not np.isfinite(a).all():
        return float("inf")
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-9))


class Case:
    """One model: what was right, what was refused, what was wrong."""

    def __init__(self, net: Any, words: bool, folder: Path) -> None:
        self.net, self.words, self.folder = net, words, folder
        self.tokenizer = make_tokenizer(pair=not words)
        self.right: list[str] = []
        self.refused: dict[str, str] = {}
        self.wrong: dict[str, float] = {}

    def holds(self, what: str, got: Any, expected: Any) -> None:
        off = apart(got, expected)
        if off <= TOLERANCE:
            self.right.append(what)
        else:
            self.wrong[what] = off

    @contextlib.contextmanager
    def part(self, what: str) -> Any:
        try:
            yield
        except TrueupError as e:
            self.refused[what] = str(e)

    def subject(self, **how: Any) -> Subject:
        return load(self.net, tokenizer=self.tokenizer, max_length=32, **how)

    def run(self) -> None:
        if self.words:
            with self.part("answer words"):
                self.with_words()
            with self.part("demonstrations"):
                self.with_shots()
        else:
            with self.part("classifier"):
                self.classifier()

    def classifier(self) -> None:
        subject = self.subject(classes=CLASSES)
        rows = self.logits(subject, None)
        with self.part("a saved head"):
            self.head_travels(subject, rows)
        with self.part("layers"):
            self.layers(subject, rows)
        with self.part("units"):
            self.units(subject, rows, None)

    def with_words(self) -> None:
        subject = self.subject(template="say {text} now", verbaliser=WORDS)
        rows = self.logits(subject, subject.verbaliser_ids())
        with self.part("a saved head"):
            self.head_travels(subject, rows)

    def with_shots(self) -> None:
        subject = self.subject(shots=2)
        rows = [[5, 6, 7, 8, 9, 10, 4], [5, 6, 7], [11, 12, 13, 5, 6]]
        with evaluating(subject), torch.inference_mode():
            got = [forward.next_token_logits(subject, forward.collate([Row(r)], 0))[0].numpy() for r in rows]
        self.holds("next tokens", np.stack(got), plain(self.net, rows, slice(None)))
        with self.part("layers"):
            self.layers(subject, rows)
        for part in ("down", "mixer_out"):
            with self.part(f"steps ({part})"):
                self.steps(subject, rows, part)
        with self.part("units"):
            self.units(subject, rows, slice(None))

    def logits(self, subject: Subject, pick: Any) -> list[list[int]]:
        corpus = Corpus(TEXT, np.arange(len(TEXT)) % 3, subject.classes, np.array(["test"] * len(TEXT)))
        rows = [list(r) for r in forward.tokenize(subject, corpus)]
        self.holds("logits", predict(subject, corpus).logits, plain(self.net, rows, pick))
        return rows

    def head_travels(self, subject: Subject, rows: list[list[int]]) -> None:
        own, g = subject.own_head(), torch.Generator().manual_seed(3)
        biased = not self.words and subject.head_layer().bias is not None
        more = torch.randn(2, own.weight.shape[1], generator=g) * own.weight.std()
        head = Head(torch.cat([own.weight, more]), torch.cat([own.bias, torch.randn(2, generator=g) * biased]))
        settings, tensors = files.adapter_with_head(subject, head)
        with evaluating(subject), torch.inference_mode():
            wide = replace(subject, head=head)
            ours = torch.cat([forward.logits(wide, forward.collate([Row(r)], 0)) for r in rows]).numpy()
        net = self.loaded(transformers.AutoModelForSequenceClassification, settings, tensors, num_labels=5)
        self.holds("a saved head", plain(net, rows), ours)

    def layers(self, subject: Subject, rows: list[list[int]]) -> None:
        """Every state that enters a layer, but for the first, is one of those that transformers itself gives."""
        depth = len(layers_of(subject))
        with evaluating(subject), torch.inference_mode():
            batch = forward.collate([Row(rows[0])], 0)
            ours = forward.hidden_states(subject, batch)[0]
            out = self.net(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True)
        theirs = getattr(out, "hidden_states", None)
        if not theirs or len(theirs) < depth:
            self.right.append("layers, with no states of transformers to compare with")
            return
        states = [(t[0, -1] if subject.anatomy.causal else t[0].mean(dim=0)).numpy() for t in theirs]
        nearest = [min(states, key=lambda t, x=x: apart(t, x)) for x in ours[1:-1].numpy()]
        self.holds("layers", ours[1:-1].numpy(), np.stack(nearest))

    def steps(self, subject: Subject, rows: list[list[int]], part: Any) -> None:
        """Units scaled at the last token, by climbs and by whole passes."""
        g = torch.Generator().manual_seed(4)
        depth = len(layers_of(subject))
        factors = [torch.rand(width_of(subject, at, part), generator=g) for at in range(depth)]
        candidates = [{0: factors[0]}, {depth - 1: factors[-1]}, {0: factors[0], depth - 1: factors[-1]}]
        got = scaled_at_last(subject, [Row(r) for r in rows], lambda h, _: h, candidates, part)
        slow = np.empty_like(got)
        for i, row in enumerate(rows):
            ids = torch.tensor([row])
            for c, candidate in enumerate(candidates):
                hooks = []
                for at, f in candidate.items():

                    def put(_: Any, inputs: Any, f: torch.Tensor = f, n: int = len(row)) -> Any:
                        x = inputs[0].reshape(n, -1).clone()
                        x[-1] = x[-1] * f
                        return (x.reshape(inputs[0].shape), *inputs[1:])

                    module = layers_of(subject)[at].get_submodule(getattr(subject.anatomy, part))
                    hooks.append(module.register_forward_pre_hook(put))
                with torch.no_grad(), evaluating(subject):
                    slow[i, c] = (
                        subject.base.base_model(  # type: ignore[operator]
                            input_ids=ids, attention_mask=torch.ones_like(ids)
                        )
                        .last_hidden_state[0, -1]
                        .numpy()
                    )
                for hook in hooks:
                    hook.remove()
        self.holds(f"steps ({part})", got, slow)

    def units(self, subject: Subject, rows: list[list[int]], pick: Any) -> None:
        """Units scaled everywhere, by a hook and by an adapter that plain PEFT loads."""
        scales = {0: torch.linspace(0, 2, width_of(subject, 0))}
        settings, tensors = scales_as_adapter(subject, scales)
        with scaled(subject, scales):
            ours = plain(subject.model, rows, pick)
        cls = transformers.AutoModelForCausalLM if self.words else transformers.AutoModelForSequenceClassification
        self.holds("units", plain(self.loaded(cls, settings, tensors), rows, pick), ours)

    def loaded(self, cls: Any, settings: Any, tensors: Any, **options: Any) -> Any:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        files.write_adapter(folder, settings, tensors)
        net = cls.from_pretrained(self.folder / "base", ignore_mismatched_sizes=True, dtype=torch.float32, **options)
        return peft.PeftModel.from_pretrained(net, str(folder)).eval()


def one(model_type: str, words: bool, seconds: int) -> dict[str, Any]:
    """The row of one model."""
    row: dict[str, Any] = {"model": model_type, "as": "causal" if words else "classifier"}
    folder = Path(tempfile.mkdtemp())

    def late(*_: Any) -> None:
        raise Late(f"more than {seconds} s")

    # Of the processor, so that a busy machine makes no difference.
    signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        with quiet():
            try:
                net = reloaded(build(model_type, words), words, folder / "base")
            except Exception as e:
                return row | {"outcome": "not built", "why": " ".join(f"{type(e).__name__}: {e}".split())[:200]}
            case = Case(net, words, folder)
            case.run()
    except Late as e:
        return row | {"outcome": "too slow", "why": str(e)}
    except Exception as e:
        last = traceback.extract_tb(e.__traceback__)
        at = next((f"{Path(f.filename).name}:{f.lineno}" for f in reversed(last) if "trueup" in f.filename), "")
        return row | {"outcome": "crashed", "why": f"{type(e).__name__}: {e} ({at})"[:300]}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        shutil.rmtree(folder, ignore_errors=True)
    outcome = "WRONG" if case.wrong else "refused" if not case.right else "in part" if case.refused else "works"
    return row | {"outcome": outcome, "right": case.right, "refused": case.refused, "wrong": case.wrong}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path("families.jsonl"))
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--seconds", type=int, default=180)
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    done = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    known = {(r["model"], r["as"]) for r in done}
    every = [(m, False) for m in sorted(modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)]
    every += [(m, True) for m in sorted(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)]
    for model_type, words in every:
        if (given.only and model_type not in given.only) or (model_type, "causal" if words else "classifier") in known:
            continue
        row = one(model_type, words, given.seconds)
        done.append(row)
        with given.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        rest = row.get("why") or "; ".join(f"{k}: {v}" for k, v in (row["wrong"] | row["refused"]).items())
        print(f"{row['outcome']:9} {row['as']:10} {model_type}  {rest[:400]}", flush=True)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, peft {peft.__version__}")
    for kind in ("classifier", "causal"):
        counts = Counter(r["outcome"] for r in done if r["as"] == kind)
        print(
            f"{kind}: "
            + ", ".join(
                f"{counts[k]} {k}" for k in ("works", "in part", "refused", "not built", "too slow", "crashed", "WRONG")
            )
        )
    return int(any(r["outcome"] in ("WRONG", "crashed") for r in done))


if __name__ == "__main__":
    sys.exit(main())
