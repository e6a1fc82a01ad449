"""Write one tar of samples with its index: the same bytes for the same samples, and read back before it counts."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from vlm_lora.data.formats.tar.index import Entry, build_index, open_tar, pack
from vlm_lora.data.formats.tar.index_files import KeptIndex, beside, hash_file, read_stamp, write_index
from vlm_lora.data.formats.tar.members import BLOCK
from vlm_lora.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample to be written: its key, and the bytes of its members by extension."""

    key: str
    payloads: Mapping[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What `index.json` says about one tar."""

    name: str
    samples: int
    bytes: int
    sha256: str


def write_shard(path: Path, samples: Iterable[Sample]) -> Shard:
    """Write a tar and, next to it, its index with hashes.

    Raises:
        DataError: A key twice, or the file reads back other than it was written.
        OSError: The disk is full, or the folder cannot be written.
    """
    with path.open("xb") as stream:
        writer = _Writer(stream)
        for sample in samples:
            writer.add(sample)
        writer.finish()
    with open_tar(path) as stream:
        stamp = read_stamp(stream)
        read = build_index(stream, stamp.size, str(path))
        written = pack(writer.samples, read.columns)
        if replace(written, crc32=None) != read or hash_file(stream) != writer.digest.hexdigest():
            raise DataError(f"{path} reads back other than it was written. Is the disk sound?")
    sha256 = writer.digest.hexdigest()
    write_index(beside(path), KeptIndex(index=written, stamp=stamp, sha256=sha256))
    return Shard(name=path.name, samples=len(written), bytes=stamp.size, sha256=sha256)


class _Writer:
    """Members one after the other; keeps where each lies and a hash of everything."""

    def __init__(self, stream: BinaryIO) -> None:
        self.samples: dict[str, dict[str, Entry]] = {}
        self.digest = hashlib.sha256()
        self._stream = stream
        self._position = 0

    def add(self, sample: Sample) -> None:
        if sample.key in self.samples:
            raise DataError(f"The key '{sample.key}' is there twice.")
        entries = self.samples[sample.key] = {}
        for extension, encoded in sample.payloads.items():
            # Time, owner and rights are the same always, so that the same samples give the same file.
            header = tarfile.TarInfo(f"{sample.key}.{extension}")
            header.size, header.mode = len(encoded), 0o644
            self._write(header.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict"))
            entries[extension] = Entry(
                extension=extension, offset=self._position, size=len(encoded), crc32=zlib.crc32(encoded)
            )
            self._write(encoded)
            self._write(bytes(-len(encoded) % BLOCK))

    def finish(self) -> None:
        """End the archive: two blocks of zeros, filled up to the usual record of 20 blocks."""
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self._position % tarfile.RECORDSIZE))

    def _write(self, content: bytes) -> None:
        self._stream.write(content)
        self.digest.update(content)
        self._position += len(content)
