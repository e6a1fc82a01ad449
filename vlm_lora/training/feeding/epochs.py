"""Which epoch's order the training rows come in, also where a resumed run goes on inside an epoch."""

from __future__ import annotations

import math
from typing import Any, Protocol

from transformers import TrainerCallback


class Order(Protocol):
    """The order of a trainer's rows."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's."""


class EpochOrder(TrainerCallback):
    """Tells the order of the rows which epoch begins, counted from the steps that were made.

    The trainer and accelerate tell it too, but not through the loader that skips a resumed epoch's first batches on
    several processes (transformers 5.23, accelerate 1.15): that epoch would go on in the order of the first.

    Args:
        order: of the training rows.
    """

    def __init__(self, order: Order) -> None:
        self._order = order

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch, as the trainer counts it."""
        steps = math.ceil(len(kwargs["train_dataloader"]) / args.gradient_accumulation_steps)
        self._order.set_epoch(state.global_step // max(1, steps))
