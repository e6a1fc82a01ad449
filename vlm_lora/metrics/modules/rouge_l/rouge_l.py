"""ROUGE-L for `evaluate.load`; what it counts is in `vlm_lora.metrics.rules`."""

from typing import Any

import evaluate

from vlm_lora.metrics.as_module import compute, describe


class RougeL(evaluate.Metric):
    """ROUGE-L."""

    def _info(self) -> evaluate.MetricInfo:
        return describe("rouge_l")

    def _compute(self, predictions: list[Any], references: list[Any], *, per_row: bool = False) -> dict[str, Any]:
        return compute("rouge_l", predictions, references, per_row=per_row)
