"""Keys of a turn in addition to role and text: which are read, and which make a bad row because nothing reads them.

A mark of whether an answer is trained on is read. What belongs to an answer and that no template is given here, such as
the call of a tool or a reasoning text, is never passed over: the model would be taught an answer without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from vlm_lora.data.conversation import Role
from vlm_lora.data.wording import quoted, short
from vlm_lora.errors import DataError

MARKS = (
    *("weight", "loss", "loss_mask", "loss_weight", "loss_scale"),
    *("train", "training", "trainable", "train_on_turn", "supervised"),
)
"""Keys (case does not count) that say whether a turn is trained on: 1 or true, 0 or false."""

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

_HARMLESS = (
    *("role", "content", "from", "value", "name", "id", "type", "index", "timestamp", "created", "created_at"),
    *("date", "lang", "language", "model", "status", "finish_reason", "stop_reason", "tool_call_id", *MARKS),
)
"""Keys that hold no part of what an answer says."""


def says_nothing(value: Any) -> bool:
    """Tell whether a value is there in name only: null, false, NaN, empty, or nothing but such values inside."""
    if isinstance(value, Mapping):
        return all(says_nothing(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return all(says_nothing(inner) for inner in value)
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    return value is None or value is False or (isinstance(value, float) and math.isnan(value))


def refuse_unread_keys(turn: Mapping[str, Any]) -> None:
    """Refuse a turn with a key that is not read and holds something.

    Raises:
        DataError: names the key and what to do.
    """
    for key, value in turn.items():
        cure = next((cure for keys, cure in _CURES.items() if key.casefold() in keys), None)
        silent = value is None if key.casefold() in _OTHER_MARKS else says_nothing(value)
        if cure is not None and not silent:
            raise DataError(f"its '{key}' ({short(value)}) is not read. {cure}")


def refuse_other_text(turn: Mapping[str, Any]) -> None:
    """Refuse an answer without text whose turn holds other keys: it may lie there.

    Raises:
        DataError: names them.
    """
    others = [key for key, value in turn.items() if key.casefold() not in _HARMLESS and not says_nothing(value)]
    if others:
        raise DataError(
            f"its text is empty, and it has other keys ({quoted(others)}), which are not read. Write what it says as "
            "its text, or leave them out: the model would learn to say nothing."
        )


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
        if column in taken or says_nothing(value):
            continue
        if name in _TOOLS and (chat or _defines_functions(value)):
            cure = "Write the tools into the system turn's text, or leave the column out."
        elif name in _CALLS or name == "reasoning_content":
            cure = "Write it into the answer's text as the model is to write it, or leave the column out."
        elif chat and name in (*MARKS, *(f"{mark}s" for mark in MARKS)) and isinstance(value, list | tuple):
            cure = 'Write "weight": 0 into each turn that is not to be trained on, and leave the column out.'
        else:
            continue
        raise DataError(f"The column '{column}' ({short(value)}) belongs to the turns and is not read. {cure}")


def _defines_functions(value: Any) -> bool:
    """Tell whether a value defines functions, as a list or as text of one."""
    if isinstance(value, str):
        return '"function"' in value or ('"name"' in value and '"parameters"' in value)
    items = value if isinstance(value, list | tuple) else [value]
    return any(
        isinstance(item, Mapping)
        and ("function" in item or ("name" in item and not item.keys().isdisjoint(_OF_FUNCTIONS)))
        for item in items
    )


_OF_FUNCTIONS = ("parameters", "input_schema", "arguments", "description")
"""Keys in addition to a function's name."""
