"""The Backend protocol for Intel Gaudi over transformers' own Trainer: eager mode and torch.compile."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from vlm_lora.backend import Launcher, Probe, Traits
from vlm_lora.config.declaration import Declaration
from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.values import is_true
from vlm_lora.engines.precision import launchers_own
from vlm_lora.errors import ConfigError
from vlm_lora.launch.launching import loader_workers
from vlm_lora_gaudi.declared import DECLARATION
from vlm_lora_gaudi.trainer import hpu_trainer_class
from vlm_lora_hpu.backend import HpuBackend
from vlm_lora_hpu.host_reads import check_placeholders_once, explicit_masks, unwrap_inside
from vlm_lora_hpu.launcher import GaudiLauncher
from vlm_lora_hpu.modes import LAZY, Mode, choose_mode, limit_graphs
from vlm_lora_hpu.probe import probe_gaudi
from vlm_lora_hpu.roads import NEW, has_own_support, transformers_version
from vlm_lora_hpu.zero import zero_settings
from vlm_lora_torch.engines import asked, switched

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments

logger = logging.getLogger(__name__)

OLD_ROAD = (
    "on the older road (--backend habana; in an environment of its own: requirements-hpu-optimum.txt) it is there"
)


class GaudiBackend(HpuBackend):
    """Gaudi by transformers 5's hpu support, which needs no package of the vendor's but the bridge."""

    name: ClassVar[str] = NEW
    traits: ClassVar[Traits] = Traits(
        static_shapes=True,
        block_diagonal_masks=("sdpa", "eager"),
        lora_on_parameters=True,
        optimizer="adamw_torch",
    )
    declaration: ClassVar[Declaration] = DECLARATION
    launcher: Launcher = GaudiLauncher(NEW)

    def probe(self) -> Probe:
        """Say what is there, or everything that is missing."""
        lacks = "" if has_own_support() else f"transformers 5 or newer (here is {transformers_version()})"
        found = probe_gaudi(lacks=lacks)
        if found.usable:
            return found
        older = "The older road (--backend habana) needs optimum-habana and transformers 4.55, in another environment."
        return replace(found, reason=f"{found.reason} {older}")

    def goes_here(self) -> bool:
        """Say whether the bridge and transformers 5 are there."""
        return super().goes_here() and has_own_support()

    def model_keywords(
        self, run: RunConfig, config: PretrainedConfig, arguments: TrainingArguments
    ) -> Mapping[str, Any]:
        """As of the base; experts are computed one after the other, by the model's own code.

        transformers would group their tokens by `torch.histc` over integers, which PyTorch's CPU kernels do not have
        and nothing says that the bridge has.
        """
        settings = config.get_text_config().to_dict()
        if any("experts" in name and value for name, value in settings.items()):
            logger.warning(
                "Experts: one after the other (eager): grouping their tokens has not been proven on Gaudi. How many "
                "tokens each gets differs from step to step, and each new shape is compiled."
            )
        return {**super().model_keywords(run, config, arguments), "experts_implementation": "eager"}

    def choose_mode(self, raw: Mapping[str, Any], environ: Mapping[str, str]) -> Mode:
        """Return eager mode or torch.compile.

        Raises:
            ConfigError: lazy mode was asked for, or settings contradict each other.
        """
        typed = is_true(raw.get("use_lazy_mode"))
        if typed or environ.get(LAZY) == "1":
            given, cure = ("--use_lazy_mode", "Leave it out") if typed else (f"{LAZY}=1", "Set it to 0, or not at all")
            raise ConfigError(f"{given}: lazy mode is optimum-habana's. {cure}; {OLD_ROAD}.")
        return choose_mode(raw, {LAZY: "0", **environ})

    def arguments_class(self) -> type[TrainingArguments]:
        """Return transformers' class with the flags that keep their meaning here."""
        from vlm_lora_gaudi.arguments import GaudiArguments

        return GaudiArguments

    def environment(self, run: RunConfig) -> Mapping[str, str]:
        """As of the base, and transformers' checks by a tensor's value off: the encoder has made them."""
        found = super().environment(run)
        return {**found, "TRANSFORMERS_DISABLE_TORCH_CHECK": "1"} if found else found

    def arguments(self, run: RunConfig, values: Mapping[str, Any]) -> TrainingArguments:
        """Fill in what the hardware decides, refuse what it cannot do, and say both."""
        self.refuse(values)
        fsdp = switched(values["fsdp"]) if values.get("fsdp") is not None else None
        if asked("fsdp", {"fsdp": fsdp}):  # by a flag, or by accelerate's launcher
            raise ConfigError(
                f"--fsdp {fsdp or 'true'} cannot be used on Gaudi: it was not tried on this device. Type --deepspeed "
                "zero3, which shards the weights, or leave it out."
            )
        self._say_unused(run)
        chosen: dict[str, Any] = {
            **self._precision(values),
            "dataloader_pin_memory": False,
            "dataloader_num_workers": loader_workers(),
            "ddp_find_unused_parameters": False,
            "optim": "adamw_torch",
            **values,
            **({} if fsdp is None else {"fsdp": fsdp}),
            "logging_nan_inf_filter": False,  # it would read each step's loss
            "use_cpu": False,
        }
        if self._mode is Mode.COMPILE:
            chosen |= {
                "torch_compile": True,
                "torch_compile_backend": values.get("torch_compile_backend", "hpu_backend"),
            }
            limit_graphs(run, chosen)
        if chosen.get("deepspeed"):
            chosen["deepspeed"] = zero_settings(chosen["deepspeed"], bf16=bool(chosen.get("bf16")))
        try:
            with launchers_own(os.environ):
                self._arguments = self.arguments_class()(**chosen)
                self._arguments.device  # noqa: B018 - sets up the process group, before any model
            explicit_masks("sdpa")
        except (ValueError, ImportError, AssertionError) as error:
            raise ConfigError(f"The training arguments do not go together: {error}") from error
        return self._arguments

    def trainer_class(self) -> type[Trainer]:
        """Return transformers' trainer with batches that keep on the host what models read."""
        return hpu_trainer_class()

    def adapt_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """Keep the model from reading the card in every step."""
        check_placeholders_once(model)
        unwrap_inside(model)
        return model

    def _say_unused(self, run: RunConfig) -> None:
        """Say what of a configuration file for GaudiTrainer has no counterpart here.

        Raises:
            ConfigError: it asks for dynamic shapes.
        """
        if self._configuration.get("use_dynamic_shapes"):
            raise ConfigError(
                "--gaudi_config_name: use_dynamic_shapes true contradicts the planned batch shapes. Take it out of the "
                "file; --static_shapes false pads to the longest row."
            )
        unused = [name for name in ("use_fused_adam", "use_fused_clip_norm") if self._configuration.get(name)]
        if run.raw.get("gaudi_config_name") and unused:
            logger.info(
                "--gaudi_config_name: %s are GaudiTrainer's and not used here; --optim chooses.", " and ".join(unused)
            )
