"""Packed tars (`.tar.gz`, `.tgz`): unpacked once to the cache folder, because rows are read by offset."""

from __future__ import annotations

import errno
import gzip
import hashlib
import logging
import os
import zlib
from pathlib import Path

from vlm_lora.config.whole_files import replacing
from vlm_lora.data.cache_folder import VARIABLE, cache_folder
from vlm_lora.data.formats.tar.index import build_index, open_tar, with_hashes
from vlm_lora.data.formats.tar.index_files import KeptIndex, beside, load_index, read_stamp, write_index
from vlm_lora.errors import DataError

logger = logging.getLogger(__name__)

LARGEST_RATIO = 200
"""A packed tar may unpack to so many times its size; images hardly shrink, JSON to a tenth or less."""
ALWAYS_ALLOWED = 64 * 1024 * 1024
"""Unpacked bytes that are allowed whatever the ratio."""

_CHUNK = 1024 * 1024


def unpack(path: Path) -> tuple[Path, KeptIndex]:
    """Return the plain tar of a packed one, unpacked now or before from the same file, and its index.

    What was unpacked before counts only together with the index that was written behind it, and where it still has
    that index's size, time, first and last bytes; else it is unpacked again, which is said. The index has a CRC-32 of
    each member, which `TarTable` compares whenever it reads one.

    Several processes may do so at once: the plain tar gets the packed one's modification time, so that whichever is
    there last is the same file to those that have an index of an earlier one.

    Raises:
        DataError: Damaged or cut off, more than the cap, no usable samples, or no room.
    """
    try:
        status = path.stat()
        file = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
        name = hashlib.sha256(file.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        plain = cache_folder("tars") / f"{name}.tar"
        kept = _unpacked_before(plain)
        if kept is None:
            logger.info("%s is unpacked to %s once (%s chooses the folder).", path, plain, VARIABLE)
            most = max(ALWAYS_ALLOWED, LARGEST_RATIO * status.st_size)
            _unpack(path, plain, most=most, mtime_ns=status.st_mtime_ns)
            kept = _index(plain, name=str(path))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is cut off or damaged: {error}. Copy it again, or make it again.") from error
    except OSError as error:
        cure = f" Set {VARIABLE} to a folder with room." if error.errno == errno.ENOSPC else ""
        raise DataError(f"{path} cannot be unpacked: {error.strerror or error}.{cure}") from error
    return plain, kept


def _unpacked_before(plain: Path) -> KeptIndex | None:
    """Return the index of a tar that was unpacked before, or None where it is not there, not whole or another one."""
    kept = load_index(beside(plain))
    if kept is None and not plain.is_file():
        return None
    if kept is not None and kept.index.crc32 is not None and plain.is_file():
        with open_tar(plain) as stream:
            if read_stamp(stream) == kept.stamp:
                return kept
    logger.warning("%s or its index is not as it was written: it is unpacked again.", plain)
    return None


def _index(plain: Path, *, name: str) -> KeptIndex:
    """Index a tar that was unpacked just now, with a CRC-32 of each member, and keep the index next to it."""
    with open_tar(plain) as stream:
        stamp = read_stamp(stream)
        index = with_hashes(build_index(stream, stamp.size, name), stream)
    kept = KeptIndex(index=index, stamp=stamp, sha256=None)
    write_index(beside(plain), kept)
    return kept


def _unpack(path: Path, plain: Path, *, most: int, mtime_ns: int) -> None:
    with gzip.open(path, "rb") as packed, replacing(plain) as stream:
        written = 0
        while chunk := packed.read(_CHUNK):
            written += len(chunk)
            if written > most:
                raise DataError(
                    f"{path} unpacks to more than {most} bytes, {LARGEST_RATIO} times its size or more: that is no "
                    "set of images. If it is meant, unpack it yourself and name the .tar."
                )
            stream.write(chunk)
        stream.flush()  # a write after the time is set would set another one
        os.utime(stream.fileno(), ns=(mtime_ns, mtime_ns))
