"""In which order a trainer's rows come: one choice for a run, and the order that follows from it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from vlm_lora.batching.ordering.batch_order import BatchOrder
from vlm_lora.batching.ordering.grouping import Computed, computed_tokens
from vlm_lora.batching.ordering.lengths import RowLengths, drawn_tokens
from vlm_lora.batching.packing.order import PackOrder
from vlm_lora.batching.row_table import RowTable
from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.whole_files import replacing
from vlm_lora.data.dataset import Splits
from vlm_lora.data.split_parts import trained_parts
from vlm_lora.errors import ConfigError
from vlm_lora.training.feeding.packing import Packing

logger = logging.getLogger(__name__)

SETTING = "train_sampling_strategy"

FILE = "row_lengths.npz"
"""In the output folder, where several processes train: the tokens of each data set's rows in each of their draws."""

LEAST_SAVED = 0.1
"""Share of the computed tokens that grouping must save to be chosen where nothing is asked for."""


class Strategy(Enum):
    """What `--train_sampling_strategy` may say."""

    RANDOM = "random"
    SEQUENTIAL = "sequential"
    GROUPED = "group_by_length"


@dataclass(frozen=True, kw_only=True)
class Feeding:
    """How the training rows are brought into order."""

    strategy: Strategy = Strategy.RANDOM
    lengths: RowLengths | None = None
    """Of the training rows, where they are grouped by them."""
    packing: Packing | None = None
    """The packs of a run that packs."""

    def training_order(self, trainer: Any, groups: Sequence[Sequence[int]] | None) -> BatchOrder | PackOrder:
        """Return the order of the training rows by seed and epoch, the same on every stack.

        Args:
            trainer: has the rows and the arguments; it gets a callback that tells the order each epoch.
            groups: row indices that may share a batch, by planned shape; None where any may.
        """
        from vlm_lora.training.feeding.epochs import EpochOrder  # brings transformers' trainer

        if self.packing is not None:
            packs = self.packing.order(trainer)
            trainer.add_callback(EpochOrder(packs))
            return packs
        rows = trainer.train_dataset
        order = _order(
            trainer.args,
            groups or [range(len(rows))],
            batch_size=trainer._train_batch_size,
            shuffles=self.strategy is not Strategy.SEQUENTIAL and not rows.in_order,
            # A planned shape fits what a row was measured as, so with shapes every epoch reads epoch 0's rows.
            carries_epoch=rows.varies and groups is None,
            lengths=self.lengths,
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


def strategy_of(run: RunConfig, resumed: str | None = None) -> Strategy | None:
    """Return the strategy that a run must have; None leaves the choice to the lengths of its rows.

    Args:
        run: resolved.
        resumed: the strategy of the checkpoint that the run goes on from, which holds where the run names none.
    """
    named = run.raw.get(SETTING, resumed)
    return None if named is None else Strategy(named)


def check_known(strategy: Strategy | None, *, known: bool) -> None:
    """Refuse to group rows whose lengths nobody knows, before they are read.

    Args:
        strategy: of `strategy_of`.
        known: whether reading the rows once says how long they are in every epoch.

    Raises:
        ConfigError: says what to type.
    """
    if strategy is Strategy.GROUPED and not known:
        raise ConfigError(
            f"--{SETTING} {Strategy.GROUPED.value}: what is asked about a page varies by epoch, and the lengths of all "
            "epochs are not known: --max_steps leaves their number open, or a page is asked more than 32 times. Type "
            f"--num_train_epochs N (at most 32, and no --max_steps), or --{SETTING} {Strategy.RANDOM.value}."
        )


def choose_feeding(
    strategy: Strategy | None,
    arguments: Any,
    splits: Splits,
    tables: Mapping[str, RowTable],
    *,
    known: bool,
    groups: Sequence[Sequence[int]] | None,
) -> Feeding:
    """Settle in which order the training rows come, and say it where they are grouped by length.

    All processes come here; all choose alike.

    Args:
        strategy: of `strategy_of`.
        arguments: the training arguments.
        splits: the rows.
        tables: of each data set, without bad rows, on the first process of each machine; empty where none was read.
        known: as for `check_known`.
        groups: row indices that may share a batch, by planned shape; None where any may. Planned shapes leave nothing
            to save, so grouping is not chosen then.
    """
    open_choice = strategy is None and not groups and arguments.train_batch_size > 1
    rows = splits.train
    if rows is None or splits.stream is not None or not known or not (strategy is Strategy.GROUPED or open_choice):
        return Feeding(strategy=strategy or Strategy.RANDOM)
    tokens = _shared_tokens(trained_parts(splits), tables, arguments)
    if tokens is None:
        return Feeding()
    lengths = RowLengths(rows, tokens)
    if not groups:
        shuffled, grouped = (_first_epoch(arguments, lengths, grouped=choice) for choice in (False, True))
        if strategy is None and grouped.tokens > (1 - LEAST_SAVED) * shuffled.tokens:
            return Feeding()
        logger.info(
            "Rows of like length share a batch: %.1f %% of the computed tokens are padding, %.1f %% in random batches. "
            "--%s %s shuffles all rows.",
            grouped.padding * 100,
            shuffled.padding * 100,
            SETTING,
            Strategy.RANDOM.value,
        )
    return Feeding(strategy=Strategy.GROUPED, lengths=lengths)


def _order(
    arguments: Any,
    groups: Sequence[Sequence[int]],
    *,
    batch_size: int,
    shuffles: bool,
    carries_epoch: bool,
    lengths: RowLengths | None,
) -> BatchOrder:
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    return BatchOrder(
        groups,
        batch_size=batch_size,
        processes=arguments.world_size,
        seed=seed if shuffles else None,
        drop_last=arguments.dataloader_drop_last,
        carries_epoch=carries_epoch,
        lengths=None if lengths is None else lengths.at,
        accumulation=arguments.gradient_accumulation_steps,
    )


def _first_epoch(arguments: Any, lengths: RowLengths, *, grouped: bool) -> Computed:
    """Count what the first epoch's batches compute."""
    tokens, size = lengths.at(0), arguments.train_batch_size
    order = _order(
        arguments,
        [range(len(tokens))],
        batch_size=size,
        shuffles=True,
        carries_epoch=False,
        lengths=lengths if grouped else None,
    )
    return computed_tokens(order, tokens, batch_size=size)


def _shared_tokens(names: Sequence[str], tables: Mapping[str, RowTable], arguments: Any) -> list[Any] | None:
    """Return `drawn_tokens` of each data set, on every process; None where no row was read."""
    found = {name: drawn_tokens(tables[name]) for name in names if name in tables}
    if arguments.world_size > 1:
        path = Path(arguments.output_dir) / FILE
        with arguments.main_process_first(desc=f"making {FILE}"):
            if arguments.local_process_index == 0:
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as stream:  # several machines may share the folder
                    np.savez(stream, **found)
        with np.load(path) as content:
            found = {name: content[name] for name in content.files}
    return [found[name] for name in names] if found else None
