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
METRICS = (
    *("exact_match", "relaxed_accuracy", "anls", "vqa_accuracy", "cer", "wer", "token_f1", "bleu", "rouge_l", "json"),
    *("boxes", "box_map_in_order", "ocr_page"),
)
"""Names that `--metrics` takes, in addition to those of figures."""
OF_PAGES = "ocr_"
"""How the figures of OCR pages begin."""
LESS_IS_BETTER = frozenset({"cer", "wer", "loss", "perplexity"})

_ABOUT = re.compile(
    r"samples|answers|rows|runtime|(samples|steps|tokens)_per_second|supervised_tokens|by_(task|source)"
    r"|(model_preparation|jit_compilation|end)_time|graph_compliation_duration|mem_[cg]pu_\w+|start_.*"
    r"|.*_interval|.*_(low|high)_95"
)
"""What an evaluation says besides what it found, without `eval_`: how it went, of how many rows, and how sure it is."""

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
        if self.metrics and not self._words:
            raise ConfigError(
                f"--metrics {' '.join(self.metrics)}: names no metric. Type {AUTO}, or names such as anls or "
                f"{METRICS[0]},{METRICS[6]}."
            )

    @property
    def asked(self) -> tuple[str, ...]:
        """The metrics by name or file: what was typed, its commas read as several; auto where nothing was."""
        return self._words or (AUTO,)

    @property
    def _words(self) -> tuple[str, ...]:
        # A file's name may hold blanks and commas.
        parts = (([text] if Path(text).is_file() else _SEPARATORS.split(text)) for text in self.metrics)
        return tuple(dict.fromkeys(word for part in parts for word in part if word))


def is_score(name: str) -> bool:
    """Say whether a figure of an evaluation scores answers, by its name in logs and results; losses score none."""
    return name.startswith("eval_") and not is_taken(name.removeprefix("eval_"))


def is_taken(figure: str) -> bool:
    """Say whether an evaluation has a figure of this name (without `eval_`) that is no score of its answers."""
    return figure in LOSSES or _ABOUT.fullmatch(figure) is not None


def metric_word(asked: str) -> str:
    """Return a name that `--metrics` was given as the tables have it: dashes and `eval_` make no difference."""
    return asked.removeprefix("eval_").replace("-", "_")


def unknown_metric(asked: str) -> str | None:
    """Say what is wrong with a value of `--metrics`, as far as its name tells; None where nothing is."""
    flag = f"--metrics {asked}"
    if names_file(asked):
        path = metric_file(asked)
        if path.is_file() and path.suffix == ".py":
            return None
        return (
            f"{flag}: a metric of yours is a Python file, and {path} is none. Nothing is fetched from the Hub: to use "
            "a metric of there, name its downloaded file."
        )
    if (word := metric_word(asked)) in (AUTO, *METRICS, *FIGURES) or word.startswith(OF_PAGES):
        return None  # the figures of OCR pages are checked where they are counted
    return (
        f"{flag}: there is no such metric.{nearest(asked, (*METRICS, *FIGURES, AUTO))} There are {', '.join(METRICS)}, "
        f"{AUTO}, and a Python file of yours such as ./my_metric.py."
    )


def metric_file(asked: str) -> Path:
    """Return where a metric of the user's lies: the file, or that in a folder as `evaluate` has its modules."""
    path = Path(asked).expanduser().absolute()
    return path / f"{path.name}.py" if path.is_dir() else path


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
SAVE_STEPS, LOGGING_STEPS = 500, 10
"""`--save_steps` and `--logging_steps` where none is given; `--eval_steps` is the latter then."""


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
    """Say in our words what transformers refuses in its own: the best of checkpoints that are not evaluated."""
    evaluates, saves = (_strategy(raw, name) for name in STRATEGIES)
    loads = is_true(raw.get("load_best_model_at_end"))
    if saves == "best":
        missing = [] if evaluates in ("steps", "epoch") else ["--eval_strategy steps (with --eval_steps) or epoch"]
        if not (raw.get("metric_for_best_model") or loads):
            missing.append("--metric_for_best_model, for example eval_loss or eval_exact_match")
        return [f"--save_strategy best needs also: {'; '.join(missing)}."] if missing else []
    if not loads:
        return []
    if evaluates not in ("steps", "epoch") or evaluates != saves:
        found = "" if evaluates == "no" else f" Here they are {evaluates} and {saves}."
        return [
            "--load_best_model_at_end needs also: --eval_strategy and --save_strategy alike, both epoch, or both steps "
            f"(with --eval_steps and --save_steps).{found}"
        ]
    each, saved = (_steps(raw, name) for name in ("eval_steps", "save_steps"))
    if evaluates == "epoch" or not each or not saved or _goes_into(each, saved):
        return []
    return [
        f"--load_best_model_at_end with --eval_steps {each:g} and --save_steps {saved:g}: a checkpoint must be "
        f"evaluated when it is saved, so --save_steps must be a multiple of --eval_steps. Type --save_steps {each:g}."
    ]


def _strategy(raw: Mapping[str, Any], name: str) -> str:
    """Return when a run evaluates or saves, as transformers does without a word of the user's."""
    value = raw.get(name)
    return str(getattr(value, "value", value) or {"eval_strategy": "no", "save_strategy": "steps"}[name])


def _steps(raw: Mapping[str, Any], name: str) -> float | None:
    """Return a number of steps, or a share of all steps; None where it cannot be read, which others say."""
    value = raw.get(name)
    if value is None:
        value = SAVE_STEPS if name == "save_steps" else raw.get("logging_steps", LOGGING_STEPS)
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _goes_into(each: float, saved: float) -> bool:
    """Say whether every checkpoint is evaluated; below 1 both are shares of all steps, which have no other to go by."""
    if each < 1 and saved < 1:
        return round(saved * 1e6) % round(each * 1e6) == 0
    return each >= 1 and saved >= 1 and saved % each == 0


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
    if _strategy(raw, "eval_strategy") not in ("steps", "epoch"):
        missing.append("--eval_strategy steps (with --eval_steps) or epoch")
    if not (raw.get("metric_for_best_model") or raw.get("load_best_model_at_end")):
        missing.append("--metric_for_best_model, for example eval_loss or eval_exact_match")
    if not missing:
        return []
    return [f"--early_stopping_patience {patience} needs also: {'; '.join(missing)}."]
