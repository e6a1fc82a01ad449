"""Starts of the command line as forks of this process: told, killed, waited for, and looked at for what they leave."""

from __future__ import annotations

import contextlib
import importlib
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Before torch: sums over tiny tensors are the same and faster on one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before pyarrow: its allocator would begin a thread, and a process of several threads must not fork.
os.environ |= {"ARROW_DEFAULT_MEMORY_POOL": "system", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cpu"}

HANGS = 600.0
"""Seconds after which a start that was told to end, or is about to end by itself, counts as one that hangs."""

HUNG = -1000
"""In place of such a start's exit code."""

_CELL = 8


class Start:
    """One start of a run.

    Args:
        words: the command line's.
        log: where each rank's output goes: this name and the rank.
        ranks: how many processes; with one, nothing says that there could be more.
        before: called in each rank with its number before it runs.
        after: called in rank 0 once it has run; what it returns, and which modules it imported, lies in `told.json`
            beside the log. None for nothing of it.
    """

    def __init__(
        self,
        words: Sequence[str],
        log: Path,
        *,
        ranks: int = 1,
        before: Callable[[int], object] = lambda rank: None,
        after: Callable[[], object] | None = None,
    ) -> None:
        from vlm_lora.launch.launching import free_port

        only_thread()
        self.log = log
        self._steps = mmap.mmap(-1, _CELL * ranks)
        self._port = free_port() if ranks > 1 else 0
        self._readers: list[subprocess.Popen[bytes]] = []
        self.pids = [self._fork(rank, ranks, list(words), before, after) for rank in range(ranks)]
        self.handles = [os.pidfd_open(pid) for pid in self.pids]

    def step(self) -> int:
        """Return the step that rank 0 has begun last; 0 for none."""
        return int.from_bytes(self._steps[:_CELL], "little")

    def runs(self, rank: int = 0) -> bool:
        """Say whether a rank has not ended."""
        return not select.select([self.handles[rank]], [], [], 0)[0]

    def wait_for_step(self, step: int, seconds: float = HANGS) -> None:
        """Wait until rank 0 has begun a step, or has ended."""
        deadline = time.monotonic() + seconds
        while self.step() < step and self.runs() and time.monotonic() < deadline:
            time.sleep(0.005)

    def first_end(self) -> int:
        """Wait until a rank has ended; return its exit code."""
        ended = select.select(self.handles, [], [], HANGS)[0]
        if not ended:
            return HUNG
        seen = os.waitid(os.P_PIDFD, ended[0], os.WEXITED | os.WNOWAIT)
        assert seen is not None
        return seen.si_status if seen.si_code == os.CLD_EXITED else -seen.si_status

    def tell(self, number: int, ranks: Sequence[int] = (), *, pause: Callable[[], float] = lambda: 0.0) -> None:
        """Send a signal to ranks, by default to all, with a pause after each."""
        for rank in ranks or range(len(self.pids)):
            if self.runs(rank):
                os.kill(self.pids[rank], number)
                time.sleep(pause())

    def wait(self, seconds: float = HANGS) -> list[int]:
        """Return the ranks' exit codes, -9 where one was killed; one that lasts longer is killed, and has `HUNG`."""
        codes = []
        for pid, handle in zip(self.pids, self.handles, strict=True):
            hangs = not select.select([handle], [], [], seconds)[0]
            if hangs:
                os.kill(pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            codes.append(HUNG if hangs else code)
            os.close(handle)
        self._steps.close()
        return codes

    def orphans(self, seconds: float = 20.0) -> list[str]:
        """Return what has outlived the ranks by so long, once these were waited for; it is killed."""
        deadline = time.monotonic() + seconds
        while (left := members_of(self.pids)) and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for reader in self._readers:
            reader.wait()
        return [f"process {pid} outlived its rank: {what}" for pid, what in left.items()]

    def said(self, rank: int = 0) -> str:
        """Return what a rank wrote, once it was waited for."""
        return self._log(rank).read_text(encoding="utf-8", errors="replace")

    def _log(self, rank: int) -> Path:
        return self.log.with_name(f"{self.log.name}{rank}")

    def _fork(
        self,
        rank: int,
        ranks: int,
        words: list[str],
        before: Callable[[int], object],
        after: Callable[[], object] | None,
    ) -> int:
        # By another process: a limit on the size of files, which the run gets, is none for what it says.
        receives, sends = os.pipe()
        with self._log(rank).open("wb") as log:
            self._readers.append(subprocess.Popen(["cat"], stdin=receives, stdout=log, start_new_session=True))
        os.close(receives)
        child = os.fork()
        if child:
            os.close(sends)
            return child
        code = 99
        try:
            os.setsid()
            os.dup2(sends, 1)
            os.dup2(sends, 2)
            os.close(sends)
            # This process may have them as files, in which a stream keeps its place.
            sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
            if ranks > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
                os.environ |= {"LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
                os.environ["MASTER_PORT"] = str(self._port)
            self._note_steps(rank)
            before(rank)
            code = run_words(words)
            if rank == 0 and after is not None:
                told = {"after": after(), "modules": sorted(sys.modules)}
                self.log.with_name("told.json").write_text(json.dumps(told), encoding="utf-8")
        except Exception:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)

    def _note_steps(self, rank: int) -> None:
        from vlm_lora.training.signals import EndOnSignal

        def note(ending: EndOnSignal, args: object, state: Any, control: object, **more: object) -> None:
            step: int = state.global_step
            self._steps[_CELL * rank : _CELL * (rank + 1)] = (step + 1).to_bytes(_CELL, "little")

        EndOnSignal.on_step_begin = note


def run_words(words: list[str]) -> int:
    """Run the command line in this process; return its exit code."""
    import torch

    from vlm_lora.cli.main import run_script

    torch.set_num_threads(1)
    return run_script(words)


def members_of(sessions: Sequence[int]) -> dict[int, str]:
    """Return the processes of sessions that have not ended, each with its name and state."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            name, _, rest = (folder / "stat").read_text(encoding="utf-8").rpartition(")")
            state, _, _, session = rest.split()[:4]
            if int(session) in sessions and state not in "ZX":
                found[int(folder.name)] = f"{name.partition('(')[2]}, {state}"
    return found


def only_thread() -> None:
    """Look whether this process may fork.

    Raises:
        RuntimeError: it has several threads, so that a fork could hang.
    """
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise RuntimeError(f"{threads} threads: a fork of this process could hang")


def import_all(told: Path) -> object:
    """Import what a finished start imported on its way, so that the next ones need not; return what it told."""
    found = json.loads(told.read_text(encoding="utf-8"))
    for name in found["modules"]:
        # Some modules are made by others and have no file.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    only_thread()
    return found["after"]


def in_fork(work: Callable[[], object]) -> None:
    """Do something in a process of its own: the one that is forked computes nothing.

    Raises:
        RuntimeError: it failed.
    """
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("what was to be made failed: see above")
