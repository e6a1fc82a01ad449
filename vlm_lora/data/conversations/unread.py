"""What a row holds and training would not read: such a row is refused, so that nothing in it is passed over.

1. Sound and video next to a row's text, which no model here is shown. A mere name of a file is refused nowhere.
2. Keys of a turn in addition to role and text. A mark of whether an answer is trained on is read, and so are
   an answer's thoughts and calls (`tools.py`). What else belongs to a turn and is not read is refused.
3. Marks in a text that stand for boxes or names of another column and that nothing has filled in (`grounding`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from vlm_lora.data.columns.harmless import holds_nothing
from vlm_lora.data.columns.names import IMAGE_PARTS, MARKS, TEXT_PARTS, TURN_KEYS
from vlm_lora.data.conversation import Role, Turn
from vlm_lora.data.conversations.part_keys import HOLDERS, keys_of
from vlm_lora.data.conversations.texts import texts_in
from vlm_lora.data.formats.rows import Row
from vlm_lora.data.images.values import is_missing
from vlm_lora.data.wording import joined, quoted, short
from vlm_lora.errors import DataError

MEDIA_COLUMNS = ("video", "videos", "audio", "audios")
"""Columns that may hold media."""

_MEDIA_KEYS = ("bytes", "path", "url", "array")
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
        if column.casefold() not in MEDIA_COLUMNS or column in read or _says_nothing(value):
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
        return any(not is_missing(value.get(key)) for key in _MEDIA_KEYS)
    if isinstance(value, list | tuple):
        return any(map(_is_medium, value))
    if isinstance(value, str):
        return _PLACE.fullmatch(value.strip()) is not None
    return isinstance(value, bytes | bytearray | memoryview)


_OTHER_MARKS = ("mask", "masked", "train_detail", "training_detail")
"""Keys that say so in ways that differ between tools, or for parts of a text."""

_CALLS = ("tool_calls", "tool_call", "function_call")
_REASONING = ("reasoning_content", "reasoning", "reasoning_details", "thinking", "thought", "thoughts", "refusal")
_IMAGES = ("image", "images", "image_url", "image_urls", "image_path", "picture", "pictures")
_MEDIA = ("video", "videos", "audio", "audios")
_TOOLS = ("tools", "functions")

_CURES: Mapping[tuple[str, ...], str] = {
    (*_CALLS, *_REASONING): "Write it into the turn's text as the model is to write it, or leave the key out.",
    _TOOLS: "Write the tools into the system turn's text, or leave the key out.",
    _IMAGES: 'Write it as a part of the turn: [{"type": "image", "image": ...}, {"type": "text", "text": ...}].',
    _MEDIA: "Sound and video are not read: leave the row out, or the key where the row does without it.",
    _OTHER_MARKS: 'Write "weight": 0 into each answer that is not to be trained on.',
}
"""Keys of a turn that are not read, and what to do about them."""

_REFUSED_IN_PARTS = frozenset(["images", "image_urls", "file", "file_id", "video", "audio", "thought", *MARKS])
"""Keys of a part for which the one who reads it has a message, and marks (of thoughts as well), which are read."""

_TYPES = (None, "", *TEXT_PARTS, *IMAGE_PARTS)
"""Types of parts with a text or an image."""


def says_nothing(value: Any) -> bool:
    """Tell whether a value is there in name only: null, false, NaN, empty, or nothing but such values inside."""
    if isinstance(value, Mapping):
        return all(says_nothing(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return all(says_nothing(inner) for inner in value)
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    return value is None or value is False or (isinstance(value, float) and math.isnan(value))


def is_blank(value: Any) -> bool:
    """Tell whether a value is null, NaN or empty, or holds nothing but such values; false is a value."""
    if isinstance(value, Mapping):
        return all(is_blank(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return all(is_blank(inner) for inner in value)
    return value is not False and says_nothing(value)


def refuse_unread_keys(turn: Mapping[str, Any], read: Collection[str] = ()) -> None:
    """Refuse a turn with a key that is not read and holds something.

    Args:
        turn: as the row holds it.
        read: keys that are read, in small letters.

    Raises:
        DataError: names the key and what to do.
    """
    for key, value in turn.items():
        cure = next((cure for keys, cure in _CURES.items() if key.casefold() in keys), None)
        silent = value is None if key.casefold() in _OTHER_MARKS else says_nothing(value)
        if cure is not None and not silent and key.casefold() not in read:
            raise DataError(f"its '{key}' ({short(value)}) is not read. {cure}")
    for key, value in unknown_keys(turn):
        raise DataError(
            f"its '{key}' ({short(value)}) is not read. Leave it out, or type --ignore_keys {key} to leave it out of "
            "all rows."
        )


def unknown_keys(turn: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield keys of a turn and of its parts that hold something, with it, which nobody reads.

    Those that `refuse_unread_keys` knows what to do about are not among them.
    """
    used = [keys for keys in TURN_KEYS if {*keys} <= turn.keys() and turn[keys[0]] is not None]
    texts = [turn[text] for _, text in used]
    # A text under another style's key that says the same is no second one.
    same = {text for _, text in TURN_KEYS if text in turn and turn[text] in texts}
    known = {key for keys in _CURES for key in keys}
    yield from _left_over(turn, frozenset({"role", "from", *MARKS, *same, *known}))
    for content in (turn.get(key) for _, key in TURN_KEYS):
        for part in content if isinstance(content, list | tuple) else [content]:
            # Anything else is no part that is read, but makes a bad row.
            if isinstance(part, Mapping) and part.keys() & HOLDERS and part.get("type") in _TYPES:
                yield from _left_over(part, keys_of(part).read | _REFUSED_IN_PARTS, HOLDERS)


