"""Metrics by `evaluate` as both stacks have it: those that need none of the extra `metrics`."""

from __future__ import annotations

import pytest

from vlm_lora.batching.boxes.writing import Region
from vlm_lora.metrics.choice import choose
from vlm_lora.metrics.facts import DataFacts
from vlm_lora.metrics.scored import Answered

BOX = Region(numbers=(0, 0, 10, 10), label="cat", image=0)
CUT = Region(numbers=(0, 0, 10, 6), label=None, image=0)


def test_metrics_that_need_no_extra() -> None:
    scorer = choose(
        ["exact_match", "relaxed_accuracy", "anls", "vqa_accuracy", "token_f1", "json", "boxes"], DataFacts()
    )
    scores = scorer.score(
        [
            Answered(row="0", generated="[1]", accepted=("[1]",), boxes=(BOX, CUT), expected_boxes=(BOX,)),
            Answered(row="1", generated="97", accepted=("100",)),
            Answered(row="2", generated="", accepted=("", "\u00fc")),
        ]
    )
    assert scores.figures == pytest.approx(
        {
            "exact_match": 2 / 3,
            "relaxed_accuracy": 1,
            "anls": 2 / 3,
            "vqa_accuracy": 1 / 18,
            "token_f1": 2 / 3,
            "json_valid": 2 / 3,
            "json_field_f1": 2 / 4,
            "box_precision": 1 / 2,
            "box_recall": 1,
            "box_f1": 2 / 3,
        }
    )
