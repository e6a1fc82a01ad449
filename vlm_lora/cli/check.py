"""`vlm-lora check`: read every row before training, and say what the data is and what is wrong with it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vlm_lora.cli.setup import check_page, configure, verb_parser
from vlm_lora.config.early import DATA, MODEL
from vlm_lora.errors import ConfigError


def flags() -> argparse.ArgumentParser:
    """Return the parser of the flags that only this verb has."""
    parser = verb_parser("check")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write it as a page")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that read (as rows and cores allow)")
    return parser


def check(rest: Sequence[str]) -> None:
    """Run the verb.

    Raises:
        DataError: training with the same flags would stop at its data; the message counts the bad rows and
            names the first.
    """
    own, others = flags().parse_known_args(rest)
    if own.workers is not None and own.workers < 0:
        raise ConfigError(f"--workers {own.workers}: must be 0 (this process alone) or more.")
    if own.html is not None:
        check_page(own.html)
    if own.html is not None and not own.html.parent.is_dir():
        raise ConfigError(f"--html {own.html}: there is no folder {own.html.parent}.")
    run = configure(others, {}, log_level="warning", verb="check", needed=(MODEL, DATA))
    from rich.console import Console

    from vlm_lora import pipeline
    from vlm_lora.config.whole_files import write_whole
    from vlm_lora.preflight.length_filter import refuse_all_dropped
    from vlm_lora.preflight.policy import divide, judge
    from vlm_lora.preflight.terminal import print_report
    from vlm_lora.report.data_page import render_page
    from vlm_lora.report.run_page.stored_images import StoredImages

    report = pipeline.check(run, workers=own.workers, show_progress=sys.stderr.isatty())
    if own.json:
        json.dump(report.to_mapping(), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        print_report(report, Console(highlight=False, soft_wrap=True))
    if own.html is not None:
        stored = StoredImages(vars(run.data)) if run.reporting.report_images else None
        write_whole(own.html, render_page(report, stored))
    rows = {name: split.rows for name, split in report.splits.items()}
    dropped, bad = divide(report.bad, run.batching.on_overflow)
    judge(bad, rows, run.data, where="The report", shown=1, dropped=dropped)
    for name, count in rows.items():
        refuse_all_dropped(name, sum(row.split == name for row in dropped), count, "the report")
