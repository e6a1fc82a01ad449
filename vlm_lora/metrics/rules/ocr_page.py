"""Figures of OCR pages: the text that an answer reads, and the boxes that it names.

An answer about a page is text, or JSON with a text and a box for each item. So its text is taken out of the JSON first
(items in order, one on each line), and runs of white space become one blank on both sides. Of that text: CER and WER as
jiwer has them (all rows together), ANLS (threshold 0.5) and exact match (means over rows). Rows that ask for no text
are left out of these. Boxes: precision, recall and F1 as for boxes, at an IoU of 0.5 and of 0.75, over all rows whose
answers have boxes; labels are not compared, for they are the texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_lora.metrics.rules.anls import anls
from vlm_lora.metrics.rules.boxes import Box, count_row
from vlm_lora.metrics.rules.error_rates import character_edits, fewest_edits, word_edits
from vlm_lora.metrics.rules.json_fields import is_json, read_json
from vlm_lora.metrics.statistics import Counted, Sums, precision_recall_f1, ratio

IOUS = (50, 75)
"""Thresholds in hundredths."""
_TEXT_NUMBERS, _BOX_NUMBERS = 7, 1 + 3 * len(IOUS)


def count(predictions: Sequence[tuple[str, Any]], references: Sequence[tuple[Sequence[str], Any]]) -> Counted:
    """Count for each row the edits of its text and the matches of its boxes.

    Args:
        predictions: of each row the answer and its boxes, None where the row asks for none.
        references: of each row the accepted answers and the expected boxes.
    """
    found = []
    for (text, boxes), (accepted, expected) in zip(predictions, references, strict=True):
        matched = (0.0,) * _BOX_NUMBERS if boxes is None else _count_boxes(boxes, expected)
        found.append((*_count_text(text, accepted), *matched))
    sums = np.array(found, dtype=np.float64).reshape(-1, _TEXT_NUMBERS + _BOX_NUMBERS)
    rows = [{name: float(value) for name, value in combine(row).items() if not np.isnan(value)} for row in sums]
    return Counted(sums=sums, rows=rows)


def combine(sums: Sums) -> Mapping[str, NDArray[np.float64]]:
    """Return all figures; NaN for those of texts (boxes) where no row has any."""
    texts, has_boxes = sums[..., 6], sums[..., _TEXT_NUMBERS] > 0
    found = {
        "ocr_cer": np.where(texts > 0, sums[..., 0] / np.maximum(sums[..., 1], 1.0), np.nan),
        "ocr_wer": np.where(texts > 0, sums[..., 2] / np.maximum(sums[..., 3], 1.0), np.nan),
        "ocr_anls": ratio(sums[..., 4], texts),
        "ocr_exact_match": ratio(sums[..., 5], texts),
    }
    for number, threshold in enumerate(IOUS):
        start = _TEXT_NUMBERS + 1 + 3 * number
        figures = precision_recall_f1(*(sums[..., start + place] for place in range(3)))
        for name, values in zip(("precision", "recall", "f1"), figures, strict=True):
            found[f"ocr_box_{name}_{threshold}"] = np.where(has_boxes, values, np.nan)
    return found


def page_text(answer: str) -> str | None:
    """Return the text that an answer reads from a page, white space as single blanks; None for boxes without texts."""
    if not is_json(answer):
        return " ".join(answer.split())
    texts = list(_texts(read_json(answer).values))
    return " ".join(" ".join(texts).split()) if texts or not _holds_numbers(answer) else None


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts of JSON, in order, those of nested lists and objects too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


def _holds_numbers(answer: str) -> bool:
    return any(letter.isdigit() for letter in answer)


def _count_text(generated: str, accepted: Sequence[str]) -> tuple[float, ...]:
    """Return character edits and length, word edits and length, ANLS, exact match, and 1; zeros without a text."""
    expected = [text for text in map(page_text, accepted) if text is not None]
    if not expected:
        return (0.0,) * _TEXT_NUMBERS
    given = page_text(generated) or ""
    letters = fewest_edits(character_edits, given, expected)
    words = fewest_edits(word_edits, given, expected)
    return (*map(float, (*letters, *words)), anls(given, expected), float(given in expected), 1.0)


def _count_boxes(generated: Sequence[Box], expected: Sequence[Box]) -> tuple[float, ...]:
    given, wanted = ([{**box, "label": ""} for box in boxes] for boxes in (generated, expected))
    matched = (count_row(given, wanted, threshold / 100) for threshold in IOUS)
    return (1.0, *(float(number) for numbers in matched for number in numbers))
