"""What is said where a loss, a gradient or a weight is not finite, out of what each rank knows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vlm_lora.training.finite.skipping import SkippedSteps

SHOWN_ROWS = 8
LARGE = 1e4
"""No trained weight of a sound model comes near it."""

_STAYS = "Nothing was saved from this step on, and earlier checkpoints are as they were."
_ROWS = "Look at these rows with `vlm-lora preview`"
_GO_ON = "--resume_from_checkpoint true goes on from the newest checkpoint"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one rank knows of a step, or of an evaluation."""

    rows: tuple[str, ...] = ()
    """Of the step (of the evaluation: none), in order."""
    suspects: tuple[str, ...] = ()
    """Those among them whose own loss is not finite, or whose batch's is not."""
    loss: float = 0.0
    """The step's."""
    finite_loss: float = 0.0
    """The same without the micro-batches whose loss is not finite."""
    gradients: tuple[str, ...] = ()
    """The trained tensors whose gradient is not finite."""
    weights: str = ""
    """Weights that are not finite themselves, in words."""
    largest: float = 0.0
    """The largest trained weight without its sign."""

    def text(self) -> str:
        """Return the report for another rank."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Report:
        """Return the report that `text` gave."""
        values: dict[str, Any] = json.loads(text)
        values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What becomes of a step that is not finite where steps may be left out; the first rank finds it for all."""

    ends: bool
    """Whether it ends the run."""
    said: str
    finite_loss: float
    """The mean of what the ranks report."""

    def text(self) -> str:
        """Return the verdict for the other ranks."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Verdict:
        """Return the verdict that `text` gave."""
        return cls(**json.loads(text))


def verdict_on(step: int, reports: Iterable[Report], *, skipped: SkippedSteps, trained: int) -> Verdict:
    """Say whether a step that is not finite is left out, and what is told of it.

    It ends the run where the weights are not finite themselves, as no later step can be better, and where as many
    before it were left out as may be in a row.

    Args:
        step: counted from 1.
        reports: of all ranks, in order.
        skipped: the steps before, and how many may be.
        trained: how many tensors are trained.
    """
    known = list(reports)
    limit = skipped.limit or 0
    spoiled = any(report.weights for report in known)
    ends = spoiled or skipped.in_a_row >= limit
    if ends:
        said = step_message(step, known, trained=trained)
        if not spoiled:
            said += f" --on_nonfinite skip_step: {limit} in a row were skipped before it (--nonfinite_limit {limit})."
    else:
        said = " ".join(
            part
            for part in (
                f"{_what(step, known)} The step is skipped, {skipped.in_a_row + 1} in a row of at most {limit}, "
                f"{skipped.total + 1} in all: weights, optimizer and schedule stay as they are.",
                *_causes(known, trained=trained),
            )
            if part
        )
    return Verdict(ends=ends, said=said, finite_loss=sum(report.finite_loss for report in known) / len(known))


def overflow_message(step: int, scale: float, count: int) -> str:
    """Say that fp16's scale of the loss left a step out, as it does to find the scale that fits.

    Args:
        step: counted from 1.
        scale: from now on.
        count: how many such steps there were.
    """
    return f"Step {step}: the gradients overflow fp16; no update, and the scale of the loss is now {scale:g} ({count})."


def step_message(step: int, reports: Sequence[Report], *, trained: int) -> str:
    """Say that a step's loss or gradient is not finite.

    Args:
        step: counted from 1.
        reports: of all ranks, in order.
        trained: how many tensors are trained.
    """
    said = [_what(step, reports), *_causes(reports, trained=trained)]
    said += [_STAYS, f"{_ROWS}, or type a smaller --learning_rate; {_GO_ON}."]
    return " ".join(part for part in said if part)


def _what(step: int, reports: Sequence[Report]) -> str:
    loss = _loss(reports)
    if math.isfinite(loss):
        return f"Step {step}: the loss is {loss:.4g}, but its gradient is not finite."
    return f"Step {step}: the loss is not finite ({loss})."


def _loss(reports: Sequence[Report]) -> float:
    return sum(report.loss for report in reports) / len(reports)


def _causes(reports: Sequence[Report], *, trained: int) -> list[str]:
    """Return sentences about rows, weights and gradients that are at fault; empty ones where nothing is known."""
    said = [_rows_of(reports)]
    weights = next((report.weights for report in reports if report.weights), "")
    gradients = list(dict.fromkeys(name for report in reports for name in report.gradients))
    if weights:
        said.append(f"The weights were not finite before it: {weights}.")
    elif gradients:
        said.append(
            f"The gradient of {gradients[0]} is not finite"
            f"{f', nor are those of {len(gradients) - 1} more of {trained} trained tensors' * (len(gradients) > 1)}."
        )
    elif math.isfinite(_loss(reports)):
        said.append("No single gradient tells: their norm overflows, or the engine has let go of them.")
    largest = max(report.largest for report in reports)
    if not weights and largest >= LARGE:
        said.append(f"Trained weights have grown to {largest:.3g}: the learning rate is too large.")
    return said


def scale_message(step: int, reports: Sequence[Report]) -> str:
    """Say that fp16's loss scale has come to nothing: every gradient overflows."""
    return (
        f"Step {step}: the gradients overflow fp16 at every scale of the loss. {_rows_of(reports)} {_STAYS} Type "
        f"--bf16 in place of --fp16, or a smaller --learning_rate; {_GO_ON}."
    )


def weights_message(step: int, reports: Sequence[Report]) -> str:
    """Say that the weights that were to be saved are not finite."""
    weights = next((report.weights for report in reports if report.weights), "")
    return (
        f"After step {step}, {weights}: not saved. The update of a finite gradient made them so. {_STAYS} Type a "
        f"smaller --learning_rate; {_GO_ON}."
    )


def resumed_message(step: int, reports: Sequence[Report]) -> str:
    """Say that what was to be gone on from is not finite."""
    weights = next((report.weights for report in reports if report.weights), "")
    return (
        f"--resume_from_checkpoint: in the checkpoint of step {step}, {weights}. Give an earlier checkpoint, or start "
        "afresh in another --output_dir."
    )


def evaluation_message(reports: Sequence[Report], *, rows: int) -> str:
    """Say that an evaluation's loss is not finite.

    Args:
        reports: of all ranks, in order.
        rows: how many were evaluated, fillers included.
    """
    count = sum(len(report.suspects) for report in reports)
    return (
        f"Evaluation: the loss of {count} of {rows} rows is not finite, so there is no perplexity. "
        f"{_rows_of(reports)} {_ROWS}; in fp16 type --bf16 instead."
    )


def _rows_of(reports: Sequence[Report]) -> str:
    """Return a sentence about the rows that are at fault, or those that may be; nothing where none is known."""
    suspects = _placed(reports, "suspects")
    rows = suspects or _placed(reports, "rows")
    if not rows:
        return ""
    shown = ", ".join(rows[:SHOWN_ROWS]) + (f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else "")
    return f"Rows whose loss is not finite: {shown}." if suspects else f"The rows of this step: {shown}."


def _placed(reports: Sequence[Report], which: str) -> list[str]:
    several = len(reports) > 1
    return [
        f"{row} (rank {rank})" if several else row
        for rank, report in enumerate(reports)
        for row in getattr(report, which)
    ]
