"""Everything that a run may draw for a row, encoded: what a later epoch asks must fit as well as the first's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vlm_lora.batching.encoded import EncodedRow
from vlm_lora.batching.encoding import RowEncoder
from vlm_lora.batching.order import Rows
from vlm_lora.data.conversation import Conversation
from vlm_lora.data.dataset import ConversationDataset
from vlm_lora.data.ocr.task_sampling import ONCE, Span, each_draw, everything, longest_of_each_task
from vlm_lora.errors import DataError

NEAR = 8
"""Tokens below the limit within which a task's longest is not trusted: texts join with a token more or less."""

_SHOWN = 60
"""Characters of a question that a message shows."""


class EveryDraw:
    """Encodes what a run may draw for row `index`. Can be pickled into loader workers.

    Args:
        rows: conversations by number; only a `ConversationDataset` whose rows vary has more than one of each.
        encoder: makes them into tensors.
        span: how often the run draws.
    """

    def __init__(self, rows: Rows, encoder: RowEncoder, span: Span = ONCE) -> None:
        self._rows = rows
        self._encoder = encoder
        self._span = span

    def conversations(self, index: int) -> Sequence[Conversation]:
        """Return the different conversations of a row, the first epoch's first; they share their images.

        Raises:
            DataError: the row cannot be used; the message begins with file and row.
        """
        rows = self._rows
        if self._span == ONCE or not isinstance(rows, ConversationDataset) or not rows.varies:
            return (rows[index],)
        if self._span.counted:
            return rows.asked(index, each_draw(self._span))
        return rows.asked(index, longest_of_each_task(self._encoder.text_tokens))

    def encoded(self, index: int, conversations: Sequence[Conversation]) -> Iterator[EncodedRow]:
        """Yield each of `conversations(index)` as a row of tensors. Each image is decoded once.

        Raises:
            DataError: one of them cannot be used. Of any but the first, the message says what is asked.
        """
        near = False
        for row in self._each(conversations):
            near = near or self._is_near(row)
            yield row
        if near and not self._span.counted and isinstance(self._rows, ConversationDataset) and self._rows.varies:
            yield from self._each(self._rows.asked(index, everything))

    def _each(self, conversations: Sequence[Conversation]) -> Iterator[EncodedRow]:
        loaded: dict[int, Any] = {}
        for number, conversation in enumerate(conversations):
            try:
                yield self._encoder.encode(conversation, loaded=loaded)
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
