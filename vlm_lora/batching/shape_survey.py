"""Batch shapes planned from what was read of the rows: first the sizes of images, then the shapes of batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vlm_lora.batching.blank import image_conversation
from vlm_lora.batching.canvases import Size, choose_canvases, stretch
from vlm_lora.batching.encoding import RowEncoder
from vlm_lora.batching.shapes import RowShape, ShapePlan, plan_shapes

logger = logging.getLogger(__name__)

FEW, MANY = 4, 16
"""Default number of shapes: where images always take the same number of tokens, and where they do not."""

_ASPECT_WARNING = 0.25


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The plan, and what it says about each split's rows."""

    plan: ShapePlan
    canvases: tuple[Size, ...]
    """Image sizes in pixels, empty where every size takes the same tokens."""
    groups: Mapping[str, Sequence[Sequence[int]]]
    """By split: indices of the rows that share a shape."""

    def to_mapping(self) -> dict[str, Any]:
        """Return the survey as JSON values."""
        return {"plan": self.plan.to_mapping(), "canvases": self.canvases, "groups": self.groups}

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> Survey:
        """Return the survey that `to_mapping` wrote."""
        return cls(
            plan=ShapePlan.from_mapping(content["plan"]),
            canvases=tuple((width, height) for width, height in content["canvases"]),
            groups=content["groups"],
        )


def plan_canvases(
    encoder: RowEncoder, header_sizes: Callable[[], Iterable[Sequence[Size]]], *, max_shapes: int | None
) -> tuple[Size, ...]:
    """Choose the sizes that images are brought to; none where every size takes the same tokens.

    Args:
        encoder: makes the rows, images at any size so far.
        header_sizes: width and height of each row's images; only asked for where they matter.
        max_shapes: at most so many batch shapes; None for the default.
    """
    if not images_vary(encoder):
        return ()
    counted = list(header_sizes())
    kinds = len({len(sizes) for sizes in counted if sizes})
    sizes = [size for row in counted for size in row]
    if not sizes:
        return ()
    # Half of the budget: each canvas may then have two lengths of text.
    canvases = choose_canvases(sizes, max(1, (max_shapes or MANY) // (2 * max(1, kinds))))
    _report_canvases(sizes, canvases)
    return canvases


def survey_shapes(
    encoder: RowEncoder,
    shapes: Mapping[str, Sequence[RowShape]],
    *,
    canvases: tuple[Size, ...],
    max_shapes: int | None,
    longest: int | None,
) -> Survey:
    """Plan the batch shapes of all splits together.

    Args:
        encoder: makes the rows, images at any size.
        shapes: what each row contributes to its batch's shape, by split.
        canvases: what `plan_canvases` chose; the rows were read with it.
        max_shapes: at most so many batch shapes; None for the default.
        longest: no shape is longer than this many tokens.
    """
    budget = max_shapes or (MANY if images_vary(encoder) else FEW)
    plan = plan_shapes([row for rows in shapes.values() for row in rows], max_shapes=budget, longest=longest)
    if len(plan.shapes) > budget:
        logger.warning(
            "The rows need %d batch shapes, more than %d: they have that many different counts or sizes of images.",
            len(plan.shapes),
            budget,
        )
    return Survey(plan=plan, canvases=canvases, groups={name: plan.groups(rows) for name, rows in shapes.items()})


def images_vary(encoder: RowEncoder) -> bool:
    """Say whether this model's tensors depend on an image's size, by trying two sizes."""
    shapes = [
        RowShape.of(encoder.encode(image_conversation(Image.new("RGB", size)))) for size in ((448, 448), (896, 448))
    ]
    return shapes[0] != shapes[1]


def _report_canvases(sizes: Sequence[Size], canvases: Sequence[Size]) -> None:
    if set(sizes) <= set(canvases):
        return
    change = stretch(sizes, canvases)
    say = logger.warning if change > _ASPECT_WARNING else logger.info
    say(
        "Images of %d sizes are resized to %d canvases (%s); the largest change of an aspect ratio is %.0f %%. "
        "--max_shapes N allows more canvases, --static_shapes false keeps every size.",
        len(set(sizes)),
        len(canvases),
        ", ".join(f"{width}x{height}" for width, height in canvases),
        change * 100,
    )
