"""Rows of a Hub data set or of local files front to back, for data that is too large to be copied or indexed first.

Values stay as they are stored: no image is decoded, and nothing of a row is kept once it was handed on.
"""

from __future__ import annotations

import atexit
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.conversation import RowSource
from vlm_lora.data.formats.arrow_files import parquet_features, row_values, stream_parquet
from vlm_lora.data.formats.json_files import holds_document, stream_json_lines
from vlm_lora.data.formats.rows import Origin, Rows
from vlm_lora.data.mixture import split_names
from vlm_lora.data.sources.files import find_source
from vlm_lora.data.sources.named import load_from_hub
from vlm_lora.data.splits import pick_train
from vlm_lora.data.wording import quoted
from vlm_lora.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

NOT_NEEDED = (
    "--streaming true has no effect on %s: it is read as without, from the disk by row numbers. Streamed are Hub data "
    "sets, Parquet and JSONL."
)


@dataclass(frozen=True, kw_only=True)
class StreamedRow:
    """One row as it is stored, and where it came from."""

    values: Mapping[str, Any] = field(repr=False)
    source: RowSource
    folder: Path | None
    """Where relative image paths start; None for a Hub data set."""
    number: int
    """Its place in the stream, counting from 0."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """One file of a stream, or a whole Hub data set."""

    name: str
    """How messages name it."""
    folder: Path | None
    read: Callable[[], Iterator[Mapping[str, Any]]]
    """Begins at the first row, each time it is called."""
    features: Mapping[str, Any] = field(default_factory=dict)
    """What is declared of its columns."""


@dataclass(frozen=True, kw_only=True)
class RowStream:
    """Stretches one after the other."""

    name: str
    """What the user named."""
    stretches: Sequence[Stretch]
    limit: int | None = None
    """Rows after which it ends; None for all of them."""
    config: DataConfig = field(default_factory=DataConfig)
    """The flags, which say what the columns mean as far as they name any."""

    def __iter__(self) -> Iterator[StreamedRow]:
        """Yield all rows, from the first one.

        Raises:
            DataError: a row cannot be read; the message names file and row.
        """
        return islice(self._all(), self.limit)

    def head(self, count: int) -> Rows:
        """Read the first rows and hold them."""
        rows = list(islice(self, count))
        columns = tuple(dict.fromkeys(column for row in rows for column in row.values))
        table = HeldRows(columns=columns, rows=[row.values for row in rows])
        starts = [row for row in rows if row.source.row == 0]
        origins = [Origin(file=row.source.file, folder=row.folder, first=row.number) for row in starts]
        return Rows([table], origins, [(stretch.name, stretch.features) for stretch in self.stretches])

    def _all(self) -> Iterator[StreamedRow]:
        number = 0
        for stretch in self.stretches:
            for place, values in enumerate(stretch.read()):
                source = RowSource(file=stretch.name, row=place)
                yield StreamedRow(values=values, source=source, folder=stretch.folder, number=number)
                number += 1


@dataclass(frozen=True, kw_only=True)
class HeldRows:
    """Rows in memory as a table."""

    columns: tuple[str, ...]
    rows: Sequence[Mapping[str, Any]] = field(repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Return one row."""
        return self.rows[index]


def open_stream(config: DataConfig) -> RowStream | None:
    """Open the training rows that `--dataset_name` names as a stream.

    Returns:
        The stream; None, with a warning, where the source is read by row numbers from the disk anyway.

    Raises:
        ConfigError: several data sets.
        DataError: nothing there, or no split to train on.
    """
    name = config.dataset_name
    if name is None:
        raise DataError("No data is named. Type --dataset_name with a Hub id, file, folder or glob.")
    if len(split_names(name)) > 1 or config.dataset_weights:
        raise ConfigError(
            "--streaming true reads one data set, and --dataset_name or --dataset_weights asks for a mixture. Name one "
            "data set, or type --streaming false."
        )
    found = find_source(name, config_name=config.dataset_config_name)
    if found.saved is not None:
        logger.warning(NOT_NEEDED, found.saved)
        return None
    if found.files is None:
        loaded = load_from_hub(name, config.dataset_config_name, "dataset_name", streaming=True)
        split, data = _pick(name, loaded)
        stretches = [_open_hub_split(data, f"{name} [{split}]")]
    else:
        _, files = _pick(name, found.files)
        suffixes = {path.suffix.lower() for path in files}
        documents = [path for path in files if STREAMED.get(path.suffix.lower()) is _open_json_lines]
        if len(suffixes) != 1 or not suffixes <= STREAMED.keys() or any(map(holds_document, documents)):
            logger.warning(NOT_NEEDED, files[0])
            return None
        stretches = [STREAMED[path.suffix.lower()](path) for path in files]
    return RowStream(name=name, stretches=stretches, limit=config.max_train_samples, config=config)


def _pick(name: str, splits: Mapping[str, Any]) -> tuple[str, Any]:
    picked = pick_train(splits, where=name)
    if picked is None:
        raise DataError(f"--dataset_name {name} has no split to train on; it has {quoted(splits)}. Name other data.")
    return picked


def _open_parquet(path: Path) -> Stretch:
    features = parquet_features(path)
    return Stretch(name=str(path), folder=path.parent, read=partial(stream_parquet, path), features=features)


def _open_json_lines(path: Path) -> Stretch:
    # Not through `datasets`, which makes dates of texts that look like one.
    return Stretch(name=str(path), folder=path.parent, read=partial(stream_json_lines, path))


def _open_hub_split(data: Any, name: str) -> Stretch:
    features = {} if data.features is None else dict(data.features.to_dict())
    return Stretch(name=name, folder=None, read=partial(_read, data, name), features=features)


def _read(data: Any, name: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of an iterable data set through Arrow, so that no feature decodes anything."""
    import datasets
    import pyarrow as pa

    _settle_at_exit()
    number = 0
    try:
        for table in data.with_format("arrow"):
            yield row_values(table, f"{name} row {number}")
            number += 1
    except (OSError, ValueError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{name} row {number}: the stream broke off: {error} Try again, by --resume_from_checkpoint where there is "
            "a checkpoint."
        ) from error


QUIET, LONGEST_WAIT = 0.5, 20.0
"""Seconds without a change in Arrow's memory that mean it reads no more, and seconds to wait for them."""


@cache
def _settle_at_exit() -> None:
    """Let reads that are under way end before the interpreter does.

    `datasets` gives Arrow Python files. A thread of Arrow that calls Python while the interpreter ends never returns,
    and the process waits for it for good.
    """
    atexit.register(_settle)


def _settle() -> None:
    import pyarrow as pa

    began = quiet_since = time.monotonic()
    held = pa.total_allocated_bytes()
    while time.monotonic() - quiet_since < QUIET and time.monotonic() - began < LONGEST_WAIT:
        time.sleep(0.05)
        now = pa.total_allocated_bytes()
        if now != held:
            held, quiet_since = now, time.monotonic()


STREAMED: Mapping[str, Callable[[Path], Stretch]] = {
    ".parquet": _open_parquet,
    ".jsonl": _open_json_lines,
    ".ndjson": _open_json_lines,
}
"""By ending: the files that are streamed; others are read by row numbers, from small indexes."""
