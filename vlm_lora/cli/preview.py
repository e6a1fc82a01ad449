"""`vlm-lora preview`: rows as the model will see them, in the terminal, as JSON or as a page."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from vlm_lora.cli.setup import check_page, configure, verb_parser
from vlm_lora.config.early import DATA, MODEL
from vlm_lora.errors import ConfigError


def flags() -> argparse.ArgumentParser:
    """Return the parser of the flags that only this verb has."""
    parser = verb_parser("preview")
    parser.add_argument("--rows", type=int, default=3, metavar="N", help="rows to show (3)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with the images")
    return parser


def preview(rest: Sequence[str]) -> None:
    """Show the first rows."""
    own, others = flags().parse_known_args(rest)
    if own.rows < 1:
        raise ConfigError(f"--rows {own.rows}: must be 1 or more.")
    if own.html is not None:
        check_page(own.html)
    run = configure(others, {}, log_level="warning", verb="preview", needed=(MODEL, DATA))
    from rich.console import Console

    from vlm_lora import pipeline
    from vlm_lora.report.page import write_page
    from vlm_lora.report.preview import print_row, row_report

    shown = pipeline.preview(run, rows=own.rows)
    if own.html is not None:
        title = f"{run.data.dataset_name} as {run.model.model_name_or_path} sees it"
        write_page(own.html, shown.rows, title=title, images=run.reporting.report_images)
    if own.json:
        reports = [{**row_report(one.row, one.tokenizer), "image_size": shown.image_size} for one in shown.rows]
        print(json.dumps(reports, ensure_ascii=False, indent=2))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"Images are shown {shown.image_size}.", style="dim", markup=False)
    for one in shown.rows:
        print_row(one.row, one.tokenizer, console)
    if own.html is not None:
        print(f"Written to {own.html}")
