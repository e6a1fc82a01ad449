"""What scores are told apart by: the data set that a row is of, where there are several, and the task of its page."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_lora.batching.ordering.rows import Rows
from vlm_lora.data.dataset import ConversationDataset
from vlm_lora.data.mixture import Mixture
from vlm_lora.data.ocr.pages import Page
from vlm_lora.data.ocr.task_answers import Draw, PageReading, TaskSample, ask_about


def origin_of(rows: Rows, number: int) -> str | None:
    """Return what names the data set that a row is of, its file or the first of its files; None where there is one."""
    if not isinstance(rows, Mixture):
        return None
    # A split's own name is no help: that of all that are held out is the same.
    origins = rows.members[rows.find(number, 0)[0]].rows.origins
    return origins[0].file if len(origins) == 1 else f"{origins[0].file} and {len(origins) - 1} more"


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
