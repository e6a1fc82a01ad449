"""The Backend protocol for CUDA and CPU, over transformers' own Trainer and accelerate."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vlm_lora.backend import DeviceSpec, Precision, Probe, Traits
from vlm_lora.config import RunConfig
from vlm_lora.errors import ConfigError
from vlm_lora.launching import Launch, LaunchRequest, deepspeed, loader_workers, torchrun
from vlm_lora_cuda.devices import cuda_devices, is_out_of_memory
from vlm_lora_cuda.precision import (
    check_precision,
    choose_attention,
    choose_dtype,
    default_precision,
    planned_precision,
)

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments

logger = logging.getLogger(__name__)


class CudaBackend:
    """CUDA where torch sees a GPU (unless `--use_cpu`), else the CPU, said aloud."""

    name: ClassVar[str] = "cuda"
    traits: ClassVar[Traits] = Traits(static_shapes=False, serves_cpu=True)

    def __init__(self) -> None:
        self._arguments: TrainingArguments | None = None

    def probe(self) -> Probe:
        """Say what would be used. The CPU always can be, so this backend is always usable."""
        try:
            import torch
        except ImportError as error:
            return Probe(usable=False, device="", reason=f"PyTorch does not import ({error}); pip install torch")
        if torch.cuda.is_available():
            properties = torch.cuda.get_device_properties(0)
            device = f"{torch.cuda.device_count()} x {properties.name} ({properties.total_memory / 2**30:.0f} GiB)"
            return Probe(usable=True, device=device, priority=10)
        return Probe(usable=True, device=f"CPU ({os.cpu_count()} cores)")

    def facts(self) -> Mapping[str, str]:
        """Return CUDA's version, precision and attention where there is a GPU."""
        try:
            import torch
        except ImportError:
            return {}
        if not torch.cuda.is_available():
            return {"GPU": f"none that torch sees (torch {torch.__version__}, built for CUDA {torch.version.cuda})"}
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        flash = importlib.util.find_spec("flash_attn") is not None
        return {
            "CUDA": str(torch.version.cuda),
            "precision": "bf16" if bf16 else "fp16 or fp32; this GPU has no bf16",
            "flash attention": "installed" if flash else "not there: pip install flash-attn --no-build-isolation",
        }

    def environment(self, run: RunConfig) -> Mapping[str, str]:
        """Return nothing: torch reads no variable of ours at import."""
        return {}

    def arguments_class(self) -> type[TrainingArguments]:
        """Return transformers' own class."""
        from transformers import TrainingArguments

        return TrainingArguments

    def prepare(self, run: RunConfig) -> None:
        """Quieten tokenizers that are forked into loader workers."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    def build_arguments(self, run: RunConfig, values: Mapping[str, Any]) -> TrainingArguments:
        """Fill in what the hardware decides, refuse what it cannot do, and say both."""
        import torch

        on_gpu = torch.cuda.is_available() and not values.get("use_cpu")
        check_precision(values, on_gpu=on_gpu)
        chosen = {
            **default_precision(values, on_gpu=on_gpu),
            "dataloader_pin_memory": on_gpu,
            "dataloader_num_workers": loader_workers(),
            **values,
            "use_cpu": not on_gpu,
        }
        try:
            self._arguments = self.arguments_class()(**chosen)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"The training arguments do not go together: {error}") from error
        keep_to_one_gpu(self._arguments)
        return self._arguments

    def device(self) -> torch.device:
        """Return the device that the training arguments settled on."""
        if self._arguments is None:
            raise RuntimeError("device() before build_arguments(): the arguments decide between GPU and CPU")
        return self._arguments.device

    def model_kwargs(self, run: RunConfig, config: PretrainedConfig, arguments: TrainingArguments) -> Mapping[str, Any]:
        """Return dtype and attention implementation, each logged with its reason."""
        on_gpu = arguments.device.type == "cuda"
        dtype = choose_dtype(run, arguments, on_gpu=on_gpu)
        return {
            "torch_dtype": dtype,
            "attn_implementation": choose_attention(run.model.attn_implementation, config, dtype, on_gpu=on_gpu),
        }

    def trainer_class(self) -> type[Trainer]:
        """Return transformers' own trainer."""
        from transformers import Trainer

        return Trainer

    def trainer_kwargs(self, run: RunConfig) -> Mapping[str, Any]:
        """Return nothing: transformers' trainer needs no more."""
        return {}

    def adapt_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return the model as it is: transformers' classes are right here."""
        return model

    def capture(self, module: torch.nn.Module) -> torch.nn.Module:
        """Return the module as it is."""
        return module

    def generation_kwargs(self) -> Mapping[str, Any]:
        """Return nothing: `generate` needs no more."""
        return {}

    def memory(self) -> Mapping[str, int]:
        """Return the allocator's figures in bytes on a GPU, the process's peak resident set on a CPU."""
        import resource

        import torch

        if torch.cuda.is_available() and self.device().type == "cuda":
            return {
                "memory_allocated_bytes": torch.cuda.memory_allocated(),
                "memory_peak_bytes": torch.cuda.max_memory_allocated(),
                "memory_reserved_bytes": torch.cuda.max_memory_reserved(),
            }
        # Linux reports kibibytes (getrusage(2)).
        return {"memory_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}

    def devices(self) -> Sequence[DeviceSpec]:
        """Return this machine's GPU, if there is one, its host, and the GPUs of the table."""
        return cuda_devices()

    def precision(self, run: RunConfig, values: Mapping[str, Any], device: DeviceSpec) -> Precision:
        """Return the dtypes by the rules of `model_kwargs` and `build_arguments`."""
        return planned_precision(run, values, device)

    def out_of_memory(self, error: BaseException) -> bool:
        """Say whether a GPU's or the host's allocator refused."""
        return is_out_of_memory(error)

    def launch(self, request: LaunchRequest, command: Sequence[str]) -> Launch:
        """Start by DeepSpeed's launcher where asked, else by torch's."""
        if request.use_mpi:
            raise ConfigError("--use_mpi is for Gaudi; leave it out, or type --use_deepspeed.")
        return deepspeed(request, command) if request.use_deepspeed else torchrun(request, command)


def keep_to_one_gpu(arguments: TrainingArguments) -> None:
    """Keep a plain `python` run on one GPU, where transformers would wrap the model in torch's DataParallel.

    DataParallel splits batches behind the loss's back. Several GPUs are `accelerate launch`'s job.
    """
    if arguments.n_gpu > 1:
        logger.warning(
            "One process was started and %d GPUs are there: using the first. "
            "For all of them: accelerate launch examples/run_lora_vlm.py ...",
            arguments.n_gpu,
        )
        arguments._n_gpu = 1
