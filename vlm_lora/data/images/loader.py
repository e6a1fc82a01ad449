"""The one image loader of training, evaluation and asking: only here does an image become RGB pixels.

1. The file's size, then its header are checked against the limits; nothing is decoded before. How often a JPEG goes
   over its image is counted: a few kilobytes can ask for thousands of passes, which take hours.
2. Decode the first frame. A file that is cut off is an error, never a half-grey image.
3. Bring samples to 8 bits (16-bit ones scaled, not clipped), put transparency on white, convert to RGB.
4. Turn as the EXIF orientation says. The result carries no metadata, so nobody turns it again.

Colour profiles are not applied: an image's numbers are taken as sRGB. `read_size` tells width and height from the
header alone.
"""

from __future__ import annotations

import logging
import mmap
import os
import re
import stat
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.conversation import ImageSource, Url
from vlm_lora.data.images.formats import explain_unreadable, formats_for, head
from vlm_lora.data.images.urls import PUBLIC, Fetcher, keep, kept_file, read_kept
from vlm_lora.errors import ImageError

MAX_SCANS = 100
"""Encoders write about ten, the most thorough ones a few dozen."""

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""The end of a scan's data: 0xff is stuffed there with a zero, and restart markers belong to the data."""
_START_OF_SCAN, _END = 0xDA, 0xD9
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a length."""


def count_scans(encoded: bytes) -> int:
    """Return the number of scans of a JPEG's first image; what lies in its metadata or behind it does not count.

    A file that is cut off or broken gives the scans up to there: decoding it says what is wrong.
    """
    scans, position = 0, 2
    while position + 4 <= len(encoded):
        kind = encoded[position + 1]
        if encoded[position] != 0xFF or kind == _END:
            break
        if kind == 0xFF:  # padding before a marker
            position += 1
        elif kind in _BARE:
            position += 2
        else:
            position += 2 + int.from_bytes(encoded[position + 2 : position + 4], "big")
            if kind == _START_OF_SCAN:
                scans += 1
                following = _MARKER.search(encoded, position)
                position = following.start() if following else len(encoded)
    return scans


logger = logging.getLogger(__name__)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to the turn that shows the image upright."""

_ORIENTATION = 0x0112
_TIFF_BITS = 258
_TIFF_PHOTOMETRIC = 262
_WHITE_IS_ZERO = 0
_PLAIN = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"})
_TRANSPARENT = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What is refused from the header alone."""

    max_pixels: int = 64_000_000
    max_bytes: int = 256 * 1024 * 1024
    max_aspect_ratio: float = 200.0
    """Longer side divided by the shorter one; processors turn beyond-strips into nothing."""

    @classmethod
    def of(cls, config: DataConfig) -> ImageLimits:
        """Return the limits a run asks for."""
        return cls(max_pixels=config.max_image_pixels, max_bytes=config.max_image_bytes)


def load_image(source: ImageSource, *, limits: ImageLimits, fetcher: Fetcher | None = None) -> Image.Image:
    """Load one image as RGB, upright, without metadata.

    Args:
        source: File, encoded bytes, an image, or a URL (whoever made it has checked that URLs are allowed).
        limits: What is refused before decoding.
        fetcher: Where URLs may lead; by default to public addresses only.

    Returns:
        A new image of mode RGB, height × width × 3 bytes.

    Raises:
        ImageError: Refused or undecodable; says which image, why, and what to do.
    """
    if isinstance(source, Url):
        return _load_url(source, limits, PUBLIC if fetcher is None else fetcher)
    if isinstance(source, Image.Image):
        return _decode(source, f"the {source.width}x{source.height} image of mode {source.mode}", limits)
    name = str(source) if isinstance(source, Path) else f"the image of {len(source)} bytes in the row"
    encoded = _read_file(source, limits) if isinstance(source, Path) else source
    if not encoded:
        raise ImageError(f"{name}: the image is empty (0 bytes).")
    if len(encoded) > limits.max_bytes:
        raise _too_many_bytes(name, len(encoded), limits)
    with warnings.catch_warnings():
        # Pillow warns near its own bomb limit and about odd metadata; our limits decide instead.
        warnings.simplefilter("ignore")
        try:
            picture = Image.open(BytesIO(encoded), formats=formats_for(encoded))
        except Image.DecompressionBombError as error:
            raise ImageError(f"{name}: more pixels than Pillow ever decodes: {error} Make it smaller.") from error
        except MemoryError as error:
            raise _out_of_memory(name) from error
        except Exception as error:  # decoders let all kinds of errors through on broken headers
            raise ImageError(explain_unreadable(name, encoded)) from error
        with picture:
            if picture.format in ("JPEG", "MPO") and (scans := count_scans(encoded)) > MAX_SCANS:
                raise ImageError(
                    f"{name}: a JPEG of {scans} scans, each a pass over the whole image; at most {MAX_SCANS} are "
                    "decoded. Save it again."
                )
            return _decode(picture, name, limits)


def _load_url(url: Url, limits: ImageLimits, fetcher: Fetcher) -> Image.Image:
    """Load a URL's image from the cache, or fetch it; only what can be loaded is kept."""
    kept = read_kept(url)
    if kept is not None:
        try:
            return load_image(kept, limits=limits)
        except ImageError as error:  # by other limits than those it was fetched with
            raise ImageError(f"{url.text} (kept from an earlier run as {kept_file(url)}): {error}") from error
    encoded = fetcher.fetch(url)
    try:
        picture = load_image(encoded, limits=limits)
    except ImageError as error:
        raise ImageError(f"{url.text}: {error}") from error
    keep(url, encoded)
    return picture


