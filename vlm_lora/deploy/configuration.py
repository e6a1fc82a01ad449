"""The config.json of a merged model: the base's own file, with what merging has changed.

transformers 5 writes some settings under other names than it reads (`rope_parameters`), which older versions and other
programs pass over in silence. What the base's makers wrote is read by all that read the base.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlm_lora.config.whole_files import write_json

_UNTOLD = ("dtype", "torch_dtype", "transformers_version", "_name_or_path")
"""What differs between two loaded configurations without a change of the model; the dtype is compared by itself."""


def keep_settings(file: Path, base: Path, loaded: Any, merged: Any, dtype: str) -> bool:
    """Write the base's settings, changed as the model's are, over those that transformers wrote.

    Args:
        file: the merged model's config.json.
        base: the base's; one that is not there leaves the file as it is.
        loaded: the base's configuration.
        merged: the merged model's configuration.
        dtype: that the merged weights are stored in.

    Returns:
        Whether it did: not for code of the model's own, nor where a change has no place among the base's settings.
    """
    if not base.is_file():
        return False
    settings = json.loads(base.read_text(encoding="utf-8"))
    if "auto_map" in settings:
        return False
    for path, value in _changes(_plain(loaded), _plain(merged)):
        place = _place(settings, path)
        if place is None:
            return False
        place[path[-1]] = value
    if "quantization_config" not in _plain(merged):  # a base in few bits that was unpacked for merging
        settings.pop("quantization_config", None)
    if settings.get("torch_dtype", settings.get("dtype")) != dtype:
        settings = {**_without_dtype(settings), "torch_dtype": dtype}
    write_json(file, settings)
    return True


def _plain(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return found


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield where two configurations differ, and what the second one says there."""
    for key in {**before, **after}:
        one, other = before.get(key), after.get(key)
        if key in _UNTOLD or one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            yield from (((key, *path), value) for path, value in _changes(one, other))
        else:
            yield (key,), other


def _place(settings: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any] | None:
    """Return where a setting stands; older files have those of the language model on top."""
    place: Any = settings
    for step in path[:-1]:
        place = place.get(step) if isinstance(place, dict) else None
    if isinstance(place, dict):
        return place
    return settings if path[:-1] == ("text_config",) and path[-1] in settings else None


def _without_dtype(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_dtype(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if key not in ("dtype", "torch_dtype")
    }
