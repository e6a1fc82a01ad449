"""Settings of what a run writes for people to look at, and of what watches over it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from vlm_lora.errors import ConfigError

NONFINITE_LIMIT = 10
"""Steps: the weights are the same at each of them, so it is not the weights' course that will mend it."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Pages for people."""

    report_page: bool = True
    """Write report.html into the output folder at the end of a run, also of one that failed: curves, scores, the worst
    answers, data, settings. It needs matplotlib; without it one line says how to make the page later."""
    report_images: bool = True
    """Show images in report.html and in the pages of check, preview and --dry_run. false keeps them out of every page,
    so also out of what is pushed or registered with the output folder."""


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """When a run that stands still is ended, and what becomes of a step that is not finite."""

    stall_timeout: float | None = None
    """Seconds without progress in training until every process shows what it is doing and all end (exit code 76); 0
    never. By default the larger of 30 minutes and 20 steps; first steps, evaluation and saving do not count."""
    on_nonfinite: Literal["stop", "skip_step"] = "stop"
    """A training step whose loss or gradient is NaN or infinite: stop (end the run, naming rows and weights), skip_step
    (make no update: weights, optimizer and schedule stay as they are; counted and logged)."""
    nonfinite_limit: int | None = None
    """With --on_nonfinite skip_step: most steps skipped in a row, by default 10; the next one ends the run."""

    def __post_init__(self) -> None:
        seconds = self.stall_timeout
        if seconds is not None and not (seconds >= 0 and math.isfinite(seconds)):
            raise ConfigError(f"--stall_timeout {seconds}: must be a number of seconds, or 0 to wait for ever.")
        if self.on_nonfinite not in ("stop", "skip_step"):
            raise ConfigError(f"--on_nonfinite {self.on_nonfinite}: must be one of stop, skip_step.")
        limit = self.nonfinite_limit
        if limit is not None and limit < 1:
            raise ConfigError(f"--nonfinite_limit {limit}: must be a whole number from 1.")

    @property
    def skipped_in_a_row(self) -> int | None:
        """Most steps that are skipped in a row; None where the first one ends the run."""
        if self.on_nonfinite == "stop":
            return None
        return NONFINITE_LIMIT if self.nonfinite_limit is None else self.nonfinite_limit
