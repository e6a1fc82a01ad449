"""Which rows a batch was made of: it travels with the batch, on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from vlm_lora.batching.order import Filler
from vlm_lora.data.conversation import Conversation

ROWS = "row_names"
"""The batch's key for the names of its rows: a tuple of texts, which no loader moves to a device."""


class NamesRows:
    """A collator that adds the rows' names to the batch of another.

    Args:
        collator: makes the batch.
    """

    def __init__(self, collator: Callable[[Any], Mapping[str, Any]]) -> None:
        self._collator = collator

    def __call__(self, rows: Sequence[Conversation | Filler]) -> dict[str, Any]:
        """Return the batch with `ROWS`, in order: `train.jsonl row 17`, fillers too."""
        names = tuple(str((row.row if isinstance(row, Filler) else row).source) for row in rows)
        return {**self._collator(rows), ROWS: names}


@contextmanager
def naming_rows(trainer: Any) -> Iterator[None]:
    """Within this context, loaders that the trainer makes give batches with `ROWS`."""
    collator = trainer.data_collator
    trainer.data_collator = NamesRows(collator)
    try:
        yield
    finally:
        trainer.data_collator = collator
