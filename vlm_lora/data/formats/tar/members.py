"""The members of one tar, by headers that are checked: what Python's tarfile would pass over is an error here.

1. Each 512-byte header must have the right checksum, and its member must lie in the file as a whole.
2. Long names come from GNU and PAX headers before it. Only regular files and folders are taken, with names
   that stay inside the tar.
3. After the last member come two blocks of zeros, then nothing but zeros: a tar that was cut off, or a second
   one behind the first, is noticed.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import BinaryIO

BLOCK = tarfile.BLOCKSIZE
LARGEST_HEADER = 1024 * 1024
"""Longest extended header (a name, a few records) in bytes."""

_ZEROS = bytes(BLOCK)
_CHUNK = 1024 * 1024
_RECORD = re.compile(rb"(\d{1,7}) ")
_REFUSED_TYPES = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


class TarFaultError(Exception):
    """What is wrong with a tar, as the end of a sentence that begins with its name."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One regular file of a tar."""

    name: str
    offset: int
    """Position of its first byte in the tar."""
    size: int
    """Bytes."""


@dataclass(kw_only=True)
class _Extended:
    """What extended headers say about the member after them."""

    records: dict[str, str] = field(default_factory=dict)


def read_members(stream: BinaryIO, size: int) -> Iterator[Member]:
    """Yield the regular files of a tar in order, reading headers only.

    Args:
        stream: The tar, seekable.
        size: Its length in bytes.

    Raises:
        TarFaultError: Not a tar, damaged, cut off, or with members that are refused.
    """
    position, extended = 0, _Extended()
    while True:
        stream.seek(position)
        block = stream.read(BLOCK)
        if block == _ZEROS and not extended.records:
            _check_end(stream, position, size)
            return
        header = _parse(block, position, size)
        position += BLOCK
        if header.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            _read_extended(stream, header, position, size, extended)
            position += _padded(header.size)
            continue
        member = _finish(header, position, extended)
        extended = _Extended()
        if header.type == tarfile.DIRTYPE:
            continue
        if position + _padded(member.size) > size:
            raise TarFaultError(f"is cut off: the file ends inside the member '{member.name}'")
        yield member
        position += _padded(member.size)


def _parse(block: bytes, position: int, size: int) -> tarfile.TarInfo:
    if not size:
        raise TarFaultError("is empty (0 bytes)")
    if position == 0 and block.startswith(b"\x1f\x8b"):
        raise TarFaultError("is gzip, not a plain tar: its name must end in .tar.gz or .tgz")
    if position == 0 and len(block) < BLOCK:
        raise TarFaultError(f"is no tar ({size} bytes)")
    if len(block) < BLOCK:
        raise TarFaultError("is cut off: the two blocks of zeros that end a tar are missing")
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        if position == 0:
            raise TarFaultError(f"is no tar, or its first header is damaged ({error})") from error
        raise TarFaultError(f"is damaged: the header at byte {position} is no valid one ({error})") from error
    if header.size < 0:
        raise TarFaultError(f"is damaged: the header at byte {position} gives a negative size")
    return header


def _check_end(stream: BinaryIO, position: int, size: int) -> None:
    """Check for the second block of zeros, and that no data lies behind it."""
    second = stream.read(BLOCK)
    if len(second) < BLOCK:
        raise TarFaultError("is cut off: the second of the two blocks of zeros that end a tar is missing")
    if second != _ZEROS:
        raise TarFaultError(
            f"is damaged: a block of zeros at byte {position}, where a header or the tar's end should be"
        )
    while chunk := stream.read(_CHUNK):
        if any(chunk):
            raise TarFaultError(
                f"goes on behind the blocks of zeros that end it (at byte {position}): perhaps two tars put together "
                "by cat. Name them one by one, or join them by tar --concatenate"
            )


def _read_extended(stream: BinaryIO, header: tarfile.TarInfo, position: int, size: int, extended: _Extended) -> None:
    """Take over what a GNU long name or a PAX header says."""
    if header.size > LARGEST_HEADER:
        raise TarFaultError(f"has an extended header of {header.size} bytes at byte {position - BLOCK}")
    if position + _padded(header.size) > size:
        raise TarFaultError("is cut off: the file ends inside an extended header")
    payload = stream.read(header.size)
    if header.type == tarfile.GNUTYPE_LONGNAME:
        extended.records["path"] = payload.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    elif header.type in (tarfile.XHDTYPE, tarfile.XGLTYPE):
        records = _parse_records(payload, position)
        if header.type == tarfile.XHDTYPE:
            extended.records.update(records)
        elif {"path", "size"} & set(records):
            raise TarFaultError("has a global header that names a path or size for all members")
    # A long link belongs to a link, which is refused by its own header.


def _parse_records(payload: bytes, position: int) -> dict[str, str]:
    """Read records, each `LENGTH KEY=VALUE` and a line break."""
    records, at = {}, 0
    while at < len(payload):
        match = _RECORD.match(payload, at)
        end = at + int(match.group(1)) if match else 0
        key, equals, value = payload[match.end() : end - 1].partition(b"=") if match else (b"", b"", b"")
        if not equals or not key or end > len(payload) or payload[end - 1 : end] != b"\n":
            raise TarFaultError(f"is damaged: the extended header at byte {position} is no valid one")
        records[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        at = end
    return records


def _finish(header: tarfile.TarInfo, position: int, extended: _Extended) -> Member:
    """Put header and extended header together, and refuse what is no plain file inside the tar."""
    name = extended.records.get("path", header.name)
    shown = name.encode("utf-8", "backslashreplace").decode()
    if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
        kind = _REFUSED_TYPES.get(header.type, f"of the unknown type {header.type!r}")
        raise TarFaultError(f"has the member '{shown}', which is {kind}; only regular files are read")
    if any(key.startswith("GNU.sparse") for key in extended.records):
        raise TarFaultError(f"has the member '{shown}', which is a sparse file; only regular files are read")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TarFaultError(f"has a member whose name is not UTF-8: '{shown}'") from error
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise TarFaultError(f"has a member whose name leads out of the tar: '{shown}'")
    given = extended.records.get("size")
    if given is not None and not (given.isascii() and given.isdigit() and len(given) < 20):
        raise TarFaultError(f"is damaged: the size of the member '{shown}' reads '{given}'")
    return Member(name=name, offset=position, size=header.size if given is None else int(given))


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
