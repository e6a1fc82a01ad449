"""A run that has made all its steps and is resumed: it stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from support.rows import write_uneven_rows
from support.runs import capture_trainer, logged, run, script_flags
from vlm_lora.cli.main import run_script

ADAPTER = "adapter_model.safetensors"
FLAGS = {
    "do_train": True,
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "save_strategy": "steps",
    "save_steps": 1,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
}
"""Two steps of an epoch's three: the base class would make the third."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_uneven_rows(tmp_path / "data", rows=6, validation=3)


def test_it_keeps_its_weights_and_figures(
    model_folder: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "out"
    first = run(model_folder("gemma3"), data, output, **FLAGS)
    weights, losses = (output / ADAPTER).read_bytes(), logged(output, "loss")
    assert first["train_loss"] > 0
    again = {**FLAGS, "log_level": "warning", "resume_from_checkpoint": "true"}
    capsys.readouterr()
    trainers = capture_trainer(monkeypatch)
    measured = run(model_folder("gemma3"), data, output, **again, do_eval=True)
    said = capsys.readouterr().err
    assert "checkpoint-2 has made 2 of 2 steps: nothing is left to train." in said
    assert "never trained" not in said
    assert (output / ADAPTER).read_bytes() == weights
    assert logged(output, "loss") == losses
    assert measured.items() >= first.items()
    assert measured["eval_perplexity"] > 1
    assert [trainer.is_in_train for trainer in trainers] == [False], "--bf16_full_eval has no effect inside training"
    # The control: one step more is another adapter.
    run(model_folder("gemma3"), data, output, **{**again, "max_steps": 3})
    assert (output / ADAPTER).read_bytes() != weights


def test_a_run_of_no_epochs_is_no_finished_one(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none = {"do_train": True, "num_train_epochs": 0, "log_level": "warning"}
    assert "train_loss" in run(model_folder("gemma3"), data, tmp_path / "out", **none)
    assert "nothing is left to train" not in capsys.readouterr().err


def test_a_training_that_made_no_step_saves_nothing(
    model_folder: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last defence: what would have refused these settings before is taken out."""
    monkeypatch.setattr("vlm_lora.pipeline.check_first_step", lambda *_, **__: None)
    flags = {"do_train": True, "max_steps": 2, "per_device_train_batch_size": 100, "dataloader_drop_last": True}
    assert run_script(script_flags(model_folder("gemma3"), data, tmp_path / "out", **flags)) == 1
    assert "Nothing was trained: 2 steps were to be made, and the data gave no batch" in capsys.readouterr().err
    assert not (tmp_path / "out" / ADAPTER).exists()


def test_what_was_cut_short_after_the_last_step_is_written(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    first = run(model_folder("gemma3"), data, output, **FLAGS)
    weights = (output / ADAPTER).read_bytes()
    for name in (ADAPTER, "train_results.json", "all_results.json", "trainer_state.json"):
        (output / name).unlink()
    again = run(model_folder("gemma3"), data, output, **FLAGS, resume_from_checkpoint="true")
    assert (output / ADAPTER).read_bytes() == weights
    assert again["epoch"] == first["epoch"]
    assert again["train_loss"] == pytest.approx(first["train_loss"]), "its checkpoint keeps the sum"
    assert json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))["global_step"] == 2


def test_an_earlier_checkpoint_has_not_the_later_ones_figures(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    whole = run(model_folder("gemma3"), data, output, **FLAGS)["train_loss"]
    run(
        model_folder("gemma3"),
        data,
        output,
        **{**FLAGS, "max_steps": 1, "resume_from_checkpoint": output / "checkpoint-1"},
    )
    assert (output / ADAPTER).read_bytes() == (output / "checkpoint-1" / ADAPTER).read_bytes()
    figures = json.loads((output / "train_results.json").read_text(encoding="utf-8"))
    first = logged(output, "loss")[0]
    assert figures["train_loss"] == pytest.approx(first, rel=1e-4), "4.55 logs it rounded"
    assert figures["train_loss"] != pytest.approx(whole, rel=1e-4), "that of both steps"
    assert figures["epoch"] == pytest.approx(1 / 3)


def test_the_best_checkpoint_is_loaded_as_at_any_end(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    """With a rate that ruins the model the first checkpoint is the best one."""
    output = tmp_path / "out"
    best = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "learning_rate": 10.0}
    best["group_by_length"] = False  # an order in which that holds
    run(model_folder("gemma3"), data, output, **{**FLAGS, **best})
    weights = (output / ADAPTER).read_bytes()
    assert (
        weights == (output / "checkpoint-1" / ADAPTER).read_bytes() != (output / "checkpoint-2" / ADAPTER).read_bytes()
    )
    run(model_folder("gemma3"), data, output, **{**FLAGS, **best}, resume_from_checkpoint="true")
    assert (output / ADAPTER).read_bytes() == weights
