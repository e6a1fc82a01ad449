"""Boxes: precision, recall and F1 of matches at an intersection over union of 0.5, one to one.

A generated box is right where it is matched to an expected one of the same image and label whose IoU with it is 0.5 or
more; each box is matched once at most, and as many as can be are (a maximum matching, whatever the order). Labels are
compared without case and white space at their ends; an expected box without a label goes with any. Points are left
out. All boxes of all rows count together. Rows whose answers have no boxes are left out before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_lora.metrics.statistics import Counted, Sums, precision_recall_f1

IOU = 0.5
CORNERS = 4
"""Numbers of a box: left, top, right, bottom; a point has two."""

Box = Mapping[str, Any]
"""`bbox` (four numbers in pixels), `label` (empty where there is none), `image_id`: as the modules of `evaluate` take
it."""


def count(predictions: Sequence[Sequence[Box]], references: Sequence[Sequence[Box]]) -> Counted:
    """Count for each row: matched boxes, generated ones, expected ones, and 1."""
    pairs = zip(predictions, references, strict=True)
    found = [(*count_row(generated, expected, IOU), 1) for generated, expected in pairs]
    sums = np.array(found, dtype=np.float64).reshape(-1, 4)
    return Counted(sums=sums, rows=[{name: float(value) for name, value in combine(row).items()} for row in sums])


def combine(sums: Sums) -> Mapping[str, NDArray[np.float64]]:
    """Return precision, recall and F1; NaN without any row that has boxes."""
    names = ("box_precision", "box_recall", "box_f1")
    figures = precision_recall_f1(sums[..., 0], sums[..., 1], sums[..., 2])
    return {name: np.where(sums[..., 3] > 0, one, np.nan) for name, one in zip(names, figures, strict=True)}


def count_row(generated: Sequence[Box], expected: Sequence[Box], threshold: float) -> tuple[int, int, int]:
    """Return how many boxes are matched, generated and expected.

    Args:
        generated: of one row.
        expected: of the same.
        threshold: the lowest IoU of a match.
    """
    given = [box for box in generated if len(box["bbox"]) == CORNERS]
    wanted = [box for box in expected if len(box["bbox"]) == CORNERS]
    fits = [
        [number for number, box in enumerate(wanted) if _alike(one, box) and iou(one["bbox"], box["bbox"]) >= threshold]
        for one in given
    ]
    return _most_pairs(fits), len(given), len(wanted)


def iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the area that two boxes share by the area that they cover; 0 for boxes without an area."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    covered = _area(first) + _area(second) - shared
    return shared / covered if covered > 0 else 0.0


def plain_label(label: str) -> str:
    """Return a label as labels are compared."""
    return label.strip().casefold()


def _alike(given: Box, wanted: Box) -> bool:
    label = plain_label(wanted["label"])
    return given["image_id"] == wanted["image_id"] and label in ("", plain_label(given["label"]))


def _area(box: Sequence[float]) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _most_pairs(fits: Sequence[Sequence[int]]) -> int:
    """Return the size of a maximum matching (Kuhn's augmenting paths), breadth first: answers may hold many boxes.

    Args:
        fits: for each generated box the expected ones that it may be matched to.
    """
    holder: dict[int, int] = {}
    taken: dict[int, int] = {}
    for start in range(len(fits)):
        came: dict[int, int] = {}  # for each expected box that is reached, the generated one that reaches it
        queue = deque([start])
        end = None
        while queue and end is None:
            one = queue.popleft()
            for wanted in fits[one]:
                if wanted in came:
                    continue
                came[wanted] = one
                if wanted not in holder:
                    end = wanted
                    break
                queue.append(holder[wanted])
        while end is not None:  # back along the path, each box on it takes the next
            one = came[end]
            holder[end] = one
            before = taken.get(one)
            taken[one], end = end, before
    return len(holder)
