"""Images inside a page: smaller copies as data URIs, up to so many bytes a page, and boxes over them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

SIDE = 640
"""Images are shown at most this many pixels wide and high."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One image of a page."""

    width: int
    """Of the image itself, in pixels."""
    height: int
    uri: str


def picture(image: Image.Image, *, side: int = SIDE) -> Shown:
    """Return an image's size, and a smaller copy as a data URI: PNG or JPEG, whichever is shorter."""
    width, height = image.size
    copy = image.convert("RGB")
    copy.thumbnail((side, side))
    encoded: dict[str, bytes] = {}
    for kind in ("png", "jpeg"):
        target = BytesIO()
        copy.save(target, kind.upper(), **({"quality": 90} if kind == "jpeg" else {}))
        encoded[kind] = target.getvalue()
    kind = min(encoded, key=lambda name: len(encoded[name]))
    uri = f"data:image/{kind};base64,{base64.b64encode(encoded[kind]).decode('ascii')}"
    return Shown(width=width, height=height, uri=uri)


def rectangle(numbers: Sequence[float]) -> Mapping[str, float]:
    """Return where an SVG rectangle stands; a point is one without width and height, which its stroke shows.

    Args:
        numbers: left, top, right, bottom of a box, or x and y of a point, in the pixels of the drawing.
    """
    xs, ys = numbers[::2], numbers[1::2]
    x, y = min(xs), min(ys)
    return {"x": round(x, 2), "y": round(y, 2), "width": round(max(xs) - x, 2), "height": round(max(ys) - y, 2)}
