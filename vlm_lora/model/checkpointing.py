"""Gradient checkpointing of the language model alone.

transformers' own switch checkpoints every sub-model, and with PEFT makes their inputs require a
gradient, so a frozen vision tower is run twice and backpropagated through for nothing. Here only the
decoder's layers are recomputed, with the non-reentrant form, and a frozen tower stays out of autograd.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vlm_lora.errors import ModelError
from vlm_lora.model.families import Family
from vlm_lora.model.parts import Parts, base_of, decoder_layers, find_parts

logger = logging.getLogger(__name__)

_UNSUPPORTED = (
    "{name} does not support gradient checkpointing of its language model. Leave out --gradient_checkpointing."
)


def enable_checkpointing(model: nn.Module, family: Family | None = None) -> int:
    """Recompute the decoder's layers in the backward pass instead of keeping their activations.

    Call it after LoRA is attached, and leave the trainer's own `gradient_checkpointing` off.

    Returns:
        The number of layers that are checkpointed.

    Raises:
        ModelError: the model's layers cannot be checkpointed, or the switch did not take.
    """
    base = base_of(model)
    parts = find_parts(model, family)
    layers = decoder_layers(model, parts)
    _keep_tower_out_of_autograd(base)
    calls = _Calls()
    if not _switch(base, layers, calls) or not base.is_gradient_checkpointing:
        raise ModelError(_UNSUPPORTED.format(name=type(base).__name__))
    _prove_at_first_step(base, calls)
    _turn_cache_off(base)
    tower = "frozen" if _is_frozen(base, parts) else "trained, its activations are kept"
    logger.info("Gradient checkpointing of %d decoder layers; vision tower: %s.", len(layers), tower)
    return len(layers)


class _Calls:
    """Non-reentrant checkpointing that counts how often it is used."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        return checkpoint(*args, use_reentrant=False, **kwargs)


def _prove_at_first_step(base: Any, calls: _Calls) -> None:
    """A model may take the flag and ignore it: look once, when the head runs for the first time in training.

    (Not when the model itself has run: PEFT calls its `forward` directly, past every hook.)
    """

    def look(module: nn.Module, args: Any, output: Any) -> None:
        if module.training and torch.is_grad_enabled():
            handle.remove()
            if not calls.count:
                raise ModelError(_UNSUPPORTED.format(name=type(base).__name__))

    handle = base.get_output_embeddings().register_forward_hook(look)


def _switch(base: nn.Module, layers: tuple[str, ...], function: _Calls) -> bool:
    """Set transformers' flag on each layer, or on the module that loops over them (older remote code)."""
    modules: list[Any] = [base.get_submodule(name) for name in layers]
    flagged = [module for module in modules if hasattr(module, "gradient_checkpointing")]
    if len(flagged) < len(modules):
        holder = base.get_submodule(layers[0].rpartition(".")[0].rpartition(".")[0]) if layers else base
        flagged = [holder] if hasattr(holder, "gradient_checkpointing") else []
    for module in flagged:
        module._gradient_checkpointing_func = function
        module.gradient_checkpointing = True
    return bool(flagged)


def _keep_tower_out_of_autograd(base: Any) -> None:
    """Undo `enable_input_require_grads`: the non-reentrant form needs no input that requires a gradient."""
    if getattr(base, "_require_grads_hook", None) is not None or getattr(base, "_require_grads_hooks", None):
        base.disable_input_require_grads()


def _turn_cache_off(base: Any) -> None:
    """A key-value cache would be filled twice by the recomputation."""
    for config in {id(c): c for c in (base.config, base.config.get_text_config())}.values():
        config.use_cache = False


def _is_frozen(base: nn.Module, parts: Parts) -> bool:
    return not any(p.requires_grad and parts.part_of(name) == "vision" for name, p in base.named_parameters())
