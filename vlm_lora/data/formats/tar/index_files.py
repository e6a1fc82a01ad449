"""An index kept between runs: `<tar>.index.json` next to the tar, else in the cache folder.

It counts only where its own bytes are those that were written (it begins with their SHA-256), and for the very file
that it was made of: the same size, modification time, first and last bytes. An index that was written together with
its tar (by `vlm-lora shard`) also has a hash of the whole file and one of each member; it stays valid when the file is
copied, and a tar that no longer fits it is an error. What does not count is made again, and that is said.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vlm_lora.config.whole_files import replacing
from vlm_lora.data.cache_folder import cache_folder
from vlm_lora.data.formats.tar.index import TarIndex, build_index, open_tar
from vlm_lora.errors import DataError

logger = logging.getLogger(__name__)

SUFFIX = ".index.json"
FOLDER_INDEX = "index.json"
"""Written by `vlm-lora shard` next to its tars: the list of them with sizes, samples and hashes."""
VERSION = 2
"""Changes with what an index file says, and how."""

_END = 64 * 1024
_CHUNK = 1024 * 1024
_HEAD = b'{"checksum":"%s",'
_DIGITS = 2 * hashlib.sha256().digest_size


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What tells that a file is still the one that was indexed."""

    size: int
    mtime_ns: int
    ends: str
    """SHA-256 of its first and last 64 KiB."""


@dataclass(frozen=True, kw_only=True)
class KeptIndex:
    """An index, the file it belongs to, and that file's hash where it was written with the index."""

    index: TarIndex
    stamp: Stamp
    sha256: str | None


def is_index_file(path: Path) -> bool:
    """Tell whether a file is an index and no data: `x.tar.index.json`, or `index.json` of a folder of tars."""
    return path.name.lower().endswith(f".tar{SUFFIX}") or (
        path.name == FOLDER_INDEX and any(p.suffix.lower() == ".tar" for p in path.parent.iterdir())
    )


def read_index(tar: Path, *, name: str) -> KeptIndex:
    """Return a tar's index: the kept one where it is valid, else a new one, which is then kept.

    Args:
        tar: The tar.
        name: How messages call it.

    Raises:
        DataError: The tar is unusable, or is not the one that its index with hashes was written for.
    """
    with open_tar(tar) as stream:
        stamp = read_stamp(stream)
        for file in (beside(tar), _in_cache(tar)):
            kept = load_index(file)
            if kept is None:
                continue
            if kept.stamp == stamp:
                return kept
            if kept.sha256 is not None and file == beside(tar):
                return _recognise(kept, stream, stamp, tar, name)
            logger.info("%s was made of another file than %s is now: it is made again.", file, name)
        index = build_index(stream, stamp.size, name)
    kept = KeptIndex(index=index, stamp=stamp, sha256=None)
    _keep(kept, tar)
    return kept


def beside(tar: Path) -> Path:
    """Return where the index of a tar lies by preference."""
    return tar.with_name(tar.name + SUFFIX)


def read_stamp(stream: BinaryIO) -> Stamp:
    """Return the stamp of an open file."""
    status = os.fstat(stream.fileno())
    stream.seek(0)
    ends = hashlib.sha256(stream.read(_END))
    stream.seek(max(0, status.st_size - _END))
    ends.update(stream.read(_END))
    return Stamp(size=status.st_size, mtime_ns=status.st_mtime_ns, ends=ends.hexdigest())


def hash_file(stream: BinaryIO) -> str:
    """Return the SHA-256 of a whole open file."""
    stream.seek(0)
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def write_index(file: Path, kept: KeptIndex) -> None:
    """Write an index, complete or not at all. Raises OSError."""
    index = kept.index
    record = {
        "version": VERSION,
        "size": kept.stamp.size,
        "mtime_ns": kept.stamp.mtime_ns,
        "ends": kept.stamp.ends,
        "sha256": kept.sha256,
        "columns": index.columns,
        "extensions": index.extensions,
        "keys": index.keys,
        "starts": list(index.starts),
        "kinds": list(index.kinds),
        "offsets": list(index.offsets),
        "sizes": list(index.sizes),
        "crc32": None if index.crc32 is None else list(index.crc32),
    }
    with replacing(file) as stream:
        stream.write(sealed(record))


