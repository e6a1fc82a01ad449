"""Figures of OCR pages for `evaluate.load`; what they count is in `vlm_lora.metrics.rules`."""

from typing import Any

import evaluate

from vlm_lora.metrics.as_module import compute, describe


class OcrPage(evaluate.Metric):
    """Figures of OCR pages."""

    def _info(self) -> evaluate.MetricInfo:
        return describe("ocr_page")

    def _compute(
        self,
        predictions: list[str],
        references: list[list[str]],
        boxes: list[list[dict[str, Any]]],
        expected_boxes: list[list[dict[str, Any]]],
        has_boxes: list[bool],
        *,
        per_row: bool = False,
    ) -> dict[str, Any]:
        given = [found if asked else None for found, asked in zip(boxes, has_boxes, strict=True)]
        pairs = (zip(predictions, given, strict=True), zip(references, expected_boxes, strict=True))
        return compute("ocr_page", *map(list, pairs), per_row=per_row)
