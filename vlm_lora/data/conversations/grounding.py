"""Marks for boxes and names in a chat's texts, filled from the row's `objects` column as ms-swift's data has it.

`{"ref": ["sheep"], "bbox": [[4, 5, 20, 30]], "bbox_type": "real", "image_id": [0]}`: each `<ref-object>` stands for the
next name and each `<bbox>` for the next box, through questions and answers in order. A bbox of two numbers is a point.
Boxes are left, top, right, bottom: pixels of the image as it is stored (`real`), or shares of its sides (`norm1`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlm_lora.data.conversation import (
    ImageRef,
    Named,
    Part,
    Piece,
    Place,
    Text,
    Turn,
    images_of,
    joined_text,
    text_part,
)
from vlm_lora.data.conversations.unread import says_nothing
from vlm_lora.data.formats.rows import Row
from vlm_lora.data.images.loader import read_size
from vlm_lora.data.ocr.boxes import BBOX_TYPES, read_box, read_point, which_image
from vlm_lora.data.wording import quoted, short
from vlm_lora.errors import DataError

COLUMN = "objects"
"""The column's name; case does not count."""

_NAME, _BOX = "<ref-object>", "<bbox>"
_MARK = re.compile(f"({_NAME}|{_BOX})")
_KEYS = ("ref", "bbox", "bbox_type", "image_id")


def holds_references(value: Any) -> bool:
    """Tell whether a column's value is an object of names and boxes that marks in texts stand for."""
    found = _parsed(value)
    return isinstance(found, Mapping) and "ref" in found and set(found) <= set(_KEYS)


_WRITTEN = re.compile(
    r"</box>|<\|box_end\|>|<loc\d{4}>|bbox_2d|[\[(]\s*\d+(?:\.\d+)?(?:\s*,\s*\d+(?:\.\d+)?){3}\s*[\])]"
)


def box_written_in(texts: Iterable[str]) -> str | None:
    """Return the first thing in texts that looks like a box written out, or None."""
    found = (match for text in texts for match in _WRITTEN.finditer(text))
    return next((match[0] for match in found), None)


def fill_marks(row: Row, turns: Sequence[Turn], images: Sequence[ImageRef]) -> tuple[Turn, ...]:
    """Return a row's turns with the marks in their texts filled from its objects.

    Args:
        row: values by column.
        turns: with their images in place.
        images: those of the image columns. `image_id` counts them from 0 where the turns show no others; else it
            counts all that the turns show, in reading order.

    Raises:
        DataError: marks that are not as many as the objects, or an object that cannot be read; it is named.
    """
    texts = [part.text for turn in turns for part in turn.parts if isinstance(part, Text)]
    marks = [mark for text in texts for mark in _MARK.findall(text)]
    column = next((name for name in row if name.casefold() == COLUMN), None)
    objects = None if column is None or says_nothing(row[column]) else _parsed(row[column])
    if not isinstance(objects, Mapping) or not {"ref", "bbox"} & set(objects):
        return tuple(turns)
    if not marks and not holds_references(objects):
        return tuple(turns)
    if any(_MARK.search(turn.reasoning) for turn in turns):
        raise DataError(f"A turn's thoughts hold {_NAME} or {_BOX}, and marks are filled in texts alone.")
    shown = images_of(turns)
    pieces = _pieces(objects, str(column), marks, images if len(images) == len(shown) else shown)
    return tuple(_filled(turn, pieces) for turn in turns)


def accepted_when_filled(accepted: tuple[str, ...]) -> tuple[str, ...]:
    """Return the accepted answers of a row whose texts were filled: none beyond the answer itself.

    Raises:
        DataError: there are several, and the objects fill the marks of one.
    """
    if len(accepted) > 1 and any(_MARK.search(answer) for answer in accepted):
        raise DataError(
            f"{len(accepted)} accepted answers hold marks such as {_BOX}, and the objects fill those of one. Leave one."
        )
    return () if any(_MARK.search(answer) for answer in accepted) else accepted


def _pieces(
    objects: Mapping[str, Any], column: str, marks: Sequence[str], images: Sequence[ImageRef]
) -> Iterator[Piece]:
    """Return what the marks stand for, in their order."""
    others = [key for key, value in objects.items() if key not in _KEYS and not says_nothing(value)]
    if others:
        raise DataError(f"The column '{column}' holds {quoted(others)}, which is not read. Known are {quoted(_KEYS)}.")
    names, boxes = (_list(objects.get(key), column, key) for key in ("ref", "bbox"))
    cure = "" if marks else f" To leave the objects out of all rows, type --ignore_columns {column}."
    for mark, held, key in ((_NAME, names, "ref"), (_BOX, boxes, "bbox")):
        count = marks.count(mark)
        if count != len(held):
            raise DataError(
                f"The texts hold {count} {mark}, and '{column}' has {len(held)} under '{key}'. Each stands for the "
                f"next one in order, so they must be equally many.{cure}"
            )
    places = _places(objects, column, boxes, images)
    named = map(_name, names)
    return iter([next(named) if mark == _NAME else next(places) for mark in marks])


def _places(
    objects: Mapping[str, Any], column: str, boxes: Sequence[Any], images: Sequence[ImageRef]
) -> Iterator[Place]:
    kind = objects.get("bbox_type") or "real"
    if kind not in BBOX_TYPES:
        raise DataError(f"The bbox_type in '{column}' is {short(kind)}; known are {', '.join(BBOX_TYPES)}.")
    if boxes and not images:
        raise DataError(f"'{column}' marks places of an image, and the row has none.")
    given = objects.get("image_id")
    which = list(given) if isinstance(given, list | tuple) else [given] * len(boxes)
    if len(which) != len(boxes):
        raise DataError(f"'{column}' holds {len(boxes)} under 'bbox' and {len(which)} under 'image_id'.")
    for number, (box, image_id) in enumerate(zip(boxes, which, strict=True), start=1):
        try:
            image = images[which_image(image_id, len(images), of_row=True)]
            size = read_size(image.source)
            is_point = isinstance(box, list | tuple) and len(box) == 2
            numbers = (read_point if is_point else read_box)(box, BBOX_TYPES[kind], size)
        except DataError as error:
            how = f"(bbox_type {kind}; known are {', '.join(BBOX_TYPES)}.)"
            raise type(error)(f"bbox {number} in column '{column}': {error} {how}") from error
        yield Place(numbers=numbers, size=size, image=image)


def _name(value: Any) -> Named:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"A name under 'ref' is {short(value)}; wanted is text.")
    return Named(text=value)


def _filled(turn: Turn, pieces: Iterator[Piece]) -> Turn:
    parts: list[Part] = []
    for part in turn.parts:
        if isinstance(part, Text):
            stretches = _MARK.split(part.text)  # every second one is a mark
            parts.append(text_part(joined_text(next(pieces) if n % 2 else s for n, s in enumerate(stretches))))
        else:
            parts.append(part)
    return replace(turn, parts=tuple(parts))


def _list(value: Any, column: str, key: str) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise DataError(f"'{key}' in column '{column}' is {short(value)}; wanted is a list.")
    return value


def _parsed(value: Any) -> Any:
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
