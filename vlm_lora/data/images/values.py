"""What a row holds for an image (path, bytes, base64, data URI, struct, image) as one `ImageRef`.

Paths are checked here, where the file's folder is known: below the image root, regular files, no URLs.
Nothing is decoded; `images.load_image` does that for training, evaluation and asking alike.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image

from vlm_lora.data.columns.harmless import holds_nothing
from vlm_lora.data.conversation import ImageRef, OwnSize, Url
from vlm_lora.data.conversations.texts import written_list
from vlm_lora.data.images.formats import REFUSED_SUFFIXES, SUFFIXES, begins_as_image
from vlm_lora.data.images.numbers import find_by_id, ids_in
from vlm_lora.data.images.spelling import other_spelling
from vlm_lora.data.wording import quoted
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


ADDRESS_KEYS = ("url", "src")
"""Keys of an object that hold an image's address or path; the Hub's viewer writes `src`, `height`, `width`."""

_BUDGET, _SIDES = ("min_pixels", "max_pixels"), ("resized_height", "resized_width")
"""Keys of an image part with a size of its own, as Qwen-VL's have them."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_DRIVE = re.compile(r"[A-Za-z]:[\\/](?!/)")
_DATA_URI = re.compile(r"data:([\w.+/-]*)((?:;[\w=.+-]+)*),", re.IGNORECASE)
_BASE64_LEAST = 44
"""Shorter text is never taken for base64: no image is that small."""


@dataclass(frozen=True, kw_only=True)
class ImagePlace:
    """Where relative paths start and which folders a path may lead into."""

    folder: Path | None
    """Start of relative paths; None where there is none (a Hub data set)."""
    roots: tuple[Path, ...] = ()
    """Folders that the real path must lie in; by default the one that relative paths start from."""
    data_folder: Path | None = None
    """Where a path starts that leads to no file from `folder`: the data file's own folder, where --image_root is
    another. The roots hold for it as well."""
    allow_urls: bool = False
    """Whether http and https URLs become references; they are fetched when they are loaded."""
    by_id: bool = False
    """Whether the image column names files below `folder` by numbers or without their endings."""


def read_image_value(value: Any, place: ImagePlace) -> ImageRef:
    """Return the reference for one image as a row holds it.

    Raises:
        ImageError: A URL, a path outside the root or to no regular file, broken base64, another type.
    """
    if isinstance(value, Image.Image):
        return ImageRef(source=value)
    if isinstance(value, bytes | bytearray | memoryview):
        return ImageRef(source=bytes(value))
    if isinstance(value, Path):
        return ImageRef(source=resolve_path(str(value), place))
    if isinstance(value, str):
        return _read_text(value, place)
    if isinstance(value, Mapping):
        return _read_struct(value, place)
    if is_number_array(value):
        return ImageRef(source=image_of_numbers(value))
    kind = "a list of numbers or lists" if isinstance(value, Sequence) else f"a value of type {type(value).__name__}"
    raise ImageError(
        f"An image is given as {kind}. Accepted are a path, encoded bytes, base64, a data URI, "
        '{"bytes": ..., "path": ...}, {"url": ...}, {"src": ...} and nested lists of the numbers 0-255.'
    )


def is_missing(value: Any) -> bool:
    """Tell whether an image value says that the row has no image."""
    if isinstance(value, Mapping):
        return all(is_missing(inner) for inner in value.values())
    # Empty bytes are no absence: they are an image that got lost, and an error when it is loaded.
    return value is None or (isinstance(value, str | list | tuple) and len(value) == 0)


def read_image_values(value: Any, place: ImagePlace) -> tuple[ImageRef, ...]:
    """Return the references for an image column's value: nothing, one image or a list, which may be written as text."""
    value = _as_list(value)
    if place.by_id and place.folder is not None and not is_missing(value):
        ids = ids_in(value)
        return tuple(ImageRef(source=resolve_path(str(find_by_id(one, place.folder)), place)) for one in ids)
    if is_missing(value):
        return ()
    if isinstance(value, list | tuple) and not is_number_array(value):
        refs = []
        for number, item in enumerate(value, start=1):
            if is_missing(item):
                raise ImageError(f"Image {number} of {len(value)} in the list is empty. Leave it out.")
            refs.append(read_image_value(item, place))
        return tuple(refs)
    return (read_image_value(value, place),)


