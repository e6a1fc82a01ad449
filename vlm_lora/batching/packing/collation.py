"""Several rows to one sequence, and batches of such sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vlm_lora.batching.blank import joined as joined_blank
from vlm_lora.batching.collator import Collator, join_rows_media, supervised_positions
from vlm_lora.batching.encoded import IGNORE_INDEX, EncodedRow
from vlm_lora.batching.ordering.rows import Filler
from vlm_lora.batching.packing.shape import PackShape
from vlm_lora.batching.style import RenderingStyle
from vlm_lora.data.conversation import Conversation

PACK_ROWS = "pack_rows"
"""The batch's key for `(B, T)` int64: which row of its pack a token belongs to, from 1; 0 for padding."""


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Rows that share a sequence."""

    rows: tuple[Conversation | Filler, ...]
    number: None = None
    """No place in the row table: it has several."""

    @property
    def source(self) -> str:
        """The rows as messages name them."""
        return " + ".join(str(row.row.source if isinstance(row, Filler) else row.source) for row in self.rows)


class PackCollator(Collator):
    """A collator that also takes packs: each becomes one sequence, with `PACK_ROWS` for who belongs to whom.

    Args:
        shape: what every pack is brought to: images that are missing are blank ones in turns of their own, then
            padding; None pads to the longest pack of a batch.
        blank: the turn with a blank image; where a shape has images.
        others: as `Collator`.
    """

    def __init__(
        self, *args: Any, shape: PackShape | None = None, blank: EncodedRow | None = None, **others: Any
    ) -> None:
        super().__init__(*args, **others)
        self._shape = shape
        self._filling = None if blank is None else replace(blank, labels=torch.full_like(blank.labels, IGNORE_INDEX))

    def __call__(self, rows: Sequence[Conversation | Filler | Pack]) -> dict[str, torch.Tensor]:
        """As `Collator`, for packs as well."""
        encoded = [self._encoded(row) for row in rows]
        if self._shape is None or not all(isinstance(row, Pack) for row in rows):
            return self.collate(encoded)
        length = self._shape.tokens
        if self._blank is not None and not self._shape.images:
            # Every process must have an image, and no row of any has one: each pack gets a blank one.
            encoded = [joined_blank(pack, self._blank) for pack in encoded]
            length += len(self._blank.input_ids)
        batch = self._padded(encoded, length, left=False)
        batch["supervised_positions"] = supervised_positions(batch["labels"], least=self._shape.supervised)
        return batch

    def _encoded(self, row: Conversation | Filler | Pack) -> EncodedRow:
        if not isinstance(row, Pack):
            return super()._encoded(row)
        rows = [super(PackCollator, self)._encoded(one) for one in row.rows]
        if self._shape is not None and self._filling is not None:
            missing = self._shape.images - sum(len(one.seen) for one in rows)
            rows += [self._filling] * missing
        return joined(rows, self._style)


def joined(rows: Sequence[EncodedRow], style: RenderingStyle) -> EncodedRow:
    """Return one row of several, one behind the other: `(sum of T,)` ids and labels, and their media.

    A row's first token has no label, so that nothing learns to produce it from the row before.

    Args:
        rows: at least one.
        style: says how media tensors are joined.
    """
    names = dict.fromkeys(name for row in rows for name in row.token_tensors)
    tensors = {name: torch.cat(_each(name, rows)) for name in names}
    numbers = [torch.full_like(row.input_ids, number) for number, row in enumerate(rows, start=1)]
    media = dict.fromkeys(name for row in rows for name in row.media)
    return replace(
        rows[0],
        input_ids=torch.cat([row.input_ids for row in rows]),
        labels=torch.cat([_without_first(row.labels) for row in rows]),
        token_tensors={**tensors, PACK_ROWS: torch.cat(numbers)},
        media={
            name: join_rows_media([row for row in rows if name in row.media], name, style.batching(name))
            for name in media
        },
        packed_media=tuple(row.media for row in rows if row.media),
        text="".join(row.text for row in rows),
        image_tokens=tuple(count for row in rows for count in row.image_tokens),
    )


def _without_first(labels: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.full_like(labels[:1], IGNORE_INDEX), labels[1:]])


def _each(name: str, rows: Sequence[EncodedRow]) -> list[torch.Tensor]:
    """Return a per-token tensor of each row, zeros where a row has none."""
    some = next(row.token_tensors[name] for row in rows if name in row.token_tensors)
    return [row.token_tensors.get(name, some.new_zeros(len(row.input_ids), *some.shape[1:])) for row in rows]
