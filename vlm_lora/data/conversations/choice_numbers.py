"""Answers that say by a number which of a row's choices is right: where a data set's numbers start, and their letters.

A number alone may count from 0 or from 1. A data set tells which where one of its first rows has the number 0, or the
number of its choices; where none does, it is not guessed. Choices in an object by number (`{"0": ..., "1": ...}`) say
it themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlm_lora.data.conversations.choices import Choices, bare, listed_choices, shows_all
from vlm_lora.data.images.values import is_missing
from vlm_lora.errors import DataError

_WHOLE = re.compile(r"([0-9]{1,3})(?:\.0+)?")
"""A whole number, also as tables write it where some are missing."""


def first_number(rows: Sequence[Mapping[str, Any]], taken: Sequence[str], response: str) -> int | None:
    """Return the number of the first choice, 0 or 1, or None where the rows do not say it.

    Args:
        rows: the first ones.
        taken: the columns that ask and answer, which are no choices.
        response: the column that answers.
    """
    found = [
        (_number(row.get(response), choices), len(choices.listed.texts))
        for row in rows
        if not is_missing(row.get(response))
        and (choices := next(listed_choices(row, taken), None)) is not None
        and choices.listed.first is None
    ]
    numbers = [(number, count) for number, count in found if number is not None]
    if not numbers or len(numbers) < len(found):
        return None
    first = 0 if any(number == 0 for number, _ in numbers) else 1
    told = first == 0 or any(number == count for number, count in numbers)
    return first if told and all(first <= number < first + count for number, count in numbers) else None


def as_letter(row: Mapping[str, Any], taken: Iterable[str], *, question: str, answer: str, first: int | None) -> str:
    """Return the letter of the choice whose number an answer is, where the question does not show the choices yet.

    Args:
        row: values by column.
        taken: the columns that are read.
        question: what is asked; where it shows the choices, it says what their numbers are, and the answer stays.
        answer: what is trained on.
        first: the number of the first choice, for choices that the data calls by no numbers itself; None where no row
            says it, and the answer stays.

    Raises:
        DataError: a number that no choice has.
    """
    choices = next(listed_choices(row, taken), None)
    number = None if choices is None else _number(answer, choices)
    if choices is None or number is None or shows_all(question, choices):
        return answer
    first = first if choices.listed.first is None else choices.listed.first
    if first is None:
        return answer
    letters = choices.letters()
    if not first <= number < first + len(letters):
        last = first + len(letters) - 1
        raise DataError(f"The answer is the number {number}, and the row's choices count from {first} to {last}.")
    if not choices.listed.texts[number - first]:
        raise DataError(f"The answer is the number {number}, and the row's choice at its place is empty.")
    return letters[number - first]


def _number(value: Any, choices: Choices) -> int | None:
    """Return a value as the number of a choice; None for anything else, and for a number that is itself a choice."""
    found = None if isinstance(value, bool) else _WHOLE.fullmatch(str(value).strip())
    if found is None or bare(found[0]) in map(bare, choices.texts):
        return None
    return int(found[1])
