"""Which keys of a content part hold its text and its image: one answer for whoever reads it or names what is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlm_lora.data.columns.names import IMAGE_PARTS, SHOWN_BY_KEY, TEXT_PARTS
from vlm_lora.data.images.values import is_missing

SIZES = ("min_pixels", "max_pixels", "resized_height", "resized_width", "total_pixels")
"""Keys of an image's own size."""

_OF_IMAGES = frozenset([*(key for keys in IMAGE_PARTS.values() for key in keys), *SHOWN_BY_KEY])
_OF_TEXTS = frozenset(key for keys in TEXT_PARTS.values() for key in keys)

HOLDERS = _OF_IMAGES | _OF_TEXTS
"""Keys that hold something in one part or another: where they are not read, they are never passed over."""


@dataclass(frozen=True, kw_only=True)
class PartKeys:
    """The keys of one part."""

    text: str | None
    image: str | None
    read: frozenset[str]
    """All that are read, or say what another one says."""


def keys_of(part: Mapping[str, Any]) -> PartKeys:
    """Return which keys of a part are read.

    Args:
        part: of a known type, or of none.
    """
    given = {key: value for key, value in part.items() if value is not None}
    kind = str(given.get("type") or "")
    # In an image's part `value` is the image, and an empty text is one that Arrow filled in.
    named = TEXT_PARTS.get(kind, ("text", "content") if kind else ("text",))
    least = 1 if kind in IMAGE_PARTS else 0
    text = next((key for key in named if isinstance(given.get(key), str) and len(given[key]) >= least), None)
    shown = [key for key in (*IMAGE_PARTS.get(kind, ()), *SHOWN_BY_KEY) if not is_missing(given.get(key))]
    image = next((key for key in shown if key != text), None)
    held = [given[key] for key in (text, image) if key is not None]
    same = {key for key, value in given.items() if key in HOLDERS and value in held}
    sized = SIZES if image is not None or kind in IMAGE_PARTS else ()
    return PartKeys(text=text, image=image, read=frozenset({"type", "index", *same, *sized}))
