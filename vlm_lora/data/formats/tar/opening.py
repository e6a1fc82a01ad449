"""From tar files to the rows of one split: unpacked where they are packed, indexed, and counted."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from vlm_lora.data.formats.rows import Rows, join_files
from vlm_lora.data.formats.tar.index_files import FOLDER_INDEX, read_index
from vlm_lora.data.formats.tar.packed import unpack
from vlm_lora.data.formats.tar.table import TarTable
from vlm_lora.data.wording import counted
from vlm_lora.errors import DataError
from vlm_lora.progress import Progress

logger = logging.getLogger(__name__)

PACKED = (".tar.gz", ".tgz")


def is_tar(path: Path) -> bool:
    """Tell from its name whether a file is a tar, packed or not."""
    return path.name.lower().endswith((".tar", *PACKED))


def tar_stem(path: Path) -> str:
    """Return a tar's name without `.tar`, `.tar.gz` or `.tgz`."""
    ending = next(ending for ending in (*PACKED, ".tar") if path.name.lower().endswith(ending))
    return path.name[: -len(ending)]


def open_tars(paths: Sequence[Path]) -> Rows:
    """Open the tars of one split, one after the other.

    Raises:
        DataError: A tar that cannot be used; names it and the sample.
    """
    found = []
    with Progress("Indexing", len(paths), "tars") as progress:
        for path in paths:
            packed = path.name.lower().endswith(PACKED)
            plain, kept = unpack(path) if packed else (path, read_index(path, name=str(path)))
            found.append((path, plain, kept))
            progress.advance()
    plural = any(kept.index.numbered for _, _, kept in found)
    tables = [
        (str(path), path.parent, TarTable.of(plain, kept, name=str(path), plural=plural)) for path, plain, kept in found
    ]
    rows = join_files(tables)
    logger.info("%s in %s.", counted(len(rows), "sample"), counted(len(tables), "tar"))
    return rows


def check_all_there(paths: Sequence[Path], pattern: str) -> None:
    """Check that no tar is missing that the `index.json` next to the others lists.

    Args:
        paths: The tars that were found.
        pattern: Of the names that the user asked for; `*` for all.

    Raises:
        DataError: Names the missing ones.
    """
    for folder in dict.fromkeys(path.parent for path in paths):
        missing = [name for name in _listed_in(folder) if fnmatch(name, pattern) and not (folder / name).is_file()]
        if missing:
            raise DataError(
                f"{folder}: {counted(len(missing), 'tar is', 'tars are')} missing that {FOLDER_INDEX} lists: "
                f"{', '.join(missing[:5])}. Copy them, or delete {FOLDER_INDEX} if they are not meant to be there."
            )


def _listed_in(folder: Path) -> list[str]:
    file = folder / FOLDER_INDEX
    if not file.is_file():
        return []
    try:
        record = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read: {error}. Copy it again, or delete it.") from error
    shards = record.get("shards") if isinstance(record, dict) else None
    if not isinstance(shards, list):
        return []  # another tool's file
    names = [shard.get("name") for shard in shards if isinstance(shard, dict)]
    return [name for name in names if isinstance(name, str) and name == Path(name).name]
