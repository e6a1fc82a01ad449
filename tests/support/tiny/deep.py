"""Tiny configurations with as many decoder layers as published models have: their layers repeat as those do."""

from __future__ import annotations

from typing import Any

from support.tiny.configurations import CONFIGURATIONS


def build_deep_configuration(name: str, tokenizer: Any, *, layers: int) -> Any:
    """Return a family's tiny configuration with so many decoder layers; kinds of layers go on in their order."""
    config = CONFIGURATIONS[name](tokenizer)
    text = config.get_text_config()
    count = text.num_hidden_layers
    crossing = getattr(text, "cross_attention_layers", None)
    for key, values in list(vars(text).items()):
        if isinstance(values, (list, tuple)) and len(values) == count and values is not crossing:
            setattr(text, key, [values[layer % count] for layer in range(layers)])
    if crossing is not None:
        text.cross_attention_layers = [layer for layer in range(layers) if layer % count in crossing]
    text.num_hidden_layers = layers
    if getattr(config.vision_config, "deepstack_visual_indexes", None):
        config.vision_config.depth = 4
        config.vision_config.deepstack_visual_indexes = [0, 1, 2]
    return config
