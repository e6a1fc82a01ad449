"""What transformers 5's models would read on the card, worked out on the host before the batch goes there.

transformers takes ready tensors in place of those that a vision tower derives from its grids (`vision_utils.py`,
`accepts_precomputed_kwargs`): segment ends, positions, window orders. Those that it turns into numbers stay on the
host, those that it computes with go to the card.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vlm_lora_hpu.host_reads import TOKENS, OnHost

if TYPE_CHECKING:
    import torch

ROTARY: Mapping[str, str] = {
    "qwen2_vl": "Qwen2VLModel",
    "qwen2_5_vl": "Qwen2_5_VLModel",
    "qwen3_vl": "Qwen3VLModel",
    "qwen3_5": "Qwen3_5Model",
}
"""Families that make position ids from token types and grids, and the class whose method does it."""

ON_HOST: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(ROTARY, ("image_grid_thw",)),
    "llava": ("image_sizes",),
    "llava_next": ("image_sizes",),
    "llava_onevision": ("image_sizes",),
    "mistral3": ("image_sizes",),
}
"""Inputs whose values a family's forward pass reads: they never go to the card."""


class HostReads:
    """A collator that counts supervised tokens, adds what models would read, and keeps some of it on the host.

    Args:
        collator: makes the batch.
        config: the model's configuration.
    """

    def __init__(self, collator: Callable[[Any], dict[str, Any]], config: Any) -> None:
        self._collator = collator
        self._config = config

    def __call__(self, rows: Any) -> dict[str, Any]:
        """Return the batch of `collator` with its token count, positions of text `(3, B, T)` and of patches."""
        # Not at the top: an adapter is imported before torch is.
        from vlm_lora.batching.encoded import IGNORE_INDEX

        batch: dict[str, Any] = dict(self._collator(rows))
        batch[TOKENS] = OnHost(batch["labels"].ne(IGNORE_INDEX).sum())
        kind = self._config.model_type
        if kind in ROTARY:
            batch["position_ids"] = _positions(kind, self._config, batch)
            if "image_grid_thw" in batch:
                batch |= _of_grid(batch["image_grid_thw"], self._config.vision_config)
        for name in ON_HOST.get(kind, ()):
            if name in batch:
                batch[name] = OnHost(batch[name])
        return batch


def _positions(kind: str, config: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return `(3, B, T)` by the model's own method, which needs nothing of it but its configuration."""
    import torch

    types = batch.get("mm_token_type_ids")
    positions: torch.Tensor = _bare(kind, config).get_rope_index(
        batch["input_ids"],
        torch.zeros_like(batch["input_ids"]) if types is None else types,
        image_grid_thw=batch.get("image_grid_thw"),
        attention_mask=batch["attention_mask"],
    )[0]
    return positions


def _bare(kind: str, config: Any) -> Any:
    """Return an object of the family's class without a weight."""
    from torch import nn

    model = _class_of(kind).__new__(_class_of(kind))
    nn.Module.__init__(model)
    model.config = config
    return model


@cache
def _class_of(kind: str) -> Any:
    return getattr(import_module(f"transformers.models.{kind}.modeling_{kind}"), ROTARY[kind])


def _of_grid(grid: torch.Tensor, vision: Any) -> dict[str, Any]:
    """Return what a vision tower derives from `(images, 3)` frames, rows and columns of patches."""
    from transformers import vision_utils

    found: dict[str, Any] = {
        "image_cu_seqlens": OnHost(vision_utils.get_vision_cu_seqlens(grid)),
        "image_position_ids": vision_utils.get_vision_position_ids(grid, vision.spatial_merge_size),
    }
    if getattr(vision, "window_size", None):
        order, ends = vision_utils.get_vision_window_index(
            grid, vision.spatial_merge_size, vision.window_size, vision.patch_size
        )
        found |= {"image_window_index": order, "image_cu_window_seqlens": OnHost(ends)}
    if getattr(vision, "num_position_embeddings", None):
        places, weights = vision_utils.get_vision_interpolation_indices_and_weights(
            grid,
            int(vision.num_position_embeddings**0.5),
            align_corners=True,
            spatial_merge_size=vision.spatial_merge_size,
        )
        found |= {"image_interp_indices": places, "image_interp_weights": weights}
    return found
