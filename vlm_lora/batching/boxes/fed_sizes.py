"""The size at which a processor feeds an image to its model, known before it is called."""

from __future__ import annotations

import sys
from typing import Any

from vlm_lora.batching.canvases import Size

_SCALES = ("Qwen2VLImageProcessor",)
"""Image processors, whichever implementation, that scale the whole image to multiples of a merged patch and within a
budget of pixels: Qwen2-VL to Qwen3.5."""


def feeds_whole_images(image_processor: Any) -> bool:
    """Tell whether each image is fed whole, at one size that follows from its own."""
    return type(image_processor).__name__.startswith(_SCALES)


def fed_size(image_processor: Any, size: Size) -> Size:
    """Return the width and height in pixels that an image of a size is fed at: `image_grid_thw` times the patch.

    Args:
        image_processor: one that `feeds_whole_images`.
        size: width and height in pixels.

    Raises:
        ValueError: the processor refuses the size (a side more than 200 times the other).
    """
    # Its own module's function: the implementations have one each.
    resize = sys.modules[type(image_processor).__module__].smart_resize
    budget = dict(image_processor.size)
    least = getattr(image_processor, "min_pixels", None) or budget["shortest_edge"]
    most = getattr(image_processor, "max_pixels", None) or budget["longest_edge"]
    width, height = size
    factor = image_processor.patch_size * image_processor.merge_size
    rows, columns = resize(height, width, factor=factor, min_pixels=least, max_pixels=most)
    return int(columns), int(rows)
