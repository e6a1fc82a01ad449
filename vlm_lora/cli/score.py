"""`vlm-lora eval --predictions_from FILE`: scores of answers that were made elsewhere; no model is loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vlm_lora.cli.setup import configure
from vlm_lora.config.whole_files import valid_json
from vlm_lora.errors import ConfigError


def score(file: str, rest: Sequence[str]) -> None:
    """Score the answers of a file on the data that the other flags name, and print the figures as JSON."""
    run = configure(rest, {"do_eval": True}, log_level="info", verb="eval")
    if run.data.dataset_name is None and run.data.validation_name is None:
        raise ConfigError(
            f"--predictions_from {file}: the data that the answers are of is missing. Type --validation_name with it, "
            "or the --dataset_name of which rows are held out."
        )
    from vlm_lora.evaluation.elsewhere import score_elsewhere
    from vlm_lora.report.terminal.words import rounded

    figures = score_elsewhere(run, Path(file).expanduser())
    print(json.dumps(valid_json(rounded(figures)), indent=2, sort_keys=True, allow_nan=False))
