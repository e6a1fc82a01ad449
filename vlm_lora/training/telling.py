"""What the trainer tells its callbacks, told to a run's observers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from vlm_lora.training.observers import RunObserver


class Telling(TrainerCallback):
    """Tells observers what the trainer tells its callbacks."""

    def __init__(self, observers: RunObserver) -> None:
        self._observers = observers

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell of a training step; an evaluation's figures come by `on_evaluate`, a run's sums by its results."""
        figures = kwargs.get("logs") or {}
        if "loss" in figures:
            self._observers.step(state.global_step, figures)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell of an evaluation."""
        self._observers.evaluated(state.global_step, kwargs.get("metrics") or {})

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell of a checkpoint."""
        self._observers.saved(state.global_step, Path(args.output_dir) / f"checkpoint-{state.global_step}")
