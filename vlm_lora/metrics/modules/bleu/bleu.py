"""BLEU for `evaluate.load`; what it counts is in `vlm_lora.metrics.rules`."""

from typing import Any

import evaluate

from vlm_lora.metrics.as_module import compute, describe


class Bleu(evaluate.Metric):
    """BLEU."""

    def _info(self) -> evaluate.MetricInfo:
        return describe("bleu")

    def _compute(self, predictions: list[Any], references: list[Any], *, per_row: bool = False) -> dict[str, Any]:
        return compute("bleu", predictions, references, per_row=per_row)
