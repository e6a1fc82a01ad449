"""The preflight: every row of a run read once, and what follows from it before any weight is loaded."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_lora.batching.canvases import Size
from vlm_lora.batching.row_table import RowTable
from vlm_lora.batching.shape_survey import plan_canvases
from vlm_lora.batching.shapes import RowShape
from vlm_lora.config.run_config import RunConfig
from vlm_lora.data.cache_folder import cache_place
from vlm_lora.data.dataset import Splits
from vlm_lora.data.ocr.task_sampling import ONCE
from vlm_lora.data.split_parts import places, split_parts, with_parts
from vlm_lora.data.wording import counted
from vlm_lora.errors import DataError
from vlm_lora.preflight.faults import TOO_LONG
from vlm_lora.preflight.figures import DataReport, build_report
from vlm_lora.preflight.length_filter import filter_overlong, note_overlong
from vlm_lora.preflight.parallel_map import ParallelMap
from vlm_lora.preflight.policy import (
    QUARANTINE,
    REPORT,
    SHOWN,
    divide,
    faulty_rows,
    judge,
    leave_out,
    read_report,
    write_report,
)
from vlm_lora.preflight.reading import RowReader
from vlm_lora.preflight.sampled_epochs import spans_of
from vlm_lora.preflight.table_store import TableStore
from vlm_lora.session import Preprocessing
from vlm_lora.training.observers import CheckedData

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReadRows:
    """What one reading of all rows has found."""

    tables: Mapping[str, RowTable]
    """By the names of `split_parts`."""
    canvases: tuple[Size, ...] = ()
    """Sizes that images were brought to; none where they stay as they are."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The rows that a run uses."""

    splits: Splits
    checked: CheckedData | None = None
    """What the check found in them; None without it."""
    tables: Mapping[str, RowTable] = field(default_factory=dict)
    """Of each data set, on the first process of each machine; none where no row was read."""
    canvases: tuple[Size, ...] = ()


def read_rows(
    run: RunConfig,
    splits: Splits,
    preprocessing: Preprocessing,
    *,
    parallel: ParallelMap,
    epochs: int | None,
    static_shapes: bool,
) -> ReadRows:
    """Read every row of the splits as training will. Bad rows are in the tables and raise nothing.

    Args:
        run: the resolved configuration.
        splits: the rows.
        preprocessing: the model's processor and what was made of it.
        parallel: how rows are shared among processes.
        epochs: how many epochs draw anew what varies; None where nothing says it.
        static_shapes: whether batch shapes will be planned: images are brought to a few sizes then.
    """
    reader = RowReader(parallel=parallel, store=TableStore(cache_place("checks"), run, preprocessing))
    parts, spans = split_parts(splits), spans_of(splits, epochs)
    canvases: tuple[Size, ...] = ()
    if static_shapes:
        canvases = plan_canvases(
            preprocessing.encoder,
            lambda: [sizes for rows in parts.values() for sizes in reader.header_sizes(rows)],
            max_shapes=run.batching.max_shapes,
        )
    encoder = preprocessing.encoder.with_canvases(canvases)
    tables = {}
    for name, rows in parts.items():
        if rows.varies and spans[name] != ONCE:
            logger.info(
                "%s: what is asked about a page varies. Of each is checked: %s. One that is bad makes the row bad.",
                rows.name,
                spans[name].text,
            )
        tables[name] = reader.read(rows, encoder, spans[name], canvases)
    if splits.stream is not None and splits.train is not None:
        logger.info("streaming: the first %s checked", counted(len(splits.train), "row was", "rows were"))
    return ReadRows(tables=tables, canvases=canvases)


def report_on(run: RunConfig, splits: Splits, preprocessing: Preprocessing, read: ReadRows) -> DataReport:
    """Put together what was found in the rows."""
    data = run.data.dataset_name or run.data.validation_name
    found = {name: (rows, read.tables[name]) for name, rows in split_parts(splits).items()}
    return build_report(
        str(run.model.model_name_or_path), str(data), preprocessing.longest, preprocessing.image_size, found
    )


