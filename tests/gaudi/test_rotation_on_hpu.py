"""Rotation on Gaudi's trainer: the run's list decides, never the vendor's own counting of folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from support.rows import write_uneven_rows
from support.runs import capture_trainer
from support.stacks import on_hpu
from vlm_lora.cli.main import run_script


def test_only_the_runs_own_checkpoints_are_counted_and_removed(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With limit 1 and a best that is not the newest; the vendor's end would remove all but the best."""
    data, output = write_uneven_rows(tmp_path / "data", rows=6, validation=2), tmp_path / "out"
    for name in ("checkpoint-best", "checkpoint-100"):
        (output / name).mkdir(parents=True)
        (output / name / "adapter_model.safetensors").write_text("theirs")
    trainers = capture_trainer(monkeypatch)
    settings = {
        "do_train": True,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "greater_is_better": False,
        "use_lazy_mode": True,
    }
    assert run_script(on_hpu(model_folder("gemma3"), data, output, **settings)) == 0
    assert "GaudiTrainer" in [base.__name__ for base in type(trainers[0]).__mro__]
    assert json.loads((output / "run_files.json").read_text())["checkpoints"] == ["checkpoint-1", "checkpoint-3"]
    folders = {path.name for path in output.glob("checkpoint-*")}
    assert folders == {"checkpoint-1", "checkpoint-3", "checkpoint-best", "checkpoint-100"}
    for name in ("checkpoint-best", "checkpoint-100"):
        assert (output / name / "adapter_model.safetensors").read_text() == "theirs"
    # The control: the vendor's own rotation, were it asked, would take them.
    trainers[0].args.save_total_limit = 1
    trainers[0]._rotate_checkpoints(use_mtime=False, output_dir=str(output))
    assert len(list(output.glob("checkpoint-*"))) < len(folders)
