"""Settings of what a run writes for people to look at, and of what watches over it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vlm_lora.errors import ConfigError


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
    """When a run that stands still is ended."""

    stall_timeout: float | None = None
    """Seconds without progress in training until every process shows what it is doing and all end (exit code 76); 0
    never. By default the larger of 30 minutes and 20 steps; first steps, evaluation and saving do not count."""

    def __post_init__(self) -> None:
        seconds = self.stall_timeout
        if seconds is not None and not (seconds >= 0 and math.isfinite(seconds)):
            raise ConfigError(f"--stall_timeout {seconds}: must be a number of seconds, or 0 to wait for ever.")
