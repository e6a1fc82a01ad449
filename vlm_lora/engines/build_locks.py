"""Locks that torch's extension builder leaves behind where it is killed: each later start would wait for ever.

DeepSpeed has parts of itself compiled when it first starts. The builder (torch/utils/file_baton.py) makes a file called
`lock`, keeps it open while it builds, and removes it. So a process that has it open is building; where there is none on
this machine, its maker is gone, or is another machine's that shares the folder.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlm_lora.errors import StalledError

logger = logging.getLogger(__name__)

LIMIT = 1800.0
"""Seconds to wait for a builder where nothing else is said."""

ELSEWHERE = 600.0
"""Seconds after which a lock on a file system that machines share counts as left: no part takes that long to build."""

_SHARED = (
    "nfs",
    "cifs",
    "smb",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "glusterfs",
    "fuse",
    "9p",
    "afs",
    "wekafs",
    "virtiofs",
)
"""How types of file systems begin (proc(5), mounts) that other machines may write to as well."""

_LOOK = 2.0
"""Seconds between two looks."""


def extensions_folder() -> Path:
    """Return where torch keeps what it builds (torch/utils/cpp_extension.py)."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    if given:
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "torch_extensions"


def clear_left_locks(limit: float | None, *, pause: Callable[[float], Any] = time.sleep) -> None:
    """Remove locks whose makers are gone, and wait for builders that are not.

    Args:
        limit: `--stall_timeout`: seconds to wait; 0 for ever, None for `LIMIT`.
        pause: waits so many seconds.

    Raises:
        StalledError: a builder does not come to its end.
    """
    folder = extensions_folder()
    for lock in sorted({*folder.glob("*/lock"), *folder.glob("*/*/lock")}):
        _see_to(lock, LIMIT if limit is None else limit, pause)


def _see_to(lock: Path, limit: float, pause: Callable[[float], Any]) -> None:
    waited = 0.0
    while (seen := _seen(lock)) is not None:
        builders = holders(lock)
        if not builders and _is_left(lock, seen):
            if _remove(lock, seen):
                logger.warning("%s was left by a build that was killed, so it is removed.", lock)
            continue
        by = f"process {builders[0]}" if builders else "another machine or container"
        if not waited:
            logger.warning("%s: waiting for %s, which is building this part.", lock, by)
        if limit and waited >= limit:
            raise StalledError(
                f"{lock}: {by} has been building for {limit:g} seconds (--stall_timeout), and this run waits for it. "
                "If it does so no more, end it and remove the file."
            )
        pause(_LOOK)
        waited += _LOOK


def holders(lock: Path) -> list[int]:
    """Return the processes of this machine that have a file open, as far as this user may see them."""
    wanted = _seen(lock)
    if wanted is None:
        return []
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            opened = [(each.stat().st_dev, each.stat().st_ino) for each in (process / "fd").iterdir() if each.exists()]
        except OSError:  # it has ended, or is another user's
            continue
        if (wanted.st_dev, wanted.st_ino) in opened:
            found.append(int(process.name))
    return sorted(found)


def _is_left(lock: Path, seen: os.stat_result) -> bool:
    """Say whether a lock that no process here has open is nobody's; another user's processes cannot be looked at."""
    visible = os.geteuid() in (0, seen.st_uid) and Path("/proc/self/fd").is_dir()
    return (visible and not _is_shared(lock)) or time.time() - seen.st_mtime > ELSEWHERE


def _is_shared(path: Path) -> bool:
    """Say whether a path lies on a file system that other machines may write to; so it does where nothing says it."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return True
    place = path.resolve()
    above = [(len(words[1]), words[2]) for words in mounts if place.is_relative_to(words[1])]
    return not above or max(above)[1].startswith(_SHARED)


def _remove(lock: Path, seen: os.stat_result) -> bool:
    """Remove a left lock once, whoever else is about to: never the next builder's, which has the same name."""
    try:
        descriptor = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        now = _seen(lock)
        if now is None or _identity(now) != _identity(seen) or now.st_ino != os.fstat(descriptor).st_ino:
            return False
        lock.unlink()
        return True
    finally:
        os.close(descriptor)


def _seen(lock: Path) -> os.stat_result | None:
    try:
        return lock.stat()
    except FileNotFoundError:
        return None


def _identity(seen: os.stat_result) -> tuple[int, int, int]:
    """Return what tells a file from the next one of its name, which may get the same number."""
    return seen.st_dev, seen.st_ino, seen.st_mtime_ns
