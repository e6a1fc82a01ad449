"""Weights of the language model that LoRA cannot reach: experts kept as one tensor instead of as linear layers.

PEFT puts LoRA on modules. A mixture of experts may hold all experts of a layer in one three-dimensional parameter, and
its router in a bare matrix; such weights stay frozen, and who tunes the language model is told how much of it that is.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from vlm_lora.model.parts import Parts

logger = logging.getLogger(__name__)

_REACHED = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
_CURE = "They cannot be trained with LoRA yet; --peft_method none trains them, with the whole language model."


def out_of_reach(model: nn.Module, parts: Parts) -> Mapping[str, nn.Parameter]:
    """Return the language model's matrices and larger tensors that belong to no layer that can carry LoRA, by name.

    Vectors (norms, biases) do not count.
    """
    modules = dict(model.named_modules())
    found: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        owner = modules[name.rpartition(".")[0]]
        if parts.part_of(name) == "language" and not isinstance(owner, _REACHED) and _dimensions(parameter) > 1:
            found[name] = parameter
    return found


def warn_of_frozen_experts(model: nn.Module, parts: Parts, wanted: str) -> None:
    """Say which share of the language model stays frozen although `--lora_targets WANTED` asks for it.

    Args:
        model: without PEFT around it.
        parts: from `find_parts`.
        wanted: the flag's value, a word for the language model or names that match such weights.
    """
    lost = out_of_reach(model, parts)
    if not lost:
        return
    sizes = {name: _size(p) for name, p in model.named_parameters() if parts.part_of(name) == "language"}
    share = sum(sizes[name] for name in lost) / sum(sizes.values())
    logger.warning(
        "--lora_targets %s: %.1f %% of the language model stays frozen: %d weights, such as %s %s, are no linear "
        "layers (experts in one tensor, routers). %s",
        wanted,
        100 * share,
        len(lost),
        next(iter(lost)),
        tuple(next(iter(lost.values())).shape),
        _CURE,
    )


def named_experts(model: nn.Module, parts: Parts, names: Sequence[str] = (), pattern: str | None = None) -> list[str]:
    """Return the weights out of reach that names, or a regular expression, select themselves or by their module."""
    lost = out_of_reach(model, parts)
    compiled = None if pattern is None else re.compile(pattern)
    return [name for name in lost if any(_selects(path, names, compiled) for path in _paths(name))]


def cannot_be_trained(wanted: str, experts: Sequence[str]) -> str:
    """Return the message for targets that select nothing but weights out of reach."""
    return (
        f"--lora_targets {wanted}: {experts[0]} (and {len(experts) - 1} more) are weights of the model but no linear "
        f"layers (experts in one tensor, routers). {_CURE} With LoRA, type --lora_targets language: it tunes the rest."
    )


def _paths(name: str) -> list[str]:
    """Return a parameter's name and those of the modules around it, but for the top ones, which hold everything."""
    steps = name.split(".")
    return [".".join(steps[:count]) for count in range(len(steps), max(len(steps) - 3, 0), -1)]


def _selects(path: str, names: Sequence[str], pattern: re.Pattern[str] | None) -> bool:
    if pattern is not None:
        return pattern.fullmatch(path) is not None
    return any(path == name or path.endswith("." + name) for name in names)


def _dimensions(parameter: Any) -> int:
    """Return a tensor's dimensions, also where ZeRO-3 leaves an empty one in its place."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


def _size(parameter: Any) -> int:
    packed = getattr(parameter, "quant_state", None)
    if packed is not None:  # two 4-bit weights are one byte
        return math.prod(packed.shape)
    return int(getattr(parameter, "ds_numel", parameter.numel()))
