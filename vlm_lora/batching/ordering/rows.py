"""The rows as a loader asks for them: by an index that may stand for a filler, or for the row of another epoch.

A filler completes a batch that would be too small, its labels masked. It adds nothing to the loss, its token count or
a perplexity, so nothing is dropped and nothing counts twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from vlm_lora.batching.loading import InHand, name_of
from vlm_lora.data.conversation import Conversation


class Rows(Protocol):
    """Anything with a length that gives conversations by index."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, index: int) -> Conversation:
        """Return row `index`."""


@runtime_checkable
class VaryingRows(Rows, Protocol):
    """Rows that may read otherwise in another epoch."""

    @property
    def varies(self) -> bool:
        """Whether any row does."""

    def at(self, index: int, *, epoch: int = 0) -> Conversation:
        """Return row `index` as it is in an epoch; `rows[index]` is that of epoch 0."""


@runtime_checkable
class OrderedRows(Rows, Protocol):
    """Rows that are to be asked for in order, or not: those of a stream are."""

    @property
    def in_order(self) -> bool:
        """Whether they are."""


@dataclass(frozen=True, kw_only=True)
class Filler:
    """A row that only fills a batch: it is encoded like any other and its labels are masked."""

    row: Conversation


class FillableRows:
    """`rows`, with index `len(rows) + i` standing for row i as a filler.

    `2 * len(rows) * epoch` added to an index asks for the row of that epoch: what a loader's worker is to read
    travels with the index, so workers that outlive an epoch read the right one.

    Args:
        rows: what a data set gives by index.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.varies = isinstance(rows, VaryingRows) and rows.varies
        """Whether rows read otherwise in another epoch."""
        self.in_order = isinstance(rows, OrderedRows) and rows.in_order
        """Whether rows are to be asked for in order."""
        self.in_hand = InHand()
        """Which rows loader workers took last."""

    def __len__(self) -> int:
        """Return the number of rows, fillers not counted."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Conversation | Filler:
        """Return a row, or a filler for an index beyond the rows."""
        count = len(self._rows)
        epoch, place = divmod(index, 2 * count) if count else (0, index)
        if epoch and not self.varies:
            raise IndexError(f"row {index} of {count} with as many fillers")
        row = self._read(place % count, epoch)
        return row if place < count else Filler(row=row)

    def __getitems__(self, indices: list[int]) -> list[Conversation | Filler]:
        """Return the rows of a batch; torch's loader asks for them so."""
        self.in_hand.note(indices)
        return [self[index] for index in indices]

    def name(self, index: int) -> str:
        """Return what names the row that an index asks for, in messages."""
        return name_of(self._rows)(index % len(self._rows))

    def _read(self, place: int, epoch: int) -> Conversation:
        rows = self._rows
        row = rows.at(place, epoch=epoch) if isinstance(rows, VaryingRows) else rows[place]
        return replace(row, number=place)
