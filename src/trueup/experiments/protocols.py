"""The protocols of the minimal-transformer experiments: `OURS`, and `PAPER`, which follows the authors' notebooks.

Petrov, Torr and Bibi, arXiv 2310.19698. `PAPER` is taken from github.com/AleksandarPetrov/prefix-tuning-theory,
minGPT/: notebooks 01 (experiment 1), 02 (experiment 2) and 04 (experiment 4), 03_script.py (experiment 3), and the model and
trainers that they share. The published figures are those of the paper and the notebooks, with one seed each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """The graph of a transformer.

    Attributes:
        layers, heads, width: its sizes.
        padding: slots of token 0 before the input. A prefix then replaces the inputs of each layer's attention at these slots.
        normed: whether a layer norm comes before attention. affine: whether layer norms have a trained scale and shift.
    """

    layers: int
    heads: int
    width: int
    padding: int = 0
    normed: bool = True
    affine: bool = False


@dataclass(frozen=True)
class Method:
    """What is trained on top of a frozen model.

    Attributes:
        kind: "full" (every weight), "prefix" (in every layer: keys and values, or the inputs at the padding slots if the shape
            has any) or "lora" (on the linear maps `maps`).
        size: slots of the prefix, or rank of the LoRA.
    """

    kind: str
    size: int = 0
    maps: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        if self.kind == "lora":
            map_names = "MLP" if self.maps == MLP else "+".join(self.maps)
            return f"LoRA of {map_names}, rank {self.size}"
        return {"full": "full fine-tuning", "prefix": f"prefix, {self.size} slot{'s' * (self.size > 1)}"}[self.kind]


MLP = ("up", "down")
FULL = Method("full")


@dataclass(frozen=True)
class Cell:
    """One line of the table.

    Attributes:
        method: what is trained on the task; None is the pretrained model without training.
        published: exact match of the paper's single seed; lowest and highest where it gives several tasks together; None
            where the paper did not run it.
        steps, rate: for this cell only: steps and learning rate of its training on the task; None for the steps of its family, and
            for the rates of its kind.
    """

    experiment: int
    task: str
    method: Method | None
    published: float | tuple[float, float] | None = None
    steps: int | None = None
    rate: float | None = None


@dataclass(frozen=True)
class Family:
    """Cells that share one model, pretrained on a mixture of `tasks`. `pretraining` and `teaching` are numbers of steps."""

    shape: Shape
    tasks: tuple[str, ...]
    pretraining: int
    teaching: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Protocol:
    """All settings in which the two ways to run the experiments differ.

    Attributes:
        title: the heading of the table. notes: the text below it, with placeholders for the values of `rigidity.Settings`.
        families: the families that are run, in this order.
        width: width of the widest model. precision: number type of the matrix products.
        words: output tokens, 0 to `words` - 1. An input of one digit ten times, whose count would be token 10, is left out where
            there are only ten.
        spread: standard deviation of a fresh model's weights (for attention's output and the MLP's second map divided by the
            square root of twice the layers); None scales each map by its inputs.
        prefix_spread: standard deviation of a fresh prefix.
        rates: learning rates that each kind tries. pretraining_rate: the learning rate of pretraining.
        pretraining_batch, teaching_batch: examples per step.
        constant: True for a constant rate. False: it rises for 50 steps and falls to a twentieth over the last 30%.
        decay: AdamW's weight decay of linear maps while a whole model is trained. adapter_decay: that of all trained parameters of
            a prefix or LoRA.
        dropout: dropout of embeddings, attention and both branches' outputs while a whole model is trained.
        apart: whether the gradient of a LoRA is clipped matrix by matrix, and not as a whole.
        endless: whether each step draws new inputs, or draws from `rigidity.TRAIN` fixed ones.
        chosen: True keeps the parameters of least validation loss and stops solved runs. False keeps the last parameters.
        most: the largest factor by which the steps of training on a task are multiplied while this pays.
    """

    title: str
    notes: str
    families: tuple[Family, ...]
    width: int
    precision: str
    words: int
    spread: float | None
    prefix_spread: float
    rates: Mapping[str, tuple[float, ...]]
    pretraining_rate: float
    pretraining_batch: int
    teaching_batch: int
    constant: bool
    decay: float
    adapter_decay: float
    dropout: float
    apart: bool
    endless: bool
    chosen: bool
    most: int


FOUR = ("ascending", "descending", "add 1", "add 2")

FIRST = (
    Cell(1, "ascending", None, 0.914), Cell(1, "descending", None, 0.0), Cell(1, "descending", FULL, 0.849),
)  # fmt: skip
SECOND = tuple(
    Cell(2, task, Method("prefix", 1), was) for task, was in zip(FOUR, (0.941, 0.837, 0.996, 0.998), strict=True)
)
THIRD = tuple(Cell(3, task, Method("prefix", 10), (0.996, 1.0)) for task in FOUR)
"""Cells that both protocols have, with the published figures."""

OURS = Protocol(
    title="Prefixes and LoRAs on small transformers: a variant of the experiments of arXiv 2310.19698",
    families=(  # in the order of running: long and informative experiments come before experiment 2
        Family(
            Shape(1, 1, 96), ("ascending",), 1500, 1500,
            (
                *FIRST,
                Cell(1, "descending", Method("prefix", 1), 0.0),
                Cell(1, "descending", Method("lora", 1, ("q",))),
                Cell(1, "descending", Method("lora", 1, ("v",))),
                Cell(1, "descending", Method("prefix", 5)),
                Cell(1, "descending", Method("lora", 5, ("q",))),
                Cell(1, "descending", Method("lora", 1, MLP)),
            ),
        ),
        Family(
            Shape(4, 4, 256), FOUR, 2000, 2000,
            (
                Cell(4, "double histogram", None, 0.0),
                Cell(4, "double histogram", Method("lora", 1, MLP), 0.924),
                Cell(4, "double histogram", Method("prefix", 5), 0.003),
                Cell(3, "ascending, add 1", Method("prefix", 10), 0.716),
                Cell(3, "double histogram", Method("prefix", 10), 0.006),
                *THIRD,
            ),
        ),
        Family(
            Shape(1, 4, 256), FOUR, 3000, 1500,
            SECOND,
        ),
    ),
    width=96,
    precision="bfloat16",
    words=11,
    spread=None,
    prefix_spread=0.1,
    rates={"full": (3e-4, 1e-3, 3e-3), "prefix": (2e-3, 1e-2, 5e-2), "lora": (2e-3, 1e-2, 5e-2)},
    pretraining_rate=1e-3,
    pretraining_batch=64,
    teaching_batch=32,
    constant=False,
    decay=0.0,
    adapter_decay=0.0,
    dropout=0.0,
    apart=False,
    endless=False,
    chosen=True,
    most=4,
    notes="""\
