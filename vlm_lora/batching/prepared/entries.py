"""One entry of a store of tensors: how its bytes lie, and the line of an index that says so."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

FORMAT = 1
"""Changes with the layout of the files; an entry of another one is not read."""

ALIGNMENT = 64
"""Bytes: tensors begin at multiples of it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where an entry lies, and what its bytes are."""

    segment: str
    start: int
    size: int
    checksum: int
    tensors: tuple[tuple[str, str, tuple[int, ...], int], ...]
    """Name, dtype, shape, and place within the entry."""


def laid_out(arrays: Mapping[str, torch.Tensor]) -> tuple[tuple[str, str, tuple[int, ...], int], ...]:
    """Return where tensors lie within their entry, one behind the other."""
    place, places = 0, []
    for name, array in arrays.items():
        places.append((name, str(array.dtype).removeprefix("torch."), tuple(array.shape), place))
        place += aligned(array.nbytes)
    return tuple(places)


def index_line(key: str, entry: Entry) -> bytes:
    """Return the line of an index for an entry: a CRC-32 of the line, then JSON."""
    content = [FORMAT, key, entry.start, entry.size, entry.checksum, entry.tensors]
    text = json.dumps(content, separators=(",", ":")).encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(text), text)


def parse_line(line: bytes, segment: str) -> tuple[str, Entry | None]:
    """Return what a line of an index says; no entry where it is not whole or of another version."""
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return "", None
    version, key, *numbers, tensors = json.loads(text)
    if version != FORMAT:
        return "", None
    start, size, content = numbers
    kept = tuple((name, dtype, tuple(shape), place) for name, dtype, shape, place in tensors)
    return key, Entry(segment=segment, start=start, size=size, checksum=content, tensors=kept)


def tensor_at(content: np.ndarray, dtype: str, shape: tuple[int, ...], start: int) -> torch.Tensor:
    """Return a tensor of an entry's bytes, which it shares."""
    kind = getattr(torch, dtype)
    count = 1
    for side in shape:
        count *= side
    if count == 0:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(content, dtype=kind, count=count, offset=start).reshape(shape)


def bytes_of(array: torch.Tensor) -> memoryview:
    """Return a contiguous tensor's bytes."""
    flat = array.reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def aligned(size: int) -> int:
    """Return the bytes that a tensor takes with what is left free behind it."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def name_of(entry: Entry) -> str:
    """Return what an entry is called among all of a folder."""
    return f"{entry.segment} {entry.start}"
