"""Evaluations: a table that grows by a row each where a line is live, and a plain line each elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_lora.config.scoring import LOSSES, is_score
from vlm_lora.report.terminal.words import spell_figure, spell_name

FIRST = ("loss", "perplexity")
LEAST_WIDTH = 9


def scores_of(figures: Mapping[str, Any]) -> dict[str, float]:
    """Return what an evaluation found, by name without `eval_`: losses first."""
    found = {
        name.removeprefix("eval_"): float(value)
        for name, value in figures.items()
        if isinstance(value, int | float) and (name in LOSSES or is_score(name)) and name.startswith("eval_")
    }
    return {name: found[name] for name in (*FIRST, *(name for name in found if name not in FIRST)) if name in found}


class EvaluationTable:
    """Makes the table's lines; its heading comes again when an evaluation has other figures."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()

    def lines(self, step: str, train_loss: float | None, figures: Mapping[str, Any], columns: int) -> list[str]:
        """Return the lines of one evaluation: a row, with the heading before it where it is needed.

        Args:
            step: after which step.
            train_loss: the training loss, where one was logged since the last evaluation.
            figures: by the names that the log has.
            columns: of the terminal; figures that have no room are left out, the last ones first.
        """
        scores = scores_of(figures)
        train = "-" if train_loss is None else spell_figure(train_loss)
        cells = {"step": step, "train loss": train, **{spell_name(name): spell_figure(scores[name]) for name in scores}}
        widths = {name: max(len(name), LEAST_WIDTH if name != "step" else 6) for name in cells}
        while len(cells) > 2 and sum(widths[name] + 2 for name in cells) > columns:
            cells.popitem()
        heading = "  ".join(name.rjust(widths[name]) for name in cells)
        row = "  ".join(text.rjust(widths[name]) for name, text in cells.items())
        lines = [row] if tuple(cells) == self._names else [heading, row]
        self._names = tuple(cells)
        return lines


def plain_evaluation(step: str, figures: Mapping[str, Any]) -> str:
    """Return the line that stands for an evaluation where no line is live."""
    found = ", ".join(f"{spell_name(name)} {spell_figure(value)}" for name, value in scores_of(figures).items())
    return f"evaluated at {step}: {found}"
