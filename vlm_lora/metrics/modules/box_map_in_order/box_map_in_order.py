"""mAP of boxes in the order generated for `evaluate.load`; what it counts is in `vlm_lora.metrics.rules`."""

from typing import Any

import evaluate

from vlm_lora.metrics.as_module import compute, describe


class BoxMapInOrder(evaluate.Metric):
    """mAP of boxes in the order generated."""

    def _info(self) -> evaluate.MetricInfo:
        return describe("box_map_in_order")

    def _compute(self, predictions: list[Any], references: list[Any], *, per_row: bool = False) -> dict[str, Any]:
        return compute("box_map_in_order", predictions, references, per_row=per_row)
