"""Public data in forms that are no questions and answers, known by their columns: refused by name, with what to do.

Without this such data ends in "no column could be taken as the response", or, worse, is read without what it is about:
a question about a region without the region.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlm_lora.data.columns.annotations import Marked
from vlm_lora.data.columns.search import ColumnSearch
from vlm_lora.data.conversations.texts import texts_in
from vlm_lora.data.conversations.unread import BOX_MARK
from vlm_lora.errors import DataError

_BOX_COLUMNS = ("bbox", "box", "bounding_box", "bboxes", "boxes", "bounding_boxes")
_TAG_COLUMNS = ("ner_tags", "pos_tags", "ner_labels")
_PIECES = ("structure", "cells")
_NESTED: Mapping[str, str] = {
    "qas": '{"image": ..., "question": ..., "answer": ...}',
    "regions": '{"image": ..., "caption": ...}, or one with its boxes as {"image": ..., "objects": ...}',
}
"""Visual Genome's columns of several things about one image, and a row that is read."""


def refuse_other_forms(search: ColumnSearch) -> None:
    """Refuse data of another form than this project trains on; called where no flag says what a column is.

    Raises:
        DataError: names the columns, what they hold and what to do.
    """
    chats = [column for column in search.columns if search.has_chat(column)]
    if _named(search, "chosen") and _named(search, "rejected"):
        _refuse(search, _preferences(search, chats))
    _refuse(search, _nested(search))
    marked = Marked.among(search.columns, search.sample)
    if not (chats or marked.boxes or marked.pages):
        for form in _FORMS:
            _refuse(search, form(search))


def _refuse(search: ColumnSearch, reason: str | None) -> None:
    if reason is not None:
        raise DataError(f"{search.where}: {reason}")


def _preferences(search: ColumnSearch, chats: Sequence[str]) -> str:
    chosen, rejected = (_named(search, name) for name in ("chosen", "rejected"))
    flag = "--messages_column" if chosen in chats and not search.named("prompt") else "--response_column"
    return (
        f"'{chosen}' and '{rejected}' hold answers of which one is preferred, and training here is on "
        f"one answer. Type {flag} {chosen} --ignore_columns {rejected} to train on the preferred one."
    )


def _tags(search: ColumnSearch) -> str | None:
    column = next(
        (c for c in search.columns if c.casefold() in _TAG_COLUMNS and search.mostly_holds(c, _is_list)), None
    )
    if column is None or (search.named("prompt") and search.named("response")):
        return None
    return (
        f"'{column}' holds a tag for each word, as for models that classify words, and no column holds an answer in "
        'words. Write one, for example {"image": ..., "question": "Read the form as JSON.", "answer": "{\\"date\\": '
        '\\"1/8/93\\"}"}.'
    )


def _boxes(search: ColumnSearch) -> str | None:
    """Refuse boxes next to a question, an answer or a caption: these are about the box, and do not show it."""
    column = next((c for c in search.columns if c.casefold() in _BOX_COLUMNS and search.mostly_holds(c, _is_box)), None)
    if column is None:
        return None
    prompts, responses = search.named("prompt"), search.named("response")
    texts = texts_in([row.get(c) for row in search.sample for c in (*prompts, *responses)])
    if any(map(BOX_MARK.search, texts)):
        return None  # They say where boxes are meant: what becomes of them is said row by row.
    return (
        f"'{column}' holds a box for each row, and nothing else of the row would show where it is. Write it into the "
        'question or the answer as text, or as {"objects": {"bbox": [[...]], "category": ["..."]}} where the boxes are '
        f"to be the answer. To train without it, type --ignore_columns {column}"
    )


def _points(search: ColumnSearch) -> str | None:
    column = next((c for c in search.columns if c.casefold() == "points" and search.mostly_holds(c, _are_points)), None)
    if column is None or (search.named("prompt") and search.named("response")):
        return None
    return (
        f"'{column}' holds points in the image, which are not read. Write them into an answer as the model is to write "
        'them, for example {"image": ..., "question": "Point at the bars.", "answer": "[[10, 74]]"}.'
    )


def _pieces(search: ColumnSearch) -> str | None:
    column = next((c for c in search.columns if c.casefold() == "html" and search.mostly_holds(c, _in_pieces)), None)
    if column is None or (search.named("prompt") and search.named("response")):
        return None
    return (
        f"'{column}' holds a table in pieces: the tokens of its HTML, and what stands in its cells. Join them to one "
        'text, for example {"image": ..., "question": "Write the table as HTML.", "answer": "<table>...</table>"}.'
    )


def _nested(search: ColumnSearch) -> str | None:
    for column in search.columns:
        wanted = _NESTED.get(column.casefold())
        is_chat = search.has_chat(column) and search.named("image")
        if wanted is not None and search.mostly_holds(column, _is_list) and not is_chat and not search.named("prompt"):
            lacks = "" if search.named("image") else ", and no image"
            return f"'{column}' holds several questions or texts for each row{lacks}. Write a row for each: {wanted}."
    return None


def _judged(search: ColumnSearch) -> str | None:
    columns = [_named(search, name) for name in ("sentence", "left_url", "right_url")]
    if not all(columns):
        return None
    sentence, left, right = columns
    return (
        f"'{sentence}' is judged over the images '{left}' and '{right}', and is no question. Download the images and "
        'write {"left_image": "....png", "right_image": "....png", "question": "... True or false?", "answer": "True"}.'
    )


_FORMS: tuple[Callable[[ColumnSearch], str | None], ...] = (_tags, _boxes, _points, _pieces, _judged)


def _named(search: ColumnSearch, name: str) -> str:
    return next((column for column in search.columns if column.casefold() == name), "")


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_box(value: Any) -> bool:
    """Tell whether a value is four numbers, or a list of fours."""
    if not isinstance(value, list | tuple) or not value:
        return False
    if all(isinstance(item, list | tuple) for item in value):
        return all(map(_is_box, value))
    return len(value) == 4 and all(isinstance(n, int | float) and not isinstance(n, bool) for n in value)


def _are_points(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(p, Mapping) and {"x", "y"} <= p.keys() for p in value)


def _in_pieces(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(key in value for key in _PIECES)
    return isinstance(value, list | tuple) and all(isinstance(token, str) for token in value)
