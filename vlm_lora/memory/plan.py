"""From one simulated step to the bytes on each device: optimizer states, sharding, offload, fixed costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlm_lora.backend import DeviceSpec
from vlm_lora.config.run_config import ModelConfig
from vlm_lora.engines.sharding import Sharding
from vlm_lora.memory.ledger import BACKWARD, BATCH, LANGUAGE, LOGITS, VISION
from vlm_lora.memory.optimizers import find_optimizer, state_bytes, transient_bytes
from vlm_lora.memory.trace import StepTrace, Weight
from vlm_lora.model.stored_weights import stored_weights

ITEMS = (
    "weights",
    "adapter",
    "gradients",
    "optimizer",
    LANGUAGE,
    VISION,
    LOGITS,
    BACKWARD,
    BATCH,
    "communication",
    "overhead",
)
"""In the order of the table. `backward` is what the backward pass makes for a moment."""

TIGHT = 0.15
"""The plan is meant to be right within this share: a run that needs more than 85 % of a device may not fit."""

NF4_BITS, NF4_DOUBLE_BITS = 4 + 32 / 64, 4 + 8 / 64 + 32 / (64 * 256)
"""Bits a weight: 4, and a scale of 32 bits for 64 weights, or of 8 bits with double quantization, whose own scales
are 32 bits for 256 (Dettmers et al. 2023, "QLoRA", section 3)."""


def bits_of(model: ModelConfig) -> float:
    """Return the bits a weight that `--load_in_4bit` takes with a model's other settings; nf4 and fp4 take the same."""
    return NF4_DOUBLE_BITS if model.bnb_4bit_use_double_quant else NF4_BITS


def weight_bits(model: ModelConfig, config: Any) -> float | None:
    """Return the bits a weight of the decoder's linear layers where they are in few bits, asked for or stored so.

    bitsandbytes' 8-bit weights have a scale a row, which is left out.
    """
    if model.load_in_4bit:
        return bits_of(model)
    stored = stored_weights(config)
    if stored is None or not stored.is_packed or stored.bits is None:
        return None
    if stored.name == "bitsandbytes" and stored.bits == 4:
        return NF4_DOUBLE_BITS if stored.scales_quantized else NF4_BITS
    return stored.bits


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a step's peak depends on in addition to the step itself."""

    optimizer: str
    """`--optim`."""
    accumulation: int = 1
    """Micro-batches per update: from the second one on, gradients are there when the forward pass begins."""
    world_size: int = 1
    sharding: Sharding = field(default_factory=Sharding)
    weight_bits: float | None = None
    """Bits a weight of the decoder's frozen linear layers, where they are quantized (`bits_of`)."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes at the peak of a training step, per device."""

    items: Mapping[str, int]
    """By the names of `ITEMS`."""
    host_bytes: int
    """Per process in the host's memory, by offload."""

    @property
    def total(self) -> int:
        """The device's bytes in all."""
        return sum(self.items.values())

    @property
    def of_the_run(self) -> int:
        """The total without what the device takes before the first tensor."""
        return self.total - self.items["overhead"]

    def fits(self, device: DeviceSpec) -> bool:
        """Say whether the total is within what the device has."""
        return self.total <= device.total_bytes

    def is_tight(self, device: DeviceSpec) -> bool:
        """Say whether it fits by less than the plan's own error."""
        return self.fits(device) and self.total > (1 - TIGHT) * device.total_bytes


@dataclass(frozen=True, kw_only=True)
class _Shares:
    """Bytes that stay, on the device and on the host."""

    weights: int
    adapter: int
    optimizer: int
    communication: int
    transient: int
    """During the optimizer's step."""
    gradient_share: float
    """How much of each gradient the device holds."""
    gradient_bytes: int
    """Of all trained parameters, whole."""
    largest_gradient: int
    host: int


def plan_memory(trace: StepTrace, layout: Layout, device: DeviceSpec, *, hidden_size: int) -> MemoryPlan:
    """Return the peak of a step in the steady state, from the second update on.

    Args:
        trace: the simulated step.
        layout: how it is optimized and shared out.
        device: whose fixed costs are added.
        hidden_size: of the decoder.

    Raises:
        ConfigError: the optimizer is not known.
    """
    shares = _shares(trace, layout, hidden_size, on_cpu=device.is_cpu)
    peaks: list[dict[str, int]] = []
    for moment in trace.moments:
        gradients = moment.gradients
        passing = dict(moment.passing)
        # The trainer fetches all micro-batches of an update at once, and its loader one more ahead, on the host.
        passing[BATCH] += trace.batch_bytes * (layout.accumulation - (0 if device.is_cpu else 1))
        if layout.accumulation > 1:
            gradients = shares.gradient_bytes
            # A new gradient lies next to the sum that it is added to.
            passing[BACKWARD] += shares.largest_gradient
        peaks.append({"gradients": round(gradients * shares.gradient_share), **passing})
    none = dict.fromkeys((LANGUAGE, VISION, LOGITS, BACKWARD, BATCH), 0)
    at_update = {"gradients": round(shares.gradient_bytes * shares.gradient_share), **none}
    peaks.append({**at_update, "optimizer": shares.transient})
    peak = max(peaks, key=lambda items: sum(items.values()))
    items = {
        **peak,
        "weights": shares.weights,
        "adapter": shares.adapter,
        "optimizer": shares.optimizer + peak.get("optimizer", 0),
        "communication": shares.communication,
        "overhead": device.fixed_bytes,
    }
    return MemoryPlan(items={name: items[name] for name in ITEMS}, host_bytes=shares.host)


