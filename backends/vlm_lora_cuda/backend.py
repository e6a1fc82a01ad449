"""What differs on NVIDIA GPUs from any torch device."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from vlm_lora.backend import Launcher, Planner, Probe, Traits
from vlm_lora.config.declaration import Declaration
from vlm_lora.config.run_config import RunConfig
from vlm_lora.errors import ConfigError
from vlm_lora_cuda.devices import CudaPlanner
from vlm_lora_cuda.launcher import CudaLauncher
from vlm_lora_torch import TorchBackend
from vlm_lora_torch.precision import Card

if TYPE_CHECKING:
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)


class CudaBackend(TorchBackend):
    """The GPUs that torch sees; never the CPU."""

    name: ClassVar[str] = "cuda"
    declaration: ClassVar[Declaration] = Declaration(
        logger="vlm_lora_cuda",
        packages=("flash-attn", "flash-attn-3", "flash-attn-4", "flash-linear-attention", "causal-conv1d"),
        launchers=("use_deepspeed", "use_accelerate"),
        variables=("CUDA_*", "CUBLAS_*", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE"),
    )
    traits: ClassVar[Traits] = replace(TorchBackend.traits, liger=True)
    planner: Planner = CudaPlanner()
    launcher: Launcher = CudaLauncher()

    def probe(self) -> Probe:
        """Say which GPUs would be used, or why there is none."""
        try:
            import torch
        except ImportError as error:
            return Probe(usable=False, device="", reason=f"PyTorch does not import ({error}); pip install torch")
        if not torch.cuda.is_available():
            built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
            reason = (
                f"torch {torch.__version__}, {built}, sees no GPU (nvidia-smi shows driver and GPUs). For the CPU type "
                "--backend cpu, or leave --backend out."
            )
            return Probe(usable=False, device="", reason=reason)
        properties = torch.cuda.get_device_properties(0)
        device = f"{torch.cuda.device_count()} x {properties.name} ({properties.total_memory / 2**30:.0f} GiB)"
        return Probe(usable=True, device=device, priority=10)

    def facts(self) -> Mapping[str, str]:
        """Return CUDA's version, precision and attention where there is a GPU."""
        import torch

        from vlm_lora_torch.kernels import FLASH_PACKAGES, LAYER_PACKAGES, is_installed

        if not torch.cuda.is_available():
            return {}
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        flash = [each.kind for each in FLASH_PACKAGES if is_installed(each.module, each.package)]
        absent = [package for module, package in LAYER_PACKAGES.items() if importlib.util.find_spec(module) is None]
        return {
            "CUDA": str(torch.version.cuda),
            "precision": "bf16" if bf16 else "fp16 or fp32; this GPU has no bf16",
            "flash attention": ", ".join(flash) or "not there: pip install flash-attn --no-build-isolation",
            "layers' kernels": f"not there: {', '.join(absent)} (for Qwen3.5, LFM2-VL)" if absent else "installed",
        }

    def card(self) -> Card | None:
        """Return the facts of the GPU that torch would use."""
        import torch

        return Card(
            name=torch.cuda.get_device_name(),
            capability=torch.cuda.get_device_capability(),
            bf16=torch.cuda.is_bf16_supported(including_emulation=False),
        )

    def flash_obstacle(self) -> str | None:
        """Return None: these are the devices that it is written for."""
        return None

    def prepare(self, run: RunConfig) -> None:
        """Check that this process has a GPU of its own."""
        import torch

        check_own_gpu(os.environ, devices=torch.cuda.device_count())
        super().prepare(run)

    def arguments(self, run: RunConfig, values: Mapping[str, Any]) -> TrainingArguments:
        """Build the arguments; one process keeps to one GPU."""
        arguments = super().arguments(run, values)
        keep_to_one_gpu(arguments)
        return arguments

    def memory(self) -> Mapping[str, int]:
        """Return the allocator's figures in bytes."""
        import torch

        return {
            "memory_allocated_bytes": torch.cuda.memory_allocated(),
            "memory_peak_bytes": torch.cuda.max_memory_allocated(),
            "memory_reserved_bytes": torch.cuda.max_memory_reserved(),
        }

    def reset_peak_memory(self) -> None:
        """Let the allocator's peaks begin anew."""
        import torch

        torch.cuda.reset_peak_memory_stats()

    def synchronize(self) -> None:
        """Wait for the GPU."""
        import torch

        torch.cuda.synchronize()


def check_own_gpu(environ: Mapping[str, str], *, devices: int) -> None:
    """Refuse a process whose number on this machine is beyond the GPUs that it sees.

    Raises:
        ConfigError: it would stop later, at an "invalid device ordinal".
    """
    local_rank = int(environ.get("LOCAL_RANK") or 0)
    if 0 < devices <= local_rank:
        raise ConfigError(
            f"This is process {local_rank} of its machine (from 0) and it sees {devices} GPUs. Start one process per "
            "GPU, and let each see all of them: with srun --gpus-per-node=8, without --gpus-per-task or --gpu-bind."
        )


def keep_to_one_gpu(arguments: TrainingArguments) -> None:
    """Keep a plain `python` run on one GPU, where transformers would wrap the model in torch's DataParallel.

    DataParallel splits batches behind the loss's back. Several GPUs are `accelerate launch`'s job.
    """
    if arguments.n_gpu > 1:
        logger.warning(
            "One process was started and %d GPUs are there: using the first. "
            "For all of them: vlm-lora launch train ..., or accelerate launch examples/run_lora_vlm.py ...",
            arguments.n_gpu,
        )
        arguments._n_gpu = 1
