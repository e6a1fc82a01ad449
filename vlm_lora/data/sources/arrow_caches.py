"""The Arrow files that `datasets` makes of other data and reads again: held against what they were when first used.

`datasets` finds them by path and time of the data and looks at nothing in them. So their SHA-256 is taken when a run
first uses them and kept in `arrow` of the cache, with size, time and inode. Later runs compare these three, and read a
file again where one is another. A file that was made anew is told by `dataset_info.json`, which `datasets` writes last
into the same folder. What happened to a file before its first use is not seen.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm_lora.config.whole_files import write_json
from vlm_lora.data.cache_folder import cache_folder, cache_place
from vlm_lora.data.formats.tar.index_files import hash_file
from vlm_lora.errors import DataError

logger = logging.getLogger(__name__)

FORMAT = 1
"""Changes with what is kept of a file."""
INFO = "dataset_info.json"


def damaged(files: Sequence[Path]) -> list[Path]:
    """Return those of the files that are not what they were when a run first used them; note those that are new.

    Raises:
        OSError: one cannot be read.
    """
    return [file for file in files if not _is_as_noted(file)]


def arrow_files(dataset: Any) -> list[Path]:
    """Return the Arrow files that a data set of `datasets` is read from."""
    return [Path(entry["filename"]).resolve() for entry in dataset.cache_files]


def _is_as_noted(file: Path) -> bool:
    status = file.stat()
    info = file.with_name(INFO)
    made = info.stat().st_mtime_ns if info.is_file() else 0
    stamp = [status.st_size, status.st_mtime_ns, status.st_ino]
    noted = _noted(file)
    if noted is not None and noted["made"] == made:
        if noted["stamp"] == stamp:
            return True
        if noted["stamp"][0] != status.st_size or noted["sha256"] != _sha256(file):
            return False
        _note(file, {**noted, "stamp": stamp})
        return True
    _note(file, {"file": str(file), "format": FORMAT, "made": made, "stamp": stamp, "sha256": _sha256(file)})
    return True


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hash_file(stream)


def _place(file: Path) -> str:
    return f"{hashlib.sha256(str(file).encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.json"


def _noted(file: Path) -> dict[str, Any] | None:
    """Return what is noted of a file; None where nothing is, or the note is not as it was written, which is said."""
    place = cache_place("arrow") / _place(file)
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be used (%s): %s is hashed again.", place, error, file)
        return None
    checksum = content.pop("checksum", None) if isinstance(content, dict) else None
    if checksum is None or checksum != _checksum(content) or content["file"] != str(file):
        logger.warning("%s is not as it was written: %s is hashed again.", place, file)
        return None
    return content if content["format"] == FORMAT else None


def _note(file: Path, content: dict[str, Any]) -> None:
    try:
        write_json(cache_folder("arrow") / _place(file), {**content, "checksum": _checksum(content)})
    except (OSError, DataError) as error:
        logger.debug("The hash of %s is not kept: %s.", file, error)


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
