"""DeepSpeed configurations on Gaudi: the same files as on CUDA."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_lora.errors import ConfigError


def zero_settings(given: str | Mapping[str, Any], *, bf16: bool) -> dict[str, Any]:
    """Return the configuration with its precision filled in.

    optimum-habana leaves `"enabled": "auto"` of bf16 and fp16 as it is, and DeepSpeed takes that text for
    true: an fp32 run would silently be in bf16.

    Args:
        given: a file, or the configuration itself.
        bf16: whether the run is in bf16.

    Raises:
        ConfigError: the file cannot be read, is no JSON object, or asks for fp16.
    """
    settings = dict(given) if isinstance(given, Mapping) else _read(Path(given).expanduser())
    for name, value in (("bf16", bf16), ("fp16", False)):
        section = dict(settings.get(name, {}))
        if section.get("enabled", "auto") == "auto":
            section["enabled"] = value
        settings[name] = section
    if settings["fp16"]["enabled"]:
        raise ConfigError('--deepspeed: Gaudi trains in bf16; write "fp16": {"enabled": "auto"} in the file.')
    if settings["bf16"]["enabled"] != bf16:
        raise ConfigError(
            f"--deepspeed has bf16 {settings['bf16']['enabled']} and the run has --bf16 {bf16}: make them agree, or "
            'write "auto" in the file.'
        )
    return settings


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--deepspeed {path}: no readable JSON file ({error}). Ready ones are launchers/deepspeed/zero2.json and "
            "zero3.json."
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"--deepspeed {path}: must hold one JSON object.")
    return content
