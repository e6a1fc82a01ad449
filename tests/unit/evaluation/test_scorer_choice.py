"""Names and directions of figures that are known before anything is loaded are those of the metrics themselves."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainingArguments

from support.rows import write_uneven_rows
from vlm_lora.config.scoring import FIGURES, LOGGING_STEPS, OF_PAGES, SAVE_STEPS, less_is_better
from vlm_lora.config.scoring import METRICS as NAMES
from vlm_lora.config.sources import from_settings
from vlm_lora.data.dataset import load_splits
from vlm_lora.errors import ConfigError
from vlm_lora.evaluation.scorer import scorer_for
from vlm_lora.metrics.table import METRICS
from vlm_lora.training.arguments import DEFAULT_ARGUMENTS

TABLE = {figure: greater for metric in METRICS.values() for figure, greater in metric.figures.items()}


def test_the_configuration_knows_every_figure_and_its_direction() -> None:
    assert set(FIGURES) == {figure for figure in TABLE if not figure.startswith(OF_PAGES)}
    assert set(NAMES) == set(METRICS)
    assert {figure: not less_is_better(figure) for figure in TABLE} == TABLE


def test_the_configuration_knows_the_steps_that_nobody_gave() -> None:
    arguments = {field.name: field.default for field in fields(TrainingArguments)}
    assert arguments["save_steps"] == SAVE_STEPS
    assert arguments["eval_steps"] is None, "then it is --logging_steps"
    assert DEFAULT_ARGUMENTS["logging_steps"] == LOGGING_STEPS


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_uneven_rows(tmp_path_factory.mktemp("rows") / "data", rows=1, validation=3)


def chosen(data: Path, **settings: Any) -> tuple[Any, Any]:
    """Return the scorer, and the arguments as they are left."""
    run = from_settings({"dataset_name": str(data), **settings}, environ={})
    validation = load_splits(run.data, need_train=False, need_validation=True).validation
    arguments = SimpleNamespace(metric_for_best_model=run.raw.get("metric_for_best_model"), greater_is_better=None)
    return scorer_for(run, arguments, validation), arguments


def test_the_best_ones_figure_is_among_the_scores(data: Path) -> None:
    assert chosen(data)[0] is None
    scorer, arguments = chosen(data, metric_for_best_model="eval_anls")
    assert "anls" in scorer.names
    assert arguments.greater_is_better is True
    assert "anls" not in chosen(data, metrics="auto")[0].names, "the control: it is not among the data's own"


def test_a_figure_that_the_data_cannot_have_is_refused(data: Path) -> None:
    with pytest.raises(ConfigError, match="--metric_for_best_model box_f1: no answer of the data has boxes"):
        chosen(data, metric_for_best_model="eval_box_f1")


def test_directions_of_ones_own_metric(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def score(prediction, references):\n    return float(prediction in references)\n", encoding="utf-8"
    )
    scorer, arguments = chosen(data, metrics=str(file), metric_for_best_model="mine")
    assert "mine" in scorer.names
    assert arguments.greater_is_better is True
    with pytest.raises(ConfigError, match="--greater_is_better false: of mine more is better"):
        chosen(data, metrics=str(file), metric_for_best_model="mine", greater_is_better=False)
    with pytest.raises(ConfigError, match=r"--metric_for_best_model yours: the metrics of this run give .*mine"):
        chosen(data, metrics=str(file), metric_for_best_model="yours")
