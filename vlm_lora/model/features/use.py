"""How often a run uses features of images, and how much room they take: by the row table, before any is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
import torch

from vlm_lora.batching.encoded import EncodedRow
from vlm_lora.batching.row_table import RowTable
from vlm_lora.model.features.style import FeatureStyle

STATES = "cross_attention_states"
SAMPLE = 4
"""Rows that are encoded to learn exactly how large features are."""
ENTRY = 144
"""Bytes of an entry in addition to its tensor: its line in the index, and what aligns it."""


@dataclass(frozen=True, kw_only=True)
class ImageUse:
    """What a run does with images. Images of one row count as one."""

    different: int
    """Rows' images that differ."""
    uses: float
    """How often they are looked at over the whole run, together."""
    size: int
    """Bytes of their features, at most a few percent off."""


def width_of(config: Any, style: FeatureStyle) -> int:
    """Return how many numbers stand for one token of an image."""
    levels = 0 if style.levels is None else len(reduce(getattr, style.levels.split("."), config))
    return int(config.get_text_config().hidden_size) * (1 + levels)


def count_vectors(row: EncodedRow, config: Any, style: FeatureStyle) -> int:
    """Return how many vectors of `width_of` the features of a row have."""
    if style.entry == STATES:
        images, tiles = row.media["pixel_values"].shape[1:3]
        return int(images * tiles) * _vectors_a_tile(config)
    token = getattr(config, "image_token_id", None)
    token = config.image_token_index if token is None else token
    return int(row.input_ids.eq(token).sum())


def blank_vectors(config: Any, style: FeatureStyle) -> int:
    """Return the vectors of the image that fills up rows with fewer images than others of their batch (Mllama)."""
    return _vectors_a_tile(config) * int(config.vision_config.max_num_tiles) if style.entry == STATES else 0


def _vectors_a_tile(config: Any) -> int:
    vision = config.vision_config
    return int((vision.image_size // vision.patch_size) ** 2 + 1)


def survey_use(
    tables: Mapping[str, RowTable],
    times: Mapping[str, float],
    measure: Callable[[str, int], int],
    *,
    vector_bytes: int,
    blank: int = 0,
) -> ImageUse:
    """Return what a run does with the images of its rows.

    Args:
        tables: of the data sets, by name, without bad rows.
        times: how often the run reads each.
        measure: returns the vectors of the features of row `index` of data set `name` (`count_vectors`).
        vector_bytes: bytes of one vector as it is kept.
        blank: vectors that are kept in addition where rows have different numbers of images.
    """
    found: dict[bytes, tuple[str, int, int, int]] = {}
    uses, numbers = 0.0, set[int]()
    for name, table in tables.items():
        shown = table.images["prepared_width"] > 0
        images, owners = table.images[shown], table.image_owners()[shown]
        rows, starts, counts = np.unique(owners, return_index=True, return_counts=True)
        uses += len(rows) * times[name]
        numbers.update(counts.tolist(), [0] if len(rows) < len(table) else [])
        fields = images[["digest", "prepared_width", "prepared_height"]]
        for row, start, count in zip(rows.tolist(), starts.tolist(), counts.tolist(), strict=True):
            tokens = images["tokens"][start : start + count]
            known = int(tokens.sum()) if tokens.all() else 0
            found.setdefault(fields[start : start + count].tobytes(), (name, row, known, count))
    if not found:
        return ImageUse(different=0, uses=uses, size=0)
    entries = list(found.values())
    by: Literal[2, 3] = 2 if min(entry[2] for entry in entries) else 3  # tokens, else images
    chosen = [entries[place] for place in np.linspace(0, len(entries) - 1, min(SAMPLE, len(entries))).astype(int)]
    measured = sum(measure(name, row) for name, row, _, _ in chosen)
    vectors = measured * sum(entry[by] for entry in entries) / sum(entry[by] for entry in chosen)
    vectors += blank if len(numbers) > 1 else 0
    return ImageUse(different=len(entries), uses=uses, size=round(vectors * vector_bytes) + len(entries) * ENTRY)


def spread_rows(table: RowTable, count: int) -> list[int]:
    """Return at most so many rows that have images, evenly spread over a data set's."""
    shown = np.unique(table.image_owners()[table.images["prepared_width"] > 0])
    places = np.linspace(0, len(shown) - 1, min(count, len(shown))).astype(int)
    return [int(row) for row in shown[places]]


def bytes_a_vector(width: int, dtype: torch.dtype) -> int:
    """Return the bytes of one vector of a dtype."""
    return width * dtype.itemsize
