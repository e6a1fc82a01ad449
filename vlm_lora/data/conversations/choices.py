"""Choices that a row lists apart from its question, which a mere letter as the answer means nothing without.

A row lists them in one column (`choices`, `options`), as a list, an object by letter, or text with a mark before
each, or in a column for each (`A`, `B`, `C`; `choice_a`, `choice_b`; `option_1`, `option_2`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vlm_lora.data.columns.written_lists import written_list
from vlm_lora.data.conversations.chats import texts_in
from vlm_lora.data.conversations.turn_keys import says_nothing
from vlm_lora.data.wording import quoted, short
from vlm_lora.errors import DataError

COLUMNS = (
    *("choices", "options", "candidates", "choice", "option", "answer_choices", "answer_options"),
    *("multiple_choices", "multiple_choice_options", "choice_list", "option_list", "possible_answers"),
)
"""Columns (case does not count) that list what may be answered."""

_ONE_EACH = re.compile(r"(?:choice|option|opt|answer|candidate|alternative|ending)s?[ _.-]?([a-z]|[0-9]{1,2})|([a-j])")
"""Names of columns that hold one choice each, in small letters."""

_TEXT_KEYS = ("text", "value", "content", "choice", "option", "answer", "label", "name")
"""Keys of the text in an object that is one choice; the first that is there counts."""

_MARK = re.compile(r"(?:(?<=\s)|(?<=[,;|])|^)(?:\(?[A-Za-z0-9]{1,2}[.):]|\([A-Za-z0-9]{1,2}\)|\[[A-Za-z0-9]{1,2}\])\s*")
"""What stands before a choice in a text: `A.`, `b)`, `(3)`, `[C]`."""

_EDGE = r"(?:(?<!\w)|(?!\w))"
"""No place inside a word or a number: 12 does not show the choice 2. Only of ASCII: others may write without spaces."""

_LEAD = re.compile(
    r"(?:the|correct|right|best|final|answer|answers|option|options|choice|choices|letter|is|are|and|or|\W)+"
)
"""Words around a choice's letter that say no more than it, in small letters."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What may be answered, and the columns that say so."""

    columns: tuple[str, ...]
    texts: tuple[str, ...]


def listed_choices(row: Mapping[str, Any], taken: Iterable[str]) -> Iterator[Choices]:
    """Yield what a row lists as its choices, but for what the given columns hold."""
    others = frozenset(taken)
    free = [column for column in row if column not in others]
    for column in free:
        if column.casefold() in COLUMNS and (texts := tuple(_texts_of(row[column]))):
            yield Choices(columns=(column,), texts=texts)
    groups: dict[str, dict[str, str]] = {}
    for column in free:
        found = _ONE_EACH.fullmatch(column.casefold())
        if found is not None and isinstance(row[column], str | int | float) and not says_nothing(row[column]):
            place = found.group(1) or found.group(2)
            groups.setdefault(column.casefold()[: -len(place)], {})[place] = column
    for group in groups.values():
        if len(group) > 1 and not group.keys().isdisjoint(("a", "0", "1")):
            columns = tuple(group.values())
            yield Choices(columns=columns, texts=tuple(str(row[column]) for column in columns))


def hidden(answer: str, choices: Choices, question: str) -> bool:
    """Tell whether an answer only says which of the choices is right, and the question does not show them all."""
    return _is_place(answer, choices.texts) and not all(_shows(question, text) for text in choices.texts)


def refuse_hidden(row: Mapping[str, Any], taken: Iterable[str], *, question: str, answer: str) -> None:
    """Refuse a row whose answer only says which of its choices is right, where the question does not show them.

    Args:
        row: values by column.
        taken: the columns that are read.
        question: all that is said before the answer.
        answer: what is trained on.

    Raises:
        DataError: names the columns and what to do.
    """
    for choices in listed_choices(row, taken):
        if hidden(answer, choices, question):
            raise DataError(
                f"The answer is {short(answer)}, which says one of {quoted(choices.columns)} "
                f"({short([*choices.texts])}), and the question does not show them all. Write them into the question, "
                "or the right one's text as the answer. A column of answers that is named by --response_column, or a "
                "chat by --messages_column, is trained on as it is."
            )


def _texts_of(value: Any) -> list[str]:
    """Return the choices that one column's value lists, as texts."""
    if says_nothing(value):
        return []
    if isinstance(value, str):
        return _texts_written(value)
    if isinstance(value, Mapping):
        # {"A": "cup", "B": "fork"}, or {"label": ["A", "B"], "text": ["cup", "fork"]}
        inner = next((value[key] for key in _TEXT_KEYS if isinstance(value.get(key), list | tuple)), None)
        return _texts_of(inner if inner is not None else list(value.values()))
    if not isinstance(value, list | tuple):
        return [str(value)]
    return [text for item in value if not says_nothing(item) for text in [_text_of(item)]]


def _text_of(item: Any) -> str:
    if isinstance(item, Mapping):
        item = next((item[key] for key in _TEXT_KEYS if isinstance(item.get(key), str | int | float)), None) or item
    return item if isinstance(item, str) else short(item)


def _texts_written(text: str) -> list[str]:
    """Return the choices that a text lists: JSON, a list as Python writes it, or each behind a mark or on a line."""
    items = written_list(text)
    if items is not None:
        return [item for item in items if item.strip()]
    value = _parsed(text)
    if value is not None:
        return _texts_of(value)
    marked = [piece.strip(" \t\r\n,;|") for piece in _MARK.split(text)]
    marked = [piece for piece in marked if piece]
    if len(marked) > 1 or _MARK.match(text.strip()):
        return marked
    for between in (r"[\r\n]+", r"\s*\|\s*", r"\s*;\s*", r"\s*,\s*"):
        pieces = [piece for piece in re.split(between, text.strip()) if piece.strip()]
        if len(pieces) > 1:
            return pieces
    return [text.strip()]


def _parsed(text: str) -> Any:
    """Return what a text writes as a JSON object or list; None where it is no such thing."""
    if text.strip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _shows(text: str, choice: str) -> bool:
    return re.search(f"{_EDGE}{re.escape(choice.strip())}{_EDGE}", text, re.ASCII | re.IGNORECASE) is not None


def _is_place(answer: str, choices: tuple[str, ...]) -> bool:
    """Tell whether an answer is numbers or letters of choices, however dressed (`B`, `(b)`, `Option 2.`, `A, C`)."""
    if answer.strip().casefold() in (choice.strip().casefold() for choice in choices):
        return False
    stripped = answer.strip()
    if re.fullmatch(r"[A-J]{2,}", stripped) and len(stripped) <= len(choices):
        return max(map(ord, stripped)) - ord("A") < len(choices) and list(stripped) == sorted(set(stripped))
    pieces = [piece for piece in re.split(r"[^\w.]+|\.(?!\d)|(?<!\d)\.", stripped) if piece]
    told = [piece for piece in pieces if _LEAD.fullmatch(piece.casefold()) is None]
    return bool(told) and all(
        (len(piece) == 1 and piece.isalpha()) or re.fullmatch(r"\d+(\.0*)?", piece) is not None for piece in told
    )


def asked_text(*values: Any) -> str:
    """Return all texts of what asks, each on a line: a question may be a chat."""
    return "\n".join(texts_in(list(values)))
