"""Rows of the data that a model was trained on: to compare models on, and to find scales from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from vlm_lora.config.run_config import RunConfig
from vlm_lora.data.conversation import Conversation
from vlm_lora.data.dataset import load_splits
from vlm_lora.errors import ConfigError
from vlm_lora.evaluation.held_out import with_trained_split
from vlm_lora.model.processor.trained_boxes import trained_settings

NAME_DATA = "--dataset_name DATA"


def with_trained_rows(run: RunConfig, purpose: str) -> RunConfig:
    """Return the run with the data of its model's training, read and divided as there, where it names none.

    Args:
        run: names a model or an adapter.
        purpose: what the rows are for and how to name them, as the end of a sentence.

    Raises:
        ConfigError: nothing says which data that was.
    """
    if run.data.dataset_name is None:
        named = (trained_settings(run.model) or {}).get("dataset_name")
        if not named:
            raise ConfigError(
                f"{run.model.model_name_or_path}: nothing there says on which data it was trained. Name some rows "
                f"{purpose}."
            )
        name = named if isinstance(named, str) else " + ".join(map(str, named))
        run = replace(run, data=replace(run.data, dataset_name=name))
    return with_trained_split(run, announce=False)


def first_rows(run: RunConfig, count: int) -> list[Conversation]:
    """Return the first training rows that have an answer."""
    return _answered(run, count, seed=None) if count else []


def drawn_rows(run: RunConfig, count: int, *, seed: int = 0) -> list[Conversation]:
    """Return training rows that have an answer, drawn from all of them, none twice."""
    return _answered(run, count, seed=seed)


def _answered(run: RunConfig, count: int, *, seed: int | None) -> list[Conversation]:
    splits = load_splits(run.data, need_train=True, need_validation=False)
    source = splits.train
    assert source is not None  # need_train
    order: Sequence[int] = range(len(source))
    if seed is not None:
        order = random.Random(seed).sample(order, len(order))
    found: list[Conversation] = []
    for number in order:
        row = source[number]
        if row.answer.text:
            found.append(row)
        if len(found) == count:
            break
    if not found:
        raise ConfigError(f"--dataset_name {run.data.dataset_name}: no row there has an answer. Name other data.")
    return found
