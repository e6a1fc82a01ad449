"""What scores are told apart by: the data set that a row is of, where there are several, and the task of its page."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_lora.batching.ordering.rows import Rows
from vlm_lora.data.dataset import ConversationDataset
from vlm_lora.data.mixture import Mixture
from vlm_lora.data.ocr.pages import Page
from vlm_lora.data.ocr.task_answers import Draw, PageReading, TaskSample, ask_about


def origin_of(rows: Rows, number: int) -> str | None:
    """Return the name of the data set that a row is of; None where there is one alone."""
    return rows.members[rows.find(number, 0)[0]].name if isinstance(rows, Mixture) else None


def task_of(rows: Rows, number: int) -> str | None:
    """Return the category of the task that an OCR page is asked; None for rows that are no pages."""
    place, repeat, data = number, 0, rows
    if isinstance(rows, Mixture):
        member, place, repeat = rows.find(number, 0)
        data = rows.members[member]
    if not isinstance(data, ConversationDataset) or data.schema.page is None:
        return None
    asked: list[TaskSample] = []

    def note(page: Page, reading: PageReading, row: int) -> Sequence[TaskSample]:
        asked.append(ask_about(page, reading, Draw(epoch=0, row=row, repeat=repeat)))
        return asked

    data.asked(place, note)
    return asked[0].task
