"""Scores of answers by the metrics that were chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from vlm_lora.metrics.intervals import bootstrap, wilson
from vlm_lora.metrics.measures import Found, Measure
from vlm_lora.metrics.rules.exact_match import said
from vlm_lora.metrics.scored import Answered, Scores, bare_name

EXACT = "exact_match"


class Scorer:
    """Scores answers by some metrics; made before a model is loaded, and used on one rank alone.

    Args:
        measures: the metrics.
        reasons: one line for each, why it was chosen.
        left_out: one line for each that suits the data and cannot be had here.
    """

    def __init__(self, measures: Sequence[Measure], reasons: Sequence[str], left_out: Sequence[str] = ()) -> None:
        self._measures = tuple(measures)
        self._greater = {figure: better for measure in measures for figure, better in measure.figures.items()}
        self.names: tuple[str, ...] = tuple(self._greater)
        """The figures that it gives, without `eval_`. Those for which no row holds anything to measure are left out."""
        self.left_out: tuple[str, ...] = tuple(left_out)
        self.reasons: tuple[str, ...] = (*reasons, *left_out)
        """One line for each metric: why it was chosen, or left out."""

    def greater_is_better(self, figure: str) -> bool:
        """Tell whether a greater value of a figure is better.

        Args:
            figure: its name, with or without `eval_`.

        Raises:
            KeyError: it is none of `names`.
        """
        return self._greater[bare_name(figure)]

    def score(self, answers: Sequence[Answered]) -> Scores:
        """Return what answers score, all rows of which count alike.

        Raises:
            ConfigError: the user's own metric fails for a row, or gives other figures than before.
        """
        if not answers:
            return Scores(figures={})
        # Answers to learn may come with thoughts: they are compared without them, as the generated ones are.
        answers = [
            replace(answer, generated=said(answer.generated), accepted=tuple(map(said, answer.accepted)))
            for answer in answers
        ]
        found = [measure.measure(answers) for measure in self._measures]
        rows: list[dict[str, float]] = [{} for _ in answers]
        for one in found:
            for row, added in zip(rows, one.rows, strict=False):  # none where no row has a figure of its own
                row |= added
        return Scores(
            figures={name: value for one in found for name, value in one.figures.items()},
            intervals=self._intervals(found, rows),
            groups=self._groups(answers, found),
            rows=rows,
            count=len(answers),
        )

    def _intervals(self, found: Sequence[Found], rows: Sequence[dict[str, float]]) -> dict[str, tuple[float, float]]:
        counted = [
            (one.sums, measure.combine)
            for one, measure in zip(found, self._measures, strict=True)
            if one.sums is not None and measure.combine is not None
        ]
        intervals = bootstrap(counted)
        if rows and EXACT in rows[0]:
            intervals[EXACT] = wilson(sum(row[EXACT] for row in rows), len(rows))
        return intervals

    def _groups(self, answers: Sequence[Answered], found: Sequence[Found]) -> dict[str, dict[str, dict[str, float]]]:
        ways: dict[str, Callable[[Answered], str | None]] = {"task": lambda a: a.task, "source": lambda a: a.origin}
        groups: dict[str, dict[str, dict[str, float]]] = {}
        for way, name_of in ways.items():
            members: dict[str, list[int]] = {}
            for place, answer in enumerate(answers):
                if (name := name_of(answer)) is not None:
                    members.setdefault(name, []).append(place)
            if members:
                groups[way] = {name: self._group(answers, found, members[name]) for name in sorted(members)}
        return groups

    def _group(self, answers: Sequence[Answered], found: Sequence[Found], places: Sequence[int]) -> dict[str, float]:
        figures: dict[str, float] = {"rows": len(places)}
        for one, measure in zip(found, self._measures, strict=True):
            if one.sums is None or measure.combine is None:
                figures |= measure.measure([answers[place] for place in places]).figures if one.figures else {}
                continue
            for name, value in measure.combine(one.sums[list(places)].sum(axis=0)).items():
                if not np.isnan(value):
                    figures[name] = float(value)
        return figures
