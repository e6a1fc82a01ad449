"""SIGTERM, SIGUSR1 and Ctrl-C to a process that trains: what ends it at once, and what lets it save first.

A handler of Python runs between two of its instructions: a long computation in C, a backward pass for instance, holds
it up. Hence a thread watches, too. The interpreter tells it of each signal by a pipe (`signal.set_wakeup_fd`) as the
signal arrives, and it ends the process where the handlers should have done so and could not.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from vlm_lora.errors import SignalledError

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What tells a run to end: clusters, Slurm before the time is up, a terminal."""

AGAIN = 1.0
"""Seconds after the first signal from which Ctrl-C ends at once: before, a launcher may have sent it a second time."""

_GRACE = 1.0
"""Seconds that a process has to end by itself after a second Ctrl-C."""

UNHEARD = 10.0
"""Seconds within which the main thread is to take note of a signal where nothing defers it; computing or waiting in C,
for the other ranks to come for instance, it cannot."""

_active: list[StopSignals] = []
_forked_in: list[int] = []
"""Processes, this one among them, that were forked in a run that handles signals."""
_left_in: list[int] = []
"""Processes, this one among them, that leave signals to their parent."""


def name_of(number: int) -> str:
    """Return what a signal is called."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


class StopSignals:
    """What was told to this process by signals, and whether it may end at any moment or where it is ready to.

    As long as nothing defers them, a signal raises `SignalledError` wherever the main thread is. Deferred, the first
    one is noted and whoever defers looks at `told`; Ctrl-C a second later ends the process all the same.
    """

    def __init__(self) -> None:
        self.told = 0
        """The first signal; 0 for none."""
        self.end_within: float | None = None
        """Seconds from the first signal after which the process ends, ready or not; None for no limit."""
        self.before_hard_end: Callable[[str], object] = lambda said: None
        """Called in another thread before the process is ended by force, with the reason."""
        self._deferred = 0
        self._raised = 0
        self._over = False
        self._at = 0.0
        self._pipe = -1
        self._closing = False

    def __call__(self, number: int, frame: Any) -> None:
        """Take note of a signal; little else is safe in its handler.

        Raises:
            SignalledError: nothing defers it, or it is Ctrl-C again.
        """
        if self._over:
            return
        again = bool(self.told)
        if not again:
            self.told, self._at = number, time.monotonic()
            if self._deferred and number == signal.SIGINT and os.environ.get("LOCAL_RANK", "0") == "0":
                os.write(2, b"\nCtrl-C: finishing the step and saving. Ctrl-C once more ends at once, without.\n")
        if not self._deferred or (again and number == signal.SIGINT and time.monotonic() - self._at >= AGAIN):
            self._raised = number
            raise SignalledError(number)

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Let what a signal raised end the code inside, also where a library has made an error of its own of it.

        Extensions in C and Rust ask Python's objects for this and that; some say then that the object is a wrong one.

        Raises:
            SignalledError: a signal raised it inside, and another error came out.
        """
        try:
            yield
        except Exception as error:
            if self._raised and not self._over:
                raise SignalledError(self._raised) from error
            raise

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """Let signals wait until the code inside is through.

        Raises:
            SignalledError: one came, and the code inside did not end by it.
        """
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1
        if self.told and not self._deferred and not self._over:
            raise SignalledError(self.told)

    def over(self) -> None:
        """Say that the run is ending, with all saved: from here on signals change nothing."""
        self._over = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside."""
        receives, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        previous = {number: signal.signal(number, self) for number in STOPPING}
        wakeup = signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
        watching = threading.Thread(target=self._watch, args=(receives,), name="vlm-lora signals", daemon=True)
        watching.start()
        try:
            yield
        finally:
            self._over = True
            signal.set_wakeup_fd(wakeup)
            for number, handler in previous.items():
                signal.signal(number, handler)
            # Closing the pipe would not end the thread: a loader worker that was forked meanwhile holds it open, too.
            self._closing = True
            with suppress(BlockingIOError):  # where it is full, the thread has something to read anyway
                os.write(self._pipe, b"\0")
            watching.join()
            os.close(self._pipe)
            os.close(receives)

    def _watch(self, receives: int) -> None:
        """End the process by force once its time is over."""
        # A signal that this thread takes would not wake the main thread, whose handlers are to run.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        first, began, unheard = 0, 0.0, float("inf")
        deadline, code, said = float("inf"), 0, ""
        while True:
            left = min(deadline, unheard) - time.monotonic()
            ready, _, _ = select.select([receives], [], [], max(0.0, min(left, 3600.0)))
            now = time.monotonic()
            if self._over and not ready:
                deadline = unheard = float("inf")
            elif ready:
                numbers = os.read(receives, 64)
                if self._closing:
                    return
                for number in numbers:
                    if number not in STOPPING:
                        continue
                    if not first:
                        first, began, unheard = number, now, now + UNHEARD
                        if self.end_within is not None:
                            deadline, code = now + self.end_within, 128 + number
                            said = f"{name_of(number)}: step and save took longer than --end_within "
                            said += f"{self.end_within:g} s; ended without"
                    elif number == signal.SIGINT and now - began >= AGAIN and not hasattr(sys, "ps1"):
                        # In an interactive session the session goes on: there the handler alone ends the run.
                        deadline, code = min(deadline, now + _GRACE), 128 + number
                        said = "Ctrl-C a second time: ended without saving"
            elif now >= deadline:
                self._end(code, said)
            elif now >= unheard:
                unheard = float("inf")
                if not self.told and not self._deferred and not hasattr(sys, "ps1"):
                    self._end(128 + first, f"{name_of(first)}: ended at once, in the middle of what heard no signal")

    def _end(self, code: int, said: str) -> None:
        try:
            self.before_hard_end(said)
            os.write(2, f"\n{said}.\n".encode())
        finally:
            os._exit(code)


def _in_child() -> None:
    """Give a forked process signals of its own: what a terminal sends to the whole group is its parent's affair."""
    if _active:
        _active.clear()
        _forked_in.append(os.getpid())
        signal.set_wakeup_fd(-1)
        # Not the default yet: this may become a worker, which a signal to the group must not end before it can tell.
        signal.signal(signal.SIGTERM, _end_unless_worker)
        for number in (signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)


