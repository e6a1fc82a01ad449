"""Which share of the language model no adapter reaches, by kind of weight: a line below the table of parts."""

from __future__ import annotations

from torch import nn

from vlm_lora.model.adapters.experts import expert_layers, expert_parameters, routers
from vlm_lora.model.adapters.targets import Targets
from vlm_lora.model.parts import Parts, size_of

_ORDER = ("experts", "routers", "other linear layers", "all else")


def describe_unreached(model: nn.Module, parts: Parts, targets: Targets) -> str:
    """Return a line that says which share of the language model's weights stays as it is, and which weights those are.

    Args:
        model: without PEFT around it.
        parts: from `find_parts`.
        targets: what gets LoRA.
    """
    modules = dict(model.named_modules())
    linears = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    routing = {*routers(model, parts)}
    experts = {*expert_layers(linears, parts)}
    in_one = expert_parameters(model, parts)
    sizes = dict.fromkeys(_ORDER, 0)
    total = 0
    for name, parameter in model.named_parameters():
        if parts.part_of(name) != "language":
            continue
        size = size_of(parameter)
        total += size
        owner, _, leaf = name.rpartition(".")
        if name in targets.parameters or (owner in targets.modules and leaf == "weight"):
            continue
        sizes[_kind(name, owner, modules, routing, experts, in_one)] += size
    if not total:
        return ""
    shares = ", ".join(f"{kind} {size / total:.3%}" for kind, size in sizes.items() if size)
    return f"No adapter reaches {sum(sizes.values()) / total:.3%} of the language model's weights: {shares or 'none'}."


def _kind(
    name: str,
    owner: str,
    modules: dict[str, nn.Module],
    routing: set[str],
    experts: set[str],
    in_one: dict[str, nn.Parameter],
) -> str:
    if name in in_one or owner in experts:
        return "experts"
    if owner in routing or "router" in type(modules[owner]).__name__.lower():
        return "routers"
    return "other linear layers" if isinstance(modules[owner], nn.Linear) else "all else"
