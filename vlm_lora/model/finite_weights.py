"""Weights that are numbers: NaN or infinities among them are found before anything is computed or saved with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from vlm_lora.errors import ModelError


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a tensor that FSDP or ZeRO-3 may have cut up; else the tensor."""
    # ZeRO-3 leaves an empty tensor in place and keeps the part next to it.
    part = getattr(tensor, "ds_tensor", tensor)
    # Only a DTensor has this; importing its class takes a second, which reading data should not wait for.
    return part.to_local() if hasattr(part, "to_local") else part


@torch.no_grad()
def nonfinite(tensors: Iterable[tuple[str, torch.Tensor]], *, on_host: bool = False) -> dict[str, int]:
    """Return the number of NaN and infinities of each tensor that has any, by name, of what this process holds.

    One pass by `aminmax`, which NaN goes through and which needs no second tensor: about 0.3 s per GB on one thread.
    Weights in 4 bits are judged by the scales of their blocks. What holds no values (meta) or is in 8 bits is passed.

    Args:
        tensors: names and tensors, whole or in parts.
        on_host: look at a copy in host memory, where each tensor's look would be a new graph on the device.
    """
    looks: list[tuple[str, torch.Tensor]] = []
    for name, tensor in tensors:
        part = _numbers_of(tensor)
        if part is not None:
            part = part.detach().cpu() if on_host else part.detach()
            looks.append((name, part))
    extremes = [torch.stack(torch.aminmax(part)).float().isfinite().all() for _, part in looks]
    # One wait for all that are on a device.
    by_device: dict[torch.device, list[int]] = {}
    for place, flag in enumerate(extremes):
        by_device.setdefault(flag.device, []).append(place)
    bad = []
    for places in by_device.values():
        fine = torch.stack([extremes[place] for place in places]).tolist()
        bad += [place for place, good in zip(places, fine, strict=True) if not good]
    return {looks[place][0]: int((~looks[place][1].isfinite()).sum()) for place in sorted(bad)}


def _numbers_of(tensor: Any) -> torch.Tensor | None:
    state = getattr(tensor, "quant_state", None)
    if state is not None:
        # Where the scales are in 8 bits themselves, theirs tell.
        nested = getattr(state, "state2", None)
        tensor = state.absmax if nested is None else nested.absmax
    part = local_part(tensor)
    if part.is_meta or not part.is_floating_point() or part.element_size() == 1 or not part.numel():
        return None
    return part


def check_loaded(name: str, model: nn.Module) -> None:
    """Make sure that the weights which were loaded are numbers; buffers may hold infinities.

    Args:
        name: the folder or Hub id that they are of.
        model: as loaded, its weights whole or in parts.

    Raises:
        ModelError: names the parameters and how many of their numbers are none.
    """
    from transformers.modeling_utils import is_fsdp_enabled, is_local_dist_rank_0

    if is_fsdp_enabled() and not is_local_dist_rank_0():
        return  # the first rank of the machine has loaded them; memory that nobody has written yet is here
    refuse(name, nonfinite(model.named_parameters()))


def refuse(name: str, found: Mapping[str, int]) -> None:
    """Refuse what was read from `name` if `found`, as `nonfinite` returns it, is not empty.

    Raises:
        ModelError: names the parameters and how many of their numbers are none.
    """
    if found:
        raise ModelError(
            f"{name}: {described(found)}. Training and answers would be NaN. Copy the folder again, or take an "
            "earlier checkpoint; a model that is meant to hold infinities in its weights cannot be used here."
        )


def described(found: Mapping[str, int]) -> str:
    """Return what `nonfinite` found in words: `3 numbers of 2 weights are NaN or infinite (a: 1, b: 2)`."""
    shown = [f"{name}: {count:,}" for name, count in list(found.items())[:3]]
    numbers, weights = sum(found.values()), len(found)
    return (
        f"{numbers:,} number{'s' * (numbers != 1)} of {weights:,} weight{'s' * (weights != 1)} "
        f"{'are' if numbers != 1 else 'is'} NaN or infinite ({', '.join(shown)}{', ...' if weights > 3 else ''})"
    )
