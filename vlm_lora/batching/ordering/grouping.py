"""Rows of like length in one batch, so that little is padded.

1. An epoch's shuffled rows are cut into windows, each of which is sorted by length and cut into blocks of one step's
   rows: all its processes' and micro-batches'. A row meets other rows in each epoch, and every process waits about as
   long as the others.
2. The blocks are shuffled: the model does not see short rows first. In the first epoch the block with the longest row
   comes first, and in each block the longest batch, so that memory that is too small shows in the first step.
3. A block that the rows do not fill comes last, for steps that gather gradients over several batches count them from
   an epoch's start; where in the window its rows are taken is drawn, so that it is of no length more than of others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

WINDOW = 128
"""Blocks of a window. In batches of 8, rows of 50 to 800 tokens, equally many of each length, are padded by 0.6 %."""


def blocks_by_length(
    rows: Sequence[int], lengths: Any, *, size: int, generator: torch.Generator, longest_first: bool
) -> list[list[int]]:
    """Cut rows into blocks of like length.

    Args:
        rows: row indices, shuffled; rows of one length stay in this order.
        lengths: `(N,)`, tokens by row index.
        size: rows of a block.
        generator: shuffles the blocks.
        longest_first: the block with the longest row comes first.

    Returns:
        Blocks of `size` rows, each from long to short; the last one has what is left, if anything is.
    """
    indices = np.asarray(rows, dtype=np.int64)
    whole, rest = divmod(len(indices), size)
    windows = max(1, round(whole / WINDOW))
    ends = [whole * number // windows * size for number in range(1, windows)]
    parts = [part[np.argsort(-lengths[part], kind="stable")] for part in np.split(indices, ends)]
    small: list[list[int]] = []
    if rest:
        last = parts[-1]
        count = len(last) // size
        # Not the longest rows: whether they fit is to be seen in the first step, not in the last.
        start = size * int(torch.randint(min(1, count), count + 1, (1,), generator=generator))
        small = [last[start : start + rest].tolist()]
        parts[-1] = np.delete(last, slice(start, start + rest))
    blocks = [block.tolist() for part in parts for block in part.reshape(-1, size)]
    order = torch.randperm(len(blocks), generator=generator).tolist()
    if longest_first and blocks:
        # A block begins with its longest row.
        first = max(order, key=lambda number: (lengths[blocks[number][0]], -number))
        order = [first, *(number for number in order if number != first)]
    return [*(blocks[number] for number in order), *small]


@dataclass(frozen=True, kw_only=True)
class Computed:
    """Tokens that an epoch's batches compute."""

    tokens: int
    """With padding, and with the rows that only fill a batch."""
    own: int
    """Of rows, each once."""

    @property
    def padding(self) -> float:
        """Share of the computed tokens that belong to no row."""
        return 1 - self.own / self.tokens if self.tokens else 0.0


def computed_tokens(order: Iterable[int], lengths: Any, *, batch_size: int) -> Computed:
    """Count what the batches of an epoch compute, each as long as its longest row.

    Args:
        order: indices of an epoch as `BatchOrder` gives them, of full batches; from the number of rows on, fillers.
        lengths: `(N,)`, tokens by row index.
        batch_size: rows of one batch on one process.
    """
    rows = len(lengths)
    indices = np.fromiter(order, dtype=np.int64) % (2 * rows)
    tokens = lengths[indices % rows]
    longest = tokens.reshape(-1, batch_size).max(axis=1)
    return Computed(tokens=int(longest.sum()) * batch_size, own=int(tokens[indices < rows].sum()))
