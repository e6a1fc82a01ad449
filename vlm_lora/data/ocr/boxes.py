"""Boxes as answers: what detection data holds becomes a list that a program can read back.

An answer is `[{"bbox_2d": [x1, y1, x2, y2], "label": "..."}, ...]` in the row's order. Here its numbers are whole
pixels of the image as it is shown upright, before any processor resizes it, clipped to it; x to the right, y down.
The encoder writes them as its model counts them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_lora.config.run_config import BOX_FORMATS
from vlm_lora.data.columns.harmless import holds_nothing
from vlm_lora.data.conversation import ImageRef, Place, PlacedText, PlaceList
from vlm_lora.data.conversations.unread import says_nothing
from vlm_lora.data.wording import quoted, short
from vlm_lora.errors import DataError

BOX_KEYS = ("bbox", "bboxes", "box", "boxes")
"""Keys of the boxes in an `objects` column, the first that is there counts."""
CATEGORY_KEYS = ("category", "categories", "label", "labels", "category_name", "class", "category_id")
"""Keys of what each box shows, alike; one that holds names counts before one that holds numbers."""

RELATIVE = "relative_"
"""Begins the formats whose numbers are shares of the image's width and height; all others are pixels."""
_SIDES: Mapping[str, str] = {
    "xywh": "left, top, width, height",
    "xyxy": "left, top, right, bottom",
    "cxcywh": "centre x, centre y, width, height",
}

EDGE_PIXELS, EDGE_SHARE = 2, 0.01
"""A box may stick out of its image by so many pixels, or by this share of the side where that is more."""

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
    question: str | None = None
    """What is asked where no column asks it; None for our own question, which says how the model counts."""
    prompt: str | None = None
    """Column of questions, as data with referring expressions has them."""
    ignored: tuple[str, ...] = ()
    """Keys of boxes that are left out."""


def holds_boxes(value: Any) -> bool:
    """Tell whether a value is `{"bbox": [...], "category": [...]}` or a list of such objects, each of one box."""
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(item, Mapping) and _has_keys(item) for item in value)
    return isinstance(value, Mapping) and _has_keys(value)


def unread_keys(value: Any, reading: BoxReading) -> Iterator[tuple[str, Any]]:
    """Yield the keys of boxes in a value, with what they hold, that hold something and that nobody reads.

    Among them is a second key of the boxes, or of what they show, that says something else than the one that is read:
    a name next to a number is no such.
    """
    for item in _items(value, reading.ignored):
        for key, held in item.items():
            if not says_nothing(held) and not _is_read(key, held, item, reading):
                yield key, held


