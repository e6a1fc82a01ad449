"""Complete weights from sharded models, and the proof on disk that they are complete."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.distributed.tensor import DTensor

from vlm_lora.errors import ModelError

ADAPTER, WEIGHTS = "adapter_model.safetensors", "model*.safetensors"


def is_sharded_by_tensor(model: nn.Module) -> bool:
    """Say whether the parameters are distributed tensors (FSDP2)."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def gathered_state(model: nn.Module, *, keep: bool) -> dict[str, torch.Tensor]:
    """Return whole tensors under `state_dict` names, in host memory; every process must call it.

    They are gathered one at a time, so no device holds the whole model. Of a PEFT model only what trains is gathered.

    Args:
        model: with `DTensor` parameters.
        keep: on the process that saves; the others take part and get an empty mapping.
    """
    only_trained = hasattr(model, "peft_config")
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    if only_trained:
        tensors = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    saved = set(model.state_dict())
    tensors |= {name: tensor for name, tensor in model.named_buffers() if name in saved and not only_trained}
    # Tied weights are one tensor under two names, and stay one.
    whole: dict[int, torch.Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in whole:
            full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            whole[id(tensor)] = full.detach().cpu() if keep else full.new_empty(0)
    return {name: whole[id(tensor)] for name, tensor in tensors.items()} if keep else {}


def check_saved(folder: Path, model: nn.Module) -> None:
    """Make sure that a folder's weights are all there: sharded weights that nobody gathered are saved as empty.

    Args:
        folder: what was just written.
        model: the model, with or without PEFT around it.

    Raises:
        ModelError: a tensor is empty, or the file holds fewer numbers than the model.
    """
    adapter = hasattr(model, "peft_config")
    shapes = saved_shapes(folder, ADAPTER if adapter else WEIGHTS)
    empty = [name for name, shape in shapes.items() if not math.prod(shape)]
    if empty:
        raise ModelError(
            f"{folder}: {len(empty)} of {len(shapes)} saved tensors are empty, {empty[0]} first. They were not "
            "gathered from the processes; please report the versions that `vlm-lora doctor` shows."
        )
    expected = sum(whole_size(p) for p in model.parameters() if p.requires_grad or not adapter)
    found = sum(math.prod(shape) for shape in shapes.values())
    if found < expected:
        raise ModelError(
            f"{folder}: {found:,} numbers were saved of the {expected:,} that the model has. Please report the model "
            "and the versions that `vlm-lora doctor` shows."
        )


def saved_shapes(folder: Path, pattern: str) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of each tensor in a folder's safetensors files; only their headers are read."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob(pattern)):
        with safe_open(path, framework="pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


def whole_size(parameter: Any) -> int:
    """Return a parameter's number of elements, its parts on other processes included."""
    # ZeRO-3 leaves an empty tensor in place and keeps the true size next to it.
    return int(getattr(parameter, "ds_numel", parameter.numel()))
