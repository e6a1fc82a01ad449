"""The index of one tar: which samples it holds, and where each of their members lies.

Made by one pass over the headers that also reads every JSON and text member, so that whatever is wrong with the
tar is found before training. Every fault is reported with the tar and the sample's key.
"""

from __future__ import annotations

import logging
import zlib
from array import array
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from vlm_lora.data.formats.tar.members import Member, TarFaultError, read_members
from vlm_lora.data.formats.tar.samples import (
    IMAGE_COLUMNS,
    check_member,
    check_sample,
    kind_of,
    make_row,
    split_name,
)
from vlm_lora.errors import DataError

logger = logging.getLogger(__name__)

SHOWN = 5
"""At most so many keys are listed in one message."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One member of a sample."""

    extension: str
    offset: int
    """Position of its first byte in the tar."""
    size: int
    """Bytes."""
    crc32: int | None
    """Of its bytes; None in the index of a tar that others wrote."""


@dataclass(frozen=True, kw_only=True)
class TarIndex:
    """Samples in the order of their first members; as arrays, because there may be millions of members."""

    keys: tuple[str, ...]
    starts: array[int]
    """The first member of each sample, and the number of all members."""
    extensions: tuple[str, ...]
    """Every extension that occurs."""
    kinds: array[int]
    """Each member's extension, as a position in `extensions`."""
    offsets: array[int]
    sizes: array[int]
    crc32: array[int] | None
    columns: tuple[str, ...]
    """Columns of the rows, the images' column (`image` or `images`) not among them."""

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.keys)

    def sample(self, number: int) -> tuple[Entry, ...]:
        """Return the members of one sample."""
        return tuple(
            Entry(
                extension=self.extensions[self.kinds[place]],
                offset=self.offsets[place],
                size=self.sizes[place],
                crc32=None if self.crc32 is None else self.crc32[place],
            )
            for place in range(self.starts[number], self.starts[number + 1])
        )

    @property
    def numbered(self) -> bool:
        """Whether any image has a number."""
        return any(kind_of(extension) == "numbered" for extension in self.extensions)

    @property
    def pictured(self) -> bool:
        """Whether any sample has an image in the images' column."""
        return any(kind_of(extension) in ("picture", "numbered") for extension in self.extensions)


@dataclass(kw_only=True)
class _Scan:
    """What one pass over a tar has found so far."""

    name: str
    samples: dict[str, dict[str, Entry]] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    columns: dict[str, None] = field(default_factory=dict)

    def take(self, member: Member) -> None:
        """Put a member to its sample, or count it among those that are left out."""
        split = split_name(member.name)
        if split is None:
            self.left_out["hidden files and files without an extension"] += 1
            return
        key, extension = split
        refusal = check_member(extension, member.size)
        if refusal:
            raise DataError(f"{self.name} key {key}: the member '{member.name}' is refused: {refusal}.")
        if kind_of(extension) == "other":
            self.left_out[f".{extension}"] += 1
            return
        sample = self.samples.setdefault(key, {})
        if extension in sample:
            self.twice.append(f"{key}.{extension}")
        sample[extension] = Entry(extension=extension, offset=member.offset, size=member.size, crc32=None)

    def last_whole(self) -> str:
        """Name the last sample that is complete."""
        whole = [key for key, sample in self.samples.items() if check_sample(list(sample)) is None]
        return f"Its last whole sample is '{whole[-1]}' ({len(whole)} of them)" if whole else "It has no whole sample"


def build_index(stream: BinaryIO, size: int, name: str) -> TarIndex:
    """Read a tar's headers, JSON and texts, and return where its samples lie.

    Args:
        stream: The tar, seekable.
        size: Its length in bytes.
        name: How messages call it.

    Raises:
        DataError: A damaged or cut tar, members that are refused, a key twice, a sample without image or text,
            JSON or text that cannot be read. Names the tar and the key.
    """
    scan = _Scan(name=name)
    try:
        for member in read_members(stream, size):
            scan.take(member)
    except TarFaultError as fault:
        raise DataError(f"{name} {fault}. {scan.last_whole()}. Copy it again, or make it again.") from fault
    _check_samples(scan)
    for number, (key, sample) in enumerate(scan.samples.items()):
        _note_columns(scan, stream, number, key, sample)
    for what, count in scan.left_out.items():
        logger.warning("%s: %d members left out: %s.", name, count, what)
    return pack(scan.samples, tuple(scan.columns))


def pack(samples: dict[str, dict[str, Entry]], columns: tuple[str, ...]) -> TarIndex:
    """Return the samples (members by extension, by key) as an index; it has checksums where all members have."""
    entries = [entry for sample in samples.values() for entry in sample.values()]
    numbers = {extension: number for number, extension in enumerate(dict.fromkeys(e.extension for e in entries))}
    starts = array("Q", [0])
    for sample in samples.values():
        starts.append(starts[-1] + len(sample))
    hashes = [entry.crc32 for entry in entries if entry.crc32 is not None]
    return TarIndex(
        keys=tuple(samples),
        starts=starts,
        extensions=tuple(numbers),
        kinds=array("H", (numbers[entry.extension] for entry in entries)),
        offsets=array("Q", (entry.offset for entry in entries)),
        sizes=array("Q", (entry.size for entry in entries)),
        crc32=array("Q", hashes) if len(hashes) == len(entries) else None,
        columns=columns,
    )


def with_hashes(index: TarIndex, stream: BinaryIO) -> TarIndex:
    """Return an index with a CRC-32 of each member, as the tar holds it now."""
    hashes = array("Q")
    for offset, size in zip(index.offsets, index.sizes, strict=True):
        stream.seek(offset)
        hashes.append(zlib.crc32(stream.read(size)))
    return replace(index, crc32=hashes)


def open_tar(path: Path) -> BinaryIO:
    """Open a tar for reading.

    Raises:
        DataError: It cannot be opened.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def _check_samples(scan: _Scan) -> None:
    if scan.twice:
        raise DataError(
            f"{scan.name}: {len(scan.twice)} members are there twice: {_listed(scan.twice)}. Each key has each "
            "extension once (capital letters do not count). Make the tar again with different keys."
        )
    faulty = {key: fault for key, sample in scan.samples.items() if (fault := check_sample(list(sample)))}
    if faulty:
        lines = [f"{key} {fault}" for key, fault in faulty.items()]
        raise DataError(
            f"{scan.name}: {len(faulty)} of {len(scan.samples)} samples are not usable: {_listed(lines)}. A sample is "
            "KEY.json (or KEY.txt) and KEY.png (or another image), the key up to the first dot of the name. Add what "
            "is missing, or leave the sample out of the tar."
        )


def _note_columns(scan: _Scan, stream: BinaryIO, number: int, key: str, sample: dict[str, Entry]) -> None:
    payloads = {}
    for extension, entry in sample.items():
        readable = kind_of(extension) in ("json", "text")
        stream.seek(entry.offset)
        payloads[extension] = stream.read(entry.size) if readable else b""
    try:
        row = make_row(key, payloads, plural=False)
    except DataError as error:
        raise DataError(f"{scan.name} row {number} (key {key}): {error}.") from error
    scan.columns.update(dict.fromkeys(column for column in row if column not in IMAGE_COLUMNS))


def _listed(lines: list[str]) -> str:
    more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + more
