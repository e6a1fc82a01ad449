"""The end of a training whose evaluations have not got better for a while (`--early_stopping_patience`)."""

from __future__ import annotations

import logging
from typing import Any

from transformers import EarlyStoppingCallback

from vlm_lora.config.scoring import ScoringConfig
from vlm_lora.data.wording import counted
from vlm_lora.training.observers import EndReason, Observers

logger = logging.getLogger(__name__)


class StopWithoutProgress(EarlyStoppingCallback):
    """transformers' own rule; it also says why it ends the run, and counts on where a resumed run was.

    Args:
        patience: evaluations in a row that are not better than the best one.
        threshold: what is better by no more than this is not.
        observers: are told why the run ends.
    """

    def __init__(self, patience: int, threshold: float, observers: Observers) -> None:
        super().__init__(early_stopping_patience=patience, early_stopping_threshold=threshold)
        self._observers = observers
        self._begun: int | None = None
        """Steps made before this training; None outside of one."""

    @property
    def is_over(self) -> bool:
        """Whether so many evaluations in a row were not better."""
        return bool(self.early_stopping_patience_counter >= self.early_stopping_patience)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count on from a checkpoint. What the base class asks for here was checked before anything was loaded."""
        self._begun = state.global_step
        kept = state.stateful_callbacks.get(type(self).__name__)
        if state.global_step and isinstance(kept, dict):
            self.early_stopping_patience_counter = kept["attributes"]["early_stopping_patience_counter"]
        if not args.load_best_model_at_end:
            logger.info("The last weights will be saved. To save the best ones, type --load_best_model_at_end.")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count no more: an evaluation of the trained model follows."""
        self._begun = None

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Count an evaluation of the training, but for one before its first step."""
        if self._begun in (None, state.global_step):
            return
        super().on_evaluate(args, state, control, metrics or {}, **kwargs)
        if self.is_over and state.global_step < state.max_steps:
            said = self.reason(args, state)
            if not self._observers.shows_progress:  # who shows the run says it at its end
                logger.warning("%s", said)
            self._observers.note_reason(EndReason.STOPPED_EARLY, said)

    def reason(self, args: Any, state: Any) -> str:
        """Return why the training ends, in a sentence."""
        name = "eval_" + str(args.metric_for_best_model).removeprefix("eval_")
        best = "" if state.best_metric is None else f" than {state.best_metric:.6g}"
        best += f" at step {state.best_global_step}" if state.best_global_step else ""
        threshold = self.early_stopping_threshold or 0
        margin = f" by more than {threshold:g}" if threshold else ""
        enough = counted(self.early_stopping_patience_counter, "evaluation")
        return (
            f"Stopped early at step {state.global_step}: in {enough} {name} was not better{best}{margin} "
            f"(--early_stopping_patience {self.early_stopping_patience})."
        )


def stops_without_progress(trainer: Any, scoring: ScoringConfig, observers: Observers) -> None:
    """Let a training end where its evaluations do not get better, if that is asked for."""
    if trainer.args.do_train and scoring.early_stopping_patience is not None:
        trainer.add_callback(
            StopWithoutProgress(scoring.early_stopping_patience, scoring.early_stopping_threshold, observers)
        )
