"""Mixtures of experts: which weights are experts' and which route tokens to them, and what LoRA there comes with.

A layer's experts may be linear layers, which PEFT wraps as any (`target_modules`), or all of them one three-dimensional
parameter, which it adapts by name (`target_parameters`): each forward pass then adds the product of the low-rank
matrices to a copy of the whole parameter. Routers stay frozen.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from vlm_lora.compat import IS_5
from vlm_lora.errors import ConfigError
from vlm_lora.model.parts import Parts, size_of

logger = logging.getLogger(__name__)

EXPERTS = "experts"
"""The word of `--lora_targets` for them."""
BALANCED = frozenset(
    [
        *("ernie4_5_vl_moe", "glm4v_moe", "glm5_next", "minimax_m3_vl", "qwen3_5_moe", "qwen3_omni_moe_thinker"),
        *("qwen3_vl_moe", "qwen4_exp"),
    ]
)
"""Model types of which transformers 5 makes a loss for an even load of experts (`load_balancing_loss_func`)."""
ROUTERS_STAY = "Routers, which send tokens to experts, stay frozen."
UNBALANCED = "No loss balances the experts' load (--router_aux_loss_coef 0)."
_REACHED = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
_ROUTER = re.compile(r"(router|gate|gating)(\.|$)")
_CURE = "--peft_method none trains them, with the whole language model."


def check_balance(coefficient: float, model_type: str, *, packed: bool) -> None:
    """Refuse `--router_aux_loss_coef` where the model makes no such loss.

    Raises:
        ConfigError: names the model's type, or what it does not go together with.
    """
    if not coefficient:
        return
    if model_type not in BALANCED or not IS_5:
        raise ConfigError(
            f"--router_aux_loss_coef {coefficient}: models of type {model_type!r} make no loss for an even load of "
            f"experts; with transformers 5, those of type {', '.join(sorted(BALANCED))} do. Leave it out."
        )
    if packed:
        raise ConfigError(
            f"--router_aux_loss_coef {coefficient} with --packing true: the model's code does not tell the rows of a "
            "pack from its padding. Leave one of them out."
        )


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


def expert_parameters(model: nn.Module, parts: Parts) -> dict[str, nn.Parameter]:
    """Return the parameters that hold all experts of a layer at once, `(experts, in, out)` or `(experts, out, in)`."""
    return {
        name: parameter
        for name, parameter in out_of_reach(model, parts).items()
        if _dimensions(parameter) == 3 and _is_of_experts(model, name)
    }


def expert_layers(names: Iterable[str], parts: Parts) -> list[str]:
    """Return those of the linear layers `names` that are experts of the language model; shared ones are not meant."""
    return [name for name in names if parts.part_of(name) == "language" and EXPERTS in name.split(".")[:-1]]


def routers(model: nn.Module, parts: Parts) -> list[str]:
    """Return the linear layers of the language model that decide which experts a token is sent to.

    One is known by its name next to experts. Their outputs choose, so LoRA there would train through a choice; and
    some (Llama 4's) return more than one tensor, which PEFT cannot wrap.
    """
    modules = dict(model.named_modules())
    beside = {
        name.rpartition(".")[0]
        for name, module in modules.items()
        if parts.part_of(name) == "language" and _holds(name, module)
    }
    found = []
    for name, module in modules.items():
        if not isinstance(module, nn.Linear) or parts.part_of(name) != "language":
            continue
        block = next((path for path in _above(name) if path in beside), None)
        if block is not None and _ROUTER.match(name[len(block) + 1 :]):
            found.append(name)
    return found


def warn_of_frozen_experts(model: nn.Module, parts: Parts, wanted: str) -> None:
    """Say which share of the language model stays frozen although `--lora_targets WANTED` asks for it.

    Args:
        model: without PEFT around it.
        parts: from `find_parts`.
        wanted: the flag's value, a word for the language model.
    """
    experts = expert_parameters(model, parts)
    if not experts:
        return
    first = next(iter(experts))
    logger.warning(
        "--lora_targets %s: %.1f %% of the language model stays frozen: %d weights, such as %s %s, are no linear "
        "layers (experts in one tensor). To tune them too, type --lora_targets %s,experts. %s",
        wanted,
        100 * share_of_language(model, parts, experts),
        len(experts),
        first,
        tuple(_shape(experts[first])),
        wanted,
        ROUTERS_STAY,
    )


def share_of_language(model: nn.Module, parts: Parts, names: Iterable[str]) -> float:
    """Return the share of the language model's weights that the parameters `names` are, from 0 to 1."""
    sizes = {name: size_of(p) for name, p in model.named_parameters() if parts.part_of(name) == "language"}
    return sum(sizes[name] for name in names) / max(sum(sizes.values()), 1)


def say_what_experts_cost(experts: Mapping[str, nn.Parameter], *, count: int, balance: float = 0.0) -> None:
    """Say what LoRA on experts in one tensor does in each step, before it takes anybody's memory unawares.

    Args:
        experts: the parameters that get LoRA, by name.
        count: how many linear layers get LoRA as well.
        balance: `--router_aux_loss_coef`.
    """
    layers: dict[str, int] = {}
    for name, parameter in experts.items():
        place = re.sub(r"(\.\d+)\..*", r"\1", name)
        layers[place] = layers.get(place, 0) + size_of(parameter) * parameter.element_size()
    logger.info(
        "LoRA on experts in one tensor: %d parameters, beside %d linear layers. PEFT builds a layer's expert weights "
        "once more in each forward pass (up to %.3g GB a layer, %.3g GB in all, which stays until the backward pass; "
        "with --gradient_checkpointing one layer's at a time) and as much for their gradient. %s %s",
        len(experts),
        count,
        max(layers.values()) / 1e9,
        sum(layers.values()) / 1e9,
        ROUTERS_STAY,
        f"{balance:g} of the model's loss for an even load of experts is added." if balance else UNBALANCED,
    )


def named_experts(model: nn.Module, parts: Parts, names: Sequence[str] = (), pattern: str | None = None) -> list[str]:
    """Return the weights out of linear layers that names, or a regular expression, select themselves or by a module."""
    lost = out_of_reach(model, parts)
    compiled = None if pattern is None else re.compile(pattern)
    return [name for name in lost if any(_selects(path, names, compiled) for path in _paths(name))]


def cannot_be_trained(wanted: str, weights: Sequence[str]) -> str:
    """Return the message for targets that select nothing but weights that no adapter reaches."""
    return (
        f"--lora_targets {wanted}: {weights[0]} (and {len(weights) - 1} more) carry no LoRA: routers stay frozen, and "
        f"of weights outside linear layers only experts in one tensor get it. {_CURE} With LoRA, type --lora_targets "
        "language, or language,experts."
    )


def _is_of_experts(model: nn.Module, name: str) -> bool:
    owner = name.rpartition(".")[0]
    return "expert" in owner.lower() or "expert" in type(model.get_submodule(owner)).__name__.lower()


def _holds(name: str, module: nn.Module) -> bool:
    """Whether a module is what holds the experts of a layer."""
    return name.rpartition(".")[2] == EXPERTS or "experts" in type(module).__name__.lower()


def _above(name: str) -> list[str]:
    """Return the names of the modules around one, the nearest first."""
    steps = name.split(".")
    return [".".join(steps[:count]) for count in range(len(steps) - 1, 0, -1)]


def _paths(name: str) -> list[str]:
    """Return a parameter's name and those of the modules around it, but for the top ones, which hold everything."""
    steps = name.split(".")
    return [".".join(steps[:count]) for count in range(len(steps), max(len(steps) - 3, 0), -1)]


def _selects(path: str, names: Sequence[str], pattern: re.Pattern[str] | None) -> bool:
    if pattern is not None:
        return pattern.fullmatch(path) is not None
    return any(path == name or path.endswith("." + name) for name in names)


def _shape(parameter: Any) -> Sequence[int]:
    """Return a tensor's shape, also where ZeRO-3 leaves an empty one in its place."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _dimensions(parameter: Any) -> int:
    return len(_shape(parameter))
