"""What FSDP is told about layers; transformers 4.55 has no place for it but the environment."""

from __future__ import annotations

from typing import Any

import pytest
from torch.distributed.fsdp import fully_shard
from torch.nn import Linear, ModuleList
from transformers import TrainingArguments

from vlm_lora.errors import ConfigError
from vlm_lora_torch.engines import shard_layers


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
    assert plugin_for(auto_wrap_policy="TRANSFORMER_BASED_WRAP")["transformer_cls_names_to_wrap"] == "Block,Layer"
    assert "transformer_cls_names_to_wrap" not in plugin_for(auto_wrap_policy="NO_WRAP")


def test_size_decides_in_version_1_alone(caplog: pytest.LogCaptureFixture) -> None:
    first = plugin_for(version=1, min_num_params=1000)
    assert (first["auto_wrap_policy"], first["min_num_params"]) == ("SIZE_BASED_WRAP", 1000)
    assert "transformer_cls_names_to_wrap" not in first
    second = plugin_for(min_num_params=1000)
    assert second["auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP"
    assert second["transformer_cls_names_to_wrap"] == "Block,Layer"
    assert "min_num_params 1000 has no effect: FSDP 2 shards by layer." in caplog.messages
    with pytest.raises(ConfigError, match="SIZE_BASED_WRAP in --fsdp_config: FSDP 2 cannot"):
        plugin_for(auto_wrap_policy="SIZE_BASED_WRAP", min_num_params=1000)


def test_torch_refuses_the_list_of_layers_as_a_unit() -> None:
    """Why FSDP 2 has no units by size here; where this fails, it may."""
    with pytest.raises(ValueError, match="ModuleList"):
        fully_shard(ModuleList([Linear(2, 2)]))
