"""What a run measures at its end, and what it writes beside the figures."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlm_lora.config.scoring import LOSSES, is_score
from vlm_lora.data.dataset import Conversations
from vlm_lora.engines.zero_numbers import agreeing_schedule
from vlm_lora.evaluation.predictions import PREDICTIONS, write_predictions

logger = logging.getLogger(__name__)

_COUNTS = ("eval_supervised_tokens", "eval_answers")


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


def figures_at_start(log: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the evaluation before the first step found (`--eval_on_start`), as `eval_start_*` figures.

    Args:
        log: what the trainer logged, in order.
    """
    entry = next((entry for entry in log if entry.get("step") == 0 and "eval_perplexity" in entry), {})
    return {
        name.replace("eval_", "eval_start_", 1): value
        for name, value in entry.items()
        if name.startswith("eval_") and (name in (*LOSSES, *_COUNTS) or is_score(name))
    }
