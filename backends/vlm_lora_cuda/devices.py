"""The GPUs that the memory plan knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from vlm_lora.backend import DeviceSpec
from vlm_lora_torch import TorchPlanner

MIB = 2**20

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

_TERAFLOPS: Mapping[str, float] = {
    "T4": 65,
    "A10G": 70,
    "L4": 121,
    "A100-40": 312,
    "A100-80": 312,
    "L40S": 362,
    "H100-80": 989,
    "H200": 989,
}
"""Tensor cores, bf16 (T4: fp16), without sparsity, by NVIDIA's data sheets; those of L4, L40S, H100 and H200 give twice
that with sparsity. H100 is the SXM card. A10G: by the data sheet of AWS's G5 instances."""
_FLOPS_SOURCE = "NVIDIA's data sheet, dense bf16"

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


class CudaPlanner(TorchPlanner):
    """Plans for the GPUs of the table and for this machine's."""

    widened: ClassVar[frozenset[str]] = WIDENED

    def devices(self) -> Sequence[DeviceSpec]:
        """Return this machine's GPU, if there is one, and the GPUs of the table."""
        return [*_gpu(), *_table()]


def _table() -> list[DeviceSpec]:
    return [
        DeviceSpec(
            name=name,
            total_bytes=total * MIB,
            fixed_bytes=CONTEXT_BYTES,
            source=_SOURCES.get(name, _SMI),
            computes_bf16=name not in WITHOUT_BF16,
            flops=flops_of(name),
            flops_source=_FLOPS_SOURCE,
        )
        for name, total in _TOTALS_MIB.items()
    ]


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
        flops=flops_of(properties.name),
        flops_source=_FLOPS_SOURCE,
    )
    return [here]


def flops_of(name: str) -> float | None:
    """Return the operations a second of a GPU by the name that its driver gives, `NVIDIA H100 80GB HBM3`.

    None for a card that is not in the table, and for H100's slower forms (PCIe, NVL).
    """
    words = name.replace("-", " ").split()
    if "H100" in words and {"PCIe", "NVL"} & set(words):
        return None
    found = next((key for key in _TERAFLOPS if key.partition("-")[0] in words), None)
    return None if found is None else _TERAFLOPS[found] * 1e12
