"""The devices that the memory plan knows, and how running out of their memory reads."""

from __future__ import annotations

import os
from collections.abc import Mapping

from vlm_lora.backend import DeviceSpec

GIB, MIB = 2**30, 2**20

CONTEXT_BYTES = 1343 * MIB
"""What a process takes before its first tensor: driver, context and kernels. "GPU memory occupied: 1343 MB" by NVML
after one tensor of one element; transformers 4.38's documentation, "Model training anatomy". Newer CUDA loads kernels
as they are needed and takes less."""

_SMI = "nvidia-smi's total as modal-labs/modal-client#2797 lists it; context: transformers' Model training anatomy"
_TOTALS_MIB: Mapping[str, int] = {
    "T4": 15360,
    "A10G": 23028,
    "L4": 23034,
    "A100-40": 40960,
    "L40S": 46068,
    "H100-80": 81559,
    "A100-80": 81920,
    "H200": 143771,
}
_SOURCES = {"H200": "nvidia-smi's total of an H200 (141 GB by NVIDIA's data sheet); context: as for the others"}

WITHOUT_BF16 = ("T4",)
"""Turing computes no bf16 (CUDA C++ Programming Guide, compute capability 7.5)."""

WIDENED = frozenset(
    {
        "layer_norm",
        "group_norm",
        "softmax",
        "log_softmax",
        "cross_entropy",
        "nll_loss",
        "pow",
        "rsqrt",
        "exp",
        "log",
        "norm",
        "normalize",
        "prod",
        "sum",
        "cumsum",
        "softplus",
        "cosine_similarity",
    }
)
"""CUDA's autocast runs these in float32 (torch.amp, "CUDA Ops that can autocast to float32")."""

HOST_BYTES = 600 * MIB
"""Python with torch and transformers imported, before the model (resident set of this project's own runs)."""


def cuda_devices() -> list[DeviceSpec]:
    """Return this machine's GPU, if there is one, its host, and the table."""
    table = [
        DeviceSpec(
            name=name,
            total_bytes=total * MIB,
            fixed_bytes=CONTEXT_BYTES,
            source=_SOURCES.get(name, _SMI),
            computes_bf16=name not in WITHOUT_BF16,
        )
        for name, total in _TOTALS_MIB.items()
    ]
    return [*_gpu(), host(), *table]


def _gpu() -> list[DeviceSpec]:
    import torch

    if not torch.cuda.is_available():
        return []
    properties = torch.cuda.get_device_properties(0)
    here = DeviceSpec(
        name=properties.name.replace(" ", "-"),
        total_bytes=properties.total_memory,
        fixed_bytes=CONTEXT_BYTES,
        source="as torch sees it",
        is_here=True,
        computes_bf16=torch.cuda.is_bf16_supported(including_emulation=False),
    )
    return [here]


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


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether a GPU's or the host's allocator refused."""
    import torch

    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError)
        and any(words in text for words in ("DefaultCPUAllocator: can't allocate memory", "CUDA out of memory"))
    )
