"""One figure of every row, found by loader processes with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from vlm_lora.batching.loading import each_batch, name_of
from vlm_lora.batching.order import Rows

_CHUNK = 16
"""Rows that a worker measures at a time."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How rows are measured."""

    workers: int
    """Loader processes; 0 measures in this one."""
    show_progress: bool
    timeout: float = 0
    """Seconds to wait for a worker; 0 waits for ever."""

    def each(
        self,
        rows: Rows | Sequence[int],
        function: Callable[[Any], Any],
        description: str,
        name: Callable[[int], str] | None = None,
    ) -> list[Any]:
        """Return what `function` (which workers must be able to pickle) says of every row or number, in order.

        `name` names a row in messages, where the rows do not themselves.

        Raises:
            StalledError: a worker delivers nothing, or was killed.
        """
        chunks = each_batch(
            rows,
            _EachOf(function),
            size=_CHUNK,
            workers=self.workers,
            timeout=self.timeout,
            name=name or name_of(rows),
        )
        found: list[Any] = []
        with tqdm(total=len(rows), desc=description, disable=not self.show_progress, leave=False) as bar:
            for chunk in chunks:
                found += chunk
                bar.update(len(chunk))
        return found


class _EachOf:
    """A collate function that measures rows one by one."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __call__(self, rows: Sequence[Any]) -> list[Any]:
        return [self._function(row) for row in rows]
