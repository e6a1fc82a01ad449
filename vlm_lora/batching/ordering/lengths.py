"""How many tokens each row has in each epoch, from the row tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlm_lora.batching.row_table import RowTable
from vlm_lora.data.dataset import Conversations
from vlm_lora.data.mixture import Mixture


def drawn_tokens(table: RowTable) -> Any:
    """Return `(R, D)` uint32: the tokens of each row in each of its draws; `(R, 1)` where it reads the same in all.

    Args:
        table: without bad rows.
    """
    first = np.cumsum(table.rows["samples"], dtype=np.int64) - table.rows["samples"]
    which = table.drawn if table.drawn.shape[1] else np.zeros((len(table), 1), dtype=np.int64)
    return table.samples["tokens"][first[:, None] + which]


class RowLengths:
    """The tokens of a split's rows in an epoch.

    Args:
        rows: of the split.
        tokens: of each of its data sets, in order: `drawn_tokens`.
    """

    def __init__(self, rows: Conversations, tokens: Sequence[Any]) -> None:
        self._rows = rows
        self._tokens = tuple(tokens)
        self._known: tuple[int, Any] | None = None

    def at(self, epoch: int) -> Any:
        """Return `(N,)` int64: tokens by row index.

        Raises:
            IndexError: the epoch's draws were not looked at.
        """
        if self._known is None or self._known[0] != epoch:
            self._known = epoch, self._read(epoch)
        return self._known[1]

    def _read(self, epoch: int) -> Any:
        rows = self._rows
        if not isinstance(rows, Mixture):
            tokens = self._tokens[0]
            return tokens[:, epoch if tokens.shape[1] > 1 else 0].astype(np.int64)
        found = np.empty(len(rows), dtype=np.int64)
        for index in range(len(rows)):
            member, place, repeat = rows.find(index, epoch)
            tokens = self._tokens[member]
            # An epoch's draws stand together, one for each time that it sees the row.
            draw = epoch * rows.repeats[member] + repeat if tokens.shape[1] > 1 else 0
            found[index] = tokens[place, draw]
        return found
