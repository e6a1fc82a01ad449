"""One metric applied to answers: through its `evaluate` module, with a value for each row where it has one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vlm_lora.batching.boxes.writing import Region
from vlm_lora.metrics.loading import load_metric
from vlm_lora.metrics.scored import Answered
from vlm_lora.metrics.statistics import Combine, Sums
from vlm_lora.metrics.table import Metric


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a metric found in some rows."""

    figures: dict[str, float]
    rows: list[dict[str, float]] = field(default_factory=list)
    """For each row the figures that it has by itself; empty where no row has any."""
    sums: Sums | None = None
    """Shape (rows, numbers), zeros for rows that the metric leaves out; None where the figures are of the set alone."""


class Measure(Protocol):
    """A metric that can be applied: one of the table, or the user's own."""

    @property
    def figures(self) -> Mapping[str, bool]:
        """The figures that it gives, and whether greater is better."""

    @property
    def combine(self) -> Combine | None:
        """How sums of rows become figures; None where they cannot."""

    def measure(self, answers: Sequence[Answered]) -> Found:
        """Apply it.

        Raises:
            ConfigError: the user's own metric fails.
        """


class TableMeasure:
    """A metric of the table, loaded by `evaluate` when it is first used.

    Args:
        metric: which.
    """

    def __init__(self, metric: Metric) -> None:
        self.figures = metric.figures
        self.combine = metric.combine
        self._metric = metric

    def measure(self, answers: Sequence[Answered]) -> Found:
        """Apply it to the rows that it is for."""
        boxed = self._metric.inputs == "boxes"
        places = [place for place, answer in enumerate(answers) if not boxed or answer.boxes is not None]
        if not places:
            return Found(figures={})
        inputs = _inputs([answers[place] for place in places], self._metric)
        if self.combine is None:
            return Found(figures=load_metric(self._metric.name).compute(**inputs))
        figures = load_metric(self._metric.name).compute(**inputs, per_row=True)
        rows: list[dict[str, float]] = [{} for _ in answers]
        for place, row in zip(places, figures.pop("rows"), strict=True):
            rows[place] = row
        counted = figures.pop("sums")
        sums = np.zeros((len(answers), counted.shape[1]))
        sums[places] = counted
        return Found(figures=figures, rows=rows, sums=sums)


def _inputs(answers: Sequence[Answered], metric: Metric) -> dict[str, list[Any]]:
    texts = [_storable(answer.generated) for answer in answers]
    accepted = [[_storable(text) for text in answer.accepted] for answer in answers]
    boxes = [[_plain(region) for region in answer.boxes or ()] for answer in answers]
    expected = [[_plain(region) for region in answer.expected_boxes] for answer in answers]
    if metric.inputs == "texts":
        return {"predictions": texts, "references": accepted}
    if metric.inputs == "boxes":
        return {"predictions": boxes, "references": expected}
    return {
        "predictions": texts,
        "references": accepted,
        "boxes": boxes,
        "expected_boxes": expected,
        "has_boxes": [answer.boxes is not None for answer in answers],
    }


def _storable(text: str) -> str:
    """Return a text that Arrow, through which `evaluate` hands it on, can store: lone surrogates become `?`."""
    return text.encode("utf-8", "replace").decode()


def _plain(region: Region) -> dict[str, Any]:
    numbers = [float(number) for number in region.numbers]
    return {"bbox": numbers, "label": _storable(region.label or ""), "image_id": region.image}
