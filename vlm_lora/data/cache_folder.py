"""Where things are kept that can be made again: `$VLM_LORA_CACHE`, else `~/.cache/vlm-lora`."""

from __future__ import annotations

import os
from pathlib import Path

from vlm_lora.errors import DataError

VARIABLE = "VLM_LORA_CACHE"


def cache_place(name: str) -> Path:
    """Return where a sub-folder of the cache is or would be."""
    base = os.environ.get(VARIABLE)
    return (Path(base).expanduser() if base else Path.home() / ".cache" / "vlm-lora") / name


def cache_folder(name: str) -> Path:
    """Return a sub-folder of the cache, made when missing.

    Raises:
        DataError: It cannot be made.
    """
    folder = cache_place(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made: {error.strerror}. Set {VARIABLE} to a writable folder.") from error
    return folder
