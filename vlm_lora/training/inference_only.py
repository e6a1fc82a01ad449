"""Runs that train nothing: the engines that shard a model in training are left out where they cannot serve."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vlm_lora.config.aliases import RESTATED, canonical_name
from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.together import ORDER
from vlm_lora.data.wording import joined
from vlm_lora.engines.zero import read_zero, zero_stage
from vlm_lora.launch.placement import ENGINE_VARIABLES, launcher_asks_for

logger = logging.getLogger(__name__)

_ORDERING = {
    "packing": lambda run: run.batching.packing,
    "pack_length": lambda run: run.batching.pack_length is not None,
    ORDER: lambda run: run.raw.get(ORDER) not in (None, "random"),
}
"""Settings of how training rows are fed, and whether a run asks for them."""

_FSDP = ("fsdp", "fsdp_config")
_OFF = ("", "none", "false", "0", "no", "off", "[]")


def without_engine(run: RunConfig, *, shared: bool = False) -> RunConfig:
    """Return a run that trains nothing without DeepSpeed and FSDP, and say so; the launcher's own are left out too.

    DeepSpeed evaluates without an optimizer in ZeRO stage 3 alone, and accelerate prepares no model for FSDP2 without
    one.

    Args:
        run: as parsed.
        shared: whether all processes evaluate together, as ZeRO stage 3 needs; then it is kept.

    Raises:
        ConfigError: the file of --deepspeed cannot be read.
    """
    asked = engines_asked(run)
    if shared and "deepspeed" in asked and _stage(_given(run).get("deepspeed")) == 3:
        return run
    for name in asked:
        os.environ.pop(ENGINE_VARIABLES[name], None)
        logger.warning(
            "--%s is left out, because nothing trains: each process holds the whole model%s.",
            name,
            ", and they share the rows out. --deepspeed zero3 would shard its weights" if shared else "",
        )
    return replace(run, raw={key: value for key, value in run.raw.items() if not _engine_of(key)})


def say_left_out(run: RunConfig) -> None:
    """Say which settings of a run that trains nothing are for training alone, of those that arrange its rows.

    They are no error: a training's configuration file evaluates, too.
    """
    named = [f"--{name}" for name, asked in _ORDERING.items() if asked(run)]
    if named:
        logger.warning("For training alone, so without effect here: %s. Evaluation takes row by row.", joined(named))


def engines_asked(run: RunConfig) -> list[str]:
    """Return which of DeepSpeed and FSDP a run's keys or its launcher ask for, as their flags' names."""
    words = _given(run)
    return [name for name in ENGINE_VARIABLES if name in words or launcher_asks_for(name, os.environ)]


def _given(run: RunConfig) -> dict[str, Any]:
    return {canonical_name(key): value for key, value in run.raw.items() if str(value).lower() not in _OFF}


def _engine_of(key: str) -> str:
    """Return the engine that a key speaks of; empty for any other key."""
    name = canonical_name(key)
    restated = RESTATED[name].setting if name in RESTATED else name
    return "fsdp" if restated in _FSDP else "deepspeed" if name == "deepspeed" else ""


def _stage(given: str | Mapping[str, Any] | None) -> int:
    """Return the ZeRO stage of `--deepspeed`, or else of `accelerate launch`."""
    if given:
        return zero_stage(read_zero(given))
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if file != "none":
        return zero_stage(read_zero(file))
    return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
