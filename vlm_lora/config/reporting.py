"""Settings of what a run writes for people to look at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Pages for people."""

    report_page: bool = True
    """Write report.html into the output folder at the end of a run, also of one that failed: curves, scores, the worst
    answers, data, settings. It needs matplotlib; without it one line says how to make the page later."""
    report_images: bool = True
    """Show images in report.html and in the pages of check, preview and --dry_run. false keeps them out of every page,
    so also out of what is pushed or registered with the output folder."""
