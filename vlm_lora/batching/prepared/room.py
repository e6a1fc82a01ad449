"""How much of a disk what can be made again may take."""

from __future__ import annotations

import shutil
from pathlib import Path

SHARE = 10
"""At most the free disk, divided by this."""


def room_for(folder: Path, gigabytes: float) -> int:
    """Return how many bytes may lie in a folder of their own: what was asked for, and at most a tenth of the free disk.

    Args:
        folder: where they lie, whether it is there yet or not; what lies in it counts as free.
        gigabytes: what was asked for, in 10^9 bytes.
    """
    there = folder
    while not there.exists():
        there = there.parent
    held = sum(file.stat().st_size for file in folder.iterdir()) if folder.is_dir() else 0
    return min(int(gigabytes * 1e9), (shutil.disk_usage(there).free + held) // SHARE)
