"""Tensors on disk by the hash of what made them, which several processes write and read at once.

A folder holds segments, two files each. `NAME.tensors` has the bytes of entries one behind the other. `NAME.index`
has a line for each: a checksum of the line, then JSON with the key, where the entry lies, its checksum, and dtype,
shape and place of each tensor. Each process writes a segment of its own, only ever at its end.

A line is written after the entry's bytes and counts only where it is whole, the bytes are all there, and their
checksum is right, which each process looks at when it first reads the entry. So whatever ends a writer, in whatever
order its bytes reach the disk: an entry is whole or is not there. Entries are read, not mapped: the bytes of a mapped
file that somebody cuts meanwhile end the process that looks at them.
"""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlm_lora.batching.prepared.entries import (
    ALIGNMENT,
    Entry,
    aligned,
    bytes_of,
    index_line,
    laid_out,
    name_of,
    parse_line,
    tensor_at,
)
from vlm_lora.batching.prepared.once import says_first

logger = logging.getLogger(__name__)

_TENSORS, _INDEX = ".tensors", ".index"
_DAMAGED, _STOPPED = ".damaged", ".stopped"
"""Of the files in which the copies of one store write down damaged entries, and that the disk cannot be written."""
_SAID = ".said"
"""Of a mark beside a segment whose index or size is damaged: nobody reads these entries again, so it is said once."""


@dataclass(kw_only=True)
class StoreStatistics:
    """What one process has asked of a store."""

    hits: int = 0
    misses: int = 0
    written: int = 0
    """Entries."""
    bytes_read: int = 0
    bytes_written: int = 0
    refused: int = 0
    """Entries that were not written because the store is full or its disk failed."""
    bytes_refused: int = 0
    damaged: int = 0
    """Entries whose bytes were gone, or not those that were written."""


class _Segment:
    """What is known here of one segment; its tensors are open from when one is read until it is no longer used."""

    def __init__(self) -> None:
        self.read = 0
        """Bytes of its index that were taken in."""
        self._opened: int | None = None

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # modules may be gone when a process ends
        if self._opened is not None:
            close(self._opened)

    def bytes_at(self, index: Path, start: int, size: int) -> np.ndarray | None:
        """Return bytes of its tensors in memory of their own, fewer where it was cut; None where it is gone.

        Args:
            index: the other of its files.
            start: where they lie.
            size: how many.
        """
        try:
            if self._opened is None:
                self._opened = os.open(index.with_suffix(_TENSORS), os.O_RDONLY | os.O_CLOEXEC)
                os.utime(index)  # it is in use: others make room first
            return _read_whole(self._opened, start, size)
        except OSError:  # removed by another process, or its disk failed
            return None


class _Writer:
    """The segment that one process writes.

    Its files are open until it is no longer used; a forked process closes its copies by letting go of it.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._opened: list[int] = []
        folder.mkdir(parents=True, exist_ok=True)
        self.process = os.getpid()
        self.name = f"{time.time_ns():x}-{self.process}-{secrets.token_hex(4)}"
        self.end = 0
        """Bytes of all entries."""
        self._index_end = 0
        for suffix in (_TENSORS, _INDEX):
            path = folder / f"{self.name}{suffix}"
            self._opened.append(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # modules may be gone when a process ends
        for descriptor in self._opened:
            close(descriptor)

    @property
    def lost(self) -> bool:
        """Whether somebody removed or cut it. What were written at its end then would leave a hole before it."""
        found = [os.fstat(descriptor) for descriptor in self._opened]
        ends = (self.end, self._index_end)
        return any(one.st_nlink == 0 or one.st_size != end for one, end in zip(found, ends, strict=True))

    def append(self, piece: bytes | memoryview) -> None:
        """Write bytes of an entry."""
        _write_whole(self._opened[0], piece)

    def publish(self, line: bytes) -> None:
        """Write an entry's line."""
        _write_whole(self._opened[1], line)
        self._index_end += len(line)

    def sync(self) -> None:
        """Wait until all is on the disk."""
        for descriptor in self._opened:
            os.fsync(descriptor)


@dataclass(slots=True)
class _Known:
    """What one process knows of the folder; made anew in each."""

    process: int
    entries: dict[str, list[Entry]] = field(default_factory=dict)
    segments: dict[str, _Segment] = field(default_factory=dict)
    verified: set[str] = field(default_factory=set)
    stopped: bool = False
    """Whether writing has failed here."""


