"""A picture's width and height as the model will be shown it, from the header alone."""

from __future__ import annotations

import warnings
from io import BytesIO

from PIL import Image

from vlm_lora.data.conversation import ImageSource
from vlm_lora.data.images import FORMATS
from vlm_lora.errors import ImageError

_ORIENTATION = 0x0112
_LYING = frozenset({5, 6, 7, 8})
"""EXIF orientations that change width and height over."""


def read_size(source: ImageSource) -> tuple[int, int]:
    """Return width and height in pixels, EXIF orientation applied; nothing is decoded.

    Raises:
        ImageError: there is no readable header.
    """
    if isinstance(source, Image.Image):
        return _upright(source)
    try:
        with warnings.catch_warnings():
            # Pillow warns near its bomb limit and about odd metadata; loading the picture decides about both.
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as picture:
                return _upright(picture)
    except MemoryError:
        raise
    except Exception as error:  # decoders let all kinds of errors through on broken headers
        name = f"the image of {len(source)} bytes in the row" if isinstance(source, bytes) else str(source)
        raise ImageError(f"{name}: its size cannot be read, so its boxes cannot be checked: {error}.") from error


def _upright(picture: Image.Image) -> tuple[int, int]:
    width, height = picture.size
    return (height, width) if picture.getexif().get(_ORIENTATION) in _LYING else (width, height)
