"""The Backend protocol for CUDA and CPU, over transformers' own Trainer and accelerate."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from vlm_lora.backend import DeviceSpec, Precision, Probe, Traits
from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.values import is_true
from vlm_lora.engines.precision import launched_precision, launchers_own
from vlm_lora.errors import ConfigError
from vlm_lora.launch.launching import Launch, LaunchRequest, deepspeed, loader_workers, torchrun
from vlm_lora_cuda.accelerate_flags import accelerate_launch
from vlm_lora_cuda.attention import choose_attention
from vlm_lora_cuda.devices import cuda_devices, is_out_of_memory
from vlm_lora_cuda.engines import (
    asked,
    engine_arguments,
    offloading_trainer,
    offloads,
    shard_layers,
    start_process_group,
)
from vlm_lora_cuda.precision import (
    check_precision,
    choose_dtype,
    choose_precision,
    gpu_facts,
    planned_precision,
)
from vlm_lora_cuda.quantization import KINDS, check_installed, keep_layout, quantization_keywords

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments

logger = logging.getLogger(__name__)


class CudaBackend:
    """CUDA where torch sees a GPU (unless `--use_cpu`), else the CPU, said aloud."""

    name: ClassVar[str] = "cuda"
    traits: ClassVar[Traits] = Traits(static_shapes=False, serves_cpu=True, quantization=KINDS)

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
        """Check that this process has a GPU of its own; quieten tokenizers that are forked into loader workers."""
        import torch

        if not is_true(run.raw.get("use_cpu")):
            check_own_gpu(os.environ, devices=torch.cuda.device_count())
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    def build_arguments(self, run: RunConfig, values: Mapping[str, Any]) -> TrainingArguments:
        """Fill in what the hardware decides, refuse what it cannot do, and say both."""
        import torch

        has_gpu = torch.cuda.is_available()
        on_gpu = has_gpu and not values.get("use_cpu")
        if run.model.load_in_4bit:
            check_installed()
        gpu = gpu_facts() if on_gpu else None
        launched = launched_precision(values, os.environ)
        check_precision(values, gpu, launched=launched)
        precision = choose_precision(values, gpu, by_deepspeed=asked("deepspeed", values), launched=launched)
        chosen = {
            "dataloader_pin_memory": on_gpu,
            "dataloader_num_workers": loader_workers(),
            # Every trainable tensor gets a gradient in every step (the collator sees to it): no need to search.
            "ddp_find_unused_parameters": False,
            **values,
            # Behind what was set: a None there is no answer, and a contradiction was refused.
            **precision,
            "use_cpu": not on_gpu,
        }
        chosen |= engine_arguments(chosen, on_gpu=on_gpu, has_gpu=has_gpu)
        try:
            with launchers_own(os.environ):
                self._arguments = self.arguments_class()(**chosen)
            start_process_group(self._arguments, on_gpu=on_gpu)
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
        """Return dtype, attention implementation and quantization, each logged with its reason."""
        on_gpu = arguments.device.type == "cuda"
        dtype = choose_dtype(run, config, arguments, on_gpu=on_gpu)
        attention = choose_attention(run.model.attn_implementation, config, dtype, on_gpu=on_gpu)
        keywords: dict[str, Any] = {"torch_dtype": dtype, "attn_implementation": attention}
        if run.model.load_in_4bit:
            from vlm_lora.model.quantization import find_layers

            kept = find_layers(config, trust_remote_code=run.model.trust_remote_code).kept
            keywords |= quantization_keywords(run, kept, dtype, arguments)
        return keywords

    def trainer_class(self) -> type[Trainer]:
        """Return transformers' own trainer, with DeepSpeed's optimizer where its states are in host memory."""
        if self._arguments is not None and offloads(self._arguments):
            return offloading_trainer()
        from transformers import Trainer

        return Trainer

    def trainer_kwargs(self, run: RunConfig) -> Mapping[str, Any]:
        """Return nothing: transformers' trainer needs no more."""
        return {}

    def adapt_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return the model, its layers named to FSDP, its 4-bit weights kept as they are: its classes are right."""
        from vlm_lora.model.parts import decoder_layers, find_parts

        keep_layout(model)
        if self._arguments is not None and asked("fsdp", {"fsdp": self._arguments.fsdp}):
            layers = decoder_layers(model, find_parts(model))
            shard_layers(self._arguments, [type(model.get_submodule(name)).__name__ for name in layers])
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
        """Start by accelerate's or DeepSpeed's launcher where asked, else by torch's; one process per GPU."""
        import torch

        if request.use_mpi:
            raise ConfigError(
                "--use_mpi is for Gaudi; leave it out, type --use_deepspeed, or start by mpirun yourself: "
                "mpirun -n 8 vlm-lora train ..."
            )
        devices = torch.cuda.device_count()
        if request.use_accelerate:
            return accelerate_launch(request, command, devices=devices)
        if request.world_size is not None and 0 < devices < request.world_size and request.hostfile is None:
            raise ConfigError(f"--world_size {request.world_size}: this machine has {devices} GPUs.")
        request = replace(request, world_size=request.world_size or max(devices, 1))
        if request.use_deepspeed:
            visible = visible_devices(os.environ) if devices else []
            return deepspeed(request, command, devices=visible[: request.world_size])
        return torchrun(request, command)


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


def visible_devices(environ: Mapping[str, str]) -> list[int]:
    """Return the numbers in CUDA_VISIBLE_DEVICES, which DeepSpeed's launcher replaces; none where it is not set.

    Raises:
        ConfigError: it holds identifiers, which that launcher cannot pass on.
    """
    text = environ.get("CUDA_VISIBLE_DEVICES", "")
    numbers = [piece.strip() for piece in text.split(",") if piece.strip()]
    if not all(number.isdigit() for number in numbers):
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES={text}: DeepSpeed's launcher knows devices by number only; write numbers, such as "
            "0,1, or leave --use_deepspeed out (torch's launcher runs --deepspeed FILE too)."
        )
    return [int(number) for number in numbers]


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
