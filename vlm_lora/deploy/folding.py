"""An adapter folded into the weights that it changes, with each changed weight computed a second time.

PEFT folds. What each layer's weight must then be is computed here by the adapter's definition (W + scale * B A, Hu et
al. 2021; with DoRA each of its rows scaled to the length that was learned, Liu et al. 2024; the same for each of the
experts in one tensor), in float64 and layer by layer, so that never more than one layer is held twice.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vlm_lora.errors import ModelError
from vlm_lora.model.adapters.targets import base_name, weight_name

ROUNDINGS = 4
"""Rounding errors of a weight's dtype that lie between the two computations at most: of the adapter's product, its
cast, and the sum, each relative to the layer's largest number."""


@dataclass(frozen=True, kw_only=True)
class Folded:
    """What became of an adapter's layers."""

    layers: tuple[str, ...]
    """Names of the layers whose weights were changed; experts in one tensor by the parameter's."""
    recomputed: int
    """Of how many of them the new weight was computed a second time."""
    whole: tuple[str, ...]
    """Names of the modules that the adapter brings in whole (PEFT's `modules_to_save`)."""
    largest_change: float
    """The largest absolute change of one weight."""


def fold(model: Any) -> tuple[Any, Folded]:
    """Fold a model's adapter into its weights, in place.

    Args:
        model: a `PeftModel` with one adapter.

    Returns:
        The base model with the changed weights and no trace of PEFT, and what was done.

    Raises:
        ModelError: a weight is not finite, or not what the adapter's definition makes of it.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    whole = tuple(name for name, module in model.named_modules() if type(module).__name__ == "ModulesToSaveWrapper")
    recomputed, largest = 0, 0.0
    with torch.no_grad(), _once_merged():
        for name, layer in layers.items():
            if not _is_known(layer):
                continue
            before = _weight(layer).detach().clone()
            _merge(name, layer)
            after = _weight(layer)
            for merged, expected, moved in _expected(layer, before, after):
                _compare(weight_name(name, layer), merged, expected, moved)
            largest = max(largest, (after - before).abs().max().item())
            recomputed += 1
        try:
            plain = model.merge_and_unload(safe_merge=True)
        except ValueError as error:
            raise ModelError(f"The adapter cannot be folded in: {error}.") from error
    left = [name for name, module in plain.named_modules() if isinstance(module, BaseTunerLayer)]
    if left:
        raise ModelError(f"{left[0]} and {len(left) - 1} more layers still carry the adapter after folding it in.")
    folded = Folded(
        layers=tuple(weight_name(name, layer) for name, layer in layers.items()),
        recomputed=recomputed,
        whole=tuple(map(base_name, whole)),
        largest_change=largest,
    )
    return plain, folded


def _merge(name: str, layer: Any) -> None:
    try:
        layer.merge(safe_merge=True)
    except ValueError as error:
        raise ModelError(
            f"{weight_name(name, layer)}: {error}. The adapter's weights are damaged, or too large."
        ) from error


def _weight(layer: Any) -> nn.Parameter:
    """Return what an adapter's layer changes in the base."""
    found: nn.Parameter = getattr(layer.get_base_layer(), getattr(layer, "parameter_name", "weight"))
    return found


def _is_known(layer: Any) -> bool:
    """Say whether a layer has one adapter of the kinds whose definition is written here, on a matrix or on experts."""
    base, names = layer.get_base_layer(), list(getattr(layer, "active_adapters", ()))
    if len(names) != 1 or names[0] not in getattr(layer, "lora_A", {}) or getattr(layer, "fan_in_fan_out", False):
        return False
    if hasattr(layer, "parameter_name"):
        return _weight(layer).dim() == 3 and len(_weight(layer)) > 1
    plain = names[0] not in layer.lora_variant or names[0] in layer.lora_magnitude_vector
    return isinstance(base, nn.Linear) and type(base.weight) is nn.Parameter and plain


def _expected(
    layer: Any, before: torch.Tensor, after: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor, float]]:
    """Yield each matrix of a known layer, what it must be in float64, and how far rounding the change may move it.

    A change is a sum of products, which may all but cancel (`--lora_init olora`): rounding is of these, not of the sum.

    Args:
        layer: PEFT's.
        before: the weight as it was, `(out, in)`; of experts `(E, out, in)`, or `(E, in, out)` where the base says that
            they are transposed.
        after: as it is now.
    """
    (name,) = layer.active_adapters
    a, b = layer.lora_A[name].weight.double(), layer.lora_B[name].weight.double()
    unit = torch.finfo(layer.lora_A[name].weight.dtype).eps * abs(layer.scaling[name])
    if before.dim() == 3:
        count, transposed = len(before), getattr(layer.get_base_layer(), "is_transposed", False)
        for expert, rows in enumerate(a.chunk(count)):  # A holds one expert after the other, B takes turns
            change = layer.scaling[name] * (b[:, expert::count] @ rows)
            moved = unit * (b[:, expert::count].abs() @ rows.abs()).max().item()
            yield after[expert], before[expert].double() + (change.T if transposed else change), moved
        return
    weight = before.double() + layer.scaling[name] * (b @ a)
    moved = unit * (b.abs() @ a.abs()).max().item()
    if name in layer.lora_variant:
        length = layer.lora_magnitude_vector[name].weight.double()
        stretch = length / torch.linalg.vector_norm(weight, dim=1)
        weight *= stretch.unsqueeze(1)
        moved *= stretch.abs().max().item()
    yield after, weight, moved


def _compare(name: str, weight: torch.Tensor, expected: torch.Tensor, moved: float) -> None:
    """Refuse a weight that lies further from what it must be than rounding explains."""
    bound = ROUNDINGS * (torch.finfo(weight.dtype).eps * expected.abs().max().item() + moved)
    off = (weight.double() - expected).abs().max().item()
    if not off <= bound:
        raise ModelError(
            f"{name}: its merged weight is off by {off:.3g} from what the adapter makes of it, and "
            f"rounding explains {bound:.3g}. Nothing was written. Please report it with the versions that `vlm-lora "
            "doctor` shows."
        )


@contextmanager
def _once_merged() -> Iterator[None]:
    """Let PEFT pass over layers that are merged already, and put right what 4.55's settings say of tied embeddings.

    There the settings on top say that they are tied by default, also of a model whose text settings say otherwise.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        warnings.filterwarnings("ignore", message="Already following adapters were merged")
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        yield
