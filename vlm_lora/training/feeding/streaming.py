"""The rows that the trainer of a run with `--streaming` gets."""

from __future__ import annotations

import logging
from typing import Any

from vlm_lora.batching.ordering.rows import Rows
from vlm_lora.config.run_config import RunConfig
from vlm_lora.data.dataset import ConversationDataset, Splits
from vlm_lora.data.sources.streamed import StreamedConversations
from vlm_lora.training.feeding.strategy import Strategy, strategy_of

logger = logging.getLogger(__name__)


def training_rows(run: RunConfig, arguments: Any, splits: Splits) -> Rows | None:
    """Return what the trainer reads: the training split, or with a stream as many of its rows as the steps take."""
    if splits.stream is None:
        return splits.train
    assert isinstance(splits.train, ConversationDataset)  # a mixture is not streamed
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    buffer = 1 if strategy_of(run) is Strategy.SEQUENTIAL else run.data.shuffle_buffer
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    logger.info(
        "Streaming: %d steps of %d rows, drawn from a buffer of %d by seed %d.",
        arguments.max_steps,
        batch,
        buffer,
        seed,
    )
    return StreamedConversations(
        splits.stream, splits.train, length=arguments.max_steps * batch, buffer=buffer, seed=seed
    )
