"""What LoRA on experts in one tensor does not go together with: found before any weights are loaded."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vlm_lora.compat import without_initialisation
from vlm_lora.config.run_config import TuningConfig
from vlm_lora.errors import BackendError, ConfigError
from vlm_lora.model.adapters.experts import EXPERTS, check_balance
from vlm_lora.model.adapters.starts import check_start
from vlm_lora.model.adapters.targets import GROUPS, Targets, resolve_targets
from vlm_lora.model.families import Family
from vlm_lora.model.head.completion import complete
from vlm_lora.model.parts import find_parts

_WITHOUT = "or leave the experts out, for example by --lora_targets language"


def check_experts(tuning: TuningConfig, targets: Targets) -> None:
    """Refuse settings that PEFT does not offer for experts in one tensor.

    It adds the low-rank product to the weights themselves, and not to what a layer makes of its input: there is no
    input to drop values of, and no column of one matrix to scale.

    Raises:
        ConfigError: names the setting and both ways out.
    """
    if not targets.parameters:
        return
    for flag, value, off in (
        ("lora_dropout", tuning.lora_dropout, "--lora_dropout 0"),
        ("use_dora", tuning.use_dora, "--use_dora false"),
    ):
        if value:
            raise ConfigError(
                f"--{flag} {str(value).lower()} with LoRA on experts in one tensor ({targets.parameters[0]}, ...): "
                f"PEFT has none there. Type {off}, {_WITHOUT}."
            )


def check_before_loading(
    tuning: TuningConfig,
    config: Any,
    family: Family,
    *,
    backend: Any,
    partitioned: str = "",
    packed: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """As `check_experts`, from the model's configuration alone; and refuse what cannot compute with such experts.

    Args:
        tuning: what was asked for.
        config: the model's configuration.
        family: its family.
        backend: of the device.
        partitioned: the engine that shares out weights among processes, by its name; empty without one.
        packed: whether rows share sequences.
        trust_remote_code: whether the model's own Python code may run.

    Raises:
        BackendError: LoRA on experts in one tensor is not proven on this hardware.
        ConfigError: it does not go together with other settings.
    """
    check_balance(tuning.router_aux_loss_coef, config.model_type, packed=packed)
    if tuning.peft_method != "lora":
        return
    if partitioned:
        _refuse_partitioned(tuning, partitioned)
    if not may_reach_experts(tuning.lora_targets) and not tuning.begins_with_weights:
        return
    import transformers

    keywords = {"trust_remote_code": True} if trust_remote_code else {}
    with torch.device("meta"), without_initialisation():
        # A copy: timm's towers change the configuration that they are given.
        empty = getattr(transformers, family.auto_class).from_config(copy.deepcopy(config), **keywords)
    complete(empty)
    with _unsaid():  # it is said of the model itself
        targets = resolve_targets(empty, find_parts(empty, family), tuning.lora_targets)
    check_experts(tuning, targets)
    check_start(tuning, empty, targets)
    if not targets.parameters:
        return
    if partitioned:
        raise ConfigError(
            f"--lora_targets {tuning.lora_targets} with {partitioned}: LoRA on experts in one tensor "
            f"({targets.parameters[0]}, ...) adds to the whole parameter, and {partitioned} gives a process a part of "
            f"it. Type --deepspeed zero2 or use plain data parallelism, {_WITHOUT}."
        )
    if not backend.traits.lora_on_parameters:
        raise BackendError(
            f"--lora_targets {tuning.lora_targets} with the {backend.name} backend: LoRA on experts in one tensor "
            f"({targets.parameters[0]}, ...) has not been proven on this hardware. Leave the experts out, for example "
            "by --lora_targets language."
        )


def _refuse_partitioned(tuning: TuningConfig, engine: str) -> None:
    """Refuse what PEFT copies whole, or what grows, where an engine shares weights out among processes."""
    if tuning.train_fully:
        raise ConfigError(
            f"--train_fully {' '.join(tuning.train_fully)} with {engine}: PEFT copies what it trains so, and of "
            "weights that are shared out there is no whole to copy. Type --deepspeed zero2, use plain data "
            "parallelism, or leave --train_fully out."
        )
    if tuning.begins_with_weights:
        raise ConfigError(
            f"--lora_init {tuning.lora_init} with {engine}: LoRA begins with a part of each whole weight, and these "
            "are shared out. Type --deepspeed zero2, use plain data parallelism, or --lora_init default."
        )
    if tuning.new_tokens is not None:
        raise ConfigError(
            f"--new_tokens {tuning.new_tokens} with {engine}: embeddings that are shared out do not grow here. "
            "Type --deepspeed zero2, use plain data parallelism, or leave --new_tokens out."
        )


@contextmanager
def _unsaid() -> Iterator[None]:
    """Within this context what is found out about targets is not logged."""
    loggers = [
        logging.getLogger(f"vlm_lora.model.{name}") for name in ("families", "adapters.targets", "adapters.experts")
    ]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def may_reach_experts(wanted: str) -> bool:
    """Whether `--lora_targets WANTED` could select experts in one tensor, which words for parts do not."""
    words = {word.strip(" '\"") for word in re.split(",", wanted.strip("[]() "))}
    return EXPERTS in words or not words <= set(GROUPS)
