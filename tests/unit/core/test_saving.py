"""What was saved is looked at: empty or missing tensors are an error, never a file that loads as nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vlm_lora.errors import ConfigError, ModelError
from vlm_lora.training.checkpoints.saving import check_saved, saved_shapes
from vlm_lora.training.engine import EngineCheck


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def test_complete_weights_pass(tmp_path: Path) -> None:
    save_file(model().state_dict(), tmp_path / "model.safetensors")
    check_saved(tmp_path, model())
    assert saved_shapes(tmp_path, "model*.safetensors")["0.weight"] == (4, 3)


def test_sharded_files_count_together(tmp_path: Path) -> None:
    state = model().state_dict()
    save_file({"0.weight": state["0.weight"], "0.bias": state["0.bias"]}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(ModelError, match="16 numbers were saved of the 26"):
        check_saved(tmp_path, model())
    save_file({"1.weight": state["1.weight"], "1.bias": state["1.bias"]}, tmp_path / "model-00002-of-00002.safetensors")
    check_saved(tmp_path, model())


def test_an_empty_tensor_is_found(tmp_path: Path) -> None:
    """What ZeRO-3 leaves in place of a weight that lives on several processes."""
    save_file({**model().state_dict(), "1.weight": torch.empty(0)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"1 of 4 saved tensors are empty, 1\.weight first"):
        check_saved(tmp_path, model())


def check_engine(wrapped: nn.Module, *, deepspeed: bool = False, fsdp: bool = False, processes: int = 2) -> None:
    trainer: Any = SimpleNamespace(
        model_wrapped=wrapped,
        is_deepspeed_enabled=deepspeed,
        is_fsdp_enabled=fsdp,
        accelerator=SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3))),
    )
    EngineCheck(trainer).on_train_begin(SimpleNamespace(world_size=processes), None, None)


def test_an_engine_that_is_not_the_one_asked_for_stops_the_run() -> None:
    class DistributedDataParallel(nn.Sequential):
        pass

    class DeepSpeedEngine(nn.Sequential):
        pass

    check_engine(DistributedDataParallel())
    check_engine(DeepSpeedEngine(), deepspeed=True)
    check_engine(nn.Sequential(), processes=1)
    check_engine(torch.compile(DistributedDataParallel(nn.Linear(1, 1)), backend="eager"))  # type: ignore[arg-type]
    for wrong in (
        lambda: check_engine(torch.compile(nn.Sequential(nn.Linear(1, 1)), backend="eager")),  # type: ignore[arg-type]
        lambda: check_engine(DistributedDataParallel(), deepspeed=True),
        lambda: check_engine(DistributedDataParallel(), fsdp=True),
        lambda: check_engine(nn.Sequential()),
    ):
        with pytest.raises(ConfigError, match="was asked for on 2 processes"):
            wrong()
