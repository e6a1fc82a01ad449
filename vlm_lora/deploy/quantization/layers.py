"""Which layers are quantized, and whether they can be: known from a model's settings, before any weight is read."""

from __future__ import annotations

from typing import Any

from vlm_lora.deploy.quantization.schemes import Scheme, pairs_of
from vlm_lora.errors import ConfigError, ModelError
from vlm_lora.model.families import Family
from vlm_lora.model.quantization import Layers, find_layers


def check_layers(name: str, config: Any, family: Family, scheme: Scheme) -> Layers:
    """Return the language model's linear layers, all of which are quantized; tower, projector and head are not.

    Args:
        name: the model's, for messages.
        config: the model's settings.
        family: its row of the table.
        scheme: how it is to be quantized.

    Raises:
        ConfigError: AWQ is not known of this class.
        ModelError: the family is not in the table, has experts in one tensor, or a layer has a size that cannot be.
    """
    if family.is_inferred:
        raise ModelError(
            f"{name}: its type {config.model_type} is not in the table of families (docs/families.md), so that what is "
            "tower and what language model is not known before its weights are read. Quantize it by hand."
        )
    layers = find_layers(config, family)
    if scheme.awq:
        pairs_of(layers.model_class, family.language)
    if layers.experts:
        raise ModelError(
            f"{name}: {len(layers.experts)} tensors hold all experts of a layer ({layers.experts[0]}, ...), which "
            "would stay whole: linear layers alone are quantized. Quantize a model with experts by hand."
        )
    group = scheme.group
    if group is None:
        return layers
    odd = {layer: size for layer, size in zip(layers.quantized, layers.inputs, strict=True) if size % group}
    if odd:
        layer, size = next(iter(odd.items()))
        sizes = ", ".join(map(str, sorted(set(odd.values()))))
        raise ModelError(
            f"{name}: {layer} has {size} inputs, no multiple of {group}, and so have {len(odd)} of "
            f"{len(layers.quantized)} layers of the language model (sizes {sizes}): their weights cannot be put into "
            f"groups of {group}. Type --scheme fp8-dynamic, which has no groups."
        )
    if not layers.quantized:
        raise ConfigError(f"{name}: no linear layer of its language model was found, so there is nothing to quantize.")
    return layers
