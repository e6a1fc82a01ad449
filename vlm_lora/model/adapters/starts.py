"""How LoRA's matrices begin (`--lora_init`): only in ways that leave the base as it is.

Whatever begins so loads on the untouched base again: an adapter's file holds all there is.

PiSSA and OLoRA begin with a part of the base's own weights and train from there; as published they take that part out
of the base. Here the base stays, and the part is taken off by a second half of the adapter, which is frozen: with
`B0 A0` the part, the layer computes `W x + s (B A - B0 A0) x`, where `A` and `B` begin as `A0` and `B0`. That is LoRA
of twice the rank, plain in its file, and equal to the published form up to rounding (and where `--lora_dropout` is 0).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from vlm_lora.config.run_config import TuningConfig
from vlm_lora.config.sections.tuning import STARTS
from vlm_lora.errors import ConfigError
from vlm_lora.model.adapters.targets import CONVOLUTIONS, Targets

logger = logging.getLogger(__name__)


def start_settings(tuning: TuningConfig) -> dict[str, Any]:
    """Return for PEFT how LoRA begins, its rank and its alpha, which gives the scale that was asked for."""
    if not tuning.begins_with_weights:
        start: bool | str = True if tuning.lora_init == STARTS[0] else tuning.lora_init
        return {"init_lora_weights": start, "r": tuning.lora_rank, "lora_alpha": tuning.lora_alpha}
    wider = math.sqrt(2) if tuning.use_rslora else 2
    return {"init_lora_weights": True, "r": 2 * tuning.lora_rank, "lora_alpha": wider * tuning.lora_alpha}


def as_plain(tuning: TuningConfig) -> TuningConfig:
    """Return plain LoRA of the size that a start gives it, for what needs no values."""
    if not tuning.begins_with_weights:
        return tuning
    settings = start_settings(tuning)
    return replace(tuning, lora_init=STARTS[0], lora_rank=settings["r"], lora_alpha=settings["lora_alpha"])


def check_start(tuning: TuningConfig, model: nn.Module, targets: Targets) -> None:
    """Refuse a start that is for linear layers alone where LoRA is on anything else, or that a layer is too small for.

    Raises:
        ConfigError: names it and what to type.
    """
    if tuning.lora_init != "orthogonal" and not tuning.begins_with_weights:
        return
    convolutions = [name for name in targets.modules if isinstance(model.get_submodule(name), CONVOLUTIONS)]
    others = [*targets.parameters, *convolutions]
    if others:
        raise ConfigError(
            f"--lora_init {tuning.lora_init} with LoRA on {others[0]}: linear layers begin so, and neither experts in "
            "one tensor nor convolutions. Type --lora_init default or gaussian, or leave them out, for example by "
            "--lora_targets language."
        )
    if not tuning.begins_with_weights:
        return
    sizes: Mapping[str, int] = {
        name: min(layer.in_features, layer.out_features)
        for name, layer in ((name, model.get_submodule(name)) for name in targets.modules)
        if isinstance(layer, nn.Linear)
    }
    name = min(sizes, key=sizes.__getitem__, default="")
    if name and sizes[name] < tuning.lora_rank:
        raise ConfigError(
            f"--lora_init {tuning.lora_init} with --lora_rank {tuning.lora_rank}: {name} has only {sizes[name]} "
            f"dimensions to begin with. Type --lora_rank {sizes[name]} or less, or --lora_init default."
        )


@torch.no_grad()
def begin_with_weights(tuned: Any, tuning: TuningConfig) -> None:
    """Let LoRA begin with a part of each layer's weights, its second half frozen at the same, taken off.

    Args:
        tuned: a `PeftModel` with the settings of `start_settings`.
        tuning: what was asked for; nothing is done for other starts.
    """
    if not tuning.begins_with_weights:
        return
    rank = tuning.lora_rank
    for layer in tuned.modules():
        if not hasattr(layer, "lora_A") or "default" not in layer.lora_A:
            continue
        weight = layer.get_base_layer().weight.float()
        # (rank, inputs) and (outputs, rank), whose product with the scale is the part
        a, b = _part(weight, tuning.lora_init, rank, layer.scaling["default"])
        for matrix, whole in ((layer.lora_A, torch.cat([a, a])), (layer.lora_B, torch.cat([b, -b], dim=1))):
            matrix["default"].weight.copy_(whole)
    for parameter, dimension in matrices(tuned):
        parameter.register_hook(partial(_first_half, dimension=dimension))
    logger.info(
        "LoRA begins with weights of the base (%s): its file has rank %d, of which one half holds the beginning and "
        "stays as it is; the base stays whole.",
        tuning.lora_init,
        2 * rank,
    )


def _part(weight: torch.Tensor, start: str, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A and B of which `scale * B A` is the part of a weight `(outputs, inputs)` that LoRA begins with.

    PiSSA (Meng et al. 2024): the largest `rank` singular values with their vectors. OLoRA (Bueyuekakyuez 2024): the
    first `rank` columns of Q and rows of R, which are not divided by the scale.
    """
    if start == "olora":
        q, r = torch.linalg.qr(weight)
        return r[:rank], q[:, :rank]
    if start == "pissa":
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        left, values, right = left[:, :rank], values[:rank], right[:rank]
    else:
        left, values, turned = torch.svd_lowrank(weight, q=rank, niter=int(start.rpartition("_")[2]))
        right = turned.T
    root = (values / scale).sqrt()
    return root[:, None] * right, left * root


def matrices(tuned: Any) -> Iterator[tuple[nn.Parameter, int]]:
    """Yield LoRA's trained matrices, each with the dimension that is its rank."""
    for name, parameter in tuned.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            yield parameter, 0 if ".lora_A." in name else 1


def _first_half(gradient: torch.Tensor, *, dimension: int) -> torch.Tensor:
    """Return a gradient that is zero in the second half, which so counts in no norm either."""
    kept, other = gradient.chunk(2, dim=dimension)
    return torch.cat([kept, torch.zeros_like(other)], dim=dimension)