class TensorStore:
    """Named tensors by key, kept in a folder. Can be pickled, and used on both sides of a fork.

    Args:
        folder: where it lies; made when something is first put.
        limit: bytes that all segments together may have; None for no limit. Several processes that write at once may
            each go beyond it by one entry. Where it is reached, segments make room that nobody used since the store
            was opened.
    """

    def __init__(self, folder: Path, *, limit: int | None = None) -> None:
        self.folder = folder
        self.limit = limit
        self.opened_at = time.time_ns()
        """Nanoseconds; what was used since then stays when room is made. A copy in another process has the same."""
        self._opened_by = os.getpid()
        self.statistics = StoreStatistics()
        self._known = _Known(process=os.getpid())
        self._writer: _Writer | None = None
        self._measured: dict[str, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("folder", "limit", "opened_at", "_opened_by")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"], limit=state["limit"])  # type: ignore[misc]
        self.opened_at, self._opened_by = state["opened_at"], state["_opened_by"]

    def __contains__(self, key: str) -> bool:
        """Say whether there is an entry, without reading its bytes."""
        return bool(self._places(key))

    def obstacle(self) -> str:
        """Return why nothing can be kept here; empty where something can. Makes the folder."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                return ""
        except OSError as error:
            return f"{self.folder} cannot be written ({error.strerror})"

    @contextmanager
    def measuring(self) -> Iterator[dict[str, int]]:
        """Yield what comes to hold, by key, the bytes on disk of each entry that is asked for or put meanwhile.

        Those of entries that are refused count as well.
        """
        self._measured = {}
        try:
            yield self._measured
        finally:
            self._measured = None

    def _measure(self, key: str, entry: Entry) -> None:
        if self._measured is not None:
            self._measured[key] = entry.size + len(index_line(key, entry))

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """Return an entry's tensors, or None where there is none.

        They lie in memory of their own: what is written into them is seen by no one else.
        """
        for entry in reversed(list(self._places(key))):  # what was made again, before what was damaged
            tensors = self._read(entry)
            if tensors is not None:
                self.statistics.hits += 1
                self.statistics.bytes_read += entry.size
                self._measure(key, entry)
                return tensors
            self._known.entries[key].remove(entry)
        self.statistics.misses += 1
        return None

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Keep tensors (on the CPU, of any dtype and shape) under a key; those that are there already stay.

        Returns:
            Whether they are kept now; False where the store is full or its disk cannot be written, which is said once
            on a machine.
        """
        for entry in self._places(key)[:1]:
            self._measure(key, entry)
            return True
        known = self._here()
        arrays = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        size = sum(aligned(array.nbytes) for array in arrays.values())
        full = self.limit is not None and self._over(size) > 0 and self.make_room(size) < size
        if known.stopped or full:
            self._measure(key, Entry(segment="", start=0, size=size, checksum=0, tensors=laid_out(arrays)))
            return self._refuse(size)
        try:
            entry = self._write(key, arrays, size)
        except OSError as error:
            known.stopped = True
            self.close()
            level = logging.WARNING if says_first(self._mark(_STOPPED), os.environ) else logging.DEBUG
            what = "%s cannot be written (%s): what is made from now on is not kept."
            logger.log(level, what, self.folder, error.strerror)
            return self._refuse(size)
        known.entries.setdefault(key, []).append(entry)
        known.verified.add(name_of(entry))
        self._measure(key, entry)
        self.statistics.written += 1
        self.statistics.bytes_written += size
        return True

    def _refuse(self, size: int) -> bool:
        self.statistics.refused += 1
        self.statistics.bytes_refused += size
        return False

    def bytes_on_disk(self) -> int:
        """Return how many bytes all segments have now, of all writers."""
        total = 0
        for file in self._files():
            try:
                total += file.stat().st_size
            except FileNotFoundError:  # another process made room
                continue
        return total

    def make_room(self, wanted: int) -> int:
        """Remove segments that nobody used since this store was opened, the oldest first, until so many bytes fit.

        Who reads one of them can go on reading it.

        Returns:
            Bytes that are free below the limit now.
        """
        assert self.limit is not None, "a store without a limit always has room"
        own = None if self._writer is None else self._writer.name
        indexes = [file for file in self._files() if file.suffix == _INDEX and file.stem != own]
        for index in sorted(indexes, key=_used_at):
            if self._over(wanted) <= 0 or _used_at(index) >= self.opened_at:
                break
            for file in (index, index.with_suffix(_TENSORS), index.with_suffix(_SAID)):
                file.unlink(missing_ok=True)
            for entries in self._here().entries.values():
                entries[:] = [entry for entry in entries if entry.segment != index.stem]
        return max(0, self.limit - self.bytes_on_disk())

    def _over(self, wanted: int) -> int:
        """Return by how many bytes the limit would be passed."""
        assert self.limit is not None
        return self.bytes_on_disk() + wanted - self.limit

    def close(self) -> None:
        """End this process's segment, on disk; what is put later begins another."""
        writer, self._writer = self._writer, None
        if writer is None or writer.process != os.getpid():
            return
        try:
            writer.sync()
        except OSError as error:
            logger.warning("%s: %s may not have reached the disk (%s).", self.folder, writer.name, error)

    def _here(self) -> _Known:
        """Return what this process knows; after a fork it begins anew, as the files of the other are not its own."""
        if self._known.process != os.getpid():
            self._known = _Known(process=os.getpid())
            self._writer = None
            self.statistics = StoreStatistics()
        return self._known

    def _places(self, key: str) -> list[Entry]:
        known = self._here()
        if key not in known.entries or not known.entries[key]:
            self._take_in()
        return known.entries.get(key, [])

    def _files(self) -> list[Path]:
        try:
            return [Path(file.path) for file in os.scandir(self.folder) if file.name.endswith((_TENSORS, _INDEX))]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _take_in(self) -> None:
        """Read what was added to the indexes since this process last looked."""
        known = self._here()
        for file in sorted(self._files()):  # by time: names begin with it
            if file.suffix != _INDEX or (self._writer is not None and file.stem == self._writer.name):
                continue
            segment = known.segments.setdefault(file.stem, _Segment())
            try:
                if file.stat().st_size <= segment.read:
                    continue
                with file.open("rb") as stream:
                    stream.seek(segment.read)
                    added = stream.read()
                size = _size_of(file.with_suffix(_TENSORS))
            except OSError:  # removed by another process
                continue
            if size is None and not file.exists():  # the same, one file after the other
                continue
            whole = added[: added.rfind(b"\n") + 1]
            segment.read += len(whole)
            unusable = []
            for place, line in enumerate(whole.splitlines()):
                key, entry = parse_line(line, file.stem)
                if entry is not None and entry.start + entry.size <= (size or 0):
                    known.entries.setdefault(key, []).append(entry)
                else:
                    unusable.append(f"{file.stem} line {place}" if entry is None else name_of(entry))
            if unusable and says_first(file.with_suffix(_SAID), os.environ):
                for name in unusable:
                    self._note_damage(name)

    def _read(self, entry: Entry) -> dict[str, torch.Tensor] | None:
        """Return an entry's tensors; None where its bytes are gone or not those that were written."""
        segment = self._known.segments.setdefault(entry.segment, _Segment())
        content = segment.bytes_at(self.folder / f"{entry.segment}{_INDEX}", entry.start, entry.size)
        if content is None:
            return None
        name, verified = name_of(entry), self._known.verified
        if len(content) < entry.size or (name not in verified and zlib.crc32(content.data) != entry.checksum):
            self._note_damage(name)
            return None
        verified.add(name)
        return {each: tensor_at(content, dtype, shape, place) for each, dtype, shape, place in entry.tensors}

    def _note_damage(self, name: str) -> None:
        """Write down that an entry is damaged, for whichever process of the run says it."""
        self.statistics.damaged += 1
        try:
            with self._mark(_DAMAGED).open("a", encoding="ascii") as stream:
                stream.write(f"{name}\n")
        except OSError as error:  # nothing depends on it
            logger.debug("%s: %s", self._mark(_DAMAGED), error)

    def say_damage(self) -> None:
        """Say in one line how many damaged entries the processes with copies of this store found since this was said.

        For the process that opened it, once for each part of a run.
        """
        with suppress(OSError):
            self._mark(_STOPPED).unlink()
        try:
            count = len(set(self._mark(_DAMAGED).read_text(encoding="ascii").splitlines()))
            self._mark(_DAMAGED).unlink()
        except OSError:  # none was
            return
        logger.warning(
            "%s: %d damaged %s (bytes are gone, or not those that were written); what they held is made again.",
            self.folder,
            count,
            "entry" if count == 1 else "entries",
        )

    def _mark(self, suffix: str) -> Path:
        return self.folder / f"{self.opened_at:x}-{self._opened_by}{suffix}"

    def _write(self, key: str, arrays: Mapping[str, torch.Tensor], size: int) -> Entry:
        """Append an entry: its bytes, then its line.

        Raises:
            OSError: the disk is full or fails.
        """
        if self._writer is None or self._writer.lost:
            self._writer = _Writer(self.folder)
        writer, checksum = self._writer, 0
        for array in arrays.values():
            for piece in (bytes_of(array), bytes(aligned(array.nbytes) - array.nbytes)):
                writer.append(piece)
                checksum = zlib.crc32(piece, checksum)
        entry = Entry(segment=writer.name, start=writer.end, size=size, checksum=checksum, tensors=laid_out(arrays))
        writer.end += size
        writer.publish(index_line(key, entry))
        return entry


def _write_whole(descriptor: int, piece: bytes | memoryview) -> None:
    left = memoryview(piece)
    while left:
        left = left[os.write(descriptor, left) :]


def _read_whole(descriptor: int, start: int, size: int) -> np.ndarray:
    """Return bytes of a file in new memory, aligned as tensors are; fewer where the file ends.

    numpy asks the system for huge pages, as `new_tensor` says.
    """
    memory = np.empty(size + ALIGNMENT, dtype=np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    content, got = memory[first : first + size], 0
    while got < size:
        added = os.preadv(descriptor, [content[got:].data], start + got)
        if added == 0:
            break
        got += added
    return content[:got]


def _size_of(file: Path) -> int | None:
    """Return a file's bytes; None where there is none."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return None


def _used_at(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
