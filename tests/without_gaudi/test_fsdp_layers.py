"""What FSDP is told about layers; transformers 4.55 has no place for it but the environment."""

from __future__ import annotations

from typing import Any

from transformers import TrainingArguments

from vlm_lora_cuda.engines import shard_layers


def plugin_for(**config: Any) -> dict[str, Any]:
    """Return what transformers' own arguments tell accelerate of an `--fsdp_config`, once the layers are known."""
    arguments = TrainingArguments(fsdp=True, fsdp_config=config, use_cpu=True, report_to="none")
    shard_layers(arguments, ["Layer", "Layer", "Block"])
    plugin: dict[str, Any] = arguments.fsdp_plugin_args
    return plugin


def test_layers_are_named_to_fsdp_unless_somebody_did() -> None:
    by_layer = plugin_for()
    assert by_layer["transformer_cls_names_to_wrap"] == "Block,Layer"
    assert by_layer["auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP"
    assert plugin_for(transformer_layer_cls_to_wrap=["Own"])["transformer_cls_names_to_wrap"] == "Own"
    by_size = plugin_for(min_num_params=1000)
    assert (by_size["auto_wrap_policy"], by_size["min_num_params"]) == ("SIZE_BASED_WRAP", 1000)
    assert "transformer_cls_names_to_wrap" not in by_size
    assert "transformer_cls_names_to_wrap" not in plugin_for(auto_wrap_policy="NO_WRAP")
