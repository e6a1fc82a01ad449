"""Which attention the parts of a model support: one that a part lacks is refused or left out by part, not by model."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vlm_lora.compat import IS_5
from vlm_lora.errors import ModelError
from vlm_lora.model.families import family_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FLASH, FLASH_3, FLASH_4 = "flash_attention_2", "flash_attention_3", "flash_attention_4"
FLEX = "flex_attention"
# transformers 4.55 and 5.x name the same fact differently.
_FLAGS: Mapping[str, tuple[str, ...]] = {
    "sdpa": ("_supports_sdpa",),
    **dict.fromkeys((FLASH, FLASH_3, FLASH_4), ("_supports_flash_attn", "_supports_flash_attn_2")),
    FLEX: ("_supports_flex_attn",),
}


def supports(config: PretrainedConfig, kind: str) -> dict[str, bool]:
    """Say for each part whether its class supports an attention.

    Args:
        config: the model's; its sub-configurations are the parts.
        kind: `sdpa`, `flex_attention`, or a flash attention.

    Returns:
        By the key of the sub-configuration, as transformers takes it; the model itself is the empty text.
    """
    return {part: _has(found, kind) for part, found in model_classes(config).items()}


def model_classes(config: PretrainedConfig) -> dict[str, type | None]:
    """Return the class of a model (the empty text) and of each of its parts, by the key of the sub-configuration."""
    whole = _class_of(config, None)
    found: dict[str, type | None] = {"": whole}
    # A class that the automatic ones do not know is a model's own code, which says itself what its parts lack.
    for key in config.sub_configs if whole else ():
        part = getattr(config, key, None)
        if part is not None:
            found[key] = _class_of(part, whole) or whole
    return found


def by_part(config: PretrainedConfig, *kinds: str) -> str | dict[str, str]:
    """Return for each part the first attention of `kinds` that it supports, else eager; one word where all agree."""
    able = {kind: supports(config, kind) for kind in kinds}
    parts = able[kinds[0]]
    chosen = {part: next((kind for kind in kinds if able[kind][part]), "eager") for part in parts}
    words = set(chosen.values())
    return words.pop() if len(words) == 1 else chosen


def check_attention(asked: str, config: PretrainedConfig) -> None:
    """Refuse an attention that was set and that would compute something else, or that a part of the model lacks.

    Raises:
        ModelError: says why, and what to type.
    """
    family = family_of(config)
    if "flash" in asked and family.both_directions:
        raise ModelError(
            f"--attn_implementation {asked} cannot be used: {causal_only(config)}. "
            "Type --attn_implementation auto or sdpa."
        )
    if asked not in _FLAGS or ("flash" in asked and not supports_flash(config)):
        return
    if asked == "sdpa" and not IS_5:
        return  # 4.55 takes eager for such parts by itself
    lacking = [part for part, able in supports(config, asked).items() if part and not able]
    if lacking:
        raise ModelError(
            f"--attn_implementation {asked}: transformers has none for {' and '.join(lacking)} of {config.model_type}. "
            "Type --attn_implementation auto: each part gets what it supports."
        )


def supports_flash(config: PretrainedConfig) -> bool:
    """Say whether flash attention computes what the model means, and transformers has it for the model itself."""
    return family_of(config).flash_attention and supports(config, FLASH)[""]


def causal_only(config: PretrainedConfig) -> str:
    """Return why flash attention would train a family that is `both_directions` wrongly."""
    return (
        f"the language model of {config.model_type} reads images or the prompt in both directions, and flash "
        "attention would silently make them causal"
    )


def spoken(chosen: str | Mapping[str, str]) -> str:
    """Return a choice as a log line says it: the model's word, and the parts that differ."""
    if isinstance(chosen, str):
        return chosen
    main = chosen["text_config"] if "text_config" in chosen else chosen[""]
    others = [f"{part}: {word}" for part, word in chosen.items() if part and word != main]
    return f"{main} ({', '.join(others)})" if others else main


def _has(model_class: type | None, kind: str) -> bool:
    return any(getattr(model_class, flag, False) for flag in _FLAGS[kind])


def _class_of(config: PretrainedConfig, whole: type | None) -> type | None:
    """Return the class of a model or part: the automatic classes', or one in the whole model's own module."""
    from transformers import PreTrainedModel
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_MAPPING

    for mapping in (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_MAPPING):
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    for each in vars(sys.modules[whole.__module__]).values() if whole else ():
        is_model = isinstance(each, type) and issubclass(each, PreTrainedModel)
        if is_model and getattr(each, "config_class", None) is type(config):
            return each
    return None
