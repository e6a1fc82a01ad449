"""Texts and answers as a row's columns hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vlm_lora.data.columns.answers import AnswerReading
from vlm_lora.data.columns.written_lists import written_list
from vlm_lora.data.wording import short
from vlm_lora.errors import DataError


def check_unicode(text: str, what: str) -> None:
    """Refuse what JSON can escape and no encoding can write: tokenizers crash on it.

    Raises:
        DataError: names the character.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} holds half of a surrogate pair at character {error.start} ({text[error.start]!a}), which is no "
            "text. Write the whole character, or leave it out."
        ) from error


def read_text(value: Any, what: str) -> str:
    """Return a text or a number as text.

    Args:
        value: what the row holds.
        what: what messages call it.

    Raises:
        DataError: nothing, or neither text nor a number.
    """
    if isinstance(value, str):
        return value
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    if missing:
        raise DataError(f'There is no value for {what}. JSON writes an empty text as ""; CSV has none.')
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    kind = "true or false" if isinstance(value, bool) else f"of type {type(value).__name__}"
    raise DataError(f"The value of {what} is {kind}. It must be text or a number.")


def read_answers(value: Any, column: str, reading: AnswerReading) -> tuple[str, tuple[str, ...]]:
    """Return the answer to train on and, where the data lists them, all that are accepted.

    Raises:
        DataError: there is none, it is no text, or it is a number without a name where numbers have names.
    """
    what = f"the response ('{column}')"
    if reading.written and isinstance(value, str):
        items = written_list(value)
        if items is None:
            raise DataError(
                f"The cell of {what} is {short(value)}, and most of the first rows' cells are lists of texts. "
                'Write it as one: ["..."].'
            )
        value = items
    if not isinstance(value, list | tuple):
        return _read_answer(value, what, reading.names), ()
    if not value:
        raise DataError(f"The list of accepted answers in '{column}' is empty.")
    given = (item.get("answer") if isinstance(item, Mapping) else item for item in value)
    accepted = tuple(_read_answer(item, what, reading.names) for item in given)
    for answer in accepted:
        check_unicode(answer, what)
    return accepted[0], accepted


def _read_answer(value: Any, what: str, names: tuple[str, ...]) -> str:
    if not names or not isinstance(value, int) or isinstance(value, bool):
        return read_text(value, what)
    if not 0 <= value < len(names):
        raise DataError(f"The value of {what} is {value}, not one of the {len(names)} names (0 to {len(names) - 1}).")
    return names[value]
