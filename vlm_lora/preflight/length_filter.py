"""`--on_overflow drop`: rows that are too long are left out before the rows are shared among processes."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_lora.batching.row_table import RowTable
from vlm_lora.config.surrogate_text import encode
from vlm_lora.data.dataset import Splits
from vlm_lora.data.split_parts import split_parts, with_parts
from vlm_lora.errors import DataError
from vlm_lora.preflight.faults import TOO_LONG
from vlm_lora.training.planning import shared_values

logger = logging.getLogger(__name__)

FILE = "overlong_rows.json"


def filter_overlong(splits: Splits, arguments: Any, tables: Mapping[str, RowTable]) -> Splits:
    """Return the splits without the rows that are too long; `overlong_rows.json` in the output folder lists those.

    Args:
        splits: the run's data.
        arguments: the training arguments, which know output folder and processes.
        tables: of each data set, on the process of a machine that has read the rows.

    Raises:
        DataError: no row of a split is left.
    """
    parts = split_parts(splits)
    path = Path(arguments.output_dir) / FILE
    listed = shared_values(
        path,
        arguments,
        lambda: {
            name: [
                {"position": row.index, "row": str(rows.source(row.index)), "reason": row.reason}
                for row in tables[name].bad
                if row.kind == TOO_LONG
            ]
            for name, rows in parts.items()
        },
    )
    for name, rows in parts.items():
        _say(name, len(listed[name]), len(rows), path)
    return with_parts(
        splits, {name: rows.without([entry["position"] for entry in listed[name]]) for name, rows in parts.items()}
    )


def note_overlong(folder: Path, listed: Mapping[str, Sequence[Any]], counts: Mapping[str, int], *, write: bool) -> None:
    """List the rows that the check has found too long, as `filter_overlong` does where no report is written.

    Args:
        folder: the output folder.
        listed: the rows by split, each with `index`, `file`, `row` and `reason`.
        counts: rows of each split, those left out included.
        write: whether this process writes the file.

    Raises:
        DataError: no row of a split is left.
    """
    if write:
        content = {
            name: [{"position": row.index, "row": f"{row.file} row {row.row}", "reason": row.reason} for row in rows]
            for name, rows in listed.items()
        }
        (folder / FILE).write_bytes(encode(json.dumps(content, indent=2, ensure_ascii=False)))
    for name, rows in listed.items():
        _say(name, len(rows), counts[name], folder / FILE)


def refuse_all_dropped(name: str, dropped: int, count: int, where: str) -> None:
    """Refuse a split of which nothing is left; `where` lists its rows.

    Raises:
        DataError: all of its rows are too long.
    """
    if dropped == count:
        raise DataError(
            f"--on_overflow drop: all {count} rows of '{name}' are too long ({where} lists them). "
            "Raise --max_length, or use smaller images."
        )


def _say(name: str, dropped: int, count: int, path: Path) -> None:
    refuse_all_dropped(name, dropped, count, str(path))
    if dropped:
        logger.warning(
            "--on_overflow drop: %d of %d rows of '%s' are too long and left out; %s lists them.",
            dropped,
            count,
            name,
            path,
        )
