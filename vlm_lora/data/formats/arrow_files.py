"""Parquet and Arrow files as rows of an Arrow table that nothing ever decodes.

Small Parquet files are held in memory, Arrow files are memory-mapped. Images stay the bytes
or paths that the file holds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_lora.errors import DataError

STREAMED_AT_A_TIME = 16
"""Rows of a Parquet file that are unpacked at a time where it is streamed."""


class ArrowTable:
    """Rows of one file through an Arrow table; pickled by path, opened again where it is used."""

    def __init__(self, path: Path, opener: Callable[[Path], Any]) -> None:
        self.path = path
        self._opener = opener
        self._stamp = file_stamp(path)
        self._table: Any = opener(path)
        try:
            self.columns: tuple[str, ...] = tuple(self._table.column_names)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: the file is damaged: a column's name is no text ({error}).") from error
        doubled = [name for name in self.columns if self.columns.count(name) > 1]
        if doubled:
            raise DataError(f"{path}: two columns are called '{doubled[0]}'. Rename or remove one.")
        self.features: Mapping[str, Any] = declared_features(self._table.schema.metadata)
        """What `datasets` declared of the columns when it wrote the file; empty for other files."""
        self._length: int = self._table.num_rows

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Return one row as Python values.

        Raises:
            DataError: the file is damaged there, or was changed before this process opened it again.
        """
        if self._table is None:
            self._table = self._open_again()
        return row_values(self._table.slice(index, 1), f"{self.path} row {index}")

    def _open_again(self) -> Any:
        table, fault = None, None
        try:
            table = self._opener(self.path)
        except (DataError, OSError) as error:
            fault = error
        # After it was read: a change while it is read shows too. And before a fault: a change may be its cause.
        if file_stamp(self.path) != self._stamp:
            raise DataError(f"{self.path} was changed while it was in use. Start again.") from fault
        if fault is not None:
            raise fault
        return table

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}


def file_stamp(path: Path) -> tuple[int, int] | None:
    """Return a file's size and modification time in ns; None where there is no such file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True, kw_only=True)
class HeldOpen:
    """Rows of a `datasets.Dataset`, read through Arrow so that no feature decodes anything."""

    dataset: Any
    columns: tuple[str, ...]

    @classmethod
    def of(cls, dataset: Any) -> HeldOpen:
        """Take a `datasets.Dataset` whatever its format is."""
        return cls(dataset=dataset.with_format("arrow"), columns=tuple(dataset.column_names))

    @property
    def features(self) -> Mapping[str, Any]:
        """What the data set declares of its columns."""
        return dict(self.dataset.features.to_dict())

    @property
    def fingerprint(self) -> str:
        """What `datasets` knows these rows by: it changes with the data and with everything done to them."""
        return str(self.dataset._fingerprint)

    @property
    def files(self) -> tuple[Path, ...]:
        """The Arrow files that the rows lie in."""
        return tuple(Path(entry["filename"]) for entry in self.dataset.cache_files)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Return one row as Python values.

        Raises:
            DataError: the data set's files are damaged there.
        """
        return row_values(self.dataset[index : index + 1], f"Row {index} of the data set")


def row_values(row: Any, where: str) -> Mapping[str, Any]:
    """Return the values of a table of one row, checked first: damaged offsets make Arrow read anywhere, and crash.

    Raises:
        DataError: the table is damaged; the message begins with `where`.
    """
    import pyarrow as pa

    try:
        row.validate(full=True)
        return row.to_pylist()[0]
    except (pa.ArrowException, ValueError, LookupError, OverflowError) as error:  # text that is no UTF-8, odd dates
        raise DataError(f"{where}: the file is damaged ({error}). Copy or write it again.") from error


def _open_native(path: Path) -> Any:
    """Open a file by Arrow itself, of any name: as text Arrow takes UTF-8 only. Raises OSError."""
    import pyarrow as pa

    return pa.OSFile(os.fsencode(path))


def stream_parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a Parquet file, some at a time, as Python values.

    Raises:
        DataError: the file cannot be read, with the row.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        # Not through a Python file: Arrow's threads would call Python, also when it ends, and hang.
        with pq.ParquetFile(_open_native(path)) as file:
            for batch in file.iter_batches(batch_size=STREAMED_AT_A_TIME):
                for place in range(batch.num_rows):
                    row = pa.Table.from_batches([batch.slice(place, 1)])
                    yield row_values(row, f"{path} row {number}")
                    number += 1
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path} row {number} cannot be read: {error}") from error


def parquet_features(path: Path) -> Mapping[str, Any]:
    """Return what `datasets` declared of a Parquet file's columns; empty where it did not write it.

    Raises:
        DataError: the file is no Parquet, or two columns are called alike.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(_open_native(path))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    doubled = [name for name in schema.names if schema.names.count(name) > 1]
    if doubled:
        raise DataError(f"{path}: two columns are called '{doubled[0]}'. Rename or remove one.")
    return declared_features(schema.metadata)


def read_parquet(path: Path) -> ArrowTable:
    """Read a Parquet file into memory."""
    return ArrowTable(path, _open_parquet)


def read_arrow(path: Path) -> ArrowTable:
    """Memory-map an Arrow file: the streaming format (as `datasets` writes) or the file format (Feather)."""
    return ArrowTable(path, _open_arrow)


def count_parquet_rows(path: Path) -> int:
    """Return a Parquet file's number of rows from its footer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(_open_native(path)).num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from error


def declared_features(metadata: Mapping[bytes, bytes] | None) -> Mapping[str, Any]:
    """Return the features in an Arrow schema's metadata."""
    try:
        declared = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}  # other tools may write what they like under this name
    return declared if isinstance(declared, dict) else {}


def _open_parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(_open_native(path)).read()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from error


def _open_arrow(path: Path) -> Any:
    import pyarrow as pa

    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty.")
    source = pa.memory_map(os.fsencode(path))
    faults: list[str] = []
    for opener in (pa.ipc.open_stream, pa.ipc.open_file):
        source.seek(0)
        try:
            table = opener(source).read_all()
            table.validate()  # lengths only; each row is checked when it is read
            return table
        except (pa.ArrowException, OSError, ValueError) as error:
            faults.append(str(error).splitlines()[0])
    raise DataError(f"{path}: not an Arrow file, or a damaged one (as stream: {faults[0]}; as file: {faults[1]}).")
