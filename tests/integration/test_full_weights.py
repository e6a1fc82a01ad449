"""Full weights: a resumed run goes on from its checkpoint's weights, and the best checkpoint is what is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support.rows import write_uneven_rows
from support.runs import capture_trainer, logged, run
from vlm_lora.training.trainer import VlmTrainerMixin

FLAGS = {
    "peft_method": "none",
    "do_train": True,
    "max_steps": 4,
    "learning_rate": 1e-3,
    "save_strategy": "steps",
    "save_steps": 2,
}


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_resumed_equals_never_stopped(
    name: str, model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_uneven_rows(tmp_path / "data", rows=6, validation=2)
    run(model_folder(name), data, tmp_path / "whole", **FLAGS)
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    run(model_folder(name), data, tmp_path / "resumed", **FLAGS, resume_from_checkpoint=checkpoint)
    assert logged(tmp_path / "resumed", "loss") == logged(tmp_path / "whole", "loss")
    whole, resumed = (load_file(tmp_path / folder / "model.safetensors") for folder in ("whole", "resumed"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    # The control: what the base class alone does with the published names.
    monkeypatch.setattr(VlmTrainerMixin, "_has_plain_weights", False)
    monkeypatch.setattr("transformers.trainer.Trainer._issue_warnings_after_load", lambda *_: None)
    run(model_folder(name), data, tmp_path / "control", **FLAGS, resume_from_checkpoint=checkpoint)
    assert logged(tmp_path / "control", "loss") != logged(tmp_path / "whole", "loss")


def test_the_best_checkpoint_is_loaded_at_the_end(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss falls in every step; with the highest called the best, that is the first checkpoint."""
    trainers = capture_trainer(monkeypatch)
    data = write_uneven_rows(tmp_path / "data", rows=6) / "train.jsonl"
    best = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    best |= {"metric_for_best_model": "eval_loss", "greater_is_better": True}
    run(model_folder("llava"), data, tmp_path / "out", **{**FLAGS, **best}, validation_name=data)
    losses = logged(tmp_path / "out", "eval_loss")
    assert losses[0] == max(losses)
    assert trainers[0].state.best_model_checkpoint == str(tmp_path / "out" / "checkpoint-1")
    kept = load_file(tmp_path / "out" / "model.safetensors")
    best_weights = load_file(tmp_path / "out" / "checkpoint-1" / "model.safetensors")
    assert all(torch.equal(kept[key], best_weights[key]) for key in best_weights)
    last = load_file(tmp_path / "out" / "checkpoint-4" / "model.safetensors")
    assert not all(torch.equal(kept[key], last[key]) for key in last)
