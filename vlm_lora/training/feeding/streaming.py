"""What a run with `--streaming` needs of its other settings, and the rows that its trainer gets."""

from __future__ import annotations

import logging
from typing import Any

from vlm_lora.batching.ordering.rows import Rows
from vlm_lora.config.run_config import RunConfig
from vlm_lora.data.dataset import ConversationDataset, Splits
from vlm_lora.data.sources.streamed import StreamedConversations
from vlm_lora.errors import ConfigError
from vlm_lora.training.feeding.strategy import SETTING, Strategy, strategy_of

logger = logging.getLogger(__name__)


def check_streaming(run: RunConfig, arguments: Any, *, static_shapes: bool) -> None:
    """Refuse settings that do not go with a stream, before the rows are checked.

    Args:
        run: the resolved configuration.
        arguments: the training arguments.
        static_shapes: whether batch shapes would be planned from all rows.

    Raises:
        ConfigError: names the setting, the reason and what to type.
    """
    if arguments.max_steps <= 0:
        raise ConfigError(
            "--streaming true needs --max_steps: nothing but reading all of a stream says how long it is. Type for "
            "example --max_steps 1000; a stream that ends before begins anew."
        )
    if strategy_of(run) is Strategy.GROUPED:
        raise ConfigError(
            f"--{SETTING} {Strategy.GROUPED.value} does not go with --streaming true: how long rows are is known once "
            f"all were read, and a stream is not read before training. Leave one of the two out, or type --{SETTING} "
            f"{Strategy.RANDOM.value}."
        )
    if static_shapes:
        raise ConfigError(
            "--streaming true: batch shapes are planned from all rows, and a stream is not read before training. Type "
            "--static_shapes false (hardware that compiles each new shape then compiles more often), or leave "
            "--streaming out."
        )
    if run.batching.on_overflow == "drop":
        raise ConfigError(
            "--on_overflow drop does not go with --streaming true: rows are dropped before training, and a stream is "
            "not read before. Type --on_overflow shrink_images or trim_turns, or leave --streaming out."
        )


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
