"""`vlm-lora register FOLDER NAME`: a trained or merged model into MLflow's registry."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from vlm_lora.cli.setup import set_up_logging, verb_parser


def flags() -> argparse.ArgumentParser:
    """Return the parser of this verb's words and flags."""
    parser = verb_parser("register")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a run's folder, a checkpoint, or a merged model")
    parser.add_argument("name", metavar="NAME", help="of the model; it becomes the next version of this name")
    parser.add_argument(
        *("--tracking_uri", "--tracking-uri"),
        metavar="URI",
        help="a server or sqlite:///FILE (MLFLOW_TRACKING_URI, else ~/.local/share/vlm-lora)",
    )
    parser.add_argument("--json", action="store_true", help="print what was registered as JSON")
    return parser


def register(rest: Sequence[str]) -> None:
    """Register, and say what is there now."""
    own = flags().parse_args(rest)
    set_up_logging("warning")
    from vlm_lora.deploy.registry.register import register as registered
    from vlm_lora.deploy.registry.said import in_words

    found = registered(own.folder.expanduser(), own.name, own.tracking_uri)
    print(json.dumps(asdict(found), indent=2) if own.json else in_words(found))
