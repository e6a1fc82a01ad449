"""A launcher that is killed in a test, and what is left of what it started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

WAITS = Path(__file__).parent / "launched" / "waits.py"


def is_running(pid: int) -> bool:
    """Say whether a process is there and has not ended."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):  # the latter where it ends between opening and reading
        return False


def eventually(what: Callable[[], bool], seconds: float) -> bool:
    """Wait until something is so; say whether it came to be."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.1)
    return what()


def child_of(parent: int) -> int:
    """Return the first process that another one started."""
    return int(Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split()[0])


def left_of(
    words: Sequence[str | Path], folder: Path, environment: Mapping[str, str], *, inner: bool = False
) -> list[int]:
    """Start two ranks of `WAITS` by a launcher, stop one, kill the outermost process; return what still runs.

    Args:
        words: the launcher's command up to the script.
        folder: an empty one.
        environment: of all of them.
        inner: kill the launcher that the outermost process started instead, such as torchrun or mpirun.
    """
    command = [str(word) for word in (*words, WAITS, folder)]
    launcher = subprocess.Popen(command, env=dict(environment), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    files = [folder / "pid0", folder / "pid1"]
    started: list[int] = []
    try:
        assert eventually(lambda: all(path.exists() and " " in path.read_text() for path in files), 240)
        started = sorted({int(pid) for path in files for pid in path.read_text().split()})
        os.kill(int(files[1].read_text().split()[0]), signal.SIGSTOP)
        os.kill(child_of(launcher.pid) if inner else launcher.pid, signal.SIGKILL)
        eventually(lambda: not any(is_running(pid) for pid in started), 60)
        if inner:
            assert launcher.wait(timeout=60) == 128 + signal.SIGKILL
        return [pid for pid in started if is_running(pid)]
    finally:
        launcher.kill()
        launcher.wait()
        for pid in started:
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)
