"""Which checkpoint counts as the best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from vlm_lora.training.arguments import default_arguments


@pytest.mark.parametrize("metric", ["perplexity", "eval_perplexity", "loss", "eval_loss"])
def test_the_least_loss_and_perplexity_are_best(metric: str, tmp_path: Path) -> None:
    typed: dict[str, Any] = {"metric_for_best_model": metric}
    own = {"output_dir": str(tmp_path), "use_cpu": True, **typed}
    chosen = TrainingArguments(**{**default_arguments(TrainingArguments, typed, lora=True), **own})
    assert chosen.greater_is_better is False
    # Control: transformers by itself knows it of losses alone.
    assert TrainingArguments(**{**own, "report_to": "none"}).greater_is_better is ("perplexity" in metric)


def test_what_is_typed_counts(tmp_path: Path) -> None:
    typed = {"metric_for_best_model": "eval_loss", "greater_is_better": True}
    values = {**default_arguments(TrainingArguments, typed, lora=True), "output_dir": str(tmp_path), **typed}
    assert TrainingArguments(**values).greater_is_better is True
    assert "greater_is_better" not in default_arguments(TrainingArguments, {}, lora=True)
