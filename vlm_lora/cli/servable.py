"""`vlm-lora servable FOLDER`: which servers load it as it is, and what to type."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_lora.cli.setup import set_up_logging, verb_parser

if TYPE_CHECKING:
    from vlm_lora.serving.servable import Verdict


def flags() -> argparse.ArgumentParser:
    """Return the parser of this verb's words and flags."""
    parser = verb_parser("servable")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a run's folder, a checkpoint, or a whole model")
    parser.add_argument("--json", action="store_true", help="print the verdicts as JSON")
    return parser


def servable(rest: Sequence[str]) -> None:
    """Print a verdict for each server."""
    own = flags().parse_args(rest)
    set_up_logging("warning")
    from vlm_lora.serving.servable import judge

    verdicts = judge(own.folder.expanduser())
    if own.json:
        print(json.dumps([as_json(verdict) for verdict in verdicts], indent=2))
        return
    print("\n".join(line for verdict in verdicts for line in in_words(verdict)))


def in_words(verdict: Verdict) -> list[str]:
    """Return a verdict in lines: what becomes of the folder, why, and what to type."""
    lines = [f"{verdict.server} {verdict.version}: {verdict.answer.value}"]
    lines += [f"  because {reason}" for reason in verdict.why]
    return lines + ([f"  {verdict.command}"] if verdict.command else [])


def as_json(verdict: Verdict) -> dict[str, object]:
    """Return a verdict as JSON has it."""
    return {
        "server": verdict.server,
        "version": verdict.version,
        "answer": verdict.answer.value,
        "why": list(verdict.why),
        "command": verdict.command,
    }
