"""A run's identity, put together once its rows are known; other rows than those of a checkpoint's run are refused."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from vlm_lora.backend import Backend
from vlm_lora.batching.row_table import RowTable
from vlm_lora.config.repeated import FILE
from vlm_lora.config.resolution import to_mapping
from vlm_lora.config.run_config import RunConfig
from vlm_lora.data.dataset import Splits
from vlm_lora.data.split_parts import split_parts
from vlm_lora.errors import ConfigError
from vlm_lora.training.checkpoints.changed_settings import AGAIN, NEW_RUN, Change, reads_rows
from vlm_lora.training.checkpoints.resumption import Resumption
from vlm_lora.training.checkpoints.setting_kinds import OTHER_ROWS, TRAINED_ROWS, Kind, kind_of
from vlm_lora.training.identity.base_model import describe_base
from vlm_lora.training.identity.record import ALONE, RunIdentity, write_identity
from vlm_lora.training.identity.rows import RowsChange, compare_rows, describe_rows
from vlm_lora.training.identity.secrets import masked_values
from vlm_lora.training.identity.surroundings import command, environment, git_state, hardware
from vlm_lora.training.identity.versions import versions
from vlm_lora.training.meeting import Meeting, first_text

logger = logging.getLogger(__name__)

SEEDS = ("seed", "data_seed", "split_seed", "task_seed")


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What a run is made of when its rows have been read and no weights are loaded."""

    run: RunConfig
    """Resolved."""
    values: Mapping[str, Any]
    """The keys of the arguments class that were given."""
    arguments: Any
    backend: Backend
    settings: Mapping[str, Any]
    """The effective ones."""
    splits: Splits
    """The rows that the run uses."""
    tables: Mapping[str, RowTable]
    """What is known of them, on the first process of each machine."""

    def source(self, name: str, index: int) -> str:
        """Return file and row of row `index` of data set `name`."""
        return str(split_parts(self.splits)[name].source(index))

    @property
    def reads(self) -> bool:
        """Whether this process knows the rows."""
        return bool(self.arguments.local_process_index == 0)


def identify(opened: Opened, resumption: Resumption) -> RunIdentity:
    """Return the record of a run, which rank 0 writes into the output folder. Every process calls it.

    Args:
        opened: the run.
        resumption: where it begins.

    Raises:
        ConfigError: it goes on from a checkpoint, and its rows are not those of the checkpoint's run.
    """
    run, arguments = opened.run, opened.arguments
    data = describe_rows(opened.splits, opened.tables) if opened.reads else None
    changes = list(resumption.changes)
    if resumption.earlier is not None:
        changes += judge_rows(opened, resumption, data)
    base, adapter = describe_base(run.model)
    settings = masked_values(opened.settings)
    identity = RunIdentity(
        settings=settings,
        versions=versions(),
        config=masked_values(to_mapping(run, opened.values)),
        command=command(),
        directory=str(Path.cwd()),
        git=git_state(Path.cwd()) if opened.reads else None,
        data=data,
        base_model=base,
        adapter=adapter,
        ranks=arguments.world_size,
        seeds={name: settings.get(name) for name in SEEDS},
        hardware=hardware(opened.backend),
        environment=environment(os.environ),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        repeats=run.from_run,
        continues=_continued(resumption, changes),
    )
    if arguments.process_index == 0:
        write_identity(Path(arguments.output_dir), identity, name=FILE if arguments.do_train else ALONE)
    return identity


def judge_rows(opened: Opened, resumption: Resumption, data: Mapping[str, Any] | None) -> list[Change]:
    """Return how the rows differ from those of the checkpoint's run, having said it.

    Raises:
        ConfigError: rows that are trained on say something else, and no setting that was allowed to change reads them
            otherwise; on every process alike.
    """
    before = resumption.earlier.data if resumption.earlier is not None else None
    moved = [change for change in resumption.changes if change.waits_for_rows]
    found: Sequence[RowsChange] = ()
    if before and data is not None:
        found = compare_rows(before, data, opened.source, then="in the checkpoint", moved=bool(moved))
    meant = "" if moved else _reads_otherwise(resumption)
    refused = [change.text for change in found if change.trained and not meant]
    if refused:
        refused = [*(line for change in moved for line in change.lines()), *refused]
    arguments = opened.arguments
    meeting = Meeting(arguments.process_index, arguments.world_size, timedelta(seconds=arguments.ddp_timeout))
    told = meeting.message("\n".join(f"  {text}" for text in refused), first_text)
    if told:
        error = ConfigError(
            f"--resume_from_checkpoint {resumption.checkpoint}: the rows differ from those of its run:\n{told}\n"
            f"{AGAIN}\n{NEW_RUN}"
        )
        error.told = meeting.told if arguments.world_size > 1 else None
        raise error
    if moved and arguments.process_index == 0:
        lines = "; ".join(line for change in moved for line in change.lines())
        logger.info("Changed since the checkpoint's run, with the same rows to train on: %s.", lines)
    for change in found:
        reason = f" ({meant})" if meant and change.trained else ""
        logger.warning("Rows changed since the checkpoint's run%s: %s.", reason, change.text)
    return [_as_change(change) for change in found]


def _reads_otherwise(resumption: Resumption) -> str:
    """Return what explains other rows: settings that were allowed to change, or another reader of images."""
    allowed = [
        f"--{change.name}"
        for change in resumption.changes
        if change.kind is Kind.CHANGES_RESULT and reads_rows(change.name)
    ]
    if allowed:
        return f"as {', '.join(allowed)} may have it"
    assert resumption.earlier is not None  # the caller's
    before, now = resumption.earlier.versions.get("pillow"), versions().get("pillow")
    return f"pillow {now} may decode images otherwise than {before} did" if before and before != now else ""


def _as_change(change: RowsChange) -> Change:
    name = TRAINED_ROWS if change.trained else OTHER_ROWS
    return Change(name=name, saved=None, now=None, kind=kind_of(name), why=change.text)


def _continued(resumption: Resumption, changes: Sequence[Change]) -> dict[str, Any] | None:
    if resumption.checkpoint is None:
        return None
    earlier = resumption.earlier
    return {
        "checkpoint": str(resumption.checkpoint),
        "started": None if earlier is None else earlier.started,
        "changed": masked_values([line for change in changes for line in _lines(change)]),
        "continues": None if earlier is None else earlier.continues,
    }


def _lines(change: Change) -> list[str]:
    return [change.why] if change.name in (TRAINED_ROWS, OTHER_ROWS) else change.lines()
