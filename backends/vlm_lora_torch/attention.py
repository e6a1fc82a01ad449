"""Which attention, and why: by part where the parts differ, logged with its reason."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING

from vlm_lora.errors import BackendError
from vlm_lora.model.attention import FLASH, by_part, causal_only, check_attention, spoken, supports_flash
from vlm_lora.model.families import family_of

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)


def choose_attention(
    asked: str, config: PretrainedConfig, dtype: torch.dtype, device_obstacle: str | None
) -> str | dict[str, str]:
    """Return the attention implementation, checked against model, package, dtype and device.

    Args:
        asked: `auto`, or what the user set.
        config: the model's.
        dtype: of the weights.
        device_obstacle: why flash attention cannot run on this device; None where it can.

    Returns:
        One for the whole model, or one for each part where the parts support different ones.

    Raises:
        BackendError: flash attention was set and cannot be used, or would compute something else.
        ModelError: what was set is not there for a part of the model.
    """
    if asked == "auto":
        obstacle = _flash_obstacle(config, dtype, device_obstacle)
        if obstacle is None:
            chosen = by_part(config, FLASH, "sdpa")
            logger.info("Attention: %s, because it is installed and the model supports it.", spoken(chosen))
            return chosen
        chosen = by_part(config, "sdpa")
        logger.info("Attention: %s (no flash attention: %s).", spoken(chosen), obstacle)
        return chosen
    if asked == FLASH:
        obstacle = _flash_obstacle(config, dtype, device_obstacle)
        if obstacle is not None and not supports_flash(config) and not family_of(config).both_directions:
            chosen = by_part(config, "sdpa")
            logger.warning("Attention: %s instead of flash_attention_2: %s.", spoken(chosen), obstacle)
            return chosen
        if obstacle is not None:
            raise BackendError(
                f"--attn_implementation flash_attention_2 cannot be used: {obstacle}. "
                "Type --attn_implementation auto to take what is there."
            )
    check_attention(asked, config)
    return asked


def _flash_obstacle(config: PretrainedConfig, dtype: torch.dtype, device_obstacle: str | None) -> str | None:
    import torch

    if device_obstacle is not None:
        return device_obstacle
    if family_of(config).both_directions:
        return causal_only(config)
    if not supports_flash(config):
        return f"transformers has no flash attention for {config.model_type}"
    if find_spec("flash_attn") is None:
        return "the package is not installed (pip install flash-attn --no-build-isolation)"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in 16 bits and the weights are {dtype}"
    return None