def _stored(weight: Weight, layout: Layout) -> int:
    if layout.weight_bits is None or not weight.quantizable:
        return weight.bytes
    return round(weight.elements * layout.weight_bits / 8)


def _shares(trace: StepTrace, layout: Layout, hidden_size: int, *, on_cpu: bool) -> _Shares:
    """The formulas of ZeRO (Rajbhandari et al. 2020, section 5) on exact parameter counts.

    With N processes, stage 1 divides optimizer states by N, stage 2 gradients, stage 3 weights. DeepSpeed keeps a
    float32 copy of what it trains in addition to the optimizer's states, shared out like them.
    """
    sharding, processes = layout.sharding, layout.world_size
    trained = [weight for weight in trace.weights if weight.trained]
    adapter = sum(weight.bytes for weight in trace.weights if weight.adapter)
    base = sum(_stored(weight, layout) for weight in trace.weights if not weight.adapter) + trace.buffer_bytes
    gradients = sum(weight.bytes for weight in trained)
    optimizer = find_optimizer(layout.optimizer)
    states = state_bytes(optimizer, trace.weights)
    masters = sum(4 * weight.elements for weight in trained) if sharding.engine == "deepspeed" else 0
    at_once = transient_bytes(optimizer, trace.weights)
    if on_cpu:  # torch has no foreach there: one parameter after the other, a quotient and a root of it
        at_once = min(at_once, 2 * 4 * max(weight.elements for weight in trained))
    kept = (states + masters) / (processes if sharding.stage >= 1 else 1)
    weight_share = processes if sharding.stage >= 3 else 1
    on_device = 0 if sharding.offload_weights else (base + adapter) / weight_share
    adapter_part = adapter / (base + adapter)
    offloaded = (kept if sharding.offload_optimizer else 0) + (
        (base + adapter) / weight_share if sharding.offload_weights else 0
    )
    return _Shares(
        weights=round(on_device * (1 - adapter_part)),
        adapter=round(on_device * adapter_part),
        optimizer=0 if sharding.offload_optimizer else round(kept),
        communication=_communication(trace, layout, gradients, hidden_size),
        transient=0 if sharding.offload_optimizer else round(at_once / (processes if sharding.stage >= 1 else 1)),
        gradient_share=1 / processes if sharding.stage >= 2 else 1.0,
        gradient_bytes=gradients,
        largest_gradient=max(weight.bytes for weight in trained),
        host=round(offloaded),
    )


def _communication(trace: StepTrace, layout: Layout, gradients: int, hidden_size: int) -> int:
    """What processes exchange through, and what a device gathers of the others' shares."""
    if layout.world_size == 1 and not layout.sharding.engine:
        return _dequantized(trace, layout)
    if not layout.sharding.engine:
        # DistributedDataParallel's buckets are a second copy of all gradients (torch's documentation of
        # `gradient_as_bucket_view`).
        return gradients + _dequantized(trace, layout)
    width = max(weight.bytes // weight.elements for weight in trace.weights if weight.trained and weight.elements)
    bucket = layout.sharding.bucket_elements or hidden_size**2
    buffer = bucket * width if layout.sharding.engine == "deepspeed" else 0
    gathered = 0
    if layout.sharding.stage >= 3:
        layers: dict[str, int] = {}
        for weight in trace.weights:
            place = weight.layer or weight.name
            layers[place] = layers.get(place, 0) + _stored(weight, layout)
        # The module at work and the one fetched ahead.
        gathered = sum(sorted(layers.values())[-2:])
    return buffer + gathered + _dequantized(trace, layout)


def _dequantized(trace: StepTrace, layout: Layout) -> int:
    """A quantized matrix is unpacked for the moment it is used: the largest counts."""
    if layout.weight_bits is None:
        return 0
    return max((weight.bytes for weight in trace.weights if weight.quantizable), default=0)
