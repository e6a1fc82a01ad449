"""The audit of gradients: silent where all is well, and loud for each way in which training can be void."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerState

from support.tiny import available
from support.tiny.batches import build_batch, load_plainly, next_token_loss
from vlm_lora.config.run_config import TuningConfig
from vlm_lora.errors import ModelError
from vlm_lora.model.audit import GradientAudit, describe_trainable
from vlm_lora.model.families import family_of
from vlm_lora.model.parts import find_parts
from vlm_lora.model.tuning import apply_tuning

NAMES = available()


def _tuned(folder: Path, **settings: Any) -> tuple[Any, Any]:
    processor, model = load_plainly(folder)
    tuned = apply_tuning(model, family_of(model.config), TuningConfig(lora_rank=2, **settings))
    return processor, tuned.train()


def _step(model: Any, batch: dict[str, torch.Tensor]) -> None:
    next_token_loss(model, batch).backward()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("settings", [{"lora_targets": "all"}, {"peft_method": "none", "freeze_vision": False}])
def test_a_step_with_an_image_passes(
    name: str, settings: dict[str, Any], model_folder: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    processor, model = _tuned(model_folder(name), **settings)
    audit = GradientAudit(model)
    audit.start()
    _step(model, build_batch(processor))
    with caplog.at_level(logging.INFO):
        audit.check()
    assert "all" in caplog.text
    assert "got a gradient" in caplog.text


@pytest.mark.parametrize("name", [name for name in NAMES if name != "paligemma"])
def test_a_text_only_first_step_waits_for_an_image(name: str, model_folder: Callable[[str], Path]) -> None:
    processor, model = _tuned(model_folder(name), lora_targets="all")
    audit = GradientAudit(model)
    audit.start()
    _step(model, build_batch(processor, picture=None))
    audit.check()
    model.zero_grad()
    _step(model, build_batch(processor))
    audit.check()


@pytest.mark.parametrize("targets", ["all", "language"])
def test_a_detached_part_fails(targets: str, model_folder: Callable[[str], Path]) -> None:
    processor, model = _tuned(model_folder("llava"), lora_targets=targets)
    base = model.get_base_model()
    broken = "model.multi_modal_projector" if targets == "all" else "model.language_model.layers.0"

    def detach(module: Any, args: Any, output: Any) -> Any:
        return output[0].detach() if isinstance(output, tuple) else output.detach()

    base.get_submodule(broken).register_forward_hook(detach)
    audit = GradientAudit(model)
    audit.start()
    _step(model, build_batch(processor))
    with pytest.raises(ModelError, match=r"trainable tensors of the .* part got no gradient in the first step"):
        audit.check()


def test_a_tower_that_never_sees_the_second_step_s_gradient_still_fails(
    model_folder: Callable[[str], Path],
) -> None:
    """The image comes in the second step, and its features are detached: found then, not excused."""
    processor, model = _tuned(model_folder("qwen2_5_vl"), lora_targets="all")
    base = model.get_base_model()
    base.get_submodule("model.visual.blocks.0").register_forward_hook(lambda m, a, out: out.detach())
    audit = GradientAudit(model)
    audit.start()
    _step(model, build_batch(processor, picture=None))
    audit.check()
    _step(model, build_batch(processor))
    with pytest.raises(ModelError, match="of the vision part"):
        audit.check()


def test_a_frozen_tensor_with_a_gradient_fails(model_folder: Callable[[str], Path]) -> None:
    processor, model = _tuned(model_folder("qwen2_5_vl"))
    audit = GradientAudit(model)
    audit.start()
    _step(model, build_batch(processor))
    frozen = next(p for p in model.parameters() if not p.requires_grad)
    frozen.grad = torch.zeros_like(frozen)
    with pytest.raises(ModelError, match=r"frozen tensors got a gradient"):
        audit.check()


def test_a_run_without_images_says_that_the_vision_path_never_trained(
    model_folder: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    processor, model = _tuned(model_folder("llava"), lora_targets="all")
    audit = GradientAudit(model)
    state = TrainerState(global_step=5)
    audit.on_train_begin(None, state, None, model=model)
    audit.on_train_end(None, state, None)
    assert not caplog.text, "no step was made"
    audit.on_train_begin(None, state, None, model=model)
    _step(model, build_batch(processor, picture=None))
    audit.on_pre_optimizer_step(None, state, None)
    state.global_step += 1
    audit.on_train_end(None, state, None)
    assert "No training batch held an image" in caplog.text


def test_the_hooks_are_gone_after_the_check(model_folder: Callable[[str], Path]) -> None:
    processor, model = _tuned(model_folder("llava"))
    audit = GradientAudit(model)
    audit.start()
    _step(model, build_batch(processor))
    audit.check()
    assert not any(p._backward_hooks for p in model.parameters() if p.requires_grad)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_the_table_counts_each_part(model_folder: Callable[[str], Path]) -> None:
    _, model = _tuned(model_folder("gemma3"))
    table = describe_trainable(model, find_parts(model))
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert f"{trainable:,}" in table
    assert f"{total:,}" in table
    assert [line.split()[0] for line in table.splitlines()] == [
        "part", "language", "vision", "projector", "embeddings", "total",
    ]  # fmt: skip
