"""Every row of a split read once into its row table, or the table of an earlier reading where nothing has changed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from vlm_lora.batching.canvases import Size
from vlm_lora.batching.encoding import RowEncoder
from vlm_lora.batching.loading import name_of
from vlm_lora.batching.row_table import RowTable, RowTableBuilder
from vlm_lora.data.dataset import ConversationDataset
from vlm_lora.data.ocr.task_sampling import Span
from vlm_lora.data.wording import counted
from vlm_lora.preflight.inspection import HeaderSizes, Inspection, Stamping
from vlm_lora.preflight.parallel_map import ParallelMap
from vlm_lora.preflight.table_store import TableStore

logger = logging.getLogger(__name__)

MANY_BAD = 1000
"""With more bad rows than this an earlier table is not used: each would have to be read again."""


@dataclass(frozen=True, kw_only=True)
class RowReader:
    """How rows are read.

    Args:
        parallel: how they are shared among processes.
        store: earlier tables; None to read in any case and keep nothing.
    """

    parallel: ParallelMap
    store: TableStore | None = None

    def read(
        self, rows: ConversationDataset, encoder: RowEncoder, span: Span, canvases: Sequence[Size] = ()
    ) -> RowTable:
        """Return the table of all rows, in all draws of them, from an earlier reading where nothing has changed since.

        Args:
            rows: of one data set.
            encoder: makes them into tensors, images at the sizes of `canvases`.
            span: how often the run draws for each row.
            canvases: sizes that images are brought to; none where they stay as they are.
        """
        # Before the rows are read: a change while they are read then shows at the next check.
        key = None if self.store is None else self.store.key(rows, span, canvases)
        earlier = self._load(key, rows, Inspection(rows, encoder, span))
        if earlier is not None:
            logger.info("%s: %s, checked before, nothing has changed since.", rows.name, counted(len(rows), "row"))
            return earlier
        if self.store is not None and canvases and self.store.has(self.store.key(rows, span)):
            logger.info(
                "%s: checked before with images as they are. Now batch shapes are planned, for images of %d sizes, so "
                "the rows are read again.",
                rows.name,
                len(canvases),
            )
        builder = RowTableBuilder(name=rows.name, layout=rows.schema.layout)
        inspection = Inspection(rows, encoder, span)
        for record in self.parallel.each(inspection, len(rows), f"Checking {rows.name}", name_of(rows)):
            builder.add(record)
        table = builder.table()
        if self.store is not None and key is not None:
            self.store.store(key, table)
        elif self.store is not None:
            logger.info("%s: its rows have neither files nor a fingerprint, so this check is not kept.", rows.name)
        return table

    def kept(self, rows: ConversationDataset, encoder: RowEncoder, span: Span) -> RowTable | None:
        """Return the table of an earlier reading, or None where there is none or something has changed since."""
        key = None if self.store is None else self.store.key(rows, span)
        return self._load(key, rows, Inspection(rows, encoder, span))

    def header_sizes(self, rows: ConversationDataset) -> list[tuple[Size, ...]]:
        """Return the sizes of each row's images, from headers."""
        return list(self.parallel.each(HeaderSizes(rows), len(rows), f"Image sizes of {rows.name}", name_of(rows)))

    def _load(self, key: str | None, rows: ConversationDataset, inspection: Inspection) -> RowTable | None:
        if self.store is None or key is None:
            return None
        earlier = self.store.load(key)
        return earlier if earlier is not None and self._still_true(earlier, rows, inspection) else None

    def _still_true(self, earlier: RowTable, rows: ConversationDataset, inspection: Inspection) -> bool:
        """Say whether image files are as they were, and bad rows still bad for the same reason."""
        if len(earlier) != len(rows) or len(earlier.bad) > MANY_BAD:
            return False
        stamps = earlier.rows["stamp"]
        if stamps.any():
            # Rows are read again, not only their files: a link on the way to an image may have been changed.
            bad = {row.index for row in earlier.bad}
            now = self.parallel.each(Stamping(rows), len(rows), f"Comparing {rows.name}", name_of(rows))
            if any(
                stamp != stamps[index] and index not in bad
                for index, stamp in enumerate(now)  # a bad row has no stamp to compare
            ):
                return False
        now_bad = ((row, inspection(row.index)) for row in earlier.bad)
        return all((found.kind, found.reason[: len(row.reason)]) == (row.kind, row.reason) for row, found in now_bad)