Exact match of the whole ten-token answer, greedy, on 3,200 test inputs; {seeds} seed(s), each from pretraining on. Model:
layers x heads. Every method tries three learning rates, goes on with the best on validation after 30% of the steps, and stops
early at 99.5% of the validation inputs. Steps are doubled, up to four times as many, while the last ones are the best and
doubling pays; those of the table are what was given at first, and those of the kept parameters. Ten 2s, whatever the input,
score 0.9% on the double histogram.

This is a variant of the published experiments and not a repetition (that is `--paper`). It differs in this:

- A prefix is trained keys and values in every layer. Theirs replaces the layer's input at padding positions: half as many
  parameters a slot, and a strict subset of what keys and values can do. Their pretraining holds these padding slots; ours has none.
- Their LoRA "of the MLP" adapts attention's output projection too. Ours adapts the MLP alone, and 5 slots of keys and values have
  as many parameters as it has at rank 1 (theirs: 12 slots, and 12,288 parameters at width 256).
- Models are at most {width} wide (theirs: 96 in experiment 1, else 256). Theirs has no first layer norm in experiment 2. Our layer
  norms have no affine part, which the next linear map can express. No dropout (theirs: 0.1 while whole models are trained).
  Weights start scaled by their inputs (theirs: at a standard deviation of 0.02).
