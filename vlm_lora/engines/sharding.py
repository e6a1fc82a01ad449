"""How weights, gradients and optimizer states are shared out among processes, read from the run's own settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vlm_lora.engines.zero import STAGES, read_zero, ready_made, zero_stage

REDUCE_BUCKET = 500_000_000
"""Elements: DeepSpeed's default `reduce_bucket_size` (deepspeed.ai, configuration JSON, ZeRO)."""


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """Stages as in ZeRO (Rajbhandari et al. 2020, section 5): 1 optimizer states, 2 also gradients, 3 also weights."""

    engine: str = ""
    """`deepspeed`, `fsdp`, or empty for plain data parallelism."""
    stage: int = 0
    offload_optimizer: bool = False
    offload_weights: bool = False
    bucket_elements: int | None = None
    """Of DeepSpeed's buffer for gradients; None: the square of the hidden size, as transformers fills in `auto`."""

    @property
    def shares_weights(self) -> bool:
        """Whether the engine takes weights apart, which it cannot do to a base in 4 bits: FSDP and ZeRO-3."""
        return self.engine == "fsdp" or self.stage >= 3

    @property
    def flag(self) -> str:
        """What to type for it."""
        if self.engine != "deepspeed":
            return ""
        return next((f"--deepspeed {word}" for word in STAGES if self._equals(deepspeed_word(word))), "--deepspeed")

    def _equals(self, other: Sharding) -> bool:
        return replace(self, bucket_elements=None) == replace(other, bucket_elements=None)


def deepspeed_word(word: str) -> Sharding:
    """Return the sharding of one of `zero.STAGES`."""
    return _of_deepspeed(ready_made(word))


def read_sharding(values: Mapping[str, Any]) -> Sharding:
    """Return the sharding that the keys of a run ask for.

    Raises:
        ConfigError: the file of --deepspeed cannot be read.
    """
    if values.get("deepspeed"):
        return _of_deepspeed(read_zero(values["deepspeed"]))
    modes = str(getattr(values.get("fsdp"), "value", values.get("fsdp") or "")).replace("[", " ").replace("]", " ")
    words = {str(word).strip("',\" ").split(".")[-1].lower() for word in modes.split()}
    offload = "offload" in words
    if words & {"full_shard", "hybrid_shard", "true"}:
        return Sharding(engine="fsdp", stage=3, offload_optimizer=offload, offload_weights=offload)
    if "shard_grad_op" in words:
        return Sharding(engine="fsdp", stage=2, offload_optimizer=offload)
    return Sharding()


def _of_deepspeed(settings: Mapping[str, Any]) -> Sharding:
    zero = settings.get("zero_optimization", {})
    bucket = zero.get("reduce_bucket_size", REDUCE_BUCKET)
    return Sharding(
        engine="deepspeed",
        stage=zero_stage(settings),
        offload_optimizer=_offloaded(zero, "offload_optimizer"),
        offload_weights=_offloaded(zero, "offload_param"),
        bucket_elements=None if bucket == "auto" else int(bucket),
    )


def _offloaded(zero: Mapping[str, Any], key: str) -> bool:
    return (zero.get(key) or {}).get("device", "none") not in ("none", None)
