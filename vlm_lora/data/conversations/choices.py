"""Choices that a row lists apart from its question, which a mere letter as the answer means nothing without.

In one column (`choices`, `options`), as a list, an object by letter, or text with a mark before each, or in a column
for each (`A`, `B`, `C`; `choice_a`, `choice_b`; `option_1`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlm_lora.data.columns.names import NOTHING
from vlm_lora.data.conversations.choice_values import (
    ONE_EACH,
    Listed,
    filled,
    is_empty,
    letters_for,
    place_choices,
    read_choices,
)
from vlm_lora.data.conversations.texts import texts_in
from vlm_lora.data.wording import quoted, short
from vlm_lora.errors import DataError

CHOICE_COLUMNS = (
    *("choices", "options", "candidates", "choice", "option", "answer_choices", "answer_options"),
    *("multiple_choices", "multiple_choice_options", "choice_list", "option_list", "possible_answers"),
)
"""Columns (case does not count) that list what may be answered."""

_CHOICE_MARK = re.compile(
    r"\s*(?:\(?(?:[A-Za-z]|[0-9]{1,2}(?!\.\d))[.):]|\([A-Za-z0-9]{1,2}\)|\[[A-Za-z0-9]{1,2}\])\s*"
)
"""What may stand before a choice in an answer: `A.`, `b)`, `(3)`, `[C]`."""

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
    listed: Listed
    """What they list, by place."""

    @property
    def texts(self) -> list[str]:
        """All texts, without empty places."""
        return filled(self.listed.texts)

    def letters(self) -> tuple[str, ...]:
        """Return the letters of all places, empty ones as well."""
        return self.listed.letters or letters_for(len(self.listed.texts))

    def lettered(self) -> Mapping[str, str]:
        """Return the texts by their letters."""
        places = zip(self.letters(), self.listed.texts, strict=True)
        return {letter: text for letter, text in places if text}

    def has(self, answer: str) -> bool:
        """Tell whether an answer is one of them, or says letters that they have, however dressed (`(B)`, `A, C`).

        A choice may have its letter before it (`B. fork`) and a full stop behind.
        """
        said = {bare(answer), bare(_CHOICE_MARK.sub("", answer, count=1))}
        if not said.isdisjoint(map(bare, self.texts)):
            return True
        return bool(told := _letters_of(answer)) and told <= {*self.lettered()}


def bare(text: str) -> str:
    """Return a text as it is compared: without case, a full stop behind, and the point of a whole number (14.0)."""
    plain = text.strip().rstrip(".").casefold()
    return re.sub(r"(-?[0-9]+)\.0+", r"\1", plain) if re.fullmatch(r"-?[0-9]+\.0+", plain) else plain


def listed_choices(row: Mapping[str, Any], taken: Iterable[str], ignored: Collection[str] = ()) -> Iterator[Choices]:
    """Yield what a row lists as its choices, but for what the given columns hold.

    Args:
        row: values by column.
        taken: the columns that are read.
        ignored: keys of objects that are left out.
    """
    others = frozenset(taken)
    free = [column for column in row if column not in others]
    for column in free:
        if column.casefold() in CHOICE_COLUMNS:
            listed = read_choices(row[column], ignored)
            if listed.texts or listed.refused:
                yield Choices(columns=(column,), listed=listed)
    groups: dict[str, dict[str, str]] = {}
    for column in free:
        found = ONE_EACH.fullmatch(column.casefold())
        if found is not None and (row[column] is None or isinstance(row[column], str | int | float)):
            stem, place = (part for part in found.groups() if part is not None)
            groups.setdefault(stem, {})[place] = column
    for group in groups.values():
        values = {place: row[column] for place, column in group.items() if row[column] != NOTHING}
        there = {place: value for place, value in values.items() if not is_empty(value)}
        if len(there) > 1 and not there.keys().isdisjoint(("a", "0", "1")):
            places = sorted(values, key=_in_order)
            listed = place_choices([values[place] for place in places], places)
            # Columns that count from 1 may have answers that count from 0.
            listed = replace(listed, first=None)
            yield Choices(columns=tuple(group[place] for place in places if place in there), listed=listed)


def _in_order(place: str) -> tuple[int, str]:
    """Sort letters, and numbers by their size."""
    return len(place), place


def hidden(answer: str, choices: Choices, question: str) -> bool:
    """Tell whether an answer only says which of the choices is right, and the question does not show them all."""
    return _is_place(answer, choices.texts) and not shows_all(question, choices)


def shows_all(question: str, choices: Choices) -> bool:
    """Tell whether a question shows each of the choices."""
    return all(_shows(question, text) for text in choices.texts)


def refuse_hidden(
    row: Mapping[str, Any], taken: Iterable[str], *, question: str, answer: str, ignored: Collection[str] = ()
) -> None:
    """Refuse a row whose answer only says which of its choices is right, where the question does not show them.

    Args:
        row: values by column.
        taken: the columns that are read.
        question: all that is said before the answer.
        answer: what is trained on.
        ignored: keys of objects that are left out.

    Raises:
        DataError: names the columns and what to do.
    """
    for choices in listed_choices(row, taken, ignored):
        if choices.listed.refused and _is_place(answer, choices.texts):
            _refuse_unreadable(choices, question)
        if hidden(answer, choices, question):
            raise DataError(
                f"The answer is {short(answer)}, which says one of {quoted(choices.columns)} "
                f"({short(choices.texts)}), and the question does not show them all. Write them into the question, "
                "or the right one's text as the answer; to train on it as it is, type --ignore_columns "
                f"{' '.join(choices.columns)}"
            )


def show_choices(
    row: Mapping[str, Any], taken: Iterable[str], *, question: str, answer: str, ignored: Collection[str] = ()
) -> str:
    """Return a question with the row's choices behind it, where it does not show them and the answer is one of them.

    Args:
        row: values by column.
        taken: the columns that are read.
        question: what is asked.
        answer: what is trained on: a choice's text, or letters of choices. By a number alone it is not clear which is
            meant (some data count from 0, some from 1), and the question stays as it is.
        ignored: keys of objects that are left out.

    Raises:
        DataError: the question does not show the choices, and the answer is none of them, or they cannot be shown.
    """
    for choices in listed_choices(row, taken, ignored):
        _refuse_unreadable(choices, question)
        if len(choices.listed.texts) > _MOST or shows_all(question, choices):
            continue
        # A letter that no choice has is no place; a number alone may count from 0 or from 1.
        if not choices.has(answer) and (_letters_of(answer) or not _is_place(answer, choices.texts)):
            raise DataError(
                f"The answer {short(answer)} is none of the row's choices in {quoted(choices.columns)} "
                f"({short(choices.texts)}). Correct one of them, or type --ignore_columns "
                f"{' '.join(choices.columns)} where they are no choices."
            )
        if choices.has(answer):
            question = "\n".join([question, *(f"{letter}. {text}" for letter, text in choices.lettered().items())])
    return question


def refuse_unshown(
    row: Mapping[str, Any], taken: Iterable[str], *, question: str, count: int, ignored: Collection[str] = ()
) -> None:
    """Refuse a row of several questions with choices that they do not show: whose they are is not known.

    Args:
        row: values by column.
        taken: the columns that are read.
        question: all questions.
        count: how many they are.
        ignored: keys of objects that are left out.

    Raises:
        DataError: names the columns and what to do.
    """
    for choices in listed_choices(row, taken, ignored):
        if not (choices.texts and shows_all(question, choices)):
            raise DataError(
                f"The row has {count} questions, and choices in {quoted(choices.columns)} ({short(choices.texts)}) "
                "that they do not show. Write them into the question that they belong to, or type --ignore_columns "
                f"{' '.join(choices.columns)} to leave them out."
            )


def _refuse_unreadable(choices: Choices, question: str) -> None:
    """Refuse choices that cannot be shown as they are meant, where the question does not show them itself."""
    if choices.listed.refused and not (choices.texts and shows_all(question, choices)):
        raise DataError(
            f"The row's choices in {quoted(choices.columns)} ({short(choices.texts)}) are not read: "
            f"{choices.listed.refused}. Write them into the question as texts, or type --ignore_columns "
            f"{' '.join(choices.columns)} to leave them out."
        )


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


def _shows(text: str, choice: str) -> bool:
    return re.search(f"{_EDGE}{re.escape(choice.strip())}{_EDGE}", text, re.ASCII | re.IGNORECASE) is not None


def _is_place(answer: str, choices: Sequence[str]) -> bool:
    """Tell whether an answer is numbers or letters of choices, however dressed (`B`, `(b)`, `Option 2.`, `A, C`)."""
    if bare(answer) in map(bare, choices):
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
