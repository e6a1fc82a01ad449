"""One figure of every row, found by worker processes, with a live line of how far they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from vlm_lora.batching.loading import each_batch
from vlm_lora.progress import Progress

FEW_ROWS = 512
"""Fewer rows are read by this process itself: starting workers takes longer."""

MOST_WORKERS = 8
"""Default limit; each worker holds a processor of its own."""

_CHUNK = 16
"""Rows that a worker reads at a time."""


@dataclass(frozen=True, kw_only=True)
class ParallelMap:
    """How a function is applied to all rows.

    Args:
        workers: processes; None for as many as there are cores, at most `MOST_WORKERS`, and none for few rows.
        show_progress: whether it is said how far they are: on one rank only.
        timeout: seconds to wait for a process that reads; 0 waits for ever.
    """

    workers: int | None = None
    show_progress: bool = False
    timeout: float = 0

    def each(
        self, function: Callable[[int], Any], count: int, description: str, name: Callable[[int], str]
    ) -> Iterator[Any]:
        """Yield what `function` (which workers must be able to pickle) says of 0, 1, ..., count - 1, in order.

        `name` names a row in messages.

        Raises:
            StalledError: a worker delivers nothing, or was killed.
        """
        chunks = each_batch(
            _Calls(function, count),
            list,
            size=_CHUNK,
            workers=self._workers_for(count),
            timeout=self.timeout,
            name=name,
        )
        with Progress(description, count, "rows", shown=self.show_progress) as progress:
            for chunk in chunks:
                yield from chunk
                progress.advance(len(chunk))

    def _workers_for(self, count: int) -> int:
        if self.workers is not None:
            return self.workers
        return 0 if count < FEW_ROWS else min(MOST_WORKERS, len(os.sched_getaffinity(0)))


class _Calls(Dataset[Any]):
    """A function's values as a data set."""

    def __init__(self, function: Callable[[int], Any], count: int) -> None:
        self._function = function
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        return self._function(index)
