"""Boxes as answers: what detection data holds becomes JSON that a program can read back.

An answer is `[{"bbox_2d": [x1, y1, x2, y2], "label": "..."}, ...]` in the row's order: whole pixels of the
image as it is shown upright, before any processor resizes it, clipped to it; x to the right, y down.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_lora.data.wording import short
from vlm_lora.errors import DataError

BOX_KEYS = ("bbox", "bboxes", "box", "boxes")
"""Keys of the boxes in an `objects` column, the first that is there counts."""
CATEGORY_KEYS = ("category", "categories", "label", "labels", "category_name", "class", "category_id")
"""Keys of what each box shows, alike; one that holds names counts before one that holds numbers."""

BOX_FORMATS = ("xywh", "xyxy")
"""COCO's left, top, width, height; or left, top, right, bottom."""
_SIDES: Mapping[str, str] = {"xywh": "left, top, width, height", "xyxy": "left, top, right, bottom"}

EDGE_PIXELS, EDGE_SHARE = 2, 0.01
"""A box may stick out of its image by so many pixels, or by this share of the side where that is more."""

QUESTION = (
    "Find every object in the picture. Answer with a JSON list of "
    '{"bbox_2d": [x1, y1, x2, y2], "label": "..."}, in pixels.'
)
"""What is asked where the data asks nothing; `--box_prompt` replaces it."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in whole pixels."""

Edges = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels, as the data gives them."""


@dataclass(frozen=True, kw_only=True)
class BoxReading:
    """How a column of boxes is read."""

    column: str
    format: str = "xywh"
    names: tuple[str, ...] = ()
    """Names of the categories that the data gives as numbers, number 0 first."""
    numbers: str | None = None
    """Key of the numbers that the data declares these names for; None takes the first key that is there."""
    question: str = QUESTION
    """What is asked where no column asks it."""
    prompt: str | None = None
    """Column of questions, as data with referring expressions has them."""


def holds_boxes(value: Any) -> bool:
    """Tell whether a value is `{"bbox": [...], "category": [...]}` or a list of such objects, each of one box."""
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(item, Mapping) and _has_keys(item) for item in value)
    return isinstance(value, Mapping) and _has_keys(value)


def answer_boxes(value: Any, reading: BoxReading, size: tuple[int, int]) -> str:
    """Return a row's boxes as the answer's JSON text; no boxes give `[]`.

    Args:
        value: the column's value: an object of lists, or a list of objects.
        reading: format of the boxes and names of the categories.
        size: the image's width and height in pixels.

    Raises:
        DataError: what is given cannot be read as boxes with categories; the message names the box.
    """
    found = []
    for number, (box, category) in enumerate(_pairs(value, reading), start=1):
        try:
            found.append({"bbox_2d": read_box(box, reading.format, size), "label": _name(category, reading.names)})
        except DataError as error:
            raise DataError(
                f"Box {number} in column '{reading.column}': {error} (--box_format {reading.format}; allowed are "
                f"{', '.join(BOX_FORMATS)}.)"
            ) from error
    return as_json(found)


def as_json(items: Sequence[Mapping[str, Any]]) -> str:
    """Write an answer's objects on one line, text as it is and not escaped to ASCII."""
    return json.dumps(list(items), ensure_ascii=False)


def read_box(value: Any, style: str, size: tuple[int, int] | None, *, may_be_flat: bool = False) -> Box:
    """Return a box as left, top, right, bottom, rounded to pixels and clipped to the image.

    A box thinner than a pixel becomes one pixel.

    Annotators draw a little over an image's edge; what sticks out by more than that was written in another format,
    or for another image, and clipping it would hide that.

    Args:
        value: four numbers.
        style: `xywh` or `xyxy`.
        size: the image's width and height in pixels; None where it is not known, and nothing is clipped.
        may_be_flat: whether a box without width or height is taken as it is, as text recognition gives to blanks.

    Raises:
        DataError: not four finite numbers, numbers from 0 to 1 instead of pixels, an end before its start, a box that
            sticks out of the image by more than 2 pixels and 1 % of the side, or one without width or height.
    """
    if not isinstance(value, list | tuple) or len(value) != 4 or not all(_is_finite(n) for n in value):
        raise DataError(f"{short(value)} is no box; a box is four numbers.")
    if any(value) and all(0 <= n <= 1 for n in value) and any(isinstance(n, float) for n in value):
        by = "" if size is None else f" ({size[0]}x{size[1]})"
        raise DataError(
            f"{short(value)} has only numbers from 0 to 1, so it looks normalised; wanted are pixels. Multiply x by "
            f"the image's width and y by its height{by}."
        )
    left, top, third, fourth = value
    right, bottom = (left + third, top + fourth) if style == "xywh" else (third, fourth)
    if right < left or bottom < top:
        raise DataError(f"{short(value)} ends before it starts, read as {_SIDES[style]}.")
    what = f"{short(value)}, read as {_SIDES[style]} in pixels,"
    if size is not None:
        _check_inside((left, top, right, bottom), size, what)
    if (right == left or bottom == top) and not may_be_flat:
        raise DataError(f"{what} has no width or height.")
    width, height = (None, None) if size is None else size
    (left, right), (top, bottom) = _in_pixels(left, right, width), _in_pixels(top, bottom, height)
    return left, top, right, bottom


