"""How large images are shown to the model: `--min_pixels` and `--max_pixels`, in the processor's own settings.

They are saved with the processor, so that serving and `ask` show images as training did.
"""

from __future__ import annotations

import logging
from typing import Any

from vlm_lora.compat import set_budget
from vlm_lora.config.run_config import ModelConfig
from vlm_lora.errors import ConfigError

logger = logging.getLogger(__name__)

BY_PIXELS = ("Qwen2VLImageProcessor",)
"""Image processors that scale an image until its pixels lie within a budget (Qwen2-VL to Qwen3.5), whichever
implementation. transformers 5 keeps it as `size`: `shortest_edge` and `longest_edge` are numbers of pixels there."""


def set_pixels(processor: Any, config: ModelConfig, *, trained: str | None) -> None:
    """Give a processor the budget that was asked for.

    Args:
        processor: changed in place.
        config: `min_pixels` and `max_pixels`; None leaves the processor's own.
        trained: the adapter folder that it was loaded from, whose training had the processor's own; None for a base.

    Raises:
        ConfigError: the processor has no such budget, or the least is above the most.
    """
    if config.min_pixels is None and config.max_pixels is None:
        return
    images = processor.image_processor
    given = " ".join(
        f"--{name} {getattr(config, name)}" for name in ("min_pixels", "max_pixels") if getattr(config, name)
    )
    name = type(images).__name__
    if not name.startswith(BY_PIXELS):
        size = {key: value for key, value in dict(getattr(images, "size", None) or {}).items() if value is not None}
        raise ConfigError(
            f"{given}: this model's images are not scaled by a number of pixels ({name}, size {size or 'of its own'}). "
            "Leave it out; the size stands in the model's preprocessor_config.json. Qwen-VL's families have a budget."
        )
    own = (int(images.size["shortest_edge"]), int(images.size["longest_edge"]))
    least, most = (value or default for value, default in zip((config.min_pixels, config.max_pixels), own, strict=True))
    if least > most:
        raise ConfigError(
            f"{given}: the least is {least} pixels and the most {most} (the processor's own: {own[0]} and {own[1]}). "
            "Type both, --min_pixels and --max_pixels."
        )
    if trained is not None and (least, most) != own:
        logger.warning(
            "%s: images of %d to %d pixels; %s was trained with %d to %d.", given, least, most, trained, *own
        )
    set_budget(images, least, most)
    logger.info("Images: scaled to %d to %d pixels (%s).", least, most, given)
