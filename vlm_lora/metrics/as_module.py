"""What every module of `evaluate` here shares: its description from the table, its features, and how it computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from vlm_lora.metrics.table import METRICS

_TEXT = datasets.Value("string")
_BOX = {
    "bbox": datasets.Sequence(datasets.Value("float64")),
    "label": datasets.Value("string"),
    "image_id": datasets.Value("int64"),
}
_FEATURES = {
    "texts": {"predictions": _TEXT, "references": datasets.Sequence(_TEXT)},
    "boxes": {"predictions": [_BOX], "references": [_BOX]},
    "page": {
        "predictions": _TEXT,
        "references": datasets.Sequence(_TEXT),
        "boxes": [_BOX],
        "expected_boxes": [_BOX],
        "has_boxes": datasets.Value("bool"),
    },
}
_TAKES = {
    "texts": "predictions: one text for each row. references: for each row a list of accepted texts.",
    "boxes": "predictions, references: for each row a list of boxes, each with `bbox` (left, top, right, bottom), "
    "`label` (empty where there is none) and `image_id`.",
    "page": "predictions: one text for each row. references: for each row a list of accepted texts. boxes, "
    "expected_boxes: for each row a list of boxes. has_boxes: whether the row asks for any.",
}


def describe(name: str) -> evaluate.MetricInfo:
    """Return what `evaluate` wants to know of a metric of the table."""
    metric = METRICS[name]
    return evaluate.MetricInfo(
        description=f"{metric.rule}. Source: {metric.source}. Range: {metric.span}.",
        citation=metric.source,
        inputs_description=f"{_TAKES[metric.inputs]} per_row=True adds `rows` and `sums`, row by row.",
        features=datasets.Features(_FEATURES[metric.inputs]),
    )


def compute(name: str, predictions: Sequence[Any], references: Sequence[Any], *, per_row: bool) -> dict[str, Any]:
    """Return a metric's figures for rows; those for which the rows hold nothing to measure are left out.

    Args:
        name: of the table.
        predictions: row by row.
        references: alike.
        per_row: whether to add `rows` (by row, the figures it has by itself) and `sums` (by row, the numbers that add
            up), where the metric counts rows.
    """
    metric = METRICS[name]
    if metric.whole is not None:
        return dict(metric.whole(predictions, references))
    assert metric.count is not None
    assert metric.combine is not None
    counted = metric.count(predictions, references)
    figures = metric.combine(counted.sums.sum(axis=0))
    found: dict[str, Any] = {figure: float(value) for figure, value in figures.items() if not np.isnan(value)}
    return {**found, "rows": counted.rows, "sums": counted.sums} if per_row else found
