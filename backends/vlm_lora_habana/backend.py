"""The Backend protocol for Intel Gaudi, over optimum-habana's trainer."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from vlm_lora.backend import Launcher, Probe, Traits
from vlm_lora.config.declaration import Declaration
from vlm_lora.config.run_config import RunConfig
from vlm_lora.engines.precision import launchers_own
from vlm_lora.errors import ConfigError
from vlm_lora.launch.launching import loader_workers
from vlm_lora_habana.declared import DECLARATION
from vlm_lora_habana.host_reads import ON_HOST, keep_reads_on_host
from vlm_lora_habana.models import FUSED, check_plain, plain_models
from vlm_lora_habana.trainer import gaudi_trainer_class
from vlm_lora_hpu.backend import REFUSED, HpuBackend
from vlm_lora_hpu.host_reads import explicit_masks
from vlm_lora_hpu.launcher import GaudiLauncher
from vlm_lora_hpu.modes import LAZY, Mode, limit_graphs
from vlm_lora_hpu.probe import is_installed, probe_gaudi
from vlm_lora_hpu.zero import zero_settings

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments

logger = logging.getLogger(__name__)

REFUSED_HERE: Mapping[str, tuple[Any, str]] = {
    "use_hpu_graphs_for_training": (False, "captured graphs would keep the first batch's supervised positions"),
    "fp8": (False, "fp8 replaces the layers that LoRA is attached to"),
    "context_parallel_size": (1, "the loss is counted per row, not per part of a row"),
}
"""Settings that the vendor's class has and that cannot be honoured: the only value that can, and why."""

NEEDED = {
    "optimum.habana": "optimum-habana with transformers 4.55 (pip install -r requirements-hpu-optimum.txt, in an "
    "environment of its own)"
}
"""Modules that are needed in addition to the bridge, and the cure for each."""

HPU_GRAPHS = ("use_hpu_graphs", "use_hpu_graphs_for_inference")
HPU_GRAPH_OPTIONS = {"disable_tensor_cache_hpu_graphs": "disable_tensor_cache", "max_hpu_graphs": "max_graphs"}
"""What the vendor's flags are called by `wrap_in_hpu_graph`."""
ADAM = ("adamw_torch", "adamw_torch_fused", "adamw_hf")
"""Values of `--optim` in whose place `use_fused_adam` puts the bridge's own AdamW, which computes the same."""


class HabanaBackend(HpuBackend):
    """Gaudi by GaudiTrainer, in lazy, eager and compile mode."""

    name: ClassVar[str] = "habana"
    traits: ClassVar[Traits] = Traits(
        static_shapes=True, counts_graphs=True, block_diagonal_masks=("sdpa", "eager"), optimizer="adamw_torch"
    )
    declaration: ClassVar[Declaration] = DECLARATION
    launcher: Launcher = GaudiLauncher("habana")

    refused: ClassVar[Mapping[str, tuple[Any, str]]] = {**REFUSED, **REFUSED_HERE}
    attentions: ClassVar[tuple[str, ...]] = ("sdpa", "eager", FUSED)

    def __init__(self) -> None:
        super().__init__()
        self._hpu_graphs = False
        self._hpu_graph_options: dict[str, Any] = {}

    def probe(self) -> Probe:
        """Say what is there, or everything that is missing."""
        return probe_gaudi(NEEDED)

    def goes_here(self) -> bool:
        """Say whether the bridge and optimum-habana are there."""
        return super().goes_here() and all(map(is_installed, NEEDED))

    def arguments_class(self) -> type[TrainingArguments]:
        """Return optimum-habana's class."""
        from optimum.habana import GaudiTrainingArguments

        return GaudiTrainingArguments

    def arguments(self, run: RunConfig, values: Mapping[str, Any]) -> TrainingArguments:
        """Fill in what the hardware decides and refuse what it cannot do; no model may exist yet."""
        self.refuse(values)
        given = self._take_hpu_graphs(values)
        self._settle_optimizer(given)
        chosen = {
            **self._precision(given),
            "dataloader_pin_memory": False,
            "dataloader_num_workers": loader_workers(),
            "throughput_warmup_steps": 3,
            **given,
            **self._mode_arguments(run, given),
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
                explicit_masks("sdpa", FUSED)
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

    def _settle_optimizer(self, values: Mapping[str, Any]) -> None:
        """Let `--optim` win over the Gaudi configuration, whose fused AdamW the trainer would take whatever it says."""
        asked = values.get("optim")
        if asked is None or not self._configuration.get("use_fused_adam"):
            return
        name = str(getattr(asked, "value", asked))
        if name in ADAM:
            logger.info(
                "--optim %s: by use_fused_adam of the Gaudi configuration it is the bridge's FusedAdamW. A file named "
                "by --gaudi_config_name that says false gives torch's.",
                name,
            )
            return
        self._configuration["use_fused_adam"] = False
        logger.info("--optim %s wins over use_fused_adam in the Gaudi configuration.", name)

    def _mode_arguments(self, run: RunConfig, values: Mapping[str, Any]) -> dict[str, Any]:
        if self._mode is Mode.COMPILE:
            limit_graphs(run, values)
            backend = values.get("torch_compile_backend") or "hpu_backend"
            return {"use_lazy_mode": False, "torch_compile": True, "torch_compile_backend": backend}
        return {"use_lazy_mode": self._mode is Mode.LAZY}
