"""`vlm-lora report RUN`: one run on one page, from the files in its folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vlm_lora.cli.setup import set_up_logging, verb_parser
from vlm_lora.config.values import MismatchError, convert
from vlm_lora.errors import ConfigError


def flags() -> argparse.ArgumentParser:
    """Return the parser of this verb's words and flags."""
    parser = verb_parser("report")
    parser.add_argument("run", type=Path, metavar="RUN", help="the --output_dir of a run")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the page (RUN/report.html)")
    add_images_flag(parser)
    return parser


def add_images_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag that keeps images out of a page."""
    parser.add_argument(
        "--report_images",
        "--report-images",
        nargs="?",
        const="true",
        default="true",
        metavar="BOOL",
        help="show images: true or false (true)",
    )


def wants_images(text: str) -> bool:
    """Return what `--report_images` says.

    Raises:
        ConfigError: it is neither true nor false.
    """
    try:
        return bool(convert(text, bool))
    except MismatchError as error:
        raise ConfigError(f"--report_images {text}: must be {error}.") from error


def report(rest: Sequence[str]) -> None:
    """Write the page and say where it is.

    Raises:
        ConfigError: there is no run, nothing to draw with, or the page would replace another file.
    """
    own = flags().parse_args(rest)
    set_up_logging("warning")
    from vlm_lora.report.run_page import drawing
    from vlm_lora.report.run_page.at_end import write_own_page
    from vlm_lora.report.run_page.folder import read_run
    from vlm_lora.report.run_page.page import PAGE, refuse_other_files

    drawing.require("report")
    output = own.output or own.run / PAGE
    refuse_other_files(output)
    read_run(own.run)
    write_own_page(own.run, output, images=wants_images(own.report_images))
    print(f"Written to {output}")
