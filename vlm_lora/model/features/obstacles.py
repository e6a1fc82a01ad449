"""Why features of a run's images cannot be kept: by its settings, and by its model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.values import is_true
from vlm_lora.engines.zero import read_zero, zero_stage
from vlm_lora.errors import ConfigError
from vlm_lora.model.families import FAMILIES, Family

if TYPE_CHECKING:
    from torch import nn

    from vlm_lora.model.parts import Parts

_RANDOM = re.compile(r"dropout|drop_path|stochastic", re.IGNORECASE)
_RANDOM_CLASS = re.compile(r"Dropout|DropPath|StochasticDepth")
_BY_BATCH = re.compile(r"BatchNorm")

SHARDED = "the weights are sharded, and a tower alone cannot be run by every process in step"
_NO_FSDP = ("", "none", "false", "0", "no", "off", "[]")


def refuse_early(run: RunConfig, family: Family, *, trains: bool, static_shapes: bool) -> None:
    """Stop where `--cache_vision_features on` contradicts the other settings, before anything is read.

    Raises:
        ConfigError: says why.
    """
    reason = obstacle_in_settings(run, family, trains=trains, static_shapes=static_shapes)
    if run.batching.cache_vision_features == "on" and reason:
        raise ConfigError(f"--cache_vision_features on: {reason}. Leave it out, or type auto.")


def obstacle_in_settings(run: RunConfig, family: Family, *, trains: bool, static_shapes: bool) -> str:
    """Return why the settings allow no kept features; empty where they do.

    Args:
        run: the resolved configuration.
        family: the model's.
        trains: whether the run trains; one that measures alone changes no weight.
        static_shapes: whether batch shapes are planned.
    """
    if family.model_type not in FAMILIES:
        return f"the family {family.model_type} is not in the table of families, so nobody tried where features go in"
    if family.features.entry == "none":
        return f"{family.model_type} takes no features in place of pixels"
    tuning, raw = run.tuning, run.raw
    if trains and tuning.peft_method == "none" and not (tuning.freeze_vision and tuning.freeze_projector):
        part = "vision tower" if not tuning.freeze_vision else "projector"
        flag = "--freeze_vision" if not tuning.freeze_vision else "--freeze_projector"
        return f"the {part} trains, so its features change with every step ({flag} true keeps it as it is)"
    fully = [part for part in tuning.train_fully if part in ("vision", "projector")]
    if trains and tuning.peft_method == "lora" and fully:
        part = "vision tower" if "vision" in fully else "projector"
        return f"the {part} trains, so its features change with every step (--train_fully {fully[0]})"
    if _asks_to_shard(raw):
        return SHARDED
    if static_shapes:
        return "batches have planned shapes (--static_shapes), which are planned for pixels"
    if is_true(raw.get("torch_compile")) or raw.get("torch_compile_backend") or raw.get("torch_compile_mode"):
        return "--torch_compile compiles the model for pixels"
    if is_true(raw.get("bf16_full_eval")) or is_true(raw.get("fp16_full_eval")):
        return "--bf16_full_eval and --fp16_full_eval evaluate with another tower than the one that trains"
    return ""


def _asks_to_shard(raw: Mapping[str, Any]) -> bool:
    """Say whether the settings shard weights; a launcher's own file may do so without them."""
    zero = raw.get("deepspeed")
    if zero and zero_stage(read_zero(zero)) == 3:
        return True
    return str(raw.get("fsdp") or "").lower() not in _NO_FSDP


def obstacle_in_model(model: nn.Module, parts: Parts) -> str:
    """Return why features of this model cannot be kept; empty where they can."""
    for name, parameter in model.named_parameters():
        part = parts.part_of(name)
        if part in ("vision", "projector") and parameter.requires_grad:
            said = "vision tower" if part == "vision" else "projector"
            return f"the {said} trains ({name}), so its features change with every step"
    for name, module in model.named_modules():
        kind = type(module).__name__
        if parts.part_of(name) in ("vision", "projector") and (_BY_BATCH.search(kind) or _is_random(module)):
            return f"the vision tower computes otherwise in training ({name}: {kind})"
    return ""


def _is_random(module: nn.Module) -> bool:
    """Say whether a module drops something: by its probability, whatever it is called, or by its class."""
    drops = bool(_RANDOM_CLASS.search(type(module).__name__))
    probabilities = (
        value
        for name, value in vars(module).items()
        if isinstance(value, float) and (_RANDOM.search(name) or (drops and name in ("p", "drop_prob")))
    )
    return any(value > 0 for value in probabilities)
