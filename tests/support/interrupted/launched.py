"""Starts of the command line by a launcher, which is what is told."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from support.interrupted.forks import HANGS, HUNG
from support.runs import EXAMPLES
from support.warm import warmed

VLM_LORA = Path(sys.executable).with_name("vlm-lora")
SPAWN = EXAMPLES.parent / "launchers" / "gaudi_spawn.py"
FIRST_STEP = "Gradient audit"
"""What a run of several ranks says once it has made its first step."""

A_STEP = 0.02
"""Seconds, about; a launched run does not say which step it has begun."""

_CPU: list[str | Path] = [VLM_LORA, "launch", "--backend", "cpu", "--world_size", "2"]
_HPU: list[str | Path] = [sys.executable, SPAWN, "--world_size", "2"]
_SCRIPT = EXAMPLES / "run_lora_vlm.py"
LAUNCHERS: dict[str, list[str | Path]] = {
    "torchrun": [*_CPU, "train"],
    "deepspeed": [*_CPU, "--use_deepspeed", "train"],
    "accelerate": [*_CPU, "--use_accelerate", "train"],
    "hpu-torchrun": [*_HPU, _SCRIPT],
    "hpu-deepspeed": [*_HPU, "--use_deepspeed", _SCRIPT],
    "hpu-mpirun": [*_HPU, "--use_mpi", _SCRIPT],
}


class Launched:
    """One start of a run by a launcher.

    Args:
        words: the command line's.
        launcher: one of `LAUNCHERS`.
        place: an empty folder, which becomes the working folder of all its processes: they are found by it.
        cold: start every process as a user's shell does, and send Ctrl-C to all of the launcher's group, as a terminal
            does; else they are forked from a warm one.
    """

    def __init__(self, words: Sequence[str], launcher: str, place: Path, *, cold: bool = False) -> None:
        place.mkdir(parents=True)
        self._place, self._cold = place.resolve(), cold
        self._log = place.with_suffix(".log")
        command: list[str] = [*map(str, LAUNCHERS[launcher]), *words]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command if cold else warmed(command),
                cwd=place,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def step(self) -> int:
        """Return 1 once the first step was made, 0 before."""
        return int(FIRST_STEP in self.said())

    def wait_for_step(self, step: int, seconds: float = HANGS) -> None:
        """Wait until the first step was made, and a little for each further one, or until the launcher has ended."""
        deadline = time.monotonic() + seconds
        while self.step() < min(step, 1) and self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(A_STEP * max(0, step - 1))

    def tell(self, number: int, ranks: Sequence[int] = (), *, pause: Callable[[], float] = lambda: 0.0) -> None:
        """Send a signal to the launcher."""
        if self._cold and number == signal.SIGINT:
            os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)

    def wait(self) -> list[int]:
        """Return the launcher's exit code; one that hangs is killed, and has `HUNG`."""
        try:
            return [self._process.wait(HANGS)]
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return [HUNG]

    def orphans(self, seconds: float = 20.0) -> list[str]:
        """Return what has outlived the launcher by so long; it is killed."""
        deadline = time.monotonic() + seconds
        while (left := working_in(self._place)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return [f"process {pid} outlived the launcher" for pid in left]

    def said(self) -> str:
        """Return what all of its processes wrote."""
        return self._log.read_text(encoding="utf-8", errors="replace")


def working_in(place: Path) -> list[int]:
    """Return the processes whose working folder it is and that have not ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        # One that has ended and was not waited for yet has none.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if (folder / "cwd").readlink() == place:
                found.append(int(folder.name))
    return found
