"""`--on_overflow drop`: rows that are too long are left out before the rows are shared among processes."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm_lora.batching.encoding import RowEncoder
from vlm_lora.batching.overlong import overlong_rows
from vlm_lora.data.dataset import ConversationDataset, Splits
from vlm_lora.errors import DataError
from vlm_lora.training.planning import shared_values

logger = logging.getLogger(__name__)

FILE = "overlong_rows.json"


def leave_out_overlong(splits: Splits, encoder: RowEncoder, arguments: Any) -> Splits:
    """Return the splits without the rows that are too long; `overlong_rows.json` in the output folder lists those.

    Args:
        splits: the run's data.
        encoder: makes the rows.
        arguments: the training arguments, which know output folder, loader workers and processes.

    Raises:
        DataError: no row of a split is left.
        RenderingError, ImageError: a row cannot be encoded for another reason.
    """
    given = {"train": splits.train, "validation": splits.validation}
    parts = {name: rows for name, rows in given.items() if rows is not None}
    path = Path(arguments.output_dir) / FILE
    listed = shared_values(
        path,
        arguments,
        lambda: {
            name: [
                {"position": position, "row": str(rows.source(position)), "reason": reason}
                for position, reason in overlong_rows(
                    rows,
                    encoder,
                    workers=arguments.dataloader_num_workers,
                    show_progress=not arguments.disable_tqdm,
                ).items()
            ]
            for name, rows in parts.items()
        },
    )
    kept = {name: _kept(rows, [entry["position"] for entry in listed[name]], path) for name, rows in parts.items()}
    return replace(splits, train=kept.get("train"), validation=kept.get("validation"))


def _kept(rows: ConversationDataset, positions: list[int], path: Path) -> ConversationDataset:
    if len(positions) == len(rows):
        raise DataError(
            f"--on_overflow drop: all {len(rows)} rows of '{rows.name}' are too long ({path} lists them). "
            "Raise --max_length, or use smaller images."
        )
    if positions:
        logger.warning(
            "--on_overflow drop: %d of %d rows of '%s' are too long and left out; %s lists them.",
            len(positions),
            len(rows),
            rows.name,
            path,
        )
    return rows.without(positions)
