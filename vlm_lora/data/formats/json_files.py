"""JSON and JSON Lines files as rows that stay on disk.

A file is read once, each row is parsed once (so malformed input is found before training, with its
line), and only each row's place in the file is kept. Memory does not grow with the data, a row is
parsed again when it is asked for, and nothing is written to a cache that could go stale.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from vlm_lora.data.formats.json_documents import refuse_document, refuse_others, rows_key
from vlm_lora.errors import DataError

_BLANK = re.compile(r"[ \t\n\r]*")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class _DoubledKeyError(ValueError):
    """One object has a key twice; Python's json keeps the last value and says nothing."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise _DoubledKeyError(f"the key '{doubled}' is there twice in one object. Rename or remove one")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


@dataclass(frozen=True, kw_only=True)
class JsonFile:
    """Rows of one JSON or JSON Lines file, by their byte ranges. Cheap to pickle, safe across processes."""

    path: Path
    columns: tuple[str, ...]
    """Every key that any row has, in order of first appearance."""
    starts: array[int] = field(repr=False)
    lengths: array[int] = field(repr=False)
    lines: array[int] = field(repr=False)
    """The line of the file that each begins in, counting from 1."""
    stamp: tuple[int, int]
    """Size and modification time when the byte ranges were found."""

    def __len__(self) -> int:
        return len(self.starts)

    def line(self, place: int) -> int:
        """Return the line of the file, counting from 1, that the row at a place begins in."""
        return self.lines[place]

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Return one row. Raises DataError where the file was changed meanwhile."""
        with self.path.open("rb") as stream:
            if _stamp(stream.fileno()) != self.stamp:
                raise DataError(f"{self.path} was changed while it was in use. Start again.")
            stream.seek(self.starts[index])
            return json.loads(stream.read(self.lengths[index]).decode("utf-8"))


Faults: TypeAlias = dict[int, tuple[int, str]]
"""What is wrong with rows that are left out: by their number in the file, from 0, the line and a message."""


class _RowIndex:
    """Collects byte ranges and keys while a file is scanned; rows that are none raise, or are noted as faults."""

    def __init__(self, path: Path, stamp: tuple[int, int], faults: Faults | None = None) -> None:
        self.path = path
        self.stamp = stamp
        self.faults = faults
        self.starts = array("Q")
        self.lengths = array("Q")
        self.lines = array("Q")
        self.columns: dict[str, None] = {}

    def add(self, row: object, start: int, length: int, line: int) -> None:
        with self.noting(line):
            self._add(_as_object(row, self.path, line), start, length, line)

    @contextmanager
    def noting(self, line: int) -> Iterator[None]:
        """Note what is wrong with a row in this line, where that is asked for."""
        try:
            yield
        except DataError as error:
            if self.faults is None:
                raise
            self.faults[len(self.starts) + len(self.faults)] = line, str(error)

    def _add(self, row: Mapping[str, Any], start: int, length: int, line: int) -> None:
        self.columns.update(dict.fromkeys(row))
        self.starts.append(start)
        self.lengths.append(length)
        self.lines.append(line)

    def finish(self) -> JsonFile:
        return JsonFile(
            path=self.path,
            columns=tuple(self.columns),
            starts=self.starts,
            lengths=self.lengths,
            lines=self.lines,
            stamp=self.stamp,
        )


def _as_object(row: object, path: Path, line: int) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(
            f"{path} line {line}: a row must be an object like "
            f'{{"image": ..., "query": ..., "label": ...}}, and this one is {_kind(row)}.'
        )
    return row


def read_json_lines(path: Path, faults: Faults | None = None) -> JsonFile:
    """Read a file of one JSON object a line; blank lines are passed over. A file that is one document is read as such.

    Args:
        path: the file.
        faults: takes what is wrong with lines that are no rows, which are left out; without it the first one raises.

    Raises:
        DataError: A line that is not a JSON object, with file and line (lines count from 1).
    """
    if holds_document(path):
        return read_json(path, faults)
    with path.open("rb") as stream:
        index = _RowIndex(path, _stamp(stream.fileno()), faults)
        start = 0
        for number, line in enumerate(stream, start=1):
            skipped = len(_BYTE_ORDER_MARK) if number == 1 and line.startswith(_BYTE_ORDER_MARK) else 0
            content = line[skipped:]
            if content.strip():
                with index.noting(number):
                    row = _parse_line(path, number, content)
                    index.add(row, start + skipped, len(content), number)
            start += len(line)
    return index.finish()


def holds_document(path: Path) -> bool:
    """Tell from its first line whether a file is JSON over several lines, or a list, whatever it is called."""
    with path.open("rb") as stream:
        first = next((line.strip() for line in stream if line.removeprefix(_BYTE_ORDER_MARK).strip()), b"")
    return first.removeprefix(_BYTE_ORDER_MARK).startswith(b"[") or first.removeprefix(_BYTE_ORDER_MARK) == b"{"


def may_be_json(path: Path) -> bool:
    """Tell from its first character whether a file whose name says nothing is JSON."""
    with path.open("rb") as stream:
        return stream.read(64).removeprefix(_BYTE_ORDER_MARK).lstrip()[:1] in (b"{", b"[")


_OBJECT = re.compile(rb"\s*(?:\[\s*)*\{\s*\"")


def is_json(path: Path) -> bool:
    """Tell from its first characters whether a file whose name says that it is another is JSON: an object opens it."""
    try:
        with path.open("rb") as stream:
            first = stream.read(4096)
    except OSError:  # said where the file is read
        return False
    return _OBJECT.match(first.removeprefix(_BYTE_ORDER_MARK)) is not None


def stream_json_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a file of one JSON object a line; it is read once, and no more of it than is asked for.

    Raises:
        DataError: A line that is not a JSON object, with file and line (lines count from 1).
    """
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            content = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
            if content.strip():
                yield _as_object(_parse_line(path, number, content), path, number)


