"""Seconds per step and per epoch: operations counted, divided by a throughput that is tabled or measured. An estimate.

Operations are those of matrix products: two for each weight and token of a forward pass, as many again for the gradient
of its input and of itself (Kaplan et al. 2020, "Scaling Laws for Neural Language Models", section 2.1), and attention's
two products of `T x T` (Chowdhery et al. 2022, "PaLM", appendix B). What is frozen needs no gradient of itself; a tower
that is frozen needs none at all; a checkpointed layer runs forward twice; the head runs on supervised positions.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from vlm_lora.backend import DeviceSpec, Precision
from vlm_lora.memory.sample import Rows
from vlm_lora.memory.trace import Weight

EFFICIENCY = 0.35
"""Share of a card's stated operations that training reaches. Llama 3 405B had 0.38 to 0.43 of its H100s' (Grattafiori
et al. 2024, "The Llama 3 Herd of Models", table 4); one process of plain PyTorch on smaller matrices reaches less."""
CPU_EFFICIENCY = 0.6
"""Share of a large matrix product's rate: steps of the models in `benchmarks/shapes.py` reach two thirds of it."""
FACTOR = 2
"""The estimate is meant to be right within this factor."""
LEAST_SAVED = 0.1
"""Of the computed tokens: where grouping saves that, it is what a run does unless it is told."""
PACK_FILL = 0.98
"""Share of a pack that rows fill: first-fit decreasing leaves one to three percent (`test_pack_plan.py`)."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """How rows come together in batches."""

    batch_size: int
    """Rows, or packs, of a micro-batch on one device."""
    accumulation: int = 1
    world_size: int = 1
    grouped: bool | None = False
    """By length; None: where that saves a tenth of the computed tokens, as a run does by itself."""
    pack_length: int | None = None
    """Tokens of a pack; None without packing."""


@dataclass(frozen=True, kw_only=True)
class Compute:
    """What is done with each row."""

    weights: Sequence[Weight]
    config: Any
    """The model's configuration."""
    checkpointing: bool = False
    cached_features: bool = False
    """Whether images' features are read instead of made."""
    fused_attention: bool = True
    four_bit: bool = False


@dataclass(frozen=True, kw_only=True)
class TimePlan:
    """The estimate of one device."""

    flops: float
    """Floating-point operations of an optimizer step on one device."""
    padding: float
    """Share of the computed tokens that is padding."""
    steps: int | None
    """Optimizer steps of an epoch; None where no data was named."""
    rate: float | None
    """Operations a second that are counted on; None where nothing is known."""
    source: str
    """How the rate was come by, or why there is none."""
    left_out: tuple[str, ...] = ()
    """What the estimate does not count."""
    cached_features: bool = False
    """Whether it is of an epoch that reads images' features."""

    @property
    def step_seconds(self) -> float | None:
        """Seconds of a step."""
        return None if self.rate is None else self.flops / self.rate

    @property
    def epoch_seconds(self) -> float | None:
        """Seconds of an epoch."""
        each = self.step_seconds
        return None if each is None or self.steps is None else each * self.steps


def plan_time(compute: Compute, rows: Rows, order: Order, device: DeviceSpec, precision: Precision) -> TimePlan:
    """Estimate the time of a step and of an epoch.

    Args:
        compute: what is done with a row.
        rows: of the data, or one that was assumed.
        order: how they come together.
        device: what computes.
        precision: of the run there.
    """
    tokens, padding = computed_tokens(rows.lengths, order)
    per_row = tokens / len(rows.lengths)
    rows_a_batch = order.batch_size * (1.0 if order.pack_length is None else order.pack_length * PACK_FILL / per_row)
    # A dense mask computes all of a pack's T x T.
    width = order.pack_length or per_row
    row = row_flops(compute, tokens=per_row, width=width, supervised=rows.supervised, pixels=rows.pixels)
    in_a_step = rows_a_batch * order.accumulation
    steps = None if rows.total is None else math.ceil(rows.total / (in_a_step * order.world_size))
    rate, source = rate_of(device, precision)
    left_out = ["exchange between processes"] if order.world_size > 1 else []
    left_out += ["unpacking of 4-bit weights"] if compute.four_bit else []
    left_out += ["the vision tower"] if rows.pixels and not compute.cached_features and not patches(compute, 1) else []
    return TimePlan(
        flops=row * in_a_step,
        padding=padding,
        steps=steps,
        rate=rate,
        source=source,
        left_out=tuple(left_out),
        cached_features=compute.cached_features,
    )


