"""Ends a training that stands still: every process shows what it is doing, the one that is behind is named.

What it waits for may never end by itself: a rank that is stopped, a disk, a device, a collective that not all joined.
The end is at once and by this thread, with exit code 76: the training itself cannot be reached.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from transformers import TrainerCallback

from vlm_lora.batching.loading import state_in_words, stuck_workers
from vlm_lora.launch.roll_call import within
from vlm_lora.training.guards.folder_lock import let_go
from vlm_lora.training.guards.stall_roll import PATIENCE, StallRoll, connect
from vlm_lora.training.guards.standing import Answer, Standing, described

logger = logging.getLogger(__name__)

EXIT_STALLED = 76
"""The exit code."""

_KEEPER = "or what keeps the store that the ranks met at"

_TICK = 2.0
"""Seconds between two looks, at most."""


@contextmanager
def watching(
    trainer: Any, timeout: float | None, broken_off: Callable[[str], None] = lambda said: None
) -> Iterator[None]:
    """Watch over the training inside.

    Args:
        trainer: all ranks call this.
        timeout: `--stall_timeout`; 0 watches over nothing.
        broken_off: called before the process is ended, with the reason; it may be stuck, too.
    """
    if timeout == 0:
        yield
        return
    watchdog = Watchdog(trainer, timeout, broken_off)
    trainer.add_callback(watchdog)
    trainer.watchdog = watchdog
    try:
        yield
    finally:
        watchdog.stop()
        trainer.watchdog = None
        trainer.remove_callback(watchdog)


class Watchdog(TrainerCallback):
    """Notes how far the training comes, and looks at it in a thread."""

    def __init__(
        self, trainer: Any, timeout: float | None, broken_off: Callable[[str], None] = lambda said: None
    ) -> None:
        self._broken_off = broken_off
        self._standing = Standing(timeout)
        arguments = trainer.args
        self._rank, self._ranks = arguments.process_index, arguments.world_size
        # Elsewhere hardly two batches have one shape, and none of them costs more than another.
        self._compiles = trainer.fixed_shapes or arguments.torch_compile
        self._shapes: set[tuple[tuple[int, ...], ...]] = set()
        self._begun = time.monotonic()
        self._over = threading.Event()
        self._roll: StallRoll | None = None
        self._store_is_silent = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to look."""
        if self._ranks > 1:
            try:
                self._roll = StallRoll(connect(), self._rank, self._ranks, _state)
                self._roll.introduce(socket.gethostname(), os.getpid(), self._standing.excuse)
            except (RuntimeError, KeyError, ValueError) as error:
                logger.warning("The ranks' store cannot be reached (%s): a stall is seen, but not whose it is.", error)
        threading.Thread(target=self._look, daemon=True).start()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A batch has come."""
        self._begun = time.monotonic()
        self._standing.move("" if self._standing.step else None)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One of a step's batches is done."""
        self._standing.move()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step is done."""
        self._standing.end_step(time.monotonic() - self._begun, _excuse(control))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What follows may be an evaluation or a save, too."""
        self._standing.move(_excuse(control) or None)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What follows is loading the best checkpoint."""
        self._standing.move("the end of the training")

    def see(self, inputs: dict[str, Any]) -> None:
        """Note a batch's shapes: hardware that compiles needs long for the first of each."""
        if not self._compiles:
            return
        shapes = tuple(tuple(value.shape) for value in inputs.values() if isinstance(value, torch.Tensor))
        if shapes not in self._shapes:
            self._shapes.add(shapes)
            self._standing.move("the first step of a shape")

    def stop(self) -> None:
        """Look no more."""
        self._over.set()

    def _look(self) -> None:
        tick = min(_TICK, self._standing.limit / 8)
        told = self._standing.excuse
        while not self._over.wait(tick):
            stalled, called = self._standing.is_stalled(tick), False
            if self._roll is not None:
                try:
                    excuse, roll = self._standing.excuse, self._roll
                    if excuse != told:
                        within(PATIENCE, partial(roll.introduce, socket.gethostname(), os.getpid(), excuse))
                        told = excuse
                    called = within(PATIENCE, roll.is_called)
                except (RuntimeError, OSError) as error:
                    logger.debug("The ranks' store: %s", error)  # also where a run ends
                    self._roll, self._store_is_silent = None, True
            if (stalled or called) and not self._over.is_set():
                self._speak()

    def _speak(self) -> None:
        """Agree with the other ranks on what to do, and end or look on."""
        standing = self._standing
        limit = standing.limit
        own = Answer(
            who=f"pid {os.getpid()} on {socket.gethostname()}",
            count=standing.count,
            step=standing.step,
            excuse="a debugger" if _is_debugged() else standing.excuse,
            workers=stuck_workers(),
        )
        roll, first, silent = self._roll, True, 0
        keeper = {0: (_KEEPER, "")}
        if roll is None:
            message = (
                "" if own.excuse else described({self._rank: own}, keeper if self._store_is_silent else {}, limit=limit)
            )
        else:
            try:
                message, first, silent = within(5 * PATIENCE, partial(roll.talk, own, limit))
            except (RuntimeError, OSError):
                message = described({self._rank: own}, keeper, limit=limit)
                roll = None
        if not message:
            standing.wait_on()
            return
        self._show()
        with suppress(RuntimeError, OSError):  # a disk that takes nothing may be what the training waits for
            within(PATIENCE, partial(self._broken_off, message))
        if roll is not None:
            with suppress(RuntimeError, OSError):
                within(PATIENCE, roll.note_shown)
                if first:
                    within(2 * PATIENCE, partial(roll.wait_for_shown, silent))
                else:
                    time.sleep(PATIENCE)  # the first one speaks, and a launcher ends the others then
        if first:
            _write(f"error: {message}\n")
        _leave()

    def _show(self) -> None:
        """Write what each thread of this process is doing, in one piece."""
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file=file, all_threads=True)
            file.seek(0)
            stacks = file.read().decode(errors="replace")
        _write(f"Rank {self._rank} (pid {os.getpid()}) was doing this:\n{stacks}")


def _excuse(control: Any) -> str:
    return "an evaluation or a save" if control.should_evaluate or control.should_save else ""


def _state(host: str, pid: int) -> str:
    if not pid:
        return "unknown"
    return f"pid {pid} on {host}; {state_in_words(pid)}" if host == socket.gethostname() else f"pid {pid} on {host}"


def _is_debugged() -> bool:
    """Say whether a debugger holds this process: gdb by ptrace(2), or Python's own and those made of it."""
    with suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
        if "\nTracerPid:\t0\n" not in status:
            return True
    if "debugpy" in sys.modules or "pydevd" in sys.modules:
        return True
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if frame.f_globals.get("__name__") in ("bdb", "pdb"):
            return True
        frame = frame.f_back
    return False


def _write(text: str) -> None:
    """Write to stderr past Python's own stream, which the training may hold."""
    data = text.encode(errors="backslashreplace")
    while data:
        data = data[os.write(2, data) :]


def _leave() -> NoReturn:
    let_go()
    os._exit(EXIT_STALLED)
