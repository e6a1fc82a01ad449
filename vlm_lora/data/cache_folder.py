"""Where things are kept that can be made again: `$VLM_LORA_CACHE`, else `~/.cache/vlm-lora`."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears under its name complete or not at all; several processes may write it at once.

    Raises:
        OSError: The folder cannot be written, or the disk is full; nothing is left behind.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
