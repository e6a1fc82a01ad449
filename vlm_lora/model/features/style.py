"""How a family's vision features are taken and handed back, as data: a column of the table of families."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class FeatureStyle:
    """Where a model takes features of images from, and what else it reads of an image.

    Source: the models' `forward` in transformers 4.55.4 and 5.23.0.
    """

    entry: Literal["image_features", "cross_attention_states", "none"] = "image_features"
    """`image_features`: what the inner model's `get_image_features` returns goes to the placeholders' tokens.
    `cross_attention_states` (Mllama): a keyword of `forward`, read by cross-attention. `none`: the features can be
    handed over nowhere."""
    listed: bool = True
    """Whether the model expects a sequence of tensors, which it joins, in place of one tensor."""
    read_beside: tuple[str, ...] = ()
    """Media tensors that the language model reads itself (positions by the images' grids)."""
    levels: str | None = None
    """Key of the configuration that lists the layers whose features go into the decoder's layers as well."""


LISTED = FeatureStyle()
ONE_TENSOR = FeatureStyle(listed=False)
BY_GRID = FeatureStyle(read_beside=("image_grid_thw",))
DEEPSTACK = FeatureStyle(read_beside=("image_grid_thw",), levels="vision_config.deepstack_visual_indexes")
CROSS_ATTENTION = FeatureStyle(entry="cross_attention_states")
NO_ENTRY = FeatureStyle(entry="none")
