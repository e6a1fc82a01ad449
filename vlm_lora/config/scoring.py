"""How generated answers are scored, when, and when their scores end a run; and what scores there are by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_lora.config.values import is_true
from vlm_lora.errors import ConfigError, nearest

AUTO = "auto"
LOSSES = ("eval_loss", "eval_perplexity", "loss", "perplexity")
"""What an evaluation measures without answers, by the names that `--metric_for_best_model` takes."""

FIGURES = (
    *("exact_match", "relaxed_accuracy", "anls", "vqa_accuracy", "cer", "wer", "token_f1", "bleu", "rouge_l"),
    *("json_valid", "json_field_f1", "box_precision", "box_recall", "box_f1", "box_map_in_order"),
)
"""Figures of generated answers that `--metric_for_best_model` may name, with or without `eval_` before them."""
OF_PAGES = "ocr_"
"""How the figures of OCR pages begin."""
LESS_IS_BETTER = frozenset({"cer", "wer", "loss", "perplexity"})

_SEPARATORS = re.compile(r"[,\s]+")


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """How generated answers are scored, and when scores end a run."""

    metrics: tuple[str, ...] = ()
    """Scores of generated answers: auto (by what the data are, the default); exact_match, relaxed_accuracy, anls,
    vqa_accuracy, cer, wer, token_f1, bleu, rouge_l, json, boxes, box_map_in_order, ocr_page (docs/metrics.md); a file
    with a metric of your own, ./my_metric.py. Giving any turns --predict_with_generate on."""
    eval_generate_samples: int = 64
    """With --predict_with_generate: validation rows that are answered at each evaluation during training, the same each
    time, spread evenly; 0 for all. The evaluation at the end answers all."""
    generation_batch_size: int | None = None
    """Rows answered at once on each device; by default --per_device_eval_batch_size."""
    early_stopping_patience: int | None = None
    """End the training after so many evaluations in a row without a better --metric_for_best_model."""
    early_stopping_threshold: float = 0.0
    """With --early_stopping_patience: what is better by no more than this does not count as better."""

    def __post_init__(self) -> None:
        if self.eval_generate_samples < 0:
            raise ConfigError(f"--eval_generate_samples {self.eval_generate_samples}: must be 0 (all rows) or more.")
        for flag in ("generation_batch_size", "early_stopping_patience"):
            value = getattr(self, flag)
            if value is not None and value < 1:
                raise ConfigError(f"--{flag} {value}: must be a whole number from 1.")
        threshold = self.early_stopping_threshold
        if threshold < 0 or not math.isfinite(threshold):
            raise ConfigError(f"--early_stopping_threshold {threshold}: must be a finite number from 0.")

    @property
    def asked(self) -> tuple[str, ...]:
        """The metrics by name or file: what was typed, its commas read as several; auto where nothing was."""
        # A file's name may hold blanks and commas.
        parts = (([text] if Path(text).is_file() else _SEPARATORS.split(text)) for text in self.metrics)
        words = [word for part in parts for word in part if word]
        return tuple(dict.fromkeys(words)) or (AUTO,)


def names_file(asked: str) -> bool:
    """Tell whether a value of `--metrics` names a file of the user's, not a metric."""
    return asked.endswith(".py") or "/" in asked or "\\" in asked


def figure_of(metric: Any) -> str | None:
    """Return the figure that a `--metric_for_best_model` names, without `eval_`; None for no metric."""
    return None if metric in (None, "") else str(metric).removeprefix("eval_")


def needs_answers(metric: Any) -> bool:
    """Say whether a `--metric_for_best_model` is known from generated answers alone."""
    return metric not in (None, "", *LOSSES)


def less_is_better(metric: Any) -> bool:
    """Say whether the smaller figure of a `--metric_for_best_model` is the better one, as far as its name tells."""
    return (figure_of(metric) or "").rpartition("_")[2] in LESS_IS_BETTER


def with_implied_answers(values: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return our settings with `predict_with_generate`, where another setting has no meaning without answers.

    Args:
        values: typed, by their flat names, as far as they were given.
        raw: the trainer's, as far as they were given.

    Raises:
        ConfigError: answers are needed, and were turned off.
    """
    metric = raw.get("metric_for_best_model")
    cause = None
    if values.get("metrics"):
        cause = f"--metrics {' '.join(values['metrics'])}"
    elif needs_answers(metric):
        cause = f"--metric_for_best_model {metric}"
    if cause is None:
        return dict(values)
    if values.get("predict_with_generate") is False:
        raise ConfigError(
            f"{cause} scores generated answers, and --predict_with_generate false generates none. Leave "
            "one of them out."
        )
    return {**values, "predict_with_generate": True}


STRATEGIES = ("eval_strategy", "save_strategy")


def faults(scoring: ScoringConfig, raw: Mapping[str, Any]) -> list[str]:
    """Return what is wrong among these settings in one run: names of figures, directions, what stopping early needs.

    Args:
        scoring: of the run.
        raw: the trainer's settings under canonical names; keys may be missing.
    """
    metric = raw.get("metric_for_best_model")
    return [
        *_faults_of_metric(scoring, metric, raw.get("greater_is_better")),
        *_faults_of_stopping(scoring, raw),
        *_faults_of_best(raw),
    ]


def _faults_of_best(raw: Mapping[str, Any]) -> list[str]:
    """Say in our words what transformers refuses in its own: the best of checkpoints that are never evaluated."""
    evaluates, saves = (str(getattr(raw.get(name), "value", raw.get(name))) for name in STRATEGIES)
    if not is_true(raw.get("load_best_model_at_end")) or evaluates in ("steps", "epoch") or saves == "best":
        return []
    return [
        "--load_best_model_at_end needs also: --eval_strategy and --save_strategy alike, both epoch, or both steps "
        "(with --eval_steps and --save_steps)."
    ]


def _faults_of_metric(scoring: ScoringConfig, metric: Any, greater: Any) -> list[str]:
    if not needs_answers(metric):
        return []
    figure = figure_of(metric) or ""
    own = any(map(names_file, scoring.asked))
    if not (own or figure in FIGURES or figure.startswith(OF_PAGES)):
        hint = nearest(figure, FIGURES)
        return [
            f"--metric_for_best_model {metric}: evaluation measures loss and perplexity, and of generated answers "
            f"{', '.join(FIGURES)}, {OF_PAGES}* for OCR pages, or what a --metrics ./my_metric.py gives.{hint}"
        ]
    if not own and greater is not None and greater == less_is_better(metric):
        better = "less" if less_is_better(metric) else "more"
        return [f"--greater_is_better {str(greater).lower()}: of {figure} {better} is better. Leave it out."]
    return []


def _faults_of_stopping(scoring: ScoringConfig, raw: Mapping[str, Any]) -> list[str]:
    patience, threshold = scoring.early_stopping_patience, scoring.early_stopping_threshold
    if patience is None:
        if threshold:
            return [
                f"--early_stopping_threshold {threshold:g} is for --early_stopping_patience: add it, for example 3."
            ]
        return []
    missing = []
    if str(getattr(raw.get("eval_strategy"), "value", raw.get("eval_strategy"))) not in ("steps", "epoch"):
        missing.append("--eval_strategy steps (with --eval_steps) or epoch")
    if not (raw.get("metric_for_best_model") or raw.get("load_best_model_at_end")):
        missing.append("--metric_for_best_model, for example eval_loss or eval_exact_match")
    if not missing:
        return []
    return [f"--early_stopping_patience {patience} needs also: {'; '.join(missing)}."]
