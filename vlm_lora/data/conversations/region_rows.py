"""Rows whose answer is made from what was marked in the image: boxes, or a page of OCR data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlm_lora.data.conversation import FIND, BoxForm, ImageRef, PlacedText, Turn, images_of, text_part
from vlm_lora.data.conversations.image_places import Draft, UserText, place_images
from vlm_lora.data.conversations.texts import Question, question_parts, read_question
from vlm_lora.data.conversations.turns import read_text
from vlm_lora.data.images.loader import read_size
from vlm_lora.data.ocr.boxes import BoxReading, answer_boxes, check_size
from vlm_lora.data.ocr.pages import read_page
from vlm_lora.data.ocr.task_answers import Draw, PageReading, clipped, with_blanks
from vlm_lora.data.ocr.task_sampling import Ask
from vlm_lora.errors import DataError

SIZE_COLUMNS = ("image", "image_info")
"""Columns that may hold `{"width", "height"}` of the image, in addition to columns of these two names."""

_WHOLE = re.compile(r"[0-9]{1,9}(\.0*)?")


SIDES = ("width", "height")
"""Columns that may hold the sides of the image."""


def convert_boxes(row: Mapping[str, Any], reading: BoxReading, images: Sequence[ImageRef]) -> tuple[Turn, ...]:
    """Return the question and the boxes as two turns.

    Raises:
        DataError: no image, an image of another size than the row says, or broken boxes, or no question in the column
            that asks it.
    """
    if not images:
        raise DataError(f"'{reading.column}' marks an image, and the row has none.")
    sizes = [read_size(image.source) for image in images]
    for size in sizes:
        check_size(_given_size(row), size)
    if reading.prompt is None:
        find = f"{FIND}s. " if len(images) > 1 else f"{FIND}. "
        own = PlacedText(pieces=(find, BoxForm(images=len(images))))
        question = own if reading.question is None else read_question(reading.question)
        return _turns(images, question, answer_boxes(row.get(reading.column), reading, sizes, images))
    asked = UserText(text=read_text(row.get(reading.prompt), f"the prompt ('{reading.prompt}')"))
    turns = place_images([Draft(role="user", parts=[asked])], images)
    order = [id(image.source) for image in images_of(turns)]  # numbered marks may show them in another order
    shown = [order.index(id(image.source)) for image in images]
    answer = answer_boxes(row.get(reading.column), reading, sizes, images, shown)
    return (*turns, Turn(role="assistant", parts=(answer,)))


def convert_page(
    row: Mapping[str, Any], reading: PageReading, images: Sequence[ImageRef], ask: Ask, number: int
) -> list[tuple[Turn, ...]]:
    """Return what is asked about a page and answered, each different question as two turns.

    Args:
        row: the values.
        reading: how the page is read.
        images: its image.
        ask: what is asked.
        number: the row's position among all rows of its files, which draws depend on.

    Raises:
        DataError: not exactly one image, an image of another size than the data says, a broken page, or one that
            none of the tasks can be asked about.
    """
    size = _size_of_only(images, reading.column)
    page = read_page(row.get(reading.column), reading.ignored)
    check_size((_number(page.size[0]), _number(page.size[1])), size)
    check_size(_given_size(row), size)
    page = with_blanks(clipped(page, size), size, Draw(row=number).generator(reading.seed))
    page = page if reading.placed else replace(page, shown=None)
    pairs = dict.fromkeys((asked.question, asked.answer) for asked in ask(page, reading, number))
    return [_turns(images, question, answer) for question, answer in pairs]


def _turns(images: Sequence[ImageRef], question: Question, answer: str | PlacedText) -> tuple[Turn, ...]:
    user = Turn(role="user", parts=question_parts(question, images))
    return user, Turn(role="assistant", parts=(text_part(answer),))


def _size_of_only(images: Sequence[ImageRef], column: str) -> tuple[int, int]:
    if len(images) != 1:
        raise DataError(f"'{column}' marks one image, and the row has {len(images)}.")
    return read_size(images[0].source)


def _given_size(row: Mapping[str, Any]) -> tuple[Any, Any]:
    structs = [row[name] for name in SIZE_COLUMNS if isinstance(row.get(name), Mapping)]
    found = next((value for value in structs if value.get("width") is not None), row)
    return _number(found.get("width")), _number(found.get("height"))


def _number(value: Any) -> int | None:
    """Return a whole number, also from a CSV's text or written as 640.0, as tables do; None for anything else."""
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        return int(float(value))
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
