"""Marks in a text that stand for boxes or names of a row's `objects` column, which nothing fills in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_lora.data.conversation import Turn
from vlm_lora.data.conversations.turn_keys import says_nothing
from vlm_lora.data.wording import joined, quoted
from vlm_lora.errors import DataError

_MARK = re.compile(r"<(bbox|ref-object|ref_object|box|ref|quad|polygon|point)>")
_COLUMNS = ("objects", "object", "grounding", "bbox", "bboxes", "box", "boxes", "ref", "refs", "regions", "points")
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
    held = [column for column, value in row.items() if column.casefold() in _COLUMNS and not says_nothing(value)]
    for number, turn in enumerate(turns, start=1):
        marks = [mark for mark in dict.fromkeys(_MARK.findall(turn.text)) if f"</{mark}>" not in turn.text]
        alone = turn.role == "assistant" and not re.search(r"\w", _MARK.sub("", turn.text))
        if marks and (held or alone):
            what = f"the column {quoted(held)}" if held else "a column such as 'objects', which the row does not have"
            raise DataError(
                f"Turn {number} ({turn.role}) holds {joined(f'<{mark}>' for mark in marks)}, which stands for a "
                f"value of {what}; such marks are not filled in. Write the boxes or names themselves into the text, "
                "as the model is to read or write them."
            )
