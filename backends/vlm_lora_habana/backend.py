"""The Backend protocol for Intel Gaudi, over optimum-habana's trainer."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vlm_lora.backend import Launcher, Planner, Probe, Traits
from vlm_lora.config.declaration import Declaration
from vlm_lora.config.run_config import RunConfig
from vlm_lora.engines.precision import launched_precision, launchers_own, spoken
from vlm_lora.errors import BackendError, ConfigError
from vlm_lora.launch.launching import loader_workers
from vlm_lora.launch.placement import found
from vlm_lora_habana.configuration import autocast_variables, read_configuration
from vlm_lora_habana.declared import DECLARATION
from vlm_lora_habana.devices import GaudiPlanner, is_out_of_memory, weights_dtype
from vlm_lora_habana.host_reads import ON_HOST, explicit_masks, keep_reads_on_host
from vlm_lora_habana.models import FUSED, check_plain, plain_models
from vlm_lora_habana.modes import LAZY, Mode, choose_mode, mode_variables
from vlm_lora_habana.probe import driver_version, is_installed, probe_gaudi
from vlm_lora_habana.spawn import NO_MPIRUN, GaudiLauncher, find_mpirun
from vlm_lora_habana.trainer import gaudi_trainer_class
from vlm_lora_habana.zero import zero_settings
from vlm_lora_torch import TorchBackend

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments

logger = logging.getLogger(__name__)

ATTENTION = ("sdpa", "eager", FUSED)

REFUSED: Mapping[str, tuple[Any, str]] = {
    "fp16": (False, "Gaudi trains in bf16: type --bf16 instead of --fp16"),
    "fp16_full_eval": (False, "Gaudi computes in bf16: type --bf16_full_eval"),
    "tf32": (False, "tf32 is a mode of NVIDIA GPUs: leave --tf32 out"),
    "use_hpu_graphs_for_training": (False, "captured graphs would keep the first batch's supervised positions"),
    "fp8": (False, "fp8 replaces the layers that LoRA is attached to"),
    "context_parallel_size": (1, "the loss is counted per row, not per part of a row"),
}
"""Settings that cannot be honoured: the only value that can, and why."""

HPU_GRAPHS = ("use_hpu_graphs", "use_hpu_graphs_for_inference")
HPU_GRAPH_OPTIONS = {"disable_tensor_cache_hpu_graphs": "disable_tensor_cache", "max_hpu_graphs": "max_graphs"}
"""What the vendor's flags are called by `wrap_in_hpu_graph`."""


