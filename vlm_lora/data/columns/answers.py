"""What a column of answers holds besides plain text: numbers of declared names, and lists written out in CSV cells.

An answer that only says which of a row's choices is right is refused where the question does not show the choices.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

from vlm_lora.data.columns.search import ColumnSearch
from vlm_lora.data.conversations.choice_numbers import as_letter
from vlm_lora.data.conversations.choices import asked_text, hidden, listed_choices, show_choices
from vlm_lora.data.conversations.texts import PARSE, holds_parse, written_list
from vlm_lora.data.formats.csv_files import CsvTable
from vlm_lora.data.formats.rows import Rows, names_of
from vlm_lora.data.wording import quoted, short
from vlm_lora.errors import DataError


@dataclass(frozen=True, kw_only=True)
class AnswerReading:
    """How a column of answers is read; by default text and numbers as they are."""

    names: tuple[str, ...] = ()
    """Names that the data declares for the column's numbers, number 0 first."""
    written: bool = False
    """Whether its texts are lists of accepted answers, written out as JSON, Python or numpy writes them."""
    plain: bool = False
    """Whether its texts are plain ones, among which a list that is written out is an odd row."""
    cells: bool = False
    """Whether they are cells of CSV, where `nan` and its like stand for a missing value."""
    whole: bool = False
    """Whether its fractions are whole numbers, as tables store these where some are missing: 14 is meant, not 14.0."""
    parsed: bool = False
    """Whether its texts are JSON of which `gt_parse` is the answer, as data for Donut has it."""
    first_choice: int | None = None
    """The number of a row's first choice, where its numbers say which of the choices is right."""


_SEVERAL = ("answers", "labels", "outputs", "captions", "responses", "references", "gt_answers", "annotations_captions")
"""Columns (case does not count) whose name says that a row has several answers."""


def describe_answers(rows: Rows, search: ColumnSearch, column: str) -> tuple[AnswerReading, tuple[str, ...]]:
    """Return how a column of answers is read, and lines that explain it."""
    from_csv = bool(rows.tables) and all(isinstance(table, CsvTable) for table in rows.tables)
    reading, lines = _describe(rows, search, column, from_csv)
    return replace(reading, cells=from_csv), lines


def _describe(rows: Rows, search: ColumnSearch, column: str, from_csv: bool) -> tuple[AnswerReading, tuple[str, ...]]:
    names = names_of(rows.declared, column)
    if names:
        return AnswerReading(names=names), (f"answers: the names of the numbers, declared by the data: {short(names)}",)
    if search.mostly_holds(column, lambda value: isinstance(value, str) and holds_parse(value)):
        return AnswerReading(parsed=True), (f"answers: what the JSON texts of '{column}' have under {PARSE}",)
    cells = [items for cell in search.values(column) if (items := written_list(cell)) != []]
    # A list of no texts may stand for no answer, or for JSON that lists other things: the others say which.
    lists = sum(items is not None for items in cells)
    if from_csv or column.casefold() in _SEVERAL:
        if lists * 2 > len(cells):
            return AnswerReading(written=True), (f"answers: the cells of '{column}' are lists of accepted answers",)
        if not any(map(_lists_others, search.values(column))):
            return AnswerReading(plain=True, whole=holds_whole_numbers(search, column)), _why_whole(search, column)
    if lists * 2 > len(cells):
        said = f"answers: the texts of '{column}' write lists, and are trained on as they are: JSON has real lists"
        return AnswerReading(), (said,)
    return AnswerReading(whole=holds_whole_numbers(search, column)), _why_whole(search, column)


def _lists_others(cell: Any) -> bool:
    """Tell whether a text is a list in JSON of anything but texts, as answers of boxes are."""
    if not isinstance(cell, str) or not cell.lstrip().startswith("[") or written_list(cell) is not None:
        return False
    try:
        json.loads(cell)
    except (ValueError, RecursionError):
        return False
    return True


def _why_whole(search: ColumnSearch, column: str) -> tuple[str, ...]:
    said = f"answers: the numbers of '{column}' are whole, written without a point"
    return (said,) if holds_whole_numbers(search, column) else ()


def holds_whole_numbers(search: ColumnSearch, column: str) -> bool:
    """Tell whether all fractions in a column are whole numbers."""
    numbers = [number for value in search.values(column) for number in _fractions(value)]
    return bool(numbers) and all(number.is_integer() for number in numbers)


def _fractions(value: Any) -> list[float]:
    values = value if isinstance(value, list | tuple) else [value]
    return [one for one in values if isinstance(one, float) and math.isfinite(one)]


def refuse_bare_choices(
    search: ColumnSearch, prompt: str, context: str | None, response: str, *, shown: bool, first: int | None
) -> list[str]:
    """Return how rows' choices are read; refuse answers that only say which one is right, where none is shown.

    Args:
        search: the columns and first rows.
        prompt: the column that asks.
        context: the column that continues it.
        response: the column that answers.
        shown: whether choices are shown behind the question.
        first: the number of a row's first choice, where the answers are such numbers.

    Raises:
        DataError: names both columns and what to type.
    """
    taken = [name for name in (prompt, context, response) if name is not None]
    lines: dict[str, None] = {}
    for row in search.sample:
        answer = row.get(response)
        if isinstance(row.get(prompt), list | tuple) and isinstance(answer, list | tuple) and len(answer) > 1:
            continue  # several questions: a bad row where they do not show the choices
        text = str(answer[0] if isinstance(answer, list | tuple) and answer else answer)
        asked = asked_text(row.get(prompt), row.get(context or ""))
        try:
            if shown:
                text = as_letter(row, taken, question=asked, answer=text, first=first)
            told = show_choices(row, taken, question=asked, answer=text) if shown else asked
        except DataError:
            continue  # a bad row, which says so when it is read
        for choices in listed_choices(row, taken):
            if told != asked:
                lines[
                    f"choices: {quoted(choices.columns)}, shown behind the question where it does not show them "
                    "(--choices refuse)"
                ] = None
            if not isinstance(answer, bool) and hidden(text, choices, told):
                count = "; no first row says whether numbers count from 0 or from 1" if text.isdigit() else ""
                raise DataError(
                    f"{search.where}: '{response}' holds {short(answer)}, which says one of {quoted(choices.columns)} "
                    f"({short(choices.texts)}), and the question in '{prompt}' does not show them all{count}. Write "
                    f"them into the question, or the right one's text into '{response}'; to train on {short(answer)} "
                    f"as it is, type --ignore_columns {' '.join(choices.columns)}"
                )
    return [*lines]
