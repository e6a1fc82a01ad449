"""The host as the memory plan sees it, the dtypes of a run on any device, and how running out of memory reads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from vlm_lora.backend import DeviceSpec, Precision
from vlm_lora.config.run_config import RunConfig
from vlm_lora.engines.precision import launched_precision
from vlm_lora_torch.precision import weights_dtype

GIB, MIB = 2**30, 2**20

HOST_BYTES = 600 * MIB
"""Python with torch and transformers imported, before the model (resident set of this project's own runs)."""


class TorchPlanner:
    """Plans for the host; a subclass has the table of its cards."""

    widened: ClassVar[frozenset[str]] = frozenset()
    """Functions that the cards' autocast runs in float32, beyond those of the CPU's."""

    def devices(self) -> Sequence[DeviceSpec]:
        """Return this machine's memory as a device."""
        return [host()]

    def precision(self, run: RunConfig, values: Mapping[str, Any], device: DeviceSpec) -> Precision:
        """Return the dtypes by the rules of `model_keywords` and `arguments`."""
        launched = launched_precision(values, os.environ)
        values = {**values, **({launched: True} if launched else {})}
        given = any(values.get(flag) is not None for flag in ("bf16", "fp16"))
        bf16 = bool(values.get("bf16")) if given else device.computes_bf16 and not device.is_cpu
        fp16 = bool(values.get("fp16"))
        # What config.json says is not known here: fp16 is planned with the larger weights.
        weights, _ = weights_dtype(run, bf16=bf16, fp16=fp16, published="", on_card=not device.is_cpu)
        if values.get("deepspeed"):
            # DeepSpeed casts the whole model and leaves autocast off.
            engine = "bfloat16" if bf16 else "float16" if fp16 else None
            return Precision(weights=engine or weights, adapter=engine)
        autocast = "bfloat16" if bf16 else "float16" if fp16 else None
        return Precision(weights=weights, autocast=autocast, widened=frozenset() if device.is_cpu else self.widened)


def host() -> DeviceSpec:
    """Return this machine's memory as a device."""
    return DeviceSpec(
        name="CPU",
        total_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        fixed_bytes=HOST_BYTES,
        source="sysconf(3); other processes' share is not known",
        is_here=True,
        computes_bf16=False,
        is_cpu=True,
    )


def ran_out_of_memory(error: BaseException) -> bool:
    """Say whether torch's allocator of a device, or the host's, refused."""
    import torch

    words = ("DefaultCPUAllocator: can't allocate memory", "CUDA out of memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in words)
    )
