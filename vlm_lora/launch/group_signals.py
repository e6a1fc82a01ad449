"""Signals to the processes that a launcher started: handed on, and the end of those that are left."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from vlm_lora.launch.stop_signals import AGAIN

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals for every process of a run."""

FORCE = 1.0
"""Seconds that processes have to end after a second Ctrl-C."""

GRACE = 20.0
"""Seconds that processes have to end after the first signal."""


class PassingOn:
    """A handler that tells all processes of a group to save and end, those from before its start when it starts.

    Every signal is handed on as SIGUSR1. On SIGTERM and SIGINT launchers give their ranks a while and no more (mpirun
    half a second, torch's and DeepSpeed's 30); what they do about SIGUSR1 has no limit. Only the first one counts,
    but for a second Ctrl-C, by which all end at once.
    """

    def __init__(self) -> None:
        self.ended_by = 0
        """The first signal that ends a run without saving it; 0 for none."""
        self._group = 0
        self._told_at: float | None = None

    def __call__(self, number: int, frame: Any) -> None:
        """Hand one on, now or when there is a group."""
        if number != signal.SIGUSR1:
            self.ended_by = self.ended_by or number
        now = time.monotonic()
        if self._told_at is None:
            self._told_at = now
            if self._group:
                signal_group(self._group, signal.SIGUSR1)
        elif number == signal.SIGINT and now - self._told_at >= AGAIN and self._group:
            signal_group(self._group, signal.SIGINT)
            late = threading.Timer(FORCE, signal_group, (self._group, signal.SIGKILL))
            late.daemon = True
            late.start()

    def start(self, group: int) -> None:
        """Say which group it is."""
        self._group = group  # from here on a handler that interrupts sends its signal itself
        if self._told_at is not None:
            signal_group(group, signal.SIGUSR1)


def pass_signal_on() -> None:
    """Let this process, which starts ranks in sessions of their own, hand SIGUSR1 to them and go on.

    The launchers of torch and accelerate would end by it, and with them the ranks before they have saved.
    """

    def handler(number: int, frame: Any) -> None:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                if parent == str(os.getpid()) and b"\0LOCAL_RANK=" in b"\0" + (folder / "environ").read_bytes():
                    os.kill(int(folder.name), number)
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it ended meanwhile, or is another user's

    signal.signal(signal.SIGUSR1, handler)


def signal_group(group: int, number: int) -> bool:
    """Send a signal to all processes of a group; False where none is left."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def end_group(group: int) -> None:
    """End what is left of a group: ask, wait, then kill."""
    if not signal_group(group, signal.SIGTERM):
        return
    waited = threading.Event()
    for _ in range(int(GRACE * 10)):
        if not signal_group(group, 0):
            return
        waited.wait(0.1)
    signal_group(group, signal.SIGKILL)
