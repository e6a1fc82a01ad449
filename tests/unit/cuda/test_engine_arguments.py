"""What the CUDA adapter tells DeepSpeed and FSDP."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vlm_lora.errors import ConfigError
from vlm_lora_torch.engines import asked, engine_arguments, shard_layers, switched


def test_deepspeed_on_a_machine_without_gpu_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # with it accelerate silently runs DDP
    arguments = engine_arguments({"deepspeed": "zero2"}, on_card=False)
    assert arguments["deepspeed"]["zero_optimization"]["stage"] == 2
    assert os.environ["DS_ACCELERATOR"] == "cpu"
    assert "ACCELERATE_USE_CPU" not in os.environ


def test_deepspeed_and_the_cpu_on_a_machine_with_gpus_contradict_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="--use_cpu and --deepspeed"):
        engine_arguments({"deepspeed": "zero2", "use_cpu": True}, on_card=False)


def test_without_deepspeed_nothing_is_set() -> None:
    assert engine_arguments({"deepspeed": None}, on_card=True) == {}


def test_a_launchers_wish_counts_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not asked("fsdp", {})
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert asked("fsdp", {})
    assert not asked("deepspeed", {})


@pytest.mark.parametrize(
    ("typed", "meant"), [("true", True), (True, True), ("false", ""), ("full_shard", "full_shard")]
)
def test_the_switch_of_fsdp(typed: Any, meant: Any) -> None:
    assert switched(typed) == meant
    assert engine_arguments({"fsdp": typed}, on_card=True) == {"fsdp": meant}


def test_layers_are_named_to_a_launchers_fsdp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    shard_layers(SimpleNamespace(fsdp_plugin_args=None), ["Layer"])
    assert os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] == "Layer"
