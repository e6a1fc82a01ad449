"""The evaluation that a run left when a signal ended it, made when the run goes on.

Without it the best checkpoint could be another one than that of a run that nobody ended, and a schedule that follows
the loss would go elsewhere.
"""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)


def make_up_for_evaluation(trainer: Any, checkpoint: str) -> None:
    """Evaluate before the first step, where the checkpoint's own step was to be evaluated and was not.

    All ranks call it, once weights, optimizer and schedule are loaded. The generators are loaded later, so nothing is
    drawn that the steps would draw.

    Args:
        trainer: goes on from the checkpoint.
        checkpoint: its folder, which may be the best one.
    """
    arguments, state = trainer.args, trainer.state
    if not _was_left(arguments, state):
        return
    if arguments.process_index == 0:
        logger.info("The evaluation of step %d was left when the run ended: it is made now.", state.global_step)
    metrics = trainer._evaluate(None, None)
    trainer._determine_best_metric(metrics, None)
    if getattr(state, "best_global_step", None) == state.global_step:
        state.best_model_checkpoint = checkpoint


def _was_left(arguments: Any, state: Any) -> bool:
    step = state.global_step
    strategy = str(getattr(arguments.eval_strategy, "value", arguments.eval_strategy))
    if strategy == "steps":
        due = bool(state.eval_steps) and step % state.eval_steps == 0 and arguments.eval_delay <= step
    elif strategy == "epoch":
        epoch = float(state.epoch or 0.0)
        due = epoch > 0 and abs(epoch - round(epoch)) < 1e-9 and arguments.eval_delay <= epoch
    else:
        due = False
    measured = any(entry.get("step") == step and "eval_loss" in entry for entry in state.log_history)
    return due and step > 0 and not measured