def _left_over(
    given: Mapping[str, Any], read: frozenset[str], telling: frozenset[str] = frozenset()
) -> Iterator[tuple[str, Any]]:
    """Yield what is not read; `telling` are keys that hold something whatever their names say elsewhere."""
    for key, value in given.items():
        harmless = key not in telling and holds_nothing(key, value, key=True)
        if not {key, key.casefold()} & read and not harmless and not is_blank(value):
            yield key, value


def read_mark(given: Mapping[str, Any], role: Role) -> bool | None:
    """Return whether a turn, or a part of one, is marked to be trained on; None where it has no mark.

    Raises:
        DataError: a mark that is neither on nor off, marks that contradict each other, or one that asks to train on
            what is no answer.
    """
    marks = {key: value for key, value in given.items() if key.casefold() in MARKS and value is not None}
    for key, value in marks.items():
        if isinstance(value, str | bytes) or value not in (0, 1):
            raise DataError(
                f"its '{key}' is {short(value)}. A mark of what is trained on is 0 or 1, or false or true; shares "
                "are not read."
            )
    if len({bool(value) for value in marks.values()}) > 1:
        raise DataError(f"its marks {quoted(marks)} say both that it is trained on and that it is not. Leave one out.")
    wanted = next((bool(value) for value in marks.values()), None)
    if wanted and role != "assistant":
        raise DataError(
            f"its '{next(iter(marks))}' asks to train on it, and only answers are trained on. Leave the mark out "
            "there, or set it to 0."
        )
    return wanted


def refuse_unread_columns(row: Mapping[str, Any], read: Iterable[str], *, chat: bool) -> None:
    """Refuse a row with a column that belongs to its turns and is not read: tools, calls, reasoning, marks of turns.

    Args:
        row: values by column.
        read: the columns that are read.
        chat: whether the row is a chat: in addition to a question and an answer `tools` may be anything that names no
            functions, and in addition to an answer a column of reasons says nothing about what the model is to write.

    Raises:
        DataError: names the column and what to do.
    """
    taken = frozenset(read)
    for column, value in row.items():
        name = column.casefold()
        if column in taken or is_blank(value) or (value is False and name not in MARKS):
            continue
        if name in _TOOLS and (chat or defines_functions(value)):
            cure = "Write the tools into the system turn's text, or leave the column out."
        elif name in _CALLS or name == "reasoning_content":
            cure = "Write it into the answer's text as the model is to write it, or leave the column out."
        elif name in MARKS and value in (0, False):
            cure = "Leave the row out, or the column where it says something else."
        elif chat and name in (*MARKS, *(f"{mark}s" for mark in MARKS)) and isinstance(value, list | tuple):
            cure = 'Write "weight": 0 into each turn that is not to be trained on, and leave the column out.'
        else:
            continue
        raise DataError(f"The column '{column}' ({short(value)}) belongs to the turns and is not read. {cure}")


