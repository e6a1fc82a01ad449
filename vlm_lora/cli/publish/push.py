"""`vlm-lora push FOLDER REPO`: a trained or merged model to the Hub."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_lora.cli.setup import set_up_logging, verb_parser

if TYPE_CHECKING:
    from vlm_lora.deploy.push import Pushed


def flags() -> argparse.ArgumentParser:
    """Return the parser of this verb's words and flags."""
    parser = verb_parser("push")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a run's folder, a checkpoint, or a whole model")
    parser.add_argument("repository", metavar="REPO", help="OWNER/NAME on the Hub; made if it is not there")
    parser.add_argument(
        *("--token", "--hub_token", "--hub-token"),
        metavar="TOKEN",
        help="that may write there; by default HF_TOKEN or what `hf auth login` stored",
    )
    parser.add_argument(
        "--private", action="store_true", default=None, help="make a new repository private (its owner's default)"
    )
    parser.add_argument("--revision", metavar="BRANCH", help="push to this branch; made if it is not there (main)")
    parser.add_argument("--commit_message", "--commit-message", metavar="TEXT", help="of the one commit that it is")
    parser.add_argument(
        *("--with_rows", "--with-rows"),
        action="store_true",
        help="push what holds rows of the data, too: predictions, pages, bad rows",
    )
    parser.add_argument("--json", action="store_true", help="print what was pushed as JSON")
    return parser


def push(rest: Sequence[str]) -> None:
    """Push, and say what is there now."""
    own = flags().parse_args(rest)
    set_up_logging("warning")
    from vlm_lora.deploy.push import push as pushed
    from vlm_lora.training.hub_access import Repository

    repository = Repository(
        name=own.repository,
        token=own.token,
        private=own.private,
        revision=own.revision,
        asked_by="vlm-lora push",
        token_flag="--token",
        name_flag="REPO",
    )
    found = pushed(own.folder.expanduser(), repository, with_rows=own.with_rows, message=own.commit_message)
    print(json.dumps(asdict(found), indent=2) if own.json else in_words(found))
    sys.stdout.flush()


def in_words(pushed: Pushed) -> str:
    """Return what was pushed, in lines for a terminal."""
    lines = [f"Pushed {len(pushed.files)} files ({pushed.size:,} bytes) of {pushed.folder} to {pushed.url}"]
    if pushed.rows_left:
        lines.append(f"Left here, for they hold rows of the data: {', '.join(pushed.rows_left)} (--with_rows)")
    if pushed.local_base:
        lines.append(
            f"Its base is a folder here, {pushed.local_base}, which nobody else has: push that as well, or the merged "
            "model (vlm-lora merge)."
        )
    return "\n".join(lines)
