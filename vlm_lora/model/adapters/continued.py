"""A run that begins with an adapter (`--model_name_or_path ADAPTER`): it trains on, with the settings that it has.

Its rank, scale and modules are in its weights, so nothing else can be meant by them; a flag that says otherwise is
refused. What was not tried so is refused as well: merged first, any adapter is a base like every other.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.sections.tuning import STARTS, TuningConfig
from vlm_lora.config.values import is_true
from vlm_lora.errors import ConfigError, ModelError
from vlm_lora.model.folder_faults import ADAPTER_FILE, adapter_settings
from vlm_lora.model.loading import adapter_folder

_NAMES: Mapping[str, str] = {
    "lora_rank": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
    "lora_targets": "target_modules",
}
"""Our settings, and what an adapter_config.json calls them."""
_UNTRIED = (
    *("modules_to_save", "trainable_token_indices", "target_parameters", "rank_pattern", "alpha_pattern"),
    *("layers_to_transform", "exclude_modules", "lora_bias", "use_qalora", "alora_invocation_tokens"),
)
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal")


def with_adapters_settings(run: RunConfig, *, trains: bool = False) -> RunConfig:
    """Return a training's run with the settings of the adapter that it begins with; any other run as it is.

    Args:
        run: as it was given.
        trains: it is a training also where it has no `--do_train`.

    Raises:
        ConfigError: a flag contradicts the adapter.
        ModelError: its files are damaged, or training it on was not tried.
    """
    if run.model.model_name_or_path is None or not (trains or is_true(run.raw.get("do_train"))):
        return run
    folder = adapter_folder(run.model)
    if folder is None:
        return run
    stored = adapter_settings(folder)
    first = f"`{merging(folder)}` makes a base of it, on which a new adapter or full weights are trained"
    if run.tuning.peft_method != "lora":
        raise ConfigError(
            f"--peft_method none: {folder} is an adapter, whose base's weights stay as they are. {first}."
        )
    untried = [name for name in _UNTRIED if stored.get(name)]
    if stored.get("bias", "none") != "none":
        untried.append("bias")
    if stored.get("init_lora_weights", True) not in _PLAIN_STARTS:
        untried.append("init_lora_weights")
    if untried or stored.get("peft_type") != "LORA":
        what = ", ".join(f"{name} {stored.get(name)}" for name in untried or ["peft_type"])
        raise ModelError(f"{folder / ADAPTER_FILE}: training on from an adapter with {what} is not offered. {first}.")
    own = _own_settings(stored)
    for name, value in own.items():
        asked = getattr(run.tuning, name)
        if name in run.given and asked != value:
            raise ConfigError(
                f"--{name} {_typed(asked)}: {folder} is an adapter with {_typed(value)}, and is trained on as it is. "
                f"Leave --{name} out; or {first}."
            )
    for name, asked in (
        ("lora_init", run.tuning.lora_init != STARTS[0] and run.tuning.lora_init),
        ("train_fully", " ".join(run.tuning.train_fully)),
        ("new_tokens", run.tuning.new_tokens),
    ):
        if asked:
            raise ConfigError(
                f"--{name} {asked}: {folder} is an adapter, which has begun already. Leave --{name} out; or {first}."
            )
    return replace(run, tuning=replace(run.tuning, **own))


def refuse_partitioned(run: RunConfig, engine: str) -> None:
    """Refuse to train an adapter on where an engine shares weights out among processes; `engine` is empty without one.

    Raises:
        ConfigError: names the engine and what to type.
    """
    folder = None if not engine or run.model.model_name_or_path is None else adapter_folder(run.model)
    if folder is not None:
        raise ConfigError(
            f"--model_name_or_path {folder} with {engine}: training on from an adapter has not been proven on weights "
            f"that are shared out. Type --deepspeed zero2, use plain data parallelism, or `{merging(folder)}` first."
        )


def _own_settings(stored: Mapping[str, Any]) -> dict[str, Any]:
    defaults = TuningConfig()
    found: dict[str, Any] = {}
    for name, key in _NAMES.items():
        value = stored.get(key)
        if value is None:
            value = getattr(defaults, name)
        elif name == "lora_targets" and not isinstance(value, str):
            value = ",".join(value)
        found[name] = type(getattr(defaults, name))(value)
    return found


def _typed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def merging(folder: Path) -> str:
    """Return the command that merges an adapter's folder."""
    return shlex.join(["vlm-lora", "merge", str(folder), "--output_dir", f"{folder}-merged"])