class HabanaBackend(TorchBackend):
    """Gaudi, alone or many cards; never anything else."""

    name: ClassVar[str] = "habana"
    traits: ClassVar[Traits] = Traits(
        static_shapes=True, block_diagonal_masks=("sdpa", "eager"), optimizer="adamw_torch"
    )
    declaration: ClassVar[Declaration] = DECLARATION
    planner: Planner = GaudiPlanner()
    launcher: Launcher = GaudiLauncher()

    def __init__(self) -> None:
        super().__init__()
        self._mode: Mode | None = None
        self._configuration: dict[str, Any] = {}
        self._read: dict[tuple[str | None, str | None], Mapping[str, Any]] = {}
        """Configurations that were read, by name and token: a file on the Hub is fetched once."""
        self._hpu_graphs = False
        self._hpu_graph_options: dict[str, Any] = {}

    def probe(self) -> Probe:
        """Say what is there, or everything that is missing."""
        return probe_gaudi()

    def facts(self) -> Mapping[str, str]:
        """Return driver, mode and mpirun, or nothing on a machine without Gaudi's software."""
        if not is_installed("habana_frameworks"):
            return {}
        try:
            mode = f"{choose_mode({}, os.environ).value} ({LAZY}={os.environ.get(LAZY, 'not set')})"
        except ConfigError as error:
            mode = f"none: {error}"
        return {"driver": driver_version(), "mode": mode, "mpirun": find_mpirun() or NO_MPIRUN}

    def environment(self, run: RunConfig) -> Mapping[str, str]:
        """Return the mode's and the autocast lists' variables, which the bridge reads when torch is imported."""
        if not is_installed("habana_frameworks"):
            return {}
        typed = {**os.environ, **run.environment}
        mode = choose_mode(run.raw, typed)
        configuration = self._read_configuration(run)
        # optimum-habana runs `pip list` at import and needs this environment's.
        programs, path = str(Path(sys.executable).parent), typed.get("PATH", os.defpath)
        if path.split(os.pathsep)[0] != programs:
            path = os.pathsep.join([programs, path])
        return {**mode_variables(mode), **autocast_variables(configuration), **found(typed).variables, "PATH": path}

    def arguments_class(self) -> type[TrainingArguments]:
        """Return optimum-habana's class."""
        from optimum.habana import GaudiTrainingArguments

        return GaudiTrainingArguments

    def prepare(self, run: RunConfig) -> None:
        """Settle mode and configuration, and quieten tokenizers in loader workers."""
        # The variables are set by now, and an environment that was set wins over an untyped default.
        self._mode = choose_mode(run.raw, os.environ)
        self._configuration = dict(self._read_configuration(run))
        self._read.clear()  # the next run of this process may find another file
        logger.info("Gaudi mode: %s.", self._mode.value)
        super().prepare(run)

    def arguments(self, run: RunConfig, values: Mapping[str, Any]) -> TrainingArguments:
        """Fill in what the hardware decides and refuse what it cannot do; no model may exist yet."""
        for flag, (only, cure) in REFUSED.items():
            if values.get(flag) not in (None, only):
                raise ConfigError(f"--{flag} {values[flag]} cannot be used on Gaudi: {cure}.")
        given = self._take_hpu_graphs(values)
        chosen = {
            **self._precision(given),
            "dataloader_pin_memory": False,
            "dataloader_num_workers": loader_workers(),
            "throughput_warmup_steps": 3,
            **given,
            **self._mode_arguments(given),
            "use_habana": True,
            "attn_implementation": self._attention(run),
            # Read here already: the vendor's class would fetch it a second time.
            "gaudi_config_name": None,
        }
        if chosen.get("deepspeed"):
            chosen["deepspeed"] = zero_settings(chosen["deepspeed"], bf16=bool(chosen["bf16"]))
        try:
            with plain_models(), launchers_own(os.environ):
                self._arguments = self.arguments_class()(**chosen)
                self._arguments.device  # noqa: B018 - sets up the process group, before any model
                explicit_masks()
        except (ValueError, ImportError, AssertionError) as error:
            raise ConfigError(f"The training arguments do not go together: {error}") from error
        return self._arguments

    def model_keywords(
        self, run: RunConfig, config: PretrainedConfig, arguments: TrainingArguments
    ) -> Mapping[str, Any]:
        """Return dtype and attention implementation, each logged with its reason."""
        if self._hpu_graphs and config.model_type in ON_HOST:
            raise ConfigError(
                f"--use_hpu_graphs_for_inference cannot be used with {config.model_type}: its images' sizes are part "
                "of the captured graph and would be replayed for other images. Leave it out."
            )
        return super().model_keywords(run, config, arguments)

    def dtype(self, run: RunConfig, config: PretrainedConfig, arguments: TrainingArguments) -> torch.dtype:
        """Return bfloat16 for a frozen base in a bf16 run, else float32, unless --dtype says otherwise."""
        import torch

        # GaudiTrainer takes --bf16 out of the arguments later, so this reads them before it exists.
        name = weights_dtype(run, bf16=bool(arguments.bf16))
        reason = "--dtype says so" if run.model.dtype != "auto" else "the run's method and --bf16 ask for it"
        logger.info("Weights: %s, because %s.", name, reason)
        dtype: torch.dtype = getattr(torch, name)
        return dtype

    def attention(self, run: RunConfig, config: PretrainedConfig, dtype: torch.dtype) -> str | dict[str, str]:
        """Return what was asked for of what is there; sdpa by itself."""
        return self._attention(run)

    def trainer_class(self) -> type[Trainer]:
        """Return optimum-habana's trainer."""
        return gaudi_trainer_class()

    def trainer_keywords(self, run: RunConfig) -> Mapping[str, Any]:
        """Return the Gaudi configuration; the trainer writes it next to the weights."""
        from optimum.habana import GaudiConfig

        return {"gaudi_config": GaudiConfig(**self._configuration)}

    def adapt_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """Check that the model has transformers' own classes, and keep them from reading the card in every step."""
        check_plain(model)
        keep_reads_on_host(model)
        return model

    def capture(self, module: torch.nn.Module) -> torch.nn.Module:
        """Return the module in an HPU graph with `--use_hpu_graphs_for_inference`."""
        if not self._hpu_graphs:
            return module
        from habana_frameworks.torch.hpu import wrap_in_hpu_graph

        captured: torch.nn.Module = wrap_in_hpu_graph(module, **self._hpu_graph_options)
        return captured

    def generation_keywords(self) -> Mapping[str, Any]:
        """Return a cache of fixed size: one that grows would compile anew at every token."""
        return {"cache_implementation": "static"}

    def memory(self) -> Mapping[str, int]:
        """Return the card's figures in bytes."""
        import habana_frameworks.torch.hpu as hpu

        figures = hpu.memory_stats()
        return {"memory_allocated_bytes": figures["InUse"], "memory_peak_bytes": figures["MaxInUse"]}

    def reset_peak_memory(self) -> None:
        """Let the card's peak begin anew."""
        import habana_frameworks.torch.hpu as hpu

        hpu.reset_peak_memory_stats()

    def synchronize(self) -> None:
        """Wait for the card."""
        import habana_frameworks.torch.hpu as hpu

        hpu.synchronize()

    def out_of_memory(self, error: BaseException) -> bool:
        """Say whether the card's allocator refused."""
        return is_out_of_memory(error)

    def _read_configuration(self, run: RunConfig) -> Mapping[str, Any]:
        key = (run.raw.get("gaudi_config_name"), run.model.token)
        if key not in self._read:
            self._read[key] = read_configuration(key[0], token=key[1])
        return self._read[key]

    def _take_hpu_graphs(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Keep the flags of captured evaluation here and return the others: the trainer would capture less."""
        given = dict(values)
        wanted = [given.pop(name, None) for name in HPU_GRAPHS]
        self._hpu_graphs = any(wanted)
        typed = {name: given.pop(name) for name in HPU_GRAPH_OPTIONS if given.get(name)}
        if typed and not self._hpu_graphs:
            raise ConfigError(f"--{next(iter(typed))} is for --use_hpu_graphs_for_inference: type both, or neither.")
        if self._hpu_graphs and self._mode is Mode.EAGER:
            raise ConfigError(f"--use_hpu_graphs_for_inference needs lazy mode: set {LAZY}=1, or leave it out.")
        self._hpu_graph_options = {HPU_GRAPH_OPTIONS[name]: value for name, value in typed.items()}
        return given

    def _precision(self, values: Mapping[str, Any]) -> dict[str, bool]:
        launched = launched_precision(values, os.environ)
        if launched == "fp16":
            raise ConfigError(f"{spoken(launched)} cannot be used on Gaudi: {REFUSED['fp16'][1]}.")
        if values.get("bf16") is not None:
            if values["bf16"] is False and self._configuration.pop("use_torch_autocast", False):
                logger.info(
                    "Precision: fp32, because --bf16 false wins over use_torch_autocast in the Gaudi configuration."
                )
            else:
                logger.info(
                    "Precision: %s.",
                    "bf16 autocast, because --bf16 says so" if values["bf16"] else "fp32, because --bf16 false says so",
                )
            return {}
        logger.info("Precision: bf16 autocast, because Gaudi computes in bf16 (--bf16 false for fp32).")
        return {"bf16": True}

    def _mode_arguments(self, values: Mapping[str, Any]) -> dict[str, Any]:
        if self._mode is Mode.COMPILE:
            backend = values.get("torch_compile_backend") or "hpu_backend"
            return {"use_lazy_mode": False, "torch_compile": True, "torch_compile_backend": backend}
        return {"use_lazy_mode": self._mode is Mode.LAZY}

    def _attention(self, run: RunConfig) -> str:
        asked = run.model.attn_implementation
        if asked == "auto":
            return "sdpa"
        if asked not in ATTENTION:
            raise BackendError(
                f"--attn_implementation {asked} is not there on Gaudi; allowed are auto, {', '.join(ATTENTION)}."
            )
        return asked
