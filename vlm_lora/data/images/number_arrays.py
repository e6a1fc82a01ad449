"""Images that a row holds as nested lists of numbers: height × width, or height × width × 3."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from vlm_lora.errors import ImageError

_ACCEPTED = "Accepted are whole numbers 0-255 as height x width (gray) or height x width x 3 (red, green, blue)."


def is_number_array(value: Any) -> bool:
    """Tell whether a value is one image of nested numbers, from its first items alone.

    Rows of numbers, or rows of pixels of numbers. A list of such images has one level more and is none.
    """
    row = _first(value)
    item = _first(row)
    return row is not None and item is not None and (_is_number(item) or _is_number(_first(item)))


def image_of_numbers(value: Any) -> Image.Image:
    """Return nested numbers as an image of mode L or RGB.

    Args:
        value: lists (or tuples) of whole numbers 0-255, height × width or height × width × 3.

    Raises:
        ImageError: rows of different lengths, fractions, numbers outside 0-255, or another shape.
    """
    try:
        numbers = np.array(value)
    except ValueError as error:  # numpy's word for it is an "inhomogeneous shape"
        raise ImageError(f"An image is given as nested lists of different lengths. {_ACCEPTED}") from error
    shape = " x ".join(map(str, numbers.shape))
    if numbers.dtype.kind == "f":
        raise ImageError(
            f"An image is given as an array of fractions ({shape}), whose brightest value cannot be known. {_ACCEPTED}"
        )
    if numbers.dtype.kind not in "iu":
        raise ImageError(f"An image is given as nested lists that hold more than whole numbers. {_ACCEPTED}")
    if numbers.size and (numbers.min() < 0 or numbers.max() > 255):
        raise ImageError(f"An image is given as an array of {numbers.min()} to {numbers.max()}. {_ACCEPTED}")
    gray, coloured = numbers.ndim == 2, numbers.ndim == 3 and numbers.shape[2] == 3
    if not (gray or coloured) or not numbers.size:
        raise ImageError(f"An image is given as an array of {shape} numbers. {_ACCEPTED}")
    return Image.fromarray(numbers.astype(np.uint8))


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) and value else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
