"""The effective settings of a run, defaults included, as the record of a run keeps them (`run.json`).

They are taken before the trainer exists, which on some hardware changes its arguments. What a setting's change
means is the table in `setting_kinds`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch.distributed

from vlm_lora.config.declaration import declarations
from vlm_lora.config.fields import flatten, own_fields
from vlm_lora.config.run_config import RunConfig
from vlm_lora.data.mixture import JOINT, split_names
from vlm_lora.data.sources.files import split_list
from vlm_lora.engines.zero_numbers import without_numbers
from vlm_lora.errors import DataError
from vlm_lora.training.arguments import CHECKPOINTING
from vlm_lora.training.checkpoints.setting_kinds import (
    FILE_CONTENTS,
    GLOBAL_BATCH,
    WORLD_SIZE,
    Kind,
    file_settings,
    kind_of,
    path_settings,
)
from vlm_lora.training.identity.contents import content_of
from vlm_lora.training.identity.record import read_identity

_BEFORE = {"box_coordinates": "pixels", "train_sampling_strategy": "random", "image_backend": "pil"}
"""What runs did that did not know a setting, where that is not its default."""


def effective_settings(
    run: RunConfig, arguments: Any, *, settled: Mapping[str, Any], values: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return every setting that a checkpoint keeps, by its name here, in the types that JSON has.

    Args:
        run: resolved.
        arguments: the training arguments as the backend built them, before a trainer has them.
        settled: what became of settings that leave a choice open (`backend`, `dtype`, `attn_implementation`,
            `max_length`, `static_shapes`).
        values: the keys of the arguments class that were given.
    """
    given = run.raw if values is None else {**run.raw, **values}
    found = {field.name: getattr(arguments, field.name, None) for field in fields(arguments)}
    # Acted on elsewhere: of these the training arguments hold the class's default.
    early = frozenset(CHECKPOINTING).union(*(declared.early_flags for declared in declarations().values()))
    found |= {name: given[name] for name in early if name in given}
    found["warmup_steps"] = found.get("warmup_steps") or found.get("warmup_ratio") or 0
    found["fsdp"] = found.get("fsdp") or None  # `--fsdp false` is what it is without the flag
    if found.get("ddp_backend") is None and torch.distributed.is_initialized():
        found["ddp_backend"] = torch.distributed.get_backend()
    found |= flatten(run)
    found |= {f"freeze_{part}": frozen for part, frozen in run.tuning.frozen.items()}
    found["lora_targets"] = _in_order(run.tuning.lora_targets)
    found |= settled
    plugin = getattr(arguments, "deepspeed_plugin", None)
    found["deepspeed"] = None if plugin is None else without_numbers(plugin.deepspeed_config)
    found[WORLD_SIZE] = arguments.world_size
    found[GLOBAL_BATCH] = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    named = {name: content_of(Path(str(found[name])).expanduser()) for name in file_settings() if found.get(name)}
    found[FILE_CONTENTS] = {name: content for name, content in named.items() if content is not None}
    kept = {name: value for name, value in found.items() if kind_of(name) is not Kind.NOT_RECORDED}
    return {name: plain(absolute(value) if name in path_settings() else value) for name, value in kept.items()}


def default_settings(arguments_class: type) -> dict[str, Any]:
    """Return the defaults of our settings and of an arguments class: what a run had that did not know a setting."""
    found: dict[str, Any] = {}
    for field in fields(arguments_class):
        if field.default is not MISSING:
            found[field.name] = field.default
        elif field.default_factory is not MISSING:
            found[field.name] = field.default_factory()
    found |= {name: field.default for name, field in own_fields().items()} | _BEFORE
    return {name: plain(value) for name, value in found.items()}


def recorded_setting(checkpoint: Path, name: str) -> str:
    """Return a setting of a checkpoint's run; where it did not know it, what runs did then.

    Args:
        checkpoint: its folder.
        name: `train_sampling_strategy`, `image_backend`, `box_coordinates` or `cache_vision_features`.

    Raises:
        ConfigError: the record is there and cannot be read.
    """
    record = read_identity(checkpoint)
    before = _BEFORE.get(name) or own_fields()[name].default
    return str((record.settings if record is not None else {}).get(name) or before)


def absolute(value: Any) -> Any:
    """Return the place that a text names as an absolute path, each of several; names of the Hub stay as they are."""
    if not isinstance(value, str) or "://" in value:
        return value
    try:
        return JOINT.join(_absolute(name) for name in split_names(value))
    except DataError:
        return value  # a brace without its partner, about which the data's reader has more to say


def plain(value: Any) -> Any:
    """Return a value as it is after a trip through JSON; no keys are as nothing, and infinities are text."""
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in sorted(value.items(), key=lambda pair: str(pair[0]))} or None
    if isinstance(value, (set, frozenset)):
        return sorted((plain(entry) for entry in value), key=str)
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Path) or not hasattr(value, "__dict__"):
        return str(value).removeprefix("torch.")  # a torch.dtype among them
    return plain({name: entry for name, entry in vars(value).items() if not name.startswith("_")})


def _absolute(name: str) -> str:
    """Return one data set's place; it may be several files (`a.jsonl,b.jsonl`), a glob, or `part-{0..3}.tar`."""
    path = Path(name).expanduser()
    if path.exists():
        return str(path.resolve())
    names = [part.strip() for part in split_list(name, flag="dataset_name")]
    local = [one for one in names if len(names) > 1 or one.startswith((".", "/", "~")) or set("*?[{") & set(one)]
    return ",".join(str(Path(one).expanduser().resolve()) for one in local) if local else name


def _in_order(targets: str) -> str:
    """Sort names that are combined with commas; a regular expression with a comma is none the worse for it."""
    return ",".join(sorted(part.strip() for part in targets.split(",")))