def _as_list(value: Any) -> Any:
    """Return the list of images that a text writes out, by JSON or as Python and numpy write lists; else the value."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    texts = written_list(value)
    if texts is not None:
        return texts
    try:
        items = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return items if isinstance(items, list) and all(isinstance(item, Mapping) for item in items) else value


def looks_like_image(value: Any) -> bool:
    """Tell from a value alone whether it is surely an image; used to find image columns."""
    value = _as_list(value)
    if isinstance(value, list | tuple):
        return bool(value) and all(looks_like_image(item) for item in value)
    if isinstance(value, Mapping):
        return (set(value) == {"bytes", "path"} and not is_missing(value)) or _is_addressed(value)
    if isinstance(value, bytes):
        return begins_as_image(value)
    if isinstance(value, str):
        return _is_image_text(value)
    return isinstance(value, Image.Image)


def resolve_path(text: str, place: ImagePlace) -> Path:
    """Return the real path of an image file after checking where it leads.

    Raises:
        ImageError: Outside the roots, missing, or not a regular file.
    """
    if "\x00" in text:
        raise ImageError(f"The image path {text!r} holds a NUL character.")
    try:
        os.fsencode(text)  # also takes names that are no UTF-8, as this system's folders list them
    except UnicodeEncodeError as error:
        raise ImageError(
            f"The image path {_short(text)!a} holds half of a surrogate pair at character {error.start}, which no file "
            "name has. Write the whole character."
        ) from error
    text = _with_slashes(text, place)
    path = Path(text).expanduser() if text.startswith("~/") else Path(text)
    if place.data_folder is not None and not path.is_absolute():
        from_data = replace(place, folder=place.data_folder, data_folder=None)
        try:
            return resolve_path(text, replace(place, data_folder=None))
        except ImageError as first:
            try:
                return resolve_path(text, from_data)
            except ImageError:
                near = other_spelling(path, place.data_folder, [root.resolve() for root in place.roots])
                raise ImageError(
                    f"{first} Nor does it lead to an image there from {place.data_folder}.{near}"
                ) from first
    if place.folder is None and not path.is_absolute():
        raise ImageError(
            f"The image path '{_short(text)}' is relative, and a Hub data set has no folder to start from. "
            "Type --image_root FOLDER."
        )
    joined = path if place.folder is None else place.folder / path
    roots: list[Path] = []
    try:
        roots = [root.resolve() for root in place.roots or ((place.folder,) if place.folder else ())]
        real = joined.resolve()
        inside = any(real.is_relative_to(root) for root in roots)
        # Where a path may not lead, not even the existence of a file is told.
        mode = real.stat().st_mode if inside else 0
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        near = other_spelling(path, place.folder, roots)
        raise ImageError(
            f"The image '{_short(text)}' cannot be opened ({joined}: {reason}). Relative paths start from "
            f"{place.folder}; --image_root FOLDER makes them start elsewhere.{near}"
        ) from error
    if not inside:
        allowed = " or ".join(str(root) for root in roots) or "any folder"
        raise ImageError(
            f"The image path '{_short(text)}' leads to {real}, outside {allowed}. "
            "Type --image_root FOLDER with a folder that holds all images."
        )
    if not stat.S_ISREG(mode):
        raise ImageError(f"The image path '{_short(text)}' is not a regular file ({real}).")
    return real


def read_own_size(given: Mapping[str, Any]) -> OwnSize | None:
    """Return the size that an image part, or an object for an image, asks for; None where it asks for none.

    Raises:
        ImageError: it is no size, or says two things at once.
    """
    found: dict[str, Any] = {key: given[key] for key in (*_BUDGET, *_SIDES) if given.get(key) is not None}
    if given.get("total_pixels") is not None:
        raise ImageError("total_pixels is for the frames of a video. Of an image write max_pixels, or leave it out.")
    for key, value in found.items():
        if isinstance(value, float) and value.is_integer():
            found[key] = value = int(value)  # a table with missing values stores whole numbers as fractions
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ImageError(f"An image's {key} is {value!r}. It must be a whole number of pixels from 1.")
    sides = [key for key in _SIDES if key in found]
    if sides and len(found) != len(_SIDES):
        raise ImageError(
            f"An image's own size is given as {', '.join(found)}. Write resized_height and resized_width, both, or "
            "min_pixels and max_pixels."
        )
    if found.get("min_pixels", 0) > found.get("max_pixels", math.inf):
        raise ImageError(f"An image's min_pixels {found['min_pixels']} are more than its max_pixels.")
    return OwnSize(**found) if found else None


def with_size(image: ImageRef, size: OwnSize | None) -> ImageRef:
    """Return an image shown at a size of its own; without one as it is.

    Raises:
        ImageError: the image has another size already.
    """
    if size is None or image.size == size:
        return image
    if image.size is not None:
        raise ImageError("A part and the image that it stands for have two sizes that differ. Leave one out.")
    return replace(image, size=size)


def _with_slashes(text: str, place: ImagePlace) -> str:
    """Return a path as Windows writes it with this system's separators, unless a file has it for its name."""
    if "\\" not in text and not _DRIVE.match(text):
        return text
    folders = [folder for folder in (place.folder, place.data_folder, Path()) if folder is not None]
    try:
        if any((folder / text).is_file() for folder in folders):
            return text
    except OSError:  # a name too long for a file system
        return text
    if _DRIVE.match(text):
        raise ImageError(
            f"The image path '{_short(text)}' starts at a drive of Windows, which this machine has not. Type "
            "--image_root FOLDER with the folder of the images, and write paths from there."
        )
    return text.replace("\\", "/")


