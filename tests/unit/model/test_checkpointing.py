"""Checkpointing changes memory and nothing else, and leaves the frozen tower alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from support.tiny import available
from support.tiny.batches import build_batch, load_plainly, next_token_loss
from vlm_lora.compat import IS_5
from vlm_lora.config.run_config import TuningConfig
from vlm_lora.errors import ModelError
from vlm_lora.model.checkpointing import enable_checkpointing
from vlm_lora.model.families import family_of
from vlm_lora.model.parts import base_of, decoder_layers, find_parts
from vlm_lora.model.tuning import apply_tuning

NAMES = available()


def _tuned(folder: Path, **settings: Any) -> tuple[Any, Any]:
    processor, model = load_plainly(folder)
    torch.manual_seed(0)
    tuned = apply_tuning(model, family_of(model.config), TuningConfig(lora_rank=2, **settings)).train()
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    return processor, tuned


def _gradients(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    next_token_loss(model, batch).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class _Count:
    """How often the tower and the first decoder layer run, and whether the tower's features carry a graph."""

    def __init__(self, model: Any) -> None:
        base, parts = base_of(model), find_parts(model)
        self.vision = 0
        self.layers: dict[str, int] = {}
        self.tower_has_graph = False
        base.get_submodule(parts.vision[0]).register_forward_hook(self._see_vision)
        # Modules inside the layer: the layer's own call is what checkpointing wraps.
        for name, module in base.get_submodule(decoder_layers(model, parts)[0]).named_modules():
            if not list(module.children()):
                module.register_forward_pre_hook(partial(self._see_layer, name))

    def _see_vision(self, module: Any, args: Any, output: Any) -> None:
        self.vision += 1
        states = output if torch.is_tensor(output) else output[0]
        self.tower_has_graph |= states.requires_grad

    def _see_layer(self, name: str, *_: Any) -> None:
        self.layers[name] = self.layers.get(name, 0) + 1


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_same_with_and_without(name: str, model_folder: Callable[[str], Path]) -> None:
    processor, plain = _tuned(model_folder(name))
    batch = build_batch(processor)
    once = _Count(plain)
    expected = _gradients(plain, batch)
    _, saving = _tuned(model_folder(name))
    layers = enable_checkpointing(saving, family_of(saving.config))
    assert layers == saving.config.get_text_config().num_hidden_layers
    assert saving.is_gradient_checkpointing
    count = _Count(saving)
    actual = _gradients(saving, batch)
    # The decoder ran twice, the tower once and outside autograd: it was really on, and only there.
    # (The first module of the layer is looked at: recomputation stops early, before the last ones.)
    first = next(iter(once.layers))
    assert count.layers[first] == 2 * once.layers[first]
    assert (count.vision, count.tower_has_graph) == (1, False)
    assert actual.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(actual[key], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["gemma3", "qwen2_5_vl", "mllama", "phi3_v"])
def test_a_trained_tower_keeps_its_gradients(name: str, model_folder: Callable[[str], Path]) -> None:
    processor, plain = _tuned(model_folder(name), peft_method="none", freeze_vision=False)
    batch = build_batch(processor)
    expected = _gradients(plain, batch)
    _, saving = _tuned(model_folder(name), peft_method="none", freeze_vision=False)
    enable_checkpointing(saving)
    actual = _gradients(saving, batch)
    assert actual.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(actual[key], gradient, atol=1e-6, rtol=1e-5)


def test_the_usual_switch_pulls_the_frozen_tower_into_autograd_and_ours_undoes_that(
    model_folder: Callable[[str], Path],
) -> None:
    processor, model = _tuned(model_folder("gemma3"))
    batch = build_batch(processor)
    model.get_base_model().enable_input_require_grads()
    usual = _Count(model)
    _gradients(model, batch)
    # 4.55 hooks the language model's embeddings alone; 5.x those of every sub-model.
    assert usual.tower_has_graph is IS_5
    enable_checkpointing(model)
    ours = _Count(model)
    _gradients(model, batch)
    assert ours.tower_has_graph is False


def test_a_model_without_the_switch_is_an_error(
    model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model = _tuned(model_folder("llava"))
    monkeypatch.delattr(GradientCheckpointingLayer, "gradient_checkpointing")
    for module in model.modules():
        module.__dict__.pop("gradient_checkpointing", None)
    with pytest.raises(ModelError, match="does not support gradient checkpointing"):
        enable_checkpointing(model)


def test_a_switch_that_is_silently_off_is_found_out_at_the_first_step(
    model_folder: Callable[[str], Path],
) -> None:
    processor, model = _tuned(model_folder("llava"))
    enable_checkpointing(model)
    for name in decoder_layers(model, find_parts(model)):
        base_of(model).get_submodule(name).gradient_checkpointing = False  # type: ignore[assignment]
    with pytest.raises(ModelError, match="does not support gradient checkpointing"):
        model(**build_batch(processor))
