"""Rows of one split, wherever they are stored, each with the place it came from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from vlm_lora.data.columns.class_names import Declared, Described
from vlm_lora.data.conversation import RowSource

Row: TypeAlias = Mapping[str, Any]
"""Values by column."""


class Table(Protocol):
    """Rows by position, with the names of all columns any row has."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


@runtime_checkable
class KeyedTable(Protocol):
    """A table whose rows have names of their own."""

    def key(self, number: int) -> str:
        """Return a row's name, for messages."""


@runtime_checkable
class NumberedTable(Protocol):
    """A table of a file whose rows are not all in it."""

    def number(self, place: int) -> int:
        """Return the number in the file of the row at a place."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a stretch of rows came from."""

    file: str
    """How messages name it."""
    folder: Path | None
    """Where relative image paths start; None for a Hub data set."""
    first: int
    """Position of its first row among all rows."""


class Rows:
    """Tables one after the other. Picklable as far as its tables are; rows are read when asked for."""

    def __init__(
        self, tables: Sequence[Table], origins: Sequence[Origin], declared: Sequence[Declared] | None = None
    ) -> None:
        """Join tables.

        Args:
            tables: the rows.
            origins: where they come from.
            declared: what each file says of its columns; by default what each table says, from an origin of its own.
        """
        self._tables = tuple(tables)
        if declared is None:
            pairs = zip(self._tables, origins, strict=False)
            declared = [(origin.file, table.features) for table, origin in pairs if isinstance(table, Described)]
        self.declared = tuple(declared)
        """By file, what is declared of its columns."""
        self._starts: list[int] = []
        total = 0
        for table in self._tables:
            self._starts.append(total)
            total += len(table)
        self._length = total
        self._origins = tuple(origins)
        self._origin_starts = [origin.first for origin in self._origins]
        self.columns: tuple[str, ...] = tuple(dict.fromkeys(c for table in self._tables for c in table.columns))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Return row `index`, with 0 <= index < len."""
        if not 0 <= index < self._length:
            raise IndexError(f"row {index} of {self._length}")
        table, row = self.locate(index)
        return table[row]

    def locate(self, index: int) -> tuple[Table, int]:
        """Return the table that row `index` lies in, and its place there."""
        place = bisect_right(self._starts, index) - 1
        return self._tables[place], index - self._starts[place]

    def origin(self, index: int) -> Origin:
        """Return the file that row `index` lies in."""
        return self._origins[bisect_right(self._origin_starts, index) - 1]

    def source(self, index: int) -> RowSource:
        """Return file, row (counting from 0 within the file) and key, where rows have one, for messages."""
        origin = self.origin(index)
        table, row = self.locate(index)
        key = table.key(row) if isinstance(table, KeyedTable) else None
        number = table.number(row) if isinstance(table, NumberedTable) else index - origin.first
        return RowSource(file=origin.file, row=number, key=key)

    @property
    def origins(self) -> tuple[Origin, ...]:
        """Where the rows come from, in order."""
        return self._origins

    @property
    def tables(self) -> tuple[Table, ...]:
        """The tables, in order."""
        return self._tables

    @property
    def files(self) -> tuple[str, ...]:
        """The files the rows come from, in order."""
        return tuple(origin.file for origin in self._origins)


def join_files(files: Sequence[tuple[str, Path, Table]]) -> Rows:
    """Put the tables of several files one after the other, each from its own folder."""
    origins = []
    first = 0
    for name, folder, table in files:
        origins.append(Origin(file=name, folder=folder, first=first))
        first += len(table)
    return Rows([table for _, _, table in files], origins)
