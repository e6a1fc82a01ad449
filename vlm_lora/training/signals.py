"""SIGTERM, SIGUSR1 and Ctrl-C while training: save a checkpoint and end, so that the run can go on from it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore, _get_default_store
from transformers import TrainerCallback

from vlm_lora.errors import EndedEarlyError, SignalledError, StalledError
from vlm_lora.launch.roll_call import silent_rank, within
from vlm_lora.launch.stop_signals import StopSignals, name_of
from vlm_lora.training.checkpoints.choosing import is_whole
from vlm_lora.training.meeting import Meeting, first_text

logger = logging.getLogger(__name__)

_ROOM = 1 << 20
"""More than there are ranks: a step's counter holds who has arrived below it, and who was told above."""

_MARGIN = 2.0
"""Seconds that the store has beyond the timeout: its own message is the better one."""

_runs = itertools.count()

OTHERS = "A signal to another process"

_GO_ON = "To go on: the same command with --resume_from_checkpoint true."


class _EvaluationLeftError(Exception):
    """An evaluation was left because the run is to end; all ranks leave it at the same batch."""


@contextmanager
def ending_on_signal(trainer: Any, stops: StopSignals) -> Iterator[None]:
    """Let a signal end the training inside at the next step that all ranks agree on, with a checkpoint.

    An evaluation during the training is left at its next batch: the checkpoint holds its step without its figures. On
    several ranks, which may have different numbers of batches to answer, answers are generated to the end.

    Raises:
        EndedEarlyError: that was done.
        SignalledError: no step was made yet, so there is nothing to save.
    """
    ending = EndOnSignal(trainer, stops)
    trainer.add_callback(ending)
    if trainer.answering is not None and trainer.args.world_size == 1:
        trainer.answering.before_round = ending.leave
    try:
        try:
            yield
        except _EvaluationLeftError:
            if trainer.state.global_step == ending.begun:
                stops.over()
                raise _unchanged(trainer, ending, stops) from None
            _save(trainer)
    except EndedEarlyError:
        stops.over()
        # The trainer's own end would load the best checkpoint.
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        # A launcher ends all ranks once one has ended: not before the last has written its part.
        trainer.accelerator.wait_for_everyone()
        raise
    finally:
        trainer.remove_callback(ending)
        if trainer.answering is not None:
            trainer.answering.before_round = lambda: None


def end_behind_training(trainer: Any, stops: StopSignals) -> None:
    """End a run of which a rank was told since its last step, with that step as a checkpoint; all ranks call it.

    Raises:
        EndedEarlyError: that was done.
    """
    arguments, state = trainer.args, trainer.state
    meeting = Meeting(arguments.process_index, arguments.world_size, timedelta(seconds=arguments.ddp_timeout))
    by = meeting.message(name_of(stops.told) if stops.told else "", first_text)
    if by and _has_last_step(trainer, together=True):
        stops.over()
        trainer.accelerator.wait_for_everyone()
        raise EndedEarlyError(f"{by}: ended after the last step ({state.global_step}), which is saved. {_GO_ON}")


@contextmanager
def leaving_together(trainer: Any, stops: StopSignals) -> Iterator[None]:
    """Let several ranks leave the last evaluation, which runs inside, at one batch, and save the last step there.

    Only where that step is no checkpoint yet: else a signal ends them at once. Answers are generated to the end.

    Raises:
        EndedEarlyError: a rank was told, and all have saved.
    """
    if trainer.args.world_size == 1 or not _lacks_last_step(trainer):
        yield
        return
    leaving = LeaveTogether(trainer, stops)
    trainer.add_callback(leaving)
    try:
        with stops.deferring():
            try:
                yield
            except _EvaluationLeftError:
                _has_last_step(trainer, together=True)
                stops.over()
                trainer.accelerator.wait_for_everyone()
                by = name_of(stops.told) if stops.told else OTHERS
                raise _left_last_evaluation(by, trainer) from None
            stops.over()
    finally:
        trainer.remove_callback(leaving)


@contextmanager
def ending_after_training(trainer: Any, stops: StopSignals) -> Iterator[None]:
    """Let a signal end at once what follows a training; where the last step is no checkpoint, one process saves it.

    Behind it signals change nothing: all is measured.

    Raises:
        EndedEarlyError: a signal came, and the last step is saved as a checkpoint.
        SignalledError: a signal came, and it is not.
    """
    try:
        yield
        stops.over()
    except SignalledError as stop:
        with stops.deferring():
            if not _has_last_step(trainer, together=trainer.args.world_size == 1):
                raise
            stops.over()
        raise _left_last_evaluation(name_of(stop.number), trainer) from None


def _left_last_evaluation(by: str, trainer: Any) -> EndedEarlyError:
    step = trainer.state.global_step
    return EndedEarlyError(f"{by}: ended in the evaluation after the last step ({step}), which is saved. {_GO_ON}")


