"""What metrics are given of an answered row, and what they give back for all rows together."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlm_lora.batching.boxes.writing import Region

PREFIX = "eval_"
"""Stands before a figure's name in logs, results and `--metric_for_best_model`."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a metric sees of one row."""

    row: str
    """Where the row came from, as predictions.jsonl has it."""
    generated: str
    """The generated answer behind its thoughts, without white space at its ends."""
    accepted: tuple[str, ...]
    """The texts that count as right; annotators that agree stand in it several times."""
    boxes: tuple[Region, ...] | None = None
    """The generated boxes in pixels of the row's stored images; None where the row's answer has no boxes."""
    expected_boxes: tuple[Region, ...] = ()
    """The answer's boxes, alike."""
    task: str | None = None
    """The task that the row asks for, where the data name tasks."""
    origin: str | None = None
    """The name of its data set in a mixture."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a set of answers scores."""

    figures: dict[str, float]
    """By name, without `eval_`. Shares lie between 0 and 1, BLEU's too; error rates may be above 1."""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95 % intervals by figure: Wilson's for exact match, the bootstrap over rows for the others that have one."""
    groups: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """Under `task` and `source`, where the rows name any: each one's figures, and `rows`, how many rows it has."""
    rows: list[dict[str, float]] = field(default_factory=list)
    """By answered row, in order: the figures that a single row has."""
    count: int = 0
    """How many rows were answered."""


def bare_name(figure: str) -> str:
    """Return a figure's name without `eval_`."""
    return figure.removeprefix(PREFIX)
