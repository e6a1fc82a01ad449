"""Which rows share a pack: first-fit decreasing within a shuffled window, the same number of packs every epoch.

1. All rows are shuffled by seed and epoch, and cut into windows.
2. Within a window each row, the longest first, goes into the first pack with room. No row is ever cut.
3. An epoch that needs more packs than were promised is drawn anew; one that needs fewer has its fullest packs halved.
   So the steps and the schedule are known before the first one, and an epoch's packs depend on nothing but its number.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from vlm_lora.errors import ConfigError

WINDOW = 4096
"""Rows that are packed together. More would save less than 0.1 % of the tokens, and take more time to plan."""
PACK_LENGTH = 2048
"""Tokens of a pack where neither `--pack_length` nor `--max_length` says it, and no row is longer."""
_TRIED = 4
"""The most packs of so many epochs are promised for all."""
_DRAWS = 64
"""Draws of one epoch until it needs no more than that: each has a chance of about four in five."""

Packs = list[list[int]]
_Item = TypeVar("_Item")


def pack_length(given: int | None, max_length: int | None, longest: int) -> int:
    """Return the tokens of a pack: as given, else `--max_length` or `PACK_LENGTH`, and never less than the longest row.

    >>> pack_length(None, None, 3000)
    3000
    """
    return given or max(max_length or PACK_LENGTH, longest)


def first_fit(order: Sequence[int], lengths: Any, capacity: int) -> Packs:
    """Put rows into packs, the longest first, each into the first pack with room.

    Args:
        order: the rows; those of one length are taken in this order.
        lengths: `(rows,)` whole numbers, the tokens of every row.
        capacity: tokens of a pack.

    >>> first_fit([0, 1, 2, 3], [5, 8, 2, 3], 10)
    [[1, 2], [0, 3]]
    """
    by_length = sorted(order, key=lambda row: -lengths[row])
    room = np.full(len(by_length), capacity, dtype=np.int64)
    packs: Packs = []
    for row in by_length:
        place = int(np.argmax(room[: len(packs) + 1] >= lengths[row]))
        if place == len(packs):
            packs.append([])
        packs[place].append(row)
        room[place] -= lengths[row]
    return packs


def halved(packs: Packs, count: int) -> Packs:
    """Return `count` packs of the same rows: those with the most rows are halved until there are so many.

    There must be no more packs than `count` to begin with, and no fewer rows.
    """
    packs = [list(pack) for pack in packs]
    fullest = [(-len(pack), place) for place, pack in enumerate(packs)]
    heapq.heapify(fullest)
    while len(packs) < count:
        _, place = heapq.heappop(fullest)
        rows = packs[place]
        packs[place], further = rows[::2], rows[1::2]
        packs.append(further)
        heapq.heappush(fullest, (-len(packs[place]), place))
        heapq.heappush(fullest, (-len(further), len(packs) - 1))
    return packs


class PackPlan:
    """The packs of every epoch.

    Args:
        lengths: returns `(rows,)` whole numbers, the tokens of every row in an epoch, all at most `capacity`.
        epochs: how many epochs' lengths differ; 1 where all are the same.
        capacity: tokens of a pack (`--pack_length`).
        seed: shuffles rows and packs; None keeps the rows' order as far as packs do.
        window: rows that are packed together.

    Raises:
        ConfigError: there are no rows.
    """

    def __init__(
        self,
        lengths: Callable[[int], Any],
        *,
        epochs: int = 1,
        capacity: int,
        seed: int | None,
        window: int = WINDOW,
    ) -> None:
        self._lengths = lengths
        self._capacity, self._seed, self._window = capacity, seed, window
        self.rows = len(lengths(0))
        """Rows of an epoch."""
        if not self.rows:
            raise ConfigError("--packing true: there is no row to pack.")
        tried = range(max(epochs, _TRIED if seed is not None else 1))
        self.count = max(len(self._drawn(epoch, 0)) for epoch in tried)
        """Packs of every epoch."""

    def packs(self, epoch: int) -> Packs:
        """Return an epoch's packs: row numbers, each row once."""
        for draw in range(_DRAWS):
            packs = self._drawn(epoch, draw)
            if len(packs) <= self.count:
                return self._shuffled(halved(packs, self.count), epoch, _DRAWS)
        raise ConfigError(
            f"--packing true: epoch {epoch} needs more packs than the {self.count} of the epochs before, so the "
            "run's steps cannot be known before it starts. Type --packing false."
        )

    def shortest(self, epoch: int) -> int:
        """Return the row with the fewest tokens."""
        return int(np.argmin(self._lengths(epoch)))

    def tokens(self, epoch: int) -> int:
        """Return the tokens of an epoch's rows."""
        return int(np.sum(self._lengths(epoch)))

    def _drawn(self, epoch: int, draw: int) -> Packs:
        lengths = self._lengths(epoch)
        order = self._shuffled(range(self.rows), epoch, draw)
        return [
            pack
            for start in range(0, self.rows, self._window)
            for pack in first_fit(order[start : start + self._window], lengths, self._capacity)
        ]

    def _shuffled(self, items: Sequence[_Item], epoch: int, draw: int) -> list[_Item]:
        if self._seed is None:
            return list(items)
        generator = np.random.default_rng([self._seed, epoch, draw])
        return [items[place] for place in generator.permutation(len(items))]