def _lacks_last_step(trainer: Any) -> bool:
    """Say whether a training's last step is no checkpoint, and could be saved as one.

    Where the best checkpoint was loaded, or nothing was trained, the weights are not the last step's.
    """
    arguments, state = trainer.args, trainer.state
    best = arguments.load_best_model_at_end and state.best_model_checkpoint is not None
    trained = arguments.do_train and state.global_step > 0 and not best
    return trained and not is_whole(Path(arguments.output_dir) / f"checkpoint-{state.global_step}")


def _has_last_step(trainer: Any, *, together: bool) -> bool:
    """Say whether a training's last step is a checkpoint, having saved it where that can be.

    Args:
        trainer: behind its training.
        together: all ranks are here.
    """
    arguments, state = trainer.args, trainer.state
    if together and _lacks_last_step(trainer):
        arguments.save_only_model = False  # this one is to be gone on from
        trainer.sealer.at_once = True
        trainer._save_checkpoint(trainer.model, None)
        trainer.callback_handler.on_save(arguments, state, trainer.control)
    return is_whole(Path(arguments.output_dir) / f"checkpoint-{state.global_step}")


def _save(trainer: Any) -> None:
    """Save the step that an evaluation was left at, as the trainer would have done after it.

    Raises:
        EndedEarlyError: once it is saved; always.
    """
    trainer._save_checkpoint(trainer.model, None)
    trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
    raise AssertionError("EndOnSignal ends the run when it is told of the checkpoint")


def _unchanged(trainer: Any, ending: EndOnSignal, stops: StopSignals) -> Exception | SignalledError:
    """Return what a run ends by that was told before its first step."""
    if ending.begun:
        return EndedEarlyError(
            f"{ending.by}: ended before the first step; checkpoint-{ending.begun}, which the run went on from, has all "
            f"that there is. {_GO_ON}"
        )
    return SignalledError(stops.told or 15)


class EndOnSignal(TrainerCallback):
    """Saves and ends at the same step on all ranks, whichever was told and when."""

    def __init__(self, trainer: Any, stops: StopSignals) -> None:
        self._trainer, self._stops = trainer, stops
        self._ends = False
        self._agreement: Agreement | None = None
        self.begun = 0
        """Steps that were made before this run."""

    @property
    def by(self) -> str:
        """What told the run to end."""
        return name_of(self._stops.told) if self._stops.told else OTHERS

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Choose how to agree."""
        self.begun = state.global_step
        if args.world_size > 1:
            self._agreement = _agreement(args)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint once the ranks agree.

        An evaluation that is due here still begins, and is left at its first batch: its loader draws from the
        generator that the steps after it draw from, too, and those are to be the same when the run goes on.
        """
        if self._agree():
            self._ask(args, state, control)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the evaluation once the ranks agree.

        Raises:
            _EvaluationLeftError: they do.
        """
        if not self._ends and self._agree():
            self._ask(args, state, control)
        if self._ends:
            raise _EvaluationLeftError

    def leave(self) -> None:
        """Leave what is generated in an evaluation of one process.

        Raises:
            _EvaluationLeftError: it was told to end.
        """
        trainer = self._trainer
        if trainer.is_in_train:
            self.on_prediction_step(trainer.args, trainer.state, trainer.control)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End, now that the checkpoint is there.

        Raises:
            EndedEarlyError: always, where a signal asked for it.
        """
        if self._ends:
            raise EndedEarlyError(
                f"{self.by}: ended after step {state.global_step} of {state.max_steps}, which is saved. {_GO_ON}"
            )

    def _agree(self) -> bool:
        told = bool(self._stops.told)  # read once: it may change at any moment
        self._ends = told if self._agreement is None else self._agreement.any_told(told)
        return self._ends

    def _ask(self, args: Any, state: Any, control: Any) -> None:
        logger.warning("%s: saving checkpoint-%d and ending", self.by, state.global_step)
        control.should_save = True
        self._trainer.sealer.at_once = True
        if args.save_only_model:
            # This one is to be gone on from.
            logger.warning("--save_only_model true: this checkpoint has the optimizer and the schedule, too")
            args.save_only_model = False


class LeaveTogether(TrainerCallback):
    """Leaves an evaluation at the same batch on all ranks, whichever was told and when."""

    def __init__(self, trainer: Any, stops: StopSignals) -> None:
        self._stops, self._agreement = stops, _agreement(trainer.args)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave it once the ranks agree.

        Raises:
            _EvaluationLeftError: they do.
        """
        if self._agreement.any_told(bool(self._stops.told)):
            raise _EvaluationLeftError


def _agreement(arguments: Any) -> Agreement:
    store = PrefixStore(f"vlm_lora/ending/{next(_runs)}", _get_default_store())
    return Agreement(store, arguments.world_size, timedelta(seconds=arguments.ddp_timeout))


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
