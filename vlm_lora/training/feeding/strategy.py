"""In which order a trainer's rows come: one choice for a run, and the order that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from vlm_lora.batching.ordering.batch_order import BatchOrder
from vlm_lora.batching.packing.order import PackOrder
from vlm_lora.training.feeding.epochs import EpochOrder
from vlm_lora.training.feeding.packing import Packing

SETTING = "train_sampling_strategy"


class Strategy(Enum):
    """What `--train_sampling_strategy` may say."""

    RANDOM = "random"
    SEQUENTIAL = "sequential"


@dataclass(frozen=True, kw_only=True)
class Feeding:
    """How the training rows are brought into order."""

    strategy: Strategy = Strategy.RANDOM
    packing: Packing | None = None
    """The packs of a run that packs."""

    def training_order(self, trainer: Any, groups: Sequence[Sequence[int]] | None) -> BatchOrder | PackOrder:
        """Return the order of the training rows by seed and epoch, the same on every stack.

        Args:
            trainer: has the rows and the arguments; it gets a callback that tells the order each epoch.
            groups: row indices that may share a batch, by planned shape; None where any may.
        """
        if self.packing is not None:
            packs = self.packing.order(trainer)
            trainer.add_callback(EpochOrder(packs))
            return packs
        arguments, rows = trainer.args, trainer.train_dataset
        seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
        order = BatchOrder(
            groups or [range(len(rows))],
            batch_size=trainer._train_batch_size,
            processes=arguments.world_size,
            seed=None if self.strategy is Strategy.SEQUENTIAL or rows.in_order else seed,
            drop_last=arguments.dataloader_drop_last,
            # A planned shape fits what a row was measured as, so with shapes every epoch reads epoch 0's rows.
            carries_epoch=rows.varies and groups is None,
        )
        trainer.add_callback(EpochOrder(order))
        return order


def evaluation_order(trainer: Any, rows: Any, groups: Sequence[Sequence[int]] | None) -> BatchOrder:
    """Return the order that evaluates every row once, also where `dataloader_drop_last` drops training's last batch."""
    arguments = trainer.args
    return BatchOrder(
        groups or [range(len(rows))],
        batch_size=arguments.eval_batch_size,
        processes=arguments.world_size,
        seed=None,
    )


def strategy_of(arguments: Any) -> Strategy:
    """Return the strategy that training arguments name; transformers 4 knows no `sequential`."""
    return Strategy(str(getattr(arguments, SETTING, Strategy.RANDOM.value)))
