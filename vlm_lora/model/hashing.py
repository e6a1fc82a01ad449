"""SHA-256 of files: several at once, and of large ones that did not change only once.

A large file is known by its size, the time of its last change and its inode: a run that starts again need not read
gigabytes to know that nothing was written to them. A disk that changes bits by itself is not seen that way; whoever
suspects one removes `hashes` from the cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vlm_lora.config.whole_files import write_json
from vlm_lora.data.cache_folder import cache_folder, cache_place
from vlm_lora.errors import DataError

logger = logging.getLogger(__name__)

LARGE = 64 * 1024 * 1024
"""Bytes from which on a hash is kept on disk."""
FORMAT = 1
"""Changes with how hashes are kept."""
KEPT = 500
"""Hashes that are kept at most; those that were made first go."""

PART = 64 * 1024 * 1024
"""Bytes of a file that one thread hashes; a larger file has the hash of its parts' hashes."""

_CHUNK = 1024 * 1024
_AT_ONCE = min(8, os.cpu_count() or 1)

_known: dict[str, tuple[list[int], str]] = {}
"""By path: the stamp of a file and its hash, of this process."""


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal digits.

    Of a file of more than `PART` bytes it is the SHA-256 of its parts' SHA-256s, one after another, so that several
    threads share it: saving waits for this.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    if size <= PART:
        return _digest(path, 0, size).hex()
    starts = range(0, size, PART)
    with ThreadPoolExecutor(max_workers=min(_AT_ONCE, len(starts))) as threads:
        parts = list(threads.map(lambda start: _digest(path, start, PART), starts))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _digest(path: Path, start: int, length: int) -> bytes:
    digest = hashlib.sha256()
    room = memoryview(bytearray(min(_CHUNK, length)))
    with path.open("rb", buffering=0) as stream:
        stream.seek(start)
        while length > 0 and (read := stream.readinto(room[: min(len(room), length)])):
            digest.update(room[:read])
            length -= read
    return digest.digest()


def sizes_and_hashes(paths: Sequence[Path], *, to_disk: bool = False) -> list[tuple[int, str]]:
    """Return each file's size in bytes and its SHA-256; several files are read at once.

    Args:
        paths: the files.
        to_disk: also make sure that each is on the disk, not in memory alone; that goes on while it is read.

    Raises:
        OSError: one cannot be read, or the disk does not take it.
    """
    if not paths:
        return []
    with ThreadPoolExecutor(max_workers=min(2 * _AT_ONCE, (1 + to_disk) * len(paths))) as threads:
        written = [threads.submit(put_on_disk, path) for path in paths] if to_disk else []
        hashes = list(threads.map(sha256_of, paths))
        for each in written:
            each.result()
    return [(path.stat().st_size, digest) for path, digest in zip(paths, hashes, strict=True)]


def put_on_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    Raises:
        OSError: the disk does not take it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def known_hash(path: Path) -> str:
    """Return a file's SHA-256, read anew only where its size, time or inode is another than when it was last read.

    Raises:
        OSError: it cannot be read.
    """
    place = str(path.resolve())
    stat = path.stat()
    stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    if place in _known and _known[place][0] == stamp:
        return _known[place][1]
    large = stat.st_size >= LARGE
    kept = _kept_hashes() if large else {}
    if kept.get(place, [None])[0] == stamp:
        digest = str(kept[place][1])
    else:
        digest = sha256_of(path)
        if large:
            _keep(place, stamp, digest)
    _known[place] = (stamp, digest)
    return digest


def _kept_hashes() -> dict[str, list]:
    """Return what is kept; nothing where the file is none of ours or not as it was written, which is said."""
    file = cache_place("hashes") / "files.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be used (%s): large files are hashed again.", file, error)
        return {}
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, list) or content.get("checksum") != _checksum(files):
        logger.warning("%s is not as it was written: large files are hashed again.", file)
        return {}
    return {name: [stamp, digest] for name, stamp, digest in files}


def _checksum(files: Sequence[Any]) -> str:
    return hashlib.sha256(f"{FORMAT} {json.dumps(files)}".encode()).hexdigest()


def _keep(place: str, stamp: list[int], digest: str) -> None:
    """Keep a hash on disk. Of two processes that do so at once one may be forgotten: then that file is read again."""
    others = [[name, *entry] for name, entry in _kept_hashes().items() if name != place]
    files = [*others, [place, stamp, digest]][-KEPT:]
    try:
        write_json(cache_folder("hashes") / "files.json", {"checksum": _checksum(files), "files": files})
    except (OSError, DataError) as error:
        logger.debug("The hash of %s is not kept: %s.", place, error)
