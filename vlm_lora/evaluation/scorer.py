"""Which scores a run's answers get, settled before its model is loaded: by the data, or as asked for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.scoring import figure_of, names_file, needs_answers
from vlm_lora.data.dataset import Conversations
from vlm_lora.errors import ConfigError, nearest
from vlm_lora.metrics.choice import choose
from vlm_lora.metrics.facts import DataFacts, facts_of
from vlm_lora.metrics.scorer import Scorer

logger = logging.getLogger(__name__)


def scorer_for(run: RunConfig, arguments: Any, validation: Conversations | None) -> Scorer | None:
    """Return what scores the answers to validation rows; None where none are generated. The log says which, and why.

    A figure that `--metric_for_best_model` names is among its figures then, and `greater_is_better` of the arguments
    says what is better of it.

    Raises:
        ConfigError: a metric that there is not, that lacks a package or a figure that the metrics do not have.
    """
    if not run.generation.predict_with_generate or validation is None:
        return None
    facts, asked = facts_of(validation), run.scoring.asked
    scorer = choose(asked, facts)
    wanted = arguments.metric_for_best_model
    figure = figure_of(wanted) if needs_answers(wanted) else None
    if figure is not None and figure not in scorer.names and not any(map(names_file, asked)):
        scorer = _choose_also(asked, figure, facts)
    if figure is not None:
        _settle(arguments, figure, scorer, typed=run.raw.get("greater_is_better"))
    say_chosen(scorer)
    return scorer


def say_chosen(scorer: Scorer) -> None:
    """Write into the log which metrics were chosen, and why; what is left out for want of a package is a warning."""
    logger.info("Answers are scored by: %s.", "; ".join(scorer.reasons))
    for line in scorer.left_out:
        logger.warning("Metrics %s.", line)


def _choose_also(asked: Sequence[str], figure: str, facts: DataFacts) -> Scorer:
    """Add the metric of a figure that the best checkpoint is to be chosen by."""
    try:
        return choose([*asked, figure], facts)
    except ConfigError as error:
        raise ConfigError(str(error).replace(f"--metrics {figure}:", f"--metric_for_best_model {figure}:")) from error


def _settle(arguments: Any, figure: str, scorer: Scorer, *, typed: Any) -> None:
    """Let the best checkpoint be chosen by a figure in the right direction."""
    if figure not in scorer.names:
        raise ConfigError(
            f"--metric_for_best_model {arguments.metric_for_best_model}: the metrics of this run give "
            f"{', '.join(scorer.names)}.{nearest(figure, scorer.names)} Others are chosen by --metrics."
        )
    greater = scorer.greater_is_better(figure)
    if typed is not None and typed != greater:
        better = "more" if greater else "less"
        raise ConfigError(f"--greater_is_better {str(typed).lower()}: of {figure} {better} is better. Leave it out.")
    arguments.greater_is_better = greater
