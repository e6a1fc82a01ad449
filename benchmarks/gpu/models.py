"""Models of published sizes with random weights, built in place; and the same in small, for a machine without a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from benchmarks.shapes import Shape

MODELS: Mapping[str, Shape] = {
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

SMALL = Shape(
    family="llava",
    hidden=512,
    layers=4,
    vocabulary=4096,
    tower_hidden=256,
    tower_layers=3,
    side=112,
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
