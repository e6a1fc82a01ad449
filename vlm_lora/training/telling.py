"""What the trainer tells its callbacks, told to a run's observers."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from vlm_lora.model.parts import size_of
from vlm_lora.training.observers import Advance, Beginning, Observers


class Telling(TrainerCallback):
    """Tells observers what the trainer tells its callbacks.

    Args:
        trainer: whose callback it is; where an observer shows progress, the trainer's own bars and printed lines go.
        observers: are told.
        device: the name of what the run is on.
        unit: what a batch is counted in, in the plural.
        epoch: how many of these an epoch has; None for a stream, which has none.
    """

    def __init__(self, trainer: Any, observers: Observers, *, device: str, unit: str, epoch: int | None) -> None:
        self._trainer, self._observers, self._device = trainer, observers, device
        self._unit, self._epoch = unit, epoch
        # As they are now: an engine flattens or splits them before the first step.
        self._trainable, self._parameters = _count(trainer.model)
        self._stored = _stored(trainer.model)
        self._measured = 0
        if observers.shows_progress:
            trainer.remove_callback(PrinterCallback)
            trainer.remove_callback(DEFAULT_PROGRESS_CALLBACK)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell what the training is, unless its checkpoint has made all of its steps."""
        if state.global_step >= state.max_steps:
            return
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        stored = self._stored
        computed = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32" if stored == "float32" else stored
        self._observers.begins(
            Beginning(
                device=self._device,
                precision=f"{computed}, weights in {stored}",
                trainable=self._trainable,
                parameters=self._parameters,
                processes=args.world_size,
                step=state.global_step,
                steps=state.max_steps,
                epochs=epochs_of(args, state.max_steps, batch, self._epoch) if self._epoch else None,
                rows_a_step=batch,
                unit=self._unit,
                evaluates=_when(args.eval_strategy, state.eval_steps),
                saves=_when(args.save_strategy, state.save_steps),
            )
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell of a step."""
        fed = self._trainer.fed
        self._observers.advanced(
            Advance(
                step=state.global_step,
                steps=state.max_steps,
                rows=fed.rows * args.world_size,
                tokens=fed.tokens * args.world_size,
            )
        )

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell of a batch of an evaluation."""
        self._measured += 1
        try:
            total = len(kwargs["eval_dataloader"])
        except (KeyError, TypeError):  # a stream has no length
            total = None
        self._observers.measuring(self._measured, total)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell of a training step; an evaluation's figures come by `on_evaluate`, a run's sums by its results."""
        figures = kwargs.get("logs") or {}
        if "loss" in figures:
            self._observers.step(state.global_step, figures)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell of an evaluation."""
        self._measured = 0
        self._observers.evaluated(state.global_step, kwargs.get("metrics") or {})

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell of a checkpoint once it is whole, which a large one is some steps later."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._trainer.sealer.once_whole(partial(self._observers.saved, state.global_step, folder))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell that no further step is made."""
        self._observers.trained()


def epochs_of(args: Any, steps: int, batch: int, epoch: int) -> float:
    """Return how many epochs a training has: what was asked for, else by its steps, of which the last may be smaller.

    Args:
        args: the training arguments.
        steps: the step that it ends at.
        batch: rows or packs a step.
        epoch: how many of these an epoch has.
    """
    if args.max_steps <= 0:
        return float(args.num_train_epochs)
    return steps / max(epoch // batch if args.dataloader_drop_last else math.ceil(epoch / batch), 1)


def _count(model: torch.nn.Module) -> tuple[int, int]:
    """Return how many parameters train, and how many there are."""
    sizes = [(size_of(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def _stored(model: torch.nn.Module) -> str:
    """Return what most weights are stored in."""
    sizes: Counter[str] = Counter()
    for parameter in model.parameters():
        sizes[_kind(parameter)] += size_of(parameter)
    return sizes.most_common(1)[0][0] if sizes else "float32"


def _kind(parameter: torch.nn.Parameter) -> str:
    if getattr(parameter, "quant_state", None) is not None:
        return "4 bits"
    return "8 bits" if parameter.dtype == torch.int8 else str(parameter.dtype).removeprefix("torch.")


def _when(strategy: Any, steps: Any) -> str:
    """Say when something is done, from the trainer's strategy for it and its number of steps."""
    word = str(getattr(strategy, "value", strategy))
    return {
        "no": "never",
        "epoch": "at the end of each epoch",
        "steps": f"every {int(steps or 0):,} steps",
        "best": "when the score is the best so far",
    }.get(word, word)
