"""Sound and video next to a row's text, which no model here is shown: such a row is refused, a mere name is not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from vlm_lora.data.conversations.chats import texts_in
from vlm_lora.data.formats.rows import Row
from vlm_lora.data.images.values import is_missing
from vlm_lora.data.wording import short
from vlm_lora.errors import DataError

COLUMNS = ("video", "videos", "audio", "audios")
"""Columns that may hold media."""

_KEYS = ("bytes", "path", "url", "array")
"""Keys of an object that hold a medium, or say where it lies."""

_MARKS = ("<video>", "<audio>")
"""What a text says where it means a medium."""

_PLACE = re.compile(
    r"[a-z][a-z0-9+.-]*://.*|data:(?:audio|video)/.*|.*\."
    r"(?:mp4|m4v|mov|avi|mkv|webm|mpe?g|wmv|flv|3gp|ogv|wav|mp3|flac|ogg|oga|opus|m4a|aac|wma|aiff?)",
    re.IGNORECASE | re.DOTALL,
)
"""A URL, or a path that ends as files of film and sound do."""


def refuse_media(row: Row, text_columns: Iterable[str]) -> None:
    """Refuse a row with sound or video: without it the question has no sense.

    Args:
        row: values by column.
        text_columns: the columns that are read; in one of these names they hold text, and their texts may speak of
            media.

    Raises:
        DataError: names the column.
    """
    read = frozenset(text_columns)
    for column, value in row.items():
        if column.casefold() not in COLUMNS or column in read or _says_nothing(value):
            continue
        texts = texts_in([row.get(c) for c in read])
        if _is_medium(value) or any(mark in text for text in texts for mark in _MARKS):
            text = short(value) if isinstance(value, str | int | float) else f"a value of type {type(value).__name__}"
            raise DataError(
                f"The column '{column}' holds {text}; sound and video are not read. Leave the row out, or the "
                "column where the row does without it."
            )


def _says_nothing(value: Any) -> bool:
    return is_missing(value) or (isinstance(value, list | tuple) and all(map(is_missing, value)))


def _is_medium(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(not is_missing(value.get(key)) for key in _KEYS)
    if isinstance(value, list | tuple):
        return any(map(_is_medium, value))
    if isinstance(value, str):
        return _PLACE.fullmatch(value.strip()) is not None
    return isinstance(value, bytes | bytearray | memoryview)
