"""Changed settings under GaudiTrainer, with the vendor's fused optimizer: refused, or used from the first step on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from support.rows import write_uneven_rows
from support.runs import logged
from support.stacks import on_hpu
from vlm_lora.cli.main import run_script


def test_rates_and_steps(
    model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_uneven_rows(tmp_path / "data", rows=4, validation=2)
    settings = tmp_path / "gaudi_config.json"
    settings.write_text(json.dumps({"use_fused_adam": True, "use_fused_clip_norm": True}))
    flags = {"do_train": True, "max_steps": 2, "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 1}
    flags |= {"gaudi_config_name": settings, "log_level": "warning"}
    assert run_script(on_hpu(model_folder("gemma3"), data, tmp_path / "out", **flags)) == 0
    again = {**flags, "resume_from_checkpoint": tmp_path / "out" / "checkpoint-1", "max_steps": 3}
    changes: dict[str, object] = {"learning_rate": 6e-3, "weight_decay": 0.25, "bf16": False}
    assert run_script(on_hpu(model_folder("gemma3"), data, tmp_path / "other", **{**again, **changes})) == 1
    said = capsys.readouterr().err
    assert "--bf16 true in the checkpoint, false now\n" in said
    assert "add: --allow_changed bf16 dtype learning_rate weight_decay\n" in said
    assert not (tmp_path / "other").exists()
    changes = {"learning_rate": 6e-3, "weight_decay": 0.25, "allow_changed": "learning_rate,weight_decay"}
    assert run_script(on_hpu(model_folder("gemma3"), data, tmp_path / "other", **{**again, **changes})) == 0
    assert "laid over 3 steps: the rate of step 2 is 0.004 instead of 0.0005." in capsys.readouterr().err
    assert logged(tmp_path / "other", "learning_rate") == pytest.approx([1e-3, 4e-3, 2e-3])
    group = torch.load(tmp_path / "other" / "checkpoint-3" / "optimizer.pt")["param_groups"][0]
    assert (group["initial_lr"], group["weight_decay"]) == (6e-3, 0.25)
