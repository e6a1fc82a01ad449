"""What a run may make of one row, encoded: of a page that is asked something else each epoch, all of that.

What a later epoch asks must fit as well as what the first one asks, so each different conversation is encoded once.
Where the draws of all epochs are counted (`Span.counted`), those are the conversations. Where nothing counts them, or
they are too many, a page is asked the longest question and answer of each task that it can serve instead. That is
not exact: tokens of joined texts differ from the sum by a few. So a page that comes near the limit is asked
everything that any draw may ask; only for such pages is that search worth its time, and without it a row in a
thousand would end the run in a later epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_lora.batching.encoded import EncodedRow
from vlm_lora.batching.encoding import RowEncoder
from vlm_lora.data.conversation import Conversation
from vlm_lora.data.dataset import ConversationDataset
from vlm_lora.data.ocr.pages import Page
from vlm_lora.data.ocr.task_answers import PageReading, TaskSample
from vlm_lora.data.ocr.task_sampling import ONCE, Ask, Span, each_draw, everything, longest_of_each_task
from vlm_lora.errors import DataError

NEAR = 8
"""Tokens below the limit within which a task's longest is not trusted: texts join with a token more or less."""

_SHOWN = 60
"""Characters of a question that a message shows."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The different conversations that a run may make of one row; they share their images."""

    conversations: Sequence[Conversation]
    """The first epoch's comes first."""
    tasks: Sequence[str] = ("",)
    """The task of each; empty where the row does not vary."""
    drawn: tuple[int, ...] = ()
    """Which of them each draw is, epoch by epoch and in these repeat by repeat; empty where draws are not counted."""


class TaskSamples:
    """Encodes what a run may make of row `index`. Can be pickled into loader workers.

    Args:
        rows: the rows of one data set.
        encoder: makes them into tensors.
        span: how often the run draws.
    """

    def __init__(self, rows: ConversationDataset, encoder: RowEncoder, span: Span = ONCE) -> None:
        self._rows = rows
        self._encoder = encoder
        self._span = span

    def choices(self, index: int) -> Choices:
        """Return the different conversations of a row.

        Raises:
            DataError: the row cannot be used; the message begins with file and row.
        """
        if self._span == ONCE or not self._rows.varies:
            return Choices(conversations=(self._rows[index],))
        if self._span.counted:
            return self._asked(index, each_draw(self._span))
        return self._asked(index, longest_of_each_task(self._encoder.text_tokens))

    def encoded(self, index: int, choices: Choices) -> Iterator[EncodedRow]:
        """Yield each of `choices(index)` as a row of tensors, in order, then what else had to be looked at.

        Each image is decoded once; the first row comes with its images.

        Raises:
            DataError: one of them cannot be used. Of any but the first, the message says what is asked.
        """
        near = False
        for row in self._each(choices.conversations):
            near = near or self._is_near(row)
            yield row
        if near and not self._span.counted and self._rows.varies:
            yield from self._each(self._rows.asked(index, everything))

    def _asked(self, index: int, ask: Ask) -> Choices:
        samples: list[TaskSample] = []

        def noted(page: Page, reading: PageReading, row: int) -> Sequence[TaskSample]:
            samples.extend(ask(page, reading, row))
            return samples

        conversations = self._rows.asked(index, noted)
        different: dict[tuple[Any, Any], int] = {}
        drawn = [different.setdefault((each.question, each.answer), len(different)) for each in samples]
        tasks = [samples[drawn.index(number)].task for number in range(len(different))]
        return Choices(conversations=conversations, tasks=tasks, drawn=tuple(drawn) if self._span.counted else ())

    def _each(self, conversations: Sequence[Conversation]) -> Iterator[EncodedRow]:
        loaded: dict[int, Any] = {}
        for number, conversation in enumerate(conversations):
            try:
                yield self._encoder.encode(conversation, keep_images=not number, loaded=loaded)
            except DataError as error:
                if number:
                    error.args = (_with_question(str(error), conversation),)
                raise

    def _is_near(self, row: EncodedRow) -> bool:
        limit = self._encoder.max_length
        return limit is not None and len(row.input_ids) > limit - NEAR


def _with_question(message: str, conversation: Conversation) -> str:
    """Say which of a row's questions an error is about: the first epoch asks another one."""
    question = next(turn.text for turn in conversation.turns if turn.role == "user")
    shown = question if len(question) <= _SHOWN else f"{question[: _SHOWN - 3]}..."
    start = f"{conversation.source}: "
    return f"{start}When an epoch asks {shown!r}: {message.removeprefix(start)}"
