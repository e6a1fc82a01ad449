"""Files that a path may have meant: in other case, with `%20` or stray spaces, or in other Unicode forms.

They are named in the message about a path that leads to no file, and never taken for it.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

_MOST_NAMES = 100_000
"""Names of a folder that are looked through; of larger ones nothing is suggested."""


def other_spelling(path: Path, folder: Path | None, roots: Sequence[Path]) -> str:
    """Return ` Did you mean 'A.PNG'?` for the one file whose path differs in spelling alone, or an empty text.

    Args:
        path: as the row has it.
        folder: where a relative one starts.
        roots: the folders that it may lead into, as real paths; elsewhere not even the existence of a file is told.
    """
    start, names = (Path(path.anchor), path.parts[1:]) if path.is_absolute() else (folder or Path(), path.parts)
    try:
        found = _walk(start, names)
        if found is None or not found.is_file():
            return ""
        if not any(found.resolve().is_relative_to(root) for root in roots):
            return ""
    except (OSError, RuntimeError):
        return ""
    shown = found if path.is_absolute() else found.relative_to(start)
    return f" Did you mean '{shown}'?"


def _walk(folder: Path, names: Sequence[str]) -> Path | None:
    """Follow a path name by name, each as it is or as the only other one that is spelled alike."""
    for name in names:
        if name == ".." or os.path.lexists(folder / name):
            folder /= name
            continue
        alike = _names(str(folder), folder.stat().st_mtime_ns).get(_plain(name), ())
        if len(alike) != 1:
            return None
        folder /= alike[0]
    return folder


@lru_cache(maxsize=32)
def _names(folder: str, changed: int) -> Mapping[str, Sequence[str]]:
    """Return the names in a folder by their plain spelling; `changed` is its time: a later look sees changes."""
    found: dict[str, list[str]] = {}
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number == _MOST_NAMES:
                return {}
            found.setdefault(_plain(entry.name), []).append(entry.name)
    return found


def _plain(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", unquote(name)).casefold().split())
