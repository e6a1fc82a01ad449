"""DeepSpeed configurations on Gaudi: the same names and files as on CUDA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_lora.engines import zero
from vlm_lora.errors import ConfigError

GAUDI_DEFAULTS = {"overlap_comm": False, "contiguous_gradients": False}
"""What Habana's reference configurations set and DeepSpeed's own defaults do not."""


def zero_settings(given: str | Mapping[str, Any], *, bf16: bool) -> dict[str, Any]:
    """Return the configuration with its precision and, where it is silent, Gaudi's defaults filled in.

    Args:
        given: a name, a file, or the configuration itself.
        bf16: whether the run is in bf16.

    Raises:
        ConfigError: it cannot be read, contradicts `bf16`, or asks for fp16.
    """
    settings = zero.read_zero(given)
    if settings.get("fp16", {}).get("enabled", "auto") not in ("auto", False):
        raise ConfigError('--deepspeed: Gaudi trains in bf16; write "fp16": {"enabled": "auto"} in the file.')
    sharding = {**GAUDI_DEFAULTS, **settings.get("zero_optimization", {})}
    if sharding.get("stage") == 2:
        sharding.setdefault("reduce_scatter", False)
    return zero.zero_settings({**settings, "zero_optimization": sharding}, bf16=bf16)
