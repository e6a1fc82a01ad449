"""The preflight: every row of a run read once, and what follows from it before any weight is loaded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from vlm_lora.config.run_config import RunConfig
from vlm_lora.data.cache_folder import cache_place
from vlm_lora.data.dataset import Splits
from vlm_lora.data.ocr.task_sampling import ONCE
from vlm_lora.data.split_parts import split_parts
from vlm_lora.preflight.cache import CheckCache
from vlm_lora.preflight.figures import DataReport, build_report
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
from vlm_lora.session import Preprocessing
from vlm_lora.training.drawing import spans_of
from vlm_lora.training.dropping import leave_out_overlong, note_overlong

logger = logging.getLogger(__name__)


def check_rows(
    run: RunConfig,
    splits: Splits,
    preprocessing: Preprocessing,
    *,
    workers: int | None,
    show_progress: bool,
    epochs: int | None,
) -> DataReport:
    """Read every row of the splits as training will, and report what they are.

    Args:
        run: the resolved configuration.
        splits: the rows.
        preprocessing: the model's processor and what was made of it.
        workers: processes; None for a number that fits rows and machine.
        show_progress: whether a bar is shown.
        epochs: how many epochs draw anew what varies; None where nothing says it.

    Returns:
        The report; bad rows are in it and raise nothing.
    """
    cache = CheckCache(cache_place("checks"), run, preprocessing)
    reader = RowReader(
        workers=workers, show_progress=show_progress, cache=cache, timeout=run.batching.dataloader_timeout
    )
    spans = spans_of(splits, epochs)
    found = {}
    for name, rows in split_parts(splits).items():
        if rows.varies and spans[name] != ONCE:
            logger.info(
                "%s: what is asked about a page varies. Of each is checked: %s. One that is bad makes the row bad.",
                rows.name,
                spans[name].text,
            )
        found[name] = (rows, reader.read(rows, preprocessing.encoder, spans[name]))
    if splits.stream is not None and splits.train is not None:
        logger.info("streaming: the first %d rows were checked", len(splits.train))
    data = run.data.dataset_name or run.data.validation_name
    return build_report(str(run.model.model_name_or_path), str(data), preprocessing.longest, found)


def check_before_training(
    run: RunConfig,
    arguments: Any,
    splits: Splits,
    preprocessing: Preprocessing,
    *,
    workers: int | None,
    epochs: int | None,
) -> Splits:
    """Check the rows once on each machine; return the splits as every process shall use them.

    The output folder gets `data_report.json`, and `quarantine.jsonl` with `--on_bad_sample skip`.

    Args:
        run: the resolved configuration.
        arguments: the training arguments, which know the processes.
        splits: the rows.
        preprocessing: the model's processor and what was made of it.
        workers: processes that read; None for a number that fits rows and machine.
        epochs: how many epochs draw anew what varies; None where nothing says it.

    Raises:
        DataError: bad rows that stop the run, on every process alike.
    """
    folder = Path(arguments.output_dir)
    drops = run.batching.on_overflow == "drop"
    if run.data.skip_check:
        if drops:
            limit = run.batching.dataloader_timeout
            splits = leave_out_overlong(splits, preprocessing.encoder, arguments, epochs=epochs, timeout=limit)
        for rows in (splits.train, splits.validation):
            if rows is not None:
                preprocessing.encoder.encode(rows[0])
        return splits
    with arguments.main_process_first(desc="checking the data"):
        if arguments.local_process_index == 0:
            shown = not arguments.disable_tqdm
            report = check_rows(run, splits, preprocessing, workers=workers, show_progress=shown, epochs=epochs)
            write_report(folder, report, run.data, on_overflow=run.batching.on_overflow)
    content = read_report(folder)
    listed = faulty_rows(content)
    counts: dict[str, int] = {name: split["rows"] for name, split in content["splits"].items()}
    overlong, bad = divide(listed, run.batching.on_overflow)
    judge(bad, counts, run.data, where=str(folder / REPORT), shown=SHOWN, dropped=overlong)
    logger.info("Checked %d rows: %d bad. %s says what they are.", sum(counts.values()), len(bad), folder / REPORT)
    for name, split in content["splits"].items():
        if split["unanswered"]:
            logger.info("%s: %d rows have an empty answer, which the model learns to give.", name, split["unanswered"])
    if content["leaked"]:
        logger.warning(
            "%d validation rows are also trained on; %s names the first.", content["leaked"], folder / REPORT
        )
    if drops:
        by_split = {name: [row for row in overlong if row.split == name] for name in counts}
        note_overlong(folder, by_split, counts, write=arguments.process_index == 0)
    return leave_out(splits, listed, folder / (QUARANTINE if bad and not overlong else REPORT))
