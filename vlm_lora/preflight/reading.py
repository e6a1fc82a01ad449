"""Reading every row of a split once, in worker processes where that pays, or taking it from an earlier check."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset
from tqdm import tqdm

from vlm_lora.batching.encoding import RowEncoder
from vlm_lora.batching.loading import each_batch, name_of
from vlm_lora.data.dataset import ConversationDataset
from vlm_lora.data.ocr.task_sampling import Span
from vlm_lora.preflight.cache import CheckCache
from vlm_lora.preflight.findings import Findings
from vlm_lora.preflight.inspection import Inspection, Stamping

logger = logging.getLogger(__name__)

FEW_ROWS = 512
"""Fewer rows are read by this process itself: starting workers takes longer."""

MOST_WORKERS = 8
"""Default limit; each worker holds a processor of its own."""

MANY_BAD = 1000
"""With more bad rows than this an earlier check is not used: each would have to be read again."""

_CHUNK = 16
"""Rows that a worker reads at a time."""


@dataclass(frozen=True, kw_only=True)
class RowReader:
    """How rows are read.

    Args:
        workers: processes; None for as many as there are cores, at most `MOST_WORKERS`, and none for few rows.
        show_progress: whether a bar is shown.
        cache: earlier checks; None to read in any case and keep nothing.
        timeout: seconds to wait for a process that reads; 0 waits for ever.
    """

    workers: int | None = None
    show_progress: bool = False
    cache: CheckCache | None = None
    timeout: float = 0

    def read(self, rows: ConversationDataset, encoder: RowEncoder, span: Span) -> Findings:
        """Return what is in every row, in all draws of it, from an earlier check where nothing has changed since."""
        key = None if self.cache is None else self.cache.key(rows, span)
        inspection = Inspection(rows, encoder, span)
        if self.cache is not None and key is not None:
            earlier = self.cache.load(key)
            if earlier is not None and len(earlier) == len(rows) and self._still_true(earlier, rows, inspection):
                logger.info("%s: %d rows, checked before, nothing has changed since.", rows.name, len(rows))
                return earlier
        found = Findings()
        for finding in self._each(inspection, rows, f"Checking {rows.name}"):
            found.add(finding)
        if self.cache is not None and key is not None:
            self.cache.store(key, found)
        return found

    def _still_true(self, earlier: Findings, rows: ConversationDataset, inspection: Inspection) -> bool:
        """Say whether image files are as they were, and bad rows still bad for the same reason."""
        if len(earlier.bad) > MANY_BAD:
            return False
        stamps = earlier.arrays["stamps"]
        if any(stamps):
            # Rows are read again, not only their files: a link on the way to an image may have been changed.
            bad = {row.index for row in earlier.bad}
            now = self._each(Stamping(rows), rows, f"Comparing {rows.name}")
            if any(
                stamp != stamps[index] and index not in bad
                for index, stamp in enumerate(now)  # a bad row has no stamp to compare
            ):
                return False
        now_bad = ((row, inspection(row.index)) for row in earlier.bad)
        return all((found.kind, found.reason[: len(row.reason)]) == (row.kind, row.reason) for row, found in now_bad)

    def _each(self, function: Callable[[int], Any], rows: ConversationDataset, description: str) -> Iterator[Any]:
        """Yield what `function` says of each row's index, in order."""
        count = len(rows)
        chunks = each_batch(
            _Calls(function, count),
            list,
            size=_CHUNK,
            workers=self._workers_for(count),
            timeout=self.timeout,
            name=name_of(rows),
        )
        with tqdm(total=count, desc=description, unit="row", disable=not self.show_progress, leave=False) as bar:
            for chunk in chunks:
                yield from chunk
                bar.update(len(chunk))

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
