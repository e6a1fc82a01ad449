"""CSV and `.tsv` files as rows: every value is text as written, and an empty cell is a missing value.

CSV has no null. A spreadsheet writes one as an empty cell, and lines of empty cells behind its last row. What parts the
values is shown by the first line: spreadsheets write `;` where the comma parts decimals, others `|` or a tab.
"""

from __future__ import annotations

import csv
import json
import logging
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vlm_lora.data.formats.arrow_files import ArrowTable
from vlm_lora.errors import DataError

logger = logging.getLogger(__name__)

LARGEST_FIELD = 2**30
"""Longest field in characters; Python's own default (131072) refuses images written as base64."""

_LEFT_OUT = b"rows_before_lines_left_out"
"""Where the Arrow table keeps how many rows stand before each line that is left out."""


_LINES = b"rows_whose_line_is_not_the_next"
"""Where it keeps the rows, with their lines, that do not begin in the line behind the row before them."""


class CsvTable(ArrowTable):
    """Rows of a CSV file without its blank lines and lines of empty cells, which count when rows are numbered."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _open_csv)
        self._left_out: tuple[int, ...] = tuple(json.loads(self._table.schema.metadata[_LEFT_OUT]))
        self._steps: list[list[int]] = json.loads(self._table.schema.metadata[_LINES])

    def number(self, place: int) -> int:
        """Return the number in the file of the row at a place, counting from 0 behind the names of the columns."""
        return place + bisect_right(self._left_out, place)

    def line(self, place: int) -> int:
        """Return the line of the file, counting from 1, that the row at a place begins in."""
        row, line = self._steps[bisect_right(self._steps, place, key=lambda step: step[0]) - 1]
        return line + place - row


def read_csv(path: Path) -> CsvTable:
    """Read a CSV (or `.tsv`) file: every value is text, exactly as written; None where the cell is empty.

    Raises:
        DataError: Malformed input, with file and line.
    """
    return CsvTable(path)


def _open_csv(path: Path) -> Any:
    import pyarrow as pa

    rows = _parse_csv(path)
    _, header = next(rows, (0, None))
    if header is None:
        raise DataError(f"{path} is empty: the first line must name the columns.")
    header = [name.strip(" ") for name in header]
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise DataError(f"{path} line 1: two columns are called '{doubled[0]}'. Rename one.")
    columns: list[list[str | None]] = [[] for _ in header]
    left_out = []
    lines: list[list[int]] = []
    for line, row in rows:
        place = len(columns[0])
        if not any(row):
            left_out.append(place)
            continue
        if not lines or line != lines[-1][1] + place - lines[-1][0]:
            lines.append([place, line])
        for column, value in zip(columns, row, strict=True):
            column.append(value or None)
    # large_string: a column of base64 images can pass the 2 GiB of Arrow's plain strings.
    table = pa.table([pa.array(column, type=pa.large_string()) for column in columns], names=header)
    return table.replace_schema_metadata({_LEFT_OUT: json.dumps(left_out), _LINES: json.dumps(lines or [[0, 2]])})


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a file parts its values."""

    separator: str
    spaced: bool = False
    """Whether a space behind each separator is none of the value's."""
    padded: bool = False
    """Whether spaces before each separator are none of the value's."""
    line: int = 1
    """The line with the names of the columns: 2 where `sep=;` stands before it, as Excel writes it."""

    def __str__(self) -> str:
        name = {"\t": "a tab", ",": "a comma"}.get(self.separator, repr(self.separator))
        name = f"spaces and {name}" if self.padded else name
        return f"{name} and a space" if self.spaced else name


_SEPARATORS = (",", ";", "\t", "|")
_SAID = re.compile(r' *"?sep=(.)"? *', re.IGNORECASE)
"""The line that names the separator, which may be a tab."""


def form_of(stream: IO[str], usual: str) -> Form:
    """Return how a file parts its values, from its first lines, and go back to where the names of the columns stand.

    Args:
        stream: the opened file.
        usual: what its name says; taken where the names of the columns hold one, or nothing else that parts them.
    """
    first, number = "", 0
    while not first.strip():
        start, line = stream.tell(), stream.readline()
        number += 1
        if not line:
            break
        first = line
    told = _SAID.fullmatch(first.strip("\r\n"))
    if told:
        return Form(separator=told[1], line=number + 1)
    stream.seek(start)
    names = "".join(first.rstrip("\r\n").split('"')[::2])  # quoted names may hold anything
    counts = {separator: names.count(separator) for separator in _SEPARATORS}
    separator = usual if counts[usual] or not any(counts.values()) else max(counts, key=lambda one: counts[one])
    spaced = counts[separator] > 0 and names.count(f"{separator} ") == counts[separator]
    padded = counts[separator] > 0 and names.count(f" {separator}") == counts[separator]
    return Form(separator=separator, spaced=spaced, padded=padded, line=number)


def _parse_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the names of the columns, then every line's cells, each with the line that it begins in.

    A blank line, which spreadsheets show too, has none.
    """
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    previous = csv.field_size_limit(LARGEST_FIELD)
    lines, reader = 0, None
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            try:
                form = form_of(stream, usual)
                if form.separator != usual or form.spaced or form.padded:
                    logger.info("%s: values are parted by %s, as its first line shows.", path, form)
                lines = form.line - 1
                reader = csv.reader(stream, delimiter=form.separator, skipinitialspace=form.spaced, strict=True)
                width: int | None = None
                ended = lines
                for row in reader:
                    begins, ended = ended + 1, lines + reader.line_num
                    if width is None and not row:
                        continue
                    width = len(row) if width is None else width
                    if row and len(row) != width:
                        raise DataError(
                            f"{path} line {lines + reader.line_num}: {len(row)} values, and the header names {width} "
                            f"columns. Values are parted by {form}; one that holds that, a quote or a line break must "
                            'stand in double quotes ("...").'
                        )
                    yield begins, [cell.rstrip(" ") for cell in row] if form.padded else row
            except csv.Error as error:
                raise DataError(
                    f"{path} line {lines + (reader.line_num if reader else 0)}: not CSV: {error}."
                ) from error
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path} after line {lines + (reader.line_num if reader else 0)}: not UTF-8 text ({error.reason}). "
                    "Save it as UTF-8."
                ) from error
    finally:
        csv.field_size_limit(previous)
