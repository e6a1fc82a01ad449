"""How weights, gradients and optimizer states are shared out among processes, read from the run's own settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_lora.errors import ConfigError

WORDS: Mapping[str, tuple[int, bool, bool]] = {
    "zero1": (1, False, False),
    "zero2": (2, False, False),
    "zero2_offload": (2, True, False),
    "zero3": (3, False, False),
    "zero3_offload_optimizer": (3, True, False),
    "zero3_offload": (3, True, True),
}
"""`--deepspeed WORD`: stage, optimizer on the host, parameters on the host."""

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
    def flag(self) -> str:
        """What to type for it."""
        if self.engine != "deepspeed":
            return ""
        settings = (self.stage, self.offload_optimizer, self.offload_weights)
        return next((f"--deepspeed {word}" for word, meaning in WORDS.items() if meaning == settings), "--deepspeed")


def deepspeed_word(word: str) -> Sharding:
    """Return the sharding of one of `WORDS`."""
    stage, optimizer, weights = WORDS[word]
    return Sharding(engine="deepspeed", stage=stage, offload_optimizer=optimizer, offload_weights=weights)


def read_sharding(values: Mapping[str, Any]) -> Sharding:
    """Return the sharding that the keys of a run ask for.

    Raises:
        ConfigError: the file of --deepspeed cannot be read.
    """
    if values.get("deepspeed"):
        return _read_deepspeed(values["deepspeed"])
    modes = str(getattr(values.get("fsdp"), "value", values.get("fsdp") or "")).replace("[", " ").replace("]", " ")
    words = {str(word).strip("',\" ").split(".")[-1].lower() for word in modes.split()}
    offload = "offload" in words
    if words & {"full_shard", "hybrid_shard", "true"}:
        return Sharding(engine="fsdp", stage=3, offload_optimizer=offload, offload_weights=offload)
    if "shard_grad_op" in words:
        return Sharding(engine="fsdp", stage=2, offload_optimizer=offload)
    return Sharding()


def _read_deepspeed(given: Any) -> Sharding:
    if isinstance(given, str) and given in WORDS:
        return deepspeed_word(given)
    settings = given
    if not isinstance(given, Mapping):
        path = Path(str(given))
        if not path.is_file():
            raise ConfigError(f"--deepspeed {given}: no such file; allowed are a JSON file, {', '.join(WORDS)}.")
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ConfigError(f"--deepspeed {given}: not JSON ({error}).") from error
    zero = settings.get("zero_optimization", {})
    bucket = zero.get("reduce_bucket_size", REDUCE_BUCKET)
    return Sharding(
        engine="deepspeed",
        stage=int(zero.get("stage", 0)),
        offload_optimizer=_offloaded(zero, "offload_optimizer"),
        offload_weights=_offloaded(zero, "offload_param"),
        bucket_elements=None if bucket == "auto" else int(bucket),
    )


def _offloaded(zero: Mapping[str, Any], key: str) -> bool:
    return (zero.get(key) or {}).get("device", "none") not in ("none", None)
