"""Plans for one run and for its variations: each different step is simulated once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from vlm_lora.backend import DeviceSpec, Precision
from vlm_lora.batching.collator import Collator
from vlm_lora.config.run_config import TuningConfig
from vlm_lora.engines.sharding import Sharding
from vlm_lora.memory.plan import Layout, MemoryPlan, plan_memory
from vlm_lora.memory.sample import Sample, worst_batch
from vlm_lora.memory.speed import Compute, Order, TimePlan, plan_time
from vlm_lora.memory.trace import Known, Step, StepTrace, trace_step
from vlm_lora.model.adapters.new_tokens import NewTokens
from vlm_lora.model.families import Family


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a run may change to need less."""

    tuning: TuningConfig
    optimizer: str
    batch_size: int
    """Rows per device and micro-batch."""
    accumulation: int = 1
    checkpointing: bool = False
    world_size: int = 1
    sharding: Sharding = field(default_factory=Sharding)
    weight_bits: float | None = None
    picture_side: float = 1.0
    """Share of the images' width and height."""

    def with_batch(self, size: int) -> Choice:
        """Return the same global batch in micro-batches of another size."""
        return replace(self, batch_size=size, accumulation=self.accumulation * self.batch_size // size)


@dataclass(kw_only=True)
class Planner:
    """What every plan of a run shares, and the steps that were simulated."""

    config: Any
    """The model's configuration."""
    family: Family
    collator: Collator
    samples: Callable[[float], Sample]
    """The sample of rows with images at this share of their side."""
    precision: Callable[[Choice, DeviceSpec], Precision]
    attention: str | None
    fixed_shapes: bool = False
    """Whether the backend's hardware compiles each new shape, so that the head runs on padding as well."""
    trust_remote_code: bool = False
    new_tokens: NewTokens | None = None
    """Tokens whose rows are trained."""
    rows: int | None = None
    """How many rows the embeddings get for them."""
    announce: Callable[[str], object] = lambda _: None
    """Told what is simulated before it is: a step of a deep model takes seconds."""
    _traces: dict[tuple[Any, ...], StepTrace] = field(default_factory=dict)
    _known: Known = field(default_factory=dict)

    def plan(self, choice: Choice, device: DeviceSpec) -> MemoryPlan:
        """Return the plan of a choice on a device.

        Raises:
            ConfigError, ModelError: the run cannot be planned; the message says why.
        """
        layout = Layout(
            optimizer=choice.optimizer,
            accumulation=choice.accumulation,
            world_size=choice.world_size,
            sharding=choice.sharding,
            weight_bits=choice.weight_bits,
        )
        hidden = int(self.config.get_text_config().hidden_size)
        return plan_memory(self._trace(choice, device), layout, device, hidden_size=hidden)

    def time(self, choice: Choice, device: DeviceSpec, order: Order, *, cached_features: bool = False) -> TimePlan:
        """Return the estimate of how long a choice's steps and epochs take on a device.

        Args:
            choice: what is planned.
            device: what computes.
            order: how rows come together.
            cached_features: whether images' features are read instead of made, as after the first epoch.
        """
        compute = Compute(
            weights=self._trace(choice, device).weights,
            config=self.config,
            checkpointing=choice.checkpointing,
            cached_features=cached_features,
            fused_attention=device.fused_attention and self.attention != "eager",
            four_bit=choice.weight_bits is not None,
        )
        return plan_time(compute, self.samples(choice.picture_side).read, order, device, self.precision(choice, device))

    def tokens(self, choice: Choice) -> int:
        """Return the tokens of the longest row."""
        return self.samples(choice.picture_side).longest

    def _trace(self, choice: Choice, device: DeviceSpec) -> StepTrace:
        step = Step(
            tuning=choice.tuning,
            checkpointing=choice.checkpointing,
            precision=self.precision(choice, device),
            attention=self.attention,
            fused_attention=device.fused_attention,
            fixed_shapes=self.fixed_shapes,
            new_tokens=self.new_tokens,
            rows=self.rows,
        )
        key = (step, choice.batch_size, choice.picture_side)
        if key not in self._traces:
            self.announce(f"Simulating step {len(self._traces) + 1}: {_words(choice)}")
            batch = worst_batch(self.samples(choice.picture_side), self.collator, choice.batch_size)
            self._traces[key] = trace_step(
                step,
                config=self.config,
                family=self.family,
                batch=batch,
                trust_remote_code=self.trust_remote_code,
                known=self._known,
            )
        return self._traces[key]


def _words(choice: Choice) -> str:
    """Say what sets a step apart from the others of a search."""
    parts = [f"batch {choice.batch_size}", "LoRA" if choice.tuning.peft_method == "lora" else "full weights"]
    parts += ["checkpointing"] if choice.checkpointing else []
    parts += [choice.sharding.flag.removeprefix("--") or choice.sharding.engine] if choice.sharding.engine else []
    parts += [f"images at {choice.picture_side:.0%} of their side"] if choice.picture_side != 1.0 else []
    return ", ".join(parts)
