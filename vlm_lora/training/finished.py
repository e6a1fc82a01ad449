"""Resuming a run that has made all its steps: nothing is trained, and its figures stay as they were.

A run that was cut short in its last evaluation comes here, and a cluster's job that is started once more. The base
class would train a step more where the last one did not end an epoch, and say that its loss was 0.

The steps are compared when the base class has loaded the checkpoint, not before a trainer is built. How many steps
there are follows from rows left out, planned shapes, processes and the engine's batch, which the base class works out
when its loader exists; and ZeRO's and FSDP's weights are loaded by it alone. So a finished run evaluates, keeps its
best checkpoint and writes its final weights by the same code as any other, whatever shards them.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from vlm_lora.compat import IS_5
from vlm_lora.config.whole_files import read_json
from vlm_lora.errors import ConfigError
from vlm_lora.training.checkpoints.so_far import averages
from vlm_lora.training.left_evaluation import make_up_for_evaluation
from vlm_lora.training.observers import EndReason, Observers
from vlm_lora.training.stopping import StopWithoutProgress

_AVERAGES = ("train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second")

logger = logging.getLogger(__name__)


class _NothingLeftError(Exception):
    """The checkpoint holds as many steps as are asked for."""


class StopWhereDone(TrainerCallback):
    """Ends the training before its first step where the checkpoint has made all of them, or was stopped early."""

    def __init__(self, trainer: Any, checkpoint: str) -> None:
        self._trainer, self._checkpoint = trainer, checkpoint
        self.begun = 0
        """Steps that the checkpoint has made."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compare the steps; the weights are loaded by now, whatever engine shards them.

        Raises:
            _NothingLeftError: none is left.
        """
        self.begun = state.global_step
        if args.process_index == 0 and state.global_step < state.max_steps:
            logger.info(
                "Resuming from %s, step %d of %d, epoch %.3g",
                *(Path(self._checkpoint).name, state.global_step, state.max_steps, state.epoch or 0.0),
            )
        so_far = self._trainer.so_far
        so_far.go_on(state)
        if so_far.before is not None:
            self._trainer.waiting.go_on(so_far.before["waited"])
        elif args.process_index == 0:
            logger.warning(
                "%s keeps no sums of its run, as those of earlier versions: train_loss, train_runtime and rates are "
                "those of the steps since.",
                self._checkpoint,
            )
        make_up_for_evaluation(self._trainer, self._checkpoint)
        if state.global_step >= state.max_steps or self._stopped():
            raise _NothingLeftError

    def _stopped(self) -> bool:
        """Say whether the checkpoint is where its run ended for want of progress."""
        handler = self._trainer.callback_handler
        return any(isinstance(one, StopWithoutProgress) and one.is_over for one in handler.callbacks)


def fit(trainer: Any, checkpoint: str | None, observers: Observers) -> dict[str, Any]:
    """Train from a checkpoint or afresh, and return the base class's figures; the earlier ones where no step is left.

    Args:
        trainer: with or without `--load_best_model_at_end`, which holds here as at any end.
        checkpoint: the folder to go on from, or None.
        observers: are told where nothing is left.

    Raises:
        ConfigError: steps were asked for, and none was made; nothing is saved then.
    """
    if checkpoint is None:
        return _made(trainer, dict(trainer.train().metrics), before=0)
    stop = StopWhereDone(trainer, checkpoint)
    trainer.add_callback(stop)
    try:
        return _made(trainer, dict(trainer.train(resume_from_checkpoint=checkpoint).metrics), before=stop.begun)
    except _NothingLeftError:
        arguments, state = trainer.args, trainer.state
        made = f"{checkpoint} has made {state.global_step} of {state.max_steps} steps"
        more = "more --max_steps or --num_train_epochs"
        if state.global_step < state.max_steps:
            made, more = f"{made} and was stopped early", "a greater --early_stopping_patience"
        said = f"{made}: nothing is left to train. To train on, type {more}."
        logger.warning("%s", said)
        observers.note_reason(EndReason.NOTHING_LEFT, said)
        trainer.is_in_train = False
        trainer.callback_handler.on_train_end(arguments, state, trainer.control)
        if arguments.load_best_model_at_end and state.best_model_checkpoint is not None:
            trainer._load_best_model()
        earlier = _figures_of(state, Path(arguments.output_dir))
        if not earlier and trainer.so_far.before is not None:
            earlier = averages(trainer.so_far.before, None)  # killed between its last checkpoint and its results
        return {"epoch": state.epoch, "total_flos": state.total_flos, **earlier}
    finally:
        trainer.remove_callback(stop)


def _made(trainer: Any, figures: dict[str, Any], *, before: int) -> dict[str, Any]:
    """Return the figures of a training that has made a step, if it was to make any."""
    state = trainer.state
    if state.global_step <= before < state.max_steps:
        raise ConfigError(
            f"Nothing was trained: {state.max_steps - before} steps were to be made, and the data gave no batch for "
            "one. No weights are saved. Give more rows, or type a smaller --per_device_train_batch_size, or "
            "--dataloader_drop_last false."
        )
    if state.global_step > before and trainer.finite.skipped.here == state.global_step - before:
        raise ConfigError(
            f"Nothing was trained: all of the {state.global_step - before} steps were skipped, as loss or gradient was "
            "NaN or infinite (--on_nonfinite skip_step). No weights are saved. Look at the rows that the log names, or "
            "type a smaller --learning_rate."
        )
    figures = {**figures, **trainer.finite.skipped.figures()}
    return _of_the_whole_run(figures, trainer, before) if before else figures


def _of_the_whole_run(figures: dict[str, Any], trainer: Any, before: int) -> dict[str, Any]:
    """Return the averages of a run that went on: over all its steps, and under names of their own over those since.

    transformers 4.55 divides what these steps lost by all of the run's steps, and counts all of the run's rows in their
    time.

    Args:
        figures: of the base class.
        trainer: at the end. Where its checkpoint kept no sums, those of the steps since stand.
        before: steps that the checkpoint had made.
    """
    state, sums, skipped = trainer.state, trainer.so_far.before, trainer.finite.skipped
    made = state.global_step - before
    since = {name: figures[name] for name in _AVERAGES if name in figures}
    if not IS_5:
        since["train_loss"] *= state.global_step / made
        for name in since.keys() & {"train_samples_per_second", "train_steps_per_second"}:
            since[name] = round(since[name] * made / state.max_steps, 3)
    named = {name.replace("train_", "train_since_resume_", 1): value for name, value in since.items()}
    whole = since
    if sums is not None:
        seconds = since["train_runtime"]
        rate = since.get("train_samples_per_second")
        together = {
            "steps": state.global_step,
            "skipped": skipped.total,
            "loss": sums["loss"] + since["train_loss"] * (made - skipped.here),
            "seconds": sums["seconds"] + seconds,
        }
        whole = averages(together, None if rate is None else rate * seconds / made)
    return {**figures, **whole, **named, "train_resumed_at_step": before}


def _figures_of(state: Any, folder: Path) -> dict[str, Any]:
    """Return the figures that were written when the training ended where this checkpoint does; else none."""
    earlier = read_json(folder / "train_results.json")
    return earlier if earlier.get("epoch") == state.epoch else {}
