"""Large checkpoints get their manifest while the training goes on: hashing gigabytes takes as long as writing them.

One is under way at most. The next save, the end of the training and whatever reads a checkpoint wait for it first; an
end by a signal does not begin one. A run that is killed meanwhile loses that checkpoint alone, because older ones are
removed only once it is whole.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from vlm_lora.launch.stop_signals import STOPPING
from vlm_lora.training.meeting import own_connection

logger = logging.getLogger(__name__)

LARGE = 64 * 1024 * 1024
"""Bytes of a checkpoint from which on training does not wait: what is smaller takes a tenth of a second."""

_PATIENCE = 60.0
"""Seconds that a run that ends by an error waits for the other ranks' parts, of which some may be gone."""


class Sealer(TrainerCallback):
    """Runs what makes a saved checkpoint count: at once, or in a thread which the training's main thread looks after.

    All ranks call the same methods in the same order; none of them is waited for in here. An error of the thread is
    raised in the main thread, at the end of the step in which it came.
    """

    def __init__(self) -> None:
        self.at_once = False
        """Whether the training is to wait, as where it is about to end."""
        self._connection: Any = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._then: list[Callable[[], None]] = []

    def seal(self, prepare: Callable[[Any], Callable[[], None]], *, size: int, ranks: int) -> None:
        """Seal a checkpoint; that of the one before must be done (`finish`).

        Args:
            prepare: returns what seals it, and is given the connection to use (as `Meeting` is).
            size: of the checkpoint, in bytes.
            ranks: how many there are.
        """
        waits = self.at_once or size < LARGE
        if not waits and ranks > 1:
            self._connection = self._connection or own_connection()
            waits = self._connection is None
        job = prepare(None if waits else self._connection)
        if waits:
            job()
            return

        def run() -> None:
            # A signal that this thread takes would not wake the main thread, whose handlers are to run.
            signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
            try:
                job()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="vlm-lora manifest", daemon=True)
        self._thread.start()

    def once_whole(self, act: Callable[[], None]) -> None:
        """Call `act` in the main thread once the checkpoint that was saved last is whole; now if it is."""
        if self._thread is None:
            act()
        else:
            self._then.append(act)

    def finish(self) -> None:
        """Wait for what is under way.

        Raises:
            OSError, DiskError, RuntimeError: what went wrong with it.
        """
        self._settle(None)

    @contextmanager
    def finished_at_end(self) -> Iterator[None]:
        """Wait at the end of the training inside for what is under way, also where an error ends it."""
        try:
            yield
        except BaseException:
            try:
                self._settle(_PATIENCE)
            except Exception as error:
                logger.warning("The checkpoint that was saved last has no manifest, and does not count: %s", error)
            raise
        self.finish()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See whether it is done."""
        if self._thread is not None and not self._thread.is_alive():
            self.finish()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait, before others are told that no further step is made."""
        self.finish()

    def _settle(self, patience: float | None) -> None:
        thread = self._thread
        if thread is None:
            return
        thread.join(patience)
        if thread.is_alive():
            raise RuntimeError(f"after {patience:g} seconds it is still under way")
        self._thread, error, then = None, self._error, self._then
        self._error, self._then = None, []
        if error is not None:
            raise error
        for act in then:
            act()
