"""Parts that are trained with all their weights beside LoRA on others (`--train_fully`).

PEFT copies the modules that `modules_to_save` names, trains and saves the copies, and puts them in place where an
adapter is loaded. Modules are named as high as they hold nothing else: no other part, and nothing that the model never
reads and that would get no gradient.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from vlm_lora.errors import ConfigError
from vlm_lora.model.parts import Part, Parts

logger = logging.getLogger(__name__)


def modules_of(model: nn.Module, parts: Parts, wanted: Sequence[Part]) -> list[str]:
    """Return the names of the modules that together are the parts `wanted`, for PEFT's `modules_to_save`.

    Args:
        model: without PEFT around it.
        parts: from `find_parts`.
        wanted: among `projector`, `vision`, `embeddings`.

    Raises:
        ConfigError: the model has nothing there that can be trained so.
    """
    found: list[str] = []
    for part in wanted:
        paths = [path for path in getattr(parts, part) if _is_module(model, path)]
        inside = [name for path in paths for name in _roots(model, parts, part, path)]
        if not inside:
            raise ConfigError(
                f"--train_fully {part}: this model has no module of its own there "
                f"({', '.join(getattr(parts, part)) or 'nothing'}). Leave {part} out, or train full weights by "
                "--peft_method none."
            )
        _say_what_stays(model, parts, part, inside)
        found += inside
    return list(dict.fromkeys(found))


def refuse_twice(names: Sequence[str], lora: Sequence[str], wanted: str) -> None:
    """Refuse LoRA on layers of which all weights are trained.

    Raises:
        ConfigError: names one of them.
    """
    twice = [name for name in lora if any(name == root or name.startswith(root + ".") for root in names)]
    if twice:
        raise ConfigError(
            f"--train_fully and --lora_targets {wanted} both train {twice[0]} ({len(twice)} layers in all). Leave that "
            "part out of one of them, for example by --lora_targets language."
        )


def keep_in_float32(tuned: nn.Module) -> None:
    """Make the copies that are trained float32, as LoRA's own weights are, so that small updates are not lost.

    What goes in and comes out stays in the base's dtype, with autocast and without.
    """
    for module in tuned.modules():
        copies = getattr(module, "modules_to_save", None)
        for copied in copies.values() if isinstance(copies, nn.ModuleDict) else ():
            # By what it stands for: the copy of a tied head is cast with the embeddings'.
            kept: Any = module.original_module
            base = next((p.dtype for p in kept.parameters() if p.is_floating_point()), torch.float32)
            if base != torch.float32:
                copied.to(torch.float32)
                copied.register_forward_pre_hook(_widen, with_kwargs=True)
                copied.register_forward_hook(partial(_narrow, base))


def _widen(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda t: t.float() if t.is_floating_point() else t, (args, kwargs))


def _narrow(dtype: torch.dtype, module: nn.Module, args: Any, output: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, output)


def _is_module(model: nn.Module, path: str) -> bool:
    owner, _, leaf = path.rpartition(".")
    return leaf in dict(model.get_submodule(owner).named_children())


def _roots(model: nn.Module, parts: Parts, part: Part, path: str) -> Iterator[str]:
    """Yield the highest modules at or below `path` that are of the part alone and are read."""
    module = model.get_submodule(path)
    inner = [f"{path}.{name}" for name, _ in module.named_parameters()]
    own = [name for name in inner if parts.part_of(name) == part and not parts.is_never_used(name)]
    if not own:
        return
    # PEFT calls what it wraps, and a list of modules is not called.
    if len(own) == len(inner) and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        yield path
        return
    for name, _ in module.named_children():
        yield from _roots(model, parts, part, f"{path}.{name}")


def _say_what_stays(model: nn.Module, parts: Parts, part: Part, found: Sequence[str]) -> None:
    """Say which single parameters of a part stay frozen: PEFT saves modules."""
    loose = [
        name
        for name, _ in model.named_parameters()
        if parts.part_of(name) == part
        and not parts.is_never_used(name)
        and not any(name.startswith(root + ".") for root in found)
    ]
    if loose:
        logger.warning(
            "--train_fully %s: %d parameters that are in no module of their own stay frozen, such as %s: PEFT saves "
            "modules.",
            part,
            len(loose),
            loose[0],
        )
