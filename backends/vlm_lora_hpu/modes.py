"""Lazy, eager or torch.compile: decided once, before torch is imported, from what was set and the environment.

The Gaudi bridge reads PT_HPU_LAZY_MODE when it is loaded, which `import torch` does, and the vendor's
libraries disagree on what an unset variable means: so it is always set here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

from vlm_lora.config.values import MismatchError, convert
from vlm_lora.errors import ConfigError

if TYPE_CHECKING:
    from vlm_lora.config.run_config import RunConfig

LAZY, COMPILE = "PT_HPU_LAZY_MODE", "PT_HPU_TC_MODE"

VARIABLES = ("PT_HPU_*", "PT_HPUGRAPH_*", "PT_TE_*", "PT_RECIPE_CACHE_PATH", "HABANA_*", "HCCL_*", "HLS_MODULE_ID")
"""What a run's record keeps of the environment."""

GRAPHS = 64
"""Graphs that torch.compile keeps of one code at least: more than the default plans have shapes."""


class Mode(Enum):
    """How operators reach the card."""

    LAZY = "lazy"
    """Recorded until `mark_step`, then compiled and run as one graph."""
    EAGER = "eager"
    """Each by itself."""
    COMPILE = "compile"
    """Graphs captured by torch.compile, the rest eager."""


def choose_mode(raw: Mapping[str, Any], environ: Mapping[str, str]) -> Mode:
    """Return the mode; what was set and the environment must agree, an untyped default never contradicts.

    Args:
        raw: the keys that were set (`use_lazy_mode`, `torch_compile`).
        environ: `PT_HPU_LAZY_MODE` and `PT_HPU_TC_MODE`, each 0, 1 or not set.

    Raises:
        ConfigError: two of them contradict each other; says which and how to choose.
    """
    lazy, compiled = _variable(environ, LAZY), _variable(environ, COMPILE)
    typed_lazy, typed_compile = _flag(raw, "use_lazy_mode"), _flag(raw, "torch_compile")
    if typed_compile is None and raw.get("torch_compile_backend"):
        typed_compile = True
    wants = {
        "lazy": [f"{LAZY}=1"] * bool(lazy) + ["--use_lazy_mode"] * bool(typed_lazy),
        "not lazy": [f"{LAZY}=0"] * (lazy is False) + ["--use_lazy_mode false"] * (typed_lazy is False),
        "compile": [f"{COMPILE}=1"] * bool(compiled) + ["--torch_compile"] * bool(typed_compile),
        "not compile": [f"{COMPILE}=0"] * (compiled is False) + ["--torch_compile false"] * (typed_compile is False),
    }
    for one, other in (("lazy", "not lazy"), ("lazy", "compile"), ("compile", "not compile")):
        if wants[one] and wants[other]:
            raise ConfigError(
                f"{wants[one][0]} and {wants[other][0]} contradict each other. Lazy mode: {LAZY}=1. Eager mode: "
                f"{LAZY}=0, without --use_lazy_mode. torch.compile: {LAZY}=0 {COMPILE}=1."
            )
    if wants["compile"]:
        return Mode.COMPILE
    return Mode.EAGER if wants["not lazy"] else Mode.LAZY


def mode_variables(mode: Mode) -> dict[str, str]:
    """Return the variables that the bridge and the libraries read for `mode`."""
    return {LAZY: "1" if mode is Mode.LAZY else "0"}


def _variable(environ: Mapping[str, str], name: str) -> bool | None:
    value = environ.get(name)
    if value not in (None, "0", "1"):
        raise ConfigError(f"{name}={value}: allowed are 0 and 1.")
    return None if value is None else value == "1"


def _flag(raw: Mapping[str, Any], name: str) -> bool | None:
    if raw.get(name) is None:
        return None
    try:
        return bool(convert(raw[name], bool))
    except MismatchError as error:
        raise ConfigError(f"--{name} {raw[name]}: must be {error}.") from error


def limit_graphs(run: RunConfig, values: Mapping[str, Any]) -> None:
    """Let torch.compile make one graph of a code for each planned shape, and not give up before the last.

    accelerate reads the variable when it makes its plugin. dynamo's own limit is 8, and where it is reached the code
    runs uncompiled from then on.

    Args:
        run: knows how many shapes may be planned, in training and again in evaluation.
        values: `compile_dynamic` and `cache_size_limit`, where they were set.
    """
    import torch

    dynamic = bool(values.get("compile_dynamic"))
    os.environ["ACCELERATE_DYNAMO_USE_DYNAMIC"] = str(dynamic).lower()
    torch._dynamo.config.automatic_dynamic_shapes = dynamic
    limit = values.get("cache_size_limit") or max(GRAPHS, 3 * (run.batching.max_shapes or 0))
    torch._dynamo.config.recompile_limit = limit
    torch._dynamo.config.accumulated_recompile_limit = max(limit, torch._dynamo.config.accumulated_recompile_limit)
