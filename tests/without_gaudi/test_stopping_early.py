"""A run that gets worse is stopped, and the best checkpoint is the earlier one, by exact match."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.reading import BASE, write_reading_rows
from support.runs import logged, script_flags
from vlm_lora import pipeline
from vlm_lora.config.sources import parse
from vlm_lora.training.observers import EndReason, RunObserver

FLAGS: dict[str, object] = {
    "do_train": True,
    "do_eval": True,
    "max_steps": 6,
    # The first step of the warm-up has a rate of 0 and leaves the model, the second ruins it.
    "learning_rate": 5.0,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 4,
    "per_device_train_batch_size": 2,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "max_new_tokens": 8,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_exact_match",
}
ADAPTER = "adapter_model.safetensors"


class End(RunObserver):
    """Notes how a run ended, and what its evaluations measured."""

    def __init__(self) -> None:
        self.reason: EndReason | None = None
        self.said = ""
        self.shares: list[float] = []

    def evaluated(self, step: int, figures: Any) -> None:
        self.shares.append(figures["eval_exact_match"])

    def ended(self, reason: EndReason, said: str) -> None:
        self.reason, self.said = reason, said


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reading_rows(tmp_path_factory.mktemp("reading") / "data", rows=4, validation=6)


def trained(data: Path, output: Path, **more: object) -> End:
    end = End()
    pipeline.train(parse(script_flags(BASE, data, output, **{**FLAGS, **more}), environ={}), observers=[end])
    return end


def steps_of(output: Path) -> Any:
    return json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]


def test_it_is_stopped_and_the_best_one_is_kept(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    end = trained(data, output, early_stopping_patience=2)
    assert steps_of(output) == 3
    assert end.reason is EndReason.STOPPED_EARLY
    assert "in 2 evaluations eval_exact_match was not better than" in end.said
    assert "at step 1" in end.said
    first, *worse, kept = end.shares
    assert first == kept > 0.3, "the weights that are kept are those of the best checkpoint"
    assert max(worse) < first
    assert logged(output, "eval_exact_match") == end.shares[:-1]
    weights = (output / ADAPTER).read_bytes()
    assert weights == (output / "checkpoint-1" / ADAPTER).read_bytes()
    assert weights != (output / "checkpoint-3" / ADAPTER).read_bytes()
    # Once more: it was stopped, and is not trained on.
    again = trained(data, output, early_stopping_patience=2, resume_from_checkpoint="true")
    assert again.reason is EndReason.NOTHING_LEFT
    assert "was stopped early" in again.said
    assert (output / ADAPTER).read_bytes() == weights


def test_a_resumed_run_counts_on(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert trained(data, output, early_stopping_patience=3, max_steps=2).reason is EndReason.FINISHED
    more = {"early_stopping_patience": 2, "resume_from_checkpoint": output / "checkpoint-2"}
    assert trained(data, output, **more).reason is EndReason.STOPPED_EARLY
    assert steps_of(output) == 3, "the evaluation of step 2 counts"


def test_without_patience_it_goes_on(data: Path, tmp_path: Path) -> None:
    """The control; and what is better by less than the threshold is not better."""
    assert trained(data, tmp_path / "out", max_steps=4).reason is EndReason.FINISHED
    assert steps_of(tmp_path / "out") == 4
    lossy = {"metric_for_best_model": "eval_loss", "learning_rate": 1e-4, "predict_with_generate": True}
    lossy |= {"early_stopping_patience": 1, "early_stopping_threshold": 100.0}
    assert trained(data, tmp_path / "loss", **lossy).reason is EndReason.STOPPED_EARLY
    assert steps_of(tmp_path / "loss") == 2
