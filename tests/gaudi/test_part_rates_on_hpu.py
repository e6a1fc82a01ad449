"""A rate per part under GaudiTrainer, with the vendor's fused optimizer too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from support.rows import write_uneven_rows
from support.runs import capture_trainer, logged
from support.stacks import on_hpu
from vlm_lora.cli.main import run_script
from vlm_lora.model.parts import find_parts


@pytest.mark.parametrize("fused", [True, False])
def test_groups_rates_and_resume(
    fused: bool, model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = capture_trainer(monkeypatch)
    data = write_uneven_rows(tmp_path / "data", rows=4, validation=2)
    settings = tmp_path / "gaudi_config.json"
    settings.write_text(json.dumps({"use_fused_adam": fused, "use_fused_clip_norm": False}))
    flags = {
        "do_train": True,
        "max_steps": 4,
        "peft_method": "none",
        "freeze_vision": False,
        "bf16": False,
        "gaudi_config_name": settings,
        "learning_rate": 1e-3,
        "vision_learning_rate": 2e-2,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    assert run_script(on_hpu(model_folder("llava"), data, tmp_path / "whole", **flags)) == 0
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    again = {**flags, "resume_from_checkpoint": checkpoint}
    assert run_script(on_hpu(model_folder("llava"), data, tmp_path / "again", **again)) == 0
    assert logged(tmp_path / "again", "loss") == logged(tmp_path / "whole", "loss")
    assert logged(tmp_path / "whole", "learning_rate_vision") != logged(tmp_path / "whole", "learning_rate")
    trainer = trainers[0]
    kind = type(trainer.optimizer.optimizer)
    assert (kind.__name__ == "FusedAdamW") == fused
    parts = find_parts(trainer.model)
    rates = {id(p): group["initial_lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == (2e-2 if parts.part_of(name) == "vision" else 1e-3), name
    whole, resumed = (trainers[number].model.state_dict() for number in (0, 1))
    assert all(torch.equal(whole[name].cpu(), resumed[name].cpu()) for name in whole)
