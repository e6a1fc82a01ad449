"""What a training has come to over all the processes that made it, so that its averages are those of the whole run.

The trainer's state in each checkpoint keeps the sums, and whoever goes on adds to them. Steps that a killed process had
made behind its last checkpoint are made once more and count once, as if nobody had ended the run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from vlm_lora.compat import IS_5

KEY = "vlm_lora_so_far"
"""Among the states of callbacks: the one place of the trainer's state for what transformers does not know."""
_NOTHING = {"steps": 0, "skipped": 0, "loss": 0.0, "seconds": 0.0, "waited": 0.0}


class SoFar:
    """Sums over the steps of a training.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._began = clock()
        self._pending: torch.Tensor | None = None
        self.before: Mapping[str, float] | None = _NOTHING
        """The sums of the checkpoint that the run goes on from: `steps`, `skipped` of them, `loss` (the sum over the
        others), `seconds`, and those `waited` for data; None where it keeps none, as those of earlier versions."""

    def begins(self) -> None:
        """Take note that the training begins, before its checkpoint is loaded."""
        self._began = self._clock()

    def note_loss(self, pending: torch.Tensor) -> None:
        """Remember the trainer's sum of losses since its last log; it is read where a checkpoint is written."""
        self._pending = pending

    def go_on(self, state: Any) -> None:
        """Take the sums from the state of the checkpoint that the run goes on from."""
        self.before = kept_in(state)

    def of_all_ranks(self, logs: dict[str, Any], trainer: Any) -> None:
        """Make the training's loss that of all ranks: what came since the last log the base class adds from one alone.

        Args:
            logs: what is to be logged; other logs than the last one of a training are left as they are.
            trainer: all ranks call it at the same step.
        """
        if "train_loss" not in logs or trainer.args.world_size == 1 or self._pending is None:
            return
        missed = mean_of_ranks(self._pending, trainer) - float(self._pending)
        steps = trainer.state.global_step - (trainer.finite.skipped.begun if IS_5 else 0)
        logs["train_loss"] += missed / max(steps, 1)

    def keep(self, trainer: Any) -> None:
        """Put the sums into the trainer's state, before it is written with a checkpoint; all ranks call it."""
        skipped = trainer.finite.skipped
        since = float(trainer._total_loss_scalar) - skipped.left
        if self._pending is not None:
            since += mean_of_ranks(self._pending, trainer)
        if self.before is None:
            return
        sums = {
            "steps": trainer.state.global_step,
            "skipped": skipped.total,
            "loss": self.before["loss"] + since,
            "seconds": round(self.before["seconds"] + self._clock() - self._began, 4),
            "waited": round(trainer.waiting.seconds, 4),
        }
        trainer.state.stateful_callbacks[KEY] = {"args": {}, "attributes": sums}


def mean_of_ranks(value: torch.Tensor, trainer: Any) -> float:
    """Return the mean over all ranks of a number that each has; all of them call it."""
    return float(trainer.accelerator.gather(value.detach().reshape(1)).mean().item())


def kept_in(state: Any) -> Mapping[str, float] | None:
    """Return the sums in a trainer's state; None where it has none, or those of another step."""
    held = (state.stateful_callbacks or {}).get(KEY)
    sums = held.get("attributes") if isinstance(held, Mapping) else None
    if not isinstance(sums, Mapping) or sums.get("steps") != state.global_step:
        return None
    numbers = [sums.get(name) for name in _NOTHING]
    return sums if all(isinstance(one, int | float) and math.isfinite(one) for one in numbers) else None


def averages(sums: Mapping[str, float], samples_a_step: float | None) -> dict[str, float]:
    """Return the averages that sums stand for, by the names of a training's results.

    Args:
        sums: as `SoFar.before` has them.
        samples_a_step: rows of one step; None where it is not known.
    """
    steps, seconds = sums["steps"], sums["seconds"]
    found = {"train_runtime": round(seconds, 4), "train_loss": sums["loss"] / max(steps - sums["skipped"], 1)}
    if seconds > 0:
        found["train_steps_per_second"] = round(steps / seconds, 3)
        if samples_a_step is not None:
            found["train_samples_per_second"] = round(samples_a_step * steps / seconds, 3)
    return found
