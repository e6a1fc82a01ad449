"""predictions.jsonl: each validation row with what was asked, what would be right, and what the model answered."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_lora.config.whole_files import valid_json, write_whole
from vlm_lora.evaluation.generation import Answer

PREDICTIONS = "predictions.jsonl"
"""The file's name in an evaluation's folder."""


def write_predictions(
    path: Path,
    answers: Sequence[Answer],
    *,
    losses: Mapping[int, float] | None = None,
    scores: Sequence[Mapping[str, float]] = (),
) -> None:
    """Write one JSON object per answer. The file appears whole or not at all.

    Its keys: `source` (file and row), `prompt` (the question), `images` (paths, or `FILE:ROW#n` where the row holds
    them), `generated`, `accepted` (a list), `exact`, `scores` (by name) and `loss`. A row of a page has its `task`, one
    of several data sets their name as `origin`. An answer that should name boxes also has `boxes` and `expected_boxes`,
    in pixels of the images as they are stored.

    Args:
        path: the file.
        answers: of the rows 0, 1, 2 ... of the evaluated split.
        losses: by row number: the mean negative log-likelihood of its supervised tokens, in nats; null where none is
            known.
        scores: of each answer, in the same order; empty where there are none.
    """
    known = losses or {}
    lines = [
        _record(answer, loss=known.get(number), scores=scores[number] if scores else {})
        for number, answer in enumerate(answers)
    ]
    write_whole(path, "".join(json.dumps(valid_json(line), ensure_ascii=False) + "\n" for line in lines))


def _record(answer: Answer, *, loss: float | None, scores: Mapping[str, float]) -> dict[str, Any]:
    record: dict[str, Any] = {
        "source": answer.source,
        "prompt": answer.prompt,
        "images": list(answer.images),
        "generated": answer.generated,
        "accepted": list(answer.accepted),
        "exact": answer.exact,
        "scores": dict(scores),
        "loss": loss,
    }
    record |= {name: value for name in ("task", "origin") if (value := getattr(answer, name)) is not None}
    if answer.boxes is not None:
        record["boxes"] = [region.record() for region in answer.boxes]
        record["expected_boxes"] = [region.record() for region in answer.expected_boxes]
    return record
