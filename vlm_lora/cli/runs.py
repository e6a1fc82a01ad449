"""What `train` and `eval` show of a run, and what they print at its end."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from vlm_lora.cli.setup import rank
from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.values import is_true
from vlm_lora.config.whole_files import valid_json
from vlm_lora.progress import HUB_BARS, NO_BARS, live_line

QUIET = ("error", "critical")
"""Levels of `--log_level` that leave nothing but errors on stderr."""


def run_and_report(run: RunConfig, *, as_json: bool) -> None:
    """Run what is configured, show it on stderr, and say there in words how it ended.

    On stdout stand the results as JSON, for programs: where stdout is no terminal, or with `--json`. Numbers have six
    digits there; `all_results.json` has all.
    """
    if live_line() is None or is_true(run.raw.get("disable_tqdm")):
        keep_bars_out()
    from vlm_lora import pipeline
    from vlm_lora.report.terminal.view import TerminalView
    from vlm_lora.report.terminal.words import rounded

    view = TerminalView(quiet=str(run.raw.get("log_level", "")).lower() in QUIET)

    def show(results: Mapping[str, Any]) -> None:
        if rank() != 0:
            return
        view.close(results)
        if as_json or not sys.stdout.isatty():
            print(json.dumps(valid_json(rounded(results)), indent=2, sort_keys=True, allow_nan=False))

    pipeline.train(run, observers=[view], show=show)


def keep_bars_out() -> None:
    """Leave out libraries' progress bars, unless their variables say otherwise."""
    for variable, value in NO_BARS.items():
        os.environ.setdefault(variable, value)
    if os.environ[HUB_BARS] == "1":
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # the variable is read when the library is imported, which may have been before
