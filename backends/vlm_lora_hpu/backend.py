"""What every road to Gaudi shares: mode, configuration file, precision, memory; each road brings its trainer."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vlm_lora.backend import Planner
from vlm_lora.config.run_config import RunConfig
from vlm_lora.engines.precision import launched_precision, spoken
from vlm_lora.errors import BackendError, ConfigError
from vlm_lora.launch.placement import found
from vlm_lora_hpu.configuration import autocast_variables, read_configuration
from vlm_lora_hpu.devices import GaudiPlanner, is_out_of_memory
from vlm_lora_hpu.launcher import NO_MPIRUN, find_mpirun
from vlm_lora_hpu.modes import LAZY, Mode, choose_mode, mode_variables
from vlm_lora_hpu.probe import driver_version, is_installed
from vlm_lora_torch import TorchBackend
from vlm_lora_torch.precision import choose_dtype

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, TrainingArguments

logger = logging.getLogger(__name__)

REFUSED: Mapping[str, tuple[Any, str]] = {
    "fp16": (False, "Gaudi trains in bf16: type --bf16 instead of --fp16"),
    "fp16_full_eval": (False, "Gaudi computes in bf16: type --bf16_full_eval"),
    "ddp_backend": ("hccl", "Gaudi cards talk to each other by hccl: leave --ddp_backend out"),
    "tf32": (False, "tf32 is a mode of NVIDIA GPUs: leave --tf32 out"),
}
"""Settings that cannot be honoured: the only value that can, and why."""


class HpuBackend(TorchBackend):
    """Gaudi, alone or many cards; never anything else. Not a backend by itself: it has no trainer."""

    planner: Planner = GaudiPlanner()
    refused: ClassVar[Mapping[str, tuple[Any, str]]] = REFUSED
    attentions: ClassVar[tuple[str, ...]] = ("sdpa", "eager")
    """What `--attn_implementation` may name; the first is taken by itself."""

    def __init__(self) -> None:
        super().__init__()
        self._mode: Mode | None = None
        self._configuration: dict[str, Any] = {}
        self._read: dict[tuple[str | None, str | None], Mapping[str, Any]] = {}
        """Configurations that were read, by name and token: a file on the Hub is fetched once."""

    def choose_mode(self, raw: Mapping[str, Any], environ: Mapping[str, str]) -> Mode:
        """Return the mode that was set. Raises ConfigError where settings contradict each other."""
        return choose_mode(raw, environ)

    def facts(self) -> Mapping[str, str]:
        """Return driver, mode and mpirun, or nothing on a machine without Gaudi's software."""
        if not self.goes_here():
            return {}
        try:
            mode = f"{self.choose_mode({}, os.environ).value} ({LAZY}={os.environ.get(LAZY, 'not set')})"
        except ConfigError as error:
            mode = f"none: {error}"
        return {"driver": driver_version(), "mode": mode, "mpirun": find_mpirun() or NO_MPIRUN}

    def goes_here(self) -> bool:
        """Say whether this road goes with the packages of this environment; another road's variables are its own."""
        return is_installed("habana_frameworks")

    def environment(self, run: RunConfig) -> Mapping[str, str]:
        """Return the mode's and the autocast lists' variables, which the bridge reads when torch is imported."""
        if not self.goes_here():
            return {}
        typed = {**os.environ, **run.environment}
        mode = self.choose_mode(run.raw, typed)
        configuration = self._read_configuration(run)
        # optimum-habana runs `pip list` at import and needs this environment's.
        programs, path = str(Path(sys.executable).parent), typed.get("PATH", os.defpath)
        if path.split(os.pathsep)[0] != programs:
            path = os.pathsep.join([programs, path])
        return {**mode_variables(mode), **autocast_variables(configuration), **found(typed).variables, "PATH": path}

    def prepare(self, run: RunConfig) -> None:
        """Settle mode and configuration, and quieten tokenizers in loader workers."""
        # The variables are set by now, and an environment that was set wins over an untyped default.
        self._mode = self.choose_mode(run.raw, os.environ)
        self._configuration = dict(self._read_configuration(run))
        self._read.clear()  # the next run of this process may find another file
        logger.info("Gaudi mode: %s.", self._mode.value)
        super().prepare(run)

    def refuse(self, values: Mapping[str, Any]) -> None:
        """Refuse flags that this road cannot honour.

        Raises:
            ConfigError: names the flag and what to type.
        """
        for flag in ("compile_dynamic", "cache_size_limit"):
            if values.get(flag) is not None and self._mode is not Mode.COMPILE:
                raise ConfigError(
                    f"--{flag} {values[flag]} is for torch.compile: add --torch_compile, or leave it out."
                )
        for flag, (only, cure) in self.refused.items():
            if values.get(flag) not in (None, only):
                raise ConfigError(f"--{flag} {values[flag]} cannot be used on Gaudi: {cure}.")

    def dtype(self, run: RunConfig, config: PretrainedConfig, arguments: TrainingArguments) -> torch.dtype:
        """Return the dtype by the rules of any card."""
        # GaudiTrainer takes --bf16 out of the arguments later, so this reads them before it exists.
        return choose_dtype(run, config, arguments, on_card=True)

    def attention(self, run: RunConfig, config: PretrainedConfig, dtype: torch.dtype) -> str | dict[str, str]:
        """Return what was asked for of what is there; sdpa by itself."""
        return self._attention(run)

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

    def _precision(self, values: Mapping[str, Any]) -> dict[str, bool]:
        launched = launched_precision(values, os.environ)
        if launched == "fp16":
            raise ConfigError(f"{spoken(launched)} cannot be used on Gaudi: {self.refused['fp16'][1]}.")
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

    def _attention(self, run: RunConfig) -> str:
        asked = run.model.attn_implementation
        if asked == "auto":
            return self.attentions[0]
        if asked not in self.attentions:
            raise BackendError(
                f"--attn_implementation {asked} is not there with --backend {self.name}; allowed are auto, "
                f"{', '.join(self.attentions)}."
            )
        return asked
