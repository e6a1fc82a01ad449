"""Lazy, eager or compile: what was set and the environment agree, or the message says how to choose."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from vlm_lora.config.run_config import BatchingConfig, RunConfig
from vlm_lora.errors import ConfigError
from vlm_lora_hpu.modes import GRAPHS, Mode, choose_mode, limit_graphs, mode_variables


@pytest.mark.parametrize(
    ("raw", "environ", "expected"),
    [
        ({}, {}, Mode.LAZY),
        ({}, {"PT_HPU_LAZY_MODE": "1"}, Mode.LAZY),
        ({"use_lazy_mode": "true"}, {}, Mode.LAZY),
        ({"use_lazy_mode": True}, {"PT_HPU_LAZY_MODE": "1"}, Mode.LAZY),
        ({}, {"PT_HPU_LAZY_MODE": "0"}, Mode.EAGER),  # the README's first tip: an untyped default never contradicts
        ({"use_lazy_mode": "false"}, {}, Mode.EAGER),
        ({}, {"PT_HPU_LAZY_MODE": "0", "PT_HPU_TC_MODE": "1"}, Mode.COMPILE),  # its second tip
        ({"torch_compile": "true"}, {"PT_HPU_LAZY_MODE": "0"}, Mode.COMPILE),
        ({"torch_compile_backend": "hpu_backend"}, {}, Mode.COMPILE),
        ({}, {"PT_HPU_TC_MODE": "0"}, Mode.LAZY),
    ],
)
def test_mode(raw: dict[str, object], environ: dict[str, str], expected: Mode) -> None:
    assert choose_mode(raw, environ) is expected


@pytest.mark.parametrize(
    ("raw", "environ", "named"),
    [
        ({"use_lazy_mode": True}, {"PT_HPU_LAZY_MODE": "0"}, ("--use_lazy_mode", "PT_HPU_LAZY_MODE=0")),
        ({"use_lazy_mode": "no"}, {"PT_HPU_LAZY_MODE": "1"}, ("--use_lazy_mode false", "PT_HPU_LAZY_MODE=1")),
        ({}, {"PT_HPU_LAZY_MODE": "1", "PT_HPU_TC_MODE": "1"}, ("PT_HPU_LAZY_MODE=1", "PT_HPU_TC_MODE=1")),
        ({"torch_compile": True, "use_lazy_mode": True}, {}, ("--use_lazy_mode", "--torch_compile")),
        ({"torch_compile": True}, {"PT_HPU_TC_MODE": "0"}, ("--torch_compile", "PT_HPU_TC_MODE=0")),
        ({}, {"PT_HPU_LAZY_MODE": "2"}, ("PT_HPU_LAZY_MODE=2", "0 and 1")),
        ({"use_lazy_mode": "perhaps"}, {}, ("--use_lazy_mode perhaps", "true or false")),
    ],
)
def test_contradictions_are_refused_with_the_cure(
    raw: dict[str, object], environ: dict[str, str], named: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as refused:
        choose_mode(raw, environ)
    for text in named:
        assert text in str(refused.value)


@pytest.mark.parametrize(("mode", "lazy"), [(Mode.LAZY, "1"), (Mode.EAGER, "0"), (Mode.COMPILE, "0")])
def test_the_bridges_variable_is_always_set(mode: Mode, lazy: str) -> None:
    assert mode_variables(mode) == {"PT_HPU_LAZY_MODE": lazy}


@pytest.mark.parametrize(
    ("shapes", "values", "limit", "dynamic"),
    [
        (None, {}, GRAPHS, False),
        (100, {}, 300, False),
        (100, {"cache_size_limit": 5}, 5, False),
        (None, {"compile_dynamic": True}, GRAPHS, True),
    ],
)
def test_torch_compile_keeps_a_graph_for_each_planned_shape(
    shapes: int | None, values: dict[str, Any], limit: int, dynamic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dynamo's own limit is 8, beyond which it goes on uncompiled."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_DYNAMIC", "unset")
    config = torch._dynamo.config
    with config.patch(recompile_limit=8, accumulated_recompile_limit=256, automatic_dynamic_shapes=True):
        limit_graphs(RunConfig(batching=BatchingConfig(max_shapes=shapes)), values)
        assert (config.recompile_limit, config.automatic_dynamic_shapes) == (limit, dynamic)
        assert config.accumulated_recompile_limit >= limit
        assert os.environ["ACCELERATE_DYNAMO_USE_DYNAMIC"] == str(dynamic).lower()
