"""A few batch shapes for hardware that compiles each new one: chosen from the data before training.

1. Each row is encoded once and leaves its `RowShape`: tokens, supervised tokens, shapes of its media.
2. `plan_shapes` gives every kind of media some lengths, so that rows are padded little and shapes stay few.
3. `BatchOrder` puts rows of one shape together, and the collator pads each batch to its shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from vlm_lora.batching.encoded import IGNORE_INDEX, EncodedRow
from vlm_lora.batching.prepared.media import outlines
from vlm_lora.errors import RenderingError

STEP = 16
"""Lengths are multiples of this many tokens: matrix units work on tiles, and one token more is no new shape."""

Media = tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
"""Name, shape and, for small integer tensors that steer a model's control flow, values of each media tensor."""

_STEERING = 64
"""Integer media tensors up to this many values (grids, image sizes) are read by models on the host."""


@dataclass(frozen=True, kw_only=True, order=True)
class RowShape:
    """What a row contributes to its batch's shape."""

    media: Media
    length: int
    """Tokens."""
    supervised: int
    """Supervised tokens."""

    @classmethod
    def of(cls, row: EncodedRow) -> RowShape:
        """Measure an encoded row."""
        tensors = [*outlines(row.media).items(), *((name, tensor[0]) for name, tensor in row.token_tensors.items())]
        return cls(
            media=tuple(sorted((name, tuple(tensor.shape), _steering(tensor)) for name, tensor in tensors)),
            length=len(row.input_ids),
            supervised=int(row.labels[1:].ne(IGNORE_INDEX).sum()),
        )


@dataclass(frozen=True, kw_only=True)
class ShapePlan:
    """The shapes that batches are padded to, and which rows have which."""

    shapes: tuple[RowShape, ...]
    """Sorted by media, then length; `supervised` grows with the length."""
    tokens: int
    """Tokens of the rows it was made for."""
    padded_tokens: int
    """Their tokens once padded to their shapes."""

    @property
    def padding_share(self) -> float:
        """Share of the padded tokens that is padding."""
        return 1 - self.tokens / self.padded_tokens

    def place(self, row: RowShape) -> int:
        """Return the number of the smallest shape that a row fits into.

        Raises:
            RenderingError: none does: the row is not one the plan was made for.
        """
        for number, shape in enumerate(self.shapes):
            if shape.media == row.media and shape.length >= row.length and shape.supervised >= row.supervised:
                return number
        raise RenderingError(
            f"A row of {row.length} tokens ({row.supervised} supervised) fits none of the planned shapes. The data "
            "changed since they were planned; start again, or type --static_shapes false."
        )

    def cover(self, rows: Sequence[RowShape]) -> RowShape:
        """Return the shape of a batch of rows with the same media."""
        return max((self.shapes[self.place(row)] for row in rows), key=lambda shape: shape.length)

    def groups(self, rows: Sequence[RowShape]) -> list[list[int]]:
        """Return the indices of the rows of each shape, empty groups left out."""
        found: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            found.setdefault(self.place(row), []).append(index)
        return [found[number] for number in sorted(found)]

    def to_mapping(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> ShapePlan:
        """Return the plan that `to_mapping` wrote."""
        shapes = [
            RowShape(
                media=media_of(one["media"]),
                length=one["length"],
                supervised=one["supervised"],
            )
            for one in content["shapes"]
        ]
        return cls(shapes=tuple(shapes), tokens=content["tokens"], padded_tokens=content["padded_tokens"])


def media_of(values: Any) -> Media:
    """Return a media key that went through JSON."""
    return tuple((name, tuple(shape), tuple(steering)) for name, shape, steering in values)


def plan_shapes(rows: Sequence[RowShape], *, max_shapes: int, longest: int | None = None) -> ShapePlan:
    """Choose at most `max_shapes` shapes, none above `longest` tokens, with as little padding as that allows.

    Each kind of media needs a shape of its own, so there may be more where there are more kinds.
    """
    by_media: dict[Media, list[RowShape]] = {}
    for row in rows:
        by_media.setdefault(row.media, []).append(row)
    tables = {media: _Lengths([row.length for row in own], longest) for media, own in by_media.items()}
    counts = _share_out(tables, max_shapes)
    shapes: list[RowShape] = []
    padded = 0
    for media, own in sorted(by_media.items()):
        ends = tables[media].choose(counts[media])
        padded += tables[media].cost(counts[media])
        for end in ends:
            # Cumulative: a longer shape takes every shorter row of its kind.
            supervised = max(row.supervised for row in own if row.length <= end)
            shapes.append(RowShape(media=media, length=end, supervised=max(1, supervised)))
    return ShapePlan(shapes=tuple(shapes), tokens=sum(row.length for row in rows), padded_tokens=padded)


def _steering(tensor: torch.Tensor) -> tuple[int, ...]:
    if tensor.is_floating_point() or tensor.numel() > _STEERING:
        return ()
    return tuple(int(value) for value in tensor.flatten())


_WORTH = 0.01
"""A further shape must save this share of all tokens."""


def _share_out(tables: Mapping[Media, _Lengths], max_shapes: int) -> dict[Media, int]:
    """Give each kind of media one length, then the next one to whoever saves most by it."""
    counts = dict.fromkeys(tables, 1)
    total = sum(table.tokens for table in tables.values())
    while sum(counts.values()) < max_shapes:
        saved = {media: table.cost(counts[media]) - table.cost(counts[media] + 1) for media, table in tables.items()}
        media = max(saved, key=lambda kind: saved[kind])
        if saved[media] < _WORTH * total:
            break
        counts[media] += 1
    return counts


class _Lengths:
    """The best end points for 1, 2, ... lengths over the same rows, by dynamic programming."""

    def __init__(self, lengths: Sequence[int], longest: int | None) -> None:
        self.tokens = sum(lengths)
        ends = [-(-length // STEP) * STEP for length in lengths]
        counted = Counter(end if longest is None else min(end, longest) for end in ends)
        self._ends = sorted(counted)
        self._rows = [counted[end] for end in self._ends]
        # _best[k][j]: (padded tokens, where the last length starts) of the first j ends with k + 1 lengths.
        self._best: list[list[tuple[int, int]]] = []

    def cost(self, count: int) -> int:
        """Return all rows' tokens once padded with `count` lengths."""
        return self._table(min(count, len(self._ends)))[-1][0]

    def choose(self, count: int) -> list[int]:
        """Return the end points, ascending."""
        chosen: list[int] = []
        stop = len(self._ends)
        for level in range(min(count, len(self._ends)), 0, -1):
            chosen.append(self._ends[stop - 1])
            stop = self._table(level)[stop][1]
        return chosen[::-1]

    def _table(self, count: int) -> list[tuple[int, int]]:
        while len(self._best) < count:
            level = len(self._best)
            table = [(0, 0)]
            for stop in range(1, len(self._ends) + 1):
                table.append(self._cheapest(level, stop))
            self._best.append(table)
        return self._best[count - 1]

    def _cheapest(self, level: int, stop: int) -> tuple[int, int]:
        """The last length ends at `stop`; find where it should start."""
        end, rows = self._ends[stop - 1], 0
        best = (end * sum(self._rows[:stop]), 0)
        if level == 0:
            return best
        for start in range(stop - 1, 0, -1):
            rows += self._rows[start]
            padded = self._best[level - 1][start][0] + end * rows
            if padded < best[0]:
                best = (padded, start)
        return best