def computed_tokens(lengths: Sequence[int], order: Order) -> tuple[float, float]:
    """Return the tokens that batches of these rows have in all, and the share of them that is padding.

    Rows in random order are padded to the longest of their batch, as are groups of one length; few rows stand for many.
    """
    real = sum(lengths)
    if order.pack_length is not None:
        return real / PACK_FILL, 1 - PACK_FILL
    if order.grouped is None:
        random_order, groups = (computed_tokens(lengths, replace(order, grouped=choice)) for choice in (False, True))
        return groups if groups[0] <= (1 - LEAST_SAVED) * random_order[0] else random_order
    drawn = list(lengths) * max(1, 4 * order.batch_size // len(lengths))
    if order.grouped:
        drawn.sort()
    else:
        random.Random(0).shuffle(drawn)
    batches = [drawn[start : start + order.batch_size] for start in range(0, len(drawn), order.batch_size)]
    padded = sum(max(batch) * len(batch) for batch in batches) * len(lengths) / len(drawn)
    return padded, 1 - real / padded


def row_flops(compute: Compute, *, tokens: float, width: float, supervised: float, pixels: float) -> float:
    """Return the operations of a row: forward, backward, and forward again where layers are checkpointed.

    Args:
        compute: what is done with it.
        tokens: that it takes in its batch, padding included.
        width: tokens that each of them may look at.
        supervised: tokens with a label.
        pixels: values of its image tensors.
    """
    text = compute.config.get_text_config()
    language = _sizes(compute.weights, "language", text)
    passes = 3 if compute.checkpointing else 2
    layers = int(text.num_hidden_layers)
    heads = int(text.num_attention_heads)
    inner = heads * int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    # A fused causal kernel leaves out what no token may see: half.
    attention = 4 * tokens * width * inner * layers * (0.5 if compute.fused_attention else 1.0)
    flops = 2 * tokens * (language.all * passes + language.trained) + attention * (passes + 1)
    head = int(text.vocab_size) * int(text.hidden_size)
    trains_head = any(weight.trained and weight.part == "head" and not weight.adapter for weight in compute.weights)
    flops += 2 * supervised * head * (3 if trains_head else 2)
    return flops if compute.cached_features else flops + _tower_flops(compute, pixels)


def _tower_flops(compute: Compute, pixels: float) -> float:
    sizes = _sizes(compute.weights, "vision", compute.config.get_text_config())
    count = patches(compute, pixels)
    vision = getattr(compute.config, "vision_config", None)
    layers = int(getattr(vision, "depth", None) or getattr(vision, "num_hidden_layers", None) or 0)
    inner = int(getattr(vision, "embed_dim", None) or getattr(vision, "hidden_size", None) or 0)
    side = getattr(vision, "image_size", None)
    patch = int(getattr(vision, "patch_size", None) or 1)
    # Each patch looks at those of its image; towers in windows at those of its window, which is next to nothing.
    seen = count if not isinstance(side, int) else min(count, (side // patch) ** 2)
    if getattr(vision, "window_size", None):
        layers = len(getattr(vision, "fullatt_block_indexes", ()))
    times = 3 if sizes.trained else 1
    return (2 * count * sizes.all + 4 * count * seen * inner * layers) * times


def patches(compute: Compute, pixels: float) -> float:
    """Return how many patches image tensors of `pixels` values have; 0 where the tower has none of one size."""
    vision = getattr(compute.config, "vision_config", None)
    patch = getattr(vision, "patch_size", None)
    if not isinstance(patch, int):
        return 0.0
    channels = int(getattr(vision, "num_channels", None) or getattr(vision, "in_channels", None) or 3)
    return pixels / (channels * patch**2 * int(getattr(vision, "temporal_patch_size", None) or 1))


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    all: float
    """Weights that a token is multiplied with."""
    trained: float


def _sizes(weights: Sequence[Weight], part: str, text: Any) -> _Sizes:
    """Count a part's matrices; of a layer's experts, those that a token visits."""
    experts = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None)
    visited = getattr(text, "num_experts_per_tok", None)
    share = visited / experts if experts and visited else 1.0

    def counted(chosen: Iterable[Weight]) -> float:
        return sum(each.elements * (share if ".experts" in each.name else 1.0) for each in chosen)

    own = [weight for weight in weights if weight.part == part and len(weight.shape) > 1]
    return _Sizes(all=counted(own), trained=counted(weight for weight in own if weight.trained))


def rate_of(device: DeviceSpec, precision: Precision) -> tuple[float | None, str]:
    """Return the operations a second that a run may count on, and where the figure comes from."""
    if device.is_cpu and device.is_here:
        dtype = precision.autocast or precision.weights
        measured = measure(dtype)
        words = f"{CPU_EFFICIENCY:.0%} of {measured / 1e9:.0f} Gflop/s, a matrix product of this machine in {dtype}"
        return CPU_EFFICIENCY * measured, words
    if device.flops is None:
        return None, f"unknown: nothing is tabled for {device.name}"
    if "float32" in (precision.autocast or precision.weights):
        return None, "unknown: float32 is not tabled"
    stated = f"{device.flops / 1e12:.0f} Tflop/s ({device.flops_source})"
    return EFFICIENCY * device.flops, f"{EFFICIENCY:.0%} of {stated}"


@cache
def measure(dtype: str, side: int = 1024) -> float:
    """Return the operations a second of a matrix product on this machine's CPU: the best of a few, a moment's work."""
    one = torch.ones(side, side, dtype=getattr(torch, dtype))
    one @ one
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        one @ one
        taken.append(time.perf_counter() - began)
    return 2 * side**3 / min(taken)
