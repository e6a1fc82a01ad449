"""What a run measures at its end, and what it writes beside the figures."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from vlm_lora.data.dataset import Conversations
from vlm_lora.engines.zero_numbers import agreeing_schedule
from vlm_lora.evaluation.predictions import PREDICTIONS, write_predictions

logger = logging.getLogger(__name__)


def measure(trainer: Any, validation: Conversations | None) -> dict[str, Any]:
    """Measure perplexity on the validation rows, and scores of answers where they are asked for.

    Answers go to `predictions.jsonl` in the run's folder. Every process must call it.
    """
    arguments = trainer.args
    with agreeing_schedule():
        metrics: dict[str, Any] = dict(trainer.evaluate())
    if validation is None:
        return metrics
    metrics["eval_samples"] = len(validation)
    found = trainer.answering
    if found is None:
        if not arguments.do_train:
            logger.info("This is perplexity alone; --predict_with_generate also generates answers and scores them.")
        return metrics
    losses = trainer.row_losses()
    if trainer.is_world_process_zero():
        path = Path(arguments.output_dir) / PREDICTIONS
        write_predictions(path, found.answers, losses=losses, scores=found.scores.rows)
    return {**metrics, **found.details}
