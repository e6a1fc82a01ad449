"""`vlm-lora runs DIR` and `train --list_checkpoints DIR`: the runs below a folder, and a run's checkpoints."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from vlm_lora.cli.setup import verb_parser
from vlm_lora.config.whole_files import valid_json


def flags() -> argparse.ArgumentParser:
    """Return the parser of this verb's words and flags."""
    parser = verb_parser("runs")
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder with runs below it, or the run's own")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def list_runs(rest: Sequence[str]) -> None:
    """Print the runs as a table or as JSON.

    Raises:
        ConfigError: there is none.
    """
    own = flags().parse_args(rest)
    from vlm_lora.report.runs import find_runs, table

    runs = find_runs(own.folder)
    print(json.dumps(valid_json(runs), indent=2, allow_nan=False) if own.json else table(runs))


def list_checkpoints(folder: str) -> None:
    """Print a table of the checkpoints in a run's folder, by number, and which is best."""
    from vlm_lora.report.checkpoints import describe_checkpoints

    print(describe_checkpoints(Path(folder)))
