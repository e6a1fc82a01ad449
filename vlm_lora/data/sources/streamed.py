"""A stream's conversations by number: shuffled through a bounded buffer, one pass after another, read on demand.

Every process reads the same stream and takes its own numbers of it, so a global batch holds the same rows on any number
of processes, all take the same steps, and a run is resumed by asking for a later number.
"""

from __future__ import annotations

import os
import random
import weakref
from collections.abc import Generator, Iterable, Iterator
from itertools import count
from typing import TypeVar

from vlm_lora.data.columns.late import LateColumns
from vlm_lora.data.conversation import Conversation
from vlm_lora.data.dataset import ConversationDataset
from vlm_lora.data.ocr.task_answers import Draw
from vlm_lora.data.sources.streams import RowStream, StreamedRow
from vlm_lora.errors import DataError

Item = TypeVar("Item")


def shuffled(items: Iterable[Item], *, size: int, seed: str) -> Iterator[Item]:
    """Yield all items, each drawn from a buffer of `size` that the next one then fills up; a size of 1 keeps the order.

    No more than `size + 1` items are held at a time.
    """
    generator = random.Random(seed)
    held: list[Item] = []
    for item in items:
        held.append(item)
        if len(held) > size:
            yield _draw(held, generator.randrange(size))
    while held:
        yield _draw(held, generator.randrange(len(held)))


def _draw(held: list[Item], place: int) -> Item:
    """Take an item out; the last one takes its place."""
    held[place], held[-1] = held[-1], held[place]
    return held.pop()


class StreamedConversations:
    """Conversations of a stream by number, for numbers that grow; going back begins the stream anew.

    Args:
        stream: the rows.
        first: the data set of the stream's first rows, which knows what the columns are.
        length: how many conversations there are: of as many passes over the stream as that takes.
        buffer: rows that are held, not decoded, to draw from.
        seed: of that draw, with the pass.
    """

    in_order = True
    """Whether the numbers are to be asked for in order: the rows are shuffled already."""

    def __init__(self, stream: RowStream, first: ConversationDataset, *, length: int, buffer: int, seed: int) -> None:
        self._stream = stream
        self._first = first
        self._late = LateColumns(first.rows, first.schema, stream.config)
        self._length = length
        self._buffer = buffer
        self._seed = seed
        self._rows: Iterator[tuple[int, StreamedRow]] | None = None
        self._next = 0
        self._owner = 0

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Conversation:
        """Return conversation `index`, with 0 <= index < len; rows before it are passed over as they are stored.

        Raises:
            DataError: The row cannot be used; the message begins with file and row.
        """
        if not 0 <= index < self._length:
            raise IndexError(f"row {index} of {self._length}")
        # A process that was forked off shares the open files with its parent, and so their position.
        if self._rows is None or index < self._next or self._owner != os.getpid():
            self._begin()
        assert self._rows is not None  # begun above
        while self._next < index:
            next(self._rows)
            self._next += 1
        epoch, row = next(self._rows)
        self._next += 1
        self._late.check(row)
        draw = Draw(epoch=epoch, row=row.number, repeat=0)
        return self._first.converse(row.values, source=row.source, folder=row.folder, draw=draw)

    def _begin(self) -> None:
        rows = _passes(self._stream, self._buffer, self._seed)
        # Arrow reads ahead in threads that call Python: still open when the interpreter ends, they never return.
        weakref.finalize(self, rows.close)
        self._rows, self._next, self._owner = rows, 0, os.getpid()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_rows": None}


def _passes(stream: RowStream, buffer: int, seed: int) -> Generator[tuple[int, StreamedRow], None, None]:
    """Yield pass and row without end."""
    for epoch in count():
        empty = True
        for row in shuffled(stream, size=buffer, seed=f"{seed}/{epoch}"):
            empty = False
            yield epoch, row
        if empty:
            raise DataError(f"--dataset_name {stream.name}: the stream has no rows.")
