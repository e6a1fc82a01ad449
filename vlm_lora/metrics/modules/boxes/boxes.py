"""Precision, recall and F1 of boxes for `evaluate.load`; what it counts is in `vlm_lora.metrics.rules`."""

from typing import Any

import evaluate

from vlm_lora.metrics.as_module import compute, describe


class Boxes(evaluate.Metric):
    """Precision, recall and F1 of boxes."""

    def _info(self) -> evaluate.MetricInfo:
        return describe("boxes")

    def _compute(self, predictions: list[Any], references: list[Any], *, per_row: bool = False) -> dict[str, Any]:
        return compute("boxes", predictions, references, per_row=per_row)
