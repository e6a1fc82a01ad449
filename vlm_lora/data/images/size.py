"""An image's width and height as the model will be shown it, from a file's header alone."""

from __future__ import annotations

import mmap
import warnings
from io import BytesIO
from pathlib import Path

from PIL import Image
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from vlm_lora.data.conversation import ImageSource, Url
from vlm_lora.data.images.loader import FORMATS, ImageLimits, load_image
from vlm_lora.errors import ImageError

_ORIENTATION = 0x0112
_LYING = frozenset({5, 6, 7, 8})
"""EXIF orientations that change width and height over."""
_PNG_MARKS = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
"""What a PNG file holds where it has an orientation."""


def read_size(source: ImageSource) -> tuple[int, int]:
    """Return width and height in pixels, EXIF orientation applied; no file is decoded.

    Raises:
        ImageError: there is no readable header.
    """
    if isinstance(source, Image.Image):
        return _upright(source)
    if isinstance(source, Url):
        # Fetched once: the image is kept for the loader.
        return load_image(source, limits=ImageLimits()).size
    try:
        with warnings.catch_warnings():
            # Pillow warns near its bomb limit and about odd metadata; loading the image decides about both.
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as picture:
                return _upright(picture, source)
    except MemoryError:
        raise
    except Exception as error:  # decoders let all kinds of errors through on broken headers
        name = f"the image of {len(source)} bytes in the row" if isinstance(source, bytes) else str(source)
        raise ImageError(f"{name}: its size cannot be read, so its boxes cannot be checked: {error}.") from error


def _upright(picture: Image.Image, source: Path | bytes | None = None) -> tuple[int, int]:
    width, height = picture.size
    if isinstance(picture, TiffImageFile):
        # Pillow tells the upright size or the stored one, depending on its version: the tags say which is stored.
        width, height = int(picture.tag_v2[IMAGEWIDTH]), int(picture.tag_v2[IMAGELENGTH])
    if picture.format == "PNG" and source is not None and not _may_be_turned(source):
        return width, height
    return (height, width) if picture.getexif().get(_ORIENTATION) in _LYING else (width, height)


def _may_be_turned(source: Path | bytes) -> bool:
    """Tell whether a PNG file names anything that may hold an orientation.

    It may stand after the pixels, and Pillow decodes all of them to look there.
    """
    if isinstance(source, bytes):
        return any(mark in source for mark in _PNG_MARKS)
    with source.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(mark) != -1 for mark in _PNG_MARKS)
