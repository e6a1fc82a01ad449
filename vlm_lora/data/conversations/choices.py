"""Choices that a row lists apart from its question, which a mere letter as the answer means nothing without.

In one column (`choices`, `options`), as a list, an object by letter, or text with a mark before each, or in a column
for each (`A`, `B`, `C`; `choice_a`, `choice_b`; `option_1`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vlm_lora.data.columns.names import NOTHING
from vlm_lora.data.conversations.texts import texts_in, written_list
from vlm_lora.data.conversations.unread import says_nothing
from vlm_lora.data.wording import quoted, short
from vlm_lora.errors import DataError

CHOICE_COLUMNS = (
    *("choices", "options", "candidates", "choice", "option", "answer_choices", "answer_options"),
    *("multiple_choices", "multiple_choice_options", "choice_list", "option_list", "possible_answers"),
)
"""Columns (case does not count) that list what may be answered."""

_ONE_EACH = re.compile(r"(?:choice|option|opt|answer|candidate|alternative|ending)s?[ _.-]?([a-z]|[0-9]{1,2})|([a-j])")
"""Names of columns that hold one choice each, in small letters."""

_TEXT_KEYS = ("text", "value", "content", "choice", "option", "answer", "label", "name")
"""Keys of the text in an object that is one choice; the first that is there counts."""

_CHOICE_MARK = re.compile(
    r"(?:(?<=\s)|(?<=[,;|])|^)(?:\(?[A-Za-z0-9]{1,2}[.):]|\([A-Za-z0-9]{1,2}\)|\[[A-Za-z0-9]{1,2}\])\s*"
)
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
    letters: tuple[str, ...] = ()
    """What the data calls each, where it says so; otherwise A, B, C, ... in order."""

    def lettered(self) -> Mapping[str, str]:
        """Return the texts by their letters."""
        letters = self.letters or map(chr, range(ord("A"), ord("A") + len(self.texts)))
        return dict(zip(letters, self.texts, strict=True))

    def has(self, answer: str) -> bool:
        """Tell whether an answer is one of them, or says letters that they have, however dressed (`(B)`, `A, C`).

        A choice may have its letter before it (`B. fork`) and a full stop behind.
        """
        said = {_bare(answer), _bare(_CHOICE_MARK.sub("", answer, count=1))}
        if not said.isdisjoint(map(_bare, self.texts)):
            return True
        return bool(told := _letters_of(answer)) and told <= {*self.lettered()}


def _bare(text: str) -> str:
    return text.strip().rstrip(".").casefold()


def listed_choices(row: Mapping[str, Any], taken: Iterable[str]) -> Iterator[Choices]:
    """Yield what a row lists as its choices, but for what the given columns hold."""
    others = frozenset(taken)
    free = [column for column in row if column not in others]
    for column in free:
        if column.casefold() in CHOICE_COLUMNS and (texts := tuple(_texts_of(row[column]))):
            yield Choices(columns=(column,), texts=texts, letters=_letters_in(row[column], len(texts)))
    groups: dict[str, dict[str, str]] = {}
    for column in free:
        found = _ONE_EACH.fullmatch(column.casefold())
        value = row[column]
        if found is not None and isinstance(value, str | int | float) and not says_nothing(value) and value != NOTHING:
            place = found.group(1) or found.group(2)
            groups.setdefault(column.casefold()[: -len(place)], {})[place] = column
    for group in groups.values():
        if len(group) > 1 and not group.keys().isdisjoint(("a", "0", "1")):
            columns = tuple(group[place] for place in sorted(group, key=_in_order))
            letters = tuple(place.upper() for place in sorted(group, key=_in_order) if place.isalpha())
            texts = tuple(str(row[column]) for column in columns)
            yield Choices(columns=columns, texts=texts, letters=letters if len(letters) == len(texts) else ())


def _in_order(place: str) -> tuple[int, str]:
    """Sort letters, and numbers by their size."""
    return len(place), place


def hidden(answer: str, choices: Choices, question: str) -> bool:
    """Tell whether an answer only says which of the choices is right, and the question does not show them all."""
    return _is_place(answer, choices.texts) and not shows_all(question, choices)


def shows_all(question: str, choices: Choices) -> bool:
    """Tell whether a question shows each of the choices."""
    return all(_shows(question, text) for text in choices.texts)


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
                "or the right one's text as the answer; to train on it as it is, type --ignore_columns "
                f"{' '.join(choices.columns)}"
            )


def show_choices(row: Mapping[str, Any], taken: Iterable[str], *, question: str, answer: str) -> str:
    """Return a question with the row's choices behind it, where it does not show them and the answer is one of them.

    Args:
        row: values by column.
        taken: the columns that are read.
        question: what is asked.
        answer: what is trained on: a choice's text, or letters of choices. By a number alone it is not clear which is
            meant (some data count from 0, some from 1), and the question stays as it is.

    Raises:
        DataError: the answer is none of the choices, and the question does not show them.
    """
    for choices in listed_choices(row, taken):
        if len(choices.texts) > _MOST or shows_all(question, choices):
            continue
        if not choices.has(answer) and not _is_place(answer, choices.texts):
            raise DataError(
                f"The answer {short(answer)} is none of the row's choices in {quoted(choices.columns)} "
                f"({short([*choices.texts])}). Correct one of them, or type --ignore_columns "
                f"{' '.join(choices.columns)} where they are no choices."
            )
        if choices.has(answer):
            question = "\n".join([question, *(f"{letter}. {text}" for letter, text in choices.lettered().items())])
    return question


_MOST = 26
"""Choices that have a letter each."""


def _letters_of(answer: str) -> set[str]:
    """Return the letters that an answer of nothing else says; none where it says anything else, such as a number."""
    stripped = answer.strip()
    if re.fullmatch(r"[A-J]{2,}", stripped):
        return set(stripped)
    told = _told_by(stripped)
    return {piece.upper() for piece in told} if told and all(len(p) == 1 and p.isalpha() for p in told) else set()


def _told_by(answer: str) -> list[str]:
    """Return the words and numbers of an answer that say which choice it is, without those around them."""
    pieces = re.split(r"[^\w.]+|\.(?!\d)|(?<!\d)\.", answer)
    return [piece for piece in pieces if piece and _LEAD.fullmatch(piece.casefold()) is None]


def _letters_in(value: Any, count: int) -> tuple[str, ...]:
    """Return the letters by which a value names its choices, as keys or next to them; none where it names none."""
    named: Any = ()
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, Mapping):
        inner = next((value[key] for key in _LETTER_KEYS if isinstance(value.get(key), list | tuple)), None)
        named = inner if inner is not None else list(value)
    elif isinstance(value, list | tuple) and all(isinstance(item, Mapping) for item in value):
        named = [next((item[key] for key in _LETTER_KEYS if key in item), None) for item in value]
    letters = tuple(str(name).strip().upper() for name in named if re.fullmatch(r"\s*[A-Za-z]\s*", str(name)))
    return letters if len(letters) == count == len(set(letters)) else ()


_LETTER_KEYS = ("label", "labels", "letter", "key", "id")
"""Keys of a choice's letter in an object that is one choice, or that holds lists of letters and texts."""


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
    marked = [piece.strip(" \t\r\n,;|") for piece in _CHOICE_MARK.split(text)]
    marked = [piece for piece in marked if piece]
    if len(marked) > 1 or _CHOICE_MARK.match(text.strip()):
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
    told = _told_by(stripped)
    return bool(told) and all(
        (len(piece) == 1 and piece.isalpha()) or re.fullmatch(r"\d+(\.0*)?", piece) is not None for piece in told
    )


def asked_text(*values: Any) -> str:
    """Return all texts of what asks, each on a line: a question may be a chat."""
    return "\n".join(texts_in(list(values)))
