"""QLoRA: the frozen language model's linear layers in 4 bits, everything else as it is (Dettmers et al. 2023).

Which layers those are is decided here, from a model built without memory; how they are quantized is the backend's.
Short names in transformers' list of modules to leave out do not reach every tower, so the list holds full names, and
what was loaded is compared with it.
"""

from __future__ import annotations

import copy
import logging
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vlm_lora.backend import Backend
from vlm_lora.config.files import read_mapping
from vlm_lora.config.run_config import ModelConfig, RunConfig
from vlm_lora.engines.zero import zero_stage
from vlm_lora.errors import BackendError, ConfigError, ModelError
from vlm_lora.launch.placement import launcher_asks_for
from vlm_lora.model.adapters.experts import expert_parameters, routers, share_of_language
from vlm_lora.model.families import Family, family_of
from vlm_lora.model.head.completion import complete
from vlm_lora.model.loading import adapter_folder
from vlm_lora.model.parts import find_parts

logger = logging.getLogger(__name__)

RECORD = "run_config.yaml"
"""What a training run writes next to its adapter."""


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Full names of a model's linear layers."""

    quantized: tuple[str, ...]
    kept: tuple[str, ...]
    """Those that stay in 16 or 32 bits: vision tower, projector, head, routers, and weights that are read without a
    call."""
    inputs: tuple[int, ...] = ()
    """How many inputs each of the quantized has, in their order."""
    experts: tuple[str, ...] = ()
    """Parameters that hold all experts of a layer: no linear layers, so in neither list."""
    model_class: str = ""
    """The class that transformers builds the model with."""


def find_layers(config: Any, family: Family | None = None, *, trust_remote_code: bool = False) -> Layers:
    """Return which linear layers are quantized, in training or after it; builds the model on torch's meta device."""
    import transformers

    family = family or family_of(config)
    keywords = {"trust_remote_code": True} if trust_remote_code else {}
    with torch.device("meta"):
        # A copy: timm's towers change the configuration that they are given.
        empty = getattr(transformers, family.auto_class).from_config(copy.deepcopy(config), **keywords)
    complete(empty)
    parts = find_parts(empty, family)
    linears = {name: module for name, module in empty.named_modules() if isinstance(module, nn.Linear)}
    routing = {*routers(empty, parts)}
    quantized = {
        name
        for name in linears
        if parts.part_of(name) == "language" and parts.carries_lora(name) and name not in routing
    }
    return Layers(
        quantized=tuple(name for name in linears if name in quantized),
        kept=tuple(name for name in linears if name not in quantized),
        inputs=tuple(module.in_features for name, module in linears.items() if name in quantized),
        experts=tuple(expert_parameters(empty, parts)),
        model_class=type(empty).__name__,
    )


def check_request(run: RunConfig, backend: Backend, arguments: Any) -> None:
    """Refuse `--load_in_4bit` where it cannot be honoured, before any weights are loaded.

    Raises:
        BackendError: the hardware has no such quantization.
        ConfigError: it does not go together with other settings.
    """
    if not run.model.load_in_4bit:
        return
    partitioned = partitioning_engine(arguments) != ""
    check_training(run, backend, trains=arguments.do_train, partitioned=partitioned)
    for flag in ("bf16_full_eval", "fp16_full_eval"):
        if getattr(arguments, flag):
            raise ConfigError(f"--{flag} with --load_in_4bit: weights in 4 bits cannot be cast. Leave one of them out.")


def check_training(run: RunConfig, backend: Backend, *, trains: bool, partitioned: bool) -> None:
    """Refuse `--load_in_4bit` where backend, tuning or engine do not go together with it; the run need not be here.

    Args:
        run: what was asked for.
        backend: of the device that it would run on.
        trains: whether weights are trained at all.
        partitioned: whether FSDP or ZeRO-3 share out the weights.

    Raises:
        BackendError, ConfigError: as `check_request`.
    """
    if not run.model.load_in_4bit:
        return
    kind = run.model.bnb_4bit_quant_type
    if kind not in backend.traits.quantization:
        there = ", ".join(backend.traits.quantization) or "none"
        raise BackendError(
            f"--load_in_4bit ({kind}) cannot be used with the {backend.name} backend: quantizations it has: {there}. "
            "Leave it out: LoRA on the 16-bit base needs no other flag."
        )
    if run.tuning.peft_method == "none" and trains:
        raise ConfigError(
            "--load_in_4bit with --peft_method none: weights in 4 bits cannot be trained. Leave --load_in_4bit out, "
            "or type --peft_method lora."
        )
    if run.tuning.lora_init not in ("default", "gaussian"):
        raise ConfigError(
            f"--lora_init {run.tuning.lora_init} with --load_in_4bit: LoRA's matrices would begin from the packed "
            "weights. Type --lora_init default or gaussian, or leave --load_in_4bit out."
        )
    if partitioned:
        raise ConfigError(
            "--load_in_4bit with FSDP or ZeRO-3: transformers does not partition a base in 4 bits while loading it. "
            "Leave --load_in_4bit out, or use ZeRO-2 (launchers/deepspeed/zero2.json), where each device holds the "
            "whole base in 4 bits."
        )


def check_quantized(model: nn.Module, layers: Layers) -> None:
    """Make sure that exactly the chosen layers are in 4 bits, and log them.

    Raises:
        ModelError: others are, or some are not.
    """
    found = {name for name, module in model.named_modules() if _is_quantized(module)}
    if found != set(layers.quantized):
        stray = sorted(found ^ set(layers.quantized))
        raise ModelError(
            f"{len(found)} layers are in 4 bits instead of {len(layers.quantized)}; they differ in "
            f"{', '.join(stray[:3])}. Leave --load_in_4bit out, and please report the model and the versions that "
            "`vlm-lora doctor` shows."
        )
    logger.info(
        "Quantization: %d linear layers of the language model are in 4 bits; %d of vision tower, projector and head "
        "are not.",
        len(layers.quantized),
        len(layers.kept),
    )
    if not any(parameter.dim() == 3 for parameter in model.parameters()):
        return
    parts = find_parts(model)
    experts = expert_parameters(model, parts)
    if experts:
        logger.warning(
            "Quantization: %d parameters that hold all experts of a layer stay whole, %.1f %% of the language model: "
            "bitsandbytes quantizes linear layers alone. `vlm-lora plan` counts them so.",
            len(experts),
            100 * share_of_language(model, parts, experts),
        )


def note_training_precision(model: ModelConfig) -> None:
    """Say so where an adapter was trained on a base in 4 bits and is now put on the whole one."""
    folder = adapter_folder(model)
    if folder is None or model.load_in_4bit or not (folder / RECORD).is_file():
        return
    if read_mapping(folder / RECORD).get("load_in_4bit"):
        logger.info(
            "The adapter was trained on a base in 4 bits and is used on the base as it is. "
            "Type --load_in_4bit for the base that it was trained on."
        )


def _is_quantized(module: nn.Module) -> bool:
    return hasattr(getattr(module, "weight", None), "quant_state")


def partitioning_engine(arguments: Any) -> str:
    """Return the engine that gives each process a part of the weights, by its name; empty without one."""
    if arguments.fsdp or launcher_asks_for("fsdp", os.environ):
        return "FSDP"
    return "ZeRO-3" if _is_zero3(arguments) else ""


def _is_zero3(arguments: Any) -> bool:
    plugin = getattr(arguments, "deepspeed_plugin", None)
    return plugin is not None and zero_stage(plugin.deepspeed_config) == 3
