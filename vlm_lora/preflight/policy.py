"""What a run does about bad rows: stop with their names, or leave them out and write them down."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_lora.config.run_config import DataConfig
from vlm_lora.config.whole_files import write_whole
from vlm_lora.data.dataset import Splits
from vlm_lora.data.split_parts import split_parts, with_parts
from vlm_lora.errors import DataError
from vlm_lora.preflight.faults import TOO_LONG
from vlm_lora.preflight.figures import DataReport, FaultyRow

logger = logging.getLogger(__name__)

REPORT, QUARANTINE = "data_report.json", "quarantine.jsonl"

SHOWN = 10
"""Bad rows that an error message names."""


def write_report(folder: Path, report: DataReport, config: DataConfig, *, on_overflow: str) -> None:
    """Write `data_report.json`, and `quarantine.jsonl` where bad rows are left out; each whole or not at all.

    Rows that `--on_overflow drop` leaves out are no bad ones: `overlong_rows.json` lists them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / REPORT, json.dumps(report.to_mapping(), indent=2, ensure_ascii=False) + "\n")
    if config.on_bad_sample == "skip":
        names = ("split", "file", "row", "key", "kind", "reason")
        _, bad = divide(report.bad, on_overflow)
        lines = [json.dumps({name: getattr(row, name) for name in names}, ensure_ascii=False) for row in bad]
        write_whole(folder / QUARANTINE, "".join(f"{line}\n" for line in lines))


def read_report(folder: Path) -> Mapping[str, Any]:
    """Return what `write_report` wrote for the processes of this machine.

    Raises:
        DataError: the process that checks the data has stopped before that.
    """
    path = folder / REPORT
    if not path.is_file():
        raise DataError(
            f"{path} was not written: the first process of this machine stopped while it checked the data; "
            "its own message says why."
        )
    content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def faulty_rows(report: Mapping[str, Any]) -> list[FaultyRow]:
    """Return the bad rows of a report that was read."""
    return [FaultyRow(**row) for row in report["bad"]]


def divide(bad: Sequence[FaultyRow], on_overflow: str) -> tuple[list[FaultyRow], list[FaultyRow]]:
    """Return the rows that `--on_overflow drop` leaves out without ado, and those that are bad."""
    drops = on_overflow == "drop"
    dropped = [row for row in bad if drops and row.kind == TOO_LONG]
    return dropped, [row for row in bad if not (drops and row.kind == TOO_LONG)]


def judge(
    bad: Sequence[FaultyRow],
    rows: Mapping[str, int],
    config: DataConfig,
    *,
    where: str,
    shown: int,
    dropped: Sequence[FaultyRow] = (),
) -> None:
    """Say whether a run may go on.

    Args:
        bad: the bad rows.
        rows: number of rows, by split.
        config: what is done about bad rows.
        where: the file or command that lists all of them.
        shown: how many the message names.
        dropped: the rows that `--on_overflow drop` leaves out in addition to them.

    Raises:
        DataError: a row is bad and none may be, or too many are, or no row of a split is left.
    """
    if not bad:
        return
    if config.on_bad_sample == "error":
        raise DataError(_listed(bad, sum(rows.values()), where, shown))
    for split, count in rows.items():
        own = [row for row in bad if row.split == split]
        long = sum(row.split == split for row in dropped)
        if own and len(own) + long == count:
            also = f" or too long ({long}, which --on_overflow drop leaves out)" if long else ""
            raise DataError(f"{split}: all {count} rows are bad{also}, the first: {own[0]}")
        if len(own) > config.max_bad_fraction * count:
            raise DataError(
                f"{split}: {len(own)} of {count} rows are bad ({len(own) / count:.2%}), more than "
                f"--max_bad_fraction {config.max_bad_fraction:g} allows. The first: {own[0]} {where} lists all. Put "
                f"them right, or type a --max_bad_fraction of {_share(len(own), count):g} or more."
            )


def leave_out(splits: Splits, bad: Sequence[FaultyRow], where: Path) -> Splits:
    """Return the splits without these rows, the same on every process; `where` lists them."""
    if not bad:
        return splits
    parts = split_parts(splits)
    for name, rows in parts.items():
        own = [row.index for row in bad if row.split == name]
        if own:
            parts[name] = rows.without(own)
            logger.warning(
                "%s: %d of %d rows are left out; %s says which and why.",
                rows.name,
                len(own),
                len(rows),
                where,
            )
    return with_parts(splits, parts)


def _listed(bad: Sequence[FaultyRow], rows: int, where: str, shown: int) -> str:
    if len(bad) == 1:
        return f"1 of {rows} rows cannot be used: {bad[0]} {bad[0].cure}"
    if shown == 1:
        return f"{len(bad)} of {rows} rows cannot be used, the first: {bad[0]} {bad[0].cure}"
    named = "\n".join(f"  {row}" for row in bad[:shown])
    more = f"\n  and {len(bad) - shown} more" if len(bad) > shown else ""
    return (
        f"{len(bad)} of {rows} rows cannot be used:\n{named}{more}\n{where} lists all of them with what to do. Put "
        "them right, or type --on_bad_sample skip to leave them out, where they are few (--max_bad_fraction)."
    )


def _share(part: int, whole: int) -> float:
    """Return `part / whole` rounded up to three digits after the point."""
    return -(-part * 1000 // whole) / 1000
