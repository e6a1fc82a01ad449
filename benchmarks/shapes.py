"""The shapes of all models that are measured: small ones of real proportions, and published ones with their own sizes.

Proportions of the small ones are those of the published models as far as they decide what a step costs: how the tower's
forward pass compares with the language model's (about 0.8 for Gemma 3), how many patches become one image token (16 for
Gemma 3, 4 for Qwen, 1 for LLaVA), four times the width in the feed-forward layers, a head that is a fifth of the body.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A family's architecture at a size."""

    family: str
    hidden: int
    layers: int
    vocabulary: int
    tower_hidden: int
    tower_layers: int
    side: int
    """Of an image in pixels."""
    patch: int = 14
    intermediate: int | None = None
    """Of the language model; four times its width where None."""
    head_dim: int = 32
    kv_heads: int | None = None
    """Half of the heads where None."""
    tower_head_dim: int = 32
    tower_intermediate: int | None = None
    image_tokens: int = 16
    """That an image of Gemma 3 becomes."""
    tied: bool = False
    """Whether the head is the embeddings; Gemma 3's always is."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the text configuration on top."""


SHAPES: Mapping[str, Shape] = {
    "Gemma3": Shape(
        family="gemma3",
        hidden=192,
        layers=8,
        vocabulary=5120,
        tower_hidden=128,
        tower_layers=8,
        side=224,
    ),
    "Qwen2.5-VL": Shape(
        family="qwen2_5_vl",
        hidden=192,
        layers=8,
        vocabulary=5120,
        tower_hidden=96,
        tower_layers=4,
        side=168,
    ),
    "LLaVA": Shape(
        family="llava",
        hidden=192,
        layers=8,
        vocabulary=2048,
        tower_hidden=96,
        tower_layers=4,
        side=112,
    ),
}
"""What `python -m benchmarks` measures."""

LARGE_HEAD = Shape(
    family="gemma3",
    hidden=64,
    layers=4,
    vocabulary=262_144,
    tower_hidden=64,
    tower_layers=2,
    side=112,
)
"""Gemma 3's own vocabulary: what a step keeps of head and loss."""

PUBLISHED: Mapping[str, Shape] = {
    "Gemma3 4B": Shape(
        family="gemma3",
        hidden=2560,
        intermediate=10240,
        layers=34,
        head_dim=256,
        kv_heads=4,
        vocabulary=262_208,
        tower_hidden=1152,
        tower_intermediate=4304,
        tower_layers=27,
        tower_head_dim=72,
        side=896,
        image_tokens=256,
        extra={"num_attention_heads": 8},
    ),
    "Qwen2.5-VL 3B": Shape(
        family="qwen2_5_vl",
        hidden=2048,
        intermediate=11008,
        layers=36,
        head_dim=128,
        kv_heads=2,
        vocabulary=151_936,
        tied=True,
        tower_hidden=1280,
        tower_intermediate=3420,
        tower_layers=32,
        tower_head_dim=80,
        side=896,
    ),
    "Qwen3-VL 2B": Shape(
        family="qwen3_vl",
        hidden=2048,
        intermediate=6144,
        layers=28,
        head_dim=128,
        kv_heads=8,
        vocabulary=151_936,
        tied=True,
        tower_hidden=1024,
        tower_intermediate=4096,
        tower_layers=24,
        tower_head_dim=64,
        side=896,
        patch=16,
    ),
}
"""Widths, layers and heads of google/gemma-3-4b-it, Qwen/Qwen2.5-VL-3B-Instruct and Qwen/Qwen3-VL-2B-Instruct, by their
published config.json; vocabularies as theirs, of which the random models' tokenizers use a few hundred."""

SMALL = replace(
    SHAPES["LLaVA"],
    hidden=512,
    layers=4,
    vocabulary=4096,
    tower_hidden=256,
    tower_layers=3,
    head_dim=64,
    tower_head_dim=64,
)
"""What the checks of correctness train: heads of 64, which flash attention takes."""


def tiny(shape: Shape) -> Shape:
    """Return a shape of the same family that a CPU trains in a moment."""
    return replace(
        shape,
        hidden=32,
        intermediate=64,
        layers=2,
        head_dim=16,
        kv_heads=1,
        vocabulary=1,
        tower_hidden=32,
        tower_intermediate=64,
        tower_layers=2,
        tower_head_dim=16,
        side=4 * shape.patch,
        image_tokens=16,
        extra={},
    )