def _in_pixels(start: float, end: float, side: int | None) -> tuple[int, int]:
    """Return two ends in whole pixels within a side, apart by one at least if they were apart."""
    first, last = round(start), round(end)
    if side is not None:
        first, last = min(max(first, 0), side), min(max(last, 0), side)
    if first < last or start == end:
        return first, last
    return (first, first + 1) if side is None or first < side else (first - 1, first)


def _check_inside(box: tuple[float, float, float, float], size: tuple[int, int], what: str) -> None:
    """Refuse a box outside its image, or more than a little over its edge."""
    left, top, right, bottom = box
    width, height = size
    if any(
        start < 0 >= end or start >= side < end for start, end, side in ((left, right, width), (top, bottom, height))
    ):
        raise DataError(f"{what} lies outside the image of {width}x{height} pixels.")
    for over, side in ((max(-left, right - width), width), (max(-top, bottom - height), height)):
        if over > max(EDGE_PIXELS, EDGE_SHARE * side):
            raise DataError(
                f"{what} reaches from {left:g}, {top:g} to {right:g}, {bottom:g} and sticks out of the image of "
                f"{width}x{height} pixels by {over:g}; allowed are {max(EDGE_PIXELS, EDGE_SHARE * side):g}."
            )


def check_size(given: tuple[Any, Any], size: tuple[int, int]) -> None:
    """Refuse boxes that were drawn on an image of another size; None says nothing.

    Raises:
        DataError: the sizes differ.
    """
    width, height = given
    if width is None or height is None or (width, height) == size:
        return
    turned = " It is turned by its EXIF orientation." if (height, width) == size else ""
    raise DataError(
        f"The boxes are for an image of {width}x{height} pixels (by the row's width and height), and the image has "
        f"{size[0]}x{size[1]}.{turned} Correct the row: boxes of another size would teach wrong places."
    )


def _has_keys(value: Mapping[str, Any]) -> bool:
    return any(name in value for name in BOX_KEYS) and any(name in value for name in CATEGORY_KEYS)


def _boxes(value: Mapping[str, Any]) -> Any:
    """Return what stands under the first key of boxes that is not null."""
    return next((value[name] for name in BOX_KEYS if value.get(name) is not None), None)


def _categories(value: Mapping[str, Any], numbers: str | None) -> Any:
    """Return what stands under the first key that holds names, else under that of the numbers with declared names.

    COCO's items may have `category_id` and `category_name`: a name needs no list of names. Without declared names
    the first key that is not null counts.
    """
    given = [value[name] for name in CATEGORY_KEYS if name in value]
    said = [found for found in given if not _is_null(found)]
    declared = [] if numbers is None or _is_null(value.get(numbers)) else [value[numbers]]
    return next((found for found in said if _are_names(found)), (declared or said or given)[0])


def _is_null(value: Any) -> bool:
    """Say whether a value says nothing: null, or the list of nulls that Arrow fills in."""
    return value is None or (isinstance(value, list | tuple) and bool(value) and all(item is None for item in value))


def _are_names(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(name, str) for name in value)
    return isinstance(value, str)


def _pairs(value: Any, reading: BoxReading) -> Iterator[tuple[Any, Any]]:
    """Yield box and category, from an object of lists or a list of objects."""
    column = reading.column
    if isinstance(value, list | tuple):
        for number, item in enumerate(value, start=1):
            if not isinstance(item, Mapping) or not _has_keys(item):
                raise DataError(f"Box {number} in column '{column}' is {short(item)}; {_WANTED}")
            yield _boxes(item), _categories(item, reading.numbers)
        return
    if not isinstance(value, Mapping) or not _has_keys(value):
        raise DataError(f"Column '{column}' holds {short(value)}; {_WANTED}")
    boxes, categories = _boxes(value), _categories(value, reading.numbers)
    if not isinstance(boxes, list | tuple) or not isinstance(categories, list | tuple):
        raise DataError(f"Column '{column}' holds {short(value)}; {_WANTED}")
    if len(boxes) != len(categories):
        raise DataError(f"Column '{column}' holds {len(boxes)} boxes and {len(categories)} categories.")
    yield from zip(boxes, categories, strict=True)


_WANTED = 'wanted is {"bbox": [[...], ...], "category": [...]} or [{"bbox": [...], "category": ...}, ...].'


def _name(category: Any, names: tuple[str, ...]) -> str:
    if isinstance(category, str):
        if not category.strip():
            raise DataError("the category is an empty text. Name what the box shows, or take the box out.")
        return category
    if isinstance(category, bool) or not isinstance(category, int):
        raise DataError(f"the category {category!r} is neither a name nor a whole number.")
    if not names:
        raise DataError(
            f"the category is the number {category}, and the data names no categories. Type --box_labels with the "
            "names, number 0 first."
        )
    if not 0 <= category < len(names):
        raise DataError(f"the category {category} is not one of the {len(names)} names (0 to {len(names) - 1}).")
    return names[category]


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