def _end_unless_worker(number: int, frame: Any) -> None:
    """Let SIGTERM end a forked process, unless it is one of multiprocessing, which is about to tell whose it is."""
    if multiprocessing.parent_process() is None:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _as_worker(_: Any) -> None:
    """In a process of multiprocessing, before anything of its own: leave signals to the run that it belongs to."""
    if os.getpid() in _forked_in:
        leave_to_parent()


os.register_at_fork(after_in_child=_in_child)
multiprocessing.util.register_after_fork(_as_worker, _as_worker)


def leave_to_parent() -> None:
    """In a loader worker: let no signal to the group or the job end it, but its parent's SIGTERM as before.

    Clusters and launchers send SIGTERM to every process, and the trainer needs its workers until it has saved. Who sent
    a signal is known to who waits for it alone, so a thread does, and the signal is blocked everywhere else. What
    multiprocessing starts in a run does so from its first moment; elsewhere a loader worker does with its first rows.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo") or os.getpid() in _left_in:
        return
    _left_in.append(os.getpid())
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, name="vlm-lora SIGTERM", daemon=True).start()


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Give the signals' state to the code inside: the one of the code around it, where that has one.

    Outside the main thread Python allows no handlers: nothing is ever told there.
    """
    if _active:
        yield _active[-1]
        return
    stops = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield stops
        return
    _active.append(stops)
    try:
        with stops.listening():
            yield stops
    finally:
        _active.remove(stops)