def _items(value: Any, ignored: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return the objects of a value, without the keys that are left out."""
    items = value if isinstance(value, list | tuple) else [value]
    return [
        {key: held for key, held in item.items() if key not in ignored} for item in items if isinstance(item, Mapping)
    ]


def _is_read(key: str, held: Any, item: Mapping[str, Any], reading: BoxReading) -> bool:
    if key in BOX_KEYS:
        return bool(held == _boxes(item))
    if key.casefold() in _FORMATS:
        return False
    if key not in (*CATEGORY_KEYS, _NAME_KEY) or not _has_keys(item):
        return key in _OTHER_KEYS or holds_nothing(key, held, key=True)
    said = _categories(item, reading.numbers)
    told = _are_names(said) or (reading.numbers is not None and said == item.get(reading.numbers))
    return bool(held == said) or (told and not _are_names(held))


_NAME_KEY = "ref"
"""Key of names in ms-swift's objects, which marks in texts stand for: next to a category one more name."""
_OTHER_KEYS = ("image_id", "bbox_type")
_FORMATS = ("format", "bbox_format", "box_format", "bbox_mode", "box_mode", "mode")
"""Keys that say how the numbers are meant, which --box_format says here: never passed over."""

BBOX_TYPES: Mapping[str, str] = {"real": "xyxy", "norm1": "relative_xyxy"}
"""Values of ms-swift's `bbox_type`, as formats of boxes."""


def _refuse_other_type(value: Any, reading: BoxReading) -> None:
    """Refuse boxes that say they are in another format than the one they are read in."""
    said = [item.get("bbox_type") for item in _items(value, reading.ignored)]
    for kind in (each for given in said for each in (given if isinstance(given, list | tuple) else [given])):
        style = BBOX_TYPES.get(str(kind))
        if says_nothing(kind) or style == reading.format:
            continue
        meant = f"which is known as {', '.join(BBOX_TYPES)} alone" if style is None else f"--box_format {style}"
        typed = "--ignore_keys bbox_type to leave it out of all rows" if style is None else f"--box_format {style}"
        raise DataError(
            f"Boxes in column '{reading.column}' have the bbox_type {short(kind)}, {meant}, and are read as "
            f"--box_format {reading.format}. Type {typed}."
        )


def answer_boxes(
    value: Any,
    reading: BoxReading,
    sizes: Sequence[tuple[int, int]],
    images: Sequence[ImageRef] = (),
    shown: Sequence[int] | None = None,
) -> PlacedText:
    """Return a row's boxes as the answer; no boxes give an empty list.

    Args:
        value: the column's value: an object of lists, or a list of objects. With several images each box names its
            own by `image_id`, counted from 0; the answer says which of the shown ones that is, also from 0.
        reading: format of the boxes and names of the categories.
        sizes: width and height in pixels of each of the row's images.
        images: the images.
        shown: for each of them, which in reading order it is; None where they are shown in their own order.

    Raises:
        DataError: what is given cannot be read as boxes with categories; the message names the box.
    """
    others = dict.fromkeys(key for key, _ in unread_keys(value, reading))
    if others:
        raise DataError(
            f"Boxes in column '{reading.column}' have {quoted(others)}, which is not read. Leave it out, or type "
            f"--ignore_keys {' '.join(others)} to leave it out of all rows."
        )
    _refuse_other_type(value, reading)
    found = []
    for number, (box, category, image_id) in enumerate(_triples(value, reading), start=1):
        try:
            image = which_image(image_id, len(sizes))
            numbers = read_box(box, reading.format, sizes[image])
            label = _name(category, reading.names)
        except DataError as error:
            raise DataError(
                f"Box {number} in column '{reading.column}': {error} (--box_format {reading.format}; allowed are "
                f"{', '.join(BOX_FORMATS)}.)"
            ) from error
        place = Place(numbers=numbers, size=sizes[image], image=images[image] if images else None)
        which = (("image_id", image if shown is None else shown[image]),) if len(sizes) > 1 else ()
        found.append((("bbox_2d", place), ("label", label), *which))
    return PlacedText(pieces=(PlaceList(items=tuple(found)),))


def which_image(image_id: Any, images: int, *, of_row: bool = False) -> int:
    """Return which of a row's images a box is of, from 0.

    Args:
        image_id: what the box says.
        images: how many the row has.
        of_row: whether it surely counts the row's images: in detection data with one image it may be any name.

    Raises:
        DataError: there are several and it does not say which, or there is no such image.
    """
    if images == 1 and (image_id is None or not of_row):
        return 0
    if isinstance(image_id, int) and not isinstance(image_id, bool) and 0 <= image_id < images:
        return image_id
    given = "has no image_id" if image_id is None else f"has the image_id {short(image_id)}"
    counted = f"{images} image{'' if images == 1 else 's'}"
    raise DataError(
        f"the row has {counted}, and the box {given}. Write under 'image_id' which image it is of, counted from "
        f"0 (0 to {images - 1})."
    )


def as_json(items: Sequence[Mapping[str, Any] | Box], size: tuple[int, int] | None = None) -> str | PlacedText:
    """Return an answer that lists boxes on one line, text as it is and not escaped to ASCII.

    Args:
        items: objects, of which each value that is a tuple is a box; or boxes alone.
        size: width and height of the row's only image, with which the encoder writes the boxes as its model counts;
            None where it is not known: the answer is JSON with the numbers as they are.
    """
    if size is None:
        return json.dumps(items, ensure_ascii=False)

    def placed(value: Any) -> Any:
        return Place(numbers=value, size=size) if isinstance(value, tuple) else value

    found = [
        tuple((key, placed(value)) for key, value in item.items()) if isinstance(item, Mapping) else placed(item)
        for item in items
    ]
    return PlacedText(pieces=(PlaceList(items=tuple(found)),))


def read_box(value: Any, style: str, size: tuple[int, int] | None, *, may_be_flat: bool = False) -> Box:
    """Return a box as left, top, right, bottom, rounded to pixels and clipped to the image.

    A box thinner than a pixel becomes one pixel.

    Annotators draw a little over an image's edge; what sticks out by more than that was written in another format,
    or for another image, and clipping it would hide that.

    Args:
        value: four numbers.
        style: one of `BOX_FORMATS`.
        size: the image's width and height in pixels; None where it is not known, and nothing is clipped.
        may_be_flat: whether a box without width or height is taken as it is, as text recognition gives to blanks.

    Raises:
        DataError: not four finite numbers, numbers from 0 to 1 instead of pixels or larger ones where they are
            relative, an end before its start, a box that sticks out of the image by more than 2 pixels and 1 % of the
            side, or one without width or height.
    """
    if not isinstance(value, list | tuple) or len(value) != 4 or not all(_is_finite(n) for n in value):
        raise DataError(f"{short(value)} is no box; a box is four numbers.")
    relative, order = style.startswith(RELATIVE), style.removeprefix(RELATIVE)
    if relative:
        numbers = _multiplied(value, size)
    else:
        numbers = tuple(value)
        _refuse_shares(value, size, style)
    left, top, right, bottom = _edges(numbers, order)
    if right < left or bottom < top:
        raise DataError(f"{short(value)} ends before it starts, read as {_SIDES[order]}.")
    what = f"{short(value)}, read as {_SIDES[order]} in {'shares of the sides' if relative else 'pixels'},"
    if size is not None:
        _check_inside((left, top, right, bottom), size, what)
    if (right == left or bottom == top) and not may_be_flat:
        raise DataError(f"{what} has no width or height.")
    width, height = (None, None) if size is None else size
    (left, right), (top, bottom) = _in_pixels(left, right, width), _in_pixels(top, bottom, height)
    return left, top, right, bottom


def read_point(value: Any, style: str, size: tuple[int, int]) -> tuple[int, int]:
    """Return a point as x and y, rounded to pixels and clipped to the image.

    Args:
        value: two numbers.
        style: one of `BOX_FORMATS`, of which only whether it is relative counts.
        size: the image's width and height in pixels.

    Raises:
        DataError: not two finite numbers, no shares where they are relative, or a point that lies outside the image.
    """
    if not all(_is_finite(number) for number in value):
        raise DataError(f"{short(value)} is no point; a point is two numbers.")
    numbers = _multiplied(value, size) if style.startswith(RELATIVE) else tuple(value)
    for number, side in zip(numbers, size, strict=True):
        if max(-number, number - side) > max(EDGE_PIXELS, EDGE_SHARE * side):
            raise DataError(f"{short(value)} lies outside the image of {size[0]}x{size[1]} pixels.")
    x, y = (min(max(round(number), 0), side) for number, side in zip(numbers, size, strict=True))
    return x, y


def _edges(numbers: tuple[float, ...], order: str) -> Edges:
    """Return left, top, right and bottom of four numbers in an order that `_SIDES` names."""
    first, second, third, fourth = numbers
    if order == "xyxy":
        return first, second, third, fourth
    if order == "cxcywh":
        first, second = first - third / 2, second - fourth / 2
    return first, second, first + third, second + fourth


_MOST_SHARE = 1.0 + 10 * EDGE_SHARE
"""A share above this is none, or of another image; what sticks out by less is judged like any other box."""


def _multiplied(value: Sequence[float], size: tuple[int, int] | None) -> tuple[float, ...]:
    """Return shares of the image's sides as pixels.

    Raises:
        DataError: numbers that are no shares.
    """
    assert size is not None, "relative boxes are read where the image is known"
    if not all(-EDGE_SHARE * 10 <= number <= _MOST_SHARE for number in value):
        raise DataError(f"{short(value)} has numbers outside 0 to 1, so it is in pixels, or in another unit.")
    return tuple(number * size[place % 2] for place, number in enumerate(value))


def _refuse_shares(value: Sequence[float], size: tuple[int, int] | None, style: str) -> None:
    """Refuse numbers from 0 to 1 where pixels are wanted."""
    if any(value) and all(0 <= n <= 1 for n in value) and any(isinstance(n, float) for n in value):
        by = "" if size is None else f" ({size[0]}x{size[1]})"
        raise DataError(
            f"{short(value)} has only numbers from 0 to 1, so it looks normalised; wanted are pixels. Multiply x by "
            f"the image's width and y by its height{by}. Of detection data, --box_format {RELATIVE}{style} reads it."
        )


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


def _triples(value: Any, reading: BoxReading) -> Iterator[tuple[Any, Any, Any]]:
    """Yield box, category and the image's number, from an object of lists or a list of objects."""
    column = reading.column
    if isinstance(value, list | tuple):
        for number, given in enumerate(value, start=1):
            item = next(iter(_items(given, reading.ignored)), {}) if isinstance(given, Mapping) else {}
            if not _has_keys(item):
                raise DataError(f"Box {number} in column '{column}' is {short(given)}; {_WANTED}")
            yield _boxes(item), _categories(item, reading.numbers), item.get("image_id")
        return
    value = next(iter(_items(value, reading.ignored)), None)
    if value is None or not _has_keys(value):
        raise DataError(f"Column '{column}' holds {short(value)}; {_WANTED}")
    boxes, categories = _boxes(value), _categories(value, reading.numbers)
    if not isinstance(boxes, list | tuple) or not isinstance(categories, list | tuple):
        raise DataError(f"Column '{column}' holds {short(value)}; {_WANTED}")
    if len(boxes) != len(categories):
        raise DataError(f"Column '{column}' holds {len(boxes)} boxes and {len(categories)} categories.")
    images = value.get("image_id")
    if not isinstance(images, list | tuple):
        images = [images] * len(boxes)
    if len(images) != len(boxes):
        raise DataError(f"Column '{column}' holds {len(boxes)} boxes and {len(images)} values of image_id.")
    yield from zip(boxes, categories, images, strict=True)


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
