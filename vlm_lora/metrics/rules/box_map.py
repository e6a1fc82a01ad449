"""Mean average precision of boxes in the order generated, by pycocotools.

mAP ranks boxes by confidence, and a text has none: each box counts with the score 1, so that the order decides in which
they were generated, within an answer and over the rows. That is why the figure says `in_order`: it cannot be compared
with mAP of detectors. As COCO: the mean over IoU 0.50 to 0.95 and over labels, 100 boxes an image at most.
It is a figure of a whole set: it is no mean over rows, and has no interval.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

from vlm_lora.metrics.rules.boxes import CORNERS, Box, plain_label


def figures(predictions: Sequence[Sequence[Box]], references: Sequence[Sequence[Box]]) -> dict[str, float]:
    """Return the mAP of all rows; without any expected box, 1 where none is generated and else 0."""
    wanted = list(_flat(references))
    given = list(_flat(predictions))
    if not wanted:
        return {"box_map_in_order": float(not given)}
    import numpy as np
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    labels = {label: number for number, label in enumerate(sorted({label for _, _, label in wanted}), start=1)}
    images = {image: number for number, image in enumerate(sorted({image for image, _, _ in (*wanted, *given)}), 1)}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints what it does
        truth = COCO()
        truth.dataset = {
            "images": [{"id": number} for number in images.values()],
            "categories": [{"id": number} for number in labels.values()],
            "annotations": [
                {**_described(*one, images, labels), "id": number, "iscrowd": 0} for number, one in enumerate(wanted, 1)
            ],
        }
        truth.createIndex()
        # Boxes of labels that nothing is expected of belong to no category that COCO averages over.
        found = [{**_described(*one, images, labels), "score": 1.0} for one in given if one[2] in labels]
        if not found:
            return {"box_map_in_order": 0.0}
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        # Only the figure for all sizes and 100 boxes is looked at; COCO's other eleven take most of the time.
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]
    return {"box_map_in_order": float(np.mean(precision[precision > -1]))}


_Flat = tuple[tuple[int, int], Sequence[float], str]
"""Row and image in it; corners; label."""


def _flat(rows: Sequence[Sequence[Box]]) -> Iterator[_Flat]:
    for number, row in enumerate(rows):
        for box in row:
            if len(box["bbox"]) == CORNERS:
                yield (number, box["image_id"]), box["bbox"], plain_label(box["label"])


def _described(
    image: tuple[int, int],
    corners: Sequence[float],
    label: str,
    images: dict[tuple[int, int], int],
    labels: dict[str, int],
) -> dict[str, Any]:
    left, top, right, bottom = corners
    width, height = max(right - left, 0.0), max(bottom - top, 0.0)
    return {
        "image_id": images[image],
        "category_id": labels[label],
        "bbox": [left, top, width, height],
        "area": width * height,
    }
