"""Files that appear under their name complete or not at all, however their writing ends."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from vlm_lora.config.surrogate_text import encode

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears under its name complete or not at all; several processes may write it at once.

    Raises:
        OSError: The folder cannot be written, or the disk is full; nothing is left behind.
    """
    with replacing_path(path) as partial, partial.open("wb") as stream:
        yield stream


@contextlib.contextmanager
def replacing_path(path: Path) -> Iterator[Path]:
    """As `replacing`, for what opens the file by its name.

    Raises:
        OSError: As there.
    """
    name, descriptor = _new_file(path)
    try:
        with os.fdopen(descriptor, "rb") as stream:
            yield name
            os.fsync(stream.fileno())
        name.replace(path)
    except BaseException:
        name.unlink(missing_ok=True)
        raise


def _new_file(path: Path) -> tuple[Path, int]:
    """Make a file next to `path` that nobody else has, and return it opened; who may read it is as for any new file."""
    while True:
        name = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        with contextlib.suppress(FileExistsError):
            return name, os.open(name, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that no reader ever sees half of it; several machines may share the folder."""
    with replacing(path) as stream:
        stream.write(encode(text))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a mapping as JSON, whole or not at all; keys in order, figures that are no numbers as null."""
    write_whole(path, json.dumps(valid_json(dict(values)), indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one where there is no file.

    A broken file, as a kill leaves one that was not written whole, is set aside with a warning: its content is kept
    as `NAME.broken`, `NAME.broken.2` and so on.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError:
        content = None
    if isinstance(content, dict):
        return content
    aside = free_name(path.with_name(f"{path.name}.broken"))
    with contextlib.suppress(FileNotFoundError):  # another process has set it aside
        path.rename(aside)
        logger.warning("%s is no whole JSON object, so it is set aside as %s.", path, aside.name)
    return {}


def free_name(path: Path) -> Path:
    """Return this path, or the first with a number behind it that is free."""
    others = (path.with_name(f"{path.name}.{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([path], others) if not name.exists() and not name.is_symlink())


def valid_json(value: Any) -> Any:
    """Return a value for `json.dumps`, with null for infinities and NaN, which JSON has not got (RFC 8259, 6)."""
    if isinstance(value, Mapping):
        return {key: valid_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [valid_json(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