def read_json(path: Path, faults: Faults | None = None) -> JsonFile:
    """Read a list of objects, an object with a `data` list, or (as many tools write) one object a line.

    Args:
        path: the file.
        faults: takes what is wrong with members of the list that are no rows, as `read_json_lines` has it.

    Raises:
        DataError: Malformed JSON, with file and line, or another shape.
    """
    with path.open("rb") as stream:
        stamp = _stamp(stream.fileno())
        raw = stream.read()
    skipped = len(_BYTE_ORDER_MARK) if raw.startswith(_BYTE_ORDER_MARK) else 0
    try:
        text = raw[skipped:].decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, skipped + error.start) + 1
        raise DataError(f"{path} line {line}: not UTF-8 text ({error.reason}). Save it as UTF-8.") from error
    del raw
    try:
        return _read_document(path, text, skipped, stamp, faults)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} line {error.lineno}: not JSON: {error.msg}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not usable as JSON: {error}.") from error


def _read_document(
    path: Path, text: str, skipped: int, stamp: tuple[int, int], faults: Faults | None = None
) -> JsonFile:
    first = _skip_blank(text, 0)
    opening = text[first : first + 1]
    if opening == "[":
        return _read_list(path, text, first, skipped, stamp, faults)
    if opening == "{":
        document, end = _DECODER.raw_decode(text, first)
        if _skip_blank(text, end) < len(text):
            one_a_line = "\n" not in text[first:end]
            if one_a_line:
                return read_json_lines(path, faults)
            return _read_list(path, text, first, skipped, stamp, faults, bare=True)
        key = rows_key(document)
        if key is None:
            raise refuse_document(path, document)
        refuse_others(path, document, key)
        return _read_list(path, text, _find_list(text, first, key), skipped, stamp, faults, inner=True)
    if not opening:
        return _RowIndex(path, stamp).finish()
    raise DataError(f"{path} line 1: rows are read from a list of objects or an object with a `data` list.")


def _read_list(
    path: Path,
    text: str,
    opening: int,
    skipped: int,
    stamp: tuple[int, int],
    faults: Faults | None = None,
    inner: bool = False,
    bare: bool = False,
) -> JsonFile:
    """Walk the list that opens at a character position, keeping each element's byte range.

    Args:
        path: the file.
        text: all of it.
        opening: where the list begins.
        skipped: bytes before the text.
        stamp: of the file.
        faults: as for `read_json`.
        inner: whether it stands inside an object.
        bare: whether it is no list, but objects one behind the other over several lines, as `jq` writes them.
    """
    index = _RowIndex(path, stamp, faults)
    ascii_only = text.isascii()
    known_char, known_byte, known_line, line_char = 0, skipped, 1, 0
    position = opening if bare else _skip_blank(text, opening + 1)
    while text[position : position + 1] != ("" if bare else "]"):
        known_line += text.count("\n", line_char, position)
        line_char = position
        try:
            row, end = _DECODER.raw_decode(text, position)
        except _DoubledKeyError as error:
            raise DataError(f"{path} row {len(index.starts)} (line {known_line}): {error}.") from error
        if ascii_only:
            start_byte, length = skipped + position, end - position
        else:
            start_byte = known_byte + len(text[known_char:position].encode())
            length = len(text[position:end].encode())
        known_char, known_byte = end, start_byte + length
        index.add(row, start_byte, length, known_line)
        position = _skip_blank(text, end)
        separator = text[position : position + 1]
        if bare:
            continue
        if separator == ",":
            position = _skip_blank(text, position + 1)
            if text[position : position + 1] == "]":
                raise json.JSONDecodeError("a comma before the closing ]", text, position)
        elif separator != "]":
            raise json.JSONDecodeError("expected , or ] after a row", text, position)
    rest = len(text) if bare else _skip_blank(text, position + 1)
    if not inner and rest < len(text):
        raise json.JSONDecodeError("text after the closing ]", text, rest)
    return index.finish()


def _find_list(text: str, opening: int, wanted: str) -> int:
    """Return where the list under a key opens in the (well-formed) object at `opening`, which has it."""
    position = _skip_blank(text, opening + 1)
    while True:
        key, end = _DECODER.raw_decode(text, position)
        value = _skip_blank(text, _skip_blank(text, end) + 1)
        if key == wanted:
            return value
        _, end = _DECODER.raw_decode(text, value)
        position = _skip_blank(text, _skip_blank(text, end) + 1)


def _parse_line(path: Path, number: int, line: bytes) -> object:
    try:
        return _decode_line(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} line {number}: not UTF-8 text ({error.reason}). Save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        hint = " Is the file cut off?" if error.pos >= len(error.doc.rstrip()) else ""
        raise DataError(f"{path} line {number}: not JSON: {error.msg} (column {error.colno}).{hint}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} line {number}: not usable as JSON: {error}.") from error


def _decode_line(text: str) -> object:
    row, end = _DECODER.raw_decode(text, _skip_blank(text, 0))
    rest = _skip_blank(text, end)
    if rest < len(text):
        raise json.JSONDecodeError("Extra data", text, rest)
    return row


def _skip_blank(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    return match.end() if match else position


def _stamp(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def _kind(value: object) -> str:
    names = {list: "a list", str: "a string", type(None): "null", bool: "true or false"}
    return names.get(type(value), "a number")