def prepare_rows(
    run: RunConfig,
    arguments: Any,
    splits: Splits,
    preprocessing: Preprocessing,
    *,
    workers: int | None,
    epochs: int | None,
    static_shapes: bool,
    needs_lengths: bool = False,
) -> Prepared:
    """Read the rows once on each machine; return those that every process shall use.

    The output folder gets `data_report.json`, and `quarantine.jsonl` with `--on_bad_sample skip`. With `--skip_check`
    rows are only read where something needs to know them: `--on_overflow drop`, static shapes, packing and grouping.

    Args:
        run: the resolved configuration.
        arguments: the training arguments, which know the processes.
        splits: the rows.
        preprocessing: the model's processor and what was made of it.
        workers: processes that read; None for a number that fits rows and machine.
        epochs: how many epochs draw anew what varies; None where nothing says it.
        static_shapes: whether batch shapes will be planned.
        needs_lengths: whether the run cannot do without the rows' lengths.

    Raises:
        DataError: bad rows that stop the run, on every process alike.
    """
    drops = run.batching.on_overflow == "drop"
    if run.data.skip_check and not (drops or static_shapes or needs_lengths):
        for rows in (splits.train, splits.validation):
            if rows is not None:
                preprocessing.encoder.encode(rows[0])
        return Prepared(splits=splits)
    read = ReadRows(tables={})
    with arguments.main_process_first(desc="checking the data"):
        if arguments.local_process_index == 0:
            parallel = ParallelMap(
                workers=workers, show_progress=not arguments.disable_tqdm, timeout=run.batching.dataloader_timeout
            )
            read = read_rows(run, splits, preprocessing, parallel=parallel, epochs=epochs, static_shapes=static_shapes)
            if run.data.skip_check:
                _refuse_first_fault(splits, read, drops=drops)
            else:
                report = report_on(run, splits, preprocessing, read)
                write_report(Path(arguments.output_dir), report, run.data, on_overflow=run.batching.on_overflow)
    checked = None
    if not run.data.skip_check:
        splits, checked = _use_report(run, arguments, splits)
    elif drops:
        splits = filter_overlong(splits, arguments, read.tables)
    if splits.stream is not None:
        return Prepared(splits=splits, checked=checked)  # what was read are its first rows alone
    good = {name: table.take(table.good()) if table.bad else table for name, table in read.tables.items()}
    return Prepared(splits=splits, checked=checked, tables=good, canvases=read.canvases)


def _refuse_first_fault(splits: Splits, read: ReadRows, *, drops: bool) -> None:
    """Stop at a row that training would stop at.

    Raises:
        DataError: there is one.
    """
    for name, rows in split_parts(splits).items():
        for row in read.tables[name].bad:
            if not (drops and row.kind == TOO_LONG):
                raise DataError(f"{rows.source(row.index)}: {row.reason}")


def _use_report(run: RunConfig, arguments: Any, splits: Splits) -> tuple[Splits, CheckedData]:
    """Return the splits without rows left out, and what the report of this machine's first process has found."""
    folder = Path(arguments.output_dir)
    content = read_report(folder)
    listed = faulty_rows(content)
    counts: dict[str, int] = {name: split["rows"] for name, split in content["splits"].items()}
    overlong, bad = divide(listed, run.batching.on_overflow)
    judge(bad, counts, run.data, where=str(folder / REPORT), shown=SHOWN, dropped=overlong)
    if run.batching.on_overflow == "drop":
        by_split = {name: [row for row in overlong if row.split == name] for name in counts}
        note_overlong(folder, by_split, counts, write=arguments.process_index == 0)
    found = CheckedData(report=content, path=folder / REPORT, rows=sum(counts.values()), bad=len(bad))
    return leave_out(splits, listed, folder / (QUARANTINE if bad and not overlong else REPORT)), found


def known_rows(run: RunConfig, splits: Splits, preprocessing: Preprocessing, *, epochs: int | None) -> Prepared:
    """Return the rows with the tables of an earlier check with the same settings, bad ones left out; read none.

    Without such a check the splits come back as they are, with no tables; a stream has none either way.
    """
    if splits.stream is not None:
        return Prepared(splits=splits)
    reader = RowReader(
        parallel=ParallelMap(show_progress=sys.stderr.isatty(), timeout=run.batching.dataloader_timeout),
        store=TableStore(cache_place("checks"), run, preprocessing),
    )
    parts, spans = split_parts(splits), spans_of(splits, epochs)
    tables = {}
    for name, rows in parts.items():
        table = reader.kept(rows, preprocessing.encoder, spans[name])
        if table is None:
            return Prepared(splits=splits)
        parts[name] = rows.without([row.index for row in table.bad])
        tables[name] = table.take(table.good())
    return Prepared(splits=with_parts(splits, parts), tables=tables)


def shapes_of(prepared: Prepared) -> dict[str, list[RowShape]]:
    """Return what each row contributes to its batch's shape in the first epoch, by split; none without tables."""
    given = {"train": prepared.splits.train, "validation": prepared.splits.validation}
    return {
        split: [prepared.tables[name].shape(index, draw) for name, index, draw in places(split, rows)]
        for split, rows in given.items()
        if rows is not None and prepared.tables
    }
