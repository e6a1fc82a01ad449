"""The Gaudi cards that the memory plan knows, and how running out of their memory reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_lora.backend import DeviceSpec, Precision
from vlm_lora.config.run_config import RunConfig
from vlm_lora_hpu.probe import probe_gaudi
from vlm_lora_torch.precision import weights_dtype

_TOTALS_GIB = {"Gaudi2": 96, "Gaudi3": 128}
"""Intel's data sheets: 96 GB and 128 GB of HBM, which hl-smi reports as 98304 and 131072 MiB."""

_TERAFLOPS = {"Gaudi2": 432, "Gaudi3": 1835}
"""Matrix engines in bf16: Intel's "Gaudi 3 AI Accelerator White Paper" (2024), which has both."""
_FLOPS_SOURCE = "Intel's Gaudi 3 white paper, bf16"

_SOURCE = "Intel's data sheet; what the driver keeps of it is not published and not counted"

TEXTS = ("MODULE:PT_DEVMEM", "Allocation failed for size", "out of memory")
"""How the bridge says that memory ran out (huggingface/optimum-habana#289 and #1469)."""


class GaudiPlanner:
    """Plans for Gaudi cards."""

    def devices(self) -> Sequence[DeviceSpec]:
        """Return this machine's card and those of the table."""
        return gaudi_devices()

    def precision(self, run: RunConfig, values: Mapping[str, Any], device: DeviceSpec) -> Precision:
        """Return the dtypes by the rules of the backend; layer norms stay in bf16, as with the CPU's autocast."""
        bf16 = values.get("bf16") is not False
        weights, _ = weights_dtype(run, bf16=bf16, fp16=False, published="", on_card=True)
        if values.get("deepspeed"):
            # DeepSpeed casts the whole model and leaves autocast off.
            return Precision(weights="bfloat16" if bf16 else weights, adapter="bfloat16" if bf16 else None)
        return Precision(weights=weights, autocast="bfloat16" if bf16 else None)


def gaudi_devices() -> list[DeviceSpec]:
    """Return this machine's card first, if there is one, then the table."""
    table = [
        # sdpa is composed of matrix products and a softmax there, so the probabilities exist.
        DeviceSpec(
            name=name,
            total_bytes=total * 2**30,
            fixed_bytes=0,
            source=_SOURCE,
            fused_attention=False,
            flops=_TERAFLOPS[name] * 1e12,
            flops_source=_FLOPS_SOURCE,
        )
        for name, total in _TOTALS_GIB.items()
    ]
    if not probe_gaudi().usable:
        return table
    import habana_frameworks.torch.hpu as hpu

    name = str(hpu.get_device_name()).replace(" ", "-")
    here = DeviceSpec(
        name=name,
        total_bytes=hpu.memory_stats()["Limit"],
        fixed_bytes=0,
        source="the bridge's memory_stats()",
        is_here=True,
        fused_attention=False,
        flops=next((device.flops for device in table if device.name.lower() == name.lower()), None),
        flops_source=_FLOPS_SOURCE,
    )
    return [here, *(device for device in table if device.name != here.name)]


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether the card's allocator refused."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in TEXTS)
    )
