"""Processes that end with the one that started them, though that one is killed and can tell them nothing.

The kernel sees to it (prctl(2), PR_SET_PDEATHSIG), on Linux alone; elsewhere nothing here has an effect. What it is
asked for holds until the process ends: across exec, not for children of its own, and also while it is stopped.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

LAUNCHER = "VLM_LORA_LAUNCHER"
"""The number of the `vlm-lora launch` process at the head of the chain; in the environment of what it starts."""

RANK_ENTRY = Path(__file__).with_name("rank.py")
"""What launchers start in place of a rank's script, which it then becomes."""

_PR_SET_PDEATHSIG = 1


def bind_to_parent() -> None:
    """Let the kernel kill this process when its parent ends: precisely, when the thread ends that started it."""
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0):
        os.write(2, b"vlm-lora: this system refuses prctl, so processes may outlive their launcher.\n")


def child_of_this_process() -> Callable[[], None]:
    """Return what a child of this process does between fork and exec (`Popen`'s preexec_fn) to be bound to it."""
    parent = os.getpid()

    def bind() -> None:
        bind_to_parent()
        if os.getppid() != parent:  # it ended before it was to be noticed
            os.kill(os.getpid(), signal.SIGKILL)

    return bind


def bind_rank(environ: Mapping[str, str]) -> None:
    """Bind a rank to the launcher process that started it, and end it where the chain above it has broken already.

    Each launcher process between the rank and `vlm-lora launch` is bound to the one above it, so one look is enough:
    where `vlm-lora launch` is no longer above this process, a launcher ended before this process was bound. A rank on
    another machine has no such number and is bound to its own parent alone.
    """
    bind_to_parent()
    head = environ.get(LAUNCHER)
    if head is not None and sys.platform == "linux" and int(head) not in _ancestors():
        os.kill(os.getpid(), signal.SIGKILL)


def _ancestors() -> Iterator[int]:
    """Yield the processes above this one."""
    above = os.getppid()
    while above:
        yield above
        try:
            stat = Path(f"/proc/{above}/stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return
        above = int(stat.rpartition(")")[2].split()[1])
