"""`vlm-lora compare RUN RUN [...]`: runs side by side, in the terminal and on a page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vlm_lora.cli.report import add_images_flag, wants_images
from vlm_lora.cli.setup import set_up_logging, verb_parser


def flags() -> argparse.ArgumentParser:
    """Return the parser of this verb's words and flags."""
    parser = verb_parser("compare")
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="the --output_dir of a run; the first is compared with"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("compare.html"), metavar="FILE", help="the page (compare.html)"
    )
    add_images_flag(parser)
    return parser


def compare(rest: Sequence[str]) -> None:
    """Print the comparison and write its page.

    Raises:
        ConfigError: a folder holds no run, there is nothing to draw with, or the page would replace another file.
    """
    own = flags().parse_args(rest)
    set_up_logging("warning")
    from rich.console import Console

    from vlm_lora.report.comparison.compared import compare_runs
    from vlm_lora.report.comparison.page import write_comparison
    from vlm_lora.report.comparison.terminal import print_comparison
    from vlm_lora.report.run_page import drawing
    from vlm_lora.report.run_page.page import refuse_other_files

    images = wants_images(own.report_images)
    drawing.require("compare")
    refuse_other_files(own.output)
    comparison = compare_runs(own.runs)
    print_comparison(comparison, Console(highlight=False, soft_wrap=True))
    write_comparison(comparison, own.output, images=images)
    print(f"Written to {own.output}")