- The usual steps times {steps:g}, in batches of 64 (pretraining) and 32. Theirs trains prefixes for 20,000 to 500,000 steps at 64.
- 65,536 fixed training inputs (theirs: new ones at every step), split by an unsalted hash, with validation apart from test;
  11 output tokens (theirs: 10).
- AdamW without decay, a rate that rises, stays and falls, and a gradient that is clipped as a whole. Theirs: decay of 0.1 on the
  linear maps of whole models and of 0.01 on prefixes and LoRAs, one constant rate (prefixes 5e-5, in experiment 1 5e-4; LoRAs
  5e-3), LoRAs clipped matrix by matrix. A prefix starts at a standard deviation of 0.1 (theirs: 1).""",
)  # fmt: skip

_THEIR_MLP = ("o", "up", "down")
"""The maps of the authors' LoRA "of the MLP": all modules whose names hold "c_fc" or "c_proj", including attention's projection."""

PAPER = Protocol(
    title="Prefixes and LoRAs on small transformers: the experiments of arXiv 2310.19698 as published",
    families=(
        Family(
            Shape(1, 1, 96, padding=1, affine=True), ("ascending",), 20_000, 10_000,
            (
                *FIRST,
                Cell(1, "descending", Method("prefix", 1), 0.0, 40_000, 5e-4),
            ),
        ),
        Family(
            Shape(1, 4, 256, padding=1, normed=False, affine=True), FOUR, 20_000, 30_000,
            SECOND,
        ),
        Family(
            Shape(4, 4, 256, padding=12, affine=True), FOUR, 40_000, 100_000,
            (
                Cell(4, "double histogram", None, 0.0),
                Cell(4, "double histogram", Method("lora", 1, _THEIR_MLP), 0.924, 10_000),
                Cell(4, "double histogram", Method("prefix", 12), 0.003),
            ),
        ),
        Family(
            Shape(4, 4, 256, padding=10, affine=True), FOUR, 40_000, 20_000,
            (
                *THIRD,
                Cell(3, "ascending, add 1", Method("prefix", 10), 0.716, 500_000),
                Cell(3, "double histogram", Method("prefix", 10), 0.006, 500_000),
            ),
        ),
    ),
    width=256,
    precision="float32",
    words=10,
    spread=0.02,
    prefix_spread=1.0,
    rates={"full": (5e-4,), "prefix": (5e-5,), "lora": (5e-3,)},
    pretraining_rate=5e-4,
    pretraining_batch=64,
    teaching_batch=64,
    constant=True,
    decay=0.1,
    adapter_decay=0.01,
    dropout=0.1,
    apart=True,
    endless=True,
    chosen=False,
    most=1,
    notes="""\
Exact match of the whole ten-token answer, greedy, on 3,200 test inputs; {seeds} seed(s), each from pretraining on. Model:
layers x heads. One learning rate each, and the last parameters are kept, as in the authors' code. Ten 2s, whatever the input,
score 0.9% on the double histogram.

Steps are theirs times {steps:g}, and models at most {width} wide (theirs: 256). What still differs from their code:

- Inputs are split by an unsalted hash, so that every process splits alike. Test inputs are always the same 3,200, of an eighth of
  all inputs and not of a quarter.
- Random numbers are others, and there can be several seeds.
- An input of one digit ten times has no answer among 10 output tokens in the double histogram, and is not drawn.
- A LoRA's first matrix starts from a normal distribution of variance 1 / inputs (theirs: a uniform one of a third of it).

Kept as theirs: a prefix of 12 slots has as many parameters as the LoRA (12,288), but the LoRA "of the MLP" adapts attention's
output projection too, and its rate is a hundred times the prefix's.""",
)  # fmt: skip
