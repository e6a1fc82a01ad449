"""Where things are kept that can be made again: `$VLM_LORA_CACHE`, else `~/.cache/vlm-lora`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vlm_lora.errors import DataError

VARIABLE = "VLM_LORA_CACHE"

_HASH = "[0-9a-f]{32}"


@dataclass(frozen=True, kw_only=True)
class Cache:
    """One sub-folder: what lies there, and how its files are called, by which they are told from anyone else's."""

    holds: str
    files: str
    """A regular expression for whole names."""


CACHES: Mapping[str, Cache] = {
    "prepared_images": Cache(
        holds="images and rows as the model's processor made them",
        files=r"[0-9a-f]+-\d+(-[0-9a-f]{8})?\.(tensors|index|said|damaged|stopped)",
    ),
    "vision_features": Cache(
        holds="what a frozen vision tower made of images",
        files=r"[0-9a-f]+-\d+(-[0-9a-f]{8})?\.(tensors|index|said|damaged|stopped)",
    ),
    "checks": Cache(holds="what the check before training read of each row", files=rf"{_HASH}\.rows"),
    "tars": Cache(holds="packed tars, unpacked, and indexes of tars", files=rf"{_HASH}(\.tar)?(\.index\.json)?"),
    "images": Cache(holds="images behind URLs", files=_HASH * 2),
    "hashes": Cache(holds="SHA-256 of large files of models and checkpoints", files=r"files\.json"),
    "arrow": Cache(holds="SHA-256 of the Arrow files that `datasets` keeps", files=rf"{_HASH}\.json"),
}
"""All of them, by the name of their folder."""


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


def kept_files(name: str) -> list[Path]:
    """Return the files of a cache, those among them that a killed process left unfinished; nobody else's."""
    wanted = re.compile(rf"{CACHES[name].files}|\.({CACHES[name].files})\.\w+\.partial")
    folder = cache_place(name)
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if wanted.fullmatch(file.name) and file.is_file())


def clear(name: str) -> int:
    """Remove the files of a cache, and its folder where nothing else is in it; return how many bytes were freed.

    Raises:
        DataError: a file cannot be removed.
    """
    freed = 0
    try:
        for file in kept_files(name):
            freed += file.stat().st_size
            file.unlink()
        folder = cache_place(name)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    except FileNotFoundError:  # another process removed it
        return freed + clear(name)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be removed: {error.strerror}.") from error
    return freed
