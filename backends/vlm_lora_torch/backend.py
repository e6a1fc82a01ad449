"""The Backend protocol over transformers' own Trainer and accelerate, for any device that torch knows."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from vlm_lora.backend import Launcher, Planner, Probe, Traits
from vlm_lora.config.declaration import Declaration
from vlm_lora.config.run_config import RunConfig
from vlm_lora.engines.precision import launched_precision, launchers_own
from vlm_lora.errors import ConfigError
from vlm_lora.launch.launching import loader_workers
from vlm_lora_torch.engines import (
    asked,
    engine_arguments,
    offloading_trainer,
    offloads,
    shard_layers,
    start_process_group,
)
from vlm_lora_torch.launcher import TorchLauncher
from vlm_lora_torch.planner import TorchPlanner, ran_out_of_memory
from vlm_lora_torch.precision import Card, check_precision, choose_dtype, choose_precision
from vlm_lora_torch.quantization import (
    KINDS,
    check_installed,
    keep_layout,
    own_device,
    quantization_keywords,
    stays_packed,
)

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments

logger = logging.getLogger(__name__)


class TorchBackend:
    """A torch device, here the CPU.

    An adapter for another device subclasses it and says what differs: `name`, `traits`, `declaration`, `probe`,
    `card`, and a planner and a launcher of its own.
    """

    name: ClassVar[str] = "cpu"
    traits: ClassVar[Traits] = Traits(
        static_shapes=False,
        quantization=KINDS,
        block_diagonal_masks=("sdpa", "eager", "flex_attention"),
        lora_on_parameters=True,
    )
    declaration: ClassVar[Declaration] = Declaration(logger="vlm_lora_torch")
    planner: Planner = TorchPlanner()
    launcher: Launcher = TorchLauncher()

    def __init__(self) -> None:
        self._arguments: TrainingArguments | None = None

    def probe(self) -> Probe:
        """Say that the CPU can be used; it always can."""
        try:
            import torch  # noqa: F401
        except ImportError as error:
            return Probe(usable=False, device="", reason=f"PyTorch does not import ({error}); pip install torch")
        return Probe(usable=True, device=f"CPU ({os.cpu_count()} cores)")

    def card(self) -> Card | None:
        """Return what decides on the device's precision; None on the CPU, which computes in float32."""
        return None

    def flash_obstacle(self) -> str | None:
        """Return why flash attention cannot run on this device, or None."""
        return "it runs on CUDA GPUs only and this run is on the CPU"

    def facts(self) -> Mapping[str, str]:
        """Return nothing: there is no driver."""
        return {}

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

    def arguments(self, run: RunConfig, values: Mapping[str, Any]) -> TrainingArguments:
        """Fill in what the hardware decides, refuse what it cannot do, and say both."""
        card = self.card()
        on_card = card is not None
        if run.model.load_in_4bit:
            check_installed()
        launched = launched_precision(values, os.environ)
        check_precision(values, card, launched=launched)
        precision = choose_precision(values, card, by_deepspeed=asked("deepspeed", values), launched=launched)
        chosen = {
            "dataloader_pin_memory": on_card,
            "dataloader_num_workers": loader_workers(),
            # Every trainable tensor gets a gradient in every step (the collator sees to it): no need to search.
            "ddp_find_unused_parameters": False,
            **values,
            # Behind what was set: a None there is no answer, and a contradiction was refused.
            **precision,
            "use_cpu": not on_card,
        }
        chosen |= engine_arguments(chosen, on_card=on_card)
        try:
            with launchers_own(os.environ):
                self._arguments = self.arguments_class()(**chosen)
            start_process_group(self._arguments, on_card=on_card)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"The training arguments do not go together: {error}") from error
        return self._arguments

    def device(self) -> torch.device:
        """Return the device that the training arguments settled on."""
        if self._arguments is None:
            raise RuntimeError("device() before arguments(): they decide on the device")
        return self._arguments.device

    def model_keywords(
        self, run: RunConfig, config: PretrainedConfig, arguments: TrainingArguments
    ) -> Mapping[str, Any]:
        """Return dtype, attention implementation and quantization, each logged with its reason."""
        dtype = self.dtype(run, config, arguments)
        keywords: dict[str, Any] = {"torch_dtype": dtype, "attn_implementation": self.attention(run, config, dtype)}
        if run.model.load_in_4bit:
            from vlm_lora.model.quantization import find_layers

            kept = find_layers(config, trust_remote_code=run.model.trust_remote_code).kept
            keywords |= quantization_keywords(run, kept, dtype, arguments)
        elif stays_packed(config):
            keywords["device_map"] = own_device(arguments)
        return keywords

    def dtype(self, run: RunConfig, config: PretrainedConfig, arguments: TrainingArguments) -> torch.dtype:
        """Return the dtype that the base weights are loaded in, logged with its reason."""
        return choose_dtype(run, config, arguments, on_card=arguments.device.type != "cpu")

    def attention(self, run: RunConfig, config: PretrainedConfig, dtype: torch.dtype) -> str | dict[str, str]:
        """Return the attention implementation, of the whole model or by part, logged with its reason."""
        from vlm_lora_torch.attention import choose_attention, note_missing_kernels

        card = self.card()
        if card is not None:  # where none is, neither are such kernels
            note_missing_kernels(config)
        return choose_attention(
            run.model.attn_implementation,
            config,
            dtype,
            self.flash_obstacle(),
            None if card is None else card.capability,
        )

    def trainer_class(self) -> type[Trainer]:
        """Return transformers' own trainer, with DeepSpeed's optimizer where its states are in host memory."""
        if self._arguments is not None and offloads(self._arguments):
            return offloading_trainer()
        from transformers import Trainer

        return Trainer

    def trainer_keywords(self, run: RunConfig) -> Mapping[str, Any]:
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

    def keeps_frozen_weights(self) -> bool:
        """Say whether DeepSpeed's ZeRO-3 does (0.19.3 and later; vendors' builds number theirs otherwise)."""
        from deepspeed.runtime.zero import partitioned_param_coordinator

        return hasattr(partitioned_param_coordinator, "update_recompute_parameters")

    def whole_gradient(self, parameter: torch.nn.Parameter) -> torch.Tensor | None:
        """Return the gradient as DeepSpeed gathers it."""
        from deepspeed.utils import safe_get_full_grad

        gradient: torch.Tensor | None = safe_get_full_grad(parameter)
        return gradient

    def capture(self, module: torch.nn.Module) -> torch.nn.Module:
        """Return the module as it is."""
        return module

    def generation_keywords(self) -> Mapping[str, Any]:
        """Return nothing: `generate` needs no more."""
        return {}

    def memory(self) -> Mapping[str, int]:
        """Return the process's peak resident set in bytes."""
        # Linux reports kibibytes (getrusage(2)).
        return {"memory_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}

    def reset_peak_memory(self) -> None:
        """Do nothing: the peak of a process's resident set cannot be reset."""

    def synchronize(self) -> None:
        """Do nothing: the CPU has done what it was given."""

    def out_of_memory(self, error: BaseException) -> bool:
        """Say whether the device's or the host's allocator refused."""
        return ran_out_of_memory(error)
