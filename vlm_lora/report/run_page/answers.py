"""Answers as a page shows them: the worst first, each next to what was expected, with its images and their boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_lora.report.pages.pictures import picture, rectangle
from vlm_lora.report.run_page.folder import Prediction
from vlm_lora.report.run_page.stored_images import Found, StoredImages

MOST = 50
"""Answers on a page."""
MOST_IMAGES = 6
"""Images of one answer."""
MOST_TEXT = 3000
"""Characters of one text; the rest is counted."""
SIDE = 448
"""Largest side of a thumbnail in pixels."""


class Album:
    """Makes thumbnails until the page has as many bytes of them as it may.

    Args:
        stored: finds images; None for a page without any.
        room: bytes of all data URIs together.
    """

    def __init__(self, stored: StoredImages | None, room: int) -> None:
        self._stored = stored
        self._room = room

    def of(self, row: Prediction) -> list[dict[str, Any]]:
        """Return the images of an answer: each its name, and the shown image with boxes or why there is none."""
        if self._stored is None:
            return [{"name": name, "shown": None, "why": "images are kept out of this page"} for name in row.images]
        found = self._stored.of(row.images, *row.place)
        shown = [self._entry(one, number, row) for number, one in enumerate(found[:MOST_IMAGES])]
        left = len(found) - MOST_IMAGES
        return shown + ([{"name": f"{left} more images", "shown": None, "why": "not shown"}] if left > 0 else [])

    def _entry(self, one: Found, number: int, row: Prediction) -> dict[str, Any]:
        entry: dict[str, Any] = {"name": one.name, "file": one.file, "shown": None, "why": one.why, "boxes": []}
        if one.image is None:
            return entry
        shown = picture(one.image, side=SIDE)
        if len(shown.uri) > self._room:
            return {**entry, "why": "the page is full"}
        self._room -= len(shown.uri)
        return {**entry, "shown": shown, "boxes": _boxes(row, number)}


def worst_first(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Return the answers from the worst on: by their scores, then by their loss, then in the order of the rows."""
    return sorted(predictions, key=lambda row: (-row.badness, -(row.loss or 0.0), row.number))


def described(row: Prediction, album: Album) -> dict[str, Any]:
    """Return what a page shows of an answer."""
    file, number = row.place
    return {
        "row": row,
        "file": file,
        "number": number,
        "prompt": None if row.prompt is None else shortened(row.prompt),
        "generated": shortened(row.generated),
        "accepted": [shortened(text) for text in row.accepted[:10]],
        "more_accepted": max(0, len(row.accepted) - 10),
        "images": album.of(row),
        "right": row.badness == 0,
    }


def shortened(text: str) -> str:
    """Return a text, of a very long one the beginning and how much is left out."""
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} … ({len(text) - MOST_TEXT} more characters)"


def _boxes(row: Prediction, image: int) -> list[dict[str, Any]]:
    """Return the expected and generated boxes and points of one image, in its own pixels."""
    found = []
    for kind, regions in (("expected", row.expected_boxes), ("generated", row.boxes)):
        for region in regions:
            numbers = _numbers(region)
            if region.get("image_id", 0) == image and numbers:
                found.append({"kind": kind, "label": str(region.get("label") or ""), **rectangle(numbers)})
    return found


def _numbers(region: Mapping[str, Any]) -> list[float]:
    numbers = region.get("bbox") or region.get("point") or []
    right = isinstance(numbers, list) and len(numbers) in (2, 4) and all(isinstance(n, int | float) for n in numbers)
    return [float(number) for number in numbers] if right else []
