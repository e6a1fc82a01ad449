"""Rows written to a file, opened as a run opens them, and told back part by part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.datasets import write_image, write_jsonl
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.columns.schema import Schema
from vlm_lora.data.conversation import ImageRef, Turn
from vlm_lora.data.dataset import ConversationDataset, load_splits
from vlm_lora.errors import DataError


@dataclass(frozen=True, kw_only=True)
class ReadBack:
    """What became of a file's rows."""

    schema: Schema
    told: list[Any]
    """By row: its turns as lists of parts, an image as `<its file's name>`; or its error."""
    accepted: list[tuple[str, ...]]
    """By row: all accepted answers; nothing for a row with an error."""


def read_back(data: Path | Sequence[Mapping[str, Any]], folder: Path, **settings: Any) -> ReadBack:
    """Read a file, or rows that are written to JSON Lines next to the images 0.png to 3.png.

    Raises:
        DataError: the columns cannot be told apart.
        ConfigError: a setting has no effect on this data.
    """
    for seed in range(4):
        write_image(folder / f"{seed}.png", seed=seed)
    path = data if isinstance(data, Path) else write_jsonl(folder / "rows.jsonl", data)
    config = DataConfig(dataset_name=str(path), validation_fraction=0.0, **settings)
    train = load_splits(config, need_train=True, need_validation=False).train
    assert train is not None
    assert isinstance(train, ConversationDataset)
    told: list[Any] = []
    accepted: list[tuple[str, ...]] = []
    for number in range(len(train)):
        try:
            conversation = train[number]
        except DataError as error:
            told.append(str(error))
            accepted.append(())
            continue
        told.append([_tell(turn) for turn in conversation.turns])
        accepted.append(conversation.accepted_answers)
    return ReadBack(schema=train.schema, told=told, accepted=accepted)


def _tell(turn: Turn) -> list[str]:
    return [f"<{Path(str(part.source)).name}>" if isinstance(part, ImageRef) else part.text for part in turn.parts]
