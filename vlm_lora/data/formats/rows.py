"""Rows of one split, wherever they are stored, each with the place it came from.

A table may declare names of categories for its numbers (`ClassLabel` features of `datasets`): they are read here, too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from vlm_lora.data.conversation import RowSource
from vlm_lora.data.wording import short
from vlm_lora.errors import DataError

Declared: TypeAlias = tuple[str, Mapping[str, Any]]
"""A file, and the feature by column that it declares."""


@runtime_checkable
class Described(Protocol):
    """A table whose columns' features are declared, as `datasets.Features.to_dict` writes them."""

    @property
    def features(self) -> Mapping[str, Any]:
        """Feature by column; empty where nothing is declared."""


def declared_names(
    declared: Sequence[Declared], column: str, keys: tuple[str, ...]
) -> tuple[str | None, tuple[str, ...]]:
    """Return the first of `keys` that has names declared for its numbers inside a column, and the names.

    None and no names where there is none.

    Raises:
        DataError: files declare different ones.
    """
    return _agreed(column, ((file, _first(features.get(column), keys)) for file, features in declared))


def names_of(declared: Sequence[Declared], column: str) -> tuple[str, ...]:
    """Return the names declared for a column's own numbers, or those of its list; empty where there are none.

    Raises:
        DataError: files declare different ones.
    """
    found = ((file, (None, _search(features.get(column), "", True))) for file, features in declared)
    return _agreed(column, found)[1]


_Named: TypeAlias = tuple[str | None, tuple[str, ...]]
"""The key of numbers inside a column, None for the column's own, and their names."""


def _agreed(column: str, found: Iterable[tuple[str, _Named]]) -> _Named:
    """Return what all files say that name numbers."""
    said = [(file, named) for file, named in found if named[1]]
    for file, named in said[1:]:
        first, names = said[0]
        if named != names:
            raise DataError(
                f"Column '{column}': {first} declares {_told(names)} for its numbers, and {file} {_told(named)}, so a "
                "number does not mean the same in both. Write the names into the rows instead of the numbers, or read "
                f"the files as data sets of their own: --dataset_name {first} {file}."
            )
    return said[0][1] if said else (None, ())


def _told(named: _Named) -> str:
    return short(named[1]) if named[0] is None else f"{short(named[1])} under '{named[0]}'"


def _first(feature: Any, keys: tuple[str, ...]) -> _Named:
    found = ((key, _search(feature, key, False)) for key in keys)
    return next(((key, names) for key, names in found if names), (None, ()))


def _search(feature: Any, key: str, inside: bool) -> tuple[str, ...]:
    """Return the names of the first ClassLabel at or below `key`."""
    if isinstance(feature, Mapping):
        if inside and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list | tuple):
            return tuple(map(str, feature["names"]))
        found = (_search(inner, key, inside or name == key) for name, inner in feature.items())
    elif isinstance(feature, list | tuple):
        found = (_search(inner, key, inside) for inner in feature)
    else:
        return ()
    return next((names for names in found if names), ())


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


@runtime_checkable
class LinedTable(Protocol):
    """A table of a text file."""

    def line(self, place: int) -> int:
        """Return the line of the file, counting from 1, that the row at a place begins in."""


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
        """Return file, row (counting from 0 within the file), and key or line, where rows have one, for messages."""
        origin = self.origin(index)
        table, row = self.locate(index)
        key = table.key(row) if isinstance(table, KeyedTable) else None
        number = table.number(row) if isinstance(table, NumberedTable) else index - origin.first
        line = table.line(row) if isinstance(table, LinedTable) else None
        return RowSource(file=origin.file, row=number, key=key, line=line)

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
