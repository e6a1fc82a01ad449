"""Save, kill, resume on the simulated device, on both roads: bit for bit the run that was never killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from support.rows import write_uneven_rows
from support.sealed import seal_again
from support.stacks import RECORDER, Road, both_roads, on_hpu, run_words


@both_roads
def test_killed_and_resumed_equals_never_killed(
    road: Road, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Two epochs of five steps; killed in the second epoch, one step after a checkpoint."""
    data = write_uneven_rows(tmp_path / "data", rows=10)
    settings = {
        "do_train": True,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "lora_dropout": 0.1,
        "save_strategy": "steps",
        "save_steps": 3,
        "validation_fraction": 0,
    }

    def run(name: str, *more: str, kill_at: int | None = None) -> int:
        words = [*on_hpu(model_folder("gemma3"), data, tmp_path / name, **settings), *more]
        (tmp_path / "runs.json").write_text(json.dumps([words]))
        kill = {} if kill_at is None else {"RECORDER_KILL_AT_STEP": str(kill_at)}
        done = run_words(
            [RECORDER, tmp_path / "report.json", tmp_path / "runs.json"],
            python=road.python,
            variables={**road.variables, **kill},
        )
        return done.returncode

    assert run("whole") == 0
    assert run("killed", kill_at=7) == -9
    assert not (tmp_path / "killed" / "adapter_model.safetensors").exists()
    assert (tmp_path / "killed" / "checkpoint-6").is_dir()
    shutil.copytree(tmp_path / "killed", tmp_path / "control")
    assert run("killed", "--resume_from_checkpoint", "true") == 0
    name = "adapter_model.safetensors"
    assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # The control: with an earlier state of the optimizer, and none of the generators, it goes on differently.
    control = tmp_path / "control"
    shutil.copy(control / "checkpoint-3" / "optimizer.pt", control / "checkpoint-6")
    (control / "checkpoint-6" / "rng_state.pth").unlink()
    seal_again(control / "checkpoint-6")
    assert run("control", "--resume_from_checkpoint", "true") == 0
    assert (tmp_path / "control" / name).read_bytes() != (tmp_path / "whole" / name).read_bytes()