def _read_file(path: Path, limits: ImageLimits) -> bytes:
    try:
        # Opened first and looked at then, so that nothing else can take its place; a pipe is not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise ImageError(f"{path}: not a regular file.")
        with os.fdopen(descriptor, "rb") as stream:
            if status.st_size > limits.max_bytes:
                raise _too_many_bytes(str(path), status.st_size, limits)
            # One more than allowed: some files are longer than they say.
            return stream.read(limits.max_bytes + 1)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}.") from error


def _decode(picture: Image.Image, name: str, limits: ImageLimits) -> Image.Image:
    _check_header(picture, name, limits)
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ImageError(
            f"{name}: ImageFile.LOAD_TRUNCATED_IMAGES was switched on by other code, so images that are cut off "
            "could not be told from whole ones. Set it to False."
        )
    try:
        # Photometric and bit tags are read first: loading a TIFF may turn it and drop its tags.
        top = _highest_sample(picture)
        inverted = _tiff_tag(picture, _TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO
        picture.load()
        _check_header(picture, name, limits)  # some formats learn their true size only now
        pixels = _to_rgb(picture, name, top, inverted)
    except ImageError:
        raise
    except MemoryError as error:
        # Not only a machine that is full: decoders ask for what a broken header says, and report that alike.
        raise _out_of_memory(name) from error
    except Exception as error:  # decoders let all kinds of errors through on broken files
        raise ImageError(
            f"{name}: the {picture.format or 'image'} data is broken or cut off ({error}). Replace the file."
        ) from error
    turn = _TURNS.get(_orientation(picture, name))
    upright = pixels if turn is None else pixels.transpose(turn)
    upright.info = {}
    return upright


def _check_header(picture: Image.Image, name: str, limits: ImageLimits) -> None:
    width, height = picture.size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: {width}x{height} pixels is no image.")
    if width * height > limits.max_pixels:
        raise ImageError(
            f"{name}: {width}x{height} is {width * height} pixels, more than the {limits.max_pixels} allowed. Make "
            "it smaller, or raise --max_image_pixels."
        )
    ratio = max(width, height) / min(width, height)
    if ratio > limits.max_aspect_ratio:
        raise ImageError(
            f"{name}: {width}x{height} has sides of 1 to {ratio:.1f}; at most 1 to "
            f"{limits.max_aspect_ratio:g} "
            "is allowed. Crop it."
        )


def _to_rgb(picture: Image.Image, name: str, top: int, inverted: bool) -> Image.Image:
    if picture.mode.startswith("I;16") or (picture.mode == "I" and top == 65535):
        return _scale_gray(picture, top, inverted)
    if picture.mode in _TRANSPARENT or (picture.mode in _PLAIN and picture.has_transparency_data):
        layered = picture.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    if picture.mode in _PLAIN:
        return picture.convert("RGB")
    raise ImageError(
        f"{name}: samples of mode {picture.mode} (floating point, 32-bit or Lab) have no agreed brightness range. "
        "Convert it to 8 or 16 bits a sample."
    )


def _scale_gray(picture: Image.Image, top: int, inverted: bool) -> Image.Image:
    """Bring gray samples of 0..top to 0..255, rounding; a PNG's transparent gray becomes white."""
    samples = np.asarray(picture).astype(np.uint32)
    scaled = ((np.minimum(samples, top) * 255 + top // 2) // top).astype(np.uint8)
    if inverted:
        scaled = 255 - scaled
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        scaled[samples == transparent] = 255
    return Image.fromarray(scaled).convert("RGB")


def _highest_sample(picture: Image.Image) -> int:
    """Return the value of white in a gray image of more than 8 bits; 0 where the format does not say."""
    bits = _tiff_tag(picture, _TIFF_BITS)
    if picture.mode.startswith("I;16"):
        return (1 << bits) - 1 if bits else 65535
    # Pillow opens PGM with more than 255 levels as "I", scaled to 16 bits; a TIFF's "I" is signed or 32-bit.
    return 65535 if picture.mode == "I" and picture.format in ("PPM", "PNG") else 0


def _tiff_tag(picture: Image.Image, tag: int) -> int | None:
    tags: Any = getattr(picture, "tag_v2", None)
    value = tags.get(tag) if tags is not None else None
    first = value[0] if isinstance(value, tuple) and value else value
    return first if isinstance(first, int) else None


def _orientation(picture: Image.Image, name: str) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = picture.getexif().get(_ORIENTATION, 1)
    except Exception as error:  # an EXIF block is data from anywhere; its parser raises all kinds of errors
        logger.warning("%s: the EXIF block is broken (%s): shown as stored, not turned.", name, error)
        return 1
    return value if isinstance(value, int) else 1


def _out_of_memory(name: str) -> ImageError:
    return ImageError(
        f"{name}: decoding it takes more memory than there is, or its header asks for more than the image needs. "
        "Make it smaller, or save it again."
    )


def _too_many_bytes(name: str, size: int, limits: ImageLimits) -> ImageError:
    return ImageError(
        f"{name}: {size} bytes, more than the {limits.max_bytes} allowed. Make it smaller, or raise --max_image_bytes."
    )


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
            opened = BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(opened, formats=formats_for(head(source))) as picture:
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
