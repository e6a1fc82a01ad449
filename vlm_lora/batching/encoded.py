"""What leaves the encoder: one row as tensors, with its labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from PIL.Image import Image

from vlm_lora.batching.boxes.conventions import SeenImage
from vlm_lora.batching.boxes.writing import Region
from vlm_lora.data.conversation import RowSource

IGNORE_INDEX = -100
"""Label of a token that is not supervised (PyTorch's cross-entropy default)."""


@dataclass(frozen=True, kw_only=True)
class EncodedRow:
    """One conversation as the model sees it, images expanded, nothing padded."""

    input_ids: torch.Tensor
    """`(T,)` int64."""
    labels: torch.Tensor
    """`(T,)` int64: the token id where the model must produce it, else `IGNORE_INDEX`."""
    token_tensors: Mapping[str, torch.Tensor]
    """Further per-token inputs, each `(T,)` (or `(T, ...)`): `token_type_ids`, `mm_token_type_ids`, ..."""
    media: Mapping[str, torch.Tensor]
    """All else the processor made for this row alone, with its own leading dimensions: `pixel_values`, ..."""
    text: str
    """The rendering with image placeholders expanded: the string whose tokens `input_ids` are."""
    source: RowSource
    packed_media: tuple[Mapping[str, torch.Tensor], ...] = ()
    """Of several rows in one sequence: the media of each that has some, in order."""
    overflow: str = ""
    """What `--on_overflow` changed so that the row fits, in words; empty where it fitted as it was."""
    image_tokens: tuple[int, ...] = ()
    """Tokens of each image, in reading order, 0 where they cannot be told from those of the image beside it; empty
    unless `encode` was asked to keep the images."""
    pictures: tuple[Image, ...] = ()
    """What the processor was given, upright RGB, in reading order; empty unless `encode` was asked to keep them."""
    seen: tuple[SeenImage, ...] = ()
    """The sizes of each image, in reading order."""
    regions: tuple[Region, ...] = ()
    """The boxes and points that the row's data names, as its text gives them back."""
    answer: str | None = None
    """The text of the last answer to train on, where it has boxes: as this model is to write it."""
