"""A fingerprint of a file's content: all of a small one; of a large one its size, and blocks of every part of it.

Weights of many gigabytes would take minutes to read. A change that is made on purpose (another revision, weights that
were trained on) touches whole tensors, so of a large safetensors file three blocks of every tensor are read, with the
header that says what the tensors are. A single flipped bit in a large file may lie between them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

WHOLE = 64 * 2**20
"""Bytes up to which a file is read whole."""
BLOCK = 4096
"""Bytes of each block that is read of a larger one."""
BLOCKS = 256
"""Blocks of a file that is no safetensors file."""
_JSON = 2**20
"""Bytes up to which JSON is compared by what it says: another version writes the same with other spaces."""


def fingerprint(path: Path, *, whole: int = WHOLE) -> dict[str, Any]:
    """Return what tells whether a file's content has changed.

    Args:
        path: the file.
        whole: bytes up to which it is read whole.

    Returns:
        `bytes`, and `sha256` of the content (of JSON, of what it says) or, for a larger file, `sampled_sha256`.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        if size > whole:
            return {"bytes": size, "sampled_sha256": _sampled(stream, size)}
        content = stream.read()
    if path.suffix == ".json" and size <= _JSON:
        try:
            content = json.dumps(json.loads(content), sort_keys=True).encode("ascii")
            return {"bytes": len(content), "sha256": sha256(content).hexdigest()}
        except ValueError:
            return {"bytes": size, "sha256": sha256(content).hexdigest()}
    return {"bytes": size, "sha256": sha256(content).hexdigest()}


def content_of(path: Path) -> str | None:
    """Return one SHA-256 for a small file's content, or for the JSON files of a folder; None where there is neither.

    Raises:
        OSError: it cannot be read.
    """
    if path.is_dir():
        return together({each.name: fingerprint(each) for each in sorted(path.glob("*.json"))})
    return together({"": fingerprint(path)}) if path.is_file() else None


def together(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one SHA-256 for the fingerprints of several files."""
    return sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _sampled(stream: BinaryIO, size: int) -> str:
    digest = sha256(str(size).encode())
    for start in _places(stream, size, digest):
        stream.seek(start)
        digest.update(stream.read(BLOCK))
    return digest.hexdigest()


def _places(stream: BinaryIO, size: int, digest: Any) -> Iterator[int]:
    """Yield where blocks begin: three of each tensor where a header names tensors, else evenly spaced ones."""
    length = int.from_bytes(stream.read(8), "little")
    header = stream.read(length) if length <= min(size - 8, 100 * 2**20) else b""
    try:
        spans = [entry["data_offsets"] for name, entry in sorted(json.loads(header).items()) if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError):
        spans = []
    if not spans:
        yield from range(0, size, max(size // BLOCKS, BLOCK))
        return
    digest.update(header)
    for first, last in spans:
        end = max(last - BLOCK, first)
        for place in sorted({first, (first + end) // 2, end}):
            yield 8 + length + place