def is_refused(row: Mapping[str, Any], column: str, read: Iterable[str], *, chat: bool) -> bool:
    """Tell whether a row's column has a message of its own, which says what to do about it."""
    alone = {column: row[column]}
    try:
        refuse_media({**row, **alone}, read)
        refuse_unread_columns(alone, read, chat=chat)
    except DataError:
        return True
    return column.casefold() in _BOX_COLUMNS and _holds_open_marks(row, read)


def _holds_open_marks(row: Mapping[str, Any], read: Iterable[str]) -> bool:
    """Tell whether a row's texts have marks for boxes that `refuse_box_marks` refuses: none that objects fill."""
    columns = [*read]
    if any(column.casefold() == _FILLING for column in columns):
        return False
    texts = texts_in([row.get(column) for column in columns])
    return any(f"</{mark}>" not in text for text in texts for mark in BOX_MARK.findall(text))


def defines_functions(value: Any) -> bool:
    """Tell whether a value defines functions, as a list or as text of one."""
    if isinstance(value, str):
        text = value.replace("'", '"')  # as Python writes it
        return '"function"' in text or ('"name"' in text and '"parameters"' in text)
    items = value if isinstance(value, list | tuple) else [value]
    return any(
        defines_functions(item)
        if isinstance(item, str)
        else isinstance(item, Mapping)
        and ("function" in item or ("name" in item and not item.keys().isdisjoint(_OF_FUNCTIONS)))
        for item in items
    )


_OF_FUNCTIONS = ("parameters", "input_schema", "arguments", "description")
"""Keys in addition to a function's name."""


BOX_MARK = re.compile(r"<(bbox|ref-object|ref_object|box|ref|quad|polygon|point)>")
"""What stands in a text for a box, or for the name of what it shows."""

_FILLING = "objects"
_BOX_COLUMNS = (_FILLING, "object", "grounding", "bbox", "bboxes", "box", "boxes", "ref", "refs", "regions", "points")
"""Columns (case does not count) that hold what such marks stand for."""


def refuse_box_marks(row: Mapping[str, Any], turns: Sequence[Turn]) -> None:
    """Refuse a row whose texts have marks for boxes, rather than train on the marks as they are.

    A mark with its end (`<box>` and `</box>`) is a model's own way to write boxes and stays text, and so does any
    mark in a longer text of a row without such a column.

    Args:
        row: values by column.
        turns: what became of it.

    Raises:
        DataError: names the marks and the column.
    """
    held = [column for column, value in row.items() if column.casefold() in _BOX_COLUMNS and not says_nothing(value)]
    for number, turn in enumerate(turns, start=1):
        marks = [mark for mark in dict.fromkeys(BOX_MARK.findall(turn.text)) if f"</{mark}>" not in turn.text]
        alone = turn.role == "assistant" and not re.search(r"\w", BOX_MARK.sub("", turn.text))
        if marks and (held or alone):
            what = f"the column {quoted(held)}" if held else "a column such as 'objects', which the row does not have"
            raise DataError(
                f"Turn {number} ({turn.role}) holds {joined(f'<{mark}>' for mark in marks)}, which stands for a "
                f"value of {what}; such marks are filled in from a column 'objects' of "
                '{"ref": [...], "bbox": [...]} alone. Write the boxes or names themselves into the text, as the model '
                "is to read or write them."
            )
