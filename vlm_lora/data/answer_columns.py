"""What a column of answers holds besides plain text: numbers of declared names, and lists written out in CSV cells.

An answer that only says which of a row's choices is right is refused: the question does not show the choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm_lora.data.class_names import names_of
from vlm_lora.data.column_search import ColumnSearch
from vlm_lora.data.csv_files import CsvTable
from vlm_lora.data.rows import Rows
from vlm_lora.data.wording import short
from vlm_lora.data.written_lists import written_list
from vlm_lora.errors import DataError

CHOICES = ("choices", "options", "candidates")
"""Columns that list what may be answered."""


@dataclass(frozen=True, kw_only=True)
class AnswerReading:
    """How a column of answers is read; by default text and numbers as they are."""

    names: tuple[str, ...] = ()
    """Names that the data declares for the column's numbers, number 0 first."""
    written: bool = False
    """Whether its texts are lists of accepted answers, written out as JSON, Python or numpy writes them."""


def describe_answers(rows: Rows, search: ColumnSearch, column: str) -> tuple[AnswerReading, tuple[str, ...]]:
    """Return how a column of answers is read, and lines that explain it."""
    names = names_of(rows.features, column)
    if names:
        return AnswerReading(names=names), (f"answers: the names of the numbers, declared by the data: {short(names)}",)
    cells = [items for cell in search.values(column) if (items := written_list(cell)) != []]
    # A list of no texts may stand for no answer, or for JSON that lists other things: the others say which.
    from_csv = all(isinstance(table, CsvTable) for table in rows.tables)
    if from_csv and sum(items is not None for items in cells) * 2 > len(cells):
        return AnswerReading(written=True), (f"answers: the cells of '{column}' are lists of accepted answers",)
    return AnswerReading(), ()


def refuse_bare_choices(search: ColumnSearch, prompt: str, response: str) -> None:
    """Refuse answers that are only the number or letter of one of the row's choices.

    Raises:
        DataError: names both columns and what to type.
    """
    for column in (name for name in search.columns if name.casefold() in CHOICES and name not in (prompt, response)):
        for row in search.sample:
            choices = _as_choices(row.get(column))
            answer = row.get(response)
            if choices and _is_place(answer, choices):
                raise DataError(
                    f"{search.where}: '{response}' holds {short(answer)}, which says one of '{column}' "
                    f"({short(choices)}), and the question in '{prompt}' does not show them. Write the choices into "
                    f"the question, or the right one's text into '{response}'; to train on {short(answer)} as it is, "
                    f"type --prompt_column {prompt} --response_column {response}."
                )


def _as_choices(value: Any) -> Sequence[str]:
    value = written_list(value) if isinstance(value, str) else value
    return value if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value) else ()


def _is_place(answer: Any, choices: Sequence[str]) -> bool:
    """Tell whether an answer is a number, or a letter that is none of the choices itself."""
    if isinstance(answer, list | tuple) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, str):
        letter = len(answer.strip()) == 1 and answer.strip().isalpha()
        return (letter or answer.strip().isdecimal()) and answer not in choices
    whole = isinstance(answer, int) or (isinstance(answer, float) and answer.is_integer())
    return whole and not isinstance(answer, bool)