def sealed(record: Mapping[str, Any]) -> bytes:
    """Return a record as JSON that begins with the SHA-256 of all that follows it."""
    rest = json.dumps(record, separators=(",", ":")).encode()[1:]
    return _HEAD % hashlib.sha256(rest).hexdigest().encode() + rest


def _recognise(kept: KeptIndex, stream: BinaryIO, stamp: Stamp, tar: Path, name: str) -> KeptIndex:
    """Take an index whose tar has another time (it was copied) by the hash of the whole file."""
    if stamp.size != kept.stamp.size or hash_file(stream) != kept.sha256:
        raise DataError(
            f"{name} is not the file that {beside(tar).name} was written with: {stamp.size} bytes where "
            f"{kept.stamp.size} were written, or other content (SHA-256). It is damaged or was replaced: copy it "
            f"again, or delete {beside(tar).name} if the change is meant."
        )
    renewed = KeptIndex(index=kept.index, stamp=stamp, sha256=kept.sha256)
    try:
        write_index(beside(tar), renewed)
    except OSError as error:
        logger.info("%s cannot be written (%s): the tar is hashed again next time.", beside(tar), error.strerror)
    return renewed


def _keep(kept: KeptIndex, tar: Path) -> None:
    try:
        write_index(beside(tar), kept)
    except OSError as error:
        file = _in_cache(tar)
        logger.info("The index of %s is kept as %s: %s.", tar, file, error.strerror or error)
        try:
            write_index(file, kept)
        except OSError as again:
            raise DataError(f"{file} cannot be written: {again.strerror or again}. Free some space there.") from again


def _in_cache(tar: Path) -> Path:
    name = hashlib.sha256(str(tar.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return cache_folder("tars") / f"{name}{SUFFIX}"


def load_index(file: Path) -> KeptIndex | None:
    """Return a kept index; None where there is none or it is no valid one, which is said."""
    try:
        encoded = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("%s cannot be read (%s): the index is made again.", file, error.strerror or error)
        return None
    try:
        record = json.loads(encoded)
        if record["version"] != VERSION:
            raise ValueError(f"version {record['version']}, and this is version {VERSION}")
        start = len(_HEAD % bytes(_DIGITS))
        if encoded[:start] != _HEAD % hashlib.sha256(encoded[start:]).hexdigest().encode("ascii"):
            raise ValueError("its bytes are not those that were written")
        return _parse(record)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        logger.warning("%s is no valid index (%s): it is made again.", file, error)
        return None


def _parse(record: Any) -> KeptIndex:
    """Check a kept index as far as reading relies on it. Raises ValueError, KeyError, TypeError, OverflowError."""
    hashes = record["crc32"]
    index = TarIndex(
        keys=tuple(map(_text, record["keys"])),
        starts=array("Q", record["starts"]),
        extensions=tuple(map(_text, record["extensions"])),
        kinds=array("H", record["kinds"]),
        offsets=array("Q", record["offsets"]),
        sizes=array("Q", record["sizes"]),
        crc32=None if hashes is None else array("Q", hashes),
        columns=tuple(map(_text, record["columns"])),
    )
    stamp = Stamp(size=int(record["size"]), mtime_ns=int(record["mtime_ns"]), ends=_text(record["ends"]))
    members = {len(index.kinds), len(index.offsets), len(index.sizes), index.starts[-1]}
    members |= set() if index.crc32 is None else {len(index.crc32)}
    ends = (o + s for o, s in zip(index.offsets, index.sizes, strict=True))
    if (
        len(members) != 1
        or len(index.starts) != len(index.keys) + 1
        or list(index.starts) != sorted(index.starts)
        or max(index.kinds, default=-1) >= len(index.extensions)
        or max(ends, default=0) > stamp.size
    ):
        raise ValueError("its parts do not fit together")
    sha256 = record["sha256"]
    return KeptIndex(index=index, stamp=stamp, sha256=None if sha256 is None else _text(sha256))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
