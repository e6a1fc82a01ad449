"""Experts that are one tensor get no LoRA; whoever tunes the language model is told how much of it that is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from support.tiny import available, build_processor
from support.tiny.configurations import CONFIGURATIONS
from support.tiny.folders import model_class
from vlm_lora.compat import IS_5, known_model_types
from vlm_lora.config.run_config import TuningConfig
from vlm_lora.errors import ConfigError
from vlm_lora.model.experts import out_of_reach
from vlm_lora.model.families import family_of
from vlm_lora.model.parts import find_parts
from vlm_lora.model.targets import resolve_targets
from vlm_lora.model.tuning import apply_tuning

TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
QWEN_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "patch_size": 8,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}
ROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True, "rope_theta": 1e4}
FULL = {"layer_types": ["full_attention"] * 2}


def qwen3_vl_moe() -> Any:
    text = {**TEXT, **EXPERTS, "rope_parameters": ROPE, "decoder_sparse_step": 1, "mlp_only_layers": []}
    return transformers.Qwen3VLMoeConfig(
        text_config=text, vision_config={**QWEN_VISION, "deepstack_visual_indexes": [0]}
    )


def qwen3_5_moe() -> Any:
    text = {**TEXT, **EXPERTS, **FULL, "rope_parameters": ROPE, "shared_expert_intermediate_size": 16}
    return transformers.Qwen3_5MoeConfig(text_config=text, vision_config=QWEN_VISION)


def glm4v_moe() -> Any:
    numbers = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1}
    text = {**TEXT, **numbers, "topk_group": 1, "first_k_dense_replace": 1, "rope_parameters": {**ROPE}}
    return transformers.Glm4vMoeConfig(text_config=text, vision_config={**QWEN_VISION, "image_size": 32})


def llama4() -> Any:
    text = {**TEXT, "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 48}
    vision = {**VISION, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
    return transformers.Llama4Config(text_config={**text, "interleave_moe_layer_step": 1}, vision_config=vision)


def aria() -> Any:
    text = {**TEXT, "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1, "model_type": "aria_text"}
    vision = {**VISION, "model_type": "idefics3_vision"}
    return transformers.AriaConfig(text_config=text, vision_config=vision, projector_patch_to_query_dict={16: 4})


def llava() -> Any:
    """A decoder whose experts are linear layers in transformers 4.55, and one tensor in 5.x."""
    text = {**TEXT, **EXPERTS, "model_type": "qwen2_moe", "shared_expert_intermediate_size": 16}
    return transformers.LlavaConfig(text_config=text, vision_config={**VISION, "model_type": "clip_vision_model"})


SHAPES: dict[str, Callable[[], Any]] = {
    shape.__name__: shape
    for shape in (qwen3_vl_moe, qwen3_5_moe, glm4v_moe, llama4, aria, llava)
    if shape.__name__ in known_model_types()
}
IN_ONE_TENSOR = [name for name in SHAPES if name != "llava" or IS_5]


def built(config: Any) -> Any:
    with torch.device("meta"):
        return model_class(config).from_config(config)


@pytest.mark.parametrize("name", IN_ONE_TENSOR)
@pytest.mark.parametrize("wanted", ["language", "all-linear"])
def test_the_share_that_stays_frozen_is_said_once(name: str, wanted: str, caplog: pytest.LogCaptureFixture) -> None:
    model = built(SHAPES[name]())
    parts = find_parts(model)
    caplog.set_level(logging.WARNING, logger="vlm_lora.model.experts")
    names = resolve_targets(model, parts, wanted)
    assert names
    assert not any(".experts." in name for name in names)
    language = {n: p for n, p in model.named_parameters() if parts.part_of(n) == "language"}
    tensors = {n for n, p in language.items() if p.ndim == 3 and "experts" in n}
    routers = {n for n, p in language.items() if p.ndim == 2 and isinstance(p, nn.Parameter) and n not in tensors}
    routers = {n for n in routers if not isinstance(model.get_submodule(n.rpartition(".")[0]), nn.Linear)}
    assert tensors
    share = sum(language[n].numel() for n in tensors | routers) / sum(p.numel() for p in language.values())
    said = [record.getMessage() for record in caplog.records if "stays frozen" in record.getMessage()]
    assert len(said) == 1
    assert f"--lora_targets {wanted}: {100 * share:.1f} % of the language model stays frozen" in said[0]
    assert "cannot be trained with LoRA yet; --peft_method none trains them" in said[0]


def test_experts_that_are_linear_layers_get_lora_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    model = built(llava())
    names = resolve_targets(model, find_parts(model), "language")
    assert any(".experts." in name for name in names) is not IS_5
    assert ("stays frozen" in caplog.text) is IS_5


@pytest.mark.parametrize("name", [name for name in available() if name != "phi3_v"])
def test_no_dense_family_has_weights_out_of_reach(name: str) -> None:
    model = built(CONFIGURATIONS[name](build_processor(name).tokenizer))
    assert out_of_reach(model, find_parts(model)) == {}


@pytest.mark.parametrize("wanted", [".*experts.*", "experts", r".*\.gate_up_proj", "gate_up_proj", "gate"])
def test_experts_that_are_named_are_refused_as_not_supported_yet(wanted: str) -> None:
    name = next(name for name in IN_ONE_TENSOR if name in ("qwen3_vl_moe", "llama4"))
    model = built(SHAPES[name]())
    parts = find_parts(model)
    if wanted == "gate" and name == "llama4":
        wanted = "feed_forward"
    with pytest.raises(ConfigError, match=r"no linear layers .*They cannot be trained with LoRA yet"):
        resolve_targets(model, parts, wanted)


def test_a_name_of_experts_is_not_taken_in_another_part(caplog: pytest.LogCaptureFixture) -> None:
    model = built(SHAPES[IN_ONE_TENSOR[0]]())
    parts = find_parts(model)
    with pytest.raises(ConfigError, match=r"cannot be trained with LoRA yet"):
        resolve_targets(model, parts, "q_proj,down_proj" if not _has_linear(model, "down_proj") else "q_proj,experts")
    assert resolve_targets(model, parts, r".*language_model.*q_proj|.*experts.*")
    assert "stays frozen" in caplog.text


def _has_linear(model: nn.Module, leaf: str) -> bool:
    return any(name.endswith("." + leaf) for name, module in model.named_modules() if isinstance(module, nn.Linear))


def test_full_weights_train_experts_and_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model = built(SHAPES[IN_ONE_TENSOR[0]]())
    tuned = apply_tuning(model, family_of(model.config), TuningConfig(peft_method="none"))
    experts = out_of_reach(tuned, find_parts(tuned))
    assert experts
    assert all(parameter.requires_grad for parameter in experts.values())
    assert "stays frozen" not in caplog.text
