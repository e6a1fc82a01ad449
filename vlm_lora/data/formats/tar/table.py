"""A tar as rows: read by offset when asked for, so that order, sharding and resuming need nothing of their own."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_lora.data.formats.tar.index import TarIndex, open_tar
from vlm_lora.data.formats.tar.index_files import KeptIndex
from vlm_lora.data.formats.tar.samples import make_row
from vlm_lora.errors import DataError


@dataclass(frozen=True, kw_only=True)
class TarTable:
    """Rows of one tar. Cheap to pickle, safe across processes."""

    path: Path
    """The plain tar."""
    name: str
    """How messages call it: of a packed tar, the file that the user named."""
    index: TarIndex
    stamp: tuple[int, int]
    """Size and modification time that the index belongs to."""
    plural: bool
    """Whether images are the list `images`: where any sample of the split has numbered ones."""

    @classmethod
    def of(cls, path: Path, kept: KeptIndex, *, name: str, plural: bool) -> TarTable:
        """Take a tar and its index."""
        stamp = (kept.stamp.size, kept.stamp.mtime_ns)
        return cls(path=path, name=name, index=kept.index, stamp=stamp, plural=plural)

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that any row has."""
        pictures = ("images" if self.plural else "image",) if self.index.pictured else ()
        return (*pictures, *self.index.columns)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        """Return one row.

        Raises:
            DataError: The tar was changed meanwhile, or a member's bytes are not those that its hash was made of.
        """
        where = f"{self.name} row {number} (key {self.key(number)})"
        payloads = self.payloads(number, where)
        try:
            return make_row(self.key(number), payloads, plural=self.plural)
        except DataError as error:
            raise DataError(f"{where}: {error}.") from error

    def key(self, number: int) -> str:
        """Return a row's key, for messages."""
        return self.index.keys[number]

    def payloads(self, number: int, where: str) -> dict[str, bytes]:
        """Return a sample's members as bytes by extension.

        Raises:
            DataError: As for a row; the message begins with `where`.
        """
        found = {}
        with open_tar(self.path) as stream:
            status = os.fstat(stream.fileno())
            if (status.st_size, status.st_mtime_ns) != self.stamp:
                raise DataError(f"{self.name} was changed while it was in use. Start again.")
            for entry in self.index.sample(number):
                stream.seek(entry.offset)
                encoded = stream.read(entry.size)
                if len(encoded) != entry.size or entry.crc32 not in (None, zlib.crc32(encoded)):
                    raise DataError(
                        f"{where}: the member .{entry.extension} is damaged: its bytes are not those that the tar was "
                        f"written with (CRC-32). {self._cure()}"
                    )
                found[entry.extension] = encoded
        return found

    def _cure(self) -> str:
        unpacked = str(self.path) != self.name
        return f"Delete {self.path}, which is unpacked again then." if unpacked else "Copy the tar again."
