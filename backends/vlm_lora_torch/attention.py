"""Which attention, and why: by part where the parts differ, logged with its reason."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from vlm_lora.compat import known_attentions
from vlm_lora.errors import BackendError, ModelError
from vlm_lora.model.attention import (
    FLASH,
    FLEX,
    by_part,
    causal_only,
    check_attention,
    spoken,
    supports,
    supports_flash,
)
from vlm_lora.model.families import family_of
from vlm_lora_torch.kernels import FLASH_PACKAGES, FlashPackage, is_installed, missing_kernels, widest_head

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)

_BY_KIND = {each.kind: each for each in FLASH_PACKAGES}


def choose_attention(
    asked: str,
    config: PretrainedConfig,
    dtype: torch.dtype,
    device_obstacle: str | None,
    capability: tuple[int, int] | None = None,
) -> str | dict[str, str]:
    """Return the attention implementation, checked against model, package, dtype and device.

    `auto` takes the first flash attention that can be used, of 3, 4 and 2, else sdpa; flex attention only where it is
    set: it compiles, and its gain is in masks that are not used here.

    Args:
        asked: `auto`, or what the user set.
        config: the model's.
        dtype: of the weights.
        device_obstacle: why flash attention cannot run on this device; None where it can.
        capability: CUDA's, of the device; None where it has none, or none is known.

    Returns:
        One for the whole model, or one for each part where the parts support different ones.

    Raises:
        BackendError: flash or flex attention was set and cannot be used, or would compute something else.
        ModelError: what was set is not there for a part of the model.
    """
    if asked == "auto":
        return _choose(config, dtype, device_obstacle, capability)
    if asked in _BY_KIND:
        obstacle = _obstacle(config, dtype, device_obstacle) or _lacks(_BY_KIND[asked], config, capability)
        if obstacle is not None and not supports_flash(config) and not family_of(config).both_directions:
            chosen = by_part(config, "sdpa")
            logger.warning("Attention: %s instead of %s: %s.", spoken(chosen), asked, obstacle)
            return chosen
        if obstacle is not None:
            raise BackendError(
                f"--attn_implementation {asked} cannot be used: {obstacle}. "
                "Type --attn_implementation auto to take what is there."
            )
    if asked == FLEX and device_obstacle is not None:
        raise BackendError(
            "--attn_implementation flex_attention cannot be used: torch has its backward pass on CUDA GPUs only. Type "
            "--attn_implementation auto or sdpa."
        )
    if asked == FLEX and not supports(config, FLEX)[""]:
        raise ModelError(
            f"--attn_implementation flex_attention: transformers has none for {config.model_type}. Type "
            "--attn_implementation auto or sdpa."
        )
    check_attention(asked, config)
    return asked


def _choose(
    config: PretrainedConfig, dtype: torch.dtype, device_obstacle: str | None, capability: tuple[int, int] | None
) -> str | dict[str, str]:
    obstacle = _obstacle(config, dtype, device_obstacle)
    lacks = {each.kind: _lacks(each, config, capability) for each in FLASH_PACKAGES}
    kind = next((kind for kind, lack in lacks.items() if lack is None), None)
    if obstacle is None and kind is not None:
        chosen = by_part(config, kind, "sdpa")
        logger.info("Attention: %s, because it is installed and the model supports it.", spoken(chosen))
        return chosen
    chosen = by_part(config, "sdpa")
    logger.info("Attention: %s (no flash attention: %s).", spoken(chosen), obstacle or lacks[FLASH])
    return chosen


def note_missing_kernels(config: PretrainedConfig) -> None:
    """Say which packages would make a model's layers faster and are not installed."""
    missing = missing_kernels(config)
    if missing:
        logger.warning(
            "Kernels: layers of %s have faster ones in %s, not installed; transformers computes them in torch. To have "
            "them: pip install %s",
            config.model_type,
            " and ".join(missing),
            " ".join(missing),
        )


def _obstacle(config: PretrainedConfig, dtype: torch.dtype, device_obstacle: str | None) -> str | None:
    """Return why no flash attention can be used; None where one could."""
    import torch

    if device_obstacle is not None:
        return device_obstacle
    if family_of(config).both_directions:
        return causal_only(config)
    if not supports_flash(config):
        return f"transformers has no flash attention for {config.model_type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in 16 bits and the weights are {dtype}"
    return None


def _lacks(flash: FlashPackage, config: PretrainedConfig, capability: tuple[int, int] | None) -> str | None:
    """Return why one flash attention cannot be used, where others perhaps could."""
    if flash.kind not in known_attentions():
        return f"the installed transformers does not know {flash.kind}"
    if not is_installed(flash.module, flash.package):
        return f"the package is not installed ({flash.install})"
    if capability is not None and capability[0] not in flash.capabilities:
        return f"{flash.package} is not built for compute capability {capability[0]}.{capability[1]}"
    if widest_head(config) > flash.widest:
        return f"{flash.package} has no backward pass for heads of {widest_head(config)}, more than {flash.widest}"
    return None