_STRUCT_KEYS = frozenset(["bytes", "path", *ADDRESS_KEYS, *_BUDGET, *_SIDES, "total_pixels"])
"""Keys of an object for an image that are read."""


def _read_struct(value: Mapping[str, Any], place: ImagePlace) -> ImageRef:
    """Read {"bytes", "path"}: the bytes where there are any, else the path, else a URL or path under its keys."""
    others = [key for key, held in value.items() if key not in _STRUCT_KEYS and not holds_nothing(key, held, key=True)]
    if any(not is_missing(value[key]) for key in others):
        raise ImageError(
            f"An image's object has {quoted(others)}, which is not read. Leave it out, or write it into a text."
        )
    encoded, size = value.get("bytes"), read_own_size(value)
    if encoded is not None:
        return with_size(read_image_value(encoded, place), size)
    address = next((value[key] for key in ("path", *ADDRESS_KEYS) if value.get(key)), None)
    if address is not None:
        return with_size(read_image_value(address, place), size)
    raise ImageError(
        f"An image is given as an object with the keys {', '.join(map(str, value)) or '(none)'}; it needs "
        "`bytes`, `path`, `url` or `src` with a value."
    )


def read_url(text: str, *, allow: bool) -> Url:
    """Return the reference for an image URL; nothing is fetched yet.

    Raises:
        ImageError: URLs are not allowed, or it is one that is never fetched.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ImageError(
            f"The image's URL ({_short(text)!a}) holds half of a surrogate pair. Write the whole character."
        )
    if not text.lower().startswith(("http://", "https://")):
        raise ImageError(
            f"The image is a URL that is never fetched ({_short(text)}); only http and https are. Download the images "
            "and name files."
        )
    if not allow:
        raise ImageError(
            f"The image is a URL ({_short(text)}). URLs are not fetched unless you allow it: a run must not depend on "
            "other machines, nor reach into the network on behalf of a data file. Download the images and name files, "
            "or type --allow_urls true."
        )
    return Url(text=text)


def _read_text(text: str, place: ImagePlace) -> ImageRef:
    uri = _DATA_URI.match(text)
    if uri:
        return ImageRef(source=_decode_data_uri(text, uri))
    scheme = _SCHEME.match(text)
    if scheme:
        name = scheme.group(1).lower()
        if name == "file":
            parts = urlsplit(text)
            if parts.netloc not in ("", "localhost"):
                raise ImageError(f"The image ({_short(text)}) lies on another machine; file:/// is followed by a path.")
            return ImageRef(source=resolve_path(unquote(parts.path), place))
        return ImageRef(source=read_url(text, allow=place.allow_urls))
    if _is_base64_image(text):
        return ImageRef(source=_decode_base64(text))
    return ImageRef(source=resolve_path(text, place))


def _is_addressed(value: Mapping[str, Any]) -> bool:
    """Tell whether an object is surely an image's address: with its size, or by the name of the file."""
    text = next((value[key] for key in ADDRESS_KEYS if value.get(key)), None)
    if not isinstance(text, str) or not set(value) <= {*ADDRESS_KEYS, "height", "width"}:
        return False
    return {"height", "width"} <= set(value) or _is_image_text(text)


def _is_image_text(text: str) -> bool:
    suffixes = (*SUFFIXES, *REFUSED_SUFFIXES)
    one_line = "\n" not in text and len(text) < 1024
    return text.startswith("data:image/") or (one_line and text.lower().endswith(suffixes)) or _is_base64_image(text)


def _is_base64_image(text: str) -> bool:
    """Tell whether text is base64 of a known image format, from its first characters."""
    if len(text) < _BASE64_LEAST or Path(text[-8:]).suffix:
        return False
    try:
        return begins_as_image(base64.b64decode(text[:16], validate=True))
    except (binascii.Error, ValueError):
        return False


def _decode_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"The image's base64 text ({_short(text)}) is broken: {error}.") from error


def _decode_data_uri(text: str, uri: re.Match[str]) -> bytes:
    kind, options = uri.group(1).lower(), uri.group(2).lower()
    if ";base64" not in options:
        raise ImageError(f"The data URI ({_short(text)}) is not base64; images are read as data:image/png;base64,...")
    if kind and not kind.startswith("image/"):
        raise ImageError(f"The data URI ({_short(text)}) holds {kind}, not an image.")
    encoded = _decode_base64(unquote(text[uri.end() :]))
    if not encoded:
        raise ImageError(f"The data URI ({_short(text)}) is empty.")
    return encoded


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
