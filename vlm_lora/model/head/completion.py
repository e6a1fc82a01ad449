"""What a few classes of transformers leave out and every other one has, added to a model once it is built."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch

from vlm_lora.compat import keep_answers_causal

HEADS: Mapping[str, str] = MappingProxyType({"nemotron_h_omni": "language_model.lm_head"})
"""Where the head is, by model type, of classes whose `get_output_embeddings` does not say it."""
LISTS: Mapping[str, frozenset[str]] = MappingProxyType(
    {"unlimited_ocr": frozenset({"num_local_patches", "patches_grid"})}
)
"""Counts that a class takes as lists alone, by model type: rows travel as tensors."""


def complete(model: Any) -> None:
    """Say where the head is, hand over as lists what is only taken as lists, and keep answers causal.

    Args:
        model: as built, without PEFT around it.
    """
    model_type = model.config.model_type
    if model_type in HEADS:
        # Bound to the model, so that a copy of it finds the head of the copy.
        model.get_output_embeddings = partial(model.get_submodule, HEADS[model_type])
    if model_type in LISTS:
        model.base_model.register_forward_pre_hook(partial(_as_lists, LISTS[model_type]), with_kwargs=True)
    keep_answers_causal(model)


def _as_lists(names: frozenset[str], module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    tensors = {name: kwargs[name] for name in names if isinstance(kwargs.get(name), torch.Tensor)}
    return args, {**kwargs, **{name: tensor.tolist() for name, tensor in tensors.items()}}
