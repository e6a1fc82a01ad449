"""The Gaudi configuration: fused kernels and autocast lists, from `--gaudi_config_name` or a default."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_lora.errors import ConfigError, nearest

FILE = "gaudi_config.json"

DEFAULT: Mapping[str, Any] = {"use_fused_adam": True, "use_fused_clip_norm": True}
"""Both are faster and exact; autocast follows `--bf16`."""

KEYS = (
    "use_fused_adam",
    "use_fused_clip_norm",
    "use_torch_autocast",
    "autocast_bf16_ops",
    "autocast_fp32_ops",
    "use_dynamic_shapes",
)
"""What optimum-habana 1.21 reads; anything else in the file would be ignored by it."""

LISTS = {
    "autocast_bf16_ops": "PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST",
    "autocast_fp32_ops": "PT_HPU_AUTOCAST_FP32_OPS_LIST",
}
"""The bridge reads these variables when it is loaded, so the lists must be there before torch is imported."""

_KEPT_BY_LIBRARIES = ("optimum_version", "transformers_version", "torch_dtype")


def read_configuration(name: str | None, *, token: str | None = None) -> dict[str, Any]:
    """Return the configuration that `--gaudi_config_name` names, or the default for None.

    Args:
        name: a Hub id, a folder that holds gaudi_config.json, or a file.
        token: for gated Hub repositories.

    Raises:
        ConfigError: it cannot be fetched, is no JSON object, or has an unknown key. No default is taken instead.
    """
    if name is None:
        return dict(DEFAULT)
    path = _locate(name, token)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--gaudi_config_name {name}: {path} is no readable JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"--gaudi_config_name {name}: {path} must hold one JSON object, such as {json.dumps(DEFAULT)}."
        )
    for key in content:
        if key not in KEYS and key not in _KEPT_BY_LIBRARIES:
            raise ConfigError(f"--gaudi_config_name {name}: {key!r} is not a key of it.{nearest(key, KEYS)}")
    lists = [key for key in LISTS if content.get(key) is not None]
    if len(lists) == 1:
        raise ConfigError(f"--gaudi_config_name {name}: {' and '.join(LISTS)} go together; {lists[0]} is alone.")
    return {key: value for key, value in content.items() if key in KEYS}


def autocast_variables(configuration: Mapping[str, Any]) -> dict[str, str]:
    """Write the configuration's own autocast lists to files and return the variables that name them.

    Nothing is written where the variables are set already, by the user or by an earlier call.
    """
    if configuration.get("autocast_bf16_ops") is None or any(name in os.environ for name in LISTS.values()):
        return {}
    folder = Path(tempfile.mkdtemp(prefix="vlm_lora_autocast_"))
    variables = {}
    for key, variable in LISTS.items():
        file = folder / f"{key}.txt"
        file.write_text("".join(f"{name}\n" for name in configuration[key]), encoding="utf-8")
        variables[variable] = str(file)
    return variables


def _locate(name: str, token: str | None) -> Path:
    place = Path(name).expanduser()
    if place.is_file():
        return place
    if place.is_dir():
        if not (place / FILE).is_file():
            raise ConfigError(f"--gaudi_config_name {name}: the folder holds no {FILE}.")
        return place / FILE
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, FILE, token=token))
    except Exception as error:  # the Hub's client raises many kinds; each means that there is no file
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"--gaudi_config_name {name}: no such file or folder, and it cannot be fetched from the Hub ({first}). "
            "Leave it out, or name a folder that holds gaudi_config.json."
        ) from error
