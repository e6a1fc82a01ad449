"""Bases whose weights are stored in few bits: what their folder says of them, and what becomes of them here.

A method is a row of a table: its layers are trained on as they are (PEFT has LoRA for them), its weights are unpacked
while they are loaded, or nothing is trained on it. Which it is depends on nothing but the folder, so it is known, and
refused by name where it has to be, before any weights are loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torch import nn

logger = logging.getLogger(__name__)


class Road(Enum):
    """What becomes of weights in few bits."""

    AS_STORED = "as stored"
    """They stay in few bits, frozen; LoRA is put on their layers."""
    UNPACKED = "unpacked"
    """They become whole while they are loaded, exactly what they stand for."""
    NO_TRAINING = "no training"
    """transformers may answer with them; nothing is trained on them."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way of storing weights, by its `quant_method`."""

    road: Road
    packages: Mapping[str, str] = field(default_factory=dict)
    """What it needs: the module that is imported, and what `pip install` calls it."""


METHODS: Mapping[str, Method] = {
    "bitsandbytes": Method(road=Road.AS_STORED, packages={"bitsandbytes": "bitsandbytes"}),
    "fp8": Method(road=Road.UNPACKED),
    "compressed-tensors": Method(road=Road.UNPACKED, packages={"compressed_tensors": "compressed-tensors"}),
    # Their layers are no linear ones, and unpacking them has no exact way in transformers.
    "gptq": Method(road=Road.NO_TRAINING, packages={"optimum": "optimum", "gptqmodel": "gptqmodel"}),
    "awq": Method(road=Road.NO_TRAINING, packages={"gptqmodel": "gptqmodel"}),
}
OTHER = Method(road=Road.NO_TRAINING)
_BITS: Mapping[str, float] = {"fp8": 8, "mxfp8": 8, "fbgemm_fp8": 8, "mxfp4": 4, "nvfp4": 4}
"""Where the settings name none: the method's own."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How a base's weights are stored."""

    name: str
    """`quant_method`; empty where its settings name none."""
    bits: float | None
    """Bits a weight, scales not counted; None where the settings do not say, or say several."""
    method: Method
    scales_quantized: bool = False
    """With bitsandbytes' 4 bits: whether the scales are quantized too."""

    @property
    def words(self) -> str:
        """In words, as `4 bits by bitsandbytes`."""
        return f"{f'{self.bits:g}' if self.bits else 'few'} bits by {self.name or 'an unnamed method'}"

    @property
    def is_packed(self) -> bool:
        """Whether they stay in few bits when they are loaded."""
        return self.method.road is not Road.UNPACKED


def stored_weights(config: Any) -> Stored | None:
    """Return how a model's weights are stored, by its configuration; None where they are whole."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    values: Mapping[str, Any] = found if isinstance(found, Mapping) else found.to_dict()
    given = values.get("quant_method")
    name = str(getattr(given, "value", given) or "").rpartition(".")[2].lower()
    if not name and (values.get("load_in_4bit") or values.get("load_in_8bit")):
        name = "bitsandbytes"  # as its first versions wrote it
    return Stored(
        name=name,
        bits=_bits(name, values),
        method=METHODS.get(name, OTHER),
        scales_quantized=bool(values.get("bnb_4bit_use_double_quant")),
    )


def _bits(name: str, values: Mapping[str, Any]) -> float | None:
    for bits in (4, 8):
        if values.get(f"load_in_{bits}bit"):
            return bits
    if values.get("bits"):
        return float(values["bits"])
    groups = values.get("config_groups")
    if isinstance(groups, Mapping):  # compressed-tensors
        several = {(group.get("weights") or {}).get("num_bits") for group in groups.values()}
        one = several.pop() if len(several) == 1 else None
        return None if one is None else float(one)
    return _BITS.get(name)


def say_stored(config: Any) -> None:
    """Say how a base's weights are stored, where they are in few bits, and what becomes of them."""
    stored = stored_weights(config)
    if stored is None:
        return
    if stored.is_packed:
        logger.info("Quantization: the base is stored in %s and stays so.", stored.words)
    else:
        logger.info(
            "Quantization: the base is stored in %s; its weights are unpacked while they are loaded, and take as much "
            "memory as those of a whole base.",
            stored.words,
        )


def is_packed(module: nn.Module) -> bool:
    """Say whether a layer's weight is one of bitsandbytes', in 4 bits or in 8."""
    weight = getattr(module, "weight", None)
    return hasattr(weight, "quant_state") or hasattr(weight, "SCB")


def unpacking(config: Any) -> Any:
    """Return a configuration with which transformers unpacks weights in few bits while loading, where that is meant."""
    stored = stored_weights(config)
    if stored is not None and not stored.is_packed:
        found = config.quantization_config
        values = found if isinstance(found, Mapping) else found.to_dict()
        config.quantization_config = {**values, "dequantize": True}
    return config


@contextmanager
def only_measured(model: Any, *, trains: bool) -> Iterator[None]:
    """Within this context transformers' trainer takes a base in few bits without an adapter, where nothing is trained.

    It refuses one that is to be trained, and cannot tell.
    """
    quantized = getattr(model, "is_quantized", False)
    if trains or not quantized:
        yield
        return
    model.is_quantized = False
    try:
        yield
    finally:
        model.is_quantized = quantized
