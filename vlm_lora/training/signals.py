"""SIGUSR1, which Slurm sends before the time is up: save a checkpoint and end, so that the run can go on from it."""

from __future__ import annotations

import itertools
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore, _get_default_store
from transformers import TrainerCallback

from vlm_lora.errors import EndedEarlyError, StalledError
from vlm_lora.launch.roll_call import silent_rank, within

logger = logging.getLogger(__name__)

_ROOM = 1 << 20
"""More than there are ranks: a step's counter holds who has arrived below it, and who was told above."""

_MARGIN = 2.0
"""Seconds that the store has beyond the timeout: its own message is the better one."""

_runs = itertools.count()


@contextmanager
def ending_on_signal(trainer: Any) -> Iterator[None]:
    """Let SIGUSR1 end the training inside at the next step that all ranks agree on, with a checkpoint.

    Raises:
        EndedEarlyError: that was done.
    """
    ending = EndOnSignal()
    trainer.add_callback(ending)
    previous = signal.signal(signal.SIGUSR1, ending.note)
    try:
        yield
    except EndedEarlyError:
        # The trainer's own end would load the best checkpoint.
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        # A launcher ends all ranks once one has ended: not before the last has written its part.
        trainer.accelerator.wait_for_everyone()
        raise
    finally:
        signal.signal(signal.SIGUSR1, previous)
        trainer.remove_callback(ending)


class EndOnSignal(TrainerCallback):
    """Saves and ends at the same step on all ranks, whichever was told and when."""

    def __init__(self) -> None:
        self._told = False
        self._ends = False
        self._agreement: Agreement | None = None

    def note(self, number: int, frame: Any) -> None:
        """Remember the signal; nothing else is safe in its handler."""
        self._told = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Choose how to agree."""
        if args.world_size > 1:
            store = PrefixStore(f"vlm_lora/ending/{next(_runs)}", _get_default_store())
            self._agreement = Agreement(store, args.world_size, timedelta(seconds=args.ddp_timeout))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint, and for no evaluation, once the ranks agree."""
        told = self._told  # read once: it may change at any moment
        self._ends = told if self._agreement is None else self._agreement.any_told(told)
        if self._ends:
            logger.warning("SIGUSR1: saving checkpoint-%d and ending", state.global_step)
            control.should_save, control.should_evaluate = True, False
            if args.save_only_model:
                # This one is to be gone on from.
                logger.warning("--save_only_model true: this checkpoint has the optimizer and the schedule, too")
                args.save_only_model = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End, now that the checkpoint is there.

        Raises:
            EndedEarlyError: always, where a signal asked for it.
        """
        if self._ends:
            raise EndedEarlyError(
                f"SIGUSR1: ended after step {state.global_step} of {state.max_steps}, which is saved. To go on: the "
                "same command with --resume_from_checkpoint true."
            )


class Agreement:
    """Says, the same on every rank and one step late, whether a rank was told to end.

    The ranks write to the store that they met at: no device is read, which costs a step's overlap on some and a
    graph on others. The answer is that of the step before. So nobody waits for a rank that could be waiting for him:
    to end a step, a rank has needed all others to begin it.

    Args:
        store: shared by all ranks, without keys of others.
        ranks: how many there are.
        timeout: how long to wait for the slowest, as for any collective.
    """

    def __init__(self, store: Any, ranks: int, timeout: timedelta) -> None:
        self._store = store
        self._ranks = ranks
        self._timeout = timeout
        self._step = 0

    def any_told(self, told: bool) -> bool:
        """Add whether this rank was told; return whether any was by the step before. All ranks call it at each step.

        Raises:
            StalledError: a rank has not come as far in time.
        """
        try:
            return within(self._timeout.total_seconds() + _MARGIN, lambda: self._any_told(told))
        except RuntimeError as error:
            message = silent_rank(error)
            if message is None:
                raise
            raise StalledError(message) from error

    def _any_told(self, told: bool) -> bool:
        step, self._step = self._step, self._step + 1
        total = self._store.add(f"count/{step}", 1 + _ROOM * told)
        if total % _ROOM == self._ranks:
            self._store.set(f"told/{step}", str(total // _ROOM))
            # All have been here, and so have read what is older than the answer they wait for now.
            self._store.delete_key(f"count/{step}")
            self._store.delete_key(f"told/{step - 2}")
        if step == 0:
            return False
        self._store.wait([f"told/{step - 1}"], self._timeout)
        return int(self._store.get(f"told/{step - 1}")) > 0
